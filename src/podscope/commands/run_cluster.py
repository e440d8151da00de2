# SPDX-License-Identifier: Apache-2.0
"""``podscope run`` in a cluster: Jobs on the nodes of a target, and what they say as one answer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from typing import TYPE_CHECKING
from typing import Any

from podscope import cluster_traces
from podscope.cluster_traces import Asked
from podscope.cluster_traces import Ways
from podscope.commands import showing
from podscope.commands import targets
from podscope.commands import trace_sinks
from podscope.commands.lifetime import Lifetime
from podscope.commands.run import BPFTRACE
from podscope.commands.run import IMAGE
from podscope.commands.run import Options
from podscope.commands.run import place
from podscope.commands.run import seconds
from podscope.errors import UsageError
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import find_server
from podscope.scope import KINDS
from podscope.scope import check
from podscope.trace import jobs
from podscope.trace import kept as traces
from podscope.trace import rewrite
from podscope.trace.following import ENDED
from podscope.trace.following import FAILED
from podscope.trace.following import RUNNING
from podscope.trace.following import STARTING
from podscope.trace.following import Following
from podscope.trace.parse import ProgramError
from podscope.trace.parse import parse
from podscope.trace.tools import asks_for_process

if TYPE_CHECKING:
    from podscope.commands.trace_sinks import Feed
    from podscope.trace.maps import MapShape
    from podscope.trace.reports import About
    from podscope.trace.session import Answer


def run(chosen: Options, args: argparse.Namespace) -> int:
    """Begin the trace, and show it until its end."""
    words, container = _container(chosen.targets, args.container)
    chosen = replace(chosen, target=" ".join(words))
    speaks = _check_program(chosen, args)
    server = find_server(args.kubeconfig or "", args.context or "")
    asked = _asked(chosen, args, container, server)
    check(asked.scope, server, UsageError)
    parts = cluster_traces.parts(asked, server)
    request = _request(chosen, args, args.namespace or server.namespace)
    change = _change(args)
    _tell_unused(args)
    space = asked.scope.namespace or ""
    with (
        Lifetime() as lifetime,
        trace_sinks.feed(args, chosen.script, name=request.name, namespace=space) as feed,
        Ways(server, args.agent_namespace) as ways,
    ):
        by_agents = cluster_traces.is_by_agents(args.way, parts, ways, _jobs_only(asked, args))
        if by_agents:
            # An agent may not reach the maps of its bpftrace, to tell it of new cgroups.
            asked = replace(asked, each=True)
            kept = ways.agents.create(request, cluster_traces.parts(asked, server))
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
            cluster_traces.joining(asked, request, following, ways),
        ):
            lifetime.begin(lambda: stop(following, lifetime))
            places = ("node", "pod") if asked.of_pods and chosen.confine else ("node",)
            view = showing.View(chosen.form, chosen.script.name, chosen.script.columns, places)
            try:
                return show(InCluster(following, request.target, speaks, feed), view, out)
            except KeyboardInterrupt:
                name = kept.name.removeprefix(traces.PREFIX)
                print(
                    f"podscope: 'podscope get {name}' shows whether it has ended", file=sys.stderr
                )
                raise


def _jobs_only(asked: Asked, args: argparse.Namespace) -> list[str]:
    """What was asked for that only Jobs can do."""
    known = {
        "--tracer": args.tracer != BPFTRACE,
        "--unsafe": args.unsafe,
        "--patch": args.patch,
        "$container_pid": asked.one,
        "--imagename": args.imagename != IMAGE,
        "--serviceaccount": args.serviceaccount != "default",
    }
    return [name for name, value in known.items() if value]


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
    if chosen.form == "snapshots":
        raise UsageError("-o snapshots: a cluster keeps what its traces say; see 'podscope get'")
    if chosen.tracer != BPFTRACE:
        return True
    of_pods = not all(_is_node(word) for word in chosen.targets) or not chosen.targets
    return cluster_traces.check_program(
        chosen.script.text,
        of_pods=of_pods and not args.all_nodes,
        confine=chosen.confine,
        by_pod=chosen.by == "pod",
    )


def _is_node(word: str) -> bool:
    kind, slash, _ = word.partition("/")
    return not slash or KINDS.get(kind.lower()) == "node"


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
    if chosen.tracer == BPFTRACE:
        one = cluster_traces.needs_container(chosen.script.text)
    else:
        one = bool(chosen.selector) or asks_for_process(chosen.tracer, chosen.arguments)
    return Asked(targets.scope(flags, server.namespace), container, one, args.all_nodes)


def _request(chosen: Options, args: argparse.Namespace, namespace: str) -> jobs.Request:
    return jobs.Request(
        name=traces.new_name(),
        program=chosen.script.text,
        title=cluster_traces.title_of(chosen.script.name or chosen.script.text),
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
        tracer=chosen.tracer,
        selector=chosen.selector,
        environment=cluster_traces.variables(),
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
        return trace_sinks.fed(self.following, self, self.feed)

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
