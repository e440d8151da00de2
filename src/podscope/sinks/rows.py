# SPDX-License-Identifier: Apache-2.0
"""What a sink gets: columns with their fields, of whatever kind."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import TYPE_CHECKING
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from podscope import merge
from podscope import red
from podscope import schema
from podscope import schema_events
from podscope import schema_metrics
from podscope import schema_trace
from podscope import wire
from podscope.schema import Array
from podscope.schema import Field
from podscope.schema import View

if TYPE_CHECKING:
    from podscope.batch import Batch

# By what rows of kind http are told apart, unless a sink is set otherwise. No process ids and no
# addresses: they make series without end.
BY = tuple(name for name in schema.PLAIN if name not in ("pid", "address"))
# Rows of what stands behind Services, apart from those of kind http: a pod can be behind several.
SERVICE = "service"
BY_SERVICE = ("service", "port", "method", "route", "status", "version")
PORTION = 5000
_DTYPES = {"int": "<i8", "float": "<f8", "time": "<M8[ns]"}
_ABSENT: Mapping[str, Any] = {
    "text": None,
    "int": 0,
    "float": np.nan,
    "time": np.datetime64(0, "ns"),
}
# Ids must differ between processes and between runs.
_RUN = os.urandom(6).hex()
_NUMBERS = itertools.count()


class RowsError(ValueError):
    """Bytes that are no rows of this version."""


@dataclass(frozen=True)
class Rows:
    """Rows of one kind, as columns.

    Attributes:
        kind: as ``http``, ``request``, ``oom``.
        fields: one for each column: name, type, unit, and what zero means.
        columns: arrays of shape (n,), by name: texts are objects with None where there is none,
            times ``datetime64[ns]`` in UTC, numbers int64 or float64.
        time_ns: when the last interval ended, Unix nanoseconds.
        interval: length of the interval in seconds; 0 for single events.
        resource: what all rows have in common, as ``host.name``.
        id: of the delivery that the rows are of; parts of it keep it.
        numbers: place of each row in its delivery, shape (n,); None: 0, 1, 2 ...
        le: of sums of durations: counts at ``red.CLASSIC_BOUNDS`` and above, not cumulative,
            shape (n, 15).
        buckets: the same, exponential histograms, shape (n, 256); see ``red.quantiles``.
    """

    kind: str
    fields: tuple[Field, ...]
    columns: Mapping[str, Array]
    time_ns: int
    interval: float = 0.0
    resource: Mapping[str, str] = field(default_factory=dict)
    id: str = field(default_factory=lambda: f"{_RUN}-{next(_NUMBERS):x}")
    le: Array | None = None
    buckets: Array | None = None
    numbers: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def mark(self) -> tuple[str, int, int]:
        """The same for the same rows, also if they come from a disk; not for a part of them."""
        first = 0 if self.numbers is None or not len(self) else int(self.numbers[0])
        return self.id, first, len(self)

    @property
    def places(self) -> list[int]:
        """The place of each row in its delivery."""
        found: list[int] = list(range(len(self))) if self.numbers is None else self.numbers.tolist()
        return found

    @property
    def row_ids(self) -> list[str]:
        """An id of each row: no other row has it, and the same one sent once more does."""
        return [f"{self.id}-{place}" for place in self.places]

    def take(self, index: Array | slice) -> Rows:
        """The rows at ``index`` (positions, a mask or a slice)."""
        numbers = np.arange(len(self)) if self.numbers is None else self.numbers
        return replace(
            self,
            columns={name: column[index] for name, column in self.columns.items()},
            numbers=numbers[index],
            le=None if self.le is None else self.le[index],
            buckets=None if self.buckets is None else self.buckets[index],
        )

    def pieces(self, most: int) -> Iterator[Rows]:
        """The same rows, at most so many at once."""
        if len(self) <= most:
            yield self
            return
        for start in range(0, len(self), most):
            yield self.take(slice(start, start + most))

    def with_resource(self) -> tuple[tuple[Field, ...], dict[str, Array]]:
        """Fields and columns, and behind them what all rows have in common as columns."""
        columns = dict(self.columns)
        more = []
        for name, text in self.resource.items():
            if name not in columns:
                columns[name] = np.full(len(self), text, dtype=object)
                more.append(_field(name, "text", "", True, False))
        return (*self.fields, *more), columns

    def absent(self, one: Field) -> npt.NDArray[np.bool_]:
        """Where a field does not apply, shape (n,)."""
        column = self.columns[one.name]
        if one.type == "text":
            return np.asarray(column == np.array(None), dtype=np.bool_)
        if one.type == "float":
            return np.asarray(np.isnan(column), dtype=np.bool_)
        zero = column == 0 if one.blank else np.zeros(len(column))
        return np.asarray(zero, dtype=np.bool_)


def of_batches(
    batches: Sequence[Batch],
    by: Sequence[str] = BY,
    resource: Mapping[str, str] | None = None,
    also_by: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Rows]:
    """The rows of batches that follow each other, by their kinds; none for empty ones.

    Single events come at most PORTION at once, since other threads wait while columns are read.
    Rows of kind http that are the same by ``by`` are added up over all the batches, exactly. They
    come once more, under a name of their own, for each of ``also_by``; under SERVICE only those
    that stand behind a Service. Rows of other sums are by container (``merge.merged``).
    """
    for kind in dict.fromkeys(batch.kind for batch in batches):
        of_kind = [batch for batch in batches if batch.kind == kind]
        filled = [batch for batch in of_kind if len(batch)]
        if not filled:
            continue
        if kind == schema_trace.MAPS:
            # Each has all that those before it had.
            for part in _entries(filled[-1]):
                yield replace(_plain(part), resource=resource or {})
            continue
        if kind in merge.RULES:
            yield replace(_sums(merge.merged(of_kind)), resource=resource or {})
            continue
        if kind != "http":
            for some in _portions(filled):
                yield replace(_joined([_plain(one) for one in some]), resource=resource or {})
            continue
        for name, names in {"http": by, **(also_by or {})}.items():
            made = replace(_http(of_kind, names), kind=name, resource=resource or {})
            if name == SERVICE:
                made = made.take(made.columns["k8s.service.name"] != np.array(None))
            if name == "http" or len(made):
                yield made


def _portions(batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    """The same rows, at most PORTION at once."""
    some: list[Batch] = []
    room = PORTION
    for batch in batches:
        start = 0
        while start < len(batch):
            part = batch.where(slice(start, start + room))
            some.append(part)
            start += len(part)
            room -= len(part)
            if not room:
                yield some
                some, room = [], PORTION
    if some:
        yield some


def _entries(batch: Batch) -> Iterator[Batch]:
    """The same rows, about PORTION at once, with the buckets of a histogram together."""
    start = 0
    entries = batch.rows["entry"]
    ends = np.flatnonzero(np.diff(entries) != 0) + 1
    while start < len(batch):
        end = ends[ends >= start + PORTION]
        stop = int(end[0]) if len(end) else len(batch)
        yield batch.where(np.arange(start, stop))
        start = stop


def _http(batches: Sequence[Batch], by: Sequence[str]) -> Rows:
    whole = wire.together(batches)
    groups = red.group(whole, by)
    interval = sum(batch.interval for batch in batches)
    view = groups.view(whole.time_ns, interval)
    return Rows(
        kind="http",
        fields=schema.told(schema.HTTP, groups.by),
        columns=schema.read(schema.HTTP, view, groups.by),
        time_ns=whole.time_ns,
        interval=interval,
        le=groups.le,
        buckets=groups.buckets,
    )


def _plain(batch: Batch) -> Rows:
    told = batch.told()
    return Rows(
        kind=batch.kind,
        fields=tuple(one for one, _ in told),
        columns={one.name: column for one, column in told},
        time_ns=batch.time_ns,
        interval=batch.interval,
    )


def _sums(batch: Batch) -> Rows:
    return replace(_plain(batch), le=_member(batch, "le"), buckets=_member(batch, "buckets"))


def of_metrics(batch: Batch) -> Rows:
    """Rows of a batch of one of the kinds in ``METRICS``, with what their metrics need alone."""
    whole = merge.merged([batch])
    fields = [one for one in whole.fields if schema_metrics.is_label(whole.kind, one)]
    needed = {one.column for one in schema_metrics.METRICS[whole.kind]}
    needed |= {one.name for one in fields} | {"podscope.listen.closed"}
    columns = schema_events.columns(whole, needed)
    return Rows(
        kind=whole.kind,
        fields=tuple(one for one in whole.fields if one.name in columns),
        columns=columns,
        time_ns=whole.time_ns,
        interval=whole.interval,
        le=_member(whole, "le"),
    )


def of_losses(lost: Mapping[str, int], time_ns: int, resource: Mapping[str, str]) -> Rows:
    """A row of kind ``lost`` for each reason for which something was lost."""
    told = {reason: count for reason, count in lost.items() if count}
    reasons = np.empty(len(told), dtype=object)
    reasons[:] = [*told]
    columns = {
        "time": np.full(len(told), time_ns).astype("M8[ns]"),
        "reason": reasons,
        "count": np.array([*told.values()], np.int64),
    }
    return Rows("lost", schema_metrics.LOST, columns, time_ns, resource=resource)


def _member(batch: Batch, name: str) -> Array | None:
    """A histogram of the records; None if they have none."""
    return batch.rows[name] if name in (batch.rows.dtype.names or ()) else None


def _joined(parts: Sequence[Rows]) -> Rows:
    """The rows one after the other; where some have fields that others lack, these are absent."""
    if len(parts) == 1:
        return parts[0]
    fields = tuple({one.name: one for part in parts for one in part.fields}.values())
    columns = {one.name: np.concatenate([_column(part, one) for part in parts]) for one in fields}
    return replace(
        parts[0],
        fields=fields,
        columns=columns,
        time_ns=parts[-1].time_ns,
        interval=sum(part.interval for part in parts),
    )


def _column(part: Rows, one: Field) -> Array:
    if one.name in part.columns:
        return part.columns[one.name]
    return np.full(len(part), _ABSENT[one.type], dtype=_DTYPES.get(one.type, object))


# --- as bytes, for a queue on disk ------------------------------------------------------------


class _Packed(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Rows as they are written; a column is its texts, or its numbers as bytes."""

    version: int
    kind: str
    id: str
    time_ns: int
    interval: float
    resource: dict[str, str]
    fields: list[tuple[str, str, str, bool, bool]]
    columns: list[list[str | None] | bytes]
    count: int
    le: bytes
    buckets: bytes
    numbers: bytes


_VERSION = 1
_decoder = msgspec.msgpack.Decoder(_Packed)


def packed(rows: Rows) -> bytes:
    """The rows as bytes, compressed."""
    told = _Packed(
        version=_VERSION,
        kind=rows.kind,
        id=rows.id,
        time_ns=rows.time_ns,
        interval=rows.interval,
        resource=dict(rows.resource),
        fields=[(one.name, one.type, one.unit, one.label, one.blank) for one in rows.fields],
        columns=[_packed_column(one, rows.columns[one.name]) for one in rows.fields],
        count=len(rows),
        le=b"" if rows.le is None else rows.le.astype("<u8").tobytes(),
        buckets=b"" if rows.buckets is None else rows.buckets.astype("<u8").tobytes(),
        numbers=b"" if rows.numbers is None else rows.numbers.astype("<i8").tobytes(),
    )
    return zlib.compress(msgspec.msgpack.encode(told), 1)


def _packed_column(one: Field, column: Array) -> list[str | None] | bytes:
    if one.type == "text":
        texts: list[str | None] = column.tolist()
        return texts
    return column.astype(_DTYPES[one.type]).tobytes()


def unpacked(raw: bytes) -> Rows:
    """The rows of ``packed``; raises RowsError if these are none of this version."""
    try:
        told = _decoder.decode(zlib.decompress(raw))
        if told.version != _VERSION:
            raise RowsError(f"written by another version ({told.version})")
        fields = tuple(_field(*parts) for parts in told.fields)
        columns = {
            one.name: _unpacked_column(one, column, told.count)
            for one, column in zip(fields, told.columns, strict=True)
        }
        return Rows(
            kind=told.kind,
            fields=fields,
            columns=columns,
            time_ns=told.time_ns,
            interval=told.interval,
            resource=told.resource,
            id=told.id,
            le=_histogram(told.le, told.count),
            buckets=_histogram(told.buckets, told.count),
            numbers=np.frombuffer(told.numbers, "<i8") if told.numbers else None,
        )
    except (msgspec.MsgspecError, zlib.error, ValueError) as error:
        raise RowsError(str(error)) from None


def _field(name: str, kind: str, unit: str, label: bool, blank: bool) -> Field:
    return Field(name, "", kind, unit, "", label, blank, _unread, "")


def _unread(_: View) -> Array:
    raise TypeError("a field of rows that were read already")


def _unpacked_column(one: Field, column: list[str | None] | bytes, count: int) -> Array:
    if isinstance(column, bytes):
        return np.frombuffer(column, _DTYPES[one.type], count)
    made = np.empty(count, dtype=object)
    made[:] = column
    return made


def _histogram(raw: bytes, count: int) -> Array | None:
    return np.frombuffer(raw, "<u8").reshape(count, -1) if raw else None
