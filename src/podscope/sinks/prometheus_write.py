# SPDX-License-Identifier: Apache-2.0
"""Metrics pushed by Prometheus' remote write 1.0.

Names and labels are those of ``/metrics``. https://prometheus.io/docs/specs/prw/remote_write_spec
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from typing import Annotated
from typing import Any
from typing import ClassVar

import cramjam
import numpy as np
from msgspec import Meta

from podscope import __version__
from podscope import red
from podscope.schema import Array
from podscope.settings import Secret
from podscope.settings import Url
from podscope.sinks import protobuf
from podscope.sinks.cumulative import SIDES
from podscope.sinks.cumulative import Cumulative
from podscope.sinks.cumulative import Labels
from podscope.sinks.cumulative import Shot
from podscope.sinks.http_client import Client
from podscope.sinks.http_client import ServerSettings
from podscope.sinks.native_histograms import histogram
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.rows import Rows

_BOUNDS = (*(str(bound) for bound in red.CLASSIC_BOUNDS), "+Inf")
# A request has so many sets of labels, of 19 time series each.
SERIES_AT_ONCE = 200
HEADERS = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
    "User-Agent": f"podscope/{__version__}",
}


class PrometheusSettings(ServerSettings, frozen=True, kw_only=True):
    """Settings of the sink ``prometheus``."""

    url: Annotated[Url, Meta(description="with its path, as http://host:9090/api/v1/write")]
    token: Annotated[Secret | None, Meta(description="bearer token, in place of a user")] = None
    headers: Annotated[
        tuple[tuple[str, str], ...], Meta(description="more fields, as X-Scope-OrgID")
    ] = ()
    native: Annotated[
        bool, Meta(description="durations as native histograms, in place of classic ones")
    ] = False
    job: Annotated[str, Meta(description="label `job`; `instance` is the host")] = "podscope"

    def __post_init__(self) -> None:
        if "side" not in self.by:
            raise ValueError("by: side is missing: metrics of servers and clients have two names")


class Prometheus:
    """Writes totals since the start, which may be written once more without harm."""

    Settings: ClassVar[type[SinkSettings]] = PrometheusSettings
    only_kinds = ("http",)
    # Totals of late are told with each delivery: the fewer parts it has, the better.
    most_rows = 50_000

    def __init__(self, settings: PrometheusSettings) -> None:
        token = settings.token
        bearer = None if token is None else lambda: f"Bearer {token.text()}"
        self._client = Client(settings, bearer)
        self._headers = {**HEADERS, **dict(settings.headers)}
        self._job = settings.job
        self._native = settings.native
        self._totals = Cumulative(buckets=settings.native)
        self._known: dict[int, tuple[Labels, Template]] = {}
        self._last: Rows | None = None
        self._left: deque[Shot] = deque()

    def send(self, rows: Rows) -> None:
        """Writes the totals with these rows; raises NotTaken as ``Sink.send`` says."""
        if self._last is not rows:
            # Sent again, they are not added once more, and what was taken is not sent once more.
            self._last = rows
            self._left = deque(self._totals.add(rows).pieces(SERIES_AT_ONCE))
        refused = ""
        while self._left:
            refused = self._write(self._left[0], rows) or refused
            self._left.popleft()
        if refused:
            raise Refused(refused)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _write(self, shot: Shot, rows: Rows) -> str:
        """Why the totals are refused; empty if they are not."""
        templates = [self._template(place, rows.resource) for place in shot.places.tolist()]
        fresh = np.flatnonzero(shot.fresh)
        if len(fresh):
            # A counter that begins above zero would hide its first increase. Refused, where an
            # answer was lost and they are there: they are not needed then.
            start = np.minimum(shot.start_ns[fresh], rows.time_ns - 10**6)
            new = [templates[place] for place in fresh.tolist()]
            self._post(self._request(new, shot.take(fresh).zeros(), start))
            self._left[0] = replace(shot, fresh=np.zeros_like(shot.fresh))
        now = np.full(len(templates), rows.time_ns)
        answer = self._post(self._request(templates, shot, now))
        return "" if answer.is_success else self._client.said(answer)

    def _request(self, templates: Sequence[Template], shot: Shot, times_ns: Array) -> bytes:
        milliseconds = times_ns // 10**6
        if self._native:
            return native(templates, shot, milliseconds)
        columns = (shot.sum, shot.count, shot.request_bytes, shot.response_bytes)
        values = np.concatenate([shot.le, np.stack(columns, axis=1)], axis=1, dtype=float)
        return filled(templates, values, milliseconds)

    def _post(self, request: bytes) -> Any:
        body = bytes(cramjam.snappy.compress_raw(request))
        return self._client.send("POST", "", body, headers=self._headers, encoding="")

    def _template(self, place: int, resource: Mapping[str, str]) -> Template:
        labels = self._totals.labels[place]
        known = self._known.get(place)
        if known is not None and known[0] is labels:
            return known[1]
        told = {name.replace(".", "_"): str(value) for name, value in (*labels, *resource.items())}
        told |= {"job": self._job, "instance": resource.get("host.name", "")}
        if "otel_metric_overflow" not in told:
            told["url_scheme"] = "http"
        made = Template.of(SIDES[self._totals.sides[place]], told)
        self._known[place] = (labels, made)
        return made


@dataclass(frozen=True)
class Template:
    """What the time series of one set of labels have in common.

    Attributes:
        side: server or client.
        before, after: the labels as bytes, sorted by name, before and after ``le``; ``__name__``
            is before all others.
    """

    side: str
    before: bytes
    after: bytes

    @classmethod
    def of(cls, side: str, labels: Mapping[str, str]) -> Template:
        """The template of some labels; empty ones are the same as none."""
        told = [(name, _label(name, value)) for name, value in sorted(labels.items()) if value]
        before = b"".join(raw for name, raw in told if name < "le")
        return cls(side, before, b"".join(raw for name, raw in told if name > "le"))

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


_TIME_BYTES = 6
# Sample {double value = 1; int64 timestamp = 2;}; a time of six bytes is of 2004 to 2109.
_SAMPLE = protobuf.of_length(2, protobuf.double(1, 0) + protobuf.number(2, 1 << 41))
# Names of the time series of a set of labels; with the bound of each bucket.
_SERIES = (
    *(("http_{}_request_duration_seconds_bucket", bound) for bound in _BOUNDS),
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
    whole = np.frombuffer(b"".join(parts), np.uint8).copy()
    ends = np.cumsum([len(raw) for raw in parts])[:, None]
    raw = np.ascontiguousarray(values, "<f8").view(np.uint8).reshape(-1, 8)
    whole[ends - _TIME_BYTES - 1 - 8 + np.arange(8)] = raw
    times = _varints(np.repeat(milliseconds, values.shape[1]))
    whole[ends - _TIME_BYTES + np.arange(_TIME_BYTES)] = times
    return whole.tobytes()


def native(templates: Sequence[Template], shot: Shot, milliseconds: Array) -> bytes:
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


def _varints(numbers: Array) -> Array:
    """Numbers from 2**35 to 2**42 as varints of six bytes, shape (n, 6)."""
    shifts = 7 * np.arange(_TIME_BYTES)
    digits = (numbers[:, None] >> shifts) & 0x7F
    digits[:, :-1] |= 0x80
    return digits.astype(np.uint8)
