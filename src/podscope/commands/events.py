# SPDX-License-Identifier: Apache-2.0
"""``podscope events``: what goes wrong below HTTP, one line an event."""

from __future__ import annotations

import sys
from collections.abc import Callable
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from podscope import render
from podscope.commands import rows
from podscope.commands import targets
from podscope.errors import UsageError
from podscope.schema_dns import DNS_LOOKUP
from podscope.schema_listen import LISTEN
from podscope.schema_oom import OOM
from podscope.schema_tcp import TCP_EVENT

if TYPE_CHECKING:
    import argparse

    from podscope.batch import Batch
    from podscope.schema import Array

HELP = (
    "Show events as they come: kills by the OOM killer, listeners whose queues are full, what goes "
    "wrong with connections and DNS lookups."
)
# Of connections, what goes wrong.
TCP_EVENTS = ("failed", "retransmit", "reset_sent", "reset_received")
INTERVAL_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="EVENT|TARGET",
        help=f"which ones: {', '.join(EVENTS)} (default: all that the kernel can tell); "
        f"{targets.WITH_KIND}",
    )
    rows.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Watch and show until a signal or the end of the time."""
    asked, args.targets = targets.parted(args.words)
    events = _events(asked)
    if args.output == "csv" and len(events) > 1:
        raise UsageError(
            f"-o csv: each event has columns of its own; name one, as {args.output} {events[0]}"
        )
    named = rows.workload(args)
    kinds = {EVENTS[one][0]: EVENTS[one][1] for one in events}
    from podscope.sources.dns import DnsOptions
    from podscope.sources.tcp import TcpOptions

    settings = {"tcp": TcpOptions(events=TCP_EVENTS), "dns": DnsOptions(only_errors=True)}
    return rows.watched(
        args,
        tuple(kinds),
        INTERVAL_SECONDS,
        lambda found: rows.show(found, found.lost, kinds, args.output, sys.stdout, named=named),
        settings,
    )


def _events(asked: Sequence[str]) -> tuple[str, ...]:
    for one in asked:
        if one not in EVENTS:
            raise UsageError(f"EVENT: not an event: {one!r}; choose from {', '.join(EVENTS)}")
    return tuple(dict.fromkeys(asked)) or tuple(EVENTS)


def _table(
    event: Callable[[rows.Columns], list[str]], detail: Callable[[rows.Columns], list[str]]
) -> tuple[rows.Column, ...]:
    return (
        rows.Column("TIME", 12, rows.times),
        rows.Column("EVENT", 18, event),
        rows.Column("WORKLOAD", 24, rows.workloads),
        rows.Column("WHAT", 4, detail),
    )


def _oom_kills(columns: rows.Columns) -> list[str]:
    return ["oom kill"] * len(columns["time"])


def _oom_details(columns: rows.Columns) -> list[str]:
    told = zip(
        columns["process.executable.name"].tolist(),
        columns["process.memory.usage"].tolist(),
        columns["podscope.oom.scope"].tolist(),
        columns["podscope.oom.limit"].tolist(),
        columns["podscope.oom.trigger.comm"].tolist(),
        columns["podscope.oom.trigger.pid"].tolist(),
        strict=True,
    )
    return [
        f"{render.clean(name)} killed with {render.size(used)} resident; "
        f"{_oom_reason(scope, limit)}; {render.clean(trigger)}[{pid}] asked for more"
        for name, used, scope, limit, trigger, pid in told
    ]


def _oom_reason(scope: str | None, limit: int) -> str:
    if scope == "memcg":
        return f"its memory cgroup is at its limit of {render.size(limit)}"
    if scope == "sysrq":
        return "asked for by sysrq"
    return "the machine has no more memory" if scope == "global" else "memory ran out"


def _listen_news(batch: Batch) -> Array:
    return np.asarray(batch.rows["event"] != 0)


def _listen_events(columns: rows.Columns) -> list[str]:
    """Which queue is high, or that something was dropped, which it often is at the same time."""
    words = {"drops": "handshakes dropped"}
    events = [(event or "").split(",") for event in columns["podscope.listen.event"].tolist()]
    return [words.get(event[-1], event[0].replace("_", " ")) for event in events]


def _listen_details(columns: rows.Columns) -> list[str]:
    told = zip(
        columns["podscope.listen.event"].tolist(),
        rows.endpoints("server.address", "server.port")(columns),
        columns["podscope.listen.accept_queue.highest"].tolist(),
        columns["podscope.listen.syn_queue.highest"].tolist(),
        columns["podscope.listen.limit"].tolist(),
        columns["podscope.listen.drops"].tolist(),
        strict=True,
    )
    return [
        f"{'' if where == '-' else where + ': '}"
        f"accept queue {accept} of {limit}, SYN queue {syn} of {limit}"
        + (f", {drops} handshakes dropped" if "drops" in event else "")
        for event, where, accept, syn, limit, drops in told
    ]


def _tcp_events(columns: rows.Columns) -> list[str]:
    words = {"connect": "connect failed", "reset_sent": "reset sent"}
    words["reset_received"] = "reset received"
    return [words.get(what, what) for what in columns["podscope.tcp.event"].tolist()]


def _tcp_details(columns: rows.Columns) -> list[str]:
    told = zip(
        columns["podscope.tcp.event"].tolist(),
        rows.endpoints("network.local.address", "network.local.port")(columns),
        rows.endpoints("network.peer.address", "network.peer.port")(columns),
        columns["error.type"].tolist(),
        columns["duration"].tolist(),
        columns["network.connection.state"].tolist(),
        columns["podscope.tcp.retransmits"].tolist(),
        strict=True,
    )
    return [
        f"{local} to {peer}, " + _tcp_how(what, error, lasted, state, segments)
        for what, local, peer, error, lasted, state, segments in told
    ]


def _tcp_how(
    what: str, error: str | None, lasted: float, state: str | None, segments: float
) -> str:
    if what == "connect":
        return f"{error} after {render.seconds(lasted)}"
    if what == "retransmit":
        return f"{state}: {segments:.0f} segment{'' if segments == 1 else 's'} sent again"
    return f"{state}"


def _dns_events(columns: rows.Columns) -> list[str]:
    return [f"dns {error}" for error in columns["error.type"].tolist()]


def _dns_details(columns: rows.Columns) -> list[str]:
    told = zip(
        render.cells(columns["dns.question.name"]),
        render.cells(columns["podscope.dns.question.type"]),
        columns["side"].tolist(),
        rows.endpoints("network.peer.address", "network.peer.port")(columns),
        columns["duration"].tolist(),
        strict=True,
    )
    return [
        f"{name} {kind}, {'asked by' if side == 'server' else 'asked of'} {peer}, "
        + ("no response" if np.isnan(duration) else f"after {render.seconds(duration)}")
        for name, kind, side, peer, duration in told
    ]


# Event: kind of rows, and how it is shown.
EVENTS: dict[str, tuple[str, rows.Shown]] = {
    "oom": ("oom", rows.Shown(OOM, _table(_oom_kills, _oom_details))),
    "listen": (
        "listen",
        rows.Shown(LISTEN, _table(_listen_events, _listen_details), _listen_news),
    ),
    "tcp": ("tcp_event", rows.Shown(TCP_EVENT, _table(_tcp_events, _tcp_details))),
    "dns": ("dns_lookup", rows.Shown(DNS_LOOKUP, _table(_dns_events, _dns_details))),
}
