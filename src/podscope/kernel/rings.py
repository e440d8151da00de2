# SPDX-License-Identifier: Apache-2.0
"""BPF ring buffers drained as one array: no wake-ups, no object for each record.

The layout is that of kernel/bpf/ringbuf.c: a page with the consumer's position, a page with the
producer's, and the data mapped twice in a row, so that no record is ever cut by the end.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
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
_FULL = 0.25  # a ring that has more to drain stays mapped
HEADER = 8  # BPF_RINGBUF_HDR_SZ: length with the two bits, then the page offset


class Ring:
    """The one reader of a ring whose records all have the same size.

    Records are mapped while they are drained: what is mapped counts as resident, and most rings are
    empty most of the time. A ring that was rather full stays mapped until it is found empty, which
    is much faster.
    """

    def __init__(self, fd: int, size: int, dtype: npt.DTypeLike) -> None:
        """Maps the positions of a ring of ``size`` bytes of data.

        Raises:
            PodscopeError: not a ring buffer, or of another size.
        """
        info = map_info(fd)
        if info.type != MapType.RINGBUF or info.max_entries != size:
            raise PodscopeError(f"map {info.name}: not a ring buffer of {size} bytes")
        page = mmap.PAGESIZE
        consumer = mmap.mmap(fd, page)
        producer = mmap.mmap(fd, page, prot=mmap.PROT_READ, offset=page)
        # Its own: what was told before an object was closed can still be read.
        self._fd = os.dup(fd)
        weakref.finalize(self, os.close, self._fd)
        self._name = info.name
        self._size = size
        self._slot = slot_dtype(dtype)
        self._dtype = np.dtype(dtype)
        self._consumed: npt.NDArray[np.uintp] = np.frombuffer(consumer, np.uintp, 1)
        self._produced: npt.NDArray[np.uintp] = np.frombuffer(producer, np.uintp, 1)
        self._whole: npt.NDArray[np.uint8] | None = None
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
        if not used:
            self._whole = None
            return np.empty(0, self._dtype)
        # Positions before headers: the acquire load of libbpf's ringbuf_process_ring.
        self._fence.full()
        data = self._mapped(start, used)
        slots = data[: used - used % self._slot.itemsize].view(self._slot)
        headers = slots["header"].copy()
        # The kernel sets the header last (xchg in bpf_ringbuf_commit): headers before records.
        self._fence.full()
        whole, kept = choose(headers, self._dtype.itemsize)
        if whole < 0 or used % self._slot.itemsize:
            raise self._mismatch(data)
        records = slots["record"][:whole]
        taken = records.copy() if kept is None else records[kept]
        # The records are copied before their room is given back (smp_store_release).
        self._fence.full()
        self._consumed[0] = start + whole * self._slot.itemsize
        return taken.view(self._dtype)

    def _mapped(self, start: int, used: int) -> npt.NDArray[np.uint8]:
        """Bytes of the ring from a position on."""
        first = start & (self._size - 1)
        if self._whole is None and used > self._size * _FULL:
            self._whole = self._map(0, 2 * self._size)
        if self._whole is not None:
            return self._whole[first : first + used]
        return self._map(first, used)

    def _map(self, first: int, count: int) -> npt.NDArray[np.uint8]:
        """Memory that is given back with the array."""
        page = mmap.PAGESIZE
        inside = first % page
        start = 2 * page + first - inside
        memory = mmap.mmap(self._fd, inside + count, prot=mmap.PROT_READ, offset=start)
        return np.frombuffer(memory, np.uint8, count, inside)

    def _mismatch(self, data: npt.NDArray[np.uint8]) -> PodscopeError:
        position = 0
        found = wanted = self._dtype.itemsize
        while found == wanted and position < len(data):
            header = int(data[position : position + 4].view(np.uint32)[0])
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
