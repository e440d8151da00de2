# SPDX-License-Identifier: Apache-2.0
"""Saved objects for Kibana 8 and OpenSearch Dashboards 2: one file for both.

They are of the forms of Kibana 7.10, from which OpenSearch Dashboards comes, and which Kibana
brings up to date as it imports them: index patterns, visualizations by aggregations, searches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass

from podscope.dashboards.panels import Object
from podscope.sinks import elastic_templates as templates

TIME = "@timestamp"
PATTERNS = {
    "http": "podscope-http-*",
    "services": "podscope-services-*",
    "requests": "podscope-requests-*",
    "events": "podscope-events-*",
    "trace": "podscope-trace-*",
}
# The versions of 7.10's forms, by type.
_MIGRATION = {
    "visualization": "7.10.0",
    "search": "7.9.3",
    "dashboard": "7.9.3",
    "index-pattern": "7.6.0",
}
_COLUMNS, _HEIGHT = 48, 15


@dataclass(frozen=True)
class Metric:
    """A number: a function of a field; ``count`` has none."""

    function: str
    field: str = ""
    label: str = ""


@dataclass(frozen=True)
class Visual:
    """A picture, or a list of documents.

    Attributes:
        pattern: key of PATTERNS.
        query: of Lucene's.
        metrics: none: documents are listed.
        by: fields that it is told apart by.
        view: ``line``, ``area``, ``histogram`` (bars) over time, or ``table``.
        columns: of a list of documents.
        width: of 48 columns.
    """

    key: str
    title: str
    pattern: str
    query: str
    metrics: tuple[Metric, ...] = ()
    by: tuple[str, ...] = ()
    view: str = "line"
    columns: tuple[str, ...] = ()
    width: int = 16


@dataclass(frozen=True)
class Page:
    """A dashboard."""

    key: str
    title: str
    text: str
    visuals: tuple[Visual, ...]


_NAMESPACE, _WORKLOAD, _POD = "k8s.namespace.name", "service.name", "k8s.pod.name"
_NODE, _PROCESS, _CPU = "k8s.node.name", "process.name", "podscope.cpu"
_DURATION = templates.EVENT_DURATION
_FAILED = "_exists_:error.type"
_COUNT = Metric("count", label="Events")
_REQUESTS = Metric("sum", "podscope.count", "Requests")


def _kind(kind: str, *more: str) -> str:
    return " AND ".join([f'event.dataset:"podscope.{kind}"', *more])


def _script(name: str) -> str:
    return f'event.dataset:"podscope.trace.{name}"'


_SERVED = _kind("http", "podscope.side:server")

REQUESTS = Page(
    "requests",
    "podscope requests",
    "Rate, errors and duration, and the request log.",
    (
        Visual("rate", "Requests by workload", "http", _SERVED, (_REQUESTS,), (_WORKLOAD,), "area"),
        Visual(
            "errors",
            "Errors by workload",
            "http",
            f"{_SERVED} AND {_FAILED}",
            (_REQUESTS,),
            (_WORKLOAD,),
            "histogram",
        ),
        Visual(
            "p99",
            "Slowest series by workload, 99th percentile (s)",
            "http",
            _SERVED,
            (Metric("max", "duration.p99", "99th percentile"),),
            (_WORKLOAD,),
        ),
        Visual(
            "status",
            "Requests by status",
            "http",
            _SERVED,
            (_REQUESTS,),
            ("http.response.status_code",),
            "area",
        ),
        Visual(
            "service",
            "Requests by Service",
            "services",
            _kind("service"),
            (_REQUESTS,),
            ("k8s.service.name",),
            "area",
        ),
        Visual(
            "logged",
            "Duration of logged requests (ns)",
            "requests",
            _kind("request"),
            (Metric("percentiles", _DURATION, "Duration"),),
        ),
        Visual(
            "routes",
            "Routes",
            "http",
            _SERVED,
            (
                _REQUESTS,
                Metric("max", "duration.max", "Longest (s)"),
                Metric("sum", "http.response.body.bytes", "Bytes"),
            ),
            (_WORKLOAD, "http.request.method", "http.route"),
            "table",
            width=24,
        ),
        Visual(
            "failed",
            "Errors",
            "http",
            _kind("http", _FAILED),
            (_REQUESTS,),
            (_WORKLOAD, "http.route", "error.type", "podscope.side"),
            "table",
            width=24,
        ),
        Visual(
            "log",
            "Request log",
            "requests",
            _kind("request"),
            columns=(
                *("http.response.status_code", "error.type", _DURATION, "http.request.method"),
                *("url.path", _NAMESPACE, _POD, _WORKLOAD, _NODE, "service.peer.name"),
                *("client.address", "client.port", "server.address", "podscope.side"),
            ),
            width=48,
        ),
    ),
)

EVENTS = Page(
    "events",
    "podscope events",
    "Kills for memory, listeners, connections and names.",
    (
        Visual(
            "oom",
            "OOM kills by workload",
            "events",
            _kind("oom"),
            (_COUNT,),
            (_WORKLOAD,),
            "histogram",
        ),
        Visual(
            "kills",
            "OOM kills",
            "events",
            _kind("oom"),
            columns=(
                *(_NAMESPACE, _POD, "k8s.container.name", "podscope.process.comm"),
                *("podscope.oom.scope", "podscope.oom.limit", "process.memory.usage"),
            ),
            width=32,
        ),
        Visual(
            "usage",
            "Fullest accept queue by pod, share of its limit",
            "events",
            _kind("listen"),
            (Metric("max", "podscope.listen.queue.usage", "Share"),),
            (_POD,),
        ),
        Visual(
            "drops",
            "Dropped handshakes by pod",
            "events",
            _kind("listen"),
            (Metric("sum", "podscope.listen.drops", "Drops"),),
            (_POD,),
            "histogram",
        ),
        Visual(
            "overflows",
            "Overflows of accept queues by pod",
            "events",
            _kind("listen"),
            (Metric("sum", "podscope.listen.overflows", "Overflows"),),
            (_POD,),
            "histogram",
        ),
        Visual(
            "connects",
            "Connections that failed by workload",
            "events",
            _kind("tcp"),
            (Metric("sum", "podscope.tcp.connects.failed", "Failed"),),
            (_WORKLOAD,),
            "histogram",
        ),
        Visual(
            "retransmits",
            "Segments sent again by workload",
            "events",
            _kind("tcp"),
            (Metric("sum", "podscope.tcp.retransmits", "Segments"),),
            (_WORKLOAD,),
            "histogram",
        ),
        Visual(
            "resets",
            "Resets by workload",
            "events",
            _kind("tcp"),
            (
                Metric("sum", "podscope.tcp.resets.sent", "Sent"),
                Metric("sum", "podscope.tcp.resets.received", "Received"),
            ),
            (_WORKLOAD,),
            "histogram",
        ),
        Visual(
            "lookups",
            "DNS lookups by response",
            "events",
            _kind("dns"),
            (Metric("sum", "podscope.count", "Lookups"),),
            ("podscope.dns.response_code",),
            "area",
        ),
        Visual(
            "names",
            "Names that fail",
            "events",
            _kind("dns", _FAILED),
            (Metric("sum", "podscope.count", "Lookups"),),
            ("dns.question.name", "error.type", _POD),
            "table",
        ),
        Visual(
            "tcp",
            "Events of TCP",
            "events",
            _kind("tcp_event"),
            columns=(
                *("podscope.tcp.event", "error.type", _NAMESPACE, _POD, "podscope.side"),
                *("network.peer.address", "network.peer.port", "network.connection.state"),
            ),
            width=48,
        ),
    ),
)


def _tcp_event(event: str, *more: str) -> str:
    return _kind("tcp_event", f"podscope.tcp.event:{event}", *more)


def _average(field: str, label: str) -> tuple[Metric, ...]:
    return (Metric("avg", field, label),)


TCP = Page(
    "tcp",
    "podscope TCP",
    "Single connections by node and process: accept, life, states, window.",
    (
        Visual(
            "accepted",
            "Accepted by node",
            "events",
            _tcp_event("accept"),
            (_COUNT,),
            (_NODE,),
            "histogram",
        ),
        Visual(
            "queue",
            "Accept queue by process, the longest",
            "events",
            _tcp_event("accept"),
            (Metric("max", "podscope.listen.accept_queue", "Connections"),),
            (_PROCESS,),
        ),
        Visual(
            "limit",
            "Accept queues",
            "events",
            _tcp_event("accept"),
            (
                Metric("max", "podscope.listen.accept_queue", "Longest"),
                Metric("max", "podscope.listen.limit", "Limit"),
            ),
            (_NODE, _PROCESS, "network.local.port"),
            "table",
        ),
        Visual(
            "life",
            "Life of connections by node (ns)",
            "events",
            _tcp_event("life"),
            _average(_DURATION, "Mean"),
            (_NODE,),
        ),
        Visual(
            "bytes",
            "Bytes of connections by process",
            "events",
            _tcp_event("life"),
            (
                Metric("sum", "podscope.tcp.sent", "Sent"),
                Metric("sum", "podscope.tcp.received", "Received"),
            ),
            (_PROCESS,),
            "histogram",
        ),
        Visual(
            "states",
            "Changes of state",
            "events",
            _tcp_event("state"),
            (_COUNT,),
            ("network.connection.state",),
            "histogram",
        ),
        Visual(
            "transitions",
            "Changes of state by node and process",
            "events",
            _tcp_event("state"),
            (_COUNT,),
            (_NODE, _PROCESS, "podscope.tcp.state.old", "network.connection.state"),
            "table",
            width=24,
        ),
        Visual(
            "window",
            "Congestion window by node (segments)",
            "events",
            _tcp_event("window"),
            _average("podscope.tcp.cwnd", "Mean"),
            (_NODE,),
        ),
        Visual(
            "windows",
            "Congestion window by process (segments)",
            "events",
            _tcp_event("window"),
            _average("podscope.tcp.cwnd", "Mean"),
            (_PROCESS,),
        ),
        Visual(
            "buffer",
            "Send buffers by process (bytes)",
            "events",
            _tcp_event("window"),
            (
                Metric("max", "podscope.tcp.send_buffer.size", "Size"),
                Metric("max", "podscope.tcp.send_buffer.used", "Used"),
            ),
            (_PROCESS,),
        ),
    ),
)


def _traced(key: str, name: str, title: str, metrics: tuple[Metric, ...]) -> Iterator[Visual]:
    """By node, CPU and process."""
    for by, field in (("node", _NODE), ("CPU", _CPU), ("process", _PROCESS)):
        view = "histogram" if metrics == (_COUNT,) else "line"
        yield Visual(
            f"{key}-{by.lower()}", f"{title} by {by}", "trace", _script(name), metrics, (field,),
            view,
        )  # fmt: skip


TRACE = Page(
    "trace",
    "podscope traces of TCP",
    "Rows of the scripts tcpaccept, tcplife, tcpstate and tcpwin, by node, CPU and process.",
    (
        *_traced("accept", "tcpaccept", "Accepted", (_COUNT,)),
        *_traced("life", "tcplife", "Life (ns)", _average(_DURATION, "Mean")),
        *_traced("state", "tcpstate", "Changes of state", (_COUNT,)),
        *_traced("window", "tcpwin", "Congestion window", _average("podscope.tcp.cwnd", "Mean")),
        Visual(
            "queues",
            "Accept queues",
            "trace",
            _script("tcpaccept"),
            (
                Metric("max", "podscope.listen.accept_queue", "Longest"),
                Metric("max", "podscope.listen.limit", "Limit"),
            ),
            (_NODE, _PROCESS),
            "table",
            width=24,
        ),
        Visual(
            "rows",
            "Rows",
            "trace",
            "*",
            columns=(
                *("event.dataset", _NODE, _CPU, _PROCESS, "process.pid"),
                *("network.local.address", "network.local.port"),
                *("network.peer.address", "network.peer.port"),
            ),
            width=48,
        ),
    ),
)

PAGES = (REQUESTS, EVENTS, TCP, TRACE)


def objects() -> list[Object]:
    """All saved objects, those that others refer to first."""
    made = [_pattern(key) for key in PATTERNS]
    for page in PAGES:
        made += [_visual(page, one) for one in page.visuals]
    return made + [_dashboard(page) for page in PAGES]


def ndjson() -> str:
    """The objects as the file that is imported."""
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects())


def _object(kind: str, name: str, attributes: Object, references: Sequence[Object] = ()) -> Object:
    return {
        "id": f"podscope-{name}",
        "type": kind,
        "migrationVersion": {kind: _MIGRATION[kind]},
        "attributes": attributes,
        "references": [*references],
    }


def _pattern(key: str) -> Object:
    return _object("index-pattern", f"index-{key}", {"title": PATTERNS[key], "timeFieldName": TIME})


def _visual(page: Page, one: Visual) -> Object:
    name = "kibanaSavedObjectMeta.searchSourceJSON.index"
    source = {"query": {"language": "lucene", "query": one.query}, "filter": []}
    source["indexRefName"] = name
    reference = {"name": name, "type": "index-pattern", "id": f"podscope-index-{one.pattern}"}
    attributes: Object = {
        "title": f"{page.title}: {one.title}",
        "description": "",
        "version": 1,
        "kibanaSavedObjectMeta": {"searchSourceJSON": json.dumps(source)},
    }
    if one.columns:
        attributes |= {"columns": [*one.columns], "sort": [[TIME, "desc"]], "hits": 0}
        return _object("search", f"{page.key}-{one.key}", attributes, [reference])
    attributes |= {"visState": json.dumps(_state(page, one)), "uiStateJSON": "{}"}
    return _object("visualization", f"{page.key}-{one.key}", attributes, [reference])


def _state(page: Page, one: Visual) -> Object:
    return {
        "title": f"{page.title}: {one.title}",
        "type": one.view,
        "aggs": [*_aggregations(one)],
        "params": _table_params() if one.view == "table" else _chart_params(one),
    }


def _aggregations(one: Visual) -> Iterator[Object]:
    for number, metric in enumerate(one.metrics, 1):
        params: Object = {"field": metric.field} if metric.field else {}
        params |= {"customLabel": metric.label} if metric.label else {}
        params |= {"percents": [50, 99]} if metric.function == "percentiles" else {}
        yield _aggregation(number, metric.function, "metric", params)
    number = len(one.metrics)
    if one.view != "table":
        number += 1
        params = {
            "field": TIME,
            "useNormalizedEsInterval": True,
            "interval": "auto",
            "drop_partials": False,
            "min_doc_count": 1,
            "extended_bounds": {},
        }
        yield _aggregation(number, "date_histogram", "segment", params)
    # By the first number, unless it has no order of its own.
    order = "_key" if one.metrics[0].function == "percentiles" else "1"
    for field in one.by:
        number += 1
        params = {
            "field": field,
            "orderBy": order,
            "order": "desc",
            "size": 20,
            "otherBucket": False,
            "missingBucket": False,
        }
        yield _aggregation(number, "terms", "bucket" if one.view == "table" else "group", params)


def _aggregation(number: int, kind: str, schema: str, params: Object) -> Object:
    return {"id": str(number), "enabled": True, "type": kind, "schema": schema, "params": params}


def _table_params() -> Object:
    return {
        "perPage": 20,
        "showPartialRows": False,
        "showMetricsAtAllLevels": False,
        "sort": {"columnIndex": None, "direction": None},
        "showTotal": False,
        "totalFunc": "sum",
        "percentageCol": "",
    }


def _chart_params(one: Visual) -> Object:
    label = one.metrics[0].label
    axis = {"show": True, "style": {}, "labels": {"show": True, "truncate": 100}, "title": {}}
    value = axis | {"scale": {"type": "linear", "mode": "normal"}, "title": {"text": label}}
    series = [
        {
            "show": True,
            "type": one.view,
            "mode": "normal" if one.view == "line" else "stacked",
            "data": {"label": metric.label, "id": str(number)},
            "valueAxis": "ValueAxis-1",
            "drawLinesBetweenPoints": True,
            "showCircles": False,
        }
        for number, metric in enumerate(one.metrics, 1)
    ]
    category = {"id": "CategoryAxis-1", "type": "category", "position": "bottom"}
    left = {"id": "ValueAxis-1", "name": "LeftAxis-1", "type": "value", "position": "left"}
    return {
        "type": one.view,
        "grid": {"categoryLines": False},
        "categoryAxes": [{**axis, **category, "scale": {"type": "linear"}}],
        "valueAxes": [value | left],
        "seriesParams": series,
        "addTooltip": True,
        "addLegend": True,
        "legendPosition": "right",
        "times": [],
        "addTimeMarker": False,
        "labels": {},
        "thresholdLine": {"show": False},
    }


def _dashboard(page: Page) -> Object:
    panels, references = [], []
    left = top = 0
    for number, one in enumerate(page.visuals, 1):
        if left + one.width > _COLUMNS:
            left, top = 0, top + _HEIGHT
        index = str(number)
        panels.append(
            {
                "version": _MIGRATION["dashboard"],
                "panelIndex": index,
                "gridData": {"x": left, "y": top, "w": one.width, "h": _HEIGHT, "i": index},
                "embeddableConfig": {"title": one.title},
                "title": one.title,
                "panelRefName": f"panel_{index}",
            }
        )
        kind = "search" if one.columns else "visualization"
        name = f"podscope-{page.key}-{one.key}"
        references.append({"name": f"panel_{index}", "type": kind, "id": name})
        left += one.width
    source = {"query": {"language": "kuery", "query": ""}, "filter": []}
    attributes = {
        "title": page.title,
        "description": page.text,
        "version": 1,
        "hits": 0,
        "panelsJSON": json.dumps(panels),
        "optionsJSON": json.dumps({"useMargins": True, "hidePanelTitles": False}),
        "timeRestore": True,
        "timeFrom": "now-1h",
        "timeTo": "now",
        "refreshInterval": {"pause": False, "value": 30_000},
        "kibanaSavedObjectMeta": {"searchSourceJSON": json.dumps(source)},
    }
    return _object("dashboard", page.key, attributes, references)
