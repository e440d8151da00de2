# SPDX-License-Identifier: Apache-2.0
"""Rows as messages of OTLP 1: metrics, logs and traces. https://opentelemetry.io/docs/specs/otlp

Names are those of the semantic conventions; what the conventions have as a part of the resource
(pod, container, service, host ...) is a part of it here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import repeat
from typing import Any

import numpy as np

from podscope import __version__
from podscope import red
from podscope.schema import Array
from podscope.schema import Field
from podscope.schema_metrics import Metric
from podscope.sinks import protobuf
from podscope.sinks.columns import Part
from podscope.sinks.columns import in_rows
from podscope.sinks.columns import is_constant
from podscope.sinks.columns import made_once
from podscope.sinks.columns import rounded
from podscope.sinks.columns import same_last
from podscope.sinks.columns import whole
from podscope.sinks.cumulative import SIDES
from podscope.sinks.cumulative import Cumulative
from podscope.sinks.cumulative import Labels
from podscope.sinks.cumulative import Shot
from podscope.sinks.event_totals import EventShot
from podscope.sinks.event_totals import EventTotals
from podscope.sinks.rows import Rows
from podscope.sinks.trace_metrics import Point

# AggregationTemporality.
DELTA, CUMULATIVE = 1, 2
# Severity numbers of the data model of logs.
_INFO, _ERROR = 9, 17
_SCOPE = protobuf.of_length(1, protobuf.text(1, "podscope") + protobuf.text(2, __version__))
# Attributes of the resource: whose a row is. What else there is is an attribute of the row.
RESOURCE = frozenset(
    {
        "service.name",
        "container.id",
        "process.executable.name",
        "process.pid",
        "podscope.workload.kind",
        "podscope.systemd.unit",
    }
)
_POD = ("k8s.namespace.name", "k8s.pod.name", "k8s.container.name")
# Members that the messages have themselves.
_NO_ATTRIBUTES = frozenset({"time", "interval", "trace_id", "span_id"})
_NO_OF_SPANS = _NO_ATTRIBUTES | {"duration", "side"}
# SpanKind and StatusCode.
_SERVER, _CLIENT = 2, 3
_STATUS_ERROR = 2


def is_of_resource(name: str) -> bool:
    """Whether a field says whose a row is."""
    return name in RESOURCE or (name.startswith("k8s.") and not name.startswith("k8s.service."))


def attribute(field: int, name: str, value: str | int | float) -> bytes:
    """A KeyValue."""
    if isinstance(value, str):
        inner = protobuf.text(1, value)
    elif isinstance(value, int):
        inner = protobuf.number(3, value)
    else:
        inner = protobuf.double(4, value)
    return protobuf.of_length(field, protobuf.text(1, name) + protobuf.of_length(2, inner))


def _identity(find: Callable[[str], str | None], host: str) -> bytes:
    """What tells one instance of a service from others: its container, in words.

    Receivers that keep no other attributes of the resource still keep them apart.
    """
    of_pod = [find(name) or "" for name in _POD]
    alone = [host, find("container.id") or find("process.executable.name") or ""]
    instance = ".".join(filter(None, of_pod if of_pod[1] else alone))
    made = attribute(1, "service.instance.id", instance) if instance else b""
    return made + (attribute(1, "service.namespace", of_pod[0]) if of_pod[0] else b"")


def _resource(attributes: bytes) -> bytes:
    return protobuf.of_length(1, attributes)


# --- rows in the groups of their resources --------------------------------------------------------


def _by_resource(rows: Rows, members: Sequence[Sequence[Part[bytes]]]) -> bytes:
    """Records made of their members, behind the resources and the scope that they belong to.

    Messages of logs and of traces have the same numbers for this: 1 resource, 2 scope, 2 record.
    """
    records = [*map(b"".join, in_rows(same_last(members), len(rows), b""))]
    told = protobuf.with_lengths(protobuf.key(2, 2), records)
    resources, groups = _resources(rows)
    found: list[list[bytes]] = [[] for _ in resources]
    if len(resources) == 1:
        found = [told]
    else:
        for group, record in zip(groups, told, strict=True):
            found[group].append(record)
    return b"".join(
        protobuf.of_length(1, resource + protobuf.of_length(2, _SCOPE + b"".join(some)))
        for resource, some in zip(resources, found, strict=True)
    )


def _resources(rows: Rows) -> tuple[list[bytes], list[int]]:
    """Resources as messages, and for each row which of them it has."""
    mine = [one for one in rows.fields if is_of_resource(one.name)]
    columns = [rows.columns[one.name] for one in mine]
    varying = [column.tolist() for column in columns if not is_constant(column)]
    kinds: dict[tuple[object, ...], int] = {}
    keys = zip(*varying, strict=True) if varying else [()] * len(rows)
    groups = [kinds.setdefault(key, len(kinds)) for key in keys]
    firsts = dict(zip(reversed(groups), range(len(rows) - 1, -1, -1), strict=True))
    return [_resource_of(rows, mine, firsts[group]) for group in kinds.values()], groups


def _resource_of(rows: Rows, mine: Sequence[Field], row: int) -> bytes:
    one = rows.take(slice(row, row + 1))
    told = [attribute(1, name, value) for name, value in rows.resource.items()]
    told.append(whole([_attributes(1, field, _numbers(one, field)) for field in mine], 1, b""))
    values = {name: column.tolist()[0] for name, column in one.columns.items()}
    return _resource(b"".join(told) + _identity(values.get, rows.resource.get("host.name", "")))


def _numbers(rows: Rows, one: Field) -> Array:
    """The field's column; times as nanoseconds."""
    column = rows.columns[one.name]
    return column.astype("M8[ns]").astype(np.int64) if one.type == "time" else column


def _attributes(field: int, one: Field, column: Array) -> Part[bytes]:
    """A KeyValue for each row; empty where the field does not apply."""
    if one.type == "float":
        column = rounded(column)
    if is_constant(column):
        return _attribute(field, one, column[:1].tolist()[0])
    if one.type == "text":
        return _texts(field, one.name, column.tolist())
    if one.type == "float":
        head = _head(field, one.name, _DOUBLE, 8)
        absent = np.isnan(column) | np.isinf(column)
        raws = protobuf.doubles(column)
        return _without([head + raw for raw in raws], absent)
    raws = protobuf.varints(column)
    heads = {size: _head(field, one.name, _INT, size) for size in range(1, 11)}
    made = [heads[len(raw)] + raw for raw in raws]
    return _without(made, column == 0) if one.blank else made


def _attribute(field: int, one: Field, value: Any) -> bytes:
    if value is None or (one.blank and value == 0):
        return b""
    if isinstance(value, float) and not math.isfinite(value):
        return b""
    return attribute(field, one.name, value)


def _without(made: list[bytes], absent: Array) -> list[bytes]:
    for place in np.flatnonzero(absent).tolist():
        made[place] = b""
    return made


def _texts(field: int, name: str, items: list[str | None]) -> list[bytes]:
    """KeyValues of texts; what comes again is made once."""
    told = [item for item in set(items) if item is not None]
    raws = [item.encode("utf-8", "replace") for item in told]
    heads = {size: _head(field, name, _STRING, size) for size in set(map(len, raws))}
    made: dict[str | None, bytes] = {None: b""}
    made |= {item: heads[len(raw)] + raw for item, raw in zip(told, raws, strict=True)}
    return list(map(made.__getitem__, items))


# Keys of the values of an AnyValue.
_STRING, _INT, _DOUBLE = protobuf.key(1, 2), protobuf.key(3, 0), protobuf.key(4, 1)


def _head(field: int, name: str, kind: bytes, size: int) -> bytes:
    """What stands before the value of a KeyValue whose value has so many bytes."""
    inner = kind + (protobuf.varint(size) if kind == _STRING else b"")
    told = protobuf.text(1, name) + protobuf.key(2, 2) + protobuf.varint(len(inner) + size) + inner
    return protobuf.key(field, 2) + protobuf.varint(len(told) + size) + told


def _others(rows: Rows, hidden: frozenset[str]) -> list[Field]:
    """Fields that are attributes of the record itself."""
    return [one for one in rows.fields if not is_of_resource(one.name) and one.name not in hidden]


# --- logs -------------------------------------------------------------------------------------


def logs(rows: Rows) -> bytes:
    """An ExportLogsServiceRequest: a record for each row, in the groups of their resources."""
    times = rows.columns["time"].astype("M8[ns]").astype(np.int64)
    members: list[Sequence[Part[bytes]]] = [
        [protobuf.key(1, 1), protobuf.fixed64s(times)],
        [protobuf.fixed64(11, rows.time_ns) + protobuf.text(12, f"podscope.{rows.kind}")],
        [_severities(rows)],
        [_bodies(rows)],
        *([_attributes(6, one, _numbers(rows, one))] for one in _others(rows, _NO_ATTRIBUTES)),
        _id(rows, "trace_id", 9, 16),
        _id(rows, "span_id", 10, 8),
    ]
    return _by_resource(rows, members)


def _failed(rows: Rows) -> Array:
    """Which rows are errors, shape (n,)."""
    errors = rows.columns.get("error.type")
    nothing = np.zeros(len(rows), dtype=np.bool_)
    return nothing if errors is None else np.asarray(errors != np.array(None), dtype=np.bool_)


def _severities(rows: Rows) -> Part[bytes]:
    told = [
        protobuf.number(2, number) + protobuf.text(3, text)
        for number, text in ((_INFO, "INFO"), (_ERROR, "ERROR"))
    ]
    failed = _failed(rows)
    return told[0] if not failed.any() else [told[bad] for bad in failed.tolist()]


def _bodies(rows: Rows) -> Part[bytes]:
    """What people read: ``GET /items/7 200``; the kind, where there is no such thing."""
    names = ("http.request.method", "url.path", "http.response.status_code")
    if not all(name in rows.columns for name in names):
        return protobuf.of_length(5, protobuf.text(1, rows.kind))
    columns = [
        made_once(rows.columns[name].tolist(), lambda item: f" {item}" if item else "")
        for name in names
    ]
    texts = map("".join, zip(*columns, strict=True))
    raws = [text[1:].encode("utf-8", "replace") for text in texts]
    inner = protobuf.with_lengths(protobuf.key(1, 2), raws)
    return protobuf.with_lengths(protobuf.key(5, 2), inner)


def _id(rows: Rows, name: str, field: int, size: int) -> Sequence[Part[bytes]]:
    """An id of each record, which is written in hex; empty where there is none."""
    items: list[Any] = rows.columns[name].tolist() if name in rows.columns else [None]
    if items.count(None) == len(items):
        return []
    head = protobuf.key(field, 2) + protobuf.varint(size)
    if None in items:
        return [made_once(items, lambda item: head + bytes.fromhex(item) if item else b"")]
    raw = bytes.fromhex("".join(items))
    return [head, [raw[at : at + size] for at in range(0, len(raw), size)]]


# --- traces -----------------------------------------------------------------------------------


def spans(rows: Rows) -> bytes:
    """An ExportTraceServiceRequest: a span for each request that carries a trace; empty: none do.

    Its parent is the span of the request's ``traceparent``. Its id is made from that of the row,
    so that what is sent again is the same span.
    """
    traced = np.asarray(rows.columns["trace_id"] != np.array(None), dtype=np.bool_)
    if not traced.any():
        return b""
    rows = rows.take(traced)
    starts = rows.columns["time"].astype("M8[ns]").astype(np.int64)
    ends = starts + np.rint(rows.columns["duration"] * 1e9).astype(np.int64)
    kinds = {"server": protobuf.number(6, _SERVER), "client": protobuf.number(6, _CLIENT)}
    status = protobuf.of_length(15, protobuf.number(3, _STATUS_ERROR))
    members: list[Sequence[Part[bytes]]] = [
        _id(rows, "trace_id", 1, 16),
        [protobuf.key(2, 2) + protobuf.varint(8), _span_ids(rows)],
        _id(rows, "span_id", 4, 8),
        [_span_names(rows)],
        [made_once(rows.columns["side"].tolist(), lambda side: kinds.get(side, b""))],
        [protobuf.key(7, 1), protobuf.fixed64s(starts)],
        [protobuf.key(8, 1), protobuf.fixed64s(ends)],
        *([_attributes(9, one, _numbers(rows, one))] for one in _others(rows, _NO_OF_SPANS)),
        [[status if bad else b"" for bad in _failed(rows).tolist()]],
    ]
    return _by_resource(rows, members)


def _span_ids(rows: Rows) -> list[bytes]:
    return [blake2b(row.encode(), digest_size=8).digest() for row in rows.row_ids]


def _span_names(rows: Rows) -> list[bytes]:
    """``GET /items/*``, or the method alone, as the conventions say."""
    methods = rows.columns["http.request.method"].tolist()
    routes = rows.columns["http.route"].tolist()
    return made_once([*zip(methods, routes, strict=True)], _span_name)


def _span_name(told: tuple[str | None, str | None]) -> bytes:
    method, route = told
    # _OTHER is no name of a method to people.
    words = ("HTTP" if method in (None, "_OTHER") else method, route)
    return protobuf.text(5, " ".join(filter(None, words)))


# --- metrics ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Described:
    """What a series is, as bytes.

    Attributes:
        owner: attributes of its resource, beside what all rows have in common.
        of_histogram, of_number: its own attributes, as parts of points of either kind.
    """

    owner: bytes
    of_histogram: bytes
    of_number: bytes


class Descriptions:
    """Makes them once.

    Args:
        host: where no container is known, series are of this host.
        most: series that are remembered.
        more: what all series but those of the overflow have, too.
    """

    def __init__(self, host: str, most: int, more: Labels = ()) -> None:
        self._host = host
        self._most = most
        self._more = more
        self._known: dict[Labels, Described] = {}

    def of(self, labels: Labels) -> Described:
        """That of a series."""
        found = self._known.get(labels)
        if found is None:
            if len(self._known) >= self._most:
                self._known.clear()
            found = self._known[labels] = self._made(labels)
        return found

    def _made(self, labels: Labels) -> Described:
        known = {name: str(value) for name, value in labels}
        mine = b"".join(attribute(1, *one) for one in labels if is_of_resource(one[0]))
        others = tuple(one for one in labels if not is_of_resource(one[0]))
        others += self._more if "otel.metric.overflow" not in known else ()
        of_histogram, of_number = (
            b"".join(attribute(field, name, value) for name, value in others) for field in (1, 7)
        )
        return Described(mine + _identity(known.get, self._host), of_histogram, of_number)


def metrics(
    shot: Shot,
    totals: Cumulative,
    rows: Rows,
    descriptions: Descriptions,
    *,
    temporality: int = CUMULATIVE,
) -> bytes:
    """An ExportMetricsServiceRequest of totals, in the groups of their resources.

    Args:
        shot: some of the totals.
        totals: they say what each series is.
        rows: the last that were added: their time, and what all have in common.
        descriptions: of the series.
        temporality: DELTA: the totals are those of the interval of these rows.
    """
    common = b"".join(attribute(1, name, value) for name, value in rows.resource.items())
    places = shot.places.tolist()
    told = [descriptions.of(totals.labels[place]) for place in places]
    # StartTimeUnixNano and TimeUnixNano have the same numbers in points of both kinds.
    now = protobuf.fixed64(3, rows.time_ns)
    times = [protobuf.key(2, 1) + start + now for start in protobuf.fixed64s(shot.start_ns)]
    values = (
        _histograms(shot, with_max=temporality == DELTA),
        [protobuf.key(6, 1) + value for value in protobuf.fixed64s(shot.request_bytes)],
        [protobuf.key(6, 1) + value for value in protobuf.fixed64s(shot.response_bytes)],
    )
    points: dict[bytes, dict[int, tuple[list[bytes], ...]]] = {}
    for place, one, time, *some in zip(places, told, times, *values, strict=True):
        lists = points.setdefault(one.owner, {}).setdefault(totals.sides[place], ([], [], []))
        lists[0].append(one.of_histogram + time + some[0])
        lists[1].append(one.of_number + time + some[1])
        lists[2].append(one.of_number + time + some[2])
    parts = (
        (_resource(common + owner), _SCOPE + b"".join(_metrics(by_side, temporality)))
        for owner, by_side in points.items()
    )
    return b"".join(
        protobuf.of_length(1, owner + protobuf.of_length(2, some)) for owner, some in parts
    )


def _metrics(by_side: Mapping[int, tuple[list[bytes], ...]], temporality: int) -> Iterator[bytes]:
    kind = protobuf.number(2, temporality)
    for side, lists in by_side.items():
        name = SIDES[side]
        durations, requests, responses = (
            b"".join(protobuf.with_lengths(protobuf.key(1, 2), some)) for some in lists
        )
        yield _metric(
            f"http.{name}.request.duration",
            f"Duration of HTTP {name} requests.",
            "s",
            protobuf.of_length(10, durations + kind),
        )
        for what, points in (("request", requests), ("response", responses)):
            yield _metric(
                f"podscope.http.{name}.{what}.body.bytes",
                f"Bytes of {what} bodies of HTTP {name} requests.",
                "By",
                protobuf.of_length(7, points + kind + protobuf.number(3, 1)),
            )


def _metric(name: str, text: str, unit: str, data: bytes) -> bytes:
    told = protobuf.text(1, name) + protobuf.text(2, text) + protobuf.text(3, unit)
    return protobuf.of_length(2, told + data)


def event_metrics(
    shot: EventShot,
    totals: EventTotals,
    rows: Rows,
    descriptions: Descriptions,
    *,
    temporality: int = CUMULATIVE,
) -> bytes:
    """An ExportMetricsServiceRequest of the metrics of one kind of rows beside HTTP.

    Args:
        shot: the totals of some of its series.
        totals: whose metrics and labels they have.
        rows: the last that were added: their time, and what all have in common.
        descriptions: of the series.
        temporality: DELTA: the totals are those of the interval of these rows.
    """
    common = b"".join(attribute(1, name, value) for name, value in rows.resource.items())
    points: dict[bytes, list[list[bytes]]] = {}
    for row, place in enumerate(shot.places.tolist()):
        one = descriptions.of(totals.labels[place])
        some = points.setdefault(one.owner, [[] for _ in totals.metrics])
        head = protobuf.fixed64(2, int(shot.start_ns[row])) + protobuf.fixed64(3, rows.time_ns)
        for column, metric in enumerate(totals.metrics):
            if not math.isnan(shot.values[row, column]):
                some[column].append(_point(shot, (row, column), metric.type, one, head))
    return b"".join(
        protobuf.of_length(
            1,
            _resource(common + owner)
            + protobuf.of_length(
                2, _SCOPE + b"".join(map(_of_points, totals.metrics, some, repeat(temporality)))
            ),
        )
        for owner, some in points.items()
    )


def point_metrics(
    some: Sequence[Point],
    rows: Rows,
    descriptions: Descriptions,
    *,
    temporality: int = CUMULATIVE,
) -> bytes:
    """An ExportMetricsServiceRequest of metrics of traces.

    Args:
        some: their series.
        rows: of what all rows have in common.
        descriptions: of the series.
        temporality: DELTA: the points are what came since those before.
    """
    common = b"".join(attribute(1, name, value) for name, value in rows.resource.items())
    found: dict[bytes, dict[Metric, list[bytes]]] = {}
    for one in some:
        of_owner = found.setdefault(descriptions.of(one.labels).owner, {})
        of_owner.setdefault(one.metric, []).append(_trace_point(one))
    kind = protobuf.number(2, temporality)
    return b"".join(
        protobuf.of_length(
            1,
            _resource(common + owner)
            + protobuf.of_length(
                2, _SCOPE + b"".join(_trace_metric(*one, kind) for one in of_owner.items())
            ),
        )
        for owner, of_owner in found.items()
    )


def _trace_point(one: Point) -> bytes:
    is_histogram = one.metric.type == "histogram"
    told = b"".join(
        attribute(9 if is_histogram else 7, name, value)
        for name, value in one.labels
        if not is_of_resource(name)
    )
    told += protobuf.fixed64(2, one.start_ns) + protobuf.fixed64(3, one.time_ns)
    if one.metric.type == "counter" and abs(one.number) < 1 << 63:
        told += protobuf.key(6, 1) + int(one.number).to_bytes(8, "little", signed=True)
    elif not is_histogram:
        told += protobuf.double(4, one.number)
    else:
        told += protobuf.fixed64(4, one.count)
        told += b"" if math.isnan(one.number) else protobuf.double(5, one.number)
        told += protobuf.of_length(6, np.array(one.counts, "<u8").tobytes())
        told += protobuf.of_length(7, np.array(one.bounds, "<f8").tobytes())
    return protobuf.of_length(1, told)


def _trace_metric(metric: Metric, points: Sequence[bytes], kind: bytes) -> bytes:
    some = b"".join(points)
    data = {
        "gauge": (5, some),
        "counter": (7, some + kind + protobuf.number(3, 1)),
        "histogram": (9, some + kind),
    }
    return _metric(metric.name, metric.text, metric.unit, protobuf.of_length(*data[metric.type]))


def _point(shot: EventShot, at: tuple[int, int], kind: str, one: Described, head: bytes) -> bytes:
    row, column = at
    number = float(shot.values[row, column])
    if kind == "histogram":
        count = int(shot.le[row, -1])
        told = protobuf.fixed64(4, count) + protobuf.double(5, number) + _SCALE
        used = np.flatnonzero(shot.buckets[row])
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, -1)
        buckets = _buckets(first, shot.buckets[row, first : last + 1])
        return protobuf.of_length(1, one.of_histogram + head + told + buckets)
    value = (
        protobuf.double(4, number)
        if kind == "gauge"
        else protobuf.key(6, 1) + int(number).to_bytes(8, "little", signed=True)
    )
    return protobuf.of_length(1, one.of_number + head + value)


def _buckets(first: int, counts: Array) -> bytes:
    """The positive buckets of an exponential histogram from its first that is used."""
    told = protobuf.signed(1, red.OFFSET + first) + protobuf.packed(2, counts)
    return protobuf.of_length(8, told)


def _of_points(metric: Metric, points: Sequence[bytes], temporality: int) -> bytes:
    """A Metric; nothing where no series has a value."""
    if not points:
        return b""
    kind = protobuf.number(2, temporality)
    data = {
        "gauge": lambda all_: protobuf.of_length(5, all_),
        "counter": lambda all_: protobuf.of_length(7, all_ + kind + protobuf.number(3, 1)),
        "histogram": lambda all_: protobuf.of_length(10, all_ + kind),
    }
    return _metric(metric.name, metric.text, metric.unit, data[metric.type](b"".join(points)))


def _histograms(shot: Shot, *, with_max: bool) -> list[bytes]:
    """Values of ExponentialHistogramDataPoints of scale 3."""
    used = shot.buckets != 0
    firsts = np.argmax(used, axis=1).tolist()
    # Behind the last that is used; a histogram without any has none.
    ends = np.where(used.any(axis=1), red.BUCKETS - np.argmax(used[:, ::-1], axis=1), 0).tolist()
    counts, sums = protobuf.fixed64s(shot.count), protobuf.doubles(shot.sum)
    longest = [_MAX + raw for raw in protobuf.doubles(shot.max)] if with_max else [b""] * len(shot)
    found = []
    for row, parts in enumerate(zip(counts, sums, longest, strict=True)):
        some = shot.buckets[row, firsts[row] : ends[row]]
        told = _buckets(firsts[row], some) + parts[2]
        found.append(_COUNT + parts[0] + _SUM + parts[1] + _SCALE + told)
    return found


_COUNT, _SUM, _MAX = protobuf.key(4, 1), protobuf.key(5, 1), protobuf.key(13, 1)
_SCALE = protobuf.signed(6, red.SCALE)
