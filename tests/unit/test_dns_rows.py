# SPDX-License-Identifier: Apache-2.0
"""DNS lookups: names of types and response codes."""

from __future__ import annotations

import numpy as np
import pytest

from podscope import schema
from podscope import schema_dns


def view(**members: object) -> schema.View:
    """One record."""
    dtype = [("type", "u2"), ("code", "u1"), ("text", "S128"), ("tcp", "u1")]
    record = np.zeros(1, dtype)
    for name, value in members.items():
        record[name] = value
    return schema.View(record, record, {}, (), {}, np.zeros(1, np.int64))


def read(name: str, **members: object) -> object:
    field = next(one for one in schema_dns.DNS if one.name == name)
    return field.read(view(**members))[0]


@pytest.mark.parametrize(("kind", "text"), [(1, "A"), (28, "AAAA"), (999, "TYPE999"), (0, None)])
def test_types_are_words(kind, text):
    assert read("podscope.dns.question.type", type=kind) == text


@pytest.mark.parametrize(
    ("code", "text", "error"),
    [
        (0, "NOERROR", None),
        (3, "NXDOMAIN", "NXDOMAIN"),
        (15, "RCODE15", "RCODE15"),
        (255, None, "timeout"),
    ],
)
def test_codes_are_words_and_all_but_one_are_errors(code, text, error):
    assert read("podscope.dns.response_code", code=code) == text
    assert read("error.type", code=code) == error


def test_servers_are_named_where_lookups_go_out_of_many_of_one_and_of_another_side():
    # GIVEN two lookups of one server, as client and server see them
    raw = np.frombuffer(b"\0" * 10 + b"\xff\xff\x7f\0\0\x35", np.uint8)
    record = np.zeros(2, [("peer", "u1", (16,)), ("side", "u1")])
    record["peer"], record["side"] = raw, [schema.CLIENT, schema.SERVER]
    field = next(one for one in schema_dns.DNS if one.name == "server.address")

    # WHEN
    column = field.read(schema.View(record, record, {}, (), {}, np.zeros(2, np.int64)))

    # THEN
    assert column.tolist() == ["127.0.0.53", None]


def test_the_roots_name_is_a_dot():
    assert read("dns.question.name", text=b"") == "."
    assert read("dns.question.name", text=b"a.test") == "a.test"
    assert read("network.transport", tcp=1) == "tcp"
