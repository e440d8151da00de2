# SPDX-License-Identifier: Apache-2.0
"""Traces that an agent runs: begun, followed, stopped and forgotten; what it refuses."""

from __future__ import annotations

import json
import sys
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podscope import node_traces
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.node_traces import Asked
from podscope.node_traces import Journal
from podscope.node_traces import NodeTraces

# Stands for podscope: says its words, and ends when it is told to.
SPEAKER = """
import signal, sys, os, time
def end(*_):
    os.write(1, b"end\\n")
    sys.exit(0)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
# In one piece: a signal may come at any moment.
os.write(1, " ".join([*sys.argv[1:], os.environ.get("NODE_NAME", "None")]).encode() + b"\\n")
while True:
    time.sleep(0.05)
"""
PATIENCE = 60.0


def asked(part: str = "a", **more: object) -> str:
    one = Asked("podscope-trace-1", part, "n1", "BEGIN { exit(); }", **more)
    return msgspec.json.encode(one).decode()


@pytest.fixture
def traces():
    with NodeTraces((sys.executable, "-c", SPEAKER)) as made:
        yield made


def told(traces: NodeTraces) -> list[dict]:
    return [json.loads(line) for line in traces.listed().splitlines()]


def wait(met) -> None:
    deadline = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_trace_runs_until_it_is_stopped_and_what_it_said_is_kept(traces):
    # GIVEN
    traces.begin(asked(targets=("pod/a-1",), pods=("web-1",), about={"target": "deploy/web"}))
    pieces = traces.follow("podscope-trace-1", "a")
    said = b""
    while b"\n" not in said:
        said += next(pieces)

    # WHEN
    assert [(one["state"], one["about"]) for one in told(traces)] == [
        ("Running", {"target": "deploy/web"})
    ]
    traces.stop("podscope-trace-1", "a")
    said += b"".join(pieces)

    # THEN
    words = said.decode().splitlines()
    assert words[0].startswith("run --eval=BEGIN { exit(); } --form snapshots")
    assert words[0].endswith("--name=web-1 pod/a-1 n1")
    assert words[1] == "end"
    wait(lambda: told(traces)[0]["state"] == "Completed")
    assert b"".join(traces.follow("podscope-trace-1", "a")) == said
    assert traces.said("podscope-trace-1", "a") == said


def test_a_trace_that_is_begun_twice_runs_once(traces):
    traces.begin(asked())
    traces.begin(asked())
    assert len(told(traces)) == 1


def test_more_traces_than_a_node_can_bear_are_refused(traces):
    for number in range(node_traces.MOST_RUNNING):
        traces.begin(asked(f"part-{number}"))
    with pytest.raises(PodscopeError, match="4 traces run on this node already"):
        traces.begin(asked("more"))


def test_a_deleted_trace_is_ended_and_unknown(traces):
    # GIVEN
    traces.begin(asked())
    process = traces._find("podscope-trace-1", "a").process

    # WHEN
    traces.delete("podscope-trace-1", "a")

    # THEN
    assert process.poll() is not None
    assert told(traces) == []
    with pytest.raises(UsageError, match="there is no trace"):
        traces.follow("podscope-trace-1", "a")


def test_what_is_past_its_time_is_forgotten(traces):
    # GIVEN
    traces.begin(asked(ttl=0.0))
    traces.stop("podscope-trace-1", "a")

    # WHEN / THEN
    wait(lambda: told(traces) == [])


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ({"program": 'BEGIN { cat("/etc/shadow"); }'}, "cat.. and system.. are not for agents"),
        ({"program": 'BEGIN { if (1) { system("x"); } }'}, "are not for agents"),
        ({"program": '#include "/etc/shadow"\nBEGIN { exit(); }'}, "#include is not for agents"),
        ({"program": "BEGIN {"}, "program"),
        ({"environment": {"LD_PRELOAD": "x"}}, "only variables of bpftrace"),
        ({"targets": ("--unsafe",)}, "not those of a node"),
        ({"targets": ("--output=/etc/x",)}, "not those of a node"),
        ({"name": "../x"}, "has no name"),
    ],
)
def test_what_would_give_away_more_than_events_is_refused(traces, more, refused):
    fields = {"name": "n", "part": "a", "node": "n1", "program": "BEGIN { exit(); }"} | more
    with pytest.raises(UsageError, match=refused):
        traces.begin(json.dumps(fields))
    assert told(traces) == []


def test_words_of_a_program_are_no_flags():
    words = Asked("n", "a", "n1", "--unsafe", arguments=("--output=x",), pods=("--y",)).words()
    assert "--unsafe" not in words
    assert [word for word in words if "=" in word] == [
        "--eval=--unsafe", "--args=--output=x", "--name=--y",
    ]  # fmt: skip


@given(st.lists(st.integers(1, 9), max_size=60), st.integers(8, 40))
def test_a_journal_keeps_the_last_whole_lines(lengths, most):
    # GIVEN
    journal = Journal(most)
    lines = [bytes([65 + number % 26]) * length + b"\n" for number, length in enumerate(lengths)]

    # WHEN
    for line in lines:
        journal.add(line)
    journal.end()

    # THEN
    kept = b"".join(journal.read())
    assert b"".join(lines).endswith(kept)
    assert kept.count(b"\n") == 0 or kept.splitlines(keepends=True) == lines[-kept.count(b"\n") :]
    assert len(kept) <= most or len(lines) == 1
    assert journal.now() == kept


def test_a_trace_that_is_stopped_before_it_has_begun_ends_once_it_has(traces):
    # GIVEN / WHEN
    traces.begin(asked())
    traces.stop("podscope-trace-1", "a")

    # THEN
    said = b"".join(traces.follow("podscope-trace-1", "a"))
    assert said.splitlines()[-1] == b"end"
    wait(lambda: told(traces)[0]["state"] == "Completed")
