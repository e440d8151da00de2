# SPDX-License-Identifier: Apache-2.0
"""Rows by OTLP over HTTP, as protocol buffers: sums as metrics, single events as logs."""

from __future__ import annotations

from typing import Annotated
from typing import ClassVar
from typing import Literal

from msgspec import Meta

from podscope.schema_metrics import METRICS
from podscope.schema_metrics import SUMS
from podscope.settings import Secret
from podscope.settings import Url
from podscope.sinks import otlp_messages
from podscope.sinks.cumulative import Cumulative
from podscope.sinks.cumulative import Telling
from podscope.sinks.event_totals import EventTelling
from podscope.sinks.http_client import Client
from podscope.sinks.http_client import ServerSettings
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.rows import Rows

# A request has so many sets of attributes.
SERIES_AT_ONCE = 1000
PROTOBUF = "application/x-protobuf"


class OtlpSettings(ServerSettings, frozen=True, kw_only=True):
    """Settings of the sink ``otlp``."""

    url: Annotated[Url, Meta(description="without /v1/metrics, as http://collector:4318")]
    token: Annotated[Secret | None, Meta(description="bearer token, in place of a user")] = None
    headers: Annotated[tuple[tuple[str, str], ...], Meta(description="more fields")] = ()
    signals: Annotated[tuple[Literal["metrics", "logs"], ...], Meta(description="what is sent")] = (
        "metrics",
        "logs",
    )

    def __post_init__(self) -> None:
        if "side" not in self.by:
            raise ValueError("by: side is missing: metrics of servers and clients have two names")


class Otlp:
    """Sends totals since the start, and logs."""

    Settings: ClassVar[type[SinkSettings]] = OtlpSettings

    def __init__(self, settings: OtlpSettings) -> None:
        token = settings.token
        bearer = None if token is None else lambda: f"Bearer {token.text()}"
        self._client = Client(settings, bearer)
        self._headers = {"Content-Type": PROTOBUF, **dict(settings.headers)}
        self._signals = settings.signals
        self._totals = Cumulative(buckets=True)
        self._telling = Telling(self._totals, SERIES_AT_ONCE)
        self._events = EventTelling(buckets=True, series=SERIES_AT_ONCE)
        self.only_kinds = ("http", *METRICS) if "logs" not in settings.signals else ()

    def send(self, rows: Rows) -> None:
        """Sends the rows; raises NotTaken as ``Sink.send`` says."""
        with_metrics = "metrics" in self._signals
        if rows.kind == "http":
            if with_metrics:
                self._metrics(rows)
            return
        if with_metrics and rows.kind in METRICS:
            self._event_metrics(rows)
        if "logs" in self._signals and not (with_metrics and rows.kind in SUMS):
            self._post("logs", otlp_messages.logs(rows))

    def _metrics(self, rows: Rows) -> None:
        self._telling.add(rows)
        labels, sides = self._totals.labels, self._totals.sides
        while self._telling:
            shot = self._telling.first()
            self._post(
                "metrics", otlp_messages.metrics(shot, labels, sides, rows.resource, rows.time_ns)
            )
            self._telling.done()

    def _event_metrics(self, rows: Rows) -> None:
        totals = self._events.add(rows)
        while self._events.left:
            self._post(
                "metrics",
                otlp_messages.event_metrics(
                    self._events.left[0], totals, rows.resource, rows.time_ns
                ),
            )
            self._events.left.popleft()

    def _post(self, signal: str, body: bytes) -> None:
        answer = self._client.send("POST", f"/v1/{signal}", body, headers=self._headers)
        if not answer.is_success:
            raise Refused(self._client.said(answer))

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()
