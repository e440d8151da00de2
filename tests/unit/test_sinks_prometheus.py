# SPDX-License-Identifier: Apache-2.0
"""Totals for counters that may not go back, and remote write as protocol buffers see it."""

from __future__ import annotations

from dataclasses import replace

import cramjam
import numpy as np
import pytest
import records
import sink_rows
from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message_factory
from hypothesis import given
from hypothesis import strategies as st
from stub_server import stub_server

from podscope.settings import Secret
from podscope.settings import Url
from podscope.sinks import protobuf
from podscope.sinks import rows
from podscope.sinks.cumulative import IDLE_NS
from podscope.sinks.cumulative import RECENT_NS
from podscope.sinks.cumulative import Cumulative
from podscope.sinks.native_histograms import histogram
from podscope.sinks.plugin import Dimension
from podscope.sinks.plugin import Unavailable
from podscope.sinks.prometheus_write import Prometheus
from podscope.sinks.prometheus_write import PrometheusSettings
from podscope.sinks.rows import Rows

# Numbers of descriptor.proto.
MESSAGE, STRING, DOUBLE, INT64 = 11, 9, 1, 3
UINT64, UINT32, SINT32, SINT64 = 4, 13, 17, 18
REPEATED, SINGLE = 3, 1


def messages() -> tuple[type, type]:
    """WriteRequest and Histogram of the specification, as far as they are used."""
    file = descriptor_pb2.FileDescriptorProto(name="write.proto", package="p", syntax="proto3")
    shapes = {
        "Label": [("name", 1, STRING, SINGLE, ""), ("value", 2, STRING, SINGLE, "")],
        "Sample": [("value", 1, DOUBLE, SINGLE, ""), ("timestamp", 2, INT64, SINGLE, "")],
        "TimeSeries": [
            ("labels", 1, MESSAGE, REPEATED, ".p.Label"),
            ("samples", 2, MESSAGE, REPEATED, ".p.Sample"),
        ],
        "WriteRequest": [("timeseries", 1, MESSAGE, REPEATED, ".p.TimeSeries")],
        "BucketSpan": [("offset", 1, SINT32, SINGLE, ""), ("length", 2, UINT32, SINGLE, "")],
        "Histogram": [
            ("count_int", 1, UINT64, SINGLE, ""),
            ("sum", 3, DOUBLE, SINGLE, ""),
            ("schema", 4, SINT32, SINGLE, ""),
            ("positive_spans", 11, MESSAGE, REPEATED, ".p.BucketSpan"),
            ("positive_deltas", 12, SINT64, REPEATED, ""),
            ("timestamp", 15, INT64, SINGLE, ""),
        ],
    }
    for name, fields in shapes.items():
        message = file.message_type.add(name=name)
        for field, number, kind, label, type_name in fields:
            made = message.field.add(name=field, number=number, type=kind, label=label)
            if type_name:
                made.type_name = type_name
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = [pool.FindMessageTypeByName(f"p.{name}") for name in ("WriteRequest", "Histogram")]
    return tuple(map(message_factory.GetMessageClass, found))


REQUEST, HISTOGRAM = messages()


def later(seconds: float) -> Rows:
    """The shop's rows, some time later."""
    batch = records.cluster_batch()
    batch = replace(batch, time_ns=batch.time_ns + round(seconds * 1e9))
    (made,) = rows.of_batches([batch], resource=sink_rows.RESOURCE)
    return made


def samples(body: bytes) -> dict[tuple[tuple[str, str], ...], tuple[float, int]]:
    """Values and times of a request, by their labels."""
    told = REQUEST.FromString(bytes(cramjam.snappy.decompress_raw(body)))
    found = {}
    for one in told.timeseries:
        labels = [(label.name, label.value) for label in one.labels]
        assert labels == sorted(labels) and len(one.samples) == 1
        found[tuple(labels)] = (one.samples[0].value, one.samples[0].timestamp)
    assert len(found) == len(told.timeseries)
    return found


def test_a_delivery_is_zeros_of_new_series_and_then_totals(monkeypatch):
    # GIVEN
    monkeypatch.setenv("A_TOKEN", "abc")
    with stub_server() as stub:
        settings = PrometheusSettings(
            type="prometheus",
            url=Url(f"{stub.url}/api/v1/write"),
            version=1,
            token=Secret(variable="A_TOKEN"),
            headers=(("X-Scope-OrgID", "me"),),
        )
        sink = Prometheus(settings)

        # WHEN
        for seconds in (0, 10):
            sink.send(later(seconds))

    # THEN
    zeros, first, second = (samples(one.body) for one in stub.requests)
    assert zeros.keys() == first.keys() == second.keys()
    assert {value for value, _ in zeros.values()} == {0}
    assert {time for _, time in zeros.values()} == {records.TIME_NS // 10**6 - 1000}
    assert {time for _, time in first.values()} == {records.TIME_NS // 10**6}
    assert {time for _, time in second.values()} == {records.TIME_NS // 10**6 + 10_000}
    assert all(second[name][0] == 2 * value for name, (value, _) in first.items())
    headers = stub.requests[0].headers
    assert headers["authorization"] == "Bearer abc" and headers["x-scope-orgid"] == "me"
    assert headers["content-encoding"] == "snappy"
    assert headers["x-prometheus-remote-write-version"] == "0.1.0"


def test_a_delivery_sent_again_is_the_same():
    # GIVEN a server that takes the zeros, and is then busy
    with stub_server() as stub:
        stub.answers = [(204, {}, b""), (503, {}, b"")]
        url = Url(f"{stub.url}/api/v1/write")
        sink = Prometheus(PrometheusSettings(type="prometheus", url=url, version=1))
        some = later(0)

        # WHEN
        with pytest.raises(Unavailable):
            sink.send(some)
        sink.send(rows.unpacked(rows.packed(some)))

    # THEN also from a disk
    assert stub.requests[1].body == stub.requests[2].body
    assert len(stub.requests) == 3


def test_rows_of_servers_and_clients_must_be_told_apart():
    with pytest.raises(ValueError, match="side is missing"):
        PrometheusSettings(type="prometheus", url=Url("http://a"), by=(Dimension("pod"),))


@given(st.dictionaries(st.integers(0, 255), st.integers(0, 2**40), max_size=12))
def test_a_native_histogram_has_the_buckets_of_ours(filled):
    # GIVEN
    counts = np.zeros(256, dtype=np.int64)
    counts[list(filled)] = list(filled.values())

    # WHEN
    raw = histogram(counts, int(counts.sum()), 1.5, 1_790_000_000_000)

    # THEN bucket i of ours, from 2^((i-160)/8), ends where bucket i-159 of schema 3 does
    told = HISTOGRAM.FromString(raw)
    assert (told.count_int, told.sum, told.schema) == (int(counts.sum()), 1.5, 3)
    assert told.timestamp == 1_790_000_000_000
    found = np.zeros(256, dtype=np.int64)
    values = np.cumsum(np.array([*told.positive_deltas], dtype=np.int64))
    for span in told.positive_spans:
        found[span.offset + 159 : span.offset + 159 + span.length] = values
    assert found.tolist() == counts.tolist()


# --- totals -----------------------------------------------------------------------------------


def test_idle_series_are_told_for_a_while_and_keep_their_totals():
    # GIVEN
    totals = Cumulative(buckets=True)
    totals.add(later(0))
    one = later(1).take(slice(0, 1))

    # WHEN
    soon = totals.add(one)
    late = totals.add(replace(one, time_ns=one.time_ns + RECENT_NS))
    again = totals.add(replace(later(0), time_ns=one.time_ns + RECENT_NS + 10**9))

    # THEN
    assert len(soon.places) == 5 and len(late.places) == 1
    assert not again.fresh.any()
    assert int(again.count.sum()) == 2 * 60 + 2 * int(one.columns["count"][0])


def test_maxima_are_those_since_they_were_told():
    # GIVEN
    totals = Cumulative(buckets=False)

    # WHEN
    first = totals.add(later(0))
    second = totals.add(later(1).take(slice(0, 1)))

    # THEN
    assert sorted(first.max.tolist()) == [0.001, 0.002, 0.03, 0.04, 0.7]
    assert np.count_nonzero(second.max) == 1


def test_places_of_idle_series_are_for_others_and_begin_at_zero():
    # GIVEN room for two series
    totals = Cumulative(buckets=False, series=2)
    some = later(0)
    totals.add(some.take(slice(0, 2)))

    # WHEN two others come after an hour
    after = replace(some.take(slice(2, 4)), time_ns=some.time_ns + IDLE_NS + 2 * 10**9)
    shot = totals.add(after)

    # THEN
    assert shot.places.tolist() == [2, 3] and shot.fresh.all()
    assert sorted(shot.count.tolist()) == sorted(after.columns["count"].tolist())


def test_an_idle_series_that_comes_with_new_ones_keeps_its_place():
    # GIVEN room for two series
    totals = Cumulative(buckets=False, series=2)
    some = later(0)
    before = totals.add(some.take(slice(0, 2)))

    # WHEN one of them comes after an hour, and two others behind it
    back = np.array([0, 2, 3])
    after = replace(some.take(back), time_ns=some.time_ns + IDLE_NS + 2 * 10**9)
    shot = totals.add(after)

    # THEN it goes on, one of the others has the place that is free, and the last one has none
    counts = some.columns["count"].tolist()
    found = dict(zip(shot.places.tolist(), shot.count.tolist(), strict=True))
    kept, given = before.places.tolist()
    overflow = int(some.columns["side"][3] == "client")
    assert found == {kept: 2 * counts[0], given: counts[2], overflow: counts[3]}


@given(st.lists(st.lists(st.integers(0, 4), min_size=1), min_size=1, max_size=5), st.integers(0, 6))
def test_nothing_is_lost_whatever_the_room(picks, room):
    # GIVEN
    totals = Cumulative(buckets=True, series=room)
    whole = later(0)
    counted = 0

    # WHEN
    for second, pick in enumerate(picks):
        some = replace(whole.take(np.array(pick)), time_ns=whole.time_ns + second * 10**9)
        counted += int(some.columns["count"].sum())
        shot = totals.add(some)

    # THEN
    assert int(shot.count.sum()) == counted
    assert int(shot.le[:, -1].sum()) == counted == int(shot.buckets.sum())
    assert len(totals.labels) <= room + 2


# --- protocol buffers -------------------------------------------------------------------------


@given(st.integers(0, 2**64 - 1))
def test_varints_are_those_of_the_official_classes(number):
    # GIVEN
    from google.protobuf.internal.encoder import _VarintBytes

    # WHEN / THEN
    assert protobuf.varint(number) == _VarintBytes(number)


@given(st.integers(-(2**31), 2**31 - 1))
def test_zigzag_is_that_of_the_official_classes(number):
    # GIVEN
    from google.protobuf.internal.wire_format import ZigZagEncode

    # WHEN / THEN
    assert protobuf.sint(number) == protobuf.varint(ZigZagEncode(number))


@given(st.lists(st.integers(0, 2**63 - 1)))
def test_packed_numbers_are_one_varint_each(numbers):
    # GIVEN / WHEN
    raw = protobuf.packed(3, np.array(numbers, dtype=np.int64))

    # THEN
    body = b"".join(map(protobuf.varint, numbers))
    assert raw == (protobuf.of_length(3, body) if numbers else b"")
