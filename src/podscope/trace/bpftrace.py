# SPDX-License-Identifier: Apache-2.0
"""bpftrace as a child process: found, started, stopped, and what it said of its end."""

from __future__ import annotations

import array
import fcntl
import os
import queue
import re
import shutil
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from podscope.errors import PodscopeError
from podscope.trace.decode import Version
from podscope.trace.limits import Limits
from podscope.trace.surroundings import surroundings

ENVIRONMENT = "PODSCOPE_BPFTRACE"
_TRACEFS = ("/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events")
_CHUNK = 1 << 16
_PIPE = 1 << 20
_LOOKS, _LOOK_SECONDS = 100, 0.01
# Chunks that may wait: then bpftrace waits, and counts itself what it loses meanwhile.
_WAITING = 256
# It says so where a limit is raised already, or a file is not there; it means nothing.
_HARMLESS = re.compile(r"RLIMIT_MEMLOCK|available_filter_functions|^Attaching \d+ probes?|^\s*$")
# One setting has two names: since 0.20, and before.
KEYS_SETTINGS = ("BPFTRACE_MAX_MAP_KEYS", "BPFTRACE_MAP_KEYS_MAX")
_PLACE = re.compile(r"^(?P<file>[^:\s]+):(?P<line>\d+)(?:-\d+)?:(?P<from>\d+)-(?P<to>\d+): ")
_LINES = re.compile(r"^(?P<file>\S+?):\d+(?:-\d+)?(?::\d+(?:-\d+)?)?: ")


@dataclass(frozen=True)
class Bpftrace:
    """The program on this host."""

    path: str
    version: Version


def find() -> Bpftrace:
    """The bpftrace that ``PODSCOPE_BPFTRACE`` names, or that of the path.

    Raises:
        PodscopeError: there is none, or it does not say its version.
    """
    path = os.environ.get(ENVIRONMENT) or shutil.which("bpftrace")
    if path is None:
        raise PodscopeError(
            f"bpftrace is not installed: apt install bpftrace, or name it by {ENVIRONMENT}"
        )
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PodscopeError(f"{path}: cannot be run: {error}") from None
    found = re.search(r"v(\d+)\.(\d+)", said)
    if found is None:
        raise PodscopeError(f"{path}: does not say its version; is it bpftrace?")
    return Bpftrace(path, (int(found[1]), int(found[2])))


class Child:
    """A running bpftrace.

    Its output comes in chunks by ``chunks``; None is the end. The process is started by the thread
    that reads it: the kernel kills it when that thread ends, in whatever way, so that no trace
    outlives podscope (PR_SET_PDEATHSIG, prctl(2)).

    Args:
        program: which bpftrace.
        text: what to run. It is passed by a file in memory: nothing is left on disk, and a list of
            processes does not show it.
        arguments: ``$1`` and on.
        unsafe: allow ``system()`` and its like.
        limits: a cgroup to run in.

    Raises:
        PodscopeError: it could not be started.
    """

    def __init__(
        self,
        program: Bpftrace,
        text: str,
        *,
        arguments: Sequence[str] = (),
        unsafe: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self.chunks: queue.Queue[bytes | None] = queue.Queue()
        self._ending = threading.Event()
        self._text = text
        # In memory: an agent can write to no disk.
        self._errors: IO[bytes] = open(os.memfd_create("stderr"), "w+b")  # noqa: SIM115
        self._limits = limits
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failed: OSError | None = None
        options = ["-f", "json", *(["--unsafe"] if unsafe else [])]
        self._thread = threading.Thread(
            target=self._run, args=(program.path, options, list(arguments)), daemon=True
        )
        self._thread.start()
        self._started.wait()
        if self._failed is not None:
            raise PodscopeError(f"{program.path}: cannot be run: {self._failed.strerror}")

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """Ask it to print its maps and to end. A second call asks once more.

        A signal that comes while it waits to write would end that write, and bpftrace then writes
        nothing more (seen with 0.23 and 0.27): so there is room in the pipe first.
        """
        self._ending.set()
        for _ in range(_LOOKS):
            if self._unread() < _CHUNK:
                break
            time.sleep(_LOOK_SECONDS)
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code, once it has ended; negative: a signal."""
        assert self._process is not None
        with suppress(queue.Empty):
            while self._thread.is_alive():
                self.chunks.get(timeout=0.05)
        self._thread.join()
        return self._process.wait()

    def close(self) -> None:
        """Kill it if it still runs."""
        self._ending.set()
        self.kill()
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self.chunks.get(timeout=0.05)
        if self._process is not None:
            self._process.wait()
        self._errors.close()

    def complaints(self) -> list[str]:
        """What it wrote to stderr, without what means nothing, and with no place in a text that
        the user did not write."""
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").splitlines()
        made = []
        for line in lines:
            if _HARMLESS.search(line) or set(line.strip()) <= {"~", "^"}:
                continue
            if told := self._told(line):
                made.append(told)
        return made

    def _told(self, line: str) -> str:
        if line in self._text.splitlines():
            return ""  # the excerpt; the words that are meant stand in the message
        place = _PLACE.match(line)
        said = _LINES.sub("", line).removeprefix("ERROR: ").removeprefix("WARNING: ")
        if place is None:
            return said
        lines = self._text.splitlines()
        number = int(place["line"]) - 1
        near = lines[number][int(place["from"]) - 1 : int(place["to"]) - 1] if (
            number < len(lines)
        ) else ""  # fmt: skip
        return f"{said} (at {near.strip()!r})" if near.strip() else said

    def _unread(self) -> int:
        """Bytes in the pipe."""
        if self._process is None or self._process.stdout is None or self._process.stdout.closed:
            return 0
        size = array.array("i", [0])
        with suppress(OSError, ValueError):
            fcntl.ioctl(self._process.stdout.fileno(), termios.FIONREAD, size)
        return size[0]

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _run(self, path: str, options: list[str], arguments: list[str]) -> None:
        source = os.memfd_create("program.bt")
        try:
            os.write(source, self._text.encode())
            command = [*_surroundings(), path, *options, f"/dev/fd/{source}", *arguments]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=_environment(),
                pass_fds=(source,),
                # A Ctrl-C on the terminal is podscope's to pass on.
                start_new_session=True,
            )
        except OSError as error:
            self._failed = error
            return
        finally:
            os.close(source)
            self._started.set()
        if self._limits is not None:
            self._limits.add(self._process.pid)
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        with suppress(OSError):
            fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, _PIPE)
        while chunk := os.read(output, _CHUNK):
            self.chunks.put(chunk)
            while self.chunks.qsize() >= _WAITING and not self._ending.wait(_LOOK_SECONDS):
                pass
        self._process.stdout.close()
        self._process.wait()
        self.chunks.put(None)


def _environment() -> dict[str, str]:
    """Ours, with the number of keys of a map under both of its names."""
    told = next((os.environ[name] for name in KEYS_SETTINGS if name in os.environ), None)
    return dict(os.environ) | ({} if told is None else dict.fromkeys(KEYS_SETTINGS, told))


def _surroundings() -> list[str]:
    if any(os.path.isdir(one) for one in _TRACEFS):
        return surroundings()
    return surroundings("tracefs", "/sys/kernel/tracing")
