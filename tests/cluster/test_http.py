# SPDX-License-Identifier: Apache-2.0
"""``podscope http`` over a real cluster: rows of all nodes, with names, to the last request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from typing import Self

import pytest

from podscope.identity.kubeconfig import from_kubeconfig
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.port_forward import PortForward

IMAGE = os.environ.get("PODSCOPE_TEST_IMAGE", "debian:bookworm-slim")
SPACE = "podscope-test"
REQUESTS = 600
PATIENCE = 60.0
CONFIGURATION = (
    "daemon off; error_log /dev/stderr; events {} http { access_log /dev/stdout; "
    "server { listen 8080; location / { return 200 hello; } location /no { return 404 no; } } }"
)
ASK = f"""
import http.client
for turn in range({REQUESTS} // 20):
    one = http.client.HTTPConnection("web", 80)
    for number in range(20):
        one.request("GET", "/no" if number == 7 else "/items")
        one.getresponse().read()
    one.close()
"""
Row = dict[str, Any]


@pytest.fixture(scope="module")
def installed(cluster) -> Iterator[None]:
    """Agents on all nodes, and a namespace with a deployment behind a Service."""
    if "api/v1/namespaces/podscope" in cluster:
        pytest.skip("podscope is installed in this cluster: run 'podscope uninstall' first")
    done = cluster.podscope("install", "--image", cluster.image)
    assert done.returncode == 0, done.stderr
    for path, body in objects():
        cluster.connection.send("POST", path, {}, json.dumps(body).encode())
    wait(lambda: len(running(cluster, "app=web")) == 2)
    yield
    cluster.connection.send("DELETE", f"api/v1/namespaces/{SPACE}", {}, b"{}")
    cluster.podscope("uninstall")
    wait(lambda: f"api/v1/namespaces/{SPACE}" not in cluster)


def objects() -> list[tuple[str, Row]]:
    labels = {"app": "web"}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels},
    }
    container = {
        "name": "nginx",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["nginx", "-c", "/dev/stdin"],
        "ports": [{"containerPort": 8080}],
    }
    container["command"] = ["sh", "-c", f"echo '{CONFIGURATION}' > /n.conf; exec nginx -c /n.conf"]
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [container], "topologySpreadConstraints": [spread]},
    }
    ports = [{"port": 80, "targetPort": 8080}]
    return [
        ("api/v1/namespaces", made("v1", "Namespace", SPACE, {})),
        (
            f"apis/apps/v1/namespaces/{SPACE}/deployments",
            made(
                "apps/v1",
                "Deployment",
                "web",
                {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
            ),
        ),
        (
            f"api/v1/namespaces/{SPACE}/services",
            made("v1", "Service", "web", {"selector": labels, "ports": ports}),
        ),
    ]


def made(version: str, kind: str, name: str, spec: Row) -> Row:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def wait(met) -> None:
    deadline = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)


def running(cluster, selector: str) -> list[str]:
    """Names of the pods with a label that are ready."""
    query = {"labelSelector": selector}
    found = json.loads(cluster.connection.get(f"api/v1/namespaces/{SPACE}/pods", query, 30))
    return [
        pod["metadata"]["name"]
        for pod in found["items"]
        if any(
            one["type"] == "Ready" and one["status"] == "True"
            for one in pod["status"].get("conditions", ())
        )
    ]


def ask(cluster, name: str) -> None:
    """Runs a job that sends the requests, to its end."""
    container = {
        "name": "ask",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", ASK],
    }
    template = {"spec": {"containers": [container], "restartPolicy": "Never"}}
    job = made("batch/v1", "Job", name, {"template": template, "backoffLimit": 0})
    path = f"apis/batch/v1/namespaces/{SPACE}/jobs"
    cluster.connection.send("POST", path, {}, json.dumps(job).encode())
    wait(lambda: cluster.get(f"{path}/{name}")["status"].get("succeeded") == 1)


class Watching:
    """``podscope http`` in the background; ``rows``, or the end of the block, ends it."""

    def __init__(self, cluster, *arguments: str) -> None:
        command = [sys.executable, "-m", "podscope", "http", *arguments, "-o", "json"]
        self._process = subprocess.Popen(
            [*command, "--kubeconfig", cluster.kubeconfig],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=30)

    def rows(self) -> list[Row]:
        self._process.terminate()
        out, errors = self._process.communicate(timeout=30)
        assert "2 of 2 nodes answered" in errors, errors
        lines = [json.loads(line) for line in out.splitlines()]
        assert lines[-1]["kind"] == "summary"
        assert not {reason for reason in lines[-1]["lost"] if reason != "joined"}
        return [line for line in lines if line["kind"] == "http"]


def counts(rows: list[Row], name: str, side: str = "server") -> Counter[str]:
    """Exchanges on one side by the value of a key."""
    found: Counter[str] = Counter()
    for row in rows:
        if row.get("side", side) == side:
            found[row.get(name, "")] += row["count"]
    return found


def logged(cluster, pod: str) -> int:
    """Requests in nginx's own log."""
    path = f"api/v1/namespaces/{SPACE}/pods/{pod}/log"
    return bytes(cluster.connection.get(path, {}, 30)).count(b'"GET /')


@pytest.mark.usefixtures("installed")
def test_rows_by_pod_and_by_service_equal_the_servers_own_logs(cluster):
    # GIVEN two pods behind a Service, watched in three ways
    pods = running(cluster, "app=web")
    before = {pod: logged(cluster, pod) for pod in pods}
    by_pod = Watching(cluster, "-n", SPACE)
    by_service = Watching(cluster, "-n", SPACE, "--by", "service,side")
    of_one = Watching(cluster, f"pod/{pods[0]}", "-n", SPACE, "--by", "pod,side")
    time.sleep(4)

    # WHEN a job asks the Service
    ask(cluster, "ask")
    time.sleep(3)
    rows = by_pod.rows()

    # THEN every request is there, where it was answered
    here = {pod: logged(cluster, pod) - before[pod] for pod in pods}
    assert sum(here.values()) == REQUESTS
    assert counts(rows, "k8s.pod.name") == here
    assert counts(by_service.rows(), "k8s.service.name") == {"web": REQUESTS}
    assert counts(of_one.rows(), "k8s.pod.name") == {pods[0]: here[pods[0]]}
    # AND where it was asked
    assert counts(rows, "k8s.job.name", "client") == {"ask": REQUESTS}
    assert counts(rows, "k8s.deployment.name") == {"web": REQUESTS}
    assert counts(rows, "http.response.status_code") == {
        200: REQUESTS - REQUESTS // 20,
        404: REQUESTS // 20,
    }


@pytest.mark.usefixtures("installed")
def test_what_asks_not_to_be_watched_is_not(cluster):
    # GIVEN a namespace that says so
    path = f"api/v1/namespaces/{SPACE}"
    annotate(cluster, path, "true")
    time.sleep(3)
    watching = Watching(cluster, "-n", SPACE)
    time.sleep(4)

    # WHEN
    ask(cluster, "ask-hidden")
    time.sleep(2)
    hidden = watching.rows()
    annotate(cluster, path, None)
    time.sleep(3)
    watching = Watching(cluster, "-n", SPACE)
    time.sleep(4)
    ask(cluster, "ask-shown")
    time.sleep(3)

    # THEN
    assert hidden == []
    assert sum(counts(watching.rows(), "k8s.pod.name").values()) == REQUESTS


@pytest.mark.usefixtures("installed")
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


def annotate(cluster, path: str, value: str | None) -> None:
    body = {"metadata": {"annotations": {"podscope.dev/ignore": value}}}
    cluster.connection.send(
        "PATCH",
        path,
        {},
        json.dumps(body).encode(),
        content_type="application/merge-patch+json",
    )


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("deploy/nope", "-n", SPACE),
            "there is no deployment 'nope' in namespace 'podscope-test'",
        ),
        (("node/nope",), "there is no node 'nope'"),
        (("thing/x",), "TARGET: not a target: 'thing/x'"),
        (("-A", "-n", "x"), "-A: all namespaces and -n exclude each other"),
        (("--agent-namespace", "nowhere"), "there is no agent in namespace 'nowhere'"),
        (("--context", "nope"), "nope"),
    ],
)
def test_mistakes_are_told_in_one_line(cluster, words, said):
    # GIVEN / WHEN
    done = cluster.podscope("http", *words)

    # THEN
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
