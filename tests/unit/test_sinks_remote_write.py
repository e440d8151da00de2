# SPDX-License-Identifier: Apache-2.0
"""Remote write 2.0 as protocol buffers see it, servers that know only 1.0, and exemplars."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from typing import Any

import cramjam
import numpy as np
import pytest
import records
import sink_rows
from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message_factory
from stub_server import Request
from stub_server import Stub
from stub_server import stub_server

from podscope.settings import Url
from podscope.sinks import rows
from podscope.sinks.exemplars import Exemplars
from podscope.sinks.plugin import Partly
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import Unavailable
from podscope.sinks.prometheus_write import Prometheus
from podscope.sinks.prometheus_write import PrometheusSettings
from podscope.sinks.rows import BY
from podscope.sinks.rows import Rows

# Numbers of descriptor.proto.
MESSAGE, STRING, DOUBLE, INT64, UINT64, UINT32, SINT32, SINT64 = 11, 9, 1, 3, 4, 13, 17, 18
MANY, ONE = 3, 1
WRITTEN = {"X-Prometheus-Remote-Write-Samples-Written": "1"}
TAKEN = (204, WRITTEN, b"")
SERVER = "http_server_request_duration_seconds"


def message() -> Any:
    """io.prometheus.write.v2.Request as Prometheus 3 has it."""
    shapes = {
        "Sample": [
            ("value", 1, DOUBLE, ONE),
            ("timestamp", 2, INT64, ONE),
            ("start_timestamp", 3, INT64, ONE),
        ],
        "Exemplar": [
            ("labels_refs", 1, UINT32, MANY),
            ("value", 2, DOUBLE, ONE),
            ("timestamp", 3, INT64, ONE),
        ],
        "Metadata": [("type", 1, INT64, ONE), ("help_ref", 3, UINT32, ONE), ("unit_ref", 4, 13, 1)],
        "BucketSpan": [("offset", 1, SINT32, ONE), ("length", 2, UINT32, ONE)],
        "Histogram": [
            ("count_int", 1, UINT64, ONE),
            ("sum", 3, DOUBLE, ONE),
            ("schema", 4, SINT32, ONE),
            ("positive_spans", 11, ".p.BucketSpan", MANY),
            ("positive_deltas", 12, SINT64, MANY),
            ("timestamp", 15, INT64, ONE),
            ("start_timestamp", 17, INT64, ONE),
        ],
        "TimeSeries": [
            ("labels_refs", 1, UINT32, MANY),
            ("samples", 2, ".p.Sample", MANY),
            ("histograms", 3, ".p.Histogram", MANY),
            ("exemplars", 4, ".p.Exemplar", MANY),
            ("metadata", 5, ".p.Metadata", ONE),
        ],
        "Request": [("symbols", 4, STRING, MANY), ("timeseries", 5, ".p.TimeSeries", MANY)],
    }
    file = descriptor_pb2.FileDescriptorProto(name="v2.proto", package="p", syntax="proto3")
    for name, fields in shapes.items():
        made = file.message_type.add(name=name)
        for field, number, kind, label in fields:
            if isinstance(kind, str):
                made.field.add(name=field, number=number, type=11, label=label, type_name=kind)
            else:
                made.field.add(name=field, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("p.Request"))


REQUEST = message()


@dataclass
class Told:
    """A time series with its texts."""

    labels: dict[str, str]
    series: Any
    help: str
    unit: str
    exemplars: list[tuple[dict[str, str], float, int]]


def told(request: Request) -> list[Told]:
    """The time series of a request."""
    whole = REQUEST.FromString(bytes(cramjam.snappy.decompress_raw(request.body)))
    texts = [*whole.symbols]
    assert texts[0] == "" and len(texts) == len(set(texts))
    found = []
    for one in whole.timeseries:
        names = [texts[n] for n in one.labels_refs[::2]]
        assert names == sorted(names) and len(names) == len(set(names))
        metadata = one.metadata
        found.append(
            Told(
                pairs(texts, one.labels_refs),
                one,
                texts[metadata.help_ref],
                texts[metadata.unit_ref],
                [(pairs(texts, e.labels_refs), e.value, e.timestamp) for e in one.exemplars],
            )
        )
    return found


def pairs(texts: list[str], refs: Any) -> dict[str, str]:
    words = [texts[n] for n in refs]
    return dict(zip(words[::2], words[1::2], strict=True))


def sink(stub: Stub, **more: object) -> Prometheus:
    return Prometheus(PrometheusSettings(type="prometheus", url=Url(f"{stub.url}/w"), **more))


@pytest.fixture
def stub():
    with stub_server() as made:
        yield made


def requests(**members: object) -> Rows:
    """Requests of the first row of the shop: a GET of web-1-a, 200, on port 80."""
    batch = records.request_batch(
        1, **({"route": 7, "time_ns": 5_000_000_000, "duration_ns": 1_000_000} | members)
    )
    batch = replace(batch, identities=(records.WEB_A,), routes={7: "/items/*"})
    (made,) = rows.of_batches([batch], resource=sink_rows.RESOURCE)
    return made


def later(some: Rows, seconds: int) -> Rows:
    return replace(some, id=f"{some.id}+{seconds}", time_ns=some.time_ns + seconds * 10**9)


# --- what is written ---------------------------------------------------------------------------


def test_samples_come_with_their_labels_type_unit_and_start(stub):
    # GIVEN
    stub.answers = [TAKEN] * 2
    some = sink_rows.http_rows()

    # WHEN
    sink(stub).send(some)

    # THEN zeros of new series first
    zeros, first = map(told, stub.requests)
    assert [one.labels for one in zeros] == [one.labels for one in first]
    assert len(first) == 19 * len(some)
    assert {one.series.samples[0].value for one in zeros} == {0}
    start = (some.time_ns - 10**9) // 10**6
    assert {one.series.samples[0].timestamp for one in zeros} == {start}
    for one in first:
        (sample,) = one.series.samples
        assert (sample.timestamp, sample.start_timestamp) == (some.time_ns // 10**6, start)
        is_body = "body" in one.labels["__name__"]
        assert (one.series.metadata.type, one.unit) == ((1, "bytes") if is_body else (3, "seconds"))
        assert one.help.endswith("requests.")
    counts = [one for one in first if one.labels["__name__"] == f"{SERVER}_count"]
    mine = some.columns["side"] == "server"
    assert sorted(one.series.samples[0].value for one in counts) == sorted(
        some.columns["count"][mine]
    )
    tops = [one.series.samples[0].value for one in first if one.labels.get("le") == "+Inf"]
    assert sorted(tops) == sorted(some.columns["count"])
    headers = stub.requests[0].headers
    assert headers["content-type"].endswith("proto=io.prometheus.write.v2.Request")
    assert headers["x-prometheus-remote-write-version"] == "2.0.0"
    assert headers["content-encoding"] == "snappy"


def test_native_histograms_have_the_same_buckets_as_ours(stub):
    # GIVEN
    stub.answers = [TAKEN] * 2
    some = sink_rows.http_rows()

    # WHEN
    sink(stub, native=True).send(some)

    # THEN
    _, first = map(told, stub.requests)
    histograms = [one for one in first if one.series.histograms]
    assert len(histograms) == len(some) and len(first) == 3 * len(some)
    total = np.zeros(256, dtype=np.int64)
    for one in histograms:
        (made,) = one.series.histograms
        assert (made.schema, one.series.metadata.type) == (3, 3)
        assert made.start_timestamp < made.timestamp == some.time_ns // 10**6
        (span,) = made.positive_spans
        counts = np.cumsum([*made.positive_deltas])
        assert counts.sum() == made.count_int
        total[span.offset + 159 :][: span.length] += counts
    assert total.tolist() == some.buckets.astype(int).sum(axis=0).tolist()


# --- exemplars ---------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [False, True])
def test_a_request_with_a_trace_is_an_exemplar_of_its_series(stub, native):
    # GIVEN
    stub.answers = [TAKEN] * 3
    made = sink(stub, native=native)
    made.send(requests())

    # WHEN
    made.send(sink_rows.http_rows())
    made.send(later(sink_rows.http_rows(), 10))

    # THEN once, at the bucket of its duration
    _, first, second = map(told, stub.requests)
    (one,) = [one for one in first if one.exemplars]
    ((labels, value, milliseconds),) = one.exemplars
    assert labels == {"trace_id": bytes(range(1, 17)).hex(), "span_id": bytes(range(1, 9)).hex()}
    assert value == pytest.approx(0.001)
    assert milliseconds == (records.TIME_NS + 10**6) // 10**6
    assert one.labels["k8s_pod_name"] == "web-1-a" and one.labels["http_route"] == "/items/*"
    assert one.labels["__name__"] == (SERVER if native else f"{SERVER}_bucket")
    assert one.labels.get("le") == (None if native else "0.005")
    assert not [one for one in second if one.exemplars]


def test_requests_without_a_trace_are_no_exemplars():
    # GIVEN
    kept = Exemplars(BY)

    # WHEN
    kept.note(requests(trace_id=[0] * 16))

    # THEN
    assert not kept


def test_the_newest_of_each_bucket_is_told_and_nothing_older_later():
    # GIVEN two buckets, the first of them with two requests
    kept = Exemplars(BY)
    some = sink_rows.http_rows()
    for seconds, took in ((7, 10**6), (6, 10**6), (5, 80 * 10**6)):
        kept.note(requests(time_ns=seconds * 10**9, duration_ns=took))

    # WHEN
    first = kept.of(some, range(len(some)))
    kept.note(requests(time_ns=4 * 10**9))
    second = kept.of(some, range(len(some)))

    # THEN
    ((_, found),) = first.items()
    ends = {bucket: one.milliseconds - records.TIME_NS // 10**6 for bucket, one in found.items()}
    assert ends == {0: 2001, 5: 80}
    assert second == {}


def test_a_request_that_comes_before_it_is_counted_waits_for_one_delivery():
    # GIVEN a request whose series is not in the first delivery
    kept = Exemplars(BY)
    kept.note(requests())
    whole = sink_rows.http_rows()
    others = whole.take(whole.columns["side"] == "client")

    # WHEN / THEN
    assert kept.of(others, [0]) == {} and kept
    assert kept.of(whole, range(len(whole)))
    kept.note(requests(time_ns=9 * 10**9))
    for _ in range(2):
        assert kept.of(others, [0]) == {}
    assert not kept


# --- servers that know 1.0 alone -----------------------------------------------------------------


@pytest.mark.parametrize("answer", [(415, {}, b""), (400, {}, b"snappy: bad"), (204, {}, b"")])
def test_a_server_that_takes_1_0_alone_gets_that_and_it_is_said_once(stub, answer):
    # GIVEN
    stub.answers = [answer]
    made = sink(stub)

    # WHEN
    made.send(sink_rows.http_rows())
    made.send(later(sink_rows.http_rows(), 10))

    # THEN
    versions = [one.headers["x-prometheus-remote-write-version"] for one in stub.requests]
    assert versions == ["2.0.0", "0.1.0", "0.1.0", "0.1.0"]
    assert stub.requests[1].headers["content-type"] == "application/x-protobuf"
    (note,) = made.notes
    assert "takes remote write 1.0" in note


def test_a_server_that_takes_2_0_and_refuses_is_not_asked_for_1_0(stub):
    # GIVEN
    stub.answers = [TAKEN, (400, WRITTEN, b"out of order")]

    # WHEN
    made = sink(stub)
    with pytest.raises(Refused, match="out of order"):
        made.send(sink_rows.http_rows())

    # THEN
    assert len(stub.requests) == 2 and not made.notes


def test_a_server_that_is_busy_is_not_taken_for_an_old_one(stub):
    # GIVEN
    stub.answers = [(503, {"Retry-After": "7"}, b""), TAKEN, TAKEN]
    made = sink(stub)
    some = sink_rows.http_rows()

    # WHEN
    with pytest.raises(Unavailable) as caught:
        made.send(some)
    made.send(some)

    # THEN
    assert caught.value.after == 7
    versions = {one.headers["x-prometheus-remote-write-version"] for one in stub.requests}
    assert versions == {"2.0.0"}


# --- requests that are too large, and refused in part ---------------------------------------------


def test_a_request_that_is_too_large_is_halved_and_nothing_is_added_twice(stub):
    # GIVEN a server that takes two sets of labels at once, zeros first
    stub.answers = [TAKEN, (413, {}, b""), TAKEN, (413, {}, b""), *[TAKEN] * 20]
    some = sink_rows.http_rows()
    made = sink(stub)

    # WHEN
    made.send(some)
    made.send(later(some, 10))

    # THEN
    totals = [
        one.series.samples[0].value
        for request in stub.requests[-1:]
        for one in told(request)
        if one.labels["__name__"] == f"{SERVER}_count"
    ]
    mine = some.columns["side"] == "server"
    assert sorted(totals) == sorted(2 * some.columns["count"][mine])


def test_what_is_refused_of_several_requests_is_counted_alone(stub):
    # GIVEN a server that refuses the first half of what was too large
    stub.answers = [TAKEN, (413, {}, b""), (400, WRITTEN, b"no"), TAKEN]

    # WHEN
    with pytest.raises(Partly, match="no") as caught:
        sink(stub).send(sink_rows.http_rows())

    # THEN
    assert caught.value.unnamed == 3 and caught.value.again is None
