# SPDX-License-Identifier: Apache-2.0
"""libbpf by ctypes: the functions that podscope calls, loaded when first asked for.

libbpf raises RLIMIT_MEMLOCK by itself on kernels that charge BPF memory to it (before Linux
commit 97306be45fbe, "bpf: memcg-based memory accounting", in 5.11), so nothing here does.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import deque
from ctypes import POINTER
from ctypes import c_bool
from ctypes import c_char_p
from ctypes import c_int
from ctypes import c_size_t
from ctypes import c_uint32
from ctypes import c_uint64
from ctypes import c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from podscope.errors import PodscopeError

BUNDLED = Path(__file__).parent.parent / "_bpf" / "libbpf.so"
SYSTEM = "libbpf.so.1"
ENOTSUPP = 524  # the kernel's own errno; it has no name in user space
LIBBPF_DEBUG = 2
MORE_FILES = "raise the limit of open files: ulimit -n 1024"

_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_OBJECT = _PROGRAM = _MAP = _LINK = _OPTIONS = _BUFFER = c_void_p
_COUNT = POINTER(c_uint32)

# name: (result, arguments...), from libbpf.h, bpf.h and btf.h of libbpf 1.0.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "libbpf_version_string": (c_char_p,),
    "libbpf_num_possible_cpus": (c_int,),
    "libbpf_strerror": (c_int, c_int, c_char_p, c_size_t),
    "libbpf_set_print": (c_void_p, _PRINT),
    "libbpf_find_vmlinux_btf_id": (c_int, c_char_p, c_int),
    "bpf_object__open_file": (_OBJECT, c_char_p, _OPTIONS),
    "bpf_object__load": (c_int, _OBJECT),
    "bpf_object__close": (None, _OBJECT),
    "bpf_object__btf": (c_void_p, _OBJECT),
    "bpf_object__next_map": (_MAP, _OBJECT, _MAP),
    "bpf_object__next_program": (_PROGRAM, _OBJECT, _PROGRAM),
    "bpf_object__find_map_by_name": (_MAP, _OBJECT, c_char_p),
    "bpf_object__find_program_by_name": (_PROGRAM, _OBJECT, c_char_p),
    "btf__raw_data": (c_void_p, c_void_p, _COUNT),
    "btf__load_vmlinux_btf": (c_void_p,),
    "btf__find_by_name_kind": (c_int, c_void_p, c_char_p, c_uint32),
    "btf__type_by_id": (c_void_p, c_void_p, c_uint32),
    "btf__name_by_offset": (c_char_p, c_void_p, c_uint32),
    "btf__free": (None, c_void_p),
    "bpf_map__name": (c_char_p, _MAP),
    "bpf_map__fd": (c_int, _MAP),
    "bpf_map__btf_key_type_id": (c_uint32, _MAP),
    "bpf_map__btf_value_type_id": (c_uint32, _MAP),
    "bpf_map__initial_value": (c_void_p, _MAP, POINTER(c_size_t)),
    "bpf_map__set_max_entries": (c_int, _MAP, c_uint32),
    "bpf_program__name": (c_char_p, _PROGRAM),
    "bpf_program__fd": (c_int, _PROGRAM),
    "bpf_program__set_autoload": (c_int, _PROGRAM, c_bool),
    "bpf_program__attach": (_LINK, _PROGRAM),
    "bpf_program__attach_cgroup": (_LINK, _PROGRAM, c_int),
    "bpf_program__attach_iter": (_LINK, _PROGRAM, _OPTIONS),
    "bpf_link__fd": (c_int, _LINK),
    "bpf_link__destroy": (c_int, _LINK),
    "bpf_iter_create": (c_int, c_int),
    "bpf_link_create": (c_int, c_int, c_int, c_int, _OPTIONS),
    "bpf_prog_test_run_opts": (c_int, c_int, _OPTIONS),
    "bpf_prog_load": (c_int, c_int, c_char_p, c_char_p, _BUFFER, c_size_t, _OPTIONS),
    "bpf_btf_load": (c_int, _BUFFER, c_size_t, _OPTIONS),
    "bpf_obj_get_info_by_fd": (c_int, c_int, _BUFFER, _COUNT),
    "bpf_map_create": (c_int, c_int, c_char_p, c_uint32, c_uint32, c_uint32, _OPTIONS),
    "bpf_map_lookup_elem": (c_int, c_int, _BUFFER, _BUFFER),
    "bpf_map_lookup_and_delete_elem": (c_int, c_int, _BUFFER, _BUFFER),
    "bpf_map_update_elem": (c_int, c_int, _BUFFER, _BUFFER, c_uint64),
    "bpf_map_delete_elem": (c_int, c_int, _BUFFER),
    "bpf_map_get_next_key": (c_int, c_int, _BUFFER, _BUFFER),
    "bpf_map_lookup_batch": (c_int, c_int, *4 * (_BUFFER,), _COUNT, _OPTIONS),
}


class BpfError(PodscopeError):
    """libbpf or the kernel refused something. ``code`` is the errno."""

    def __init__(self, what: str, code: int, detail: str = "") -> None:
        reason = describe_error(code)
        if detail and reason not in detail:
            reason = f"{reason}: {detail}"
        if code == errno.EMFILE:
            reason = f"{reason}: {MORE_FILES}"
        super().__init__(f"{what}: {reason}")
        self.code = code


class Libbpf:
    """One loaded libbpf. ``messages`` has the last lines it would have printed."""

    def __init__(self, library: ctypes.CDLL, path: str) -> None:
        self.path = path
        self.messages: deque[str] = deque(maxlen=64)
        self._functions = _declare(library, path)
        # ctypes frees a callback that nobody holds.
        self._print = _PRINT(_printer(self.messages))
        self._functions["libbpf_set_print"](self._print)

    @property
    def version(self) -> str:
        """As libbpf says it, without the leading v: ``1.1``."""
        text: bytes = self.call("libbpf_version_string")
        return text.decode().removeprefix("v")

    def function(self, name: str) -> Any:
        """The foreign function, for loops that call it often."""
        return self._functions[name]

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls it and returns what it returned."""
        return self._functions[name](*arguments)

    def check(self, what: str, name: str, *arguments: Any) -> int:
        """Calls a function that returns -errno; raises BpfError, which begins with ``what``."""
        self.messages.clear()
        result: int = self._functions[name](*arguments)
        if result < 0:
            raise BpfError(what, -result, self.last_message())
        return result

    def pointer(self, what: str, name: str, *arguments: Any) -> int:
        """Calls a function that returns NULL and sets errno; raises BpfError."""
        self.messages.clear()
        result: int | None = self._functions[name](*arguments)
        if not result:
            raise BpfError(what, ctypes.get_errno(), self.last_message())
        return result

    def last_message(self) -> str:
        """The first line of libbpf's last message, or an empty string."""
        if not self.messages:
            return ""
        return self.messages[-1].splitlines()[0].removeprefix("libbpf: ")


@cache
def libbpf() -> Libbpf:
    """The libbpf of this process: the wheel's own, else the system's.

    Raises:
        PodscopeError: no libbpf 1.x is installed, or it lacks a function.
    """
    for path in (str(BUNDLED), SYSTEM):
        if path == str(BUNDLED) and not BUNDLED.exists():
            continue
        try:
            library = ctypes.CDLL(path, use_errno=True)
        except OSError:
            continue
        return Libbpf(library, path)
    raise PodscopeError(
        f"{SYSTEM} was not found: install libbpf 1.x (Debian and Ubuntu: apt-get install libbpf1)"
    )


def loaded_file(name: str = "libbpf") -> str:
    """Path of the library as the kernel mapped it, or an empty string. From /proc/self/maps."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[1] + line.partition("/")[2]
        if Path(path).name.startswith(f"{name}.so"):
            return path
    return ""


def possible_cpus() -> int:
    """How many CPUs the kernel counts for: all that may ever be there."""
    return int(libbpf().call("libbpf_num_possible_cpus"))


def describe_error(code: int) -> str:
    """Text of an errno, of the kernel's ENOTSUPP, or of one of libbpf's own codes."""
    if code == ENOTSUPP:
        return "not supported by this kernel"
    if code < 4000:
        return os.strerror(code)
    buffer = ctypes.create_string_buffer(128)
    libbpf().call("libbpf_strerror", code, buffer, len(buffer))
    return buffer.value.decode(errors="replace")


def error_name(code: int) -> str:
    """``EINVAL`` for 22; the number where there is no name."""
    return "ENOTSUPP" if code == ENOTSUPP else errno.errorcode.get(code, f"error {code}")


def _declare(library: ctypes.CDLL, path: str) -> dict[str, Any]:
    functions = {}
    for name, (result, *arguments) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise PodscopeError(
                f"{path} has no {name}: install libbpf 1.0 or newer (Debian: libbpf1)"
            ) from None
        function.restype = result
        function.argtypes = arguments
        functions[name] = function
    return functions


def _printer(messages: deque[str]) -> Any:
    """A libbpf_print_fn_t that keeps warnings and notes, and prints nothing."""
    libc = ctypes.CDLL(None)
    # A va_list as an argument is one pointer on x86-64, arm64 (AAPCS64 6.8.2) and riscv64.
    libc.vasprintf.argtypes = (POINTER(c_void_p), c_char_p, c_void_p)
    libc.free.argtypes = (c_void_p,)

    def keep(level: int, template: bytes, values: int) -> int:
        if level >= LIBBPF_DEBUG:
            return 0
        text = c_void_p()
        length = libc.vasprintf(ctypes.byref(text), template, values)
        if length < 0:
            return 0
        messages.append(ctypes.string_at(text, length).decode(errors="replace").rstrip())
        libc.free(text)
        return 0

    return keep
