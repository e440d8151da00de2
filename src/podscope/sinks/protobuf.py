# SPDX-License-Identifier: Apache-2.0
"""The wire format of protocol buffers, as far as sinks need it.

Messages are put together from parts that stay the same and numbers from arrays: an object for each
row, as generated classes have it, costs several times as much. Tests decode what is made here with
the official classes. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import struct

import numpy as np

from podscope.schema import Array

_DOUBLE = struct.Struct("<d")
_FIXED64 = struct.Struct("<Q")


def varint(number: int) -> bytes:
    """A number that is not negative, or one of 64 bits in two's complement."""
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
