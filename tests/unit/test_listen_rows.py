# SPDX-License-Identifier: Apache-2.0
"""Listeners: which drops were overflows, and when a queue is high."""

from __future__ import annotations

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
    assert listen.listen_overflows(NETSTAT) == 33
    assert listen.listen_overflows("TcpExt: A\nTcpExt: 1\n") is None
    assert listen.listen_overflows("") is None


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
