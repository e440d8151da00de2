# SPDX-License-Identifier: Apache-2.0
"""``podscope run``: a bpftrace program on this host, or on the nodes of a cluster."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any
from typing import TextIO

from podscope import filters
from podscope.commands import showing
from podscope.commands import targets
from podscope.commands import trace_sinks
from podscope.commands.lifetime import Lifetime
from podscope.errors import PodscopeError
from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from contextlib import AbstractContextManager

    from podscope.commands.trace_sinks import Feed
    from podscope.trace.host_targets import HostTarget
    from podscope.trace.maps import MapShape
    from podscope.trace.scripts import Script
    from podscope.trace.session import Answer
    from podscope.trace.session import Prepared
    from podscope.trace.session import Trace
    from podscope.trace.tools import ToolTrace

HELP = "Run a bpftrace program, confined to a target, and show its maps live."
FORMS = (*showing.FORMS, "snapshots")
BY = ("node", "pod")
WAYS = ("auto", "agents", "jobs")
BPFTRACE = "bpftrace"
TRACERS = (BPFTRACE, "bcc", "rbspy")
IMAGE = "docker.io/library/podscope:dev"
_LEAST_INTERVAL_NS = 100 * 10**6
_SECOND_NS = 10**9


@dataclass(frozen=True)
class Options:
    """What to run, and how to show it; times are seconds."""

    script: Script
    target: str = ""
    arguments: tuple[str, ...] = ()
    form: str = "table"
    output: str = ""
    interval: float = 1.0
    deadline: float = 3600.0
    grace: float = 30.0
    confine: bool = True
    unsafe: bool = False
    by: str = ""
    tracer: str = BPFTRACE
    selector: str = ""
    names: tuple[str, ...] = ()
    stop_port: int = 0

    @property
    def targets(self) -> tuple[str, ...]:
        """One by one."""
        return tuple(self.target.split())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[SCRIPT] [TARGET...]",
        help="a shipped script, unless -e or -f is given; unit/X, container/ID, pod/UID, pid/N; "
        "in a cluster node/X, pod/X, deploy/X, sts/X, ds/X, rs/X, job/X, cronjob/X, svc/X",
    )
    parser.add_argument("-e", "--eval", metavar="PROGRAM", help="the program")
    parser.add_argument(
        "-f", "--filename", metavar="FILE", help="a file with the program; - reads stdin"
    )
    parser.add_argument("--program", metavar="PROGRAM", help="the same as --eval")
    parser.add_argument(
        "--args", action="append", metavar="TEXT", default=[], help="$1 and on; may be repeated"
    )
    parser.add_argument(
        "-o",
        "--form",
        choices=FORMS,
        default="table",
        help="form (default: table); snapshots are for 'podscope get'",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        default="stdout",
        help="write to this file, or into this directory",
    )
    parser.add_argument(
        "--interval", metavar="TIME", default="1s", help="time between updates (default: 1s)"
    )
    parser.add_argument(
        "--deadline", metavar="TIME", default="1h", help="end after this time (default: 1h)"
    )
    parser.add_argument(
        "--deadline-grace-period",
        metavar="TIME",
        default="30s",
        help="how long it may then take to print its maps (default: 30s)",
    )
    parser.add_argument(
        "--confine", action="store_true", default=True, help="see the target alone (the default)"
    )
    parser.add_argument(
        "--no-confine",
        dest="confine",
        action="store_false",
        help="see all of the host; the target only gives $container_pid",
    )
    parser.add_argument(
        "--unsafe",
        action="store_true",
        help="allow system() and other functions that change things",
    )
    parser.add_argument("--by", choices=BY, help="keep maps apart by node or pod")
    parser.add_argument(
        "--name",
        action="append",
        metavar="NAME",
        default=[],
        help="what to call a target in the answer; once for each, in their order",
    )
    parser.add_argument(
        "--stop-port",
        metavar="PORT",
        type=int,
        default=0,
        help="end as by Ctrl-C when a connection comes to this port of 127.0.0.1",
    )
    trace_sinks.add_sinks(parser)
    _add_cluster(parser)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    """Flags of traces in a cluster."""
    targets.add_place(parser)
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="pods of all namespaces"
    )
    parser.add_argument("-l", "--selector", metavar="LABELS", help="pods with these labels")
    parser.add_argument(
        "--way",
        choices=WAYS,
        default="auto",
        help="by Jobs, or by agents that run traces (default: by agents where it can be)",
    )
    targets.add_agents(parser)
    parser.add_argument("--all-nodes", action="store_true", help="all nodes, each as a whole")
    parser.add_argument("-c", "--container", metavar="NAME", default="", help="this container only")
    parser.add_argument(
        "--target-namespace", metavar="NAME", help="where the target is (default: that of -n)"
    )
    parser.add_argument("-a", "--attach", action="store_true", help="show it live (the default)")
    parser.add_argument(
        "-d", "--detach", action="store_true", help="only begin it; 'podscope attach' shows it"
    )
    parser.add_argument(
        "--ttl", metavar="TIME", default="24h", help="how long it is kept (default: 24h)"
    )
    parser.add_argument(
        "--imagename", metavar="IMAGE", default=IMAGE, help=f"what runs on nodes (default: {IMAGE})"
    )
    parser.add_argument(
        "--serviceaccount", metavar="NAME", default="default", help="of its pods (default: default)"
    )
    parser.add_argument("--patch", metavar="FILE", help="changes of its Jobs, in YAML or JSON")
    parser.add_argument(
        "--patch-type", choices=("json", "merge", "strategic"), help="what the file of --patch is"
    )
    parser.add_argument(
        "--tracer",
        choices=TRACERS,
        default=BPFTRACE,
        help="what runs: for bcc, --program names a tool (default: bpftrace)",
    )
    parser.add_argument(
        "--process-selector",
        metavar="TEXT",
        default="",
        help="for other tracers: the process, as pid=last,exe=ruby,comm=x,cmdline=y",
    )
    unused = "of kubectl-trace; does nothing"
    parser.add_argument("--fetch-headers", action="store_true", help=unused)
    parser.add_argument("--init-imagename", metavar="IMAGE", help=unused)
    parser.add_argument("--google-application-secret", metavar="NAME", help=unused)


def options(args: argparse.Namespace) -> Options:
    """The flags as values; raises UsageError."""
    script, words = _script(args)
    if args.tracer != BPFTRACE:
        _check_tool(args)
    elif args.process_selector:
        raise UsageError("--process-selector: only for other tracers than bpftrace")
    elif not script.text.strip():
        raise UsageError("the program is empty")
    interval = filters.duration_ns(args.interval, "--interval", least_ns=_LEAST_INTERVAL_NS)
    if args.name and len(args.name) != len(words):
        raise UsageError("--name: give one for each target")
    return Options(
        script=script,
        target=" ".join(words),
        arguments=tuple(args.args),
        form=args.form,
        output="" if args.output == "stdout" else args.output,
        interval=interval / 1e9,
        deadline=seconds(args.deadline, "--deadline"),
        grace=seconds(args.deadline_grace_period, "--deadline-grace-period"),
        confine=args.confine and args.tracer == BPFTRACE,
        tracer=args.tracer,
        selector=args.process_selector,
        unsafe=args.unsafe,
        by=args.by or "",
        names=tuple(args.name),
        stop_port=args.stop_port,
    )


def seconds(text: str, option: str) -> float:
    """A time; a number alone is seconds, as kubectl-trace has it."""
    told = f"{text}s" if text.isascii() and text.isdigit() else text
    return filters.duration_ns(told, option, least_ns=_SECOND_NS) / 1e9


def is_for_cluster(words: Sequence[str], args: argparse.Namespace) -> bool:
    """Whether nodes of a cluster are meant, and not this host."""
    flags = (args.namespace, args.selector, args.context, args.kubeconfig, args.target_namespace)
    if any(flags) or args.all_namespaces or args.all_nodes or args.container:
        return True
    if targets.is_plugin():
        return True
    from podscope.trace.host_targets import is_on_host

    return not all(map(is_on_host, words))


def _check_tool(args: argparse.Namespace) -> None:
    """Refuses what tools do not have; raises UsageError."""
    from podscope.trace import processes

    given = {
        "--by": args.by,
        "--unsafe": args.unsafe,
        "--metric": args.metric,
        "--name": args.name,
    }
    for name, value in given.items():
        if value:
            raise UsageError(f"{name}: not with --tracer {args.tracer}, only with bpftrace")
    if args.process_selector:
        processes.selector(args.process_selector)


def _tool(args: argparse.Namespace) -> tuple[Script, list[str]]:
    """The name of a tool as a script, and targets."""
    from podscope.trace import scripts
    from podscope.trace import tools

    if args.filename is not None:
        raise UsageError(f"-f: not with --tracer {args.tracer}, only with bpftrace")
    named = [one for one in (args.eval, args.program) if one is not None]
    if args.tracer == "bcc" and len(named) != 1:
        raise UsageError("--tracer bcc: which tool? Name it by --program, as --program tcplife")
    if args.tracer != "bcc" and named:
        raise UsageError(f"--tracer {args.tracer}: takes no program, only --args")
    name = tools.check_name(args.tracer, named[0]) if named else args.tracer
    return scripts.Script(name, name, ""), args.words


def _script(args: argparse.Namespace) -> tuple[Script, list[str]]:
    """The program, and what is left of the words: targets."""
    from podscope.trace import scripts

    if args.tracer != BPFTRACE:
        return _tool(args)
    given = {
        "-e": args.eval,
        "-f": args.filename,
        "--program": args.program,
    }
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)}: give one of them")
    if args.filename is not None:
        return scripts.read(os.path.basename(args.filename), _text(args.filename)), args.words
    if chosen:
        return scripts.read("", given[chosen[0]]), args.words
    named = [word for word in args.words if "/" not in word]
    if not named:
        raise UsageError("what to run? Give -e PROGRAM, -f FILE, or a name of 'podscope scripts'")
    rest = [word for word in args.words if word is not named[0]]
    if len(named) > 1 and named[1] in scripts.names():
        raise UsageError(f"one script at a time: {' '.join(named)}")
    return scripts.load(named[0]), rest


def _text(path: str) -> str:
    try:
        if path == "-":
            return sys.stdin.read()
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"-f {path}: cannot be read: {said}") from None


def run(args: argparse.Namespace) -> int:
    """Run the program until its end, a signal, or the deadline."""
    chosen = options(args)
    if is_for_cluster(chosen.targets, args):
        from podscope.commands import run_cluster

        return run_cluster.run(chosen, args)
    if chosen.by and not chosen.names:
        raise UsageError(f"--by {chosen.by}: only in a cluster")
    if os.geteuid() != 0:
        raise PodscopeError("bpftrace needs root: run it with sudo")
    if args.config and chosen.form == "snapshots":
        raise UsageError("--config: not with -o snapshots")
    return _run_here(chosen, args)


def _run_here(chosen: Options, args: argparse.Namespace) -> int:
    import socket

    with Lifetime() as lifetime, stopping(chosen.stop_port):
        begin = _planned(chosen)
        with (
            trace_sinks.feed(args, chosen.script, host=socket.gethostname()) as feed,
            place(chosen) as out,
            begin() as trace,
        ):
            lifetime.begin(lambda: _stop(trace, lifetime))
            if chosen.form == "snapshots":
                _write_snapshots(trace, chosen, out)
            else:
                view = showing.View(chosen.form, chosen.script.name, chosen.script.columns)
                showing.show(_Here(trace, chosen.target, feed), view, out)
    return 0


def _planned(chosen: Options) -> Callable[[], Trace | ToolTrace]:
    """What begins the trace; raises UsageError where it cannot be."""
    import podscope.trace.session as sessions
    from podscope.trace import processes
    from podscope.trace import tools

    times = {"deadline": chosen.deadline, "grace": chosen.grace}
    if chosen.tracer == BPFTRACE:
        found, prepared = _prepared(chosen)
        return lambda: sessions.Trace(
            prepared,
            found if chosen.confine else None,
            arguments=chosen.arguments,
            unsafe=chosen.unsafe,
            **times,
        )
    target = sessions.on_host(chosen.targets)
    needed = bool(chosen.selector) or tools.asks_for_process(chosen.tracer, chosen.arguments)
    if target is None and needed:
        raise UsageError(f"--tracer {chosen.tracer}: a process of which target? Name one")
    pid = 0
    if target is not None and chosen.selector:
        pid = processes.chosen(processes.selector(chosen.selector), target.all_pids())
    elif target is not None and needed:
        pid = target.first_pid()
    tool = tools.find(chosen.tracer, chosen.script.name, chosen.arguments, pid)
    return lambda: tools.ToolTrace(tool, **times)


def _stop(trace: Trace | ToolTrace, lifetime: Lifetime) -> None:
    """Ends it; who reads answers of many nodes is to know that this one is of a shorter time."""
    if lifetime.terminated and (node := os.environ.get("NODE_NAME")):
        trace.notes.append(f"{node}: was ended from outside (SIGTERM): its answer is until then")
    trace.stop()


def _prepared(chosen: Options) -> tuple[HostTarget | None, Prepared]:
    """What is traced here, and the program for it."""
    import podscope.trace.session as sessions

    text, interval = chosen.script.text, chosen.interval
    if not chosen.names:
        found = sessions.on_host(chosen.targets)
        return found, sessions.prepare(text, found, confine=chosen.confine, interval=interval)
    named = dict(zip(chosen.targets, chosen.names, strict=True))
    whole, owners = sessions.named_on_host(named)
    by_pod = chosen.by == "pod"
    return whole, sessions.prepare(text, whole, interval=interval, owners=owners, by_owner=by_pod)


@dataclass(frozen=True)
class _Here:
    """A trace on this host."""

    trace: Trace | ToolTrace
    target: str
    feed: Feed | None = None

    @property
    def where(self) -> str:
        return self.target or "this host"

    @property
    def speaks(self) -> bool:
        return self.trace.speaks

    @property
    def lost(self) -> Mapping[str, int]:
        return self.trace.lost

    @property
    def full(self) -> Mapping[str, int]:
        return self.trace.full

    def __iter__(self) -> Iterator[Answer]:
        return trace_sinks.fed(self.trace, self, self.feed)

    def shapes(self) -> Mapping[str, MapShape]:
        return self.trace.told_shapes()

    def status(self) -> str:
        return ""

    def notes(self) -> Sequence[str]:
        return [*self.trace.notes, *(self.feed.notes if self.feed is not None else ())]

    def end(self) -> str:
        return ""

    def summary(self) -> dict[str, Any]:
        return {"target": self.target or "host", "bpftrace": self.trace.version}


def stopping(port: int) -> AbstractContextManager[object]:
    """What ends this process as Ctrl-C does when somebody connects to a port; 0: nothing."""
    if not port:
        return nullcontext()
    from podscope.commands.stop_port import StopPort

    return StopPort(port)


def place(chosen: Options, name: str = "podscope-trace") -> AbstractContextManager[TextIO]:
    """Where to write to; raises UsageError."""
    if not chosen.output:
        return nullcontext(sys.stdout)
    path = chosen.output
    if path.endswith("/") or os.path.isdir(path):
        ending = {"table": "txt", "snapshots": "trace"}.get(chosen.form, chosen.form)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = os.path.join(path, f"{name}-{stamp}-{os.getpid()}.{ending}")
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be written: {error.strerror}") from None
    print(f"podscope: writing to {path}", file=sys.stderr)
    return file


def _write_snapshots(trace: Trace | ToolTrace, chosen: Options, out: TextIO) -> None:
    import socket

    from podscope.trace import reports

    about = reports.About(
        node=os.environ.get("NODE_NAME") or socket.gethostname(),
        target=chosen.target,
        program=chosen.script.text,
        bpftrace=trace.version,
        columns=chosen.script.columns,
    )
    writer = reports.Writer(out, about, trace.told_shapes())
    try:
        for answer in trace:
            writer.answer(answer, trace)
    except PodscopeError as error:
        writer.failed(str(error))
        raise
