# SPDX-License-Identifier: Apache-2.0
"""Sockets that were open before podscope: each belongs to the process that holds it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from podscope.kernel.libbpf import libbpf
from podscope.kernel.maps import HashMap
from podscope.kernel.objects import BpfObject
from podscope.kernel.probes import has_loop
from podscope.kernel.probes import probe
from podscope.pipeline import Watch
from podscope.pipeline import watch as open_watch
from podscope.sources import http
from podscope.sources import loading
from podscope.sources.open_sockets import PROGRAM
from podscope.sources.open_sockets import note_by_descriptors

ITERATOR, DESCRIPTORS = "iterator", "descriptors"
SERVER, CLIENT = 1, 2
REQUEST = b"GET /who HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

# A server with one thread a connection. With `fork` a child holds the same listener, and serves.
SERVE = f"""
import os, socket, sys, threading
listener = socket.create_server(("127.0.0.1", 0))
child = os.fork() if "fork" in sys.argv else None
def serve(end):
    while end.recv(4096):
        end.sendall({ANSWER!r})
def accept():
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
if child:
    print(listener.getsockname()[1], os.getpid(), child, flush=True)
    sys.stdin.read()
    os.kill(child, 9)
elif child is None:
    print(listener.getsockname()[1], os.getpid(), 0, flush=True)
if not child:
    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()
"""


@contextmanager
def server(*arguments: str) -> Iterator[tuple[int, int]]:
    """A server in a process of its own; its port and its number."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        try:
            assert running.stdout is not None
            port, pid, _ = running.stdout.readline().split()
            yield int(port), int(pid)
        finally:
            running.terminate()


@pytest.fixture(params=[ITERATOR, DESCRIPTORS])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either way to find sockets: the object for older kernels has no iterator."""
    if request.param == DESCRIPTORS:
        monkeypatch.setattr(http, "load_newest", load_for_older_kernels)
    elif not has_loop():
        pytest.skip("this kernel takes the object without the iterator (Linux 5.17)")
    return str(request.param)


def load_for_older_kernels(name: str, prepare: Callable[[BpfObject], None]) -> BpfObject:
    return loading._load(f"{name}_v2", prepare)


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Iterator[BpfObject]:
    """The object for older kernels, loaded and not attached."""
    monkeypatch.setattr(http, "load_newest", load_for_older_kernels)
    with http._load(http.HttpOptions(), 1) as program:
        yield program


def ask(end: socket.socket) -> None:
    """One request and its answer."""
    end.sendall(REQUEST)
    got = b""
    while len(got) < len(ANSWER):
        got += end.recv(4096)


def owners(watch: Watch, port: int, wanted: int) -> dict[int, set[tuple[int, str]]]:
    """Numbers and executables of the processes that exchanges with a port went to, by side."""
    found: dict[int, set[tuple[int, str]]] = {SERVER: set(), CLIENT: set()}
    count = 0
    deadline = time.monotonic() + 5
    while count < wanted and time.monotonic() < deadline:
        for batch in watch.read():
            for row, identity in zip(batch.rows, batch.identity, strict=True):
                if row["key"]["port"] == port:
                    who = batch.identities[identity]
                    found[int(row["key"]["side"])].add((who.pid, who.executable))
                    count += int(row["count"])
        time.sleep(0.01)
    return found


def executable(pid: int) -> str:
    return Path(os.readlink(f"/proc/{pid}/exe")).name


def closed_processes() -> list[str]:
    """Processes that even this one may not look into (in a container, its runtime's)."""
    closed = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            for number in os.listdir(directory / "fd"):
                os.readlink(directory / "fd" / number)
        except PermissionError:
            closed.append(directory.name)
        except OSError:
            continue
    return closed


def pid_of(program: BpfObject, end: socket.socket) -> int | None:
    """The owner noted with a socket; None: nothing is noted."""
    value = note_of(program, end)
    return None if value is None else int(value["pid"])


def note_of(program: BpfObject, end: socket.socket) -> np.ndarray | None:
    notes = program.map("notes")
    value = np.zeros((), notes.value)
    key = np.array(end.fileno(), "i4")
    code = libbpf().call("bpf_map_lookup_elem", notes.fd, key.ctypes.data, value.ctypes.data)
    return None if code < 0 else value


def test_the_two_objects_differ_in_the_iterator(older: BpfObject) -> None:
    # GIVEN the object for older kernels / WHEN / THEN it is what forces the second way here
    assert PROGRAM not in older.programs()
    with BpfObject.open("http") as newest:
        assert PROGRAM in newest.programs()


def test_doctor_says_which_way_this_kernel_goes() -> None:
    # GIVEN / WHEN
    findings = {finding.feature: finding for finding in probe()}

    # THEN
    owners = findings["owners of older sockets"]
    assert owners.ok
    assert owners.detail.startswith("finds and notes" if has_loop() else "process by process")


def test_an_older_connection_belongs_to_the_processes_at_its_ends(way: str) -> None:
    # GIVEN a server in another process, and a connection to it
    with server() as (port, pid), socket.create_connection(("127.0.0.1", port)) as client:
        ask(client)

        # WHEN podscope starts, and the connection goes on
        with open_watch(kinds=("http",)) as watch:
            for _ in range(5):
                ask(client)

            # THEN what is counted there is that server's, and this process's
            found = owners(watch, port, 4)
            assert found[SERVER] == {(pid, executable(pid))}
            assert found[CLIENT] == {(os.getpid(), executable(os.getpid()))}


def test_a_new_connection_to_an_older_listener_belongs_to_who_listens(way: str) -> None:
    # GIVEN a server in another process
    with server() as (port, pid):
        # WHEN podscope starts, and a client connects then
        with (
            open_watch(kinds=("http",)) as watch,
            socket.create_connection(("127.0.0.1", port)) as client,
        ):
            ask(client)

            # THEN
            found = owners(watch, port, 2)
        assert found[SERVER] == {(pid, executable(pid))}
        assert found[CLIENT] == {(os.getpid(), executable(os.getpid()))}


def test_a_listener_that_a_child_holds_too_belongs_to_the_parent(way: str) -> None:
    # GIVEN a server that has forked: the child accepts on the parent's listener
    with server("fork") as (port, pid):
        # WHEN podscope starts, and a client connects then
        with (
            open_watch(kinds=("http",)) as watch,
            socket.create_connection(("127.0.0.1", port)) as client,
        ):
            ask(client)

            # THEN the first process that holds the listener owns it
            found = owners(watch, port, 2)
        assert found[SERVER] == {(pid, executable(pid))}


def test_only_tcp_sockets_are_noted(older: BpfObject) -> None:
    # GIVEN sockets of several kinds
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp4,
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as tcp6,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unix,
    ):
        # WHEN
        walk = note_by_descriptors(older)

        # THEN
        assert [pid_of(older, end) for end in (tcp4, tcp6)] == [os.getpid()] * 2
        assert [pid_of(older, end) for end in (udp, unix)] == [None] * 2
        assert walk.noted >= 2


def test_a_note_without_an_owner_gets_one_and_keeps_the_rest(older: BpfObject) -> None:
    # GIVEN sockets with notes: one made by a packet, one of another process
    notes = older.map("notes")
    with socket.socket() as packet, socket.socket() as other:
        for end, pid in ((packet, 0), (other, 1)):
            value = np.zeros((), notes.value)
            value["pid"], value["flags"], value["next"] = pid, 1, (7, 9)
            key = np.array(end.fileno(), "i4")
            pointers = key.ctypes.data, value.ctypes.data
            libbpf().check("note", "bpf_map_update_elem", notes.fd, *pointers, 0)

        # WHEN
        note_by_descriptors(older)

        # THEN the first has an owner, the second keeps its own
        for end, pid in ((packet, os.getpid()), (other, 1)):
            found = note_of(older, end)
            assert found is not None
            assert (found["pid"], found["flags"], found["next"].tolist()) == (pid, 1, [7, 9])


def test_executables_are_noted_by_their_base_name(older: BpfObject) -> None:
    # GIVEN a process that has a socket
    with server() as (_, pid):
        # WHEN
        note_by_descriptors(older)

        # THEN
        found = HashMap.of(older.map("processes")).lookup(pid)
        assert found is not None
        assert bytes(found["executable"]).rstrip(b"\0").decode() == executable(pid)


def test_processes_and_sockets_that_go_meanwhile_are_passed_over(older: BpfObject) -> None:
    # GIVEN processes that come and go, each with a socket that it closes and opens
    churn = (
        "import os, socket\n"
        "while True:\n"
        "    if not os.fork():\n"
        "        for _ in range(20): socket.socket().close()\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", churn]) as running:
        try:
            # WHEN the walk is made many times
            walks = [note_by_descriptors(older) for _ in range(20)]
        finally:
            running.kill()

    # THEN nothing is said of those that are gone
    assert {walk.refused for walk in walks} == {len(closed_processes())}


def test_no_descriptor_is_left_open(older: BpfObject) -> None:
    # GIVEN
    note_by_descriptors(older)
    before = os.listdir("/proc/self/fd")

    # WHEN
    note_by_descriptors(older)

    # THEN
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_sockets_of_other_processes_stay_as_they_are(older: BpfObject) -> None:
    # GIVEN a server, and a program that wants its own sockets to time out
    with server() as (port, _):
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(1.0)
        try:
            # WHEN
            note_by_descriptors(older)
        finally:
            socket.setdefaulttimeout(before)

        # THEN the server's listener is not made non-blocking: it goes on to accept
        time.sleep(0.05)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            ask(client)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not here")
def test_without_the_right_to_trace_there_is_a_warning() -> None:
    # GIVEN a podscope that may do all but look into other processes
    code = (
        "from podscope.sources import http\n"
        "from podscope.sources import loading\n"
        "http.load_newest = lambda name, prepare: loading._load(f'{name}_v2', prepare)\n"
        "http.HttpSource().close()\n"
    )
    drop = ["setpriv", "--inh-caps=-sys_ptrace", "--bounding-set=-sys_ptrace"]

    # WHEN it starts
    with server():
        done = subprocess.run(
            [*drop, sys.executable, "-c", code],
            capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    # THEN it goes on, and says in a line what is not known and why
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "RuntimeWarning" in line]
    assert len(said) == 1
    assert re.search(
        r"sockets that are open already are counted without their process: those of \d+ processes, "
        r"such as \d+ \(.*\): podscope needs CAP_SYS_PTRACE$",
        said[0],
    )


def test_nothing_is_said_where_all_went_well(way: str) -> None:
    # GIVEN processes that may be looked into, perhaps not all
    refused = way == DESCRIPTORS and closed_processes()

    # WHEN podscope starts
    with warnings.catch_warnings(record=True) as said, open_watch(kinds=("http",)):
        pass

    # THEN it warns only of those that may not
    assert len(said) == (1 if refused else 0)


def test_the_walk_takes_sockets_by_the_thousand(older: BpfObject) -> None:
    # GIVEN more sockets than a batch of anything, in pairs of a number and its note
    ends = [socket.socket() for _ in range(500)]
    try:
        # WHEN
        walk = note_by_descriptors(older)

        # THEN
        assert {pid_of(older, end) for end in ends} == {os.getpid()}
        assert walk.noted >= len(ends)
    finally:
        for end in ends:
            end.close()
