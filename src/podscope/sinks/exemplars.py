# SPDX-License-Identifier: Apache-2.0
"""Requests that carry a trace id as examples of what a histogram counts."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from podscope import red
from podscope import schema
from podscope.sinks.rows import Rows

# Series whose examples wait.
MOST = 10_000

_Key = tuple[object, ...]


@dataclass(frozen=True)
class Exemplar:
    """One request.

    Attributes:
        trace_id, span_id: of its ``traceparent``, hex.
        seconds: how long it took.
        milliseconds: Unix time of its end.
    """

    trace_id: str
    span_id: str
    seconds: float
    milliseconds: int


# Of one series, by the number of the classic bucket.
OfSeries = Mapping[int, Exemplar]


class Exemplars:
    """Keeps the newest request of each series and classic bucket until its series is told.

    Args:
        by: dimensions that tell the series apart.
    """

    def __init__(self, by: Sequence[str]) -> None:
        self._names = _names(by)
        self._kept: dict[_Key, dict[int, Exemplar]] = {}
        self._waited: set[_Key] = set()
        # Receivers refuse what is older than what they have.
        self._told: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._kept)

    def note(self, rows: Rows) -> None:
        """Keeps the requests that carry a trace id; rows of kind ``request``."""
        traced = np.flatnonzero(rows.columns["trace_id"] != np.array(None))
        if not len(traced):
            return
        some = rows.take(traced)
        durations = some.columns["duration"]
        buckets = np.searchsorted(red.CLASSIC_BOUNDS, durations, side="left").tolist()
        began = some.columns["time"].astype("M8[ns]").astype(np.int64)
        ends = (began + np.rint(durations * 1e9).astype(np.int64)) // 10**6
        values = zip(
            some.columns["trace_id"].tolist(),
            some.columns["span_id"].tolist(),
            durations.tolist(),
            ends.tolist(),
            strict=True,
        )
        for key, bucket, told in zip(_keys(some, self._names), buckets, values, strict=True):
            self._keep(key, bucket, Exemplar(told[0], told[1] or "", told[2], told[3]))

    def _keep(self, key: _Key, bucket: int, one: Exemplar) -> None:
        if key not in self._kept and len(self._kept) >= MOST:
            return
        kept = self._kept.setdefault(key, {})
        before = kept.get(bucket)
        if before is None or one.milliseconds >= before.milliseconds:
            kept[bucket] = one

    def of(self, rows: Rows, places: Iterable[int]) -> dict[int, OfSeries]:
        """Those of rows of kind ``http``, by the place of their series.

        The others are kept once more: a request may come before it is counted.

        Args:
            rows: of kind ``http``.
            places: of each row.
        """
        kept = self._kept
        found: dict[int, OfSeries] = {}
        for place, key in zip(places, _keys(rows, self._names), strict=True):
            if key not in kept:
                continue
            since = self._told.get(place, 0)
            fresh = {n: one for n, one in kept[key].items() if one.milliseconds > since}
            if fresh:
                found[place] = fresh
                self._told[place] = max(one.milliseconds for one in fresh.values())
            del kept[key]
        self._kept = {key: some for key, some in kept.items() if key not in self._waited}
        self._waited = set(self._kept)
        return found


def _names(by: Sequence[str]) -> tuple[str, ...]:
    """The columns that say of which series a request is."""
    told = [one.name for one in schema.HTTP if one.label and one.dimension in by]
    # Where containers are not told apart, the series of a workload name none.
    hidden = () if "container" in by else ("container.id",)
    return ("side", *(name for name in told if name not in hidden))


def _keys(rows: Rows, names: Sequence[str]) -> Iterable[_Key]:
    empty = [None] * len(rows)
    return zip(
        *(rows.columns[name].tolist() if name in rows.columns else empty for name in names),
        strict=True,
    )
