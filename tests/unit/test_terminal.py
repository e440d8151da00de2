# SPDX-License-Identifier: Apache-2.0
"""What a person sees on a terminal: tables that fit it, and a terminal that is given back."""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import signal
import sys

import pytest
import records

from podscope import red
from podscope import render
from podscope.commands import http
from podscope.commands import requests
from podscope.commands import up
from podscope.commands.lifetime import Lifetime

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?25h\x1b[?1049l"


class FixedScreen(render.Screen):
    """A screen of a given size, without colours."""

    def __init__(self, width, height=24):
        super().__init__(io.StringIO())
        self._size = (width, height)
        self.colour = False

    @property
    def width(self):
        return self._size[0]

    @property
    def height(self):
        return self._size[1]


class Terminal(io.StringIO):
    """Text that says it is a terminal; its width is that of COLUMNS."""

    def isatty(self):
        return True


def cells(table, title):
    """A column of a table."""
    place = table.titles.index(title)
    return [row[place] for row in table.rows]


def shown(batches, out):
    """Lines of the request log."""
    requests.show(iter(batches), dict, requests.Options(), out)
    return out.getvalue().splitlines()


def long_path():
    """A request whose path is long."""
    return records.request_batch(1, path=b"/a" * 60, path_len=120)


@pytest.mark.parametrize("width", [*range(20, 140, 7), 60, 80])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("by", [http.TABLE_BY, ("peer",), ("route", "status", "pid")])
def test_numbers_are_whole_on_any_terminal(width, wide, by):
    # GIVEN
    whole = http.table(red.group(records.shop_batch(), by), 1.0, wide=wide)

    # WHEN
    fitted = http._fitted(whole, width)

    # THEN
    assert max(map(len, render.table_lines(fitted))) <= width
    for title, right in zip(fitted.titles, fitted.right, strict=True):
        assert not right or cells(fitted, title) == cells(whole, title)
    assert fitted.alert is None or fitted.titles[fitted.alert] == "ERRORS"


@pytest.mark.parametrize("width", [*range(20, 140, 7), 60, 80])
@pytest.mark.parametrize("output", ["table", "wide"])
def test_every_column_that_is_left_out_is_named(width, output):
    # GIVEN
    options = http.Options(output=output)
    whole = http.frame(records.shop_batch(), options, {})[2]

    # WHEN
    lines = http.frame(records.shop_batch(), options, {}, FixedScreen(width))

    # THEN
    assert max(map(len, lines)) <= max(width, len("server 55.0/s, 5.45% errors"))
    header = lines[lines.index("") + 1]
    told = " ".join(lines).partition("a wider terminal shows ")[2]
    left_out = set(whole.split()) - set(header.split())
    assert set(re.split(", | ", told)) - {""} == left_out


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("title", ["podscope", "podscope  http://127.0.0.1:9435/metrics"])
def test_first_lines_have_the_totals_of_both_sides(width, title):
    # GIVEN / WHEN
    lines = http.frame(records.shop_batch(), http.Options(), {}, FixedScreen(width), title=title)

    # THEN
    head = lines[: lines.index("")]
    assert max(map(len, head)) <= width
    for told in ("server 55.0/s, 5.45% errors", "client 5.00/s, 100% errors", "5 series"):
        assert any(told in line for line in head)


def test_first_lines_are_as_many_whatever_the_numbers():
    # GIVEN
    few, many = records.shop_batch(), records.shop_batch()
    many.rows["count"] *= 7_919

    # WHEN
    frames = [
        http.frame(one, http.Options(), {}, FixedScreen(width))
        for width in (60, 80, 95)
        for one in (few, many)
    ]

    # THEN
    heads = [frame.index("") for frame in frames]
    assert heads[::2] == heads[1::2]


@pytest.mark.parametrize("height", range(10, 16))
def test_frame_is_no_higher_than_the_terminal(height):
    # GIVEN
    lost = {"joined": 1}

    # WHEN
    lines = http.frame(records.shop_batch(), http.Options(), lost, FixedScreen(80, height))

    # THEN
    assert len(lines) <= height - 1
    assert lines[-1] == "lost: joined 1"
    more = next((int(line.split()[0]) for line in lines if " more rows" in line), 0)
    start = lines.index("") + 2
    rows = [line for line in lines[start:] if re.match("nginx|shop|curl|work|pyth|4f6d", line)]
    assert len(rows) + more == 5


def test_up_names_no_flag_that_it_has_not():
    # GIVEN
    parser = argparse.ArgumentParser()
    up.add_arguments(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}

    # WHEN
    lines = http.frame(
        records.shop_batch(), http.Options(), {}, FixedScreen(80, 10), fewer=up.FEWER
    )

    # THEN
    (told,) = [line for line in lines if " more rows; " in line]
    named = set(re.findall(r"--[a-z]+", told))
    assert named.isdisjoint(flags)
    assert "'podscope http'" in told


@pytest.mark.parametrize("width", [30, 60, 80, 120, 160, 240])
def test_requests_are_one_line_each_on_a_terminal(width, monkeypatch, capsys):
    # GIVEN
    monkeypatch.setenv("COLUMNS", str(width))
    batches = [records.request_batch(1), long_path(), records.request_batch(1, error=1)]

    # WHEN
    header, *lines = shown(batches, Terminal())[:4]

    # THEN
    assert max(map(len, [header, *lines])) <= width
    end = header.index("DURATION") + len("DURATION")
    assert {line[:end].split(" ")[-1] for line in lines} == {"2.50ms"}
    titles = [title for title, *_ in requests._COLUMNS if title != "POD"]
    hidden = [title for title in titles if title not in header]
    said = f"podscope: a wider terminal shows {', '.join(hidden)}\n" if hidden else ""
    assert capsys.readouterr().err == said


def test_requests_are_whole_where_there_is_no_terminal(monkeypatch, capsys):
    # GIVEN
    monkeypatch.setenv("COLUMNS", "40")

    # WHEN
    lines = shown([long_path()], io.StringIO())

    # THEN
    assert "/a" * 60 in lines[1]
    assert lines[0].split()[-1] == "TRACE"
    assert capsys.readouterr().err == ""


def test_requests_follow_a_terminal_that_changes_its_width(monkeypatch):
    # GIVEN
    def batches():
        for width in ("80", "80", "120"):
            monkeypatch.setenv("COLUMNS", width)
            yield records.request_batch(1)

    monkeypatch.setenv("COLUMNS", "80")

    # WHEN
    lines = shown(batches(), Terminal())

    # THEN
    headers = [number for number, line in enumerate(lines) if "PATH" in line]
    assert headers == [0, 3]
    assert "HOST" in lines[3] and "HOST" not in lines[0]


def test_wide_characters_do_not_break_alignment():
    # GIVEN
    table = render.Table(("ROUTE", "N"), (False, True), [("/商品", "1"), ("/e\u0301", "22")])

    # WHEN / THEN
    assert render.table_lines(table) == ["ROUTE   N", "/商品   1", "/e\u0301     22"]
    assert render.shortened("/商品/一覧", 7) == "/商…覧"


def test_line_as_wide_as_the_terminal_keeps_its_last_character():
    # GIVEN
    out = io.StringIO()

    # WHEN
    with render.Screen(out) as screen:
        screen.draw(["3.37ms"])

    # THEN to clear after it would clear it: the cursor stays on the last column
    assert "3.37ms\r\n" in out.getvalue()


PROGRAM = """
import resource, sys, time
from podscope.render import Screen
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
with Screen(sys.stdout) as screen:
    for _ in range(1500):
        screen.draw(["numbers"])
        time.sleep(0.02)
"""
# A shell with jobs: says when its job has stopped, goes on with it, and says how it has ended.
SHELL = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = subprocess.Popen([sys.executable, "-c", sys.argv[1]], process_group=0)
def foreground(group):
    os.tcsetpgrp(0, group)
foreground(job.pid)
_, status = os.waitpid(job.pid, os.WUNTRACED)
foreground(os.getpgrp())
print("STOPPED" if os.WIFSTOPPED(status) else "NOT STOPPED", flush=True)
os.kill(job.pid, signal.SIGCONT)
time.sleep(0.2)
print("IN FOREGROUND", flush=True)
foreground(job.pid)
_, status = os.waitpid(job.pid, 0)
print("ENDED BY", os.WTERMSIG(status), flush=True)
"""


def read_until(master, text, end):
    """All that came, up to ``end`` at least."""
    while end not in text:
        text += os.read(master, 4096).decode()
    return text


def test_terminal_is_given_back_to_the_shell_while_stopped_and_at_a_quit():
    # GIVEN
    child, master = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-c", SHELL, PROGRAM])
    before = read_until(master, "", "numbers")

    # WHEN Ctrl-Z, fg, Ctrl-\\
    os.write(master, b"\x1a")
    stopped = read_until(master, before, "STOPPED")
    resumed = read_until(master, "", "IN FOREGROUND")
    background, _, again = resumed.partition("IN FOREGROUND")
    again = read_until(master, again, "numbers")
    os.write(master, b"\x1c")
    ended = read_until(master, again, f"ENDED BY {signal.SIGQUIT.value}")
    os.waitpid(child, 0)
    os.close(master)

    # THEN
    assert before.startswith(ENTER)
    assert stopped.rindex(LEAVE) > stopped.rindex("numbers")
    assert "NOT STOPPED" not in stopped
    assert ENTER not in background and "numbers" not in background
    assert again.lstrip().startswith(ENTER)
    assert ended.rindex(LEAVE) > ended.rindex("numbers")


def test_handlers_of_a_screen_come_back():
    # GIVEN
    numbers = (signal.SIGTSTP, signal.SIGQUIT, signal.SIGCONT)
    before = [signal.getsignal(number) for number in numbers]
    master, slave = pty.openpty()

    # WHEN
    with os.fdopen(slave, "w") as out, render.Screen(out):
        during = [signal.getsignal(number) for number in numbers]

    # THEN
    os.close(master)
    assert all(one is not other for one, other in zip(before, during, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before


def test_hangup_that_nohup_ignores_stays_ignored():
    # GIVEN
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stops = []

    # WHEN
    try:
        with Lifetime() as lifetime:
            lifetime.begin(lambda: stops.append(1))
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)

    # THEN
    assert stops == []
