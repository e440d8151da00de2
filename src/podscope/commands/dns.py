# SPDX-License-Identifier: Apache-2.0
"""``podscope dns``: lookups by owner and name, or each lookup."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from podscope import render
from podscope.commands import rows
from podscope.commands import table
from podscope.commands import targets
from podscope.commands.http import add_interval
from podscope.commands.http import interval_ns
from podscope.errors import UsageError
from podscope.schema_dns import DNS
from podscope.schema_dns import DNS_LOOKUP

if TYPE_CHECKING:
    import argparse

    from podscope.schema import Array

HELP = "Show DNS lookups by owner, name and response; with --each every lookup as it ends."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags and the targets."""
    targets.add_targets(parser)
    parser.add_argument("--each", action="store_true", help="every lookup, one line each")
    parser.add_argument("--errors", action="store_true", help="with --each, only those that failed")
    add_interval(parser)
    parser.add_argument("--once", action="store_true", help="end after one interval")
    rows.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Watch and show until a signal or the end of the time."""
    interval = interval_ns(args) / 1e9
    named = rows.workload(args)
    if args.errors and not args.each:
        raise UsageError("--errors: it is for single lookups; give --each, too")
    if args.once and args.each:
        raise UsageError("--once: single lookups have no interval; give --duration TIME")
    from podscope.sources.dns import DnsOptions

    kind = "dns_lookup" if args.each else "dns"
    view = table.View(
        kind="dns",
        shown=rows.Shown(DNS, _SUMS),
        order=_order,
        title="podscope dns",
        dispensable=("P90", "SERVER", "MAX", "P50", "SIDE", "TYPE"),
        output=args.output,
        once=args.once,
        named=named,
    )

    def show(found: rows.Watched) -> None:
        if args.each:
            kinds = {kind: rows.Shown(DNS_LOOKUP, _EACH)}
            rows.show(found, found.lost, kinds, args.output, sys.stdout, named=named)
        else:
            table.show(found, found.lost, view, sys.stdout)

    sources = {"dns": DnsOptions(only_errors=args.errors)}
    return rows.watched(args, (kind,), interval, show, sources)


def _order(columns: rows.Columns) -> Array:
    """Those that fail first, then those that are asked most."""
    failed = columns["error.type"] != np.array(None)
    return np.lexsort((-columns["count"], ~failed))


def _rates(columns: rows.Columns) -> list[str]:
    return render.cells(columns["count"] / columns["interval"], render.number)


def _codes(columns: rows.Columns) -> list[str]:
    pairs = zip(columns["podscope.dns.response_code"], columns["error.type"], strict=True)
    return [code or error or "-" for code, error in pairs]


_WHAT = (
    rows.Column("WORKLOAD", 20, rows.workloads),
    rows.Column("SIDE", 6, rows.plain("side")),
    rows.Column("NAME", 24, rows.plain("dns.question.name")),
    rows.Column("TYPE", 5, rows.plain("podscope.dns.question.type")),
    rows.Column("CODE", 8, _codes),
)
_SUMS = (
    *_WHAT,
    rows.Column("RATE/S", 6, _rates, right=True),
    *(
        rows.Column(title, 7, rows.durations(f"duration.{title.lower()}"), right=True)
        for title in ("P50", "P90", "P99", "MAX")
    ),
    rows.Column("SERVER", 15, rows.plain("server.address")),
)
_EACH = (
    rows.Column("TIME", 12, rows.times),
    *_WHAT,
    rows.Column("DURATION", 8, rows.durations("duration"), right=True),
    rows.Column("PEER", 21, rows.peers),
)
