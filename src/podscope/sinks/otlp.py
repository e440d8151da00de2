# SPDX-License-Identifier: Apache-2.0
"""Rows by OTLP, as protocol buffers over HTTP or gRPC.

Sums as metrics, single events as logs, requests that carry a trace also as its spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated
from typing import ClassVar
from typing import Literal

import httpx
import numpy as np
from msgspec import Meta

from podscope.schema_metrics import METRICS
from podscope.schema_metrics import SUMS
from podscope.schema_trace import MAPS
from podscope.settings import Secret
from podscope.settings import Url
from podscope.sinks import otlp_messages
from podscope.sinks import protobuf
from podscope.sinks import trace_metrics
from podscope.sinks.cumulative import SERIES
from podscope.sinks.cumulative import Cumulative
from podscope.sinks.cumulative import Labels
from podscope.sinks.cumulative import Telling
from podscope.sinks.event_totals import EventTelling
from podscope.sinks.http_client import Client
from podscope.sinks.http_client import Missing
from podscope.sinks.http_client import ServerSettings
from podscope.sinks.http_client import basic
from podscope.sinks.http_client import check_credentials
from podscope.sinks.http_client import check_headers
from podscope.sinks.otlp_grpc import GrpcClient
from podscope.sinks.otlp_messages import Descriptions
from podscope.sinks.plugin import NotTaken
from podscope.sinks.plugin import Partly
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.plugin import TooLarge
from podscope.sinks.rows import Rows

# A request has so many sets of attributes.
SERIES_AT_ONCE = 1000
PROTOBUF = "application/x-protobuf"
_MOST_SAID = 300


class OtlpSettings(ServerSettings, frozen=True, kw_only=True):
    """Settings of the sink ``otlp``."""

    url: Annotated[
        Url,
        Meta(description="without /v1/metrics, as http://collector:4318; gRPC: http://host:4317"),
    ]
    protocol: Annotated[Literal["http", "grpc"], Meta(description="how messages travel")] = "http"
    token: Annotated[Secret | None, Meta(description="bearer token, in place of a user")] = None
    headers: Annotated[tuple[tuple[str, str], ...], Meta(description="more fields")] = ()
    signals: Annotated[
        tuple[Literal["metrics", "logs", "traces"], ...], Meta(description="what is sent")
    ] = ("metrics", "logs")
    temporality: Annotated[
        Literal["cumulative", "delta"],
        Meta(description="metrics since the start, or of each delivery alone"),
    ] = "cumulative"

    def __post_init__(self) -> None:
        if "side" not in self.by:
            raise ValueError("by: side is missing: metrics of servers and clients have two names")
        check_headers(self.headers)
        check_credentials(self, "token", self.token)


class Otlp:
    """Sends totals, logs and spans."""

    Settings: ClassVar[type[SinkSettings]] = OtlpSettings
    # Totals of late are told with each delivery: the fewer parts it has, the better.
    most_rows = 50_000

    def __init__(self, settings: OtlpSettings) -> None:
        is_delta = settings.temporality == "delta"
        self._signals = settings.signals
        is_grpc = settings.protocol == "grpc"
        self._transport = _grpc(settings) if is_grpc else _Http(settings)
        self._telling = Telling(Cumulative(buckets=True), SERIES_AT_ONCE, anew=is_delta)
        self._events = EventTelling(buckets=True, series=SERIES_AT_ONCE, anew=is_delta)
        self._temporality = otlp_messages.DELTA if is_delta else otlp_messages.CUMULATIVE
        self._descriptions: Descriptions | None = None
        self._of_events: Descriptions | None = None
        self._latest_ns = 0
        self._mark: tuple[str, int, int] | None = None
        self._taken: set[str] = set()
        self._traced = ""
        self._deltas = trace_metrics.Deltas() if is_delta else None
        kinds = {"metrics": ("http", *METRICS, MAPS), "traces": ("request",), "logs": ()}
        some = tuple(kind for signal in settings.signals for kind in kinds[signal])
        self.only_kinds = () if "logs" in settings.signals else some

    def send(self, rows: Rows) -> None:
        """Sends the rows; raises NotTaken as ``Sink.send`` says."""
        with_metrics = "metrics" in self._signals
        told: list[tuple[int, str]] = []
        single = rows
        if rows.kind == "http":
            told = self._metrics(rows) if with_metrics else []
        elif with_metrics and rows.kind in METRICS:
            told = self._event_metrics(rows)
        elif with_metrics and rows.kind == MAPS:
            told = self._trace_metrics(rows)
            single = rows.take(rows.columns["podscope.trace.metric"] == np.array(None))
        if rows.kind != "http" and not (with_metrics and rows.kind in SUMS) and len(single):
            told += self._single(single)
        rejected = sum(count for count, _ in told)
        if rejected:
            raise Partly(None, unnamed=min(rejected, len(rows)), why=told[-1][1])

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def _trace_metrics(self, rows: Rows) -> list[tuple[int, str]]:
        """Metrics that rows of a trace say themselves how they stand; told again without harm."""
        if rows.id == self._traced:
            return []  # they come once more because of what else is in them
        now = self._not_before_others(rows)
        if self._of_events is None:
            self._of_events = _descriptions(rows)
        known = self._of_events
        waiting = _portions(trace_metrics.points(now), SERIES_AT_ONCE)
        told = []
        while waiting:
            some = waiting.pop()
            growth = some if self._deltas is None else self._deltas.of(some)
            body = otlp_messages.point_metrics(growth, now, known, temporality=self._temporality)
            try:
                told.append(self._export("metrics", body))
            except TooLarge as error:
                if len(some) > 1:
                    waiting += _portions(some, (len(some) + 1) // 2)
                    continue
                told.append((1, str(error)))
            if self._deltas is not None:
                self._deltas.told(some)
        self._traced = rows.id
        return told

    def _metrics(self, rows: Rows) -> list[tuple[int, str]]:
        """How many were rejected, and why."""
        self._telling.add(rows)
        now = self._not_before_others(rows)
        if self._descriptions is None:
            self._descriptions = _descriptions(rows, (("url.scheme", "http"),))
        told = []
        while self._telling:
            body = otlp_messages.metrics(
                self._telling.first(),
                self._telling.totals,
                now,
                self._descriptions,
                temporality=self._temporality,
            )
            try:
                told.append(self._export("metrics", body))
            except TooLarge as error:
                if self._telling.halve():
                    continue
                told.append((1, str(error)))
            self._telling.done()
        return told

    def _not_before_others(self, rows: Rows) -> Rows:
        """The same, told as of the latest rows of any kind.

        Kinds end their intervals some milliseconds apart, and Prometheus, which adds a sample to
        each resource, refuses all that has an earlier one.
        """
        self._latest_ns = max(self._latest_ns, rows.time_ns)
        return replace(rows, time_ns=self._latest_ns)

    def _event_metrics(self, rows: Rows) -> list[tuple[int, str]]:
        totals = self._events.add(rows)
        now = self._not_before_others(rows)
        if self._of_events is None:
            self._of_events = _descriptions(rows)
        told = []
        while self._events.left:
            body = otlp_messages.event_metrics(
                self._events.left[0],
                totals,
                now,
                self._of_events,
                temporality=self._temporality,
            )
            try:
                told.append(self._export("metrics", body))
            except TooLarge as error:
                if self._events.halve():
                    continue
                told.append((1, str(error)))
            self._events.left.popleft()
        return told

    def _single(self, rows: Rows) -> list[tuple[int, str]]:
        """The rows as logs, and then as spans; each once, also if they are sent again."""
        if rows.mark != self._mark:
            self._mark, self._taken = rows.mark, set()
        told = []
        if "logs" in self._signals and "logs" not in self._taken:
            told.append(self._export("logs", otlp_messages.logs(rows)))
            self._taken.add("logs")
        if "traces" in self._signals and rows.kind == "request":
            told += self._spans(rows)
        return told

    def _spans(self, rows: Rows) -> list[tuple[int, str]]:
        body = otlp_messages.spans(rows)
        if not body:
            return []
        try:
            return [self._export("traces", body)]
        except TooLarge:
            if len(rows) == 1:
                raise
        # Not by halves of what is sent: the logs of these rows are there already.
        return [one for half in rows.pieces((len(rows) + 1) // 2) for one in self._spans(half)]

    def _export(self, signal: str, body: bytes) -> tuple[int, str]:
        """How many the server has rejected of what it took, and why."""
        try:
            answer = self._transport.export(signal, body)
        except Missing as error:
            if not self._takes_others(signal):
                raise
            raise Refused(f"{error}, or leave {signal} out of signals") from None
        try:
            # ExportLogsServiceResponse {partial_success = 1 {rejected = 1; error_message = 2}}
            told = dict(protobuf.fields(dict(protobuf.fields(answer)).get(1, b"")))
            return int(told.get(1, 0)), bytes(told.get(2, b"")).decode("utf-8", "replace")
        except (ValueError, TypeError):
            return 0, ""  # not of OTLP, but a success

    def _takes_others(self, missing: str) -> bool:
        """Whether the server takes another signal: rows of one do not hold up those of others."""
        for signal in self._signals:
            if signal == missing:
                continue
            try:
                self._transport.export(signal, b"")  # a message without any rows
            except NotTaken:
                continue
            return True
        return False


def _descriptions(rows: Rows, more: Labels = ()) -> Descriptions:
    return Descriptions(rows.resource.get("host.name", ""), 2 * SERIES, more)


def _portions(
    some: Sequence[trace_metrics.Point], most: int
) -> list[Sequence[trace_metrics.Point]]:
    return [some[start : start + most] for start in range(0, len(some), most)]


class _Http:
    """Messages over HTTP."""

    def __init__(self, settings: OtlpSettings) -> None:
        token = settings.token
        bearer = None if token is None else lambda: f"Bearer {token.text()}"
        self._client = Client(settings, bearer)
        self._url = settings.url
        self._headers = {**dict(settings.headers), "Content-Type": PROTOBUF}

    def export(self, signal: str, body: bytes) -> bytes:
        answer = self._client.send("POST", f"/v1/{signal}", body, headers=self._headers)
        if answer.is_success:
            return answer.content
        raise Refused(self._said(answer))

    def _said(self, answer: httpx.Response) -> str:
        if PROTOBUF not in answer.headers.get("Content-Type", ""):
            return self._client.said(answer)
        try:
            # google.rpc.Status {message = 2}
            text = dict(protobuf.fields(answer.content)).get(2, b"").decode("utf-8", "replace")
        except (ValueError, AttributeError):
            text = ""
        return f"{self._url}: {answer.status_code} {answer.reason_phrase}: {text[:_MOST_SAID]}"

    def close(self) -> None:
        self._client.close()


def _grpc(settings: OtlpSettings) -> GrpcClient:
    token = settings.token
    authorization = partial(basic, settings) if token is None else lambda: f"Bearer {token.text()}"
    return GrpcClient(settings, dict(settings.headers), authorization)
