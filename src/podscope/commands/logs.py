# SPDX-License-Identifier: Apache-2.0
"""``podscope logs``: what a trace of a cluster has printed, and its maps."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from podscope.commands import targets
from podscope.commands.lifetime import Lifetime
from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from podscope.trace.following import Following

HELP = "Print what a trace of a cluster has printed, and its maps at the end."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("trace", nargs="?", metavar="TRACE", help="its id or name")
    targets.add_place(parser)
    targets.add_agents(parser)
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on until its end; Ctrl-C leaves it alone"
    )
    parser.add_argument(
        "--timestamps", action="store_true", help="the time of each line in front of it"
    )


def run(args: argparse.Namespace) -> int:
    """Print it. The exit code is 1 where a node failed."""
    if args.trace is None:
        raise UsageError("which trace? 'podscope get' lists them")
    from podscope.cluster_traces import Ways
    from podscope.commands import showing
    from podscope.identity.kubernetes_client import find_server
    from podscope.trace import show
    from podscope.trace.following import Following

    server = find_server(args.kubeconfig or "", args.context or "")
    with Ways(server, args.agent_namespace) as asked:
        kept = asked.find(args.trace, args.namespace or server.namespace)
        place = asked.place(kept)
        if not args.follow:
            gathered = asked.gathered(kept)
            lines = [line for report in gathered.reports.values() for line in report.lines]
            shapes = gathered.told_shapes()
            for line in sorted(lines, key=showing.time_of):
                sys.stdout.write(showing.prefixed(line, shapes, times=args.timestamps))
            _print_maps(show.maps_lines(gathered.maps() if gathered.reports else {}, shapes))
            return _tell(gathered.notes(), failed=any(r.failed for r in gathered.reports.values()))
    with Lifetime() as lifetime, Following(place, kept) as following:
        lifetime.begin(following.leave)
        return _follow(following, times=args.timestamps)


def _follow(following: Following, *, times: bool) -> int:
    from podscope.commands import showing
    from podscope.trace import show

    for answer in following:
        shapes = following.shapes() if answer.lines or answer.last else {}
        for line in answer.lines:
            sys.stdout.write(showing.prefixed(line, shapes, times=times))
        sys.stdout.flush()
        if answer.last and not following.left:
            _print_maps(show.maps_lines(answer.maps, shapes))
    if following.left:
        return 0
    gathered = following.gathered()
    return _tell(gathered.notes(), failed=not gathered.whole())


def _print_maps(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)


def _tell(notes: Sequence[str], *, failed: bool) -> int:
    for note in notes:
        print(f"podscope: {note}", file=sys.stderr)
    return 1 if failed else 0
