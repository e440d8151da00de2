# SPDX-License-Identifier: Apache-2.0
"""What a node says of a trace, as JSON lines: to be sent, or kept for months.

The first line is of kind ``trace``: node, target, program, version of bpftrace. Then come lines of
kind ``answer``, each with all maps as they stood; that with ``last`` is the end. ``failed`` says
why there is no such end. A file that breaks off is as good as its last whole line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Any
from typing import Protocol
from typing import TextIO

import numpy as np

from podscope.errors import UsageError
from podscope.trace.decode import Text
from podscope.trace.decode import Value
from podscope.trace.maps import AGGREGATIONS
from podscope.trace.maps import VALUE
from podscope.trace.maps import MapShape
from podscope.trace.session import Answer
from podscope.trace.session import Line
from podscope.trace.tables import HISTOGRAMS
from podscope.trace.tables import STATISTICS
from podscope.trace.tables import MapTable
from podscope.trace.tables import integers
from podscope.trace.tables import objects

FORMAT = 1
# A log that is longer may lose its beginning (kubelet: containerLogMaxSize, 10 Mi).
REPEAT_BYTES = 1 << 20
ALIVE_SECONDS = 10.0


@dataclass(frozen=True)
class About:
    """What a trace is; the same on all nodes but for the node and the version of bpftrace."""

    node: str
    target: str = ""
    program: str = ""
    bpftrace: str = ""
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that is known of a trace on one node.

    Attributes:
        about: what runs, and where.
        maps: as they stand, or stood when it ended.
        shapes: of the maps: what the parts of keys are called.
        lines: what the program printed.
        lost: what is missing, by reason.
        full: maps that have as many entries as fit.
        ended: whether the last answer has come.
        failed: why there is none; empty: it has not failed.
        time_ns: when the last answer was given, as Unix time.
        notes: what a user should know, a line each.
    """

    about: About
    maps: Mapping[str, MapTable] = field(default_factory=dict)
    shapes: Mapping[str, MapShape] = field(default_factory=dict)
    lines: tuple[Line, ...] = ()
    lost: Mapping[str, int] = field(default_factory=dict)
    full: Mapping[str, int] = field(default_factory=dict)
    ended: bool = False
    failed: str = ""
    time_ns: int = 0
    notes: tuple[str, ...] = ()


def begin_line(about: About) -> str:
    """The first line."""
    return _json(
        {
            "kind": "trace",
            "format": FORMAT,
            "node": about.node,
            "target": about.target,
            "program": about.program,
            "bpftrace": about.bpftrace,
            "columns": list(about.columns),
        }
    )


def answer_line(
    answer: Answer,
    shapes: Mapping[str, MapShape],
    lost: Mapping[str, int],
    full: Mapping[str, int],
) -> str:
    """An answer as a line."""
    told = _answer(answer, shapes, lost, full)
    return _json(told | {"maps": _maps(answer, shapes)})


def _answer(
    answer: Answer,
    shapes: Mapping[str, MapShape],
    lost: Mapping[str, int],
    full: Mapping[str, int],
) -> dict[str, Any]:
    return {
        "kind": "answer",
        "time_ns": answer.time_ns,
        "last": answer.last,
        "lines": [_line(one, shapes) for one in answer.lines],
        "lost": dict(lost),
        "full": dict(full),
    }


def _maps(answer: Answer, shapes: Mapping[str, MapShape]) -> list[dict[str, Any]]:
    return [_map(one, shapes.get(one.name)) for one in answer.maps.values()]


def failed_line(why: str) -> str:
    """The line of a trace that ended in an error."""
    return _json({"kind": "failed", "why": why})


class Told(Protocol):
    """What is known of a trace beside its answers."""

    notes: list[str]

    @property
    def lost(self) -> Mapping[str, int]:
        """What is missing, by reason."""

    @property
    def full(self) -> Mapping[str, int]:
        """Maps that had no room."""


class Writer:
    """Writes what a node says, as little of it as a log needs.

    Maps are written where they have changed. The first line is repeated from time to time, since
    old parts of a log may be thrown away, and answers are numbered, so that a reader notices.

    Args:
        out: where to.
        about: what runs.
        shapes: of the maps.
    """

    def __init__(self, out: TextIO, about: About, shapes: Mapping[str, MapShape]) -> None:
        self._out = out
        self._begin = begin_line(about)
        self._shapes = shapes
        self._maps: Mapping[str, MapTable] | None = None
        self._told = ""
        self._since = 0
        self._lines = 0
        self._written_at = 0.0
        self._write(self._begin)

    def answer(self, answer: Answer, trace: Told) -> None:
        """Writes an answer; one that says nothing new only now and then, as a sign of life."""
        again = self._since > REPEAT_BYTES or answer.last
        if again:
            self._since = 0
            self._write(self._begin)
        told = _answer(answer, self._shapes, trace.lost, trace.full) | {"before": self._lines}
        if answer.last:
            told["notes"] = list(dict.fromkeys(trace.notes))
        self._lines += len(answer.lines)
        # Lines between two snapshots come with the same tables.
        if again or not _are_same(self._maps, answer.maps):
            self._maps = answer.maps
            maps = _maps(answer, self._shapes)
            text = _json({"maps": maps})
            if again or text != self._told:
                told["maps"] = maps
                self._told = text
        silent = time.monotonic() - self._written_at < ALIVE_SECONDS
        if answer.lines or "maps" in told or not silent:
            self._write(_json(told))

    def failed(self, why: str) -> None:
        """Writes why there is no last answer."""
        self._write(self._begin)
        self._write(failed_line(why))

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
        self._since += len(text)
        self._written_at = time.monotonic()


def _are_same(old: Mapping[str, MapTable] | None, new: Mapping[str, MapTable]) -> bool:
    return (
        old is not None and old.keys() == new.keys() and all(old[name] is new[name] for name in new)
    )


class Reader:
    """Puts together what the lines of one node say, as they come.

    What was read already, and comes once more, is passed over.

    Args:
        place: where they come from, for errors.
        strict: refuse lines that are none; else they are counted.
    """

    def __init__(self, place: str, *, strict: bool = True) -> None:
        self._place = place
        self._strict = strict
        self._broken = 0
        self._lines = 0
        self._came = 0
        self._cut = ""
        self.report: Report | None = None

    def take(self, line: str) -> tuple[Line, ...]:
        """What the program printed that was not known yet.

        A line that is none is an error only if another one follows: the last may be cut off.

        Raises:
            UsageError: no line of a trace, or of a later format.
        """
        if self._cut:
            raise UsageError(self._cut)
        self._lines += 1
        told = _loaded(line)
        if told is None and not self._strict:
            self._broken += 1
            return ()
        if told is None:
            self._cut = f"{self._place}, line {self._lines}: no line of a trace"
            return ()
        try:
            return self._taken(told)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(f"{self._place}, line {self._lines}: no line of a trace") from None

    def again(self) -> None:
        """What comes next is a new copy of the same lines: from the beginning, or from later on."""
        self._cut = ""
        self._broken = 0

    def end(self) -> Report:
        """All that was said. Raises UsageError: nothing was."""
        if self.report is None:
            raise UsageError(
                f"{self._place}: not a trace; write it with 'podscope run -o snapshots'"
            )
        return self.report

    def _taken(self, told: dict[str, Any]) -> tuple[Line, ...]:
        if told["kind"] == "trace":
            self._begin(told)
            return ()
        if self.report is None and told["kind"] == "answer":
            return ()  # the beginning was thrown away; it comes once more
        report = self.end()
        if told["kind"] == "failed":
            self.report = replace(report, failed=str(told["why"]))
        if told["kind"] != "answer" or report.ended:
            return ()
        lines = [_line_back(one, int(told["time_ns"])) for one in told["lines"]]
        before = int(told.get("before", self._came))
        new = lines[max(self._came - before, 0) :]
        missing = max(before - self._came, 0)
        self._came = max(self._came, before + len(lines))
        lost = dict(told["lost"])
        if missing := report.lost.get("log", 0) + missing:
            lost["log"] = missing
        if self._broken:
            lost["broken_lines"] = lost.get("broken_lines", 0) + self._broken
        maps, shapes = report.maps, report.shapes
        if "maps" in told:
            pairs = [_map_back(one) for one in told["maps"]]
            maps = {one.name: one for one, _ in pairs}
            shapes = {one.name: one for _, one in pairs}
        self.report = replace(
            report,
            maps=maps,
            shapes=shapes,
            lost=lost,
            full=dict(told["full"]),
            time_ns=int(told["time_ns"]),
            ended=bool(told["last"]),
            notes=tuple(str(one) for one in told.get("notes", ())),
        )
        return tuple(new)

    def _begin(self, told: dict[str, Any]) -> None:
        if told["format"] > FORMAT:
            raise UsageError(f"{self._place}: written by a later podscope; read it with that")
        if self.report is not None:
            return
        self.report = Report(
            About(
                str(told["node"]),
                str(told["target"]),
                str(told["program"]),
                str(told["bpftrace"]),
                tuple(told["columns"]),
            )
        )


def read(lines: Iterable[str], place: str) -> Report:
    """What the lines of one node say, all together.

    Args:
        lines: as written by the functions above; the last one may be cut off.
        place: where they come from, for errors.

    Raises:
        UsageError: they are none, or of a later format.
    """
    reader = Reader(place)
    printed: list[Line] = []
    for line in lines:
        printed += reader.take(line)
    return replace(reader.end(), lines=tuple(printed))


def read_all(lines: Iterable[str], place: str) -> list[Report]:
    """As `read`, of lines of several nodes one after the other."""
    found: list[Report] = []
    mine: list[str] = []
    node = None
    for line in lines:
        told = _loaded(line) if line.startswith('{"kind":"trace"') else None
        if told is not None and node not in (None, told.get("node")):
            found.append(read(mine, place))
            mine = []
        node = node if told is None else told.get("node")
        mine.append(line)
    return [*found, read(mine, place)]


def lines_of(report: Report) -> list[str]:
    """A report as lines, to be kept."""
    answer = Answer(report.lines, report.maps, report.time_ns, report.ended)
    told = _answer(answer, report.shapes, report.lost, report.full)
    whole = told | {"notes": list(report.notes), "maps": _maps(answer, report.shapes)}
    failed = [failed_line(report.failed)] if report.failed else []
    return [begin_line(report.about), _json(whole), *failed]


def _loaded(line: str) -> dict[str, Any] | None:
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) and "kind" in told else None


def _line(line: Line, shapes: Mapping[str, MapShape]) -> dict[str, Any]:
    if isinstance(line, Text):
        return {"text": line.text} | ({"whose": line.whose} if line.whose else {})
    if isinstance(line, Value):
        return {"value": line.value} | ({"whose": line.whose} if line.whose else {})
    return {"map": _map(line, shapes.get(line.name))}


def _line_back(told: dict[str, Any], time_ns: int) -> Line:
    whose = str(told.get("whose", ""))
    if "text" in told:
        return Text(str(told["text"]), whose, time_ns=time_ns)
    return (
        _map_back(told["map"])[0] if "map" in told else Value(told["value"], whose, time_ns=time_ns)
    )


def _map(one: MapTable, shape: MapShape | None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": one.name,
        "type": one.kind,
        "titles": [] if shape is None else list(shape.titles),
        "keys": [list(key) for key in one.keys],
        "values": one.values.tolist(),
    }
    if one.kind in HISTOGRAMS:
        made["buckets"] = one.buckets.tolist()
    if one.same_keys or one.unsplit:
        made |= {"same_keys": one.same_keys, "unsplit": one.unsplit}
    return made


def _map_back(told: dict[str, Any]) -> tuple[MapTable, MapShape]:
    name, kind = str(told["name"]), str(told["type"])
    if kind not in (*AGGREGATIONS, VALUE):
        raise ValueError(kind)
    keys = tuple(tuple(key) for key in told["keys"])
    buckets = np.array(told.get("buckets", []), np.int64).reshape(-1, 2)
    values = objects(told["values"]) if kind == VALUE else integers(told["values"])
    if kind in HISTOGRAMS:
        values = values.reshape(len(keys), len(buckets))
    elif kind in STATISTICS:
        values = values.reshape(len(keys), 2)
    if len(values) != len(keys):
        raise ValueError(name)
    table = MapTable(
        name,
        kind,
        keys,
        values,
        buckets,
        int(told.get("same_keys", 0)),
        int(told.get("unsplit", 0)),
    )
    return table, MapShape(name, kind, titles=tuple(str(one) for one in told["titles"]))


def _json(members: dict[str, Any]) -> str:
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")) + "\n"
