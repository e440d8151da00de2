# SPDX-License-Identifier: Apache-2.0
"""Metrics of kills, listeners, connections and lookups in real servers, read back by PromQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import replace

import event_batches
import pytest
import sink_rows
from event_batches import CLIENT
from event_batches import SERVER
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from test_prometheus_write import query

from podscope.batch import Batch
from podscope.schema_metrics import METRICS
from podscope.settings import Url
from podscope.sinks import prometheus as exposition
from podscope.sinks.otlp import Otlp
from podscope.sinks.otlp import OtlpSettings
from podscope.sinks.prometheus_write import Prometheus
from podscope.sinks.prometheus_write import PrometheusSettings
from podscope.sinks.rows import Rows
from podscope.sinks.rows import of_batches
from podscope.sinks.rows import of_losses

CONNECT = "podscope_tcp_connect_duration_seconds"
DNS = "dns_lookup_duration_seconds"
MS = 10**6


def batches(time_ns: int) -> list[Batch]:
    """Of each kind an interval: two connects, three lookups, a kill, a queue that is half full."""
    made = [
        event_batches.batch(
            "tcp",
            {"side": CLIENT, "port": 443, "durations": [4 * MS, 100 * MS], "failed": 1},
            {"side": SERVER, "port": 80, "accepts": 5, "sent": 100, "retransmits": 2},
        ),
        event_batches.batch(
            "dns",
            {"side": CLIENT, "type": 1, "text": b"a.test", "durations": [MS, 3 * MS]},
            {"side": CLIENT, "type": 1, "text": b"a.test", "code": 255, "count": 1},
        ),
        event_batches.batch("oom", {"pid": 7, "scope": 1}),
        event_batches.batch(
            "listen", {"port": 80, "limit": 10, "accept_highest": 5, "drops": 3, "overflows": 2}
        ),
    ]
    return [replace(one, time_ns=time_ns) for one in made]


def deliveries(count: int) -> list[list[Rows]]:
    """Rows of so many intervals of ten seconds, the last of which ends about now."""
    now = time.time_ns()
    found = []
    for n in range(count):
        time_ns = now - (count - 1 - n) * 10**10
        made = list(of_batches(batches(time_ns), resource=sink_rows.RESOURCE))
        found.append([*made, of_losses({"joined": 4}, time_ns, sink_rows.RESOURCE)])
    return found


def value(server, text: str, at_ns: int) -> float:
    (found,) = query(server, text, at_ns)
    return found[1]


@pytest.fixture(params=["prometheus", "victoria_metrics"])
def server(request):
    """Each of the two."""
    return request.getfixturevalue(request.param)


def test_remote_write_brings_every_metric_with_its_first_increase(server):
    # GIVEN
    url = Url(f"{server.url}/api/v1/write")
    sink = Prometheus(PrometheusSettings(type="prometheus", url=url, job="events"))
    made = deliveries(3)

    # WHEN
    for one in made:
        for rows in one:
            sink.send(rows)
    sink.close()

    # THEN
    at = made[-1][0].time_ns
    totals = {
        f'{CONNECT}_count{{job="events"}}': 6,
        f'{CONNECT}_bucket{{job="events",le="0.005"}}': 3,
        'podscope_tcp_connects_failed_total{job="events",k8s_pod_name="web-1-a"}': 3,
        'podscope_tcp_accepts_total{job="events"}': 15,
        'podscope_tcp_sent_bytes_total{job="events",side="server"}': 300,
        'podscope_tcp_retransmits_total{job="events",side="server"}': 6,
        f'sum({DNS}_count{{job="events"}})': 6,
        'podscope_dns_lookups_total{job="events",error_type="timeout"}': 3,
        'podscope_oom_kills_total{job="events",podscope_oom_scope="memcg"}': 3,
        'podscope_listen_drops_total{job="events"}': 9,
        'podscope_listen_overflows_total{job="events",server_port="80"}': 6,
        'podscope_listen_queue_usage_ratio{job="events"}': 0.5,
        'podscope_listen_limit{job="events"}': 10,
        'podscope_lost_total{job="events",reason="joined"}': 12,
    }
    assert {text: value(server, text, at) for text in totals} == totals
    median = f'histogram_quantile(0.4, sum by (le) ({CONNECT}_bucket{{job="events"}}))'
    assert value(server, median, at) <= 0.005
    increase = 'increase(podscope_tcp_accepts_total{job="events"}[1m])'
    assert value(server, increase, at) >= 15


def test_otlp_brings_the_same_metrics(prometheus):
    # GIVEN
    sink = Otlp(OtlpSettings(type="otlp", url=Url(f"{prometheus.url}/api/v1/otlp")))
    made = deliveries(2)

    # WHEN Prometheus has no receiver of logs
    sink._signals = ("metrics",)
    for one in made:
        for rows in one:
            sink.send(rows)
    sink.close()

    # THEN
    at = made[-1][0].time_ns
    instance = 'instance="shop.web-1-a.nginx"'
    totals = {
        f"histogram_count({CONNECT}{{{instance}}})": 4,
        f"podscope_tcp_accepts_total{{{instance}}}": 10,
        f"podscope_tcp_sent_bytes_total{{{instance},side='server'}}": 200,
        f"sum(histogram_count({DNS}{{{instance}}}))": 4,
        f"podscope_oom_kills_total{{{instance}}}": 2,
        f"podscope_listen_drops_total{{{instance}}}": 6,
        f"podscope_listen_queue_usage_ratio{{{instance}}}": 0.5,
        "podscope_lost_total{reason='joined',instance='node-1',job=''}": 8,
    }
    assert {text: value(prometheus, text, at) for text in totals} == totals


def exposed(*, openmetrics: bool) -> bytes:
    totals = exposition.Totals()
    for batch in batches(time.time_ns()):
        totals.add(batch)
    return b"".join(totals.expose(openmetrics=openmetrics))


def test_promtool_finds_nothing_to_complain_about_in_events():
    # GIVEN
    promtool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: install it (Prometheus' release, or Debian's package "
                    "prometheus), or set PROMTOOL to its path")  # fmt: skip

    # WHEN
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=exposed(openmetrics=False),
        capture_output=True,
        check=False,
    )

    # THEN
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_openmetrics_has_the_types_and_units_of_the_table():
    # GIVEN / WHEN
    text = exposed(openmetrics=True).decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}

    # THEN
    for metrics in METRICS.values():
        for one in metrics:
            family = found[one.prometheus_name]
            assert (family.type, family.unit) == (one.type, one.prometheus_unit)
