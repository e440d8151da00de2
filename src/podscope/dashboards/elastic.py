# SPDX-License-Identifier: Apache-2.0
"""The panels as queries of Grafana's data source Elasticsearch, its index being ``podscope-*``.

Names of fields are those that ``podscope.sinks.elastic_templates`` gives them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence

from podscope import red
from podscope.dashboards.panels import NARROWED_BY
from podscope.dashboards.panels import Object
from podscope.dashboards.panels import Source
from podscope.sinks import elastic_templates as templates

FIELDS = {
    "cluster": "k8s.cluster.name",
    "namespace": "k8s.namespace.name",
    "workload": "service.name",
    "pod": "k8s.pod.name",
    "node": "k8s.node.name",
    "service": "k8s.service.name",
    "side": "podscope.side",
    "instance": "host.name",
}
TIME = "@timestamp"
_OVERVIEW = ("cluster", "namespace", "workload", "node")
_POD = ("cluster", "namespace", "workload", "pod", "node")
_SERVICE = ("cluster", "namespace", "service")
_LOG = (*_POD, "side")
_SERVERS, _CLIENTS = "podscope.side:server", "podscope.side:client"
_FAILED = "_exists_:error.type"
_NEWEST = "500"
_COUNT = "podscope.count"
_SHARE = "params.b == 0 ? null : params.a / params.b"
_IS_ERROR = "(doc['error.type'].size() == 0 ? 0 : 1)"
_A_SECOND = "params.a * 1000 / $__interval_ms"


def _where(kind: str, variables: Sequence[str], *more: str) -> str:
    """A query of Lucene's."""
    told = [f"{FIELDS[name]}:${name}" for name in variables]
    return " AND ".join([f'event.dataset:"podscope.{kind}"', *told, *more])


def _sum(number: str, field: str, function: str = "sum", *, hide: bool = False) -> Object:
    return {"id": number, "type": function, "field": field, "hide": hide}


def _script(text: str, names: Mapping[str, str]) -> Object:
    """A number made of others, by the names that the text has for them."""
    variables = [{"name": name, "pipelineAgg": number} for name, number in names.items()]
    return {
        "id": "script",
        "type": "bucket_script",
        "pipelineVariables": variables,
        "settings": {"script": text},
        "hide": False,
    }


def _terms(by: Sequence[str], most: str) -> list[Object]:
    return [
        {
            "id": f"by{n}",
            "type": "terms",
            "field": field,
            "settings": {
                "size": most,
                "min_doc_count": "1",
                "order": "desc",
                "orderBy": "_count",
                **({} if field in _NUMBERS else {"missing": "-"}),
            },
        }
        for n, field in enumerate(by)
    ]


_NUMBERS = {"http.response.status_code", "server.port"}


def _lines(where: str, metrics: Sequence[Object], by: Sequence[str], called: str = "") -> Object:
    """Lines over time, one for each value of some fields."""
    over_time = {
        "id": "time",
        "type": "date_histogram",
        "field": TIME,
        "settings": {"interval": "auto", "min_doc_count": "0", "trimEdges": "0"},
    }
    name = "/".join(f"{{{{term {field}}}}}" for field in by)
    return {
        "query": where,
        "metrics": [*metrics],
        "bucketAggs": [*_terms(by, "50"), over_time],
        "timeField": TIME,
        "alias": f"{name} {called}".strip() or "{{metric}}",
    }


def _table(where: str, metrics: Sequence[Object], by: Sequence[str]) -> Object:
    return {
        "query": where,
        "metrics": [*metrics],
        "bucketAggs": _terms(by, "20"),
        "timeField": TIME,
        "alias": "",
    }


def _newest(where: str) -> Object:
    """Documents as they are."""
    raw = {"id": "1", "type": "raw_data", "settings": {"size": _NEWEST}, "hide": False}
    return {"query": where, "metrics": [raw], "bucketAggs": [], "timeField": TIME, "alias": ""}


def _rate(where: str, field: str, by: Sequence[str], called: str = "") -> Object:
    hidden = _sum("a", field, hide=True)
    return _lines(where, [hidden, _script(_A_SECOND, {"a": "a"})], by, called)


def _ratio(where: str, above: str, below: str, by: Sequence[str], called: str = "") -> Object:
    """Lines of one sum as a share of another."""
    metrics = [_sum("a", above, hide=True), _sum("b", below, hide=True)]
    return _lines(where, [*metrics, _script(_SHARE, {"a": "a", "b": "b"})], by, called)


def _errors(where: str, count: str, by: Sequence[str]) -> Object:
    """Lines of the share of errors, where a document stands for so many."""
    bad = _sum("a", count, hide=True) | {"settings": {"script": f"_value * {_IS_ERROR}"}}
    whole = _sum("b", count, hide=True)
    return _lines(where, [bad, whole, _script(_SHARE, {"a": "a", "b": "b"})], by)


def _quantile_script(share: float) -> Object:
    """A quantile of the counts at the bounds, a straight line between two of them."""
    names = {f"c{n}": f"c{n}" for n in range(len(templates.LE_NAMES))}
    counts = ", ".join(f"params.{name}" for name in names)
    bounds = ", ".join(map(str, red.CLASSIC_BOUNDS))
    last = len(red.CLASSIC_BOUNDS)
    text = (
        f"if (params.c{last} == 0) {{ return null; }} "
        f"double rank = {share} * params.c{last}; "
        f"double[] bounds = new double[] {{{bounds}}}; "
        f"double[] counts = new double[] {{{counts}}}; "
        "double from = 0; double before = 0; "
        f"for (int i = 0; i < {last}; i++) {{ "
        "if (counts[i] >= rank && counts[i] > before) { "
        "return from + (bounds[i] - from) * (rank - before) / (counts[i] - before); } "
        "from = bounds[i]; before = counts[i]; } return from;"
    )
    return _script(text, names)


def _counts() -> list[Object]:
    return [_sum(f"c{n}", name, hide=True) for n, name in enumerate(templates.LE_NAMES)]


def _quantile(where: str, share: float, by: Sequence[str], called: str = "") -> Object:
    return _lines(where, [*_counts(), _quantile_script(share)], by, called)


def _red(
    key: str, kind: str, variables: Sequence[str], by: Sequence[str], *more: str
) -> dict[str, tuple[Object, ...]]:
    where = _where(kind, variables, *more)
    return {
        f"{key}.rate": (_rate(where, _COUNT, by),),
        f"{key}.errors": (_errors(where, _COUNT, by),),
        f"{key}.p99": (_quantile(where, 0.99, by),),
    }


def _all() -> dict[str, tuple[Object, ...]]:
    where = _where("http", _OVERVIEW, _SERVERS)
    failed = _where("http", _OVERVIEW, _SERVERS, _FAILED)
    return {
        **_red("all", "http", _OVERVIEW, (), _SERVERS),
        "all.mean": (_ratio(where, "duration.sum", _COUNT, ()),),
        "all.p50": (_quantile(where, 0.5, ()),),
        "top.errors": (_table(failed, [_sum("1", _COUNT)], [*COLUMNS["top.errors"]][:-1]),),
        "top.routes": (
            _table(where, [*_counts(), _quantile_script(0.99)], [*COLUMNS["top.routes"]][:-1]),
        ),
    }


def _pod() -> dict[str, tuple[Object, ...]]:
    pod, route = (FIELDS["pod"],), ("http.route",)
    where = _where("http", _POD, _SERVERS)

    def status(first: int) -> Object:
        some = f"http.response.status_code:[{first}00 TO {first}99]"
        return _rate(_where("http", _POD, _SERVERS, some), _COUNT, pod, f"{first}xx")

    return {
        "pod.rate": (_rate(where, _COUNT, pod),),
        "pod.errors": (status(4), status(5)),
        "pod.duration": tuple(
            _quantile(where, share, pod, f"{share * 100:g} %") for share in (0.5, 0.9, 0.99)
        ),
        "route.rate": (_rate(where, _COUNT, route),),
        "status.rate": (_rate(where, _COUNT, ("http.response.status_code",)),),
        "method.rate": (_rate(where, _COUNT, ("http.request.method",)),),
        "route.p99": (_quantile(where, 0.99, route),),
        "pod.bodies": (
            _rate(where, "http.request.body.bytes", pod, "requests"),
            _rate(where, "http.response.body.bytes", pod, "responses"),
        ),
        **_red("client", "http", _POD, pod, _CLIENTS),
    }


def _log() -> dict[str, tuple[Object, ...]]:
    where, pod = _where("request", _LOG, "url.path:${path:lucene}*"), (FIELDS["pod"],)
    count = {"id": "a", "type": "count", "hide": True}
    bad = _sum("b", _DURATION, hide=True) | {"settings": {"script": _IS_ERROR}}
    percentiles = {
        "id": "1",
        "type": "percentiles",
        "field": _DURATION,
        "settings": {"percents": ["99"], "script": "_value / 1e9"},
        "hide": False,
    }
    share = _script("params.b / params.a", {"a": "a", "b": "b"})
    return {
        "log.rate": (_lines(where, [count, _script(_A_SECOND, {"a": "a"})], pod),),
        "log.errors": (_lines(where, [count, bad, share], pod),),
        "log.duration": (_lines(where, [percentiles], pod),),
        "log.table": (_newest(where),),
    }


def _events() -> dict[str, tuple[Object, ...]]:
    workload, listener = (FIELDS["namespace"], FIELDS["workload"]), (FIELDS["pod"], "server.port")
    oom, listen = _where("oom", _POD), _where("listen", _POD)
    tcp, dns = _where("tcp", _POD), _where("dns", _POD)
    kills = {"id": "1", "type": "count", "hide": False}
    return {
        "oom.kills": (_lines(oom, [kills], workload),),
        "oom.table": (_newest(oom),),
        "listen.usage": (
            _lines(listen, [_sum("1", "podscope.listen.queue.usage", "max")], listener),
        ),
        "listen.drops": (_rate(listen, "podscope.listen.drops", listener),),
        "listen.overflows": (_rate(listen, "podscope.listen.overflows", listener),),
        "listen.table": (
            _table(
                listen,
                [
                    _sum("1", "podscope.listen.queue.usage", "max"),
                    _sum("2", "podscope.listen.drops"),
                ],
                [*COLUMNS["listen.table"]][:-2],
            ),
        ),
        "tcp.opened": (
            _rate(tcp, "podscope.tcp.connects.value", workload, "connect"),
            _rate(tcp, "podscope.tcp.accepts", workload, "accept"),
        ),
        "tcp.failed": (_rate(tcp, "podscope.tcp.connects.failed", workload),),
        "tcp.resets": (
            _rate(tcp, "podscope.tcp.resets.sent", workload, "sent"),
            _rate(tcp, "podscope.tcp.resets.received", workload, "received"),
        ),
        "tcp.retransmits": (_rate(tcp, "podscope.tcp.retransmits", workload),),
        "tcp.bytes": (
            _rate(tcp, "podscope.tcp.sent", workload, "sent"),
            _rate(tcp, "podscope.tcp.received", workload, "received"),
        ),
        "tcp.connect": (
            _ratio(
                tcp, "podscope.tcp.connect.duration.sum", "podscope.tcp.connects.value", workload
            ),
        ),
        "tcp.life": (
            _ratio(tcp, "podscope.tcp.duration.sum", "podscope.tcp.duration.count", workload),
        ),
        "tcp.table": (_newest(_where("tcp_event", _POD)),),
        # Servers tell of the same lookups once more.
        "dns.rate": (
            _rate(_where("dns", _POD, _CLIENTS), _COUNT, ("podscope.dns.response_code",)),
        ),
        "dns.errors": (_errors(dns, _COUNT, workload),),
        "dns.duration": (_ratio(dns, "duration.sum", _COUNT, workload),),
        "dns.table": (
            _table(
                _where("dns", _POD, _FAILED),
                [_sum("1", _COUNT)],
                [*COLUMNS["dns.table"]][:-1],
            ),
        ),
    }


def _lost() -> dict[str, tuple[Object, ...]]:
    where, by = _where("lost", ("cluster", "instance")), (FIELDS["instance"], "reason")
    return {
        "lost.rate": (_rate(where, _COUNT, by),),
        "lost.table": (_table(where, [_sum("1", _COUNT)], by),),
    }


def _values(name: str, *above: str) -> str:
    """Values of a field, of what the variables before it leave."""
    query = " AND ".join(f"{FIELDS[one]}:${one}" for one in above) or "*"
    return json.dumps({"find": "terms", "field": FIELDS[name], "query": query, "size": 1000})


_DURATION = templates.EVENT_DURATION
COLUMNS = {
    "top.errors": {
        "k8s.namespace.name": "Namespace",
        "service.name": "Workload",
        "http.request.method": "Method",
        "http.route": "Route",
        "error.type": "Error",
        "Sum": "Requests",
    },
    "top.routes": {
        "k8s.namespace.name": "Namespace",
        "service.name": "Workload",
        "http.route": "Route",
        "Bucket Script": "99th percentile",
    },
    "log.table": {
        TIME: "Time",
        "http.response.status_code": "Status",
        "error.type": "Error",
        _DURATION: "Duration (ns)",
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
        "podscope.side": "Side",
        "http.version": "HTTP",
    },
    "oom.table": {
        TIME: "Time",
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
        "process.name": "Process",
        "server.port": "Port",
        "Max": "Most",
        "Sum": "Drops",
    },
    "tcp.table": {
        TIME: "Time",
        "podscope.tcp.event": "Event",
        "error.type": "Error",
        "k8s.namespace.name": "Namespace",
        "k8s.pod.name": "Pod",
        "podscope.side": "Side",
        "service.peer.name": "Peer",
        "network.peer.address": "Peer's address",
        "network.peer.port": "Peer's port",
        "network.local.port": "Port",
        "podscope.tcp.state.old": "State before",
        "network.connection.state": "State",
        _DURATION: "Duration (ns)",
        "podscope.tcp.drop.reason": "Reason of the drop",
    },
    "lost.table": {"host.name": "Agent", "reason": "Reason", "Sum": "Exchanges"},
    "dns.table": {
        "dns.question.name": "Name",
        "error.type": "Error",
        "k8s.pod.name": "Pod",
        "Sum": "Lookups",
    },
}

ELASTICSEARCH = Source(
    name="elasticsearch",
    title="Elasticsearch",
    plugin="elasticsearch",
    targets={
        **_all(),
        **_red("namespace", "http", _OVERVIEW, (FIELDS["namespace"],), _SERVERS),
        **_red("workload", "http", _OVERVIEW, (FIELDS["namespace"], FIELDS["workload"]), _SERVERS),
        **_red("service", "service", _SERVICE, (FIELDS["namespace"], FIELDS["service"])),
        **_pod(),
        **_log(),
        **_events(),
        **_lost(),
    },
    variables={name: _values(name, *above) for name, above in NARROWED_BY.items()},
    all_values={name: f"(* OR (NOT _exists_:{field}))" for name, field in FIELDS.items()},
    columns=COLUMNS,
    least="10s",
)
