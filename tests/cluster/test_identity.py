# SPDX-License-Identifier: Apache-2.0
"""Names come from the cgroup: whatever a pod's network, containers, life and name are."""

from __future__ import annotations

import json

import pytest
from workloads import SPACE
from workloads import Watching
from workloads import asking
from workloads import container
from workloads import counts
from workloads import create
from workloads import delete
from workloads import finish
from workloads import is_ready
from workloads import job
from workloads import log
from workloads import logged
from workloads import made
from workloads import nginx
from workloads import patch
from workloads import pod
from workloads import pods
from workloads import python
from workloads import running
from workloads import wait

pytestmark = pytest.mark.usefixtures("installed")

OTHER = "podscope-test-other"
CHURN = 100


def address(cluster, name: str, namespace: str = SPACE) -> str:
    """Of a pod, once it is ready."""
    path = f"api/v1/namespaces/{namespace}/pods/{name}"
    wait(lambda: is_ready(cluster.get(path)))
    return cluster.get(path)["status"]["podIP"]


def test_a_pod_in_the_hosts_network_is_itself_and_as_a_peer_its_node(cluster):
    # GIVEN
    create(cluster, pod("host", container("nginx", nginx(18099)), hostNetwork=True))
    there = address(cluster, "host")
    with Watching(cluster, "-n", SPACE) as watching:
        # WHEN
        finish(cluster, job("ask-host", asking(f"{there}:18099", 50)))
        rows = watching.rows()
    node = cluster.get(f"api/v1/namespaces/{SPACE}/pods/host")["spec"]["nodeName"]
    delete(cluster, f"api/v1/namespaces/{SPACE}/pods/host")

    # THEN
    assert counts(rows, "k8s.pod.name", "k8s.node.name") == {("host", node): 50}
    assert counts(rows, "service.peer.name") == {"ask-host": 50}
    peer = ("podscope.peer.kind", "service.peer.name")
    assert counts(rows, *peer, side="client") == {("node", node): 50}


def test_containers_of_every_sort_are_told_apart(cluster):
    # GIVEN a pod with an init container that asks, two that answer, and one that is added
    web = asking("web:80", 30)
    first = container("first", nginx(8081))
    second = container("second", nginx(8082))
    asks = container("asks", python(web))
    with Watching(cluster, "-n", SPACE) as watching:
        create(cluster, pod("many", first, second, initContainers=[asks]))
        address(cluster, "many")

        # WHEN they talk in their pod, over loopback
        program = asking("127.0.0.1:8081", 40) + asking("localhost:8082", 20)
        added = {"ephemeralContainers": [container("added", python(program))]}
        path = f"api/v1/namespaces/{SPACE}/pods/many"
        kind = "application/strategic-merge-patch+json"
        patch(cluster, f"{path}/ephemeralcontainers", {"spec": added}, kind)
        wait(lambda: log_of(cluster, "first") == 40 and log_of(cluster, "second") == 20)
        rows = watching.rows()
    delete(cluster, path)

    # THEN
    mine = [row for row in rows if row["k8s.pod.name"] == "many"]
    assert counts(mine, "k8s.container.name") == {"first": 40, "second": 20}
    assert counts(mine, "k8s.container.name", side="client") == {"asks": 30, "added": 60}
    assert counts(mine, "service.peer.name") == {"many": 60}


def log_of(cluster, name: str) -> int:
    return logged(cluster, "many", name)


def test_pods_of_one_name_are_told_apart(cluster):
    # GIVEN pods of the same name in two namespaces
    create(cluster, ("api/v1/namespaces", made("v1", "Namespace", OTHER, {})))
    try:
        for space in (SPACE, OTHER):
            account = f"api/v1/namespaces/{space}/serviceaccounts/default"
            wait(lambda at=account: at in cluster)
            create(cluster, pod("twin", container("nginx", nginx(8080)), namespace=space))
        here, there = (address(cluster, "twin", space) for space in (SPACE, OTHER))
        with (
            Watching(cluster, "-A", "--by", "pod,side") as everywhere,
            Watching(cluster, "pod/twin", "-n", OTHER, "--by", "pod,side") as other,
        ):
            # WHEN
            program = asking(f"{here}:8080", 20) + asking(f"{there}:8080", 30)
            finish(cluster, job("ask-twins", program))
            rows = [row for row in everywhere.rows() if row.get("k8s.pod.name") == "twin"]
            assert counts(other.rows(), "k8s.pod.name", "k8s.namespace.name") == {
                ("twin", OTHER): 30
            }
        # AND one that is made again under its name
        path = f"api/v1/namespaces/{SPACE}/pods/twin"
        before = cluster.get(path)["metadata"]["uid"]
        with Watching(cluster, "pod/twin", "-n", SPACE, "--by", "pod,side") as again:
            finish(cluster, job("ask-before", asking(f"{here}:8080", 10)))
            delete(cluster, path)
            create(cluster, pod("twin", container("nginx", nginx(8080))))
            here = address(cluster, "twin")
            after = cluster.get(path)["metadata"]["uid"]
            finish(cluster, job("ask-after", asking(f"{here}:8080", 25)))
            reborn = again.rows()
    finally:
        delete(cluster, f"api/v1/namespaces/{OTHER}")

    # THEN
    assert counts(rows, "k8s.namespace.name") == {SPACE: 20, OTHER: 30}
    assert counts(reborn, "k8s.pod.uid") == {before: 10, after: 25}


def test_a_hundred_pods_that_live_for_a_moment_are_all_named(cluster):
    # GIVEN
    program = asking("web:80", 1)
    many = job("churn", program, completions=CHURN, parallelism=10)
    web = running(cluster, "app=web")
    before = sum(logged(cluster, name) for name in web)
    with Watching(cluster, "-n", SPACE, "--by", "pod,workload,side,peer") as watching:
        # WHEN
        finish(cluster, many, CHURN)
        rows = watching.rows()

    # THEN each is there, with its own name, on both sides
    assert sum(logged(cluster, name) for name in web) - before == CHURN
    names = {one["metadata"]["name"] for one in pods(cluster, "batch.kubernetes.io/job-name=churn")}
    asked = counts(rows, "k8s.job.name", "k8s.pod.name", side="client")
    assert asked == {("churn", name): 1 for name in names}
    assert len(names) == CHURN
    assert counts(rows, "service.peer.name") == {"churn": CHURN}


def test_a_node_that_is_drained_loses_no_count(cluster):
    # GIVEN clients that ask a Service and count their answers, while its pods move away
    program = """
import http.client, time
answered, end = 0, time.monotonic() + 20
while time.monotonic() < end:
    try:
        one = http.client.HTTPConnection("web", 80, timeout=2)
        for number in range(10):
            one.request("GET", "/items")
            answered += one.getresponse().read() == b"hello"
        one.close()
    except (OSError, http.client.HTTPException):
        time.sleep(0.05)
    time.sleep(0.02)
print("answered", answered, flush=True)
"""
    web = running(cluster, "app=web")
    path = f"api/v1/namespaces/{SPACE}/pods/{web[0]}"
    node = f"api/v1/nodes/{cluster.get(path)['spec']['nodeName']}"
    with Watching(cluster, "-n", SPACE) as watching:
        create(cluster, job("ask-long", program))
        wait(lambda: len(running(cluster, "batch.kubernetes.io/job-name=ask-long")) == 1)

        # WHEN
        patch(cluster, node, {"spec": {"unschedulable": True}})
        try:
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction"}
            body = {**eviction, "metadata": {"name": web[0], "namespace": SPACE}}
            cluster.connection.send("POST", f"{path}/eviction", {}, json.dumps(body).encode())
            done = f"apis/batch/v1/namespaces/{SPACE}/jobs/ask-long"
            wait(lambda: cluster.get(done)["status"].get("succeeded") == 1)
        finally:
            patch(cluster, node, {"spec": {"unschedulable": None}})
        rows = watching.rows()

    # THEN what clients got is what servers sent
    (asker,) = pods(cluster, "batch.kubernetes.io/job-name=ask-long")
    answered = int(log(cluster, asker["metadata"]["name"]).split()[-1])
    good = [row for row in rows if row.get("http.response.status_code") == 200]
    assert answered > 500
    assert counts(good, "k8s.deployment.name") == {"web": answered}
    assert counts(good, "k8s.job.name", side="client") == {"ask-long": answered}
    assert web[0] in counts(good, "k8s.pod.name")
