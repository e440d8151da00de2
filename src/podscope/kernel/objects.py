# SPDX-License-Identifier: Apache-2.0
"""Compiled BPF objects: open, set constants, load, attach, read global variables.

Links are descriptors, never pinned: what is attached vanishes with the process.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from typing import Self

import numpy as np
import numpy.typing as npt

from podscope.errors import PodscopeError
from podscope.kernel import btf
from podscope.kernel.libbpf import MORE_FILES
from podscope.kernel.libbpf import BpfError
from podscope.kernel.libbpf import describe_error
from podscope.kernel.libbpf import error_name
from podscope.kernel.libbpf import libbpf
from podscope.kernel.maps import MapInfo
from podscope.kernel.maps import map_info

PROGRAMS = Path(__file__).parent.parent / "_bpf"

_REFUSED = re.compile(r"prog '([^']+)': BPF program load failed")
_LOG = re.compile(r"-- BEGIN PROG LOAD LOG --\n(.*?)-- END PROG LOAD LOG --", re.DOTALL)
# Without descriptors libbpf goes on, and fails later with another error. The second is what it
# takes for a kernel without global variables; there are some since Linux commit d8eca5bbb2be (5.2).
_NO_FILES = (os.strerror(errno.EMFILE), "' is referenced but wasn't created")
# What the verifier says after its reason: figures, not reasons.
_FIGURES = ("processed ", "verification time", "stack depth", "max_states")


_ON_CPU = 1  # BPF_F_TEST_RUN_ON_CPU of include/uapi/linux/bpf.h


class LoadError(PodscopeError):
    """The kernel, or libbpf before it, refused an object.

    Attributes:
        code: errno.
        program: the program refused; empty where it was something else, such as a map.
        log: the verifier's whole log, else what libbpf said.
    """

    def __init__(self, message: str, code: int, program: str, log: str) -> None:
        super().__init__(message)
        self.code = code
        self.program = program
        self.log = log


class Link:
    """An attached program. It is detached by :meth:`close`, or by the end of the process."""

    def __init__(self, pointer: int | None, fd: int = -1) -> None:
        self._pointer = pointer
        self._fd = fd

    @property
    def fd(self) -> int:
        """Descriptor of the link. Raises PodscopeError if it was closed."""
        if self._fd >= 0:
            return self._fd
        if self._pointer is None:
            raise PodscopeError("the link is closed")
        return int(libbpf().call("bpf_link__fd", self._pointer))

    def close(self) -> None:
        """Detaches. A second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._pointer is None:
            return
        libbpf().call("bpf_link__destroy", self._pointer)
        self._pointer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class TestRun:
    """What BPF_PROG_TEST_RUN gave: the program's result and the mean time of a run."""

    result: int
    nanoseconds: int


class _TestRunOptions(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf's bpf.h."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


class _IterOptions(ctypes.Structure):
    """struct bpf_iter_attach_opts of libbpf's libbpf.h; the link info is that of a map."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("link_info", ctypes.POINTER(ctypes.c_uint32)),
        ("link_info_len", ctypes.c_uint32),
    ]


class _ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info of include/uapi/linux/bpf.h, as far as it is read here."""

    _fields_ = [
        ("before", ctypes.c_uint8 * 208),
        ("recursion_misses", ctypes.c_uint64),
    ]


class BpfObject:
    """One ``.bpf.o``. Use it in a ``with``: the end detaches and unloads everything."""

    def __init__(self, path: Path) -> None:
        """Opens a file; loads nothing into the kernel yet.

        Raises:
            PodscopeError: there is no such file, libbpf is missing, or it has no BTF.
        """
        self._lib = libbpf()
        self._name = path.name.removesuffix(".bpf.o")
        if not path.exists():
            raise PodscopeError(
                f"{path} is missing: run make in the source tree, or install podscope again"
            )
        self._object: int | None = self._lib.pointer(
            str(path), "bpf_object__open_file", os.fsencode(path), None
        )
        self._loaded = False
        self._links: list[Link] = []
        try:
            self.btf = self._read_btf(path)
            self._map_types = self._read_map_types()
        except PodscopeError:
            self.close()
            raise

    @classmethod
    def open(cls, name: str) -> Self:
        """Opens one of podscope's own objects: ``http`` is ``podscope/_bpf/http.bpf.o``."""
        return cls(PROGRAMS / f"{name}.bpf.o")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detaches every program and unloads the object. A second call does nothing."""
        while self._links:
            self._links.pop().close()
        if self._object is None:
            return
        self._lib.call("bpf_object__close", self._object)
        self._object = None

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype of a C struct, by BTF. Raises BtfError as :meth:`btf.Btf.dtype`."""
        return self.btf.dtype(name)

    def enum(self, name: str) -> dict[str, int]:
        """The values of a C enum by enumerator, by BTF. Raises BtfError."""
        return self.btf.enum(name)

    def programs(self) -> tuple[str, ...]:
        """Names of all programs, in the order of the file."""
        names = []
        pointer = self._lib.call("bpf_object__next_program", self._pointer(), None)
        while pointer:
            names.append(self._lib.call("bpf_program__name", pointer).decode())
            pointer = self._lib.call("bpf_object__next_program", self._pointer(), pointer)
        return tuple(names)

    def set_constants(self, **values: Any) -> None:
        """Sets ``const volatile`` globals, by name, before :meth:`load`.

        The verifier takes them as known and drops the code that they rule out.

        Raises:
            PodscopeError: no such constant, a value that does not fit, or loaded already.
        """
        self._not_loaded("set constants")
        constants = {
            variable.name: (section, variable)
            for section in self.btf.sections()
            if section.startswith(".rodata")
            for variable in self.btf.variables(section)
        }
        for name, value in values.items():
            if name not in constants:
                raise PodscopeError(
                    f"{self._name}: no constant {name}; there are: {', '.join(sorted(constants))}"
                )
            section, variable = constants[name]
            target = self._initial(section, variable)
            try:
                target[...] = value
            except (ValueError, TypeError, OverflowError) as error:
                raise PodscopeError(f"{self._name}: constant {name}: {error}") from None
            # NumPy 1 wraps what is out of range; any cuts fractions and long texts.
            if target.dtype.kind in "iuS" and not np.array_equal(target, value):
                raise PodscopeError(
                    f"{self._name}: constant {name}: {value} does not fit {target.dtype}"
                )

    def resize_map(self, name: str, max_entries: int) -> None:
        """Sets a map's entries (a ring's bytes) before :meth:`load`. Raises PodscopeError."""
        self._not_loaded("resize a map")
        self._lib.check(
            f"{self._name}: map {name}: resize to {max_entries}",
            "bpf_map__set_max_entries",
            self._map_pointer(name),
            max_entries,
        )

    def disable(self, program: str) -> None:
        """Leaves a program out of :meth:`load`. Raises PodscopeError: no such program."""
        self._choose(program, load=False)

    def enable(self, program: str) -> None:
        """Has :meth:`load` take a program that it leaves out by default (``SEC("?...")``).

        Raises:
            PodscopeError: no such program.
        """
        self._choose(program, load=True)

    def load(self) -> Self:
        """Makes the maps and loads the programs; returns the object.

        libbpf loads without a log, and again with one where that failed.

        Raises:
            LoadError: the kernel refused; the log says why.
        """
        self._not_loaded("load")
        self._lib.messages.clear()
        code = self._lib.call("bpf_object__load", self._pointer())
        if code < 0:
            raise _load_error(self._name, -code, list(self._lib.messages))
        self._loaded = True
        return self

    def map(self, name: str) -> MapInfo:
        """A map, with its dtypes where it was declared with types. Raises PodscopeError."""
        info = map_info(self._fd("map", name, "bpf_map__fd", self._map_pointer(name)))
        key, value = self._map_types.get(name, (None, None))
        return replace(info, name=name, key=key, value=value)

    def program_fd(self, name: str) -> int:
        """Descriptor of a loaded program. Raises PodscopeError if it is not loaded."""
        return self._fd("program", name, "bpf_program__fd", self._program(name))

    def missed(self, programs: Iterable[str]) -> int:
        """How often the kernel left out programs, since one already ran on that CPU.

        It does not run a program of a tracepoint inside of itself, or while the task that it
        runs in is preempted: Linux commit 05b24ff9b2cf ("bpf: Prevent bpf program recursion for
        raw tracepoint probes"), in v6.2. Older kernels leave out nothing, and 0 is told.

        Raises:
            PodscopeError: one of them is not loaded.
        """
        total = 0
        for name in programs:
            info = _ProgramInfo()
            size = ctypes.c_uint32(ctypes.sizeof(info))
            self._lib.check(
                f"{self._name}: ask about {name}",
                "bpf_obj_get_info_by_fd",
                self.program_fd(name),
                ctypes.byref(info),
                ctypes.byref(size),
            )
            total += info.recursion_misses
        return total

    @cached_property
    def variables(self) -> dict[str, npt.NDArray[Any]]:
        """The globals of .bss and .data by name: the kernel's own memory, live both ways.

        Scalars and structs have shape (). Write with ``variables["x"][...] = 1``.

        Raises:
            PodscopeError: not loaded yet.
        """
        found: dict[str, npt.NDArray[Any]] = {}
        for section in self.btf.sections():
            if not section.startswith((".bss", ".data")):
                continue
            info = self.map(section)
            size = -(-info.value_size // mmap.PAGESIZE) * mmap.PAGESIZE
            memory = mmap.mmap(info.fd, size)
            for variable in self.btf.variables(section):
                dtype = self.btf.dtype_of(variable.type_id)
                found[variable.name] = np.ndarray((), dtype, memory, variable.offset)
        return found

    def attach(self, program: str) -> Link:
        """Attaches a program where its section says (raw_tp, tp_btf, tp, ...).

        Raises:
            BpfError: the kernel has no such place, or the rights are missing.
        """
        what = f"{self._name}: attach {program}"
        self.program_fd(program)
        return self._link(
            self._lib.pointer(what, "bpf_program__attach", self._program(program)),
        )

    def attach_cgroup(self, program: str, cgroup_fd: int) -> Link:
        """Attaches a program to a cgroup v2, given as an open directory.

        Raises:
            BpfError: not a cgroup v2, the rights are missing, or a program that is there
                already allows no other (EPERM).
        """
        what = f"{self._name}: attach {program} to the cgroup"
        self.program_fd(program)
        return self._link(
            self._lib.pointer(
                what, "bpf_program__attach_cgroup", self._program(program), cgroup_fd
            ),
        )

    def attach_cgroup_as(self, program: str, cgroup_fd: int, attach_type: int) -> Link:
        """Attaches to a cgroup v2 at a place of the caller's choice (``enum bpf_attach_type``).

        One program of type cgroup_skb may so stand at ingress and at egress. The link is made
        by its descriptor: the end of the process detaches it.

        Raises:
            BpfError: as :meth:`attach_cgroup`.
        """
        what = f"{self._name}: attach {program} to the cgroup"
        fd = self._lib.check(
            what, "bpf_link_create", self.program_fd(program), cgroup_fd, attach_type, None
        )
        link = Link(None, fd)
        self._links.append(link)
        return link

    def run_iter(self, program: str, over: str = "") -> bytes:
        """Runs an iterator (``SEC("iter/task_file")``, ...) to its end; returns what it wrote.

        Args:
            program: its name.
            over: the map whose entries it walks over (``SEC("iter/bpf_sk_storage_map")``, ...).

        Raises:
            BpfError: this kernel has no such iterator.
        """
        what = f"{self._name}: iterate {program}"
        self.program_fd(program)
        options = self._iter_options(over) if over else None
        pointer = self._lib.pointer(
            what,
            "bpf_program__attach_iter",
            self._program(program),
            ctypes.addressof(options) if options else None,
        )
        with Link(pointer) as link:
            fd = self._lib.check(what, "bpf_iter_create", link.fd)
        # The descriptor holds the program: the link is not needed any more.
        try:
            return _read_all(fd)
        except OSError as error:
            raise BpfError(what, error.errno or 0) from None
        finally:
            os.close(fd)

    def _iter_options(self, over: str) -> _IterOptions:
        map_fd = ctypes.c_uint32(self.map(over).fd)
        info = ctypes.pointer(map_fd)  # which keeps it
        return _IterOptions(
            sz=ctypes.sizeof(_IterOptions), link_info=info, link_info_len=ctypes.sizeof(map_fd)
        )

    def test_run(self, program: str, packet: bytes = b"", repeat: int = 1) -> TestRun:
        """Runs a program in place, with a packet (network programs take 14 bytes or more).

        Raises:
            BpfError: the program's type cannot be run so.
        """
        data = ctypes.create_string_buffer(packet, len(packet)) if packet else None
        options = _TestRunOptions(
            sz=ctypes.sizeof(_TestRunOptions),
            data_in=ctypes.cast(data, ctypes.c_void_p) if data else None,
            data_size_in=len(packet),
            repeat=repeat if packet else 0,
        )
        self._lib.check(
            f"{self._name}: run {program}",
            "bpf_prog_test_run_opts",
            self.program_fd(program),
            ctypes.byref(options),
        )
        return TestRun(options.retval, options.duration)

    def run_on(self, program: str, cpu: int) -> None:
        """Runs a program of a raw tracepoint, without arguments, on a CPU of choice.

        Linux commit 1b4d60ec162f ("bpf: Enable BPF_PROG_TEST_RUN for raw_tracepoint"), in v5.10.

        Raises:
            BpfError: the CPU is not online.
        """
        options = _TestRunOptions(sz=ctypes.sizeof(_TestRunOptions), flags=_ON_CPU, cpu=cpu)
        self._lib.check(
            f"{self._name}: run {program} on CPU {cpu}",
            "bpf_prog_test_run_opts",
            self.program_fd(program),
            ctypes.byref(options),
        )

    def _pointer(self) -> int:
        if self._object is None:
            raise PodscopeError(f"{self._name}: the object is closed")
        return self._object

    def _not_loaded(self, what: str) -> None:
        if self._loaded:
            raise PodscopeError(f"{self._name}: too late to {what}: loaded already")

    def _choose(self, program: str, *, load: bool) -> None:
        self._not_loaded("choose programs")
        self._lib.check(
            f"{self._name}: {'enable' if load else 'disable'} {program}",
            "bpf_program__set_autoload",
            self._program(program),
            load,
        )

    def _program(self, name: str) -> int:
        return self._find("program", "bpf_object__find_program_by_name", name)

    def _map_pointer(self, name: str) -> int:
        return self._find("map", "bpf_object__find_map_by_name", name)

    def _find(self, what: str, function: str, name: str) -> int:
        found: int | None = self._lib.call(function, self._pointer(), name.encode())
        if not found:
            raise PodscopeError(f"{self._name}: no {what} {name} in the object")
        return found

    def _fd(self, what: str, name: str, function: str, pointer: int) -> int:
        fd: int = self._lib.call(function, pointer)
        if fd < 0:
            raise PodscopeError(f"{self._name}: {what} {name} is not loaded")
        return fd

    def _link(self, pointer: int) -> Link:
        link = Link(pointer)
        self._links.append(link)
        return link

    def _initial(self, section: str, variable: btf.Variable) -> npt.NDArray[Any]:
        """The memory that becomes the constant: libbpf's own, copied into the map on load."""
        size = ctypes.c_size_t()
        start = self._lib.pointer(
            f"{self._name}: section {section}",
            "bpf_map__initial_value",
            self._map_pointer(section),
            ctypes.byref(size),
        )
        memory = memoryview((ctypes.c_uint8 * size.value).from_address(start))
        return np.ndarray((), self.btf.dtype_of(variable.type_id), memory, variable.offset)

    def _read_btf(self, path: Path) -> btf.Btf:
        found = self._lib.call("bpf_object__btf", self._pointer())
        if not found:
            raise PodscopeError(f"{path}: no BTF inside: compile it with clang -g")
        size = ctypes.c_uint32()
        data = self._lib.pointer(f"{path}: BTF", "btf__raw_data", found, ctypes.byref(size))
        return btf.parse(ctypes.string_at(data, size.value))

    def _read_map_types(self) -> dict[str, tuple[np.dtype[Any] | None, np.dtype[Any] | None]]:
        """Read before the load: libbpf forgets the types of some maps then (stack, queue, ...)."""
        types = {}
        pointer = self._lib.call("bpf_object__next_map", self._pointer(), None)
        while pointer:
            name = self._lib.call("bpf_map__name", pointer).decode()
            types[name] = (
                self._typed(self._lib.call("bpf_map__btf_key_type_id", pointer)),
                self._typed(self._lib.call("bpf_map__btf_value_type_id", pointer)),
            )
            pointer = self._lib.call("bpf_object__next_map", self._pointer(), pointer)
        return types

    def _typed(self, type_id: int) -> np.dtype[Any] | None:
        # A map's value may be what no array can hold (a spin lock, a timer): not an error here.
        try:
            return self.btf.dtype_of(type_id) if type_id else None
        except btf.BtfError:
            return None


def _load_error(name: str, code: int, messages: list[str]) -> LoadError:
    said = "\n".join(messages)
    if any(sign in said for sign in _NO_FILES):
        code = errno.EMFILE
    refused = _REFUSED.search(said)
    program = refused.group(1) if refused else ""
    logged = _LOG.search(said)
    log = logged.group(1) if logged else said
    subject = f"program {program}" if program else "the object"
    reason = verifier_reason(log) if logged else _libbpf_reason(messages)
    message = f"{name}: the kernel refused {subject} ({error_name(code)})"
    if code == errno.EPERM:
        reason = "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    if code == errno.EMFILE:
        reason = MORE_FILES
    return LoadError(f"{message}: {reason or describe_error(code)}", code, program, log)


def verifier_reason(log: str) -> str:
    """The last line of a verifier log that is a reason and no figure, or an empty string."""
    lines = [line.strip() for line in log.splitlines()]
    reasons = [line for line in lines if line and not line.startswith(_FIGURES)]
    return reasons[-1] if reasons else ""


def _libbpf_reason(messages: list[str]) -> str:
    lines = [line.strip() for message in messages for line in message.splitlines()]
    reasons = [line for line in lines if line and "failed to load object" not in line]
    return reasons[-1].removeprefix("libbpf: ") if reasons else ""


def _read_all(fd: int) -> bytes:
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(fd, 1 << 16)
        except BlockingIOError:
            # bpf_seq_read: a long walk without output asks to be called again.
            continue
        if not part:
            return b"".join(parts)
        parts.append(part)
