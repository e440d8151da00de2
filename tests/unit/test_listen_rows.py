# SPDX-License-Identifier: Apache-2.0
"""Listeners: which drops were overflows, and when a queue is high."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podscope import schema_listen
from podscope.kernel.kernel_types import enumerator
from podscope.sources import listen


@pytest.mark.parametrize(
    ("drops", "overflows", "told"),
    [
        ([3, 0], 3, [3, 0]),
        ([3, 2], 5, [3, 2]),
        ([3, 2], 6, [3, 2]),
        ([3, 2], 0, [0, 0]),
        ([3, 0], 1, [1, 0]),
        ([3, 2, 0], 4, [-1, -1, 0]),
    ],
)
def test_overflows_are_told_where_they_can_be(drops, overflows, told):
    assert listen.share(np.array(drops), overflows).tolist() == told


@given(st.lists(st.integers(0, 100), min_size=1), st.data())
def test_overflows_are_never_more_than_drops(drops, data):
    # GIVEN
    overflows = data.draw(st.integers(0, sum(drops)))

    # WHEN
    told = listen.share(np.array(drops), overflows)

    # THEN
    assert (told <= np.array(drops)).all()
    assert (told >= -1).all()
    if (told >= 0).all():
        assert told.sum() == overflows


@pytest.mark.parametrize(
    ("highest", "limit", "high"),
    [(0, 0, 0), (1, 0, 1), (3, 4, 0), (4, 5, 1), (6, 5, 1), (79, 100, 0), (80, 100, 1)],
)
def test_a_queue_is_high_from_80_percent_of_its_limit_on(highest, limit, high):
    # GIVEN
    rows = np.zeros(1, [("limit", "u4"), ("accept_highest", "u4"), ("syn_highest", "u4")])
    rows["limit"], rows["accept_highest"] = limit, highest

    # WHEN / THEN
    assert schema_listen.high(rows).tolist() == [high]


def listeners(*drops: int, now: int, first: int = 10, netns: int = 1) -> np.ndarray:
    members = ("netns_id", "overflows_first", "overflows_now", "drops")
    rows = np.zeros(len(drops), [(name, "u8") for name in members])
    rows["netns_id"], rows["drops"], rows["overflows_first"] = netns, drops, first
    # The kernel program reads it only where something was dropped.
    rows["overflows_now"] = np.where(rows["drops"] > 0, now, listen.NOT_READ)
    return rows


def test_overflows_are_those_since_the_last_time():
    # GIVEN
    overflows = listen.Overflows()
    overflows.of(listeners(0, 0, now=10))

    # WHEN
    rows = [listeners(3, 0, now=13), listeners(0, 0, now=13), listeners(0, 2, now=15)]

    # THEN
    assert [overflows.of(one).tolist() for one in rows] == [[3, 0], [0, 0], [0, 2]]


def test_an_overflow_whose_drop_is_counted_a_moment_later_is_not_forgotten():
    # GIVEN drops are read before overflows: of the last ones only the overflow is seen
    overflows = listen.Overflows()
    overflows.of(listeners(0, 0, now=10))

    # WHEN
    told = [
        overflows.of(listeners(3, 0, now=15)).tolist(),
        overflows.of(listeners(2, 4, now=15)).tolist(),
    ]

    # THEN
    assert told == [[3, 0], [-1, -1]]


@pytest.mark.parametrize(("now", "told"), [(10, [0, 0]), (11, [1, 0]), (12, [2, 0])])
def test_in_a_namespace_that_is_new_those_count_that_came_since_its_listeners(now, told):
    # GIVEN ten from before, of a listener that is gone
    overflows = listen.Overflows()

    # WHEN / THEN
    assert overflows.of(listeners(2, 0, now=now)).tolist() == told


def test_in_a_namespace_that_is_new_the_first_listener_is_where_counting_begins():
    # GIVEN one that began later
    rows = listeners(2, 3, now=15)
    rows["overflows_first"][1] = 12

    # WHEN / THEN
    assert listen.Overflows().of(rows).tolist() == [2, 3]


def test_where_the_counter_cannot_be_read_nothing_is_said_of_drops():
    # GIVEN
    overflows = listen.Overflows()
    unknown = listen.NOT_READ

    # WHEN
    rows = [listeners(n, 0, now=unknown, first=unknown) for n in (0, 0, 2, 0)]

    # THEN
    told = [overflows.of(one).tolist() for one in rows]
    assert told == [[0, 0], [0, 0], [-1, 0], [0, 0]]


def test_the_number_of_a_namespace_may_be_anothers_later():
    # GIVEN
    overflows = listen.Overflows()
    overflows.of(listeners(0, now=10))
    overflows.of(listeners(0, now=10, netns=2))

    # WHEN it is there again, and counts from the beginning

    # THEN
    assert overflows.of(listeners(4, now=4, first=0)).tolist() == [4]


def test_each_namespace_has_its_own_counter():
    # GIVEN
    rows = np.concatenate([listeners(3, now=12), listeners(3, now=110, first=105, netns=2)])

    # WHEN / THEN
    assert listen.Overflows().of(rows).tolist() == [2, 3]


def test_an_enumerator_of_an_enum_without_a_name_is_found_in_btf():
    # GIVEN this kernel, or one without types
    found = enumerator("LINUX_MIB_LISTENOVERFLOWS", "LINUX_MIB_LISTENDROPS")

    # THEN
    assert found is None or found > 0
    assert enumerator("LINUX_MIB_LISTENDROPS", "LINUX_MIB_LISTENOVERFLOWS") is None
    assert enumerator("NO_SUCH_NAME", "LINUX_MIB_LISTENDROPS") is None
    assert enumerator("A", "B", Path("/nowhere")) is None
