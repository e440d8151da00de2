# SPDX-License-Identifier: Apache-2.0
"""Puts the agents into a cluster, asks for their state, and takes them away again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import Generic
from typing import Self
from typing import TypeVar

import msgspec

from podscope.deploy import manifests
from podscope.deploy import stack
from podscope.deploy.manifests import Object
from podscope.deploy.states import DaemonSet
from podscope.deploy.states import Node
from podscope.deploy.states import NodeState
from podscope.deploy.states import Pod
from podscope.deploy.states import node_states
from podscope.errors import PodscopeError
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import Connection
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.refusals import explained

AGENT = "podscope-agent"
FIELD_MANAGER = "podscope"
# JSON is YAML, and the API server takes YAML alone for server-side apply.
APPLY = "application/apply-patch+yaml"
SECONDS = 30.0
POLL_SECONDS = 0.5
POD_SELECTOR = "app.kubernetes.io/name=podscope,app.kubernetes.io/component=agent"
_NOT_FOUND = 404
# Where the API has a kind; {} is the namespace.
_PLACES = {
    "Namespace": "api/v1/namespaces",
    "ServiceAccount": "api/v1/namespaces/{}/serviceaccounts",
    "ClusterRole": "apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "ConfigMap": "api/v1/namespaces/{}/configmaps",
    "Secret": "api/v1/namespaces/{}/secrets",
    "PersistentVolumeClaim": "api/v1/namespaces/{}/persistentvolumeclaims",
    "Service": "api/v1/namespaces/{}/services",
    "StatefulSet": "apis/apps/v1/namespaces/{}/statefulsets",
    "Deployment": "apis/apps/v1/namespaces/{}/deployments",
    "DaemonSet": "apis/apps/v1/namespaces/{}/daemonsets",
}
# Of the stack alone: who may not list them has not made any.
_OF_STACK = frozenset(
    {
        "Role",
        "RoleBinding",
        "Secret",
        "PersistentVolumeClaim",
        "Service",
        "StatefulSet",
        "Deployment",
    }
)
_FORBIDDEN = 403
T = TypeVar("T")


class _Items(msgspec.Struct, Generic[T]):
    items: tuple[T, ...] | None = ()


class _Subject(msgspec.Struct):
    namespace: str = ""


class _Binding(msgspec.Struct):
    subjects: tuple[_Subject, ...] | None = ()


class _Generation(msgspec.Struct, frozen=True):
    generation: int = 0


class _Replicas(msgspec.Struct, frozen=True):
    replicas: int = 1


class _WorkloadStatus(msgspec.Struct, frozen=True, rename="camel"):
    observed_generation: int = 0
    updated_replicas: int = 0
    ready_replicas: int = 0


class _Workload(msgspec.Struct):
    metadata: _Generation = _Generation()
    spec: _Replicas = _Replicas()
    status: _WorkloadStatus = _WorkloadStatus()


class _Event(msgspec.Struct):
    message: str = ""


class Installation:
    """The agents of one namespace. Use it in a ``with``.

    Every method raises PodscopeError: no answer, or a right that is missing, with its name.
    """

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._namespace = namespace
        self._connection = Connection(server)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.release()

    def apply(self, wanted: Sequence[Object]) -> Iterator[str]:
        """Makes the objects, or changes them to what they are to be; tells of each.

        A namespace that was there before is left as it is, and not taken for podscope's own. So
        are passwords and volumes that are there.
        """
        self._check_elsewhere()
        for one in wanted:
            if one["kind"] == "Namespace" and self._is_anothers(one):
                yield f"{manifests.title(one)} is there already"
                continue
            if one["kind"] == "PersistentVolumeClaim" and self._find(_path(one)) is not None:
                # It may have been made larger, and never gets smaller.
                yield f"{manifests.title(one)} is there already"
                continue
            made = self._with_known(one) if one["kind"] == "Secret" else one
            self._send("PATCH", _path(one), msgspec.json.encode(made), APPLY)
            yield f"{manifests.title(one)} applied"

    def _with_known(self, secret: Object) -> Object:
        """The Secret with the values that it has already: servers know these."""
        body = self._find(_path(secret))
        known = (msgspec.json.decode(body).get("data") or {}) if body is not None else {}
        return {**secret, "data": {**secret["data"], **known}}

    def stack_wait(self, wanted: Sequence[Object], seconds: float) -> str:
        """The first of some workloads that was not ready before the time was over; else empty."""
        due = time.monotonic() + seconds
        workloads = [one for one in wanted if one["kind"] in ("StatefulSet", "Deployment")]
        while missing := [one for one in workloads if not self._is_ready(one)]:
            if time.monotonic() >= due:
                return manifests.title(missing[0])
            time.sleep(POLL_SECONDS)
        return ""

    def _is_ready(self, workload: Object) -> bool:
        body = self._find(_path(workload))
        if body is None:
            return False
        told = msgspec.json.decode(body, type=_Workload)
        new = told.status.observed_generation >= told.metadata.generation
        updated = min(told.status.updated_replicas, told.status.ready_replicas)
        return new and updated >= told.spec.replicas

    def daemon_set(self) -> DaemonSet:
        """What the cluster says of the agents. Raises PodscopeError if they are not installed."""
        path = f"{_PLACES['DaemonSet'].format(self._namespace)}/{AGENT}"
        body = self._find(path)
        if body is None:
            raise _not_installed(self._namespace)
        return msgspec.json.decode(body, type=DaemonSet)

    def wait(self, seconds: float) -> bool:
        """Whether every chosen node had a ready agent before the time was over."""
        due = time.monotonic() + seconds
        while not self.daemon_set().done:
            if time.monotonic() >= due:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def states(self) -> tuple[NodeState, ...]:
        """One for each node. Raises PodscopeError if the agents are not installed."""
        daemon_set = self.daemon_set()
        nodes = self._list("api/v1/nodes", Node)
        found = self._list(
            f"api/v1/namespaces/{self._namespace}/pods", Pod, labelSelector=POD_SELECTOR
        )
        uid = daemon_set.metadata.uid
        ours = [p for p in found if any(o.uid == uid for o in p.metadata.owner_references)]
        lacking = daemon_set.status.current < daemon_set.status.desired
        return node_states(daemon_set, nodes, ours, self._complaint(uid) if lacking else "")

    def remove(self, seconds: float, *, purge: bool = False) -> Iterator[str]:
        """Removes all that `apply` made, and waits until it is gone; tells of each.

        Args:
            seconds: for all of it.
            purge: volumes and passwords of the stack, too; else they stay, and their namespace.

        Raises:
            PodscopeError: nothing is installed, or something is not gone in time.
        """
        made = [*reversed(self._made())]
        data = [] if purge else [one for one in made if _is_data(one)]
        found = [one for one in made if one not in data]
        if data:
            found = [one for one in found if one["kind"] != "Namespace"]
        if not found and data:
            raise PodscopeError(
                f"only data of podscope are left in namespace {self._namespace!r}: "
                "'podscope uninstall --purge' removes them"
            )
        if not found:
            raise _not_installed(self._namespace)
        due = time.monotonic() + seconds
        for one in found:
            self._delete(_path(one))
            while self._find(_path(one)) is not None:
                if time.monotonic() >= due:
                    raise PodscopeError(
                        f"{manifests.title(one)} is not gone after {seconds:g} s: see what keeps "
                        f"it with 'kubectl describe {manifests.title(one)}', then run this again"
                    )
                time.sleep(POLL_SECONDS)
            yield f"{manifests.title(one)} removed"
        for one in data:
            yield f"{manifests.title(one)} stays, as data do; --purge removes it"

    def _made(self) -> list[Object]:
        """What bears podscope's label, in the order of its making. Others' objects do not."""
        query = {"labelSelector": f"{manifests.MANAGED_LABEL}=podscope"}
        found = []
        for kind, place in _PLACES.items():
            path = place.format(self._namespace)
            items = self._listed(kind, path, query)
            for item in items:
                if self._is_ours(kind, item):
                    found.append({**item, "kind": kind})
        return found

    def _listed(self, kind: str, path: str, query: dict[str, str]) -> tuple[Object, ...]:
        with explained():
            try:
                body = self._connection.get(path, query, SECONDS)
            except KubernetesError as error:
                if kind in _OF_STACK and error.status == _FORBIDDEN:
                    return ()
                raise
        return msgspec.json.decode(body, type=_Items[dict[str, Any]]).items or ()

    def _is_ours(self, kind: str, item: Object) -> bool:
        if kind == "Namespace":
            return bool(item["metadata"]["name"] == self._namespace)
        if kind in ("ClusterRole", "ClusterRoleBinding"):
            return item["metadata"]["name"] == AGENT and not self._elsewhere()
        return True

    def _is_anothers(self, namespace: Object) -> bool:
        body = self._find(_path(namespace))
        if body is None:
            return False
        labels = msgspec.json.decode(body)["metadata"].get("labels") or {}
        return not manifests.MANAGED.items() <= labels.items()

    def _elsewhere(self) -> str:
        """Another namespace whose agents have the rights; empty if there is none."""
        body = self._find(f"{_PLACES['ClusterRoleBinding']}/{AGENT}")
        if body is None:
            return ""
        subjects = msgspec.json.decode(body, type=_Binding).subjects or ()
        return next((s.namespace for s in subjects if s.namespace != self._namespace), "")

    def _check_elsewhere(self) -> None:
        other = self._elsewhere()
        if other:
            raise PodscopeError(
                f"podscope is installed in namespace {other!r}: add --namespace {other}, or "
                f"run 'podscope uninstall --namespace {other}' first"
            )

    def _complaint(self, uid: str) -> str:
        """Why no pod could be made, in the words of the newest event; empty without the right."""
        query = {"fieldSelector": f"involvedObject.uid={uid},reason=FailedCreate"}
        try:
            events = self._list(f"api/v1/namespaces/{self._namespace}/events", _Event, **query)
        except PodscopeError:
            return ""
        return " ".join(events[-1].message.split()) if events else ""

    def _list(self, path: str, kind: type[T], **query: str) -> tuple[T, ...]:
        with explained():
            body = self._connection.get(path, query, SECONDS)
        return msgspec.json.decode(body, type=_Items[kind]).items or ()  # type: ignore[valid-type]

    def _find(self, path: str) -> bytearray | None:
        with explained():
            try:
                return self._connection.get(path, {}, SECONDS)
            except KubernetesError as error:
                if error.status != _NOT_FOUND:
                    raise
        return None

    def _send(self, method: str, path: str, body: bytes, content_type: str) -> None:
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        with explained():
            self._connection.send(method, path, query, body, content_type=content_type)

    def _delete(self, path: str) -> None:
        body = msgspec.json.encode({"propagationPolicy": "Foreground"})
        with explained():
            try:
                self._connection.send("DELETE", path, {}, body)
            except KubernetesError as error:
                if error.status != _NOT_FOUND:
                    raise


def _path(one: Object) -> str:
    metadata = one["metadata"]
    return f"{_PLACES[one['kind']].format(metadata.get('namespace', ''))}/{metadata['name']}"


def _is_data(one: Object) -> bool:
    return stack.DATA in (one["metadata"].get("labels") or {})


def _not_installed(namespace: str) -> PodscopeError:
    return PodscopeError(
        f"podscope is not installed in namespace {namespace!r}: run 'podscope install', or name "
        "another one with --namespace"
    )
