# SPDX-License-Identifier: Apache-2.0
"""Rows as messages of OTLP 1: metrics and logs. https://opentelemetry.io/docs/specs/otlp

Names are those of the semantic conventions; what the conventions have as a part of the resource
(pod, container, service, host ...) is a part of it here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from functools import partial

import numpy as np

from podscope import __version__
from podscope import red
from podscope.schema import Array
from podscope.schema import Field
from podscope.schema_metrics import Metric
from podscope.sinks import protobuf
from podscope.sinks.columns import apart
from podscope.sinks.columns import joined
from podscope.sinks.cumulative import SIDES
from podscope.sinks.cumulative import Labels
from podscope.sinks.cumulative import Shot
from podscope.sinks.event_totals import EventShot
from podscope.sinks.event_totals import EventTotals
from podscope.sinks.rows import Rows

CUMULATIVE = 2
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


def _identities(rows: Rows) -> list[bytes]:
    """`_identity` of each row."""
    names = (*_POD, "container.id", "process.executable.name")
    empty = [None] * len(rows)
    columns = [rows.columns[name].tolist() if name in rows.columns else empty for name in names]
    host = rows.resource.get("host.name", "")
    known: dict[tuple[str | None, ...], bytes] = {}
    for row in zip(*columns, strict=True):
        if row not in known:
            known[row] = _identity(dict(zip(names, row, strict=True)).get, host)
    return [known[row] for row in zip(*columns, strict=True)]


def _resource(attributes: bytes) -> bytes:
    return protobuf.of_length(1, attributes)


# --- logs -------------------------------------------------------------------------------------


def logs(rows: Rows) -> bytes:
    """An ExportLogsServiceRequest: a record for each row, in the groups of their resources."""
    mine = [one for one in rows.fields if is_of_resource(one.name)]
    others = [one for one in rows.fields if one not in mine and one.name not in _NO_ATTRIBUTES]
    owner, owners = apart([(_numbers(rows, one), partial(_attributes, 1, one)) for one in mine])
    fixed, varying = apart([(_numbers(rows, one), partial(_attributes, 6, one)) for one in others])
    common = [attribute(1, name, value) for name, value in rows.resource.items()]
    head = b"".join((*common, *owner))
    told = joined([_heads(rows), *varying, _ids(rows)], len(rows), b"")
    end = b"".join(fixed)
    records: dict[bytes, list[bytes]] = {}
    whose = joined([*owners, _identities(rows)], len(rows), b"")
    for one, record in zip(whose, told, strict=True):
        records.setdefault(one, []).append(protobuf.of_length(2, record + end))
    return b"".join(
        protobuf.of_length(
            1, _resource(head + one) + protobuf.of_length(2, _SCOPE + b"".join(some))
        )
        for one, some in records.items()
    )


def _numbers(rows: Rows, one: Field) -> Array:
    """The field's column; times as nanoseconds."""
    column = rows.columns[one.name]
    return column.astype("M8[ns]").astype(np.int64) if one.type == "time" else column


def _heads(rows: Rows) -> list[bytes]:
    """Times, severity, body and event name of each record."""
    times = rows.columns["time"].astype("M8[ns]").astype(np.int64).tolist()
    errors = rows.columns.get("error.type")
    failed = [False] * len(rows) if errors is None else (errors != np.array(None)).tolist()
    name = "podscope." + rows.kind
    severity = {
        bad: protobuf.number(2, _ERROR if bad else _INFO)
        + protobuf.text(3, "ERROR" if bad else "INFO")
        for bad in (False, True)
    }
    observed = protobuf.fixed64(11, rows.time_ns)
    tail = protobuf.text(12, name)
    bodies = _bodies(rows)
    return [
        protobuf.fixed64(1, time) + observed + severity[bad] + body + tail
        for time, bad, body in zip(times, failed, bodies, strict=True)
    ]


def _bodies(rows: Rows) -> list[bytes]:
    """What people read: ``GET /items/7 200``; the kind, where there is no such thing."""
    names = ("http.request.method", "url.path", "http.response.status_code")
    if not all(name in rows.columns for name in names):
        return [_body(rows.kind)] * len(rows)
    columns = [rows.columns[name].tolist() for name in names]
    return [
        _body(" ".join(str(part) for part in row if part)) for row in zip(*columns, strict=True)
    ]


def _body(text: str) -> bytes:
    return protobuf.of_length(5, protobuf.text(1, text))


def _ids(rows: Rows) -> list[bytes]:
    """Trace id and span id of each record."""
    empty = [None] * len(rows)
    trace = rows.columns["trace_id"].tolist() if "trace_id" in rows.columns else empty
    span = rows.columns["span_id"].tolist() if "span_id" in rows.columns else empty
    return [
        (protobuf.of_length(9, bytes.fromhex(one)) if one else b"")
        + (protobuf.of_length(10, bytes.fromhex(other)) if other else b"")
        for one, other in zip(trace, span, strict=True)
    ]


def _attributes(field: int, one: Field, column: Array) -> list[bytes]:
    """A KeyValue for each row; empty where the field does not apply. What comes again, once."""
    items = np.round(column, 9).tolist() if one.type == "float" else column.tolist()
    made = {item: attribute(field, one.name, item) for item in set(items) if item is not None}
    if one.type == "float":
        return [made[item] if math.isfinite(item) else b"" for item in items]
    made[None] = b""
    if one.blank:
        made[0] = b""
    return [made[item] for item in items]


# --- metrics ----------------------------------------------------------------------------------


def metrics(
    shot: Shot,
    labels: Sequence[Labels],
    sides: Sequence[int],
    resource: Mapping[str, str],
    time_ns: int,
) -> bytes:
    """An ExportMetricsServiceRequest of totals since the start, in the groups of their resources.

    Args:
        shot: the totals.
        labels: of all series, by place.
        sides: of all series, by place: 0 server, 1 client.
        resource: what all have in common.
        time_ns: of the totals.
    """
    common = b"".join(attribute(1, name, value) for name, value in resource.items())
    points: dict[bytes, dict[int, list[list[bytes]]]] = {}
    for row, place in enumerate(shot.places.tolist()):
        owner, told = _split(labels[place], resource.get("host.name", ""))
        some = points.setdefault(owner, {}).setdefault(sides[place], [[], [], []])
        head = protobuf.fixed64(2, int(shot.start_ns[row])) + protobuf.fixed64(3, time_ns)
        some[0].append(protobuf.of_length(1, _histogram(shot, row, told, head)))
        for at, column in ((1, shot.request_bytes), (2, shot.response_bytes)):
            value = protobuf.key(6, 1) + int(column[row]).to_bytes(8, "little", signed=True)
            point = b"".join(attribute(7, name, one) for name, one in told) + head + value
            some[at].append(protobuf.of_length(1, point))
    return b"".join(
        protobuf.of_length(
            1,
            _resource(common + owner) + protobuf.of_length(2, _SCOPE + b"".join(_metrics(by_side))),
        )
        for owner, by_side in points.items()
    )


def _split(labels: Labels, host: str) -> tuple[bytes, Labels]:
    """The resource's attributes as bytes, and those of the point."""
    known = {name: str(value) for name, value in labels}
    mine = b"".join(attribute(1, name, value) for name, value in labels if is_of_resource(name))
    mine += _identity(known.get, host)
    others = tuple((name, value) for name, value in labels if not is_of_resource(name))
    if "otel.metric.overflow" not in dict(others):
        others += (("url.scheme", "http"),)
    return mine, others


def _metrics(by_side: Mapping[int, list[list[bytes]]]) -> Iterator[bytes]:
    for side, (durations, requests, responses) in by_side.items():
        name = SIDES[side]
        temporality = protobuf.number(2, CUMULATIVE)
        yield _metric(
            f"http.{name}.request.duration",
            f"Duration of HTTP {name} requests.",
            "s",
            protobuf.of_length(10, b"".join(durations) + temporality),
        )
        for what, points in (("request", requests), ("response", responses)):
            yield _metric(
                f"podscope.http.{name}.{what}.body.bytes",
                f"Bytes of {what} bodies of HTTP {name} requests.",
                "By",
                protobuf.of_length(7, b"".join(points) + temporality + protobuf.number(3, 1)),
            )


def _metric(name: str, text: str, unit: str, data: bytes) -> bytes:
    told = protobuf.text(1, name) + protobuf.text(2, text) + protobuf.text(3, unit)
    return protobuf.of_length(2, told + data)


def _histogram(shot: Shot, row: int, labels: Labels, head: bytes) -> bytes:
    """An ExponentialHistogramDataPoint of scale 3."""
    total, seconds = int(shot.count[row]), float(shot.sum[row])
    return _exponential(shot.buckets[row], total, seconds, labels, head)


def _exponential(counts: Array, total: int, seconds: float, labels: Labels, head: bytes) -> bytes:
    used = np.flatnonzero(counts)
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, -1)
    buckets = protobuf.signed(1, red.OFFSET + first) + protobuf.packed(2, counts[first : last + 1])
    return b"".join(
        (
            *(attribute(1, name, value) for name, value in labels),
            head,
            protobuf.fixed64(4, total),
            protobuf.double(5, seconds),
            protobuf.signed(6, red.SCALE),
            protobuf.of_length(8, buckets),
        )
    )


def event_metrics(
    shot: EventShot, totals: EventTotals, resource: Mapping[str, str], time_ns: int
) -> bytes:
    """An ExportMetricsServiceRequest of the metrics of one kind of rows beside HTTP.

    Args:
        shot: the totals of some of its series.
        totals: whose metrics and labels they have.
        resource: what all have in common.
        time_ns: of the totals.
    """
    common = b"".join(attribute(1, name, value) for name, value in resource.items())
    points: dict[bytes, list[list[bytes]]] = {}
    for row, place in enumerate(shot.places.tolist()):
        labels = totals.labels[place]
        owner, told = _split(labels, resource.get("host.name", ""))
        told = tuple(one for one in told if one[0] != "url.scheme")
        some = points.setdefault(owner, [[] for _ in totals.metrics])
        head = protobuf.fixed64(2, int(shot.start_ns[row])) + protobuf.fixed64(3, time_ns)
        for column, metric in enumerate(totals.metrics):
            if not math.isnan(shot.values[row, column]):
                some[column].append(_point(shot, (row, column), metric.type, told, head))
    return b"".join(
        protobuf.of_length(
            1,
            _resource(common + owner)
            + protobuf.of_length(2, _SCOPE + b"".join(map(_of_points, totals.metrics, some))),
        )
        for owner, some in points.items()
    )


def _point(shot: EventShot, at: tuple[int, int], kind: str, labels: Labels, head: bytes) -> bytes:
    row, column = at
    number = float(shot.values[row, column])
    if kind == "histogram":
        counts = shot.buckets[row]
        total = int(shot.le[row, -1])
        return protobuf.of_length(1, _exponential(counts, total, number, labels, head))
    value = (
        protobuf.double(4, number)
        if kind == "gauge"
        else protobuf.key(6, 1) + int(number).to_bytes(8, "little", signed=True)
    )
    told = b"".join(attribute(7, name, one) for name, one in labels)
    return protobuf.of_length(1, told + head + value)


def _of_points(metric: Metric, points: Sequence[bytes]) -> bytes:
    """A Metric; nothing where no series has a value."""
    if not points:
        return b""
    temporality = protobuf.number(2, CUMULATIVE)
    data = {
        "gauge": lambda all_: protobuf.of_length(5, all_),
        "counter": lambda all_: protobuf.of_length(7, all_ + temporality + protobuf.number(3, 1)),
        "histogram": lambda all_: protobuf.of_length(10, all_ + temporality),
    }
    return _metric(metric.name, metric.text, metric.unit, data[metric.type](b"".join(points)))
