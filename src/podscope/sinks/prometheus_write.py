# SPDX-License-Identifier: Apache-2.0
"""Metrics pushed by Prometheus' remote write: 2.0, or 1.0 to who takes no other.

https://prometheus.io/docs/specs/prw/remote_write_spec_2_0
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Annotated
from typing import ClassVar
from typing import Literal

import cramjam
import httpx
import numpy as np
from msgspec import Meta

from podscope.schema import Array
from podscope.schema_metrics import METRICS
from podscope.schema_trace import MAPS
from podscope.settings import Secret
from podscope.settings import Url
from podscope.sinks import remote_write
from podscope.sinks import remote_write_v2
from podscope.sinks.cumulative import SIDES
from podscope.sinks.cumulative import Cumulative
from podscope.sinks.cumulative import Labels
from podscope.sinks.cumulative import Shot
from podscope.sinks.cumulative import Telling
from podscope.sinks.event_write import EventWriter
from podscope.sinks.exemplars import Exemplars
from podscope.sinks.exemplars import OfSeries
from podscope.sinks.http_client import Client
from podscope.sinks.http_client import ServerSettings
from podscope.sinks.http_client import check_credentials
from podscope.sinks.http_client import check_headers
from podscope.sinks.plugin import Partly
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.plugin import TooLarge
from podscope.sinks.remote_write import Template
from podscope.sinks.rows import Rows
from podscope.sinks.trace_metrics import TraceWriter

# A request has so many sets of labels, of 19 time series each.
SERIES_AT_ONCE = 200
# A receiver of 2.0 says how much it wrote, in the head of each answer.
_WRITTEN = "x-prometheus-remote-write-samples-written"


class PrometheusSettings(ServerSettings, frozen=True, kw_only=True):
    """Settings of the sink ``prometheus``."""

    url: Annotated[Url, Meta(description="with its path, as http://host:9090/api/v1/write")]
    token: Annotated[Secret | None, Meta(description="bearer token, in place of a user")] = None
    headers: Annotated[
        tuple[tuple[str, str], ...], Meta(description="more fields, as X-Scope-OrgID")
    ] = ()
    version: Annotated[
        Literal[1, 2],
        Meta(description="2: with exemplars, start times and metadata; 1 for who takes no other"),
    ] = 2
    native: Annotated[
        bool, Meta(description="durations as native histograms, in place of classic ones")
    ] = False
    job: Annotated[str, Meta(description="label `job`; `instance` is the host")] = "podscope"

    def __post_init__(self) -> None:
        if "side" not in self.by:
            raise ValueError("by: side is missing: metrics of servers and clients have two names")
        check_headers(self.headers)
        check_credentials(self, "token", self.token)


class Prometheus:
    """Writes totals since the start, which may be written once more without harm."""

    Settings: ClassVar[type[SinkSettings]] = PrometheusSettings
    # Totals of late are told with each delivery: the fewer parts it has, the better.
    most_rows = 50_000

    def __init__(self, settings: PrometheusSettings) -> None:
        token = settings.token
        bearer = None if token is None else lambda: f"Bearer {token.text()}"
        self._client = Client(settings, bearer)
        self._settings = settings
        self._version: int = settings.version
        # Whether the server has shown that it takes 2.0.
        self._proven = False
        self._totals = Cumulative(buckets=settings.native)
        self._telling = Telling(self._totals, SERIES_AT_ONCE)
        self._known: dict[int, tuple[Labels, Template]] = {}
        self._exemplars = Exemplars(settings.by)
        self._of_places: dict[int, OfSeries] = {}
        self._events = EventWriter(
            self._sent, self._client.said, job=settings.job, native=settings.native
        )
        self._traces = TraceWriter(self._sent, self._client.said, settings.job)
        self.notes: list[str] = []
        self.only_kinds = ("http", *METRICS, MAPS, *(("request",) if settings.version > 1 else ()))

    def send(self, rows: Rows) -> None:
        """Writes the totals with these rows; raises NotTaken as ``Sink.send`` says."""
        if rows.kind in METRICS:
            self._events.send(rows)
            return
        if rows.kind == MAPS:
            self._traces.send(rows)
            return
        if rows.kind == "request":
            if self._version > 1:
                self._exemplars.note(rows)
            return
        if self._telling.add(rows):
            waiting = bool(self._exemplars)
            places = self._totals.places(rows) if waiting else []
            self._of_places = self._exemplars.of(rows, places) if waiting else {}
        refused, why, told = 0, "", 0
        while self._telling:
            shot = self._telling.first()
            try:
                said = self._write(shot, rows)
            except TooLarge as error:
                if self._telling.halve():
                    continue
                said = str(error)
            told += len(shot)
            if said:
                refused, why = refused + len(shot), said
            self._telling.done()
        if why and refused == told:
            raise Refused(why)
        if why:
            raise Partly(None, unnamed=min(refused, len(rows)), why=why)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _write(self, shot: Shot, rows: Rows) -> str:
        """Why the totals are refused; empty if they are not."""
        templates = [self._template(place, rows.resource) for place in shot.places.tolist()]
        start = np.minimum(shot.start_ns, rows.time_ns - 10**6) // 10**6
        fresh = np.flatnonzero(shot.fresh)
        if len(fresh):
            # A counter that begins above zero would hide its first increase. Refused, where an
            # answer was lost and they are there: they are not needed then.
            new = [templates[place] for place in fresh.tolist()]
            self._post(new, shot.take(fresh).zeros(), start[fresh], None)
            self._telling.told_of()
        now = np.full(len(templates), rows.time_ns // 10**6)
        answer = self._post(templates, shot, now, start)
        return "" if answer.is_success else self._client.said(answer)

    def _post(
        self, templates: Sequence[Template], shot: Shot, times: Array, since: Array | None
    ) -> httpx.Response:
        native = self._settings.native
        examples = self._of_places if since is not None else {}

        def made(version: int) -> bytes:
            if version == 1:
                return remote_write.request(templates, shot, times, native=native)
            both = (times, since)
            return remote_write_v2.request(templates, shot, both, examples, native=native)

        return self._sent(made)

    def _sent(self, made: Callable[[int], bytes]) -> httpx.Response:
        """The answer to a request of the version that the server takes; ``made`` makes it."""
        if self._version > 1:
            answer = self._answer(made(2), remote_write_v2.CONTENT_TYPE, remote_write_v2.VERSION)
            if not self._may_be_older(answer):
                return answer
        answer_1 = self._answer(made(1), remote_write.CONTENT_TYPE, remote_write.VERSION)
        if self._version > 1 and answer_1.is_success:
            self._version = 1
            self.notes.append(
                f"{self._settings.url} takes remote write 1.0 and not 2.0: it gets no exemplars, "
                "start times and metadata"
            )
        return answer_1

    def _may_be_older(self, answer: httpx.Response) -> bool:
        """Whether an answer to 2.0 is that of a server that knows 1.0 alone.

        Some of those say 415, some 400, and some take a message whose content they do not find.
        """
        if _WRITTEN in answer.headers:
            self._proven = True
        if answer.status_code == 415:
            return True
        return not self._proven and (answer.is_success or answer.status_code == 400)

    def _answer(self, request: bytes, content_type: str, version: str) -> httpx.Response:
        headers = {
            **dict(self._settings.headers),
            "Content-Type": content_type,
            "Content-Encoding": "snappy",
            "X-Prometheus-Remote-Write-Version": version,
        }
        body = bytes(cramjam.snappy.compress_raw(request))
        return self._client.send("POST", "", body, headers=headers, encoding="")

    def _template(self, place: int, resource: Mapping[str, str]) -> Template:
        labels = self._totals.labels[place]
        known = self._known.get(place)
        if known is not None and known[0] is labels:
            return known[1]
        told = {name.replace(".", "_"): str(value) for name, value in (*labels, *resource.items())}
        told |= {"job": self._settings.job, "instance": resource.get("host.name", "")}
        if "otel_metric_overflow" not in told:
            told["url_scheme"] = "http"
        made = Template.of(SIDES[self._totals.sides[place]], told)
        self._known[place] = (labels, made)
        return made
