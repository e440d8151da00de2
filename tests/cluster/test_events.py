# SPDX-License-Identifier: Apache-2.0
"""What goes wrong below HTTP, of pods on all nodes of a real cluster."""

from __future__ import annotations

import pytest
from workloads import SPACE
from workloads import Watching
from workloads import asking
from workloads import container
from workloads import counts
from workloads import create
from workloads import delete
from workloads import finish
from workloads import job
from workloads import pod
from workloads import python
from workloads import running
from workloads import wait

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
