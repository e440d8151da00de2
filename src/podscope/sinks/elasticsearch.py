# SPDX-License-Identifier: Apache-2.0
"""Rows as documents of Elasticsearch or OpenSearch: ``_bulk`` into data streams."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import cast

import msgspec
import numpy as np
from msgspec import Meta

from podscope import red
from podscope.errors import PodscopeError
from podscope.schema import Array
from podscope.schema import Field
from podscope.schema_metrics import SUMS
from podscope.schema_trace import MAPS
from podscope.settings import Duration
from podscope.settings import Secret
from podscope.sinks import elastic_templates as templates
from podscope.sinks.columns import Part
from podscope.sinks.columns import is_constant
from podscope.sinks.columns import is_repeated
from podscope.sinks.columns import made_once
from podscope.sinks.columns import numbers
from podscope.sinks.columns import rounded
from podscope.sinks.columns import same_last
from podscope.sinks.columns import whole
from podscope.sinks.http_client import Client
from podscope.sinks.http_client import Missing
from podscope.sinks.http_client import ServerSettings
from podscope.sinks.http_client import check_credentials
from podscope.sinks.plugin import Partly
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.plugin import Unavailable
from podscope.sinks.rows import BY_SERVICE
from podscope.sinks.rows import SERVICE
from podscope.sinks.rows import Rows

NDJSON = "application/x-ndjson"
JSON = "application/json"
# An item that is there already was sent before (409); one that may pass is sent again.
_THERE, _BUSY = 409, frozenset({429, 502, 503, 504})
# What is missing is a right or an index, and the document may be taken when it is there.
_NOT_SET_UP = frozenset({401, 403, 404})
_NO_HISTOGRAM = "[histogram]"
_NO_HANDLER = "no handler found"
# The middle of each bucket of the exponential histograms, in seconds, on the logarithmic scale.
_MIDDLES = np.exp2((np.arange(red.BUCKETS) + red.OFFSET + 0.5) / (1 << red.SCALE))


class ElasticsearchSettings(ServerSettings, frozen=True, kw_only=True):
    """Settings of the sinks ``elasticsearch`` and ``opensearch``."""

    api_key: Annotated[Secret | None, Meta(description="in place of user and password")] = None
    dataset: Annotated[str, Meta(description="end of the data streams' names")] = "default"
    setup: Annotated[bool, Meta(description="make templates where they are missing or old")] = True
    retention: Annotated[Duration, Meta(description="age at which data goes")] = Duration(7 * 86400)
    rollover: Annotated[Duration, Meta(description="age at which an index is done")] = Duration(
        86400
    )

    def __post_init__(self) -> None:
        check_credentials(self, "api-key", self.api_key)


class _Error(msgspec.Struct):
    type: str = ""
    reason: str = ""
    caused_by: dict[str, Any] | None = None


class _Item(msgspec.Struct):
    status: int = 0
    error: _Error | None = None


class _Answer(msgspec.Struct):
    errors: bool = False
    # Read only where there is something to be read.
    items: msgspec.Raw = msgspec.Raw(b"[]")


_decoder = msgspec.json.Decoder(_Answer)
_items_decoder = msgspec.json.Decoder(list[dict[str, _Item]])


class Elasticsearch:
    """Writes documents; the same row sent once more makes no second one."""

    Settings: ClassVar[type[SinkSettings]] = ElasticsearchSettings
    also_by: ClassVar[Mapping[str, Sequence[str]]] = {SERVICE: BY_SERVICE}

    def __init__(self, settings: ElasticsearchSettings) -> None:
        self._settings = settings
        key = settings.api_key
        self._client = Client(settings, None if key is None else lambda: f"ApiKey {key.text()}")
        self._opensearch = settings.type == "opensearch"
        self._ready: set[str] = set()
        self._can = templates.Abilities(histograms=not self._opensearch)

    def send(self, rows: Rows) -> None:
        """Writes the rows; raises NotTaken as ``Sink.send`` says."""
        if self._settings.setup and rows.kind not in self._ready:
            for _ in self.prepare(rows.kind, rows.fields):
                pass
            self._ready.add(rows.kind)
        path = f"/{templates.stream(rows.kind, self._settings.dataset)}/_bulk"
        body = documents(rows, histograms=self._can.histograms)
        query = {"filter_path": "errors,items.*.status,items.*.error"}
        answer = self._client.send(
            "POST", path, body, headers={"Content-Type": NDJSON}, query=query
        )
        if not answer.is_success:
            raise Refused(self._client.said(answer))
        try:
            told = _decoder.decode(answer.content)
            items = _items_decoder.decode(told.items) if told.errors else []
        except msgspec.MsgspecError:
            raise Unavailable(
                f"{self._settings.url}: no answer to _bulk: {answer.text[:100]}"
            ) from None
        if told.errors:
            told_of = [next(iter(item.values())) for item in items]
            if any(item.status in _NOT_SET_UP for item in told_of):
                self._ready.discard(rows.kind)
            _sort_out(rows, told_of)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def prepare(self, kind: str, fields: Sequence[Field]) -> Iterator[str]:
        """Makes the templates and the retention of a kind of rows; tells of each.

        What is there already, and the same or newer, is left as it is.

        Raises:
            Unavailable, Refused: the server cannot, or does not let us.
        """
        before = self._found(kind)
        if before is not None:
            self._can = replace(self._can, histograms=self._can.histograms and before.histograms)
            if before.serve(templates.properties(fields, kind, histograms=self._can.histograms)):
                yield f"/_index_template/{templates.template_name(kind)} is there already"
                return
            before = before if before.version == templates.VERSION else None
        yield self.put_lifecycle()
        for asset in self._put_templates(kind, fields, before):
            yield f"{asset.path} made"
        yield from self._roll_over(templates.stream(kind, self._settings.dataset))

    def assets(
        self, kind: str, fields: Sequence[Field], before: templates.Found | None = None
    ) -> list[templates.Asset]:
        """What ``prepare`` makes on a server that has all, but for these templates."""
        made = templates.templates(
            kind, fields, opensearch=self._opensearch, can=self._can, before=before
        )
        return [self._lifecycle(), *made]

    def _lifecycle(self) -> templates.Asset:
        return templates.lifecycle(
            opensearch=self._opensearch,
            retention=_age(self._settings.retention),
            rollover=_age(self._settings.rollover),
        )

    def _found(self, kind: str) -> templates.Found | None:
        """The templates of a kind that the server has; None: not both of them."""
        told = []
        for what in ("index_template", "component_template"):
            try:
                answer = self._client.send("GET", f"/_{what}/{templates.template_name(kind)}")
            except Missing:
                return None
            if not answer.is_success:
                raise Refused(self._client.said(answer))
            (one,) = answer.json()[f"{what}s"]
            told.append(one[what])
        return templates.found(*told)

    def _put_templates(
        self, kind: str, fields: Sequence[Field], before: templates.Found | None
    ) -> Sequence[templates.Asset]:
        try:
            _, *made = self.assets(kind, fields, before)
            for asset in made:
                self.put(asset)
        except Refused as error:
            # Only a try tells: distributions differ in their modules.
            if _NO_HISTOGRAM not in str(error) or not self._can.histograms:
                raise
            self._can = replace(self._can, histograms=False)
            return self._put_templates(kind, fields, before)
        return made

    def put(self, asset: templates.Asset) -> None:
        """Makes an object, or changes it; raises Unavailable or Refused."""
        body = msgspec.json.encode(asset.body)
        answer = self._client.send("PUT", asset.path, body, headers={"Content-Type": JSON})
        if not answer.is_success:
            raise Refused(self._client.said(answer))

    @property
    def has_ilm(self) -> bool:
        """Whether indexes can name a policy of Elasticsearch; known after ``put_lifecycle``."""
        return self._can.lifecycle and not self._opensearch

    def put_lifecycle(self) -> str:
        """Makes the retention where it is missing; tells what it has found or made."""
        asset = self._lifecycle()
        try:
            answer = self._client.send("GET", asset.path)
        except Missing:
            self.put(asset)
            return f"{asset.path} made"
        if answer.status_code == 400 and _NO_HANDLER in answer.text:
            self._can = replace(self._can, lifecycle=False)
            return "this server has no lifecycle management: nothing is ever deleted"
        if not answer.is_success:
            raise Refused(self._client.said(answer))
        # Whoever has changed it may go on doing so.
        return f"{asset.path} is there already"

    def _roll_over(self, name: str) -> Iterator[str]:
        """Lets a stream that is there go on with the new templates."""
        try:
            self._client.send("GET", f"/{name}/_settings")
        except Missing:
            return
        answer = self._client.send("POST", f"/{name}/_rollover")
        if not answer.is_success:
            raise Refused(self._client.said(answer))
        yield f"/{name} rolled over"


def setup(
    settings: ElasticsearchSettings,
    kinds: Mapping[str, Sequence[Field]],
    more: Callable[[bool], Sequence[templates.Asset]] | None = None,
) -> Iterator[str]:
    """Prepares a server for some kinds of rows; tells of what is made.

    Args:
        settings: of the sink that leads to the server.
        kinds: fields by kind.
        more: gives further objects; it is told whether the server has Elasticsearch's lifecycles.

    Raises:
        PodscopeError: the server cannot, or does not let us.
    """
    sink = Elasticsearch(settings)
    try:
        for kind, fields in kinds.items():
            yield from sink.prepare(kind, fields)
        if more is not None:
            yield sink.put_lifecycle()
            for asset in more(sink.has_ilm):
                sink.put(asset)
                yield f"{asset.path} made"
    except (Unavailable, Refused) as error:
        raise PodscopeError(str(error)) from None
    finally:
        sink.close()


def documents(rows: Rows, *, histograms: bool) -> bytes:
    """The body of ``_bulk``: for each row what to do, and the document.

    Strings are made for whole columns; of what comes again, once.
    """
    common = {
        "event.dataset": f"podscope.{rows.kind}",
        "event.kind": "metric" if rows.kind in templates.SUMS | SUMS | {MAPS} else "event",
        **rows.resource,
    }
    called = templates.names(rows.fields)
    members = [_member(one, called[one.name], rows.columns[one.name]) for one in rows.fields]
    if rows.kind in templates.SUMS and rows.le is not None:
        cumulative = np.cumsum(rows.le, axis=1)
        members += [
            _ints(_key(name), cumulative[:, n]) for n, name in enumerate(templates.LE_NAMES)
        ]
    if rows.kind in templates.SUMS and rows.buckets is not None and histograms:
        members.append([_histograms(rows.buckets)])
    places = np.arange(len(rows)) if rows.numbers is None else rows.numbers
    head: list[Part[bytes]] = [
        b'{"create":{"_id":"%b-' % rows.id.encode(),
        numbers(places),
        b'"}}\n{',
    ]
    end = msgspec.json.encode(common)[1:] + b"\n"
    return whole([*head, *same_last(members), end], len(rows), b"")


def _member(one: Field, name: str, column: Array) -> list[Part[bytes]]:
    """``"name":value,`` for each row; empty where it does not apply."""
    key = _key(name)
    if one.type == "text":
        return _text(key, column)
    if one.type == "time":
        return [key, *_times(column), b","]
    if name == templates.EVENT_DURATION:
        known = np.isfinite(column)
        lasted = np.rint(np.where(known, column, 0) * 1e9).astype(np.int64)
        if known.all():
            return _ints(key, lasted)
        pairs = zip(lasted.tolist(), known.tolist(), strict=True)
        return [[b"%b%d," % (key, ns) if one else b"" for ns, one in pairs]]
    if one.type == "float":
        return _floats(key, rounded(column))
    if one.blank and not column.all():
        return [made_once(column.tolist(), lambda item: b"%b%d," % (key, item) if item else b"")]
    return _ints(key, column)


def _key(name: str) -> bytes:
    return msgspec.json.encode(name) + b":"


def _text(key: bytes, column: Array) -> list[Part[bytes]]:
    if is_constant(column):
        (only,) = column[:1].tolist()
        return [b"%b%b," % (key, _quoted(only))] if only is not None else []
    items: list[str | None] = column.tolist()
    if not is_repeated(items) and None not in items:
        inner = _inner(cast("list[str]", items))
        if inner is not None:
            return [key + b'"', inner, b'",']
    return [made_once(items, lambda one: b"" if one is None else b"%b%b," % (key, _quoted(one)))]


def _quoted(text: str) -> bytes:
    """A text as JSON has it; halves of pairs of UTF-16 are no text in UTF-8."""
    try:
        return msgspec.json.encode(text)
    except UnicodeEncodeError:
        return json.dumps(text).encode()


def _inner(texts: list[str]) -> list[bytes] | None:
    """Texts as JSON has them, without quotes; None: some have what must be escaped."""
    try:
        told = msgspec.json.encode(texts)
    except UnicodeEncodeError:
        return None
    # Without escapes, there are no quotes but those around texts.
    return None if b"\\" in told else told[2:-2].split(b'","')


def _times(column: Array) -> list[Part[bytes]]:
    """Times of RFC 3339 with nanoseconds, in quotes; few of them are of different seconds."""
    seconds, fractions = np.divmod(column.astype("M8[ns]").astype(np.int64), 10**9)
    # Ten digits of which the first is a one, which goes with the comma before it.
    digits = str((fractions + 10**9).tolist())[2:-1].encode().split(b", 1")
    second = made_once(seconds.tolist(), lambda one: f'"{np.datetime64(one, "s")}.'.encode())
    return [second[0] if is_constant(seconds) else second, digits, b'Z"']


def _floats(key: bytes, column: Array) -> list[Part[bytes]]:
    if is_constant(column):
        first = float(column[0])
        return [b"%b%a," % (key, first)] if math.isfinite(first) else []
    if np.isfinite(column).all():
        return [key, numbers(column), b","]
    return [[b"%b%a," % (key, one) if math.isfinite(one) else b"" for one in column.tolist()]]


def _ints(key: bytes, column: Array) -> list[Part[bytes]]:
    if is_constant(column):
        return [b"%b%d," % (key, column[0])]
    if is_repeated(column.tolist()):
        return [made_once(column.tolist(), lambda item: b"%b%d," % (key, item))]
    return [key, numbers(column), b","]


def _histograms(buckets: Array) -> list[bytes]:
    key = _key(templates.HISTOGRAM)
    middles = [float(f"{value:.6g}") for value in _MIDDLES.tolist()]
    found = []
    for counts in buckets:
        places = np.flatnonzero(counts).tolist()
        values = ",".join(str(middles[place]) for place in places)
        told = ",".join(map(str, counts[places].tolist()))
        found.append(b'%b{"values":[%b],"counts":[%b]},' % (key, values.encode(), told.encode()))
    return found


def _sort_out(rows: Rows, items: Sequence[_Item]) -> None:
    """Raises Partly: which rows are to be sent again, and which are refused, by reason."""
    again: list[int] = []
    refused: dict[str, list[int]] = {}
    why = ""
    for place, item in enumerate(items):
        if item.error is None or item.status == _THERE:
            continue
        said = _reason(item.error)
        if item.status in _BUSY | _NOT_SET_UP:
            again.append(place)
            why = f"{item.status}: {said}"
        else:
            refused.setdefault(said, []).append(place)
    if again or refused:
        parts = tuple((rows.take(np.array(some)), said) for said, some in refused.items())
        raise Partly(rows.take(np.array(again)) if again else None, parts, why=why)


def _reason(error: _Error) -> str:
    more = (error.caused_by or {}).get("reason", "")
    return f"{error.type}: {error.reason}" + (f": {more}" if more else "")


def _age(duration: Duration) -> str:
    """A time as Elasticsearch writes it: it has no fractions."""
    return f"{max(round(duration), 1)}s"
