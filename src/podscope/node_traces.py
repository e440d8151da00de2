# SPDX-License-Identifier: Apache-2.0
"""Traces that the agent of a node runs: each is ``podscope run`` as a child, whose lines are kept.

It is the same program with the same words as in a Job. The agent keeps the last megabytes of what
it says, until it is deleted or its time is over.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.trace import jobs
from podscope.trace import syntax
from podscope.trace.parse import parse

# Of what a trace says: older lines go, and are counted by who reads.
MOST_BYTES = 8 << 20
# Each is a bpftrace of about a hundred megabytes.
MOST_RUNNING = 4
MOST_KEPT = 50
PAGES = ("begin", "follow", "read", "stop", "list", "delete")
_WAIT_SECONDS = 5.0
# Without it bpftrace asks for the types of all modules, which takes CAP_SYS_ADMIN.
_TYPES = {"BPFTRACE_BTF": "/sys/kernel/btf/vmlinux"}
_FORBIDDEN = ("cat", "system")
_INCLUDE = re.compile(r"^\s*#\s*(include|import)", re.MULTILINE)
_TARGET = re.compile(r"(pod|container)/[0-9a-f-]+")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,120}")


class Asked(msgspec.Struct, frozen=True):
    """A trace as a client asks an agent for it: the same as of a Job.

    Attributes:
        request: the whole trace.
        part: what this node has to do for it.
        nodes: all nodes of the trace, for lists.
    """

    request: jobs.Request
    part: jobs.Part
    nodes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the part."""
        return jobs.job_name(self.request, self.part)


def check(asked: Asked) -> None:
    """Refuses what would give away more than events: files of the agent, or its rights.

    Raises:
        UsageError: the program cannot be read, or does such a thing.
    """
    request = asked.request
    if not _NAME.fullmatch(request.name):
        raise UsageError("what is asked for has no name")
    if request.unsafe or request.rows or request.tracer != "bpftrace":
        raise UsageError("only bpftrace, and safe programs, are for agents: use --way jobs")
    if any(not name.startswith("BPFTRACE_") for name, _ in request.environment):
        raise UsageError("environment: only variables of bpftrace")
    if not all(_TARGET.fullmatch(one) for one in asked.part.targets):
        raise UsageError("targets: not those of a node")
    program = parse(request.program)
    if any(isinstance(n, syntax.Call) and n.name in _FORBIDDEN for n in syntax.walk(program)):
        raise UsageError("cat() and system() are not for agents: use --way jobs")
    if _INCLUDE.search(request.program):
        raise UsageError("#include is not for agents: use --way jobs")


class Journal:
    """The last bytes that a trace has said, in whole lines. For any thread."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._bytes = bytearray()
        self._gone = 0
        self._ended = False

    def add(self, piece: bytes) -> None:
        """One more piece; the oldest lines go if it is too much."""
        with self._changed:
            self._bytes += piece
            if len(self._bytes) > self._most:
                # Half of it at once: moving bytes costs.
                cut = self._bytes.find(b"\n", len(self._bytes) - self._most // 2) + 1
                del self._bytes[:cut]
                self._gone += cut
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def now(self) -> bytes:
        """All that is there."""
        with self._changed:
            return bytes(self._bytes)

    def read(self) -> Iterator[bytes]:
        """All that is there, and then what comes, until the end. An empty piece: nothing new."""
        place = 0
        while True:
            with self._changed:
                if self._gone + len(self._bytes) <= place and not self._ended:
                    self._changed.wait(_WAIT_SECONDS)
                place = max(place, self._gone)
                piece = bytes(self._bytes[place - self._gone :])
                ended = self._ended
            place += len(piece)
            if not piece and ended:
                return
            yield piece


@dataclass
class Running:
    """One trace on this node."""

    asked: Asked
    process: subprocess.Popen[bytes]
    journal: Journal
    began: float
    ended: float = 0.0
    stop_asked: bool = False

    def stop(self) -> None:
        """As Ctrl-C does; it has no handler for that before it has said its first word."""
        self.stop_asked = True
        if self.journal.now() and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def told(self) -> dict[str, Any]:
        """As a line of a list."""
        code = self.process.poll()
        state = "Running" if code is None else "Failed" if code else "Completed"
        request, part = self.asked.request, self.asked.part
        return {
            "name": request.name,
            "part": self.asked.name,
            "state": state,
            "created": self.began,
            "about": {
                "namespace": request.namespace,
                "target": request.target,
                "title": request.title,
                "by": "pod" if request.by_pod else "",
                "nodes": list(self.asked.nodes),
                "node": part.node,
                "targets": list(part.targets),
            },
        }


class NodeTraces:
    """All traces of this node. Use it in a ``with``: they end with it.

    Args:
        command: what runs a trace, without its words.
    """

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "podscope")) -> None:
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._traces: dict[tuple[str, str], Running] = {}

    def __enter__(self) -> NodeTraces:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._now():
            one.process.send_signal(signal.SIGTERM)
        for one in self._now():
            try:
                one.process.wait(_WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                one.process.kill()

    def begin(self, text: str) -> None:
        """Starts a trace; one that is there already goes on.

        Args:
            text: an `Asked`, as JSON.

        Raises:
            UsageError: it cannot be understood.
            PodscopeError: too many run, or it could not be started.
        """
        try:
            asked = msgspec.json.decode(text, type=Asked)
        except msgspec.MsgspecError as error:
            raise UsageError(f"what is asked for cannot be understood: {error}") from None
        check(asked)
        self._forget()
        with self._lock:
            if (asked.request.name, asked.name) in self._traces:
                return
            running = sum(one.process.poll() is None for one in self._traces.values())
            if running >= MOST_RUNNING:
                raise PodscopeError(f"{running} traces run on this node already")
            self._traces[asked.request.name, asked.name] = self._started(asked)

    def follow(self, name: str, part: str) -> Iterator[bytes]:
        """What a trace says, from as far back as it is kept. Raises UsageError: there is none."""
        return self._find(name, part).journal.read()

    def said(self, name: str, part: str) -> bytes:
        """What a trace has said until now. Raises UsageError: there is none."""
        return self._find(name, part).journal.now()

    def stop(self, name: str, part: str) -> None:
        """As Ctrl-C does. Raises UsageError: there is none."""
        self._find(name, part).stop()

    def listed(self) -> str:
        """JSON lines."""
        self._forget()
        return "".join(f"{json.dumps(one.told())}\n" for one in self._now())

    def delete(self, name: str, part: str) -> None:
        """Ends it and forgets what it said. Raises UsageError: there is none."""
        one = self._find(name, part)
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGTERM)
            try:
                one.process.wait(_WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                one.process.kill()
        with self._lock:
            self._traces.pop((name, part), None)

    def _started(self, asked: Asked) -> Running:
        try:
            process = subprocess.Popen(
                [*self._command, *jobs.words(asked.request, asked.part)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    **_TYPES,
                    **dict(asked.request.environment),
                    "NODE_NAME": asked.part.node,
                },
                start_new_session=True,
            )
        except OSError as error:
            raise PodscopeError(f"the trace could not be started: {error.strerror}") from None
        # What watches all the time goes first.
        os.setpriority(os.PRIO_PROCESS, process.pid, 10)
        made = Running(asked, process, Journal(), time.time())
        threading.Thread(target=_collect, args=(made,), daemon=True).start()
        return made

    def _find(self, name: str, part: str) -> Running:
        with self._lock:
            found = self._traces.get((name, part))
        if found is None:
            raise UsageError(f"there is no trace {name!r} on this node; its agent is a new one")
        return found

    def _now(self) -> list[Running]:
        with self._lock:
            return list(self._traces.values())

    def _forget(self) -> None:
        """What is past its time, and the oldest of too many."""
        now = time.time()
        with self._lock:
            ended = [(key, one) for key, one in self._traces.items() if one.ended]
            ended.sort(key=lambda pair: pair[1].ended)
            most = max(len(ended) - MOST_KEPT, 0)
            for number, (key, one) in enumerate(ended):
                if number < most or now > one.ended + one.asked.request.ttl:
                    del self._traces[key]


def _collect(one: Running) -> None:
    """Keeps what a trace says."""
    assert one.process.stdout is not None
    first = True
    while piece := os.read(one.process.stdout.fileno(), 1 << 16):
        one.journal.add(piece)
        if first and one.stop_asked:
            one.stop()
        first = False
    one.process.wait()
    one.process.stdout.close()
    one.ended = time.time()
    one.journal.end()


def answer(traces: NodeTraces, what: str, query: Mapping[str, Sequence[str]]) -> Iterator[bytes]:
    """What a page of this name gives.

    Raises:
        UsageError: there is no such page, or no such trace.
        PodscopeError: it cannot be done.
    """
    name, part = (query.get(one, [""])[-1] for one in ("name", "part"))
    if what == "begin":
        traces.begin(query.get("asked", [""])[-1])
    elif what == "follow":
        return traces.follow(name, part)
    elif what == "read":
        return iter([traces.said(name, part)])
    elif what == "stop":
        traces.stop(name, part)
    elif what == "list":
        return iter([traces.listed().encode()])
    elif what == "delete":
        traces.delete(name, part)
    else:
        raise UsageError(f"{what}: no such page")
    return iter([b"ok\n"])
