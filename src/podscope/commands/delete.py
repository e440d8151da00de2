# SPDX-License-Identifier: Apache-2.0
"""``podscope delete``: traces of a cluster, with all that they left there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from podscope.commands import targets
from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse

HELP = "Delete traces of a cluster; those that run are ended first."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("traces", nargs="*", metavar="TRACE", help="ids or names")
    targets.add_place(parser)
    targets.add_agents(parser)
    parser.add_argument("--all", action="store_true", help="all of the namespace")
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="with --all: of all namespaces"
    )


def run(args: argparse.Namespace) -> int:
    """Delete them, and wait until they are gone."""
    if bool(args.traces) == args.all:
        raise UsageError("which traces? Give their ids, or --all")
    if args.all_namespaces and args.namespace:
        raise UsageError("-A: all namespaces and -n exclude each other; give one of them")
    from podscope.cluster_traces import Ways
    from podscope.identity.kubernetes_client import find_server
    from podscope.trace.kept import PREFIX

    server = find_server(args.kubeconfig or "", args.context or "")
    namespace = None if args.all_namespaces else args.namespace or server.namespace
    with Ways(server, args.agent_namespace) as asked:
        if args.all:
            found = asked.all(namespace)
        else:
            found = tuple(asked.find(word, namespace) for word in dict.fromkeys(args.traces))
        for kept in found:
            asked.delete(kept)
            print(f"trace {kept.name.removeprefix(PREFIX)} deleted", flush=True)
    return 0
