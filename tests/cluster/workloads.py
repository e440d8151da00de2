# SPDX-License-Identifier: Apache-2.0
"""What the tests run in a cluster: servers, and Jobs that ask them, in a namespace of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from podscope.identity.kubeconfig import from_kubeconfig
from podscope.identity.port_forward import PortForward

if TYPE_CHECKING:
    from conftest import Cluster

IMAGE = os.environ.get("PODSCOPE_TEST_IMAGE", "debian:bookworm-slim")
SPACE = "podscope-test"
PATIENCE = 60.0
MERGE = "application/merge-patch+json"
Row = dict[str, Any]


def nginx(*ports: int) -> list[str]:
    """A command: nginx on some ports, with its log on stdout.

    /no is not found, /fast is not logged, and /status says how many requests there were.
    """
    servers = " ".join(
        f"server {{ listen {port}; location / {{ return 200 hello; }} "
        "location /no { return 404 no; } location /fast { access_log off; return 200 fast; } "
        "location /status { access_log off; stub_status; } }"
        for port in ports
    )
    configuration = (
        "daemon off; error_log /dev/stderr; pid /tmp/nginx.pid; events {} "
        f"http {{ access_log /dev/stdout; keepalive_requests 100000; {servers} }}"
    )
    return ["sh", "-c", f"echo '{configuration}' > /n.conf; exec nginx -c /n.conf"]


def python(program: str) -> list[str]:
    """A command: a Python program."""
    return ["python3", "-c", program]


def container(name: str, command: list[str], **more: object) -> Row:
    return {
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        **more,
    }


def made(version: str, kind: str, name: str, spec: Row) -> Row:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def deployment(name: str, replicas: int, *containers: Row) -> tuple[str, Row]:
    """Path and object: pods with the label ``app``, spread over the nodes."""
    labels = {"app": name}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels},
    }
    pod = {"containers": list(containers), "topologySpreadConstraints": [spread]}
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return f"apis/apps/v1/namespaces/{SPACE}/deployments", made("apps/v1", "Deployment", name, spec)


def service(name: str, app: str, port: int, target: int) -> tuple[str, Row]:
    spec = {"selector": {"app": app}, "ports": [{"port": port, "targetPort": target}]}
    return f"api/v1/namespaces/{SPACE}/services", made("v1", "Service", name, spec)


def pod(name: str, *containers: Row, namespace: str = SPACE, **spec: object) -> tuple[str, Row]:
    """A bare pod with the label ``app``."""
    whole = {"containers": list(containers), "terminationGracePeriodSeconds": 0, **spec}
    body = made("v1", "Pod", name, whole)
    body["metadata"]["labels"] = {"app": name}
    return f"api/v1/namespaces/{namespace}/pods", body


def job(name: str, program: str, **spec: object) -> tuple[str, Row]:
    """A Job that runs a Python program."""
    whole = {"containers": [container("ask", python(program))], "restartPolicy": "Never"}
    body = made("batch/v1", "Job", name, {"template": {"spec": whole}, "backoffLimit": 0, **spec})
    return f"apis/batch/v1/namespaces/{SPACE}/jobs", body


def asking(url: str, requests: int, connections: int = 1, wrong: int = 0) -> str:
    """A program: so many GETs on keep-alive connections, the first ``wrong`` of each of /no."""
    return f"""
import http.client
for turn in range({connections}):
    one = http.client.HTTPConnection("{url}")
    for number in range({requests} // {connections}):
        one.request("GET", "/no" if number < {wrong} else "/items")
        one.getresponse().read()
    one.close()
"""


def create(cluster: Cluster, *objects: tuple[str, Row]) -> None:
    for path, body in objects:
        cluster.connection.send("POST", path, {}, json.dumps(body).encode())


def delete(cluster: Cluster, path: str) -> None:
    """Until it is gone."""
    cluster.connection.send("DELETE", path, {}, b"{}")
    wait(lambda: path not in cluster)


def patch(cluster: Cluster, path: str, body: Row, kind: str = MERGE) -> None:
    cluster.connection.send("PATCH", path, {}, json.dumps(body).encode(), content_type=kind)


def wait(met: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)


def pods(cluster: Cluster, selector: str, namespace: str = SPACE) -> list[Row]:
    query = {"labelSelector": selector}
    path = f"api/v1/namespaces/{namespace}/pods"
    return json.loads(cluster.connection.get(path, query, 30))["items"]


def is_ready(one: Row) -> bool:
    conditions = {c["type"]: c["status"] for c in one["status"].get("conditions", ())}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in one["metadata"]


def running(cluster: Cluster, selector: str) -> list[str]:
    """Names of the pods with a label that are ready."""
    return [one["metadata"]["name"] for one in pods(cluster, selector) if is_ready(one)]


def finish(cluster: Cluster, made: tuple[str, Row], count: int = 1) -> None:
    """Runs a Job to its end."""
    create(cluster, made)
    path = f"{made[0]}/{made[1]['metadata']['name']}"
    wait(lambda: cluster.get(path)["status"].get("succeeded") == count, 3 * PATIENCE)


def log(cluster: Cluster, name: str, container: str = "", namespace: str = SPACE) -> bytes:
    """What a container wrote."""
    query = {"container": container} if container else {}
    path = f"api/v1/namespaces/{namespace}/pods/{name}/log"
    return bytes(cluster.connection.get(path, query, 30))


def agents(cluster: Cluster) -> list[str]:
    """Names of the agents that are ready."""
    found = pods(cluster, "app.kubernetes.io/component=agent", "podscope")
    return [one["metadata"]["name"] for one in found if is_ready(one)]


def page(cluster: Cluster, agent: str, path: str) -> str:
    """What an agent answers."""
    server = from_kubeconfig(cluster.kubeconfig)
    with PortForward(server, "podscope", agent, 9435) as forward:
        forward.socket.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        whole = b"".join(iter(lambda: forward.socket.recv(1 << 16), b""))
    return whole.partition(b"\r\n\r\n")[2].decode()


def measured(cluster: Cluster, name: str, **labels: str) -> float:
    """The sum of a metric's samples with some labels, of all agents."""
    return sum(
        sample.value
        for agent in agents(cluster)
        for family in text_string_to_metric_families(page(cluster, agent, "/metrics"))
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def logged(cluster: Cluster, name: str, container: str = "") -> int:
    """Requests in nginx's own log."""
    return log(cluster, name, container).count(b'"GET /')


class Watching:
    """A command of podscope in the background; ``rows``, or the end of the block, ends it.

    Args:
        silent: nodes that may not answer.
    """

    def __init__(
        self, cluster: Cluster, *arguments: str, command: str = "http", silent: bool = False
    ) -> None:
        words = [sys.executable, "-m", "podscope", command, *arguments, "-o", "json"]
        self._silent = silent
        self._process = subprocess.Popen(
            [*words, "--kubeconfig", cluster.kubeconfig],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lost: dict[str, int] = {}
        time.sleep(4)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=30)

    def rows(self) -> list[Row]:
        """All that came, a moment after the last request."""
        time.sleep(3)
        self._process.terminate()
        out, errors = self._process.communicate(timeout=30)
        assert self._silent or "2 of 2 nodes answered" in errors, errors
        lines = [json.loads(line) for line in out.splitlines()]
        assert lines[-1]["kind"] == "summary"
        self.lost = lines[-1]["lost"]
        assert not self.lost.keys() - {"joined", "agent_replaced"}
        return [line for line in lines if line["kind"] not in ("summary", "lost")]


def counts(rows: list[Row], *names: str, side: str = "server") -> Counter[Any]:
    """Exchanges on one side by the value of a key, or of several."""
    found: Counter[Any] = Counter()
    for row in rows:
        if row.get("side", side) == side:
            key = tuple(row.get(name, "") for name in names)
            found[key[0] if len(key) == 1 else key] += row.get("count", 1)
    return found
