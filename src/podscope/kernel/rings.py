# SPDX-License-Identifier: Apache-2.0
"""BPF ring buffers drained as one array: no wake-ups, no object for each record.

The layout is that of kernel/bpf/ringbuf.c: a page with the consumer's position, a page with the
producer's, and the data mapped twice in a row, so that no record is ever cut by the end.
"""

from __future__ import annotations

import mmap
import threading
from typing import Any
from typing import Self

import numpy as np
import numpy.typing as npt

from podscope.errors import PodscopeError
from podscope.kernel.maps import MapInfo
from podscope.kernel.maps import MapType
from podscope.kernel.maps import map_info

BUSY = 1 << 31  # BPF_RINGBUF_BUSY_BIT: reserved, not yet submitted
DISCARD = 1 << 30  # BPF_RINGBUF_DISCARD_BIT
HEADER = 8  # BPF_RINGBUF_HDR_SZ: length with the two bits, then the page offset


class Ring:
    """The one reader of a ring whose records all have the same size."""

    def __init__(self, fd: int, size: int, dtype: npt.DTypeLike) -> None:
        """Maps a ring of ``size`` bytes of data.

        Raises:
            PodscopeError: not a ring buffer, or of another size.
        """
        info = map_info(fd)
        if info.type != MapType.RINGBUF or info.max_entries != size:
            raise PodscopeError(f"map {info.name}: not a ring buffer of {size} bytes")
        page = mmap.PAGESIZE
        consumer = mmap.mmap(fd, page)
        producer = mmap.mmap(fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        self._name = info.name
        self._size = size
        self._slot = slot_dtype(dtype)
        self._dtype = np.dtype(dtype)
        self._consumed: npt.NDArray[np.uintp] = np.frombuffer(consumer, np.uintp, 1)
        self._produced: npt.NDArray[np.uintp] = np.frombuffer(producer, np.uintp, 1)
        self._data: npt.NDArray[np.uint8] = np.frombuffer(producer, np.uint8, offset=page)
        self._fence = Fence()

    @classmethod
    def of(cls, info: MapInfo, dtype: npt.DTypeLike) -> Self:
        """The ring of ``BpfObject.map(name)``."""
        return cls(info.fd, info.max_entries, dtype)

    def pending(self) -> int:
        """Bytes in use: records not drained yet, with their headers, busy ones too."""
        consumed = int(self._consumed[0])
        return int(self._produced[0]) - consumed

    def drain(self) -> npt.NDArray[Any]:
        """Takes all records up to the first that is still being written; a copy, shape (n,).

        Raises:
            PodscopeError: a record has another size. Nothing is taken then.
        """
        start = int(self._consumed[0])
        used = int(self._produced[0]) - start
        # Positions before headers: the acquire load of libbpf's ringbuf_process_ring.
        self._fence.full()
        slots = self._slots(start, used)
        headers = slots["header"].copy()
        # The kernel sets the header last (xchg in bpf_ringbuf_commit): headers before records.
        self._fence.full()
        whole, kept = choose(headers, self._dtype.itemsize)
        if whole < 0 or used % self._slot.itemsize:
            raise self._mismatch(start, used)
        records = slots["record"][:whole]
        taken = records.copy() if kept is None else records[kept]
        # The records are copied before their room is given back (smp_store_release).
        self._fence.full()
        self._consumed[0] = start + whole * self._slot.itemsize
        return taken.view(self._dtype)

    def _slots(self, start: int, used: int) -> npt.NDArray[Any]:
        first = start & (self._size - 1)
        return self._data[first : first + used - used % self._slot.itemsize].view(self._slot)

    def _mismatch(self, start: int, used: int) -> PodscopeError:
        position = start & (self._size - 1)
        end = position + used
        found = wanted = self._dtype.itemsize
        while found == wanted and position < end:
            header = int(self._data[position : position + 4].view(np.uint32)[0])
            found = header & ~(BUSY | DISCARD)
            position += HEADER + -(-found // 8) * 8
        return PodscopeError(
            f"ring {self._name}: records of {found} bytes, not of {wanted}: "
            "the program and the reader do not match"
        )


class Fence:
    """A full memory barrier: to unlock and then lock synchronizes memory (POSIX.1-2017, 4.12).

    Where loads are not reordered (x86-64) only the order in this program counts; arm64 needs it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def full(self) -> None:
        """Orders every access before it with every access after it."""
        self._lock.release()
        self._lock.acquire()


def slot_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """A record in the ring: its header, then the record as plain bytes, up to 8 bytes' multiple."""
    size = np.dtype(dtype).itemsize
    return np.dtype(
        {
            "names": ["header", "record"],
            "formats": ["u4", f"V{size}"],
            "offsets": [0, HEADER],
            "itemsize": HEADER + -(-size // 8) * 8,
        }
    )


def choose(headers: npt.NDArray[np.uint32], size: int) -> tuple[int, npt.NDArray[np.bool_] | None]:
    """Which records may be taken.

    Args:
        headers: first words of the records' headers, shape (n,).
        size: bytes that each record must have.

    Returns:
        How many records from the first lie before the first busy one, -1 if one of them has
        another size; and a mask, shape (that,), of those not discarded, None if all are kept.
    """
    plain = headers == size
    if plain.all():
        return len(headers), None
    busy = np.flatnonzero(headers & np.uint32(BUSY))
    whole = int(busy[0]) if busy.size else len(headers)
    if ((headers[:whole] & ~np.uint32(DISCARD)) != size).any():
        return -1, None
    return whole, plain[:whole]
