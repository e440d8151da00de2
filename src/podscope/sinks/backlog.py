# SPDX-License-Identifier: Apache-2.0
"""Rows that are still to be sent, oldest first: in memory, and behind these on disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from podscope.sinks.disk_queue import DiskQueue
from podscope.sinks.rows import Rows


class Backlog:
    """The rows of one sink, in their order.

    Rows stay in memory while sending goes well. Once ``save`` was called they are on disk, if there
    is one, and what is added goes there too until all of it has been sent.

    Args:
        disk: None: rows are in memory only.
    """

    def __init__(self, disk: DiskQueue | None = None) -> None:
        self._disk = disk
        self._memory: deque[Rows] = deque()
        # So many of the first in memory are parts of the oldest file, which stays until then.
        self._of_file = 0

    def __bool__(self) -> bool:
        return bool(self._memory or self._disk)

    @property
    def on_disk(self) -> bool:
        """Whether there is a disk for rows that wait."""
        return self._disk is not None

    @property
    def rows(self) -> int:
        """How many rows wait."""
        files = self._disk.rows if self._disk is not None else 0
        return files + sum(len(one) for one in list(self._memory)[self._of_file :])

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk."""
        return self._disk.bytes if self._disk is not None else 0

    def add(self, rows: Rows) -> int:
        """Adds the newest rows; gives how many old ones went for it. Raises OSError."""
        if self._disk:
            return self._disk.add(rows, held=1 if self._of_file else 0)
        self._memory.append(rows)
        return 0

    def head(self) -> Rows:
        """The oldest rows; raises RowsError if they cannot be read: ``skip`` them."""
        if not self._memory:
            assert self._disk
            self._memory.append(self._disk.oldest())
            self._of_file = 1
        return self._memory[0]

    def skip(self) -> int:
        """Removes the oldest file, which cannot be read; gives how many rows it had."""
        assert self._disk
        return self._disk.remove()

    def replace(self, parts: Sequence[Rows]) -> None:
        """Puts others in the place of the oldest rows: what is left of them, or their halves."""
        self._memory.popleft()
        self._memory.extendleft(reversed(parts))
        if self._of_file:
            self._of_file += len(parts) - 1

    def pop(self) -> None:
        """The oldest rows are done."""
        self._memory.popleft()
        if self._of_file:
            self._of_file -= 1
            if not self._of_file:
                assert self._disk
                self._disk.remove()

    def save(self) -> int:
        """Writes what is in memory alone to the disk; gives how many old rows went for it.

        Raises:
            OSError: it cannot be written; what was not stays in memory.
        """
        gone = 0
        if self._disk is None or self._of_file:
            return gone
        while self._memory:
            gone += self._disk.add(self._memory[0])
            self._memory.popleft()
        return gone

    def close(self) -> int:
        """Ends it; gives how many rows are lost with it: those that are in memory alone."""
        left = sum(len(one) for one in list(self._memory)[self._of_file :])
        self._memory.clear()
        if self._disk is not None:
            self._disk.close()
        return left
