# SPDX-License-Identifier: Apache-2.0
"""Which nodes have an agent that is ready, and why others have not."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from podscope.deploy.manifests import VERSION_LABEL
from podscope.identity.kubernetes_objects import OwnerReference


class _Part(msgspec.Struct, frozen=True, rename="camel"):
    """A piece of an object; what is not named is skipped."""


class Metadata(_Part, frozen=True):
    """metav1.ObjectMeta."""

    name: str = ""
    uid: str = ""
    generation: int = 0
    deletion_timestamp: str | None = None
    labels: Mapping[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()


class Condition(_Part, frozen=True):
    """Of a node or a pod: ``status`` is "True", "False" or "Unknown"."""

    type: str
    status: str
    message: str = ""


class Why(_Part, frozen=True):
    """corev1.ContainerStateWaiting or ContainerStateTerminated."""

    reason: str = ""
    message: str = ""
    exit_code: int = 0


class ContainerState(_Part, frozen=True):
    """corev1.ContainerState: one of them is set."""

    waiting: Why | None = None
    terminated: Why | None = None


class ContainerStatus(_Part, frozen=True):
    """corev1.ContainerStatus."""

    image: str = ""
    ready: bool = False
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodStatus(_Part, frozen=True):
    """corev1.PodStatus."""

    conditions: tuple[Condition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()


class Container(_Part, frozen=True):
    """corev1.Container."""

    image: str = ""


class Requirement(_Part, frozen=True):
    """corev1.NodeSelectorRequirement."""

    values: tuple[str, ...] = ()


class Term(_Part, frozen=True):
    """corev1.NodeSelectorTerm."""

    match_fields: tuple[Requirement, ...] = ()


class Required(_Part, frozen=True):
    """corev1.NodeSelector."""

    terms: tuple[Term, ...] = msgspec.field(name="nodeSelectorTerms", default=())


class NodeAffinity(_Part, frozen=True):
    """corev1.NodeAffinity."""

    required: Required = msgspec.field(
        name="requiredDuringSchedulingIgnoredDuringExecution", default=Required()
    )


class Affinity(_Part, frozen=True):
    """corev1.Affinity."""

    node_affinity: NodeAffinity = NodeAffinity()


class PodSpec(_Part, frozen=True):
    """corev1.PodSpec."""

    node_name: str = ""
    affinity: Affinity = Affinity()
    node_selector: Mapping[str, str] = {}
    containers: tuple[Container, ...] = ()


class Pod(_Part, frozen=True):
    """corev1.Pod."""

    metadata: Metadata = Metadata()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class NodeStatus(_Part, frozen=True):
    """corev1.NodeStatus."""

    conditions: tuple[Condition, ...] = ()


class Node(_Part, frozen=True):
    """corev1.Node."""

    metadata: Metadata = Metadata()
    status: NodeStatus = NodeStatus()


class Template(_Part, frozen=True):
    """corev1.PodTemplateSpec."""

    spec: PodSpec = PodSpec()


class DaemonSetSpec(_Part, frozen=True):
    """appsv1.DaemonSetSpec."""

    template: Template = Template()


class DaemonSetStatus(_Part, frozen=True):
    """appsv1.DaemonSetStatus: counts of nodes."""

    observed_generation: int = 0
    desired: int = msgspec.field(name="desiredNumberScheduled", default=0)
    current: int = msgspec.field(name="currentNumberScheduled", default=0)
    updated: int = msgspec.field(name="updatedNumberScheduled", default=0)
    ready: int = msgspec.field(name="numberReady", default=0)


class DaemonSet(_Part, frozen=True):
    """appsv1.DaemonSet."""

    metadata: Metadata = Metadata()
    spec: DaemonSetSpec = DaemonSetSpec()
    status: DaemonSetStatus = DaemonSetStatus()

    @property
    def seen(self) -> bool:
        """Whether its controller knows its newest form, so that its counts mean something."""
        return self.status.observed_generation >= self.metadata.generation

    @property
    def done(self) -> bool:
        """Whether every chosen node has a ready agent of the newest form."""
        status = self.status
        return self.seen and status.updated == status.desired == status.ready


@dataclass(frozen=True)
class NodeState:
    """The agent of a node.

    Attributes:
        agent: ``ready``, ``not ready``, or ``not chosen`` (no agent is to run there).
        version: of the podscope that installed it; empty if another tool did, or it has no pod.
        image: of the pod; empty if there is none.
        why: what is wrong; empty where nothing is.
    """

    node: str
    agent: str
    version: str = ""
    image: str = ""
    why: str = ""


def node_states(
    daemon_set: DaemonSet, nodes: Iterable[Node], pods: Sequence[Pod], complaint: str = ""
) -> tuple[NodeState, ...]:
    """One for each node, by name.

    Args:
        complaint: why no pod could be made; empty if nothing is known.
    """
    # Of two pods of a node one is on its way out: the other one counts.
    ordered = sorted(pods, key=lambda pod: pod.metadata.deletion_timestamp is None)
    by_node = {_node_of(pod): pod for pod in ordered}
    lacking = not daemon_set.seen or daemon_set.status.current < daemon_set.status.desired
    states = []
    for node in sorted(nodes, key=lambda node: node.metadata.name):
        pod = by_node.get(node.metadata.name)
        if pod is not None:
            states.append(_state(node, pod))
        elif lacking and _is_chosen(node, daemon_set):
            why = complaint or "there is no pod yet"
            states.append(NodeState(node.metadata.name, "not ready", why=why))
        else:
            states.append(NodeState(node.metadata.name, "not chosen"))
    return tuple(states)


def _node_of(pod: Pod) -> str:
    """Until the scheduler has placed it, the node that the DaemonSet made it for."""
    terms = pod.spec.affinity.node_affinity.required.terms
    meant = [name for term in terms for field in term.match_fields for name in field.values]
    return pod.spec.node_name or next(iter(meant), "")


def _is_chosen(node: Node, daemon_set: DaemonSet) -> bool:
    wanted = daemon_set.spec.template.spec.node_selector
    return wanted.items() <= node.metadata.labels.items()


def _state(node: Node, pod: Pod) -> NodeState:
    why = _why(node, pod)
    running = [one.image for one in pod.status.container_statuses]
    wanted = [one.image for one in pod.spec.containers]
    return NodeState(
        node.metadata.name,
        "not ready" if why else "ready",
        pod.metadata.labels.get(VERSION_LABEL, ""),
        next((image for image in (*running, *wanted) if image), ""),
        why,
    )


def _why(node: Node, pod: Pod) -> str:
    """What is wrong with an agent; empty if nothing is."""
    if any(one.type == "Ready" and one.status != "True" for one in node.status.conditions):
        return "the node is not ready"
    if pod.metadata.deletion_timestamp is not None:
        return "the pod is ending"
    for one in pod.status.container_statuses:
        if told := _troubles(one):
            return told
    conditions = {one.type: one for one in pod.status.conditions}
    if conditions.get("Ready", Condition("Ready", "False")).status == "True":
        return ""
    scheduled = conditions.get("PodScheduled")
    if scheduled is not None and scheduled.status != "True":
        return _one_line(scheduled.message)
    return f"it has not become ready yet: see 'kubectl logs {pod.metadata.name}'"


def _troubles(container: ContainerStatus) -> str:
    """Of a container that does not run: the reason, and the last words of the one before."""
    state = container.state.waiting or container.state.terminated
    if state is None:
        return ""
    last = container.state.terminated or container.last_state.terminated
    words = _end(last, state.reason) if last else state.message
    return _one_line(f"{state.reason}: {words}" if words else state.reason)


def _end(last: Why, told: str) -> str:
    """How a container ended: its last words, else what the kubelet says, as OOMKilled."""
    reason = "" if last.reason in ("", "Error", told) else f"{last.reason}, "
    return last.message or f"{reason}exit code {last.exit_code}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
