# SPDX-License-Identifier: Apache-2.0
"""JSON, CSV and tables as a reader gets them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import re

import pytest
import records
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from podscope import red
from podscope import render
from podscope import schema
from podscope.batch import Identity


def http_json(batch, by=schema.DIMENSIONS):
    """The batch's lines, parsed."""
    groups = red.group(batch, by)
    columns = schema.read(schema.HTTP, groups.view(batch.time_ns, 1.0), groups.by)
    return [
        json.loads(line) for line in render.json_lines("http", schema.HTTP, columns).splitlines()
    ]


def test_http_line_has_the_promised_keys_and_values():
    # GIVEN / WHEN
    line = next(line for line in http_json(records.shop_batch()) if line["count"] == 5)

    # THEN
    duration = line.pop("duration")
    assert line == {
        "kind": "http",
        "time": "2026-09-21T14:13:20.123456789Z",
        "interval": 1.0,
        "side": "client",
        "count": 5,
        "time_to_first_byte": {"sum": 0.1, "count": 5},
        "http.request.body.size": 0,
        "http.response.body.size": 50,
        "http.request.method": "GET",
        "http.response.status_code": 404,
        "error.type": "404",
        "network.protocol.name": "http",
        "network.protocol.version": "1.0",
        "server.port": 80,
        "server.address": "192.0.2.7",
        "network.peer.address": "192.0.2.7",
        "podscope.peer": "public",
        "process.executable.name": "curl",
        "process.pid": 300,
        "service.name": "curl",
        "podscope.workload.kind": "process",
    }
    assert set(duration) == {"sum", "p50", "p90", "p99", "max"}
    assert (duration["sum"], duration["max"], duration["p99"]) == (0.2, 0.04, 0.04)


def test_keys_that_do_not_apply_are_left_out():
    # GIVEN an exchange without an answer
    rows = records.http_rows(1)
    rows["key"]["side"] = 1
    rows["key"]["error"] = 2
    records.fill(rows[0], [10**9])

    # WHEN
    (line,) = http_json(records.http_batch(rows, [0]))

    # THEN
    assert line["error.type"] == "reset"
    assert not {"http.response.status_code", "http.route", "container.id"} & set(line)


def test_fields_that_are_not_grouped_by_are_left_out():
    # GIVEN / WHEN
    lines = http_json(records.shop_batch(), ("port",))

    # THEN
    assert {line["server.port"]: line["count"] for line in lines} == {80: 45, 8080: 15}
    assert not {"http.request.method", "side", "service.name", "error.type"} & set(lines[0])


def test_request_line_has_the_promised_keys_and_values():
    # GIVEN
    columns = schema.columns(records.request_batch())

    # WHEN
    line = json.loads(render.json_lines("request", schema.REQUEST, columns))

    # THEN
    assert line == {
        "kind": "request",
        "time": "2026-09-21T14:13:20.123456789Z",
        "side": "server",
        "service.name": "nginx.service",
        "podscope.workload.kind": "unit",
        "podscope.systemd.unit": "nginx.service",
        "process.executable.name": "nginx",
        "process.pid": 100,
        "http.request.method": "GET",
        "server.address": "shop.example",
        "server.port": 80,
        "url.path": "/items/17",
        "url.query": "full=1",
        "http.response.status_code": 200,
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "duration": 0.0025,
        "time_to_first_byte": 0.002,
        "http.request.body.size": 0,
        "http.response.body.size": 612,
        "client.address": "127.0.0.1",
        "client.port": 40000,
        "network.peer.address": "127.0.0.1",
        "network.peer.port": 40000,
        "podscope.peer": "loopback",
        "user_agent.original": "curl/8",
        "trace_id": "0102030405060708090a0b0c0d0e0f10",
        "span_id": "0102030405060708",
    }


@given(path=st.binary(min_size=1, max_size=60), name=st.text(max_size=10))
@settings(deadline=None)
def test_any_bytes_give_one_json_object_a_line(path, name):
    # GIVEN
    batch = records.request_batch(2, path=path, path_len=len(path))
    identity = Identity("process", name, name, 1)
    batch = type(batch)("request", batch.rows, batch.identity, (identity,), 0, 1.0)

    # WHEN
    text = render.json_lines("request", schema.REQUEST, schema.columns(batch))

    # THEN
    lines = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    assert len(lines) == 2
    assert lines[0].get("service.name", "") == name


def test_nothing_gives_no_lines():
    # GIVEN
    batch = records.http_batch(records.http_rows(0), [])

    # WHEN / THEN
    assert http_json(batch) == []


def test_csv_is_read_back_with_the_same_cells():
    # GIVEN a workload whose name needs quotes
    batch = records.shop_batch()
    named = Identity("container", 'a "b", c', "x", 1, "id")
    batch = type(batch)("http", batch.rows, batch.identity, (named,) * 3, 0, 1.0)
    columns = schema.columns(batch)

    # WHEN
    text = render.csv_lines(schema.HTTP, columns, header=True)

    # THEN
    lines = list(csv.DictReader(io.StringIO(text)))
    assert list(lines[0]) == list(columns)
    assert [line["count"] for line in lines] == ["30", "10", "12", "3", "5"]
    assert {line["service.name"] for line in lines} == {'a "b", c'}
    assert lines[0]["error.type"] == lines[0]["server.address"] == ""
    assert float(lines[3]["duration.sum"]) == 2.1


def test_csv_after_the_first_has_no_header():
    # GIVEN / WHEN
    columns = schema.columns(records.shop_batch())

    # THEN
    assert len(render.csv_lines(schema.HTTP, columns, header=False).splitlines()) == 5


def test_summary_has_only_reasons_that_count():
    # GIVEN / WHEN
    line = render.summary_line(7, {"joined": 0, "ring_full": 12})

    # THEN
    assert line == '{"kind":"summary","requests":7,"lost":{"ring_full":12}}\n'


def test_lost_lines_tell_what_grew():
    # GIVEN
    news = render.moved({"joined": 2, "hole": 1}, {"joined": 5, "hole": 1, "ring_full": 4})

    # WHEN
    lines = [json.loads(line) for line in render.lost_lines(news, records.TIME_NS).splitlines()]

    # THEN
    when = "2026-09-21T14:13:20.123456789Z"
    assert lines == [
        {"kind": "lost", "time": when, "reason": "joined", "count": 3},
        {"kind": "lost", "time": when, "reason": "ring_full", "count": 4},
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0µs"),
        (0.00085, "850µs"),
        (0.0009994, "999µs"),
        (0.0009996, "1.00ms"),
        (0.0123, "12.3ms"),
        (0.9994, "999ms"),
        (0.9996, "1.00s"),
        (2.5, "2.50s"),
        (185.2, "3m05s"),
        (float("nan"), "-"),
    ],
)
def test_durations_are_short(value, text):
    assert render.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.50"), (12.34, "12.3"), (999.4, "999"), (999.6, "1.00k"), (45600, "45.6k"),
     (7.89e6, "7.89M"), (1.5e12, "1500G")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert render.number(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0B"), (612, "612B"), (1.25e6, "1.25MB")])
def test_sizes_are_short(value, text):
    assert render.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0%"), (1e-9, "<0.01%"), (0.0123, "1.23%"), (0.5, "50.0%"), (0.9999999, ">99.9%"),
     (1, "100%")],
)  # fmt: skip
def test_share_is_0_or_100_only_when_it_is(value, text):
    assert render.share(value) == text


def test_control_characters_cannot_reach_the_terminal():
    assert render.clean("/a\x1b[2J\r\n") == "/a\\x1b[2J\\r\\n"


def test_long_names_lose_their_middle():
    # GIVEN / WHEN
    text = render.shortened("abcdefghij", 5)

    # THEN
    assert text == "ab…ij"
    assert render.shortened("abcde", 5) == "abcde"


def test_columns_are_aligned():
    # GIVEN
    table = render.Table(("NAME", "N"), (False, True), [("a", "100"), ("longer", "5")])

    # WHEN / THEN
    assert render.table_lines(table) == ["NAME      N", "a       100", "longer    5"]


def test_colour_marks_errors_and_changes_no_text():
    # GIVEN
    table = render.Table(("A", "ERR"), (False, True), [("x", "0%"), ("y", "2%")], alert=1)

    # WHEN
    plain, coloured = render.table_lines(table), render.table_lines(table, colour=True)

    # THEN
    assert [re.sub("\x1b\\[\\d*m", "", line) for line in coloured] == plain
    assert "\x1b[31m" in coloured[2]
    assert "\x1b" not in coloured[1]


def all_of(master: int) -> str:
    """What was written to a terminal whose other end is closed."""
    parts = []
    # Linux ends the stream with EIO.
    with contextlib.suppress(OSError):
        while part := os.read(master, 4096):
            parts.append(part)
    os.close(master)
    return b"".join(parts).decode()


def test_screen_restores_the_terminal_and_leaves_the_last_frame():
    # GIVEN a terminal
    master, slave = pty.openpty()

    # WHEN
    with (
        os.fdopen(slave, "w") as out,
        contextlib.suppress(RuntimeError),
        render.Screen(out) as screen,
    ):
        screen.draw(["first"])
        screen.draw(["second"])
        raise RuntimeError
    written = all_of(master)

    # THEN
    assert written.startswith("\x1b[?1049h")
    assert written.index("first") < written.index("second")
    end = written[written.index("\x1b[?1049l") :]
    assert "second" in end and "first" not in end
    assert "\x1b[?25h" in written


def test_screen_is_only_for_terminals(monkeypatch):
    # GIVEN
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")

    # WHEN / THEN
    with os.fdopen(slave, "w") as terminal:
        assert render.Screen.fits(terminal)
        monkeypatch.setenv("TERM", "dumb")
        assert not render.Screen.fits(terminal)
    assert not render.Screen.fits(io.StringIO())
    os.close(master)
