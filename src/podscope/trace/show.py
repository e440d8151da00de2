# SPDX-License-Identifier: Apache-2.0
"""Answers as text: tables with bars for people, JSON lines and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from podscope import render
from podscope.trace.decode import Text
from podscope.trace.decode import Value
from podscope.trace.maps import VALUE
from podscope.trace.maps import MapShape
from podscope.trace.scripts import row
from podscope.trace.session import Answer
from podscope.trace.session import Line
from podscope.trace.tables import HIGHEST
from podscope.trace.tables import HISTOGRAMS
from podscope.trace.tables import LOWEST
from podscope.trace.tables import STATISTICS
from podscope.trace.tables import MapTable

# Columns of a bar, as bpftrace has them, and the least where the terminal is narrow.
_BAR, _LEAST_BAR = 52, 10
_CSV = ("map", "type", "key", "min", "max", "field", "value")


def map_lines(one: MapTable, shape: MapShape | None, *, width: int = 100) -> list[str]:
    """A map for people: rows with the largest first, histograms as bars."""
    if one.kind in HISTOGRAMS:
        return _histogram_lines(one, width)
    if one.keys == ((),):
        return [f"{one.name}: {_said(one, 0)}"]
    if any(isinstance(part, str) and "\n" in part for key in one.keys for part in key):
        return _stack_lines(one)
    return [one.name, *render.table_lines(_table(one, shape))]


def maps_lines(
    maps: Mapping[str, MapTable], shapes: Mapping[str, MapShape], *, width: int = 100
) -> list[str]:
    """All maps that have something in them, an empty line between two."""
    lines: list[str] = []
    for name, one in maps.items():
        if len(one) and not _is_silent(one):
            lines += ([""] if lines else []) + map_lines(one, shapes.get(name), width=width)
    return lines


def line_text(line: Line, shapes: Mapping[str, MapShape]) -> str:
    """What a program printed, as bpftrace would: texts as they are, others in lines."""
    if isinstance(line, Text):
        return line.text
    if isinstance(line, Value):
        return f"{plain(line.value)}\n"
    return "".join(f"{one}\n" for one in map_lines(line, shapes.get(line.name)))


def json_answer(answer: Answer, shapes: Mapping[str, MapShape], columns: Sequence[str]) -> str:
    """JSON lines: what was printed, and of the last answer the maps.

    Args:
        answer: what to write.
        shapes: of the maps, by name.
        columns: names for the parts of printed tuples; none: they are lists.
    """
    objects: list[dict[str, Any]] = []
    for line in answer.lines:
        if isinstance(line, Text):
            objects.append({"kind": "line", **_place(line), "text": line.text})
        elif isinstance(line, Value):
            told = _json_value(line.value, columns)
            objects.append({"kind": told.pop("kind"), **_place(line), **told})
        else:
            objects.append({"kind": "printed"} | _json_map(line, shapes.get(line.name)))
    if answer.last:
        objects += [
            {"kind": "map"} | _json_map(one, shapes.get(name)) for name, one in answer.maps.items()
        ]
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects)


def _place(line: Text | Value) -> dict[str, str]:
    """Where a line comes from, as far as it is told."""
    return {name: text for name, text in (("node", line.node), ("pod", line.whose)) if text}


def csv_maps(maps: Mapping[str, MapTable]) -> str:
    """Maps as CSV, a line a number: several of a key of statistics or of a histogram."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for name, one in maps.items():
        for number, key in enumerate(one.keys):
            shown = ",".join(str(part) for part in key)
            for low, high, field, value in _csv_cells(one, number):
                writer.writerow((name, one.kind, shown, low, high, field, value))
    return text.getvalue()


def csv_row(values: Sequence[Any]) -> str:
    """One line of CSV (RFC 4180 but for the line's end)."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


class Columns:
    """Tuples as lines of a table, whose columns grow as they must."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._widths = [max(len(name), 6) for name in names]
        self._begun = False

    def lines(self, values: Sequence[Any]) -> str:
        """A line, and before the first one the header."""
        values = row(values, self._names)
        cells = [render.clean(plain(value)) for value in values]
        self._widths = [
            max(width, render.text_width(cell))
            for width, cell in zip(self._widths, cells, strict=True)
        ]
        numbers = [isinstance(value, int) for value in values]
        header = "" if self._begun else self._line([n.upper() for n in self._names], numbers)
        self._begun = True
        return header + self._line(cells, numbers)

    def _line(self, cells: Sequence[str], right: Sequence[bool]) -> str:
        shown = [
            render.padded(cell, width, right=one)
            for cell, width, one in zip(cells, self._widths, right, strict=True)
        ]
        return (" " * render.GAP).join(shown).rstrip() + "\n"


def _is_silent(one: MapTable) -> bool:
    """A counter that nothing has counted: old versions print it, newer ones do not."""
    return one.kind == "count" and one.keys == ((),) and not one.values.any()


def _table(one: MapTable, shape: MapShape | None) -> render.Table:
    width = max(len(key) for key in one.keys)
    titles = tuple(shape.titles) if shape is not None and len(shape.titles) == width else ()
    heads = titles or tuple(f"KEY{number + 1}" if width > 1 else "KEY" for number in range(width))
    values = ("COUNT", "AVERAGE", "TOTAL") if one.kind == "stats" else (one.kind.upper(),)
    rows = []
    for number in _order(one):
        key = [render.clean(part) for part in one.keys[number]]
        rows.append((*key, *[""] * (width - len(key)), *_cells(one, number)))
    right = tuple(
        all(isinstance(key[place], int) for key in one.keys if place < len(key))
        for place in range(width)
    )
    return render.Table(
        titles=(*(render.clean(head).upper() for head in heads), *values),
        right=(*right, *(one.kind != VALUE for _ in values)),
        rows=rows,
    )


def _order(one: MapTable) -> list[int]:
    """Rows with the largest first; of values as they came."""
    if one.kind == VALUE:
        return list(range(len(one)))
    order: list[int] = np.argsort(one.total(), kind="stable")[::-1].tolist()
    return order


def _cells(one: MapTable, number: int) -> tuple[str, ...]:
    if one.kind in STATISTICS:
        count, total = (int(part) for part in one.values[number])
        average = f"{total / count:.6g}" if count else "-"
        return (str(count), average, str(total)) if one.kind == "stats" else (average,)
    if one.kind == VALUE:
        return (render.clean(plain(one.values[number])),)
    return (str(one.values[number]),)


def _said(one: MapTable, number: int) -> str:
    cells = _cells(one, number)
    if one.kind == "stats":
        return f"count {cells[0]}, average {cells[1]}, total {cells[2]}"
    return cells[0]


def _stack_lines(one: MapTable) -> list[str]:
    """Keys with stacks in them: the number first, the frames below."""
    lines = [one.name]
    for number in _order(one):
        parts = [str(part) for part in one.keys[number]]
        words = [render.clean(part) for part in parts if "\n" not in part and part]
        lines.append("  ".join([_said(one, number), *words]))
        for part in parts:
            frames = part.split("\n") if "\n" in part else []
            lines += [f"    {render.clean(frame.strip())}" for frame in frames if frame.strip()]
    return lines


def _histogram_lines(one: MapTable, width: int) -> list[str]:
    lines = []
    for number in _order(one):
        key = ", ".join(render.clean(part) for part in one.keys[number])
        counts = one.values[number]
        lines.append(f"{one.name}[{key}]:" if key else f"{one.name}:")
        lines += _bars(one, counts.tolist(), width)
    return lines


def _bars(one: MapTable, counts: list[int], width: int) -> list[str]:
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return []
    shown = range(filled[0], filled[-1] + 1)
    names = [_bucket(one.kind, *one.buckets[place].tolist()) for place in shown]
    digits = max(len(str(counts[place])) for place in shown)
    left = max(len(name) for name in names)
    bar = max(min(_BAR, width - left - digits - 4), _LEAST_BAR)
    most = max(counts)
    return [
        f"{name:<{left}} {counts[place]:>{digits}} |{'@' * (counts[place] * bar // most):<{bar}}|"
        for name, place in zip(names, shown, strict=True)
    ]


def _bucket(kind: str, low: int, high: int) -> str:
    """``[4, 8)`` as bpftrace writes it; its JSON has both ends in the bucket."""
    if low == LOWEST:
        return f"(..., {_power(kind, high + 1)})"
    if high == HIGHEST:
        return f"[{_power(kind, low)}, ...)"
    if low == high:
        return f"[{_power(kind, low)}]"
    return f"[{_power(kind, low)}, {_power(kind, high + 1)})"


def _power(kind: str, number: int) -> str:
    """Powers of two with a unit, as ``4K``, where they are whole ones."""
    if kind != "hist" or number < 1024:
        return str(number)
    for unit, size in (("E", 60), ("P", 50), ("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if number >= 1 << size and number % (1 << size) == 0:
            return f"{number >> size}{unit}"
    return str(number)


def plain(value: Any) -> str:
    """A value as bpftrace prints it: a tuple in brackets."""
    if isinstance(value, list):
        return f"({', '.join(plain(one) for one in value)})"
    return value if isinstance(value, str) else json.dumps(value)


def _json_value(value: Any, columns: Sequence[str]) -> dict[str, Any]:
    if isinstance(value, list) and len(value) == len(columns):
        return {"kind": "row"} | dict(zip(columns, row(value, columns), strict=True))
    return {"kind": "value", "value": value}


def _json_map(one: MapTable, shape: MapShape | None) -> dict[str, Any]:
    made: dict[str, Any] = {"name": one.name, "type": one.kind}
    if shape is not None and shape.titles:
        made["key"] = list(shape.titles)
    made["entries"] = [
        {"key": list(key), **_json_entry(one, number)} for number, key in enumerate(one.keys)
    ]
    return made


def _json_entry(one: MapTable, number: int) -> dict[str, Any]:
    if one.kind in STATISTICS:
        count, total = (int(part) for part in one.values[number])
        return {"count": count, "total": total, "average": total / count if count else None}
    if one.kind in HISTOGRAMS:
        pairs = zip(one.buckets.tolist(), one.values[number].tolist(), strict=True)
        return {
            "buckets": [_json_bucket(low, high, count) for (low, high), count in pairs if count]
        }
    value = one.values[number]
    return {"value": value.item() if isinstance(value, np.generic) else value}


def _json_bucket(low: int, high: int, count: int) -> dict[str, int]:
    made = {} if low == LOWEST else {"min": low}
    if high != HIGHEST:
        made["max"] = high
    return made | {"count": count}


def _csv_cells(one: MapTable, number: int) -> list[tuple[Any, Any, str, Any]]:
    entry = _json_entry(one, number)
    if "buckets" in entry:
        return [
            (bucket.get("min", ""), bucket.get("max", ""), "count", bucket["count"])
            for bucket in entry["buckets"]
        ]
    cells = ((name, plain(v) if isinstance(v, list) else v) for name, v in entry.items())
    return [("", "", name, value) for name, value in cells]
