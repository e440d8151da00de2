# SPDX-License-Identifier: Apache-2.0
"""The table of fields against the records that it names."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import records

from podscope import schema
from podscope.batch import Identity

ON_HOST = [
    field.name
    for field in schema.HTTP
    if field.dimension in ("", *schema.ON_HOST) and not field.name.startswith("k8s.")
]


def suffixes(enum: str, prefix: str) -> dict[int, str]:
    """Enumerators of the header by code, without their prefix."""
    return {
        code: name.removeprefix(prefix).lower() for name, code in records.types().enum(enum).items()
    }


def test_methods_are_those_of_the_header():
    # GIVEN / WHEN
    named = suffixes("http_method", "HTTP_")

    # THEN
    assert {code: word.lower().lstrip("_") for code, word in enumerate(schema.METHODS)} == named


@pytest.mark.parametrize(
    ("words", "enum", "prefix"),
    [
        (schema.SIDES, "http_side", "HTTP_"),
        (schema.ERRORS, "http_error", "HTTP_ERROR_"),
        (schema.PEERS, "http_peer", "HTTP_PEER_"),
    ],
)
def test_words_are_those_of_the_header(words, enum, prefix):
    # GIVEN
    named = suffixes(enum, prefix)

    # WHEN
    told = {code: word for code, word in enumerate(words) if word}

    # THEN
    assert told == {code: name for code, name in named.items() if name not in ("none", "side_none")}


@pytest.mark.parametrize("record", ["http_row", "http_request"])
def test_every_source_is_a_member_of_the_record_or_the_identity(record):
    # GIVEN
    dtype = records.types().dtype(record)
    members = set(dtype.names)
    if record == "http_row":
        members |= set(dtype["key"].names)
    fields = schema.HTTP if record == "http_row" else schema.REQUEST

    # WHEN
    sources = {part for field in fields for part in field.source.split(", ") if part}

    # THEN
    identity = {f"identity.{field.name}" for field in dataclasses.fields(Identity)}
    assert sources - members - identity <= {"time_ns"}


@pytest.mark.parametrize("fields", [schema.HTTP, schema.REQUEST])
def test_names_are_unique_and_every_field_is_explained(fields):
    # GIVEN / WHEN
    names = [field.name for field in fields]

    # THEN
    assert len(set(names)) == len(names)
    assert all(field.text for field in fields)


def test_columns_of_http_rows_have_the_names_and_values_of_the_records():
    # GIVEN
    batch = records.shop_batch()

    # WHEN
    columns = schema.columns(batch)

    # THEN
    assert list(columns) == ON_HOST
    assert {len(column) for column in columns.values()} == {5}
    assert columns["service.name"].tolist() == ["nginx.service"] * 2 + ["shop"] * 2 + ["curl"]
    assert columns["http.route"].tolist() == ["/items/*", "_OTHER", "/items/*", "/pay", None]
    assert columns["error.type"].tolist() == [None, None, None, "500", "404"]
    assert columns["server.address"].tolist() == [None] * 4 + ["192.0.2.7"]
    assert columns["podscope.peer"].tolist() == ["loopback"] * 4 + ["public"]
    assert columns["network.protocol.version"].tolist() == ["1.1"] * 4 + ["1.0"]
    assert columns["count"].tolist() == batch.rows["count"].tolist()
    assert columns["duration.sum"].tolist() == [0.03, 0.02, 0.36, 2.1, 0.2]
    assert columns["time"][0] == np.datetime64(records.TIME_NS, "ns")


def test_columns_of_pods_have_their_names_as_well():
    # GIVEN / WHEN
    columns = schema.columns(records.cluster_batch())

    # THEN
    names = [field.name for field in schema.HTTP if field.dimension != "service"]
    assert list(columns) == names
    assert columns["k8s.pod.name"].tolist() == ["web-1-a"] * 2 + ["web-1-b"] * 2 + ["web"]
    assert columns["k8s.deployment.name"].tolist() == ["web"] * 4 + [None]
    assert columns["podscope.workload.kind"].tolist() == ["deployment"] * 4 + ["pod"]
    assert columns["container.id"].tolist()[0] == "a" * 64


def test_columns_of_an_empty_batch_are_empty():
    # GIVEN
    batch = records.http_batch(records.http_rows(0), [])

    # WHEN / THEN
    assert {len(column) for column in schema.columns(batch).values()} == {0}
    assert {len(column) for column in schema.columns(records.request_batch(0)).values()} == {0}


def test_data_frames_and_arrow_tables_have_the_same_columns():
    # GIVEN
    batch = records.shop_batch()

    # WHEN
    frame, table = batch.to_pandas(), batch.to_arrow()

    # THEN
    assert list(frame.columns) == table.column_names == ON_HOST
    assert table.column("http.route").to_pylist()[-1] is None
    assert frame["count"].sum() == 60


def one(**members):
    """The columns of one request, as single values."""
    columns = schema.columns(records.request_batch(1, **members))
    return {name: column.tolist()[0] for name, column in columns.items()}


def test_request_says_what_the_record_says():
    # GIVEN / WHEN
    told = one()

    # THEN
    assert told["time"] == records.TIME_NS
    assert (told["url.path"], told["url.query"]) == ("/items/17", "full=1")
    assert told["server.address"] == "shop.example"
    assert told["server.port"] == 80
    assert (told["client.address"], told["client.port"]) == ("127.0.0.1", 40000)
    assert told["trace_id"] == "0102030405060708090a0b0c0d0e0f10"
    assert told["span_id"] == "0102030405060708"
    assert (told["duration"], told["time_to_first_byte"]) == (0.0025, 0.002)
    assert told["http.request.method_original"] is None


def test_request_of_a_client_swaps_the_ports_and_has_no_client_address():
    # GIVEN / WHEN
    told = one(side=2, local_port=40000, peer_port=8443)

    # THEN
    assert told["server.port"] == 8443
    assert told["client.address"] is None
    assert told["network.peer.port"] == 8443


def test_client_that_sends_no_host_names_the_server_by_its_address():
    # GIVEN / WHEN
    told = one(side=2, host=b"", peer=[0x20, 1, 0x0D, 0xB8] + [0] * 11 + [1])

    # THEN
    assert told["server.address"] == "2001:db8::1"


def test_unknown_method_is_other_and_keeps_its_text():
    # GIVEN / WHEN
    told = one(method=0, method_text=b"BREW")

    # THEN
    assert told["http.request.method"] == "_OTHER"
    assert told["http.request.method_original"] == "BREW"


def test_absent_ids_are_none():
    # GIVEN / WHEN
    told = one(trace_id=[0] * 16, span_id=[0] * 8, agent=b"")

    # THEN
    assert told["trace_id"] is told["span_id"] is told["user_agent.original"] is None


def test_target_that_was_cut_says_its_length():
    assert one(path=b"/" + b"a" * 191, path_len=5000)["podscope.target.size"] == 5000


def test_bytes_that_are_not_text_stay_visible():
    assert one(path=b"/\xff")["url.path"] == "/\\xff"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a?b=c?d", ("/a", "b=c?d")),
        ("/a?", ("/a", "")),
        ("/", ("/", None)),
        ("*", ("*", None)),
        ("http://example.org/a/b?x", ("/a/b", "x")),
        ("http://example.org", ("/", None)),
        ("HTTP://example.org?x=/y", ("/", "x=/y")),
        ("/redirect?to=http://b/", ("/redirect", "to=http://b/")),
        ("example.org:443", ("example.org:443", None)),
        ("", (None, None)),
    ],
)
def test_targets_are_split_into_path_and_query(target, expected):
    assert schema.split_target(target) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("example.org", "example.org"),
        ("example.org:80", "example.org"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("", None),
    ],
)
def test_host_loses_its_port(host, expected):
    assert schema.split_host(host) == expected


def test_addresses_are_written_as_people_do():
    # GIVEN
    raw = np.array([[0] * 16, [0] * 10 + [255, 255, 10, 1, 2, 3], [0] * 15 + [1]], dtype="u1")

    # WHEN / THEN
    assert schema.addresses(raw).tolist() == [None, "10.1.2.3", "::1"]


def test_code_that_the_table_does_not_know_is_no_crash():
    # GIVEN a record of a later version
    rows = records.http_rows(1)
    for member in ("side", "method", "version", "error", "peer_class"):
        rows["key"][member] = 250

    # WHEN
    columns = schema.columns(records.http_batch(rows, [0]))

    # THEN
    assert columns["side"].tolist() == [None]
    assert columns["http.request.method"].tolist() == ["_OTHER"]


def test_route_whose_text_was_lost_keeps_its_hash():
    # GIVEN
    rows = records.http_rows(1)
    rows["key"]["route"] = 0xABC

    # WHEN / THEN
    assert schema.columns(records.http_batch(rows, [0]))["http.route"].tolist() == [
        "#0000000000000abc"
    ]
