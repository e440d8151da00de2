# SPDX-License-Identifier: Apache-2.0
"""``podscope get``: the traces of a cluster, or the answer of one; also of those kept in files."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Iterable
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

from podscope.commands import targets
from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from podscope.trace.gather import Gathered
    from podscope.trace.kept import Kept
    from podscope.trace.reports import Report

HELP = (
    "List the traces of a cluster, or show one as it stands; or those that were written to files "
    "(-o snapshots), all of them as one."
)
OUTPUTS = ("table", "json", "csv", "snapshots")
BY = ("node",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "traces", nargs="*", metavar="TRACE|FILE", help="id or name of one, or files"
    )
    targets.add_place(parser)
    targets.add_agents(parser)
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")
    parser.add_argument(
        "-o", "--output", choices=OUTPUTS, default="table", help="form (default: table)"
    )
    parser.add_argument("--by", choices=BY, help="keep the hosts apart")


def run(args: argparse.Namespace) -> int:
    """Read, merge, show. The exit code is 1 where a host failed, or did not tell its end."""
    words = args.traces
    files = [word for word in words if "/" in word or os.path.exists(word)]
    if files:
        gathered = _read_files(words)
        _show(gathered, args)
        return 0 if gathered.whole() else 1
    if len(words) > 1:
        raise UsageError(f"one trace at a time, or files that are there: {' '.join(words)}")
    if args.all_namespaces and args.namespace:
        raise UsageError("-A: all namespaces and -n exclude each other; give one of them")
    from podscope.cluster_traces import Ways
    from podscope.identity.kubernetes_client import find_server
    from podscope.trace.kept import RUNNING

    server = find_server(args.kubeconfig or "", args.context or "")
    namespace = None if args.all_namespaces else args.namespace or server.namespace
    with Ways(server, args.agent_namespace) as asked:
        if not words:
            _list(asked.all(namespace), args.output)
            return 0
        kept = asked.find(words[0], namespace)
        gathered = asked.gathered(kept)
    _show(gathered, args)
    return 0 if gathered.whole() or kept.state == RUNNING else 1


def _read_files(paths: Sequence[str]) -> Gathered:
    from podscope.trace import gather
    from podscope.trace import reports

    found: list[tuple[str, Report]] = []
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                found += [(path, one) for one in reports.read_all(file, path)]
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise UsageError(f"{path}: cannot be read: {said}") from None
    return gather.Gathered(gather.by_names(found))


def _list(found: Sequence[Kept], output: str) -> None:
    from podscope import render
    from podscope.trace.kept import PREFIX

    if output not in ("table", "json"):
        raise UsageError(f"-o {output}: of one trace; the list is a table or json")
    if output == "json":
        for kept in found:
            print(json.dumps(_about(kept), ensure_ascii=False))
        return
    if not found:
        print("No resources found.")
        return
    titles = ("NAMESPACE", "NAME", "TARGET", "PROGRAM", "STATUS", "NODES", "AGE")
    rows = []
    for kept in found:
        told = _about(kept)
        nodes = f"{len(told['reported'])}/{len(told['nodes'])}"
        name = kept.name.removeprefix(PREFIX)
        words = (kept.namespace, name, kept.target, kept.title, kept.state, nodes)
        rows.append((*words, _age(kept.created)))
    table = render.Table(titles, right=(False,) * len(titles), rows=rows)
    print("\n".join(render.table_lines(table)))


def _about(kept: Kept) -> dict[str, Any]:
    from podscope.trace.kept import COMPLETED

    failed = {one.node: one.why for one in kept.jobs if one.state == "Failed"}
    silent = {one.node for one in kept.jobs if one.state != COMPLETED}
    return {
        "namespace": kept.namespace,
        "name": kept.name,
        "target": kept.target,
        "program": kept.title,
        "status": kept.state,
        "nodes": list(kept.nodes),
        "reported": [node for node in kept.nodes if node not in silent],
        "failed": failed,
        "created": kept.created,
    }


def _age(created: str) -> str:
    """As kubectl has it: the largest unit that fits."""
    try:
        began = datetime.datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return "<unknown>"
    passed = int((datetime.datetime.now(datetime.UTC) - began).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if passed >= 2 * size:
            return f"{passed // size}{unit}"
    return f"{max(passed, 0)}s"


def _show(gathered: Gathered, args: argparse.Namespace) -> None:
    by_node = args.by == "node"
    if args.output == "json":
        _show_json(gathered, by_node=by_node)
    elif args.output == "csv":
        _show_csv(gathered, by_node=by_node)
    elif args.output == "snapshots":
        _show_snapshots(gathered)
    else:
        _show_table(gathered, by_node=by_node)
    for note in gathered.notes():
        print(f"podscope: {note}", file=sys.stderr)


def _show_json(gathered: Gathered, *, by_node: bool) -> None:
    from podscope.trace import show
    from podscope.trace.session import Answer

    shapes = gathered.told_shapes(by_node=by_node)
    for node, report in gathered.reports.items():
        text = show.json_answer(Answer(report.lines, {}, 0), shapes, report.about.columns)
        for line in text.splitlines():
            print(json.dumps({"node": node} | json.loads(line), ensure_ascii=False))
    maps = gathered.maps(by_node=by_node)
    sys.stdout.write(show.json_answer(Answer((), maps, 0, last=True), shapes, ()))
    summary = {
        "kind": "summary",
        "nodes": list(gathered.reports),
        "expected": list(gathered.expected or gathered.reports),
        "whole": gathered.whole(),
        "lost": gathered.lost(),
        "notes": gathered.notes(),
    }
    print(json.dumps(summary, ensure_ascii=False))


def _show_csv(gathered: Gathered, *, by_node: bool) -> None:
    from podscope.trace import show
    from podscope.trace.scripts import row

    reports = gathered.reports.items()
    columns = next((one.about.columns for one in gathered.reports.values()), ())
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


def _show_snapshots(gathered: Gathered) -> None:
    from podscope.trace import reports

    for report in gathered.reports.values():
        sys.stdout.write("".join(reports.lines_of(report)))


def _show_table(gathered: Gathered, *, by_node: bool) -> None:
    from dataclasses import replace

    from podscope import render
    from podscope.commands.showing import prefixed
    from podscope.trace import show
    from podscope.trace.decode import Text
    from podscope.trace.decode import Value

    shapes = gathered.told_shapes(by_node=by_node)
    several = len(gathered.reports) > 1
    for node, report in gathered.reports.items():
        for line in report.lines:
            one = replace(line, node=node) if isinstance(line, Text | Value) and several else line
            sys.stdout.write(prefixed(one, shapes))
    for text in show.maps_lines(gathered.maps(by_node=by_node), shapes):
        print(text)
    expected = gathered.expected or tuple(gathered.reports)
    ended = sum(report.ended for report in gathered.reports.values())
    lost = render.lost_text(gathered.lost()) or "nothing lost"
    print(f"\n{ended} of {len(expected)} told their end; {lost}")
