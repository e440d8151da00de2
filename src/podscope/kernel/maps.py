# SPDX-License-Identifier: Apache-2.0
"""BPF maps read and written in bulk, as NumPy arrays."""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from typing import Self

import numpy as np
import numpy.typing as npt

from podscope.errors import PodscopeError
from podscope.kernel.libbpf import ENOTSUPP
from podscope.kernel.libbpf import BpfError
from podscope.kernel.libbpf import libbpf
from podscope.kernel.libbpf import possible_cpus

_F_MMAPABLE = 1 << 10
_BATCH = 16384  # entries asked for in one system call
_NO_BATCH = frozenset({errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP})


class MapType(IntEnum):
    """enum bpf_map_type of include/uapi/linux/bpf.h: those that podscope uses."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    QUEUE = 22
    STACK = 23
    SK_STORAGE = 24
    RINGBUF = 27


_PER_CPU = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})


@dataclass(frozen=True)
class MapInfo:
    """What the kernel says of a map. Sizes in bytes; ``max_entries`` of a ring is its bytes.

    ``key`` and ``value`` are the dtypes by BTF, where the map was declared with types.
    """

    fd: int
    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key: np.dtype[Any] | None = None
    value: np.dtype[Any] | None = None


class _BpfMapInfo(ctypes.Structure):
    """The first fields of struct bpf_map_info; the kernel fills as many as it is given."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    ]


def map_info(fd: int) -> MapInfo:
    """Asks the kernel (BPF_OBJ_GET_INFO_BY_FD) what map a descriptor is.

    Raises:
        BpfError: the descriptor is no map.
    """
    info = _BpfMapInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    libbpf().check(
        f"map descriptor {fd}", "bpf_obj_get_info_by_fd", fd, ctypes.byref(info), ctypes.byref(size)
    )
    return MapInfo(
        fd=fd,
        name=info.name.decode(),
        type=info.type,
        key_size=info.key_size,
        value_size=info.value_size,
        max_entries=info.max_entries,
        flags=info.map_flags,
    )


class HashMap:
    """A hash map, LRU or per-CPU hash, or array, read as arrays.

    Values of a per-CPU map have one more axis: a value for each possible CPU.
    """

    def __init__(
        self,
        fd: int,
        key_dtype: npt.DTypeLike,
        value_dtype: npt.DTypeLike,
        max_entries: int,
    ) -> None:
        """Raises PodscopeError if the dtypes are not of the map's sizes: memory is at stake."""
        info = map_info(fd)
        self._fd = fd
        self._name = info.name
        self._key = np.dtype(key_dtype)
        self._value = np.dtype(value_dtype)
        self._max_entries = max_entries
        self._cpus: tuple[int, ...] = ()
        _same_size(info.name, "keys", self._key, info.key_size)
        _same_size(info.name, "values", self._value, info.value_size)
        if info.type in _PER_CPU:
            # The kernel rounds each CPU's value up to 8 bytes (bpf_percpu_hash_copy).
            if self._value.itemsize % 8:
                raise PodscopeError(
                    f"map {info.name}: values of a per-CPU map must be whole 8-byte words"
                )
            self._cpus = (possible_cpus(),)

    @classmethod
    def of(cls, info: MapInfo) -> Self:
        """A map declared with ``__type(key, ...)`` and ``__type(value, ...)``."""
        if info.key is None or info.value is None:
            raise PodscopeError(f"map {info.name} was declared without types: pass the dtypes")
        return cls(info.fd, info.key, info.value, info.max_entries)

    def items(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """All keys, shape (n,), and values, shape (n,) or (n, cpus), in the kernel's order.

        Not a snapshot: entries made or deleted meanwhile may be there or not.
        """
        try:
            return self._batches()
        except BpfError as error:
            if error.code not in _NO_BATCH:
                raise
        # Per-CPU arrays have batches only since Linux commit f008d732ab18 (5.13).
        return self._walk()

    def lookup(self, key: Any) -> npt.NDArray[Any] | None:
        """The value as an array of shape () or (cpus,), or None if the key is not there."""
        raw = self._keys(key)
        value = np.empty(self._cpus, self._value)
        code = libbpf().call("bpf_map_lookup_elem", self._fd, raw.ctypes.data, value.ctypes.data)
        if code == -errno.ENOENT:
            return None
        self._raise(code, "look-up")
        return value

    def update(self, key: Any, value: Any) -> None:
        """Sets the value of a key.

        Raises:
            BpfError: the map is full (E2BIG).
        """
        raw = self._keys(key)
        new = np.empty(self._cpus, self._value)
        new[...] = value
        code = libbpf().call("bpf_map_update_elem", self._fd, raw.ctypes.data, new.ctypes.data, 0)
        self._raise(code, "update")

    def delete(self, key: Any) -> bool:
        """Removes a key. False if it was not there."""
        raw = self._keys(key)
        code = libbpf().call("bpf_map_delete_elem", self._fd, raw.ctypes.data)
        if code == -errno.ENOENT:
            return False
        self._raise(code, "delete")
        return True

    def delete_many(self, keys: npt.ArrayLike) -> int:
        """Removes keys, shape (n,); those that are not there are passed over. Returns how many."""
        raw = np.ascontiguousarray(keys, self._key)
        function = libbpf().function("bpf_map_delete_elem")
        deleted = 0
        for address in _addresses(raw):
            code = function(self._fd, address)
            if code == -errno.ENOENT:
                continue
            self._raise(code, "delete")
            deleted += 1
        return deleted

    def _keys(self, key: Any) -> npt.NDArray[Any]:
        raw = np.empty((), self._key)
        raw[...] = key
        return raw

    def _raise(self, code: int, what: str) -> None:
        if code < 0:
            raise BpfError(f"map {self._name}: {what}", -code)

    def _batches(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        parts: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
        function = libbpf().function("bpf_map_lookup_batch")
        # Of a hash map the token is a bucket's number, of an array a key.
        token = ctypes.create_string_buffer(max(8, self._key.itemsize))
        size = min(self._max_entries, _BATCH)
        start = None
        while True:
            keys = np.empty(size, self._key)
            values = np.empty((size, *self._cpus), self._value)
            count = ctypes.c_uint32(size)
            code = function(
                self._fd,
                start,
                token,
                keys.ctypes.data,
                values.ctypes.data,
                ctypes.byref(count),
                None,
            )
            if code == -errno.ENOSPC:
                # One bucket has more entries than fit: same place, more room.
                size *= 2
                continue
            if code != -errno.ENOENT:
                self._raise(code, "batch look-up")
            if count.value:
                parts.append((keys[: count.value], values[: count.value]))
            if code == -errno.ENOENT:
                return self._joined(parts)
            start = token

    def _walk(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Key by key. A key deleted under way sends the walk back to the start: keys seen pass."""
        lookup = libbpf().function("bpf_map_lookup_elem")
        seen: set[bytes] = set()
        parts: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
        for raw in self._walk_keys(4 * self._max_entries):
            value = np.empty((1, *self._cpus), self._value)
            if raw in seen or lookup(self._fd, raw, value.ctypes.data) < 0:
                continue
            seen.add(raw)
            parts.append((np.frombuffer(raw, self._key), value))
        return self._joined(parts)

    def _walk_keys(self, limit: int) -> Iterator[bytes]:
        following = libbpf().function("bpf_map_get_next_key")
        key: bytes | None = None
        found = ctypes.create_string_buffer(self._key.itemsize)
        for _ in range(limit):
            code = following(self._fd, key, found)
            if code == -errno.ENOENT:
                return
            self._raise(code, "next key")
            key = found.raw
            yield key

    def _joined(
        self, parts: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        if not parts:
            return np.empty(0, self._key), np.empty((0, *self._cpus), self._value)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([k for k, _ in parts]), np.concatenate([v for _, v in parts])


class MmapArray:
    """An array map with BPF_F_MMAPABLE as memory: ``array`` is the map itself, no copy.

    64-bit words are read and written whole; anything larger may be seen half-written. All that is
    mapped counts as resident (remap_vmalloc_range() in mm/vmalloc.c), used or not.
    """

    def __init__(self, fd: int, dtype: npt.DTypeLike, shape: int | tuple[int, ...]) -> None:
        """Maps the first bytes of a map, as many as the shape has, which may be all.

        Raises:
            PodscopeError: the map is not mmapable, or dtype and shape do not fit it.
        """
        info = map_info(fd)
        if info.type != MapType.ARRAY or not info.flags & _F_MMAPABLE:
            raise PodscopeError(
                f"map {info.name}: not an array with BPF_F_MMAPABLE: it cannot be mapped"
            )
        # array_map_alloc: each value begins at a multiple of 8 bytes.
        stride = -(-info.value_size // 8) * 8
        wanted = np.dtype(dtype)
        axes = (shape,) if isinstance(shape, int) else shape
        gaps = wanted.itemsize == info.value_size != stride and len(axes) == 1
        size = math.prod(axes) * (stride if gaps else wanted.itemsize)
        if size > stride * info.max_entries or size % stride:
            raise PodscopeError(
                f"map {info.name}: {info.max_entries} values of {info.value_size} bytes "
                f"are not an array of shape {axes} of {wanted.itemsize} bytes each"
            )
        self._memory = mmap.mmap(fd, _pages(size))
        strides = (stride,) if gaps else None
        self.array: npt.NDArray[Any] = np.ndarray(axes, wanted, self._memory, strides=strides)

    @classmethod
    def of(cls, info: MapInfo) -> Self:
        """A map declared with ``__type(value, ...)``: one element for each value."""
        if info.value is None:
            raise PodscopeError(f"map {info.name} was declared without types: pass the dtype")
        return cls(info.fd, info.value, (info.max_entries,))


class StackMap:
    """A BPF_MAP_TYPE_STACK (last in, first out) or QUEUE (first in, first out)."""

    def __init__(self, fd: int, dtype: npt.DTypeLike) -> None:
        """Raises PodscopeError if the dtype is not of the size of the map's values."""
        info = map_info(fd)
        if info.type not in (MapType.STACK, MapType.QUEUE):
            raise PodscopeError(f"map {info.name}: neither a stack nor a queue")
        self._fd = fd
        self._name = info.name
        self._value = np.dtype(dtype)
        _same_size(info.name, "values", self._value, info.value_size)

    def push(self, values: npt.ArrayLike) -> None:
        """Pushes values, shape (n,), the first one first.

        Raises:
            BpfError: the map is full (E2BIG); those before it are in.
        """
        raw = np.ascontiguousarray(values, self._value)
        function = libbpf().function("bpf_map_update_elem")
        for address in _addresses(raw):
            code = function(self._fd, None, address, 0)
            if code < 0:
                raise BpfError(f"map {self._name}: push", -code)

    def pop(self) -> npt.NDArray[Any] | None:
        """Takes one value, shape (), or None if the map is empty."""
        value = np.empty((), self._value)
        code = libbpf().call("bpf_map_lookup_and_delete_elem", self._fd, None, value.ctypes.data)
        if code == -errno.ENOENT:
            return None
        if code < 0:
            raise BpfError(f"map {self._name}: pop", -code)
        return value


def _addresses(values: npt.NDArray[Any]) -> range:
    start = values.ctypes.data
    return range(start, start + values.nbytes, values.itemsize)


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _same_size(name: str, what: str, dtype: np.dtype[Any], size: int) -> None:
    if dtype.itemsize != size:
        raise PodscopeError(f"map {name}: {what} are {size} bytes, the dtype has {dtype.itemsize}")
