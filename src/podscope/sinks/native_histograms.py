# SPDX-License-Identifier: Apache-2.0
"""Prometheus' native histograms, as remote write 1.0 carries them.

https://github.com/prometheus/prometheus/blob/main/prompb/types.proto, message Histogram
"""

from __future__ import annotations

import numpy as np

from podscope import red
from podscope.schema import Array
from podscope.sinks import protobuf


def histogram(counts: Array, total: int, seconds: float, milliseconds: int) -> bytes:
    """A Histogram of schema 3: the buckets of ours.

    Args:
        counts: of ``red.BUCKETS`` buckets, shape (256,).
        total: of all of them.
        seconds: sum of what was observed.
        milliseconds: Unix time.
    """
    spans, deltas = b"", np.zeros(0, dtype=np.int64)
    used = np.flatnonzero(counts)
    if len(used):
        first, last = int(used[0]), int(used[-1])
        # Our bucket i ends where Prometheus' bucket i + 1 does: its index is that of its end.
        offset = red.OFFSET + first + 1
        length = last - first + 1
        spans = protobuf.of_length(11, protobuf.signed(1, offset) + protobuf.number(2, length))
        deltas = np.diff(counts[first : last + 1], prepend=0)
    zigzag = (deltas << 1) ^ (deltas >> 63)
    return b"".join(
        (
            protobuf.number(1, total),
            protobuf.double(3, seconds),
            protobuf.signed(4, red.SCALE),
            protobuf.number(6, 0),
            spans,
            protobuf.packed(12, zigzag),
            protobuf.number(15, milliseconds),
        )
    )
