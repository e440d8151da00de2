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


def test_the_roots_name_is_a_dot():
    assert read("dns.question.name", text=b"") == "."
    assert read("dns.question.name", text=b"a.test") == "a.test"
    assert read("network.transport", tcp=1) == "tcp"
