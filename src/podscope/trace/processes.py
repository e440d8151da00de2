# SPDX-License-Identifier: Apache-2.0
"""Which process of a target is meant, as kubectl-trace's ``--process-selector`` says it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from podscope.errors import UsageError

LAST = -1
_NAMES = ("pid", "exe", "comm", "cmdline")


@dataclass(frozen=True)
class Selector:
    """``pid=last,exe=ruby``: all parts must hold.

    Attributes:
        pid: as the process itself sees it (the innermost of NSpid in proc(5)), or LAST: the highest
            of those that are left.
        exe: in the path of its executable; empty: any.
        comm: in its name.
        cmdline: in its command line, whose words have blanks between them.
    """

    pid: int = LAST
    exe: str = ""
    comm: str = ""
    cmdline: str = ""


def selector(text: str) -> Selector:
    """The selector of a flag. Raises UsageError: it is none."""
    told: dict[str, str] = {}
    for part in text.split(","):
        name, equal, value = part.partition("=")
        if name not in _NAMES or not equal or not value or name in told:
            raise UsageError(
                f"--process-selector: not a part of one: {part!r}; write it as "
                "pid=N or pid=last, exe=, comm=, cmdline=, with commas between"
            )
        told[name] = value
    pid = told.pop("pid", "last")
    if pid != "last" and not (pid.isascii() and pid.isdigit() and int(pid) > 0):
        raise UsageError(f"--process-selector: pid={pid}: a number, or last")
    return Selector(LAST if pid == "last" else int(pid), **told)


def chosen(of: Selector, pids: Iterator[int]) -> int:
    """The process of some that a selector means, as this host numbers it.

    Raises:
        UsageError: none of them, since some end while they are looked at, or never were.
    """
    found: dict[int, int] = {}
    for pid in pids:
        with suppress(OSError, ValueError, IndexError):
            place = Path(f"/proc/{pid}")
            if _fits(of, place):
                found[_inner(place)] = pid
    if of.pid == LAST and found:
        return found[max(found)]
    if of.pid in found:
        return found[of.pid]
    raise UsageError("--process-selector: no process of the target is like that")


def _fits(of: Selector, place: Path) -> bool:
    if of.exe and of.exe not in os.readlink(place / "exe"):
        return False
    if of.comm and of.comm not in (place / "comm").read_text(errors="replace"):
        return False
    line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return of.cmdline in line


def _inner(place: Path) -> int:
    """A process' number in its own pid namespace."""
    for line in (place / "status").read_text(errors="replace").splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return int(place.name)  # a kernel without pid namespaces
