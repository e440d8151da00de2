# SPDX-License-Identifier: Apache-2.0
"""Metrics by OTLP in a real Prometheus 3, as native histograms."""

from __future__ import annotations

import time
from dataclasses import replace

import event_batches
import numpy as np
import pytest
import sink_rows
from test_prometheus_write import intervals
from test_prometheus_write import query

from podscope.settings import Url
from podscope.sinks.otlp import Otlp
from podscope.sinks.otlp import OtlpSettings
from podscope.sinks.plugin import Refused
from podscope.sinks.rows import Rows
from podscope.sinks.rows import of_batches

SERVER = "http_server_request_duration_seconds"
# What other tests have written has other jobs.
MINE = 'job=~"mine/.*"'


@pytest.fixture
def sink(prometheus):
    """The sink, to Prometheus' own receiver."""
    made = Otlp(OtlpSettings(type="otlp", url=Url(f"{prometheus.url}/api/v1/otlp")))
    yield made
    made.close()


def test_native_histograms_give_counts_sums_and_quantiles(sink, prometheus):
    # GIVEN three intervals
    made = [in_namespace(some, "mine") for some in intervals(3)]

    # WHEN
    for some in made:
        sink.send(some)

    # THEN
    last = made[-1]
    for side in ("server", "client"):
        mine = last.columns["side"] == side
        name = f"http_{side}_request_duration_seconds"
        count = query(prometheus, f"sum(histogram_count({name}{{{MINE}}}))", last.time_ns)
        assert count[0][1] == 3 * last.columns["count"][mine].sum()
        total = query(prometheus, f"sum(histogram_sum({name}{{{MINE}}}))", last.time_ns)
        assert total[0][1] == pytest.approx(3 * last.columns["duration.sum"][mine].sum())
    by_pod = query(
        prometheus, f"sum by (job, instance) (histogram_count({SERVER}{{{MINE}}}))", last.time_ns
    )
    assert {(labels["job"], labels["instance"]): value for labels, value in by_pod} == {
        ("mine/web", "mine.web-1-a.nginx"): 120,
        ("mine/web", "mine.web-1-b.nginx"): 45,
    }
    # 40 of 55 requests of servers take 1 or 2 ms; the quantile is in the bucket of the true one.
    (median,) = query(prometheus, f"histogram_quantile(0.5, sum({SERVER}{{{MINE}}}))", last.time_ns)
    assert median[1] == pytest.approx(0.001, rel=0.1)
    (worst,) = query(prometheus, f"histogram_quantile(0.99, sum({SERVER}{{{MINE}}}))", last.time_ns)
    assert worst[1] == pytest.approx(0.7, rel=0.1)


def test_bodies_are_counters(sink, prometheus):
    # GIVEN
    some = in_namespace(intervals(1)[0], "bodies")

    # WHEN
    sink.send(some)

    # THEN
    text = 'sum({__name__=~"podscope_http_server_response_body_bytes.*",job=~"bodies/.*"})'
    (found,) = query(prometheus, text, some.time_ns)
    servers = some.columns["side"] == "server"
    assert found[1] == some.columns["http.response.body.size"][servers].sum()


def test_deltas_are_added_up_by_the_server(prometheus):
    # GIVEN series of its own: the rows of another namespace
    url = Url(f"{prometheus.url}/api/v1/otlp")
    sink = Otlp(OtlpSettings(type="otlp", url=url, temporality="delta", signals=("metrics",)))
    made = [in_namespace(some, "deltas") for some in intervals(3)]

    # WHEN
    for some in made:
        sink.send(some)

    # THEN
    last = made[-1]
    (found,) = query(
        prometheus, f'sum(histogram_count({SERVER}{{job=~"deltas/.*"}}))', last.time_ns
    )
    assert found[1] == 3 * last.columns["count"][last.columns["side"] == "server"].sum()
    sink.close()


def test_signals_that_prometheus_has_not_are_refused_and_metrics_arrive(sink, prometheus):
    # GIVEN
    metrics = in_namespace(intervals(1)[0], "some")

    # WHEN
    with pytest.raises(Refused, match="404 Not Found.*leave logs out of signals"):
        sink.send(sink_rows.request_rows())
    sink.send(metrics)

    # THEN
    text = f'sum(histogram_count({SERVER}{{job=~"some/.*"}}))'
    (found,) = query(prometheus, text, metrics.time_ns)
    servers = metrics.columns["side"] == "server"
    assert found[1] == metrics.columns["count"][servers].sum()


def in_namespace(some: Rows, name: str) -> Rows:
    """The same rows in another namespace."""
    column = np.full(len(some), name, dtype=object)
    return replace(some, columns={**some.columns, "k8s.namespace.name": column})


def test_kinds_whose_times_are_not_in_order_are_all_taken(sink, prometheus):
    # GIVEN a listener of the same pod, whose interval ended later, and which is sent first
    some = in_namespace(intervals(1)[0], "late")
    batch = event_batches.batch("listen", {"port": 80, "limit": 10, "drops": 3})
    batch = replace(batch, time_ns=some.time_ns + 5_000_000)
    (listener,) = of_batches([batch], resource=some.resource)

    # WHEN
    sink.send(in_namespace(listener, "late"))
    sink.send(some)

    # THEN
    text = f'sum(histogram_count({SERVER}{{job=~"late/.*"}}))'
    (found,) = query(prometheus, text, some.time_ns + 10**9)
    assert found[1] == some.columns["count"][some.columns["side"] == "server"].sum()


def test_maps_of_a_trace_are_counters_and_histograms(prometheus):
    # GIVEN a cluster of its own: of the same pod others have told what is later
    url = Url(f"{prometheus.url}/api/v1/otlp")
    sink = Otlp(OtlpSettings(type="otlp", url=url, signals=("metrics",)))
    start_ns = time.time_ns() - 4 * 10**10
    made = [sink_rows.trace_rows(step, start_ns=start_ns) for step in (1, 2, 3)]

    # WHEN
    for some in made:
        sink.send(replace(some, resource={**some.resource, "k8s.cluster.name": "traced"}))
    sink.close()

    # THEN
    at = start_ns + 3 * 10**10
    calls = query(prometheus, 'app_calls_total{comm="nginx",job=""}', at)
    assert [(value, labels["args_fd"]) for labels, value in calls] == [(21, "4")]
    buckets = query(prometheus, 'app_sizes_bucket{instance="shop.web-1-a"}', at)
    told = {float(labels["le"]): value for labels, value in buckets}
    assert told == {0: 0, 1: 6, 3: 6, 7: 15, np.inf: 15}
