# SPDX-License-Identifier: Apache-2.0
"""Where a trace of a cluster's targets has to run, and on what there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from podscope.batch import Identity
from podscope.batch import Service
from podscope.errors import UsageError

if TYPE_CHECKING:
    from podscope.identity.kubernetes import Cluster
    from podscope.identity.kubernetes_objects import Pod
    from podscope.scope import Scope
    from podscope.trace.jobs import Part


def parts(
    asked: Scope,
    pods: Iterable[Pod],
    cluster: Cluster,
    *,
    container: str = "",
    one: bool = False,
    each: bool = False,
) -> tuple[Part, ...]:
    """The nodes of a trace, with what to look at on each.

    Args:
        asked: nodes, which are traced whole; or else pods, by themselves, by owner, by Service, by
            labels, or all of a namespace.
        pods: those of the namespaces that are asked for.
        cluster: what is known of owners and Services.
        container: only containers of this name.
        one: each pod must have one container, or ``container`` say which.
        each: name each container by itself.

    Raises:
        UsageError: nothing of the target runs, or it is of both kinds.
    """
    from podscope.trace import jobs

    nodes = [target.name for target in asked.targets if target.kind == "node"]
    if nodes and (len(nodes) < len(asked.targets) or asked.selector):
        raise UsageError("TARGET: a node is traced whole; give nodes and pods to different traces")
    if nodes:
        if container:
            raise UsageError(f"-c {container}: a node is traced whole; name a pod instead")
        return jobs.on_nodes(nodes)
    has = asked.rule()
    wanted = [pod for pod in pods if has(_identity(pod, cluster), pod)]
    return jobs.on_pods(wanted, container, one=one, each=each)


def _identity(pod: Pod, cluster: Cluster) -> Identity:
    """A pod as targets know it; a static pod stands for itself, since its owner is the node."""
    owner = cluster.owner(pod)
    alone = owner.kind == "Node"
    return Identity(
        "pod" if alone else owner.kind.lower(),
        pod.metadata.name if alone else owner.name,
        "",
        0,
        namespace=pod.metadata.namespace,
        pod=pod.metadata.name,
        pod_uid=pod.metadata.uid,
        node=pod.spec.node_name,
        services=tuple(Service(one.name, ()) for one in cluster.services(pod)),
    )
