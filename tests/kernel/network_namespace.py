# SPDX-License-Identifier: Apache-2.0
"""A program in a network namespace of its own, asked line by line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Each line of input is a Python expression; its value comes back as JSON.
SERVE = """
import ctypes, json, os, socket, struct, subprocess, sys, time
assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
kept = []

def setting(name, value):
    with open(f"/proc/sys/net/{name}", "w") as file:
        file.write(str(value))

def counters():
    lines = [line.split() for line in open("/proc/self/net/netstat") if line.startswith("TcpExt:")]
    return {n: int(v) for n, v in zip(lines[0][1:], lines[1][1:])}

def snmp():
    lines = [line.split() for line in open("/proc/self/net/snmp") if line.startswith("Tcp:")]
    return {n: int(v) for n, v in zip(lines[0][1:], lines[1][1:])}

def ss(*words):
    return subprocess.run(["ss", "-H", *words], capture_output=True, text=True).stdout
"""
LOOP = """
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
"""


class Inside:
    """The program; :meth:`ask` evaluates an expression in it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def ask(self, expression: str) -> Any:
        """Value of a Python expression there, with what its functions do."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(expression.replace("\n", " ") + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the program in the namespace has ended"
        return json.loads(answer)


@contextmanager
def network_namespace(functions: str = "") -> Iterator[Inside]:
    """A network namespace with loopback alone; ``functions`` is code that it runs first."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE + functions + LOOP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        inside = Inside(process)
        try:
            inside.ask("0")
            yield inside
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(10)
