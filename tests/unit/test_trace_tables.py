# SPDX-License-Identifier: Apache-2.0
"""Maps as arrays: keys in their parts, and merging: of parts it gives the whole."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podscope.trace.decode import MapData
from podscope.trace.maps import MapShape
from podscope.trace.tables import HIGHEST
from podscope.trace.tables import LOWEST
from podscope.trace.tables import MapTable
from podscope.trace.tables import apart
from podscope.trace.tables import blanks_are_lost
from podscope.trace.tables import merge
from podscope.trace.tables import merged_maps
from podscope.trace.tables import table

OLD, NEW = (0, 17), (0, 27)


def made(kind, entries, *key, form="map", version=OLD):
    """A table of a map with these entries."""
    shape = MapShape("@a", kind, tuple(key))
    return table(MapData("@a", form, tuple(entries)), shape, version)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        (("number", "text"), "5,a b", (5, "a b")),
        (("number", "text"), "5,a,b", (5, "a,b")),
        (("text", "number"), "a,b,5", ("a,b", 5)),
        (("number", "text", "number"), "1,x,2,3", (1, "x,2", 3)),
        (("text", "text"), "a,b", ("a", "b")),
        (("stack", "text"), "\n    f+1\n    g<a, b>+2\n,x", ("\n    f+1\n    g<a, b>+2\n", "x")),
        (("stack", "number"), ",7", ("", 7)),
        (("number",), "-5", (-5,)),
        (("text",), "5", ("5",)),
        (("unknown",), "5", ("5",)),
    ],
)
def test_key_is_told_in_its_parts(key, text, expected):
    told = made("count", [(text, 1)], *key)
    assert told.to_dict() == {expected: 1}
    assert told.unsplit == 0


@pytest.mark.parametrize("text", ["a,b,c", ",,", "a"])
def test_key_with_more_than_one_reading_stays_whole_and_is_counted(text):
    told = made("count", [(text, 1)], "text", "text")
    assert told.to_dict() == {(text,): 1}
    assert told.unsplit == 1


def test_keys_that_are_written_the_same_are_added_up_and_counted():
    # GIVEN / WHEN
    told = made("count", [("a", 1), ("b", 5), ("a", 2)], "text")

    # THEN
    assert told.to_dict() == {("a",): 3, ("b",): 5}
    assert told.same_keys == 1


def test_set_values_with_the_same_key_all_stay():
    told = made("value", [("a", "x"), ("a", "y")], "text")
    assert told.keys == (("a",), ("a",))
    assert told.same_keys == 2


def test_numbers_beyond_64_bits_are_exact():
    # GIVEN numbers that newer versions write as texts
    one = made("sum", [(None, "18446744073709551615")], version=NEW)

    # WHEN / THEN
    assert one.to_dict() == {(): 2**64 - 1}
    assert merge([one, one]).to_dict() == {(): 2**65 - 2}
    large = made("sum", [(None, HIGHEST)])
    assert merge([large, large]).to_dict() == {(): 2 * HIGHEST}


def test_an_average_without_its_count_is_a_value_of_one_node():
    told = made("avg", [(None, 3)], form="stats")
    assert told.kind == "value"
    with pytest.raises(ValueError, match="cannot be merged"):
        merge([told, told])


def test_a_histogram_has_a_column_for_each_bucket_of_any_row():
    # GIVEN
    entries = [
        ("x", [{"max": -1, "count": 3}, {"min": 0, "max": 0, "count": 1}]),
        ("y", [{"min": 8, "max": 15, "count": 2}]),
    ]

    # WHEN
    told = made("hist", entries, "text", form="hist")

    # THEN
    assert told.buckets.tolist() == [[LOWEST, -1], [0, 0], [8, 15]]
    assert told.to_dict() == {("x",): [3, 1, 0], ("y",): [0, 0, 2]}


def test_an_open_last_bucket_has_no_end():
    told = made("lhist", [(None, [{"min": 100, "count": 3}])], form="hist")
    assert told.buckets.tolist() == [[100, HIGHEST]]


def test_values_that_are_set_stay_apart_by_node():
    # GIVEN
    here = made("value", [("1", "a")], "number")
    there = made("value", [("1", "b")], "number")

    # WHEN
    told = merged_maps({"n1": {"@a": here}, "n2": {"@a": there}})["@a"]

    # THEN
    assert told.to_dict() == {("n1", 1): "a", ("n2", 1): "b"}


def test_one_map_of_different_kinds_on_two_nodes_stays_apart():
    told = merged_maps({"n1": {"@a": made("avg", [(None, 3)])},
                        "n2": {"@a": made("avg", [(None, {"count": 1, "total": 5})])}})  # fmt: skip
    assert told["@a"].kind == "value"
    assert [key[0] for key in told["@a"].keys] == ["n1", "n2"]


def test_blanks_that_a_version_drops_are_known():
    assert blanks_are_lost(MapShape("@", "count", ("text",)), NEW)
    assert not blanks_are_lost(MapShape("@", "count", ("number",)), NEW)
    assert not blanks_are_lost(MapShape("@", "count", ("text",)), OLD)


@pytest.mark.parametrize("parts", [[], ["other"], ["kind"]])
def test_tables_that_do_not_belong_together_are_refused(parts):
    one = made("count", [(None, 1)])
    others = {
        "other": MapTable("@b", "count", one.keys, one.values),
        "kind": made("sum", [(None, 1)]),
    }
    with pytest.raises(ValueError):
        merge([one, *(others[name] for name in parts)] if parts else [])


KEYS = st.sampled_from(["a", "b b", "é", "c,d", ""])
OBSERVED = st.lists(st.tuples(KEYS, st.integers(-(2**40), 2**40)), max_size=30)
NODES = st.lists(OBSERVED, min_size=1, max_size=5)
POWERS = [LOWEST, 0, 1, *(2**n for n in range(1, 63))]


def bucket(value: int) -> dict[str, int]:
    """Where bpftrace's hist() counts a value."""
    if value < 0:
        return {"max": -1}
    if value < 2:
        return {"min": value, "max": value}
    low = 1 << (value.bit_length() - 1)
    return {"min": low, "max": 2 * low - 1}


def printed(kind: str, observed: list[tuple[str, int]]) -> MapTable:
    """What one node would print of these observations."""
    groups: dict[str, list[int]] = {}
    for key, value in observed:
        groups.setdefault(key, []).append(value)
    entries = [(key, aggregated(kind, values)) for key, values in groups.items()]
    return made(kind, entries, "text", form="hist" if kind == "hist" else "map")


def aggregated(kind: str, values: list[int]) -> object:
    if kind == "hist":
        counts = Counter(tuple(sorted(bucket(value).items())) for value in values)
        return [dict(bounds) | {"count": count} for bounds, count in counts.items()]
    if kind in ("avg", "stats"):
        return {"count": len(values), "average": 0, "total": sum(values)}
    return {"count": len, "sum": sum, "min": min, "max": max}[kind](values)


def contents(told: MapTable) -> dict:
    """Values by key; of histograms without empty buckets."""
    if told.kind != "hist":
        return told.to_dict()
    bounds = [tuple(one) for one in told.buckets.tolist()]
    return {
        key: {bound: n for bound, n in zip(bounds, row, strict=True) if n}
        for key, row in told.to_dict().items()
    }


@pytest.mark.parametrize("kind", ["count", "sum", "min", "max", "avg", "stats", "hist"])
@given(nodes=NODES)
def test_merged_parts_are_the_whole(kind, nodes):
    # GIVEN the whole, and what each node saw of it
    whole = printed(kind, [one for node in nodes for one in node])
    parts = [printed(kind, node) for node in nodes]

    # WHEN / THEN in any order, at once or step by step
    assert contents(merge(parts)) == contents(whole)
    assert contents(merge(parts[::-1])) == contents(whole)
    stepwise = parts[0]
    for part in parts[1:]:
        stepwise = merge([stepwise, part])
    assert contents(stepwise) == contents(whole)


@given(nodes=NODES)
def test_nodes_apart_have_all_rows(nodes):
    parts = {f"n{number}": printed("count", node) for number, node in enumerate(nodes)}
    told = apart(parts)
    assert told.to_dict() == {
        (node, *key): value for node, one in parts.items() for key, value in one.to_dict().items()
    }


def test_a_merge_leaves_its_parts_as_they_were():
    one = printed("hist", [("a", 5), ("b", 7)])
    before = one.values.copy()
    merge([one, printed("hist", [("a", 500)])])
    assert np.array_equal(one.values, before)
