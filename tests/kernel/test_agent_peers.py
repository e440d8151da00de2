# SPDX-License-Identifier: Apache-2.0
"""Who an agent says is at the other end of connections over IPv6, from a pod's cgroup."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from test_agent_events import Pod
from test_agent_events import Running
from test_agent_events import pod  # noqa: F401
from test_agent_events import running
from test_kubernetes_identity import pod_json

from podscope.batch import Identity
from podscope.schema import CLIENT

POD, NODE, OUTSIDE, SERVICE = "fd00:1::7", "fd00:2::1", "2001:db8::5", "fd00:96::1"
# Joins the pod, in a network namespace of its own with all the addresses; then answers itself at
# each address that it is asked for. A Service's is no address of anything: only NAT knows it.
SPEAKER = f"""
import ctypes, os, socket, subprocess, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET
def run(*words):
    return subprocess.run(words, capture_output=True).returncode == 0
assert run("ip", "link", "set", "lo", "up")
for address in ("{POD}", "{NODE}", "{OUTSIDE}"):
    assert run("ip", "-6", "address", "add", address + "/128", "dev", "lo", "nodad")
rule = ("OUTPUT", "-d", "{SERVICE}", "-j", "DNAT", "--to-destination", "{POD}")
nat = run("ip", "-6", "route", "add", "default", "dev", "lo") and run(
    "ip6tables", "-t", "nat", "-A", *rule)
print("nat" if nat else "no nat", flush=True)
listener = socket.create_server(("::", 8080), family=socket.AF_INET6)
for line in sys.stdin:
    for address in line.split():
        client = socket.create_connection((address, 8080))
        server, _ = listener.accept()
        client.sendall(b"GET /v6 HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        server.recv(4096)
        server.sendall(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
        client.recv(4096)
        client.close()
        server.close()
    print("asked", flush=True)
"""


@contextmanager
def speaking(of: Pod) -> Iterator[subprocess.Popen[str]]:
    """The program; its first line has been read by then."""
    with subprocess.Popen(
        [sys.executable, "-c", SPEAKER, str(of.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        try:
            yield process
        finally:
            process.stdin.close()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def fill(of: Pod) -> None:
    """The pod, and a pod, a node and a Service that have addresses."""
    of.appears()
    owner = ("StatefulSet", "db", "u-sts")
    of.server.put("api/v1/pods", pod_json("db-0", "u-db", owner=owner, ips=[POD], node="node-2"))
    addresses = [{"type": "InternalIP", "address": NODE}]
    node = {"metadata": {"name": "node-3", "uid": "u-node"}, "status": {"addresses": addresses}}
    of.server.put("api/v1/nodes", node)
    about = {"name": "web", "namespace": "shop", "uid": "u-service"}
    of.server.put("api/v1/services", {"metadata": about, "spec": {"clusterIPs": [SERVICE]}})


def peers(found: Running) -> list[tuple[str, str, str, int]]:
    """Of the pod's requests: kind, name and pod of each peer, and how many there were."""
    told = []
    for batch in list(found.batches):
        if batch.kind != "http" or batch.peers is None:
            continue
        for row, own, peer in zip(batch.rows, batch.identity, batch.peers, strict=True):
            if batch.identities[own].pod == "web-1" and row["key"]["side"] == CLIENT:
                one = batch.identities[peer] if peer >= 0 else Identity("?", "")
                told.append((one.kind, one.name, one.pod, int(row["count"])))
    return sorted(told)


def test_peers_over_ipv6_are_a_pod_a_node_or_outside(pod: Pod) -> None:  # noqa: F811
    # GIVEN
    fill(pod)
    with running(pod, ()) as found, speaking(pod) as program:
        line(program)

        # WHEN
        print(POD, NODE, OUTSIDE, file=program.stdin, flush=True)
        assert line(program) == "asked"
        found.until(lambda: len(peers(found)) == 3)

    # THEN
    assert peers(found) == [
        ("external", "", "", 1),
        ("node", "node-3", "", 1),
        ("statefulset", "db", "db-0", 1),
    ]


def test_a_services_ipv6_address_is_seen_before_nat(pod: Pod) -> None:  # noqa: F811
    # GIVEN
    fill(pod)
    with running(pod, ()) as found, speaking(pod) as program:
        if line(program) != "nat":
            pytest.skip("no NAT for IPv6 here (ip6tables): a Service's address leads nowhere")

        # WHEN
        print(SERVICE, file=program.stdin, flush=True)
        assert line(program) == "asked"
        found.until(lambda: peers(found))

    # THEN
    assert peers(found) == [("service", "web", "", 1)]
