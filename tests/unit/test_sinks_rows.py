# SPDX-License-Identifier: Apache-2.0
"""What sinks get: rows of batches, exact sums, and rows as bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import records
import sink_rows
from hypothesis import given
from hypothesis import strategies as st

from podscope.sinks import rows
from podscope.sinks.rows import Rows
from podscope.sinks.rows import RowsError


def same(one: Rows, other: Rows) -> bool:
    """Whether two rows are equal in all that a sink can see."""
    about = [(f.name, f.type, f.unit, f.label, f.blank, f.path) for f in one.fields]
    told = (one.kind, one.id, one.time_ns, one.interval, dict(one.resource))
    return (
        about == [(f.name, f.type, f.unit, f.label, f.blank, f.path) for f in other.fields]
        and told == (other.kind, other.id, other.time_ns, other.interval, dict(other.resource))
        and all(
            np.array_equal(column, other.columns[name], equal_nan=column.dtype.kind in "fM")
            for name, column in one.columns.items()
        )
        and np.array_equal(one.le, other.le)
        and np.array_equal(one.buckets, other.buckets)
        and one.row_ids == other.row_ids
    )


def test_intervals_of_kind_http_are_added_up_exactly():
    # GIVEN three intervals of a second
    one = records.shop_batch()
    batches = [replace(one, time_ns=one.time_ns + n * 10**9) for n in range(3)]

    # WHEN
    (made,) = rows.of_batches(batches, by=("workload", "side"))

    # THEN
    counts = dict(zip(made.columns["service.name"], made.columns["count"], strict=True))
    assert counts == {"nginx.service": 120, "shop": 45, "curl": 15}
    assert made.interval == 3.0
    assert made.time_ns == batches[-1].time_ns
    assert made.le.sum(axis=1).tolist() == made.columns["count"].tolist()
    assert made.buckets.sum(axis=1).tolist() == made.columns["count"].tolist()


def test_kinds_come_apart_and_empty_ones_do_not_come():
    # GIVEN
    empty = records.http_batch(records.http_rows(0), [])
    batches = [empty, records.request_batch(2), records.request_batch(3)]

    # WHEN
    made = [*rows.of_batches(batches, resource={"host.name": "a"})]

    # THEN
    assert [(one.kind, len(one), dict(one.resource)) for one in made] == [
        ("request", 5, {"host.name": "a"})
    ]


def test_batches_of_the_host_and_of_pods_become_one_with_what_applies():
    # GIVEN
    host = records.request_batch(1)
    pod = replace(host, identities=(records.WEB_A,))

    # WHEN
    (made,) = rows.of_batches([host, pod])

    # THEN
    assert made.columns["k8s.pod.name"].tolist() == [None, "web-1-a"]
    field = next(one for one in made.fields if one.name == "k8s.pod.name")
    assert made.absent(field).tolist() == [True, False]


def test_pieces_are_all_rows_once_with_the_ids_that_they_had():
    # GIVEN
    whole = sink_rows.request_rows(7)

    # WHEN
    pieces = [*whole.pieces(3)]

    # THEN
    assert [len(one) for one in pieces] == [3, 3, 1]
    assert [*whole.pieces(7)] == [whole]
    ids = [row for one in pieces for row in one.row_ids]
    assert ids == whole.row_ids and len(set(ids)) == 7
    assert pieces[1].take(slice(1, 2)).row_ids == whole.row_ids[4:5]
    assert set(ids).isdisjoint(sink_rows.request_rows(7).row_ids)


def test_many_events_come_in_portions_so_that_other_threads_wait_little(monkeypatch):
    # GIVEN
    monkeypatch.setattr(rows, "PORTION", 10)
    batches = [records.request_batch(n, pid=n) for n in (3, 4, 25, 1)]

    # WHEN
    made = [*rows.of_batches(batches)]

    # THEN
    assert [len(one) for one in made] == [10, 10, 10, 3]
    pids = [pid for one in made for pid in one.columns["process.pid"].tolist()]
    assert pids == [3] * 3 + [4] * 4 + [25] * 25 + [1]


def part_of_requests():
    """Some rows of a delivery."""
    return sink_rows.request_rows(9).take(slice(3, 6))


@pytest.mark.parametrize(
    "make", [sink_rows.http_rows, sink_rows.request_rows, part_of_requests, sink_rows.event_rows]
)
def test_rows_packed_and_unpacked_are_the_same(make):
    # GIVEN
    one = make()

    # WHEN / THEN
    assert same(one, rows.unpacked(rows.packed(one)))


_TEXTS = st.none() | st.text(st.characters(codec="utf-8"))


@given(st.lists(st.tuples(_TEXTS, st.floats(), st.integers(-(2**63), 2**63 - 1))))
def test_any_columns_packed_and_unpacked_are_the_same(cells):
    # GIVEN
    texts = np.empty(len(cells), dtype=object)
    texts[:] = [text for text, _, _ in cells]
    columns = {
        "a": texts,
        "b": np.array([number for _, number, _ in cells], dtype="f8"),
        "c": np.array([number for _, _, number in cells], dtype="i8"),
        "d": np.array([abs(n) for _, _, n in cells], dtype="u8").astype("M8[ns]"),
    }
    kinds = ("text", "float", "int", "time")
    fields = tuple(
        rows._field(name, kind, "", True, True) for name, kind in zip(columns, kinds, strict=True)
    )
    one = Rows("any", fields, columns, 1)

    # WHEN / THEN
    assert same(one, rows.unpacked(rows.packed(one)))


@given(st.binary())
def test_other_bytes_are_no_rows(raw):
    with pytest.raises(RowsError):
        rows.unpacked(raw)


def test_cut_bytes_are_no_rows():
    # GIVEN
    raw = rows.packed(sink_rows.http_rows())

    # WHEN / THEN
    for end in range(0, len(raw), 97):
        with pytest.raises(RowsError):
            rows.unpacked(raw[:end])


def test_rows_by_service_count_each_service_of_a_pod_once_and_no_others():
    # GIVEN two pods behind port 80 of Service web, of which one is behind all too, and a client
    some = sink_rows.service_rows()

    # WHEN
    names = some.columns["k8s.service.name"]
    counts = {name: int(some.columns["count"][names == name].sum()) for name in set(names)}

    # THEN
    whole = sink_rows.http_rows()
    servers = whole.columns["side"] == "server"
    on_80 = servers & (whole.columns["server.port"] == 80)
    second = servers & (whole.columns["k8s.pod.name"] == "web-1-b")
    count = whole.columns["count"]
    assert some.kind == "service"
    assert counts == {"web": int(count[on_80].sum()), "all": int(count[second].sum())}
    assert some.le.shape == (len(some), 15)


def test_there_are_no_rows_by_service_where_there_is_no_service():
    # GIVEN
    also = {rows.SERVICE: rows.BY_SERVICE}

    # WHEN
    made = rows.of_batches([records.shop_batch()], also_by=also)

    # THEN
    assert [one.kind for one in made] == ["http"]
