# SPDX-License-Identifier: Apache-2.0
"""What goes wrong below HTTP, of pods on all nodes of a real cluster."""

from __future__ import annotations

import pytest
from workloads import SPACE
from workloads import Watching
from workloads import agents
from workloads import asking
from workloads import container
from workloads import counts
from workloads import create
from workloads import delete
from workloads import finish
from workloads import job
from workloads import log
from workloads import measured
from workloads import page
from workloads import pod
from workloads import pods
from workloads import python
from workloads import running
from workloads import wait

from podscope.identity.kubernetes_client import KubernetesError

pytestmark = pytest.mark.usefixtures("installed")

LIMITED = {"limits": {"memory": "48Mi"}}
# Its child outgrows the limit; it lives on, or dies of it too.
GREEDY = "import os, time; x = bytearray(200 << 20); time.sleep(60)"
CHILD = f"""
import os, subprocess, sys, time
subprocess.run([sys.executable, "-c", {GREEDY!r}])
time.sleep(1)
{GREEDY}
"""

# Accepts nothing; tells again and again what the kernel has counted in the pod.
STUCK = """
import socket, time
listener = socket.create_server(("", 7000), backlog=2)
while True:
    heads, values = [l.split() for l in open("/proc/net/netstat") if l.startswith("TcpExt:")]
    told = dict(zip(heads, values))
    print(told["ListenOverflows"], told["ListenDrops"], flush=True)
    time.sleep(0.5)
"""
# So many connections at once, for a while; how many are there is the kernel's business.
CROWD = """
import socket, time
ends = []
for _ in range(20):
    end = socket.socket()
    end.setblocking(False)
    end.connect_ex(("{address}", 7000))
    ends.append(end)
time.sleep(5)
"""


def status_of(cluster, name: str) -> dict:
    place = f"api/v1/namespaces/{SPACE}/pods/{name}"
    found = cluster.get(place)["status"].get("containerStatuses", ())
    return next((one["state"].get("terminated", {}) for one in found), {})


def test_each_kill_for_memory_has_its_pod_and_container(cluster):
    # GIVEN
    with Watching(cluster, "oom", "-n", SPACE, command="events") as watching:
        # WHEN the first process of a container outgrows its limit, and in another one the second
        alone = container("alone", python(GREEDY), resources=LIMITED)
        both = container("both", python(CHILD), resources=LIMITED)
        create(cluster, pod("greedy", alone, restartPolicy="Never"))
        create(cluster, pod("family", both, restartPolicy="Never"))
        wait(lambda: all(status_of(cluster, name) for name in ("greedy", "family")))
        rows = watching.rows()

    # THEN there is a row for each kill, as Kubernetes says itself
    reasons = {name: status_of(cluster, name)["reason"] for name in ("greedy", "family")}
    for name in reasons:
        delete(cluster, f"api/v1/namespaces/{SPACE}/pods/{name}")
    assert reasons == {"greedy": "OOMKilled", "family": "OOMKilled"}
    names = ("k8s.pod.name", "k8s.container.name")
    kills = counts([row for row in rows if row["kind"] == "oom"], *names)
    assert kills == {("greedy", "alone"): 1, ("family", "both"): 2}
    assert {row["podscope.oom.limit"] for row in rows} == {48 << 20}


def test_listeners_are_those_of_the_pods(cluster):
    # GIVEN / WHEN
    with Watching(cluster, "deploy/web", "-n", SPACE, command="listen") as watching:
        rows = watching.rows()

    # THEN
    seen = {(row["k8s.pod.name"], row["server.port"]) for row in rows}
    assert seen == {(name, 8080) for name in running(cluster, "app=web")}


def test_connections_and_lookups_have_their_pods_and_peers(cluster):
    # GIVEN
    with (
        Watching(cluster, "life", "-n", SPACE, command="tcp") as life,
        Watching(cluster, "--each", "-n", SPACE, command="dns") as lookups,
    ):
        # WHEN a job makes five connections
        finish(cluster, job("connect", asking("web:80", 10, connections=5)))
        rows, asked = life.rows(), lookups.rows()

    # THEN they are there from both sides
    peer = ("k8s.deployment.name", "service.peer.name")
    assert counts(rows, *peer) == {("web", "connect"): 5}
    peer = ("k8s.job.name", "service.peer.name", "podscope.peer.kind")
    assert counts(rows, *peer, side="client") == {("connect", "web", "service"): 5}
    names = [row for row in asked if row.get("k8s.job.name") == "connect"]
    web = [row for row in names if row["dns.question.name"] == f"web.{SPACE}.svc.cluster.local"]
    assert len(web) >= 5


# --- always, without anybody who asks ---------------------------------------------------------


def test_a_kill_is_in_the_metrics_of_the_agents_with_its_pod(cluster):
    # GIVEN / WHEN
    alone = container("alone", python(GREEDY), resources=LIMITED)
    create(cluster, pod("measured", alone, restartPolicy="Never"))
    wait(lambda: status_of(cluster, "measured"))

    # THEN there is one, on one node
    labels = {"k8s_pod_name": "measured", "k8s_container_name": "alone"}
    kills = "podscope_oom_kills_total"
    wait(lambda: measured(cluster, kills, **labels, podscope_oom_scope="memcg") == 1)
    assert measured(cluster, kills, **labels, k8s_namespace_name=SPACE) == 1
    delete(cluster, f"api/v1/namespaces/{SPACE}/pods/measured")


def counted(cluster, name: str) -> tuple[int, int]:
    """Overflows and drops as the kernel counts them in a pod; none before it has begun."""
    try:
        lines = log(cluster, name).split(b"\n")
    except KubernetesError:
        return -1, -1
    told = lines[-2].split() if len(lines) > 1 else (b"-1", b"-1")
    return int(told[0]), int(told[1])


def test_a_queue_that_overflows_is_in_the_metrics_with_the_listeners_pod(cluster):
    # GIVEN a pod that listens and accepts nothing
    create(cluster, pod("stuck", container("server", python(STUCK)), restartPolicy="Never"))
    wait(lambda: counted(cluster, "stuck") == (0, 0))
    address = pods(cluster, "app=stuck")[0]["status"]["podIP"]

    # WHEN another one connects more often than its queue holds
    finish(cluster, job("crowd", CROWD.format(address=address)))

    # THEN overflows and drops are those that the kernel counts, of the listener's pod
    labels = {"k8s_pod_name": "stuck", "server_port": "7000"}

    def told() -> tuple[float, float]:
        names = ("podscope_listen_overflows_total", "podscope_listen_drops_total")
        return tuple(measured(cluster, name, **labels) for name in names)

    wait(lambda: told() == counted(cluster, "stuck"))
    assert told()[0] > 0
    assert measured(cluster, "podscope_listen_limit", **labels) == 2
    assert measured(cluster, "podscope_listen_queue_usage_ratio", **labels) == 1.5
    delete(cluster, f"api/v1/namespaces/{SPACE}/pods/stuck")


def test_connections_and_lookups_are_in_the_metrics_of_both_ends(cluster):
    # GIVEN
    accepts = {"k8s_deployment_name": "web", "side": "server", "server_port": "8080"}
    before = measured(cluster, "podscope_tcp_accepts_total", **accepts)

    # WHEN
    finish(cluster, job("connects", asking("web:80", 10, connections=5)))

    # THEN
    client = {"k8s_job_name": "connects", "side": "client"}
    web = {**client, "server_port": "80"}
    wait(lambda: measured(cluster, "podscope_tcp_connects_total", **web) == 5)
    assert measured(cluster, "podscope_tcp_connect_duration_seconds_count", **web) == 5
    wait(lambda: measured(cluster, "podscope_tcp_accepts_total", **accepts) == before + 5)
    wait(lambda: measured(cluster, "dns_lookup_duration_seconds_count", **client) >= 5)


def test_agents_run_all_sources(cluster):
    told = [page(cluster, agent, "/readyz") for agent in agents(cluster)]
    assert told == ["ready\n"] * 2
