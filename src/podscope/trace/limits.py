# SPDX-License-Identifier: Apache-2.0
"""A cgroup of its own for a process, with limits of CPU and memory: where the host lets us."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

# What kubectl-trace gives a trace.
MEMORY_BYTES = 1 << 30
CPUS = 1.0
_PERIOD_US = 100_000
# Version 1 writes the largest number of pages for none.
_NO_LIMIT = 1 << 60
_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "podscope-trace-"


class Limits:
    """Directories made for one process. Close it after the process has ended.

    With cgroup v2 the controllers must be passed down by the cgroup above; with v1 each has a
    hierarchy of its own, and a process may be in several.

    Args:
        name: of the cgroup.
        root: where cgroups are mounted.
    """

    def __init__(self, name: str, root: Path = _ROOT) -> None:
        self._made: list[Path] = []
        self.limited: frozenset[str] = frozenset()
        own = _own_paths()
        settings = {
            "memory": (("memory.max", str(MEMORY_BYTES)),),
            "cpu": (("cpu.max", f"{round(CPUS * _PERIOD_US)} {_PERIOD_US}"),),
        }
        if (root / "cgroup.controllers").exists():
            # Beside our own cgroup: one with processes in it may have none below with controllers.
            self._make([root / own.get("", "").lstrip("/"), root], name, settings)
            return
        older = {
            "memory": (("memory.limit_in_bytes", str(MEMORY_BYTES)),),
            "cpu": (
                ("cpu.cfs_period_us", str(_PERIOD_US)),
                ("cpu.cfs_quota_us", str(round(CPUS * _PERIOD_US))),
            ),
        }
        for controller, values in older.items():
            mount = root / controller
            self._make([mount / own.get(controller, "").lstrip("/")], name, {controller: values})

    def add(self, pid: int) -> None:
        """Put a process into it; one that has ended is passed over."""
        for directory in self._made:
            with suppress(OSError):
                (directory / "cgroup.procs").write_text(str(pid))

    def ran_out(self) -> bool:
        """Whether the kernel has killed a process for the limit of memory."""
        for directory in self._made:
            for name in ("memory.events", "memory.oom_control"):
                with suppress(OSError):
                    if re.search(r"^oom_kill [1-9]", (directory / name).read_text(), re.MULTILINE):
                        return True
        return False

    def close(self) -> None:
        """Remove the directories; they are busy for a moment after the process has ended."""
        for directory in self._made:
            for _ in range(50):
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.01)
                else:
                    break
        self._made = []

    def _make(
        self, places: list[Path], name: str, settings: Mapping[str, tuple[tuple[str, str], ...]]
    ) -> None:
        for place in places:
            _remove_left(place)
            directory = place / name
            try:
                directory.mkdir()
            except OSError:
                continue
            worked = {one for one, values in settings.items() if _written(directory, values)}
            if not worked:
                directory.rmdir()
                continue
            self._made.append(directory)
            self.limited |= worked
            return


def are_above(root: Path = _ROOT) -> bool:
    """Whether this process itself has a limit of memory, as in a container."""
    own = _own_paths()
    for controller, file in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        mount = root / controller
        # In a container, its own cgroup may be mounted, though the path is the host's.
        for place in (mount / own.get(controller, "").lstrip("/"), mount):
            with suppress(OSError, ValueError):
                if int((place / file).read_text()) < _NO_LIMIT:
                    return True
    return False


def _remove_left(place: Path) -> None:
    """Directories of traces whose podscope was killed: they are empty, and nobody else's."""
    for left in place.glob(f"{_PREFIX}*-*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            with suppress(OSError):
                left.rmdir()


def _written(directory: Path, values: tuple[tuple[str, str], ...]) -> bool:
    try:
        for file, value in values:
            (directory / file).write_text(value)
    except OSError:
        return False
    return True


def _own_paths() -> dict[str, str]:
    """This process' cgroup by controller; that of version 2 under the empty name."""
    paths: dict[str, str] = {}
    with open("/proc/self/cgroup", encoding="utf-8") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            paths |= dict.fromkeys(controllers.split(","), path)
    return paths


def tidy(name: str) -> str:
    """The cgroup's name for a trace, with the process that made it."""
    return f"{_PREFIX}{os.getpid()}-{name}"
