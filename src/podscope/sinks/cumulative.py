# SPDX-License-Identifier: Apache-2.0
"""Totals since the start of rows of kind http, for sinks whose counters may not go back."""

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
from podscope.sinks.rows import Rows

SERIES = 10_000
# Series that nothing was added to are told for so long, and then no more.
RECENT_NS = 300 * 10**9
# After that, their places are for others when all are taken.
IDLE_NS = 3600 * 10**9
# A full table is looked through for them so often.
EVICT_NS = 10**9
_ROWS_AT_ONCE = 1000
SIDES = ("server", "client")
# OpenTelemetry's mark for the series that takes what no longer fits.
OVERFLOW = (("otel.metric.overflow", "true"),)

Labels = tuple[tuple[str, str | int], ...]


@dataclass(frozen=True)
class Shot:
    """Totals of some series.

    Attributes:
        places: which series they are, shape (n,).
        fresh: which of them are told for the first time, shape (n,).
        count, sum, request_bytes, response_bytes: shape (n,); durations in seconds.
        max: longest duration since the series was told of before, seconds, shape (n,).
        le: counts at the classic bounds, cumulative in ``le``, shape (n, 15).
        buckets: exponential histograms, shape (n, 256); (n, 0) if they are not kept.
        start_ns: when the totals began, shape (n,).
    """

    places: npt.NDArray[np.intp]
    fresh: npt.NDArray[np.bool_]
    count: Array
    sum: Array
    request_bytes: Array
    response_bytes: Array
    max: Array
    le: Array
    buckets: Array
    start_ns: Array

    def __len__(self) -> int:
        return len(self.places)

    def take(self, index: Array | slice) -> Shot:
        """The series at ``index`` (positions, a mask or a slice)."""
        return Shot(**{one.name: getattr(self, one.name)[index] for one in fields(self)})

    def zeros(self) -> Shot:
        """The same series when they began."""
        kept = ("places", "fresh", "start_ns")
        return replace(
            self,
            **{
                one.name: np.zeros_like(getattr(self, one.name))
                for one in fields(self)
                if one.name not in kept
            },
        )

    def pieces(self, most: int) -> Iterator[Shot]:
        """The same series, at most so many at once."""
        for start in range(0, len(self), most):
            yield self.take(slice(start, start + most))


class Cumulative:
    """Adds rows up by their attributes, in bounded memory.

    Args:
        buckets: keep exponential histograms: two kilobytes a series.
        series: the most series; what is beyond goes to one series a side.
    """

    def __init__(self, *, buckets: bool, series: int = SERIES) -> None:
        self._most = series
        self._place: dict[tuple[object, ...], int] = {}
        self.labels: list[Labels] = [OVERFLOW, OVERFLOW]
        self.sides: list[int] = [0, 1]
        self._free: list[int] = []
        self._width = red.BUCKETS if buckets else 0
        self._values = np.zeros((2, 5))
        self._le = np.zeros((2, len(red.CLASSIC_BOUNDS) + 1), dtype=np.int64)
        self._buckets = np.zeros((2, self._width), dtype=np.int64)
        self._start_ns = np.zeros(2, dtype=np.int64)
        self._seen_ns = np.zeros(2, dtype=np.int64)
        self._told = np.zeros(2, dtype=np.bool_)
        self._tried_ns = 0

    def begun(self) -> Cumulative:
        """The same without any totals."""
        return Cumulative(buckets=bool(self._width), series=self._most)

    def add(self, rows: Rows) -> Shot:
        """Adds the rows, and gives the totals of all series that are new or of late."""
        places = np.array(self.places(rows), dtype=np.intp)
        columns = rows.columns
        values = (
            columns["count"],
            columns["duration.sum"],
            columns["http.request.body.size"],
            columns["http.response.body.size"],
        )
        np.add.at(self._values[:, :4], places, np.stack(values, axis=1).astype(float))
        np.maximum.at(self._values[:, 4], places, columns["duration.max"])
        _add_at(self._le, places, np.asarray(rows.le))
        if self._width and rows.buckets is not None:
            _add_at(self._buckets, places, rows.buckets)
        self._seen_ns[places] = rows.time_ns
        return self._shot(rows.time_ns)

    def _shot(self, now_ns: int) -> Shot:
        places = np.flatnonzero(self._seen_ns > max(now_ns - RECENT_NS, 0))
        values = self._values[places]
        fresh = ~self._told[places]
        self._told[places] = True
        self._values[places, 4] = 0
        return Shot(
            places=places,
            fresh=fresh,
            count=values[:, 0].astype(np.int64),
            sum=values[:, 1],
            request_bytes=values[:, 2].astype(np.int64),
            response_bytes=values[:, 3].astype(np.int64),
            max=values[:, 4],
            le=np.cumsum(self._le[places], axis=1),
            buckets=_at(self._buckets, places),
            start_ns=self._start_ns[places],
        )

    def places(self, rows: Rows) -> list[int]:
        """The series of each row; new ones get a place."""
        told = [one for one in rows.fields if one.label]
        columns = [rows.columns[one.name].tolist() for one in told]
        names = [one.name for one in told]
        sides = (rows.columns["side"] == "client").astype(int).tolist()
        start_ns = rows.time_ns - round(rows.interval * 1e9)
        found: list[int] = []
        for key in zip(sides, *columns, strict=True):
            place = self._place.get(key)
            if place is None:
                if not self._has_room():
                    self._evict(start_ns, found)
                # Not remembered without room: there may be some later.
                place = self._new(key, names, start_ns) if self._has_room() else key[0]
                self._start_ns[place] = self._start_ns[place] or start_ns
            found.append(place)
        return found

    def _has_room(self) -> bool:
        return bool(self._free) or len(self.labels) < self._most + len(SIDES)

    def _new(self, key: tuple[object, ...], names: Sequence[str], start_ns: int) -> int:
        side, labels = int(str(key[0])), _labels(names, key[1:])
        if self._free:
            place = self._free.pop()
            self.labels[place], self.sides[place] = labels, side
        else:
            place = len(self.labels)
            self.labels.append(labels)
            self.sides.append(side)
            if place == len(self._values):
                self._grow()
        self._place[key] = place
        self._start_ns[place] = self._seen_ns[place] = start_ns
        return place

    def _grow(self) -> None:
        more = len(self._values)
        for name in ("_values", "_le", "_buckets", "_start_ns", "_seen_ns", "_told"):
            array = getattr(self, name)
            # What is not used yet is not touched.
            grown = np.zeros((2 * more, *array.shape[1:]), array.dtype)
            grown[:more] = array
            setattr(self, name, grown)

    def _evict(self, now_ns: int, held: Sequence[int]) -> None:
        """Frees the places of idle series but for some; those that come again begin at zero."""
        if now_ns < self._tried_ns + EVICT_NS:
            return
        self._tried_ns = now_ns
        idle = set(np.flatnonzero(self._seen_ns < now_ns - IDLE_NS).tolist()) - {0, 1, *held}
        gone = {key: place for key, place in self._place.items() if place in idle}
        for key, place in gone.items():
            del self._place[key]
            self._free.append(place)
            for name in ("_values", "_le", "_buckets", "_start_ns", "_seen_ns", "_told"):
                getattr(self, name)[place] = 0


class Telling:
    """What is still to be told of some rows: the totals with them, in pieces.

    Rows that are sent again are not added once more, and pieces that were taken do not come again.

    Args:
        totals: to which rows are added.
        at_once: the most series of a piece.
        anew: totals begin anew with each delivery: they are those of its interval.
    """

    def __init__(self, totals: Cumulative, at_once: int, *, anew: bool = False) -> None:
        self.totals = totals
        self._at_once = at_once
        self._anew = anew
        self._mark: tuple[str, int, int] | None = None
        self._left: deque[Shot] = deque()

    def __bool__(self) -> bool:
        return bool(self._left)

    def add(self, rows: Rows) -> bool:
        """Adds the rows; False: it was done before."""
        if rows.mark == self._mark:
            return False
        self._mark = rows.mark
        if self._anew:
            self.totals = self.totals.begun()
        self._left = deque(self.totals.add(rows).pieces(self._at_once))
        return True

    def first(self) -> Shot:
        """The next piece."""
        return self._left[0]

    def done(self) -> None:
        """The next piece is taken, or never will be."""
        self._left.popleft()

    def told_of(self) -> None:
        """The series of the next piece are new no more."""
        shot = self._left[0]
        self._left[0] = replace(shot, fresh=np.zeros_like(shot.fresh))

    def halve(self) -> bool:
        """Makes two of the next piece, which is too large; False: it has one series."""
        shot = self._left[0]
        if len(shot) == 1:
            return False
        self._left.popleft()
        self._left.extendleft(reversed([*shot.pieces((len(shot) + 1) // 2)]))
        return True


def _add_at(totals: Array, places: npt.NDArray[np.intp], values: Array) -> None:
    """Adds rows to their places, of which some may be the same; not all at once.

    Other threads wait for each single step.
    """
    for start in range(0, len(places), _ROWS_AT_ONCE):
        some, more = places[start : start + _ROWS_AT_ONCE], values[start : start + _ROWS_AT_ONCE]
        if len(np.unique(some)) == len(some):
            totals[some] += more.astype(totals.dtype)
        else:
            np.add.at(totals, some, more.astype(totals.dtype))


def _at(totals: Array, places: npt.NDArray[np.intp]) -> Array:
    """A copy of some totals, not made all at once."""
    found = np.empty((len(places), *totals.shape[1:]), totals.dtype)
    for start in range(0, len(places), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        found[some] = totals[places[some]]
    return found


def _labels(names: Sequence[str], values: Sequence[object]) -> Labels:
    return tuple(_told(names, values))


def _told(names: Sequence[str], values: Sequence[object]) -> Iterator[tuple[str, str | int]]:
    for name, value in zip(names, values, strict=True):
        if isinstance(value, (str, int)) and value:
            yield name, value
