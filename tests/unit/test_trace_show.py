# SPDX-License-Identifier: Apache-2.0
"""Answers as people and programs read them."""

from __future__ import annotations

import csv
import json

import pytest

from podscope.trace import show
from podscope.trace.decode import MapData
from podscope.trace.decode import Text
from podscope.trace.decode import Value
from podscope.trace.maps import MapShape
from podscope.trace.session import Answer
from podscope.trace.tables import MapTable
from podscope.trace.tables import table


def made(kind, entries, *titles, form="map"):
    """A table and its shape."""
    shape = MapShape("@a", kind, ("text",) * len(titles), titles=titles)
    return table(MapData("@a", form, tuple(entries)), shape, (0, 17)), shape


def lines(kind, entries, *titles, width=100):
    return show.map_lines(*made(kind, entries, *titles), width=width)


def test_rows_are_ordered_by_their_number_largest_first():
    assert lines("count", [("a", 5), ("b", 70)], "comm") == [
        "@a",
        "COMM  COUNT",
        "b        70",
        "a         5",
    ]


def test_a_map_without_keys_is_a_line():
    assert lines("sum", [(None, 5)]) == ["@a: 5"]
    assert lines("value", [(None, "x")]) == ["@a: x"]
    whole = {"count": 2, "average": 0, "total": 7}
    assert lines("avg", [(None, whole)]) == ["@a: 3.5"]
    assert lines("stats", [(None, whole)]) == ["@a: count 2, average 3.5, total 7"]


def test_statistics_have_three_columns():
    assert lines("stats", [("x", {"count": 2, "average": 0, "total": 7})], "comm")[1:] == [
        "COMM  COUNT  AVERAGE  TOTAL",
        "x         2      3.5      7",
    ]


def test_histograms_are_bars_with_empty_buckets_between():
    entries = [
        {"max": -1, "count": 1},
        {"min": 1, "max": 1, "count": 4},
        {"min": 1024, "max": 2047, "count": 2},
    ]
    assert lines("hist", [("x", entries)], "comm", width=40) == [
        "@a[x]:",
        "(..., 0) 1 |@@@@@@                     |",
        "[1]      4 |@@@@@@@@@@@@@@@@@@@@@@@@@@@|",
        "[1K, 2K) 2 |@@@@@@@@@@@@@              |",
    ]


def test_ends_of_linear_histograms_are_open():
    told = lines("lhist", [(None, [{"max": -1, "count": 1}, {"min": 100, "count": 1}])])
    assert [line.split("  ")[0].split(" 1 ")[0].strip() for line in told[1:]] == [
        "(..., 0)",
        "[100, ...)",
    ]


def test_stacks_stand_below_their_number():
    assert lines("count", [("\n    f+1\n    g+2\n", 7)], "kstack") == [
        "@a",
        "7",
        "    f+1",
        "    g+2",
    ]


def test_what_moves_a_cursor_is_escaped():
    told = lines("count", [("\x1b[2J", 1)], "comm")
    assert told[2] == "\\x1b[2J      1"


def test_a_counter_that_counted_nothing_is_not_shown():
    empty, shape = made("count", [(None, 0)])
    assert show.maps_lines({"@a": empty}, {"@a": shape}) == []


def answer(*maps: MapTable, lines=(), last=True):
    return Answer(tuple(lines), {one.name: one for one in maps}, 0, last)


def test_json_has_lines_rows_values_and_at_the_end_maps():
    # GIVEN
    one, shape = made("count", [("x y", 5)], "comm")
    printed = [Text("hi\n"), Value([1, "é"]), Value(7)]

    # WHEN
    text = show.json_answer(answer(one, lines=printed), {"@a": shape}, ("pid", "name"))

    # THEN
    assert [json.loads(line) for line in text.splitlines()] == [
        {"kind": "line", "text": "hi\n"},
        {"kind": "row", "pid": 1, "name": "é"},
        {"kind": "value", "value": 7},
        {"kind": "map", "name": "@a", "type": "count", "key": ["comm"],
         "entries": [{"key": ["x y"], "value": 5}]},
    ]  # fmt: skip
    assert show.json_answer(answer(one, last=False), {"@a": shape}, ()) == ""


@pytest.mark.parametrize(
    ("kind", "value", "entry"),
    [
        ("avg", {"count": 2, "average": 0, "total": 7}, {"count": 2, "total": 7, "average": 3.5}),
        ("hist", [{"max": -1, "count": 1}, {"min": 4, "max": 7, "count": 2}],
         {"buckets": [{"max": -1, "count": 1}, {"min": 4, "max": 7, "count": 2}]}),
        ("max", 2**63 - 1, {"value": 2**63 - 1}),
        ("sum", 2**64 - 1, {"value": 2**64 - 1}),
        ("value", ["a", 1], {"value": ["a", 1]}),
    ],
)  # fmt: skip
def test_json_has_each_kind_of_map_whole(kind, value, entry):
    one, shape = made(kind, [(None, value)])
    told = json.loads(show.json_answer(answer(one), {"@a": shape}, ()))
    assert told["entries"] == [{"key": [], **entry}]


def test_csv_has_a_line_for_each_number():
    # GIVEN
    buckets = [{"max": -1, "count": 1}, {"min": 4, "max": 7, "count": 2}]
    one, _ = made("hist", [('a,"b', buckets)], "comm")
    other, _ = made("stats", [(None, {"count": 2, "average": 0, "total": 7})])

    # WHEN
    rows = list(csv.DictReader(show.csv_maps({"@a": one, "@b": other}).splitlines()))

    # THEN
    assert [(row["key"], row["min"], row["max"], row["value"]) for row in rows[:2]] == [
        ('a,"b', "", "-1", "1"),
        ('a,"b', "4", "7", "2"),
    ]
    assert [(row["field"], row["value"]) for row in rows[2:]] == [
        ("count", "2"),
        ("total", "7"),
        ("average", "3.5"),
    ]


def test_columns_grow_and_never_cut():
    columns = show.Columns(("pid", "file"))
    assert columns.lines([7, "/a"]) == "   PID  FILE\n     7  /a\n"
    assert columns.lines([1234567, "/b c"]) == "1234567  /b c\n"


def test_printed_tuples_are_told_as_bpftrace_tells_them():
    assert show.line_text(Value([1, "a", [2, True]]), {}) == "(1, a, (2, true))\n"
