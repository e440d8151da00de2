# SPDX-License-Identifier: Apache-2.0
"""Who a socket belongs to on a node: the pod of its cgroup, or what the host calls it."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from podscope.batch import Identity
from podscope.batch import Service
from podscope.identity.cgroup_layouts import ContainerPath
from podscope.identity.cgroup_layouts import container_of
from podscope.identity.host import each_once
from podscope.identity.kubernetes import Cluster
from podscope.identity.kubernetes_objects import Pod

MAX_KNOWN = 20_000
FRESH_SECONDS = 10.0
NAMELESS_SECONDS = 0.9  # not a whole interval


class Paths(Protocol):
    """Paths of cgroups, also of those that are gone."""

    @property
    def changes(self) -> int:
        """Another number when one has come or gone."""

    def path(self, cgroup_id: int) -> str:
        """Path below the mount; empty if it is not known."""

    def live(self) -> Mapping[int, str]:
        """Paths of those that are there, by id."""


class PodIdentities:
    """Resolves (cgroup id, process id) pairs of a node.

    What a cgroup is never changes, and is remembered; what the cluster says of it is asked anew
    when something there has changed, and from time to time, since owners of Jobs are looked up.

    Args:
        paths: cgroup id to path.
        cluster: what is known of the cluster.
        node: this node's name.
        executable: base name of an owner's executable; empty if it is not known.
        on_host: who a socket is that belongs to no pod.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        paths: Paths,
        cluster: Cluster,
        node: str,
        executable: Callable[[int], str],
        on_host: Callable[[int, int, int], Identity],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = paths
        self._cluster = cluster
        self._node = node
        self._executable = executable
        self._on_host = on_host
        self._clock = clock
        self._known: dict[int, ContainerPath | None] = {}
        # With what was known of the cluster and of cgroups, and when, they were asked for.
        self._changes = (-1, -1)
        self._named_at = self._asked_at = float("-inf")
        self._names: dict[tuple[int, int, int], Identity] = {}
        self._nameless: dict[tuple[int, int, int], Identity] = {}
        # By the uid of a pod, as of a version of the cluster; asked from several threads.
        self._ignores: tuple[int, dict[str, bool]] = (-1, {})

    def resolve(
        self,
        cgroup_ids: npt.NDArray[np.uint64],
        pids: npt.NDArray[np.uint32],
        owners: npt.NDArray[np.uint32],
    ) -> tuple[npt.NDArray[np.uint32], tuple[Identity, ...]]:
        """Identities of rows, each once.

        Returns:
            For each row the position of its identity, shape (n,), and the identities.
        """
        now = self._clock()
        # Before the questions: what changes meanwhile is asked for again.
        changes = (self._cluster.version, self._paths.changes)
        if changes[0] != self._changes[0] or now - self._named_at > FRESH_SECONDS:
            self._names.clear()
            self._named_at = now
        if changes != self._changes or now - self._asked_at > NAMELESS_SECONDS:
            self._nameless.clear()
            self._asked_at = now
        self._changes = changes
        return each_once(self._remembered, cgroup_ids, pids, owners)

    def _remembered(self, cgroup_id: int, pid: int, owner: int) -> Identity:
        key = (cgroup_id, pid, owner)
        found = self._names.get(key) or self._nameless.get(key)
        if found is None:
            found = self.identity(cgroup_id, pid, owner)
            (self._names if found.name else self._nameless)[key] = found
        return found

    def identity(self, cgroup_id: int, pid: int, owner: int) -> Identity:
        """Whose one socket is.

        A pod that the cluster has not told of yet has no name, and a cgroup whose path is not
        known yet is of kind ``unknown``: ask again later.
        """
        where = self._container(cgroup_id)
        if where is None and cgroup_id and not self._paths.path(cgroup_id):
            return Identity("unknown", "", self._executable(owner), pid, node=self._node)
        if where is None or not where.pod_uid:
            return replace(self._on_host(cgroup_id, pid, owner), node=self._node)
        pod = self._cluster.pod(where.pod_uid)
        executable = self._executable(owner)
        found = Identity(
            "pod", "", executable, pid, where.container_id, pod_uid=where.pod_uid, node=self._node
        )
        return found if pod is None else self._named(found, pod, where.container_id)

    def ignored(self) -> frozenset[int]:
        """Cgroups of pods that are not to be watched, and all below them.

        A pod says so itself, or its namespace or node does (``podscope.dev/ignore: "true"``).
        """
        found: set[int] = set()
        for uid, cgroup_ids in self._cgroups().items():
            pod = self._cluster.pod(uid) if uid else None
            if pod is not None and self._cluster.ignored(pod):
                found.update(cgroup_ids)
        return frozenset(found)

    def outside(self, asked: Callable[[Identity, Pod | None], bool]) -> frozenset[int]:
        """Cgroups that are not asked for; those of pods not told of yet are not among them."""
        found: set[int] = set()
        for uid, cgroup_ids in self._cgroups().items():
            pod = self._cluster.pod(uid) if uid else None
            if uid and pod is None:
                continue
            identity = Identity("pod" if uid else "process", "", pod_uid=uid, node=self._node)
            if not asked(identity if pod is None else self._named(identity, pod, ""), pod):
                found.update(cgroup_ids)
        return frozenset(found)

    def _cgroups(self) -> dict[str, list[int]]:
        """Cgroups that are there, by the uid of their pod; those of no pod by an empty one."""
        by_pod: dict[str, list[int]] = {}
        for cgroup_id in self._paths.live():
            where = self._container(cgroup_id)
            by_pod.setdefault(where.pod_uid if where else "", []).append(cgroup_id)
        return by_pod

    def ignores(self, identity: Identity) -> bool:
        """Whether what it is asks not to be watched."""
        uid = identity.pod_uid
        if not uid:
            return False
        version, known = self._ignores
        if version != self._cluster.version:
            version, known = self._cluster.version, {}
            self._ignores = (version, known)
        if uid not in known:
            pod = self._cluster.pod(uid)
            known[uid] = pod is not None and self._cluster.ignored(pod)
        return known[uid]

    def _named(self, found: Identity, pod: Pod, container_id: str) -> Identity:
        owner = self._cluster.owner(pod)
        container = self._cluster.container(container_id, pod.metadata.uid)
        return replace(
            found,
            # A static pod's owner is the node, which says nothing: the pod stands for itself.
            kind="pod" if owner.kind == "Node" else owner.kind.lower(),
            name=pod.metadata.name if owner.kind == "Node" else owner.name,
            namespace=pod.metadata.namespace,
            pod=pod.metadata.name,
            pod_uid=pod.metadata.uid,
            container=container.name if container else "",
            services=self._services(pod),
        )

    def _services(self, pod: Pod) -> tuple[Service, ...]:
        targets = self._cluster.target_ports(pod)
        published = {
            (one.name, port): one.port
            for port in {port for ports in targets.values() for port in ports}
            for one in self._cluster.service_ports(pod, port)
        }
        return tuple(
            Service(name, ports, tuple(published.get((name, port), 0) for port in ports))
            for name, ports in targets.items()
        )

    def _container(self, cgroup_id: int) -> ContainerPath | None:
        if cgroup_id in self._known:
            return self._known[cgroup_id]
        path = self._paths.path(cgroup_id)
        found = container_of(path)
        if path:  # what is not known yet may be later
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[cgroup_id] = found
        return found
