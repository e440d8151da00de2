# SPDX-License-Identifier: Apache-2.0
"""The traces of a cluster, whichever way they run: as Jobs, or under its agents."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Self

from podscope.agent_traces import AgentTraces
from podscope.errors import UsageError
from podscope.identity.kubernetes_client import ApiServer
from podscope.remote import tracing_agents
from podscope.trace.job_logs import JobLogs
from podscope.trace.job_logs import read_logs
from podscope.trace.kept import PREFIX
from podscope.trace.kept import WAY_AGENTS
from podscope.trace.kept import Kept
from podscope.trace.kept import Traces

if TYPE_CHECKING:
    from podscope.trace.following import Place
    from podscope.trace.gather import Gathered


class Ways:
    """Traces of a cluster, for one thread. Use it in a ``with``.

    Every method raises PodscopeError: no answer, or a right that is missing, with its name.
    """

    def __init__(self, server: ApiServer, agent_namespace: str) -> None:
        self.server = server
        self.jobs = Traces(server)
        self.agents = AgentTraces(server, agent_namespace, tracing_agents(server, agent_namespace))
        self._logs = JobLogs(server)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.jobs.__exit__()

    def all(self, namespace: str | None) -> tuple[Kept, ...]:
        """Traces of a namespace, or (None) of all, the oldest first."""
        found = (*self.jobs.list(namespace), *self.agents.listed(namespace))
        return tuple(sorted(found, key=lambda kept: kept.created))

    def find(self, word: str, namespace: str | None) -> Kept:
        """The trace of an id or a name.

        Raises:
            UsageError: there is none.
        """
        name = word if word.startswith(PREFIX) else f"{PREFIX}{word}"
        found = self.jobs.list(namespace, name) or self.agents.listed(namespace, name)
        if not found:
            where = "" if namespace is None else f" in namespace {namespace!r}"
            raise UsageError(f"there is no trace {word!r}{where}; 'podscope get' lists them")
        return found[0]

    def place(self, kept: Kept) -> Place:
        """Where a trace runs."""
        return self.agents if kept.way == WAY_AGENTS else self._logs

    def gathered(self, kept: Kept) -> Gathered:
        """What a trace has said until now."""
        if kept.way == WAY_AGENTS:
            return self.agents.gathered(kept)
        return read_logs(self.jobs, kept)

    def delete(self, kept: Kept) -> None:
        """Deletes a trace; what runs is ended."""
        if kept.way == WAY_AGENTS:
            self.agents.delete(kept)
        else:
            self.jobs.delete(kept)
