# SPDX-License-Identifier: Apache-2.0
"""``podscope attach``: the merged view of a trace that runs in a cluster."""

from __future__ import annotations

import datetime
import sys
from typing import TYPE_CHECKING

from podscope import filters
from podscope.commands import showing
from podscope.commands import targets
from podscope.commands import trace_sinks
from podscope.commands.lifetime import Lifetime
from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse

HELP = "Show a trace of a cluster live; Ctrl-C ends it, the end of the terminal does not."
BY = ("node",)
_LEAST_INTERVAL_NS = 100 * 10**6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("trace", nargs="?", metavar="TRACE", help="its id or name")
    targets.add_place(parser)
    targets.add_agents(parser)
    parser.add_argument(
        "-o", "--output", choices=showing.FORMS, default="table", help="form (default: table)"
    )
    parser.add_argument("--by", choices=BY, help="keep maps apart by node")
    parser.add_argument(
        "--interval", metavar="TIME", default="1s", help="time between updates (default: 1s)"
    )
    trace_sinks.add_sinks(parser)


def run(args: argparse.Namespace) -> int:
    """Show it until its end. The exit code is 1 where a node did not tell its end."""
    if args.trace is None:
        raise UsageError("which trace? 'podscope get' lists them")
    from podscope.cluster_traces import Ways
    from podscope.commands import run_cluster
    from podscope.identity.kubernetes_client import find_server
    from podscope.trace.following import Following
    from podscope.trace.scripts import Script

    interval = filters.duration_ns(args.interval, "--interval", least_ns=_LEAST_INTERVAL_NS) / 1e9
    server = find_server(args.kubeconfig or "", args.context or "")
    with Ways(server, args.agent_namespace) as asked:
        kept = asked.find(args.trace, args.namespace or server.namespace)
        place = asked.place(kept)
    with (
        Lifetime() as lifetime,
        Following(place, kept, interval=interval, by_node=args.by == "node") as following,
    ):
        lifetime.begin(lambda: run_cluster.stop(following, lifetime))
        about = following.about()
        columns, speaks = run_cluster.program_of(about)
        places = ("node", "pod") if kept.of_pods else ("node",)
        view = showing.View(args.output, kept.title, columns, places)
        script = Script(kept.title, about.program if about is not None else "", "", columns)
        began = _began(kept.created)
        with trace_sinks.feed(args, script, name=kept.name, start_ns=began) as feed:
            shown = run_cluster.InCluster(following, kept.target, speaks, feed)
            return run_cluster.show(shown, view, sys.stdout)


def _began(created: str) -> int:
    """A time of the API server, as Unix nanoseconds."""
    return round(datetime.datetime.fromisoformat(created).timestamp()) * 10**9
