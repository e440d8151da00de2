# SPDX-License-Identifier: Apache-2.0
"""Rows as points of InfluxDB, by the APIs of version 1 and 2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import Literal

from msgspec import Meta

from podscope.settings import Secret
from podscope.sinks.http_client import Client
from podscope.sinks.http_client import Missing
from podscope.sinks.http_client import ServerSettings
from podscope.sinks.http_client import check_credentials
from podscope.sinks.influxdb_compat import Compat
from podscope.sinks.line_protocol import Distinct
from podscope.sinks.line_protocol import lines_of
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.plugin import TooLarge
from podscope.sinks.plugin import Unavailable
from podscope.sinks.rows import BY_SERVICE
from podscope.sinks.rows import SERVICE
from podscope.sinks.rows import Rows

_DROPPED = re.compile(r"dropped=(\d+)")


class InfluxdbSettings(ServerSettings, frozen=True, kw_only=True):
    """Settings of the sink ``influxdb``."""

    version: Annotated[Literal[1, 2], Meta(description="of the API")] = 2
    database: Annotated[str, Meta(description="version 1; made if it is not there")] = "podscope"
    retention_policy: Annotated[str, Meta(description="version 1; empty: the default one")] = ""
    org: Annotated[str, Meta(description="version 2")] = ""
    bucket: Annotated[str, Meta(description="version 2")] = ""
    token: Annotated[Secret | None, Meta(description="version 2")] = None
    prefix: Annotated[str, Meta(description="of the measurements' names")] = "podscope_"
    compat: Annotated[
        tuple[Literal["owlk8s", "kubebpfbox"], ...],
        Meta(description="write the measurements of these, too"),
    ] = ()

    def __post_init__(self) -> None:
        if self.version == 2 and not (self.org and self.bucket):
            raise ValueError("org and bucket are missing; or set version: 1, with a database")
        if self.version == 1 and self.token is not None:
            raise ValueError("token is for version 2; version 1 has username and password")
        if self.version == 2 and self.username:
            raise ValueError("username is for version 1; version 2 has a token")
        check_credentials(self)


class Influxdb:
    """Writes points; the same ones written once more change nothing."""

    Settings: ClassVar[type[SinkSettings]] = InfluxdbSettings

    def __init__(self, settings: InfluxdbSettings) -> None:
        self._settings = settings
        self._client = Client(settings, self._authorization if settings.version == 2 else None)
        self._compat = Compat(settings.compat)
        self.also_by: Mapping[str, Sequence[str]] = {SERVICE: BY_SERVICE, **self._compat.also_by}
        self._distinct = Distinct()
        # Id, places and lines of the rows that were last written.
        self._last: tuple[str, list[int], list[str]] = ("", [], [])

    def send(self, rows: Rows) -> None:
        """Writes the rows; raises NotTaken as ``Sink.send`` says."""
        body = "".join(self._lines(rows)).encode()
        if body:
            self._write(body, len(rows))

    def _lines(self, rows: Rows) -> list[str]:
        """The lines of the rows: the same, if these or more of their delivery were written before.

        Times and totals are given to rows once; with others, they would be other points.
        """
        last, places, lines = self._last
        if last == rows.id and rows.places == places:
            return lines
        known = dict(zip(places, lines, strict=True)) if last == rows.id else {}
        if not all(place in known for place in rows.places):
            self._last = (rows.id, rows.places, self._encoded(rows))
            return self._last[2]
        return [known[place] for place in rows.places]

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _encoded(self, rows: Rows) -> list[str]:
        more = self._compat.lines(rows)
        if rows.kind in self._compat.also_by:
            return more
        lines = lines_of(rows, f"{self._settings.prefix}{rows.kind}", self._distinct)
        return [one + other for one, other in zip(lines, more, strict=True)] if more else lines

    def _write(self, body: bytes, count: int) -> None:
        try:
            answer = self._post(body)
        except Missing:
            if self._settings.version != 1:
                raise
            self._make_database()
            answer = self._post(body)
        if answer.is_success:
            return
        said = self._client.said(answer)
        dropped = _DROPPED.search(answer.text)
        if answer.status_code not in (400, 422) or count == 1:
            raise Refused(said)
        if dropped and int(dropped[1]) >= count:
            raise Refused(said)
        # Points are written once more without harm: halves find those that are refused.
        raise TooLarge(said)

    def _post(self, body: bytes) -> Any:
        settings = self._settings
        if settings.version == 1:
            query = {"db": settings.database, "precision": "ns"}
            query |= {"rp": settings.retention_policy} if settings.retention_policy else {}
            return self._client.send("POST", "/write", body, query=query)
        query = {"org": settings.org, "bucket": settings.bucket, "precision": "ns"}
        return self._client.send("POST", "/api/v2/write", body, query=query)

    def _make_database(self) -> None:
        name = self._settings.database.replace("\\", "\\\\").replace('"', '\\"')
        answer = self._client.send("POST", "/query", query={"q": f'CREATE DATABASE "{name}"'})
        if not answer.is_success or b'"error"' in answer.content:
            said = self._client.said(answer)
            raise Unavailable(f"{said}; rows wait until there is a database {name}")

    def _authorization(self) -> str:
        token = self._settings.token
        return f"Token {token.text()}" if token is not None else ""
