# SPDX-License-Identifier: Apache-2.0
"""Starts a small shop on 127.0.0.1 and its visitors, and a command that watches them.

    python demo/run.py COMMAND...      for example: python demo/run.py sudo podscope up

Everything ends with the command (Ctrl-C), or after an hour. Only the standard library is used.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
SECONDS = 3600
PORTS = {"shop": 18080, "api": 18081, "auth": 18082}
VISITORS = ("browser", "mobile", "crawler")

Process = subprocess.Popen[bytes]


def main(watch: list[str]) -> int:
    """Run the demo around the command ``watch``; returns its exit code."""
    busy = [port for port in PORTS.values() if accepts(port)]
    if busy:
        print(
            f"demo: port {busy[0]} of 127.0.0.1 is in use; end its program first", file=sys.stderr
        )
        return 1
    children: list[Process] = []
    with tempfile.TemporaryDirectory(prefix="podscope-demo-") as directory:
        try:
            for name in PORTS:
                children.append(start(Path(directory), name, "service.py"))
            if not all(wait_for(port) for port in PORTS.values()):
                print("demo: a service did not start", file=sys.stderr)
                return 1
            # Visitors wait a second before they connect, so that they are seen from the start.
            for name in VISITORS:
                children.append(start(Path(directory), name, "visitor.py"))
            return follow(watch)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        finally:
            end(children)


def start(directory: Path, name: str, script: str) -> Process:
    """Start ``script`` as a program called ``name``, so that it has that name in the table."""
    program = named_python(directory, name)
    return subprocess.Popen(
        [program, "-I", str(HERE / script), name, str(SECONDS)],
        stdin=subprocess.DEVNULL,
    )


def named_python(directory: Path, name: str) -> str:
    """A copy of the interpreter called ``name``, or the interpreter if copies do not run here."""
    copy = directory / name
    shutil.copy(os.path.realpath(sys.executable), copy)
    tried = subprocess.run(
        [copy, "-I", "-c", "import http.server"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return str(copy) if tried.returncode == 0 else sys.executable


def follow(command: list[str]) -> int:
    """Run ``command`` in the foreground until it ends; SIGTERM is passed on to it."""
    watching = subprocess.Popen(command)
    # The terminal sends Ctrl-C to the command too: that one decides when to end, we follow.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, pass_on(watching))
    code = watching.wait()
    return code if code >= 0 else 128 - code


def pass_on(process: Process) -> Callable[[int, FrameType | None], None]:
    """A signal handler that sends the signal to ``process``."""

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            process.send_signal(number)
        except PermissionError:
            # sudo's process is root's; its terminal ends it.
            sys.exit(128 + number)

    return handler


def end(children: list[Process]) -> None:
    """End our own children, by their process ids."""
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for(port: int) -> bool:
    """Whether the port accepts connections within five seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if accepts(port):
            return True
        time.sleep(0.05)
    return False


def accepts(port: int) -> bool:
    """Whether somebody listens on the port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python demo/run.py COMMAND...")
    sys.exit(main(sys.argv[1:]))
