# SPDX-License-Identifier: Apache-2.0
"""Listeners: which drops were overflows, and when a queue is high."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podscope import schema_listen
from podscope.sources import listen

NETSTAT = """\
TcpExt: SyncookiesSent DelayedACKs ListenOverflows ListenDrops
TcpExt: 1 2 33 44
IpExt: InNoRoutes
IpExt: 0
"""


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


def test_the_kernels_counter_is_found_by_its_name():
    assert listen.listen_counters(NETSTAT) == listen.Counters(overflows=33, drops=44)
    assert listen.listen_counters("TcpExt: A\nTcpExt: 1\n") is None
    assert listen.listen_counters("") is None


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


class Counter:
    """What the kernel has counted, as a source reads it."""

    def __init__(self, monkeypatch):
        self.count = 10
        self.drops = 100
        self.asked = 0
        monkeypatch.setattr(listen, "_counters", self.read)

    def read(self, netns, pids):
        self.asked += 1
        return None if self.count is None else listen.Counters(self.count, self.drops)


def listeners(*drops: int, netns: int = 1) -> np.ndarray:
    rows = np.zeros(len(drops), [("netns", "u4"), ("pid", "u4"), ("drops", "u4")])
    rows["netns"], rows["drops"] = netns, drops
    return rows


def test_overflows_are_those_since_the_last_time(monkeypatch):
    # GIVEN
    counter, overflows = Counter(monkeypatch), listen.Overflows()
    overflows.of(listeners(0, 0))

    # WHEN
    counter.count = 13
    told = [overflows.of(listeners(3, 0)).tolist(), overflows.of(listeners(0, 0)).tolist()]

    # THEN the counter is read only where something was dropped
    assert told == [[3, 0], [0, 0]]
    assert counter.asked == 2


def test_an_overflow_whose_drop_is_counted_a_moment_later_is_not_forgotten(monkeypatch):
    # GIVEN drops are read before overflows: of the last ones only the overflow is seen
    counter, overflows = Counter(monkeypatch), listen.Overflows()
    overflows.of(listeners(0, 0))
    counter.count = 15

    # WHEN
    told = [overflows.of(listeners(3, 0)).tolist(), overflows.of(listeners(2, 4)).tolist()]

    # THEN
    assert told == [[3, 0], [-1, -1]]


@pytest.mark.parametrize(
    ("overflows", "drops", "told"), [(10, 100, [-1, 0]), (0, 100, [0, 0]), (2, 2, [2, 0])]
)
def test_drops_in_a_namespace_that_is_new_are_told_apart_where_its_history_is_known(
    monkeypatch, overflows, drops, told
):
    # GIVEN
    counter = Counter(monkeypatch)
    counter.count, counter.drops = overflows, drops

    # WHEN / THEN
    assert listen.Overflows().of(listeners(2, 0)).tolist() == told


def test_where_the_counter_cannot_be_read_nothing_is_said_of_drops(monkeypatch):
    # GIVEN
    counter, overflows = Counter(monkeypatch), listen.Overflows()
    counter.count = None

    # WHEN
    told = [overflows.of(listeners(n, 0)).tolist() for n in (0, 0, 2)]

    # THEN it is not tried again and again
    assert told == [[0, 0], [0, 0], [-1, 0]]
    assert counter.asked == 2


def test_the_number_of_a_namespace_may_be_anothers_later(monkeypatch):
    # GIVEN
    counter, overflows = Counter(monkeypatch), listen.Overflows()
    overflows.of(listeners(0))
    overflows.of(listeners(0, netns=2))

    # WHEN it is there again, and counts from the beginning
    counter.count, counter.drops = 0, 0
    overflows.of(listeners(0))
    counter.count, counter.drops = 4, 4

    # THEN
    assert overflows.of(listeners(4)).tolist() == [4]


def test_a_process_of_each_network_namespace_is_found():
    # GIVEN / WHEN
    own = os.stat("/proc/self/ns/net").st_ino

    # THEN the kernel's counters are read by it, whatever the rows' numbers are
    found = listen._processes()
    assert own in found
    assert listen.Overflows()._read(own, [1 << 23]) is not None
    assert listen.Overflows()._read(1, [os.getpid()]) is None
