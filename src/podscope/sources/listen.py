# SPDX-License-Identifier: Apache-2.0
"""Listeners: how full their two queues are, what was dropped, and each drop by itself."""

from __future__ import annotations

import mmap
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar
from typing import Self

import numpy as np
import numpy.typing as npt

from podscope.errors import PodscopeError
from podscope.kernel.cpus import learn_cpus
from podscope.kernel.kernel_types import enumerator
from podscope.kernel.libbpf import BpfError
from podscope.kernel.libbpf import possible_cpus
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
from podscope.sources.records import fill
from podscope.sources.records import members
from podscope.sources.source import Rows

# Reasons of losses.
LOST = ("ring_full", "drops_ring_full", "no_memory")
_RING_BYTES = 1 << 18
# Of the network namespace, in each listener's record.
COUNTERS = ("netns_id", "overflows_first", "overflows_now")
NOT_READ = (1 << 64) - 1  # LISTEN_UNKNOWN
MOST_CPUS = 1024
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
            self._object = load_newest("listen", _prepare)
        try:
            self._record = self._object.dtype("listen_row")
            kept = members(self._record, without=COUNTERS)
            self._row = np.dtype([*kept, ("overflows", "i8"), ("event", "u1")])
            self._drop = self._object.dtype("listen_drop")
            self._told = np.dtype([*members(self._drop), ("peer_class", "u1")])
            self._owners = HashMap.of(self._object.map("owners"))
            self._closed = Ring.of(self._object.map("closed"), self._record)
            self._drops = Ring.of(self._object.map("drops"), self._drop)
            learn_cpus(self._object)
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

        The members are those of ``struct listen_row`` but for the namespace's counters, and
        ``overflows`` (drops because the accept queue was full, or -1) and ``event`` (codes of
        ``podscope.schema_listen``).
        """
        learn_cpus(self._object)
        told = self._object.run_iter("listen_rows", "listeners")
        told += self._object.run_iter("listen_subflow_rows", "subflows")
        records = np.concatenate([self._closed.drain(), np.frombuffer(told, self._record)])
        rows = np.zeros(len(records), self._row)
        fill(rows, records)
        rows["overflows"] = self._overflows.of(records)
        rows["event"] = _events(rows)
        return {"listen": rows}

    def read_events(self) -> Rows:
        """Drops since the last call: ``struct listen_drop`` and ``peer_class``."""
        if not self._rows_wanted:
            self._closed.drain()  # nobody else does
        drops = self._drops.drain()
        rows = np.zeros(len(drops), self._told)
        fill(rows, drops)
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


def _prepare(program: BpfObject, drops_bytes: int = mmap.PAGESIZE) -> None:
    program.resize_map("drops", drops_bytes)
    program.set_constants(cpus=possible_cpus())
    overflows = enumerator("LINUX_MIB_LISTENOVERFLOWS", "LINUX_MIB_LISTENDROPS")
    if overflows is not None and possible_cpus() <= MOST_CPUS:
        program.set_constants(mib_overflows=overflows, with_counter=True)


def _one_way(programs: Sequence[str], ring_bytes: int) -> BpfObject:
    def prepare(program: BpfObject) -> None:
        for name in programs:
            program.enable(name)
        _prepare(program, ring_bytes)
        program.set_constants(with_drops=True)

    loaded = load_newest("listen", prepare)
    try:
        for name in programs:
            loaded.attach(name)
    except BaseException:
        loaded.close()
        raise
    return loaded


def _events(rows: npt.NDArray[np.void]) -> npt.NDArray[np.uint8]:
    """What each row tells that is new: a queue that is high now and was not, and drops."""
    now = high(rows)
    event: npt.NDArray[np.uint8] = now & ~rows["was"]
    event[rows["drops"] > 0] |= DROPS
    return event


class Overflows:
    """How many of the drops were for a full accept queue.

    The kernel counts them for each network namespace (ListenOverflows), and drops also for each
    socket. Where only one listener of a namespace has dropped, or all drops were overflows, or
    none was, that says it for each of them.
    """

    def __init__(self) -> None:
        self._told: dict[int, int] = {}  # of each namespace, up to where it has been told

    def of(self, rows: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
        """Overflows of each listener in the interval, shape (n,); -1 where they cannot be told.

        Args:
            rows: with netns_id, drops, overflows_first and overflows_now.
        """
        found = np.zeros(len(rows), np.int64)
        told = {}
        for netns in np.unique(rows["netns_id"]).tolist():
            places = rows["netns_id"] == netns
            ours = rows[places]
            # A namespace that is new has begun to count with its first listener.
            before = self._told.get(netns, int(ours["overflows_first"].min()))
            found[places], told[netns] = _of_one(ours, before)
        self._told = told
        return found


def _of_one(rows: npt.NDArray[np.void], before: int) -> tuple[npt.NDArray[np.int64], int]:
    """Overflows of the listeners of a namespace, and up to where they have been told."""
    drops = rows["drops"].astype(np.int64)
    dropping = drops > 0
    if not dropping.any():
        return np.zeros_like(drops), before
    now = int(rows["overflows_now"][dropping].max())
    if now == NOT_READ:
        return np.where(dropping, UNKNOWN, 0), before
    told = share(drops, now - before)
    # What a drop is still to come for stays for the next interval.
    return told, now if (told < 0).any() else before + int(told.sum())


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
