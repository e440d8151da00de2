# SPDX-License-Identifier: Apache-2.0
"""Cgroups of version 2 as they are made and removed, told by the kernel's tracepoints."""

from __future__ import annotations

from typing import Any
from typing import Self

import numpy as np
import numpy.typing as npt

from podscope.kernel.objects import BpfObject
from podscope.kernel.rings import Ring


class CgroupSource:
    """The programs, attached. Close it, or use it in a ``with``.

    Attach before a first walk over the directories: what is made meanwhile is in both.

    Args:
        ring_bytes: size of the ring; a power of two, a page or more. A record takes 544 bytes.

    Raises:
        PodscopeError: no rights, or a kernel that cannot run the programs.
    """

    def __init__(self, ring_bytes: int = 1 << 20) -> None:
        self._object = BpfObject.open("cgroups")
        try:
            self._object.resize_map("events", ring_bytes)
            self._object.load()
            self._ring = Ring.of(self._object.map("events"), self.row_dtype)
            for program in self._object.programs():
                self._object.attach(program)
        except BaseException:
            self._object.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detaches everything. A second call does nothing."""
        self._object.close()

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """``struct cgroup_event``."""
        return self._object.dtype("cgroup_event")

    @property
    def kinds(self) -> dict[str, int]:
        """``enum cgroup_event_kind``: what a row's ``kind`` means."""
        return self._object.enum("cgroup_event_kind")

    def read(self) -> npt.NDArray[np.void]:
        """What came since the last read, in the kernel's order.

        Returns:
            Rows of ``struct cgroup_event``, shape (n,).
        """
        return self._ring.drain()

    def lost(self) -> int:
        """Rows since the start that found the ring full."""
        return int(self._object.variables["ring_full"])
