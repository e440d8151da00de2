# SPDX-License-Identifier: Apache-2.0
"""Metrics pushed to a real Prometheus and a real VictoriaMetrics, read back by PromQL."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import records
import sink_rows

from podscope.settings import Url
from podscope.sinks import rows
from podscope.sinks.cumulative import Cumulative
from podscope.sinks.cumulative import Telling
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import Unavailable
from podscope.sinks.prometheus_write import Prometheus
from podscope.sinks.prometheus_write import PrometheusSettings
from podscope.sinks.rows import Rows

SECONDS = 30
SERVER = "http_server_request_duration_seconds"


@pytest.fixture(params=["prometheus", "victoria_metrics"])
def server(request):
    """Each of the two."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def job(request) -> str:
    """A job of the test's own."""
    return f"job{abs(hash(request.node.name))}"


@pytest.fixture
def sink(server, job):
    """The sink, to the server."""
    made = Prometheus(
        PrometheusSettings(type="prometheus", url=Url(f"{server.url}/api/v1/write"), job=job)
    )
    yield made
    made.close()


def intervals(count: int) -> list[Rows]:
    """The shop's rows of so many intervals of ten seconds, the last of which ends about now."""
    now = time.time_ns()
    made = []
    for n in range(count):
        time_ns = now - (count - n) * 10**10
        batch = replace(records.cluster_batch(), time_ns=time_ns, interval=10.0)
        (some,) = rows.of_batches([batch], resource=sink_rows.RESOURCE)
        made.append(some)
    return made


def query(server: Any, text: str, at_ns: int) -> list[tuple[dict[str, str], float]]:
    """Labels and values of an instant query, as soon as there are any."""
    due = time.monotonic() + SECONDS
    while True:
        told = server.ask("/api/v1/query", query=text, time=f"{at_ns / 1e9:.3f}")
        assert told["status"] == "success", told
        found = told["data"]["result"]
        if found or time.monotonic() > due:
            return [(one["metric"], float(one["value"][1])) for one in found]
        time.sleep(0.2)


def test_every_series_arrives_with_its_labels_sums_and_histogram(sink, server, job):
    # GIVEN three intervals
    made = intervals(3)

    # WHEN
    for some in made:
        sink.send(some)

    # THEN
    last = made[-1]
    for side in ("server", "client"):
        mine = last.columns["side"] == side
        name = f"http_{side}_request_duration_seconds"
        counts = query(server, f'{name}_count{{job="{job}"}}', last.time_ns)
        assert sorted(value for _, value in counts) == sorted(3 * last.columns["count"][mine])
        for labels, value in counts:
            place = place_of(last, labels, side)
            assert value == 3 * last.columns["count"][place]
            assert labels["instance"] == labels["host_name"] == "node-1"
            wanted = {
                one.label_name: str(last.columns[one.name][place])
                for one in last.fields
                if one.label and not last.absent(one)[place]
            }
            assert labels.items() >= wanted.items()
        sums = query(server, f'sum({name}_sum{{job="{job}"}})', last.time_ns)
        assert sums[0][1] == pytest.approx(3 * last.columns["duration.sum"][mine].sum())
        bodies = f'sum(podscope_http_{side}_response_body_bytes_total{{job="{job}"}})'
        size = last.columns["http.response.body.size"][mine].sum()
        assert query(server, bodies, last.time_ns)[0][1] == 3 * size
    buckets = query(server, f'sum by (le) ({SERVER}_bucket{{job="{job}"}})', last.time_ns)
    servers = last.le[last.columns["side"] == "server"].sum(axis=0).cumsum()
    assert sorted(value for _, value in buckets) == sorted((3 * servers).tolist())


def place_of(some: Rows, labels: dict[str, str], side: str) -> int:
    """The row of a series."""
    names = ("k8s.pod.name", "http.route", "http.response.status_code")
    for place in range(len(some)):
        told = [some.columns[name][place] for name in names]
        shown = [labels.get(name.replace(".", "_"), "") for name in names]
        if some.columns["side"][place] == side and [str(x or "") for x in told] == shown:
            return place
    raise AssertionError(labels)


def test_the_first_increase_of_a_counter_is_seen_and_quantiles_are_right(sink, server, job):
    # GIVEN
    made = intervals(4)

    # WHEN
    for some in made:
        sink.send(some)

    # THEN
    at = made[-1].time_ns
    seen = query(server, f'sum(increase({SERVER}_count{{job="{job}"}}[1m]))', at)
    counted = 4 * made[-1].columns["count"][made[-1].columns["side"] == "server"].sum()
    assert seen[0][1] == pytest.approx(counted, rel=0.35)
    start = made[0].time_ns - 10**10
    zeros = query(server, f'sum({SERVER}_count{{job="{job}"}})', start + 10**6)
    assert zeros[0][1] == 0
    text = f'histogram_quantile(0.5, sum by (le) ({SERVER}_bucket{{job="{job}"}}))'
    assert query(server, text, at)[0][1] < 0.005


def test_a_pod_s_counter_goes_on_while_it_is_idle(sink, server, job):
    # GIVEN
    first, second = intervals(2)

    # WHEN only clients speak in the second interval
    sink.send(first)
    sink.send(second.take(second.columns["side"] == "client"))

    # THEN
    (found,) = query(server, f'sum({SERVER}_count{{job="{job}"}})', second.time_ns)
    assert found[1] == first.columns["count"][first.columns["side"] == "server"].sum()


def test_rows_sent_again_are_not_added_once_more(server, job):
    # GIVEN
    url = Url("http://127.0.0.1:1/api/v1/write")
    down = Prometheus(PrometheusSettings(type="prometheus", url=url, job=job))
    (some,) = intervals(1)
    with pytest.raises(Unavailable):
        down.send(some)

    # WHEN
    up = Prometheus(
        PrometheusSettings(type="prometheus", url=Url(f"{server.url}/api/v1/write"), job=job)
    )
    down._client = up._client
    down.send(some)
    down.send(some)

    # THEN
    (found,) = query(server, f'sum({SERVER}_count{{job="{job}"}})', some.time_ns)
    assert found[1] == some.columns["count"][some.columns["side"] == "server"].sum()
    up.close()


def test_series_beyond_the_most_go_to_one_a_side(sink, server, job):
    # GIVEN
    sink._totals = Cumulative(buckets=False, series=2)
    sink._telling = Telling(sink._totals, 10)
    (some,) = intervals(1)

    # WHEN
    sink.send(some)

    # THEN sums stay right
    found = query(server, f'{{__name__=~"http_.*_count",job="{job}"}}', some.time_ns)
    assert sum(value for _, value in found) == some.columns["count"].sum()
    assert [labels for labels, _ in found if labels.get("otel_metric_overflow") == "true"]


def test_native_histograms_give_counts_sums_and_quantiles(prometheus, job):
    # GIVEN
    url = Url(f"{prometheus.url}/api/v1/write")
    sink = Prometheus(PrometheusSettings(type="prometheus", url=url, job=job, native=True))
    made = intervals(3)

    # WHEN
    for some in made:
        sink.send(some)

    # THEN
    last = made[-1]
    servers = last.columns["side"] == "server"
    mine = f'{SERVER}{{job="{job}"}}'
    (count,) = query(prometheus, f"sum(histogram_count({mine}))", last.time_ns)
    assert count[1] == 3 * last.columns["count"][servers].sum()
    (total,) = query(prometheus, f"sum(histogram_sum({mine}))", last.time_ns)
    assert total[1] == pytest.approx(3 * last.columns["duration.sum"][servers].sum())
    (worst,) = query(prometheus, f"histogram_quantile(0.99, sum({mine}))", last.time_ns)
    assert worst[1] == pytest.approx(0.7, rel=0.1)
    start = made[0].time_ns - 10**10 + 10**6
    (zero,) = query(prometheus, f"sum(histogram_count({mine}))", start)
    assert zero[1] == 0
    bodies = f'sum(podscope_http_server_response_body_bytes_total{{job="{job}"}})'
    size = last.columns["http.response.body.size"][servers].sum()
    assert query(prometheus, bodies, last.time_ns)[0][1] == 3 * size
    sink.close()


# --- remote write 2.0 and 1.0 -------------------------------------------------------------------


def traced(time_ns: int) -> Rows:
    """A request of web-1-a with a trace, which ended before that time."""
    batch = records.request_batch(1, route=7, duration_ns=1_000_000)
    batch = replace(
        batch,
        identities=(records.WEB_A,),
        routes={7: "/items/*"},
        clock_offset_ns=time_ns - 6 * 10**9,
    )
    (made,) = rows.of_batches([batch], resource=sink_rows.RESOURCE)
    return made


@pytest.mark.parametrize("native", [False, True])
def test_exemplars_lead_from_a_histogram_to_a_trace(prometheus, job, native):
    # GIVEN
    url = Url(f"{prometheus.url}/api/v1/write")
    sink = Prometheus(PrometheusSettings(type="prometheus", url=url, job=job, native=native))
    (some,) = intervals(1)

    # WHEN
    sink.send(traced(some.time_ns))
    sink.send(some)

    # THEN
    name = SERVER if native else f"{SERVER}_bucket"
    found = prometheus.ask(
        "/api/v1/query_exemplars",
        query=f'{name}{{job="{job}"}}',
        start=f"{some.time_ns / 1e9 - 60:.3f}",
        end=f"{some.time_ns / 1e9 + 60:.3f}",
    )
    (series,) = found["data"]
    assert series["seriesLabels"]["k8s_pod_name"] == "web-1-a"
    (one,) = series["exemplars"]
    assert one["labels"]["trace_id"] == bytes(range(1, 17)).hex()
    assert float(one["value"]) == pytest.approx(0.001)
    assert one["timestamp"] == pytest.approx(some.time_ns / 1e9 - 1, abs=0.01)
    sink.close()


def test_the_server_s_own_version_is_found(sink, server, request):
    # GIVEN / WHEN
    (some,) = intervals(1)
    sink.send(some)

    # THEN Prometheus 3 takes 2.0; this VictoriaMetrics would take it and keep nothing
    is_prometheus = "[prometheus]" in request.node.name
    assert sink._version == (2 if is_prometheus else 1)
    assert bool(sink.notes) != is_prometheus


def test_version_1_can_be_asked_for(server, job):
    # GIVEN
    url = Url(f"{server.url}/api/v1/write")
    sink = Prometheus(PrometheusSettings(type="prometheus", url=url, job=job, version=1))
    (some,) = intervals(1)

    # WHEN
    sink.send(some)

    # THEN
    found = query(server, f'sum({{__name__=~"http_.*_count",job="{job}"}})', some.time_ns)
    assert found[0][1] == some.columns["count"].sum()
    sink.close()


def test_what_is_refused_in_part_is_counted_and_the_rest_is_written(prometheus, job):
    # GIVEN a series that the server has from later on
    url = Url(f"{prometheus.url}/api/v1/write")
    first, second = (
        Prometheus(PrometheusSettings(type="prometheus", url=url, job=job)) for _ in range(2)
    )
    early, late = intervals(2)
    first.send(late.take(slice(0, 1)))

    # WHEN
    with pytest.raises(Refused, match="out of order"):
        second.send(early)

    # THEN
    found = query(prometheus, f'{{__name__=~"http_.*_count",job="{job}"}}', early.time_ns)
    assert sum(value for _, value in found) == early.columns["count"][1:].sum()
    for one in (first, second):
        one.close()


def test_maps_of_a_trace_are_counters_and_histograms(sink, server, job):
    # GIVEN
    start_ns = time.time_ns() - 4 * 10**10

    # WHEN
    for step in (1, 2, 3):
        sink.send(sink_rows.trace_rows(step, start_ns=start_ns))

    # THEN
    at = start_ns + 3 * 10**10
    calls = query(server, f'app_calls_total{{job="{job}",comm="nginx"}}', at)
    ((labels, value),) = calls
    assert (value, labels["args_fd"]) == (21, "4")
    zero = query(server, f'app_calls_total{{job="{job}",comm="nginx"}}', start_ns + 10**9)
    assert [value for _, value in zero] == [0]
    buckets = query(server, f'app_sizes_bucket{{job="{job}",k8s_pod_name="web-1-a"}}', at)
    told = {labels["le"]: value for labels, value in buckets}
    assert told == {"0": 0, "1": 6, "3": 6, "7": 15, "+Inf": 15}
    mean = query(server, f'app_took_sum{{job="{job}"}} / app_took_count', at)
    assert mean[0][1] == 3.5
