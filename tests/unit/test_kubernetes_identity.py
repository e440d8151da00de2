# SPDX-License-Identifier: Apache-2.0
"""Names of pods, owners, Services and peers, after changes in any order."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from fake_api_server import FakeApiServer
from fake_api_server import Refuse
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from podscope.identity import kubernetes
from podscope.identity.kubernetes import Cluster
from podscope.identity.kubernetes import ContainerName
from podscope.identity.kubernetes import Jobs
from podscope.identity.kubernetes import Owner
from podscope.identity.kubernetes import Peer
from podscope.identity.kubernetes import ServiceName
from podscope.identity.kubernetes import ServicePortName
from podscope.identity.kubernetes import address_key
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.kubernetes_objects import EndpointSlice
from podscope.identity.kubernetes_objects import Job
from podscope.identity.kubernetes_objects import Metadata
from podscope.identity.kubernetes_objects import Namespace
from podscope.identity.kubernetes_objects import Node
from podscope.identity.kubernetes_objects import PeerPod
from podscope.identity.kubernetes_objects import PeerSpec
from podscope.identity.kubernetes_objects import PeerStatus
from podscope.identity.kubernetes_objects import Pod
from podscope.identity.kubernetes_objects import PodIP
from podscope.identity.kubernetes_objects import Service

FIRST = "1" * 64
SECOND = "2" * 64
IGNORE = {"podscope.dev/ignore": "true"}


def pod_json(name, uid="", *, owner=(), labels=None, annotations=None, ips=(), node="node-1",
             host_network=False, containers=None, phase="Running", created="",
             deleted=None):  # fmt: skip
    """A pod as the API server writes it. ``owner`` is kind, name, uid; containers by id."""
    kind, owner_name, owner_uid = (*owner, "", "", "")[:3]
    metadata = {
        "name": name,
        "namespace": "shop",
        "uid": uid or name,
        "creationTimestamp": created or None,
        "deletionTimestamp": deleted,
        "labels": labels or {},
        "annotations": {"example.com/large": "{}", **(annotations or {})},
        "ownerReferences": [
            {"kind": "Other", "name": "not-the-controller", "uid": "x"},
            {"kind": kind, "name": owner_name, "uid": owner_uid, "controller": True},
        ][: 2 if kind else 1],
    }  # fmt: skip
    statuses = [
        {"name": name, "containerID": f"containerd://{id_}", "state": {"running": {}}}
        for id_, name in (containers or {}).items()
    ]
    status = {"phase": phase, "podIPs": [{"ip": ip} for ip in ips], "containerStatuses": statuses}
    spec = {"nodeName": node, "hostNetwork": host_network, "containers": [{"name": "c"}]}
    return {"metadata": metadata, "spec": spec, "status": status}


def a_pod(name, uid="", **facts):
    return msgspec.convert(pod_json(name, uid, **facts), Pod)


def a_service(name, *, ips=(), ports=((80, "", 8080),), namespace="shop", uid=""):
    """A Service; its ports are number, name, target."""
    ports = [{"port": p, "name": n, "targetPort": t} for p, n, t in ports]
    metadata = {"name": name, "namespace": namespace, "uid": uid or f"service-{name}"}
    return msgspec.convert(
        {"metadata": metadata, "spec": {"clusterIPs": list(ips), "ports": ports}}, Service
    )


def a_slice(name, service, pods, *, ports=(("", 8080),), ready=True):
    """A slice of a Service with pods by uid; its ports are name and number."""
    endpoints = [
        {"addresses": ["10.0.0.1"], "conditions": {"ready": ready},
         "targetRef": {"kind": "Pod", "name": uid, "namespace": "shop", "uid": uid}}
        for uid in pods
    ]  # fmt: skip
    labels = {"kubernetes.io/service-name": service} if service else {}
    metadata = {"name": name, "namespace": "shop", "uid": f"slice-{name}", "labels": labels}
    ports = [{"name": name, "port": port, "protocol": "TCP"} for name, port in ports]
    content = {"metadata": metadata, "endpoints": endpoints or None, "ports": ports or None}
    return msgspec.convert(content, EndpointSlice)


def a_node(name, ips=(), annotations=None, uid=""):
    addresses = [{"type": "InternalIP", "address": ip} for ip in ips]
    addresses.append({"type": "Hostname", "address": name})
    metadata = {"name": name, "uid": uid or f"node-{name}", "annotations": annotations or {}}
    return msgspec.convert({"metadata": metadata, "status": {"addresses": addresses}}, Node)


def a_namespace(name, annotations=None):
    metadata = {"name": name, "uid": f"namespace-{name}", "annotations": annotations or {}}
    return msgspec.convert({"metadata": metadata}, Namespace)


def a_job(name, uid, cron_job=""):
    owners = [{"kind": "CronJob", "name": cron_job, "uid": "c", "controller": True}]
    metadata = {"name": name, "namespace": "shop", "uid": uid}
    metadata["ownerReferences"] = owners if cron_job else []
    return msgspec.convert({"metadata": metadata}, Job)


class Clock:
    """Seconds that a test moves on."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cluster(clock):
    return Cluster(clock=clock)


# --- pods and containers ------------------------------------------------------------------------


def test_container_is_found_by_its_id_with_and_without_pod(cluster):
    # GIVEN
    pod = a_pod("web", "u1", containers={FIRST: "app", SECOND: "proxy"})
    cluster.pod_changed(None, pod)

    # WHEN / THEN
    assert cluster.pod("u1") is pod
    assert cluster.container(FIRST) == ContainerName(pod, "app")
    assert cluster.container(f"containerd://{SECOND}", "u1") == ContainerName(pod, "proxy")
    assert cluster.container(FIRST, "another") is None
    assert cluster.container("3" * 64, "u1") is None
    assert cluster.pod("none") is None and cluster.container("") is None


def test_init_and_ephemeral_containers_have_names(cluster):
    # GIVEN
    content = pod_json("web")
    content["status"]["initContainerStatuses"] = [{"name": "i", "containerID": "cri-o://aa"}]
    content["status"]["ephemeralContainerStatuses"] = [{"name": "e", "containerID": "docker://bb"}]
    content["status"]["containerStatuses"] = [{"name": "waits", "state": {"waiting": {}}}]

    # WHEN
    cluster.pod_changed(None, msgspec.convert(content, Pod))

    # THEN
    assert [cluster.container(one).name for one in ("aa", "bb")] == ["i", "e"]


def test_restarted_container_is_known_by_its_old_id_for_a_while(cluster, clock):
    # GIVEN
    old, new = a_pod("web", containers={FIRST: "app"}), a_pod("web", containers={SECOND: "app"})
    cluster.pod_changed(None, old)

    # WHEN
    cluster.pod_changed(old, new)

    # THEN
    assert cluster.container(FIRST) == cluster.container(SECOND) == ContainerName(new, "app")
    assert cluster.container(FIRST, "web") == ContainerName(new, "app")
    assert cluster.container(FIRST, "another") is None
    clock.now += 301
    assert cluster.container(FIRST) is None
    assert cluster.container(SECOND) is not None


def test_deleted_pod_is_kept_with_all_its_names_and_then_forgotten(cluster, clock):
    # GIVEN
    pod = a_pod("web", "u1", ips=["10.0.0.1"], containers={FIRST: "app"})
    behind = a_slice("s", "shop", ["u1"])
    cluster.pod_changed(None, pod)
    cluster.slice_changed(None, behind)

    # WHEN
    cluster.pod_changed(pod, None)
    cluster.slice_changed(behind, a_slice("s", "shop", []))

    # THEN
    clock.now += 299
    assert cluster.pod("u1") is pod
    assert cluster.container(FIRST).name == "app"
    assert cluster.peer("10.0.0.1").kind == "pod"
    assert cluster.services(pod) == (ServiceName("shop", "shop"),)
    clock.now += 2
    assert cluster.pod("u1") is None
    assert cluster.container(FIRST) is None
    assert cluster.peer("10.0.0.1").kind == "external"
    assert cluster.services(pod) == ()


def test_pod_that_comes_back_is_not_forgotten(cluster, clock):
    # GIVEN
    pod = a_pod("web")
    cluster.pod_changed(None, pod)

    # WHEN
    cluster.pod_changed(pod, None)
    cluster.pod_changed(None, pod)
    clock.now += 1000

    # THEN
    assert cluster.pod("web") is pod


def test_deleted_pods_and_old_containers_are_bounded(clock):
    # GIVEN
    cluster = Cluster(clock=clock, keep_most=10)
    for number in range(50):
        pod = a_pod(f"p{number}", containers={f"{number:064}": "c"})
        cluster.pod_changed(None, pod)
        cluster.pod_changed(pod, None)

    # WHEN
    again = a_pod("lives", containers={FIRST: "c"})
    for number in range(100, 150):
        new = a_pod("lives", containers={f"{number:064}": "c"})
        cluster.pod_changed(again, new)
        again = new

    # THEN
    known = [number for number in range(50) if cluster.pod(f"p{number}")]
    assert known == list(range(40, 50))
    kept = [number for number in range(100, 150) if cluster.container(f"{number:064}")]
    assert kept == list(range(139, 150))


def test_static_pod_is_known_by_the_uid_that_its_cgroup_has(cluster):
    # GIVEN the kubelet's uid of a static pod is the hash of its file
    mirror = a_pod("etcd-node-1", "api-uid", owner=("Node", "node-1"), containers={FIRST: "etcd"},
                   annotations={"kubernetes.io/config.mirror": "a" * 32})  # fmt: skip

    # WHEN
    cluster.pod_changed(None, mirror)

    # THEN
    assert cluster.pod("a" * 32) is cluster.pod("api-uid") is mirror
    assert cluster.container(FIRST, "a" * 32).name == "etcd"
    assert cluster.owner(mirror) == Owner("Node", "node-1")


# --- owners -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "labels", "expected"),
    [
        (("ReplicaSet", "web-5d4f"), {"pod-template-hash": "5d4f"}, Owner("Deployment", "web")),
        (("ReplicaSet", "a-b-5d"), {"pod-template-hash": "5d"}, Owner("Deployment", "a-b")),
        (("ReplicaSet", "web-5d4f"), {"pod-template-hash": "other"}, None),
        (("ReplicaSet", "web-5d4f"), {"pod-template-hash": ""}, None),
        (("ReplicaSet", "web-5d4f"), {}, None),
        (("ReplicaSet", "-5d4f"), {"pod-template-hash": "5d4f"}, None),
        (("StatefulSet", "db"), {"pod-template-hash": "x"}, None),
        (("DaemonSet", "agent"), {}, None),
        (("Rollout", "mine"), {}, None),
        (("Job", "once"), {}, None),
        ((), {}, Owner("Pod", "p")),
    ],
)
def test_owner_is_what_people_deployed(cluster, owner, labels, expected):
    # GIVEN / WHEN
    found = cluster.owner(a_pod("p", owner=(*owner, "u")[: 3 if owner else 0], labels=labels))

    # THEN
    assert found == (expected or Owner(*owner))


def test_job_is_looked_up_once_for_its_cron_job(clock):
    # GIVEN
    asked = []
    jobs = {"nightly-1": a_job("nightly-1", "j1", "nightly"), "once": a_job("once", "j2")}

    def find(namespace, name):
        asked.append((namespace, name))
        return jobs.get(name)

    cluster = Cluster(find, clock=clock)

    # WHEN
    found = [
        cluster.owner(a_pod("p", owner=("Job", name, uid)))
        for name, uid in [("nightly-1", "j1"), ("once", "j2"), ("gone", "j3"), ("once", "older")]
        for _ in range(3)
    ]

    # THEN
    assert found[::3] == found[1::3] == found[2::3]
    assert found[::3] == [Owner("CronJob", "nightly"), Owner("Job", "once"), Owner("Job", "gone"),
                          Owner("Job", "once")]  # fmt: skip
    assert asked == [("shop", name) for name in ("nightly-1", "once", "gone", "once")]


@pytest.mark.parametrize(("status", "pause"), [(403, 600), (0, 60), (500, 60)])
def test_jobs_are_not_asked_for_again_and_again_where_that_fails(clock, status, pause):
    # GIVEN
    asked = []

    def find(namespace, name):
        asked.append(name)
        if len(asked) == 1:
            raise KubernetesError("no", status)
        return a_job(name, "j", "nightly")

    cluster = Cluster(find, clock=clock)
    pod = a_pod("p", owner=("Job", "nightly-1", "j"))

    # WHEN
    before = [cluster.owner(pod) for _ in range(3)]
    clock.now += pause - 1
    still = cluster.owner(pod)
    clock.now += 2
    after = cluster.owner(pod)

    # THEN
    assert [*before, still] == [Owner("Job", "nightly-1")] * 4
    assert after == Owner("CronJob", "nightly")
    assert len(asked) == 2


def test_jobs_come_from_the_api_server():
    # GIVEN
    with FakeApiServer() as server:
        job = msgspec.to_builtins(a_job("nightly-1", "j", "nightly"))
        server.put("apis/batch/v1/jobs", job)
        jobs = Jobs(ApiServer(server.url))

        # WHEN
        found = jobs.find("shop", "nightly-1")
        none = jobs.find("shop", "other")
        server.faults.append(Refuse("get", 403, "Forbidden"))
        with pytest.raises(KubernetesError) as refused:
            jobs.find("shop", "nightly-1")
        jobs.close()

        # THEN
        assert found.metadata.controller.name == "nightly"
        assert none is None
        assert refused.value.status == 403
        with pytest.raises(KubernetesError, match="closed"):
            jobs.find("shop", "nightly-1")


# --- Services -----------------------------------------------------------------------------------


def test_pod_in_several_services_is_credited_to_each_once(cluster):
    # GIVEN
    pod = a_pod("web", "u1")
    cluster.service_changed(None, a_service("web", ports=[(80, "http", 8080), (90, "adm", 9090)]))
    cluster.service_changed(None, a_service("all", ports=[(81, "", 8080)]))

    # WHEN
    cluster.slice_changed(None, a_slice("v4", "web", ["u1"], ports=[("http", 8080), ("adm", 9090)]))
    cluster.slice_changed(None, a_slice("v6", "web", ["u1"], ports=[("http", 8080), ("adm", 9090)]))
    cluster.slice_changed(None, a_slice("all", "all", ["u1", "u2"], ready=False))
    cluster.slice_changed(None, a_slice("mine", "", ["u1"]))

    # THEN
    assert cluster.services(pod) == (ServiceName("shop", "all"), ServiceName("shop", "web"))
    assert cluster.service_ports(pod, 8080) == (
        ServicePortName("shop", "all", "", 81),
        ServicePortName("shop", "web", "http", 80),
    )
    assert cluster.service_ports(pod, 9090) == (ServicePortName("shop", "web", "adm", 90),)
    assert cluster.service_ports(pod, 7070) == ()
    assert cluster.service_ports(pod, 8080, "UDP") == ()
    assert cluster.target_ports(pod) == {"all": (8080,), "web": (8080, 9090)}


def test_two_ports_to_one_target_are_credited_once(cluster):
    # GIVEN
    pod = a_pod("web", "u1")
    cluster.service_changed(None, a_service("web", ports=[(443, "tls", 8080), (80, "http", 8080)]))

    # WHEN
    cluster.slice_changed(None, a_slice("s", "web", ["u1"], ports=[("tls", 8080), ("http", 8080)]))

    # THEN
    assert cluster.service_ports(pod, 8080) == (ServicePortName("shop", "web", "http", 80),)
    assert cluster.target_ports(pod) == {"web": (8080,)}


def test_service_that_is_not_known_has_a_name_and_no_number(cluster):
    # GIVEN / WHEN
    cluster.slice_changed(None, a_slice("s", "web", ["u1"], ports=[("http", 8080)]))

    # THEN
    found = cluster.service_ports(a_pod("web", "u1"), 8080)
    assert found == (ServicePortName("shop", "web", "http", 0),)


def test_port_without_a_number_leads_to_every_port(cluster):
    # GIVEN / WHEN
    cluster.slice_changed(None, a_slice("s", "web", ["u1"], ports=[("any", None)]))
    cluster.slice_changed(None, a_slice("t", "none", ["u1"], ports=[]))

    # THEN
    pod = a_pod("web", "u1")
    assert cluster.target_ports(pod) == {"web": ()}
    assert cluster.service_ports(pod, 8080) == (ServicePortName("shop", "web", "any", 0),)
    assert cluster.services(pod) == (ServiceName("shop", "none"), ServiceName("shop", "web"))


def test_living_pod_that_leaves_a_service_is_no_longer_credited(cluster):
    # GIVEN
    pod, behind = a_pod("web", "u1"), a_slice("s", "web", ["u1"])
    cluster.pod_changed(None, pod)
    cluster.slice_changed(None, behind)

    # WHEN
    cluster.slice_changed(behind, a_slice("s", "web", []))

    # THEN
    assert cluster.services(pod) == ()


def test_pod_that_is_about_to_go_keeps_its_services(cluster):
    # GIVEN
    pod, behind = a_pod("web", "u1"), a_slice("s", "web", ["u1"])
    ending = a_pod("web", "u1", deleted="2026-01-01T00:00:00Z")
    cluster.service_changed(None, a_service("web"))
    cluster.pod_changed(None, pod)
    cluster.slice_changed(None, behind)

    # WHEN
    cluster.pod_changed(pod, ending)
    cluster.slice_changed(behind, None)

    # THEN
    assert cluster.services(ending) == (ServiceName("shop", "web"),)
    assert cluster.service_ports(ending, 8080) == (ServicePortName("shop", "web", "", 80),)
    cluster.pod_changed(ending, pod)
    assert cluster.services(pod) == ()


# --- peers --------------------------------------------------------------------------------------


def test_peer_is_pod_service_node_or_external(cluster):
    # GIVEN
    cluster.pod_changed(None, a_pod("web", "u1", ips=["10.0.0.1", "fd00::1"]))
    cluster.pod_changed(None, a_pod("agent", "u2", ips=["192.0.2.1"], host_network=True))
    cluster.service_changed(None, a_service("web", ips=["10.96.0.1", "fd00:96::1"]))
    cluster.service_changed(None, a_service("headless", ips=["None"]))
    cluster.node_changed(None, a_node("node-1", ["192.0.2.1", "2001:db8::1"]))

    # WHEN
    found = {one: cluster.peer(one) for one in ("10.0.0.1", "fd00:0::1", "::ffff:10.0.0.1",
             "10.96.0.1", "FD00:96::1", "192.0.2.1", "2001:db8::1", "198.51.100.7")}  # fmt: skip

    # THEN
    assert (found["10.0.0.1"].kind, found["10.0.0.1"].uid) == ("pod", "u1")
    assert found["10.0.0.1"].owner == Owner("Pod", "web")
    assert found["fd00:0::1"] == replace(found["10.0.0.1"], address="fd00::1")
    assert found["::ffff:10.0.0.1"] == found["10.0.0.1"]
    assert found["10.96.0.1"] == Peer("service", "10.96.0.1", "shop", "web", "service-web")
    assert found["FD00:96::1"].address == "fd00:96::1"
    assert found["192.0.2.1"] == Peer("node", "192.0.2.1", "", "node-1", "node-node-1")
    assert found["2001:db8::1"].kind == "node"
    assert found["198.51.100.7"] == Peer("external", "198.51.100.7")
    assert cluster.peer(b"\x0a\0\0\1") == cluster.peer(b"\0" * 10 + b"\xff\xff\x0a\0\0\1")


def a_peer_pod(name: str, uid: str, ip: str, node: str = "node-2", **more: str) -> PeerPod:
    metadata = Metadata(name=name, namespace="shop", uid=uid, **more)
    return PeerPod(metadata, PeerSpec(node), PeerStatus("Running", (PodIP(ip),)))


def test_a_pod_of_another_node_is_known_by_its_address_alone(cluster):
    # GIVEN
    pod = a_peer_pod("web", "u1", "10.0.0.1")
    before = cluster.addresses_version

    # WHEN
    cluster.peer_pod_changed(None, pod)

    # THEN
    found = cluster.peer("10.0.0.1")
    assert (found.kind, found.name, found.node) == ("pod", "web", "node-2")
    assert cluster.pod("u1") is None
    assert cluster.addresses() == {address_key("10.0.0.1")}
    assert cluster.addresses_version > before


def test_a_pod_that_is_bound_to_this_node_stays_known(cluster, clock):
    # GIVEN a pod that no node has yet, seen as one of others
    waiting = a_peer_pod("web", "u1", "", node="")
    cluster.peer_pod_changed(None, waiting)

    # WHEN it is bound here: the one watch tells of it before the other one forgets it
    cluster.pod_changed(None, a_pod("web", "u1", ips=["10.0.0.1"]))
    cluster.peer_pod_changed(waiting, None)
    clock.now += 1000

    # THEN
    assert cluster.pod("u1") is not None
    assert cluster.peer("10.0.0.1").name == "web"


def test_an_address_is_the_pods_that_has_it_now(cluster, clock):
    # GIVEN a pod that has gone from another node, whose address is another's by now
    old = a_peer_pod("old", "u1", "10.0.0.1", creation_timestamp="2026-01-02T00:00:00Z")
    cluster.peer_pod_changed(None, old)
    cluster.peer_pod_changed(old, None)
    assert cluster.peer("10.0.0.1").name == "old"

    # WHEN
    cluster.pod_changed(None, a_pod("new", "u2", ips=["10.0.0.1"]))

    # THEN
    assert cluster.peer("10.0.0.1").name == "new"
    cluster.pod_changed(a_pod("new", "u2", ips=["10.0.0.1"]), None)
    clock.now += 1000
    assert cluster.peer("10.0.0.1").kind == "external"
    assert cluster.addresses() == frozenset()


@pytest.mark.parametrize(
    "wrong", ["", "None", "node-1", "10.0.0", "10.0.0.256", "::g", b"", b"123"]
)
def test_what_is_no_address_is_said(cluster, wrong):
    with pytest.raises(ValueError, match="address"):
        cluster.peer(wrong)


@given(address=st.ip_addresses())
def test_every_address_has_one_form(address):
    # GIVEN / WHEN
    text = kubernetes.address_text(kubernetes.address_key(str(address)))

    # THEN
    assert kubernetes.address_key(text) == kubernetes.address_key(address.packed)
    mapped = getattr(address, "ipv4_mapped", None)
    assert text == str(mapped or text)


def test_address_goes_to_the_pod_that_runs_and_then_to_the_newest(cluster):
    # GIVEN
    done = a_pod("done", ips=["10.0.0.1"], phase="Succeeded", created="2026-01-03T00:00:00Z")
    old = a_pod("old", ips=["10.0.0.1"], created="2026-01-01T00:00:00Z")
    new = a_pod("new", ips=["10.0.0.1"], created="2026-01-02T00:00:00Z")

    # WHEN
    names = []
    cluster.pod_changed(None, done)
    names.append(cluster.peer("10.0.0.1").name)
    for pod in (new, old):
        cluster.pod_changed(None, pod)
        names.append(cluster.peer("10.0.0.1").name)
    cluster.pod_changed(new, None)
    names.append(cluster.peer("10.0.0.1").name)

    # THEN
    assert names == ["done", "new", "new", "old"]


# --- ignored ------------------------------------------------------------------------------------


@pytest.mark.parametrize("annotation", ["podscope.dev/ignore", "owlk8s/ignore"])
@pytest.mark.parametrize("where", ["pod", "namespace", "node"])
@pytest.mark.parametrize(("value", "expected"), [("true", True), ("false", False), ("True", False)])
def test_annotation_of_pod_namespace_or_node_says_ignore(
    cluster, annotation, where, value, expected
):
    # GIVEN
    said = {annotation: value}
    pod = a_pod("web", annotations=said if where == "pod" else None)
    cluster.pod_changed(None, pod)

    # WHEN
    cluster.namespace_changed(None, a_namespace("shop", said if where == "namespace" else None))
    cluster.node_changed(None, a_node("node-1", annotations=said if where == "node" else None))

    # THEN
    assert cluster.ignored(pod) is expected


def test_ignoring_ends_with_the_annotation(cluster):
    # GIVEN
    pod, loud, quiet = a_pod("web"), a_namespace("shop"), a_namespace("shop", IGNORE)
    cluster.namespace_changed(None, quiet)
    before = cluster.ignored(pod)

    # WHEN
    cluster.namespace_changed(quiet, loud)

    # THEN
    assert before and not cluster.ignored(pod)


# --- any order ----------------------------------------------------------------------------------

ADDRESSES = ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"]
TEXTS = st.lists(st.sampled_from(ADDRESSES), max_size=2, unique=True)
SAID = st.sampled_from([{}, IGNORE])
UIDS = st.sampled_from(["u1", "u2", "u3", "u4"])
PODS = st.builds(
    a_pod,
    st.just("p"),
    UIDS,
    ips=TEXTS,
    host_network=st.booleans(),
    annotations=st.sampled_from([{}, IGNORE, {"kubernetes.io/config.mirror": "m1"}]),
    containers=st.dictionaries(
        st.sampled_from([FIRST, SECOND]), st.sampled_from(["a", "b"]), max_size=2
    ),
    phase=st.sampled_from(["Pending", "Running", "Failed"]),
    created=st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]),
)
SERVICES = st.builds(
    a_service, st.sampled_from(["s1", "s2"]), ips=TEXTS, ports=st.sampled_from([((80, "", 1),), ()])
)
SLICES = st.builds(
    a_slice,
    st.sampled_from(["x", "y", "z"]),
    st.sampled_from(["s1", "s2", ""]),
    st.lists(UIDS, max_size=3),
    ports=st.sampled_from([(("", 8080),), (("web", 8080), ("", 90)), ()]),
)
NODES = st.builds(a_node, st.sampled_from(["node-1", "node-2"]), TEXTS, SAID)
NAMESPACES = st.builds(a_namespace, st.sampled_from(["shop", "other"]), SAID)
# A change, or only the uid of an object to delete; and the clock may go on before.
THINGS = st.one_of(PODS, SERVICES, SLICES, NODES, NAMESPACES)
STEPS = st.lists(st.tuples(THINGS, st.booleans(), st.sampled_from([0, 0, 0, 400])), max_size=40)


def tell(cluster, old, new):
    """Calls the method for the object's sort."""
    methods = {
        Pod: cluster.pod_changed,
        Service: cluster.service_changed,
        EndpointSlice: cluster.slice_changed,
        Node: cluster.node_changed,
        Namespace: cluster.namespace_changed,
    }
    methods[type(new if new is not None else old)](old, new)


def answers(cluster, store):
    """All that a cluster says. What two pods claim may go to either of two that are alike."""
    pods = [one for one in store.values() if isinstance(one, Pod)]
    return {
        "pods": {uid: cluster.pod(uid) for uid in ("u1", "u2", "u3", "u4", "m1")},
        "containers": {one: cluster.container(one) for one in (FIRST, SECOND)},
        "services": {one.metadata.uid: cluster.services(one) for one in pods},
        "ports": {one.metadata.uid: cluster.service_ports(one, 8080) for one in pods},
        "targets": {one.metadata.uid: cluster.target_ports(one) for one in pods},
        "peers": {one: cluster.peer(one).kind for one in ADDRESSES},
        "pod_peers": {one: cluster.peer(one) for one in ADDRESSES
                      if cluster.peer(one).kind == "pod"},
        "ignored": {one.metadata.uid: cluster.ignored(one) for one in pods},
    }  # fmt: skip


@given(steps=STEPS, relist=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=300)
def test_any_sequence_of_changes_gives_what_the_final_state_gives(steps, relist):
    # GIVEN
    clock = Clock()
    cluster, store = Cluster(clock=clock), {}

    # WHEN
    for thing, delete, seconds in steps:
        clock.now += seconds
        uid = thing.metadata.uid
        old, new = store.pop(uid, None), None if delete else thing
        if old is None and new is None:
            continue
        if new is not None:
            store[uid] = new
        tell(cluster, old, new)
    clock.now += 400
    final = list(store.values())
    relist.shuffle(final)
    fresh = Cluster(clock=clock)
    for one in final:
        tell(fresh, None, one)

    # THEN
    cluster.pod("")
    without_kept_services(cluster, store)
    assert answers(cluster, store) == answers(fresh, store)
    for name in vars(cluster):
        if isinstance(getattr(cluster, name), kubernetes._Claims):
            claims, expected = getattr(cluster, name)._claims, getattr(fresh, name)._claims
            assert {k: set(v) for k, v in claims.items()} == {
                k: set(v) for k, v in expected.items()
            }


def without_kept_services(cluster, store):
    """Pods that have ended keep the Services of before; the final state can't know them."""
    for uid in list(cluster._last_memberships):
        assert uid in store and store[uid].ending
        del cluster._last_memberships[uid]


def test_deleting_everything_leaves_nothing_behind(cluster, clock):
    # GIVEN
    things = [
        a_pod("web", "u1", ips=["10.0.0.1"], containers={FIRST: "a"}),
        a_service("web", ips=["10.96.0.1"]),
        a_slice("s", "web", ["u1"]),
        a_node("node-1", ["192.0.2.1"]),
        a_namespace("shop"),
    ]
    for one in things:
        tell(cluster, None, one)

    # WHEN
    for one in things:
        tell(cluster, one, None)
    clock.now += 301
    cluster.pod("u1")

    # THEN
    held = {name: len(value) for name, value in vars(cluster).items() if hasattr(value, "__len__")}
    assert {name: size for name, size in held.items() if size} == {}


# --- together -----------------------------------------------------------------------------------


def test_reflectors_tell_a_cluster_what_a_server_says():
    # GIVEN
    with FakeApiServer() as server:
        paths = {
            "api/v1/pods": [a_pod("web", "u1", ips=["10.0.0.1"]), a_pod("far", node="node-2")],
            "api/v1/services": [a_service("web", ips=["10.96.0.1"])],
            "api/v1/namespaces": [a_namespace("shop", IGNORE)],
            "api/v1/nodes": [a_node("node-1", ["192.0.2.1"])],
            "apis/discovery.k8s.io/v1/endpointslices": [a_slice("s", "web", ["u1"])],
        }
        for path, things in paths.items():
            for thing in things:
                server.put(path, msgspec.to_builtins(thing))
        cluster = Cluster()

        # WHEN
        followers = kubernetes.follow(cluster, ApiServer(server.url), node="node-1")
        whole = followers.wait(20.0)
        followers.close()

        # THEN
        assert whole
        pod = cluster.pod("u1")
        assert cluster.ignored(pod)
        assert cluster.services(pod) == (ServiceName("shop", "web"),)
        assert [cluster.peer(one).kind for one in ("10.0.0.1", "10.96.0.1", "192.0.2.1")] == [
            "pod", "service", "node",
        ]  # fmt: skip
        assert cluster.pod("far") is None
