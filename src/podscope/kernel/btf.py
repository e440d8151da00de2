# SPDX-License-Identifier: Apache-2.0
"""BTF (Documentation/bpf/btf.rst in Linux) to NumPy dtypes: the C struct is the schema.

``char x[N]`` becomes ``S<N>``, ``__u8 x[N]`` a subarray of ``u1``, an enum its integer,
a pointer ``u8``. Members of unnamed structs and unions are lifted into the outer one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any
from typing import NamedTuple

import numpy as np

from podscope.errors import PodscopeError

_MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")
_PAIR = struct.Struct("=II")
_TRIPLE = struct.Struct("=III")
_WORD = struct.Struct("=I")


class Kind(IntEnum):
    """BTF_KIND_* of include/uapi/linux/btf.h."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# Bytes that follow a type: (fixed, for each of its vlen members).
_TRAILING = {
    Kind.INT: (4, 0),
    Kind.ARRAY: (12, 0),
    Kind.STRUCT: (0, 12),
    Kind.UNION: (0, 12),
    Kind.ENUM: (0, 8),
    Kind.FUNC_PROTO: (0, 8),
    Kind.VAR: (4, 0),
    Kind.DATASEC: (0, 12),
    Kind.DECL_TAG: (4, 0),
    Kind.ENUM64: (0, 12),
}
_TRANSPARENT = frozenset(
    {Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG, Kind.VAR}
)
_COMPOUND = frozenset({Kind.STRUCT, Kind.UNION})
_ENUMS = frozenset({Kind.ENUM, Kind.ENUM64})
_INT_SIGNED = 1
_INT_BOOL = 4
_DAMAGED = (RecursionError, ValueError, TypeError, OverflowError, IndexError, struct.error)


class Type(NamedTuple):
    """One BTF type. ``size`` is bytes or, for kinds that refer to a type, its id."""

    kind: Kind
    name: str
    length: int
    flag: bool
    size: int
    offset: int  # of what follows it in the data


class Variable(NamedTuple):
    """A global variable: where it lies in its section, in bytes, and its type's id."""

    name: str
    type_id: int
    offset: int
    size: int


class BtfError(PodscopeError):
    """BTF that is damaged, or a type that an array cannot hold."""


@contextmanager
def _damage() -> Iterator[None]:
    """What reading past the end, around in a circle, or impossible sizes raise."""
    try:
        yield
    except _DAMAGED as error:
        raise BtfError(f"BTF is damaged: {error}") from None


@dataclass(frozen=True)
class Btf:
    """The types of one object. Build it with :func:`parse` or :func:`read_elf`."""

    data: bytes
    types: tuple[Type, ...]
    ids: dict[tuple[Kind, str], int]

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype of a struct, union or typedef, padded as in C.

        Raises:
            BtfError: there is no such type, or an array cannot hold it (bit fields,
                128-bit integers, incomplete types).
        """
        for kind in (Kind.STRUCT, Kind.UNION, Kind.TYPEDEF):
            found = self.ids.get((kind, name))
            if found is not None:
                return self.dtype_of(found)
        raise BtfError(f"BTF has no struct {name}: declare a variable or pointer of that type in C")

    def dtype_of(self, type_id: int) -> np.dtype[Any]:
        """The dtype of a type by its id. Raises BtfError as :meth:`dtype` does."""
        with _damage():
            return self._dtype(type_id, f"type {type_id}")

    def enum(self, name: str) -> dict[str, int]:
        """The values of an enum by enumerator, in the order of the declaration.

        Raises:
            BtfError: there is no such enum.
        """
        for kind in (Kind.ENUM, Kind.ENUM64):
            found = self.ids.get((kind, name))
            if found is None:
                continue
            with _damage():
                return self._enumerators(self.types[found])
        raise BtfError(f"BTF has no enum {name}: use the enum as a type in C")

    def sections(self) -> tuple[str, ...]:
        """Names of the sections that have variables, such as ``.rodata`` and ``.bss``."""
        return tuple(name for kind, name in self.ids if kind == Kind.DATASEC)

    def variables(self, section: str) -> tuple[Variable, ...]:
        """The variables of a section. Offsets are right only once libbpf has opened the object."""
        found = self.ids.get((Kind.DATASEC, section))
        if found is None:
            return ()
        with _damage():
            return tuple(
                Variable(self.types[type_id].name, type_id, offset, size)
                for type_id, offset, size in self._members(self.types[found])
            )

    def _members(self, owner: Type) -> Iterator[tuple[int, int, int]]:
        end = owner.offset + 12 * owner.length
        return _TRIPLE.iter_unpack(self.data[owner.offset : end])

    def _enumerators(self, owner: Type) -> dict[str, int]:
        names = _names(self.data)
        if owner.kind == Kind.ENUM64:
            return {
                names(name): _sign(low | high << 32, 64, owner.flag)
                for name, low, high in self._members(owner)
            }
        pairs = _PAIR.iter_unpack(self.data[owner.offset : owner.offset + 8 * owner.length])
        return {names(name): _sign(value, 32, owner.flag) for name, value in pairs}

    def _resolve(self, type_id: int) -> Type:
        found = self.types[type_id]
        for _ in range(len(self.types)):
            if found.kind not in _TRANSPARENT:
                return found
            found = self.types[found.size]
        raise BtfError("BTF is damaged: a type refers to itself")

    def _dtype(self, type_id: int, where: str) -> np.dtype[Any]:
        found = self._resolve(type_id)
        if found.kind in _COMPOUND:
            return self._compound(found, where)
        if found.kind == Kind.ARRAY:
            return self._array(found, where)
        if found.kind == Kind.INT:
            return self._integer(found, where)
        if found.kind in _ENUMS:
            return np.dtype(f"{'i' if found.flag else 'u'}{found.size}")
        if found.kind == Kind.PTR:
            return np.dtype(np.uintp)
        if found.kind == Kind.FLOAT and found.size in (4, 8):
            return np.dtype(f"f{found.size}")
        raise BtfError(f"{where}: an array cannot hold a {found.kind.name.lower()} {found.name}")

    def _integer(self, found: Type, where: str) -> np.dtype[Any]:
        (encoding,) = _WORD.unpack_from(self.data, found.offset)
        if encoding & 0xFF != found.size * 8 or found.size > 8:
            raise BtfError(f"{where}: {found.name} of {encoding & 0xFF} bits fits no NumPy integer")
        if found.name == "char":
            return np.dtype("S1")
        flags = encoding >> 24
        if flags & _INT_BOOL:
            return np.dtype(np.bool_)
        return np.dtype(f"{'i' if flags & _INT_SIGNED else 'u'}{found.size}")

    def _array(self, found: Type, where: str) -> np.dtype[Any]:
        element_id, _, count = _TRIPLE.unpack_from(self.data, found.offset)
        element = self._resolve(element_id)
        if element.kind == Kind.INT and element.name == "char" and count:
            return np.dtype(f"S{count}")
        inner = self._dtype(element_id, where)
        return np.dtype((inner.base, (count, *inner.shape)))

    def _compound(self, found: Type, where: str) -> np.dtype[Any]:
        outer = f"{found.kind.name.lower()} {found.name}" if found.name else where
        names: list[str] = []
        formats: list[np.dtype[Any]] = []
        offsets: list[int] = []
        for name, inner, offset in self._fields(found, outer, 0):
            names.append(name)
            formats.append(inner)
            offsets.append(offset)
        return np.dtype(
            {"names": names, "formats": formats, "offsets": offsets, "itemsize": found.size}
        )

    def _fields(
        self, owner: Type, where: str, base: int
    ) -> Iterator[tuple[str, np.dtype[Any], int]]:
        names = _names(self.data)
        for name_offset, type_id, position in self._members(owner):
            name = names(name_offset)
            bits = position & 0xFFFFFF if owner.flag else position
            if (owner.flag and position >> 24) or bits % 8:
                raise BtfError(f"{where}: {name} is a bit field: make it a whole integer")
            inner = self._resolve(type_id)
            if not name and inner.kind in _COMPOUND:
                yield from self._fields(inner, where, base + bits // 8)
                continue
            yield name, self._dtype(type_id, f"{where}: {name}"), base + bits // 8


def parse(data: bytes) -> Btf:
    """Reads raw BTF: a header, types, strings.

    Raises:
        BtfError: the data is no BTF, of another byte order, or cut short.
    """
    with _damage():
        return _parse(data)


def read_elf(path: Path) -> Btf:
    """Reads the section .BTF of an ELF object file (64 bits, this machine's byte order).

    Raises:
        BtfError: no such file, no ELF, or no BTF inside.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BtfError(f"{path}: {error.strerror}") from None
    if data[:5] != b"\x7fELF\x02":
        raise BtfError(f"{path}: not a 64-bit ELF file")
    try:
        section = _elf_section(data, b".BTF")
    except (struct.error, ValueError):
        raise BtfError(f"{path}: damaged ELF file") from None
    if section is None:
        raise BtfError(f"{path}: no BTF inside: compile it with clang -g")
    return parse(section)


def _elf_section(data: bytes, wanted: bytes) -> bytes | None:
    (table,) = struct.unpack_from("=Q", data, 0x28)
    entry, count, name_index = struct.unpack_from("=HHH", data, 0x3A)
    headers = [struct.unpack_from("=IIQQQQ", data, table + i * entry) for i in range(count)]
    if name_index >= count:
        return None
    names = headers[name_index][4]
    for name, _, _, _, offset, size in headers:
        start = names + name
        if data[start : data.index(b"\0", start)] == wanted:
            return data[offset : offset + size]
    return None


def _parse(data: bytes) -> Btf:
    magic, _, _, header, type_start, type_size, _, _ = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise BtfError("BTF is damaged or of another byte order: bad magic number")
    names = _names(data)
    types = [Type(Kind.VOID, "void", 0, False, 0, 0)]
    ids: dict[tuple[Kind, str], int] = {}
    position = header + type_start
    end = position + type_size
    while position < end:
        name_offset, info, size = _TYPE.unpack_from(data, position)
        kind = Kind(info >> 24 & 0x1F)
        length = info & 0xFFFF
        fixed, each = _TRAILING.get(kind, (0, 0))
        position += _TYPE.size
        name = names(name_offset)
        if name:
            ids.setdefault((kind, name), len(types))
        types.append(Type(kind, name, length, bool(info >> 31), size, position))
        position += fixed + each * length
    if position > len(data):
        raise BtfError("BTF is damaged: cut short")
    return Btf(data, tuple(types), ids)


def _names(data: bytes) -> Any:
    """A function from an offset in the string section to the string."""
    _, _, _, header, _, _, start, size = _HEADER.unpack_from(data)
    first = header + start

    def name(offset: int) -> str:
        begin = first + offset
        return data[begin : data.index(b"\0", begin, first + size)].decode()

    return name


def _sign(value: int, bits: int, signed: bool) -> int:
    return value - (1 << bits) if signed and value >> (bits - 1) else value
