# SPDX-License-Identifier: Apache-2.0
"""``http``, ``requests`` and ``up``: what they write for given batches, and how they end."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import records

from podscope import red
from podscope import render
from podscope import schema
from podscope.commands import http
from podscope.commands import requests
from podscope.commands import up
from podscope.commands.lifetime import Lifetime
from podscope.errors import UsageError
from podscope.filters import Filter
from podscope.sinks import prometheus


def parsed(module, *arguments):
    """Flags of a command as argparse gives them."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(arguments)


def shown(module, batches, options, lost=None):
    """What the command writes."""
    out = io.StringIO()
    module.show(iter(batches), lambda: lost or {}, options, out)
    return out.getvalue()


class FixedScreen(render.Screen):
    """A screen of a given size, without colours."""

    def __init__(self, out, width, height):
        super().__init__(out)
        self._size = (width, height)
        self.colour = False

    @property
    def width(self):
        return self._size[0]

    @property
    def height(self):
        return self._size[1]


def rows_of(text):
    """Cells of the table rows, after the title line and the header."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("WORKLOAD"))
    end = lines.index("", start) if "" in lines[start:] else len(lines)
    return [line.split() for line in lines[start + 1 : end]]


def test_table_has_the_columns_and_the_numbers():
    # GIVEN / WHEN
    text = shown(http, [records.shop_batch()], http.Options())

    # THEN
    totals = "server 55.0/s, 5.45% errors  client 5.00/s, 100% errors  5 series"
    assert text.splitlines()[0].endswith(totals)
    rows = rows_of(text)
    assert rows[0] == ["nginx.service", "server", "80", "GET", "/items/*", "30.0", "0%", "988µs",
                       "998µs", "1.00ms", "1.00ms", "0B", "3.00kB"]  # fmt: skip
    assert rows[3][:7] == ["curl[300]", "client", "80", "GET", "-", "5.00", "100%"]


def test_rates_are_by_second_whatever_the_interval():
    # GIVEN / WHEN
    batch = replace(records.shop_batch(), interval=10.0)

    # THEN
    assert rows_of(shown(http, [batch], http.Options()))[0][5] == "3.00"


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("rate", "nginx.service"),
        ("errors", "curl[300]"),
        ("p50", "curl[300]"),
        ("p90", "shop"),
        ("p99", "shop"),
        ("max", "shop"),
        ("bytes", "nginx.service"),
        ("name", "curl[300]"),
    ],
)
def test_table_is_sorted(sort, first):
    # GIVEN / WHEN
    text = shown(http, [records.shop_batch()], http.Options(by=("workload",), sort=sort))

    # THEN
    assert rows_of(text)[0][0] == first


def test_lost_line_is_there_only_if_something_was_lost():
    # GIVEN
    batch = records.shop_batch()

    # WHEN
    with_loss = shown(http, [batch], http.Options(), {"joined": 3, "hole": 0})
    without = shown(http, [batch], http.Options(), {"joined": 0})

    # THEN
    assert with_loss.splitlines()[-3:] == [
        "lost: joined 3",
        "",
        "total: 55 server, 5 client exchanges in 1.00s; lost: joined 3",
    ]
    assert "lost: " not in without
    assert without.splitlines()[-1].endswith("; nothing lost")


def test_empty_interval_says_so():
    # GIVEN
    batch = records.http_batch(records.http_rows(0), [])

    # WHEN / THEN
    assert "no HTTP in this interval" in shown(http, [batch], http.Options())
    assert shown(http, [batch], http.Options(output="json")).count("\n") == 1


@pytest.mark.parametrize("name", schema.DIMENSIONS)
@pytest.mark.parametrize("output", http.OUTPUTS)
def test_every_field_can_be_grouped_by_in_every_form(name, output):
    # GIVEN / WHEN
    text = shown(http, [records.cluster_batch()], http.Options(output=output, by=(name,)))

    # THEN
    assert text.count("\n") > 2


def test_wide_table_says_more():
    # GIVEN / WHEN
    text = shown(http, [records.shop_batch()], http.Options(output="wide"))

    # THEN
    assert rows_of(text)[4][13:] == ["3", "3", "350ms", "container", "python3[200]", "4f6d4f6d4f6d"]


def test_wide_table_has_no_columns_that_say_nothing():
    # GIVEN / WHEN
    options = http.Options(output="wide", by=("route", "executable"))
    header = shown(http, [records.shop_batch()], options).splitlines()[2]

    # THEN
    assert header.split()[-4:] == ["FAILED", "FIRST", "BYTE", "PROCESS"]


def test_json_ends_with_the_summary_and_tells_losses_as_they_come():
    # GIVEN
    batch = records.shop_batch()

    # WHEN
    options = http.Options(output="json", by=schema.PLAIN)
    lines = [
        json.loads(line) for line in shown(http, [batch, batch], options, {"hole": 2}).splitlines()
    ]

    # THEN
    assert [line["kind"] for line in lines] == ["http"] * 5 + ["lost"] + ["http"] * 5 + ["summary"]
    assert lines[-1] == {"kind": "summary", "requests": 120, "lost": {"hole": 2}}


def test_summary_counts_what_was_shown():
    # GIVEN
    options = http.Options(output="json", keep=Filter(side="client"))

    # WHEN
    lines = shown(http, [records.shop_batch()], options).splitlines()

    # THEN
    assert json.loads(lines[-1])["requests"] == 5


def test_once_ends_after_one_interval():
    # GIVEN an endless stream
    def endless():
        while True:
            yield records.request_batch()
            yield records.shop_batch()

    # WHEN
    for output in http.OUTPUTS:
        text = shown(http, endless(), http.Options(output=output, once=True))

        # THEN
        assert text
        assert ("\ntotal: 55 server, 5 client " in text) == (output in {"table", "wide"})


def test_csv_has_one_header_and_tells_losses_on_stderr(capsys):
    # GIVEN / WHEN
    batch = records.shop_batch()
    text = shown(http, [batch, batch], http.Options(output="csv"), {"hole": 1})

    # THEN
    assert text.count("service.name") == 1
    assert len(text.splitlines()) == 11
    assert capsys.readouterr().err == "podscope: lost: hole 1\n"


@pytest.mark.parametrize(
    ("flags", "option"),
    [
        (["--interval", "5"], "--interval"),
        (["--interval", "1ms"], "--interval"),
        (["--port", "http"], "--port"),
        (["--status", "bad"], "--status"),
        (["--side", "left"], "--side"),
        (["--by", "colour"], "--by"),
    ],
)
def test_bad_values_of_http_name_the_option(flags, option):
    with pytest.raises(UsageError, match=f"^{option}: "):
        http.options(parsed(http, *flags))


def test_defaults_to_group_by_depend_on_the_form():
    assert http.options(parsed(http)).by == http.TABLE_BY
    assert http.options(parsed(http, "-o", "wide")).by == http.TABLE_BY
    assert http.options(parsed(http, "-o", "json")).by == schema.ON_HOST
    assert http.options(parsed(http, "-o", "json", "--by", "port")).by == ("port",)


def test_addresses_of_peers_are_kept_only_if_named():
    assert not http.wants_peers(parsed(http, "-o", "json"))
    assert http.wants_peers(parsed(http, "--by", "workload,peer"))


def test_long_names_give_way_to_numbers_on_a_narrow_screen():
    # GIVEN
    table = render.Table(("ROUTE", "RATE/S"), (False, True), [("/a" * 60, "30.0")])

    # WHEN
    fitted = http._fitted(table, 40)

    # THEN
    (line,) = render.table_lines(fitted)[1:]
    assert len(line) == 40
    assert line.endswith("30.0")


@pytest.mark.parametrize("width", range(80, 131, 5))
def test_table_fits_the_terminal_and_says_what_it_leaves_out(width):
    # GIVEN
    screen = FixedScreen(io.StringIO(), width, 24)

    # WHEN
    lines = http.frame(records.shop_batch(), http.Options(), {}, screen)

    # THEN
    start = lines.index("") + 1
    table = lines[start : start + 6]
    assert max(map(len, table)) <= width
    assert all(title in table[0].split() for title in ("ROUTE", "RATE/S", "ERRORS", "P50", "P99"))
    hidden = {"P90", "MAX", "IN/S", "OUT/S"} - set(table[0].split())
    notes = [line for line in lines if line.startswith("a wider terminal shows ")]
    assert {name.strip(",") for line in notes for name in line.split()[4:]} == hidden
    assert max(map(len, lines)) <= width


def test_low_terminal_says_how_many_rows_it_leaves_out():
    # GIVEN
    screen = FixedScreen(io.StringIO(), 80, 12)

    # WHEN
    lines = http.frame(records.shop_batch(), http.Options(), {"joined": 1}, screen)

    # THEN
    assert "2 more rows; --port, --workload or --by show fewer" in lines
    assert len(lines) <= screen.height - 1
    assert lines[-1] == "lost: joined 1"


def test_rows_keep_their_places_when_rates_waver():
    # GIVEN two rows, the first busier in the long run
    def groups(first, second):
        rows = records.http_rows(2)
        rows["key"]["port"] = [1, 2]
        for row, count in zip(rows, (first, second), strict=True):
            records.fill(row, [10**6] * count)
        return red.group(records.http_batch(rows, [0, 1]), ("port",))

    places = http.Places()

    # WHEN
    seen = [places.order(groups(*counts), "rate").tolist() for counts in ((30, 20), (20, 25))]
    later = [places.order(groups(5, 40), "rate").tolist() for _ in range(10)]

    # THEN
    assert seen == [[0, 1], [0, 1]]
    assert later[-1] == [1, 0]


def test_screen_says_at_once_when_the_first_numbers_come():
    # GIVEN
    out = io.StringIO()

    # WHEN
    http.live([], dict, http.Options(interval=10.0), out)

    # THEN
    assert "podscope  watching; the first numbers come in 10 s" in out.getvalue()


def test_request_log_asks_the_kernel_only_for_what_is_shown():
    # GIVEN / WHEN
    settings = requests.log_settings(
        parsed(requests, "--errors", "--slower", "200ms", "--sample", "1/100", "--side", "client",
               "--port", "80", "--status", "5xx", "--path", "/api/*")
    )  # fmt: skip

    # THEN
    assert settings == {
        "all": False,
        "errors": True,
        "slower_ns": 200_000_000,
        "one_in": 100,
        "path": "/api/*",
        "sides": {"client"},
        "ports": ((80, 80),),
        "statuses": ((500, 599),),
    }


def test_request_log_asks_for_all_by_default():
    # GIVEN / WHEN
    settings = requests.log_settings(parsed(requests))

    # THEN
    assert settings["all"] is True
    assert settings["sides"] == {"server", "client"}
    assert settings["ports"] is settings["statuses"] is settings["path"] is None


@pytest.mark.parametrize(
    "flags",
    [
        ["--slower", "fast"],
        ["--slower", "40000d"],
        ["--sample", "5%"],
        ["--port", "0"],
        ["--status", "x"],
        ["--path", ""],
        ["--workload", ""],
    ],
)
def test_bad_values_of_requests_name_the_option(flags):
    with pytest.raises(UsageError, match=f"^{flags[0]}: "):
        requests.log_settings(parsed(requests, *flags))


def test_request_table_has_a_line_each():
    # GIVEN / WHEN
    text = shown(requests, [records.request_batch(2), records.shop_batch()], requests.Options())

    # THEN
    header, first, second, _, total = text.splitlines()
    assert total == "total: 2 shown; nothing lost"
    assert header.split()[:5] == ["TIME", "SIDE", "WORKLOAD", "METHOD", "HOST"]
    assert first == second
    assert first.split()[1:] == [
        "server", "nginx.service", "GET", "shop.example", "/items/17?full=1", "200", "2.50ms",
        "2.00ms", "0B", "612B", "127.0.0.1:40000", "0102030405060708090a0b0c0d0e0f10",
    ]  # fmt: skip


def test_request_without_an_answer_shows_why():
    # GIVEN
    batch = records.request_batch(1, status=0, error=2)

    # WHEN / THEN
    assert " reset " in shown(requests, [batch], requests.Options())


def test_request_table_cannot_be_spoofed_by_a_path():
    # GIVEN
    batch = records.request_batch(1, path=b"/\x1b[2Jx\ny")

    # WHEN
    text = shown(requests, [batch], requests.Options())

    # THEN
    assert "\x1b" not in text
    assert len(text.splitlines()) == 4


def test_request_json_ends_with_the_summary():
    # GIVEN
    options = requests.Options("json", Filter(path="/items/*"))

    # WHEN
    batches = [records.request_batch(2), records.request_batch(3, path=b"/other")]
    lines = [
        json.loads(line)
        for line in shown(requests, batches, options, {"ring_full": 1}).splitlines()
    ]

    # THEN
    assert [line["kind"] for line in lines] == ["request", "request", "lost", "summary"]
    assert lines[-1] == {"kind": "summary", "requests": 2, "lost": {"ring_full": 1}}


@pytest.mark.parametrize(("command", "batch"), [(http, "shop_batch"), (requests, "request_batch")])
def test_lines_of_csv_have_the_cells_of_the_header(command, batch):
    # GIVEN / WHEN
    text = shown(command, [getattr(records, batch)()], command.Options(output="csv"))

    # THEN
    assert len({len(line) for line in csv.reader(io.StringIO(text))}) == 1


def test_request_csv_has_a_header_even_if_nothing_came():
    # GIVEN / WHEN
    text = shown(requests, [], requests.Options("csv"))

    # THEN
    assert text.startswith("time,side,service.name")
    assert text.count("\n") == 1


def test_up_adds_every_batch_and_prints_the_table_seldom_where_there_is_no_terminal():
    # GIVEN 25 seconds of batches
    start = records.shop_batch()
    batches = [replace(start, time_ns=start.time_ns + second * 10**9) for second in range(25)]
    totals, ready, out = prometheus.Totals(), threading.Event(), io.StringIO()

    # WHEN
    watched = SimpleNamespace(lost=dict, cost=dict, sources=dict)
    counted = up.counted(batches, watched, totals, ready)
    up.show(counted, dict, http.Options(), out, "127.0.0.1:9435")

    # THEN
    text = out.getvalue()
    assert text.startswith("podscope: watching; metrics on http://127.0.0.1:9435/metrics\n")
    assert text.count(" series\n") == 3
    assert text.splitlines()[-1].startswith("total: 1375 server, 125 client exchanges in 25.0s")
    assert ready.is_set()
    assert b'service_name="nginx.service",url_scheme="http"} 750\n' in b"".join(
        totals.expose(openmetrics=False)
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_once_and_handlers_come_back(number):
    # GIVEN
    stops = []
    before = signal.getsignal(number)

    # WHEN
    with Lifetime() as lifetime:
        lifetime.begin(lambda: stops.append(1))
        os.kill(os.getpid(), number)

    # THEN
    assert stops == [1]
    assert signal.getsignal(number) is before


def test_signal_before_the_beginning_stops_at_once():
    # GIVEN
    stops = []
    with Lifetime() as lifetime:
        os.kill(os.getpid(), signal.SIGTERM)

        # WHEN
        lifetime.begin(lambda: stops.append(1))

    # THEN
    assert stops == [1]


def test_end_of_the_time_stops():
    # GIVEN
    stopped = threading.Event()

    # WHEN
    with Lifetime() as lifetime:
        lifetime.begin(stopped.set, 20_000_000)
        for _ in range(1000):
            if stopped.is_set():
                break
            time.sleep(0.01)

    # THEN
    assert stopped.is_set()


def test_second_interrupt_interrupts():
    # GIVEN
    with Lifetime() as lifetime:
        lifetime.begin(lambda: None)
        os.kill(os.getpid(), signal.SIGINT)

        # WHEN / THEN
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    "arguments",
    [
        ["http", "--interval", "soon"],
        ["requests", "--sample", "often"],
        ["up", "--listen", "everywhere"],
        ["http", "--duration", "999999999999999d"],
        ["http", "--interval", "40000d"],
        ["http", "--duration", "1ns"],
        ["http", "--workload", ""],
        ["requests", "--path", b"/\xff"],
    ],
)
def test_bad_value_is_one_line_and_exit_code_2(arguments):
    # GIVEN / WHEN
    done = subprocess.run(
        [sys.executable, "-m", "podscope", *arguments], capture_output=True, text=True, check=False
    )

    # THEN
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert arguments[1] in done.stderr or "not UTF-8" in done.stderr
