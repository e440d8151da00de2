# SPDX-License-Identifier: Apache-2.0
"""Whatever columns hold, each row arrives with its own values: as JSON, and as protocol buffers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import records
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from podscope import schema
from podscope.schema import Field
from podscope.sinks import otlp_messages
from podscope.sinks import protobuf
from podscope.sinks.columns import is_constant
from podscope.sinks.elasticsearch import documents
from podscope.sinks.rows import Rows
from podscope.sinks.rows import of_batches

TEXTS = st.none() | st.text(max_size=6) | st.sampled_from(["web", 'a"b', "a\\b", "\n", "ü", ""])
TEXTS |= st.text(alphabet='",\\[', max_size=4)
INTS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300)
FLOATS = st.floats(width=64) | st.sampled_from([0.0, 1e-9, 0.25])
# Mostly few values, as of columns of one delivery, or mostly different ones.
ROWS = st.lists(st.tuples(TEXTS, TEXTS, INTS, INTS, FLOATS), min_size=1, max_size=12)
KINDS = {
    "k8s.pod.name": "text",
    "podscope.message": "text",
    "podscope.some": "int",
    "process.pid": "int",
    "podscope.share": "float",
}


def made(values: list[tuple[Any, ...]]) -> Rows:
    """Rows of a kind of its own; zero of the pid means that there is none."""
    dtypes = {"text": object, "int": np.int64, "float": np.float64}
    columns: dict[str, np.ndarray] = {
        "time": (np.arange(len(values)) + records.TIME_NS).astype("M8[ns]")
    }
    for (name, kind), some in zip(KINDS.items(), zip(*values, strict=True), strict=True):
        columns[name] = np.empty(len(values), dtype=dtypes[kind])
        columns[name][:] = some
    kinds = {"time": "time", **KINDS}
    fields = tuple(
        Field(name, "", kinds[name], "", "", False, name == "process.pid", None, "")
        for name in columns
    )
    return Rows("thing", fields, columns, records.TIME_NS, resource={"host.name": "n"})


def wanted(values: tuple[Any, ...]) -> dict[str, Any]:
    """What a row is to arrive as."""
    found = {}
    for name, value in zip(KINDS, values, strict=True):
        if value is None or (name == "process.pid" and value == 0):
            continue
        if not isinstance(value, float):
            found[name] = value
        elif math.isfinite(value):
            found[name] = pytest.approx(value, rel=1e-12, abs=1e-9)
    return found


@given(ROWS)
def test_documents_are_the_rows(values):
    # GIVEN
    some = made(values)

    # WHEN
    # Of bytes: texts also end lines at what is a part of a value here, as U+0085.
    lines = documents(some, histograms=True).splitlines()

    # THEN
    assert len(lines) == 2 * len(values)
    for place, row in enumerate(values):
        head, body = json.loads(lines[2 * place]), json.loads(lines[2 * place + 1])
        assert head == {"create": {"_id": some.row_ids[place]}}
        assert body.pop("@timestamp").startswith("2026-09-21T14:13:20.123456789"[:19])
        told = {name: body.pop(name) for name in [*body] if name in KINDS}
        assert told == wanted(row)
        assert body == {
            "host.name": "n", "event.dataset": "podscope.thing", "event.kind": "event",
        }  # fmt: skip


@given(st.lists(st.integers(-(10**18), 2**63 - 1), min_size=1, max_size=8))
def test_times_of_documents_have_all_their_nanoseconds(times):
    # GIVEN
    column = np.array(times, dtype="M8[ns]")
    some = Rows("thing", (schema.TIME,), {"time": column}, records.TIME_NS)

    # WHEN
    lines = documents(some, histograms=True).splitlines()[1::2]

    # THEN
    assert [json.loads(line)["@timestamp"] for line in lines] == [f"{one}Z" for one in column]


def test_columns_of_one_text_are_in_memory_once_and_can_be_taken_apart():
    # GIVEN requests of two pods of one workload
    batch = records.request_batch(4)
    index = np.array([0, 1, 0, 1], np.uint32)
    batch = replace(batch, identity=index, identities=(records.WEB_A, records.WEB_B))

    # WHEN
    (found,) = of_batches([batch])

    # THEN
    names, pods = found.columns["service.name"], found.columns["k8s.pod.name"]
    assert names.strides == (0,) and is_constant(names) and names.tolist() == ["web"] * 4
    assert not is_constant(pods) and pods.tolist() == ["web-1-a", "web-1-b"] * 2
    assert found.take(index == 1).columns["service.name"].tolist() == ["web"] * 2


@given(ROWS)
def test_records_of_logs_are_the_rows(values):
    # GIVEN
    some = made(values)

    # WHEN
    request = ExportLogsServiceRequest.FromString(otlp_messages.logs(some))

    # THEN
    found = {}
    for resource in request.resource_logs:
        common = attributes(resource.resource.attributes)
        for record in resource.scope_logs[0].log_records:
            assert record.event_name == "podscope.thing"
            found[record.time_unix_nano] = common | attributes(record.attributes)
    assert len(found) == len(values)
    for place, row in enumerate(values):
        told = found[records.TIME_NS + place]
        assert {name: told[name] for name in told if name in KINDS} == wanted(row)
    # One resource for each pod.
    assert len(request.resource_logs) == len({(row[0], row[3]) for row in values})


def attributes(some: Any) -> dict[str, Any]:
    """Attributes as Python's values."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in some}


@given(st.lists(INTS))
def test_varints_of_a_column_are_those_of_each_number(numbers):
    # GIVEN / WHEN
    made = protobuf.varints(np.array(numbers, dtype=np.int64))

    # THEN
    assert made == [protobuf.varint(number) for number in numbers]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_rows_are_alike_whether_columns_are_the_same_or_not(count):
    # GIVEN the same rows alone, and among others
    values = [("web", f"m{n}", n, n % 2, n / 7) for n in range(count)]
    whole = made(values)

    # WHEN
    lines = documents(whole, histograms=True).splitlines()[1::2]
    alone = [
        documents(whole.take(slice(n, n + 1)), histograms=True).splitlines()[1]
        for n in range(count)
    ]

    # THEN
    assert [json.loads(line) for line in lines] == [json.loads(line) for line in alone]
