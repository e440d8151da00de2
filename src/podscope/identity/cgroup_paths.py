# SPDX-License-Identifier: Apache-2.0
"""From a cgroup's id to its path, also when the cgroup is gone by the time that one asks.

A walk over the directories tells what is there, and the kernel's events what comes and goes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from podscope.errors import PodscopeError

KEPT_SECONDS = 300.0
WALK_SECONDS = 1.0  # at least, between two walks for ids that are not known
MAX_GONE = 4096
MAX_MISSING = 4096
# Live ones that no walk has seen: more than these, and removals must have been lost.
MAX_UNSEEN = 4096

# enum cgroup_event_kind and sizes of bpf/cgroups.bpf.c
REMOVED = 2
PATH_BYTES = 511
# As long or longer: the kernel may have cut it (TRACE_CGROUP_PATH_LEN), and with it the name.
PATH_CUT = 1022


class CgroupPaths:
    """Paths below a mount of cgroup v2, by id. For one thread.

    A path is relative to the mount and begins with a slash; that of the mount itself is "/".

    Args:
        root: where cgroup v2 is mounted.
        clock: seconds that only go up.

    Raises:
        PodscopeError: there is no such directory.
    """

    def __init__(self, root: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        try:
            self._root_id = os.stat(root).st_ino
        except OSError as error:
            raise PodscopeError(
                f"cgroup {root}: {error.strerror}: name the directory where cgroup v2 is mounted"
            ) from None
        self._live: dict[int, str] = {}
        self._gone: dict[int, tuple[str, float]] = {}  # in the order of their end
        # How often one came or went.
        self.changes = 0
        self._missing: set[int] = set()  # ids that a walk did not find
        self._above: str | None = None  # the mount's own path on the machine, once it is known
        self._walk()

    def path(self, cgroup_id: int) -> str:
        """Path of a cgroup, or an empty string if it is not known. Ask after :meth:`take`.

        An id that is not known starts a walk, but one in WALK_SECONDS at most, and none for
        an id that a walk has missed: the kernel gives no id twice.
        """
        found = self._known(cgroup_id)
        if found or not cgroup_id or cgroup_id in self._missing or not self._may_walk():
            return found
        self._walk()
        found = self._known(cgroup_id)
        if not found:
            self._miss(cgroup_id)
        return found

    def live(self) -> Mapping[int, str]:
        """Paths of the cgroups that are there, by id; not to be changed."""
        return self._live

    def take(self, rows: npt.NDArray[np.void]) -> None:
        """Takes what came and went.

        Args:
            rows: shape (n,), in the kernel's order, with the members of ``struct cgroup_event``:
                id, parent, kind, path_len, path.
        """
        columns = [rows[name].tolist() for name in ("id", "parent", "kind", "path_len", "path")]
        for cgroup_id, parent, kind, length, path in zip(*columns, strict=True):
            if cgroup_id not in self._live:
                self._add(cgroup_id, self._named(parent, length, path))
            if kind == REMOVED:
                self._remove(cgroup_id)
        self._forget()
        if len(self._live) > self._walked_size + MAX_UNSEEN and self._may_walk():
            self._walk()

    def held(self) -> int:
        """How many paths are in memory, those that are kept after the end among them."""
        return len(self._live) + len(self._gone)

    def _known(self, cgroup_id: int) -> str:
        found = self._live.get(cgroup_id)
        if found is not None:
            return found
        path, ended = self._gone.get(cgroup_id, ("", 0.0))
        return path if path and self._clock() - ended <= KEPT_SECONDS else ""

    def _named(self, parent: int, length: int, raw: bytes) -> str:
        """The path below the mount, from an event's, which begins at the machine's root.

        In a container or a nested node the two roots differ, so the parent's path and the
        name are what counts. A parent that is not known is outside of the mount, or its own
        event was lost.
        """
        if length >= PATH_CUT:
            return ""
        whole = os.fsdecode(raw[: min(length, PATH_BYTES)])
        above = self._known(parent)
        if above:
            path = f"{above.rstrip('/')}/{whole.rpartition('/')[2]}"
            if length <= PATH_BYTES and whole.endswith(path):
                self._above = whole.removesuffix(path)
            return path
        if self._above is None or length > PATH_BYTES:
            return ""
        below = whole.removeprefix(self._above)
        return below if whole.startswith(f"{self._above}/") else ""

    def _add(self, cgroup_id: int, path: str) -> None:
        if not path or self._live.get(cgroup_id) == path:
            return
        self.changes += 1
        self._gone.pop(cgroup_id, None)
        self._live[cgroup_id] = path

    def _remove(self, cgroup_id: int) -> None:
        path = self._live.pop(cgroup_id, "")
        if not path:
            return
        self.changes += 1
        self._gone[cgroup_id] = (path, self._clock())

    def _forget(self) -> None:
        """The oldest are at the front."""
        oldest = self._clock() - KEPT_SECONDS
        while self._gone:
            first = next(iter(self._gone))
            if len(self._gone) <= MAX_GONE and self._gone[first][1] >= oldest:
                return
            del self._gone[first]

    def _miss(self, cgroup_id: int) -> None:
        if len(self._missing) >= MAX_MISSING:
            self._missing.clear()
        self._missing.add(cgroup_id)

    def _may_walk(self) -> bool:
        return self._clock() - self._walked >= WALK_SECONDS

    def _walk(self) -> None:
        """What is there now; what is not any more went without an event that we saw."""
        found = dict(_directories(self._root))
        found[self._root_id] = "/"
        for cgroup_id in self._live.keys() - found.keys():
            self._remove(cgroup_id)
        for cgroup_id, path in found.items():
            self._add(cgroup_id, path)
        self._walked = self._clock()
        self._walked_size = len(self._live)
        self._forget()


def _directories(root: str) -> Iterator[tuple[int, str]]:
    """Id and path of every directory below one.

    The id is the directory's inode number (kernfs_ino() in include/linux/kernfs.h), which
    comes with the name: no system call for each.
    """
    waiting = [""]
    while waiting:
        path = waiting.pop()
        # What goes while it is read is passed over.
        with suppress(OSError), os.scandir(f"{root}{path}") as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{path}/{entry.name}")
                    yield entry.inode(), waiting[-1]
