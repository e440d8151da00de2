# SPDX-License-Identifier: Apache-2.0
"""The panels in PromQL, for Prometheus, Mimir, Thanos and VictoriaMetrics.

Names of metrics and labels are those that ``podscope.sinks.prometheus`` exposes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
_RATE, _WHOLE = ("rate", "$__rate_interval"), ("increase", "$__range")


@dataclass(frozen=True)
class _Histograms:
    """How histograms are asked for: of classic ones, each part is a metric of its own."""

    native: bool

    def part(
        self, part: str, metric: str, where: str, by: str, *, over: tuple[str, str] = _RATE
    ) -> str:
        """``count`` or ``sum``, by some labels."""
        change, span = over
        if self.native:
            return f"histogram_{part}(sum by ({by}) ({change}({metric}{where}[{span}])))"
        return f"sum by ({by}) ({change}({metric}_{part}{where}[{span}]))"

    def quantile(
        self, share: float, metric: str, where: str, by: str, *, span: str = "$__rate_interval"
    ) -> str:
        """A quantile, by some labels."""
        name = metric if self.native else f"{metric}_bucket"
        labels = by if self.native else ", ".join(filter(None, ["le", by]))
        return f"histogram_quantile({share}, sum by ({labels}) (rate({name}{where}[{span}])))"


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


def _share(told: _Histograms, metric: str, variables: Sequence[str], by: str) -> str:
    """Share of errors; 0 where there are none, and not nothing."""
    whole = told.part("count", metric, _where(variables), by)
    failed = told.part("count", metric, _where(variables, 'error_type!=""'), by)
    return f"({failed} or 0 * {whole}) / ({whole} > 0)"


def _red(
    told: _Histograms, key: str, metric: str, variables: Sequence[str], by: Sequence[str]
) -> dict[str, tuple[Object, ...]]:
    names, where = ", ".join(by), _where(variables)
    legend = "/".join(f"{{{{{name}}}}}" for name in by)
    return {
        f"{key}.rate": (_range(told.part("count", metric, where, names), legend),),
        f"{key}.errors": (_range(_share(told, metric, variables, names), legend),),
        f"{key}.p99": (_range(told.quantile(0.99, metric, where, names), legend),),
    }


def _all(told: _Histograms) -> dict[str, tuple[Object, ...]]:
    where = _where(_OVERVIEW)
    count, seconds = (told.part(part, SERVER, where, "") for part in ("count", "sum"))
    return {
        "all.rate": (_range(count, "requests"),),
        "all.errors": (_range(_share(told, SERVER, _OVERVIEW, ""), "errors"),),
        "all.mean": (_range(f"{seconds} / ({count} > 0)", "mean"),),
        "all.p50": (_range(told.quantile(0.5, SERVER, where, ""), "median"),),
        "all.p99": (_range(told.quantile(0.99, SERVER, where, ""), "99 %"),),
    }


_FAILED = (
    "k8s_namespace_name",
    "service_name",
    "http_request_method",
    "http_route",
    "error_type",
)
_ROUTE = ("k8s_namespace_name", "service_name", "http_route")


def _worst(told: _Histograms) -> dict[str, tuple[Object, ...]]:
    failed = _where(_OVERVIEW, 'error_type!=""')
    errors = told.part("count", SERVER, failed, ", ".join(_FAILED), over=_WHOLE)
    slow = told.quantile(0.99, SERVER, _where(_OVERVIEW), ", ".join(_ROUTE), span="$__range")
    return {
        "top.errors": (_table(f"topk({_MOST}, {errors} > 0)"),),
        # What nobody asked for in the range has no percentile (NaN).
        "top.routes": (_table(f"topk({_MOST}, {slow} >= 0)"),),
    }


def _pod(told: _Histograms) -> dict[str, tuple[Object, ...]]:
    server = _where(_POD)
    pod, route = "k8s_pod_name", "http_route"

    def rate(by: str, more: str = "") -> str:
        return told.part("count", SERVER, _where(_POD, more), by)

    return {
        "pod.rate": (_range(rate(pod), "{{k8s_pod_name}}"),),
        "pod.errors": tuple(
            _range(
                rate(pod, f'http_response_status_code=~"{first}.."'),
                f"{{{{k8s_pod_name}}}} {first}xx",
            )
            for first in "45"
        ),
        "pod.duration": tuple(
            _range(
                told.quantile(share, SERVER, server, pod), f"{{{{k8s_pod_name}}}} {share * 100:g} %"
            )
            for share in (0.5, 0.9, 0.99)
        ),
        "route.rate": (_range(rate(route), "{{http_route}}"),),
        "status.rate": (
            _range(rate("http_response_status_code"), "{{http_response_status_code}}"),
        ),
        "method.rate": (_range(rate("http_request_method"), "{{http_request_method}}"),),
        "route.p99": (_range(told.quantile(0.99, SERVER, server, route), "{{http_route}}"),),
        "pod.bodies": tuple(
            _range(
                f"sum by ({pod}) "
                f"(rate(podscope_http_server_{what}_body_bytes_total{server}[$__rate_interval]))",
                f"{{{{k8s_pod_name}}}} {what}s",
            )
            for what in ("request", "response")
        ),
        **_red(told, "client", CLIENT, _POD, (pod,)),
    }


def _events(told: _Histograms) -> dict[str, tuple[Object, ...]]:
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
        seconds, count = (told.part(part, metric, clients, names) for part in ("sum", "count"))
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


def _agent_rate(metric: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}_total{_where(_AGENT)}[$__rate_interval]))"


def _lost() -> dict[str, tuple[Object, ...]]:
    lost = f"increase(podscope_lost_total{_where(_AGENT)}[$__range])"
    return {
        "lost.rate": (
            _range(_agent_rate("podscope_lost", "instance", "reason"), "{{instance}} {{reason}}"),
        ),
        "lost.table": (_table(f"topk({_MOST}, sum by (instance, reason) ({lost}) > 0)"),),
    }


def _agent() -> dict[str, tuple[Object, ...]]:
    rate = _agent_rate

    def one(metric: str, *by: str) -> str:
        return f"sum by ({', '.join(by)}) ({metric}{_where(_AGENT)})"

    node, sink = "{{instance}}", "{{instance}} {{sink}}"
    seconds = rate("podscope_agent_kernel_seconds", "instance")
    runs = rate("podscope_agent_kernel_runs", "instance")
    return {
        "agent.cpu": (_range(rate("podscope_agent_cpu_seconds", "instance"), node),),
        "agent.kernel": (_range(seconds, node),),
        "agent.run": (_range(f"{seconds} / ({runs} > 0)", node),),
        "agent.memory": (_range(one("podscope_agent_resident_memory_bytes", "instance"), node),),
        "agent.series": (_range(one("podscope_agent_series", "instance"), node),),
        "agent.runs": (_range(runs, node),),
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


def _variables(told: _Histograms, names: Sequence[str]) -> dict[str, Object]:
    """Where their values are seen; pods may be clients alone, and agents may have seen nothing."""
    end = "" if told.native else "_count"
    agents = "podscope_lost_total" if told.native else "podscope_agent_series"
    seen_in = {"service": f"{SERVICE}{end}", "instance": agents}
    anywhere = f"http_(server|client)_request_duration_seconds{end}|{agents}"
    return {
        name: _values(name, seen_in.get(name, anywhere), *above)
        for name, above in NARROWED_BY.items()
        if name in names
    }


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


def _pushed(told: _Histograms) -> dict[str, tuple[Object, ...]]:
    """What is written, too, and not only scraped."""
    return {
        **_all(told),
        **_red(told, "namespace", SERVER, _OVERVIEW, ("k8s_namespace_name",)),
        **_red(told, "workload", SERVER, _OVERVIEW, ("k8s_namespace_name", "service_name")),
        **_worst(told),
        **_pod(told),
        **_events(told),
        **_lost(),
    }


_CLASSIC, _NATIVE = _Histograms(native=False), _Histograms(native=True)

PROMETHEUS = Source(
    name="prometheus",
    title="Prometheus",
    plugin="prometheus",
    targets={
        **_pushed(_CLASSIC),
        **_red(_CLASSIC, "service", SERVICE, _SERVICE, ("k8s_namespace_name", "k8s_service_name")),
        **_agent(),
    },
    variables=_variables(_CLASSIC, [*LABELS]),
    all_values=dict.fromkeys(LABELS, ".*"),
    columns=COLUMNS,
)
# Services and the cost of agents are at /metrics alone, whose histograms are classic.
PROMETHEUS_NATIVE = Source(
    name="prometheus-native",
    title="Prometheus, native histograms",
    plugin="prometheus",
    targets=_pushed(_NATIVE),
    variables=_variables(_NATIVE, [name for name in LABELS if name != "service"]),
    all_values=dict.fromkeys(LABELS, ".*"),
    columns=COLUMNS,
)
