# SPDX-License-Identifier: Apache-2.0
"""Rows of all nodes of a real cluster, with names, to the last request."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from workloads import SPACE
from workloads import Watching
from workloads import asking
from workloads import container
from workloads import counts
from workloads import create
from workloads import finish
from workloads import job
from workloads import logged
from workloads import made
from workloads import nginx
from workloads import patch
from workloads import pods
from workloads import running
from workloads import wait

from podscope.identity.kubeconfig import from_kubeconfig
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.port_forward import PortForward

REQUESTS = 600
NO = REQUESTS // 20
ASK = asking("web:80", REQUESTS, NO, wrong=1)

pytestmark = pytest.mark.usefixtures("installed")


def test_rows_by_pod_and_by_service_equal_the_servers_own_logs(cluster):
    # GIVEN two pods behind a Service, watched in three ways
    web = running(cluster, "app=web")
    before = {pod: logged(cluster, pod) for pod in web}
    with (
        Watching(cluster, "-n", SPACE) as by_pod,
        Watching(cluster, "-n", SPACE, "--by", "service,side") as by_service,
        Watching(cluster, f"pod/{web[0]}", "-n", SPACE, "--by", "pod,side") as of_one,
        Watching(cluster, "-l", "app in (web)", "-n", SPACE, "--by", "node,side") as by_node,
        Watching(cluster, "svc/web", "-n", SPACE, "--by", "service,port,side") as by_port,
    ):
        # WHEN a job asks the Service
        finish(cluster, job("ask", ASK))
        rows = by_pod.rows()

        # THEN every request is there, where it was answered
        here = {pod: logged(cluster, pod) - before[pod] for pod in web}
        assert sum(here.values()) == REQUESTS
        assert counts(rows, "k8s.pod.name") == here
        assert counts(by_service.rows(), "k8s.service.name") == {"web": REQUESTS}
        assert counts(of_one.rows(), "k8s.pod.name") == {web[0]: here[web[0]]}
        nodes = counts(rows, "k8s.node.name")
        assert counts(by_node.rows(), "k8s.node.name") == nodes
        assert len(nodes) == 2
        names = ("k8s.service.name", "podscope.service.port", "server.port")
        assert counts(by_port.rows(), *names) == {("web", "80", 8080): REQUESTS}
    # AND where it was asked
    assert counts(rows, "k8s.job.name", side="client") == {"ask": REQUESTS}
    assert counts(rows, "k8s.deployment.name") == {"web": REQUESTS}
    assert counts(rows, "http.response.status_code") == {200: REQUESTS - NO, 404: NO}
    # AND who was at the other end: the Service as the client called it
    peer = ("service.peer.name", "service.peer.namespace", "podscope.peer.kind")
    assert counts(rows, *peer) == {("ask", SPACE, "job"): REQUESTS}
    assert counts(rows, *peer, side="client") == {("web", SPACE, "service"): REQUESTS}


def test_every_kind_of_target_shows_its_own_rows(cluster):
    # GIVEN one of each kind that pods can belong to
    server = container("nginx", nginx(8080))
    labels = {"app": "kinds"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [server]}}
    apps = f"apis/apps/v1/namespaces/{SPACE}"
    spec = {"selector": {"matchLabels": labels}, "template": template, "replicas": 1}
    every = {"selector": spec["selector"], "template": template}
    schedule = {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": {"spec": {
        "template": {"spec": {"containers": [server], "restartPolicy": "Never"}}}}}  # fmt: skip
    crons = f"apis/batch/v1/namespaces/{SPACE}/cronjobs"
    create(
        cluster,
        (f"{apps}/statefulsets", made("apps/v1", "StatefulSet", "db", spec)),
        (f"{apps}/daemonsets", made("apps/v1", "DaemonSet", "edge", every)),
        (crons, made("batch/v1", "CronJob", "nightly", schedule)),
    )
    wait(lambda: len(running(cluster, "app=kinds")) == 3)
    found = {one["metadata"]["name"]: one for one in pods(cluster, "app=kinds")}
    edges = sorted(name for name in found if name.startswith("edge-"))
    node = found[edges[0]]["spec"]["nodeName"]
    (web, *_) = pods(cluster, "app=web")
    replica_set = web["metadata"]["ownerReferences"][0]["name"]
    asks = "".join(
        asking(f"{found[name]['status']['podIP']}:8080", number)
        for name, number in (("db-0", 10), (edges[0], 20), (edges[1], 30))
    ) + asking(f"{web['status']['podIP']}:8080", 40)
    nightly = job("nightly-1", asks)
    uid = cluster.get(f"{crons}/nightly")["metadata"]["uid"]
    owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": uid}
    nightly[1]["metadata"]["ownerReferences"] = [{**owner, "controller": True}]

    # WHEN
    with ExitStack() as stack:
        expected = {
            "sts/db": {"server": 10},
            "ds/edge": {"server": 50},
            f"rs/{replica_set}": {"server": 40},
            f"pod/{edges[1]}": {"server": 30},
            "cronjob/nightly": {"client": 100},
        }
        watching = {
            target: stack.enter_context(Watching(cluster, target, "-n", SPACE, "--by", "side"))
            for target in (*expected, f"node/{node}")
        }
        finish(cluster, nightly)
        seen = {target: one.rows() for target, one in watching.items()}

    # THEN
    for target, sides in expected.items():
        assert {row["side"]: 0 for row in seen[target]} == dict.fromkeys(sides, 0), target
        for side, count in sides.items():
            assert counts(seen[target], "side", side=side).total() == count, target
    on_node = counts(seen[f"node/{node}"], "side").total()
    assert 20 <= on_node < 200


def test_every_request_counts_at_full_speed(cluster):
    # GIVEN two pods on two nodes, and what they count themselves
    web = running(cluster, "app=web")
    before = {pod: requests_of(cluster, pod) for pod in web}
    with (
        Watching(cluster, "-n", SPACE) as by_pod,
        Watching(cluster, "-n", SPACE, "--by", "service,side,status") as by_service,
    ):
        # WHEN two pods ask as fast as they can, on connections that both nodes take; with the
        # port, since the image has no /etc/services
        asking = "wrk -t 1 -c 8 -d 5s http://web:80/fast"
        fast = job("fast", "", completions=2, parallelism=2)
        fast[1]["spec"]["template"]["spec"]["containers"][0]["command"] = ["sh", "-c", asking]
        finish(cluster, fast, 2)
        time.sleep(1)
        here = {pod: requests_of(cluster, pod) - before[pod] for pod in web}
        rows, of_service = by_pod.rows(), by_service.rows()

    # THEN to the last one
    good = [row for row in rows if "http.response.status_code" in row]
    assert min(here.values()) > 5000
    assert counts(good, "k8s.pod.name") == here
    good = [row for row in of_service if "http.response.status_code" in row]
    assert counts(good, "k8s.service.name") == {"web": sum(here.values())}


def requests_of(cluster, pod: str) -> int:
    """What nginx itself has counted, with this request."""
    with PortForward(from_kubeconfig(cluster.kubeconfig), SPACE, pod, 8080) as forward:
        forward.socket.sendall(b"GET /status HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: forward.socket.recv(4096), b""))
    return int(answer.split(b"requests\n")[1].split()[2])


def test_single_requests_are_those_of_the_servers_own_logs(cluster):
    # GIVEN a pod that is not there yet, and what it will ask
    web = running(cluster, "app=web")
    before = {pod: logged(cluster, pod) for pod in web}
    with (
        Watching(cluster, "-n", SPACE, command="requests") as everything,
        Watching(cluster, "deploy/web", "-n", SPACE, "--status", "404", command="requests") as no,
        Watching(cluster, "-n", SPACE, "--sample", "1/10", command="requests") as tenth,
    ):
        # WHEN
        finish(cluster, job("ask-singly", ASK))
        rows = everything.rows()

        # THEN
        here = {pod: logged(cluster, pod) - before[pod] for pod in web}
        assert counts(rows, "k8s.pod.name") == here
        assert counts(rows, "k8s.job.name", side="client") == {"ask-singly": REQUESTS}
        assert counts(rows, "url.path") == {"/items": REQUESTS - NO, "/no": NO}
        missing = no.rows()
        assert counts(missing, "url.path") == {"/no": NO}
        assert not counts(missing, "side", side="client")
        assert counts(tenth.rows(), "side").total() == pytest.approx(REQUESTS / 10, abs=2)
    peers = {(row["service.peer.name"], row["podscope.peer.pod.name"][:11]) for row in rows
             if row["side"] == "server"}  # fmt: skip
    assert peers == {("ask-singly", "ask-singly-")}
    times = [row["time"] for row in rows]
    assert times == sorted(times) or len(set(times)) == len(times)


def test_what_asks_not_to_be_watched_is_not(cluster):
    # GIVEN a namespace that says so
    path = f"api/v1/namespaces/{SPACE}"
    annotate(cluster, path, "true")
    with Watching(cluster, "-n", SPACE) as watching:
        # WHEN
        finish(cluster, job("ask-hidden", ASK))
        hidden = watching.rows()
    annotate(cluster, path, None)
    with Watching(cluster, "-n", SPACE) as watching:
        finish(cluster, job("ask-shown", ASK))

        # THEN
        assert hidden == []
        assert counts(watching.rows(), "k8s.pod.name").total() == REQUESTS


@pytest.mark.parametrize("level", ["pod", "node"])
def test_pods_and_nodes_can_ask_for_it_too(cluster, level):
    # GIVEN one of two pods, or its node
    web = running(cluster, "app=web")
    place = f"api/v1/namespaces/{SPACE}/pods/{web[0]}"
    node = cluster.get(place)["spec"]["nodeName"]
    path = place if level == "pod" else f"api/v1/nodes/{node}"
    annotate(cluster, path, "true", "owlk8s/ignore")
    try:
        time.sleep(1)
        before = logged(cluster, web[1])
        with Watching(cluster, "deploy/web", "-n", SPACE) as watching:
            # WHEN
            finish(cluster, job(f"ask-but-{level}", ASK))

            # THEN the other one is counted all the same
            here = logged(cluster, web[1]) - before
            assert counts(watching.rows(), "k8s.pod.name") == {web[1]: here}
            assert 0 < here < REQUESTS
    finally:
        annotate(cluster, path, None, "owlk8s/ignore")


def annotate(cluster, path: str, value: str | None, name: str = "podscope.dev/ignore") -> None:
    patch(cluster, path, {"metadata": {"annotations": {name: value}}})
    time.sleep(1)


def test_a_port_of_a_pod_is_reached_through_the_api_server(cluster):
    # GIVEN
    server = from_kubeconfig(cluster.kubeconfig)
    pod = running(cluster, "app=web")[0]

    # WHEN many ask at once
    def answer() -> bytes:
        with PortForward(server, SPACE, pod, 8080) as forward:
            forward.socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: forward.socket.recv(4096), b""))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: answer(), range(40)))

    # THEN each gets its answer; a port or a pod that is not there says so
    assert all(one.endswith(b"hello") for one in answers)
    with PortForward(server, SPACE, pod, 1) as forward:
        assert forward.socket.recv(1) == b""
        assert "refused" in forward.error
    with pytest.raises(KubernetesError, match="there is no such pod"):
        PortForward(server, SPACE, "nope", 8080)


@pytest.mark.parametrize("command", ["http", "requests"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("deploy/nope", "-n", SPACE),
            "there is no deployment 'nope' in namespace 'podscope-test'",
        ),
        (("node/nope",), "there is no node 'nope'"),
        (
            ("web", "-n", SPACE),
            "there is no pod 'web' in namespace 'podscope-test'; there is deployment/web and "
            "service/web: name it so",
        ),
        (("thing/x",), "TARGET: not a target: 'thing/x'"),
        (("-A", "-n", "x"), "-A: all namespaces and -n exclude each other"),
        (("-l", "a=b=c"), "-l: not a label selector: 'a=b=c'"),
        (("--agent-namespace", "nowhere"), "there is no agent in namespace 'nowhere'"),
        (("--context", "nope"), "nope"),
    ],
)
def test_mistakes_are_told_in_one_line(cluster, command, words, said):
    # GIVEN / WHEN
    done = cluster.podscope(command, *words)

    # THEN
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
