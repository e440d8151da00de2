# SPDX-License-Identifier: Apache-2.0
"""Listeners: how full their two queues are, what was dropped, and each drop by itself."""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import ClassVar
from typing import Self

import numpy as np
import numpy.typing as npt

from podscope.errors import PodscopeError
from podscope.kernel.libbpf import BpfError
from podscope.kernel.maps import HashMap
from podscope.kernel.objects import BpfObject
from podscope.kernel.objects import LoadError
from podscope.kernel.probes import find_cgroup2
from podscope.kernel.rings import Ring
from podscope.schema import Field
from podscope.schema_listen import DROPS
from podscope.schema_listen import LISTEN
from podscope.schema_listen import LISTEN_DROP
from podscope.schema_listen import UNKNOWN
from podscope.schema_listen import high
from podscope.sources.loading import cgroup_directory
from podscope.sources.loading import executable_of
from podscope.sources.loading import load_newest
from podscope.sources.open_sockets import note_open_sockets
from podscope.sources.peer_classes import peer_classes
from podscope.sources.source import Rows

# Reasons of losses.
LOST = ("ring_full", "drops_ring_full", "no_memory")
_RING_BYTES = 1 << 18
# Ways to tell each drop, the better one first, and each without IPv6 where the kernel has none.
_PLACES = ("syn", "ack4", "ack6")
WAYS = tuple(
    tuple(f"drop_{place}_{end}" for place in places for end in ends)
    for ends in (("exit",), ("return", "entry"))
    for places in (_PLACES, _PLACES[:2])
)


@dataclass(frozen=True)
class ListenOptions:
    """What is watched.

    Attributes:
        ring_bytes: size of the ring of single drops, a power of two.
        cgroup: path of the cgroup v2 whose listeners are watched from their beginning; None: the
            root, so all of the host.
    """

    ring_bytes: int = 1 << 20
    cgroup: str | None = None


class ListenSource:
    """The programs, attached. Close it, or use it in a ``with``.

    Args:
        options: what is watched.
        kinds: ``listen`` (listeners), ``listen_drop`` (each drop), or both.

    Raises:
        PodscopeError: no cgroup v2, no rights, or a kernel that cannot run the programs.
    """

    options: ClassVar[type] = ListenOptions
    fields: ClassVar[Mapping[str, tuple[Field, ...]]] = {
        "listen": LISTEN,
        "listen_drop": LISTEN_DROP,
    }
    events: ClassVar[frozenset[str]] = frozenset({"listen_drop"})

    def __init__(
        self, options: ListenOptions | None = None, kinds: Collection[str] = ("listen",)
    ) -> None:
        self._options = options or ListenOptions()
        cgroup = self._options.cgroup or find_cgroup2()
        self._overflows = Overflows()
        self._rows_wanted = "listen" in kinds
        if "listen_drop" in kinds:
            self._object = _with_drops(self._options.ring_bytes)
        else:
            self._object = load_newest("listen", _without_drops)
        try:
            self._record = self._object.dtype("listen_row")
            self._row = np.dtype([*_members(self._record), ("overflows", "i8"), ("event", "u1")])
            self._drop = self._object.dtype("listen_drop")
            self._told = np.dtype([*_members(self._drop), ("peer_class", "u1")])
            self._owners = HashMap.of(self._object.map("owners"))
            self._closed = Ring.of(self._object.map("closed"), self._record)
            self._drops = Ring.of(self._object.map("drops"), self._drop)
            with cgroup_directory(cgroup) as directory:
                # New listeners first, then those that are there: none is left out.
                self._object.attach_cgroup("listen_socket", directory)
            note_open_sockets(self._object, "listen_open_sockets", "listeners")
            self.read()  # drops from before the start are nobody's
        except BaseException:
            self._object.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detaches everything. A second call does nothing."""
        self._object.close()

    def read(self) -> Rows:
        """Every listener of the machine, and those that were closed since the last read.

        The members are those of ``struct listen_row``, and ``overflows`` (drops because the
        accept queue was full, or -1) and ``event`` (codes of ``podscope.schema_listen``).
        """
        told = self._object.run_iter("listen_rows", "listeners")
        told += self._object.run_iter("listen_subflow_rows", "subflows")
        records = np.concatenate([self._closed.drain(), np.frombuffer(told, self._record)])
        rows = np.zeros(len(records), self._row)
        for name in self._record.names or ():
            rows[name] = records[name]
        rows["overflows"] = self._overflows.of(rows)
        rows["event"] = _events(rows)
        return {"listen": rows}

    def read_events(self) -> Rows:
        """Drops since the last call: ``struct listen_drop`` and ``peer_class``."""
        if not self._rows_wanted:
            self._closed.drain()  # nobody else does
        drops = self._drops.drain()
        rows = np.zeros(len(drops), self._told)
        for name, _ in _members(self._drop):
            rows[name] = drops[name]
        rows["peer_class"] = peer_classes(rows["peer"])
        return {"listen_drop": rows}

    def ring_use(self) -> float:
        """How full the fuller of the rings is, from 0 to 1."""
        drops = self._drops.pending() / self._options.ring_bytes
        return max(self._closed.pending() / _RING_BYTES, drops)

    def lost(self) -> dict[str, int]:
        """What could not be told since the start, by reason."""
        return {reason: int(self._object.variables[reason]) for reason in LOST}

    def executable(self, owner: int) -> str:
        """Base name of the executable of who began to listen."""
        return executable_of(self._owners, owner)

    def cgroup_path(self, owner: int) -> str:
        """The kernel tells none."""
        return ""


def _with_drops(ring_bytes: int) -> BpfObject:
    """The programs with those that tell each drop, which are attached; the others are not.

    Raises:
        LoadError: the kernel takes none of the programs.
        PodscopeError: it has neither trampolines nor kprobes where handshakes are dropped.
    """
    for way in WAYS:
        with suppress(LoadError, BpfError):
            return _one_way(way, ring_bytes)
    load_newest("listen", lambda _: None).close()  # whether it is for them
    raise PodscopeError(
        "single drops: this kernel has no fentry and no kprobes at tcp_conn_request(), or denies "
        "them: watch listeners, whose rows count drops"
    )


def _without_drops(program: BpfObject) -> None:
    program.resize_map("drops", mmap.PAGESIZE)


def _one_way(programs: Sequence[str], ring_bytes: int) -> BpfObject:
    def prepare(program: BpfObject) -> None:
        for name in programs:
            program.enable(name)
        program.resize_map("drops", ring_bytes)
        program.set_constants(with_drops=True)

    loaded = load_newest("listen", prepare)
    try:
        for name in programs:
            loaded.attach(name)
    except BaseException:
        loaded.close()
        raise
    return loaded


def _members(record: np.dtype[Any]) -> list[tuple[str, Any]]:
    return [(name, record[name]) for name in record.names or () if name != "pad"]


def _events(rows: npt.NDArray[np.void]) -> npt.NDArray[np.uint8]:
    """What each row tells that is new: a queue that is high now and was not, and drops."""
    now = high(rows)
    event: npt.NDArray[np.uint8] = now & ~rows["was"]
    event[rows["drops"] > 0] |= DROPS
    return event


class Overflows:
    """How many of the drops were for a full accept queue.

    The kernel counts them for each network namespace (ListenOverflows in /proc/PID/net/netstat),
    and drops (ListenDrops) also for each socket. Where only one listener of a namespace has
    dropped, or all drops were overflows, or none was, that says it for each of them.
    """

    def __init__(self) -> None:
        self._known: dict[int, int | None] = {}  # None: it could not be read
        self._found: dict[int, int] | None = None  # a process of each namespace

    def of(self, rows: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
        """Overflows of each listener in the interval, shape (n,); -1 where they cannot be told.

        Args:
            rows: with netns, pid and drops.
        """
        found = np.zeros(len(rows), np.int64)
        namespaces = np.unique(rows["netns"]).tolist()
        self._found = None
        # A number may be another namespace's later.
        self._known = {one: count for one, count in self._known.items() if one in namespaces}
        for netns in namespaces:
            places = np.flatnonzero(rows["netns"] == netns)
            drops = rows["drops"][places].astype(np.int64)
            if netns not in self._known or drops.any():
                found[places] = self._of_one(netns, drops, rows["pid"][places].tolist())
        return found

    def _of_one(
        self, netns: int, drops: npt.NDArray[np.int64], pids: Sequence[int]
    ) -> npt.NDArray[np.int64]:
        read = self._read(netns, pids)
        before = self._known.get(netns)
        if read is None:
            self._known[netns] = None
            return np.where(drops > 0, UNKNOWN, 0)
        now = read.overflows
        if before is None:
            # All that was ever dropped there is of this interval, or none was an overflow.
            whole = read.drops <= drops.sum() or not now
            before = 0 if whole else now
            if not whole and drops.any():
                self._known[netns] = now
                return np.where(drops > 0, UNKNOWN, 0)
        told = share(drops, now - before)
        # What a drop is still to come for stays for the next interval.
        self._known[netns] = now if (told < 0).any() else before + int(told.sum())
        return told

    def _read(self, netns: int, pids: Sequence[int]) -> Counters | None:
        """By the listeners' own processes, else by any that is in the namespace.

        In a pid namespace of podscope's own the rows' numbers are not those of /proc, and an owner
        may have gone to another namespace since.
        """
        read = _counters(netns, pids)
        if read is not None:
            return read
        if self._found is None:
            self._found = _processes()
        return _counters(netns, [self._found[netns]]) if netns in self._found else None


def share(drops: npt.NDArray[np.int64], overflows: int) -> npt.NDArray[np.int64]:
    """Overflows of each listener of a namespace: shape (n,); -1 where they cannot be told."""
    if overflows >= drops.sum():
        return drops
    if overflows <= 0:
        return np.zeros_like(drops)
    dropping = drops > 0
    told = np.where(dropping, UNKNOWN, 0)
    if dropping.sum() == 1:
        told[dropping] = overflows
    return told


def _processes() -> dict[int, int]:
    """A process of each network namespace that /proc shows."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                found.setdefault(os.stat(f"/proc/{name}/ns/net").st_ino, int(name))
    return found


@dataclass(frozen=True)
class Counters:
    """What the kernel has counted in a network namespace since it was made."""

    overflows: int
    drops: int


def _counters(netns: int, pids: Sequence[int]) -> Counters | None:
    """Counters of a network namespace, by a process that is in it; None: none of these is."""
    for pid in dict.fromkeys(pid for pid in pids if pid):
        process = Path(f"/proc/{pid}")
        try:
            if (process / "ns/net").stat().st_ino != netns:
                continue
            return listen_counters((process / "net/netstat").read_text())
        except OSError:
            continue
    return None


def listen_counters(text: str) -> Counters | None:
    """From the text of /proc/net/netstat: a line of names, then one of values."""
    lines = [line.split() for line in text.splitlines() if line.startswith("TcpExt:")]
    if len(lines) != 2 or not {"ListenOverflows", "ListenDrops"} <= set(lines[0]):
        return None
    told = dict(zip(*lines, strict=True))
    return Counters(int(told["ListenOverflows"]), int(told["ListenDrops"]))
