# SPDX-License-Identifier: Apache-2.0
"""Tracers beside bpftrace: tools of bcc, and rbspy, as a child whose lines are the answer."""

from __future__ import annotations

import os
import platform
import queue
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from typing import Self

from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.trace.decode import Text
from podscope.trace.limits import Limits
from podscope.trace.limits import tidy
from podscope.trace.maps import MapShape
from podscope.trace.session import Answer
from podscope.trace.surroundings import surroundings

# Where bcc's own packages have its tools; Debian also names them so in the PATH.
_TOOLS = "/usr/share/bcc/tools"
_SUFFIX = "-bpfcc"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# The root of the node, for who sees its processes.
_NODE = "/proc/1/root"
VARIABLES = ("$container_pid", "$target_pid")
_LOOK_SECONDS = 0.1
# Lines of an answer at most: a tool that never pauses is shown, too.
_AT_ONCE = 10_000
_TRACING = "/sys/kernel/debug/tracing/events"


@dataclass(frozen=True)
class Tool:
    """What is to be run.

    Attributes:
        command: its words.
        version: what a list of nodes calls it.
        environment: more variables.
        result: a file that it writes, which belongs to the answer; empty: none.
    """

    command: tuple[str, ...]
    version: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    result: str = ""


def asks_for_process(tracer: str, arguments: Sequence[str]) -> bool:
    """Whether a process of the target is needed, so that it must be one container."""
    return tracer == "rbspy" or any(name in one for one in arguments for name in VARIABLES)


def check_name(tracer: str, name: str) -> str:
    """The name of a tool, without what packages add to it; raises UsageError."""
    plain = os.path.basename(name.strip()).removesuffix(_SUFFIX)
    if tracer == "bcc" and not _NAME.fullmatch(plain):
        raise UsageError(f"--tracer bcc: no name of a tool: {name.strip()!r}; as --program tcplife")
    return plain


def find(tracer: str, name: str, arguments: Sequence[str], pid: int = 0, node: str = _NODE) -> Tool:
    """A tool, from here or else from the node that this container is on.

    Args:
        tracer: ``bcc`` or ``rbspy``.
        name: of bcc's tool.
        arguments: for the tool; VARIABLES in them become the process.
        pid: of the target's process; 0: there is none.
        node: where the root of the node is to be seen.

    Raises:
        PodscopeError: it is not there.
    """
    words = [one.replace(VARIABLES[0], str(pid)).replace(VARIABLES[1], str(pid))
             for one in arguments]  # fmt: skip
    if tracer == "rbspy":
        program, before = _rbspy(node)
        place = f"/tmp/podscope-{os.urandom(6).hex()}"
        record = ["record", "--pid", str(pid), "--format", "speedscope", "--file", place]
        # Else it also keeps a file of its own in the home directory.
        record += ["--raw-file", "/dev/null"]
        root = node if before else ""
        return Tool((*before, program, *record, *words), "rbspy", result=f"{root}{place}")
    plain = check_name(tracer, name)
    here = shutil.which(f"{plain}{_SUFFIX}") or _there(f"{_TOOLS}/{plain}")
    if here:
        return Tool((here, *words), f"bcc {plain}", _headers(node))
    for path in (f"{_TOOLS}/{plain}", f"/usr/sbin/{plain}{_SUFFIX}"):
        if _is_container() and _there(f"{node}{path}"):
            return Tool(("chroot", node, path, *words), f"bcc {plain}")
    raise PodscopeError(
        f"bcc has no tool {plain!r} here: apt install bpfcc-tools, and 'ls {_TOOLS}'"
    )


def _rbspy(node: str) -> tuple[str, tuple[str, ...]]:
    if here := shutil.which("rbspy"):
        return here, ()
    for path in ("/usr/local/bin/rbspy", "/usr/bin/rbspy"):
        if _is_container() and _there(f"{node}{path}"):
            return path, ("chroot", node)
    raise PodscopeError(
        "rbspy is not here: put it into an image of your own (--imagename), or on the node"
    )


def _there(path: str) -> str:
    return path if os.access(path, os.X_OK) else ""


def _is_container() -> bool:
    return bool(os.environ.get("NODE_NAME"))


def _headers(node: str) -> dict[str, str]:
    """Where the kernel's headers are, if only the node has them: bcc compiles against them."""
    link = f"/lib/modules/{platform.release()}/build"
    if os.path.exists(link) or "BCC_KERNEL_SOURCE" in os.environ or not _is_container():
        return {}
    with suppress(OSError):
        # A link of the node leads from the node's root.
        found = f"{node}{os.readlink(f'{node}{link}')}"
        return {"BCC_KERNEL_SOURCE": found} if os.path.isdir(found) else {}
    return {}


def _surroundings() -> list[str]:
    if os.path.isdir(_TRACING) or os.geteuid() != 0:
        return surroundings()
    return surroundings("debugfs", "/sys/kernel/debug")


class ToolTrace:
    """A running tool. Iterating over it gives its lines; use it in a ``with``.

    Args:
        tool: what to run.
        deadline: seconds after which it is told to end, as by Ctrl-C.
        grace: seconds that it then has.

    Raises:
        PodscopeError: it did not start.
    """

    def __init__(self, tool: Tool, *, deadline: float = 3600.0, grace: float = 30.0) -> None:
        self.tool = tool
        self.notes: list[str] = []
        self.lost: dict[str, int] = {}
        self.full: dict[str, int] = {}
        self._grace = grace
        self._end = time.monotonic() + deadline
        self._stopped: float | None = None
        self._limits = Limits(tidy(os.urandom(3).hex()))
        self._lines: queue.Queue[str | None] = queue.Queue(_AT_ONCE)
        self._last: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._failed: OSError | None = None
        self._started = threading.Event()
        # The kernel ends the tool with the thread that has started it (PR_SET_PDEATHSIG).
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failed is not None:
            self._limits.close()
            raise PodscopeError(f"{tool.command[0]}: cannot be run: {self._failed.strerror}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Answer]:
        """Its lines as they come, and a last answer.

        Raises:
            PodscopeError: it ended in an error.
        """
        while (lines := self._next()) is not None:
            if lines:
                yield Answer(tuple(Text(line) for line in lines), {}, time.time_ns())
        assert self._process is not None
        code = self._process.wait()
        if code != 0 and self._stopped is None:
            told = "; ".join(line.strip() for line in self._last[-3:] if line.strip())
            raise PodscopeError(f"{self.tool.version}: {told or f'ended with code {code}'}")
        yield Answer((*map(Text, self._result()),), {}, time.time_ns(), last=True)

    @property
    def speaks(self) -> bool:
        """Whether it writes lines while it runs."""
        return True

    @property
    def version(self) -> str:
        """What runs."""
        return self.tool.version

    def told_shapes(self) -> dict[str, MapShape]:
        """It has no maps."""
        return {}

    def stop(self) -> None:
        """Ctrl-C; a second call ends it at once."""
        first = self._stopped is None
        self._stopped = self._stopped or time.monotonic()
        self._signal(signal.SIGINT if first else signal.SIGKILL)

    def close(self) -> None:
        """End it, if it still runs."""
        self._signal(signal.SIGKILL)
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self._lines.get(timeout=0.05)
        self._limits.close()
        if self.tool.result:
            with suppress(OSError):
                os.unlink(self.tool.result)

    def _result(self) -> list[str]:
        """What it has written to a file; nothing, if it did not come to that."""
        if not self.tool.result:
            return []
        try:
            with open(self.tool.result, encoding="utf-8", errors="replace") as file:
                return [f"{line}\n" for line in file.read().splitlines()]
        except OSError as error:
            self.notes.append(f"{self.tool.version}: wrote no profile: {error.strerror}")
            return []

    def _next(self) -> list[str] | None:
        """Lines that have come; None at the end."""
        try:
            first = self._lines.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            self._look_at_clock()
            return []
        lines: list[str] = []
        while first is not None:
            lines.append(first)
            if len(lines) >= _AT_ONCE:
                self._look_at_clock()
                return lines
            try:
                first = self._lines.get_nowait()
            except queue.Empty:
                self._look_at_clock()
                return lines
        if not lines:
            return None
        self._lines.put(None)
        return lines

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if self._stopped is None and now >= self._end:
            self.stop()
        elif self._stopped is not None and now >= self._stopped + self._grace:
            self.notes.append(f"{self.tool.version}: did not end within {self._grace:g} s of grace")
            self._grace = float("inf")
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        """To all that it has started."""
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _run(self) -> None:
        try:
            self._process = subprocess.Popen(
                [*_surroundings(), *self.tool.command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.tool.environment},
                start_new_session=True,
            )
        except OSError as error:
            self._failed = error
            return
        finally:
            self._started.set()
        self._limits.add(self._process.pid)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last = [*self._last[-2:], line]
            self._lines.put(line)
        self._process.wait()
        self._lines.put(None)
