# SPDX-License-Identifier: Apache-2.0
"""``podscope run`` in a cluster: Jobs on the nodes of a target, and what they say as one answer."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace
from typing import TYPE_CHECKING
from typing import Any

import msgspec

from podscope.commands import placement
from podscope.commands import showing
from podscope.commands import targets
from podscope.commands import trace_sinks
from podscope.commands.lifetime import Lifetime
from podscope.commands.run import IMAGE
from podscope.commands.run import Options
from podscope.commands.run import place
from podscope.commands.run import seconds
from podscope.commands.ways import Ways
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
from podscope.trace import jobs
from podscope.trace import kept as traces
from podscope.trace import rewrite
from podscope.trace.following import ENDED
from podscope.trace.following import FAILED
from podscope.trace.following import RUNNING
from podscope.trace.following import STARTING
from podscope.trace.following import Following
from podscope.trace.kept import Kept
from podscope.trace.kept import Traces
from podscope.trace.parse import ProgramError
from podscope.trace.parse import parse
from podscope.trace.rows import Origin

if TYPE_CHECKING:
    from podscope.commands.trace_sinks import Feed
    from podscope.scope import Scope
    from podscope.trace.maps import MapShape
    from podscope.trace.reports import About
    from podscope.trace.session import Answer

_SECONDS = 30.0
# How often it is looked for pods of the target that have come.
_LOOK_SECONDS = 2.0
_TITLE = 40
_VARIABLES = "BPFTRACE_"


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


def run(chosen: Options, args: argparse.Namespace) -> int:
    """Begin the trace, and show it until its end."""
    words, container = _container(chosen.targets, args.container)
    chosen = replace(chosen, target=" ".join(words))
    speaks = _check_program(chosen, args)
    server = find_server(args.kubeconfig or "", args.context or "")
    asked = _asked(chosen, args, container, server)
    targets.check(asked.scope, server, UsageError)
    parts = _parts(asked, server)
    request = _request(chosen, args, args.namespace or server.namespace)
    change = _change(args)
    _tell_unused(args)
    space = asked.scope.namespace or ""
    origin = Origin(request.name, chosen.script.name, space, chosen.script.columns)
    with (
        Lifetime() as lifetime,
        trace_sinks.feed(args, origin, chosen.script.text) as feed,
        Ways(server, args.agent_namespace) as ways,
    ):
        by_agents = _by_agents(asked, args, parts, ways)
        if by_agents:
            # An agent may not reach the maps of its bpftrace, to tell it of new cgroups.
            asked = replace(asked, each=True)
            kept = ways.agents.create(request, _parts(asked, server))
        else:
            kept = ways.jobs.create(request, parts, change)
        nodes = f"{len(kept.nodes)} node{'s' if len(kept.nodes) > 1 else ''}"
        print(f"trace {kept.name.removeprefix(traces.PREFIX)} created", file=sys.stderr)
        way = "the agents of" if by_agents else f"Jobs in namespace {kept.namespace!r} on"
        print(f"podscope: by {way} {nodes}", file=sys.stderr)
        if args.detach:
            return 0
        with (
            place(chosen, kept.name) as out,
            Following(
                ways.place(kept),
                kept,
                interval=chosen.interval,
                by_node=chosen.by == "node",
                grace=chosen.grace,
            ) as following,
            _joining(asked, request, following, ways),
        ):
            lifetime.begin(lambda: stop(following, lifetime))
            places = ("node", "pod") if asked.of_pods and chosen.confine else ("node",)
            view = showing.View(chosen.form, chosen.script.name, chosen.script.columns, places)
            try:
                return show(InCluster(following, chosen.target, speaks, feed), view, out)
            except KeyboardInterrupt:
                name = kept.name.removeprefix(traces.PREFIX)
                print(
                    f"podscope: 'podscope get {name}' shows whether it has ended", file=sys.stderr
                )
                raise


def _by_agents(
    asked: Asked, args: argparse.Namespace, parts: Sequence[jobs.Part], ways: Ways
) -> bool:
    """Whether the agents are to run it; raises UsageError where they are to and cannot."""
    missing = [part.node for part in parts if part.node not in ways.agents.agents]
    jobs_only = {
        "--unsafe": args.unsafe,
        "--patch": args.patch,
        "$container_pid": asked.one,
        "--imagename": args.imagename != IMAGE,
        "--serviceaccount": args.serviceaccount != "default",
    }
    given = [name for name, value in jobs_only.items() if value]
    if args.way == "agents" and missing:
        why = "install them with --set traces=true"
        raise UsageError(f"--way agents: node {missing[0]} has none that runs traces; {why}")
    if args.way == "agents" and given:
        raise UsageError(f"--way agents: not with {given[0]}")
    return args.way != "jobs" and not missing and not given


def show(trace: InCluster, view: showing.View, out: Any) -> int:
    """Shows a trace of a cluster to its end; 0 if every node has told its end."""
    showing.show(trace, view, out)
    if trace.following.left:
        name = trace.following.kept.name.removeprefix(traces.PREFIX)
        print(f"podscope: it goes on; 'podscope attach {name}' shows it", file=sys.stderr)
        return 0
    return 0 if all(state == ENDED for state, _ in trace.following.states().values()) else 1


def stop(following: Following, lifetime: Lifetime) -> None:
    """A terminal that is gone is no wish to end a trace."""
    if lifetime.hung_up:
        following.leave()
    else:
        following.stop()


def program_of(about: About | None) -> tuple[tuple[str, ...], bool]:
    """The columns of a program's rows, and whether it writes lines, as far as it is known."""
    if about is None:
        return (), True
    try:
        return about.columns, rewrite.speaks(parse(about.program))
    except ProgramError:
        return about.columns, True


def _container(words: Sequence[str], container: str) -> tuple[list[str], str]:
    """Targets, and the container: kubectl-trace takes it as a second word after a pod."""
    if len(words) != 2 or "/" in words[1] or not words[0].partition("/")[2]:
        return list(words), container
    if words[0].startswith(("node/", "no/", "nodes/")):
        return list(words), container
    if container:
        raise UsageError(f"-c {container} and {words[1]}: give the container once")
    return [words[0]], words[1]


def _check_program(chosen: Options, args: argparse.Namespace) -> bool:
    """Whether the program writes lines; raises UsageError where no node could run it."""
    if args.config and args.detach:
        raise UsageError("--config: who shows the trace gives it to sinks; leave out -d")
    if args.process_selector:
        raise UsageError("--process-selector: only for other tracers than bpftrace")
    if chosen.form == "snapshots":
        raise UsageError("-o snapshots: a cluster keeps what its traces say; see 'podscope get'")
    of_pods = not all(_is_node(word) for word in chosen.targets) or not chosen.targets
    try:
        program = parse(chosen.script.text)
    except ProgramError:
        if of_pods and chosen.confine and not args.all_nodes:
            raise
        return True
    rewrite.check_names(program)
    if of_pods and chosen.confine and not args.all_nodes:
        if walks := rewrite.unconfinable(program):
            raise UsageError(
                f"{walks[0]}: walks the whole node, and cannot be confined to a target"
            )
    elif rewrite.uses_container_pid(program) and not of_pods:
        raise UsageError("$container_pid: a node has none; name a pod")
    if chosen.by == "pod" and (not of_pods or not chosen.confine or args.all_nodes):
        raise UsageError("--by pod: only of pods, and confined to them")
    return rewrite.speaks(program)


def _is_node(word: str) -> bool:
    kind, slash, _ = word.partition("/")
    return not slash or targets.KINDS.get(kind.lower()) == "node"


def _asked(chosen: Options, args: argparse.Namespace, container: str, server: ApiServer) -> Asked:
    """What the words and flags ask for; raises UsageError."""
    words = [word if "/" in word else f"node/{word}" for word in chosen.targets]
    if args.all_nodes and (words or args.selector or args.all_namespaces):
        raise UsageError("--all-nodes: every node as a whole; leave out other targets")
    flags = argparse.Namespace(
        targets=words,
        all_namespaces=args.all_namespaces,
        namespace=args.target_namespace or args.namespace,
        selector=args.selector,
    )
    try:
        one = rewrite.uses_container_pid(parse(chosen.script.text))
    except ProgramError:
        one = False
    return Asked(targets.scope(flags, server.namespace), container, one, args.all_nodes)


def _request(chosen: Options, args: argparse.Namespace, namespace: str) -> jobs.Request:
    title = chosen.script.name or " ".join(chosen.script.text.split())
    return jobs.Request(
        name=traces.new_name(),
        program=chosen.script.text,
        title=title if len(title) <= _TITLE else f"{title[: _TITLE - 3]}...",
        target=_target_text(chosen, args),
        namespace=namespace,
        image=args.imagename,
        service_account=args.serviceaccount,
        arguments=chosen.arguments,
        deadline=chosen.deadline,
        grace=chosen.grace,
        interval=chosen.interval,
        ttl=seconds(args.ttl, "--ttl"),
        confine=chosen.confine,
        unsafe=chosen.unsafe,
        by_pod=chosen.by == "pod",
        environment=tuple(
            (name, value) for name, value in os.environ.items() if name.startswith(_VARIABLES)
        ),
    )


def _target_text(chosen: Options, args: argparse.Namespace) -> str:
    """What is traced, as the user said it."""
    words = [chosen.target] if chosen.target else []
    words += [f"-l {args.selector}"] if args.selector else []
    words += ["--all-nodes"] if args.all_nodes else []
    words += ["-A"] if args.all_namespaces else []
    return " ".join(words) or "all pods"


def _change(args: argparse.Namespace) -> Callable[[jobs.Object], jobs.Object]:
    """What --patch does to each Job; raises UsageError."""
    if bool(args.patch) != bool(args.patch_type):
        raise UsageError("--patch and --patch-type: give both, or neither")
    if not args.patch:
        return lambda made: made
    from podscope.trace import patches

    return patches.load(args.patch, args.patch_type)


def _tell_unused(args: argparse.Namespace) -> None:
    for flag, why in (
        ("fetch_headers", "types come from the kernel itself (BTF)"),
        ("init_imagename", "there is no image for headers"),
        ("google_application_secret", "results are kept in the cluster, or written by --output"),
    ):
        if getattr(args, flag):
            print(f"podscope: --{flag.replace('_', '-')} does nothing: {why}", file=sys.stderr)


def _parts(asked: Asked, server: ApiServer) -> tuple[jobs.Part, ...]:
    """Where it has to run; raises UsageError where nothing is to be traced."""
    connection = Connection(server)
    finder = Jobs(server)
    try:
        if asked.all_nodes:
            nodes = _list(connection, "api/v1/nodes", Page[Node])
            return jobs.on_nodes(sorted(one.metadata.name for one in nodes))
        if not asked.of_pods:
            return placement.parts(asked.scope, (), Cluster(), container=asked.container)
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
        parts = placement.parts(
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


@contextlib.contextmanager
def _joining(
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
                    for part in _new_parts(_parts(asked, ways.server), known):
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
    if kept.way == traces.WAY_AGENTS and part.node in ways.agents.agents:
        ways.agents.add(request, part, kept.nodes)
        found = ways.agents.listed(kept.namespace, kept.name)
    elif kept.way == traces.WAY_AGENTS:
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
class InCluster:
    """A trace of a cluster, to be shown."""

    following: Following
    target: str
    speaks: bool
    feed: Feed | None = None

    @property
    def where(self) -> str:
        return self.target or "all pods"

    @property
    def lost(self) -> Mapping[str, int]:
        return self.following.gathered().lost()

    @property
    def full(self) -> Mapping[str, int]:
        return {}  # told by node, in the notes

    def __iter__(self) -> Iterator[Answer]:
        for answer in self.following:
            if self.feed is not None:
                self.feed.put(answer, self.shapes(), self.lost)
            yield answer

    def shapes(self) -> Mapping[str, MapShape]:
        return self.following.shapes()

    def status(self) -> str:
        if self.following.away:
            return "the API server does not answer"
        states = self.following.states()
        running = sum(state in (RUNNING, ENDED) for state, _ in states.values())
        why = next(
            (f": {w}" for state, w in states.values() if state in (STARTING, FAILED) and w), ""
        )
        return f"{running} of {len(states)} nodes{why}"

    def notes(self) -> Sequence[str]:
        gathered = self.following.gathered()
        told = set(gathered.reports)
        silent: dict[str, list[str]] = {}
        for node, (state, why) in self.following.states().items():
            if node not in told and state != ENDED:
                silent.setdefault(why or "no answer", []).append(node)
        said = [f"{', '.join(nodes)}: {why}" for why, nodes in silent.items()]
        said += self.feed.notes if self.feed is not None else ()
        return [*said, *(note for note in gathered.notes() if not note.endswith(": no answer"))]

    def end(self) -> str:
        states = self.following.states()
        ended = sum(state == ENDED for state, _ in states.values())
        return f"{ended} of {len(states)} nodes reported"

    def summary(self) -> dict[str, Any]:
        gathered = self.following.gathered()
        states = self.following.states()
        versions = {one.about.bpftrace for one in gathered.reports.values()}
        return {
            "trace": self.following.kept.name,
            "target": self.where,
            "bpftrace": ", ".join(sorted(versions)),
            "expected": sorted(states),
            "reported": sorted(node for node, (state, _) in states.items() if state == ENDED),
            "failed": {
                node: why or "no answer"
                for node, (state, why) in sorted(states.items())
                if state != ENDED
            },
        }
