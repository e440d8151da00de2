# SPDX-License-Identifier: Apache-2.0
"""Rows of traces as metrics, by OTLP and by Prometheus' remote write.

Rows are totals since the trace began already, so nothing is added up here. Counts and sums are
counters; ``avg`` and ``stats`` are histograms without buckets, ``hist`` and ``lhist`` such without
a sum, which bpftrace does not keep; all else is a gauge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any
from typing import Literal

import numpy as np

from podscope.schema_metrics import Metric
from podscope.schema_trace import KEY
from podscope.sinks.cumulative import Labels
from podscope.sinks.event_write import LabelPairs
from podscope.sinks.event_write import Sample
from podscope.sinks.event_write import request
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import TooLarge
from podscope.sinks.rows import Rows

SERIES_AT_ONCE = 2000
# More series than maps have keys: those of keys that were deleted meanwhile.
_MOST_KNOWN = 200_000
_TYPES: dict[str, Literal["counter", "histogram"]] = {
    "count": "counter",
    "sum": "counter",
    "avg": "histogram",
    "stats": "histogram",
    "hist": "histogram",
    "lhist": "histogram",
}


@dataclass(frozen=True)
class Point:
    """One series of a metric, as it stands.

    Attributes:
        metric: what it is of.
        labels: names and values.
        start_ns, time_ns: when it began, and now: Unix nanoseconds.
        number: the total of a counter, the value of a gauge, the sum of a histogram; NaN: none.
        count: of a histogram.
        bounds: upper ends of its buckets but the last, which has none; each end is in its bucket.
        counts: of its buckets, one more than bounds; empty: it has none.
    """

    metric: Metric
    labels: Labels
    start_ns: int
    time_ns: int
    number: float
    count: int = 0
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


def points(rows: Rows) -> list[Point]:
    """The series of rows of kind ``trace`` that have a metric."""
    columns = {name: column.tolist() for name, column in rows.columns.items()}
    columns["podscope.trace.start"] = (
        rows.columns["podscope.trace.start"].astype("M8[ns]").astype(np.int64).tolist()
    )
    names = [one.name for one in rows.fields if one.label]
    places = [n for n, name in enumerate(columns["podscope.trace.metric"]) if name]
    lows, highs = columns["podscope.trace.bucket.min"], columns["podscope.trace.bucket.max"]
    grids = {
        name: _grid([(lows[n], highs[n]) for n in some])
        for name, some in _by_metric(places, columns)
    }
    found = []

    def of(n: int) -> tuple[str, Labels]:
        return columns["podscope.trace.metric"][n], _labels(names, columns, n)

    # Buckets of an entry stand one behind the other.
    for (name, labels), group in groupby(places, of):
        some = [*group]
        found.append(_point(columns, some, labels, grids[name], rows.time_ns))
    return found


def _by_metric(
    places: Sequence[int], columns: dict[str, list[Any]]
) -> Iterator[tuple[str, list[int]]]:
    for name in dict.fromkeys(columns["podscope.trace.metric"][n] for n in places):
        yield name, [n for n in places if columns["podscope.trace.metric"][n] == name]


def _labels(names: Sequence[str], columns: dict[str, list[Any]], n: int) -> Labels:
    told = tuple(
        (name.removeprefix(KEY), str(columns[name][n])) for name in names if columns[name][n]
    )
    whole = columns["podscope.trace.key"][n]
    if whole and not any(name.startswith(KEY) and columns[name][n] for name in names):
        return (*told, ("key", whole))  # its parts could not be told apart
    return told


def _grid(buckets: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """Upper ends of buckets of whole numbers, with those of the gaps between them."""
    highs = {high for _, high in buckets if not math.isnan(high)}
    lows = {low - 1 for low, _ in buckets if not math.isnan(low)}
    # Below all buckets there is no gap; quantiles of the lowest one begin at its own end, or at 0.
    return tuple(sorted(highs | {low for low in lows if low >= 0 or low > min(highs, default=0)}))


def _point(
    columns: dict[str, list[Any]],
    some: Sequence[int],
    labels: Labels,
    grid: tuple[float, ...],
    now_ns: int,
) -> Point:
    first = some[0]
    kind = columns["podscope.trace.type"][first]
    metric = Metric(
        columns["podscope.trace.metric"][first],
        _TYPES.get(kind, "gauge"),
        "",
        "",
        f"{kind} of {columns['podscope.trace.map'][first]} of a trace.",
    )
    made = Point(
        metric,
        labels,
        min(columns["podscope.trace.start"][first], now_ns - 1),
        now_ns,
        columns["podscope.trace.value"][first],
        sum(columns["podscope.trace.count"][n] for n in some),
    )
    if kind not in ("hist", "lhist"):
        return made
    counts = [0] * (len(grid) + 1)
    for n in some:
        high = columns["podscope.trace.bucket.max"][n]
        place = len(grid) if math.isnan(high) else grid.index(high)
        counts[place] += columns["podscope.trace.count"][n]
    return replace(made, bounds=grid, counts=tuple(counts))


class Deltas:
    """What points have grown by since they were told last."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, Labels], Point] = {}

    def of(self, some: Sequence[Point]) -> list[Point]:
        """The points with their growth alone; gauges as they are."""
        return [self._delta(one) for one in some if self._is_later(one)]

    def told(self, some: Sequence[Point]) -> None:
        """Notes that a server has these."""
        self._told |= {(one.metric.name, one.labels): one for one in some}

    def _is_later(self, one: Point) -> bool:
        before = self._told.get((one.metric.name, one.labels))
        return before is None or before.time_ns < one.time_ns

    def _delta(self, one: Point) -> Point:
        before = self._told.get((one.metric.name, one.labels))
        if before is None or one.metric.type == "gauge" or before.start_ns != one.start_ns:
            return one
        known = dict(zip((*before.bounds, math.inf), before.counts, strict=False))
        counts = tuple(
            n - known.get(bound, 0)
            for bound, n in zip((*one.bounds, math.inf), one.counts, strict=False)
        )
        return replace(
            one,
            start_ns=before.time_ns,
            number=one.number - before.number,
            count=one.count - before.count,
            counts=counts,
        )


# --- remote write ---------------------------------------------------------------------------------


@dataclass
class TraceWriter:
    """Writes points by remote write.

    Args:
        sent: sends the request that it gets for a version, 1 or 2; gives the server's answer, or
            raises NotTaken.
        said: why a server refused, of its answer.
        job: label ``job``.
    """

    sent: Callable[[Callable[[int], bytes]], Any]
    said: Callable[[Any], str]
    job: str
    _known: set[LabelPairs] = field(default_factory=set)
    _before_ns: int = 0

    def send(self, rows: Rows) -> None:
        """Writes the points of these rows; raises NotTaken as ``Sink.send`` says."""
        samples = [one for point in points(rows) for one in self._samples(point, rows)]
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        fresh = [one for one in samples if one.since and one.labels not in self._known]
        # A counter that begins above zero would hide its first increase.
        before_ms = max(self._before_ns, rows.time_ns - 60 * 10**9) // 10**6
        zeros = [
            replace(one, number=0.0, since=0, milliseconds=min(max(before_ms, one.since),
                    one.milliseconds - 1))
            for one in fresh
        ]  # fmt: skip
        refused = ""
        for some in (zeros, samples):
            for start in range(0, len(some), SERIES_AT_ONCE):
                told = self._write(some[start : start + SERIES_AT_ONCE])
                refused = (told if some is samples else "") or refused
            self._known.update(one.labels for one in some)
        self._before_ns = rows.time_ns
        if refused:
            raise Refused(refused)

    def _write(self, some: Sequence[Sample]) -> str:
        """Why they are refused; empty if they are not."""
        try:
            answer = self.sent(partial(request, some))
        except TooLarge as error:
            if len(some) == 1:
                return str(error)
            half = len(some) // 2
            return self._write(some[:half]) or self._write(some[half:])
        return "" if answer.is_success else self.said(answer)

    def _samples(self, one: Point, rows: Rows) -> Iterator[Sample]:
        labels = self._labels(one.labels, rows)
        name = one.metric.prometheus_name
        now, since = one.time_ns // 10**6, max(one.start_ns // 10**6, 1)

        def sample(end: str, number: float, *more: tuple[str, str], began: int = since) -> Sample:
            told = tuple(sorted((("__name__", name + end), *labels, *more)))
            return Sample(one.metric, told, number, now, began)

        if one.metric.type == "gauge":
            yield sample("", one.number, began=0)
            return
        if one.metric.type == "counter":
            yield sample("" if name.endswith("_total") else "_total", one.number)
            return
        total = 0
        for bound, count in zip((*one.bounds, math.inf), one.counts, strict=False):
            total += count
            yield sample("_bucket", total, ("le", _bound(bound)))
        if not one.counts:
            yield sample("_bucket", one.count, ("le", "+Inf"))
        if not math.isnan(one.number):
            yield sample("_sum", one.number)
        yield sample("_count", one.count)

    def _labels(self, labels: Labels, rows: Rows) -> LabelPairs:
        told = {
            name.replace(".", "_"): str(value) for name, value in (*labels, *rows.resource.items())
        }
        told |= {"job": self.job, "instance": rows.resource.get("host.name", "")}
        return tuple((name, value) for name, value in told.items() if value)


def _bound(bound: float) -> str:
    return "+Inf" if math.isinf(bound) else f"{bound:.0f}"
