# SPDX-License-Identifier: Apache-2.0
"""Messages of Prometheus' remote write 1.0. https://prometheus.io/docs/specs/prw/remote_write_spec

Names and labels are those of ``/metrics``.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from podscope import red
from podscope.schema import Array
from podscope.sinks import protobuf
from podscope.sinks.cumulative import SIDES
from podscope.sinks.cumulative import Shot
from podscope.sinks.native_histograms import histogram

BOUNDS = (*(str(bound) for bound in red.CLASSIC_BOUNDS), "+Inf")
CONTENT_TYPE = "application/x-protobuf"
VERSION = "0.1.0"


def request(
    templates: Sequence[Template], shot: Shot, milliseconds: Array, *, native: bool
) -> bytes:
    """A WriteRequest of some totals.

    Args:
        templates: of their labels, one a series.
        shot: the totals, one series at least.
        milliseconds: Unix time of each series, shape (n,).
        native: durations as native histograms, in place of classic ones.
    """
    if native:
        return _native(templates, shot, milliseconds)
    return filled(templates, values(shot), milliseconds)


def values(shot: Shot) -> Array:
    """Values of the time series of classic histograms, shape (n, 19)."""
    columns = (shot.sum, shot.count, shot.request_bytes, shot.response_bytes)
    return np.concatenate([shot.le, np.stack(columns, axis=1)], axis=1, dtype=float)


@dataclass(frozen=True)
class Template:
    """What the time series of one set of labels have in common.

    Attributes:
        side: server or client.
        labels: names and values, sorted by name, without empty ones.
        before, after: the same as bytes, before and after ``le``; ``__name__`` is before all.
    """

    side: str
    labels: tuple[tuple[str, str], ...]
    before: bytes
    after: bytes

    @classmethod
    def of(cls, side: str, labels: Mapping[str, str]) -> Template:
        """The template of some labels; empty ones are the same as none."""
        told = tuple((name, value) for name, value in sorted(labels.items()) if value)
        before = b"".join(_label(*one) for one in told if one[0] < "le")
        return cls(side, told, before, b"".join(_label(*one) for one in told if one[0] > "le"))

    def series(self) -> list[bytes]:
        """The time series, each with a sample at its end whose value and time are to be filled."""
        before, after = self.before, self.after + _SAMPLE
        plain = before + after
        return [
            protobuf.of_length(1, name + before + le + after)
            if le
            else protobuf.of_length(1, name + plain)
            for name, le in _HEADS[self.side]
        ]


def _label(name: str, value: str) -> bytes:
    return protobuf.of_length(1, protobuf.text(1, name) + protobuf.text(2, value))


TIME_BYTES = 6
# Sample {double value = 1; int64 timestamp = 2;}; a time of six bytes is of 2004 to 2109.
_SAMPLE = protobuf.of_length(2, protobuf.double(1, 0) + protobuf.number(2, 1 << 41))
# Names of the time series of a set of labels; with the bound of each bucket.
_SERIES = (
    *(("http_{}_request_duration_seconds_bucket", bound) for bound in BOUNDS),
    ("http_{}_request_duration_seconds_sum", ""),
    ("http_{}_request_duration_seconds_count", ""),
    ("podscope_http_{}_request_body_bytes_total", ""),
    ("podscope_http_{}_response_body_bytes_total", ""),
)
_HEADS = {
    side: [
        (_label("__name__", name.format(side)), _label("le", bound) if bound else b"")
        for name, bound in _SERIES
    ]
    for side in SIDES
}


def filled(templates: Sequence[Template], values: Array, milliseconds: Array) -> bytes:
    """A WriteRequest of the templates' time series.

    Args:
        templates: one a set of labels, one at least.
        values: of their series, shape (n, 19).
        milliseconds: Unix time of each set, shape (n,).
    """
    parts = [raw for one in templates for raw in one.series()]
    times = varints(np.repeat(milliseconds, values.shape[1]))
    at_end = ((TIME_BYTES + 1 + 8, doubles(values)), (TIME_BYTES, times))
    return put_in(parts, at_end)


def put_in(parts: Sequence[bytes], at_end: Sequence[tuple[int, Array]]) -> bytes:
    """The parts joined, with bytes of arrays in the places that were left for them.

    Args:
        parts: one at least.
        at_end: how far before the end of each part, and what, shape (n, k).
    """
    whole = np.frombuffer(b"".join(parts), np.uint8).copy()
    ends = np.cumsum([len(raw) for raw in parts])[:, None]
    for back, raw in at_end:
        whole[ends - back + np.arange(raw.shape[1])] = raw
    return whole.tobytes()


def doubles(values: Array) -> Array:
    """Floats as bytes, shape (n, 8)."""
    return np.ascontiguousarray(values, "<f8").view(np.uint8).reshape(-1, 8)


def _native(templates: Sequence[Template], shot: Shot, milliseconds: Array) -> bytes:
    """A WriteRequest with a native histogram and two counters for each set of labels."""
    parts = []
    for row, (one, time) in enumerate(zip(templates, milliseconds.tolist(), strict=True)):
        labels = one.before + one.after
        names = [name for name, _ in _HEADS[one.side]]
        told = histogram(shot.buckets[row], int(shot.count[row]), float(shot.sum[row]), time)
        name = _label("__name__", f"http_{one.side}_request_duration_seconds")
        parts.append(protobuf.of_length(1, name + labels + protobuf.of_length(4, told)))
        for head, column in zip(names[-2:], (shot.request_bytes, shot.response_bytes), strict=True):
            sample = protobuf.double(1, float(column[row])) + protobuf.number(2, time)
            parts.append(protobuf.of_length(1, head + labels + protobuf.of_length(2, sample)))
    return b"".join(parts)


def varints(numbers: Array) -> Array:
    """Numbers from 2**35 to 2**42 as varints of six bytes, shape (n, 6)."""
    shifts = 7 * np.arange(TIME_BYTES)
    digits = (numbers[:, None] >> shifts) & 0x7F
    digits[:, :-1] |= 0x80
    return digits.astype(np.uint8)
