# SPDX-License-Identifier: Apache-2.0
"""``podscope install``: the agent on every node of a Kubernetes cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from podscope import filters
from podscope.errors import PodscopeError
from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from podscope.deploy.installation import Installation
    from podscope.deploy.manifests import Object
    from podscope.identity.kubernetes_client import ApiServer

HELP = "Run the agent on every node of a Kubernetes cluster; once more to change it."
NAMESPACE = "podscope"
WAIT = "2m"
_GRAFANA = (
    "Grafana: kubectl port-forward -n {0} service/podscope-grafana 3000, then "
    "http://127.0.0.1:3000 as admin; its password: kubectl get secret -n {0} podscope-stack "
    "-o jsonpath='{{.data.grafana-password}}' | base64 -d"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_cluster(parser)
    parser.add_argument("--image", metavar="IMAGE", default="", help="image of the agent")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a setting, as interval=5s; may be given more than once",
    )
    parser.add_argument(
        "--config", metavar="FILE", default="", help="the configuration of the agents, in YAML"
    )
    parser.add_argument(
        "--with",
        metavar="NAMES",
        dest="servers",
        default="",
        help="also make servers: prometheus, influxdb, elasticsearch, grafana, with commas",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only tell what would be made; asks no cluster"
    )
    parser.add_argument(
        "-o", "--output", choices=("name", "yaml"), default="name", help="form (default: name)"
    )
    add_wait(parser, "until all agents are ready; 0s does not wait")


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Which cluster, and where in it."""
    parser.add_argument(
        "-n",
        "--namespace",
        metavar="NAME",
        default=NAMESPACE,
        help=f"where the agents are (default: {NAMESPACE})",
    )
    parser.add_argument(
        "--kubeconfig",
        metavar="FILE",
        default="",
        help="kubeconfig of the cluster (default: KUBECONFIG, else ~/.kube/config)",
    )
    parser.add_argument(
        "--context", metavar="NAME", default="", help="of the kubeconfig (default: the current one)"
    )


def add_wait(parser: argparse.ArgumentParser, until: str) -> None:
    """How long to wait."""
    parser.add_argument(
        "--wait", metavar="TIME", default=WAIT, help=f"how long to wait {until} (default: {WAIT})"
    )


def wait_seconds(args: argparse.Namespace) -> float:
    """The value of --wait. Raises UsageError."""
    return filters.duration_ns(args.wait, "--wait", least_ns=0) / 1e9


def server_of(args: argparse.Namespace) -> ApiServer:
    """The API server. Raises PodscopeError: no kubeconfig, or no such context."""
    from podscope.identity.kubernetes_client import find_server

    return find_server(args.kubeconfig, args.context)


def run(args: argparse.Namespace) -> int:
    """Install, and wait."""
    seconds = wait_seconds(args)
    if args.output == "yaml" and not args.dry_run:
        raise UsageError("-o yaml: only together with --dry-run")
    from podscope.deploy import manifests

    wanted = manifests.objects(
        args.namespace, args.image, args.set, args.config, servers=args.servers
    )
    if args.dry_run:
        names = "".join(f"{manifests.title(one)}\n" for one in wanted)
        print(manifests.as_yaml(wanted) if args.output == "yaml" else names, end="")
        return 0
    server = server_of(args)
    from podscope.deploy.installation import Installation

    with Installation(server, args.namespace) as installation:
        for line in installation.apply(wanted):
            print(line, flush=True)
        if seconds:
            _wait(installation, seconds, args.wait)
            _wait_for_servers(installation, wanted, seconds, args)
    if any(manifests.title(one) == "deployment/podscope-grafana" for one in wanted):
        print(_GRAFANA.format(args.namespace))
    return 0


def _wait_for_servers(
    installation: Installation, wanted: Sequence[Object], seconds: float, args: argparse.Namespace
) -> None:
    missing = installation.stack_wait(wanted, seconds)
    if missing:
        raise PodscopeError(
            f"{missing} is not ready after {args.wait}: see what keeps it with "
            f"'kubectl describe {missing} -n {args.namespace}'"
        )


def _wait(installation: Installation, seconds: float, said: str) -> None:
    ready = installation.wait(seconds)
    chosen = [state for state in installation.states() if state.agent != "not chosen"]
    missing = [state for state in chosen if state.agent != "ready"]
    if ready:
        print(f"{len(chosen)} of {len(chosen)} nodes have a ready agent")
        return
    first = f": {missing[0].node}: {missing[0].why}" if missing else ""
    raise PodscopeError(
        f"{len(missing)} of {len(chosen)} nodes have no ready agent after {said}{first}; "
        "'podscope status' shows all"
    )
