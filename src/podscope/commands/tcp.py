# SPDX-License-Identifier: Apache-2.0
"""``podscope tcp``: connections by owner and peer, or single events of one sort."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from podscope import filters
from podscope import render
from podscope.commands import rows
from podscope.commands import table
from podscope.commands import targets
from podscope.commands.http import add_interval
from podscope.commands.http import interval_ns
from podscope.errors import UsageError
from podscope.schema_tcp import TCP
from podscope.schema_tcp import TCP_EVENT

if TYPE_CHECKING:
    import argparse

    from podscope.batch import Batch
    from podscope.schema import Array

HELP = "Show connections of TCP by owner and peer, or with a word single events as they come."


@dataclass(frozen=True)
class Sort:
    """Events of one sort.

    Attributes:
        events: what the kernel tells, of ``podscope.sources.tcp.EVENTS``.
        columns: of the table, after time and workload.
    """

    events: tuple[str, ...]
    columns: tuple[rows.Column, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="EVENTS|TARGET",
        help=f"{', '.join(SORTS)} (default: none; sums of each interval); {targets.WITH_KIND}",
    )
    add_interval(parser)
    parser.add_argument("--once", action="store_true", help="sums of one interval, then end")
    parser.add_argument("--port", metavar="PORTS", help="ports of either end, as 80,8000-8100")
    rows.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Watch and show until a signal or the end of the time."""
    interval = interval_ns(args) / 1e9
    events, args.targets = targets.parted(args.words)
    if len(events) > 1:
        raise UsageError(f"EVENTS: one at a time: {' '.join(events)}")
    ports = None if args.port is None else filters.ports(args.port, "--port")
    named = rows.workload(args)
    if not events:
        return _sums(args, interval, ports, named)
    if events[0] not in SORTS:
        raise UsageError(f"EVENTS: no such: {events[0]!r}; choose from {', '.join(SORTS)}")
    if args.once:
        raise UsageError("--once: events have no interval; give --duration TIME")
    sort = SORTS[events[0]]
    shown = rows.Shown(TCP_EVENT, (*_BEGINNING, *sort.columns), lambda b: _of_ports(b, ports))
    from podscope.sources.tcp import TcpOptions

    return rows.watched(
        args,
        ("tcp_event",),
        interval,
        lambda found: rows.show(
            found, found.lost, {"tcp_event": shown}, args.output, sys.stdout, named=named
        ),
        {"tcp": TcpOptions(events=sort.events, window_seconds=interval)},
    )


def _sums(
    args: argparse.Namespace,
    interval: float,
    ports: filters.Ranges | None,
    named: str | None,
) -> int:
    shown = rows.Shown(TCP, _SUMS, lambda batch: _of_ports(batch, ports))
    view = table.View(
        kind="tcp",
        shown=shown,
        order=_order,
        title="podscope tcp",
        dispensable=_DISPENSABLE,
        output=args.output,
        once=args.once,
        named=named,
    )
    return rows.watched(
        args, ("tcp",), interval, lambda found: table.show(found, found.lost, view, sys.stdout)
    )


def _of_ports(batch: Batch, ports: filters.Ranges | None) -> Array:
    found = np.full(len(batch), ports is None)
    names = ("port",) if batch.kind == "tcp" else ("local_port", "peer_port")
    for first, last in ports or ():
        for name in names:
            found |= (batch.rows[name] >= first) & (batch.rows[name] <= last)
    return found


def _order(columns: rows.Columns) -> Array:
    """Those with errors first, then those that do most."""
    wrong = sum(
        columns[f"podscope.tcp.{name}"]
        for name in ("connects.failed", "retransmits", "resets.sent", "resets.received")
    )
    much = sum(columns[f"podscope.tcp.{name}"] for name in ("connects", "accepts", "closes"))
    return np.lexsort((-np.asarray(much), -np.asarray(wrong)))


def _whole(title: str, name: str) -> rows.Column:
    """A number that may not apply."""

    def cells(columns: rows.Columns) -> list[str]:
        return ["-" if np.isnan(number) else f"{number:.0f}" for number in columns[name].tolist()]

    return rows.Column(title, max(len(title), 5), cells, right=True)


def _bytes(title: str, name: str) -> rows.Column:
    def cells(columns: rows.Columns) -> list[str]:
        return ["-" if np.isnan(size) else render.size(size) for size in columns[name].tolist()]

    return rows.Column(title, 6, cells, right=True)


def _plain(title: str, width: int, name: str) -> rows.Column:
    return rows.Column(title, width, rows.plain(name))


def _seconds(title: str, name: str) -> rows.Column:
    return rows.Column(title, max(len(title), 7), rows.durations(name), right=True)


_BEGINNING = (
    rows.Column("TIME", 12, rows.times),
    rows.Column("WORKLOAD", 20, rows.workloads),
    rows.Column("LOCAL", 21, rows.endpoints("network.local.address", "network.local.port")),
    rows.Column("PEER", 21, rows.peers),
)
_STATE = _plain("STATE", 11, "network.connection.state")
_SENT = _bytes("SENT", "podscope.tcp.sent")
_RECEIVED = _bytes("RECEIVED", "podscope.tcp.received")
_RTT = _seconds("RTT", "podscope.tcp.srtt")

# Word on the command line: the events, and the columns that people know from bcc's tools.
SORTS = {
    "life": Sort(
        ("life",),
        (
            _plain("SIDE", 6, "side"),
            _SENT,
            _RECEIVED,
            _seconds("DURATION", "duration"),
            _whole("RETRANS", "podscope.tcp.retransmits"),
            _RTT,
            _plain("ERROR", 5, "error.type"),
        ),
    ),
    "connect": Sort(
        ("connect",), (_seconds("LATENCY", "duration"), _plain("ERROR", 5, "error.type"))
    ),
    "accept": Sort(
        ("accept",),
        (
            _whole("QUEUE", "podscope.listen.accept_queue"),
            _whole("LIMIT", "podscope.listen.limit"),
        ),
    ),
    "states": Sort(("state",), (_plain("OLD", 11, "podscope.tcp.state.old"), _STATE)),
    "retransmits": Sort(("retransmit",), (_whole("SEGMENTS", "podscope.tcp.retransmits"), _STATE)),
    "resets": Sort(
        ("reset_sent", "reset_received"), (_plain("WHAT", 14, "podscope.tcp.event"), _STATE)
    ),
    "drops": Sort(
        ("drop",),
        (
            _STATE,
            _plain("FLAGS", 9, "podscope.tcp.flags"),
            _plain("REASON", 6, "podscope.tcp.drop.reason"),
        ),
    ),
    "window": Sort(
        ("window",),
        (
            _whole("CWND", "podscope.tcp.cwnd"),
            _whole("SSTHRESH", "podscope.tcp.ssthresh"),
            _bytes("BUFFER", "podscope.tcp.send_buffer.size"),
            _bytes("USED", "podscope.tcp.send_buffer.used"),
            _RTT,
            _SENT,
            _RECEIVED,
        ),
    ),
}


def _number(title: str, name: str) -> rows.Column:
    return rows.Column(title, len(title), rows.numbers(f"podscope.tcp.{name}"), right=True)


_DISPENSABLE = (
    *("P90", "RST IN", "RST OUT", "CLOSED", "P50"),
    *("MAX", "SENT", "RECEIVED", "SIDE", "ACCEPTS"),
)
_SUMS = (
    rows.Column("WORKLOAD", 20, rows.workloads),
    _plain("SIDE", 6, "side"),
    rows.Column("PORT", 5, rows.numbers("server.port"), right=True),
    rows.Column("PEER", 15, rows.peer_names),
    _number("CONNECTS", "connects"),
    _number("FAILED", "connects.failed"),
    *(
        _seconds(title, f"podscope.tcp.connect.duration.{title.lower()}")
        for title in ("P50", "P90", "P99", "MAX")
    ),
    _number("ACCEPTS", "accepts"),
    _number("CLOSED", "closes"),
    _SENT,
    _RECEIVED,
    _number("RETRANS", "retransmits"),
    _number("RST OUT", "resets.sent"),
    _number("RST IN", "resets.received"),
)
