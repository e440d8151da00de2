# SPDX-License-Identifier: Apache-2.0
"""The panels in PromQL, for Prometheus, Mimir, Thanos and VictoriaMetrics.

Names of metrics and labels are those that ``podscope.sinks.prometheus`` exposes.
"""

from __future__ import annotations

from collections.abc import Sequence

from podscope.dashboards.panels import NARROWED_BY
from podscope.dashboards.panels import Object
from podscope.dashboards.panels import Source

SERVER = "http_server_request_duration_seconds"
CLIENT = "http_client_request_duration_seconds"
SERVICE = "podscope_service_request_duration_seconds"
LABELS = {
    "cluster": "k8s_cluster_name",
    "namespace": "k8s_namespace_name",
    "workload": "service_name",
    "pod": "k8s_pod_name",
    "node": "k8s_node_name",
    "service": "k8s_service_name",
    "instance": "instance",
}
_OVERVIEW = ("cluster", "namespace", "workload", "node")
_POD = ("cluster", "namespace", "workload", "pod", "node")
_SERVICE = ("cluster", "namespace", "service")
_AGENT = ("cluster", "instance")
_MOST = 20


def _where(variables: Sequence[str], more: str = "") -> str:
    """Matchers of a board's variables; a label that is missing is matched by all."""
    parts = [f'{LABELS[name]}=~"${name}"' for name in variables]
    return "{" + ",".join([*parts, *filter(None, [more])]) + "}"


def _range(query: str, legend: str = "") -> Object:
    return {
        "expr": query,
        "legendFormat": legend or "__auto",
        "range": True,
        "instant": False,
        "editorMode": "code",
    }


def _table(query: str) -> Object:
    return {
        "expr": query,
        "format": "table",
        "range": False,
        "instant": True,
        "editorMode": "code",
    }


def _rate(metric: str, where: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}_count{where}[$__rate_interval]))"


def _share(metric: str, variables: Sequence[str], by: str) -> str:
    """Share of errors; 0 where there are none, and not nothing."""
    whole = _rate(metric, _where(variables), by)
    failed = _rate(metric, _where(variables, 'error_type!=""'), by)
    return f"({failed} or 0 * {whole}) / ({whole} > 0)"


def _quantile(share: float, metric: str, where: str, by: str, span: str) -> str:
    le = ", ".join(filter(None, ["le", by]))
    return f"histogram_quantile({share}, sum by ({le}) (rate({metric}_bucket{where}[{span}])))"


def _duration(share: float, metric: str, variables: Sequence[str], by: str = "") -> str:
    return _quantile(share, metric, _where(variables), by, "$__rate_interval")


def _red(
    key: str, metric: str, variables: Sequence[str], by: Sequence[str]
) -> dict[str, tuple[Object, ...]]:
    names = ", ".join(by)
    legend = "/".join(f"{{{{{name}}}}}" for name in by)
    return {
        f"{key}.rate": (_range(_rate(metric, _where(variables), names), legend),),
        f"{key}.errors": (_range(_share(metric, variables, names), legend),),
        f"{key}.p99": (_range(_duration(0.99, metric, variables, names), legend),),
    }


def _all() -> dict[str, tuple[Object, ...]]:
    share = _share(SERVER, _OVERVIEW, "")
    return {
        "all.rate": (_range(_rate(SERVER, _where(_OVERVIEW), ""), "requests"),),
        "all.errors": (_range(share, "errors"),),
        "all.mean": (
            _range(
                f"sum(rate({SERVER}_sum{_where(_OVERVIEW)}[$__rate_interval])) / "
                f"(sum(rate({SERVER}_count{_where(_OVERVIEW)}[$__rate_interval])) > 0)",
                "mean",
            ),
        ),
        "all.p50": (_range(_duration(0.5, SERVER, _OVERVIEW), "median"),),
        "all.p99": (_range(_duration(0.99, SERVER, _OVERVIEW), "99 %"),),
    }


_FAILED = (
    "k8s_namespace_name",
    "service_name",
    "http_request_method",
    "http_route",
    "error_type",
)
_ROUTE = ("k8s_namespace_name", "service_name", "http_route")


def _worst() -> dict[str, tuple[Object, ...]]:
    failed = _where(_OVERVIEW, 'error_type!=""')
    errors = f"sum by ({', '.join(_FAILED)}) (increase({SERVER}_count{failed}[$__range])) > 0"
    slow = _quantile(0.99, SERVER, _where(_OVERVIEW), ", ".join(_ROUTE), "$__range")
    return {
        "top.errors": (_table(f"topk({_MOST}, {errors})"),),
        # What nobody asked for in the range has no percentile (NaN).
        "top.routes": (_table(f"topk({_MOST}, {slow} >= 0)"),),
    }


def _pod() -> dict[str, tuple[Object, ...]]:
    server = _where(_POD)
    pod, route = "k8s_pod_name", "http_route"
    return {
        "pod.rate": (_range(_rate(SERVER, server, pod), "{{k8s_pod_name}}"),),
        "pod.errors": tuple(
            _range(
                _rate(SERVER, _where(_POD, f'http_response_status_code=~"{first}.."'), pod),
                f"{{{{k8s_pod_name}}}} {first}xx",
            )
            for first in "45"
        ),
        "pod.duration": tuple(
            _range(_duration(share, SERVER, _POD, pod), f"{{{{k8s_pod_name}}}} {share * 100:g} %")
            for share in (0.5, 0.9, 0.99)
        ),
        "route.rate": (_range(_rate(SERVER, server, route), "{{http_route}}"),),
        "status.rate": (
            _range(
                _rate(SERVER, server, "http_response_status_code"),
                "{{http_response_status_code}}",
            ),
        ),
        "method.rate": (
            _range(_rate(SERVER, server, "http_request_method"), "{{http_request_method}}"),
        ),
        "route.p99": (_range(_duration(0.99, SERVER, _POD, route), "{{http_route}}"),),
        "pod.bodies": tuple(
            _range(
                f"sum by ({pod}) "
                f"(rate(podscope_http_server_{what}_body_bytes_total{server}[$__rate_interval]))",
                f"{{{{k8s_pod_name}}}} {what}s",
            )
            for what in ("request", "response")
        ),
        **_red("client", CLIENT, _POD, (pod,)),
    }


def _events() -> dict[str, tuple[Object, ...]]:
    where, clients = _where(_POD), _where(_POD, 'side="client"')
    workload, listener = ("k8s_namespace_name", "service_name"), ("k8s_pod_name", "server_port")
    of_workload, of_listener = (
        "{{k8s_namespace_name}}/{{service_name}}",
        "/".join(f"{{{{{name}}}}}" for name in listener),
    )

    def rate(metric: str, by: Sequence[str], legend: str) -> Object:
        names = ", ".join(by)
        return _range(f"sum by ({names}) (rate({metric}_total{where}[$__rate_interval]))", legend)

    def mean(metric: str, by: Sequence[str]) -> str:
        names = ", ".join(by)
        seconds, count = (
            f"sum by ({names}) (rate({metric}_{part}{clients}[$__rate_interval]))"
            for part in ("sum", "count")
        )
        return f"{seconds} / ({count} > 0)"

    lookups = "podscope_dns_lookups_total"
    asked = f"rate({lookups}{clients}[$__rate_interval])"
    failed = _where(_POD, 'side="client",error_type!=""')
    names = ", ".join(workload)
    whole = f"sum by ({names}) ({asked})"
    bad = f"sum by ({names}) (rate({lookups}{failed}[$__rate_interval]))"
    kills = f"increase(podscope_oom_kills_total{where}"
    usage = f"podscope_listen_queue_usage_ratio{where}"

    def top(key: str, query: str) -> Object:
        labels = ", ".join(name for name in COLUMNS[key] if name != "Value")
        return _table(f"topk({_MOST}, {query.replace('LABELS', labels)})")

    return {
        "oom.kills": (_range(f"sum by ({names}) ({kills}[$__rate_interval]))", of_workload),),
        "oom.table": (top("oom.table", f"sum by (LABELS) ({kills}[$__range])) > 0"),),
        "listen.usage": (_range(f"max by ({', '.join(listener)}) ({usage})", of_listener),),
        "listen.drops": (rate("podscope_listen_drops", listener, of_listener),),
        "listen.overflows": (rate("podscope_listen_overflows", listener, of_listener),),
        "listen.table": (top("listen.table", f"max by (LABELS) ({usage})"),),
        "tcp.opened": (
            rate("podscope_tcp_connects", workload, f"{of_workload} connect"),
            rate("podscope_tcp_accepts", workload, f"{of_workload} accept"),
        ),
        "tcp.failed": (rate("podscope_tcp_connects_failed", workload, of_workload),),
        "tcp.resets": (
            rate("podscope_tcp_resets_sent", workload, f"{of_workload} sent"),
            rate("podscope_tcp_resets_received", workload, f"{of_workload} received"),
        ),
        "tcp.retransmits": (rate("podscope_tcp_retransmits", workload, of_workload),),
        "tcp.bytes": (
            rate("podscope_tcp_sent_bytes", workload, f"{of_workload} sent"),
            rate("podscope_tcp_received_bytes", workload, f"{of_workload} received"),
        ),
        "tcp.connect": (
            _range(mean("podscope_tcp_connect_duration_seconds", workload), of_workload),
        ),
        # Servers tell of the same lookups once more.
        "dns.rate": (
            _range(
                f'sum by (error_type) (label_replace({asked}, "error_type", "NOERROR", '
                '"error_type", ""))',
                "{{error_type}}",
            ),
        ),
        "dns.errors": (_range(f"({bad} or 0 * {whole}) / ({whole} > 0)", of_workload),),
        "dns.duration": (_range(mean("dns_lookup_duration_seconds", workload), of_workload),),
    }


def _agent() -> dict[str, tuple[Object, ...]]:
    where = _where(_AGENT)

    def rate(metric: str, *by: str) -> str:
        return f"sum by ({', '.join(by)}) (rate({metric}_total{where}[$__rate_interval]))"

    def one(metric: str, *by: str) -> str:
        return f"sum by ({', '.join(by)}) ({metric}{where})"

    node, sink = "{{instance}}", "{{instance}} {{sink}}"
    seconds = rate("podscope_agent_kernel_seconds", "instance")
    runs = rate("podscope_agent_kernel_runs", "instance")
    lost = f"sum by (instance, reason) (increase(podscope_lost_total{where}[$__range])) > 0"
    return {
        "agent.cpu": (_range(rate("podscope_agent_cpu_seconds", "instance"), node),),
        "agent.kernel": (_range(seconds, node),),
        "agent.run": (_range(f"{seconds} / ({runs} > 0)", node),),
        "agent.memory": (_range(one("podscope_agent_resident_memory_bytes", "instance"), node),),
        "agent.series": (_range(one("podscope_agent_series", "instance"), node),),
        "agent.runs": (_range(runs, node),),
        "lost.rate": (
            _range(rate("podscope_lost", "instance", "reason"), "{{instance}} {{reason}}"),
        ),
        "lost.table": (_table(f"topk({_MOST}, {lost})"),),
        "sink.sent": (_range(rate("podscope_sink_sent_rows", "instance", "sink"), sink),),
        "sink.dropped": (
            _range(
                rate("podscope_sink_dropped_rows", "instance", "sink", "reason"),
                f"{sink} {{{{reason}}}}",
            ),
        ),
        "sink.retries": (_range(rate("podscope_sink_retries", "instance", "sink"), sink),),
        "sink.queued": (_range(one("podscope_sink_queued_rows", "instance", "sink"), sink),),
        "sink.memory": (_range(one("podscope_sink_queue_memory_bytes", "instance", "sink"), sink),),
        "sink.disk": (_range(one("podscope_sink_queue_disk_bytes", "instance", "sink"), sink),),
    }


# Pods may be clients alone, and agents may have seen nothing.
_ANY = "http_(server|client)_request_duration_seconds_count|podscope_agent_series"
# Where values are seen; elsewhere in _ANY.
_SEEN_IN = {"service": f"{SERVICE}_count", "instance": "podscope_agent_series"}


def _values(name: str, metric: str, *above: str) -> Object:
    """Values of a label, of what the variables before it leave."""
    where = _where(above, f'__name__=~"{metric}"')
    return {"query": f"label_values({where}, {LABELS[name]})", "refId": name}


COLUMNS = {
    "top.errors": {
        "k8s_namespace_name": "Namespace",
        "service_name": "Workload",
        "http_request_method": "Method",
        "http_route": "Route",
        "error_type": "Error",
        "Value": "Requests",
    },
    "top.routes": {
        "k8s_namespace_name": "Namespace",
        "service_name": "Workload",
        "http_route": "Route",
        "Value": "99th percentile",
    },
    "oom.table": {
        "k8s_namespace_name": "Namespace",
        "k8s_pod_name": "Pod",
        "k8s_container_name": "Container",
        "podscope_oom_scope": "Scope",
        "Value": "Kills",
    },
    "listen.table": {
        "k8s_namespace_name": "Namespace",
        "k8s_pod_name": "Pod",
        "process_executable_name": "Process",
        "server_port": "Port",
        "Value": "Most",
    },
    "lost.table": {"instance": "Agent", "reason": "Reason", "Value": "Exchanges"},
}

PROMETHEUS = Source(
    name="prometheus",
    title="Prometheus",
    plugin="prometheus",
    targets={
        **_all(),
        **_red("namespace", SERVER, _OVERVIEW, ("k8s_namespace_name",)),
        **_red("workload", SERVER, _OVERVIEW, ("k8s_namespace_name", "service_name")),
        **_red("service", SERVICE, _SERVICE, ("k8s_namespace_name", "k8s_service_name")),
        **_worst(),
        **_pod(),
        **_events(),
        **_agent(),
    },
    variables={
        name: _values(name, _SEEN_IN.get(name, _ANY), *above)
        for name, above in NARROWED_BY.items()
        if name in LABELS
    },
    all_values=dict.fromkeys(LABELS, ".*"),
    columns=COLUMNS,
)
