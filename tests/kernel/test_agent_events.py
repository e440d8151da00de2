# SPDX-License-Identifier: Apache-2.0
"""An agent's rows of all sources, of cgroups that have the paths of pods, with the pods' names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from fake_api_server import FakeApiServer
from test_kubernetes_identity import pod_json
from test_oom import GREEDY
from test_oom import Memory
from test_oom import memory_root

from podscope.agent import Agent
from podscope.batch import Batch
from podscope.errors import PodscopeError
from podscope.identity.kubernetes_client import ApiServer
from podscope.kernel.probes import find_cgroup2
from podscope.sources import source as sources
from podscope.streams import Asked
from podscope.streams import Streams

NODE = "node-1"
UID = "2d5133c0-65f3-40b2-b375-c04866d418e1"
CONTAINER = "4f79" * 16
KINDS = ("oom", "listen", "tcp", "dns")
SECONDS = 60
COLLECTIONS = (
    "api/v1/pods",
    "api/v1/services",
    "api/v1/namespaces",
    "api/v1/nodes",
    "apis/discovery.k8s.io/v1/endpointslices",
)
# Joins the pod; then listens, and makes connections that nobody accepts.
BUSY = """
import os, socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
listener = socket.create_server(("127.0.0.1", 0), backlog=3)
port = listener.getsockname()[1]
ends = []
for _ in range(12):
    end = socket.socket()
    end.setblocking(False)
    end.connect_ex(("127.0.0.1", port))
    ends.append(end)
print(port, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Pod:
    """A pod's cgroup of version 2, and its API server."""

    path: Path
    server: FakeApiServer

    def appears(self) -> None:
        """The API server tells of it."""
        made = pod_json(
            "web-1", UID, owner=("StatefulSet", "web", "u-web"), containers={CONTAINER: "app"}
        )
        self.server.put("api/v1/pods", made)


@pytest.fixture
def pod() -> Iterator[Pod]:
    top = Path(find_cgroup2()) / f"podscope-test-{os.getpid()}-pods"
    path = top / "kubepods" / "burstable" / f"pod{UID}" / CONTAINER
    path.mkdir(parents=True)
    with FakeApiServer() as server:
        for one in COLLECTIONS:
            server.collection(one)
        yield Pod(path, server)
    for one in (path, *path.parents[:4]):
        deadline = time.monotonic() + 5
        while one.exists():
            with suppress(OSError):
                one.rmdir()
            assert time.monotonic() < deadline


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory(memory_root() / f"podscope-test-{os.getpid()}-agent", 32 << 20)
    yield made
    made.remove()


class Running:
    """An agent in a thread of its own, and what it has told."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.batches: list[Batch] = []
        self._thread = threading.Thread(target=lambda: self.batches.extend(agent))
        self._thread.start()

    def rows(self, kind: str) -> list[dict]:
        """Rows of the pod, also of one whose name is not known, as objects."""
        found = []
        for batch in list(self.batches):
            if batch.kind == kind and len(batch):
                names = [one for one, _ in batch.told()]
                columns = [column.tolist() for _, column in batch.told()]
                found += [
                    {one.name: value for one, value in zip(names, row, strict=True)}
                    for row in zip(*columns, strict=True)
                ]
        return [row for row in found if row.get("k8s.pod.uid") == UID]

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, {one.kind: len(one) for one in self.batches}
            time.sleep(0.02)

    def end(self) -> None:
        self.agent.stop()
        self._thread.join(SECONDS)


@contextmanager
def running(pod: Pod, kinds: tuple[str, ...] = KINDS) -> Iterator[Running]:
    with Agent(ApiServer(pod.server.url), NODE, Streams(), 0.5, kinds) as agent:
        assert agent.identities.wait(SECONDS)
        made = Running(agent)
        try:
            made.until(lambda: agent.is_whole)
            yield made
        finally:
            made.end()


@contextmanager
def busy(pod: Pod) -> Iterator[int]:
    """A process of the pod that does all that is counted; its listener's port."""
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, str(pod.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield int(process.stdout.readline())
        process.stdin.close()
        process.wait(SECONDS)


def outgrow(pod: Pod, memory: Memory) -> None:
    """A process of the pod that is killed for its memory."""
    program = (
        "import os, sys\n"
        "open(sys.argv[2] + '/cgroup.procs', 'w').write(str(os.getpid()))\n" + GREEDY
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(memory.path), str(pod.path)]
    ) as process:
        assert process.wait(SECONDS) in (-signal.SIGKILL, 128 + signal.SIGKILL)


def test_rows_of_all_sources_have_the_pods_name(pod, memory):
    # GIVEN an agent whose sources run always
    pod.appears()
    with running(pod) as found:
        assert found.agent.refused == {}

        # WHEN a process of a pod listens, connects, and another is killed
        with busy(pod) as port:
            outgrow(pod, memory)
            found.until(lambda: found.rows("oom") and found.rows("listen") and found.rows("tcp"))
        found.end()

    # THEN
    for kind in ("oom", "listen", "tcp"):
        names = {(row["k8s.pod.name"], row["k8s.container.name"]) for row in found.rows(kind)}
        assert names == {("web-1", "app")}, kind
        assert {row["k8s.statefulset.name"] for row in found.rows(kind)} == {"web"}
    assert len(found.rows("oom")) == memory.kills() == 1
    assert {row["server.port"] for row in found.rows("listen")} == {port}
    assert sum(row["podscope.tcp.connects"] for row in found.rows("tcp")) >= 4


def test_rows_of_a_pod_that_stays_unknown_are_there_when_the_agent_ends(pod, memory):
    # GIVEN an API server that does not tell of the pod
    with running(pod, ("oom",)) as found:
        # WHEN it ends while the row still waits
        outgrow(pod, memory)
        time.sleep(1)
        assert found.rows("oom") == []
        found.end()

    # THEN
    (row,) = found.rows("oom")
    assert (row["k8s.pod.name"], row["container.id"]) == (None, CONTAINER)


def test_who_listens_to_events_gets_them_beside_the_agents_own(pod):
    # GIVEN
    pod.appears()
    with running(pod) as found, busy(pod) as port:
        # WHEN
        stream = found.agent.events(Asked(("listen",), 0.2))
        ports = {row["port"] for batch in [next(stream), next(stream)] for row in batch.rows}
        stream.close()
        found.until(lambda: found.rows("listen"))

    # THEN
    assert port in ports


def test_a_stream_of_events_ends_with_the_agent(pod):
    # GIVEN
    pod.appears()
    with running(pod) as found:
        stream = found.agent.events(Asked(("listen",), 3600.0))
        came: list[int] = []
        thread = threading.Thread(target=lambda: came.extend(len(one) for one in stream))
        thread.start()
        while not found.agent._others:
            time.sleep(0.01)

    # WHEN / THEN it has gone, and the rows of the last moment came
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert came


def test_an_agent_goes_on_without_a_source_that_its_node_cannot_run(pod, monkeypatch):
    # GIVEN
    def refuse(*_: object) -> None:
        raise PodscopeError("this kernel has no such hook")

    found = sources.sources_of(("tcp",))["tcp"]
    monkeypatch.setattr(found, "__init__", refuse)
    pod.appears()

    # WHEN
    with running(pod, ("tcp", "listen")) as agent, busy(pod):
        agent.until(lambda: agent.rows("listen"))

    # THEN
    assert {name: str(why) for name, why in agent.agent.refused.items()} == {
        "tcp": "this kernel has no such hook"
    }
