# SPDX-License-Identifier: Apache-2.0
"""Totals and their exposition, read back by prometheus_client's parsers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import records
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text_format

from podscope.batch import Identity
from podscope.batch import Service
from podscope.sinks import prometheus

DURATION = "http_server_request_duration_seconds"


def exposition(totals, *, with_openmetrics=True):
    """The whole text."""
    return b"".join(totals.expose(openmetrics=with_openmetrics)).decode()


def samples(totals, *, with_openmetrics=True):
    """Samples by name: list of (labels, value)."""
    parse = openmetrics if with_openmetrics else text_format
    found: dict[str, list] = {}
    for family in parse(exposition(totals, with_openmetrics=with_openmetrics)):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def of(*batches, **options):
    """Totals of these batches."""
    totals = prometheus.Totals(**options)
    for batch in batches:
        totals.add(batch)
    return totals


def distinct(n, **members):
    """A batch of ``n`` series that differ in their port."""
    rows = records.http_rows(n)
    rows["key"]["port"] = np.arange(n) + 1
    rows["key"]["side"] = 1
    rows["key"]["status"] = 200
    rows["count"] = 1
    rows["le"][:, 0] = 1
    for name, value in members.items():
        rows[name] = value
    return records.http_batch(rows, np.zeros(n))


@pytest.mark.parametrize("with_openmetrics", [True, False])
def test_histogram_has_exact_counts_at_the_advised_bounds(with_openmetrics):
    # GIVEN / WHEN
    found = samples(of(records.shop_batch()), with_openmetrics=with_openmetrics)

    # THEN
    buckets = {
        labels["le"]: value
        for labels, value in found[f"{DURATION}_bucket"]
        if labels["service_name"] == "shop" and labels["http_request_method"] == "GET"
    }
    assert len(buckets) == 15
    assert (buckets["0.025"], buckets["0.05"], buckets["+Inf"]) == (0, 12, 12)
    sums = {labels["http_route"]: value for labels, value in found[f"{DURATION}_sum"]}
    assert sums == {"/items/*": pytest.approx(0.36), "_OTHER": 0.02, "/pay": 2.1}


def test_labels_are_those_of_the_semantic_conventions_and_never_a_pid():
    # GIVEN / WHEN
    found = samples(of(records.shop_batch()))

    # THEN
    server = [labels for labels, _ in found[f"{DURATION}_count"]]
    assert {
        "http_request_method": "POST",
        "http_response_status_code": "500",
        "http_route": "/pay",
        "error_type": "500",
        "network_protocol_version": "1.1",
        "server_port": "8080",
        "service_name": "shop",
        "process_executable_name": "python3",
        "container_id": records.SHOP.container_id,
        "url_scheme": "http",
    } in server
    (client,) = [labels for labels, _ in found["http_client_request_duration_seconds_count"]]
    assert client == {
        "http_request_method": "GET",
        "http_response_status_code": "404",
        "error_type": "404",
        "network_protocol_version": "1.0",
        "server_port": "80",
        "service_name": "curl",
        "process_executable_name": "curl",
        "url_scheme": "http",
    }


def test_series_that_differ_in_pid_or_peer_alone_are_one():
    # GIVEN
    rows = records.http_rows(3)
    rows["key"]["side"] = 1
    rows["key"]["pid"] = [1, 2, 3]
    rows["key"]["peer_class"] = [1, 2, 3]
    rows["count"] = rows["le"][:, 0] = [1, 2, 4]

    # WHEN
    found = samples(of(records.http_batch(rows, [0, 0, 0])))

    # THEN
    assert [value for _, value in found[f"{DURATION}_count"]] == [7]


def test_totals_add_up_and_survive_series_that_the_kernel_forgot():
    # GIVEN a series that is there, then not, then again with another identity number
    first = distinct(1)
    later = replace(first, identity=np.array([1], "u4"), identities=(records.CURL, records.NGINX))

    # WHEN
    totals = of(first, replace(first, rows=first.rows[:0], identity=first.identity[:0]), later)

    # THEN
    assert [value for _, value in samples(totals)[f"{DURATION}_count"]] == [2]


def test_body_bytes_are_counters():
    # GIVEN / WHEN
    found = samples(of(records.shop_batch(), records.shop_batch()))

    # THEN
    sent = found["podscope_http_server_response_body_bytes_total"]
    assert sum(value for _, value in sent) == 2 * 4330
    received = found["podscope_http_server_request_body_bytes_total"]
    assert sum(value for _, value in received) == 600
    assert found["podscope_http_client_response_body_bytes_total"][0][1] == 100


def test_series_beyond_the_cap_go_to_the_overflow_series_and_are_accounted_for():
    # GIVEN / WHEN five series where three fit, twice
    totals = of(distinct(5), distinct(5), series=3)

    # THEN
    found = samples(totals)
    counts = {labels.get("server_port"): value for labels, value in found[f"{DURATION}_count"]}
    assert sum(counts.values()) == 10
    assert len(totals) == 3 and len(counts) == 4
    assert counts[None] == 4
    assert ({"otel_metric_overflow": "true"}, 4) in found[f"{DURATION}_count"]
    assert ({"reason": "metric_series_full"}, 4) in found["podscope_lost_total"]


def test_full_table_gives_the_places_of_idle_series_to_new_ones():
    # GIVEN a full table, of which port 2 is still used
    old = distinct(2)
    hour = 3600 * 10**9
    totals = of(old, series=2)
    totals.add(
        replace(old, rows=old.rows[1:], identity=old.identity[1:], time_ns=old.time_ns + hour)
    )

    # WHEN
    new = distinct(3)
    totals.add(
        replace(new, rows=new.rows[2:], identity=new.identity[2:], time_ns=old.time_ns + hour + 1)
    )

    # THEN
    found = samples(totals)[f"{DURATION}_count"]
    assert {labels.get("server_port"): value for labels, value in found} == {"2": 2, "3": 1}


def test_series_that_comes_back_after_its_place_was_taken_begins_at_one():
    # GIVEN
    day = 86400 * 10**9
    one = distinct(1)
    other = distinct(2)
    other = replace(other, rows=other.rows[1:], identity=other.identity[1:])

    # WHEN
    totals = of(
        one,
        replace(other, time_ns=one.time_ns + day),
        replace(one, time_ns=one.time_ns + 2 * day),
        series=1,
    )

    # THEN
    ((labels, value),) = samples(totals)[f"{DURATION}_count"]
    assert (labels["server_port"], value) == ("1", 1)


def test_memory_is_bounded_whatever_comes():
    # GIVEN / WHEN many batches of ever new series
    totals = prometheus.Totals(series=50)
    for start in range(0, 3000, 100):
        batch = distinct(100)
        batch.rows["key"]["port"] += start
        totals.add(batch)

    # THEN
    assert len(totals) == 50
    assert len(totals._labels) == 53
    assert len(totals._places_of_row) <= 4 * 53
    assert sum(value for _, value in samples(totals)[f"{DURATION}_count"]) == 3000


SERVICE = "podscope_service_request_duration_seconds"


def test_what_is_by_service_is_a_family_of_its_own():
    # GIVEN two pods, of which both stand behind one Service, one behind another
    batch = records.cluster_batch()
    web = Service("web", (80, 8080), (8000, 8001))
    both = replace(records.WEB_B, services=(web, Service("all")))
    batch = replace(batch, identities=(replace(records.WEB_A, services=(web,)), both, records.BARE))

    # WHEN
    totals = of(batch)
    found = samples(totals)

    # THEN sums over pods count each exchange once, and those of a Service all of its own
    by_pod = sum(value for _, value in found[f"{DURATION}_count"])
    by_service = {}
    for labels, value in found[f"{SERVICE}_count"]:
        key = (labels["k8s_service_name"], labels.get("podscope_service_port"))
        by_service[key] = by_service.get(key, 0) + value
    assert by_pod == 55
    assert by_service == {("web", "8000"): 40, ("web", "8001"): 15, ("all", None): 15}
    assert not any("k8s_service_name" in labels for labels, _ in found[f"{DURATION}_count"])
    assert "k8s_pod_name" not in found[f"{SERVICE}_count"][0][0]


def test_services_that_do_not_fit_are_not_lost_twice():
    # GIVEN room for the pods alone
    totals = of(records.cluster_batch(), series=5)

    # WHEN
    found = samples(totals)

    # THEN
    lost = {labels["reason"]: value for labels, value in found["podscope_lost_total"]}
    assert lost == {"metric_series_full": 0}
    assert [(labels, value) for labels, value in found[f"{SERVICE}_count"]] == [
        ({"otel_metric_overflow": "true"}, 55)
    ]


@given(
    workloads=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_name_is_a_label_value_that_reads_back(workloads):
    # GIVEN
    identities = tuple(Identity("process", name, "x") for name in workloads)
    rows = records.http_rows(len(workloads))
    rows["key"]["side"] = 1
    rows["le"][:, 2] = 3

    # WHEN
    found = samples(of(records.http_batch(rows, range(len(workloads)), identities)))

    # THEN
    assert {labels["service_name"] for labels, _ in found[f"{DURATION}_count"]} == set(workloads)


def test_route_text_that_comes_after_its_hash_is_taken():
    # GIVEN
    batch = distinct(1)
    batch.rows["key"]["route"] = 99

    # WHEN
    totals = of(batch, replace(batch, routes={99: "/late"}))

    # THEN
    found = samples(totals)[f"{DURATION}_count"]
    assert {labels["http_route"] for labels, _ in found} == {"#0000000000000063", "/late"}


def test_agent_tells_its_cost_and_losses():
    # GIVEN
    totals = of(distinct(4))
    totals.tell({"ring_full": 3, "joined": 0}, {"cpu_seconds": 1.25, "resident_bytes": 4096})

    # WHEN
    found = samples(totals)

    # THEN
    assert found["podscope_agent_cpu_seconds_total"] == [({}, 1.25)]
    assert found["podscope_agent_resident_memory_bytes"] == [({}, 4096)]
    assert found["podscope_agent_series"] == [({}, 4)]
    assert ({"reason": "ring_full"}, 3) in found["podscope_lost_total"]
    assert ({"reason": "joined"}, 0) in found["podscope_lost_total"]


def test_agent_tells_which_sources_run():
    # GIVEN
    totals = of(distinct(1))
    totals.tell({}, {}, {"tcp": False, "oom": True})

    # WHEN / THEN
    told = {labels["source"]: up for labels, up in samples(totals)["podscope_agent_source_up"]}
    assert told == {"tcp": 0, "oom": 1}


def test_exposition_before_the_first_batch_is_valid():
    assert "podscope_agent_series" in samples(prometheus.Totals())


def test_batches_of_other_kinds_change_nothing():
    assert len(of(records.request_batch(3))) == 0


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2", True),
        ("application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5", False),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.9", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=x", False),
    ],
)
def test_form_is_negotiated(accept, expected):
    assert prometheus.wants_openmetrics(accept) is expected


# --- exemplars --------------------------------------------------------------------------------


def traced(**members):
    """A request to the first series of the cluster's: a GET of web-1-a."""
    told = {"route": 7, "duration_ns": 1_000_000} | members
    batch = records.request_batch(1, **told)
    return replace(batch, identities=(records.WEB_A,), routes={7: "/items/*"})


def test_a_request_with_a_trace_is_an_exemplar_of_its_bucket():
    # GIVEN two requests in one bucket, and one without a trace
    totals = of(records.cluster_batch())
    for second in (4, 5):
        totals.add(traced(time_ns=second * 10**9))
    totals.add(traced(time_ns=6 * 10**9, trace_id=[0] * 16))

    # WHEN
    found = [
        (sample.labels, sample.exemplar)
        for family in openmetrics(exposition(totals))
        for sample in family.samples
        if sample.exemplar
    ]

    # THEN the newest with a trace, of that series alone
    ((labels, exemplar),) = found
    assert (labels["k8s_pod_name"], labels["http_route"], labels["le"]) == (
        "web-1-a", "/items/*", "0.005",
    )  # fmt: skip
    assert exemplar.labels["trace_id"] == bytes(range(1, 17)).hex()
    assert exemplar.labels["span_id"] == bytes(range(1, 9)).hex()
    assert exemplar.value == 0.001
    assert float(exemplar.timestamp) == pytest.approx(records.TIME_NS / 1e9, abs=0.01)


def test_text_0_0_4_has_no_exemplars_and_requests_of_no_series_do_not_show():
    # GIVEN
    totals = of(records.cluster_batch())
    totals.add(traced(status=418))

    # WHEN / THEN
    assert " # {" not in exposition(totals)
    totals.add(traced())
    assert " # {" in exposition(totals)
    assert " # {" not in exposition(totals, with_openmetrics=False)
