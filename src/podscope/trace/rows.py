# SPDX-License-Identifier: Apache-2.0
"""Answers of a trace as rows, for sinks: maps as they stand, and what the program printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from podscope import schema_trace
from podscope.batch import Batch
from podscope.batch import Identity
from podscope.errors import UsageError
from podscope.schema import Field
from podscope.trace.decode import Text
from podscope.trace.maps import MapShape
from podscope.trace.maps import shapes as shapes_of
from podscope.trace.parse import parse
from podscope.trace.scripts import row as script_row
from podscope.trace.session import Answer
from podscope.trace.session import Line
from podscope.trace.show import plain
from podscope.trace.tables import HIGHEST
from podscope.trace.tables import HISTOGRAMS
from podscope.trace.tables import LOWEST
from podscope.trace.tables import STATISTICS
from podscope.trace.tables import Key
from podscope.trace.tables import MapTable

# Beyond it a float has not all whole numbers.
_EXACT = 2**53
_PLACES = ("node", "pod")
# Answers that come with lines have the same maps.
_EVERY_NS = 900 * 10**6
_COUNTED = ("count", "sum")
_NUMBERS = [("value", "f8"), ("count", "i8"), ("low", "f8"), ("high", "f8"), ("entry", "i8")]
_TEXTS = ("name", "program", "namespace", "pod", "node", "map", "type", "key", "metric", "text")
_Row = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """What all rows of a trace have in common.

    Attributes:
        name: of the trace.
        program: name of the script.
        namespace: of its pods, where all are of one.
        columns: names of the parts of tuples that it prints.
    """

    name: str = ""
    program: str = ""
    namespace: str = ""
    columns: tuple[str, ...] = ()


def metrics_of(words: Sequence[str], program: str) -> dict[str, str]:
    """Metrics that flags ask for, by the name of their map.

    Args:
        words: ``NAME``, where the program has one map, or ``NAME=@map``.
        program: its text.

    Raises:
        UsageError: no name of a metric, no such map, or two metrics of one name or map; or a
            program that cannot be read.
    """
    if not words:
        return {}
    shapes = shapes_of(parse(program))
    named = {name: one for name, one in shapes.items() if not one.scratch}
    found: dict[str, str] = {}
    for word in words:
        name, _, chosen = word.partition("=")
        if not schema_trace.is_metric_name(name):
            raise UsageError(f"--metric {word}: no name of a metric: letters, digits, _ and dots")
        if not chosen and len(named) != 1:
            told = ", ".join(named) or "none"
            raise UsageError(f"--metric {word}: of which map, as {name}=@x? There are: {told}")
        of = chosen or next(iter(named))
        if of not in shapes:
            raise UsageError(f"--metric {word}: the program has no map {of}")
        if shapes[of].kind == "tseries":
            raise UsageError(f"--metric {word}: {of} is a tseries(), which is no metric")
        if of in found or name in found.values():
            raise UsageError(f"--metric {word}: give each map one metric, and each its own name")
        found[of] = name
    return found


class TraceRows:
    """Makes batches of answers.

    Args:
        origin: what all have in common.
        metrics: names of metrics by their map.
        start_ns: when the trace began, Unix nanoseconds.
    """

    def __init__(self, origin: Origin, metrics: Mapping[str, str], start_ns: int) -> None:
        self.notes: list[str] = []
        self._origin = origin
        self._metrics = metrics
        self._start_ns = start_ns
        self._names: list[str] = []
        self._before: dict[tuple[str, Key], tuple[float, int]] = {}
        self._told_ns = start_ns
        self._lost: dict[str, int] = {}

    def batches(
        self, answer: Answer, shapes: Mapping[str, MapShape], lost: Mapping[str, int]
    ) -> Iterator[Batch]:
        """Rows of an answer: of kind ``trace_line``, and each second of kind ``trace``, with what
        was lost since then.

        Args:
            answer: with the maps as they stand.
            shapes: of the maps.
            lost: what is missing since the start, by reason.
        """
        if answer.lines:
            yield self._lines(answer, shapes)
        if not answer.last and answer.time_ns - self._told_ns < _EVERY_NS:
            return
        for shape in shapes.values():  # columns are the same from the beginning
            for name in _names([one for one in shape.titles if one not in _PLACES]):
                self._number(name)
        new = {reason: n - self._lost.get(reason, 0) for reason, n in lost.items()}
        self._lost = dict(lost)
        rows = [
            row for one in answer.maps.values() for row in self._map(one, shapes, answer.time_ns)
        ]
        self._told_ns = answer.time_ns
        fields = (*schema_trace.TRACE, *schema_trace.key_fields(self._names))
        yield self._batch(
            (schema_trace.MAPS, fields),
            rows,
            answer.time_ns,
            {reason: n for reason, n in new.items() if n > 0},
        )

    def _batch(
        self, of: tuple[str, tuple[Field, ...]], rows: Sequence[_Row], now_ns: int, lost: Any = None
    ) -> Batch:
        kind, fields = of
        more = [f"key{n}" for n in range(len(self._names))] if kind == schema_trace.MAPS else []
        more += [f"column{n}" for n in range(len(self._origin.columns))]
        texts = [(name, "O") for name in (*_TEXTS, *more)]
        made = np.zeros(len(rows), [*texts, *_NUMBERS, ("start_ns", "i8"), ("time_ns", "i8")])
        empty = dict.fromkeys((name for name, _ in texts)) | {
            "value": np.nan,
            "count": 0,
            "low": np.nan,
            "high": np.nan,
            "entry": 0,
            "start_ns": self._start_ns,
            "time_ns": now_ns,
            "name": self._origin.name or None,
            "program": self._origin.program or None,
        }
        for name in made.dtype.names or ():
            made[name] = [row.get(name, empty[name]) for row in rows]
        nobody = np.zeros(len(rows), np.uint32)
        whose = (Identity("process", ""),)
        return Batch(kind, made, nobody, whose, now_ns, 0.0, lost=lost or {}, fields=fields)

    def _place(self, node: str, pod: str) -> _Row:
        """Where a row comes from; a pod of several namespaces is told with its own."""
        namespace, _, name = pod.rpartition("/")
        return {
            "node": node or None,
            "pod": name or None,
            "namespace": (namespace or self._origin.namespace or None) if pod else None,
        }

    # --- what was printed ---------------------------------------------------------------------

    def _lines(self, answer: Answer, shapes: Mapping[str, MapShape]) -> Batch:
        rows = [row for line in answer.lines for row in self._line(line, shapes, answer.time_ns)]
        columns = self._origin.columns
        fields = (*schema_trace.TRACE_LINE, *schema_trace.column_fields(columns))
        return self._batch((schema_trace.LINES, fields), rows, answer.time_ns)

    def _line(self, line: Line, shapes: Mapping[str, MapShape], now_ns: int) -> Iterator[_Row]:
        if isinstance(line, MapTable):
            # As the program has printed it: it may be gone already.
            for number, key in enumerate(line.keys):
                text = f"{line.name}[{_joined(key)}]" if key else line.name
                yield {"text": f"{text}: {_entry_text(line, number)}"}
            return
        about = self._place(line.node, line.whose) | {"time_ns": line.time_ns or now_ns}
        if isinstance(line, Text):
            for one in line.text.splitlines():
                yield about | {"text": one}
            return
        columns = self._origin.columns
        row = about | {"text": plain(line.value)}
        if isinstance(line.value, list) and columns and len(line.value) == len(columns):
            cells = script_row(line.value, columns)
            row |= {f"column{n}": plain(cell) for n, cell in enumerate(cells)}
        yield row

    # --- maps ---------------------------------------------------------------------------------

    def _map(self, one: MapTable, shapes: Mapping[str, MapShape], now_ns: int) -> Iterator[_Row]:
        shape = shapes.get(one.name)
        titles = shape.titles if shape is not None else ()
        metric = self._metrics.get(one.name)
        about = {"map": one.name, "type": one.kind, "metric": metric}
        for number, key in enumerate(one.keys):
            row = about | self._key(key, titles) | {"entry": number}
            if metric is not None:
                row["start_ns"] = self._since(one, number)
            for values in _values(one, number):
                yield row | values

    def _key(self, key: Key, titles: Sequence[str]) -> _Row:
        if len(key) != len(titles):
            return {"key": _joined(key) if key else None}
        parts = dict(zip(titles, key, strict=True))
        place = {name: str(parts[name]) for name in _PLACES if name in parts}
        row = self._place(place.get("node", ""), place.get("pod", ""))
        mine = [(title, part) for title, part in zip(titles, key, strict=True)
                if title not in place]  # fmt: skip
        if not mine:
            return row
        row["key"] = _joined(tuple(part for _, part in mine))
        for name, (_, part) in zip(_names([title for title, _ in mine]), mine, strict=True):
            row[f"key{self._number(name)}"] = str(part)
        return row

    def _number(self, name: str) -> int:
        """The place of a part of a key among all that there are."""
        if name not in self._names:
            self._names.append(name)
        return self._names.index(name)

    def _since(self, one: MapTable, number: int) -> int:
        """When counting of an entry began: a total that falls begins anew, and that is said."""
        now = _total(one, number)
        if now is None:
            return self._start_ns
        place = (one.name, one.keys[number])
        before, since = self._before.get(place, (now, self._start_ns))
        if now < before:
            since = self._told_ns
            note = (
                f"metric {self._metrics[one.name]}: {one.name} has fallen, since the program "
                "clears it or adds negative numbers: to readers it begins anew then"
            )
            if note not in self.notes:
                self.notes.append(note)
        self._before[place] = (now, since)
        return since


def _names(titles: Sequence[str]) -> list[str]:
    """Labels of the parts of a key, each another one."""
    names: list[str] = []
    for title in titles:
        name = schema_trace.label(title)
        others = sum(label == name for label in map(schema_trace.label, titles[: len(names)]))
        names.append(f"{name}_{others + 1}" if others else name)
    return names


def _total(one: MapTable, number: int) -> float | None:
    """What of an entry can only grow; None: nothing does."""
    if one.kind in HISTOGRAMS:
        return float(one.values[number].sum())
    if one.kind in STATISTICS:
        return float(one.values[number][0])
    return float(one.values[number]) if one.kind in _COUNTED else None


def _values(one: MapTable, number: int) -> Iterator[_Row]:
    """The numbers of an entry: of a histogram those of each bucket that has something in it."""
    if one.kind in HISTOGRAMS:
        pairs = zip(one.buckets.tolist(), one.values[number].tolist(), strict=True)
        for (low, high), count in pairs:
            if count:
                yield {
                    "count": count,
                    "low": np.nan if low == LOWEST else float(low),
                    "high": np.nan if high == HIGHEST else float(high),
                }
        return
    if one.kind in STATISTICS:
        count, total = (int(part) for part in one.values[number])
        yield _as_number(total) | {"count": count}
        return
    found = one.values[number]
    found = found.item() if isinstance(found, np.generic) else found
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    yield _as_number(found) if is_number else {"text": plain(found)}


def _as_number(number: int | float) -> _Row:
    row: _Row = {"value": float(number)}
    return row | ({"text": str(number)} if abs(number) > _EXACT else {})


def _entry_text(one: MapTable, number: int) -> str:
    if one.kind in HISTOGRAMS:
        pairs = zip(one.buckets.tolist(), one.values[number].tolist(), strict=True)
        return json.dumps([[low, high, count] for (low, high), count in pairs if count])
    found = one.values[number]
    return plain(found.tolist() if isinstance(found, np.ndarray | np.generic) else found)


def _joined(key: Key) -> str:
    return ",".join(map(str, key))
