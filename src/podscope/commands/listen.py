# SPDX-License-Identifier: Apache-2.0
"""``podscope listen``: every listener with the use of its queues, and what was dropped."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from podscope import filters
from podscope.commands import rows
from podscope.commands import table
from podscope.commands import targets
from podscope.commands.http import add_interval
from podscope.commands.http import interval_ns
from podscope.errors import UsageError
from podscope.schema_listen import LISTEN
from podscope.schema_listen import LISTEN_DROP

if TYPE_CHECKING:
    import argparse

    from podscope.batch import Batch
    from podscope.schema import Array

HELP = "Show every listener of TCP: its accept queue and SYN queue, their limit, and drops."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags and the targets."""
    targets.add_targets(parser)
    add_interval(parser)
    parser.add_argument("--once", action="store_true", help="show what is now, and end")
    parser.add_argument(
        "--drops", action="store_true", help="each handshake that is dropped, one line each"
    )
    parser.add_argument("--port", metavar="PORTS", help="ports, as 80,8000-8100")
    rows.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Watch and show until a signal or the end of the time."""
    interval = interval_ns(args) / 1e9
    ports = None if args.port is None else filters.ports(args.port, "--port")
    named = rows.workload(args)
    if args.drops:
        return _drops(args, interval, ports, named)
    shown = rows.Shown(LISTEN, _TABLE, lambda batch: _of_ports(batch, ports))
    view = table.View(
        kind="listen",
        shown=shown,
        order=_order,
        title="podscope listen",
        dispensable=("SYN HIGHEST", "OVERFLOWS", "HIGHEST", "SYN Q"),
        output=args.output,
        once=args.once,
        named=named,
    )
    from podscope.pipeline import Watch

    def show(found: rows.Watched) -> None:
        # What is now is there to be read; the agents of a cluster tell of it in a moment.
        batches = found.read() if args.once and isinstance(found, Watch) else found
        table.show(batches, found.lost, view, sys.stdout)

    return rows.watched(args, ("listen",), interval, show)


def _drops(
    args: argparse.Namespace, interval: float, ports: filters.Ranges | None, named: str | None
) -> int:
    if args.once:
        raise UsageError("--once: drops have no interval; give --duration TIME")
    shown = {"listen_drop": rows.Shown(LISTEN_DROP, _EACH, lambda b: _of_ports(b, ports))}

    def show(found: rows.Watched) -> None:
        rows.show(found, found.lost, shown, args.output, sys.stdout, named=named)

    return rows.watched(args, ("listen_drop",), interval, show)


def _of_ports(batch: Batch, ports: filters.Ranges | None) -> Array:
    found = np.full(len(batch), ports is None)
    for first, last in ports or ():
        found |= (batch.rows["port"] >= first) & (batch.rows["port"] <= last)
    return found


def _order(columns: rows.Columns) -> Array:
    """Those that drop first, then the fullest, then by port."""
    usage = np.nan_to_num(columns["podscope.listen.queue.usage"])
    return np.lexsort((columns["server.port"], -usage, -columns["podscope.listen.drops"]))


def _addresses(columns: rows.Columns) -> list[str]:
    pairs = zip(columns["server.address"].tolist(), columns["server.port"].tolist(), strict=True)
    return [rows.endpoint(address or "::", port) for address, port in pairs]


def _whole(name: str) -> rows.Column:
    """Overflows: a float, since they may not be known."""

    def cells(columns: rows.Columns) -> list[str]:
        return ["-" if np.isnan(number) else f"{number:.0f}" for number in columns[name].tolist()]

    return rows.Column("OVERFLOWS", 9, cells, right=True)


def _number(title: str, name: str) -> rows.Column:
    return rows.Column(title, len(title), rows.numbers(f"podscope.listen.{name}"), right=True)


_TABLE = (
    rows.Column("LISTENER", 21, _addresses),
    _number("ACCEPT Q", "accept_queue"),
    _number("HIGHEST", "accept_queue.highest"),
    _number("LIMIT", "limit"),
    _number("SYN Q", "syn_queue"),
    _number("SYN HIGHEST", "syn_queue.highest"),
    _number("DROPS", "drops"),
    _whole("podscope.listen.overflows"),
    rows.Column("WORKLOAD", 20, rows.workloads),
)
_EACH = (
    rows.Column("TIME", 12, rows.times),
    rows.Column("LISTENER", 21, _addresses),
    rows.Column("PEER", 21, rows.peers),
    rows.Column("REASON", 12, rows.plain("podscope.listen.drop.reason")),
    _number("DROPS", "drops"),
    _number("ACCEPT Q", "accept_queue"),
    _number("SYN Q", "syn_queue"),
    _number("LIMIT", "limit"),
    rows.Column("WORKLOAD", 20, rows.workloads),
)
