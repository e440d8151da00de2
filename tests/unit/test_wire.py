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
