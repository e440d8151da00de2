# SPDX-License-Identifier: Apache-2.0
"""Messages of Prometheus' remote write 2.0: io.prometheus.write.v2.Request.

Texts stand once in each request, and time series name them by number; metadata, start times and
exemplars travel with the samples. https://prometheus.io/docs/specs/prw/remote_write_spec_2_0
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from podscope.schema import Array
from podscope.sinks import protobuf
from podscope.sinks.cumulative import SIDES
from podscope.sinks.cumulative import Shot
from podscope.sinks.exemplars import Exemplar
from podscope.sinks.exemplars import OfSeries
from podscope.sinks.native_histograms import histogram
from podscope.sinks.remote_write import BOUNDS
from podscope.sinks.remote_write import TIME_BYTES
from podscope.sinks.remote_write import Template
from podscope.sinks.remote_write import doubles
from podscope.sinks.remote_write import put_in
from podscope.sinks.remote_write import values
from podscope.sinks.remote_write import varints

CONTENT_TYPE = "application/x-protobuf;proto=io.prometheus.write.v2.Request"
VERSION = "2.0.0"
# MetricType
_COUNTER, _HISTOGRAM = 1, 3
# Sample {double value = 1; int64 timestamp = 2; int64 start_timestamp = 3;}, to be filled.
_SAMPLE = protobuf.double(1, 0) + protobuf.number(2, 1 << 41)
_SINCE = protobuf.number(3, 1 << 41)


class Symbols:
    """The texts of a request, each with its number."""

    def __init__(self) -> None:
        # The first is empty, as the specification says.
        self._numbers = {"": 0}

    def refs(self, texts: Sequence[str]) -> bytes:
        """Numbers of texts, as varints one after the other."""
        numbers = self._numbers
        found = [numbers.setdefault(text, len(numbers)) for text in texts]
        return b"".join(map(protobuf.varint, found))

    def message(self) -> bytes:
        """The texts as a part of the request."""
        return b"".join(protobuf.text(4, text) for text in self._numbers)


class _Heads:
    """What the time series of one side begin with, by number of their texts."""

    def __init__(self, side: str, symbols: Symbols) -> None:
        name = f"http_{side}_request_duration_seconds"
        told = (symbols.refs((f"Duration of HTTP {side} requests.",)), symbols.refs(("seconds",)))
        self.metadata = _metadata(_HISTOGRAM, *told)
        self.native = symbols.refs(("__name__", name))
        bucket = symbols.refs(("__name__", f"{name}_bucket"))
        # Each with what stands behind the labels before ``le``.
        self.durations = [(bucket, symbols.refs(("le", bound))) for bound in BOUNDS]
        self.durations += [
            (symbols.refs(("__name__", f"{name}_{part}")), b"") for part in ("sum", "count")
        ]
        self.bodies = [
            (
                symbols.refs(("__name__", f"podscope_http_{side}_{what}_body_bytes_total")),
                _metadata(
                    _COUNTER,
                    symbols.refs((f"Bytes of {what} bodies of HTTP {side} requests.",)),
                    symbols.refs(("bytes",)),
                ),
            )
            for what in ("request", "response")
        ]


def _metadata(kind: int, help_ref: bytes, unit_ref: bytes) -> bytes:
    told = protobuf.number(1, kind) + protobuf.key(3, 0) + help_ref + protobuf.key(4, 0) + unit_ref
    return protobuf.of_length(5, told)


def request(
    templates: Sequence[Template],
    shot: Shot,
    times: tuple[Array, Array | None],
    exemplars: Mapping[int, OfSeries],
    *,
    native: bool,
) -> bytes:
    """A Request of some totals.

    Args:
        templates: of their labels, one a series.
        shot: the totals, one series at least.
        times: Unix milliseconds of each series, and of when its totals began, shape (n,) each;
            None: at that time.
        exemplars: by the place of their series.
        native: durations as native histograms, in place of classic ones.
    """
    symbols = Symbols()
    heads = {side: _Heads(side, symbols) for side in SIDES}
    labels = [_labels(one, symbols) for one in templates]
    told = [
        _exemplars(exemplars[place], symbols) if place in exemplars else {}
        for place in shot.places.tolist()
    ]
    sides = [heads[one.side] for one in templates]
    series = _all_series([*zip(sides, labels, told, strict=True)], (shot, *times), native=native)
    return symbols.message() + series


def _labels(one: Template, symbols: Symbols) -> tuple[bytes, bytes]:
    """The labels before and after ``le``."""
    before = [text for label in one.labels if label[0] < "le" for text in label]
    after = [text for label in one.labels if label[0] > "le" for text in label]
    return symbols.refs(before), symbols.refs(after)


def _exemplars(some: OfSeries, symbols: Symbols) -> dict[int, bytes]:
    """The examples of a series, by bucket, oldest first."""
    ordered = sorted(some.items(), key=lambda item: item[1].milliseconds)
    return {bucket: _exemplar(one, symbols) for bucket, one in ordered}


def _exemplar(one: Exemplar, symbols: Symbols) -> bytes:
    labels = [*(("span_id", one.span_id) if one.span_id else ()), "trace_id", one.trace_id]
    told = protobuf.of_length(1, symbols.refs(labels)) + protobuf.double(2, one.seconds)
    return protobuf.of_length(4, told + protobuf.number(3, one.milliseconds))


# Of a series: what it begins with, its labels before and after ``le``, its examples by bucket.
_Told = tuple[_Heads, tuple[bytes, bytes], Mapping[int, bytes]]


def _all_series(
    told: Sequence[_Told], values_at: tuple[Shot, Array, Array | None], *, native: bool
) -> bytes:
    """The time series: histograms that are whole, and those whose numbers are put in at the end."""
    shot, times, since = values_at
    sample = protobuf.of_length(2, _SAMPLE + (_SINCE if since is not None else b""))
    histograms, parts = [], []
    for row, (head, (before, after), examples) in enumerate(told):
        if native:
            made = _histogram(shot, row, int(times[row]), 0 if since is None else int(since[row]))
            rest = made + b"".join(examples.values()) + head.metadata
            histograms.append(_series(head.native + before + after, rest))
        else:
            end = head.metadata + sample
            parts += [
                _series(name + before + bound + after, examples.get(bucket, b"") + end)
                for bucket, (name, bound) in enumerate(head.durations)
            ]
        parts += [_series(name + before + after, of + sample) for name, of in head.bodies]
    numbers = values(shot)[:, -2:] if native else values(shot)
    return b"".join(histograms) + put_in(parts, _at_end(numbers, times, since))


def _histogram(shot: Shot, row: int, time: int, since: int) -> bytes:
    """A native histogram; ``since`` is 0 where it is not told."""
    made = histogram(shot.buckets[row], int(shot.count[row]), float(shot.sum[row]), time)
    return protobuf.of_length(3, made + (protobuf.number(17, since) if since else b""))


def _series(refs: bytes, rest: bytes) -> bytes:
    return protobuf.of_length(5, protobuf.of_length(1, refs) + rest)


def _at_end(numbers: Array, times: Array, since: Array | None) -> list[tuple[int, Array]]:
    """What is put in at the end of each time series, from back to front."""
    columns = [] if since is None else [varints(np.repeat(since, numbers.shape[1]))]
    columns.append(varints(np.repeat(times, numbers.shape[1])))
    found, back = [], 0
    for column in columns:
        found.append((back + TIME_BYTES, column))
        back += TIME_BYTES + 1
    return [*found, (back + 8, doubles(numbers))]
