# SPDX-License-Identifier: Apache-2.0
"""Sums of several intervals and processes put together: nothing is lost and nothing twice."""

from __future__ import annotations

from dataclasses import replace

import event_batches
import numpy as np
import records
from event_batches import CLIENT
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from podscope import merge
from podscope.batch import Batch
from podscope.batch import Identity

WEB_A2 = replace(records.WEB_A, pid=99)
ADDRESS = np.frombuffer(bytes(10) + b"\xff\xff\x0a\x00\x00\x07", np.uint8)


def told(batch: Batch, *names: str) -> list[tuple]:
    columns = {one.name: column.tolist() for one, column in batch.told()}
    return sorted(zip(*(columns[name] for name in names), strict=True), key=str)


def test_processes_of_a_container_are_one_row():
    # GIVEN
    rows = [{"side": CLIENT, "port": 80, "pid": pid, "durations": [10**6 * pid]} for pid in (1, 3)]
    batch = event_batches.batch("tcp", *rows, whose=(records.WEB_A, WEB_A2))

    # WHEN
    found = merge.merged([batch])

    # THEN
    assert len(found) == 1
    (columns,) = told(
        found,
        *("process.pid", "process.executable.name", "podscope.tcp.connects"),
        *("podscope.tcp.connect.duration.sum", "podscope.tcp.connect.duration.max"),
    )
    assert columns == (0, "nginx", 2, 0.004, 0.003)
    assert found.rows["le"].sum() == found.rows["buckets"].sum() == 2


def test_containers_sides_and_ports_stay_apart():
    # GIVEN
    rows = [{"side": side, "port": port, "closes": 1} for side, port in ((1, 80), (2, 80), (2, 81))]
    both = (records.WEB_A, records.WEB_A, records.WEB_B)

    # WHEN
    found = merge.merged([event_batches.batch("tcp", *rows, *rows, whose=(*both, *both))])

    # THEN
    assert told(found, "k8s.pod.name", "side", "server.port", "podscope.tcp.closes") == [
        ("web-1-a", "client", 80, 2),
        ("web-1-a", "server", 80, 2),
        ("web-1-b", "client", 81, 2),
    ]


def test_peers_are_told_by_name_and_not_by_address():
    # GIVEN a pod that speaks with two pods of one deployment, and with somebody outside
    rows = [{"side": CLIENT, "port": 80, "peer": ADDRESS + n, "closes": 1} for n in range(4)]
    external = Identity("external", "")
    peers = np.array([1, 2, 3, 3], np.int32)
    whose = (records.WEB_A,)
    batch = event_batches.batch("tcp", *rows, whose=whose)
    batch = replace(batch, identities=(*whose, records.WEB_B, records.BARE, external), peers=peers)

    # WHEN
    found = merge.merged([batch])

    # THEN
    assert told(found, "podscope.peer.pod.name", "podscope.peer.kind", "podscope.tcp.closes") == [
        ("web", "pod", 1),
        ("web-1-b", "deployment", 1),
        (None, "external", 2),
    ]
    assert not found.rows["peer"].any()


def test_a_queue_is_as_it_was_at_the_end_and_its_highest_is_kept():
    # GIVEN two intervals of a listener
    first = {"port": 80, "accept_queue": 5, "accept_highest": 9, "limit": 10, "drops": 2}
    first |= {"overflows": 2, "event": 1}
    second = {"port": 80, "accept_queue": 1, "accept_highest": 3, "limit": 10, "event": 4}
    batches = [event_batches.batch("listen", one) for one in (first, second)]

    # WHEN
    found = merge.merged(batches)

    # THEN
    names = ("accept_queue", "accept_queue.highest", "limit", "drops", "overflows", "event")
    (row,) = told(found, *(f"podscope.listen.{name}" for name in names))
    assert row == (1, 9, 10, 2, 2.0, "accept_queue,drops")
    assert found.interval == 2.0


def test_overflows_that_are_not_known_make_the_sum_unknown():
    # GIVEN
    rows = [{"port": 80, "drops": 3, "overflows": told} for told in (2, -1)]

    # WHEN
    found = merge.merged([event_batches.batch("listen", one) for one in rows])

    # THEN
    assert found.rows["drops"].tolist() == [6]
    assert found.rows["overflows"].tolist() == [-1]


def test_names_and_answers_of_lookups_stay_apart():
    # GIVEN
    names = (b"a.test", b"b.test")
    rows = [
        {"side": CLIENT, "name": 5 + place, "text": name, "code": code, "count": 1, "type": 1}
        for place, name in enumerate(names)
        for code in (0, 3, 255)
    ]

    # WHEN
    found = merge.merged([event_batches.batch("dns", *rows), event_batches.batch("dns", *rows)])

    # THEN
    assert told(found, "dns.question.name", "error.type", "count") == [
        (name.decode(), error, 2) for name in names for error in ("NXDOMAIN", "timeout", None)
    ]


def test_single_events_stay_as_they_are():
    # GIVEN
    batch = event_batches.batch("oom", {"pid": 7}, {"pid": 7})

    # WHEN / THEN
    assert merge.merged([batch, batch]).rows["pid"].tolist() == [7, 7, 7, 7]


@given(
    st.lists(
        st.lists(
            st.tuples(*(st.integers(1, 3) for _ in range(4)), st.integers(0, 2**40)), max_size=6
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_sums_and_maxima_are_those_of_all_rows(intervals):
    # GIVEN any rows of any processes in any intervals
    whose = tuple(replace(records.WEB_A, pid=pid) for pid in range(4))
    batches = []
    for rows in intervals:
        made = [
            {"side": side, "port": port, "pid": pid, "accepts": n, "connect_max_ns": ns}
            for side, port, pid, n, ns in rows
        ]
        one = event_batches.batch("tcp", *made, whose=whose)
        batches.append(replace(one, identity=one.rows["pid"]))

    # WHEN
    found = merge.merged(batches)

    # THEN
    expected: dict[tuple[int, int], tuple[int, int]] = {}
    for side, port, _, n, ns in (row for rows in intervals for row in rows):
        count, most = expected.get((side, port), (0, 0))
        expected[side, port] = (count + n, max(most, ns))
    rows = found.rows
    assert {
        (side, port): (count, most)
        for side, port, count, most in zip(
            *(rows[name].tolist() for name in ("side", "port", "accepts", "connect_max_ns")),
            strict=True,
        )
    } == expected
    assert len(rows) == len(expected)
    assert {identity.pid for identity in found.identities if len(rows)} <= {0}
