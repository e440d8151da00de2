# SPDX-License-Identifier: Apache-2.0
"""bpftrace programs on this host: exact, confined, and gone when they are to be gone."""

from __future__ import annotations

import csv
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import podscope
from podscope.errors import PodscopeError
from podscope.kernel.probes import find_cgroup2
from podscope.trace import reports
from podscope.trace.decode import Text
from podscope.trace.decode import Value
from podscope.trace.session import Answer
from podscope.trace.session import Trace

pytestmark = pytest.mark.skipif(
    shutil.which("bpftrace") is None, reason="bpftrace is not installed: apt install bpftrace"
)

SECONDS = 30.0
# Calls getppid() as often as each line that it reads says, and answers with a line.
CALLER = """
import os, sys
for line in sys.stdin:
    for _ in range(int(line)):
        os.getppid()
    print(line.strip(), flush=True)
"""
CALLS = "tracepoint:syscalls:sys_enter_getppid { @calls = count(); }"
# bpftrace throws away lines that it has not read when it is told to end; podscope counts them.
LAST_LINES = "lost: lines 1"
# The last of a program's probes is attached last.
READY = 'interval:ms:100 { printf("ready\\n"); }'


class Caller:
    """A process that calls getppid() as often as it is told to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CALLER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.call(1)  # it is past its start

    def move_to(self, directory: Path) -> None:
        (directory / "cgroup.procs").write_text(str(self.pid))

    def call(self, times: int) -> None:
        """Call it so often, and wait until that is done."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(times, file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == f"{times}\n"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def running(directory: Path | None = None) -> Iterator[Caller]:
    caller = Caller()
    try:
        if directory is not None:
            caller.move_to(directory)
        yield caller
    finally:
        caller.close()


@contextmanager
def cgroup(path: Path) -> Iterator[Path]:
    """A cgroup that is there for a while."""
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        for _ in range(200):
            with suppress(FileNotFoundError):
                try:
                    path.rmdir()
                except OSError:
                    time.sleep(0.01)
                    continue
            break


@pytest.fixture
def unit() -> Iterator[Path]:
    """The cgroup of a unit of a name that nobody else has."""
    name = f"podscope-test-{os.getpid()}-{os.urandom(3).hex()}.service"
    with cgroup(Path(find_cgroup2()) / name) as made:
        yield made


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something that is to come."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)


def first(answers: Iterator[Answer]) -> Answer:
    """The first answer with a snapshot: all probes are attached then."""
    return next(answers)


def rest(trace: Trace, answers: Iterator[Answer]) -> Answer:
    """The last answer of a trace that is told to end."""
    trace.stop()
    *_, last = answers
    assert last.last
    return last


def traced(program: str, target: str, work: Callable[[], object], **options: object) -> Answer:
    """The last answer of a program during which something was done."""
    with podscope.trace(program, target, interval=0.1, **options) as trace:
        answers = iter(trace)
        first(answers)
        work()
        return rest(trace, answers)


def bpftraces_below(pid: int) -> list[int]:
    """Processes named bpftrace that this process has started."""
    found = []
    for entry in os.listdir("/proc"):
        with suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and b"bpftrace" in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(int(entry))
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_counts_of_a_process_are_exact():
    # GIVEN two processes that do the same
    with running() as wanted, running() as neighbour:
        # WHEN
        def work() -> None:
            neighbour.call(3000)
            wanted.call(1234)

        last = traced(CALLS, f"pid/{wanted.pid}", work)

    # THEN
    assert last.maps["@calls"].to_dict() == {(): 1234}


PROBES = {
    "tracepoint": "tracepoint:syscalls:sys_enter_getppid {{ @[comm, pid] = count(); }}",
    "raw tracepoint": "tracepoint:raw_syscalls:sys_enter {{ @[comm, pid] = count(); }}",
    "uprobe": "uprobe:{libc}:getppid {{ @[comm, pid] = count(); }}",
    "uretprobe": "uretprobe:{libc}:getppid {{ @[comm, pid] = count(); }}",
    "profile": "profile:hz:999 {{ @[comm, pid] = count(); }}",
    "software": "software:cpu-clock:100000 {{ @[comm, pid] = count(); }}",
}


def libc() -> str:
    """The C library's file, as this process has it mapped."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        return next(line.split()[-1] for line in lines if "libc.so" in line or "libc-2" in line)


@pytest.mark.parametrize("probe", PROBES)
def test_a_busy_neighbour_is_not_seen_by_a_confined_program(probe, unit):
    # GIVEN
    program = PROBES[probe].format(libc=libc())
    with running(unit) as wanted, running() as neighbour:
        # WHEN
        def work() -> None:
            neighbour.call(100_000)
            wanted.call(100_000)

        last = traced(program, f"unit/{unit.name}", work)
        seen = {key[1]: count for key, count in last.maps["@"].to_dict().items()}

    # THEN
    assert set(seen) == {wanted.pid}
    if probe in ("tracepoint", "uprobe", "uretprobe"):
        assert seen == {wanted.pid: 100_000}


def test_without_confinement_the_neighbour_is_seen(unit):
    # GIVEN
    with running(unit) as wanted, running() as neighbour:
        program = "tracepoint:syscalls:sys_enter_getppid { @[pid] = count(); }"

        def work() -> None:
            neighbour.call(20)
            wanted.call(10)

        # WHEN
        last = traced(program, f"unit/{unit.name}", work, confine=False)

    # THEN
    seen = last.maps["@"].to_dict()
    assert (seen[(wanted.pid,)], seen[(neighbour.pid,)]) == (10, 20)


def test_a_container_is_found_by_the_beginning_of_its_id():
    # GIVEN
    number = os.urandom(32).hex()
    with cgroup(Path(find_cgroup2()) / f"docker-{number}.scope") as own, running(own) as wanted:
        # WHEN
        last = traced(CALLS, f"container/{number[:12]}", lambda: wanted.call(77))

    # THEN
    assert last.maps["@calls"].to_dict() == {(): 77}


def test_a_cgroup_that_joins_the_target_later_is_seen_and_one_that_ends_leaves_its_counts(unit):
    # GIVEN a running trace of a unit
    with podscope.trace(CALLS, f"unit/{unit.name}", interval=0.1) as trace:
        answers = iter(trace)
        first(answers)

        # WHEN a cgroup is made below it, used, and removed
        for times in (100, 23):
            with cgroup(unit / "later") as later, running() as caller:
                members = trace._members
                assert members is not None
                wanted = os.stat(later).st_ino
                until(partial(members._known.__contains__, wanted), "the new cgroup")
                caller.move_to(later)
                caller.call(times)
        last = rest(trace, answers)

    # THEN
    assert last.maps["@calls"].to_dict() == {(): 123}
    assert trace.lost == {}


def test_container_pid_is_that_of_the_target(unit):
    # GIVEN
    program = (
        "uprobe:/proc/$container_pid/root" + libc() + ":getppid"
        " /pid == $container_pid/ { @calls = count(); }"
    )
    with running(unit) as wanted, running() as neighbour:

        def work() -> None:
            neighbour.call(9)
            wanted.call(31)

        # WHEN
        last = traced(program, f"unit/{unit.name}", work, confine=False)

    # THEN
    assert last.maps["@calls"].to_dict() == {(): 31}


def test_every_kind_of_map_is_exact(unit):
    # GIVEN a counter whose every value is known
    program = """
        tracepoint:syscalls:sys_enter_getppid {
            @n++;
            $n = (int64)@n;
            @sum = sum($n); @min = min($n); @max = max($n); @avg = avg($n); @stats = stats($n);
            @hist = hist($n); @lhist = lhist($n, 0, 100, 10);
            @by[comm, @n % 3] = count();
        }"""

    # WHEN
    with running(unit) as wanted:
        last = traced(program, f"unit/{unit.name}", lambda: wanted.call(120))

    # THEN
    maps = {name: one.to_dict() for name, one in last.maps.items()}
    total = 120 * 121 // 2
    assert maps["@n"] == {(): 120}
    assert maps["@sum"] == {(): total}
    assert maps["@min"] == {(): 1}
    assert maps["@max"] == {(): 120}
    assert maps["@avg"] == maps["@stats"] == {(): [120, total]}
    assert last.maps["@avg"].kind == "avg"
    assert maps["@hist"] == {(): [1, 2, 4, 8, 16, 32, 57]}
    assert maps["@lhist"] == {(): [9, *[10] * 9, 21]}
    assert sorted(maps["@by"].values()) == [40, 40, 40]


def test_snapshots_only_grow_and_none_is_cleared(unit):
    # GIVEN
    seen: list[int] = []
    with running(unit) as wanted, podscope.trace(
        CALLS, f"unit/{unit.name}", interval=0.1
    ) as trace:  # fmt: skip
        answers = iter(trace)
        first(answers)

        # WHEN it goes on through several snapshots
        for _ in range(5):
            wanted.call(50)
            until(lambda: seen_count(next(answers)) is not None, "an answer")
            seen.append(seen_count(next(answers)) or 0)
        last = rest(trace, answers)

    # THEN
    assert seen == sorted(seen)
    assert last.maps["@calls"].to_dict() == {(): 250}


def seen_count(answer: Answer) -> int | None:
    return answer.maps["@calls"].to_dict().get((), 0) if "@calls" in answer.maps else None


def test_a_full_map_is_told(unit, monkeypatch):
    # GIVEN room for four keys
    monkeypatch.setenv("BPFTRACE_MAP_KEYS_MAX", "4")
    program = "tracepoint:syscalls:sys_enter_getppid { @n++; @[@n] = count(); }"

    # WHEN
    with running(unit) as wanted, podscope.trace(
        program, f"unit/{unit.name}", interval=0.1
    ) as trace:  # fmt: skip
        answers = iter(trace)
        first(answers)
        wanted.call(10)
        last = rest(trace, answers)

    # THEN
    assert len(last.maps["@"]) == 4
    assert trace.full == {"@": 4}


def test_lines_are_there_or_counted_as_lost(unit):
    # GIVEN more lines than bpftrace's buffer holds
    program = 'tracepoint:syscalls:sys_enter_getppid { printf("%d\\n", tid); }'
    lines = 0

    # WHEN
    with running(unit) as wanted, podscope.trace(
        program, f"unit/{unit.name}", interval=0.1
    ) as trace:  # fmt: skip
        answers = iter(trace)
        first(answers)
        worker = threading.Thread(target=lambda: (wanted.call(150_000), trace.stop()))
        worker.start()
        for answer in answers:
            lines += len(answer.lines)
        worker.join()

    # THEN
    assert "last_values" not in trace.lost
    assert lines + trace.lost.get("lines", 0) == 150_000


def test_bpftrace_runs_in_a_cgroup_of_its_own_with_limits():
    with podscope.trace(CALLS, interval=0.1) as trace:
        first(iter(trace))
        if not trace._limits.limited:
            pytest.skip("this host lets no cgroup with limits be made")
        inside = Path(f"/proc/{trace._child.pid}/cgroup").read_text()
        made = list(trace._limits._made)
    assert "podscope-trace-" in inside
    assert not any(directory.exists() for directory in made)


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("tracepoint:syscalls:sys_enter_nothing { @ = count(); }", "tracepoint"),
        ("kprobe:no_such_function_at_all { @ = count(); }", "no_such_function_at_all"),
        ("BEGIN { @a = nonsense; }", "nonsense"),
        ('BEGIN { system("true"); }', "unsafe"),
    ],
)
def test_a_program_that_bpftrace_refuses_is_an_error_with_its_reason(program, told):
    with pytest.raises(PodscopeError) as refused, podscope.trace(program) as trace:
        list(trace)
    assert str(refused.value).startswith("bpftrace: ")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_program_whose_language_is_not_known_runs_as_it_is():
    # GIVEN a program with a mistake that bpftrace finds, too
    with podscope.trace("BEGIN { $$ }") as trace:
        # WHEN
        with pytest.raises(PodscopeError, match="bpftrace: "):
            list(trace)

        # THEN
        assert trace.notes[0].startswith("line 1, column 9: not expected here")


class Run:
    """``podscope run`` as a process, with its output as it comes."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "podscope", "run", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.bpftrace: list[int] = []

    def wait_for(self, wanted: str) -> None:
        """Read lines up to one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == f"{wanted}\n":
                self.bpftrace = bpftraces_below(self.process.pid)
                return
        pytest.fail(f"no line {wanted!r}: {self.process.communicate()}")

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out, err


@pytest.fixture
def caller(unit) -> Iterator[Caller]:
    with running(unit) as made:
        yield made


def test_the_first_interrupt_prints_the_maps_and_ends(unit, caller):
    # GIVEN
    run = Run("-e", CALLS + READY, f"unit/{unit.name}", "--interval", "100ms")
    run.wait_for("ready")
    caller.call(55)

    # WHEN
    run.process.send_signal(signal.SIGINT)
    code, out, err = run.end()

    # THEN
    assert code == 0, err
    assert "@calls: 55\n" in out
    assert out.endswith(("nothing lost\n", f"{LAST_LINES}\n"))
    assert run.bpftrace and all(is_gone(pid) for pid in run.bpftrace)


def test_a_terminal_shows_maps_live_and_ctrl_c_leaves_them_there(unit, caller):
    # GIVEN a terminal with podscope in its foreground
    command = [sys.executable, "-m", "podscope", "run", "-e", CALLS, f"unit/{unit.name}"]
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        os.execv(command[0], [*command, "--interval", "100ms"])
    seen = ""
    for _ in range(100):
        if "@calls" in seen:
            break
        caller.call(1)  # a counter shows once it has counted
        seen += _shown(terminal, seconds=0.1)

    # WHEN Ctrl-C is typed
    caller.call(1000)
    os.write(terminal, b"\x03")
    seen += _shown(terminal)
    _, status = os.waitpid(process, 0)
    os.close(terminal)

    # THEN
    left = seen.rpartition("\x1b[?1049l")[2]
    assert os.waitstatus_to_exitcode(status) == 0
    assert "Ctrl-C ends it" in seen
    counted = int(left.removeprefix("@calls: ").partition("\r\n")[0])
    assert 1001 <= counted <= 1101
    assert left.endswith("nothing lost\r\n")


def _shown(terminal: int, seconds: float = SECONDS) -> str:
    """What a terminal is sent, until it is silent for a while or closed."""
    seen = ""
    while select.select([terminal], [], [], seconds)[0]:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # the other end is closed
            return seen
        seen += piece.decode()
    return seen


def test_the_second_interrupt_leaves_at_once():
    # GIVEN a bpftrace that does not answer
    run = Run("-e", CALLS + READY)
    run.wait_for("ready")
    os.kill(run.bpftrace[0], signal.SIGSTOP)

    # WHEN
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    run.process.send_signal(signal.SIGINT)
    code, _, _ = run.end()

    # THEN
    assert code == 130
    assert all(is_gone(pid) for pid in run.bpftrace)


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1, 0.2])
def test_an_interrupt_before_the_program_has_begun_is_a_clean_end(seconds):
    # GIVEN
    with podscope.trace(CALLS) as trace:
        # WHEN
        time.sleep(seconds)
        trace.stop()

        # THEN
        *_, last = trace
    assert last.last


def test_nothing_stays_attached_when_podscope_is_killed():
    # GIVEN
    run = Run("-e", CALLS + READY)
    run.wait_for("ready")

    # WHEN
    run.process.kill()
    run.end()

    # THEN
    assert run.bpftrace
    until(lambda: all(is_gone(pid) for pid in run.bpftrace), "the end of bpftrace")
    # The next trace removes the empty cgroups that it has left.
    with podscope.trace(CALLS):
        pass
    left = list(Path("/sys/fs/cgroup").glob(f"*/**/podscope-trace-{run.process.pid}-*"))
    assert left == []


def test_bpftrace_that_is_killed_is_an_error():
    # GIVEN
    run = Run("-e", CALLS + READY)
    run.wait_for("ready")

    # WHEN
    os.kill(run.bpftrace[0], signal.SIGKILL)
    code, _, err = run.end()

    # THEN
    assert (code, err) == (1, "podscope: bpftrace: ended by signal 9\n")


def test_the_deadline_ends_a_trace_with_its_maps(unit, caller):
    # GIVEN
    target = f"unit/{unit.name}"
    run = Run("-e", CALLS + READY, target, "--deadline", "6", "-o", "json")
    run.wait_for('{"kind": "line", "text": "ready\\n"}')

    # WHEN
    caller.call(12)
    code, out, err = run.end()

    # THEN
    lines = [json.loads(line) for line in out.splitlines()]
    maps = {one["name"]: one["entries"] for one in lines if one["kind"] == "map"}
    assert code == 0, err
    assert maps == {"@calls": [{"key": [], "value": 12}]}
    assert lines[-1]["kind"] == "summary"
    assert lines[-1]["lost"] in ({}, {"lines": 1}) and lines[-1]["target"] == target


def test_maps_as_csv_are_read_by_a_reader_of_csv(unit, caller):
    # GIVEN
    program = 'tracepoint:syscalls:sys_enter_getppid { @["a,\\"b", pid] = count(); }' + READY
    run = Run("-e", program, f"unit/{unit.name}", "-o", "csv")
    assert run.process.stderr is not None
    assert select.select([run.process.stderr], [], [], SECONDS)[0]  # lines that are no rows
    caller.call(3)

    # WHEN
    run.process.send_signal(signal.SIGINT)
    code, out, _ = run.end()

    # THEN
    rows = list(csv.DictReader(out.splitlines()))
    assert code == 0
    assert [(row["key"], row["value"]) for row in rows] == [(f'a,"b,{caller.pid}', "3")]


def test_output_goes_to_a_file_or_into_a_directory(tmp_path):
    # GIVEN
    program = 'BEGIN { printf("hello\\n"); exit(); }'

    # WHEN
    into = Run("-e", program, "--output", f"{tmp_path}/").end()
    onto = Run("-e", program, "--output", f"{tmp_path}/x.json", "-o", "json").end()

    # THEN
    assert (into[0], into[1], onto[0], onto[1]) == (0, "", 0, "")
    (made,) = tmp_path.glob("podscope-trace-*.txt")
    assert made.read_text().startswith("hello\n")
    assert json.loads((tmp_path / "x.json").read_text().splitlines()[0]) == {
        "kind": "line",
        "text": "hello\n",
    }


def test_arguments_are_positional_parameters():
    code, out, _ = Run("-e", 'BEGIN { printf("%s %d\\n", str($1), $2); exit(); }',
                       "--args", "a b", "--args", "7").end()  # fmt: skip
    assert (code, out.splitlines()[0]) == (0, "a b 7")


def test_traces_of_two_places_become_one_exact_answer(tmp_path):
    # GIVEN two traces at once, each of its own unit
    root = Path(find_cgroup2())
    names = [f"podscope-test-{os.getpid()}-{place}.service" for place in ("one", "two")]
    program = "tracepoint:syscalls:sys_enter_getppid { @n = count(); @h = hist(5); }"
    with (
        cgroup(root / names[0]) as one,
        cgroup(root / names[1]) as two,
        running(one) as first_caller,
        running(two) as second_caller,
    ):
        runs = [
            Run("-e", program, f"unit/{name}", "-o", "snapshots", "--interval", "100ms",
                "--output", f"{tmp_path}/{place}.trace")
            for place, name in enumerate(names)
        ]  # fmt: skip
        for place in range(2):
            until(partial(_has_answer, tmp_path / f"{place}.trace"), "a first answer")

        # WHEN
        first_caller.call(300)
        second_caller.call(45)
        for run in runs:
            run.process.send_signal(signal.SIGINT)
        assert [run.end()[0] for run in runs] == [0, 0]
    merged = subprocess.run(
        [sys.executable, "-m", "podscope", "get", "-o", "json", *map(str, tmp_path.glob("*"))],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    # THEN
    told = [json.loads(line) for line in merged.splitlines()]
    maps = {one["name"]: one["entries"] for one in told if one["kind"] == "map"}
    assert maps["@n"] == [{"key": [], "value": 345}]
    assert maps["@h"] == [{"key": [], "buckets": [{"min": 4, "max": 7, "count": 345}]}]
    assert told[-1]["whole"] is True


def _has_answer(path: Path) -> bool:
    return path.exists() and '"kind":"answer"' in path.read_text()


def test_parts_of_a_target_are_kept_apart_by_the_names_that_they_were_given(tmp_path):
    # GIVEN two units in one trace, and one that is gone
    root = Path(find_cgroup2())
    names = [f"podscope-test-{os.getpid()}-{place}.service" for place in ("left", "right")]
    program = (
        "tracepoint:syscalls:sys_enter_getppid { @ = count(); @by[comm, pid > 0] = sum(2); "
        'printf("call\\n"); print((comm, 7)); @last = 1; }'
    )
    with (
        cgroup(root / names[0]) as one,
        cgroup(root / names[1]) as two,
        running(one) as left,
        running(two) as right,
    ):
        file = tmp_path / "x.trace"
        run = Run(
            "-e", program, *(f"unit/{name}" for name in names), "unit/no-such-unit",
            "--name", "left", "--name", "right", "--name", "gone", "--by", "pod",
            "-o", "snapshots", "--interval", "100ms", "--output", str(file),
        )  # fmt: skip
        until(partial(_has_answer, file), "a first answer")

        # WHEN
        left.call(30)
        right.call(4)
        # What bpftrace has not printed yet when it is told to end, it never prints.
        until(lambda: file.read_text().count('"value":') == 34, "every line")
        run.process.send_signal(signal.SIGINT)
        code, _, errors = run.end()

    # THEN
    assert code == 0, errors
    told = reports.read(file.read_text().splitlines(keepends=True), "x")
    assert told.maps["@"].to_dict() == {("left",): 30, ("right",): 4}
    sums = {(key[0], key[2]): value for key, value in told.maps["@by"].to_dict().items()}
    assert sums == {("left", 1): 60, ("right", 1): 8}
    calls = [one.whose for one in told.lines if isinstance(one, Text)]
    assert (calls.count("left"), calls.count("right")) == (30, 4)
    values = [(one.whose, one.value[1]) for one in told.lines if isinstance(one, Value)]
    assert values.count(("left", 7)) == 30
    assert any("gone: " in note for note in told.notes)
    assert any("@last: cannot be kept apart by pod" in note for note in told.notes)


def test_a_connection_to_the_stop_port_ends_a_trace_with_its_maps(unit, caller):
    # GIVEN
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run = Run("-e", f"{CALLS} {READY}", f"unit/{unit.name}", "-o", "json", "--stop-port", str(port))
    assert run.process.stdout is not None
    assert "ready" in run.process.stdout.readline()
    caller.call(12)

    # WHEN
    with socket.create_connection(("127.0.0.1", port), SECONDS) as asking:
        assert asking.recv(16) == b"ok\n"
    code, out, errors = run.end()

    # THEN
    assert code == 0, errors
    told = [json.loads(line) for line in out.splitlines()]
    (calls,) = [one for one in told if one["kind"] == "map"]
    assert calls["entries"] == [{"key": [], "value": 12}]


def test_sinks_get_maps_as_they_stand_at_the_end_and_every_line(unit, caller, tmp_path):
    # GIVEN
    config = tmp_path / "podscope.yaml"
    config.write_text(f"sinks: [{{type: files, path: {tmp_path}/rows}}]\n")
    program = CALLS.replace("@calls", "@calls[comm]").replace("count()", "sum(3)")
    words = ("--config", str(config), "--metric", "calls", "--deadline", "60")
    run = Run("-e", program + READY, f"unit/{unit.name}", *words)
    run.wait_for("ready")
    caller.call(14)

    # WHEN
    run.process.send_signal(signal.SIGINT)
    code, out, err = run.end()

    # THEN
    assert code == 0, err
    assert "podscope: sink files: " in err and "rows sent; nothing lost" in err
    rows = (tmp_path / "rows" / "trace.jsonl").read_text().splitlines()
    told = json.loads(rows[-1])
    assert (told["podscope.trace.metric"], told["podscope.trace.type"]) == ("calls", "sum")
    assert told["podscope.trace.value"] == 42
    assert told["podscope.trace.label.comm"].startswith("python")
    lines = (tmp_path / "rows" / "trace_line.jsonl").read_text().splitlines()
    assert {json.loads(line)["podscope.trace.text"] for line in lines} == {"ready"}
    assert len(lines) == 1 + out.count("ready\n")
