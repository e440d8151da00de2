# SPDX-License-Identifier: Apache-2.0
"""Kills by the kernel's OOM killer, in memory cgroups of the tests' own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from attached import wait_until_attached
from in_a_pod import in_a_pod

from podscope.kernel.symbols import Symbols
from podscope.pipeline import Feed
from podscope.schema_events import columns
from podscope.schema_oom import SCOPES
from podscope.sources.oom import OomOptions
from podscope.sources.oom import OomSource

LIMIT = 32 << 20
CONTAINER = "c0ffee" * 10 + "beef"
# Moves itself into the cgroup, then takes memory until it is killed.
GREEDY = (
    "import os, sys\n"
    "open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
    "held = bytearray()\n"
    "while True: held += bytes(1 << 20)\n"
)
# The same as the first process of a pid namespace (CLONE_NEWPID).
CONTAINED = (
    "import ctypes, os, sys\n"
    "assert ctypes.CDLL(None).unshare(0x20000000) == 0\n"
    "child = os.fork()\n"
    "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) and 137)\n"
) + GREEDY
MODEST = (
    "import os, sys, time\n"
    "open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
    "print(flush=True)\n"
    "time.sleep(60)\n"
)


class Memory:
    """A memory cgroup of a test's own, of whichever version the controller is."""

    def __init__(self, path: Path, limit: int | str) -> None:
        self.path = path
        self.path.mkdir(parents=True)
        v1 = self.path / "memory.limit_in_bytes"
        (v1 if v1.exists() else self.path / "memory.max").write_text(str(limit))

    def kills(self) -> int:
        """How many the kernel has counted here."""
        v1 = self.path / "memory.oom_control"
        lines = (v1 if v1.exists() else self.path / "memory.events").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("oom_kill ")))

    def remove(self) -> None:
        deadline = time.monotonic() + 5
        while True:
            try:
                return self.path.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def memory_root() -> Path:
    """Where the memory controller's cgroups are."""
    v1 = Path("/sys/fs/cgroup/memory")
    if (v1 / "memory.limit_in_bytes").exists():
        return v1
    v2 = Path("/sys/fs/cgroup")
    try:
        (v2 / "cgroup.subtree_control").write_text("+memory")
    except OSError as error:
        pytest.skip(f"there is no memory controller that tests may use: {error.strerror}")
    return v2


@pytest.fixture
def memory() -> Iterator[Memory]:
    """A memory cgroup with the name of a container."""
    made = Memory(memory_root() / f"podscope-test-{os.getpid()}-docker-{CONTAINER}.scope", LIMIT)
    yield made
    made.remove()


@pytest.fixture
def source() -> Iterator[OomSource]:
    with OomSource() as opened:
        yield opened


def outgrow(memory: Memory, program: str = GREEDY, seconds: float = 30) -> int:
    """A process that is killed for its memory; its process id."""
    with subprocess.Popen([sys.executable, "-c", program, str(memory.path)]) as process:
        try:
            assert process.wait(seconds) in (-signal.SIGKILL, 128 + signal.SIGKILL)
        finally:
            process.kill()
        return process.pid


def mine(rows: np.ndarray, memory: Memory) -> np.ndarray:
    """Rows of a test's own cgroup: others on this machine may be killed, too."""
    return rows[[path.decode().endswith(memory.path.name) for path in rows["cgroup"].tolist()]]


def test_a_kill_is_one_row_with_the_container_of_who_is_gone_at_once(memory, source):
    # GIVEN a watch on this host
    feed = Feed("oom", source, ("oom",))

    # WHEN a process is killed, and has ended before anyone looks
    pid = outgrow(memory)
    batches = list(feed.interval())

    # THEN
    (batch,) = batches
    rows = mine(batch.rows, memory)
    assert len(rows) == 1 == memory.kills()
    at = batch.rows["pid"].tolist().index(pid)
    told = {name: column[at] for name, column in columns(batch).items()}
    assert told["container.id"] == CONTAINER
    assert told["podscope.workload.kind"] == "container"
    assert told["process.executable.name"] == Path(os.path.realpath(sys.executable)).name
    assert told["podscope.oom.scope"] == "memcg"
    assert told["podscope.oom.limit"] == LIMIT
    assert told["podscope.oom.trigger.pid"] == pid
    assert 0 < told["process.uptime"] < 60
    assert source.lost()["ring_full"] == 0


def test_sizes_are_those_of_the_kernels_own_log(memory, source):
    # GIVEN
    pid = outgrow(memory)

    # WHEN
    row = mine(source.read_events()["oom"], memory)[0]
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout
    line = next((one for one in log.splitlines() if f"Killed process {pid} " in one), "")
    if not line:
        pytest.skip("the kernel's log cannot be read: sizes are not compared with it")

    # THEN the kernel's words are kilobytes; its own sums may lack a batch of pages a CPU
    for name, word in (("anon", "anon-rss:"), ("file", "file-rss:"), ("virtual", "total-vm:")):
        said = int(line.partition(word)[2].partition("kB")[0]) << 10
        slack = 64 * os.sysconf("SC_PAGESIZE") * (os.cpu_count() or 1)
        assert abs(int(row[name]) - said) <= slack, (name, line)
    assert row["anon"] > LIMIT // 2


def test_the_second_process_of_a_container_is_the_one_that_is_told(memory, source):
    # GIVEN a container whose first process needs little
    with subprocess.Popen(
        [sys.executable, "-c", MODEST, str(memory.path)], stdout=subprocess.PIPE
    ) as first:
        try:
            assert first.stdout is not None
            first.stdout.readline()

            # WHEN a second one outgrows the container's limit
            second = outgrow(memory)

            # THEN
            rows = mine(source.read_events()["oom"], memory)
            assert rows["pid"].tolist() == [second]
            assert first.poll() is None
        finally:
            first.kill()


def test_each_kill_is_counted_once_as_the_kernel_counts(memory, source):
    # GIVEN / WHEN
    pids = [outgrow(memory) for _ in range(5)]

    # THEN
    rows = mine(source.read_events()["oom"], memory)
    assert rows["pid"].tolist() == pids
    assert memory.kills() == len(pids)
    assert len(set(rows["owner"].tolist())) == len(pids)


def test_the_limit_may_be_that_of_a_cgroup_above(memory, source):
    # GIVEN a cgroup without a limit inside of one that has one
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        (memory.path / "cgroup.subtree_control").write_text("+memory")
    inner = Memory(memory.path / "inner", 1 << 40)
    try:
        # WHEN
        outgrow(inner)

        # THEN
        rows = source.read_events()["oom"]
        row = rows[[path.decode().endswith("/inner") for path in rows["cgroup"].tolist()]][0]
        assert row["limit"] == LIMIT
        assert LIMIT - (1 << 20) <= row["usage"] <= LIMIT
    finally:
        inner.remove()


def test_a_container_has_lived_as_long_as_its_first_process(memory, source):
    # GIVEN / WHEN the first process of a pid namespace is killed
    outgrow(memory, CONTAINED)

    # THEN
    (row,) = mine(source.read_events()["oom"], memory)
    assert row["container_start_ns"] == row["start_ns"] > 0


def test_a_process_that_is_killed_by_another_is_no_row(memory, source):
    # GIVEN
    command = [sys.executable, "-c", MODEST, str(memory.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        # WHEN
        process.kill()

    # THEN
    assert len(mine(source.read_events()["oom"], memory)) == 0


def test_a_container_that_is_killed_as_a_whole_is_a_row_for_each_process(memory, source):
    # GIVEN a cgroup whose processes die together, as Kubernetes has them (memory.oom.group)
    group = memory.path / "memory.oom.group"
    if not group.exists():
        pytest.skip("the memory controller is of cgroup v1: it kills one process at a time")
    group.write_text("1")
    command = [sys.executable, "-c", MODEST, str(memory.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()

        # WHEN a second one outgrows the limit
        second = outgrow(memory)
        first.wait(30)

    # THEN
    rows = mine(source.read_events()["oom"], memory)
    assert sorted(rows["pid"].tolist()) == sorted([first.pid, second])
    assert memory.kills() == 3  # the kernel counts the one it chose twice, and kills it once
    assert [SCOPES[code] for code in rows["scope"].tolist()] == ["memcg", "memcg"]


# A source that tells what it has read for each line that it is given.
READER = """
import json, sys
from podscope.schema_oom import SCOPES
from podscope.sources.oom import OomSource
with OomSource() as source:
    print(flush=True)
    for _ in sys.stdin:
        rows = source.read_events()["oom"]
        names = ("pid", "anon", "limit")
        told = [[int(row[name]) for name in names] + [SCOPES[row["scope"]]] for row in rows]
        print(json.dumps(told), flush=True)
"""


def test_scope_and_sizes_are_told_with_the_rights_of_an_agent(memory, source):
    # GIVEN
    with in_a_pod(READER) as ask:
        # WHEN
        pid = outgrow(memory)
        told = ask("")

    # THEN they are as with all rights
    (row,) = mine(source.read_events()["oom"], memory)
    assert [one for one in told if one[0] == pid] == [[pid, int(row["anon"]), LIMIT, "memcg"]]


def test_names_of_functions_are_the_kernels(source):
    # GIVEN addresses of functions
    lines = [line.split() for line in Path("/proc/kallsyms").read_text().splitlines()]
    kinds = ("t", "T")
    known = {line[2]: int(line[0], 16) for line in lines if line[1] in kinds and len(line) == 3}
    names = [name for name in ("oom_kill_process", "out_of_memory", "tcp_v4_rcv") if name in known]
    if not any(known.values()):
        pytest.skip("the kernel's addresses are hidden here (kptr_restrict)")

    # WHEN they are looked for as return addresses, and some that are none
    symbols = Symbols(source._object)
    told = symbols.functions([*(known[name] + 4 for name in names), 0, 4096])

    # THEN
    assert told == [*names, "", ""]
    # AND more than are asked for at once
    assert symbols.functions(range(5000, 5200)) == [""] * 200


# --- all of the machine's memory -----------------------------------------------------------------

# Kills of these tests may hit anyone: only where nobody minds (tests/kernels sets it).
disposable = pytest.mark.skipif(
    "PODSCOPE_TEST_DISPOSABLE" not in os.environ,
    reason="kills for the whole machine's memory are tested in virtual machines alone",
)
FIRST_CHOICE = "open('/proc/self/oom_score_adj', 'w').write('1000')\n"
# The same, faster, and with its program in memory: it would be read again and again.
GREEDIER = GREEDY.rpartition("while")[0] + (
    "import ctypes, mmap\n"
    "assert ctypes.CDLL(None).mlockall(3) == 0  # MCL_CURRENT | MCL_FUTURE\n"
    "how = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE\n"
    "held = []\n"
    "while True: held.append(mmap.mmap(-1, 16 << 20, flags=how))\n"
)
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Most of the free memory is set aside, so that the rest is soon used up."""
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    sizes = {name: int(text.split()[0]) >> 10 for name, text in told.items()}
    HUGE_PAGES.write_text(str((sizes["MemAvailable"] - 150) * 1024 // 2048))
    yield
    HUGE_PAGES.write_text("0")


@disposable
def test_a_kill_because_the_machine_has_no_memory_is_told_as_such(source, little_memory):
    # GIVEN a container that may take what it wants
    feed = Feed("oom", source, ("oom",))
    unlimited = Memory(memory_root() / f"podscope-test-docker-{CONTAINER}.scope", "max")
    try:
        # WHEN
        pid = outgrow(unlimited, FIRST_CHOICE + GREEDIER, 120)
        (batch,) = feed.interval()

        # THEN
        rows = mine(batch.rows, unlimited)
        assert rows["pid"].tolist() == [pid]
        assert unlimited.kills() == 1
        told = {n: c[batch.rows["pid"].tolist().index(pid)] for n, c in columns(batch).items()}
        assert told["podscope.oom.scope"] == "global"
        assert told["container.id"] == CONTAINER
        assert told["podscope.oom.score_adj"] == 1000
        assert told["podscope.oom.limit"] == 0  # none
    finally:
        unlimited.remove()


@disposable
def test_a_kill_that_a_person_asks_for_is_told_as_such(memory, source):
    # GIVEN
    command = [sys.executable, "-c", FIRST_CHOICE + MODEST, str(memory.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        # WHEN
        Path("/proc/sysrq-trigger").write_text("f")
        process.wait(30)

    # THEN
    (row,) = mine(source.read_events()["oom"], memory)
    assert (row["pid"], SCOPES[row["scope"]]) == (process.pid, "sysrq")


def test_kills_that_found_no_room_are_counted(memory):
    # GIVEN a ring that has room for one or two
    with OomSource(OomOptions(ring_bytes=os.sysconf("SC_PAGESIZE"))) as source:
        # WHEN
        for _ in range(4):
            outgrow(memory)

        # THEN
        told = len(source.read_events()["oom"])
        assert 1 <= told < 4
        assert source.lost()["ring_full"] >= 4 - told


def test_scopes_of_the_rows_are_words():
    assert SCOPES[1:] == ("memcg", "global", "sysrq")


def test_the_command_tells_a_kill(memory):
    # GIVEN the command, and a sign that it has begun
    command = [sys.executable, "-m", "podscope", "events", "oom", "-o", "json"]
    header = [sys.executable, "-m", "podscope", "events", "oom"]
    for words, as_json in ((command, True), (header, False)):
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            try:
                if not as_json:
                    assert process.stdout is not None
                    told = process.stdout.readline().split()
                    assert told == ["TIME", "EVENT", "WORKLOAD", "WHAT"]
                wait_until_attached(process)

                # WHEN
                pid = outgrow(memory)
                time.sleep(0.5)
            finally:
                process.send_signal(signal.SIGINT)
            out = process.communicate(timeout=20)[0]

        # THEN
        assert process.returncode == 0
        if not as_json:
            assert f"[{pid}]" in out and "oom kill" in out
            assert "nothing lost" in out
            continue
        told = [json.loads(line) for line in out.splitlines()]
        found = [one for one in told if one.get("process.pid") == pid]
        assert len(found) == 1
        assert found[0]["kind"] == "oom"
        assert found[0]["container.id"] == CONTAINER
        assert told[-1]["kind"] == "summary"
