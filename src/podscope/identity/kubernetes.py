# SPDX-License-Identifier: Apache-2.0
"""Names of a Kubernetes cluster: pods, containers, owners, Services, and peers by address.

`Cluster` is told of changes (by reflectors, see `follow`) and keeps indexes of them, each of which
a change updates in place. It may be asked and told from different threads.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import Generic
from typing import TypeVar

import msgspec

from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import Connection
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.kubernetes_objects import EndpointPort
from podscope.identity.kubernetes_objects import EndpointSlice
from podscope.identity.kubernetes_objects import Job
from podscope.identity.kubernetes_objects import KubernetesObject
from podscope.identity.kubernetes_objects import Namespace
from podscope.identity.kubernetes_objects import Node
from podscope.identity.kubernetes_objects import PeerPod
from podscope.identity.kubernetes_objects import Pod
from podscope.identity.kubernetes_objects import Service
from podscope.identity.reflector import ENDPOINT_SLICES
from podscope.identity.reflector import NAMESPACES
from podscope.identity.reflector import NODES
from podscope.identity.reflector import PEER_PODS
from podscope.identity.reflector import PODS
from podscope.identity.reflector import SERVICES
from podscope.identity.reflector import Reflector
from podscope.identity.reflector import Timing

KEEP_SECONDS = 300.0
KEEP_MOST = 10_000
# How long nothing is asked about Jobs after the API server was away, or said that we may not.
ASK_AGAIN_SECONDS = 60.0
ASK_AGAIN_FORBIDDEN_SECONDS = 600.0
NOT_FOUND = 404
MAPPED = b"\0" * 10 + b"\xff\xff"
K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=KubernetesObject)
# The Job of a namespace and name, None if there is none. Raises KubernetesError.
FindJob = Callable[[str, str], Job | None]


@dataclass(frozen=True)
class Owner:
    """What people deployed: ``Deployment`` and its name. The pod itself if nobody owns it."""

    kind: str
    name: str


@dataclass(frozen=True)
class ContainerName:
    """A container of a pod."""

    pod: Pod
    name: str


@dataclass(frozen=True)
class ServiceName:
    """A Service."""

    namespace: str
    name: str


@dataclass(frozen=True)
class ServicePortName:
    """A port of a Service. ``port_name`` may be empty; ``port`` is 0 if its Service is unknown."""

    namespace: str
    name: str
    port_name: str
    port: int


@dataclass(frozen=True)
class Peer:
    """Whose an address is. ``kind`` is ``pod``, ``service``, ``node`` or ``external``.

    ``uid`` is the object's, ``address`` the text of the address in its usual form. ``node`` and
    ``owner`` are those of a pod.
    """

    kind: str
    address: str
    namespace: str = ""
    name: str = ""
    uid: str = ""
    node: str = ""
    owner: Owner | None = None


@dataclass(frozen=True)
class _Membership:
    """A Service that a pod stands behind, and the ports by which it does."""

    namespace: str
    service: str
    ports: tuple[EndpointPort, ...]


class _Claims(Generic[K]):
    """Which objects, by uid, say that a key is theirs. Most keys are one object's."""

    def __init__(self) -> None:
        self._claims: dict[K, tuple[str, ...]] = {}

    def __getitem__(self, key: K) -> tuple[str, ...]:
        return self._claims.get(key, ())

    def __len__(self) -> int:
        return len(self._claims)

    def __iter__(self) -> Iterator[K]:
        return iter(self._claims)

    def move(self, uid: str, old: set[K], new: set[K]) -> None:
        """An object gives up keys and takes others."""
        for key in old - new:
            self._drop(key, uid)
        for key in new - old:
            holders = self._claims.get(key, ())
            if uid not in holders:
                self._claims[key] = (*holders, uid)

    def _drop(self, key: K, uid: str) -> None:
        left = tuple(one for one in self._claims.get(key, ()) if one != uid)
        if left:
            self._claims[key] = left
        else:
            self._claims.pop(key, None)


class Cluster:
    """What is known of a cluster's objects.

    Pods that were deleted, and containers that were replaced, are kept for a while: the last rows
    of them may still come.

    Args:
        find_job: asks for one Job; None if that is not to be done.
        keep_seconds: how long after their end pods and containers are known.
        keep_most: of how many of each; the oldest go first.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        find_job: FindJob | None = None,
        *,
        keep_seconds: float = KEEP_SECONDS,
        keep_most: int = KEEP_MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find_job = find_job
        self._keep_seconds = keep_seconds
        self._keep_most = keep_most
        self._clock = clock
        self._lock = threading.RLock()
        self._pods: dict[str, Pod] = {}
        # Those on other nodes, and those that have gone from there.
        self._peer_pods: dict[str, PeerPod] = {}
        self._peers_gone: dict[str, float] = {}
        self._peer_addresses: _Claims[bytes] = _Claims()
        # They grow with each change: of who has which address, and of what names a node's rows.
        self.addresses_version = 0
        self.version = 0
        self._services: dict[str, Service] = {}
        self._slices: dict[str, EndpointSlice] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._nodes: dict[str, Node] = {}
        self._mirrors: _Claims[str] = _Claims()
        self._containers: _Claims[str] = _Claims()
        self._pod_addresses: _Claims[bytes] = _Claims()
        self._service_addresses: _Claims[bytes] = _Claims()
        self._node_addresses: _Claims[bytes] = _Claims()
        self._service_names: _Claims[tuple[str, str]] = _Claims()
        self._namespace_names: _Claims[str] = _Claims()
        self._node_names: _Claims[str] = _Claims()
        self._slices_of_pod: _Claims[str] = _Claims()
        # By age: when a deleted pod, or a replaced container of a pod, is to be forgotten.
        self._deleted: dict[str, float] = {}
        self._replaced: dict[str, tuple[float, str, str]] = {}
        # Services that a pod had when it began to go.
        self._last_memberships: dict[str, tuple[_Membership, ...]] = {}
        self._owners_of_jobs: dict[str, Owner] = {}
        self._ask_again = float("-inf")

    # --- changes ----------------------------------------------------------------------------

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """For `Reflector.on_change`, as the others of this name."""
        with self._lock:
            self._forget_old()
            self.version += 1
            if new is not None:
                self._put_pod(new)
            elif old is not None and old.metadata.uid in self._pods:
                self._deleted[old.metadata.uid] = self._clock() + self._keep_seconds

    def peer_pod_changed(self, old: PeerPod | None, new: PeerPod | None) -> None:
        """A pod on another node: only its address is of interest."""
        uid = _uid(old, new)
        with self._lock:
            self._forget_old()
            if new is None:
                # Where it was bound to this node, `pod_changed` tells of it from now on.
                self._peers_gone[uid] = self._clock() + self._keep_seconds
                return
            self._peers_gone.pop(uid, None)
            before = self._peer_pods.get(uid)
            self._peer_pods[uid] = new
            self._claim(self._peer_addresses, uid, _pod_ips(before), _pod_ips(new))

    def _claim(self, claims: _Claims[bytes], uid: str, old: set[bytes], new: set[bytes]) -> None:
        if old == new:
            return
        claims.move(uid, old, new)
        self.addresses_version += 1

    def service_changed(self, old: Service | None, new: Service | None) -> None:
        uid = _uid(old, new)
        with self._lock:
            self.version += 1
            before = self._services.get(uid)
            _store(self._services, uid, new)
            self._service_names.move(uid, _full_names(before), _full_names(new))
            self._claim(self._service_addresses, uid, _cluster_ips(before), _cluster_ips(new))

    def slice_changed(self, old: EndpointSlice | None, new: EndpointSlice | None) -> None:
        uid = _uid(old, new)
        with self._lock:
            self.version += 1
            before = self._slices.get(uid)
            _store(self._slices, uid, new)
            pods_before, pods_after = _pods_behind(before), _pods_behind(new)
            if before is not None:
                self._remember_membership(before, pods_before - pods_after)
            self._slices_of_pod.move(uid, pods_before, pods_after)

    def namespace_changed(self, old: Namespace | None, new: Namespace | None) -> None:
        uid = _uid(old, new)
        with self._lock:
            self.version += 1
            before = self._namespaces.get(uid)
            _store(self._namespaces, uid, new)
            self._namespace_names.move(uid, _names(before), _names(new))

    def node_changed(self, old: Node | None, new: Node | None) -> None:
        uid = _uid(old, new)
        with self._lock:
            self.version += 1
            before = self._nodes.get(uid)
            _store(self._nodes, uid, new)
            self._node_names.move(uid, _names(before), _names(new))
            self._claim(self._node_addresses, uid, _node_ips(before), _node_ips(new))

    def _put_pod(self, new: Pod) -> None:
        uid = new.metadata.uid
        before = self._pods.get(uid)
        self._pods[uid] = new
        self._deleted.pop(uid, None)
        if not new.ending:
            self._last_memberships.pop(uid, None)
        self._mirrors.move(uid, _mirror(before), _mirror(new))
        self._claim(self._pod_addresses, uid, _pod_ips(before), _pod_ips(new))
        if before is not None:
            self._keep_replaced(before, new)
        self._containers.move(uid, _container_ids(before), _container_ids(new))

    def _keep_replaced(self, before: Pod, new: Pod) -> None:
        if before.status.all_containers == new.status.all_containers:
            return
        until = self._clock() + self._keep_seconds
        now = _container_ids(new)
        for status in before.status.all_containers:
            bare = _bare_id(status.container_id)
            if bare and bare not in now:
                self._replaced.pop(bare, None)
                self._replaced[bare] = (until, new.metadata.uid, status.name)

    def _remember_membership(self, left: EndpointSlice, pods: set[str]) -> None:
        """A pod leaves its Services some time before it answers its last request."""
        membership = _membership(left)
        for uid in pods:
            pod = self._pods.get(uid)
            if pod is not None and (pod.ending or uid in self._deleted):
                known = self._last_memberships.get(uid, ())
                if membership not in known:
                    self._last_memberships[uid] = (*known, membership)

    def _forget_old(self) -> None:
        now = self._clock()
        while self._deleted:
            uid = next(iter(self._deleted))
            if self._deleted[uid] > now and len(self._deleted) <= self._keep_most:
                break
            self._forget(uid)
        while self._peers_gone:
            uid = next(iter(self._peers_gone))
            if self._peers_gone[uid] > now and len(self._peers_gone) <= self._keep_most:
                break
            del self._peers_gone[uid]
            self._claim(self._peer_addresses, uid, _pod_ips(self._peer_pods.pop(uid)), set())
        while self._replaced:
            container = next(iter(self._replaced))
            if self._replaced[container][0] > now and len(self._replaced) <= self._keep_most:
                break
            del self._replaced[container]

    def _forget(self, uid: str) -> None:
        del self._deleted[uid]
        pod = self._pods.pop(uid)
        self._last_memberships.pop(uid, None)
        self._mirrors.move(uid, _mirror(pod), set())
        self._claim(self._pod_addresses, uid, _pod_ips(pod), set())
        self._containers.move(uid, _container_ids(pod), set())

    # --- questions --------------------------------------------------------------------------

    def pod(self, uid: str) -> Pod | None:
        """The pod of a uid, as it is now or was at its end.

        The kubelet names a static pod's cgroup by a uid of its own; that one is known too.
        """
        with self._lock:
            self._forget_old()
            return self._pods.get(uid) or self._best(self._mirrors[uid])

    def container(self, container_id: str, pod_uid: str = "") -> ContainerName | None:
        """The container of an id, which may have the runtime in front: ``containerd://``.

        Args:
            pod_uid: if it is known, no other pod's container is answered.
        """
        bare = _bare_id(container_id)
        with self._lock:
            self._forget_old()
            known = self.pod(pod_uid) if pod_uid else self._best(self._containers[bare])
            if known is not None:
                for status in known.status.all_containers:
                    if _bare_id(status.container_id) == bare:
                        return ContainerName(known, status.name)
            return self._replaced_container(bare, known.metadata.uid if known else pod_uid)

    def _replaced_container(self, bare: str, pod_uid: str) -> ContainerName | None:
        _, uid, name = self._replaced.get(bare, (0.0, "", ""))
        pod = self._pods.get(uid)
        if pod is None or (pod_uid and pod_uid != uid):
            return None
        return ContainerName(pod, name)

    def owner(self, pod: Pod | PeerPod) -> Owner:
        """What people deployed for the pod to be there. May ask the API server, once for a Job."""
        owner = pod.metadata.controller
        if owner is None:
            return Owner("Pod", pod.metadata.name)
        if owner.kind == "ReplicaSet":
            # deployment_util.go: a ReplicaSet has its Deployment's name, "-", and the pods' hash.
            ending = "-" + pod.metadata.labels.get("pod-template-hash", "")
            if len(ending) > 1 and owner.name.endswith(ending) and owner.name != ending:
                return Owner("Deployment", owner.name.removesuffix(ending))
        if owner.kind == "Job":
            return self._owner_of_job(pod.metadata.namespace, owner.name, owner.uid)
        return Owner(owner.kind, owner.name)

    def _owner_of_job(self, namespace: str, name: str, uid: str) -> Owner:
        itself = Owner("Job", name)
        with self._lock:
            known = self._owners_of_jobs.get(uid)
            if known is not None or self._find_job is None or self._clock() < self._ask_again:
                return known or itself
        try:
            job = self._find_job(namespace, name)
        except KubernetesError as error:
            forbidden = error.status in (401, 403)
            pause = ASK_AGAIN_FORBIDDEN_SECONDS if forbidden else ASK_AGAIN_SECONDS
            with self._lock:
                self._ask_again = self._clock() + max(pause, error.retry_after)
            return itself
        # Another Job of the same name says nothing about this one.
        above = job.metadata.controller if job is not None and job.metadata.uid == uid else None
        owner = Owner(above.kind, above.name) if above else itself
        with self._lock:
            self._owners_of_jobs[uid] = owner
            while len(self._owners_of_jobs) > self._keep_most:
                del self._owners_of_jobs[next(iter(self._owners_of_jobs))]
        return owner

    def services(self, pod: Pod) -> tuple[ServiceName, ...]:
        """The Services that the pod stands behind, ready or not, each once, by name."""
        with self._lock:
            self._forget_old()
            found = {ServiceName(one.namespace, one.service) for one in self._memberships(pod)}
        return tuple(sorted(found, key=lambda one: (one.namespace, one.name)))

    def target_ports(self, pod: Pod, protocol: str = "TCP") -> dict[str, tuple[int, ...]]:
        """The Services that the pod stands behind, by name, and the pod's ports they lead to.

        An empty tuple: to any port, as the API has it for a port without a number.
        """
        found: dict[str, set[int]] = {}
        with self._lock:
            self._forget_old()
            for one in self._memberships(pod):
                ports = [port for port in one.ports if (port.protocol or "TCP") == protocol]
                found.setdefault(one.service, set()).update(port.port or 0 for port in ports)
        return {
            name: () if 0 in ports else tuple(sorted(ports))
            for name, ports in sorted(found.items())
            if ports
        }

    def service_ports(
        self, pod: Pod, port: int, protocol: str = "TCP"
    ) -> tuple[ServicePortName, ...]:
        """The Services whose traffic comes to a port of the pod, each once.

        Where a Service sends two of its ports to the same one, the lower one is answered.
        """
        found: dict[tuple[str, str], ServicePortName] = {}
        with self._lock:
            self._forget_old()
            for one in self._memberships(pod):
                for name in _ports_named(one, port, protocol):
                    number = self._service_port(one, name)
                    service = ServicePortName(one.namespace, one.service, name, number)
                    key = (one.namespace, one.service)
                    found[key] = min(found.get(key, service), service, key=_port_order)
        return tuple(found[key] for key in sorted(found))

    def _memberships(self, pod: Pod) -> Iterable[_Membership]:
        uid = pod.metadata.uid
        now = [_membership(self._slices[one]) for one in self._slices_of_pod[uid]]
        return [one for one in (*now, *self._last_memberships.get(uid, ())) if one.service]

    def _service_port(self, one: _Membership, name: str) -> int:
        for uid in self._service_names[one.namespace, one.service]:
            for port in self._services[uid].spec.ports:
                if port.name == name:
                    return port.port
        return 0

    def peer(self, address: str | bytes) -> Peer:
        """Whose an address is.

        Pods in the host's network are not told apart from it: their address is the node's.
        A loopback address is ``external``: it is the asker's own, whoever that is.

        Args:
            address: text, or 4 or 16 bytes in network order. IPv4 inside IPv6 is IPv4.

        Raises:
            ValueError: not an address.
        """
        key = address_key(address)
        text = address_text(key)
        with self._lock:
            self._forget_old()
            pod = self._pod_of_address(key)
            services, nodes = self._service_addresses[key], self._node_addresses[key]
            if pod is None and services:
                return _peer("service", text, self._services[services[0]])
            if pod is None and nodes:
                return _peer("node", text, self._nodes[nodes[0]])
        if pod is None:
            return Peer("external", text)
        # Not under the lock: the API server may have to be asked for a Job.
        owner = self.owner(pod)
        return replace(_peer("pod", text, pod), node=pod.spec.node_name, owner=owner)

    def _pod_of_address(self, key: bytes) -> Pod | PeerPod | None:
        """The pod that has an address now, on whichever node; else the last one that had it."""
        found: list[Pod | PeerPod] = [self._pods[uid] for uid in self._pod_addresses[key]]
        found += [self._peer_pods[uid] for uid in self._peer_addresses[key]]
        return max(found, key=self._rank, default=None)

    def addresses(self) -> frozenset[bytes]:
        """Every address that a pod, a Service or a node has, 16 bytes each."""
        with self._lock:
            self._forget_old()
            return frozenset().union(
                self._pod_addresses,
                self._peer_addresses,
                self._service_addresses,
                self._node_addresses,
            )

    def ignored(self, pod: Pod) -> bool:
        """Whether the pod, its namespace or its node asks not to be watched."""
        if pod.metadata.annotations.say_ignore:
            return True
        with self._lock:
            spaces = [self._namespaces[u] for u in self._namespace_names[pod.metadata.namespace]]
            nodes = [self._nodes[uid] for uid in self._node_names[pod.spec.node_name]]
        return any(one.metadata.annotations.say_ignore for one in (*spaces, *nodes))

    def _best(self, uids: tuple[str, ...]) -> Pod | None:
        """The pod whose a key is now: one that runs before one that has ended, then the newest."""
        pods = [self._pods[uid] for uid in uids]
        if len(pods) < 2:
            return pods[0] if pods else None
        return max(pods, key=self._rank)

    def _rank(self, pod: Pod | PeerPod) -> tuple[bool, str, str]:
        uid = pod.metadata.uid
        gone = self._deleted if isinstance(pod, Pod) else self._peers_gone
        runs = uid not in gone and not pod.ended
        return (runs, pod.metadata.creation_timestamp or "", uid)


class Jobs:
    """Asks the API server for Jobs, one at a time: for `Cluster`."""

    def __init__(self, server: ApiServer, seconds: float = 5.0) -> None:
        self._connection = Connection(server, seconds)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._decoder = msgspec.json.Decoder(Job)

    def find(self, namespace: str, name: str) -> Job | None:
        """A Job; None if there is none. Raises KubernetesError."""
        path = f"apis/batch/v1/namespaces/{namespace}/jobs/{name}"
        with self._lock:
            try:
                return self._decoder.decode(self._connection.get(path, {}, self._seconds))
            except msgspec.MsgspecError as error:
                raise KubernetesError(f"{path}: not a Job: {error}") from None
            except KubernetesError as error:
                if error.status == NOT_FOUND:
                    return None
                raise

    def close(self) -> None:
        """Ends a question that is under way."""
        self._connection.close()
        with self._lock:
            self._connection.release()


@dataclass(frozen=True)
class Followers:
    """The reflectors that tell a `Cluster` of changes."""

    pods: Reflector[Pod]
    services: Reflector[Service]
    slices: Reflector[EndpointSlice]
    namespaces: Reflector[Namespace]
    nodes: Reflector[Node]
    peer_pods: Reflector[PeerPod] | None = None

    @property
    def all(self) -> tuple[Reflector[Any], ...]:
        """In the order in which they were started."""
        first = (self.namespaces, self.nodes, self.services, self.slices, self.pods)
        return first if self.peer_pods is None else (*first, self.peer_pods)

    def wait(self, seconds: float) -> bool:
        """Whether every first list was whole before the time was over."""
        until = time.monotonic() + seconds
        return all(one.synced.wait(max(0.0, until - time.monotonic())) for one in self.all)

    def close(self) -> None:
        """Ends all, at once."""
        for one in self.all:
            one.close()


def follow(
    cluster: Cluster, server: ApiServer, *, node: str = "", timing: Timing | None = None
) -> Followers:
    """Starts the reflectors that tell the cluster of changes.

    Args:
        node: whose pods to know in full; of those on other nodes only what names an address.
            Empty: all pods in full.
    """
    elsewhere: Reflector[PeerPod] | None = None
    if node:
        selector = f"spec.nodeName!={node}"
        elsewhere = Reflector(server, PEER_PODS, field_selector=selector, timing=timing)
        elsewhere.on_change(cluster.peer_pod_changed)
    followers = Followers(
        Reflector(
            server, PODS, field_selector=f"spec.nodeName={node}" if node else "", timing=timing
        ),
        Reflector(server, SERVICES, timing=timing),
        Reflector(server, ENDPOINT_SLICES, timing=timing),
        Reflector(server, NAMESPACES, timing=timing),
        Reflector(server, NODES, timing=timing),
        elsewhere,
    )
    followers.pods.on_change(cluster.pod_changed)
    followers.services.on_change(cluster.service_changed)
    followers.slices.on_change(cluster.slice_changed)
    followers.namespaces.on_change(cluster.namespace_changed)
    followers.nodes.on_change(cluster.node_changed)
    for one in followers.all:
        one.start()
    return followers


def address_key(address: str | bytes) -> bytes:
    """16 bytes, whichever form an address has: IPv4 is IPv4-mapped IPv6 (RFC 4291, 2.5.5.2).

    Raises:
        ValueError: not an address.
    """
    if isinstance(address, bytes):
        if len(address) not in (4, 16):
            raise ValueError(f"an address has 4 or 16 bytes, not {len(address)}")
        return MAPPED + address if len(address) == 4 else address
    text = address.partition("%")[0]
    try:
        if ":" in text:
            return socket.inet_pton(socket.AF_INET6, text)
        return MAPPED + socket.inet_pton(socket.AF_INET, text)
    except OSError:
        raise ValueError(f"{address!r} is not an address") from None


def address_text(key: bytes) -> str:
    """The usual text of 16 bytes: ``10.0.0.1``, ``fd00::1``."""
    if key.startswith(MAPPED):
        return socket.inet_ntop(socket.AF_INET, key[12:])
    return socket.inet_ntop(socket.AF_INET6, key)


def _addresses(texts: Iterable[str]) -> set[bytes]:
    """Those of the texts that are addresses: others are names, empty, or ``None``."""
    found = set()
    for text in texts:
        try:
            found.add(address_key(text))
        except ValueError:
            continue
    return found


def _uid(old: KubernetesObject | None, new: KubernetesObject | None) -> str:
    found = new or old
    assert found is not None
    return found.metadata.uid


def _store(objects: dict[str, T], uid: str, new: T | None) -> None:
    if new is None:
        objects.pop(uid, None)
    else:
        objects[uid] = new


def _names(found: KubernetesObject | None) -> set[str]:
    return {found.metadata.name} if found is not None else set()


def _full_names(found: Service | None) -> set[tuple[str, str]]:
    return {(found.metadata.namespace, found.metadata.name)} if found is not None else set()


def _cluster_ips(service: Service | None) -> set[bytes]:
    return _addresses(service.spec.cluster_ips) if service is not None else set()


def _node_ips(node: Node | None) -> set[bytes]:
    if node is None:
        return set()
    return _addresses(one.address for one in node.status.addresses if one.type.endswith("IP"))


def _pod_ips(pod: Pod | PeerPod | None) -> set[bytes]:
    if pod is None or pod.spec.host_network:
        return set()
    return _addresses(one.ip for one in pod.status.pod_ips)


def _mirror(pod: Pod | None) -> set[str]:
    return {pod.metadata.annotations.mirror} - {""} if pod is not None else set()


def _container_ids(pod: Pod | None) -> set[str]:
    if pod is None:
        return set()
    return {_bare_id(one.container_id) for one in pod.status.all_containers} - {""}


def _bare_id(container_id: str) -> str:
    return container_id.rpartition("://")[2]


def _pods_behind(one: EndpointSlice | None) -> set[str]:
    if one is None:
        return set()
    targets = (endpoint.target_ref for endpoint in one.endpoints or ())
    return {target.uid for target in targets if target is not None and target.kind == "Pod"}


def _membership(one: EndpointSlice) -> _Membership:
    return _Membership(one.metadata.namespace, one.service, one.ports or ())


def _ports_named(one: _Membership, port: int, protocol: str) -> Iterable[str]:
    """Names of the ports that lead to one of the pod. A port without a number leads to all."""
    for named in one.ports:
        if named.port in (port, None) and (named.protocol or "TCP") == protocol:
            yield named.name or ""


def _port_order(one: ServicePortName) -> tuple[int, str]:
    return (one.port, one.port_name)


def _peer(kind: str, text: str, found: KubernetesObject) -> Peer:
    metadata = found.metadata
    return Peer(kind, text, metadata.namespace, metadata.name, metadata.uid)
