# SPDX-License-Identifier: Apache-2.0
"""Lines as several versions of bpftrace print them, faults and all."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podscope.trace.decode import Attached
from podscope.trace.decode import Broken
from podscope.trace.decode import HelperError
from podscope.trace.decode import Lost
from podscope.trace.decode import MapData
from podscope.trace.decode import Text
from podscope.trace.decode import Value
from podscope.trace.decode import decode
from podscope.trace.decode import readable
from podscope.trace.decode import with_bytes

OLD, MIDDLE, NEW = (0, 17), (0, 23), (0, 27)


@pytest.mark.parametrize(
    ("version", "line", "expected"),
    [
        (OLD, '{"type": "attached_probes", "data": {"probes": 3}}', Attached(3)),
        (NEW, '{"type": "attached_probes", "data": {"probes":3},"count":3}', Attached(3)),
        (OLD, '{"type": "lost_events", "data": {"events": 9}}', Lost(9)),
        (NEW, '{"type": "lost_events", "count":9, "data": {"events":9}}', Lost(9)),
        (OLD, '{"type": "printf", "data": "hi\\n"}', Text("hi\n")),
        (OLD, '{"type": "time", "data": "06:55:52\\n"}', Text("06:55:52\n")),
        (OLD, '{"type": "join", "data": "/bin/echo a b"}', Text("/bin/echo a b\n")),
        (OLD, '{"type": "syscall", "data": "out\\n"}', Text("out\n")),
        (NEW, '{"type": "errorf", "msg": "bad\\n", "line":1, "col":2}', Text("bad\n")),
        (OLD, '{"type": "value", "data": [1,"a b",[2,""]]}', Value([1, "a b", [2, ""]])),
        (NEW, '{"type": "value", "data": true}', Value(True)),
        (
            OLD,
            '{"type": "helper_error", "helper": "map_update_elem", "retcode": -7, "line": 1}',
            HelperError("map_update_elem", -7),
        ),
        (OLD, "", None),
        (OLD, "\n", None),
        (NEW, '{"type": "something_later", "data": 1}', None),
        (OLD, '{"type": "map", "data": {"@p": {', Broken('{"type": "map", "data": {"@p": {')),
        (OLD, "plain words", Broken("plain words")),
        (OLD, "[1]", Broken("[1]")),
        (OLD, '{"type": "map"}', Broken('{"type": "map"}')),
    ],
)
def test_line_is_what_it_says(version, line, expected):
    assert decode(line.encode(), version) == expected


@pytest.mark.parametrize(
    ("version", "line", "form", "entries"),
    [
        (OLD, '{"@c": 1}', "map", ((None, 1),)),
        (OLD, '{"@c": {"a,1": 5, "b": 2}}', "map", (("a,1", 5), ("b", 2))),
        (NEW, '{"@c": {}}', "map", ()),
        (
            NEW,
            '{"@c": {"WebContent": 1, "WebContent": 2}}',
            "map",
            (("WebContent", 1), ("WebContent", 2)),
        ),
        (NEW, '{"@c": "18446744073709551615"}', "map", ((None, "18446744073709551615"),)),
        (OLD, '{"@t": {"1": [1,"a b"]}}', "map", (("1", [1, "a b"]),)),
        (OLD, '{"@f": 07:01}', "map", ((None, "07:01"),)),
        (OLD, '{"@f": {"1": /a/b, "2": 07:01}}', "map", (("1", "/a/b"), ("2", "07:01"))),
        (OLD, '{"@z": 3}', "stats", ((None, 3),)),
        (
            OLD,
            '{"@s": {"count": 2, "average": 7, "total": 15}}',
            "stats",
            ((None, {"count": 2, "average": 7, "total": 15}),),
        ),
        (
            OLD,
            '{"@s": {"a": {"count": 2, "average": 7, "total": 15}}}',
            "stats",
            (("a", {"count": 2, "average": 7, "total": 15}),),
        ),
        (
            OLD,
            '{"@s": {"count": 2, "average": 7, "total": 15}}',
            "map",
            (("count", 2), ("average", 7), ("total", 15)),
        ),
        (
            OLD,
            '{"@h": {"k": [{"max": -1, "count": 3}, {"min": 4, "max": 7, "count": 1}]}}',
            "hist",
            (("k", [{"max": -1, "count": 3}, {"min": 4, "max": 7, "count": 1}]),),
        ),
        (
            NEW,
            '{"@h": [{"min": 4,"max": 7,"count": 1}]}',
            "hist",
            ((None, [{"min": 4, "max": 7, "count": 1}]),),
        ),
    ],
)
def test_map_is_read_with_all_of_its_entries(version, line, form, entries):
    told = decode(f'{{"type": "{form}", "data": {line}}}'.encode(), version)
    assert isinstance(told, MapData)
    assert (told.form, told.entries) == (form, entries)


@pytest.mark.parametrize(
    ("version", "written", "meant"),
    [
        (OLD, r"\uffffffc3\uffffffa9t\uffffffc3\uffffffa9", "été"),
        (MIDDLE, r"\\uffffffc3\\uffffffa9", "é"),
        (NEW, r"\uffffffc3\uffffffa9", "é"),
        (OLD, r"a\uffffffffb", "a\\xffb"),
        (OLD, r"\\uffffffc3", r"\uffffffc3"),
        (OLD, r"\\\uffffffc3\uffffffa9", "\\é"),
        (MIDDLE, r"a\\\"b", 'a"b'),
        (MIDDLE, r"\\n    f+1\\n", "\n    f+1\n"),
        (OLD, r"a\"b\n", 'a"b\n'),
        (OLD, "é", "é"),
    ],
)
def test_keys_have_the_bytes_that_were_there(version, written, meant):
    # GIVEN / WHEN
    told = decode(f'{{"type": "map", "data": {{"@": {{"{written}": 1}}}}}}'.encode(), version)

    # THEN
    assert isinstance(told, MapData)
    assert told.entries == ((meant, 1),)


def test_text_and_values_have_the_bytes_that_were_there():
    line = rb'{"type": "printf", "data": "\uffffffe2\uffffff82\uffffffac 5\n"}'
    assert decode(line, OLD) == Text("€ 5\n")
    assert decode(line.replace(b"printf", b"value"), OLD) == Value("€ 5\n")


def as_bpftrace_writes(text: str) -> str:
    """A text in JSON, as bpftrace does where ``char`` is signed."""
    quoted = {'"': '\\"', "\\": "\\\\", "\n": "\\n"}
    return "".join(
        quoted.get(chr(byte), chr(byte)) if 32 <= byte < 127 or byte == 10 else
        f"\\u{byte if byte < 128 else byte | 0xFFFFFF00:04x}"
        for byte in text.encode()
    )  # fmt: skip


@given(st.text(max_size=20))
def test_any_text_comes_back_from_the_way_bpftrace_writes_it(text):
    line = f'{{"type": "printf", "data": "{as_bpftrace_writes(text)}"}}'
    assert decode(line.encode(), OLD) == Text(text)


@given(st.binary(max_size=60), st.sampled_from([OLD, MIDDLE, NEW]))
def test_any_bytes_are_an_event_or_broken_and_never_an_exception(line, version):
    decode(line, version)
    decode(b'{"type": "map", "data": ' + line + b"}", version)


JSON = st.recursive(
    st.integers() | st.text() | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(JSON)
def test_any_json_of_a_map_is_an_event_or_broken(data):
    for kind in ("map", "hist", "stats", "lost_events", "helper_error", "value", "printf"):
        decode(json.dumps({"type": kind, "data": {"@a": data}}).encode(), OLD)
        decode(json.dumps({"type": kind, "data": data}).encode(), MIDDLE)


def test_what_is_readable_has_no_lone_surrogates():
    assert readable(json.loads(with_bytes(r'"\uffffffff"'))) == "\\xff"
