# SPDX-License-Identifier: Apache-2.0
"""Pods and containers by cgroup path: real paths of every layout, and the rules in general."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from podscope.identity.cgroup_layouts import ContainerPath
from podscope.identity.cgroup_layouts import container_of

A = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970"
B = "a2bc7b153f034b17f358cde43a7f8c7475147e8a0d1b2573c26473244ec44ce4"
UID = "2d5133c0-65f3-40b2-b375-c04866d418e1"
LOW = UID.replace("-", "_")
STATIC = "36b6d6be73b1065af369b3985edafa09"
BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{LOW}.slice"
BEST = "kubelet-kubepods-besteffort"
KIND = f"/kubelet.slice/kubelet-kubepods.slice/{BEST}.slice/{BEST}-pod{LOW}.slice"
USER = "/user.slice/user-1000.slice/user@1000.service"


def pod(container: str, runtime: str, qos: str, uid: str = UID) -> ContainerPath:
    return ContainerPath(uid, container, runtime, qos)


def alone(container: str, runtime: str) -> ContainerPath:
    return ContainerPath("", container, runtime, "")


KUBELET_SYSTEMD = [
    (f"{BURSTABLE}/cri-containerd-{A}.scope", pod(A, "containerd", "burstable")),
    (f"{BURSTABLE}/docker-{A}.scope", pod(A, "docker", "burstable")),
    (f"{BURSTABLE}/crio-{A}.scope", pod(A, "cri-o", "burstable")),
    (
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{LOW}.slice/"
        f"cri-containerd-{A}.scope",
        pod(A, "containerd", "besteffort"),
    ),
    # No level of QoS.
    (
        f"/kubepods.slice/kubepods-pod{LOW}.slice/cri-containerd-{A}.scope",
        pod(A, "containerd", "guaranteed"),
    ),
    # Static pods of a control plane: a hash for a UID.
    (
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/"
        f"cri-containerd-{A}.scope",
        pod(A, "containerd", "burstable", STATIC),
    ),
    (
        f"/kubepods.slice/kubepods-pod{STATIC}.slice/crio-{A}.scope",
        pod(A, "cri-o", "guaranteed", STATIC),
    ),
    # crun puts the processes one level below the scope.
    (f"{BURSTABLE}/crio-{A}.scope/container", pod(A, "cri-o", "burstable")),
    # OpenShift: conmon_cgroup = "pod". The monitor belongs to the pod, and to no container.
    (f"{BURSTABLE}/crio-conmon-{A}.scope", pod("", "", "burstable")),
    # What the kubelet makes before there is a container.
    (BURSTABLE, pod("", "", "burstable")),
    # kata: a virtual machine for all containers of the pod.
    (f"{BURSTABLE}/kata_{A}", pod("", "", "burstable")),
]
KUBELET_CGROUPFS = [
    (f"/kubepods/burstable/pod{UID}/{A}", pod(A, "", "burstable")),
    (f"/kubepods/besteffort/pod{UID}/{A}", pod(A, "", "besteffort")),
    (f"/kubepods/pod{UID}/{A}", pod(A, "", "guaranteed")),
    (f"/kubepods/burstable/pod{STATIC}/{A}", pod(A, "", "burstable", STATIC)),
    (f"/kubepods/burstable/pod{UID}/crio-{A}", pod(A, "cri-o", "burstable")),
    (f"/kubepods/burstable/pod{UID}/crio-conmon-{A}", pod("", "", "burstable")),
    (f"/kubepods/besteffort/pod{UID}", pod("", "", "besteffort")),
    # Some clouds set --cgroup-root=/kubepods.
    (f"/kubepods/kubepods/besteffort/pod{UID}/{A}", pod(A, "", "besteffort")),
]
DRIVERS_THAT_DIFFER = [
    # Kubelet told of systemd, containerd not; it was started by systemd.
    (
        f"/system.slice/containerd.service/kubepods-burstable-pod{STATIC}.slice:cri-containerd:{A}",
        pod(A, "containerd", "burstable", STATIC),
    ),
    (f"/kubepods-besteffort-pod{LOW}.slice:cri-containerd:{A}", pod(A, "containerd", "besteffort")),
    (f"/kubepods-pod{LOW}.slice:cri-containerd:{A}", pod(A, "containerd", "guaranteed")),
    (f"/kubepods-pod{LOW}.slice:cri-containerd:{A}/init", pod(A, "containerd", "guaranteed")),
    # The same with cri-dockerd.
    (
        f"/system.slice/docker.service/kubepods-besteffort-pod{LOW}.slice/{A}",
        pod(A, "", "besteffort"),
    ),
    (f"/system.slice:docker:{A}", alone(A, "docker")),
]
NESTED_NODES = [
    # kind, from inside of the node and from the machine.
    (f"{KIND}/cri-containerd-{A}.scope", pod(A, "containerd", "besteffort")),
    (
        f"/system.slice/docker-{B}.scope{KIND}/cri-containerd-{A}.scope",
        pod(A, "containerd", "besteffort"),
    ),
    (
        f"/docker/{B}/kubelet/kubepods/besteffort/pod{UID}/{A}",
        pod(A, "", "besteffort"),
    ),
    # k3d and minikube with docker, and with podman.
    (f"/docker/{B}/kubepods/burstable/pod{UID}/{A}", pod(A, "", "burstable")),
    (
        f"/system.slice/docker-{B}.scope{BURSTABLE}/docker-{A}.scope",
        pod(A, "docker", "burstable"),
    ),
    (
        f"/machine.slice/libpod-{B}.scope/container{BURSTABLE}/crio-{A}.scope",
        pod(A, "cri-o", "burstable"),
    ),
    # The node's own kubelet and runtime are in the node's container.
    (f"/system.slice/docker-{B}.scope/system.slice/kubelet.service", alone(B, "docker")),
    (f"/docker/{B}/init.scope", alone(B, "docker")),
    (f"/system.slice/docker-{B}.scope/kubelet.slice/kubelet-kubepods.slice", alone(B, "docker")),
    # A node inside of a pod: the pod that the outer cluster knows.
    (
        f"{BURSTABLE}/cri-containerd-{A}.scope/kubepods/besteffort/pod{STATIC}/{B}",
        pod(A, "containerd", "burstable"),
    ),
]
DEEPER = [
    (f"{BURSTABLE}/cri-containerd-{A}.scope/init.scope", pod(A, "containerd", "burstable")),
    (
        f"{BURSTABLE}/cri-containerd-{A}.scope/system.slice/nginx.service",
        pod(A, "containerd", "burstable"),
    ),
    # docker in a pod, both drivers.
    (f"{BURSTABLE}/cri-containerd-{A}.scope/docker/{B}", pod(A, "containerd", "burstable")),
    (
        f"/kubepods/burstable/pod{UID}/{A}/system.slice/docker-{B}.scope",
        pod(A, "", "burstable"),
    ),
    # docker in docker.
    (f"/docker/{A}/docker/{B}", alone(B, "docker")),
    (f"/system.slice/docker-{A}.scope/system.slice/docker-{B}.scope/init", alone(B, "docker")),
    (f"/docker/{A}/libpod_parent/libpod-conmon-{B}", alone(A, "docker")),
]
PLAIN_HOSTS = [
    (f"/docker/{A}", alone(A, "docker")),
    (f"/system.slice/docker-{A}.scope", alone(A, "docker")),
    (f"{USER}/user.slice/docker-{A}.scope", alone(A, "docker")),
    (f"/actions_job/{A}", alone(A, "")),
    (f"/{A}", alone(A, "")),
    (f"/default/{A}", alone(A, "")),
    (f"/ecs/0123456789abcdef0123456789abcdef/{A}", alone(A, "")),
    (f"/system.slice/nerdctl-{A}.scope", alone(A, "containerd")),
    (f"{USER}/user.slice/cri-containerd-{A}.scope", alone(A, "containerd")),
    (f"/machine.slice/libpod-{A}.scope", alone(A, "podman")),
    (f"/machine.slice/libpod-{A}.scope/container", alone(A, "podman")),
    (f"{USER}/user.slice/libpod-{A}.scope/container", alone(A, "podman")),
    (f"/libpod_parent/libpod-{A}", alone(A, "podman")),
    (f"/libpod_parent/{B}/libpod-{A}", alone(A, "podman")),
    (
        f"/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope/container",
        alone(A, "podman"),
    ),
    # Quadlet: --cgroups=split.
    (f"{USER}/app.slice/redis.service/libpod-payload-{A}", alone(A, "podman")),
    (f"/system.slice/nginx.service/libpod-payload-{A}/x", alone(A, "podman")),
]
AS_SHOWN_ELSEWHERE = [
    (f"/sys/fs/cgroup/systemd{BURSTABLE}/crio-{A}.scope", pod(A, "cri-o", "burstable")),
    (
        f"/../../../kubepods-besteffort.slice/kubepods-besteffort-pod{LOW}.slice/"
        f"cri-containerd-{A}.scope",
        pod(A, "containerd", "besteffort"),
    ),
    (f"{BURSTABLE}/cri-containerd-{A}.scope/", pod(A, "containerd", "burstable")),
    (f"{BURSTABLE}/cri-containerd-{A}.scope (deleted)", pod(A, "containerd", "burstable")),
]
NO_CONTAINERS = [
    "",
    "/",
    "/init.scope",
    "/system.slice/ssh.service",
    "/system.slice/containerd.service",
    "/system.slice/docker.service",
    f"{USER}/app.slice/app-org.gnome.Terminal.slice/vte-spawn-1.scope",
    "/kubepods",
    "/kubepods.slice",
    "/kubepods/burstable",
    "/kubepods.slice/kubepods-burstable.slice",
    "/kubelet.slice/kubelet-kubepods.slice",
    "/docker",
    "/docker/buildkit/0123456789abcdefghijklmno",
    "/libpod_parent",
    # Monitors, a pod of podman, and what --cgroups=split leaves beside a container.
    f"/libpod_parent/{A}",
    f"/machine.slice/machine-libpod_pod_{A}.slice",
    f"/machine.slice/libpod-conmon-{A}.scope",
    f"{USER}/user.slice/libpod-conmon-{A}.scope",
    f"/system.slice/crio-conmon-{A}.scope",
    f"{USER}/app.slice/redis.service/runtime",
    f"{USER}/user.slice/podman-239302.scope",
    # Nearly, but not.
    f"/docker/{A[:-1]}",
    f"/docker/{A}0",
    f"/docker/{A.upper()}",
    f"/docker-{A}.service",
    f"/burstable/pod{UID}",
    f"/kubepods/pod{UID}x",
    f"/kubepods/other/pod{UID}",
    f"/kubepods-pod{LOW}.scope",
    "/kubepods/burstable/pod-of-whales",
]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *KUBELET_SYSTEMD,
        *KUBELET_CGROUPFS,
        *DRIVERS_THAT_DIFFER,
        *NESTED_NODES,
        *DEEPER,
        *PLAIN_HOSTS,
        *AS_SHOWN_ELSEWHERE,
    ],
)
def test_path_of_a_real_host_is_read(path, expected):
    assert container_of(path) == expected


@pytest.mark.parametrize("path", NO_CONTAINERS)
def test_path_that_is_no_container_is_none(path):
    assert container_of(path) is None


IDS = st.text("0123456789abcdef", min_size=64, max_size=64)
UUIDS = st.uuids().map(str)
HASHES = st.text("0123456789abcdef", min_size=32, max_size=32)
CLASSES = st.sampled_from(["guaranteed", "burstable", "besteffort"])
RUNTIMES = st.sampled_from([("cri-containerd", "containerd"), ("crio", "cri-o"),
                            ("docker", "docker")])  # fmt: skip
NODES = st.sampled_from(["", f"/docker/{B}", f"/system.slice/docker-{B}.scope", "/../.."])
INSIDE = st.sampled_from(["", "/container", "/init.scope", f"/docker/{B}", f"{BURSTABLE}/{B}"])


def systemd_pod(root: str, uid: str, qos: str) -> str:
    """The kubelet's rule, written the other way round."""
    steps = [*filter(None, [root, "kubepods", "" if qos == "guaranteed" else qos]), f"pod{uid}"]
    names = [step.replace("-", "_") for step in steps]
    slices = ["-".join(names[: end + 1]) + ".slice" for end in range(len(names))]
    return "/" + "/".join(slices)


def cgroupfs_pod(root: str, uid: str, qos: str) -> str:
    """The kubelet's rule, written the other way round."""
    steps = [root, "kubepods", "" if qos == "guaranteed" else qos, f"pod{uid}"]
    return "/" + "/".join(filter(None, steps))


@given(
    uid=UUIDS | HASHES,
    container=IDS,
    qos=CLASSES,
    runtime=RUNTIMES,
    place=st.tuples(st.sampled_from(["", "kubelet", "my-pods"]), NODES, INSIDE),
)
@settings(deadline=None)
def test_pods_and_containers_come_back_from_every_layout(uid, container, qos, runtime, place):
    # GIVEN
    prefix, name = runtime
    root, node, inside = place
    systemd = systemd_pod(root, uid, qos)
    unread = systemd.rpartition("/")[2]
    cgroupfs = cgroupfs_pod(root, uid, qos)

    # WHEN / THEN
    said = ContainerPath(uid, container, name, qos)
    for path in (
        f"{systemd}/{prefix}-{container}.scope",
        f"/{unread}:{prefix}:{container}",
        f"/system.slice/containerd.service/{unread}:{prefix}:{container}",
        f"{cgroupfs}/{prefix}-{container}",
    ):
        assert container_of(node + path + inside) == said
    assert container_of(f"{node}{cgroupfs}/{container}{inside}") == pod(container, "", qos, uid)
    for path in (systemd, cgroupfs, f"{systemd}/crio-conmon-{container}.scope"):
        assert container_of(node + path) == pod("", "", qos, uid)


@given(
    container=IDS,
    layout=st.sampled_from(
        [
            ("/docker/{}", "docker"),
            ("/system.slice/docker-{}.scope", "docker"),
            ("/machine.slice/libpod-{}.scope", "podman"),
            ("/libpod_parent/libpod-{}", "podman"),
            ("/app.slice/web.service/libpod-payload-{}", "podman"),
            ("/system.slice/nerdctl-{}.scope", "containerd"),
            ("/default/{}", ""),
        ]
    ),
    above=st.sampled_from(["", f"/docker/{B}", f"/machine.slice/libpod-{B}.scope/container", USER]),
    inside=st.sampled_from(["", "/container", "/init.scope", "/system.slice/cron.service"]),
)
@settings(deadline=None)
def test_innermost_container_comes_back_from_plain_hosts(container, layout, above, inside):
    # GIVEN
    form, runtime = layout

    # WHEN
    found = container_of(above + form.format(container) + inside)

    # THEN
    assert found == alone(container, runtime)


PIECES = ["kubepods", "kubepods.slice", "burstable", ":", "-", "/", "..", ".slice", ".scope",
          "crio", "cri-containerd", "libpod", "libpod_parent", "docker", "conmon", "pod", A, UID,
          LOW, STATIC, BURSTABLE, "\n", "\udcff", " (deleted)"]  # fmt: skip


@given(path=st.text() | st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@settings(deadline=None, max_examples=500)
def test_any_text_gives_ids_of_the_right_form_or_none(path):
    # WHEN
    found = container_of(path)

    # THEN
    if found is None:
        return
    assert found.pod_uid or found.container_id
    assert len(found.container_id) in (0, 64)
    assert not found.pod_uid or uuid.UUID(found.pod_uid).hex == found.pod_uid.replace("-", "")
    assert bool(found.qos) == bool(found.pod_uid)
