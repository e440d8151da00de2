# SPDX-License-Identifier: Apache-2.0
"""Traces that the agents of a cluster run, as a client sees them."""

from __future__ import annotations

import datetime
import http.client
import json
import threading
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import msgspec

from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.port_forward import PortForward
from podscope.node_traces import Asked
from podscope.remote import TRACES_SELECTOR
from podscope.remote import find_agents
from podscope.streams import STREAM_PORT
from podscope.streams import TRACES_PATH
from podscope.trace import jobs
from podscope.trace.following import Seen
from podscope.trace.gather import Gathered
from podscope.trace.job_logs import report_of
from podscope.trace.kept import FAILED
from podscope.trace.kept import RUNNING
from podscope.trace.kept import WAY_AGENTS
from podscope.trace.kept import Kept
from podscope.trace.kept import KeptJob
from podscope.trace.reports import Report

_SILENCE_SECONDS = 60.0
_PIECE = 1 << 16
_GONE = "its agent has ended, and its part of the trace with it"


class AgentTraces:
    """The traces of some agents, as `following.Place`. For any thread.

    Args:
        server: the API server.
        namespace: where the agents are.
        agents: their pods, by node: those that run traces.
    """

    def __init__(self, server: ApiServer, namespace: str, agents: Mapping[str, str]) -> None:
        self._server = server
        self._namespace = namespace
        self._where = (server, namespace)
        self.agents = agents
        self._lock = threading.Lock()
        self._forwards: set[PortForward] = set()

    def create(self, request: jobs.Request, parts: Sequence[jobs.Part]) -> Kept:
        """Begins a trace on all nodes, or on none.

        Raises:
            PodscopeError: an agent does not answer, or refuses.
        """
        nodes = list(dict.fromkeys(part.node for part in parts))
        failed: list[Exception] = []

        def begin(part: jobs.Part) -> None:
            try:
                self.add(request, part, nodes)
            except (PodscopeError, OSError, http.client.HTTPException) as error:
                failed.append(error)

        _each(begin, parts)
        found = tuple(_begun(request, part) for part in parts)
        kept = Kept(
            request.name,
            request.namespace,
            request.target,
            request.title,
            request.by_pod,
            found,
            WAY_AGENTS,
        )
        if failed:
            with suppress(PodscopeError, OSError):
                self.delete(kept)
            raise failed[0] if isinstance(failed[0], PodscopeError) else PodscopeError(failed[0])
        return kept

    def add(self, request: jobs.Request, part: jobs.Part, nodes: Sequence[str]) -> None:
        """Begins one part of a trace. Raises as `create`."""
        asked = Asked(request, part, tuple(nodes))
        self._ask(part.node, "begin", asked=msgspec.json.encode(asked).decode())

    def listed(self, namespace: str | None, name: str = "") -> tuple[Kept, ...]:
        """Traces of a namespace, or (None) of all; those of one name alone.

        Agents that do not answer are passed over: their nodes have nothing to tell then.
        """
        told: list[dict[str, Any]] = []

        def ask(node: str) -> None:
            with suppress(PodscopeError, OSError, http.client.HTTPException, ValueError):
                told.extend(json.loads(line) for line in self._ask(node, "list").splitlines())

        _each(ask, list(self.agents))
        by_name: dict[str, list[dict[str, Any]]] = {}
        for one in told:
            wanted = namespace is None or one["about"].get("namespace") == namespace
            if wanted and name in ("", one["name"]):
                by_name.setdefault(one["name"], []).append(one)
        return tuple(_kept(name, found) for name, found in by_name.items())

    def delete(self, kept: Kept) -> None:
        """Ends a trace, and forgets it."""

        def ask(job: KeptJob) -> None:
            with suppress(UsageError):
                self._ask(job.node, "delete", name=kept.name, part=job.name)

        _each(ask, [job for job in kept.jobs if job.node in self.agents])

    def gathered(self, kept: Kept) -> Gathered:
        """What a trace has said until now."""
        reports: dict[str, Report] = {}

        def ask(job: KeptJob) -> None:
            said, why = "", _GONE
            try:
                said = self._ask(job.node, "read", name=kept.name, part=job.name)
            except (PodscopeError, OSError) as error:
                why = str(error)
            first = next(one for one in kept.jobs if one.node == job.node)
            name = job.node if first is job else f"{job.node} ({job.name[-8:]})"
            reports[name] = report_of(said.encode(), job, why)

        _each(ask, kept.jobs)
        nodes = {name: name.partition(" ")[0] for name in reports}
        return Gathered(dict(sorted(reports.items())), nodes=nodes)

    # --- as following.Place -------------------------------------------------------------------

    def look(self, kept: Kept, jobs: Sequence[KeptJob]) -> Mapping[str, Seen]:
        """Parts by their name."""
        found: dict[str, Seen] = {}
        for job in jobs:
            try:
                lines = self._ask(job.node, "list").splitlines()
            except (PodscopeError, OSError) as error:
                if self._is_replaced(job.node):
                    found[job.name] = Seen(why=_GONE, final=True)
                else:
                    found[job.name] = Seen(why=" ".join(str(error).split()))
                continue
            states = {one["part"]: one["state"] for one in map(json.loads, lines)}
            if job.name in states:
                ended = states[job.name] != RUNNING
                found[job.name] = Seen(f"{job.node} {job.name}", final=ended)
            else:
                found[job.name] = Seen(why=_GONE, final=True)
        return found

    def _is_replaced(self, node: str) -> bool:
        """Whether a node's agent is another one now, or there is none."""
        before = self.agents.get(node)
        try:
            now = {one.node: one.pod for one in find_agents(*self._where, TRACES_SELECTOR)}
        except KubernetesError:
            return False  # nobody can say
        except PodscopeError:
            now = {}
        return now.get(node) != before

    @contextmanager
    def stream(self, kept: Kept, speaker: str) -> Iterator[Iterator[bytes]]:
        """All that one says, from as far back as its agent keeps it."""
        node, _, part = speaker.partition(" ")
        with self._opened(node, "follow", name=kept.name, part=part) as answer:
            yield iter(lambda: answer.read1(_PIECE), b"")

    def stop(self, kept: Kept, speaker: str) -> None:
        """Lets one print its maps and end."""
        node, _, part = speaker.partition(" ")
        self._ask(node, "stop", name=kept.name, part=part)

    def drop(self, kept: Kept, job: KeptJob) -> None:
        """Takes away a part that has not begun."""
        self._ask(job.node, "delete", name=kept.name, part=job.name)

    def close(self) -> None:
        """Ends all streams."""
        with self._lock:
            forwards = list(self._forwards)
        for one in forwards:
            one.close()

    # --- how ----------------------------------------------------------------------------------

    def _ask(self, node: str, what: str, **query: str) -> str:
        with self._opened(node, what, **query) as answer:
            return answer.read().decode()

    @contextmanager
    def _opened(self, node: str, what: str, **query: str) -> Iterator[http.client.HTTPResponse]:
        """The answer of an agent's page.

        Raises:
            UsageError: what is asked for cannot be.
            PodscopeError: the agent does not answer, or refuses.
        """
        pod = self.agents.get(node)
        if pod is None:
            raise PodscopeError(f"node {node} has no agent that runs traces")
        with PortForward(self._server, self._namespace, pod, STREAM_PORT) as forward:
            with self._lock:
                self._forwards.add(forward)
            try:
                forward.socket.settimeout(_SILENCE_SECONDS)
                connection = http.client.HTTPConnection("agent")
                connection.sock = forward.socket
                connection.request("GET", f"{TRACES_PATH}{what}?{urlencode(query)}")
                answer = connection.getresponse()
                if answer.status != http.client.OK:
                    said = " ".join(answer.read(500).decode(errors="replace").split())
                    is_wrong = answer.status == http.client.BAD_REQUEST
                    raise (UsageError if is_wrong else PodscopeError)(f"node {node}: {said}")
                yield answer
            except http.client.HTTPException as error:
                words = forward.error or str(error) or type(error).__name__
                raise PodscopeError(f"node {node}: {words}") from None
            finally:
                with self._lock:
                    self._forwards.discard(forward)


def _each(do: Any, items: Sequence[Any]) -> None:
    """All at once: each waits for another node."""
    threads = [threading.Thread(target=do, args=(one,), daemon=True) for one in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _begun(request: jobs.Request, part: jobs.Part) -> KeptJob:
    now = datetime.datetime.now(datetime.UTC).isoformat()
    name = jobs.job_name(request, part)
    return KeptJob(name, part.node, RUNNING, "", now, "", part.targets)


def _kept(name: str, told: Sequence[dict[str, Any]]) -> Kept:
    """A trace of what its nodes' agents tell; a node that has forgotten it is told as failed."""
    about = told[0]["about"]
    parts = [
        KeptJob(
            one["part"],
            one["about"]["node"],
            one["state"],
            "",
            datetime.datetime.fromtimestamp(one["created"], datetime.UTC).isoformat(),
            "",
            tuple(one["about"]["targets"]),
        )
        for one in told
    ]
    there = {one.node for one in parts}
    missing = [node for node in about["nodes"] if node not in there]
    began = min(one.created for one in parts)
    parts += [KeptJob(f"{name}-{node}", node, FAILED, _GONE, began, "") for node in missing]
    return Kept(
        name,
        about["namespace"],
        about["target"],
        about["title"],
        about["by"] == "pod",
        tuple(sorted(parts, key=lambda one: one.name)),
        WAY_AGENTS,
    )
