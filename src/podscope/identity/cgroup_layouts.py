# SPDX-License-Identifier: Apache-2.0
"""Which pod and which container a cgroup is, by its path alone.

The kubelet and the container runtimes say in the names of directories whose a cgroup is. The
rules are theirs; each is cited where it stands below. A path of any hierarchy will do (version 2,
one of version 1, or systemd's own), and it may begin anywhere: at a host's root, at the root of a
node that is a container itself, or with ``/..`` as a cgroup namespace shows it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ContainerPath:
    """What a path says. Empty strings: it does not say, or it does not apply.

    Attributes:
        pod_uid: the pod's UID as Kubernetes writes it. That of a static pod is no UUID but 32
            hexadecimal digits: the annotation ``kubernetes.io/config.hash`` of its mirror pod.
        container_id: the whole id, 64 hexadecimal digits. Empty for a cgroup of a pod that is
            none of its containers': the pod's own, a monitor's, or that of a virtual machine.
        runtime: ``containerd``, ``cri-o`` or ``docker``, as in a pod's status, or ``podman``.
        qos: ``guaranteed``, ``burstable`` or ``besteffort``; empty outside of pods.
    """

    pod_uid: str
    container_id: str
    runtime: str
    qos: str


# The API server gives a UUID. The kubelet gives a static pod an MD5 in hexadecimal (applyDefaults
# in Kubernetes' pkg/kubelet/config/common.go): with dashes in it, it would match nothing.
_UID = "(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"

# A pod, systemd driver: all names from the root on, joined by "-", with "_" for a "-" inside of
# a name (CgroupName.ToSystemd in Kubernetes' pkg/kubelet/cm/cgroup_manager_linux.go). So there
# may be more in front: the kubelet of kind has /kubelet as its --cgroup-root.
_SYSTEMD_POD = re.compile(
    rf"(?:.+-)?kubepods(?:-(?P<qos>burstable|besteffort))?-pod{_UID}\.slice", re.DOTALL
)

# A pod, cgroupfs driver: the same names as directories (CgroupName.ToCgroupfs, there).
_CGROUPFS_POD = re.compile(f"pod{_UID}")

# Above it is its class of service, but none for guaranteed (GetPodContainerName in
# pkg/kubelet/cm/pod_container_manager_linux.go), and above that "kubepods"
# (defaultNodeAllocatableCgroupName in pkg/kubelet/cm/node_container_manager_linux.go).
_CLASSES = {
    ("kubepods",): "guaranteed",
    ("kubepods", "burstable"): "burstable",
    ("kubepods", "besteffort"): "besteffort",
}

# A container: <prefix>-<id>.scope with systemd (getUnitName in libcontainer/cgroups/systemd of
# runc); without, the id alone, but for CRI-O and podman, which keep the prefix. The prefix tells
# the runtime. Not here, since they are no containers: crio-conmon and libpod-conmon (monitors),
# kata (a virtual machine), libpod_pod (a pod of podman).
_CONTAINER = re.compile(r"(?:(?P<prefix>[a-z-]+)-)?(?P<id>[0-9a-f]{64})(?:\.scope)?")
_RUNTIMES = {
    "": "",
    "cri-containerd": "containerd",  # getCgroupsPath in containerd's internal/cri
    "nerdctl": "containerd",  # generateCgroupOpts in nerdctl's pkg/cmd/container
    "crio": "cri-o",  # CrioPrefix in CRI-O's internal/config/cgmgr
    "docker": "docker",  # WithCgroups in moby's daemon/oci_linux.go
    "libpod": "podman",  # createUnitName in podman's libpod/oci_util.go
    "libpod-payload": "podman",  # --cgroups=split, which Quadlet uses: getOCICgroupPath in libpod
}

# What a runtime says to runc is "slice:prefix:id". Where runc (or youki, or kata) does not know
# that it stands for systemd's names, because only the kubelet was told of systemd, it becomes one
# directory, often below containerd.service.
_UNREAD = re.compile(r"(?P<slice>[^:]+\.slice):(?P<prefix>[^:]+):(?P<id>[^:]+)", re.DOTALL)

# A cgroup whose directory is gone (proc_cgroup_show in the kernel's kernel/cgroup/cgroup.c).
_DELETED = " (deleted)"

_NEITHER = ("", "")


def container_of(path: str) -> ContainerPath | None:
    """Which pod and container a path is in; None where it is in neither.

    Below a pod it is the pod's own container, whatever runs inside of that: the outermost. On a
    plain host it is the innermost: a node of kind is a container too, but only of what is in no
    container of its own.
    """
    names = _names(path)
    for position in range(len(names)):
        uid, qos = _pod(names[: position + 1])
        if uid:
            # Containers are right below their pod. The pod's own name is none of a container.
            container, runtime = _container(names[: position + 2])
            return ContainerPath(uid, container, runtime, qos)
    for end in range(len(names), 0, -1):
        container, runtime = _container(names[:end])
        if container:
            return ContainerPath("", container, runtime, "")
    return None


def _names(path: str) -> list[str]:
    """The directories' names, those that runc did not read put right."""
    names = []
    for name in path.removesuffix(_DELETED).split("/"):
        unread = _UNREAD.fullmatch(name)
        if unread:
            names += [unread["slice"], f"{unread['prefix']}-{unread['id']}.scope"]
        elif name:
            names.append(name)
    return names


def _pod(names: list[str]) -> tuple[str, str]:
    """UID and class of service of the pod whose own cgroup this is; empty: it is none."""
    pod = _SYSTEMD_POD.fullmatch(names[-1])
    if pod:
        return pod["uid"].replace("_", "-"), pod["qos"] or "guaranteed"
    pod = _CGROUPFS_POD.fullmatch(names[-1])
    if not pod:
        return _NEITHER
    qos = _CLASSES.get(tuple(names[-2:-1])) or _CLASSES.get(tuple(names[-3:-1]), "")
    return (pod["uid"], qos) if qos else _NEITHER


def _container(names: list[str]) -> tuple[str, str]:
    """Id and runtime of the container whose own cgroup this is; empty: it is none."""
    container = _CONTAINER.fullmatch(names[-1])
    if not container or (container["prefix"] or "") not in _RUNTIMES:
        return _NEITHER
    if container["prefix"]:
        return container["id"], _RUNTIMES[container["prefix"]]
    above = names[-2] if len(names) > 1 else ""
    # A pod of podman (CgroupfsDefaultCgroupParent in podman's libpod): its containers are below.
    if above == "libpod_parent":
        return _NEITHER
    # The parent that docker takes when it is told none (WithCgroups in moby's daemon/oci_linux.go).
    return container["id"], "docker" if above == "docker" else ""
