# SPDX-License-Identifier: Apache-2.0
"""Metrics of kills, listeners, connections and lookups, read back by prometheus_client."""

from __future__ import annotations

from dataclasses import replace

import event_batches
import numpy as np
import pytest
import records
from event_batches import CLIENT
from event_batches import SERVER
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text_format

from podscope.batch import Batch
from podscope.batch import Service
from podscope.schema_metrics import LABELS
from podscope.schema_metrics import METRICS
from podscope.schema_oom import SCOPES
from podscope.sinks import prometheus
from podscope.sinks.event_totals import EventTotals
from podscope.sinks.rows import of_metrics
from podscope.sources.source import fields_of


def samples(totals, *, with_openmetrics=True):
    """Samples by name: list of (labels, value)."""
    parse = openmetrics if with_openmetrics else text_format
    text = b"".join(totals.expose(openmetrics=with_openmetrics)).decode()
    found: dict[str, list] = {}
    for family in parse(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def of(*batches: Batch, **options: int) -> prometheus.Totals:
    totals = prometheus.Totals(**options)
    for batch in batches:
        totals.add(batch)
    return totals


def listener(seconds: float = 0.0, **members: object) -> Batch:
    row = {"port": 80, "limit": 10, **members}
    return event_batches.batch("listen", row, seconds=seconds)


@pytest.mark.parametrize("with_openmetrics", [True, False])
def test_each_kill_counts_with_the_pods_labels(with_openmetrics):
    # GIVEN two kills in one container
    scope = SCOPES.index("memcg")
    batch = event_batches.batch("oom", {"pid": 7, "scope": scope}, {"pid": 8, "scope": scope})

    # WHEN
    found = samples(of(batch, batch), with_openmetrics=with_openmetrics)

    # THEN
    assert found["podscope_oom_kills_total"] == [
        (
            {
                "service_name": "web",
                "k8s_namespace_name": "shop",
                "k8s_deployment_name": "web",
                "k8s_pod_name": "web-1-a",
                "k8s_container_name": "nginx",
                "k8s_node_name": "node-1",
                "container_id": "a" * 64,
                "process_executable_name": "nginx",
                "podscope_oom_scope": "memcg",
            },
            4.0,
        )
    ]


def test_pods_behind_several_services_count_once():
    # GIVEN
    web = replace(records.WEB_A, services=(Service("web"), Service("all")))
    batch = event_batches.batch("tcp", {"side": SERVER, "accepts": 3}, whose=(web,))

    # WHEN / THEN
    ((_, value),) = samples(of(batch))["podscope_tcp_accepts_total"]
    assert value == 3


def test_connects_are_a_histogram_of_the_clients_side_alone():
    # GIVEN
    client = {"side": CLIENT, "port": 443, "durations": [4 * 10**6, 2 * 10**8], "failed": 1}
    server = {"side": SERVER, "port": 80, "accepts": 5, "sent": 100}
    batch = event_batches.batch("tcp", client, server)

    # WHEN
    found = samples(of(batch, batch))

    # THEN
    name = "podscope_tcp_connect_duration_seconds"
    buckets = {labels["le"]: value for labels, value in found[f"{name}_bucket"]}
    assert (buckets["0.005"], buckets["0.1"], buckets["0.25"], buckets["+Inf"]) == (2, 2, 4, 4)
    ((labels, total),) = found[f"{name}_sum"]
    assert (labels["side"], labels["server_port"]) == ("client", "443")
    assert total == pytest.approx(0.408)
    assert [value for _, value in found["podscope_tcp_connects_failed_total"]] == [2]
    assert [value for _, value in found["podscope_tcp_accepts_total"]] == [10]
    assert {labels["side"]: value for labels, value in found["podscope_tcp_sent_bytes_total"]} == {
        "client": 0,
        "server": 200,
    }


def test_lookups_have_no_names_and_those_without_a_response_count():
    # GIVEN
    answered = {"side": CLIENT, "type": 1, "name": 5, "text": b"a.test", "durations": [10**6]}
    another = answered | {"name": 6, "text": b"b.test"}
    late = {"side": CLIENT, "type": 1, "name": 5, "text": b"a.test", "code": 255, "count": 1}

    # WHEN
    found = samples(of(event_batches.batch("dns", answered, another, late)))

    # THEN
    counts = {
        labels.get("error_type", ""): value for labels, value in found["podscope_dns_lookups_total"]
    }
    assert counts == {"": 2, "timeout": 1}
    durations = found["dns_lookup_duration_seconds_count"]
    assert {labels.get("error_type", ""): value for labels, value in durations} == {
        "": 2,
        "timeout": 0,
    }
    for labels, _ in durations:
        assert labels["podscope_dns_question_type"] == "A"
        assert "dns_question_name" not in labels


def test_a_queues_use_is_the_highest_of_the_last_minute():
    # GIVEN a queue that was full for one interval
    batches = [
        listener(0, accept_highest=2),
        listener(1, accept_highest=10, drops=3, overflows=3),
        listener(2, accept_highest=1),
    ]
    totals = of(*batches)

    # WHEN / THEN it is told for a minute, and counters stay
    name = "podscope_listen_queue_usage_ratio"
    assert [value for _, value in samples(totals)[name]] == [1.0]
    totals.add(listener(40, accept_highest=1))
    assert [value for _, value in samples(totals)[name]] == [1.0]
    totals.add(listener(100, accept_highest=4))
    found = samples(totals)
    assert [value for _, value in found[name]] == [0.4]
    assert [value for _, value in found["podscope_listen_overflows_total"]] == [3]
    assert [value for _, value in found["podscope_listen_limit"]] == [10]


def test_gauges_of_a_listener_go_with_it_and_its_counters_stay():
    # GIVEN
    totals = of(listener(0, drops=1, accept_highest=5))

    # WHEN it is closed, or is not told of any more
    closed = of(listener(0, drops=1, accept_highest=5), listener(1, closed=1, accept_highest=5))
    nothing = event_batches.batch("listen", seconds=2)
    totals.add(nothing)

    # THEN
    for one in (totals, closed):
        found = samples(one)
        assert "podscope_listen_queue_usage_ratio" not in found
        assert [value for _, value in found["podscope_listen_drops_total"]] == [1]


def test_overflows_that_are_not_known_are_not_guessed():
    # GIVEN / WHEN a listener of which they are known, and one of which they are not any more
    told = listener(port=80, drops=5, overflows=4)
    untold = listener(port=81, drops=5, overflows=-1)
    found = samples(of(told, untold, told, listener(port=81)))

    # THEN that has none: a part would look like all
    (overflows,) = found["podscope_listen_overflows_total"]
    assert (overflows[0]["server_port"], overflows[1]) == ("80", 8)
    assert [value for _, value in found["podscope_listen_drops_total"]] == [10, 5]


def test_series_beyond_the_cap_share_one_and_are_accounted_for():
    # GIVEN
    rows = [{"side": SERVER, "port": port, "accepts": 1} for port in range(1, 6)]
    batch = event_batches.batch("tcp", *rows)

    # WHEN
    totals = of(batch, batch, series=3)

    # THEN
    found = samples(totals)
    counts = {one.get("server_port"): n for one, n in found["podscope_tcp_accepts_total"]}
    assert counts == {"1": 2, "2": 2, "3": 2, None: 4}
    assert ({"reason": "metric_series_full"}, 4) in found["podscope_lost_total"]
    assert found["podscope_agent_series"] == [({}, 3)]


def test_idle_series_give_their_places_to_new_ones():
    # GIVEN a full table whose series are idle for a day
    day = 86400.0

    def accepts(port: int, seconds: float) -> Batch:
        row = {"side": SERVER, "port": port, "accepts": 1}
        return event_batches.batch("tcp", row, seconds=seconds)

    # WHEN
    totals = of(accepts(1, 0), accepts(2, 0), accepts(3, day), accepts(1, 2 * day), series=2)

    # THEN those that come again begin at zero
    found = samples(totals)["podscope_tcp_accepts_total"]
    assert {labels["server_port"]: value for labels, value in found} == {"3": 1, "1": 1}


def test_an_idle_series_that_comes_again_keeps_its_place():
    # GIVEN a full table whose series are idle for a day
    def accepts(seconds: float, *ports: int) -> Batch:
        rows = [{"side": SERVER, "port": port, "accepts": 1} for port in ports]
        return event_batches.batch("tcp", *rows, seconds=seconds)

    # WHEN one of them comes again together with a new one
    totals = of(accepts(0, 1, 2), accepts(86400, 1, 3), series=2)

    # THEN
    found = samples(totals)["podscope_tcp_accepts_total"]
    assert {labels["server_port"]: value for labels, value in found} == {"1": 2, "3": 1}


def test_memory_is_bounded_whatever_comes():
    # GIVEN / WHEN
    totals = EventTotals("tcp", series=50)
    for start in range(1, 3000, 100):
        rows = [{"side": SERVER, "port": start + n, "accepts": 1} for n in range(100)]
        totals.add(of_metrics(event_batches.batch("tcp", *rows)))

    # THEN
    assert len(totals) == 50
    assert len(totals._seen_ns) <= 2 * 51
    accepts = [one.name for one in totals.metrics].index("podscope.tcp.accepts")
    assert np.nansum(totals.all().values[:, accepts]) == 3000


def test_every_column_and_label_of_a_metric_is_a_field_of_its_rows():
    for kind, metrics in METRICS.items():
        if kind != "lost":
            names = {one.name for one in fields_of(kind)}
            assert {one.column for one in metrics} - {""} <= names
            assert set(LABELS[kind]) <= names
