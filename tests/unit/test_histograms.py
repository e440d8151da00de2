# SPDX-License-Identifier: Apache-2.0
"""Histograms put together from their pieces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podscope.errors import PodscopeError
from podscope.sources.histograms import buckets_of

KEY = np.dtype([("cgroup_id", "u8"), ("port", "u2"), ("chunk", "u1"), ("pad", "u1", (5,))])
CHUNK = np.dtype([("n", "u4", (16,))])
SERIES = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.dictionaries(st.integers(0, 255), st.integers(1, 2**32 - 1), max_size=12),
)


@given(series=SERIES, order=st.randoms(use_true_random=False))
def test_each_series_has_its_own_buckets(series, order):
    # GIVEN pieces in any order
    keys = np.array([(*key, 0, 0) for key in series], KEY)
    pieces: dict[tuple[int, int, int], list[int]] = {}
    for key, buckets in series.items():
        for bucket, count in buckets.items():
            pieces.setdefault((*key, bucket // 16), [0] * 16)[bucket % 16] = count
    shuffled = list(pieces)
    order.shuffle(shuffled)
    chunk_keys = np.array([(*key, 0) for key in shuffled], KEY)
    chunks = np.array([(pieces[key],) for key in shuffled], CHUNK)

    # WHEN
    found = buckets_of(keys, chunk_keys, chunks)

    # THEN
    assert found.shape == (len(series), 256)
    for row, buckets in zip(found, series.values(), strict=True):
        assert {int(at): int(row[at]) for at in np.flatnonzero(row)} == buckets


def test_a_piece_of_no_series_is_no_guess():
    # GIVEN
    keys = np.zeros(1, KEY)
    strange = np.array([(7, 0, 0, 0)], KEY)

    # WHEN / THEN
    with pytest.raises(PodscopeError, match="a histogram of no series"):
        buckets_of(keys, strange, np.ones(1, CHUNK))
