# SPDX-License-Identifier: Apache-2.0
"""What the agent of a node costs in a large cluster: JSON on stdout.

An API server with 5,000 pods, 50 of them on this node: processes in cgroups as the kubelet makes
them, which make 1,000 series that all move every second. The node is a cgroup, which the agent has
for its root, so that traffic of others on this machine is not counted; and the agent has a service
account, as in a pod. RSS and CPU are of the agent's process; ``first_row_s`` is from its start to
the first row with a pod's name in its metrics, and ``first_row_cpu_s`` its CPU time until then.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))

import agent as whole
import nginx
import reflector
from certificates import self_signed
from fake_api_server import FakeApiServer
from fake_api_server import facts

from podscope.errors import PodscopeError
from podscope.identity.kubernetes_client import SERVICE_ACCOUNT
from podscope.kernel.probes import find_cgroup2

NODE = "bench-node"
PODS_HERE = 50
ROUTES = 10  # a series each, on both sides
PATIENCE = 60.0
# As in the image.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
    "MALLOC_MMAP_THRESHOLD_": "524288",
}
# Its arguments: the node's cgroup, the mount of cgroups, where a pod finds its service account,
# what is to be there, and a command, which gets the shell's process id.
INSIDE = """
    echo $$ > "$1/cgroup.procs"
    exec unshare --cgroup --mount sh -ec '
        mount --bind "$1" "$2"
        mount -t tmpfs tmpfs /run
        mkdir -p "$3"
        cp "$4"/* "$3"
        shift 4
        exec "$@"
    ' sh "$@"
"""
# Asks itself for each route once a second.
PROGRAM = f"""
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
due = time.monotonic()
while True:
    for route in "abcdefghij"[:{ROUTES}]:
        client.sendall(f"GET /{{route}} HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n".encode())
        server.recv(4096)
        server.sendall(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
        client.recv(4096)
    due += 1
    time.sleep(max(0, due - time.monotonic()))
"""
RESOURCES = {
    "api/v1/pods": "pods",
    "api/v1/services": "services",
    "api/v1/namespaces": "namespaces",
    "api/v1/nodes": "nodes",
    "apis/discovery.k8s.io/v1/endpointslices": "slices",
}


def main() -> int:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--seconds", type=int, default=20)
    args = parser.parse_args()
    with ExitStack() as stack:
        account = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(FakeApiServer(service_account(account)))
        fill(server, args.pods)
        node = stack.enter_context(node_cgroup())
        stack.enter_context(running_pods(node))
        begin = time.monotonic()
        pid, url = stack.enter_context(running_agent(server.url, account, node))
        first = wait_for_rows(url) - begin
        first_cpu = whole.cpu_seconds(pid)
        time.sleep(5)
        before, user, since = whole.cpu_seconds(pid), user_seconds(pid), time.monotonic()
        time.sleep(args.seconds)
        passed = time.monotonic() - since
        cpu = 100 * (whole.cpu_seconds(pid) - before) / passed
        user = 100 * (user_seconds(pid) - user) / passed
        status = Path(f"/proc/{pid}/status").read_text()
        report: dict[str, Any] = {
            "pods": args.pods,
            "series": series(url),
            "first_row_s": round(first, 2),
            "first_row_cpu_s": round(first_cpu, 2),
            "agent_cpu_pct": round(cpu, 2),
            "agent_user_cpu_pct": round(user, 2),
            "rss_mb": round(whole.memory_kb(status, "VmRSS") / 1024, 1),
            "rss_peak_mb": round(whole.memory_kb(status, "VmHWM") / 1024, 1),
        }
    print(json.dumps(report))
    return 0


def fill(server: FakeApiServer, pods: int) -> None:
    """Pods, of which the first stand on this node; nothing of the rest."""
    for path in RESOURCES:
        server.collection(path)
    for number in range(pods):
        made = reflector.pod(number)
        if number < PODS_HERE:
            made["spec"]["nodeName"] = NODE
        made["status"]["podIP"] = f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"
        made["status"]["podIPs"] = [{"ip": made["status"]["podIP"]}]
        server.put("api/v1/pods", made)
    for body in server.collection("api/v1/pods").objects.values():
        facts(body)


def user_seconds(pid: int) -> float:
    """User time of a process, in steps of the clock's ticks (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def service_account(directory: Path) -> ssl.SSLContext:
    """Writes what a pod has to talk to the API server; gives the server's side of it."""
    cert, key = self_signed(directory)
    shutil.copy(cert, directory / "ca.crt")
    (directory / "token").write_text("t")
    (directory / "namespace").write_text("podscope")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    return tls


@contextmanager
def node_cgroup() -> Iterator[Path]:
    """The cgroup that is the node's root."""
    node = Path(find_cgroup2()) / f"podscope-bench-{os.getpid()}"
    node.mkdir()
    try:
        yield node
    finally:
        remove(node)


@contextmanager
def running_pods(root: Path) -> Iterator[None]:
    """A process for each pod of this node, in a cgroup named as the kubelet does."""
    slices: list[Path] = []
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(PODS_HERE):
            made = reflector.pod(number)
            container = made["status"]["containerStatuses"][0]["containerID"]
            pod = root / f"kubepods/burstable/pod{made['metadata']['uid']}"
            place = pod / container.removeprefix("containerd://")
            place.mkdir(parents=True)
            slices += [place, pod]
            processes.append(subprocess.Popen([sys.executable, "-S", "-c", PROGRAM]))
            (place / "cgroup.procs").write_text(str(processes[-1].pid))
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for place in [*slices, root / "kubepods/burstable", root / "kubepods"]:
            remove(place)


def remove(place: Path) -> None:
    """The kernel needs a moment to see that a cgroup is empty."""
    deadline = time.monotonic() + 5
    while place.exists():
        try:
            place.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def running_agent(api: str, account: Path, node: Path) -> Iterator[tuple[int, str]]:
    """The agent's process id, and where its metrics are."""
    address = f"127.0.0.1:{nginx.free_port()}"
    agent = [str(whole.PODSCOPE), "agent", "--node", NODE, "--listen", address]
    command = ["sh", "-ec", INSIDE, "sh", node, find_cgroup2(), SERVICE_ACCOUNT, account, *agent]
    host, _, port = api.removeprefix("https://").partition(":")
    in_pod = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    environment = {**os.environ, **MALLOC, **in_pod}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    try:
        yield process.pid, f"http://{address}/metrics"
    finally:
        process.terminate()
        process.communicate(timeout=whole.PATIENCE)


def wait_for_rows(url: str) -> float:
    """When the metrics had a pod's name."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if "k8s_pod_name=" in metrics(url):
            return time.monotonic()
        time.sleep(0.02)
    raise PodscopeError(f"{url}: no row of a pod in {PATIENCE:g} s")


def metrics(url: str) -> str:
    """The exposition; empty while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return ""


def series(url: str) -> int:
    """Series in the exposition."""
    found = re.search(r"^podscope_agent_series (\d+)", metrics(url), re.MULTILINE)
    if found is None:
        raise PodscopeError(f"{url}: no podscope_agent_series")
    return int(found[1])


if __name__ == "__main__":
    sys.exit(main())
