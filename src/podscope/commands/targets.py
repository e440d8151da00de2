# SPDX-License-Identifier: Apache-2.0
"""Which of a cluster's rows a command shows: ``deploy/web``, ``-n shop``, ``-l app=web``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from podscope import filters
from podscope.commands.lifetime import Lifetime
from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from podscope.remote import Nodes
    from podscope.scope import Scope
    from podscope.sources.http import RequestLog
    from podscope.streams import Asked

PLUGIN = "kubectl-podscope"
# For commands whose own words are told from targets by the slash.
WITH_KIND = "in a cluster also pod/X, deploy/X and so on"
# Timers count microseconds; less than this would be over before it began.
LEAST_DURATION_NS = 10**6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags and the targets."""
    add_targets(parser)
    add_flags(parser)


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Declare the targets."""
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="in a cluster: pod/X, deploy/X, sts/X, ds/X, rs/X, job/X, cronjob/X, svc/X, node/X",
    )


def add_place(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that say which cluster, and which namespace."""
    parser.add_argument("-n", "--namespace", metavar="NAME", help="a cluster's namespace")
    parser.add_argument("--context", metavar="NAME", help="context of the kubeconfig")
    parser.add_argument("--kubeconfig", metavar="FILE", help="kubeconfig of the cluster")


def add_agents(parser: argparse.ArgumentParser) -> None:
    """Declare the flag that says where agents are."""
    parser.add_argument(
        "--agent-namespace",
        metavar="NAME",
        default="podscope",
        help="where the agents are (default: podscope)",
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags, without the targets."""
    add_place(parser)
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="all namespaces of a cluster"
    )
    parser.add_argument("-l", "--selector", metavar="LABELS", help="pods with these labels")
    add_agents(parser)


def add_duration(parser: argparse.ArgumentParser) -> None:
    """Declare --duration."""
    parser.add_argument("--duration", metavar="TIME", help="end after this time, as 30s")


def duration_ns(args: argparse.Namespace) -> int | None:
    """--duration in nanoseconds; raises UsageError."""
    if args.duration is None:
        return None
    return filters.duration_ns(args.duration, "--duration", least_ns=LEAST_DURATION_NS)


def parted(words: list[str]) -> tuple[list[str], list[str]]:
    """A command's own words, and targets, which have a slash."""
    return [word for word in words if "/" not in word], [word for word in words if "/" in word]


def is_for_cluster(args: argparse.Namespace, program: str = sys.argv[0]) -> bool:
    """Whether a cluster is meant, and not this machine."""
    told = (args.targets, args.namespace, args.selector, args.context, args.kubeconfig)
    return any(told) or args.all_namespaces or is_plugin(program)


def is_plugin(program: str = sys.argv[0]) -> bool:
    """Whether podscope was started as ``kubectl podscope``."""
    return os.path.basename(program) == PLUGIN


def scope(args: argparse.Namespace, default_namespace: str) -> Scope:
    """What the flags ask for.

    Raises:
        UsageError: a target or a selector that is none, or flags that contradict each other.
    """
    from podscope.scope import Scope
    from podscope.scope import selector
    from podscope.scope import target

    targets = tuple(target(text) for text in args.targets)
    if args.all_namespaces and args.namespace:
        raise UsageError("-A: all namespaces and -n exclude each other; give one of them")
    if args.all_namespaces and any(one.kind != "node" for one in targets):
        raise UsageError("-A: a target is in one namespace; give it with -n")
    if args.selector:
        selector(args.selector)
    namespace = None if args.all_namespaces else args.namespace or default_namespace
    return Scope(namespace, targets, args.selector or "")


def watch_cluster(
    args: argparse.Namespace,
    kind: str,
    interval: float,
    show: Callable[[Nodes], None],
    *,
    log: RequestLog | None = None,
    asked: Asked | None = None,
) -> int:
    """Shows the rows of a cluster's agents until a signal or the end of the time.

    Args:
        kind: of the batches.
        interval: seconds between two batches.
        show: is given what to iterate over.
        log: which requests are asked for, of batches of kind ``request``.
        asked: which rows of other sources, of kind ``events``.

    Returns:
        0; 1 if no node answered. Says which did not.
    """
    from podscope.identity.kubernetes_client import find_server
    from podscope.remote import ANSWERED
    from podscope.remote import Nodes
    from podscope.remote import Wanted
    from podscope.scope import check

    duration = duration_ns(args)
    scope(args, "")  # what is written wrongly is so without a cluster, too
    server = find_server(args.kubeconfig or "", args.context or "")
    of = scope(args, server.namespace)
    check(of, server)
    wanted = Wanted(kind, of, log, asked)
    with (
        Lifetime() as lifetime,
        Nodes(server, interval, wanted, args.agent_namespace) as nodes,
    ):
        lifetime.begin(nodes.stop, duration)
        show(nodes)
        states = nodes.states()
    silent = {node: state for node, state in states.items() if state != ANSWERED}
    for node, state in silent.items():
        print(f"podscope: node {node}: {state}", file=sys.stderr)
    answered = len(states) - len(silent)
    print(f"podscope: {answered} of {len(states)} nodes answered", file=sys.stderr)
    return 0 if answered else 1
