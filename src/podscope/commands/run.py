# SPDX-License-Identifier: Apache-2.0
"""``podscope run``: a bpftrace program on this host, a unit, a container or a process."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any
from typing import TextIO

from podscope import filters
from podscope.commands.lifetime import Lifetime
from podscope.errors import PodscopeError
from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from contextlib import AbstractContextManager

    from podscope.trace.scripts import Script
    from podscope.trace.session import Answer
    from podscope.trace.session import Trace

HELP = "Run a bpftrace program, confined to a target, and show its maps live."
FORMS = ("table", "json", "csv", "snapshots")
_LEAST_INTERVAL_NS = 100 * 10**6
_SECOND_NS = 10**9
# What each reason of a loss means, for people.
LOSSES = {
    "lines": "lines that found bpftrace's buffer full",
    "events": "events that found bpftrace's buffer full",
    "map_full": "updates of maps that were full",
    "last_values": "bpftrace ended without them; what is shown is older",
    "helper_errors": "requests that the kernel refused to a probe",
    "broken_lines": "lines of bpftrace that could not be read",
    "same_keys": "keys that bpftrace writes like another one",
    "unsplit_keys": "keys whose parts cannot be told apart",
    "cgroups": "cgroups of the target that could not be added",
}


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[SCRIPT] [TARGET...]",
        help="a shipped script, unless -e or -f is given; unit/X, container/ID, pod/UID, pid/N",
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


def options(args: argparse.Namespace) -> Options:
    """The flags as values; raises UsageError."""
    script, targets = _script(args)
    if not script.text.strip():
        raise UsageError("the program is empty")
    interval = filters.duration_ns(args.interval, "--interval", least_ns=_LEAST_INTERVAL_NS)
    return Options(
        script=script,
        target=" ".join(targets),
        arguments=tuple(args.args),
        form=args.form,
        output="" if args.output == "stdout" else args.output,
        interval=interval / 1e9,
        deadline=_seconds(args.deadline, "--deadline"),
        grace=_seconds(args.deadline_grace_period, "--deadline-grace-period"),
        confine=args.confine,
        unsafe=args.unsafe,
    )


def _seconds(text: str, option: str) -> float:
    """A time; a number alone is seconds, as kubectl-trace has it."""
    told = f"{text}s" if text.isascii() and text.isdigit() else text
    return filters.duration_ns(told, option, least_ns=_SECOND_NS) / 1e9


def _script(args: argparse.Namespace) -> tuple[Script, list[str]]:
    """The program, and what is left of the words: targets."""
    from podscope.trace import scripts

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
    if len(named) > 1:
        raise UsageError(f"one script at a time: {' '.join(named)}")
    return scripts.load(named[0]), [word for word in args.words if word is not named[0]]


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
    if os.geteuid() != 0:
        raise PodscopeError("bpftrace needs root: run it with sudo")
    import podscope.trace.session as sessions

    with Lifetime() as lifetime:
        found = sessions.on_host(chosen.target.split())
        prepared = sessions.prepare(
            chosen.script.text, found, confine=chosen.confine, interval=chosen.interval
        )
        with (
            _place(chosen) as out,
            sessions.Trace(
                prepared,
                found if chosen.confine else None,
                deadline=chosen.deadline,
                grace=chosen.grace,
                arguments=chosen.arguments,
                unsafe=chosen.unsafe,
            ) as trace,
        ):
            lifetime.begin(trace.stop)
            show(trace, chosen, out)
    return 0


def _place(chosen: Options) -> AbstractContextManager[TextIO]:
    """Where to write to; raises UsageError."""
    if not chosen.output:
        return nullcontext(sys.stdout)
    path = chosen.output
    if path.endswith("/") or os.path.isdir(path):
        ending = {"table": "txt", "snapshots": "trace"}.get(chosen.form, chosen.form)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = os.path.join(path, f"podscope-trace-{stamp}-{os.getpid()}.{ending}")
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be written: {error.strerror}") from None
    print(f"podscope: writing to {path}", file=sys.stderr)
    return file


def show(trace: Trace, chosen: Options, out: TextIO) -> None:
    """Write what each answer says, and at the end what is missing."""
    from podscope import render

    start = time.monotonic()
    if chosen.form == "json":
        _show_json(trace, chosen, out, start)
        return
    if chosen.form == "snapshots":
        _show_snapshots(trace, chosen, out)
        return
    if chosen.form == "csv":
        _show_csv(trace, chosen, out)
    elif render.Screen.fits(out) and not trace.prepared.speaks and trace.prepared.shapes:
        _show_screen(trace, chosen, out, start)
    else:
        _show_lines(trace, chosen, out)
    _tell(trace, chosen, start, out if chosen.form == "table" else sys.stderr)


def _show_json(trace: Trace, chosen: Options, out: TextIO, start: float) -> None:
    import json

    from podscope.trace import show as forms

    for answer in trace:
        text = forms.json_answer(answer, trace.prepared.shapes, chosen.script.columns)
        if text:
            out.write(text)
            out.flush()
    summary: dict[str, Any] = {
        "kind": "summary",
        "target": chosen.target or "host",
        "seconds": round(time.monotonic() - start, 3),
        "bpftrace": ".".join(map(str, trace.bpftrace.version)),
        "lost": trace.lost,
        "full": trace.full,
        "notes": trace.notes,
    }
    out.write(json.dumps(summary, ensure_ascii=False) + "\n")


def _show_snapshots(trace: Trace, chosen: Options, out: TextIO) -> None:
    import socket

    from podscope.trace import reports

    about = reports.About(
        node=os.environ.get("NODE_NAME") or socket.gethostname(),
        target=chosen.target,
        program=chosen.script.text,
        bpftrace=".".join(map(str, trace.bpftrace.version)),
        columns=chosen.script.columns,
    )
    out.write(reports.begin_line(about))
    out.flush()
    try:
        for answer in trace:
            out.write(reports.answer_line(answer, trace.prepared.shapes, trace.lost, trace.full))
            out.flush()
    except PodscopeError as error:
        out.write(reports.failed_line(str(error)))
        raise


def _show_csv(trace: Trace, chosen: Options, out: TextIO) -> None:
    from podscope.trace import show as forms
    from podscope.trace.decode import Text
    from podscope.trace.decode import Value
    from podscope.trace.scripts import row

    columns = chosen.script.columns
    if columns:
        out.write(forms.csv_row(columns))
    last: Answer | None = None
    for answer in trace:
        last = answer
        for line in answer.lines:
            if isinstance(line, Value):
                values = line.value if isinstance(line.value, list) else [line.value]
                out.write(forms.csv_row(row(values, columns) if columns else values))
            elif isinstance(line, Text):
                # Not a row: it would break the form.
                sys.stderr.write(line.text)
        out.flush()
    if last is not None and not columns:
        out.write(forms.csv_maps(last.maps))


def _show_lines(trace: Trace, chosen: Options, out: TextIO) -> None:
    from podscope.trace import show as forms
    from podscope.trace.decode import Value

    columns = chosen.script.columns
    table = forms.Columns(columns)
    shapes = trace.prepared.shapes
    written = False
    for answer in trace:
        for line in answer.lines:
            fits = isinstance(line, Value) and isinstance(line.value, list)
            if isinstance(line, Value) and fits and columns and len(line.value) == len(columns):
                out.write(table.lines(line.value))
            else:
                out.write(forms.line_text(line, shapes))
            written = True
        out.flush()
        if answer.last:
            lines = forms.maps_lines(answer.maps, shapes, width=_width(out))
            if lines and written:
                out.write("\n")
            out.write("".join(f"{one}\n" for one in lines))


def _show_screen(trace: Trace, chosen: Options, out: TextIO, start: float) -> None:
    from podscope import render
    from podscope.trace import show as forms

    said = ""
    shapes = trace.prepared.shapes
    lines: list[str] = []
    with render.Screen(out) as screen:
        screen.draw([_title(chosen, start), "the program starts"])
        for answer in trace:
            said += "".join(forms.line_text(line, shapes) for line in answer.lines)
            lines = forms.maps_lines(answer.maps, shapes, width=screen.width)
            if not answer.last:
                head = [_title(chosen, start), *said.splitlines()[-3:], ""]
                foot = [told] if (told := losses(trace)) else []
                screen.draw(_frame(head, lines, foot, screen.height))
        # What stays on the terminal is written whole below.
        screen.draw([])
    out.write(said)
    out.write("".join(f"{one}\n" for one in lines))


def _frame(head: list[str], lines: list[str], foot: list[str], height: int) -> list[str]:
    """What fits a terminal, and a line that tells if that is not all."""
    room = max(height - 1 - len(head) - len(foot), 1)
    if len(lines) > room:
        more = len(lines) - room + 1
        lines = [*lines[: room - 1], f"... {more} more lines; all are shown at the end"]
    return [*head, *lines, *foot]


def _title(chosen: Options, start: float) -> str:
    name = chosen.script.name or "program"
    where = chosen.target or "this host"
    return f"podscope  {name} on {where}  {time.monotonic() - start:.0f}s  Ctrl-C ends it"


def _width(out: TextIO) -> int:
    return shutil.get_terminal_size().columns if out.isatty() else 100


def losses(trace: Trace) -> str:
    """``lost: events 3; full: @ (4096)``; empty if nothing is missing."""
    from podscope import render

    told = [render.lost_text(trace.lost)]
    if trace.full:
        told.append("full: " + ", ".join(f"{name} ({n})" for name, n in trace.full.items()))
    return "; ".join(one for one in told if one)


def _tell(trace: Trace, chosen: Options, start: float, out: TextIO) -> None:
    from podscope import render

    for note in dict.fromkeys(trace.notes):
        print(f"podscope: {note}", file=sys.stderr)
    for reason in trace.lost:
        print(f"podscope: {reason}: {LOSSES[reason]}", file=sys.stderr)
    for name, count in trace.full.items():
        print(
            f"podscope: {name} is full with {count} entries: counts of other keys are missing; "
            "raise BPFTRACE_MAX_MAP_KEYS",
            file=sys.stderr,
        )
    passed = render.seconds(time.monotonic() - start)
    out.write(f"\n{chosen.target or 'this host'}, {passed}; {losses(trace) or 'nothing lost'}\n")
