# SPDX-License-Identifier: Apache-2.0
"""Totals since the start of the metrics of one kind of rows beside HTTP, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import fields
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from podscope import red
from podscope.schema import Array
from podscope.schema_metrics import METRICS
from podscope.schema_metrics import Metric
from podscope.schema_metrics import is_label
from podscope.sinks.cumulative import EVICT_NS
from podscope.sinks.cumulative import IDLE_NS
from podscope.sinks.cumulative import OVERFLOW
from podscope.sinks.cumulative import RECENT_NS
from podscope.sinks.cumulative import SERIES
from podscope.sinks.cumulative import Labels
from podscope.sinks.rows import Rows

# A gauge is the highest of the last minute, kept in quarters.
SLOTS = 4
SLOT_NS = 15 * 10**9
CLOSED = "podscope.listen.closed"
# Of the first place, whose series takes what no longer fits.
_OVERFLOWING = 0


@dataclass(frozen=True)
class EventShot:
    """Totals of some series.

    Attributes:
        places: which series they are, shape (n,).
        fresh: which of them are told for the first time, shape (n,).
        values: of each metric of the kind, shape (n, m): of a histogram the sum; NaN where a
            metric does not apply.
        le: counts at the classic bounds, cumulative in ``le``, shape (n, 15); zero without a
            histogram.
        buckets: exponential histograms, shape (n, 256); (n, 0) if they are not kept.
        start_ns: when the totals began, shape (n,).
    """

    places: npt.NDArray[np.intp]
    fresh: npt.NDArray[np.bool_]
    values: Array
    le: Array
    buckets: Array
    start_ns: Array

    def __len__(self) -> int:
        return len(self.places)

    def take(self, index: Array | slice) -> EventShot:
        """The series at ``index`` (positions, a mask or a slice)."""
        return EventShot(**{one.name: getattr(self, one.name)[index] for one in fields(self)})

    def pieces(self, most: int) -> Iterator[EventShot]:
        """The same series, at most so many at once."""
        for start in range(0, len(self), most):
            yield self.take(slice(start, start + most))


class EventTotals:
    """Adds rows of one kind up by their labels.

    Args:
        kind: of the rows, one of ``METRICS``.
        buckets: keep exponential histograms: two kilobytes a series.
        series: the most series; what is beyond goes to one series without labels.
    """

    def __init__(self, kind: str, *, buckets: bool = False, series: int = SERIES) -> None:
        self.metrics: tuple[Metric, ...] = METRICS[kind]
        self.labels: list[Labels] = [OVERFLOW]
        self.overflowed = 0  # rows whose labels did not fit
        self._kind = kind
        self._most = series + 1
        self._place: dict[Labels, int] = {}
        self._known: dict[tuple[str, ...], dict[tuple[object, ...], int]] = {}
        self._free: list[int] = []
        has_histogram = any(one.type == "histogram" for one in self.metrics)
        gauges = [place for place, one in enumerate(self.metrics) if one.type == "gauge"]
        self._gauges = np.array(gauges, dtype=np.intp)
        self._sums = np.zeros((1, len(self.metrics)))
        self._highest = np.full((1, SLOTS, len(gauges)), np.nan)
        self._le = np.zeros((1, len(red.CLASSIC_BOUNDS) + 1), dtype=np.int64)
        width = red.BUCKETS if buckets and has_histogram else 0
        self._buckets = np.zeros((1, width), dtype=np.int64)
        self._sides: list[str] = [""]
        self._start_ns = np.zeros(1, dtype=np.int64)
        self._seen_ns = np.zeros(1, dtype=np.int64)
        self._live_ns = np.zeros(1, dtype=np.int64)
        self._told = np.zeros(1, dtype=np.bool_)
        self._latest_ns = 0
        self._tried_ns = 0

    def __len__(self) -> int:
        return len(self._place)

    def add(self, rows: Rows) -> None:
        """Adds rows of the kind, those of one interval after the other."""
        self.turn(rows.time_ns)
        if not len(rows):
            return
        places = np.array(self._places(rows), dtype=np.intp)
        self.overflowed += int(np.count_nonzero(places == _OVERFLOWING))
        for column, metric in enumerate(self.metrics):
            if metric.type != "gauge":
                np.add.at(self._sums[:, column], places, self._numbers(rows, metric))
        if rows.le is not None:
            np.add.at(self._le, places, rows.le.astype(np.int64))
        if self._buckets.shape[1] and rows.buckets is not None:
            np.add.at(self._buckets, places, rows.buckets.astype(np.int64))
        self._seen_ns[places] = rows.time_ns
        self._heighten(rows, places)

    def recent(self) -> EventShot:
        """Those of late, for who is told of them again and again."""
        seen = self._seen_ns > max(self._latest_ns - RECENT_NS, 0)
        shot = self._shot(np.flatnonzero(seen))
        self._told[shot.places] = True
        return shot

    def all(self) -> EventShot:
        """Every series."""
        used = np.zeros(len(self._seen_ns), dtype=np.bool_)
        used[[*self._place.values()]] = True
        used[_OVERFLOWING] = self.overflowed > 0
        return self._shot(np.flatnonzero(used))

    def _shot(self, places: npt.NDArray[np.intp]) -> EventShot:
        values = self._sums[places]
        live = self._live_ns[places] == self._latest_ns
        highest = np.fmax.reduce(self._highest[places], axis=1)
        values[:, self._gauges] = np.where(live[:, None], highest, np.nan)
        sides = np.array([self._sides[place] for place in places.tolist()], dtype=object)
        for column, metric in enumerate(self.metrics):
            if metric.side:
                values[(sides != metric.side) & (sides != ""), column] = np.nan
        return EventShot(
            places=places,
            fresh=~self._told[places],
            values=values,
            le=np.cumsum(self._le[places], axis=1),
            buckets=self._buckets[places],
            start_ns=self._start_ns[places],
        )

    def turn(self, now_ns: int) -> None:
        """An interval has ended: forgets the highest of quarters that are over."""
        before = self._latest_ns // SLOT_NS
        now = now_ns // SLOT_NS
        for one in range(max(before + 1, now - SLOTS + 1), now + 1):
            self._highest[:, one % SLOTS] = np.nan
        self._latest_ns = max(self._latest_ns, now_ns)

    def _heighten(self, rows: Rows, places: npt.NDArray[np.intp]) -> None:
        """Gauges of what is there; what was closed has none any more."""
        if not len(self._gauges):
            return
        closed = rows.columns.get(CLOSED, np.zeros(len(rows))) != 0
        gone, there = places[closed], places[~closed]
        self._highest[gone] = np.nan
        self._live_ns[gone] = 0
        self._live_ns[there] = rows.time_ns
        slot = rows.time_ns // SLOT_NS % SLOTS
        for column, place in enumerate(self._gauges.tolist()):
            values = rows.columns[self.metrics[place].column].astype(float)
            # fmax.at: what is not known does not hide what is
            np.fmax.at(self._highest[:, slot, column], there, values[~closed])

    @staticmethod
    def _numbers(rows: Rows, metric: Metric) -> Array:
        if not metric.column:
            return np.ones(len(rows))
        numbers = rows.columns[metric.column].astype(float)
        # The sum of what is not known and anything is not known either.
        return np.asarray(numbers if metric.whole else np.nan_to_num(numbers))

    def _places(self, rows: Rows) -> list[int]:
        told = [one for one in rows.fields if is_label(self._kind, one)]
        columns = [rows.columns[one.name].tolist() for one in told]
        names = tuple(one.name for one in told)
        # Labels are made once for each set of values that comes again.
        if sum(map(len, self._known.values())) > 4 * self._most:
            self._known.clear()
        known = self._known.setdefault(names, {})
        sides = rows.columns["side"].tolist() if "side" in rows.columns else [""] * len(rows)
        start_ns = rows.time_ns - round(rows.interval * 1e9)
        found: list[int] = []
        keys = zip(*columns, strict=True) if columns else [()] * len(rows)
        for side, key in zip(sides, keys, strict=True):
            place = known.get(key)
            if place is None:
                labels = tuple(_told(names, key))
                place = self._place.get(labels, -1)
                if place < 0:
                    if not self._has_room():
                        self._evict(start_ns, found)
                    place = self._new(labels, side or "", start_ns)
                if place != _OVERFLOWING:  # there may be room for it later
                    known[key] = place
            found.append(place)
        return found

    def _has_room(self) -> bool:
        return bool(self._free) or len(self.labels) < self._most

    def _new(self, labels: Labels, side: str, start_ns: int) -> int:
        if self._free:
            place = self._free.pop()
            self.labels[place], self._sides[place] = labels, side
        elif len(self.labels) < self._most:
            place = len(self.labels)
            self.labels.append(labels)
            self._sides.append(side)
            if place == len(self._seen_ns):
                self._resize(2 * place)
        else:
            self._start_ns[_OVERFLOWING] = self._start_ns[_OVERFLOWING] or start_ns
            return _OVERFLOWING
        self._place[labels] = place
        self._start_ns[place] = self._seen_ns[place] = start_ns
        return place

    def _resize(self, size: int) -> None:
        for name, empty in _ARRAYS.items():
            array = getattr(self, name)
            more = np.full((size - len(array), *array.shape[1:]), empty, array.dtype)
            setattr(self, name, np.concatenate([array, more]))

    def _evict(self, now_ns: int, held: Sequence[int]) -> None:
        """Frees the places of idle series but for some; those that come again begin at zero."""
        if now_ns < self._tried_ns + EVICT_NS:
            return
        self._tried_ns = now_ns
        idle = set(np.flatnonzero(self._seen_ns < now_ns - IDLE_NS).tolist())
        idle -= {_OVERFLOWING, *held}
        gone = {labels: place for labels, place in self._place.items() if place in idle}
        if gone:
            for one in self._known.values():
                one.clear()
        for labels, place in gone.items():
            del self._place[labels]
            self._free.append(place)
            for name, empty in _ARRAYS.items():
                getattr(self, name)[place] = empty


# What is kept of each series, and what an empty place has.
_ARRAYS = {
    "_sums": 0.0,
    "_highest": np.nan,
    "_le": 0,
    "_buckets": 0,
    "_start_ns": 0,
    "_seen_ns": 0,
    "_live_ns": 0,
    "_told": False,
}


def _told(names: Sequence[str], values: Sequence[object]) -> Iterator[tuple[str, str | int]]:
    for name, value in zip(names, values, strict=True):
        if isinstance(value, (str, int)) and value:
            yield name, value


class EventTelling:
    """Totals of all kinds for a sink that is told again and again, and what of them is to be sent.

    Rows that are sent again are not added once more, and what was taken is not sent once more.

    Args:
        buckets: as of `EventTotals`.
        series: so many are sent at once.
        anew: totals begin anew with each delivery: they are those of its interval.
    """

    def __init__(self, *, buckets: bool, series: int, anew: bool = False) -> None:
        self.left: deque[EventShot] = deque()
        self._buckets = buckets
        self._series = series
        self._anew = anew
        self._totals: dict[str, EventTotals] = {}
        self._mark: tuple[str, int, int] | None = None

    def add(self, rows: Rows) -> EventTotals:
        """The totals of the rows' kind, with them; ``left`` is what is to be sent of it."""
        is_new = rows.mark != self._mark
        if rows.kind not in self._totals or (is_new and self._anew):
            self._totals[rows.kind] = EventTotals(rows.kind, buckets=self._buckets)
        totals = self._totals[rows.kind]
        if is_new:
            self._mark = rows.mark
            totals.add(rows)
            self.left = deque(totals.recent().pieces(self._series))
        return totals

    def halve(self) -> bool:
        """Makes two of the first of what is left; False: it has one series."""
        first = self.left[0]
        if len(first) == 1:
            return False
        self.left.popleft()
        self.left.extendleft([*first.pieces((len(first) + 1) // 2)][::-1])
        return True

    def told_of(self) -> None:
        """The first of what is left has no new series any more."""
        first = self.left[0]
        self.left[0] = replace(first, fresh=np.zeros_like(first.fresh))
