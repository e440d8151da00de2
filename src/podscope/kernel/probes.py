# SPDX-License-Identifier: Apache-2.0
"""What this kernel, these rights and this host allow: tried, never guessed from a version.

A trial loads a program of a few instructions, or makes a map, and lets go of it at once.
Programs that are attached for a trial let everything pass.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
import struct
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from podscope.errors import PodscopeError
from podscope.kernel.descriptors import process
from podscope.kernel.descriptors import taken
from podscope.kernel.libbpf import BpfError
from podscope.kernel.libbpf import libbpf
from podscope.kernel.libbpf import loaded_file
from podscope.kernel.maps import MapType
from podscope.kernel.maps import MmapArray
from podscope.kernel.objects import BpfObject
from podscope.kernel.objects import LoadError
from podscope.kernel.objects import verifier_reason
from podscope.kernel.rings import Ring

MOUNTS = Path("/proc/self/mountinfo")
KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")
AS_ROOT = "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
MOUNT_CGROUP2 = "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"

# enum bpf_prog_type, bpf_attach_type and bpf_func_id of include/uapi/linux/bpf.h.
_SOCKET_FILTER, _CGROUP_SKB, _CGROUP_SOCK, _SOCK_OPS, _TRACING = 1, 8, 9, 13, 26
_INGRESS, _EGRESS, _SOCK_CREATE, _SOCK_OPS_PLACE, _ITER = 0, 1, 2, 3, 28
_SK_FULLSOCK, _SK_STORAGE_GET, _SK_CGROUP_ID = 95, 107, 128
_KTIME_COARSE, _SOCK_FROM_FILE, _LOOP = 160, 162, 181

# check_helper_call in kernel/bpf/verifier.c, old and new.
_UNKNOWN_HELPER = ("invalid func", "unknown func", "cannot use helper")

_F_NO_PREALLOC = 1
_F_MMAPABLE = 1 << 10
_SKB_SK = 168  # offsetof(struct __sk_buff, sk)
_OPS_SK = 184  # offsetof(struct bpf_sock_ops, sk)
_ITER_FILE = 24  # offsetof(struct bpf_iter__task_file, file)
_SOCKET_SK = 24  # offsetof(struct socket, sk); the verifier refuses what is no sock there

# Numbers of include/uapi/linux/capability.h.
_CAPABILITIES = {
    "NET_ADMIN": 12,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
    "SYS_RESOURCE": 24,
    "PERFMON": 38,
    "BPF": 39,
}


@dataclass(frozen=True)
class Finding:
    """One feature: is it there, must it be, what was seen, and what to do if it is not."""

    feature: str
    ok: bool
    needed: bool
    detail: str
    remedy: str


def probe() -> list[Finding]:
    """Tries everything that podscope uses. Raises nothing: what fails is a finding."""
    findings = [_rights(), _kernel_btf(), _libbpf(), _cgroup2()]
    if not findings[2].ok:
        return findings
    return findings + [
        _tried(feature, trial, needed, remedy) for feature, trial, needed, remedy in _TRIALS
    ]


def has_atomics() -> bool:
    """Whether programs may use atomic instructions that give the old value back.

    Since Linux commit 5ffa25502b5a ("bpf: Add instructions for atomic_[cmp]xchg"), in 5.12.
    """
    return _succeeds(_atomics)


def has_loop() -> bool:
    """Whether bpf_loop() is there: Linux commit e6f2dd0f8067 ("bpf: Add bpf_loop helper"), 5.17."""
    return _succeeds(_loop)


def find_cgroup2(mounts: Path = MOUNTS) -> str:
    """Where cgroup v2 is mounted, from proc_pid_mountinfo(5); the largest part of the tree.

    In a container its own part is "/", and the host's tree, if it is mounted, "/../../..": a
    root is written as seen from the reader's cgroup namespace (cgroup_show_path() in
    kernel/cgroup/cgroup.c).

    Raises:
        PodscopeError: it is mounted nowhere that can be reached.
    """
    return _cgroup2_mount(mounts).point


@dataclass(frozen=True)
class _Mount:
    root: str
    point: str

    @property
    def height(self) -> int:
        """0 for the reader's own root, more above it, less for any other part."""
        names = [name for name in self.root.split("/") if name]
        return len(names) if all(name == ".." for name in names) else -1


def _cgroup2_mount(mounts: Path) -> _Mount:
    found = [mount for mount in _mounts(mounts, "cgroup2") if _reachable(mount)]
    if not found:
        raise PodscopeError(f"cgroup v2 is not mounted: {MOUNT_CGROUP2}")
    return max(found, key=lambda mount: mount.height)


def _reachable(mount: _Mount) -> bool:
    """False where another mount lies over it. Every cgroup v2 directory has this file."""
    return Path(mount.point, "cgroup.procs").exists()


def _mounts(mounts: Path, wanted: str) -> list[_Mount]:
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError as error:
        raise PodscopeError(f"{mounts}: {error.strerror}: mount /proc") from None
    found = []
    for line in lines:
        fields, _, source = line.partition(" - ")
        if source.split(" ")[0] != wanted:
            continue
        root, point = (_unescape(field) for field in fields.split(" ")[3:5])
        found.append(_Mount(root, point))
    return found


def _unescape(text: str) -> str:
    """Blanks and backslashes are octal in mountinfo (mangle in fs/seq_file.c)."""
    for octal, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(octal, plain)
    return text


def _rights() -> Finding:
    lacking = _lacking()
    if lacking:
        return Finding("rights", False, True, f"lacks {', '.join(lacking)}", AS_ROOT)
    held = ", ".join(f"CAP_{name}" for name in sorted(_capabilities()))
    return Finding("rights", True, True, held, "")


def _lacking() -> list[str]:
    """Names of the capabilities that are needed and not held."""
    held = _capabilities()
    # Before Linux 5.8 there is CAP_SYS_ADMIN alone, and it has stood for the others since.
    wanted = ("NET_ADMIN",) if "SYS_ADMIN" in held else ("BPF", "NET_ADMIN", "PERFMON")
    return [f"CAP_{name}" for name in wanted if name not in held]


def _capabilities() -> set[str]:
    """Names of the effective ones among those that matter, from proc_pid_status(5)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return {name for name, bit in _CAPABILITIES.items() if bits >> bit & 1}
    return set()


def _kernel_btf() -> Finding:
    remedy = "run a kernel built with CONFIG_DEBUG_INFO_BTF=y (all current distributions)"
    try:
        size = KERNEL_BTF.stat().st_size
    except OSError as error:
        return Finding("kernel BTF", False, True, f"{KERNEL_BTF}: {error.strerror}", remedy)
    return Finding("kernel BTF", True, True, f"{KERNEL_BTF}, {size >> 10} KiB", "")


def _libbpf() -> Finding:
    try:
        library = libbpf()
    except PodscopeError as error:
        what, _, remedy = str(error).partition(": ")
        return Finding("libbpf", False, True, what, remedy)
    return Finding("libbpf", True, True, f"{library.version}, {loaded_file() or library.path}", "")


def _cgroup2() -> Finding:
    try:
        mount = _cgroup2_mount(MOUNTS)
        hybrid = bool(_mounts(MOUNTS, "cgroup"))
    except PodscopeError as error:
        what, _, remedy = str(error).partition(": ")
        return Finding("cgroup v2", False, True, what, remedy)
    detail = mount.point
    if hybrid:
        detail += ", beside v1 controllers"
    if mount.height < 0:
        detail += f", only the part below {mount.root}: nothing else is seen"
    return Finding("cgroup v2", True, True, detail, "")


def _tried(feature: str, trial: Callable[[], str], needed: bool, remedy: str) -> Finding:
    try:
        return Finding(feature, True, needed, trial(), "")
    except (BpfError, LoadError) as error:
        without_rights = error.code == errno.EPERM and _lacking()
        return Finding(feature, False, needed, str(error), AS_ROOT if without_rights else remedy)
    except (PodscopeError, OSError) as error:
        return Finding(feature, False, needed, str(error), remedy)


def _succeeds(trial: Callable[[], str]) -> bool:
    try:
        trial()
    except (PodscopeError, OSError):
        return False
    return True


# --- trials: each returns what it saw, or raises -------------------------------------------------


def _cgroup_skb() -> str:
    code = _call(_SK_CGROUP_ID, _sock_of(_SKB_SK)) + _returns(1)
    with _program(_CGROUP_SKB, code, _INGRESS) as program:
        _attach_for_a_moment(program, _INGRESS)
        _attach_for_a_moment(program, _EGRESS)
    return "attached to the cgroup v2 root, ingress and egress, and detached"


def _sockops() -> str:
    with _program(_SOCK_OPS, _returns(1), _SOCK_OPS_PLACE) as program:
        _attach_for_a_moment(program, _SOCK_OPS_PLACE)
    return "attached to the cgroup v2 root and detached"


def _cgroup_sock() -> str:
    with _program(_CGROUP_SOCK, _returns(1), _SOCK_CREATE) as program:
        _attach_for_a_moment(program, _SOCK_CREATE)
    return "attached to the cgroup v2 root and detached"


def _socket_storage() -> str:
    """The helper in each of the three kinds of programs: they got it one after another."""
    with _storage() as storage:
        get = _get_storage(storage)
        packet = _call(_SK_FULLSOCK, _sock_of(_SKB_SK)) + _unless_null(0, [_move(2, 0), *get])
        handshake = _unless_null(1, [_move(2, 1), *get], load=_load(1, 1, _OPS_SK))
        for kind, code, place in (
            (_CGROUP_SKB, packet, _INGRESS),
            (_SOCK_OPS, handshake, _SOCK_OPS_PLACE),
            (_CGROUP_SOCK, [_move(2, 1), *get], _SOCK_CREATE),
        ):
            with _program(kind, code + _returns(1), place):
                pass
    return "works in packet, handshake and socket programs"


def _ring() -> str:
    with _map(MapType.RINGBUF, 0, 0, os.sysconf("SC_PAGESIZE")) as fd:
        Ring(fd, os.sysconf("SC_PAGESIZE"), "u8")
    return "made and mapped"


def _mapped_array() -> str:
    with _map(MapType.ARRAY, 4, 8, 1, _MapOptions(map_flags=_F_MMAPABLE)) as fd:
        MmapArray(fd, "u8", 1)
    return "made and mapped"


def _atomics() -> str:
    # r0 = 0; *(u64 *)(r10 - 8) = r0; r1 = 1; r0 = cmpxchg_64(r10 - 8, r0, r1)
    code = [
        _insn(0xB7, 0, imm=0),
        _insn(0x7B, 10, 0, -8),
        _insn(0xB7, 1, imm=1),
        _insn(0xDB, 10, 1, -8, 0xF1),
    ]
    with _program(_SOCKET_FILTER, code + _returns(0)):
        return "compare-and-exchange loads"


def _loop() -> str:
    if not _has_helper(_CGROUP_SKB, _LOOP):
        raise PodscopeError("bpf_loop() is not there")
    return "there"


def _memory() -> str:
    """How BPF memory is charged: bpf_ktime_get_coarse_ns() came with memcg accounting (5.11)."""
    if _has_helper(_SOCKET_FILTER, _KTIME_COARSE):
        return "charged to the memory cgroup"
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if resource.RLIM_INFINITY in (soft, hard) or "SYS_RESOURCE" in _capabilities():
        return "charged to RLIMIT_MEMLOCK, which is or will be unlimited"
    raise PodscopeError(f"charged to RLIMIT_MEMLOCK, which is {hard >> 10} KiB")


def _open_sockets() -> str:
    """Either of the two ways to the owners of sockets that are open already."""
    if has_loop():  # else the object with the iterator is not the one that is loaded
        with suppress(PodscopeError, OSError):
            return _open_sockets_by_iterator()
    return _open_sockets_by_descriptors()


def _open_sockets_by_iterator() -> str:
    """An iterator over open files that finds sockets and notes something with them."""
    function = libbpf().check(
        "iterator task_file", "libbpf_find_vmlinux_btf_id", b"task_file", _ITER
    )
    with _storage() as storage:
        note = [_load(2, 0, _SOCKET_SK), *_get_storage(storage)]
        found = [*_call(_SOCK_FROM_FILE), *_unless_null(0, note)]
        code = _unless_null(1, found, load=_load(1, 1, _ITER_FILE))
        with _program(_TRACING, code + _returns(0), _ITER, function):
            return "finds and notes the sockets of open files"


def _open_sockets_by_descriptors() -> str:
    """Descriptors of other processes, and notes with sockets by descriptor."""
    with _storage() as storage, socket.socket() as end, process(os.getpid()) as pidfd:
        try:
            descriptor = taken(pidfd, end.fileno())
        except OSError as error:
            raise PodscopeError(f"no iterator, and pidfd_getfd: {error.strerror}") from None
        try:
            key, value = struct.pack("=i", descriptor), struct.pack("=i", 1)
            libbpf().check("note", "bpf_map_update_elem", storage, key, value, 0)
        finally:
            os.close(descriptor)
    if "SYS_PTRACE" not in _capabilities():
        raise PodscopeError(
            "no iterator, and without CAP_SYS_PTRACE other processes' descriptors are out of reach"
        )
    return "process by process, with pidfd_getfd()"


def _oom() -> str:
    with BpfObject.open("oom") as program:
        program.load()
        for name in program.programs():
            program.attach(name)
    return "attached to signal_generate and mark_victim, and detached"


def _listeners() -> str:
    known = "noted from their beginning, those that are there already "
    return _loaded("listen", f"{known}by one walk", f"{known}process by process")


def _drops() -> str:
    """Attached for a moment: that a program loads says nothing of kprobes."""
    _listeners()  # rights that all of it needs are not what is missing
    with suppress(LoadError, BpfError):
        _attached("listen", ("drop_syn_exit",))
        return "at the exits of the functions that drop them (fentry)"
    with suppress(LoadError, BpfError):
        _attached("listen", ("drop_syn_return", "drop_syn_entry"))
        return "with kprobes at the functions that drop them"
    raise PodscopeError("no fentry and no kprobes at tcp_conn_request(), or they are denied")


def _attached(name: str, programs: Sequence[str]) -> None:
    """Tries some programs of the newest build that loads, by name. Raises LoadError or BpfError."""
    for build in (name, f"{name}_v2"):
        with BpfObject.open(build) as program:
            for one in programs:
                program.enable(one)
            try:
                program.load()
            except LoadError:
                if build == name:
                    continue
                raise
            for one in programs:
                program.attach(one)
            return


def _connections() -> str:
    return _loaded(
        "tcp",
        "told by tracepoints, those that are there already by one walk",
        "told by tracepoints; of those that are there already only listeners are known",
    )


def _lookups() -> str:
    return _loaded(
        "dns",
        "parsed at the cgroup hooks, over UDP and TCP",
        "parsed at the cgroup hooks; older sockets get owners process by process",
    )


def _loaded(name: str, newest: str, older: str) -> str:
    """Which of an object's two builds this kernel takes, in words. Raises LoadError: neither."""
    with BpfObject.open(name) as program, suppress(LoadError):
        program.load()
        return newest
    with BpfObject.open(f"{name}_v2") as program:
        program.load()
    return older


def _has_helper(kind: int, helper: int) -> bool:
    """Whether the verifier knows a helper in programs of a kind. Raises BpfError without rights.

    libbpf_probe_bpf_helper() takes a lack of rights for a yes.
    """
    try:
        with _program(kind, _call(helper) + _returns(0)):
            return True
    except BpfError as error:
        if error.code == errno.EPERM:
            raise
        return not any(unknown in str(error) for unknown in _UNKNOWN_HELPER)


_NEWER = "run Linux 5.10 or newer, with CONFIG_BPF_SYSCALL=y and CONFIG_CGROUP_BPF=y"
_ONE_AT_A_TIME = (
    "see what else is attached with bpftool cgroup tree: a program attached without "
    "BPF_F_ALLOW_MULTI keeps others out; " + _NEWER
)
_OLDER_ENGINE = "nothing: the engine for older kernels takes its place; Linux {} has it"
_WITHOUT = "run Linux 5.10 or newer, as root; all but podscope {} works without it"
_TRIALS: tuple[tuple[str, Callable[[], str], bool, str], ...] = (
    ("cgroup packets", _cgroup_skb, True, _ONE_AT_A_TIME),
    ("cgroup handshakes", _sockops, True, _ONE_AT_A_TIME),
    ("cgroup sockets", _cgroup_sock, True, _ONE_AT_A_TIME),
    ("socket storage", _socket_storage, True, _NEWER),
    ("ring buffer", _ring, True, _NEWER),
    ("mapped arrays", _mapped_array, True, _NEWER),
    ("memory for maps", _memory, True, "ulimit -l unlimited, or LimitMEMLOCK=infinity"),
    ("atomic fetch", _atomics, False, _OLDER_ENGINE.format("5.12")),
    ("bpf_loop", _loop, False, _OLDER_ENGINE.format("5.17")),
    (
        "owners of older sockets",
        _open_sockets,
        False,
        "run with CAP_SYS_PTRACE, on Linux 5.6 or newer; or restart a server to have it named",
    ),
    ("OOM kills", _oom, False, _WITHOUT.format("events oom")),
    ("listeners", _listeners, False, _WITHOUT.format("listen")),
    (
        "single drops of handshakes",
        _drops,
        False,
        "run a kernel with CONFIG_FUNCTION_TRACER=y or CONFIG_KPROBES=y that allows them; all but "
        "podscope listen --drops works without it",
    ),
    ("DNS lookups", _lookups, False, _WITHOUT.format("dns")),
    ("TCP connections", _connections, False, _WITHOUT.format("tcp")),
)


# --- loading -------------------------------------------------------------------------------------


class _LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts of libbpf's bpf.h."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    ]


class _MapOptions(ctypes.Structure):
    """struct bpf_map_create_opts of libbpf's bpf.h."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    ]


@contextmanager
def _program(kind: int, code: list[bytes], place: int = 0, function: int = 0) -> Iterator[int]:
    """A loaded program's descriptor. Raises BpfError with the verifier's reason."""
    log = ctypes.create_string_buffer(1 << 16)
    options = _LoadOptions(
        sz=ctypes.sizeof(_LoadOptions),
        expected_attach_type=place,
        attach_btf_id=function,
        log_size=len(log),
        log_buf=ctypes.addressof(log),
    )
    text = b"".join(code)
    fd = libbpf().call(
        "bpf_prog_load", kind, b"podscope_probe", b"GPL", text, len(text) // 8, _at(options)
    )
    if fd < 0:
        raise BpfError("refused", -fd, verifier_reason(log.value.decode(errors="replace")))
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _map(
    kind: MapType, key: int, value: int, entries: int, options: _MapOptions | None = None
) -> Iterator[int]:
    given = options or _MapOptions()
    given.sz = ctypes.sizeof(given)
    fd = libbpf().check(
        "refused", "bpf_map_create", kind, b"podscope_probe", key, value, entries, _at(given)
    )
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _storage() -> Iterator[int]:
    """A socket storage map of one int: the kernel asks for BTF of its key and value."""
    name = b"\0int\0"
    integer = struct.pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(integer), len(integer), len(name))
    btf = header + integer + name
    with ExitStack() as stack:
        types = libbpf().check("BTF refused", "bpf_btf_load", btf, len(btf), None)
        stack.callback(os.close, types)
        options = _MapOptions(
            btf_fd=types, btf_key_type_id=1, btf_value_type_id=1, map_flags=_F_NO_PREALLOC
        )
        yield stack.enter_context(_map(MapType.SK_STORAGE, 4, 4, 0, options))


def _attach_for_a_moment(program: int, place: int) -> None:
    cgroup = os.open(find_cgroup2(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.close(libbpf().check("attach refused", "bpf_link_create", program, cgroup, place, None))
    finally:
        os.close(cgroup)


def _at(options: ctypes.Structure) -> int:
    return ctypes.addressof(options)


# --- instructions, as in Documentation/bpf/standardization/instruction-set.rst -------------------


def _insn(code: int, target: int = 0, source: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | target, offset, imm)


def _move(target: int, source: int) -> bytes:
    return _insn(0xBF, target, source)


def _load(target: int, source: int, offset: int) -> bytes:
    return _insn(0x79, target, source, offset)


def _call(helper: int, before: list[bytes] | None = None) -> list[bytes]:
    """Calls a helper; where ``before`` leaves r1 null, the program returns 1 instead."""
    call = _insn(0x85, imm=helper)
    if before is None:
        return [call]
    return [*before, _insn(0x55, 1, offset=2), *_returns(1), call]


def _sock_of(offset: int) -> list[bytes]:
    return [_load(1, 1, offset)]


def _unless_null(register: int, then: list[bytes], load: bytes | None = None) -> list[bytes]:
    """Runs ``then`` only if the register, loaded first if asked for, is not null."""
    before = [] if load is None else [load]
    slots = sum(len(part) for part in then) // 8
    return [*before, _insn(0x15, register, offset=slots), *then]


def _get_storage(map_fd: int) -> list[bytes]:
    """bpf_sk_storage_get(map, r2, NULL, 0)."""
    return [
        _insn(0x18, 1, source=1, imm=map_fd),
        _insn(0x00),
        _insn(0xB7, 3, imm=0),
        _insn(0xB7, 4, imm=0),
        _insn(0x85, imm=_SK_STORAGE_GET),
    ]


def _returns(value: int) -> list[bytes]:
    return [_insn(0xB7, 0, imm=value), _insn(0x95)]
