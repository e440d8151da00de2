# SPDX-License-Identifier: Apache-2.0
"""Rows of the agents of a real cluster in a server of the cluster: names, Secret, queue on disk."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator

import pytest
from test_configuration import AGENTS
from test_configuration import CONFIG_MAP
from test_configuration import configure
from workloads import SPACE
from workloads import asking
from workloads import container
from workloads import create
from workloads import delete
from workloads import deployment
from workloads import finish
from workloads import job
from workloads import log
from workloads import patch
from workloads import pods
from workloads import python
from workloads import running
from workloads import service
from workloads import wait

pytestmark = pytest.mark.usefixtures("installed")

# Writes what it gets to its log, one JSON object a request: path, credentials, lines.
RECORDER = """
import gzip, json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        told = {"path": self.path, "key": self.headers.get("Authorization", "")}
        print(json.dumps(told | {"lines": body.decode().splitlines()}), flush=True)
        self.send_response(204)
        self.end_headers()
    do_GET = do_POST
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("", 8086), Handler).serve_forever()
"""
CONFIG = f"""
interval: 1s
sinks:
  - type: influxdb
    url: http://recorder.{SPACE}.svc:8086
    org: o
    bucket: b
    token: {{file: /var/run/secrets/podscope/token}}
    namespaces: [{SPACE}]
    every: 1s
    queue: {{disk: 64MiB, path: /var/lib/podscope/influxdb}}
"""
SECRETS = "api/v1/namespaces/podscope/secrets"
RECORDERS = f"apis/apps/v1/namespaces/{SPACE}/deployments/recorder"
# Kubelets look at Secrets and ConfigMaps about once a minute.
LONG = 300.0
REQUESTS = 30
HTTP = "podscope_http,"


@pytest.fixture
def recorder(cluster) -> Iterator[None]:
    """A server that records, a Secret, and agents that send to it."""
    before = cluster.get(CONFIG_MAP)["data"]["config.yaml"]
    token = base64.b64encode(b"s3cret").decode()
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "podscope-sinks"},
        "data": {"token": token},
    }
    create(
        cluster,
        (SECRETS, secret),
        deployment("recorder", 1, container("recorder", python(RECORDER))),
        service("recorder", "recorder", 8086, 8086),
    )
    wait(lambda: len(running(cluster, "app=recorder")) == 1)
    configure(cluster, CONFIG, "taken up: sinks")
    yield
    configure(cluster, before, "taken up: sinks", 2)
    for path in (
        f"{SECRETS}/podscope-sinks",
        RECORDERS,
        f"api/v1/namespaces/{SPACE}/services/recorder",
    ):
        delete(cluster, path)


def recorded(cluster) -> list[dict]:
    """What the recorder that runs now has got."""
    found = []
    for name in running(cluster, "app=recorder"):
        found += [json.loads(line) for line in log(cluster, name).decode().splitlines()]
    return found


def counted(cluster) -> int:
    """Requests to /items of web, seen by web, in what the recorder has got."""
    lines = [line for one in recorded(cluster) for line in one["lines"]]
    words = (",side=server", "k8s.pod.name=web-", "http.route=/items")
    mine = [line for line in lines if all(word in line for word in words)]
    return sum(int(re.search(r"[ ,]count=(\d+)i", line)[1]) for line in mine if HTTP in line)


def scale(cluster, replicas: int) -> None:
    patch(cluster, RECORDERS, {"spec": {"replicas": replicas}})
    # Gone, and not only leaving: connections that are open would still be served.
    wait(lambda: len(pods(cluster, "app=recorder")) == replicas, LONG)
    wait(lambda: len(running(cluster, "app=recorder")) == replicas, LONG)


def one_said(cluster, words: str) -> bool:
    """Whether some agent has said so: only those of nodes with rows speak to the server."""
    names = [one["metadata"]["name"] for one in pods(cluster, AGENTS, "podscope")]
    return any(words in log(cluster, name, namespace="podscope").decode() for name in names)


def test_rows_of_pods_reach_a_server_with_the_key_of_the_secret_also_after_it_was_down(
    cluster, recorder
):
    # GIVEN rows that arrive
    finish(cluster, job("first", asking(f"web.{SPACE}.svc:80", REQUESTS)))
    wait(lambda: counted(cluster) == REQUESTS, LONG)
    assert {one["key"] for one in recorded(cluster)} == {"Token s3cret"}
    assert all("org=o" in one["path"] for one in recorded(cluster))

    # WHEN the server is away, and comes back without what it had
    scale(cluster, 0)
    finish(cluster, job("second", asking(f"web.{SPACE}.svc:80", REQUESTS)))
    wait(lambda: one_said(cluster, "sink influxdb: http://recorder"), LONG)
    scale(cluster, 1)

    # THEN nothing is missing, and nothing is there twice
    wait(lambda: counted(cluster) >= REQUESTS, LONG)
    assert counted(cluster) == REQUESTS
    wait(lambda: one_said(cluster, "sink influxdb: works again"), LONG)
