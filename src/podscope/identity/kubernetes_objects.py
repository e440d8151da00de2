# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects as the API server writes them: only the fields that podscope uses.

msgspec skips every other field without building an object for it, which is why 5,000 pods of
4.5 kB need few megabytes. Objects are frozen; lists are tuples. Names follow the API in snake case.
The API server writes ``null`` for some empty lists (a bookmark's containers, a slice's endpoints):
those fields may be None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic
from typing import TypeVar

import msgspec
from msgspec import field


class _Part(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """A piece of an object. Nothing in it points back, so the garbage collector need not look."""


class OwnerReference(_Part, frozen=True):
    """metav1.OwnerReference."""

    kind: str
    name: str
    uid: str = ""
    controller: bool = False


class Annotations(msgspec.Struct, frozen=True, gc=False):
    """The annotations that mean something to podscope; others may be large, and are skipped."""

    ignore: str = field(name="podscope.dev/ignore", default="")
    owlk8s_ignore: str = field(name="owlk8s/ignore", default="")
    mirror: str = field(name="kubernetes.io/config.mirror", default="")

    @property
    def say_ignore(self) -> bool:
        """Whether the object asks not to be watched."""
        return "true" in (self.ignore, self.owlk8s_ignore)


class Metadata(_Part, frozen=True):
    """metav1.ObjectMeta. ``namespace`` is empty for nodes and namespaces."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: Mapping[str, str] = {}
    annotations: Annotations = Annotations()
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def controller(self) -> OwnerReference | None:
        """The one owner that manages the object."""
        return next((owner for owner in self.owner_references if owner.controller), None)


class KubernetesObject(_Part, frozen=True):
    """What every object has."""

    metadata: Metadata = Metadata()


class Container(_Part, frozen=True):
    """corev1.Container: its name."""

    name: str


class PodSpec(_Part, frozen=True):
    """corev1.PodSpec."""

    node_name: str = ""
    host_network: bool = False
    containers: tuple[Container, ...] | None = ()
    init_containers: tuple[Container, ...] = ()
    ephemeral_containers: tuple[Container, ...] = ()


class Empty(_Part, frozen=True):
    """An object of which only the presence counts."""


class ContainerState(_Part, frozen=True):
    """corev1.ContainerState: one of them is set."""

    waiting: Empty | None = None
    running: Empty | None = None
    terminated: Empty | None = None


class ContainerStatus(_Part, frozen=True):
    """corev1.ContainerStatus. ``container_id`` is as written: ``containerd://<64 hex digits>``."""

    name: str
    container_id: str = field(name="containerID", default="")
    ready: bool = False
    state: ContainerState = ContainerState()


class PodIP(_Part, frozen=True):
    """corev1.PodIP."""

    ip: str = ""


class PodStatus(_Part, frozen=True):
    """corev1.PodStatus."""

    phase: str = ""
    pod_ips: tuple[PodIP, ...] = field(name="podIPs", default=())
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()
    ephemeral_container_statuses: tuple[ContainerStatus, ...] = ()

    @property
    def all_containers(self) -> tuple[ContainerStatus, ...]:
        """Of every sort."""
        return (
            self.container_statuses
            + self.init_container_statuses
            + self.ephemeral_container_statuses
        )


class Pod(KubernetesObject, frozen=True):
    """corev1.Pod."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def ended(self) -> bool:
        """Whether its containers have ended for good: its addresses may be another pod's."""
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def ready(self) -> bool:
        """Whether all its containers are."""
        statuses = self.status.container_statuses
        return bool(statuses) and all(one.ready for one in statuses)

    @property
    def ending(self) -> bool:
        """Whether it is about to go: it leaves its Services while it still answers."""
        return self.ended or self.metadata.deletion_timestamp is not None


class PeerSpec(_Part, frozen=True):
    """corev1.PodSpec, of a pod on another node."""

    node_name: str = ""
    host_network: bool = False


class PeerStatus(_Part, frozen=True):
    """corev1.PodStatus, of a pod on another node."""

    phase: str = ""
    pod_ips: tuple[PodIP, ...] = field(name="podIPs", default=())


class PeerPod(KubernetesObject, frozen=True):
    """corev1.Pod on another node: what names its address, since there may be many."""

    spec: PeerSpec = PeerSpec()
    status: PeerStatus = PeerStatus()

    @property
    def ended(self) -> bool:
        """As of `Pod`."""
        return self.status.phase in ("Succeeded", "Failed")


class ServicePort(_Part, frozen=True):
    """corev1.ServicePort. ``target_port`` is a number or the name of a container's port."""

    name: str = ""
    protocol: str = "TCP"
    port: int = 0
    target_port: int | str = 0
    node_port: int = 0


class ServiceSpec(_Part, frozen=True):
    """corev1.ServiceSpec. ``cluster_ips`` may hold ``None``, as text, for headless Services."""

    type: str = "ClusterIP"
    cluster_ips: tuple[str, ...] = field(name="clusterIPs", default=())
    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = {}
    external_name: str = ""


class Service(KubernetesObject, frozen=True):
    """corev1.Service."""

    spec: ServiceSpec = ServiceSpec()


class ObjectReference(_Part, frozen=True):
    """corev1.ObjectReference."""

    kind: str = ""
    name: str = ""
    namespace: str = ""
    uid: str = ""


class EndpointConditions(_Part, frozen=True):
    """discoveryv1.EndpointConditions: None means not known, to be taken as ready."""

    ready: bool | None = None


class Endpoint(_Part, frozen=True):
    """discoveryv1.Endpoint."""

    addresses: tuple[str, ...] = ()
    conditions: EndpointConditions = EndpointConditions()
    target_ref: ObjectReference | None = None
    node_name: str = ""


class EndpointPort(_Part, frozen=True):
    """discoveryv1.EndpointPort: ``port`` is the number that the pod listens on."""

    name: str | None = ""
    protocol: str | None = "TCP"
    port: int | None = None


class EndpointSlice(KubernetesObject, frozen=True):
    """discoveryv1.EndpointSlice."""

    address_type: str = ""
    endpoints: tuple[Endpoint, ...] | None = ()
    ports: tuple[EndpointPort, ...] | None = ()

    @property
    def service(self) -> str:
        """Name of its Service; empty if it is nobody's."""
        return self.metadata.labels.get("kubernetes.io/service-name", "")


class Namespace(KubernetesObject, frozen=True):
    """corev1.Namespace."""


class NodeAddress(_Part, frozen=True):
    """corev1.NodeAddress: ``type`` is InternalIP, ExternalIP, Hostname, InternalDNS ..."""

    type: str = ""
    address: str = ""


class NodeStatus(_Part, frozen=True):
    """corev1.NodeStatus."""

    addresses: tuple[NodeAddress, ...] = ()


class Node(KubernetesObject, frozen=True):
    """corev1.Node."""

    status: NodeStatus = NodeStatus()


class Job(KubernetesObject, frozen=True):
    """batchv1.Job: asked for one by one, for its owner."""


T = TypeVar("T", bound=KubernetesObject)


class ListMetadata(_Part, frozen=True):
    """metav1.ListMeta. ``continue_`` is empty on the last page."""

    resource_version: str = ""
    continue_: str = field(name="continue", default="")


class Page(_Part, Generic[T], frozen=True):
    """One page of a list."""

    metadata: ListMetadata = ListMetadata()
    items: tuple[T, ...] | None = ()


class WatchEvent(_Part, frozen=True):
    """metav1.WatchEvent: ``type`` says what ``object`` is."""

    type: str
    object: msgspec.Raw


class Cause(_Part, frozen=True):
    """metav1.StatusCause."""

    reason: str = ""


class StatusDetails(_Part, frozen=True):
    """metav1.StatusDetails."""

    retry_after_seconds: float = 0
    causes: tuple[Cause, ...] = ()


class Status(_Part, frozen=True):
    """metav1.Status: why the API server refused."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: StatusDetails = StatusDetails()
