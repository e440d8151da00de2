# SPDX-License-Identifier: Apache-2.0
"""Every shipped script sees what a program in its target does, and not its neighbour."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import podscope
from podscope.kernel.probes import find_cgroup2
from podscope.trace import scripts
from podscope.trace.bpftrace import find
from podscope.trace.decode import Value
from podscope.trace.session import Answer

pytestmark = pytest.mark.skipif(
    shutil.which("bpftrace") is None, reason="bpftrace is not installed: apt install bpftrace"
)

# Does what each line that it reads says.
DOER = """
import os, signal, socket, struct, subprocess, sys, threading, time
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
def talk(reset=False):
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    client.sendall(b"x" * 1000)
    got = 0
    while got < 1000:
        got += len(server.recv(4096))
    server.sendall(b"y" * 50)
    client.recv(4096)
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    time.sleep(0.05)
    server.close()
    time.sleep(0.05)
def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""
LIBC = next(
    line.split()[-1]
    for line in Path("/proc/self/maps").read_text().splitlines()
    if "libc.so" in line
)
COMMON = ("time", "pid", "cpu", "cgroup", "socket", "sport", "dport", "saddr", "daddr", "program")
TCP = ("tcpaccept", "tcpconnect", "tcplife", "tcpstate", "tcpwin", "tcpretrans", "tcpreset")


class Doer:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", DOER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.name = Path(f"/proc/{self.pid}/comm").read_text().strip()
        self.do("pass")

    def do(self, line: str) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def doing(cgroup: Path | None = None) -> Iterator[Doer]:
    doer = Doer()
    try:
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(doer.pid))
        yield doer
    finally:
        doer.close()


@pytest.fixture(scope="module")
def unit() -> Iterator[Path]:
    """The cgroup of a unit of a name that nobody else has."""
    made = Path(find_cgroup2()) / f"podscope-test-{os.getpid()}-{os.urandom(3).hex()}.service"
    made.mkdir()
    try:
        yield made
    finally:
        for _ in range(200):
            with suppress(OSError):
                made.rmdir()
                break
            time.sleep(0.01)


@pytest.fixture(scope="module")
def doer(unit) -> Iterator[Doer]:
    with doing(unit) as made:
        yield made


@pytest.fixture(scope="module")
def neighbour() -> Iterator[Doer]:
    with doing() as made:
        yield made


class Seen:
    """What a script has shown: rows by their columns, maps by name."""

    def __init__(self, rows: list[dict[str, Any]], last: Answer) -> None:
        self.rows = rows
        self.maps = {name: one.to_dict() for name, one in last.maps.items()}


def ran(name: str, unit: Path, work: list[tuple[Doer, str]], *arguments: str) -> Seen:
    """Run a script, confined to a unit, while some work is done."""
    script = scripts.load(name)
    rows: list[dict[str, Any]] = []
    with podscope.trace(
        script.text, f"unit/{unit.name}", interval=0.1, arguments=arguments, deadline=30
    ) as trace:
        answers = iter(trace)
        while not trace._output.begun:
            next(answers)
        for one, line in work:
            one.do(line)
        # bpftrace may leave in its buffer what comes just before it is told to end; podscope counts
        # that as lost.
        time.sleep(0.3)
        trace.stop()
        for answer in answers:
            last = answer
            rows += [
                dict(zip(script.columns, scripts.row(line.value, script.columns), strict=True))
                for line in answer.lines
                if isinstance(line, Value)
            ]
        assert trace.lost == {}
    assert not script.columns or "@" not in "".join(last.maps), "a script's own memory is shown"
    return Seen(rows, last)


def test_every_script_is_tested_here():
    tested = {*COUNTED, *ROWS, *TCP, "tcprtt", "bashreadline"}
    tested |= {"function-returns", "function-calls"}
    assert tested == set(scripts.names())


def test_every_script_says_what_it_shows():
    for name in scripts.names():
        script = scripts.load(name)
        assert 10 < len(script.help) < 90, name
        assert not script.help.endswith("."), name


COUNTED = {
    "syscalls": ("os.getppid()", "@calls"),
    "syscalls-by-probe": ("os.getppid()", "@calls"),
    "syscall-errors": ("os.path.exists('/nowhere')", "@errors"),
    "syscall-latency": ("time.sleep(0.01)", "@ns"),
    "writes": ("os.write(2, b'')", "@writes"),
    "write-sizes": ("os.write(os.open('/dev/null', 1), b'x' * 100)", "@bytes"),
    "read-sizes": ("os.read(os.open('/dev/zero', 0), 100)", "@bytes"),
    "forks": ("threading.Thread(target=int).start()", "@forks"),
    "page-faults": ("bytearray(10**7)", "@faults"),
    "cpu": ("spin(0.3)", "@samples"),
    "cpu-kernel": ("spin(0.3)", "@samples"),
    "cpu-user": ("spin(0.3)", "@samples"),
    "disk-sizes": ("open('SCRATCH', 'wb').write(b'x' * 8192); os.sync()", "@bytes"),
}


@pytest.mark.parametrize("name", COUNTED)
def test_script_that_counts_has_the_target_in_it(name, unit, doer, neighbour, tmp_path):
    # GIVEN
    line, wanted = COUNTED[name]
    line = line.replace("SCRATCH", str(tmp_path / "x"))

    # WHEN
    seen = ran(name, unit, [(neighbour, line), (doer, line)])

    # THEN
    if name == "disk-sizes" and not seen.maps.get(wanted):
        pytest.skip("this file system gives its requests to a disk from another thread")
    assert seen.maps[wanted]


ROWS = {
    "write-buffers": (
        "os.write(os.open('/dev/null', 1), b'hello\\n')",
        {"text": "hello"},
    ),
    "opens": ("os.path.exists('/'); open('/dev/null').close()", {"file": "/dev/null", "error": 0}),
    "execs": ("subprocess.run(['/bin/true'])", {"program": "true", "file": "/bin/true"}),
    "exits": ("subprocess.run(['/bin/true'])", {"program": "true"}),
    "signals": ("os.kill(os.getpid(), 10)", {"signal": 10}),
    "kills": ("os.kill(os.getpid(), 10)", {"signal": 10}),
    "syncs": ("os.sync()", {"call": "tracepoint:syscalls:sys_enter_sync"}),
    "getaddrinfo": ("socket.getaddrinfo('localhost', 80)", {"name": "localhost"}),
}


@pytest.mark.parametrize("name", ROWS)
def test_script_of_rows_has_the_row_of_the_target_alone(name, unit, doer, neighbour):
    # GIVEN
    line, expected = ROWS[name]
    if name == "execs" and find().version == (0, 23):
        expected = {"program": "true"}  # it reads the file's name as empty
    arguments = {"getaddrinfo": (LIBC,), "write-buffers": (doer.name,)}.get(name, ())

    # WHEN
    start = int(time.time())
    seen = ran(name, unit, [(neighbour, line), (doer, line)], *arguments)

    # THEN
    if "text" in expected:  # newer versions keep the last of the bytes for the end of a text
        seen.rows[:] = [row | {"text": row["text"].rstrip()} for row in seen.rows]
    found = [row for row in seen.rows if row.items() >= expected.items()]
    assert len(found) == 1
    assert name in ("execs", "exits") or found[0]["pid"] == doer.pid
    assert start <= found[0].get("time", start) <= time.time()


def shared(unit: Path) -> dict[str, Any]:
    """What all rows of TCP of a talk on loopback in the unit have."""
    return {"cgroup": unit.stat().st_ino, "saddr": "127.0.0.1", "daddr": "127.0.0.1"}


@pytest.mark.parametrize("name", TCP)
def test_scripts_of_tcp_begin_with_the_same_columns(name):
    assert scripts.load(name).columns[: len(COMMON)] == COMMON


def test_tcpaccept_shows_the_connection_and_its_queue(unit, doer, neighbour):
    seen = ran("tcpaccept", unit, [(neighbour, "talk()"), (doer, "talk()")])
    (row,) = seen.rows
    assert row.items() >= (shared(unit) | {"pid": doer.pid, "qlen": 0}).items()
    assert row["qmax"] > 0 and row["sport"] > 0 and row["dport"] > 0


def test_tcpconnect_shows_the_client_alone(unit, doer, neighbour):
    (row,) = ran("tcpconnect", unit, [(neighbour, "talk()"), (doer, "talk()")]).rows
    assert row.items() >= (shared(unit) | {"pid": doer.pid, "program": doer.name}).items()


def test_tcplife_shows_both_ends_with_their_bytes(unit, doer, neighbour):
    seen = ran("tcplife", unit, [(neighbour, "talk()"), (doer, "talk()")])
    one, other = sorted(seen.rows, key=lambda row: row["rx_bytes"])
    assert one.items() >= shared(unit).items() and other.items() >= shared(unit).items()
    assert one["rx_bytes"] in (50, 51) and other["rx_bytes"] in (1000, 1001)
    assert (one["sport"], one["dport"]) == (other["dport"], other["sport"])
    assert one["tx_bytes"] in (1000, 1001, 1002) and other["tx_bytes"] in (50, 51)
    assert one["duration_us"] > 0


def test_tcpstate_shows_the_way_of_a_client(unit, doer, neighbour):
    seen = ran("tcpstate", unit, [(neighbour, "talk()"), (doer, "talk()")])
    changes = [(row["oldstate"], row["newstate"]) for row in seen.rows]
    for step in (("CLOSE", "SYN_SENT"), ("SYN_SENT", "ESTABLISHED"), ("SYN_RECV", "ESTABLISHED"),
                 ("ESTABLISHED", "CLOSE_WAIT"), ("CLOSE", "LISTEN")):  # fmt: skip
        assert changes.count(step) == 1, step


def test_tcpwin_shows_the_window_when_a_program_has_read(unit, doer, neighbour):
    seen = ran("tcpwin", unit, [(neighbour, "talk()"), (doer, "talk()")])
    assert len(seen.rows) >= 2
    assert all(row.items() >= shared(unit).items() for row in seen.rows)
    assert all(row["snd_cwnd"] > 0 and row["sndbuf"] > 0 for row in seen.rows)


def test_tcpreset_shows_who_was_reset(unit, doer, neighbour):
    talks = [(neighbour, "talk(reset=True)"), (doer, "talk(reset=True)")]
    (row,) = ran("tcpreset", unit, talks).rows
    assert row.items() >= (shared(unit) | {"rx_bytes": 1000}).items()


def test_tcprtt_has_the_peer(unit, doer, neighbour):
    seen = ran("tcprtt", unit, [(neighbour, "talk()"), (doer, "talk()")])
    assert set(seen.maps["@rtt_us"]) == {("::ffff:127.0.0.1",)}


@pytest.fixture
def blackhole() -> Iterator[str]:
    """A network namespace whose one address nobody answers on."""
    name = f"podscope-test-{os.getpid()}"
    commands = (
        f"ip netns add {name}",
        f"ip -n {name} link add d0 type veth peer name d1",
        f"ip -n {name} link set d1 up",
        f"ip -n {name} addr add 192.0.2.1/24 dev d0",
        f"ip -n {name} link set d0 up",
        f"ip -n {name} neigh add 192.0.2.2 lladdr 02:00:00:00:00:01 dev d0",
    )
    try:
        for command in commands:
            if subprocess.run(command.split(), check=False, capture_output=True).returncode:
                pytest.skip(f"this host cannot do: {command}")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_tcpretrans_shows_a_syn_that_nobody_answers(unit, doer, blackhole):
    # GIVEN a program that connects to where nobody answers
    connect = (
        "import socket; s = socket.socket(); s.settimeout(1.6);\n"
        "try: s.connect(('192.0.2.2', 80))\nexcept OSError: pass"
    )
    command = ["ip", "netns", "exec", blackhole, sys.executable, "-c", connect]

    # WHEN
    rows = ran("tcpretrans", unit, [(doer, f"subprocess.run({command!r})")]).rows

    # THEN
    assert [(row["daddr"], row["dport"], row["state"]) for row in rows] == [
        ("192.0.2.2", 80, "SYN_SENT")
    ]


@pytest.fixture
def typing_to_bash(unit) -> Iterator[tuple[int, int]]:
    """A bash of the target on a terminal: its process and the terminal."""
    if subprocess.run("nm -D /bin/bash | grep -q ' readline$'", shell=True, check=False).returncode:
        pytest.skip("this bash does not name its readline()")
    bash, terminal = pty.fork()
    if bash == 0:
        os.execv("/bin/bash", ["bash", "--norc", "-i"])
    try:
        (unit / "cgroup.procs").write_text(str(bash))
        time.sleep(0.5)
        yield bash, terminal
    finally:
        os.kill(bash, signal.SIGKILL)
        os.waitpid(bash, 0)
        os.close(terminal)


@pytest.mark.parametrize("name", ["bashreadline", "function-returns", "function-calls"])
def test_script_for_functions_of_a_program_sees_them(name, typing_to_bash):
    # GIVEN
    bash, terminal = typing_to_bash
    text = scripts.load(name).text
    rows: list[Any] = []

    # WHEN a line is typed
    with podscope.trace(
        text, f"pid/{bash}", interval=0.1, arguments=("readline",), deadline=20
    ) as trace:
        answers = iter(trace)
        while not trace._output.begun:
            next(answers)
        # It waits in a readline() that began before the probe was there.
        for line in (b":\n", b"echo typed\n"):
            os.write(terminal, line)
            time.sleep(0.3)
        trace.stop()
        for answer in answers:
            rows += [line.value for line in answer.lines if isinstance(line, Value)]

    # THEN
    if name == "function-calls":
        assert answer.maps["@calls"].to_dict() == {("readline",): 2}
        return
    assert [row[1:3] for row in rows] == [[bash, "bash"]]
    assert name == "function-returns" or rows[0][3] == "echo typed"


def test_rows_are_json_and_csv_by_their_columns(unit, doer):
    # GIVEN
    for form in ("json", "csv"):
        run = subprocess.Popen(
            [sys.executable, "-m", "podscope", "run", "kills", f"unit/{unit.name}", "-o", form],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert run.stdout is not None

        # WHEN
        header = run.stdout.readline() if form == "csv" else ""
        row = ""
        for _ in range(60):
            doer.do("os.kill(os.getpid(), 10)")
            time.sleep(0.1)
            if len(_waiting(run.stdout.fileno())):
                row = run.stdout.readline()
                break
        run.send_signal(signal.SIGINT)
        run.communicate()

        # THEN
        if form == "csv":
            assert header == "time,pid,program,signal,target_pid\n"
            assert row.split(",")[1:] == [str(doer.pid), doer.name, "10", f"{doer.pid}\n"]
        else:
            told = json.loads(row)
            assert list(told) == ["kind", "time", "pid", "program", "signal", "target_pid"]
            assert (told["kind"], told["signal"]) == ("row", 10)


def _waiting(descriptor: int) -> list[int]:
    import select

    return select.select([descriptor], [], [], 0)[0]
