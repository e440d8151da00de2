# SPDX-License-Identifier: Apache-2.0
"""How a running trace is shown: as tables that redraw, lines, JSON or CSV."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any
from typing import Protocol
from typing import TextIO

if TYPE_CHECKING:
    from podscope.trace.decode import Text
    from podscope.trace.decode import Value
    from podscope.trace.maps import MapShape
    from podscope.trace.session import Answer
    from podscope.trace.session import Line

FORMS = ("table", "json", "csv")
# What each reason of a loss means, for people.
LOSSES = {
    "lines": "lines that found bpftrace's buffer full, or that it had not read when it ended",
    "events": "events that found bpftrace's buffer full",
    "map_full": "updates of maps that were full",
    "last_values": "bpftrace ended without them; what is shown is older",
    "helper_errors": "requests that the kernel refused to a probe",
    "broken_lines": "lines of bpftrace that could not be read",
    "same_keys": "keys that bpftrace writes like another one",
    "unsplit_keys": "keys whose parts cannot be told apart",
    "log": "lines that were thrown away with the old part of a pod's log",
    "cgroups": "cgroups of the target that could not be added",
}


# Colours of pods: the six that can be read on both dark and light grounds.
_COLOURS = tuple(f"\x1b[{code}m" for code in (31, 32, 33, 34, 35, 36))
_PLAIN = "\x1b[0m"


class Shown(Protocol):
    """A trace that runs, on this host or in a cluster."""

    @property
    def where(self) -> str:
        """What it runs on, for the title."""

    @property
    def speaks(self) -> bool:
        """Whether it writes lines while it runs."""

    @property
    def lost(self) -> Mapping[str, int]:
        """What is missing, by reason."""

    @property
    def full(self) -> Mapping[str, int]:
        """Maps that had no room, with their entries."""

    def __iter__(self) -> Iterator[Answer]:
        """Its answers."""

    def shapes(self) -> Mapping[str, MapShape]:
        """Of its maps."""

    def status(self) -> str:
        """How far it is, for the title."""

    def notes(self) -> Sequence[str]:
        """What a user should know."""

    def end(self) -> str:
        """The last line's middle: who has answered."""

    def summary(self) -> dict[str, Any]:
        """For the summary in JSON."""


@dataclass(frozen=True)
class View:
    """How it is shown.

    Attributes:
        form: one of `FORMS`.
        name: of the program.
        columns: names for the parts of printed tuples.
        places: names of the columns that say where a row comes from: ``node`` and ``pod``.
    """

    form: str = "table"
    name: str = ""
    columns: tuple[str, ...] = ()
    places: tuple[str, ...] = ()


def show(trace: Shown, view: View, out: TextIO) -> None:
    """Write what each answer says, and at the end what is missing."""
    from podscope import render

    start = time.monotonic()
    if view.form == "json":
        _show_json(trace, view, out, start)
        return
    if view.form == "csv":
        _show_csv(trace, view, out)
    elif render.Screen.fits(out) and not trace.speaks:
        _show_screen(trace, view, out, start)
    else:
        _show_lines(trace, view, out)
    _tell(trace, start, out if view.form == "table" else sys.stderr)


def _show_json(trace: Shown, view: View, out: TextIO, start: float) -> None:
    from podscope.trace import show as forms

    for answer in trace:
        text = forms.json_answer(answer, trace.shapes(), view.columns)
        if text:
            out.write(text)
            out.flush()
    summary: dict[str, Any] = {
        "kind": "summary",
        **trace.summary(),
        "seconds": round(time.monotonic() - start, 3),
        "lost": dict(trace.lost),
        "full": dict(trace.full),
        "notes": list(trace.notes()),
    }
    out.write(json.dumps(summary, ensure_ascii=False) + "\n")


def _show_csv(trace: Shown, view: View, out: TextIO) -> None:
    from podscope.trace import show as forms
    from podscope.trace.decode import Text
    from podscope.trace.decode import Value
    from podscope.trace.scripts import row

    columns = view.columns
    if columns:
        out.write(forms.csv_row((*view.places, *columns)))
    last: Answer | None = None
    for answer in trace:
        last = answer
        for line in answer.lines:
            if isinstance(line, Value):
                values = line.value if isinstance(line.value, list) else [line.value]
                fits = columns and len(values) == len(columns)
                told = row(values, columns) if fits else values
                out.write(forms.csv_row((*_places(line, view), *told)))
            elif isinstance(line, Text):
                # Not a row: it would break the form.
                sys.stderr.write(line.text)
        out.flush()
    if last is not None and not columns:
        out.write(forms.csv_maps(last.maps))


def _places(line: Text | Value, view: View) -> tuple[str, ...]:
    told = {"node": line.node, "pod": line.whose}
    return tuple(told[name] for name in view.places)


def _show_lines(trace: Shown, view: View, out: TextIO) -> None:
    from podscope.trace import show as forms
    from podscope.trace.decode import Value

    columns = view.columns
    table = forms.Columns((*view.places, *columns))
    colour = out.isatty()
    written = False
    for answer in trace:
        for line in answer.lines:
            fits = isinstance(line, Value) and isinstance(line.value, list)
            if isinstance(line, Value) and fits and columns and len(line.value) == len(columns):
                out.write(table.lines([*_places(line, view), *line.value]))
            else:
                out.write(prefixed(line, trace.shapes(), colour=colour))
            written = True
        out.flush()
        if answer.last:
            lines = forms.maps_lines(answer.maps, trace.shapes(), width=_width(out))
            if lines and written:
                out.write("\n")
            out.write("".join(f"{one}\n" for one in lines))


def prefixed(
    line: Line, shapes: Mapping[str, MapShape], *, colour: bool = False, times: bool = False
) -> str:
    """The text of a line, with its pod or node in front of it where that is known.

    Args:
        colour: one for each pod, or node.
        times: the time, too.
    """
    import numpy as np

    from podscope import render
    from podscope.trace import show as forms
    from podscope.trace.tables import MapTable

    text = forms.line_text(line, shapes)
    if isinstance(line, MapTable):
        return text
    place = line.whose or line.node
    front = f"{place}: " if place else ""
    if colour and place:
        front = f"{_COLOURS[sum(place.encode()) % len(_COLOURS)]}{front}{_PLAIN}"
    if times:
        stamp = np.array([line.time_ns], np.int64)
        front = f"{render.rfc3339(stamp)[0]} {front}"
    return "".join(f"{front}{one}\n" for one in text.splitlines()) if front else text


def time_of(line: Line) -> int:
    """When a line came, as Unix time in nanoseconds; 0: not known."""
    return getattr(line, "time_ns", 0)


def _show_screen(trace: Shown, view: View, out: TextIO, start: float) -> None:
    from podscope import render
    from podscope.trace import show as forms

    said = ""
    lines: list[str] = []
    with render.Screen(out) as screen:
        screen.draw([_title(trace, view, start), "the program starts"])
        for answer in trace:
            shapes = trace.shapes()
            said += "".join(prefixed(line, shapes) for line in answer.lines)
            lines = forms.maps_lines(answer.maps, shapes, width=screen.width)
            if not answer.last:
                head = [_title(trace, view, start), *said.splitlines()[-3:], ""]
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


def _title(trace: Shown, view: View, start: float) -> str:
    name, status = view.name or "program", trace.status()
    passed = f"{time.monotonic() - start:.0f}s"
    parts = (f"podscope  {name} on {trace.where}", passed, status, "Ctrl-C ends it")
    return "  ".join(part for part in parts if part)


def _width(out: TextIO) -> int:
    return shutil.get_terminal_size().columns if out.isatty() else 100


def losses(trace: Shown) -> str:
    """``lost: events 3; full: @ (4096)``; empty if nothing is missing."""
    from podscope import render

    told = [render.lost_text(trace.lost)]
    if trace.full:
        told.append("full: " + ", ".join(f"{name} ({n})" for name, n in trace.full.items()))
    return "; ".join(one for one in told if one)


def _tell(trace: Shown, start: float, out: TextIO) -> None:
    from podscope import render

    for note in dict.fromkeys(trace.notes()):
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
    parts = (f"{trace.where}, {passed}", trace.end(), losses(trace) or "nothing lost")
    out.write("\n" + "; ".join(part for part in parts if part) + "\n")
