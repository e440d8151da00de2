# SPDX-License-Identifier: Apache-2.0
"""Metrics of the kinds of rows beside HTTP by Prometheus' remote write 1.0 and 2.0.

Names and labels are those of ``/metrics``. https://prometheus.io/docs/specs/prw/remote_write_spec
and remote_write_spec_2_0
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from podscope.schema_metrics import Metric
from podscope.sinks import protobuf
from podscope.sinks.cumulative import Labels
from podscope.sinks.event_totals import EventShot
from podscope.sinks.event_totals import EventTelling
from podscope.sinks.native_histograms import histogram
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import TooLarge
from podscope.sinks.remote_write import BOUNDS
from podscope.sinks.remote_write_v2 import Symbols
from podscope.sinks.rows import Rows

SERIES_AT_ONCE = 200
# MetricType of 2.0.
_TYPES = {"counter": 1, "gauge": 2, "histogram": 3}

# Sorted by name.
LabelPairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sample:
    """The newest value of one time series.

    Attributes:
        metric: what it is of.
        labels: with the name, and ``le`` of a bucket; sorted.
        number: its value; of a native histogram the sum.
        milliseconds: Unix time.
        since: when it began, the same; 0: not told.
        counts: of a native histogram its buckets, shape (256,); None: it is none.
        total: of a native histogram how many it counts.
    """

    metric: Metric
    labels: LabelPairs
    number: float
    milliseconds: int
    since: int
    counts: Any = None
    total: int = 0


class EventWriter:
    """Writes totals since the start, which may be written once more without harm.

    Args:
        sent: sends the request that it gets for a version, 1 or 2; gives the server's answer, or
            raises NotTaken.
        said: why a server refused, of its answer.
        job: label ``job``.
        native: durations as native histograms.
    """

    def __init__(
        self,
        sent: Callable[[Callable[[int], bytes]], Any],
        said: Callable[[Any], str],
        *,
        job: str,
        native: bool,
    ) -> None:
        self._sent = sent
        self._said = said
        self._job = job
        self._native = native
        self._telling = EventTelling(buckets=native, series=SERIES_AT_ONCE)

    def send(self, rows: Rows) -> None:
        """Writes the totals with these rows; raises NotTaken as ``Sink.send`` says."""
        totals = self._telling.add(rows)
        refused = ""
        while self._telling.left:
            shot = self._telling.left[0]
            labels = [self._labels(totals.labels[at], rows.resource) for at in shot.places.tolist()]
            try:
                refused = self._write(totals.metrics, shot, labels, rows.time_ns) or refused
            except TooLarge as error:
                if self._telling.halve():
                    continue
                refused = str(error)
            self._telling.left.popleft()
        if refused:
            raise Refused(refused)

    def _write(
        self, metrics: Sequence[Metric], shot: EventShot, labels: Sequence[LabelPairs], now_ns: int
    ) -> str:
        """Why the totals are refused; empty if they are not."""
        if zeros := [*self._zeros(metrics, shot, labels, now_ns)]:
            # A counter that begins above zero would hide its first increase.
            self._sent(partial(request, zeros))
            self._telling.told_of()
        told = [*self._samples(metrics, shot, labels, now_ns // 10**6)]
        if not told:
            return ""
        answer = self._sent(partial(request, told))
        return "" if answer.is_success else self._said(answer)

    def _samples(
        self, metrics: Sequence[Metric], shot: EventShot, labels: Sequence[LabelPairs], now_ms: int
    ) -> Iterator[Sample]:
        for row, mine in enumerate(labels):
            since = min(int(shot.start_ns[row]) // 10**6, now_ms - 1)
            for metric, number in zip(metrics, shot.values[row].tolist(), strict=True):
                if np.isnan(number):
                    continue
                if metric.type != "histogram":
                    end = "_total" if metric.type == "counter" else ""
                    begun = since if metric.type == "counter" else 0
                    yield Sample(metric, _named(metric, end, mine), number, now_ms, begun)
                    continue
                yield from self._histogram(
                    Sample(metric, mine, number, now_ms, since), shot.take(slice(row, row + 1))
                )

    def _histogram(self, one: Sample, shot: EventShot) -> Iterator[Sample]:
        """The time series of a histogram, which has one row in the shot."""
        counts = shot.le[0].tolist()
        if self._native:
            labels = _named(one.metric, "", one.labels)
            yield replace(one, labels=labels, counts=shot.buckets[0], total=counts[-1])
            return
        for bound, count in zip(BOUNDS, counts, strict=True):
            labels = _named(one.metric, "_bucket", (*one.labels, ("le", bound)))
            yield replace(one, labels=labels, number=count)
        yield replace(one, labels=_named(one.metric, "_sum", one.labels))
        yield replace(one, labels=_named(one.metric, "_count", one.labels), number=counts[-1])

    def _zeros(
        self, metrics: Sequence[Metric], shot: EventShot, labels: Sequence[LabelPairs], now_ns: int
    ) -> Iterator[Sample]:
        """The new series as they were when they began; what is no total had no beginning."""
        fresh = np.flatnonzero(shot.fresh)
        new = shot.take(fresh)
        values = np.where(np.isnan(new.values), np.nan, 0.0)
        values[:, [one.type == "gauge" for one in metrics]] = np.nan
        began = replace(
            new, values=values, le=np.zeros_like(new.le), buckets=np.zeros_like(new.buckets)
        )
        for row, place in enumerate(fresh.tolist()):
            start = min(int(new.start_ns[row]), now_ns - 10**6) // 10**6
            one = began.take(slice(row, row + 1))
            for sample in self._samples(metrics, one, [labels[place]], start):
                yield replace(sample, since=0)

    def _labels(self, labels: Labels, resource: Mapping[str, str]) -> LabelPairs:
        told = {name.replace(".", "_"): str(value) for name, value in (*labels, *resource.items())}
        told |= {"job": self._job, "instance": resource.get("host.name", "")}
        return tuple((name, value) for name, value in told.items() if value)


def _named(metric: Metric, end: str, labels: LabelPairs) -> LabelPairs:
    return tuple(sorted((("__name__", metric.prometheus_name + end), *labels)))


def request(samples: Sequence[Sample], version: int) -> bytes:
    """A request of remote write with one time series for each sample."""
    if version == 1:
        return b"".join(map(_series_1, samples))
    symbols = Symbols()
    series = b"".join(_series_2(one, symbols) for one in samples)
    return symbols.message() + series


def _series_1(one: Sample) -> bytes:
    """A TimeSeries of a WriteRequest."""
    told = b"".join(
        protobuf.of_length(1, protobuf.text(1, name) + protobuf.text(2, value))
        for name, value in one.labels
    )
    if one.counts is None:
        newest = protobuf.of_length(2, _sample(one))
    else:
        newest = protobuf.of_length(4, _counts(one))
    return protobuf.of_length(1, told + newest)


def _series_2(one: Sample, symbols: Symbols) -> bytes:
    """A TimeSeries of 2.0, with metadata and when it began."""
    refs = symbols.refs([text for label in one.labels for text in label])
    if one.counts is None:
        since = protobuf.number(3, one.since) if one.since else b""
        newest = protobuf.of_length(2, _sample(one) + since)
    else:
        since = protobuf.number(17, one.since) if one.since else b""
        newest = protobuf.of_length(3, _counts(one) + since)
    metric = one.metric
    about = protobuf.number(1, _TYPES[metric.type])
    about += protobuf.key(3, 0) + symbols.refs((metric.text,))
    about += protobuf.key(4, 0) + symbols.refs((metric.prometheus_unit,))
    return protobuf.of_length(
        5, protobuf.of_length(1, refs) + newest + protobuf.of_length(5, about)
    )


def _sample(one: Sample) -> bytes:
    return protobuf.double(1, one.number) + protobuf.number(2, one.milliseconds)


def _counts(one: Sample) -> bytes:
    return histogram(one.counts, one.total, one.number, one.milliseconds)
