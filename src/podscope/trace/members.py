# SPDX-License-Identifier: Apache-2.0
"""Keeps the map of a confined program up to date: cgroups that join its target while it runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from podscope.errors import PodscopeError
from podscope.kernel.descriptors import process
from podscope.kernel.descriptors import taken
from podscope.kernel.maps import HashMap
from podscope.kernel.maps import MapType
from podscope.kernel.maps import map_info
from podscope.trace.rewrite import CGROUPS

# A runtime takes longer from making a cgroup to starting a program in it.
LOOK_SECONDS = 0.02
# BPF_OBJ_NAME_LEN less its end: what the kernel keeps of "AT_" and the map's name, or of the name.
_NAMES = tuple(f"{before}{CGROUPS.lstrip('@')}"[:15] for before in ("AT_", ""))


class Members:
    """A thread that looks for new cgroups, and tells the program of them.

    Args:
        pid: bpftrace's process, once its program runs.
        cgroups: ids of the cgroups that belong to the target now.

    Raises:
        PodscopeError: the program's map was not found.
    """

    def __init__(self, pid: int, cgroups: Callable[[], Mapping[int, str]]) -> None:
        self._descriptor = _map_of(pid)
        self._map = HashMap(self._descriptor, np.uint64, np.int64, 1 << 20)
        self._cgroups = cgroups
        self._known: set[int] = set()
        self._end = threading.Event()
        self.refused = 0
        self._look()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join()
        os.close(self._descriptor)

    def _watch(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        for one in self._cgroups():
            if one in self._known:
                continue
            self._known.add(one)
            try:
                self._map.update(one, 1)
            except PodscopeError:
                self.refused += 1


def _map_of(pid: int) -> int:
    """A descriptor of the map ``CGROUPS`` of a running bpftrace."""
    try:
        with process(pid) as target:
            for name in os.listdir(f"/proc/{pid}/fdinfo"):
                if not _is_hash(pid, name):
                    continue
                descriptor = taken(target, int(name))
                info = map_info(descriptor)
                if info.name in _NAMES and (info.key_size, info.value_size) == (8, 8):
                    return descriptor
                os.close(descriptor)
    except OSError as error:
        raise PodscopeError(f"bpftrace's maps cannot be reached: {error.strerror}") from None
    raise PodscopeError("bpftrace has no map of the target's cgroups")


def _is_hash(pid: int, name: str) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/fdinfo/{name}", encoding="utf-8") as lines:
        return any(line.split() == ["map_type:", str(int(MapType.HASH))] for line in lines)
    return False
