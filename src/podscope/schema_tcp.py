# SPDX-License-Identifier: Apache-2.0
"""Fields of TCP's connections: members of the records in bpf/tcp/tcp.h."""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np

from podscope import schema
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
from podscope.schema_events import known_seconds
from podscope.schema_events import number
from podscope.schema_events import percentiles
from podscope.schema_events import process
from podscope.schema_events import seconds
from podscope.schema_events import texts
from podscope.schema_events import value
from podscope.schema_events import word

# enum tcp_what: what an event is; the last is a choice of connects, not an event of its own.
WHAT = (
    "",
    "connect",
    "accept",
    "life",
    "state",
    "retransmit",
    "reset_sent",
    "reset_received",
    "drop",
    "window",
)
FAILED = "failed"
# The kernel's states of TCP (include/net/tcp_states.h), with the names that RFC 9293 gives them.
STATES = (
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
)
FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_CONNECT, _ACCEPT, _LIFE = 1, 2, 3
_RETRANSMIT, _RESETS, _DROP, _WINDOW = 5, (6, 7), 8, 9
_TOTALS = (_LIFE, *_RESETS, _WINDOW)


def _error(view: View) -> Array:
    return texts([errno.errorcode.get(code, "") for code in view.records["error"].tolist()])


def _result(view: View) -> Array:
    """Errors of connects too that ended without the kernel noting one: closed by the process."""
    column = _error(view)
    failed = (view.records["what"] == _CONNECT) & (view.records["state"] == STATES.index("CLOSE"))
    column[failed & (column == None)] = "closed"  # noqa: E711
    return column


def _flags(view: View) -> Array:
    return texts([_set_flags(bits) for bits in view.records["flags"].tolist()])


def _set_flags(bits: int) -> str:
    return "|".join(name for place, name in enumerate(FLAGS) if bits >> place & 1)


def _of(codes: tuple[int, ...], read: Callable[[View], Array]) -> Callable[[View], Array]:
    """A number that some events have; NaN, so left out, in others."""

    def masked(view: View) -> Array:
        applies = np.isin(view.records["what"], codes)
        return np.where(applies, read(view).astype(np.float64), np.nan)

    return masked


def _srtt(view: View) -> Array:
    micros = view.records["srtt_us"]
    return np.where(micros == 0, np.nan, micros / 1e6)


def _reason(view: View) -> Array:
    return texts(
        [text.decode("ascii", "backslashreplace") for text in view.records["reason_text"].tolist()]
    )


_SIDE = attribute(
    "side", "side", word("side", schema.SIDES), "server (accepted) or client; absent: not known"
)
_ADDRESS = attribute("network.peer.address", "peer", address("peer"), "address of the other end")
_SEGMENTS = ("float", "{segment}")

TCP_EVENT: tuple[Field, ...] = (
    TIME,
    *WORKLOAD,
    *process("the process that connected or listens"),
    attribute(
        "podscope.tcp.event",
        "what",
        word("what", WHAT),
        "connect, accept, life (a connection has ended), state, retransmit, reset_sent, "
        "reset_received, drop or window",
    ),
    _SIDE,
    attribute(
        "network.local.address",
        "local",
        address("local"),
        "address of this end; of drops without a socket the packet's destination",
    ),
    attribute("network.local.port", "local_port", number("local_port"), "its port", type="int"),
    _ADDRESS,
    attribute("network.peer.port", "peer_port", number("peer_port"), "its port", type="int"),
    *PEER,
    attribute(
        "podscope.tcp.state.old", "old_state", word("old_state", STATES), "state before the change"
    ),
    attribute("network.connection.state", "state", word("state", STATES), "state now"),
    attribute(
        "error.type",
        "error",
        _result,
        "why connect() failed or the connection ended, as ECONNREFUSED; closed: by the process",
    ),
    value(
        "duration",
        "duration_ns",
        ("float", "s"),
        known_seconds("duration_ns"),
        "of connect(), or of the connection from the end of its handshake; absent if that was "
        "not seen",
    ),
    value(
        "podscope.tcp.sent",
        "sent",
        ("float", "By"),
        _of(_TOTALS, number("sent")),
        "payload sent, without what was sent again",
    ),
    value(
        "podscope.tcp.received",
        "received",
        ("float", "By"),
        _of(_TOTALS, number("received")),
        "payload received",
    ),
    value(
        "podscope.tcp.retransmits",
        "retransmits",
        _SEGMENTS,
        _of((_RETRANSMIT, *_TOTALS), number("retransmits")),
        "segments sent again: by this event, or by the connection",
    ),
    value("podscope.tcp.srtt", "srtt_us", ("float", "s"), _srtt, "smoothed round-trip time"),
    value(
        "podscope.listen.accept_queue",
        "queue",
        ("float", "{connection}"),
        _of((_ACCEPT,), number("queue")),
        "connections that wait for accept(), this one among them",
    ),
    value(
        "podscope.listen.limit",
        "limit",
        ("float", "{connection}"),
        _of((_ACCEPT,), number("limit")),
        "limit of that queue",
    ),
    value(
        "podscope.tcp.cwnd",
        "cwnd",
        _SEGMENTS,
        _of((_WINDOW,), number("cwnd")),
        "congestion window (snd_cwnd)",
    ),
    value(
        "podscope.tcp.ssthresh",
        "ssthresh",
        _SEGMENTS,
        _of((_WINDOW,), number("ssthresh")),
        "slow-start threshold (snd_ssthresh)",
    ),
    value(
        "podscope.tcp.send_buffer.size",
        "sndbuf",
        ("float", "By"),
        _of((_WINDOW,), number("sndbuf")),
        "size of the send buffer (sk_sndbuf)",
    ),
    value(
        "podscope.tcp.send_buffer.used",
        "queued",
        ("float", "By"),
        _of((_WINDOW,), number("queued")),
        "what is in it (sk_wmem_queued)",
    ),
    attribute(
        "podscope.tcp.drop.reason", "reason", _reason, "the kernel's reason, as TCP_OVERWINDOW"
    ),
    attribute("podscope.tcp.flags", "flags", _flags, "flags of the dropped packet, as SYN|ACK"),
)

_COUNT = ("int", "{connection}")

TCP: tuple[Field, ...] = (
    END,
    INTERVAL,
    *WORKLOAD,
    *process("the process that connected or listens"),
    _SIDE,
    attribute("server.port", "port", number("port"), "port of the server", type="int"),
    _ADDRESS,
    *PEER,
    value("podscope.tcp.connects", "connects", _COUNT, number("connects"), "that succeeded"),
    value(
        "podscope.tcp.connect.duration.sum",
        "connect_ns",
        ("float", "s"),
        seconds("connect_ns"),
        "sum of their durations",
    ),
    *percentiles("podscope.tcp.connect.duration", "their durations", "connect_max_ns"),
    value(
        "podscope.tcp.connect.duration.max",
        "connect_max_ns",
        ("float", "s"),
        known_seconds("connect_max_ns"),
        "the longest; like the percentiles absent where there is none",
    ),
    value("podscope.tcp.connects.failed", "failed", _COUNT, number("failed"), "that failed"),
    value("podscope.tcp.accepts", "accepts", _COUNT, number("accepts"), "accepted"),
    value("podscope.tcp.closes", "closes", _COUNT, number("closes"), "ended"),
    value(
        "podscope.tcp.duration.sum",
        "duration_ns",
        ("float", "s"),
        seconds("duration_ns"),
        "sum of how long they lived, of those whose beginning was seen",
    ),
    value(
        "podscope.tcp.duration.count", "timed", _COUNT, number("timed"), "how many of them that is"
    ),
    value("podscope.tcp.sent", "sent", ("int", "By"), number("sent"), "payload they have sent"),
    value("podscope.tcp.received", "received", ("int", "By"), number("received"), "and received"),
    value(
        "podscope.tcp.retransmits",
        "retransmits",
        ("int", "{segment}"),
        number("retransmits"),
        "segments sent again, of all connections, as they are sent",
    ),
    value("podscope.tcp.resets.sent", "resets_sent", _COUNT, number("resets_sent"), "RST sent"),
    value(
        "podscope.tcp.resets.received",
        "resets_received",
        _COUNT,
        number("resets_received"),
        "RST received",
    ),
)
