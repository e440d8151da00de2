# SPDX-License-Identifier: Apache-2.0
"""Which of a cluster's rows a command shows: ``deploy/web``, ``-n shop``, ``-l app=web``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from podscope.errors import PodscopeError
from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from podscope.batch import Batch
    from podscope.batch import Identity
    from podscope.identity.kubernetes_client import ApiServer

PLUGIN = "kubectl-podscope"
# What kubectl calls a kind: its name here, and where the API has it ({} is the namespace).
_APPS = "apis/apps/v1/namespaces/{}/"
_BATCH = "apis/batch/v1/namespaces/{}/"
_CORE = "api/v1/namespaces/{}/"
KINDS = {
    "pod": ("pod", _CORE + "pods"),
    "pods": ("pod", _CORE + "pods"),
    "po": ("pod", _CORE + "pods"),
    "deployment": ("deployment", _APPS + "deployments"),
    "deployments": ("deployment", _APPS + "deployments"),
    "deploy": ("deployment", _APPS + "deployments"),
    "statefulset": ("statefulset", _APPS + "statefulsets"),
    "statefulsets": ("statefulset", _APPS + "statefulsets"),
    "sts": ("statefulset", _APPS + "statefulsets"),
    "daemonset": ("daemonset", _APPS + "daemonsets"),
    "daemonsets": ("daemonset", _APPS + "daemonsets"),
    "ds": ("daemonset", _APPS + "daemonsets"),
    "job": ("job", _BATCH + "jobs"),
    "jobs": ("job", _BATCH + "jobs"),
    "cronjob": ("cronjob", _BATCH + "cronjobs"),
    "cronjobs": ("cronjob", _BATCH + "cronjobs"),
    "cj": ("cronjob", _BATCH + "cronjobs"),
    "service": ("service", _CORE + "services"),
    "services": ("service", _CORE + "services"),
    "svc": ("service", _CORE + "services"),
    "node": ("node", "api/v1/nodes"),
    "nodes": ("node", "api/v1/nodes"),
    "no": ("node", "api/v1/nodes"),
}
_SECONDS = 10.0
_NOT_FOUND, _FORBIDDEN = 404, 403


@dataclass(frozen=True)
class Target:
    """One object of the cluster; ``path`` is where the API has its kind."""

    kind: str
    name: str
    path: str

    def has(self, identity: Identity) -> bool:
        """Whether a row of this identity belongs to it; its namespace has been looked at."""
        if self.kind == "pod":
            return identity.pod == self.name
        if self.kind == "node":
            return identity.node == self.name
        if self.kind == "service":
            return any(one.name == self.name for one in identity.services)
        return (identity.kind, identity.name) == (self.kind, self.name)


@dataclass(frozen=True)
class Scope:
    """What is asked for: all of ``targets``, in one namespace or (None) in all."""

    namespace: str | None
    targets: tuple[Target, ...] = ()
    selector: str = ""

    def has(self, identity: Identity, selected: frozenset[str]) -> bool:
        """Whether a row of this identity is asked for; ``selected`` are uids of pods."""
        if self.selector and identity.pod_uid not in selected:
            return False
        if any(one.kind == "node" and one.has(identity) for one in self.targets):
            return True
        if self.namespace is not None and identity.namespace != self.namespace:
            return False
        return not self.targets or any(one.has(identity) for one in self.targets)

    def apply(self, batch: Batch, selected: frozenset[str]) -> Batch:
        """The rows that are asked for."""
        asked = [self.has(identity, selected) for identity in batch.identities]
        keep = np.array([*asked, False], dtype=np.bool_)[batch.identity]
        return replace(batch, rows=batch.rows[keep], identity=batch.identity[keep])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags and the targets."""
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="in a cluster: pod/X, deploy/X, sts/X, ds/X, job/X, cronjob/X, svc/X, node/X",
    )
    parser.add_argument("-n", "--namespace", metavar="NAME", help="a cluster's namespace")
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="all namespaces of a cluster"
    )
    parser.add_argument("-l", "--selector", metavar="LABELS", help="pods with these labels")
    parser.add_argument("--context", metavar="NAME", help="context of the kubeconfig")
    parser.add_argument("--kubeconfig", metavar="FILE", help="kubeconfig of the cluster")
    parser.add_argument(
        "--agent-namespace",
        metavar="NAME",
        default="podscope",
        help="where the agents are (default: podscope)",
    )


def is_for_cluster(args: argparse.Namespace, program: str = sys.argv[0]) -> bool:
    """Whether a cluster is meant, and not this machine."""
    told = (args.targets, args.namespace, args.selector, args.context, args.kubeconfig)
    return any(told) or args.all_namespaces or os.path.basename(program) == PLUGIN


def scope(args: argparse.Namespace, default_namespace: str) -> Scope:
    """What the flags ask for.

    Raises:
        UsageError: a target that is none, or flags that contradict each other.
    """
    targets = tuple(_target(text) for text in args.targets)
    if args.all_namespaces and args.namespace:
        raise UsageError("-A: all namespaces and -n exclude each other; give one of them")
    if args.all_namespaces and any(one.kind != "node" for one in targets):
        raise UsageError("-A: a target is in one namespace; give it with -n")
    namespace = None if args.all_namespaces else args.namespace or default_namespace
    return Scope(namespace, targets, args.selector or "")


def _target(text: str) -> Target:
    kind, slash, name = text.rpartition("/")
    known = KINDS.get(kind.lower() if slash else "pod")
    if known is None or not name:
        raise UsageError(
            f"TARGET: not a target: {text!r}; write it as pod/X, deploy/X, sts/X, ds/X, job/X, "
            "cronjob/X, svc/X or node/X"
        )
    return Target(known[0], name, known[1])


def check(asked: Scope, server: ApiServer) -> None:
    """Looks whether the targets are there.

    Raises:
        PodscopeError: one is not. Without the right to look, nothing is said.
    """
    from podscope.identity.kubernetes_client import Connection
    from podscope.identity.kubernetes_client import KubernetesError

    connection = Connection(server)
    try:
        for one in asked.targets:
            place = one.path.format(asked.namespace)
            try:
                connection.get(f"{place}/{one.name}", {}, _SECONDS)
            except KubernetesError as error:
                if error.status == _FORBIDDEN:
                    continue
                if error.status != _NOT_FOUND:
                    raise
                where = "" if one.kind == "node" else f" in namespace {asked.namespace!r}"
                raise PodscopeError(f"there is no {one.kind} {one.name!r}{where}") from None
    finally:
        connection.release()


def selecting(asked: Scope, server: ApiServer) -> Callable[[], frozenset[str]]:
    """Gives the uids of the pods with the labels asked for; asks the API server each time.

    Pods that were selected once stay so: their last rows come after their end.
    """
    import msgspec

    from podscope.identity.kubernetes_client import Connection
    from podscope.identity.kubernetes_client import KubernetesError
    from podscope.identity.kubernetes_objects import Page
    from podscope.identity.kubernetes_objects import Pod

    connection = Connection(server)
    inside = f"namespaces/{asked.namespace}/" if asked.namespace else ""
    seen: set[str] = set()

    def selected() -> frozenset[str]:
        if not asked.selector:
            return frozenset()
        try:
            query = {"labelSelector": asked.selector}
            body = connection.get(f"api/v1/{inside}pods", query, _SECONDS)
        except KubernetesError as error:
            if not seen:
                raise PodscopeError(f"-l: {error}") from None
            return frozenset(seen)
        found = msgspec.json.decode(body, type=Page[Pod]).items or ()
        seen.update(pod.metadata.uid for pod in found)
        return frozenset(seen)

    return selected
