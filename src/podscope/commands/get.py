# SPDX-License-Identifier: Apache-2.0
"""``podscope get``: traces that were kept in files, those of many hosts as one answer."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from podscope.trace.gather import Gathered
    from podscope.trace.maps import MapShape
    from podscope.trace.reports import Report

HELP = "Show traces that 'podscope run -o snapshots' wrote; those of many hosts become one."
OUTPUTS = ("table", "json", "csv")
BY = ("node",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="one for each host")
    parser.add_argument(
        "-o", "--output", choices=OUTPUTS, default="table", help="form (default: table)"
    )
    parser.add_argument("--by", choices=BY, help="keep the hosts apart")


def run(args: argparse.Namespace) -> int:
    """Read, merge, show. The exit code is 1 where a host did not tell its end."""
    from podscope.trace import gather

    if not args.files:
        raise UsageError("which files? Write them with 'podscope run -o snapshots > FILE'")
    found = [(path, _read(path)) for path in args.files]
    gathered = gather.Gathered(gather.by_names(found))
    if args.output == "json":
        _show_json(gathered, by_node=args.by == "node")
    elif args.output == "csv":
        _show_csv(gathered, by_node=args.by == "node")
    else:
        _show_table(gathered, by_node=args.by == "node")
    for note in gathered.notes():
        print(f"podscope: {note}", file=sys.stderr)
    return 0 if gathered.whole() else 1


def _read(path: str) -> Report:
    from podscope.trace import reports

    try:
        with open(path, encoding="utf-8") as file:
            return reports.read(file, path)
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{path}: cannot be read: {said}") from None


def _show_json(gathered: Gathered, *, by_node: bool) -> None:
    import json

    from podscope.trace import show
    from podscope.trace.session import Answer

    shapes = _shapes(gathered, by_node=by_node)
    for node, report in gathered.reports.items():
        text = show.json_answer(Answer(report.lines, {}, 0), shapes, report.about.columns)
        for line in text.splitlines():
            print(json.dumps({"node": node} | json.loads(line), ensure_ascii=False))
    maps = gathered.maps(by_node=by_node)
    sys.stdout.write(show.json_answer(Answer((), maps, 0, last=True), shapes, ()))
    summary = {
        "kind": "summary",
        "nodes": list(gathered.reports),
        "whole": gathered.whole(),
        "lost": gathered.lost(),
        "notes": gathered.notes(),
    }
    print(json.dumps(summary, ensure_ascii=False))


def _show_csv(gathered: Gathered, *, by_node: bool) -> None:
    from podscope.trace import show
    from podscope.trace.scripts import row

    reports = gathered.reports.items()
    columns = next(iter(gathered.reports.values())).about.columns
    if not columns:
        sys.stdout.write(show.csv_maps(gathered.maps(by_node=by_node)))
        return
    sys.stdout.write(show.csv_row(("node", *columns)))
    for node, values in _rows(reports):
        if len(values) == len(columns):
            sys.stdout.write(show.csv_row((node, *row(values, columns))))


def _rows(reports: Iterable[tuple[str, Report]]) -> Iterable[tuple[str, list[object]]]:
    """Tuples that programs printed, with their node."""
    from podscope.trace.decode import Value

    for node, report in reports:
        for line in report.lines:
            if isinstance(line, Value) and isinstance(line.value, list):
                yield node, line.value


def _show_table(gathered: Gathered, *, by_node: bool) -> None:
    from podscope import render
    from podscope.trace import show

    shapes = _shapes(gathered, by_node=by_node)
    several = len(gathered.reports) > 1
    for node, report in gathered.reports.items():
        for line in report.lines:
            for text in show.line_text(line, shapes).splitlines():
                print(f"{node}: {text}" if several else text)
    for text in show.maps_lines(gathered.maps(by_node=by_node), shapes):
        print(text)
    ended = sum(report.ended for report in gathered.reports.values())
    lost = render.lost_text(gathered.lost()) or "nothing lost"
    print(f"\n{ended} of {len(gathered.reports)} told their end; {lost}")


def _shapes(gathered: Gathered, *, by_node: bool) -> dict[str, MapShape]:
    """With the node as the first part of keys, where it is."""
    from dataclasses import replace

    maps = gathered.maps(by_node=by_node)
    made = {}
    for name, shape in gathered.shapes().items():
        width = max((len(key) for key in maps[name].keys), default=0)
        added = width == len(shape.titles) + 1
        made[name] = replace(shape, titles=("node", *shape.titles)) if added else shape
    return made
