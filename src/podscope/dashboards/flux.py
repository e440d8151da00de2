# SPDX-License-Identifier: Apache-2.0
"""The panels in Flux, for InfluxDB 2, and 1.8 with ``flux-enabled``.

Measurements, tags and fields are those that ``podscope.sinks.line_protocol`` writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from podscope.dashboards.influxql import COLUMNS
from podscope.dashboards.influxql import TAGS
from podscope.dashboards.panels import Object
from podscope.dashboards.panels import Source

_OVERVIEW = ("cluster", "namespace", "workload", "node")
_POD = ("cluster", "namespace", "workload", "pod", "node")
_SERVICE = ("cluster", "namespace", "service")
_LOG = (*_POD, "side")
_SERVERS, _CLIENTS = 'r["side"] == "server"', 'r["side"] == "client"'
_FAILED = 'exists r["error.type"]'
_NEWEST = 500
# What lines are told apart by, as the legend says it.
_BY = "by"


def _points(kind: str, fields: str) -> str:
    return (
        "from(bucket: v.defaultBucket)\n"
        "  |> range(start: v.timeRangeStart, stop: v.timeRangeStop)\n"
        f'  |> filter(fn: (r) => r._measurement == "podscope_{kind}"{fields})\n'
    )


def _where(variables: Sequence[str], *more: str) -> str:
    """Conditions of a board's variables; a tag that is missing is matched by all.

    They come after ``group``, whose one table has the tags of all series: a table that lacks a
    column is refused by Flux before 0.70.
    """
    told = [
        f'(if exists r["{TAGS[name]}"] then r["{TAGS[name]}"] else "") =~ /^${{{name}:regex}}$/'
        for name in variables
    ]
    return f"  |> group()\n  |> filter(fn: (r) => {' and '.join([*told, *more])})\n"


def _rows(kind: str, fields: str, variables: Sequence[str], *more: str) -> str:
    """Points of one field, or of fields of one type."""
    return _points(kind, f" and {fields}") + _where(variables, *more)


def _field(name: str) -> str:
    return f'r._field == "{name}"'


def _label(by: Sequence[str], more: str = "") -> str:
    """A column with what lines are told apart by, and nothing else."""
    parts = [f'(if exists r["{tag}"] then r["{tag}"] else "")' for tag in by]
    text = ' + "/" + '.join(parts) or '""'
    if more:
        text = f'{text} + " {more}"' if by else f'"{more}"'
    return f'  |> map(fn: (r) => ({{r with {_BY}: {text}}}))\n  |> group(columns: ["{_BY}"])\n'


def _windows(function: str) -> str:
    return f"  |> aggregateWindow(every: v.windowPeriod, fn: {function}, createEmpty: false)\n"


_PER_SECOND = (
    "  |> map(fn: (r) => ({r with "
    "_value: float(v: r._value) * 1000000000.0 / float(v: int(v: v.windowPeriod))}))\n"
)


def _target(query: str) -> Object:
    return {"query": query.rstrip("\n")}


def _line(query: str) -> Object:
    """A target whose answer Grafana draws as lines: it knows these by ``_measurement``, and takes
    columns without an underscore for labels (pkg/tsdb/influxdb/flux/builder.go).
    """
    return _target(
        query
        + f'  |> keep(columns: ["_time", "_value", "{_BY}"])\n'
        + '  |> set(key: "_measurement", value: "podscope")\n'
        + '  |> set(key: "_field", value: "value")\n'
    )


def _sum(rows: str, by: Sequence[str], more: str = "", function: str = "sum") -> Object:
    """Lines of sums a second."""
    return _line(rows + _label(by, more) + _windows(function) + _PER_SECOND)


def _highest(rows: str, by: Sequence[str]) -> Object:
    return _line(rows + _label(by) + _windows("max"))


def _ratio(above: str, below: str, by: Sequence[str], more: str = "") -> Object:
    """Lines of one sum as a share of another; where the first has nothing, 0."""

    def summed(rows: str, zero: str) -> str:
        return (
            rows
            + _label(by, more)
            + f"  |> map(fn: (r) => ({{_time: r._time, {_BY}: r.{_BY}, {zero}}}))\n"
        )

    first = summed(above, "above: float(v: r._value), below: 0.0")
    second = summed(below, "above: 0.0, below: float(v: r._value)")
    return _line(
        f"above = {first}\nbelow = {second}\n"
        "union(tables: [above, below])\n"
        f'  |> group(columns: ["{_BY}"])\n'
        "  |> window(every: v.windowPeriod)\n"
        "  |> reduce(identity: {above: 0.0, below: 0.0}, fn: (r, accumulator) => ({\n"
        "    above: accumulator.above + r.above, below: accumulator.below + r.below}))\n"
        "  |> filter(fn: (r) => r.below > 0.0)\n"
        f"  |> map(fn: (r) => ({{_time: r._stop, {_BY}: r.{_BY}, _value: r.above / r.below}}))\n"
        f'  |> group(columns: ["{_BY}"])\n'
    )


_COUNT = _field("count")
_HISTOGRAM = "r._field =~ /^duration\\.le_/"


def _quantiles(
    shares: Sequence[float], kind: str, variables: Sequence[str], by: Sequence[str], *more: str
) -> tuple[Object, ...]:
    """Lines of quantiles of the histograms, added up: those of all series together."""
    rows = _rows(kind, _HISTOGRAM, variables, *more)
    return tuple(
        _line(
            'import "strings"\n'
            + rows
            + _labelled_by_field(by, f"{share * 100:g} %" if len(shares) > 1 else "")
            + _windows("sum")
            + _quantile(share, "_time")
        )
        for share in shares
    )


def _labelled_by_field(by: Sequence[str], more: str = "") -> str:
    made = _label(by, more)
    return made.replace(f'group(columns: ["{_BY}"])', f'group(columns: ["{_BY}", "_field"])')


def _quantile(share: float, *also: str) -> str:
    """Of counts at the bounds, which are in the fields' names; for each ``by`` and ``also``."""
    names = ", ".join(f'"{name}"' for name in (_BY, *also))
    return (
        "  |> map(fn: (r) => ({r with le: float(v: strings.trimPrefix(v: r._field, "
        'prefix: "duration.le_")), _value: float(v: r._value)}))\n'
        f"  |> group(columns: [{names}])\n"
        f"  |> histogramQuantile(quantile: {share})\n"
        f'  |> group(columns: ["{_BY}"])\n'
    )


def _red(
    key: str, kind: str, variables: Sequence[str], by: Sequence[str], *more: str
) -> dict[str, tuple[Object, ...]]:
    count = _rows(kind, _COUNT, variables, *more)
    return {
        f"{key}.rate": (_sum(count, by),),
        f"{key}.errors": (_ratio(_rows(kind, _COUNT, variables, *more, _FAILED), count, by),),
        f"{key}.p99": _quantiles((0.99,), kind, variables, by, *more),
    }


def _mean(
    kind: str, variables: Sequence[str], by: Sequence[str], *more: str, called: str = ""
) -> Object:
    seconds = _rows(kind, _field("duration.sum"), variables, *more)
    return _ratio(seconds, _rows(kind, _COUNT, variables, *more), by, called)


def _all() -> dict[str, tuple[Object, ...]]:
    whole = _red("all", "http", _OVERVIEW, (), _SERVERS)
    return {
        **whole,
        "all.mean": (_mean("http", _OVERVIEW, (), _SERVERS),),
        "all.p50": _quantiles((0.5,), "http", _OVERVIEW, (), _SERVERS),
    }


def _worst() -> dict[str, tuple[Object, ...]]:
    failed = _rows("http", _COUNT, _OVERVIEW, _SERVERS, _FAILED)
    return {
        "top.errors": (
            _target(
                failed
                + _grouped([*COLUMNS["top.errors"]][:-1])
                + "  |> sum()\n"
                + '  |> rename(columns: {_value: "requests"})\n  |> group()\n'
            ),
        ),
        "top.routes": (
            _target(
                'import "strings"\n'
                + _rows("http", _HISTOGRAM, _OVERVIEW, _SERVERS)
                + _grouped([*COLUMNS["top.routes"]][:-1], "_field")
                + "  |> sum()\n"
                + _routes_quantile()
            ),
        ),
    }


def _routes_quantile() -> str:
    tags = [*COLUMNS["top.routes"]][:-1]
    return (
        "  |> map(fn: (r) => ({r with le: float(v: strings.trimPrefix(v: r._field, "
        'prefix: "duration.le_")), _value: float(v: r._value)}))\n'
        + _grouped(tags)
        + "  |> histogramQuantile(quantile: 0.99)\n"
        + '  |> rename(columns: {_value: "p99"})\n  |> group()\n'
    )


def _grouped(tags: Sequence[str], *more: str) -> str:
    names = ", ".join(f'"{name}"' for name in (*tags, *more))
    return f"  |> group(columns: [{names}])\n"


def _pod() -> dict[str, tuple[Object, ...]]:
    pod, route = (TAGS["pod"],), ("http.route",)
    count = _rows("http", _COUNT, _POD, _SERVERS)

    def status(first: int) -> Object:
        some = f'r["http.response.status_code"] =~ /^{first}/'
        return _sum(_rows("http", _COUNT, _POD, _SERVERS, some), pod, f"{first}xx")

    def bodies(what: str) -> Object:
        rows = _rows("http", _field(f"http.{what}.body.size"), _POD, _SERVERS)
        return _sum(rows, pod, f"{what}s")

    return {
        "pod.rate": (_sum(count, pod),),
        "pod.errors": (status(4), status(5)),
        "pod.duration": _quantiles((0.5, 0.9, 0.99), "http", _POD, pod, _SERVERS),
        "route.rate": (_sum(count, route),),
        "status.rate": (_sum(count, ("http.response.status_code",)),),
        "method.rate": (_sum(count, ("http.request.method",)),),
        "route.p99": _quantiles((0.99,), "http", _POD, route, _SERVERS),
        "pod.bodies": (bodies("request"), bodies("response")),
        **_red("client", "http", _POD, pod, _CLIENTS),
    }


def _table(kind: str, key: str, variables: Sequence[str], *more: str) -> Object:
    """The newest points, each with all its fields: ``more`` are conditions of these too."""
    names = ", ".join(f'"{"_time" if name == "Time" else name}"' for name in COLUMNS[key])
    return _target(
        _points(kind, "")
        + '  |> pivot(rowKey: ["_time"], columnKey: ["_field"], valueColumn: "_value")\n'
        + _where(variables, *more)
        + f"  |> keep(columns: [{names}])\n"
        + f'  |> sort(columns: ["_time"], desc: true)\n  |> limit(n: {_NEWEST})\n'
    )


def _log() -> dict[str, tuple[Object, ...]]:
    pod = (TAGS["pod"],)
    duration = _field("duration")
    rows = _rows("request", duration, _LOG)
    return {
        "log.rate": (_sum(rows, pod, function="count"),),
        "log.errors": (_ratio(_ones(_rows("request", duration, _LOG, _FAILED)), _ones(rows), pod),),
        "log.duration": (
            _line(
                rows
                + _label(pod)
                + "  |> aggregateWindow(every: v.windowPeriod, createEmpty: false, "
                + "fn: (column, tables=<-) => tables |> quantile(q: 0.99, column: column, "
                + 'method: "exact_selector"))\n'
            ),
        ),
        "log.table": (_table("request", "log.table", _LOG, 'r["url.path"] =~ /^${path:regex}/'),),
    }


def _ones(rows: str) -> str:
    """Each point as one."""
    return rows + "  |> map(fn: (r) => ({r with _value: 1.0}))\n"


def _events() -> dict[str, tuple[Object, ...]]:
    workload, pod = (TAGS["namespace"], TAGS["workload"]), (TAGS["pod"], "server.port")

    def total(kind: str, name: str, by: Sequence[str], more: str = "") -> Object:
        return _sum(_rows(kind, _field(name), _POD), by, more)

    def share(kind: str, above: str, below: str) -> Object:
        return _ratio(_rows(kind, _field(above), _POD), _rows(kind, _field(below), _POD), workload)

    kills = _rows("oom", _field("process.memory.usage"), _POD)
    failed = _rows("dns", _COUNT, _POD, _FAILED)
    return {
        "oom.kills": (_line(kills + _label(workload) + _windows("count")),),
        "oom.table": (_table("oom", "oom.table", _POD),),
        "listen.usage": (
            _highest(_rows("listen", _field("podscope.listen.queue.usage"), _POD), pod),
        ),
        "listen.drops": (total("listen", "podscope.listen.drops", pod),),
        "listen.overflows": (total("listen", "podscope.listen.overflows", pod),),
        "tcp.opened": (
            total("tcp", "podscope.tcp.connects", workload, "connect"),
            total("tcp", "podscope.tcp.accepts", workload, "accept"),
        ),
        "tcp.failed": (total("tcp", "podscope.tcp.connects.failed", workload),),
        "tcp.resets": (
            total("tcp", "podscope.tcp.resets.sent", workload, "sent"),
            total("tcp", "podscope.tcp.resets.received", workload, "received"),
        ),
        "tcp.retransmits": (total("tcp", "podscope.tcp.retransmits", workload),),
        "tcp.bytes": (
            total("tcp", "podscope.tcp.sent", workload, "sent"),
            total("tcp", "podscope.tcp.received", workload, "received"),
        ),
        "tcp.connect": (
            share("tcp", "podscope.tcp.connect.duration.sum", "podscope.tcp.connects"),
        ),
        "tcp.life": (share("tcp", "podscope.tcp.duration.sum", "podscope.tcp.duration.count"),),
        "tcp.table": (_table("tcp_event", "tcp.table", _POD),),
        # Servers tell of the same lookups once more.
        "dns.rate": (_sum(_rows("dns", _COUNT, _POD, _CLIENTS), ("podscope.dns.response_code",)),),
        "dns.errors": (_ratio(failed, _rows("dns", _COUNT, _POD), workload),),
        "dns.duration": (_mean("dns", _POD, workload),),
        "dns.table": (_table("dns", "dns.table", _POD, _FAILED),),
    }


def _lost() -> dict[str, tuple[Object, ...]]:
    rows = _rows("lost", _COUNT, ("cluster", "instance"))
    by = (TAGS["instance"], "reason")
    summed = rows + _grouped(by) + "  |> sum()\n"
    return {
        "lost.rate": (_sum(rows, by),),
        "lost.table": (_target(summed + '  |> rename(columns: {_value: "lost"})\n  |> group()\n'),),
    }


def _values(name: str) -> str:
    return (
        'import "influxdata/influxdb/v1"\n'
        f'v1.tagValues(bucket: v.defaultBucket, tag: "{TAGS[name]}")'
    )


_TARGETS: dict[str, tuple[Object, ...]] = {
    **_all(),
    **_red("namespace", "http", _OVERVIEW, (TAGS["namespace"],), _SERVERS),
    **_red("workload", "http", _OVERVIEW, (TAGS["namespace"], TAGS["workload"]), _SERVERS),
    **_red("service", "service", _SERVICE, (TAGS["namespace"], TAGS["service"])),
    **_worst(),
    **_pod(),
    **_log(),
    **_events(),
    **_lost(),
}
FLUX = Source(
    name="flux",
    title="Flux",
    plugin="influxdb",
    targets=_TARGETS,
    variables={name: _values(name) for name in TAGS},
    all_values=dict.fromkeys(TAGS, ".*"),
    # Versions of Grafana differ in what they call the column of times.
    columns={
        key: ({"_time": "Time"} if "Time" in columns else {}) | columns
        for key, columns in COLUMNS.items()
        if key in _TARGETS
    },
    legends={key: f"${{__field.labels.{_BY}}}" for key in _TARGETS if key not in COLUMNS},
    least="10s",
)
