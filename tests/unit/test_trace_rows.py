# SPDX-License-Identifier: Apache-2.0
"""Answers of traces as rows, and as metrics by OTLP and remote write."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import records
import sink_rows
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from stub_server import stub_server
from test_sinks_prometheus import samples

from podscope import render
from podscope import schema_trace
from podscope.commands import trace_sinks
from podscope.errors import UsageError
from podscope.settings import Url
from podscope.sinks import rows
from podscope.sinks.otlp import Otlp
from podscope.sinks.otlp import OtlpSettings
from podscope.sinks.prometheus_write import Prometheus
from podscope.sinks.prometheus_write import PrometheusSettings
from podscope.sinks.rows import Rows
from podscope.sinks.trace_metrics import points
from podscope.trace import scripts
from podscope.trace.decode import MapData
from podscope.trace.maps import MapShape
from podscope.trace.rows import Origin
from podscope.trace.rows import TraceRows
from podscope.trace.rows import metrics_of
from podscope.trace.session import Answer
from podscope.trace.tables import table

START_NS = records.TIME_NS


def objects(some: Rows) -> list[dict]:
    """Rows as JSON has them."""
    lines = render.json_lines(some.kind, some.fields, some.columns).splitlines()
    return [json.loads(line) for line in lines]


def short(one: dict) -> dict:
    """Without what all have, and names without what they begin with."""
    hidden = ("kind", "time", "start", "name", "program")
    told = {name.removeprefix("podscope.trace."): value for name, value in one.items()}
    return {name: value for name, value in told.items() if name not in hidden}


def test_maps_are_a_row_for_each_key_or_bucket():
    # GIVEN / WHEN
    told = [short(one) for one in objects(sink_rows.trace_rows())]

    # THEN
    calls = {"map": "@calls", "type": "count", "metric": "app.calls"}
    sizes = {"map": "@sizes", "type": "hist", "metric": "app_sizes"}
    place = {"k8s.pod.name": "web-1-a", "k8s.namespace.name": "shop"}
    assert told == [
        calls | {"key": 'curl, "x",3', "value": 5, "label.comm": 'curl, "x"', "label.args_fd": "3"},
        calls | {"key": "nginx,4", "value": 7, "label.comm": "nginx", "label.args_fd": "4"},
        sizes | place | {"count": 2, "bucket.min": 1, "bucket.max": 1},
        sizes | place | {"count": 3, "bucket.min": 4, "bucket.max": 7},
        sizes | place | {"k8s.pod.name": "web-1-b", "count": 3, "bucket.min": 4, "bucket.max": 7},
        {"map": "@took", "type": "avg", "metric": "app_took", "value": 7, "count": 2},
        {"map": "@last", "type": "value", "key": "nginx", "text": "GET", "label.comm": "nginx"},
        {"map": "@last", "type": "value", "key": "curl", "label.comm": "curl",
         "value": float(2**60), "text": str(2**60 + 1)},
    ]  # fmt: skip


def test_what_is_printed_is_a_row_for_each_line():
    # GIVEN / WHEN
    told = [short(one) for one in objects(sink_rows.trace_line_rows())]

    # THEN
    place = {"k8s.namespace.name": "shop", "k8s.pod.name": "web-1-a", "k8s.node.name": "node-1"}
    assert told == [
        place | {"text": "one"},
        place | {"text": "two"},
        {"text": '(7, "x")'.replace('"', ""), "column.fd": "7", "column.what": "x"},
        {"text": "@took: (2, 7)"},
    ]


def test_losses_come_with_the_maps_and_each_once():
    # GIVEN
    made = TraceRows(Origin(), {}, START_NS)
    answer = Answer((), {}, START_NS + 10**9)
    late = replace(answer, time_ns=START_NS + 2 * 10**9)

    # WHEN
    (one,) = made.batches(answer, {}, {"lines": 5})
    soon = [*made.batches(replace(answer, time_ns=answer.time_ns + 1), {}, {"lines": 6})]
    (other,) = made.batches(late, {}, {"lines": 7, "events": 1})

    # THEN what comes within a second waits
    assert one.lost == {"lines": 5}
    assert soon == []
    assert other.lost == {"lines": 2, "events": 1}


def test_a_delivery_has_the_newest_maps_alone_and_all_lines():
    # GIVEN
    batches = [*sink_rows.trace_batches(1), *sink_rows.trace_batches(2)]

    # WHEN
    lines, maps = sorted(rows.of_batches(batches), key=lambda one: one.kind, reverse=True)

    # THEN
    assert len(lines) == 8
    values = maps.columns["podscope.trace.value"]
    assert np.nansum(values[maps.columns["podscope.trace.map"] == "@calls"]) == 24


def test_a_long_delivery_is_cut_between_histograms(monkeypatch):
    # GIVEN
    monkeypatch.setattr(rows, "PORTION", 1)

    # WHEN
    parts = [*rows.of_batches([sink_rows.trace_batches()[1]])]

    # THEN
    sizes = [part.columns["podscope.trace.map"].tolist() for part in parts]
    assert sum(map(len, sizes)) == 8
    assert [len(one) for one in sizes if one[0] == "@sizes"] == [2, 1]


def sums(step: int, kind: str = "sum") -> tuple[dict, dict]:
    shape = MapShape("@a", kind, ("text",), titles=("comm",))
    return {"@a": table(MapData("@a", "map", (("x", step),)), shape, (0, 17))}, {"@a": shape}


def test_a_total_that_falls_begins_anew_and_that_is_said():
    # GIVEN
    made = TraceRows(Origin(), {"@a": "x"}, START_NS)
    starts = []

    # WHEN
    for second, value in enumerate((5, 9, 4, 6), 1):
        maps, shapes = sums(value)
        (batch,) = made.batches(Answer((), maps, START_NS + second * 10**9), shapes, {})
        starts.append(int(batch.rows["start_ns"][0]) - START_NS)

    # THEN
    assert starts == [0, 0, 2 * 10**9, 2 * 10**9]
    (note,) = made.notes
    assert note.startswith("metric x: @a has fallen")


PROGRAM = "BEGIN { @a[comm] = count(); @b = sum(1); @t[tid] = 1; delete(@t[tid]); }"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("x",), "of which map, as x=@x? There are: @a, @b"),
        (("x=@c",), "the program has no map @c"),
        (("1x=@a",), "no name of a metric"),
        (("x=@a", "x=@b"), "give each map one metric, and each its own name"),
        (("x=@a", "y=@a"), "give each map one metric, and each its own name"),
    ],
)
def test_metrics_that_cannot_be_are_refused_in_a_line(words, told):
    with pytest.raises(UsageError) as refused:
        metrics_of(words, PROGRAM)
    assert told in str(refused.value)


def test_a_metric_needs_no_map_where_there_is_one():
    assert metrics_of(["x"], "BEGIN { @[comm] = count(); }") == {"@": "x"}
    assert metrics_of(["x=@b", "y.z=@a"], PROGRAM) == {"@b": "x", "@a": "y.z"}


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("comm", "comm"),
        ("args.ret", "args_ret"),
        ("str(args->filename)", "str_args_filename"),
        ("$1", "key_1"),
        ("$job", "key_job"),
        ("", "key"),
    ],
)
def test_labels_are_what_the_program_calls_a_key(title, name):
    assert schema_trace.label(title) == name


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--metric", "x"], "--metric: where to? Name a file with sinks by --config"),
        (["--config", "/no/such"], "cannot read the configuration"),
    ],
)
def test_sinks_that_cannot_be_are_refused_in_a_line(flags, told):
    # GIVEN
    parser = argparse.ArgumentParser()
    trace_sinks.add_sinks(parser)

    # WHEN / THEN
    with (
        pytest.raises(UsageError, match=told.replace("?", ".")),
        trace_sinks.feed(parser.parse_args(flags), scripts.read("", PROGRAM)),
    ):
        pass


# --- metrics --------------------------------------------------------------------------------------


def test_points_have_the_bounds_of_whole_numbers_and_of_the_gaps_between():
    # GIVEN / WHEN
    told = {(one.metric.name, one.labels): one for one in points(sink_rows.trace_rows(more=4))}

    # THEN
    place = (("k8s.namespace.name", "shop"), ("k8s.pod.name", "web-1-a"))
    one = told["app_sizes", place]
    assert (one.bounds, one.counts) == ((0, 1, 3, 7, 1023, 2047), (0, 2, 0, 3, 0, 4, 0))
    assert (one.count, one.start_ns) == (9, START_NS)
    assert np.isnan(one.number)
    took = told["app_took", ()]
    assert (took.count, took.number, took.counts) == (2, 7, ())
    assert told["app.calls", (("comm", "nginx"), ("args_fd", "4"))].number == 7


@given(st.lists(st.integers(-5, 2**40), min_size=1, max_size=30))
def test_counts_below_a_bound_are_those_of_the_numbers(numbers):
    # GIVEN a histogram as bpftrace has it
    buckets: dict[tuple[int | None, int | None], int] = {}
    for number in numbers:
        low = 1 << (number.bit_length() - 1) if number > 0 else number
        key = (None, -1) if number < 0 else (low, 2 * low - 1) if number > 0 else (0, 0)
        buckets[key] = buckets.get(key, 0) + 1
    entry = [
        {name: v for name, v in (("min", low), ("max", high), ("count", n)) if v is not None}
        for (low, high), n in buckets.items()
    ]
    shape = MapShape("@h", "hist")
    maps = {"@h": table(MapData("@h", "hist", ((None, entry),)), shape, (0, 23))}
    (batch,) = TraceRows(Origin(), {"@h": "h"}, 1).batches(
        Answer((), maps, 10**10), {"@h": shape}, {}
    )

    # WHEN
    (some,) = rows.of_batches([batch])
    (one,) = points(some)

    # THEN
    below = np.cumsum(one.counts).tolist()
    assert below[:-1] == [sum(number <= bound for number in numbers) for bound in one.bounds]
    assert below[-1] == one.count == len(numbers)
    assert list(one.bounds) == sorted(set(one.bounds))


def exported(raw: bytes) -> dict:
    """Metrics by name, with the points by their attributes."""
    request = ExportMetricsServiceRequest.FromString(raw)
    found: dict = {}
    for resource in request.resource_metrics:
        mine = {one.key: one.value.string_value for one in resource.resource.attributes}
        for metric in resource.scope_metrics[0].metrics:
            form = metric.WhichOneof("data")
            for point in getattr(metric, form).data_points:
                told = {one.key: one.value.string_value for one in point.attributes}
                names = ("k8s.pod.name", "k8s.namespace.name")
                told |= {name: mine[name] for name in names if name in mine}
                found[metric.name, tuple(sorted(told.items()))] = (form, metric, point)
    return found


def test_otlp_gets_totals_since_the_start_as_metrics_and_the_rest_as_logs():
    # GIVEN
    with stub_server() as stub:
        sink = Otlp(OtlpSettings(type="otlp", url=Url(stub.url)))

        # WHEN
        sink.send(sink_rows.trace_rows())
        sink.send(sink_rows.trace_line_rows())
        sink.close()

    # THEN
    assert [one.path for one in stub.requests] == ["/v1/metrics", "/v1/logs", "/v1/logs"]
    told = exported(stub.requests[0].body)
    form, metric, point = told["app.calls", (("args_fd", "4"), ("comm", "nginx"))]
    assert (form, point.as_int, metric.sum.is_monotonic) == ("sum", 7, True)
    assert metric.sum.aggregation_temporality == 2
    assert (point.start_time_unix_nano, point.time_unix_nano) == (START_NS, START_NS + 10**10)
    place = (("k8s.namespace.name", "shop"), ("k8s.pod.name", "web-1-a"))
    form, _, point = told["app_sizes", place]
    assert (form, point.count, point.HasField("sum")) == ("histogram", 5, False)
    assert (list(point.explicit_bounds), list(point.bucket_counts)) == (
        [0, 1, 3, 7],
        [0, 2, 0, 3, 0],
    )
    _, _, point = told["app_took", ()]
    assert (point.count, point.sum, list(point.bucket_counts)) == (2, 7, [])
    left, printed = (ExportLogsServiceRequest.FromString(one.body) for one in stub.requests[1:])
    count = [
        sum(len(r.scope_logs[0].log_records) for r in one.resource_logs) for one in (left, printed)
    ]
    assert count == [2, 4]


def test_otlp_gets_what_has_come_since_where_it_asks_for_that():
    # GIVEN
    with stub_server() as stub:
        sink = Otlp(
            OtlpSettings(type="otlp", url=Url(stub.url), temporality="delta", signals=("metrics",))
        )

        # WHEN the second is refused for a moment, and comes again
        sink.send(sink_rows.trace_rows(1))
        again = sink_rows.trace_rows(3, more=9)
        sink.send(again)
        sink.send(again)
        sink.close()

    # THEN
    assert len(stub.requests) == 2
    first, second = (exported(one.body) for one in stub.requests)
    calls = ("app.calls", (("args_fd", "4"), ("comm", "nginx")))
    assert [one[calls][2].as_int for one in (first, second)] == [7, 14]
    assert second[calls][2].start_time_unix_nano == first[calls][2].time_unix_nano
    sizes = ("app_sizes", (("k8s.namespace.name", "shop"), ("k8s.pod.name", "web-1-a")))
    point = second[sizes][2]
    assert dict(zip(point.explicit_bounds, point.bucket_counts, strict=False)) == {
        0: 0, 1: 4, 3: 0, 7: 6, 1023: 0, 2047: 9,
    }  # fmt: skip
    assert point.count == 19


def test_prometheus_gets_counters_with_a_zero_first_and_histograms():
    # GIVEN
    with stub_server() as stub:
        sink = Prometheus(
            PrometheusSettings(type="prometheus", url=Url(stub.url), version=1, job="j")
        )

        # WHEN
        sink.send(sink_rows.trace_rows(1))
        sink.send(sink_rows.trace_rows(2))
        sink.close()

    # THEN zeros, totals, and totals again
    zeros, first, second = (samples(one.body) for one in stub.requests)
    host = {"host_name": "node-1", "instance": "node-1", "job": "j", "k8s_cluster_name": "test"}

    def series(name: str, **more: str) -> tuple:
        return tuple(sorted(({"__name__": name} | host | more).items()))

    nginx = series("app_calls_total", comm="nginx", args_fd="4")
    assert [one[nginx][0] for one in (zeros, first, second)] == [0, 7, 14]
    assert zeros[nginx][1] < first[nginx][1] < second[nginx][1]
    place = {"k8s_pod_name": "web-1-a", "k8s_namespace_name": "shop"}
    counts = [
        first[series("app_sizes_bucket", le=le, **place)][0] for le in ("0", "1", "3", "7", "+Inf")
    ]
    assert counts == [0, 2, 2, 5, 5]
    assert first[series("app_sizes_count", **place)][0] == 5
    assert series("app_sizes_sum", **place) not in first
    assert (first[series("app_took_sum")][0], first[series("app_took_count")][0]) == (7, 2)
