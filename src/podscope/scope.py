# SPDX-License-Identifier: Apache-2.0
"""Which of a cluster's rows are asked for: a namespace, pods, workloads, Services, labels.

A client says it, and every agent sends only that.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass

from podscope.batch import Identity
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import Connection
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.kubernetes_objects import Pod

_APPS = "apis/apps/v1/namespaces/{}/"
_BATCH = "apis/batch/v1/namespaces/{}/"
_CORE = "api/v1/namespaces/{}/"
# Kinds of targets, and where the API has them ({} is the namespace).
PATHS = {
    "pod": _CORE + "pods",
    "deployment": _APPS + "deployments",
    "statefulset": _APPS + "statefulsets",
    "daemonset": _APPS + "daemonsets",
    "replicaset": _APPS + "replicasets",
    "job": _BATCH + "jobs",
    "cronjob": _BATCH + "cronjobs",
    "service": _CORE + "services",
    "node": "api/v1/nodes",
}
# What kubectl calls each.
_SHORT = {
    "po": "pod",
    "deploy": "deployment",
    "sts": "statefulset",
    "ds": "daemonset",
    "rs": "replicaset",
    "cj": "cronjob",
    "svc": "service",
    "no": "node",
}
KINDS = {kind: kind for kind in PATHS} | {f"{kind}s": kind for kind in PATHS} | _SHORT
_SECONDS = 10.0
_NOT_FOUND, _FORBIDDEN = 404, 403

Has = Callable[[Identity, Pod | None], bool]

_KEY = r"(?:[A-Za-z0-9.-]+/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?)?"
_EQUAL = re.compile(rf"\s*({_KEY})\s*(==|=|!=)\s*({_VALUE})\s*")
_IN = re.compile(rf"\s*({_KEY})\s+(in|notin)\s*\(([^()]*)\)\s*")
_THERE = re.compile(rf"\s*(!?)\s*({_KEY})\s*")
_COMMA = re.compile(r",(?![^(]*\))")


@dataclass(frozen=True)
class Requirement:
    """One part of a label selector; ``values`` empty: the label is there, or it is not."""

    key: str
    negated: bool
    values: tuple[str, ...] | None = None

    def holds(self, labels: Mapping[str, str]) -> bool:
        """As in labels.Requirement.Matches (k8s.io/apimachinery): no label is no value."""
        if self.values is None:
            return (self.key in labels) != self.negated
        return (labels.get(self.key) in self.values) != self.negated


def selector(text: str, option: str = "-l") -> tuple[Requirement, ...]:
    """Requirements of ``app=web,tier in (a, b),!canary``, all of which must hold.

    Raises:
        UsageError: not a label selector (labels.Parse in k8s.io/apimachinery).
    """
    return tuple(_requirement(part, option) for part in _COMMA.split(text))


def _requirement(part: str, option: str) -> Requirement:
    if found := _EQUAL.fullmatch(part):
        return Requirement(found[1], found[2] == "!=", (found[3],))
    if found := _IN.fullmatch(part):
        values = tuple(value.strip() for value in found[3].split(","))
        if all(re.fullmatch(_VALUE, value) for value in values):
            return Requirement(found[1], found[2] == "notin", values)
    if found := _THERE.fullmatch(part):
        return Requirement(found[2], bool(found[1]))
    raise UsageError(
        f"{option}: not a label selector: {part.strip()!r}; write it as app=web, "
        "'tier in (front, back)' or '!canary', with commas between"
    )


@dataclass(frozen=True)
class Target:
    """One object of the cluster."""

    kind: str
    name: str

    def has(self, identity: Identity, pod: Pod | None) -> bool:
        """Whether a row of this identity belongs to it; its namespace has been looked at."""
        if self.kind == "pod":
            return identity.pod == self.name
        if self.kind == "node":
            return identity.node == self.name
        if self.kind == "service":
            return any(one.name == self.name for one in identity.services)
        if (identity.kind, identity.name) == (self.kind, self.name):
            return True
        # A CronJob's Job, or a Deployment's ReplicaSet: the row says who stands above it.
        owner = pod.metadata.controller if pod is not None else None
        return owner is not None and (owner.kind.lower(), owner.name) == (self.kind, self.name)


@dataclass(frozen=True)
class Scope:
    """What is asked for: any of ``targets``, in one namespace or (None) in all.

    Attributes:
        namespace: of the rows; a node's rows are of all.
        targets: none: all.
        selector: labels of the pods; empty: any.
    """

    namespace: str | None = None
    targets: tuple[Target, ...] = ()
    selector: str = ""

    def rule(self) -> Has:
        """Whether a row of an identity is asked for, given its pod where it is known.

        Raises:
            UsageError: the selector is none.
        """
        labels = selector(self.selector) if self.selector else ()

        def has(identity: Identity, pod: Pod | None) -> bool:
            if labels and (pod is None or not _selects(labels, pod)):
                return False
            if any(one.kind == "node" and one.has(identity, pod) for one in self.targets):
                return True
            if self.namespace is not None and identity.namespace != self.namespace:
                return False
            return not self.targets or any(one.has(identity, pod) for one in self.targets)

        return has


def _selects(labels: tuple[Requirement, ...], pod: Pod) -> bool:
    return all(one.holds(pod.metadata.labels) for one in labels)


def target(text: str) -> Target:
    """A target as people write it, ``deploy/web``; raises UsageError."""
    kind, slash, name = text.rpartition("/")
    known = KINDS.get(kind.lower() if slash else "pod")
    if known is None or not name:
        raise UsageError(
            f"TARGET: not a target: {text!r}; write it as pod/X, deploy/X, sts/X, ds/X, rs/X, "
            "job/X, cronjob/X, svc/X or node/X"
        )
    return Target(known, name)


def check(asked: Scope, server: ApiServer, wrong: type[PodscopeError] = PodscopeError) -> None:
    """Looks whether the targets are there.

    Args:
        wrong: what to raise if one is not.

    Raises:
        PodscopeError: one is not. Without the right to look, nothing is said.
    """
    connection = Connection(server)
    try:
        for one in asked.targets:
            place = PATHS[one.kind].format(asked.namespace)
            try:
                connection.get(f"{place}/{one.name}", {}, _SECONDS)
            except KubernetesError as error:
                if error.status == _FORBIDDEN:
                    continue
                if error.status != _NOT_FOUND:
                    raise
                where = "" if one.kind == "node" else f" in namespace {asked.namespace!r}"
                others = _others(connection, one, asked.namespace)
                hint = f"; there is {' and '.join(others)}: name it so" if others else ""
                raise wrong(f"there is no {one.kind} {one.name!r}{where}{hint}") from None
    finally:
        connection.release()


def _others(connection: Connection, target: Target, namespace: str | None) -> list[str]:
    """Objects of other kinds with the name of a target, as ``deployment/web``."""
    found = []
    for kind, path in PATHS.items():
        if kind in (target.kind, "node"):
            continue
        with contextlib.suppress(KubernetesError):
            connection.get(f"{path.format(namespace)}/{target.name}", {}, _SECONDS)
            found.append(f"{kind}/{target.name}")
    return found
