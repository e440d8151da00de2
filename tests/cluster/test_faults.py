# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in clusters: an API server that is away, agents that are replaced."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import api_server as server
import pytest
from workloads import SPACE
from workloads import Watching
from workloads import agents
from workloads import container
from workloads import counts
from workloads import create
from workloads import delete
from workloads import log
from workloads import measured
from workloads import patch
from workloads import pod
from workloads import pods
from workloads import python
from workloads import wait

from podscope.identity.kubernetes_client import KubernetesError

pytestmark = pytest.mark.usefixtures("installed")

DAEMON_SET = "apis/apps/v1/namespaces/podscope/daemonsets/podscope-agent"
AWAY_SECONDS = 15
SECONDS = 40
# One connection, kept alive, about 40 requests a second; tells how many were answered.
STEADY = """
import http.client, sys, time
one = http.client.HTTPConnection("{address}", {port})
one.connect()
print("ready", flush=True)
count, end = 0, time.monotonic() + {seconds}
while time.monotonic() < end:
    one.request("GET", "/items")
    count += one.getresponse().read() == b"hello"
    time.sleep(0.025)
print("answered", count, flush=True)
"""


def steady(cluster, name: str, seconds: int) -> str:
    """A pod that asks one of the servers for so long, once it has begun; its path."""
    web = pods(cluster, "app=web")[0]
    program = STEADY.format(address=web["status"]["podIP"], port=8080, seconds=seconds)
    made = pod(name, container("ask", python(program)), restartPolicy="Never")
    create(cluster, made)
    wait(lambda: started(cluster, name))
    return f"{made[0]}/{name}"


def started(cluster, name: str) -> bool:
    try:
        return b"ready" in log(cluster, name)
    except KubernetesError:
        return False


def answered(cluster, name: str) -> int:
    """How many the pod counted, at its end."""
    wait(lambda: b"answered" in log(cluster, name))
    return int(log(cluster, name).split()[-1])


def exchanges(cluster, name: str) -> float:
    """Exchanges of a pod as a client, in the metrics of all agents."""
    return measured(cluster, "http_client_request_duration_seconds_count", k8s_pod_name=name)


@pytest.fixture
def api_server() -> Path:
    """The file with its process id, in a cluster whose API server runs here."""
    place = os.environ.get("PODSCOPE_API_SERVER_PID_FILE", "")
    if not place:
        pytest.skip(
            "needs an API server that may be stopped: set PODSCOPE_API_SERVER_PID_FILE to the "
            "file with its process id"
        )
    return Path(place)


def test_counting_goes_on_with_all_names_while_the_api_server_is_away(cluster, api_server):
    # GIVEN a pod that asks all the time
    path = steady(cluster, "through", AWAY_SECONDS + 10)

    # WHEN
    command = server.stop(api_server)
    try:
        time.sleep(AWAY_SECONDS)
    finally:
        server.start(api_server, command)
    wait(lambda: server.reachable(cluster))
    count = answered(cluster, "through")

    # THEN
    assert count > 20 * AWAY_SECONDS
    # Its container's name may come only now: kubelet could not tell it.
    wait(lambda: exchanges(cluster, "through") == count)
    delete(cluster, path)
    # AND the agents follow the cluster again
    wait(lambda: len(agents(cluster)) == 2)
    path = steady(cluster, "afterwards", 2)
    count = answered(cluster, "afterwards")
    wait(lambda: exchanges(cluster, "afterwards") == count)
    delete(cluster, path)


def test_agents_that_are_replaced_one_by_one_lose_an_interval_at_most(cluster):
    # GIVEN a connection that lives on, watched from its beginning
    before = set(agents(cluster))
    with Watching(cluster, "-n", SPACE, "--by", "pod,side") as watching:
        path = steady(cluster, "living", SECONDS)

        # WHEN
        stamp = {"podscope-test/restarted": str(time.time())}
        template = {"spec": {"template": {"metadata": {"annotations": stamp}}}}
        patch(cluster, DAEMON_SET, template)
        wait(lambda: replaced(cluster, before))
        count = answered(cluster, "living")
        rows = watching.rows()
    delete(cluster, path)

    # THEN of each side an interval is missing at most, and nothing is there twice
    interval = count / SECONDS
    for side in ("server", "client"):
        seen = counts(rows, "side", side=side).total()
        assert count - interval <= seen <= count, (count, seen, watching.lost)
    assert set(watching.lost) <= {"joined", "agent_replaced"}
    assert before.isdisjoint(agents(cluster))


def replaced(cluster, before: set[str]) -> bool:
    status = cluster.get(DAEMON_SET)["status"]
    done = status.get("updatedNumberScheduled") == status["desiredNumberScheduled"]
    now = agents(cluster)
    return done and len(now) == 2 and before.isdisjoint(now)


def test_an_agent_that_is_killed_is_back_and_says_what_it_joined(cluster):
    # GIVEN
    path = steady(cluster, "surviving", 25)
    with Watching(cluster, "-n", SPACE, "--by", "pod,side") as watching:
        # WHEN its pods go without a word
        for agent in agents(cluster):
            body = json.dumps({"gracePeriodSeconds": 0}).encode()
            cluster.connection.send("DELETE", f"api/v1/namespaces/podscope/pods/{agent}", {}, body)
        count = answered(cluster, "surviving")
        rows = watching.rows()
    delete(cluster, path)

    # THEN the stream goes on with those that came after them
    seen = counts(rows, "side", side="client").total()
    assert count / 4 < seen < count
    assert set(watching.lost) <= {"joined", "agent_replaced"}
