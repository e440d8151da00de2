# SPDX-License-Identifier: Apache-2.0
"""Fields of listeners: members of ``struct listen_row`` in bpf/listen/listen.h."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from podscope.schema import Array
from podscope.schema import Field
from podscope.schema import View
from podscope.schema_events import END
from podscope.schema_events import INTERVAL
from podscope.schema_events import PEER
from podscope.schema_events import TIME
from podscope.schema_events import WORKLOAD
from podscope.schema_events import address
from podscope.schema_events import attribute
from podscope.schema_events import number
from podscope.schema_events import process
from podscope.schema_events import texts
from podscope.schema_events import value
from podscope.schema_events import word

# enum listen_was: queues that have passed 80 % of the limit. And: handshakes were dropped.
ACCEPT_QUEUE, SYN_QUEUE, DROPS = 1, 2, 4
_WORDS = {ACCEPT_QUEUE: "accept_queue", SYN_QUEUE: "syn_queue", DROPS: "drops"}
# enum listen_reason
REASONS = ("other", "accept_queue", "syn_queue")
# Overflows that cannot be told apart from other drops.
UNKNOWN = -1


def high(rows: Array) -> Array:
    """Which queues had 80 % of the limit or more in the interval: codes, shape (n,)."""
    limit = rows["limit"].astype(np.int64)
    found = np.zeros(len(rows), np.uint8)
    for name, code in (("accept_highest", ACCEPT_QUEUE), ("syn_highest", SYN_QUEUE)):
        most = rows[name].astype(np.int64)
        found |= np.where((most > 0) & (5 * most >= 4 * limit), code, 0).astype(np.uint8)
    return found


def _event(view: View) -> Array:
    told = {code: _named(code) for code in range(8)}
    return texts([told[code] for code in view.records["event"].tolist()])


def _named(codes: int) -> str:
    return ",".join(word for code, word in _WORDS.items() if codes & code)


def _usage(name: str) -> Callable[[View], Array]:
    def read(view: View) -> Array:
        limit = view.records["limit"]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(limit == 0, np.nan, view.records[name] / limit)

    return read


def _overflows(view: View) -> Array:
    """As a float, so that what is not known can be left out and 0 be told."""
    overflows = view.records["overflows"]
    return np.where(overflows < 0, np.nan, overflows)


_QUEUE = ("int", "{connection}")

LISTEN: tuple[Field, ...] = (
    END,
    INTERVAL,
    *WORKLOAD,
    *process("the process that listens"),
    attribute("server.address", "address", address("address"), "address; absent for all (IPv6)"),
    attribute("server.port", "port", number("port"), "port", type="int", label=True),
    attribute(
        "podscope.listen.event",
        "event",
        _event,
        "what is new: accept_queue or syn_queue (passed 80 % of the limit), drops; with commas",
    ),
    value(
        "podscope.listen.limit",
        "limit",
        _QUEUE,
        number("limit"),
        "limit of both queues (backlog); the accept queue is full when it holds one more",
    ),
    value(
        "podscope.listen.accept_queue",
        "accept_queue",
        _QUEUE,
        number("accept_queue"),
        "connections that wait for accept(), at the end of the interval",
    ),
    value(
        "podscope.listen.accept_queue.highest",
        "accept_highest",
        _QUEUE,
        number("accept_highest"),
        "the most in the interval: looked at as each connection came, and at the end",
    ),
    value(
        "podscope.listen.queue.usage",
        "accept_highest, limit",
        ("float", "1"),
        _usage("accept_highest"),
        "share of the limit that this is; absent if the limit is 0",
    ),
    value(
        "podscope.listen.syn_queue",
        "syn_queue",
        _QUEUE,
        number("syn_queue"),
        "handshakes that are not complete, at the end of the interval",
    ),
    value(
        "podscope.listen.syn_queue.highest",
        "syn_highest",
        _QUEUE,
        number("syn_highest"),
        "the most in the interval, looked at as above",
    ),
    value(
        "podscope.listen.drops",
        "drops",
        _QUEUE,
        number("drops"),
        "handshakes dropped in the interval, for whatever reason (the kernel's ListenDrops)",
    ),
    value(
        "podscope.listen.overflows",
        "overflows",
        ("float", "{connection}"),
        _overflows,
        "those because the accept queue was full (the kernel's ListenOverflows); absent where "
        "several listeners of a network namespace dropped for several reasons",
    ),
    attribute(
        "podscope.listen.closed",
        "closed",
        number("closed"),
        "1 if it was closed in the interval",
        type="int",
    ),
    attribute("podscope.netns", "netns", number("netns"), "its network namespace", type="int"),
)

LISTEN_DROP: tuple[Field, ...] = (
    TIME,
    *WORKLOAD,
    *process("the process that listens"),
    attribute("server.address", "address", address("address"), "address; absent for all (IPv6)"),
    attribute("server.port", "port", number("port"), "port", type="int"),
    attribute("network.peer.address", "peer", address("peer"), "who began the handshake"),
    attribute("network.peer.port", "peer_port", number("peer_port"), "its port", type="int"),
    *PEER,
    attribute(
        "podscope.listen.drop.reason",
        "reason",
        word("reason", REASONS),
        "which queue is full: accept_queue or syn_queue; other if none is",
    ),
    value(
        "podscope.listen.drops",
        "drops",
        _QUEUE,
        number("drops"),
        "handshakes dropped: 1, or more where several CPUs dropped at the same time",
    ),
    value(
        "podscope.listen.accept_queue",
        "accept_queue",
        _QUEUE,
        number("accept_queue"),
        "connections that wait for accept()",
    ),
    value(
        "podscope.listen.syn_queue",
        "syn_queue",
        _QUEUE,
        number("syn_queue"),
        "handshakes that are not complete",
    ),
    value("podscope.listen.limit", "limit", _QUEUE, number("limit"), "limit of both queues"),
    attribute("podscope.netns", "netns", number("netns"), "its network namespace", type="int"),
)
