# SPDX-License-Identifier: Apache-2.0
"""Batches as bytes come back as they were, and anything else is refused in a line."""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import records
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from podscope import red
from podscope import wire


def there_and_back(*batches):
    stream = io.BytesIO(b"".join(map(wire.packed, batches)))
    return list(wire.frames(stream.read))


@pytest.mark.parametrize("made", ["shop_batch", "cluster_batch", "request_batch"])
def test_a_batch_comes_back_as_it_was(made):
    # GIVEN
    batch = replace(getattr(records, made)(), lost={"hole": 2, "joined": 0}, clock_offset_ns=-5)

    # WHEN
    (back,) = there_and_back(batch)

    # THEN
    assert back.rows.dtype == batch.rows.dtype
    assert back.rows.tobytes() == batch.rows.tobytes()
    whose = [back.identities[place] for place in back.identity]
    assert whose == [batch.identities[place] for place in batch.identity]
    assert back.routes == batch.routes
    assert back.lost == {"hole": 2}
    told = ("kind", "time_ns", "interval", "clock_offset_ns")
    assert [getattr(back, name) for name in told] == [getattr(batch, name) for name in told]


def test_peers_come_back():
    # GIVEN
    peers = np.array([2, -1, 0, 1, 1], dtype=np.int32)
    batch = replace(records.cluster_batch(), peers=peers)

    # WHEN
    (back,) = there_and_back(batch)

    # THEN
    assert back.peers is not None
    found = [back.identities[place] if place >= 0 else None for place in back.peers.tolist()]
    assert found == [records.BARE, None, records.WEB_A, records.WEB_B, records.WEB_B]


def test_batches_with_peers_and_without_are_put_together():
    # GIVEN
    peers = np.array([2, -1, 0, 1, 1], dtype=np.int32)
    told = replace(records.cluster_batch(), peers=peers)

    # WHEN
    whole = wire.together([records.shop_batch(), told])

    # THEN
    assert whole.peers is not None
    assert whole.peers.tolist() == [-1] * 5 + [5, -1, 3, 4, 4]


def test_requests_of_nodes_with_clocks_of_their_own_keep_their_times():
    # GIVEN two nodes that were not started together
    first = records.request_batch(1)
    second = replace(first, rows=first.rows.copy(), clock_offset_ns=first.clock_offset_ns - 7)
    times = [int(batch.rows["time_ns"][0]) + batch.clock_offset_ns for batch in (first, second)]

    # WHEN
    whole = wire.together([first, second])

    # THEN
    assert (whole.rows["time_ns"].astype(int) + whole.clock_offset_ns).tolist() == times
    assert times[0] != times[1]


def test_an_empty_batch_comes_back():
    (back,) = there_and_back(records.http_batch(records.http_rows(0), []))
    assert (len(back), back.identities) == (0, ())


def test_a_batch_is_small():
    # GIVEN a thousand series with histograms of a kilobyte each
    rows = records.http_rows(1000)
    for number, row in enumerate(rows):
        row["key"]["port"] = number
        records.fill(row, [10**6 + number, 10**7 + number])

    # WHEN / THEN
    assert len(wire.packed(records.http_batch(rows, [0] * 1000))) < rows.nbytes / 20


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_bytes_that_are_no_frame_are_refused(data):
    # GIVEN a frame with some of its bytes changed, or cut
    frame = bytearray(wire.packed(records.cluster_batch()))
    for _ in range(data.draw(st.integers(0, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))

    # WHEN / THEN it is read, or refused by the one error that there is for it
    with suppress(wire.WireError):
        list(wire.frames(io.BytesIO(bytes(frame[:cut])).read))


def test_batches_of_two_nodes_add_up():
    # GIVEN
    one, other = records.cluster_batch(), replace(records.shop_batch(), lost={"hole": 1})

    # WHEN
    both = wire.together([one, other, replace(one, lost={"hole": 2})])

    # THEN
    groups = red.group(both, ("workload", "namespace"))
    alone = [red.group(batch, groups.by) for batch in (one, other, one)]
    merged = red.merge(red.merge(alone[0], alone[1]), alone[2])
    assert sorted(groups.count.tolist()) == sorted(merged.count.tolist())
    assert sorted(groups.max_ns.tolist()) == sorted(merged.max_ns.tolist())
    assert groups.buckets.sum() == merged.buckets.sum() == 180
    assert both.lost == {"hole": 3}


def test_rows_of_another_version_are_refused():
    # GIVEN
    batch = records.shop_batch()
    old = replace(batch, rows=np.zeros(len(batch), batch.rows.dtype.descr[:-1]))

    # WHEN / THEN
    with pytest.raises(wire.WireError, match="different versions"):
        wire.together([batch, old])
