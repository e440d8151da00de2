# SPDX-License-Identifier: Apache-2.0
"""Traces of a cluster: where one has to run, begun, and followed while pods come and go."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace
from typing import TYPE_CHECKING
from typing import Any
from typing import Self

import msgspec

from podscope.agent_traces import AgentTraces
from podscope.batch import Identity
from podscope.batch import Service
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.identity.kubernetes import Cluster
from podscope.identity.kubernetes import Jobs
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import Connection
from podscope.identity.kubernetes_client import find_server
from podscope.identity.kubernetes_objects import EndpointSlice
from podscope.identity.kubernetes_objects import Node
from podscope.identity.kubernetes_objects import Page
from podscope.identity.kubernetes_objects import Pod
from podscope.identity.refusals import explained
from podscope.remote import tracing_agents
from podscope.scope import Scope
from podscope.scope import check
from podscope.scope import target as as_target
from podscope.trace import jobs
from podscope.trace import rewrite
from podscope.trace.following import FAILED
from podscope.trace.following import Following
from podscope.trace.job_logs import JobLogs
from podscope.trace.job_logs import read_logs
from podscope.trace.kept import PREFIX
from podscope.trace.kept import WAY_AGENTS
from podscope.trace.kept import Kept
from podscope.trace.kept import Traces
from podscope.trace.kept import new_name
from podscope.trace.parse import ProgramError
from podscope.trace.parse import parse
from podscope.trace.session import Answer
from podscope.trace.session import Terms

if TYPE_CHECKING:
    from podscope.trace.following import Place
    from podscope.trace.gather import Gathered

_SECONDS = 30.0
# How often it is looked for pods of the target that have come.
_LOOK_SECONDS = 2.0
WAYS = ("auto", "agents", "jobs")
_TITLE = 40


@dataclass(frozen=True)
class Asked:
    """What a trace is of.

    Attributes:
        scope: nodes, or pods.
        container: only containers of this name.
        one: each pod must have one, or ``container`` say which.
        all_nodes: every node.
        each: name each container by itself, so that one which is started again is a new target.
    """

    scope: Scope
    container: str = ""
    one: bool = False
    all_nodes: bool = False
    each: bool = False

    @property
    def of_pods(self) -> bool:
        """Whether pods are traced, and not nodes."""
        return not self.all_nodes and all(one.kind != "node" for one in self.scope.targets)


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


def title_of(program: str) -> str:
    """A program in a list of traces."""
    title = " ".join(program.split())
    return title if len(title) <= _TITLE else f"{title[: _TITLE - 3]}..."


def variables() -> tuple[tuple[str, str], ...]:
    """Variables of the user's environment that are bpftrace's: they are taken along."""
    return tuple(
        (name, value) for name, value in os.environ.items() if name.startswith("BPFTRACE_")
    )


def needs_container(program: str) -> bool:
    """Whether it asks for ``$container_pid``, so that each pod has one container and one Job."""
    try:
        return rewrite.uses_container_pid(parse(program))
    except ProgramError:
        return False


def check_program(program: str, *, of_pods: bool, confine: bool, by_pod: bool) -> bool:
    """Whether a program writes lines; raises UsageError where no node could run it."""
    try:
        read = parse(program)
    except ProgramError:
        if of_pods and confine:
            raise
        return True
    rewrite.check_names(read)
    if of_pods and confine:
        if walks := rewrite.unconfinable(read):
            raise UsageError(
                f"{walks[0]}: walks the whole node, and cannot be confined to a target"
            )
    elif rewrite.uses_container_pid(read) and not of_pods:
        raise UsageError("$container_pid: a node has none; name a pod")
    if by_pod and (not of_pods or not confine):
        raise UsageError("--by pod: only of pods, and confined to them")
    return rewrite.speaks(read)


def is_by_agents(
    way: str, parts: Sequence[jobs.Part], ways: Ways, jobs_only: Sequence[str]
) -> bool:
    """Whether the agents are to run a trace.

    Args:
        way: one of WAYS.
        parts: where it has to run.
        ways: they know where agents are.
        jobs_only: names of what was asked for that only Jobs can do.

    Raises:
        UsageError: they are to, and cannot.
    """
    missing = [part.node for part in parts if part.node not in ways.agents.agents]
    if way == "agents" and missing:
        why = "install them with --set traces=true"
        raise UsageError(f"--way agents: node {missing[0]} has none that runs traces; {why}")
    if way == "agents" and jobs_only:
        raise UsageError(f"--way agents: not with {jobs_only[0]}")
    return way != "jobs" and not missing and not jobs_only


def parts_of(
    asked: Scope,
    pods: Iterable[Pod],
    cluster: Cluster,
    *,
    container: str = "",
    one: bool = False,
    each: bool = False,
) -> tuple[jobs.Part, ...]:
    """The nodes of a trace, with what to look at on each.

    Args:
        asked: nodes, which are traced whole; or else pods, by themselves, by owner, by Service, by
            labels, or all of a namespace.
        pods: those of the namespaces that are asked for.
        cluster: what is known of owners and Services.
        container: only containers of this name.
        one: each pod must have one container, or ``container`` say which.
        each: name each container by itself.

    Raises:
        UsageError: nothing of the target runs, or it is of both kinds.
    """
    nodes = [target.name for target in asked.targets if target.kind == "node"]
    if nodes and (len(nodes) < len(asked.targets) or asked.selector):
        raise UsageError("TARGET: a node is traced whole; give nodes and pods to different traces")
    if nodes:
        if container:
            raise UsageError(f"-c {container}: a node is traced whole; name a pod instead")
        return jobs.on_nodes(nodes)
    has = asked.rule()
    wanted = [pod for pod in pods if has(_identity(pod, cluster), pod)]
    return jobs.on_pods(wanted, container, one=one, each=each)


def _identity(pod: Pod, cluster: Cluster) -> Identity:
    """A pod as targets know it; a static pod stands for itself, since its owner is the node."""
    owner = cluster.owner(pod)
    alone = owner.kind == "Node"
    return Identity(
        "pod" if alone else owner.kind.lower(),
        pod.metadata.name if alone else owner.name,
        "",
        0,
        namespace=pod.metadata.namespace,
        pod=pod.metadata.name,
        pod_uid=pod.metadata.uid,
        node=pod.spec.node_name,
        services=tuple(Service(one.name, ()) for one in cluster.services(pod)),
    )


def parts(asked: Asked, server: ApiServer) -> tuple[jobs.Part, ...]:
    """Where it has to run; raises UsageError where nothing is to be traced."""
    connection = Connection(server)
    finder = Jobs(server)
    try:
        if asked.all_nodes:
            nodes = _list(connection, "api/v1/nodes", Page[Node])
            return jobs.on_nodes(sorted(one.metadata.name for one in nodes))
        if not asked.of_pods:
            return parts_of(asked.scope, (), Cluster(), container=asked.container)
        space = f"namespaces/{asked.scope.namespace}/" if asked.scope.namespace else ""
        query = {"labelSelector": asked.scope.selector} if asked.scope.selector else {}
        pods = _list(connection, f"api/v1/{space}pods", Page[Pod], query)
        kinds = {one.kind for one in asked.scope.targets}
        cluster = Cluster(finder.find if "cronjob" in kinds else None)
        for pod in pods:
            cluster.pod_changed(None, pod)
        if "service" in kinds:
            path = f"apis/discovery.k8s.io/v1/{space}endpointslices"
            for one in _list(connection, path, Page[EndpointSlice]):
                cluster.slice_changed(None, one)
        one = asked.one
        parts = parts_of(
            asked.scope, pods, cluster, container=asked.container, one=one, each=asked.each
        )
        return jobs.one_by_one(parts) if one else parts
    finally:
        finder.close()
        connection.release()


def _list(
    connection: Connection, path: str, kind: Any, query: Mapping[str, str] | None = None
) -> Sequence[Any]:
    with explained():
        body = connection.get(path, query or {}, _SECONDS)
    found: Sequence[Any] = msgspec.json.decode(body, type=kind).items or ()
    return found


@contextmanager
def joining(
    asked: Asked, request: jobs.Request, following: Following, ways: Ways
) -> Iterator[None]:
    """Takes in pods and containers of the target that come while the trace runs."""
    ended = threading.Event()

    def look() -> None:
        end = time.monotonic() + request.deadline
        known = {target for part in _known(following.kept) for target in part}
        with Traces(ways.server) as made:
            while not ended.wait(_LOOK_SECONDS) and not following.is_ending:
                left = end - time.monotonic()
                if left < 1:
                    return
                with suppress(PodscopeError, OSError):
                    for part in _new_parts(parts(asked, ways.server), known):
                        _add(replace(request, deadline=left), part, following, (ways, made))
                        known.update(part.targets)

    thread = threading.Thread(target=look, daemon=True)
    if asked.of_pods and request.confine:
        thread.start()
    try:
        yield
    finally:
        ended.set()


def _add(
    request: jobs.Request, part: jobs.Part, following: Following, by: tuple[Ways, Traces]
) -> None:
    """One more part of a trace, and its follower."""
    ways, made = by
    kept = following.kept
    if kept.way == WAY_AGENTS and part.node in ways.agents.agents:
        ways.agents.add(request, part, kept.nodes)
        found = ways.agents.listed(kept.namespace, kept.name)
    elif kept.way == WAY_AGENTS:
        return
    else:
        made.add(request, part, kept)
        found = made.list(kept.namespace, kept.name)
    for job in found[0].jobs if found else ():
        following.join(job)


def _known(kept: Kept) -> Iterator[tuple[str, ...]]:
    return (one.targets for one in kept.jobs)


def _new_parts(parts: Sequence[jobs.Part], known: set[str]) -> Iterator[jobs.Part]:
    """What of the target is not traced yet."""
    for part in parts:
        new = [
            (target, name)
            for target, name in zip(part.targets, part.pods, strict=True)
            if target not in known
        ]
        if new:
            yield jobs.Part(part.node, tuple(t for t, _ in new), tuple(n for _, n in new))


@dataclass(frozen=True)
class Where:
    """What of which cluster a trace from Python is of.

    Attributes:
        target: objects with blanks between them, as ``deploy/web``.
        namespace: of the target and of the trace; empty: that of the context.
        selector: pods with these labels.
        container: only containers of this name.
        all_nodes: all nodes, each as a whole.
        context: of the kubeconfig; empty: the current one.
        kubeconfig: a file; empty: as kubectl finds it.
    """

    target: str = ""
    namespace: str = ""
    selector: str = ""
    container: str = ""
    all_nodes: bool = False
    context: str = ""
    kubeconfig: str = ""


def begin(
    program: str, where: Where, terms: Terms, *, by: str = "", way: str = "auto"
) -> ClusterTrace:
    """Runs a program in a cluster: see ``podscope.tracing.trace``."""
    words = where.target.split()
    if by not in ("", "node", "pod") or way not in WAYS:
        raise UsageError("by is node or pod, way is one of " + ", ".join(WAYS))
    if not program.strip():
        raise UsageError("the program is empty")
    if where.all_nodes and (words or where.selector):
        raise UsageError("all_nodes: every node as a whole; leave out other targets")
    server = find_server(where.kubeconfig, where.context)
    space = where.namespace or server.namespace
    named = tuple(as_target(word if "/" in word else f"node/{word}") for word in words)
    scope = Scope(space, named, where.selector)
    asked = Asked(scope, where.container, needs_container(program), where.all_nodes)
    check_program(program, of_pods=asked.of_pods, confine=terms.confine, by_pod=by == "pod")
    check(asked.scope, server, UsageError)
    every = "all nodes" if where.all_nodes else "all pods"
    request = jobs.Request(
        name=new_name(),
        program=program,
        title=title_of(program),
        target=where.target or where.selector or every,
        namespace=space,
        arguments=terms.arguments,
        interval=terms.interval,
        deadline=terms.deadline,
        confine=terms.confine,
        unsafe=terms.unsafe,
        by_pod=by == "pod",
        environment=variables(),
    )
    return ClusterTrace(asked, request, server, way=way, by_node=by == "node")


class ClusterTrace:
    """A trace of a cluster, for Python: iterating over it gives merged answers.

    It begins with the ``with``; at the end of that it is deleted from the cluster.

    Args:
        asked: what it is of.
        request: what is to run.
        server: the API server.
        way: one of WAYS.
        by_node: keep maps apart by node.
        agent_namespace: where agents are.
    """

    def __init__(
        self,
        asked: Asked,
        request: jobs.Request,
        server: ApiServer,
        *,
        way: str = "auto",
        by_node: bool = False,
        agent_namespace: str = "podscope",
    ) -> None:
        self._asked = asked
        self._request = request
        self._server = server
        self._way = way
        self._by_node = by_node
        self._agent_namespace = agent_namespace
        self._stack = ExitStack()
        self._following: Following | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            ways = stack.enter_context(Ways(self._server, self._agent_namespace))
            kept, asked = self._begun(ways)
            stack.callback(self._delete, kept)
            following = stack.enter_context(
                Following(
                    ways.place(kept),
                    kept,
                    interval=self._request.interval,
                    by_node=self._by_node,
                    grace=self._request.grace,
                )
            )
            stack.enter_context(joining(asked, self._request, following, ways))
            self._following = following
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Answer]:
        """Answers as they come; the last one has ``last``.

        Raises:
            PodscopeError: no node could run the program.
        """
        following = self._now()
        for answer in following:
            if answer.last and (why := self._why_nothing()):
                raise PodscopeError(why)
            yield answer

    @property
    def lost(self) -> dict[str, int]:
        """What is missing from the answers so far, by reason."""
        return self._now().gathered().lost()

    @property
    def full(self) -> dict[str, int]:
        """Maps that had no room for another key, with how many entries they have."""
        found: dict[str, int] = {}
        for report in self._now().gathered().reports.values():
            for name, count in report.full.items():
                found[name] = max(count, found.get(name, 0))
        return found

    @property
    def notes(self) -> list[str]:
        """What keeps the answer from being whole, a line each."""
        return self._now().gathered().notes()

    @property
    def states(self) -> dict[str, tuple[str, str]]:
        """Of each node ``starting``, ``running``, ``ended`` or ``failed``, and why."""
        return self._now().states()

    def stop(self) -> None:
        """Let the program print its maps and end, on all nodes."""
        self._now().stop()

    def _now(self) -> Following:
        if self._following is None:
            raise PodscopeError("a trace of a cluster begins with its 'with'")
        return self._following

    def _begun(self, ways: Ways) -> tuple[Kept, Asked]:
        found = parts(self._asked, self._server)
        only = {"unsafe": self._request.unsafe, "$container_pid": self._asked.one}
        given = [name for name, value in only.items() if value]
        if not is_by_agents(self._way, found, ways, given):
            return ways.jobs.create(self._request, found), self._asked
        asked = replace(self._asked, each=True)
        return ways.agents.create(self._request, parts(asked, self._server)), asked

    def _delete(self, kept: Kept) -> None:
        now = self._following.kept if self._following is not None else kept
        with Ways(self._server, self._agent_namespace) as ways:
            ways.delete(now)

    def _why_nothing(self) -> str:
        """Why no node has an answer; empty: one has."""
        states = self.states
        if any(state != FAILED for state, _ in states.values()):
            return ""
        reports = self._now().gathered().reports.values()
        if any(report.maps for report in reports):
            return ""
        whys = dict.fromkeys(why for _, why in states.values())
        return "; ".join(whys) or "no node has answered"
