# SPDX-License-Identifier: Apache-2.0
"""Sums of events and losses in the sinks: rows, remote write, OTLP."""

from __future__ import annotations

import json
from dataclasses import replace

import cramjam
import event_batches
import numpy as np
import pytest
import records
import sink_rows
from event_batches import CLIENT
from event_batches import SERVER
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE
from stub_server import stub_server
from test_sinks_delivery import end
from test_sinks_delivery import start
from test_sinks_delivery import told
from test_sinks_otlp import attributes
from test_sinks_otlp import records as logs_of
from test_sinks_prometheus import samples
from test_sinks_remote_write import TAKEN
from test_sinks_remote_write import told as series_of

from podscope.errors import PodscopeError
from podscope.schema_metrics import LOST
from podscope.settings import Url
from podscope.sinks.elasticsearch import documents
from podscope.sinks.line_protocol import Distinct
from podscope.sinks.line_protocol import lines_of
from podscope.sinks.native_histograms import histogram
from podscope.sinks.otlp import Otlp
from podscope.sinks.otlp import OtlpSettings
from podscope.sinks.outputs import Outputs
from podscope.sinks.plugin import Choice
from podscope.sinks.plugin import Unavailable
from podscope.sinks.prometheus_write import Prometheus
from podscope.sinks.prometheus_write import PrometheusSettings
from podscope.sinks.rows import Rows
from podscope.sinks.rows import of_batches
from podscope.sinks.rows import of_losses
from podscope.sinks.rows import packed
from podscope.sinks.rows import unpacked

__all__ = ["start", "told"]  # fixtures

NAME = "podscope_tcp_connect_duration_seconds"


@pytest.fixture
def stub():
    with stub_server() as made:
        yield made


def connections(seconds: float = 0.0, pid: int = 1) -> list:
    """A client's and a server's rows of one interval."""
    client = {"side": CLIENT, "port": 443, "pid": pid, "durations": [4 * 10**6, 10**8]}
    server = {"side": SERVER, "port": 80, "pid": pid, "accepts": 5, "sent": 100}
    return [event_batches.batch("tcp", client, server, seconds=seconds)]


def rows(*batches) -> Rows:
    (made,) = of_batches(batches, resource=sink_rows.RESOURCE)
    return made


def losses(seconds: float = 0.0, **lost: int) -> Rows:
    return of_losses(lost, records.TIME_NS + round(seconds * 1e9), sink_rows.RESOURCE)


# --- rows -------------------------------------------------------------------------------------


def test_sums_of_a_delivery_are_one_row_a_container(start):
    # GIVEN
    sink = sink_rows.Recorder()
    one = start(sink)

    # WHEN intervals of two processes come
    for second in range(4):
        one.put(connections(second, pid=second % 2)[0])
    end(one)

    # THEN nothing is missing
    accepts = sum(int(some.columns["podscope.tcp.accepts"].sum()) for some in sink.got)
    assert accepts == 20
    assert all(not some.columns["process.pid"].any() for some in sink.got)
    assert all(len(some) == 2 for some in sink.got)


def test_histograms_survive_the_disk():
    # GIVEN
    some = rows(*connections())

    # WHEN
    back = unpacked(packed(some))

    # THEN
    assert (back.le == some.le).all() and (back.buckets == some.buckets).all()


def test_documents_and_lines_have_the_fields_alone():
    # GIVEN
    some = rows(*connections())

    # WHEN
    _, first, *_ = documents(some, histograms=True).decode().splitlines()
    line, *_ = lines_of(some, "tcp", Distinct())

    # THEN
    assert json.loads(first)["event.kind"] == "metric"
    assert "le_" not in first and "le_" not in line


# --- losses -----------------------------------------------------------------------------------


def test_what_was_lost_comes_as_rows_also_without_others(start):
    # GIVEN
    sink = sink_rows.Recorder()
    one = start(sink, namespaces=("elsewhere",), sides=("server",))
    nothing = replace(records.shop_batch(), rows=records.http_rows(0))

    # WHEN
    one.put(replace(nothing, lost={"joined": 2, "malformed": 0}))
    one.put(replace(nothing, lost={"joined": 1, "tcp_table_full": 5}))
    end(one)

    # THEN each is told once
    found: dict[str, int] = {}
    for some in sink.got:
        assert some.kind == "lost" and some.fields == LOST
        told = zip(some.columns["reason"].tolist(), some.columns["count"].tolist(), strict=True)
        for reason, count in told:
            found[reason] = found.get(reason, 0) + count
    assert found == {"joined": 3, "tcp_table_full": 5}
    assert one.counts.sent == sum(map(len, sink.got))


@pytest.mark.parametrize(("kinds", "told_of"), [(("http",), 0), (("http", "lost"), 1), ((), 1)])
def test_losses_are_a_kind_that_can_be_chosen(start, kinds, told_of):
    # GIVEN
    sink = sink_rows.Recorder()
    one = start(sink, kinds=kinds)

    # WHEN
    one.put(replace(records.shop_batch(), lost={"joined": 2}))
    end(one)

    # THEN
    assert sum(len(some) for some in sink.got if some.kind == "lost") == told_of
    assert sum(len(some) for some in sink.got if some.kind == "http") == 5


def test_losses_that_no_server_took_are_dropped_and_counted(start):
    # GIVEN a server that is down
    sink = sink_rows.Recorder(*[Unavailable("no")] * 1000)
    one = start(sink)

    # WHEN
    one.put(replace(records.shop_batch(), rows=records.http_rows(0), lost={"joined": 2}))
    end(one, 0.2)

    # THEN
    assert one.counts.dropped["ended"] == 1


def test_losses_may_be_asked_for_where_there_are_no_events(tmp_path):
    # GIVEN
    def outputs(kind: str) -> Outputs:
        chosen = Choice.read({"type": "files", "path": str(tmp_path), "kinds": [kind]})
        return Outputs([chosen], {}, ("http",), grace=0.1, tell=print)

    # WHEN / THEN
    with outputs("lost") as made:
        made.put(replace(records.shop_batch(), lost={"joined": 2}))
    (line,) = (tmp_path / "lost.jsonl").read_text().splitlines()
    assert json.loads(line).items() >= {"kind": "lost", "reason": "joined", "count": 2}.items()
    with pytest.raises(PodscopeError, match="no rows of kind 'oom'"):
        outputs("oom")


# --- remote write -----------------------------------------------------------------------------


def writer(url: str, version: int = 1, **more: object) -> Prometheus:
    return Prometheus(
        PrometheusSettings(type="prometheus", url=Url(f"{url}/w"), version=version, **more)
    )


def by_name(body: bytes, **labels: str) -> dict[str, float]:
    """Values by metric and bound, of series with these labels."""
    found = {}
    for pairs, (value, _) in samples(body).items():
        mine = dict(pairs)
        if labels.items() <= mine.items():
            found[mine["__name__"] + (f"/{mine['le']}" if "le" in mine else "")] = value
    return found


def test_totals_of_connections_are_written_from_zero_on(stub):
    # GIVEN
    sink = writer(stub.url)

    # WHEN two deliveries come
    for seconds in (0, 10):
        sink.send(rows(*connections(seconds)))

    # THEN
    zeros, first, second = (by_name(one.body, side="client") for one in stub.requests)
    assert set(zeros) == set(first) and not any(zeros.values())
    assert first[f"{NAME}_bucket/0.005"] == 1 and first[f"{NAME}_bucket/+Inf"] == 2
    assert second[f"{NAME}_count"] == second[f"{NAME}_bucket/0.1"] == 4
    assert second[f"{NAME}_sum"] == pytest.approx(0.208)
    server = by_name(stub.requests[2].body, side="server", instance="node-1", job="podscope")
    assert server["podscope_tcp_accepts_total"] == 10
    assert server["podscope_tcp_sent_bytes_total"] == 200
    assert not any(name.startswith(NAME) for name in server)


def test_a_delivery_that_is_sent_again_counts_once(stub):
    # GIVEN a server that takes the second time
    stub.answers += [(204, {}, b""), (503, {}, b"")]
    sink = writer(stub.url)
    some = rows(*connections())

    # WHEN
    with pytest.raises(Unavailable):
        sink.send(some)
    sink.send(some)

    # THEN
    assert len(stub.requests) == 3
    assert by_name(stub.requests[2].body, side="server")["podscope_tcp_accepts_total"] == 5


def test_losses_are_a_counter_by_reason(stub):
    # GIVEN
    sink = writer(stub.url)

    # WHEN
    sink.send(losses(joined=3, ring_full=1))
    sink.send(losses(10, joined=2))

    # THEN
    assert by_name(stub.requests[2].body, reason="joined") == {"podscope_lost_total": 5}
    assert by_name(stub.requests[2].body, reason="ring_full") == {"podscope_lost_total": 1}


def test_a_gauge_has_no_zero_before_it(stub):
    # GIVEN
    sink = writer(stub.url)
    row = {"port": 80, "limit": 10, "accept_highest": 5, "drops": 2}

    # WHEN
    sink.send(rows(event_batches.batch("listen", row)))

    # THEN
    zeros, first = (by_name(one.body) for one in stub.requests)
    assert zeros == {"podscope_listen_overflows_total": 0, "podscope_listen_drops_total": 0}
    assert first["podscope_listen_queue_usage_ratio"] == 0.5
    assert first["podscope_listen_drops_total"] == 2


def test_version_2_tells_types_units_and_when_totals_began(stub):
    # GIVEN
    stub.answers += [TAKEN, TAKEN]
    sink = writer(stub.url, version=2)

    # WHEN
    sink.send(rows(*connections()))

    # THEN
    zeros, first = (series_of(one) for one in stub.requests)
    began = (records.TIME_NS - 10**9) // 10**6
    for one in zeros:
        (sample,) = one.series.samples
        assert (sample.value, sample.timestamp, sample.start_timestamp) == (0, began, 0)
    found = {one.labels["__name__"]: one for one in first if one.labels.get("le", "+Inf") == "+Inf"}
    (sample,) = found[f"{NAME}_bucket"].series.samples
    assert (sample.value, sample.timestamp) == (2, records.TIME_NS // 10**6)
    assert sample.start_timestamp == began
    assert (found[f"{NAME}_bucket"].series.metadata.type, found[f"{NAME}_bucket"].unit) == (
        3,
        "seconds",
    )
    accepts = found["podscope_tcp_accepts_total"]
    assert (accepts.series.metadata.type, accepts.help) == (1, "Connections accepted.")


@pytest.mark.parametrize("version", [1, 2])
def test_native_histograms_have_the_counts_of_the_rows(stub, version):
    # GIVEN
    stub.answers += [TAKEN] * 2
    some = rows(*connections())

    # WHEN
    writer(stub.url, version, native=True).send(some)

    # THEN
    body = stub.requests[1].body
    if version == 2:
        (told_of,) = (one for one in series_of(stub.requests[1]) if one.series.histograms)
        (made,) = told_of.series.histograms
        assert made.start_timestamp and told_of.labels["__name__"] == NAME
    else:
        raw = bytes(cramjam.snappy.decompress_raw(body))
        at = raw.index(NAME.encode())
        counts = some.buckets.sum(axis=0).astype(np.int64)
        assert histogram(counts, 2, 0.104, records.TIME_NS // 10**6) in raw[at:]
        return
    assert (made.count_int, made.sum, made.schema) == (2, pytest.approx(0.104), 3)
    counts = np.cumsum(made.positive_deltas)
    assert sorted(counts[counts > 0].tolist()) == sorted(some.buckets[some.buckets > 0].tolist())


def test_a_request_that_is_too_large_is_halved(stub):
    # GIVEN two series, and a server that takes one at a time
    stub.answers += [(413, {}, b""), (204, {}, b""), (204, {}, b""), (204, {}, b"")]
    sink = writer(stub.url)

    # WHEN
    sink.send(rows(*connections()))

    # THEN each is there once, after its zeros
    whole, *halves = stub.requests
    assert len(samples(whole.body)) == sum(len(samples(one.body)) for one in halves[::2])
    assert sum(len(samples(one.body)) for one in halves[1::2]) == len(samples(whole.body))


# --- OTLP -------------------------------------------------------------------------------------


def metrics_of(
    body: bytes, temporality: int = AGGREGATION_TEMPORALITY_CUMULATIVE
) -> dict[str, list]:
    """Points by the metric's name: attributes, kind of data, point."""
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

    request = metrics_service_pb2.ExportMetricsServiceRequest.FromString(body)
    found: dict[str, list] = {}
    for resource in request.resource_metrics:
        mine = attributes(resource.resource.attributes)
        for metric in resource.scope_metrics[0].metrics:
            kind = metric.WhichOneof("data")
            data = getattr(metric, kind)
            if kind != "gauge":
                assert data.aggregation_temporality == temporality
            if kind == "sum":
                assert data.is_monotonic
            for point in data.data_points:
                told = mine | attributes(point.attributes)
                found.setdefault(metric.name, []).append((told, kind, point, metric.unit))
    return found


def otlp(url: str, **more: object) -> Otlp:
    return Otlp(OtlpSettings(type="otlp", url=Url(url), **more))


def test_connections_are_metrics_and_no_logs(stub):
    # GIVEN
    sink = otlp(stub.url)

    # WHEN
    for seconds in (0, 10):
        sink.send(rows(*connections(seconds)))

    # THEN
    assert [one.path for one in stub.requests] == ["/v1/metrics"] * 2
    found = metrics_of(stub.requests[1].body)
    ((told, kind, point, unit),) = found["podscope.tcp.connect.duration"]
    assert (kind, unit, point.count, point.scale) == ("exponential_histogram", "s", 4, 3)
    assert sum(point.positive.bucket_counts) == 4 and point.sum == pytest.approx(0.208)
    assert (told["side"], told["server.port"], told["k8s.pod.name"]) == ("client", 443, "web-1-a")
    assert told["host.name"] == "node-1" and "url.scheme" not in told
    accepts = {told["side"]: point.as_int for told, _, point, _ in found["podscope.tcp.accepts"]}
    assert accepts == {"server": 10}
    assert point.start_time_unix_nano == records.TIME_NS - 10**9
    assert point.time_unix_nano == records.TIME_NS + 10**10


def test_deltas_of_connections_are_those_of_each_delivery(stub):
    # GIVEN
    sink = otlp(stub.url, temporality="delta")

    # WHEN
    for seconds in (0, 10):
        sink.send(rows(*connections(seconds)))

    # THEN
    for one in stub.requests:
        found = metrics_of(one.body, temporality=1)
        ((_, _, point, _),) = found["podscope.tcp.connect.duration"]
        assert point.count == 2
        assert sum(point.as_int for _, _, point, _ in found["podscope.tcp.accepts"]) == 5


def test_metrics_of_kinds_are_never_told_as_of_before_others(stub):
    # GIVEN connections whose interval ended after that of http
    sink = otlp(stub.url)
    sink.send(rows(*connections(1)))

    # WHEN
    sink.send(sink_rows.http_rows())

    # THEN
    (first, *_), (second, *_) = (
        [point for points in metrics_of(one.body).values() for _, _, point, _ in points]
        for one in stub.requests
    )
    assert second.time_unix_nano == first.time_unix_nano
    assert second.start_time_unix_nano == records.TIME_NS - 10**9


def test_a_kill_is_a_metric_and_a_log(stub):
    # GIVEN
    sink = otlp(stub.url)

    # WHEN
    sink.send(rows(event_batches.batch("oom", {"pid": 7})))

    # THEN
    metrics, log = stub.requests
    ((_, kind, point, unit),) = metrics_of(metrics.body)["podscope.oom.kills"]
    assert (kind, point.as_int, unit) == ("sum", 1, "{kill}")
    ((told, record),) = logs_of(log.body)
    assert (told["process.pid"], record.event_name) == (7, "podscope.oom")


def test_queues_are_gauges(stub):
    # GIVEN
    row = {"port": 80, "limit": 10, "accept_highest": 5}

    # WHEN
    otlp(stub.url).send(rows(event_batches.batch("listen", row)))

    # THEN
    ((_, kind, point, unit),) = metrics_of(stub.requests[0].body)["podscope.listen.queue.usage"]
    assert (kind, point.as_double, unit) == ("gauge", 0.5, "1")


@pytest.mark.parametrize(
    ("signals", "paths"),
    [
        (("metrics",), ["/v1/metrics"]),
        (("logs",), ["/v1/logs"]),
        (("metrics", "logs"), ["/v1/metrics"]),
    ],
)
def test_losses_go_as_what_is_sent(stub, signals, paths):
    # GIVEN / WHEN
    otlp(stub.url, signals=signals).send(losses(joined=3))

    # THEN
    assert [one.path for one in stub.requests] == paths
