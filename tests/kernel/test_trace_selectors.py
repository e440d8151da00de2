# SPDX-License-Identifier: Apache-2.0
"""Processes of a pid namespace, chosen as kubectl-trace's own tests choose them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from podscope.errors import UsageError
from podscope.trace.processes import chosen
from podscope.trace.processes import selector

PATIENCE = 30.0
# Its first process starts one for each of its words.
FORK = """
import subprocess, sys
for word in sys.argv[2:]:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", word])
print("forked", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def container() -> Iterator[list[int]]:
    """Numbers of three processes on this host: the first of a pid namespace, and its children."""
    words = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", FORK]
    made = subprocess.Popen(
        [*words, "fork-from-args", "one", "two"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert made.stdout is not None and made.stdout.readline() == "forked\n"
    (first,) = children(made.pid)
    due = time.monotonic() + PATIENCE
    # A child has its own words once it has begun them.
    while [cmdline(pid)[-1:] for pid in children(first)] != [["one"], ["two"]]:
        assert time.monotonic() < due
        time.sleep(0.02)
    yield [first, *children(first)]
    made.kill()
    made.communicate()


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cmdline(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("pid=1", 0),
        ("pid=2", 1),
        ("pid=last", 2),
        ("pid=last,exe=python", 2),
        ("exe=python,comm=python", 2),
        ("pid=last,cmdline=fork-from-args", 0),
        ("pid=last,exe=python,cmdline=1000) one", 1),
    ],
)
def test_a_process_is_chosen_by_its_own_number_and_what_it_runs(container, text, place):
    assert chosen(selector(text), iter(container)) == container[place]


@pytest.mark.parametrize("text", ["pid=9", "exe=ruby", "pid=1,cmdline=two two"])
def test_none_is_chosen_where_none_fits(container, text):
    with pytest.raises(UsageError, match="no process of the target is like that"):
        chosen(selector(text), iter(container))
