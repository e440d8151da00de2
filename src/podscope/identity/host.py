# SPDX-License-Identifier: Apache-2.0
"""Who a socket belongs to on one host: container, systemd unit, or process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from podscope.batch import Identity

# PROC_PID_INIT_INO (include/linux/proc_ns.h): the namespace whose process ids the kernel's are.
INITIAL_PIDS = 0xEFFFFFFC
CONTAINER = re.compile(r"(?:^|[-/:])([0-9a-f]{64})(?:\.scope)?(?:/|$)")
# The innermost: below user@1000.service stand the user's own.
UNIT = re.compile(r".*/([^/]+\.service)(?:/|$)")
MAX_KNOWN = 20_000


class HostIdentities:
    """Resolves what rows say of their socket; what was resolved once is remembered.

    An owner is a process while it runs one program: a process id alone is another's later.

    Args:
        root: mount point of cgroup v2.
        executable: base name of an owner's executable, as the kernel saw it.
        cgroup_path: path of an owner's cgroup of version 1, where the kernel has told it; empty
            where not. Who has ended is not in /proc any more.
    """

    def __init__(
        self,
        root: str,
        executable: Callable[[int], str],
        cgroup_path: Callable[[int], str] = lambda _: "",
    ) -> None:
        self._root = root
        self._executable = executable
        self._cgroup_path = cgroup_path
        self._sees_processes = _sees_processes()
        self._paths: dict[int, str] = {}
        self._known: dict[tuple[int, int, int], Identity] = {}

    def resolve(
        self,
        cgroup_ids: npt.NDArray[np.uint64],
        pids: npt.NDArray[np.uint32],
        owners: npt.NDArray[np.uint32],
    ) -> tuple[npt.NDArray[np.uint32], tuple[Identity, ...]]:
        """Identities of rows, each once.

        Returns:
            For each row the position of its identity, shape (n,), and the identities.
        """
        return each_once(self.identity, cgroup_ids, pids, owners)

    def identity(self, cgroup_id: int, pid: int, owner: int) -> Identity:
        """Whose one socket is."""
        key = (cgroup_id, pid, owner)
        found = self._known.get(key)
        if found is not None:
            return found
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        found = self._find(cgroup_id, pid, owner)
        if found.executable or not pid:
            self._known[key] = found
        return found

    def _find(self, cgroup_id: int, pid: int, owner: int) -> Identity:
        if not pid and not cgroup_id:
            return Identity("process", "_OTHER")
        # In a pid namespace the number is another process's.
        shown = pid if self._sees_processes else 0
        executable = self._executable(owner) or _executable_now(shown)
        path = self._path(cgroup_id)
        places = [path, self._cgroup_path(owner), *_other_cgroups(shown)]
        for place in places:
            if match := CONTAINER.search(place):
                container = match[1]
                return Identity("container", container[:12], executable, pid, container, path)
        for place in places:
            if match := UNIT.search(place):
                return Identity("unit", match[1], executable, pid, cgroup=path)
        return Identity("process", executable or "unknown", executable, pid, cgroup=path)

    def _path(self, cgroup_id: int) -> str:
        """Path of a cgroup below the mount: its id is the directory's inode number."""
        found = self._paths.get(cgroup_id)
        if found is not None:
            return found
        self._paths = {os.stat(self._root).st_ino: "/"}
        for directory, names, _ in os.walk(self._root):
            for name in names:
                path = os.path.join(directory, name)
                try:
                    self._paths[os.stat(path).st_ino] = _readable(path.removeprefix(self._root))
                except OSError:
                    continue
        return self._paths.setdefault(cgroup_id, "")


def each_once(
    identity: Callable[[int, int, int], Identity],
    cgroup_ids: npt.NDArray[np.uint64],
    pids: npt.NDArray[np.uint32],
    owners: npt.NDArray[np.uint32],
) -> tuple[npt.NDArray[np.uint32], tuple[Identity, ...]]:
    """Asks for the identity of each distinct socket owner of rows once.

    Returns:
        For each row the position of its identity, shape (n,), and the identities.
    """
    columns = (cgroup_ids, pids.astype(np.uint64) << np.uint64(32) | owners)
    order = np.lexsort(columns)
    fresh = np.ones(len(order), np.bool_)
    fresh[1:] = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    index = np.zeros(len(order), np.uint32)
    index[order] = np.cumsum(fresh) - 1
    first = order[fresh]
    owner = zip(
        cgroup_ids[first].tolist(), pids[first].tolist(), owners[first].tolist(), strict=True
    )
    return index, tuple(identity(*one) for one in owner)


def _sees_processes() -> bool:
    """Whether /proc has the process ids that the kernel uses."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == INITIAL_PIDS
    except OSError:
        return True


def _executable_now(pid: int) -> str:
    if not pid:
        return ""
    try:
        name = os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
    except OSError:
        return ""
    return _readable(name)


def _readable(name: str) -> str:
    """A name of a file as text that can be written: it may have any bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _other_cgroups(pid: int) -> list[str]:
    """Paths of the process in every hierarchy: on hybrid hosts v2 alone does not tell."""
    if not pid:
        return []
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text("utf-8", "backslashreplace").splitlines()
    except OSError:
        return []
    return [line.split(":", 2)[2] for line in lines if line.count(":") >= 2]
