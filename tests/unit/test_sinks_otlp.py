# SPDX-License-Identifier: Apache-2.0
"""OTLP as its official classes decode it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sink_rows
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from records import request_batch as requests_batch
from stub_server import stub_server

from podscope.settings import Url
from podscope.sinks import otlp_messages
from podscope.sinks import protobuf
from podscope.sinks.otlp import Otlp
from podscope.sinks.otlp import OtlpSettings
from podscope.sinks.plugin import Partly
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import Unavailable
from podscope.sinks.rows import Rows
from podscope.sinks.rows import of_batches as rows_of


@pytest.fixture
def stub():
    with stub_server() as made:
        yield made


def sink(url: str, **more: object) -> Otlp:
    return Otlp(OtlpSettings(type="otlp", url=Url(url), **more))


def attributes(some: Any) -> dict[str, Any]:
    """Attributes as Python's values."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in some}


def points(raw: bytes, temporality: int = 2) -> dict[str, list[tuple[dict[str, Any], Any]]]:
    """Points by the metric's name, with the attributes of the resource and their own."""
    request = ExportMetricsServiceRequest.FromString(raw)
    found: dict[str, list[tuple[dict[str, Any], Any]]] = {}
    for resource in request.resource_metrics:
        mine = attributes(resource.resource.attributes)
        (scope,) = resource.scope_metrics
        assert scope.scope.name == "podscope"
        for metric in scope.metrics:
            data = getattr(metric, metric.WhichOneof("data"))
            assert data.aggregation_temporality == temporality
            for point in data.data_points:
                told = attributes(point.attributes)
                assert not told.keys() & mine.keys()
                found.setdefault(metric.name, []).append((mine | told, point))
    return found


def records(raw: bytes) -> list[tuple[dict[str, Any], Any]]:
    """Records of logs with the attributes of the resource and their own."""
    request = ExportLogsServiceRequest.FromString(raw)
    return [
        (attributes(resource.resource.attributes) | attributes(record.attributes), record)
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


def test_histograms_are_those_of_the_rows(stub):
    # GIVEN
    some = sink_rows.http_rows()

    # WHEN two intervals come
    one = sink(stub.url)
    one.send(some)
    one.send(replace(some, id="another"))

    # THEN the second has the totals of both
    assert [request.path for request in stub.requests] == ["/v1/metrics"] * 2
    first, second = (points(request.body) for request in stub.requests)
    for told, times in ((first, 1), (second, 2)):
        for side in ("server", "client"):
            name = f"http.{side}.request.duration"
            mine = [n for n in range(len(some)) if some.columns["side"][n] == side]
            assert len(told[name]) == len(mine)
            for labels, point in told[name]:
                place = place_of(some, labels, side)
                assert point.count == times * some.columns["count"][place]
                assert point.sum == pytest.approx(times * some.columns["duration.sum"][place])
                assert point.scale == 3 and point.zero_count == 0
                counts = [0] * 256
                start = point.positive.offset + 160
                counts[start : start + len(point.positive.bucket_counts)] = [
                    *point.positive.bucket_counts
                ]
                assert counts == (times * some.buckets[place].astype(int)).tolist()
                assert point.time_unix_nano == some.time_ns
                assert point.start_time_unix_nano == some.time_ns - 10**9
            sizes = told[f"podscope.http.{side}.response.body.bytes"]
            total = sum(point.as_int for _, point in sizes)
            assert total == times * some.columns["http.response.body.size"][mine].sum()


def place_of(some: Rows, labels: dict[str, Any], side: str) -> int:
    """The row of a point."""
    names = ("k8s.pod.name", "http.route", "http.response.status_code", "server.port")
    (place,) = [
        n
        for n in range(len(some))
        if some.columns["side"][n] == side
        and all((some.columns[name][n] or None) == labels.get(name) for name in names)
    ]
    return place


def test_resources_say_whose_it_is_by_the_conventions(stub):
    # GIVEN / WHEN
    sink(stub.url).send(sink_rows.http_rows())

    # THEN
    request = ExportMetricsServiceRequest.FromString(stub.requests[0].body)
    found = [attributes(one.resource.attributes) for one in request.resource_metrics]
    assert len(found) == 3
    web = next(one for one in found if one["k8s.pod.name"] == "web-1-a")
    assert web == {
        "host.name": "node-1",
        "k8s.cluster.name": "test",
        "service.name": "web",
        "service.namespace": "shop",
        "service.instance.id": "shop.web-1-a.nginx",
        "container.id": "a" * 64,
        "k8s.namespace.name": "shop",
        "k8s.deployment.name": "web",
        "k8s.pod.name": "web-1-a",
        "k8s.container.name": "nginx",
        "k8s.node.name": "node-1",
        "process.executable.name": "nginx",
    }


@pytest.mark.parametrize("make", [sink_rows.request_rows, sink_rows.event_rows])
def test_every_field_of_a_row_is_an_attribute_of_its_record(stub, make):
    # GIVEN
    some = make()

    # WHEN
    sink(stub.url).send(some)

    # THEN
    (request,) = (one for one in stub.requests if one.path == "/v1/logs")
    found = records(request.body)
    assert len(found) == len(some)
    for place, (told, record) in enumerate(sorted(found, key=lambda one: one[1].time_unix_nano)):
        assert record.event_name == f"podscope.{some.kind}"
        assert record.time_unix_nano == int(some.columns["time"][place].astype(np.int64))
        for field in some.fields:
            if field.name in ("time", "trace_id", "span_id"):
                continue
            value = told.pop(field.name, None)
            assert (value is None) == bool(some.absent(field)[place])
            if value is not None:
                wanted = some.columns[field.name][place]
                if field.type == "time":
                    wanted = int(wanted.astype(np.int64))
                assert value == (pytest.approx(wanted) if field.type == "float" else wanted)
        assert {*told} <= {
            *("host.name", "k8s.cluster.name", "service.instance.id", "service.namespace")
        }


def test_a_request_with_a_trace_belongs_to_it(stub):
    # GIVEN / WHEN
    sink(stub.url).send(sink_rows.request_rows(1))

    # THEN
    ((_, record),) = records(stub.requests[0].body)
    assert record.trace_id == bytes(range(1, 17)) and record.span_id == bytes(range(1, 9))
    assert record.body.string_value == "GET /items/17 200"
    assert (record.severity_number, record.severity_text) == (9, "INFO")


def test_rows_sent_again_are_the_same_bytes(stub):
    # GIVEN
    stub.answers = [(503, {"Retry-After": "3"}, b"")]
    one = sink(stub.url)
    some = sink_rows.http_rows()

    # WHEN
    with pytest.raises(Unavailable) as caught:
        one.send(some)
    one.send(some)

    # THEN
    assert caught.value.after == 3
    assert stub.requests[0].body == stub.requests[1].body


def test_signals_that_are_not_asked_for_are_not_sent(stub):
    # GIVEN
    one = sink(stub.url, signals=("logs",))

    # WHEN
    one.send(sink_rows.http_rows())
    one.send(sink_rows.request_rows())

    # THEN
    assert [request.path for request in stub.requests] == ["/v1/logs"]


def test_texts_that_utf_8_does_not_have_do_not_end_anything():
    # GIVEN
    some = sink_rows.request_rows(1)
    columns = dict(some.columns) | {"user_agent.original": np.array(["\ud800"], dtype=object)}

    # WHEN
    raw = otlp_messages.logs(Rows(**{**some.__dict__, "columns": columns}))

    # THEN
    ((told, _),) = records(raw)
    assert told["user_agent.original"] == "?"


# --- delta, and what is sent again ----------------------------------------------------------------


def test_deltas_are_those_of_each_delivery_alone(stub):
    # GIVEN
    one = sink(stub.url, temporality="delta")
    some = sink_rows.http_rows()
    later = replace(some, id="later", time_ns=some.time_ns + 10**10)

    # WHEN one delivery fails first
    stub.answers = [(503, {}, b"")]
    with pytest.raises(Unavailable):
        one.send(some)
    one.send(some)
    one.send(later)

    # THEN
    failed, first, second = (request.body for request in stub.requests)
    assert failed == first
    for raw, rows in ((first, some), (second, later)):
        told = points(raw, temporality=1)
        for side in ("server", "client"):
            mine = some.columns["side"] == side
            found = told[f"http.{side}.request.duration"]
            assert sum(point.count for _, point in found) == some.columns["count"][mine].sum()
            longest = max(point.max for _, point in found)
            assert longest == pytest.approx(some.columns["duration.max"][mine].max())
            for _, point in found:
                assert point.time_unix_nano == rows.time_ns
                assert point.start_time_unix_nano == rows.time_ns - 10**9


def test_metrics_that_are_too_large_are_halved_and_not_added_twice(stub):
    # GIVEN
    stub.answers = [(413, {}, b"")]
    one = sink(stub.url)
    some = sink_rows.http_rows()

    # WHEN
    one.send(some)

    # THEN
    bodies = [points(request.body) for request in stub.requests[1:]]
    counts = [
        point.count for told in bodies for name in told if "duration" in name
        for _, point in told[name]
    ]  # fmt: skip
    assert len(bodies) == 2 and sorted(counts) == sorted(some.columns["count"])


def test_what_a_server_rejects_of_a_success_is_counted(stub):
    # GIVEN
    answer = ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records = 1
    answer.partial_success.error_message = "no such tenant"
    stub.answers = [(200, {}, answer.SerializeToString())]

    # WHEN
    with pytest.raises(Partly, match="no such tenant") as caught:
        sink(stub.url).send(sink_rows.request_rows(3))

    # THEN
    assert caught.value.unnamed == 1


def test_a_status_in_the_answer_is_told_as_text(stub):
    # GIVEN google.rpc.Status
    status = protobuf.number(1, 3) + protobuf.text(2, "bad attribute")
    stub.answers = [(400, {"Content-Type": "application/x-protobuf"}, status)]

    # WHEN / THEN
    with pytest.raises(Refused, match="400 Bad Request: bad attribute"):
        sink(stub.url).send(sink_rows.request_rows())


def test_rows_wait_for_a_server_that_is_not_behind_its_proxy_yet(stub):
    # GIVEN
    stub.answers = [(404, {}, b"no route"), (200, {}, b"")]
    made = sink(stub.url, signals=("logs",))
    some = sink_rows.request_rows()

    # WHEN / THEN
    with pytest.raises(Unavailable, match="404 Not Found: no route; nothing takes rows there yet"):
        made.send(some)
    made.send(some)
    assert [one.path for one in stub.requests] == ["/v1/logs"] * 2


def test_a_signal_that_the_server_lacks_is_refused_and_holds_up_no_other(stub):
    # GIVEN
    stub.answers = [(404, {}, b""), (200, {}, b"")]

    # WHEN
    with pytest.raises(Refused, match="404 Not Found; .* or leave logs out of signals"):
        sink(stub.url).send(sink_rows.request_rows())

    # THEN
    assert [(one.path, len(one.body) > 0) for one in stub.requests] == [
        ("/v1/logs", True),
        ("/v1/metrics", False),
    ]


# --- traces ---------------------------------------------------------------------------------------


def spans(raw: bytes) -> list[tuple[dict[str, Any], Any]]:
    """Spans with the attributes of the resource and their own."""
    request = ExportTraceServiceRequest.FromString(raw)
    return [
        (attributes(resource.resource.attributes) | attributes(span.attributes), span)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def requests_of(**members: object) -> Rows:
    (made,) = rows_of([requests_batch(2, **members)], resource=sink_rows.RESOURCE)
    return made


@pytest.mark.parametrize(
    ("side", "kind", "status", "is_error"),
    [(1, 2, 200, False), (1, 2, 404, False), (1, 2, 500, True), (2, 3, 404, True)],
)
def test_requests_with_a_trace_are_spans_of_their_side(stub, side, kind, status, is_error):
    # GIVEN
    some = requests_of(side=side, status=status)

    # WHEN
    sink(stub.url, signals=("traces",)).send(some)

    # THEN
    (request,) = stub.requests
    assert request.path == "/v1/traces"
    found = spans(request.body)
    assert len(found) == 2 == len({span.span_id for _, span in found})
    for told, span in found:
        assert span.trace_id == bytes(range(1, 17))
        assert span.parent_span_id == bytes(range(1, 9)) and len(span.span_id) == 8
        assert (span.kind, span.name) == (kind, "GET")
        assert span.status.code == (2 if is_error else 0)
        assert span.end_time_unix_nano - span.start_time_unix_nano == 2_500_000
        assert told["http.response.status_code"] == status and told["url.path"] == "/items/17"
        assert told["service.name"] == "nginx.service" and told["host.name"] == "node-1"


def test_requests_without_a_trace_are_no_spans_and_logs_are_sent_once(stub):
    # GIVEN traces that fail the first time
    made = sink(stub.url, signals=("logs", "traces"))
    some = requests_of()
    stub.answers = [(200, {}, b""), (503, {}, b"")]

    # WHEN
    with pytest.raises(Unavailable):
        made.send(some)
    made.send(some)
    made.send(requests_of(trace_id=[0] * 16))

    # THEN a span sent again is the same one
    paths = [request.path for request in stub.requests]
    assert paths == ["/v1/logs", "/v1/traces", "/v1/traces", "/v1/logs"]
    assert stub.requests[1].body == stub.requests[2].body


def test_spans_that_are_too_large_are_halved_by_themselves(stub):
    # GIVEN
    stub.answers = [(200, {}, b""), (413, {}, b"")]

    # WHEN
    sink(stub.url, signals=("logs", "traces")).send(requests_of())

    # THEN
    paths = [request.path for request in stub.requests]
    assert paths == ["/v1/logs", *["/v1/traces"] * 3]
    assert all(len(spans(request.body)) == 1 for request in stub.requests[2:])


def test_credentials_are_not_written_among_the_headers():
    with pytest.raises(ValueError, match="is a secret: set token"):
        OtlpSettings(type="otlp", url=Url("http://a"), headers=(("Authorization", "Bearer x"),))
