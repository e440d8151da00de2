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
from podscope.trace.jobs import Part
from podscope.trace.jobs import Request
from podscope.trace.jobs import words as words_of

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


NAME = "podscope-trace-1"
HERE = Part("n1")


def one(part: Part = HERE, **more: object) -> Asked:
    fields = {"name": NAME, "program": "BEGIN { exit(); }"} | more
    return Asked(Request(**fields), part, ("n1", "n2"))


def asked(part: Part = HERE, **more: object) -> str:
    return msgspec.json.encode(one(part, **more)).decode()


# Of the part that is asked for where a test does not say another one.
PART = one().name


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
    part = Part("n1", ("pod/a-1",), ("web-1",))
    traces.begin(asked(part, target="deploy/web", by_pod=True))
    name = one(part).name
    pieces = traces.follow(NAME, name)
    said = b""
    while b"\n" not in said:
        said += next(pieces)

    # WHEN
    (listed,) = told(traces)
    assert (listed["name"], listed["part"], listed["state"]) == (NAME, name, "Running")
    assert listed["about"] == {
        "namespace": "default", "target": "deploy/web", "title": "", "by": "pod",
        "nodes": ["n1", "n2"], "node": "n1", "targets": ["pod/a-1"],
    }  # fmt: skip
    traces.stop(NAME, name)
    said += b"".join(pieces)

    # THEN
    words = said.decode().splitlines()
    assert words[0].startswith("run --eval=BEGIN { exit(); } --form snapshots")
    assert words[0].endswith("--name=web-1 --by pod pod/a-1 n1")
    assert words[1] == "end"
    wait(lambda: told(traces)[0]["state"] == "Completed")
    assert b"".join(traces.follow(NAME, name)) == said
    assert traces.said(NAME, name) == said


def test_a_trace_that_is_begun_twice_runs_once(traces):
    traces.begin(asked())
    traces.begin(asked())
    assert len(told(traces)) == 1


def test_more_traces_than_a_node_can_bear_are_refused(traces):
    for number in range(node_traces.MOST_RUNNING):
        traces.begin(asked(Part(f"n{number}")))
    with pytest.raises(PodscopeError, match="4 traces run on this node already"):
        traces.begin(asked(Part("more")))


def test_a_deleted_trace_is_ended_and_unknown(traces):
    # GIVEN
    traces.begin(asked())
    process = traces._find(NAME, PART).process

    # WHEN
    traces.delete(NAME, PART)

    # THEN
    assert process.poll() is not None
    assert told(traces) == []
    with pytest.raises(UsageError, match="there is no trace"):
        traces.follow(NAME, PART)


def test_what_is_past_its_time_is_forgotten(traces):
    # GIVEN
    traces.begin(asked(ttl=0.0))
    traces.stop(NAME, PART)

    # WHEN / THEN
    wait(lambda: told(traces) == [])


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ({"program": 'BEGIN { cat("/etc/shadow"); }'}, "cat.. and system.. are not for agents"),
        ({"program": 'BEGIN { if (1) { system("x"); } }'}, "are not for agents"),
        ({"program": '#include "/etc/shadow"\nBEGIN { exit(); }'}, "#include is not for agents"),
        ({"program": "BEGIN {"}, "program"),
        ({"environment": (("LD_PRELOAD", "x"),)}, "only variables of bpftrace"),
        ({"part": Part("n1", ("--unsafe",))}, "not those of a node"),
        ({"part": Part("n1", ("--output=/etc/x",))}, "not those of a node"),
        ({"name": "../x"}, "has no name"),
        ({"unsafe": True}, "only bpftrace, and safe programs"),
        ({"tracer": "bcc", "program": "capable"}, "only bpftrace, and safe programs"),
        ({"rows": "opens"}, "only bpftrace, and safe programs"),
    ],
)
def test_what_would_give_away_more_than_events_is_refused(traces, more, refused):
    with pytest.raises(UsageError, match=refused):
        traces.begin(asked(**more))
    assert told(traces) == []


def test_words_of_a_program_are_no_flags():
    request = Request("n", "--unsafe", arguments=("--output=x",))
    words = words_of(request, Part("n1", (), ("--y",)))
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
    traces.stop(NAME, PART)

    # THEN
    said = b"".join(traces.follow(NAME, PART))
    assert said.splitlines()[-1] == b"end"
    wait(lambda: told(traces)[0]["state"] == "Completed")
