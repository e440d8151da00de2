# SPDX-License-Identifier: Apache-2.0
"""A process id is not enough: whose a socket is, is the program that opened it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conversations.peers import listening
from conversations.peers import port_of
from podscope.pipeline import Watch
from podscope.pipeline import watch as open_watch

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
ASK = (
    "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET /{name} HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n' >&3;"
    " read -r line <&3; exec 3>&-; {then}"
)


@pytest.fixture
def watch(own_cgroup: str) -> Iterator[Watch]:
    with open_watch(kinds=("http",), cgroup=own_cgroup) as opened:
        yield opened


@pytest.fixture
def programs(tmp_path: Path) -> tuple[str, str]:
    """Two programs with names of their own."""
    found = tmp_path / "alpha", tmp_path / "beta"
    for path in found:
        shutil.copy(shutil.which("bash") or "/bin/bash", path)
    return str(found[0]), str(found[1])


@contextmanager
def server() -> Iterator[int]:
    """Answers each connection once; gives the port."""
    with listening() as listener:

        def answer() -> None:
            while True:
                try:
                    end, _ = listener.accept()
                except OSError:
                    return
                with end:
                    _read_head(end)
                    end.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield port_of(listener)


def _read_head(end: socket.socket) -> None:
    """All of it: bash sends each line alone, and a server that goes before ends it (SIGPIPE)."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = end.recv(4096)
        if not piece:
            return
        head += piece


def run(program: str, port: int, then: str = ":") -> int:
    """Asks for the path of the program's name; gives its process id."""
    line = ASK.format(port=port, name=Path(program).name, then=then)
    with subprocess.Popen([program, "-c", line]) as process:
        assert process.wait(20) == 0
        return process.pid


def clients(watch: Watch, port: int) -> dict[str, tuple[str, str]]:
    """By route: names of the workload and the executable on the client's side."""
    found = {}
    for batch in watch.read():
        for row, place in zip(batch.rows, batch.identity, strict=True):
            key, who = row["key"], batch.identities[place]
            if key["port"] == port and key["side"] == 2:
                found[batch.routes[int(key["route"])]] = (who.name, who.executable)
    return found


def test_a_process_that_runs_another_program_is_told_apart(
    watch: Watch, programs: tuple[str, str]
) -> None:
    # GIVEN
    alpha, beta = programs
    with server() as port:
        # WHEN a program asks, then becomes another one, which asks, too
        rest = ASK.format(port=port, name="beta", then=":").replace("'", "'\\''")
        run(alpha, port, then=f"exec {beta} -c '{rest}'")

        # THEN
        assert clients(watch, port) == {"/alpha": ("alpha",) * 2, "/beta": ("beta",) * 2}


def test_a_process_id_that_is_used_again_is_told_apart(
    watch: Watch, programs: tuple[str, str]
) -> None:
    # GIVEN a program that has been seen, and named
    alpha, beta = programs
    with server() as port:
        pid = run(alpha, port)
        seen = clients(watch, port)

        # WHEN another one gets its process id
        for _ in range(100):
            LAST_PID.write_text(str(pid - 1))
            if run(beta, port) == pid:
                break
        else:
            pytest.skip("the process id was not given again in 100 tries")

        # THEN
        assert seen == {"/alpha": ("alpha",) * 2}
        assert clients(watch, port) == {"/beta": ("beta",) * 2}
