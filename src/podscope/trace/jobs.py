# SPDX-License-Identifier: Apache-2.0
"""A trace in a cluster as objects of Kubernetes: one Job a node, and nothing beside.

The program travels in the Job itself, so that no other object can be left behind: a Job goes some
time after its end (``ttlSecondsAfterFinished``), and its pod, whose log is the answer, with it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from podscope import __version__
from podscope.errors import UsageError
from podscope.identity.kubernetes_objects import Pod

Object = dict[str, Any]

TRACE_LABEL = "podscope.dev/trace"
# Of pods whose log has a script's rows, one JSON object a line: by it log shippers find them, and
# know what the rows are (podscope.dashboards.shippers).
ROWS_LABEL = "podscope.dev/rows"
TARGET_ANNOTATION = "podscope.dev/target"
TITLE_ANNOTATION = "podscope.dev/program"
NODE_ANNOTATION = "podscope.dev/node"
PODS_ANNOTATION = "podscope.dev/pods"
PARTS_ANNOTATION = "podscope.dev/sees"
BY_ANNOTATION = "podscope.dev/by"
# Of the pod's loopback address: who connects ends the program, as Ctrl-C does.
STOP_PORT = 9437
_LABELS = {
    "app.kubernetes.io/name": "podscope",
    "app.kubernetes.io/component": "trace",
    "app.kubernetes.io/managed-by": "podscope",
    "app.kubernetes.io/version": __version__,
}
# From the program's end to the pod's: the last answer is written.
_SPARE_SECONDS = 30


@dataclass(frozen=True)
class Part:
    """What a trace has to do on one node.

    Attributes:
        node: the node's name, which is not always what its label ``kubernetes.io/hostname`` says.
        targets: as ``podscope run`` on the node reads them; none: the whole node.
        pods: names of their pods, in the same order; with the namespace where there are several.
    """

    node: str
    targets: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A trace as it was asked for; times are seconds.

    Attributes:
        name: of the trace; a label's value.
        target: as the user wrote it.
        title: of the program, for lists.
        by_pod: keep maps apart by pod.
        environment: variables for bpftrace.
        ttl: how long results are kept after the end.
        tracer: what runs the program: ``bpftrace``, or another whose tool ``program`` names.
        selector: of the process, for other tracers.
        rows: name of the script whose rows the log is to hold, for log shippers; empty: it holds
            what ``podscope get`` reads.
    """

    name: str
    program: str
    title: str = ""
    target: str = ""
    namespace: str = "default"
    image: str = "docker.io/library/podscope:dev"
    pull_policy: str = "IfNotPresent"
    service_account: str = "default"
    arguments: tuple[str, ...] = ()
    deadline: float = 3600.0
    grace: float = 30.0
    interval: float = 1.0
    ttl: float = 86400.0
    confine: bool = True
    unsafe: bool = False
    by_pod: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    rows: str = ""
    tracer: str = "bpftrace"
    selector: str = ""


def on_nodes(nodes: Iterable[str]) -> tuple[Part, ...]:
    """A trace of whole nodes, each once."""
    return tuple(Part(node) for node in dict.fromkeys(nodes))


def on_pods(
    pods: Iterable[Pod], container: str = "", *, one: bool = False, each: bool = False
) -> tuple[Part, ...]:
    """A trace of pods: their nodes, with what to look at there.

    A pod is named by its UID, so that containers which start later are in; a container by its id.

    Args:
        pods: those of the target; those that do not run are passed over.
        container: only the container of this name of each.
        one: each pod must have one container, or ``container`` say which: for a program that asks
            for ``$container_pid``.
        each: name each container of a pod by itself, and not the pod.

    Raises:
        UsageError: none runs, none has such a container, or one is to be chosen.
    """
    running = [pod for pod in pods if pod.status.phase == "Running" and pod.spec.node_name]
    if not running:
        raise UsageError("TARGET: it has no running pods")
    by_node: dict[str, list[tuple[str, str]]] = {}
    several = len({pod.metadata.namespace for pod in running}) > 1
    for pod in running:
        space = f"{pod.metadata.namespace}/" if several else ""
        name = f"{space}{pod.metadata.name}"
        for target in _targets(pod, container, one=one, each=each):
            by_node.setdefault(pod.spec.node_name, []).append((target, name))
    if not by_node:
        names = sorted({one.name for pod in running for one in pod.spec.containers or ()})
        if not container:
            raise UsageError("TARGET: none of its containers runs")
        raise UsageError(f"-c {container}: no such container runs; there are {', '.join(names)}")
    return tuple(
        Part(node, tuple(target for target, _ in found), tuple(name for _, name in found))
        for node, found in sorted(by_node.items())
    )


def _targets(pod: Pod, container: str, *, one: bool, each: bool) -> list[str]:
    if container:
        found = [_container_target(pod, container)]
    elif each:
        found = [_container_target(pod, status.name) for status in pod.status.all_containers]
    else:
        found = [_pod_target(pod, one=one)]
    return [target for target in found if target]


def one_by_one(parts: Iterable[Part]) -> tuple[Part, ...]:
    """A part for each pod: of a program that asks for one process of it."""
    return tuple(
        Part(part.node, (target,), (name,))
        for part in parts
        for target, name in zip(part.targets, part.pods, strict=True)
    )


def _pod_target(pod: Pod, *, one: bool) -> str:
    names = [container.name for container in pod.spec.containers or ()]
    if one and len(names) > 1:
        raise UsageError(
            f"pod {pod.metadata.name!r} has more than one container, and $container_pid is that of "
            f"one: choose it with -c, of {', '.join(names)}"
        )
    if one:
        return _container_target(pod, names[0])  # the pod's first process is its sandbox's
    # A static pod's cgroups have the UID that the kubelet gave it, not that of its mirror.
    return f"pod/{pod.metadata.annotations.mirror or pod.metadata.uid}"


def _container_target(pod: Pod, container: str) -> str:
    for status in pod.status.all_containers:
        if status.name == container and status.state.running is not None:
            # "containerd://", "cri-o://", "docker://": whatever the runtime is.
            return f"container/{status.container_id.rpartition('/')[2]}"
    return ""


def job_name(request: Request, part: Part) -> str:
    """Of a part: the same whoever makes it, so that none is made twice."""
    told = f"{part.node} {' '.join(part.targets)}".encode()
    return f"{request.name}-{zlib.crc32(told):08x}"


def job(request: Request, part: Part, owner: Object | None = None) -> Object:
    """The Job of one node.

    It runs ``podscope run`` with the same code as on a host, and its log is what ``reports`` reads.

    Args:
        owner: the trace's first Job, which takes this one with it; None: this is the first.
    """
    marks = {**_LABELS, TRACE_LABEL: request.name}
    marks |= {ROWS_LABEL: request.rows} if request.rows else {}
    about: Object = {
        "name": job_name(request, part),
        "namespace": request.namespace,
        "labels": marks,
        "annotations": {
            TARGET_ANNOTATION: request.target,
            TITLE_ANNOTATION: request.title,
            NODE_ANNOTATION: part.node,
            PODS_ANNOTATION: " ".join(part.pods),
            PARTS_ANNOTATION: " ".join(part.targets),
            BY_ANNOTATION: "pod" if request.by_pod else "",
        },
    }
    ttl = request.ttl
    if owner is None:
        # It may end long before the others, and is not to take them with it.
        ttl += request.deadline + request.grace
    else:
        about["ownerReferences"] = [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
            }
        ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": about,
        "spec": {
            "parallelism": 1,
            "completions": 1,
            # A program that fails is not to run once more.
            "backoffLimit": 0,
            "activeDeadlineSeconds": round(request.deadline + request.grace) + _SPARE_SECONDS,
            "ttlSecondsAfterFinished": round(ttl),
            "template": {"metadata": {"labels": marks}, "spec": _pod_spec(request, part)},
        },
    }


def _pod_spec(request: Request, part: Part) -> Object:
    return {
        "restartPolicy": "Never",
        "serviceAccountName": request.service_account,
        "automountServiceAccountToken": False,
        # Process ids in programs, and /proc/PID/root, are the node's.
        "hostPID": True,
        "terminationGracePeriodSeconds": round(request.grace) + _SPARE_SECONDS,
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": _only(part.node)},
        "containers": [
            {
                "name": "trace",
                "image": request.image,
                "imagePullPolicy": request.pull_policy,
                "args": arguments(request, part),
                "env": [
                    {"name": name, "value": _as_written(value)}
                    for name, value in (("NODE_NAME", part.node), *request.environment)
                ],
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "resources": {
                    "requests": {"cpu": "100m", "memory": "100Mi"},
                    "limits": {"cpu": "1", "memory": "1Gi"},
                },
                "securityContext": {"privileged": True, "runAsUser": 0},
                "volumeMounts": [
                    {"name": "cgroup", "mountPath": "/host/cgroup", "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": "cgroup", "hostPath": {"path": "/sys/fs/cgroup", "type": "Directory"}}
        ],
    }


def _only(node: str) -> Object:
    """Affinity to a node by its name (``metadata.name`` is the one field that can be matched)."""
    named = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = {"nodeSelectorTerms": [{"matchFields": [named]}]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": terms}


def arguments(request: Request, part: Part) -> list[str]:
    """What ``podscope`` is started with in a Job."""
    command, *rest = words(request, part)
    made = [command, "--stop-port", str(STOP_PORT), *(["--unsafe"] if request.unsafe else [])]
    return [_as_written(word) for word in [*made, *rest]]


def words(request: Request, part: Part) -> list[str]:
    """What ``podscope`` is started with on the node, in a Job or by an agent."""
    form = "json" if request.rows else "snapshots"
    made = ["run", f"--eval={request.program}", "--form", form]
    if request.tracer != "bpftrace":
        named = [f"--program={request.program}"] if request.tracer == "bcc" else []
        chosen = [f"--process-selector={request.selector}"] if request.selector else []
        made = ["run", f"--tracer={request.tracer}", *named, *chosen, "--form", form]
    made += ["--interval", f"{round(request.interval * 1000)}ms"]
    made += ["--deadline", f"{round(request.deadline)}s"]
    made += ["--deadline-grace-period", f"{round(request.grace)}s"]
    made += [f"--args={one}" for one in request.arguments]
    if request.confine:
        made += [f"--name={one}" for one in part.pods]
    else:
        made += ["--no-confine"]
    made += ["--by", "pod"] if request.by_pod else []
    return [*made, *part.targets]


def _as_written(word: str) -> str:
    """A word in which Kubernetes replaces nothing: it would take ``$(NAME)`` for a variable's value
    (third_party/forked/golang/expansion in Kubernetes; ``$$`` is one ``$`` there)."""
    return re.sub(r"\$(?=[$(])", "$$", word)
