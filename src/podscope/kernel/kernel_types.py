# SPDX-License-Identifier: Apache-2.0
"""Enums of the running kernel, by its BTF: their numbers differ from kernel to kernel."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np

from podscope.errors import PodscopeError
from podscope.kernel.libbpf import libbpf

KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")

_ENUM = 6  # BTF_KIND_ENUM of include/uapi/linux/btf.h


class _Type(ctypes.Structure):
    """struct btf_type, without what follows it."""

    _fields_ = [("name", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size", ctypes.c_uint32)]


class _Enum(ctypes.Structure):
    """struct btf_enum."""

    _fields_ = [("name", ctypes.c_uint32), ("value", ctypes.c_int32)]


@cache
def kernel_enum(name: str) -> dict[int, str]:
    """Enumerators of a named enum of the kernel, by number; empty if there is no such enum.

    Documentation/bpf/btf.rst, section 2.2.6.
    """
    lib = libbpf()
    try:
        types = lib.pointer("kernel BTF", "btf__load_vmlinux_btf")
    except PodscopeError:
        return {}
    try:
        number = lib.call("btf__find_by_name_kind", types, name.encode(), _ENUM)
        if number < 0:
            return {}
        address = lib.call("btf__type_by_id", types, number)
        members = _Type.from_address(address).info & 0xFFFF
        found = (_Enum * members).from_address(address + ctypes.sizeof(_Type))
        return {
            one.value: lib.call("btf__name_by_offset", types, one.name).decode() for one in found
        }
    finally:
        lib.call("btf__free", types)


def enumerator(name: str, following: str, path: Path = KERNEL_BTF) -> int | None:
    """The value of an enumerator whose enum has no name, such as those of linux/snmp.h.

    It is looked for as the C struct that it is, as going over all types takes half a second:
    ``struct btf_enum`` of Documentation/bpf/btf.rst, section 2.2.6.

    Args:
        name: the enumerator.
        following: the one that is declared after it, with the next number.
        path: raw BTF.

    Returns:
        None where these two do not follow each other, or there is no BTF.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    header, start, size, strings = np.frombuffer(data, "=u4", 4, 4).tolist()
    first, end = header + start, header + strings
    names = [data.find(f"\0{one}\0".encode(), end) + 1 - end for one in (name, following)]
    words = np.frombuffer(data, "=u4", size // 4, first)
    places = np.flatnonzero((words[:-3] == names[0]) & (words[2:-1] == names[1]))
    values = {int(words[place + 1]) for place in places if words[place + 3] == words[place + 1] + 1}
    return values.pop() if len(values) == 1 and min(names) > 0 else None
