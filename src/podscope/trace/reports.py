# SPDX-License-Identifier: Apache-2.0
"""What a node says of a trace, as JSON lines: to be sent, or kept for months.

The first line is of kind ``trace``: node, target, program, version of bpftrace. Then come lines of
kind ``answer``, each with all maps as they stood; that with ``last`` is the end. ``failed`` says
why there is no such end. A file that breaks off is as good as its last whole line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import Any

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
    """

    about: About
    maps: Mapping[str, MapTable] = field(default_factory=dict)
    shapes: Mapping[str, MapShape] = field(default_factory=dict)
    lines: tuple[Line, ...] = ()
    lost: Mapping[str, int] = field(default_factory=dict)
    full: Mapping[str, int] = field(default_factory=dict)
    ended: bool = False
    failed: str = ""


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
    return _json(
        {
            "kind": "answer",
            "time_ns": answer.time_ns,
            "last": answer.last,
            "lines": [_line(one, shapes) for one in answer.lines],
            "maps": [_map(one, shapes.get(one.name)) for one in answer.maps.values()],
            "lost": dict(lost),
            "full": dict(full),
        }
    )


def failed_line(why: str) -> str:
    """The line of a trace that ended in an error."""
    return _json({"kind": "failed", "why": why})


def read(lines: Iterable[str], place: str) -> Report:
    """What the lines of one node say, all together.

    Args:
        lines: as written by the functions above; the last one may be cut off.
        place: where they come from, for errors.

    Raises:
        UsageError: they are none, or of a later format.
    """
    report: Report | None = None
    printed: list[Line] = []
    cut = 0
    for number, line in enumerate(lines, 1):
        if cut:
            raise UsageError(f"{place}, line {cut}: no line of a trace")
        told = _loaded(line)
        if told is None:
            cut = number  # fine, if it is the last one
            continue
        try:
            report = _added(report, told, printed, place)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(f"{place}, line {number}: no line of a trace") from None
    if report is None:
        raise UsageError(f"{place}: not a trace; write it with 'podscope run -o snapshots'")
    return Report(**{**report.__dict__, "lines": tuple(printed)})


def _added(
    report: Report | None, told: dict[str, Any], printed: list[Line], place: str
) -> Report | None:
    if told["kind"] == "trace":
        if told["format"] > FORMAT:
            raise UsageError(f"{place}: written by a later podscope; read it with that")
        about = About(
            str(told["node"]),
            str(told["target"]),
            str(told["program"]),
            str(told["bpftrace"]),
            tuple(told["columns"]),
        )
        return Report(about)
    if report is None:
        raise UsageError(f"{place}: not a trace; write it with 'podscope run -o snapshots'")
    if told["kind"] == "failed":
        return Report(**{**report.__dict__, "failed": str(told["why"])})
    if told["kind"] != "answer":
        return report
    pairs = [_map_back(one) for one in told["maps"]]
    printed += [_line_back(one) for one in told["lines"]]
    return Report(
        report.about,
        {one.name: one for one, _ in pairs},
        {one.name: one for _, one in pairs},
        (),
        dict(told["lost"]),
        dict(told["full"]),
        bool(told["last"]),
    )


def _loaded(line: str) -> dict[str, Any] | None:
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) and "kind" in told else None


def _line(line: Line, shapes: Mapping[str, MapShape]) -> dict[str, Any]:
    if isinstance(line, Text):
        return {"text": line.text}
    if isinstance(line, Value):
        return {"value": line.value}
    return {"map": _map(line, shapes.get(line.name))}


def _line_back(told: dict[str, Any]) -> Line:
    if "text" in told:
        return Text(str(told["text"]))
    return _map_back(told["map"])[0] if "map" in told else Value(told["value"])


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
