# SPDX-License-Identifier: Apache-2.0
"""Who owns the sockets that were open before podscope started."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import warnings
from collections.abc import Collection
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from podscope.kernel.descriptors import option
from podscope.kernel.descriptors import process
from podscope.kernel.descriptors import taken
from podscope.kernel.libbpf import BpfError
from podscope.kernel.libbpf import libbpf
from podscope.kernel.maps import HashMap
from podscope.kernel.maps import MapInfo
from podscope.kernel.objects import BpfObject

PROGRAM = "http_open_sockets"
# Numbers of owners that are given here; the kernel programs count from 1.
FIRST_OWNER = 1 << 31
MOST_SOCKETS = 100_000

# Flags of bpf_map_update_elem(), include/uapi/linux/bpf.h.
_NOEXIST, _EXIST = 1, 2
# A process that ends meanwhile, or closes a descriptor, is nothing to speak of.
_GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.EBADF, errno.EINVAL})


@dataclass(frozen=True)
class Walk:
    """What a walk through the processes gave.

    Attributes:
        noted: sockets that have an owner now.
        refused: processes whose sockets could not be had.
        reason: why not, or why the walk ended early; empty if all went well.
    """

    noted: int = 0
    refused: int = 0
    reason: str = ""


def note_open_sockets(
    program: BpfObject,
    iterator: str = PROGRAM,
    notes: str = "notes",
    types: Collection[int] = (socket.SOCK_STREAM,),
) -> None:
    """Notes an owner with every TCP socket that a process has open now.

    By the kernel's task_file iterator, else process by process. Warns (RuntimeWarning) if
    neither can be done: older connections are then counted without their process.

    Args:
        program: the object, loaded.
        iterator: its program that walks.
        notes: its storage map that takes ``pid`` and ``owner``.
        types: types of sockets, as the iterator has them; with SOCK_DGRAM UDP's, too.
    """
    if note_by_iterator(program, iterator):
        return
    walk = note_by_descriptors(program, notes, types)
    if walk.reason:
        warnings.warn(
            f"sockets that are open already are counted without their process: {walk.reason}",
            RuntimeWarning,
            stacklevel=2,
        )


def note_by_iterator(program: BpfObject, iterator: str = PROGRAM) -> bool:
    """One walk in the kernel. False: this kernel, or this object, has no such iterator."""
    if iterator not in program.programs():
        return False
    try:
        program.run_iter(iterator)
    except BpfError:
        return False
    return True


def note_by_descriptors(
    program: BpfObject, name: str = "notes", types: Collection[int] = (socket.SOCK_STREAM,)
) -> Walk:
    """The same from user space: takes each socket's descriptor for a moment and notes its owner.

    As with the iterator, the first process by number that holds a socket owns it.
    """
    notes = program.map(name)
    processes, owners = program.map("processes"), program.map("owners")
    numbers = itertools.count(FIRST_OWNER)
    seen: set[str] = set()
    noted = refused = 0
    why = ""
    for pid in _pids():
        if len(seen) >= MOST_SOCKETS:
            return Walk(noted, refused, f"those beyond the first {MOST_SOCKETS}")
        try:
            owner = next(numbers)
            found = _note_process(notes, pid, owner, seen, types)
        except OSError as error:
            if error.errno in _GONE:
                continue
            refused += 1
            why = why or f"such as {pid} ({error.strerror}): podscope needs CAP_SYS_PTRACE"
            continue
        if found:
            _name(processes, owners, pid, owner)
        noted += found
    return Walk(noted, refused, f"those of {refused} processes, {why}" if refused else "")


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _note_process(
    notes: MapInfo, pid: int, owner: int, seen: set[str], types: Collection[int]
) -> int:
    """Notes the sockets of a process that nobody before it holds; returns how many it noted."""
    held = [(number, name) for number, name in _sockets(pid) if name not in seen]
    if not held:
        return 0
    found = 0
    with process(pid) as pidfd:
        for number, name in held:
            if len(seen) >= MOST_SOCKETS:
                break
            try:
                descriptor = taken(pidfd, number)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                raise
            # Whatever it is, it need not be looked at again.
            seen.add(name)
            try:
                found += _is_inet(descriptor, types) and _note(notes, descriptor, pid, owner)
            finally:
                os.close(descriptor)
    return found


def _sockets(pid: int) -> Iterator[tuple[int, str]]:
    """Number and name (``socket:[INODE]``) of each socket a process has open, proc_pid_fd(5)."""
    directory = f"/proc/{pid}/fd"
    with suppress(FileNotFoundError, ProcessLookupError):
        for number in os.listdir(directory):
            with suppress(FileNotFoundError, ProcessLookupError):
                name = os.readlink(f"{directory}/{number}")
                if name.startswith("socket:"):
                    yield int(number), name


def _is_inet(descriptor: int, types: Collection[int]) -> bool:
    # Not by a socket object: it would set its own time-out, on the other process's socket.
    try:
        return option(descriptor, socket.SO_TYPE) in types and option(
            descriptor, socket.SO_DOMAIN
        ) in (socket.AF_INET, socket.AF_INET6)
    except OSError:
        return False


def _note(notes: MapInfo, descriptor: int, pid: int, owner: int) -> bool:
    """Notes an owner, unless there is one; false: the socket could not take the note."""
    key = np.array(descriptor, "i4")
    value: np.ndarray[Any, Any] = np.zeros((), notes.value)
    value["pid"], value["owner"] = pid, owner
    pointers = notes.fd, key.ctypes.data, value.ctypes.data
    code = libbpf().call("bpf_map_update_elem", *pointers, _NOEXIST)
    if code != -errno.EEXIST:
        return bool(code == 0)
    # A packet was here first, and made a note without an owner.
    if libbpf().call("bpf_map_lookup_elem", *pointers) < 0 or value["pid"]:
        return True
    value["pid"], value["owner"] = pid, owner
    return bool(libbpf().call("bpf_map_update_elem", *pointers, _EXIST) == 0)


def _name(processes: MapInfo, owners: MapInfo, pid: int, owner: int) -> None:
    """Notes the executable of a process; the kernel does it again when it opens a socket."""
    try:
        path = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return
    value: np.ndarray[Any, Any] = np.zeros((), processes.value)
    room = value["executable"].dtype.itemsize - 1
    value["executable"] = os.fsencode(os.path.basename(path))[:room]
    value["pid"], value["owner"] = pid, owner
    HashMap.of(owners).update(owner, value)
    names = HashMap.of(processes)
    if names.lookup(pid) is None:
        names.update(pid, value)
