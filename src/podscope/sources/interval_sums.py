# SPDX-License-Identifier: Apache-2.0
"""Sums of series that kernel programs keep for one interval, in one of two maps in turns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from podscope.kernel.grace import wait_for_programs
from podscope.kernel.maps import HashMap
from podscope.kernel.objects import BpfObject
from podscope.sources.histograms import buckets_of


class IntervalSums:
    """The maps ``sums_0``, ``sums_1``, ``chunks_0`` and ``chunks_1`` of a source's programs.

    The programs write to those that their variable ``parity`` names.
    """

    def __init__(self, program: BpfObject) -> None:
        self._parity = program.variables["parity"]
        self._sums = tuple(HashMap.of(program.map(f"sums_{place}")) for place in (0, 1))
        self._chunks = tuple(HashMap.of(program.map(f"chunks_{place}")) for place in (0, 1))

    def turn(self) -> int:
        """Ends an interval: the number of the maps that nobody writes to any more."""
        ended = int(self._parity)
        self._parity[...] = 1 - ended
        wait_for_programs()
        return ended

    def take(self, ended: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.uint32]]:
        """Takes all out of the maps of a number: keys, sums and histograms, shape (n,), (n,)
        and (n, 256).
        """
        keys, sums = self._sums[ended].items()
        self._sums[ended].delete_many(keys)
        chunk_keys, chunks = self._chunks[ended].items()
        self._chunks[ended].delete_many(chunk_keys)
        return keys, sums, buckets_of(keys, chunk_keys, chunks)
