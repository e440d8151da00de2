# SPDX-License-Identifier: Apache-2.0
"""Traces that agents run: the same answers as those of Jobs, and nothing but events given away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import traces
import workloads
from traces import PATIENCE
from traces import SPACE
from traces import Tracing
from traces import listed
from traces import mark
from traces import marked_until
from traces import marking
from traces import pods
from workloads import delete
from workloads import patch
from workloads import wait

AGENTS = "app.kubernetes.io/component=agent"


@pytest.fixture(scope="module")
def tracing_agents(cluster) -> Iterator[None]:
    """Agents that run traces, and pods to be traced."""
    if "api/v1/namespaces/podscope" in cluster:
        pytest.skip("podscope is installed in this cluster: run 'podscope uninstall' first")
    done = cluster.podscope("install", "--image", cluster.image, "--set", "traces=true")
    assert done.returncode == 0, done.stderr
    with traces.traced(cluster, 2):
        yield
    cluster.podscope("uninstall")


def ready_agents(cluster) -> list[str]:
    found = workloads.pods(cluster, AGENTS, "podscope")
    return [one["metadata"]["name"] for one in found if workloads.is_ready(one)]


pytestmark = pytest.mark.usefixtures("tracing_agents")


def test_counts_are_exact_and_confined_and_a_later_pod_is_in(cluster):
    # GIVEN
    web, busy = pods(cluster, "web"), pods(cluster, "busy")
    program = marking('@ = count(); @h = hist(7); printf("mark\\n");')
    path = f"{traces.DEPLOYMENTS}/web"

    def marks(pod: str) -> int:
        return sum(one.get("pod") == pod and one["text"] == "mark\n" for one in tracing.lines)

    # WHEN
    with Tracing(cluster, "deploy/web", "-e", program, "--by", "pod") as tracing:
        for neighbour in busy:
            mark(cluster, neighbour, 500)
        for number, pod in enumerate(web):
            mark(cluster, pod, 10 + number)
        # AND a container starts again
        again = next(iter(web))
        mark(cluster, again, "exit")
        restarted = marked_until(cluster, again, lambda: marks(again) > 10)
        # AND a pod comes
        patch(cluster, path, {"spec": {"replicas": 3}})
        wait(lambda: len(pods(cluster, "web")) == 3, PATIENCE)
        (later,) = pods(cluster, "web").keys() - web.keys()
        asked = marked_until(cluster, later, lambda: marks(later) > 0)
        told = tracing.end()
    patch(cluster, path, {"spec": {"replicas": 2}})

    # THEN
    assert tracing.code == 0, tracing.errors
    assert "by the agents of 2 nodes" in tracing.errors
    counts = tracing.maps()["@"]
    assert 1 <= counts.pop((later,)) <= asked
    assert 1 <= counts.pop((again,)) - 10 <= restarted
    assert counts == {(list(web)[1],): 11}
    assert traces.lost(told) == {}


def test_a_trace_goes_on_without_its_client_and_is_kept_until_it_is_deleted(cluster):
    # GIVEN
    first = next(iter(pods(cluster, "web")))
    with Tracing(cluster, "deploy/web", "-e", marking()) as tracing:
        mark(cluster, first, 5)
        # WHEN
        tracing.kill()
    mark(cluster, first, 6)
    (told,) = [one for one in listed(cluster) if one["status"] == "Running"]
    with Tracing(cluster, told["name"], command="attach") as again:
        mark(cluster, first, 7)
        again.end()

    # THEN
    assert again.maps()["@"] == {(): 18}
    got = cluster.podscope_here("get", told["name"], "-n", SPACE, "-o", "csv")
    assert got.stdout.splitlines()[1] == "@,count,,,,value,18", got.stderr
    assert cluster.podscope_here("delete", "--all", "-n", SPACE).returncode == 0
    assert listed(cluster) == []


def test_an_agent_that_goes_lets_its_traces_tell_their_last_values_and_that_is_told(cluster):
    # GIVEN
    web = pods(cluster, "web")
    with Tracing(cluster, "deploy/web", "-e", marking()) as tracing:
        for pod in web:
            mark(cluster, pod, 10)
        # WHEN
        found = workloads.pods(cluster, AGENTS, "podscope")
        killed = next(one for one in found if one["spec"]["nodeName"] == "node-1")
        delete(cluster, f"api/v1/namespaces/podscope/pods/{killed['metadata']['name']}")
        wait(lambda: len(ready_agents(cluster)) == 2, PATIENCE)
        told = tracing.end()

    # THEN
    why = f"{told['failed'].get('node-1', '')} {' '.join(told['notes'])}"
    assert "was ended from outside" in why or "its agent has ended" in why, told
    assert "node-2" in told["reported"]
    assert tracing.maps()["@"] == {(): 20}
    # AND the new agent knows nothing of it
    (kept,) = [one for one in listed(cluster) if one["name"] == told["trace"]]
    assert kept["failed"] == {"node-1": "its agent has ended, and its part of the trace with it"}


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("-e", 'BEGIN { cat("/etc/passwd"); exit(); }'), 2, "cat() and system() are not for"),
        (("-e", "BEGIN { exit(); }", "--unsafe"), 2, "--way agents: not with --unsafe"),
        (("-e", "tracepoint:no:such_point { @ = count(); }"), 1, "no:such_point"),
    ],
)
def test_what_agents_cannot_do_is_told(cluster, words, code, told):
    # GIVEN / WHEN
    done = cluster.podscope_here("run", "deploy/web", *words, "--way", "agents", "-n", SPACE)

    # THEN
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert cluster.podscope_here("delete", "--all", "-n", SPACE).returncode == 0
