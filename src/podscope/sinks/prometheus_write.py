# SPDX-License-Identifier: Apache-2.0
"""Metrics pushed by Prometheus' remote write 1.0.

Names and labels are those of ``/metrics``. https://prometheus.io/docs/specs/prw/remote_write_spec
"""

from __future__ import annotations

from collections.abc import Mapping
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
from podscope.sinks.http_client import Client
from podscope.sinks.http_client import ServerSettings
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.rows import Rows

_BOUNDS = (*(str(bound) for bound in red.CLASSIC_BOUNDS), "+Inf")
# Templates are kept of so many series, ten kilobytes each; others are made for each delivery.
_KEPT = 2000
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
    job: Annotated[str, Meta(description="label `job`; `instance` is the host")] = "podscope"

    def __post_init__(self) -> None:
        if "side" not in self.by:
            raise ValueError("by: side is missing: metrics of servers and clients have two names")


class Prometheus:
    """Writes totals since the start, which may be written once more without harm."""

    Settings: ClassVar[type[SinkSettings]] = PrometheusSettings
    # Totals of late are told with each delivery: the fewer parts it has, the better.
    most_rows = 50_000

    def __init__(self, settings: PrometheusSettings) -> None:
        token = settings.token
        bearer = None if token is None else lambda: f"Bearer {token.text()}"
        self._client = Client(settings, bearer)
        self._headers = {**HEADERS, **dict(settings.headers)}
        self._job = settings.job
        self._totals = Cumulative(buckets=False)
        self._templates: dict[int, tuple[Labels, Template]] = {}
        self._last: Rows | None = None
        self._zeros = self._now = b""

    def send(self, rows: Rows) -> None:
        """Writes the totals with these rows; raises NotTaken as ``Sink.send`` says."""
        if rows.kind != "http":
            return
        if self._last is not rows:
            # Sent again, they are not added once more.
            self._last, (self._zeros, self._now) = rows, self._requests(rows)
        if self._zeros:
            # Refused, where an answer was lost and they are there: they are not needed then.
            self._post(self._zeros)
            self._zeros = b""
        answer = self._post(self._now)
        if not answer.is_success:
            raise Refused(self._client.said(answer))

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _post(self, request: bytes) -> Any:
        body = bytes(cramjam.snappy.compress_raw(request))
        return self._client.send("POST", "", body, headers=self._headers, encoding="")

    def _requests(self, rows: Rows) -> tuple[bytes, bytes]:
        """The zeros that new series begin with, and the totals of all."""
        shot = self._totals.add(rows)
        values = np.concatenate(
            [
                shot.le.astype(float),
                shot.sum[:, None],
                shot.count[:, None].astype(float),
                shot.request_bytes[:, None].astype(float),
                shot.response_bytes[:, None].astype(float),
            ],
            axis=1,
        )
        templates = [self._template(place, rows.resource) for place in shot.places.tolist()]
        now = filled(templates, values, np.full(len(templates), rows.time_ns // 10**6))
        # A counter that begins above zero would hide its first increase.
        fresh = np.flatnonzero(shot.fresh)
        zeros = filled(
            [templates[place] for place in fresh.tolist()],
            np.zeros((len(fresh), values.shape[1])),
            np.minimum(shot.start_ns[fresh], rows.time_ns - 10**6) // 10**6,
        )
        return zeros, now

    def _template(self, place: int, resource: Mapping[str, str]) -> Template:
        labels = self._totals.labels[place]
        known = self._templates.get(place)
        if known is not None and known[0] is labels:
            return known[1]
        told = {name.replace(".", "_"): str(value) for name, value in (*labels, *resource.items())}
        told |= {"job": self._job, "instance": resource.get("host.name", "")}
        if "otel_metric_overflow" not in told:
            told["url_scheme"] = "http"
        made = Template(SIDES[self._totals.sides[place]], told)
        if place < _KEPT:
            self._templates[place] = (labels, made)
        return made


class Template:
    """The time series of one set of labels as bytes, with holes for values and times.

    Attributes:
        raw: the bytes.
        values: where each value is, eight bytes, shape (19,).
        times: where each time is, six bytes, shape (19,): milliseconds from 2004 to 2109.
    """

    __slots__ = ("raw", "times", "values")

    def __init__(self, side: str, labels: Mapping[str, str]) -> None:
        duration = f"http_{side}_request_duration_seconds"
        series = [*({"__name__": f"{duration}_bucket", "le": bound} for bound in _BOUNDS)]
        series += [{"__name__": f"{duration}_sum"}, {"__name__": f"{duration}_count"}]
        series += [
            {"__name__": f"podscope_http_{side}_{what}_body_bytes_total"}
            for what in ("request", "response")
        ]
        parts = []
        values, times = [], []
        end = 0
        for more in series:
            body = _labels({**labels, **more}) + _SAMPLE
            raw = protobuf.of_length(1, body)
            end += len(raw)
            parts.append(raw)
            times.append(end - _TIME_BYTES)
            values.append(end - _TIME_BYTES - 1 - 8)
        self.raw = b"".join(parts)
        self.values = np.array(values)
        self.times = np.array(times)


_TIME_BYTES = 6
# Sample {double value = 1; int64 timestamp = 2;}
_SAMPLE = protobuf.of_length(2, protobuf.double(1, 0) + protobuf.number(2, 1 << 41))


def _labels(labels: Mapping[str, str]) -> bytes:
    """Labels sorted by their names, without those that are empty."""
    return b"".join(
        protobuf.of_length(1, protobuf.text(1, name) + protobuf.text(2, labels[name]))
        for name in sorted(labels)
        if labels[name]
    )


def filled(templates: list[Template], values: Array, milliseconds: Array) -> bytes:
    """A WriteRequest of the templates.

    Args:
        templates: one a set of labels.
        values: shape (n, 19), in the templates' order.
        milliseconds: Unix time of each, shape (n,).
    """
    if not templates:
        return b""
    lengths = [len(one.raw) for one in templates]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    whole = np.frombuffer(b"".join(one.raw for one in templates), np.uint8).copy()
    at = (np.stack([one.values for one in templates]) + starts[:, None]).reshape(-1, 1)
    whole[at + np.arange(8)] = np.ascontiguousarray(values, "<f8").view(np.uint8).reshape(-1, 8)
    at = (np.stack([one.times for one in templates]) + starts[:, None]).reshape(-1, 1)
    times = _varints(np.repeat(milliseconds, values.shape[1]))
    whole[at + np.arange(_TIME_BYTES)] = times
    return whole.tobytes()


def _varints(numbers: Array) -> Array:
    """Numbers from 2**35 to 2**42 as varints of six bytes, shape (n, 6)."""
    shifts = 7 * np.arange(_TIME_BYTES)
    digits = (numbers[:, None] >> shifts) & 0x7F
    digits[:, :-1] |= 0x80
    return digits.astype(np.uint8)
