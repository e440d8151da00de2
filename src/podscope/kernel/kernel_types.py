# SPDX-License-Identifier: Apache-2.0
"""Enums of the running kernel, by its BTF: their numbers differ from kernel to kernel."""

from __future__ import annotations

import ctypes
from functools import cache

from podscope.errors import PodscopeError
from podscope.kernel.libbpf import libbpf

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
