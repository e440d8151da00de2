# SPDX-License-Identifier: Apache-2.0
"""The panels in InfluxQL, for InfluxDB 1 and for version 2 by its compatibility API.

Measurements, tags and fields are those that ``podscope.sinks.line_protocol`` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from podscope import red
from podscope.dashboards.panels import NARROWED_BY
from podscope.dashboards.panels import Object
from podscope.dashboards.panels import Source
from podscope.sinks.line_protocol import LE_NAMES

TAGS = {
    "cluster": "k8s.cluster.name",
    "namespace": "k8s.namespace.name",
    "workload": "service.name",
    "pod": "k8s.pod.name",
    "node": "k8s.node.name",
    "service": "k8s.service.name",
    "side": "side",
    "instance": "host.name",
}
_OVERVIEW = ("cluster", "namespace", "workload", "node")
_POD = ("cluster", "namespace", "workload", "pod", "node")
_SERVICE = ("cluster", "namespace", "service")
_LOG = (*_POD, "side")
_SERVERS, _CLIENTS, _FAILED = "\"side\" = 'server'", "\"side\" = 'client'", "\"error.type\" != ''"
_TOTAL = 'sum("count")'
_A_SECOND = "* 1000 / $__interval_ms"
_NEWEST = 500


def _where(variables: Sequence[str], *more: str) -> str:
    """Conditions of a board's variables; a tag that is missing is matched by all."""
    told = [f'"{TAGS[name]}" =~ /^${name}$/' for name in variables]
    return " AND ".join(["$timeFilter", *told, *more])


def _lines(value: str, source: str, where: str, by: Sequence[str], fill: str = "0") -> Object:
    """Lines over time, one for each value of some tags."""
    groups = "".join(f', "{tag}"' for tag in by)
    grouped = f"GROUP BY time($__interval){groups} fill({fill})"
    return _over_time(f"SELECT {value} FROM {source} WHERE {where} {grouped}", by)


def _over_time(query: str, by: Sequence[str]) -> Object:
    return {
        "query": query,
        "rawQuery": True,
        "resultFormat": "time_series",
        "alias": "/".join(f"[[tag_{tag}]]" for tag in by) or "$col",
    }


def _quantile(share: float) -> str:
    """A quantile of the counts ``c0`` to ``c14`` at the bounds, in seconds.

    As histogram_quantile of Prometheus: a straight line between two bounds, and the last one for
    what is beyond. InfluxQL has no conditions: the share of each bucket that is below is
    (|z| - |z - 1| + 1) / 2, which is z between 0 and 1, and else the nearer of both.
    """
    bounds = (0.0, *red.CLASSIC_BOUNDS)
    parts = [f"{bounds[-1] / 2:g}"]
    for n, (low, high) in enumerate(pairwise(bounds)):
        below = f"c{n - 1}" if n else "0"
        # A bucket without anything is no division by zero.
        z = f"({share} * c{len(red.CLASSIC_BOUNDS)} - {below}) / (c{n} - {below} + 0.000001)"
        parts.append(f"{(high - low) / 2:g} * (abs({z}) - abs({z} - 1))")
    return " + ".join(parts)


def _counts(source: str, where: str, groups: str) -> str:
    """A subquery with the counts at the bounds, of all series of a group together."""
    counts = ", ".join(f'sum("{name}") AS c{n}' for n, name in enumerate(LE_NAMES))
    return f"(SELECT {counts} FROM {source} WHERE {where} {groups})"


def _quantile_lines(share: float, source: str, where: str, by: Sequence[str]) -> Object:
    """Lines over time of a quantile, one for each value of some tags."""
    tags = ", ".join(f'"{tag}"' for tag in by)
    inner = ", ".join(filter(None, ["time($__interval)", tags]))
    counts = _counts(source, where, f"GROUP BY {inner} fill(none)")
    grouped = f" GROUP BY {tags}" if by else ""
    value = f"{_quantile(share)} AS p{share * 100:g}"
    return _over_time(f"SELECT {value} FROM {counts}{grouped}", by)


def _table(value: str, source: str, where: str, by: Sequence[str] = ()) -> Object:
    groups = ", ".join(f'"{tag}"' for tag in by)
    newest = f" ORDER BY time DESC LIMIT {_NEWEST}"
    end = f" GROUP BY {groups}" if by else newest
    return _as_table(f"SELECT {value} FROM {source} WHERE {where}{end}")


def _as_table(query: str) -> Object:
    return {"query": query, "rawQuery": True, "resultFormat": "table"}


def _named(target: Object, more: str) -> Object:
    """The same, its lines called so as well."""
    return target | {"alias": f"{target['alias']} {more}"}


def _measurement(kind: str) -> str:
    return f'"podscope_{kind}"'


def _share(count: str, kind: str, failed: str, variables: Sequence[str], *more: str) -> str:
    """A subquery with the columns ``bad`` and ``whole``: of those that failed, and of all."""
    bad = f"SELECT {count} AS bad FROM {_measurement(kind)} WHERE "
    whole = f"SELECT {count} AS whole FROM {_measurement(kind)} WHERE "
    return f"({bad}{_where(variables, *more, failed)}), ({whole}{_where(variables, *more)})"


def _errors(
    kind: str, variables: Sequence[str], by: Sequence[str], *more: str, count: str = '"count"'
) -> Object:
    source = _share(count, kind, _FAILED, variables, *more)
    return _lines("sum(bad) / sum(whole)", source, "$timeFilter", by)


def _red(
    key: str, kind: str, variables: Sequence[str], by: Sequence[str], *more: str
) -> dict[str, tuple[Object, ...]]:
    where, source = _where(variables, *more), _measurement(kind)
    return {
        f"{key}.rate": (_lines(f"{_TOTAL} {_A_SECOND}", source, where, by),),
        f"{key}.errors": (_errors(kind, variables, by, *more),),
        f"{key}.p99": (_quantile_lines(0.99, source, where, by),),
    }


def _all() -> dict[str, tuple[Object, ...]]:
    where, source = _where(_OVERVIEW, _SERVERS), _measurement("http")
    mean = f'sum("duration.sum") / {_TOTAL}'
    return {
        "all.rate": (_lines(f"{_TOTAL} {_A_SECOND}", source, where, ()),),
        "all.errors": (_errors("http", _OVERVIEW, (), _SERVERS),),
        "all.mean": (_lines(mean, source, where, (), "none"),),
        "all.p50": (_quantile_lines(0.5, source, where, ()),),
        "all.p99": (_quantile_lines(0.99, source, where, ()),),
        "top.errors": (
            _table(
                f"{_TOTAL} AS requests",
                source,
                f"{where} AND {_FAILED}",
                [*COLUMNS["top.errors"]][:-1],
            ),
        ),
        "top.routes": (_slowest(source, where, [*COLUMNS["top.routes"]][:-1]),),
    }


def _slowest(source: str, where: str, by: Sequence[str]) -> Object:
    tags = ", ".join(f'"{tag}"' for tag in by)
    counts = _counts(source, where, f"GROUP BY {tags}")
    return _as_table(f"SELECT {_quantile(0.99)} AS p99 FROM {counts} GROUP BY {tags}")


def _pod() -> dict[str, tuple[Object, ...]]:
    pod, route, source = (TAGS["pod"],), ("http.route",), _measurement("http")
    where = _where(_POD, _SERVERS)
    rate = f"{_TOTAL} {_A_SECOND}"

    def status(first: int) -> Object:
        some = _where(_POD, _SERVERS, f'"http.response.status_code" =~ /^{first}/')
        return _named(_lines(rate, source, some, pod), f"{first}xx")

    return {
        "pod.rate": (_lines(rate, source, where, pod),),
        "pod.errors": (status(4), status(5)),
        "pod.duration": tuple(
            _named(_quantile_lines(share, source, where, pod), f"{share * 100:g} %")
            for share in (0.5, 0.9, 0.99)
        ),
        "route.rate": (_lines(rate, source, where, route),),
        "status.rate": (_lines(rate, source, where, ("http.response.status_code",)),),
        "method.rate": (_lines(rate, source, where, ("http.request.method",)),),
        "route.p99": (_quantile_lines(0.99, source, where, route),),
        "pod.bodies": tuple(
            _named(
                _lines(f'sum("http.{what}.body.size") {_A_SECOND}', source, where, pod),
                f"{what}s",
            )
            for what in ("request", "response")
        ),
        **_red("client", "http", _POD, pod, _CLIENTS),
    }


def _log() -> dict[str, tuple[Object, ...]]:
    path = '"url.path" =~ /^${path:regex}/'
    where, source, pod = _where(_LOG, path), _measurement("request"), (TAGS["pod"],)
    columns = ", ".join(f'"{name}"' for name in COLUMNS["log.table"] if name != "Time")
    return {
        "log.rate": (_lines(f'count("duration") {_A_SECOND}', source, where, pod),),
        "log.errors": (
            _lines(
                "count(bad) / count(whole)",
                _share('"duration"', "request", _FAILED, _LOG, path),
                "$timeFilter",
                pod,
            ),
        ),
        "log.duration": (_lines('percentile("duration", 99)', source, where, pod, "none"),),
        "log.table": (_table(columns, source, where),),
    }


def _events() -> dict[str, tuple[Object, ...]]:
    where = _where(_POD)
    workload, pod = (TAGS["namespace"], TAGS["workload"]), (TAGS["pod"], "server.port")
    oom, listen, tcp, dns = map(_measurement, ("oom", "listen", "tcp", "dns"))

    def rate(name: str, source: str, by: Sequence[str], called: str = "") -> Object:
        made = _lines(f'sum("{name}") {_A_SECOND}', source, where, by)
        return _named(made, called) if called else made

    def newest(key: str, source: str) -> Object:
        columns = ", ".join(f'"{name}"' for name in COLUMNS[key] if name != "Time")
        return _table(columns, source, where)

    return {
        "oom.kills": (_lines('count("process.memory.usage")', oom, where, workload),),
        "oom.table": (newest("oom.table", oom),),
        "listen.usage": (_lines('max("podscope.listen.queue.usage")', listen, where, pod, "none"),),
        "listen.drops": (rate("podscope.listen.drops", listen, pod),),
        "listen.overflows": (rate("podscope.listen.overflows", listen, pod),),
        "listen.table": (
            _table(
                'max("podscope.listen.accept_queue.highest") AS most, '
                'max("podscope.listen.limit") AS "limit", '
                'sum("podscope.listen.drops") AS drops',
                listen,
                where,
                [*COLUMNS["listen.table"]][:-3],
            ),
        ),
        "tcp.opened": (
            rate("podscope.tcp.connects", tcp, workload, "connect"),
            rate("podscope.tcp.accepts", tcp, workload, "accept"),
        ),
        "tcp.failed": (rate("podscope.tcp.connects.failed", tcp, workload),),
        "tcp.resets": (
            rate("podscope.tcp.resets.sent", tcp, workload, "sent"),
            rate("podscope.tcp.resets.received", tcp, workload, "received"),
        ),
        "tcp.retransmits": (rate("podscope.tcp.retransmits", tcp, workload),),
        "tcp.bytes": (
            rate("podscope.tcp.sent", tcp, workload, "sent"),
            rate("podscope.tcp.received", tcp, workload, "received"),
        ),
        "tcp.connect": (
            _lines(
                'sum("podscope.tcp.connect.duration.sum") / sum("podscope.tcp.connects")',
                tcp,
                f'{where} AND "podscope.tcp.connects" > 0',
                workload,
                "none",
            ),
        ),
        "tcp.life": (
            _lines(
                'sum("podscope.tcp.duration.sum") / sum("podscope.tcp.duration.count")',
                tcp,
                where,
                workload,
                "none",
            ),
        ),
        "tcp.table": (newest("tcp.table", _measurement("tcp_event")),),
        # Servers tell of the same lookups once more.
        "dns.rate": (
            _lines(
                f"{_TOTAL} {_A_SECOND}",
                dns,
                f"{where} AND {_CLIENTS}",
                ("podscope.dns.response_code",),
            ),
        ),
        "dns.errors": (_errors("dns", _POD, workload),),
        "dns.duration": (_lines(f'sum("duration.sum") / {_TOTAL}', dns, where, workload, "none"),),
        "dns.table": (
            _table(
                '"dns.question.name", "error.type", "k8s.pod.name", "count"',
                dns,
                f"{where} AND {_FAILED}",
            ),
        ),
    }


def _lost() -> dict[str, tuple[Object, ...]]:
    where, by = _where(("cluster", "instance")), (TAGS["instance"], "reason")
    return {
        "lost.rate": (_lines(f"{_TOTAL} {_A_SECOND}", _measurement("lost"), where, by),),
        "lost.table": (_table(f"{_TOTAL} AS lost", _measurement("lost"), where, by),),
    }


def _values(name: str, *above: str) -> str:
    """Values of a tag, of what the variables before it leave."""
    where = " AND ".join(f'"{TAGS[one]}" =~ /^${one}$/' for one in above)
    return f'SHOW TAG VALUES FROM /^podscope_/ WITH KEY = "{TAGS[name]}"' + (
        f" WHERE {where}" if where else ""
    )


COLUMNS = {
    "top.errors": {
        "k8s.namespace.name": "Namespace",
        "service.name": "Workload",
        "http.request.method": "Method",
        "http.route": "Route",
        "error.type": "Error",
        "requests": "Requests",
    },
    "top.routes": {
        "k8s.namespace.name": "Namespace",
        "service.name": "Workload",
        "http.route": "Route",
        "p99": "99th percentile",
    },
    "log.table": {
        "Time": "Time",
        "http.response.status_code": "Status",
        "error.type": "Error",
        "duration": "Duration (s)",
        "http.request.method": "Method",
        "url.path": "Path",
        "k8s.namespace.name": "Namespace",
        "k8s.pod.name": "Pod",
        "service.name": "Workload",
        "k8s.node.name": "Node",
        "service.peer.name": "Peer",
        "client.address": "Source",
        "client.port": "Source port",
        "server.address": "Host",
        "server.port": "Port",
        "side": "Side",
        "network.protocol.version": "HTTP",
    },
    "oom.table": {
        "Time": "Time",
        "k8s.namespace.name": "Namespace",
        "k8s.pod.name": "Pod",
        "k8s.container.name": "Container",
        "podscope.process.comm": "Process",
        "podscope.oom.scope": "Scope",
        "podscope.oom.limit": "Memory limit",
        "process.memory.usage": "Resident memory",
        "podscope.oom.trigger.comm": "Triggered by",
    },
    "listen.table": {
        "k8s.namespace.name": "Namespace",
        "k8s.pod.name": "Pod",
        "process.executable.name": "Process",
        "server.port": "Port",
        "most": "Most",
        "limit": "Limit",
        "drops": "Drops",
    },
    "tcp.table": {
        "Time": "Time",
        "podscope.tcp.event": "Event",
        "error.type": "Error",
        "k8s.namespace.name": "Namespace",
        "k8s.pod.name": "Pod",
        "side": "Side",
        "service.peer.name": "Peer",
        "network.peer.address": "Peer's address",
        "network.peer.port": "Peer's port",
        "network.local.port": "Port",
        "podscope.tcp.state.old": "State before",
        "network.connection.state": "State",
        "duration": "Duration (s)",
        "podscope.tcp.drop.reason": "Reason of the drop",
    },
    "lost.table": {"host.name": "Agent", "reason": "Reason", "lost": "Exchanges"},
    "dns.table": {
        "dns.question.name": "Name",
        "error.type": "Error",
        "k8s.pod.name": "Pod",
        "count": "Lookups",
    },
}
INFLUXQL = Source(
    name="influxql",
    title="InfluxQL",
    plugin="influxdb",
    targets={
        **_all(),
        **_red("namespace", "http", _OVERVIEW, (TAGS["namespace"],), _SERVERS),
        **_red("workload", "http", _OVERVIEW, (TAGS["namespace"], TAGS["workload"]), _SERVERS),
        **_red("service", "service", _SERVICE, (TAGS["namespace"], TAGS["service"])),
        **_pod(),
        **_log(),
        **_events(),
        **_lost(),
    },
    variables={name: _values(name, *above) for name, above in NARROWED_BY.items()},
    all_values=dict.fromkeys(TAGS, ".*"),
    columns=COLUMNS,
    least="10s",
)
