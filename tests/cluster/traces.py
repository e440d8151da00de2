# SPDX-License-Identifier: Apache-2.0
"""Pods that do what they are told, and traces of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from typing import Any
from typing import Self

import workloads

from podscope.identity.kubeconfig import from_kubeconfig
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.port_forward import PortForward

if TYPE_CHECKING:
    from conftest import Cluster

SPACE = "podscope-trace"
PODS = f"api/v1/namespaces/{SPACE}/pods"
JOBS = f"apis/batch/v1/namespaces/{SPACE}/jobs"
DEPLOYMENTS = f"apis/apps/v1/namespaces/{SPACE}/deployments"
PATIENCE = 90.0
# GET /7 looks seven times for a file that nobody else looks for; GET /exit ends the program.
MARKING = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/exit":
            os._exit(3)
        for _ in range(int(self.path[1:])):
            os.path.exists("/podscope-mark")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", {port}), Handler).serve_forever()
"""
MARK = (
    'tracepoint:syscalls:sys_enter_newfstatat /str(args->filename) == "/podscope-mark"/'
    ' {{ {body} }} interval:s:1 {{ printf("tick\\n"); }}'
)
MAIN, SIDE = 8080, 8081
Row = dict[str, Any]


def marked_until(cluster, pod: str, heard: Callable[[], bool]) -> int:
    """How many marks a pod has made until the trace has heard one of them."""
    deadline = time.monotonic() + PATIENCE
    made = 0
    while not heard():
        mark(cluster, pod, 1)
        made += 1
        time.sleep(0.1)
        assert time.monotonic() < deadline, f"none of {made} marks was heard"
    return made


def marking(body: str = "@ = count();") -> str:
    """A program that does something at each mark, and tells each second that it runs."""
    return MARK.format(body=body)


def pod_spec() -> Row:
    """Two containers that wait to be told to mark."""
    return {
        "containers": [
            workloads.container(name, workloads.python(MARKING.format(port=port)))
            for name, port in (("main", MAIN), ("side", SIDE))
        ],
        "terminationGracePeriodSeconds": 0,
    }


def deployment(name: str, replicas: int) -> tuple[str, Row]:
    _, body = workloads.deployment(name, replicas)
    spread = body["spec"]["template"]["spec"]["topologySpreadConstraints"]
    body["spec"]["template"]["spec"] = pod_spec() | {"topologySpreadConstraints": spread}
    return DEPLOYMENTS, body


@contextmanager
def traced(cluster: Cluster, web: int) -> Iterator[None]:
    """So many pods of a Deployment, and two busy neighbours, for a while."""
    namespace = workloads.made("v1", "Namespace", SPACE, {})
    workloads.create(
        cluster,
        ("api/v1/namespaces", namespace),
        deployment("web", web),
        deployment("busy", 2),
    )
    workloads.wait(
        lambda: len(pods(cluster, "web")) == web and len(pods(cluster, "busy")) == 2, PATIENCE
    )
    yield
    workloads.delete(cluster, f"api/v1/namespaces/{SPACE}")


def pods(cluster: Cluster, app: str) -> dict[str, str]:
    """Names of ready pods, with their nodes."""
    found = workloads.pods(cluster, f"app={app}", SPACE)
    return {
        one["metadata"]["name"]: one["spec"]["nodeName"]
        for one in found
        if workloads.is_ready(one) and "deletionTimestamp" not in one["metadata"]
    }


def mark(cluster: Cluster, pod: str, count: int | str, port: int = MAIN) -> None:
    """Lets a container mark so many times, once it listens."""
    server = from_kubeconfig(cluster.kubeconfig)
    due = time.monotonic() + PATIENCE
    while time.monotonic() < due:
        try:
            with PortForward(server, SPACE, pod, port) as forward:
                forward.socket.settimeout(PATIENCE)
                forward.socket.sendall(f"GET /{count} HTTP/1.0\r\n\r\n".encode())
                if forward.socket.recv(64).startswith(b"HTTP/1.0 200") or count == "exit":
                    return
        except (KubernetesError, OSError):
            pass
        time.sleep(0.3)
    raise AssertionError(f"{pod} does not listen")


class Tracing:
    """``podscope run -o json`` in the background.

    Args:
        arguments: of ``podscope run``.
        speakers: so many Jobs must run before the block begins.
    """

    def __init__(
        self,
        cluster: Cluster,
        *arguments: str,
        speakers: int = 2,
        command: str = "run",
        form: str = "-o",
    ) -> None:
        words = [sys.executable, "-m", "podscope", command, *arguments, form, "json", "-n", SPACE]
        self._process = subprocess.Popen(
            [*words, "--kubeconfig", cluster.kubeconfig],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"BPFTRACE_STRLEN": "32"},
        )
        self._speakers = speakers
        self.lines: list[Row] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.errors = ""

    def __enter__(self) -> Self:
        # Twice: by then all probes are in place.
        self.wait(lambda: len(self.ticks()) >= self._speakers and min(self.ticks().values()) >= 2)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ticks(self) -> dict[str, int]:
        """How often each node has said that it runs."""
        found: dict[str, int] = {}
        for one in list(self.lines):
            if one.get("text") == "tick\n":
                found[one["node"]] = found.get(one["node"], 0) + 1
        return found

    def wait(self, met: Callable[[], bool]) -> None:
        due = time.monotonic() + PATIENCE
        while not met():
            assert time.monotonic() < due, (self.lines[-5:], self.ticks())
            assert self._process.poll() is None, self._process.communicate()[1]
            time.sleep(0.1)

    def end(self) -> Row:
        """By Ctrl-C; the summary."""
        self._process.send_signal(2)
        return self.summary()

    def summary(self) -> Row:
        """At its own end."""
        self._thread.join(PATIENCE)
        self._process.wait(PATIENCE)
        assert self._process.stderr is not None
        self.errors = self._process.stderr.read()
        assert self.lines, self.errors
        assert self.lines[-1]["kind"] == "summary"
        return self.lines[-1]

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def maps(self) -> dict[str, dict[tuple[Any, ...], Any]]:
        """Of the end, by name and key."""
        return {
            one["name"]: {
                tuple(entry.pop("key")): entry.get("value", entry) for entry in one["entries"]
            }
            for one in self.lines
            if one["kind"] == "map"
        }

    def kill(self) -> None:
        """Without a word."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(json.loads(line))


def lost(summary: Row) -> dict[str, int]:
    """What is missing, but for the last line of each node: bpftrace drops what it has not read
    when it is told to end."""
    missing = dict(summary["lost"])
    if missing.get("lines", 0) <= len(summary["expected"]):
        missing.pop("lines", None)
    return missing


def listed(cluster: Cluster) -> list[Row]:
    """Traces, as ``podscope get`` has them."""
    told = cluster.podscope_here("get", "-n", SPACE, "-o", "json")
    assert told.returncode == 0, told.stderr
    return [json.loads(line) for line in told.stdout.splitlines()]
