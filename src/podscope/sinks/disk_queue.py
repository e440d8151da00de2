# SPDX-License-Identifier: Apache-2.0
"""Rows that wait on disk, oldest first; they outlive the process."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from podscope.errors import PodscopeError
from podscope.sinks import rows
from podscope.sinks.rows import Rows
from podscope.sinks.rows import RowsError

# Number in the queue, and how many rows: they are counted without being read.
_NAME = re.compile(r"(\d{12})-(\d+)\.rows")


class DiskQueue:
    """A directory of files, each with some rows. One process at a time has it.

    Args:
        path: the directory; it is made if it is not there.
        most: bytes of all files; beyond that the oldest go.

    Raises:
        PodscopeError: the directory cannot be written, or another process has it.
    """

    def __init__(self, path: str, most: int) -> None:
        self._path = Path(path)
        self._most = most
        try:
            self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise PodscopeError(f"cannot queue rows in {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise PodscopeError(
                f"another podscope has the queue in {path}: give each its own path"
            ) from None
        for torn in self._path.glob("*.tmp"):
            torn.unlink(missing_ok=True)
        self._files = [*self._found()]
        self._next = self._files[-1][0] + 1 if self._files else 0

    def __len__(self) -> int:
        """How many files there are."""
        return len(self._files)

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, _, size in self._files)

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(count for _, count, _ in self._files)

    def add(self, one: Rows, held: int = 0) -> int:
        """Writes rows as the newest; gives how many old ones went for it.

        Args:
            one: the rows.
            held: so many of the oldest files stay whatever happens.

        Raises:
            OSError: it cannot be written.
        """
        raw = rows.packed(one)
        gone = 0
        while len(self._files) > held and self.bytes + len(raw) > self._most:
            gone += self.remove(held)
        if len(raw) > self._most:
            return gone + len(one)
        file = self._file(self._next, len(one))
        torn = file.with_suffix(".tmp")
        try:
            with open(torn, "wb") as stream:
                stream.write(raw)
                stream.flush()
                os.fsync(stream.fileno())
            torn.rename(file)
        except OSError:
            torn.unlink(missing_ok=True)
            raise
        self._files.append((self._next, len(one), len(raw)))
        self._next += 1
        return gone

    def oldest(self) -> Rows:
        """The oldest rows, which stay.

        Raises:
            RowsError: they cannot be read; ``remove`` them.
        """
        number, count, _ = self._files[0]
        try:
            found = rows.unpacked(self._file(number, count).read_bytes())
        except OSError as error:
            raise RowsError(str(error.strerror)) from None
        if len(found) != count:
            raise RowsError("some rows are missing")
        return found

    def remove(self, place: int = 0) -> int:
        """Removes the oldest rows, or those behind them; gives how many."""
        number, count, _ = self._files.pop(place)
        self._file(number, count).unlink(missing_ok=True)
        return count

    def close(self) -> None:
        """Lets another process have it."""
        os.close(self._lock)

    def _file(self, number: int, count: int) -> Path:
        return self._path / f"{number:012d}-{count}.rows"

    def _found(self) -> Iterator[tuple[int, int, int]]:
        for file in sorted(self._path.glob("*.rows")):
            if match := _NAME.fullmatch(file.name):
                yield int(match[1]), int(match[2]), file.stat().st_size
