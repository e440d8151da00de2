# SPDX-License-Identifier: Apache-2.0
"""The wire format of protocol buffers, as far as sinks need it.

Messages are put together from parts that stay the same and numbers from arrays: an object for each
row, as generated classes have it, costs several times as much. Tests decode what is made here with
the official classes. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from podscope.schema import Array

_DOUBLE = struct.Struct("<d")
_FIXED64 = struct.Struct("<Q")
_SMALL = [bytes((number,)) for number in range(0x80)]


def varint(number: int) -> bytes:
    """A number that is not negative, or one of 64 bits in two's complement."""
    if 0 <= number < 0x80:
        return _SMALL[number]
    number &= (1 << 64) - 1
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def sint(number: int) -> bytes:
    """A number that is often negative: zigzag."""
    return varint(number << 1 ^ number >> 63)


def key(field: int, wire_type: int) -> bytes:
    """What stands before each value."""
    return varint(field << 3 | wire_type)


def of_length(field: int, value: bytes) -> bytes:
    """Bytes, a message, or packed numbers."""
    return key(field, 2) + varint(len(value)) + value


def text(field: int, value: str) -> bytes:
    """A string; lone surrogates, which UTF-8 does not have, become question marks."""
    return of_length(field, value.encode("utf-8", "replace"))


def varints(column: Array) -> list[bytes]:
    """Each number of an int64 array by itself."""
    left = column.astype(np.int64).view(np.uint64)
    width = max((int(left.max()).bit_length() + 6) // 7, 1) if len(left) else 1
    shifts = np.arange(width, dtype=np.uint64) * np.uint64(7)
    digits = ((left[:, None] >> shifts) & np.uint64(0x7F)).astype(np.uint8)
    # How many are needed: those up to the last that is not zero.
    lengths = np.maximum(width - np.argmax(digits[:, ::-1] != 0, axis=1), 1)
    lengths[left == 0] = 1
    digits[np.arange(width) < (lengths - 1)[:, None]] |= 0x80
    raw = digits.tobytes()
    starts = range(0, len(raw), width)
    return [raw[at : at + n] for at, n in zip(starts, lengths.tolist(), strict=True)]


def doubles(column: Array) -> list[bytes]:
    """Each number of a float array as eight bytes."""
    raw = column.astype("<f8").tobytes()
    return [raw[at : at + 8] for at in range(0, len(raw), 8)]


def fixed64s(column: Array) -> list[bytes]:
    """Each number of an int64 array as eight bytes."""
    raw = column.astype("<i8").tobytes()
    return [raw[at : at + 8] for at in range(0, len(raw), 8)]


def with_lengths(head: bytes, parts: list[bytes]) -> list[bytes]:
    """Each part behind what stands before it: a key, and its length."""
    heads = {size: head + varint(size) for size in set(map(len, parts))}
    return [heads[len(part)] + part for part in parts]


def number(field: int, value: int) -> bytes:
    """An integer or enum."""
    return key(field, 0) + varint(value)


def signed(field: int, value: int) -> bytes:
    """A sint32 or sint64."""
    return key(field, 0) + sint(value)


def double(field: int, value: float) -> bytes:
    """A double."""
    return key(field, 1) + _DOUBLE.pack(value)


def fixed64(field: int, value: int) -> bytes:
    """A fixed64."""
    return key(field, 1) + _FIXED64.pack(value)


def packed(field: int, values: Array) -> bytes:
    """Varints of an array, one after the other; none for an empty one."""
    if not len(values):
        return b""
    if values.max() < 0x80:
        return of_length(field, values.astype(np.uint8).tobytes())
    return of_length(field, b"".join(map(varint, values.tolist())))


def fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a message: integers, and bytes for all that has a length.

    Raises:
        ValueError: it ends in the middle, or is no message.
    """
    at = 0
    while at < len(raw):
        tag, at = _read_varint(raw, at)
        wire_type = tag & 7
        if wire_type == 0:
            value, at = _read_varint(raw, at)
            yield tag >> 3, value
            continue
        if wire_type == 2:
            size, at = _read_varint(raw, at)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"no wire type: {wire_type}")
        if at + size > len(raw):
            raise ValueError("the message ends in the middle of a field")
        part = raw[at : at + size]
        at += size
        yield tag >> 3, part if wire_type == 2 else int.from_bytes(part, "little")


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while at < len(raw) and shift < 70:
        found |= (raw[at] & 0x7F) << shift
        at += 1
        if raw[at - 1] < 0x80:
            return found & ((1 << 64) - 1), at
        shift += 7
    raise ValueError("a number that does not end")
