# SPDX-License-Identifier: Apache-2.0
"""Makes recorded.bin and traced.jsonl: a short run of all sources, and of scripts, for tests.

    sudo .venv/bin/python tests/engines/record.py

The demo's shop answers its visitors, and some more happens that dashboards have panels for. What
podscope saw of it is kept as it was; only whose the rows are is told anew, as if each program had
been a pod.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from podscope import pipeline
from podscope import wire
from podscope.batch import Batch
from podscope.batch import Identity
from podscope.batch import Service
from podscope.sources.dns import DnsOptions
from podscope.sources.tcp import EVENTS
from podscope.sources.tcp import TcpOptions

OUT = Path(__file__).with_name("recorded.bin")
TRACED = Path(__file__).with_name("traced.jsonl")
SCRIPTS = ("tcpaccept", "tcplife", "tcpstate", "tcpwin")
MOST_ROWS = 25
DEMO = Path(__file__).parents[2] / "demo"
KINDS = ("http", "request", "oom", "listen", "tcp", "tcp_event", "dns", "dns_lookup")
SECONDS = 14
MOST_EVENTS = 150
# What tells sorts of single events apart: there are to be some of each.
SORTS = {"request": ["status"], "tcp_event": ["what", "error"], "dns_lookup": ["code"]}


def pod(kind: str, name: str, namespace: str, node: str, *services: Service) -> Identity:
    """Of whom a program's rows are told to be."""
    return Identity(
        kind, name, "python3", 0, f"{name:0<64}"[:64].encode().hex()[:64], namespace=namespace,
        pod=f"{name}-5d4f-x7k", pod_uid=f"uid-{name}", container=name, node=node,
        services=services,
    )  # fmt: skip


PODS = {
    "shop": pod("deployment", "shop", "store", "node-1", Service("shop", (18080,), (80,))),
    "api": pod("deployment", "api", "store", "node-2", Service("api", (18081,), (80,))),
    "auth": pod("statefulset", "auth", "login", "node-2", Service("auth", (18082,), (80,))),
    "browser": pod("deployment", "browser", "visitors", "node-1"),
    "mobile": pod("deployment", "mobile", "visitors", "node-2"),
    "queue": pod("deployment", "queue", "store", "node-1", Service("queue")),
    "resolver": pod("deployment", "coredns", "kube-system", "node-1", Service("dns", (53,), (53,))),
    "greedy": pod("job", "report", "store", "node-2"),
}
PEERS = {
    port: Identity("service", service.name, namespace=one.namespace, services=(service,))
    for one in PODS.values()
    for service in one.services
    for port in service.ports
}

# A port where nobody listens (discard, RFC 863): packets to it are dropped.
NOWHERE = 9
QUEUE = """
import socket, time
full = socket.create_server(("127.0.0.1", 0), backlog=2)
ends = []
for _ in range(9):
    end = socket.socket(); end.setblocking(False); end.connect_ex(full.getsockname())
    ends.append(end)
    time.sleep(0.2)
refused = socket.socket()
refused.connect_ex(("127.0.0.1", 9))
one, _ = full.accept()
one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
one.close()
time.sleep(60)
"""
RESOLVER = """
import socket, sys, time
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
for number in range(1 << 30):
    asked, whence = server.recvfrom(512)
    time.sleep(0.002)
    code = (0, 0, 0, 3, 0, 2)[number % 6]
    server.sendto(asked[:2] + bytes([0x81, 0x80 | code]) + asked[4:], whence)
"""
GREEDY = """
import os, sys, time
time.sleep(3)
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
held = bytearray()
while True:
    held += bytes(1 << 20)
"""


def main() -> None:
    """Records, and writes the file."""
    host = f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255 | 1}"
    memory = memory_cgroup()
    commands = {
        **{name: [DEMO / "service.py", name, "60"] for name in ("shop", "api", "auth")},
        **{name: [DEMO / "visitor.py", name, "60"] for name in ("browser", "mobile")},
        "queue": ["-c", QUEUE],
        "resolver": ["-c", RESOLVER, host],
        "greedy": ["-c", GREEDY, memory],
    }
    running: dict[str, subprocess.Popen[bytes]] = {}
    sources = {"tcp": TcpOptions(events=EVENTS, window_seconds=0.5), "dns": DnsOptions()}
    try:
        with pipeline.watch(KINDS, peers=False, sources=sources) as watched:
            threading.Timer(SECONDS, watched.stop).start()
            for name, command in commands.items():
                running[name] = subprocess.Popen([sys.executable, *map(str, command)])
            threading.Thread(target=ask, args=(host,), daemon=True).start()
            threading.Thread(target=order, daemon=True).start()
            batches = list(watched)
    finally:
        for one in running.values():
            one.kill()
            one.wait()
        time.sleep(0.1)
        os.rmdir(memory)
    trace()
    whose = {one.pid: name for name, one in running.items()} | {os.getpid(): "api"}
    kept = [told(batch, whose) for batch in batches]
    OUT.write_bytes(b"".join(map(wire.packed, chosen(kept))))
    print(f"{OUT}: {OUT.stat().st_size} bytes")


def memory_cgroup() -> str:
    """A memory cgroup with a small limit."""
    v1 = Path("/sys/fs/cgroup/memory")
    root = v1 if (v1 / "memory.limit_in_bytes").exists() else Path("/sys/fs/cgroup")
    made = Path(tempfile.mkdtemp(prefix="podscope-record-", dir=root))
    limit = made / "memory.limit_in_bytes"
    (limit if limit.exists() else made / "memory.max").write_text(str(32 << 20))
    return str(made)


def ask(host: str) -> None:
    """Lookups of a few names, one after the other."""
    time.sleep(4)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        names = itertools.cycle(("api.store.svc.cluster.local", "example.com", "no.such.name"))
        for number, name in zip(range(1, 200), names, strict=False):
            labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
            head = struct.pack("!6H", number, 0x0100, 1, 0, 0, 0)
            client.sendto(head + labels + b"\0" + struct.pack("!2H", 1, 1), (host, 53))
            with contextlib.suppress(TimeoutError):
                client.recv(512)
            time.sleep(0.02)


def trace() -> None:
    """Rows that scripts print of a little traffic."""
    stop = threading.Event()
    threading.Thread(target=talk, args=(stop,)).start()
    lines = []
    for name in SCRIPTS:
        command = [sys.executable, "-m", "podscope", "run", name, "-o", "json", "--deadline", "5s"]
        told = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        rows = [json.loads(line) for line in told.splitlines()][:MOST_ROWS]
        lines += [json.dumps({"script": name, "row": row}) + "\n" for row in rows]
    stop.set()
    TRACED.write_text("".join(lines))


def talk(stop: threading.Event) -> None:
    """Connections that come, say something, and go."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        while not stop.wait(0.1):
            one = socket.create_connection(listener.getsockname())
            other, _ = listener.accept()
            with one, other:
                one.sendall(b"x" * 3000)
                other.recv(3000)
                other.sendall(b"y" * 100)
                one.recv(100)


def order() -> None:
    """Requests of clients of the recorder's own, until some of them have failed."""
    time.sleep(4)
    wanted = {("/v1/orders", 18081, 503), ("/token", 18082, 401)}
    for path, port, status in wanted:
        told = 0
        while told < 3:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("POST", path, "{}")
            answer = connection.getresponse()
            answer.read()
            connection.close()
            told += answer.status == status


def told(batch: Batch, whose: dict[int, str]) -> Batch:
    """The rows of the programs alone, as of their pods; what comes to NOWHERE is nobody's."""
    pids = batch.keys["pid"].tolist()
    nobodys = np.zeros(len(batch), bool)
    if batch.kind == "tcp_event":
        nobodys = batch.rows["local_port"] == NOWHERE
    mine = np.isin(pids, [*whose]) | nobodys
    some = batch.where(mine)
    names = [*PODS, ""]
    owners = [whose.get(pid, "") for pid, kept in zip(pids, mine.tolist(), strict=True) if kept]
    index = np.array([names.index(name) for name in owners], dtype=np.uint32)
    peers = np.full(len(some), -1, np.int32)
    for place, port in enumerate(ports(some)):
        if port in PEERS:
            peers[place] = len(names) + [*PEERS].index(port)
    identities = (*PODS.values(), Identity("unknown", ""), *PEERS.values())
    return replace(some, identity=index, identities=identities, peers=peers)


def ports(batch: Batch) -> Iterator[int]:
    """Of the other end, where it is the server; else 0."""
    keys = batch.keys
    names = keys.dtype.names or ()
    clients = keys["side"] == 2 if "side" in names else np.zeros(len(batch), bool)
    port = next((name for name in ("port", "peer_port", "local_port") if name in names), None)
    if batch.kind == "request":
        port = "peer_port"
    numbers = keys[port].tolist() if port else [0] * len(batch)
    return (number if client else 0 for number, client in zip(numbers, clients, strict=True))


def chosen(batches: list[Batch]) -> Iterator[Batch]:
    """One batch of each kind; of single events at most so many, of every sort."""
    for kind in KINDS:
        whole = wire.together([one for one in batches if one.kind == kind and len(one)])
        if kind in SORTS:
            sorts, places = np.unique(whole.rows[SORTS[kind]], return_inverse=True)
            most = MOST_EVENTS // len(sorts)
            each = [np.flatnonzero(places == n)[:most] for n in range(len(sorts))]
            keep = np.zeros(len(whole), bool)
            keep[np.concatenate(each)] = True
            whole = whole.where(keep)
        yield replace(whole, interval=whole.interval and 1.0)
        print(f"{kind}: {len(whole)} rows")


if __name__ == "__main__":
    main()
