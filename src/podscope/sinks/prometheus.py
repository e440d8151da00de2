# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics: totals since the start, as text 0.0.4 or OpenMetrics 1.0.

The kernel forgets series that are idle; totals here stay, since counters may not go back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING
from typing import Protocol

import numpy as np
import numpy.typing as npt

from podscope import red
from podscope import schema
from podscope.schema_metrics import METRICS
from podscope.sinks.event_exposition import escaped
from podscope.sinks.event_exposition import families
from podscope.sinks.event_exposition import head
from podscope.sinks.event_totals import EventTotals
from podscope.sinks.rows import of_metrics

if TYPE_CHECKING:
    from podscope.batch import Batch
    from podscope.batch import Identity

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
SERIES = 10_000
# A full table takes the places of series that nothing was added to for this long.
IDLE_NS = 3600 * 10**9

# No pid and no peer: labels that change with each restart make series without end.
_BY = tuple(name for name in schema.PLAIN if name not in ("pid", "peer"))
_FIELDS = tuple(field for field in schema.HTTP if field.label)
# The same of single requests, whose record has other members.
_OF_REQUESTS = tuple(
    field for field in schema.REQUEST if field.name in {one.name for one in _FIELDS}
)
# By Service: a family of its own, since a pod can stand behind several.
_BY_SERVICE = ("service", "port", "method", "route", "status", "version")
_SERVICE_FIELDS = tuple(
    field
    for field in schema.told(schema.HTTP, _BY_SERVICE)
    if field.label or field.dimension == "service"
)
# OpenTelemetry's mark for the series that takes what no longer fits.
_OVERFLOW = 'otel_metric_overflow="true"'
_OVERFLOW_REASON = "metric_series_full"
# Losses are told since the start as they are, and not added up from rows.
LOST_KIND = "lost"
_FAMILIES = ("server", "client", "service")
_SUMS = ("sum_ns", "request_bytes", "response_bytes")
_SERVICE = _FAMILIES.index("service")
_BOUNDS = (*(str(bound) for bound in red.CLASSIC_BOUNDS), "+Inf")
_SERIES_AT_ONCE = 256
# Of so many requests that carry a trace, the latest of an interval, exemplars are made.
_TRACED = 256

Counts = npt.NDArray[np.uint64]
Array = schema.Array


class Exposed(Protocol):
    """Metrics of somebody else, as text 0.0.4 or OpenMetrics 1.0 without its end."""

    def __call__(self, *, openmetrics: bool) -> bytes: ...


@dataclass(frozen=True)
class _Snapshot:
    """Totals at one moment; ``labels`` is empty for places that hold no series."""

    labels: list[str]
    family: npt.NDArray[np.uint8]
    le: Counts
    sums: Counts
    series: int
    lost: dict[str, int]
    cost: dict[str, float]
    sources: dict[str, bool]
    exemplars: dict[tuple[int, str], dict[int, str]]


class Totals:
    """Totals of every series, safe to read from another thread.

    Memory is bounded: beyond ``series`` label sets, exchanges go to one series a family with the
    label ``otel_metric_overflow``, and are counted as lost for ``metric_series_full``.
    """

    def __init__(self, series: int = SERIES, idle_ns: int = IDLE_NS) -> None:
        self._lock = threading.Lock()
        self._limit = series + len(_FAMILIES)
        self._idle_ns = idle_ns
        # The first places are the overflow series.
        self._labels = [_OVERFLOW] * len(_FAMILIES)
        self._free: list[int] = []
        self._place_of_labels: dict[tuple[int, str], int] = {}
        # What labels depend on, of each row, with numbers for the identities.
        self._places_of_row: dict[tuple[object, ...], tuple[int, ...]] = {}
        self._numbers: dict[Identity, int] = {}
        self._family = np.arange(len(_FAMILIES), dtype=np.uint8)
        self._le = np.zeros((len(_FAMILIES), len(_BOUNDS)), dtype=np.uint64)
        self._sums = np.zeros((len(_FAMILIES), len(_SUMS)), dtype=np.uint64)
        self._seen_ns = np.zeros(len(_FAMILIES), dtype=np.int64)
        self._lost: dict[str, int] = {}
        self._cost: dict[str, float] = {}
        self._sources: dict[str, bool] = {}
        self._overflowed = 0
        # OpenMetrics' exemplars by bucket, of a family and labels; those in it do not change.
        self._exemplars: dict[tuple[int, str], dict[int, str]] = {}
        self._events = {
            kind: EventTotals(kind, series=series) for kind in METRICS if kind != LOST_KIND
        }
        self._more: list[Exposed] = []

    def __len__(self) -> int:
        return len(self._place_of_labels)

    def add(self, batch: Batch) -> None:
        """Add an interval's rows; batches of kinds without metrics are passed over."""
        if batch.kind in self._events:
            rows = of_metrics(batch) if len(batch) else None
            with self._lock:
                if rows is None:
                    self._events[batch.kind].turn(batch.time_ns)
                else:
                    self._events[batch.kind].add(rows)
        if batch.kind == "request":
            self._add_exemplars(batch)
        if batch.kind != "http" or len(batch) == 0:
            return
        with self._lock:
            self._add(batch)

    def _add_exemplars(self, batch: Batch) -> None:
        """Keeps the newest request with a trace of each series and bucket."""
        traced = np.flatnonzero(batch.rows["trace_id"].any(axis=1))[-_TRACED:]
        if not len(traced):
            return
        some = batch.where(traced)
        labels = _label_texts(
            schema.read(_OF_REQUESTS, schema.request_view(some), _BY), _FIELDS, len(some)
        )
        families = (some.rows["side"] == schema.CLIENT).astype(int).tolist()
        seconds = some.rows["duration_ns"] / 1e9
        buckets = np.searchsorted(red.CLASSIC_BOUNDS, seconds, side="left").tolist()
        texts = _exemplars(some)
        with self._lock:
            for key, bucket, text in zip(
                zip(families, labels, strict=True), buckets, texts, strict=True
            ):
                if key in self._exemplars or len(self._exemplars) < self._limit:
                    self._exemplars[key] = {**self._exemplars.get(key, {}), bucket: text}

    def _add(self, batch: Batch) -> None:
        found = self._places(batch)
        places = np.fromiter(chain.from_iterable(found), np.intp)
        # Some stand behind Services.
        rows = np.repeat(np.arange(len(batch)), [len(one) for one in found])
        np.add.at(self._le, places, batch.rows["le"][rows])
        sums = np.stack([batch.rows[name] for name in _SUMS], axis=1)
        np.add.at(self._sums, places, sums[rows])
        self._seen_ns[places] = batch.time_ns
        # What stands behind a Service is counted for its pod already.
        self._overflowed += int(batch.rows["count"][rows[places < _SERVICE]].sum())

    def tell(
        self,
        lost: Mapping[str, int],
        cost: Mapping[str, float],
        sources: Mapping[str, bool] | None = None,
    ) -> None:
        """Set what was lost since the start, by reason, the agent's own cost, and what runs.

        Args:
            lost: exchanges by reason.
            cost: any of ``cpu_seconds``, ``resident_bytes``, ``kernel_runs``, ``kernel_seconds``.
            sources: those beside HTTP that were asked for, by name: whether they run.
        """
        with self._lock:
            self._lost = dict(lost)
            self._cost = dict(cost)
            self._sources = dict(sources or {})

    def expose_also(self, more: Exposed) -> None:
        """Let others' metrics be a part of the exposition, each in a form of its own."""
        self._more.append(more)

    def expose(self, *, openmetrics: bool) -> Iterator[bytes]:
        """The exposition, piece by piece, of the totals when the first piece is taken."""
        shot = self._snapshot()
        for family, name in enumerate(_NAMES):
            yield from _family_metrics(shot, family, name, openmetrics)
        for one in self._events.values():
            yield from self._event_families(one, openmetrics)
        yield _agent_metrics(shot, openmetrics)
        for more in self._more:
            yield more(openmetrics=openmetrics)
        if openmetrics:
            yield b"# EOF\n"

    def _event_families(self, totals: EventTotals, openmetrics: bool) -> Iterator[bytes]:
        with self._lock:
            shot, labels = totals.all(), list(totals.labels)
        yield from families(totals.metrics, shot, labels, openmetrics)

    def _snapshot(self) -> _Snapshot:
        with self._lock:
            overflowed = self._overflowed + sum(one.overflowed for one in self._events.values())
            return _Snapshot(
                labels=list(self._labels),
                family=self._family[: len(self._labels)].copy(),
                le=self._le[: len(self._labels)].copy(),
                sums=self._sums[: len(self._labels)].copy(),
                series=len(self) + sum(map(len, self._events.values())),
                lost=self._lost | {_OVERFLOW_REASON: overflowed},
                cost=dict(self._cost),
                sources=dict(self._sources),
                exemplars=dict(self._exemplars),
            )

    def _places(self, batch: Batch) -> list[tuple[int, ...]]:
        """The places of each row: of its own series, and of those of its Services."""
        keys = self._row_keys(batch)
        found = [self._places_of_row.get(key, ()) for key in keys]
        unknown = [at for at, places in enumerate(found) if not places]
        if not unknown:
            return found
        held = {place for places in found for place in places}
        new = self._new_places(batch.where(np.array(unknown)), held)
        for at, places in zip(unknown, new, strict=True):
            found[at] = places
            # One that has no place of its own is not remembered: there may be room for it later.
            if min(places) >= len(_FAMILIES):
                self._places_of_row[keys[at]] = places
        return found

    def _row_keys(self, batch: Batch) -> list[tuple[object, ...]]:
        """All that labels depend on, of each row, hashable and quick to make."""
        # Rows outnumber series where several have the same labels.
        if max(len(self._places_of_row), len(self._numbers)) > 4 * self._limit:
            self._places_of_row.clear()
            self._numbers.clear()
        numbers = self._numbers
        who = [numbers.setdefault(one, len(numbers)) for one in batch.identities]
        raw = np.ascontiguousarray(batch.rows["key"])
        # A route's text may come after its hash.
        texts = map(batch.routes.get, raw["route"].tolist())
        owners = map(who.__getitem__, batch.identity.tolist())
        peers = map([*who, -1].__getitem__, schema.peers_of(batch)["peer"].tolist())
        return list(zip(raw.view(f"V{raw.itemsize}").tolist(), texts, owners, peers, strict=True))

    def _new_places(self, batch: Batch, held: set[int]) -> list[tuple[int, ...]]:
        """The same of rows that were not seen before, whose series are made where there is room.

        Args:
            held: places that are not to be given up.
        """
        _, groups = red.each(batch, _BY)
        groups.keys["pid"] = 0
        families = (groups.keys["side"] == schema.CLIENT).astype(int)
        own = self._of_labels(families, _labels_of(groups, _FIELDS), batch.time_ns, held)
        found: list[tuple[int, ...]] = [(place,) for place in own]
        if not any(identity.services for identity in batch.identities):
            return found
        rows, groups = red.each(batch, _BY_SERVICE)
        behind = groups.whose["service"] >= 0
        labels = _labels_of(groups.take(behind), _SERVICE_FIELDS)
        families = np.full(len(labels), _SERVICE)
        more = self._of_labels(families, labels, batch.time_ns, held)
        for row, place in zip(rows[behind].tolist(), more, strict=True):
            found[row] += (place,)
        return found

    def _of_labels(
        self, families: Array, labels: list[str], now_ns: int, held: set[int]
    ) -> list[int]:
        """Places of series by their labels, new ones included; the family's own: no room."""
        found = []
        may_evict = True
        for family, text in zip(families.tolist(), labels, strict=True):
            place = self._place_of_labels.get((family, text), -1)
            if place < 0 and not self._room() and may_evict:
                self._evict(now_ns, held)
                may_evict = False
            if place < 0 and self._room():
                place = self._take_place(family, text)
            if place < 0:
                place = family
            held.add(place)
            found.append(place)
        return found

    def _room(self) -> bool:
        return bool(self._free) or len(self._labels) < self._limit

    def _take_place(self, family: int, labels: str) -> int:
        if self._free:
            place = self._free.pop()
            self._labels[place] = labels
        else:
            place = len(self._labels)
            self._labels.append(labels)
            if place == len(self._family):
                self._grow()
        self._family[place] = family
        self._place_of_labels[family, labels] = place
        return place

    def _grow(self) -> None:
        more = min(2 * len(self._family), self._limit) - len(self._family)
        self._family = np.concatenate([self._family, np.zeros(more, dtype=np.uint8)])
        self._le = np.concatenate([self._le, np.zeros((more, len(_BOUNDS)), dtype=np.uint64)])
        self._sums = np.concatenate([self._sums, np.zeros((more, 3), dtype=np.uint64)])
        self._seen_ns = np.concatenate([self._seen_ns, np.zeros(more, dtype=np.int64)])

    def _evict(self, now_ns: int, held: set[int]) -> None:
        """Free the places of idle series; to Prometheus they go stale, then begin at zero."""
        idle = np.flatnonzero(self._seen_ns < now_ns - self._idle_ns).tolist()
        gone = [place for place in idle if place >= len(_FAMILIES) and place not in held]
        gone = [place for place in gone if place < len(self._labels) and self._labels[place]]
        if not gone:
            return
        for place in gone:
            key = (int(self._family[place]), self._labels[place])
            del self._place_of_labels[key]
            self._exemplars.pop(key, None)
            self._labels[place] = ""
        self._le[gone] = 0
        self._sums[gone] = 0
        self._free += gone
        lost = set(gone)
        self._places_of_row = {
            key: places for key, places in self._places_of_row.items() if lost.isdisjoint(places)
        }


def _labels_of(groups: red.Groups, fields: Sequence[schema.Field]) -> list[str]:
    """The labels of each group; see `_label_texts`."""
    columns = schema.read(fields, groups.labels(), groups.by)
    return _label_texts(columns, fields, len(groups))


def _exemplars(batch: Batch) -> list[str]:
    """What stands behind the counts of the buckets that requests are in.

    https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md#exemplars
    """
    names = ("trace_id", "span_id", "duration")
    columns = schema.columns(batch)
    ended = schema.request_view(batch).time + batch.rows["duration_ns"].astype(np.int64)
    rows = zip(*(columns[name].tolist() for name in names), (ended / 1e9).tolist(), strict=True)
    return [
        f' # {{trace_id="{trace}",span_id="{span or ""}"}} {seconds!r} {end:.3f}'
        for trace, span, seconds, end in rows
    ]


def _label_texts(
    columns: Mapping[str, Array], fields: Sequence[schema.Field], count: int
) -> list[str]:
    """``name="value",...`` of each entry, names sorted, without the braces."""
    parts = {
        field.label_name: _label_column(field.label_name, columns[field.name].tolist())
        for field in fields
    }
    parts["url_scheme"] = ['url_scheme="http"'] * count
    rows = zip(*(parts[name] for name in sorted(parts)), strict=True)
    return [",".join(filter(None, row)) for row in rows]


def _label_column(name: str, values: list[object]) -> list[str]:
    # Empty labels and zero codes are the same as none.
    told = {value: f'{name}="{escaped(str(value))}"' if value else "" for value in set(values)}
    return [told[value] for value in values]


@dataclass(frozen=True)
class _Name:
    """What the metrics of a family are called, and of what they are."""

    duration: str
    bodies: str
    text: str


_NAMES = (
    _Name("http_server_request_duration_seconds", "podscope_http_server", "HTTP server requests"),
    _Name("http_client_request_duration_seconds", "podscope_http_client", "HTTP client requests"),
    _Name(
        "podscope_service_request_duration_seconds",
        "podscope_service",
        "HTTP requests that the endpoints of a Service answered",
    ),
)


def _family_metrics(
    shot: _Snapshot, family: int, called: _Name, openmetrics: bool
) -> Iterator[bytes]:
    counts = shot.le.sum(axis=1, dtype=np.uint64)
    used = np.array([bool(labels) for labels in shot.labels])
    mine = np.flatnonzero(used & (shot.family == family) & (counts > 0))
    if len(mine) == 0:
        return
    # Percent signs: the templates are formatted with %.
    labels = [shot.labels[place].replace("%", "%%") for place in mine.tolist()]
    name = called.duration
    yield head(name, "histogram", "seconds", f"Duration of {called.text}.", openmetrics)
    template = "".join(f'{name}_bucket{{@,le="{bound}"}} %d\n' for bound in _BOUNDS)
    template += f"{name}_sum{{@}} %r\n{name}_count{{@}} %d\n"
    cumulative = np.cumsum(shot.le[mine], axis=1, dtype=np.uint64)
    seconds = shot.sums[mine, 0] / 1e9
    rows = zip(cumulative.tolist(), seconds.tolist(), cumulative[:, -1].tolist(), strict=True)
    told = ((*le, total, count) for le, total, count in rows)
    found: list[Mapping[int, str]] = []
    if openmetrics and shot.exemplars:
        found = [shot.exemplars.get((family, shot.labels[place]), {}) for place in mine.tolist()]
    yield from _blocks(template, labels, told, found)
    for column, what in ((1, "request"), (2, "response")):
        name = f"{called.bodies}_{what}_body_bytes"
        text = f"Bytes of {what} bodies of {called.text}."
        yield head(name, "counter", "bytes", text, openmetrics)
        values = shot.sums[mine, column].tolist()
        yield from _blocks(f"{name}_total{{@}} %d\n", labels, ((value,) for value in values))


def _blocks(
    template: str,
    labels: list[str],
    values: Iterator[tuple[float, ...]],
    exemplars: Sequence[Mapping[int, str]] = (),
) -> Iterator[bytes]:
    """The template once a series, ``@`` standing for the labels, many series a piece.

    Exemplars, if there are any, are by the line that they stand in, for each series.
    """
    for start in range(0, len(labels), _SERIES_AT_ONCE):
        some = labels[start : start + _SERIES_AT_ONCE]
        texts = [template.replace("@", one) % next(values) for one in some]
        for place, found in enumerate(exemplars[start : start + _SERIES_AT_ONCE]):
            if found:
                lines = texts[place].split("\n")
                texts[place] = "\n".join(f"{one}{found.get(n, '')}" for n, one in enumerate(lines))
        yield "".join(texts).encode()


def _agent_metrics(shot: _Snapshot, openmetrics: bool) -> bytes:
    (lost,) = METRICS[LOST_KIND]
    parts = [head(lost.prometheus_name, lost.type, "", lost.text, openmetrics)]
    parts += [
        f'podscope_lost_total{{reason="{escaped(reason)}"}} {count}\n'.encode()
        for reason, count in shot.lost.items()
    ]
    for key, name, kind, unit, text in _AGENT:
        value = shot.series if key == "series" else shot.cost.get(key)
        if value is not None:
            sample = f"{name}_total" if kind == "counter" else name
            parts.append(head(name, kind, unit, text, openmetrics))
            parts.append(f"{sample} {value}\n".encode())
    if shot.sources:
        text = "Whether a source of rows beside HTTP that was asked for runs."
        parts.append(head("podscope_agent_source_up", "gauge", "", text, openmetrics))
    parts += [
        f'podscope_agent_source_up{{source="{escaped(name)}"}} {int(runs)}\n'.encode()
        for name, runs in shot.sources.items()
    ]
    return b"".join(parts)


_AGENT = (
    (
        "cpu_seconds",
        "podscope_agent_cpu_seconds",
        "counter",
        "seconds",
        "CPU time of podscope itself, in user space.",
    ),
    (
        "resident_bytes",
        "podscope_agent_resident_memory_bytes",
        "gauge",
        "bytes",
        "Resident memory of podscope.",
    ),
    (
        "kernel_runs",
        "podscope_agent_kernel_runs",
        "counter",
        "",
        "Runs of podscope's kernel programs, where the kernel counts them.",
    ),
    (
        "kernel_seconds",
        "podscope_agent_kernel_seconds",
        "counter",
        "seconds",
        "Time in podscope's kernel programs, where the kernel counts it.",
    ),
    ("series", "podscope_agent_series", "gauge", "", "Series in this exposition."),
)


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept field (RFC 9110, section 12.5.1) prefers OpenMetrics 1.0 to text."""
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        told = dict(parameter.partition("=")[::2] for parameter in parameters)
        if media in best and told.get("version", "1.0.0") in ("1.0.0", "0.0.4"):
            best[media] = max(best[media], _weight(told.get("q", "1")))
    return best["application/openmetrics-text"] > 0 and (
        best["application/openmetrics-text"] >= best["text/plain"]
    )


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
