# SPDX-License-Identifier: Apache-2.0
"""Our reflector beside lightkube's own list and watch, against the same server: JSON on stdout.

Each client is a process of its own: it lists 5,000 pods of about 4.5 kB, keeps them by uid, and
takes 5,000 changes. ``names`` is our reflector with the indexes of `Cluster`; ``one_page`` the same
where the server answers in one piece, as real ones do for resourceVersion=0. RSS is of the whole
process, after all and at its peak; CPU is of its changes alone.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))

from fake_api_server import FakeApiServer

CLIENTS = ("ours", "names", "one_page", "lightkube")
PATH = "api/v1/pods"
WAIT_SECONDS = 120


def main() -> int:
    """Prints one JSON object; 1 if a client failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--events", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        print(json.dumps(CLIENT_MAINS[args.client](args.url, args.pods, args.events)))
        return 0
    bodies = [pod(number) for number in range(args.pods)]
    rounds = [
        {name: one_round(name, bodies, args.events) for name in CLIENTS} for _ in range(args.rounds)
    ]
    report: dict[str, Any] = {
        "pods": args.pods,
        "pod_bytes": len(json.dumps(bodies[0])),
        "events": args.events,
        "rounds": args.rounds,
    }
    for name in CLIENTS:
        values = [one[name] for one in rounds]
        report[name] = {
            key: round(statistics.median(value[key] for value in values), 3) for key in values[0]
        }
    print(json.dumps(report))
    return 0


def one_round(client: str, bodies: list[dict[str, Any]], events: int) -> dict[str, float]:
    """Runs one client against a server of its own. Raises CalledProcessError."""
    with FakeApiServer() as server:
        for body in bodies:
            server.put(PATH, body)
        server.forget(PATH)
        server.collection(PATH).oldest = 0
        changes = [("MODIFIED", changed(bodies[n % len(bodies)], n)) for n in range(events)]
        command = [sys.executable, __file__, "--client", client, "--url", server.url]
        command += ["--pods", str(len(bodies)), "--events", str(events)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            wait_for_watch(server, process)
            server.replay(PATH, changes)
            output, _ = process.communicate(timeout=WAIT_SECONDS)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        result: dict[str, float] = json.loads(output)
        return result


def wait_for_watch(server: FakeApiServer, process: subprocess.Popen[bytes]) -> None:
    """Until the client watches, and some more, so that its own time does not begin with a wait."""
    ends = time.monotonic() + WAIT_SECONDS
    while not server.asked("watch") and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.02)
    time.sleep(0.2)


# --- clients ------------------------------------------------------------------------------------


class Clock:
    """Wall and CPU time from the first change to the last."""

    def __init__(self, events: int) -> None:
        self.done = threading.Event()
        self._events = events
        self._count = 0
        self._began = (0.0, 0.0)
        self._ended = (0.0, 0.0)

    def tick(self) -> None:
        """One change came."""
        if not self._count:
            self._began = (time.perf_counter(), time.process_time())
        self._count += 1
        if self._count == self._events:
            self._ended = (time.perf_counter(), time.process_time())
            self.done.set()

    def report(self, list_seconds: float) -> dict[str, float]:
        """The figures of one client."""
        wall, cpu = (end - begin for end, begin in zip(self._ended, self._began, strict=True))
        return {
            "list_seconds": list_seconds,
            "events_per_second": (self._events - 1) / wall,
            "cpu_us_per_event": cpu / (self._events - 1) * 1e6,
            "rss_mb": memory("VmRSS"),
            "peak_mb": memory("VmHWM"),
        }


def ours(
    url: str, pods: int, events: int, *, names: bool = False, page_size: int = 500
) -> dict[str, float]:
    """Our reflector."""
    from podscope.identity.kubernetes import Cluster
    from podscope.identity.kubernetes_client import ApiServer
    from podscope.identity.reflector import PODS
    from podscope.identity.reflector import Reflector

    clock = Clock(events)
    began = time.perf_counter()
    reflector = Reflector(ApiServer(url), PODS, page_size=page_size)
    cluster = Cluster()
    if names:
        reflector.on_change(cluster.pod_changed)
    reflector.on_change(lambda old, new: clock.tick() if old else None)
    with reflector:
        assert reflector.synced.wait(WAIT_SECONDS)
        listed = time.perf_counter() - began
        assert clock.done.wait(WAIT_SECONDS)
        store = reflector.store
        assert len(store) == pods
        return clock.report(listed)


def with_names(url: str, pods: int, events: int) -> dict[str, float]:
    """Our reflector and its indexes."""
    return ours(url, pods, events, names=True)


def one_page(url: str, pods: int, events: int) -> dict[str, float]:
    """The same with a list in one piece."""
    return ours(url, pods, events, names=True, page_size=10 * pods)


def lightkube(url: str, pods: int, events: int) -> dict[str, float]:
    """What lightkube has: a list, a watch, and a dict."""
    from lightkube import ALL_NS
    from lightkube import Client
    from lightkube import KubeConfig
    from lightkube.config.models import Cluster
    from lightkube.config.models import User
    from lightkube.resources.core_v1 import Pod

    config = KubeConfig.from_one(cluster=Cluster(server=url), user=User())
    clock = Clock(events)
    began = time.perf_counter()
    client = Client(config)
    listing = client.list(Pod, namespace=ALL_NS, chunk_size=500)
    store = {found.metadata.uid: found for found in listing}
    listed = time.perf_counter() - began
    for kind, found in client.watch(
        Pod, namespace=ALL_NS, resource_version=listing.resourceVersion
    ):
        assert kind == "MODIFIED"
        store[found.metadata.uid] = found
        clock.tick()
        if clock.done.is_set():
            break
    assert len(store) == pods
    return clock.report(listed)


CLIENT_MAINS: dict[str, Callable[[str, int, int], dict[str, float]]] = {
    "ours": ours,
    "names": with_names,
    "one_page": one_page,
    "lightkube": lightkube,
}


def memory(key: str) -> float:
    """MB of this process, by a key of /proc/self/status."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(found[1]) / 1024 if found else 0.0


# --- pods ---------------------------------------------------------------------------------------


def changed(body: dict[str, Any], number: int) -> bytes:
    """A later state of a pod, as a watch sends it."""
    metadata = {**body["metadata"], "resourceVersion": str(10_000_000 + number)}
    return json.dumps({**body, "metadata": metadata}).encode()


def pod(number: int) -> dict[str, Any]:
    """A pod as clusters have them, with the parts that we skip."""
    hash_ = f"{number // 10:09x}"
    name = f"checkout-{number // 10}"
    container = {
        "name": "app",
        "image": f"registry.example.com/shop/{name}:1.2.3",
        "args": ["--listen=:8080", "--log=json"],
        "env": [
            {"name": f"SETTING_{n}", "value": f"a value of some length {n} {number}"}
            for n in range(12)
        ],
        "resources": {"limits": {"cpu": "1", "memory": "512Mi"}},
        "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/x", "readOnly": True}],
        "terminationMessagePath": "/dev/termination-log",
        "imagePullPolicy": "IfNotPresent",
    }
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z",
         "lastProbeTime": None}
        for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    ]  # fmt: skip
    statuses = [
        {
            "name": kind,
            "containerID": f"containerd://{number:032x}{place:032x}",
            "image": f"registry.example.com/shop/{name}:1.2.3",
            "imageID": f"registry.example.com/shop/{name}@sha256:{number:064x}",
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            "ready": True,
            "restartCount": 0,
        }
        for place, kind in enumerate(("app", "proxy"))
    ]
    return {
        "metadata": {
            "name": f"{name}-{hash_}-{number:05x}",
            "generateName": f"{name}-{hash_}-",
            "namespace": f"shop-{number % 50}",
            "uid": f"{number:08x}-1111-4222-8333-{number:012x}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "app.kubernetes.io/name": name,
                "app.kubernetes.io/version": "1.2.3",
                "pod-template-hash": hash_,
                "team": f"team-{number % 20}",
            },
            "annotations": {"example.com/configuration": "x" * 950},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": f"{name}-{hash_}",
                    "uid": f"{number // 10:08x}-4444-4222-8333-{number:012x}",
                    "controller": True,
                }
            ],
        },
        "spec": {
            "nodeName": f"node-{number % 100}.example.com",
            "containers": [container, {**container, "name": "proxy", "env": []}],
            "volumes": [{"name": "token", "projected": {"defaultMode": 420}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}],
        },
        "status": {
            "phase": "Running",
            "conditions": conditions,
            "podIPs": [{"ip": f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"}],
            "containerStatuses": statuses,
        },
    }


if __name__ == "__main__":
    sys.exit(main())
