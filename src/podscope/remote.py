# SPDX-License-Identifier: Apache-2.0
"""Rows of all nodes, from the agents of a cluster, put together interval by interval."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Self
from urllib.parse import urlencode

import msgspec
import numpy as np

from podscope import wire
from podscope.batch import Batch
from podscope.errors import PodscopeError
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import Connection
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.kubernetes_objects import Page
from podscope.identity.kubernetes_objects import Pod
from podscope.identity.port_forward import PortForward
from podscope.schema import Field
from podscope.scope import Scope
from podscope.sources.http import RequestLog
from podscope.sources.source import fields_of
from podscope.stopping import Stop
from podscope.streams import STREAM_PATH
from podscope.streams import STREAM_PORT
from podscope.streams import Asked

NAMESPACE = "podscope"
SELECTOR = "app.kubernetes.io/name=podscope,app.kubernetes.io/component=agent"
TRACES_SELECTOR = f"{SELECTOR},podscope.dev/traces=true"
# Agents tell more often than this, if only that nothing happened.
SILENCE_SECONDS = 30.0
# How long a node that did not answer is left alone.
AGAIN_SECONDS = 2.0
ANSWERED = "answered"
POLL_SECONDS = 0.02
_SAID_BYTES = 500


@dataclass(frozen=True)
class Agent:
    """An agent's pod, and the node it watches."""

    node: str
    pod: str


@dataclass(frozen=True)
class Wanted:
    """Which rows are asked for.

    Attributes:
        kind: of the batches.
        scope: whose.
        log: which requests, of batches of kind ``request``.
        asked: which rows of other sources; ``kind`` is ``events`` then.
    """

    kind: str = "http"
    scope: Scope = field(default_factory=Scope)
    log: RequestLog | None = None
    asked: Asked | None = None

    def path(self, since_ns: int = 0) -> str:
        """Where an agent has them.

        Args:
            since_ns: intervals that ended until then, in Unix time, are here already.
        """
        since = since_ns if self.kind == "http" else 0
        asked = {"scope": self.scope, "log": self.log, "asked": self.asked, "since": since}
        told = {name: msgspec.json.encode(one).decode() for name, one in asked.items() if one}
        return f"{STREAM_PATH}{self.kind}?{urlencode(told)}"


def find_agents(
    server: ApiServer, namespace: str = NAMESPACE, selector: str = SELECTOR
) -> tuple[Agent, ...]:
    """The agents of a cluster, by node.

    Raises:
        PodscopeError: there is none, or no right to ``list pods`` in the namespace.
    """
    connection = Connection(server)
    try:
        body = connection.get(
            f"api/v1/namespaces/{namespace}/pods", {"labelSelector": selector}, SILENCE_SECONDS
        )
    except KubernetesError as error:
        if error.status == http.client.FORBIDDEN:
            raise PodscopeError(
                f"no permission: 'list' on 'pods' in namespace {namespace!r} is missing"
            ) from None
        raise
    finally:
        connection.release()
    pods = msgspec.json.decode(body, type=Page[Pod]).items or ()
    # Of two of a node, as while they are replaced, the one that is ready.
    ordered = sorted(pods, key=lambda pod: pod.ready)
    found = {pod.spec.node_name: pod.metadata.name for pod in ordered if not pod.ending}
    found.pop("", None)
    if not found:
        raise PodscopeError(
            f"there is no agent in namespace {namespace!r}: run 'podscope install', or name the "
            "namespace with --agent-namespace"
        )
    return tuple(Agent(node, pod) for node, pod in sorted(found.items()))


def tracing_agents(server: ApiServer, namespace: str = NAMESPACE) -> dict[str, str]:
    """Pods of the agents that run traces, by node; none without the right to see them."""
    try:
        return {one.node: one.pod for one in find_agents(server, namespace, TRACES_SELECTOR)}
    except PodscopeError:
        return {}


class Nodes:
    """The streams of all agents. Iterate over it, in a ``with``, for one batch an interval.

    Args:
        server: the API server, with the user's rights.
        interval: seconds between two batches.
        wanted: which rows.
        namespace: where the agents are.
    """

    def __init__(
        self,
        server: ApiServer,
        interval: float,
        wanted: Wanted,
        namespace: str = NAMESPACE,
    ) -> None:
        self._server = server
        self._interval = interval
        self._namespace = namespace
        self._wanted = wanted
        self._stopped = Stop()
        self._lock = threading.Lock()
        # By node and kind.
        self._came: dict[tuple[str, str], list[Batch]] = {}
        self._lost: dict[str, int] = {}
        self._fields: dict[str, tuple[Field, ...]] = {}
        # By node and kind: the agent that spoke last, and until when.
        self._until: dict[tuple[str, str], tuple[str, int]] = {}
        self._agents = find_agents(server, namespace)
        self._states = {agent.node: "no answer yet" for agent in self._agents}
        self._forwards: dict[str, PortForward] = {}
        self._threads = [
            threading.Thread(target=self._follow, args=(agent,), daemon=True)
            for agent in self._agents
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        with self._lock:
            forwards = list(self._forwards.values())
        for forward in forwards:
            forward.close()
        for thread in self._threads:
            thread.join(1.0)

    def stop(self) -> None:
        """Ends the iteration after one last batch. May be called from a signal handler."""
        self._stopped.set()

    def lost(self) -> dict[str, int]:
        """What could not be counted since the start, on all nodes, by reason."""
        with self._lock:
            return dict(self._lost)

    def states(self) -> Mapping[str, str]:
        """``answered``, or why not, by node."""
        with self._lock:
            return dict(self._states)

    def __iter__(self) -> Iterator[Batch]:
        due = time.monotonic() + self._interval
        while not self._stopped.wait(POLL_SECONDS):
            now = time.monotonic()
            # Agents do not tick together: one that is a little late is waited for.
            if now < due or (now < due + self._interval / 2 and not self._all_came()):
                continue
            due = max(due + self._interval, now)
            yield from self._taken(0.75 * self._interval)
        yield from self._taken(float("inf"))

    def _all_came(self) -> bool:
        with self._lock:
            came = {node for (node, _), batches in self._came.items() if batches}
            return all(node in came for node, state in self._states.items() if state == ANSWERED)

    def _taken(self, seconds: float) -> Iterator[Batch]:
        """What came, of each node the oldest batches until they make up so many seconds."""
        taken: dict[str, list[Batch]] = {}
        with self._lock:
            for (_, kind), batches in self._came.items():
                mine: list[Batch] = []
                while batches and sum(batch.interval for batch in mine) < seconds:
                    mine.append(batches.pop(0))
                if mine:
                    taken.setdefault(kind, []).append(_joined(mine))
        for batches in taken.values():
            yield _in_order(wire.together(batches))

    def _follow(self, agent: Agent) -> None:
        """One agent, until the end; after a failure again, the node's next one at once."""
        while not self._stopped.is_set():
            try:
                self._read(agent)
                self._tell(agent.node, "the agent ended its answer")
                before, agent = agent, self._found_again(agent)
                if agent != before:
                    continue
            except (PodscopeError, OSError, http.client.HTTPException) as error:
                self._tell(agent.node, " ".join(str(error).split()) or type(error).__name__)
            if not self._stopped.wait(AGAIN_SECONDS):
                agent = self._found_again(agent)

    def _read(self, agent: Agent) -> None:
        with PortForward(self._server, self._namespace, agent.pod, STREAM_PORT) as forward:
            with self._lock:
                self._forwards[agent.node] = forward
            forward.socket.settimeout(SILENCE_SECONDS)
            connection = http.client.HTTPConnection("agent")
            connection.sock = forward.socket
            _, until_ns = self._until.get((agent.node, self._wanted.kind), ("", 0))
            connection.request("GET", self._wanted.path(until_ns))
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                said = " ".join(answer.read(_SAID_BYTES).decode(errors="replace").split())
                raise PodscopeError(f"the agent answered {answer.status}: {said}")
            for batch in wire.frames(answer.read):
                self._take(agent, batch)
            if forward.error:
                raise PodscopeError(forward.error)

    def _take(self, agent: Agent, batch: Batch) -> None:
        with self._lock:
            self._states[agent.node] = ANSWERED
            lost = dict(batch.lost)
            if self._overlaps(agent, batch):
                lost["agent_replaced"] = batch.exchanges()
                batch = batch.where(np.zeros(len(batch), dtype=np.bool_))
            self._until[agent.node, batch.kind] = (agent.pod, batch.time_ns)
            if batch.kind not in self._fields:
                self._fields[batch.kind] = fields_of(batch.kind)
            whole = replace(batch, fields=self._fields[batch.kind])
            self._came.setdefault((agent.node, batch.kind), []).append(whole)
            for reason, count in lost.items():
                self._lost[reason] = self._lost.get(reason, 0) + count

    def _overlaps(self, agent: Agent, batch: Batch) -> bool:
        """Whether an interval began before that of the node's last agent had ended.

        Two agents of a node count side by side while one takes over: nothing may be there twice.
        """
        pod, until_ns = self._until.get((agent.node, batch.kind), (agent.pod, 0))
        return pod != agent.pod and batch.time_ns - round(batch.interval * 1e9) < until_ns

    def _tell(self, node: str, state: str) -> None:
        with self._lock:
            if not self._stopped.is_set():
                self._states[node] = state

    def _found_again(self, agent: Agent) -> Agent:
        """The agent of the same node: its pod may be another one by now."""
        try:
            agents = find_agents(self._server, self._namespace)
        except PodscopeError:
            return agent
        return next((one for one in agents if one.node == agent.node), agent)


def _in_order(batch: Batch) -> Batch:
    """Requests of several nodes as they began."""
    if "time_ns" not in (batch.rows.dtype.names or ()):
        return batch
    return batch.where(np.argsort(batch.rows["time_ns"], kind="stable"))


def _joined(batches: list[Batch]) -> Batch:
    """Intervals of one node that follow each other, as one."""
    whole = wire.together(batches)
    return replace(whole, interval=sum(batch.interval for batch in batches))
