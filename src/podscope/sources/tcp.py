# SPDX-License-Identifier: Apache-2.0
"""TCP's connections: sums by owner and peer, and single events where they are asked for."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from mmap import PAGESIZE
from typing import ClassVar
from typing import Self

import numpy as np

from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.kernel.kernel_types import kernel_enum
from podscope.kernel.libbpf import BpfError
from podscope.kernel.maps import HashMap
from podscope.kernel.objects import BpfObject
from podscope.kernel.probes import find_cgroup2
from podscope.kernel.rings import Ring
from podscope.schema import Field
from podscope.schema_tcp import FAILED
from podscope.schema_tcp import TCP
from podscope.schema_tcp import TCP_EVENT
from podscope.schema_tcp import WHAT
from podscope.sources.interval_sums import IntervalSums
from podscope.sources.loading import cgroup_directory
from podscope.sources.loading import executable_of
from podscope.sources.loading import load_newest
from podscope.sources.open_sockets import note_open_sockets
from podscope.sources.peer_classes import peer_classes
from podscope.sources.records import fill
from podscope.sources.records import members
from podscope.sources.source import Rows

# Reasons of losses.
LOST = ("ring_full", "connections_full", "table_full", "chunks_full", "missed")
EVENTS = (*WHAT[1:], FAILED)
DEFAULT_EVENTS = ("connect", "accept", "life", "retransmit", "reset_sent", "reset_received")
REASON_BYTES = 48
# Programs of one tracepoint, with more arguments in newer kernels: the first that attaches.
_RETRANSMITS = ("tcp_retransmit_3", "tcp_retransmit")
_DROPS = ("tcp_drop_4", "tcp_drop_3")


@dataclass(frozen=True)
class TcpOptions:
    """What the programs do.

    Attributes:
        events: which single events are told, of ``EVENTS``; ``failed`` are connects that failed.
        window_seconds: between two samples of a connection's window.
        max_series: owners and peers beyond these are counted together, each interval; also how
            many pieces histograms may have.
        max_connections: of connections beyond these the owner and the start are not known.
        ring_bytes: size of the events' ring, a power of two.
        cgroup: path of the cgroup v2 whose sockets get owners; None: the root, so all of the host.
    """

    events: Collection[str] = DEFAULT_EVENTS
    window_seconds: float = 1.0
    max_series: int = 10_240
    max_connections: int = 131_072
    ring_bytes: int = 4 << 20
    cgroup: str | None = None


class TcpSource:
    """The programs, attached. Close it, or use it in a ``with``.

    Args:
        options: what they do.
        kinds: ``tcp`` (sums), ``tcp_event``, or both.

    Raises:
        UsageError: an event that there is not.
        PodscopeError: no cgroup v2, no rights, or a kernel that cannot run the programs.
    """

    options: ClassVar[type] = TcpOptions
    fields: ClassVar[Mapping[str, tuple[Field, ...]]] = {"tcp": TCP, "tcp_event": TCP_EVENT}
    events: ClassVar[frozenset[str]] = frozenset({"tcp_event"})

    def __init__(
        self, options: TcpOptions | None = None, kinds: Collection[str] = ("tcp", "tcp_event")
    ) -> None:
        self._options = options or TcpOptions()
        self._wanted = _wanted(self._options.events) if "tcp_event" in kinds else 0
        self._with_sums = "tcp" in kinds
        cgroup = self._options.cgroup or find_cgroup2()
        self._object = load_newest("tcp", self._prepare)
        try:
            self._open_maps()
            self._attach(cgroup)
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
        """What was counted since the last read: one row for each owner, side, port and peer.

        The members are those of ``struct tcp_key`` and ``struct tcp_sums``, ``buckets`` of
        ``struct tcp_row``, and ``peer_class``.
        """
        keys, sums, buckets = self._sums.take(self._sums.turn())
        rows = np.zeros(len(keys), self._row)
        fill(rows, keys)
        fill(rows, sums)
        rows["buckets"] = buckets
        rows["peer_class"] = peer_classes(rows["peer"])
        return {"tcp": rows}

    def read_events(self) -> Rows:
        """Events since the last call: ``struct tcp_event``, ``peer_class`` and ``reason_text``."""
        events = self._ring.drain()
        rows = np.zeros(len(events), self._event)
        fill(rows, events)
        rows["peer_class"] = peer_classes(rows["peer"])
        dropped = np.flatnonzero(events["reason"])
        for place in dropped.tolist():
            rows["reason_text"][place] = reason(int(events["reason"][place])).encode()
        return {"tcp_event": rows}

    def ring_use(self) -> float:
        """How full the ring of events is, from 0 to 1."""
        return self._ring.pending() / self._options.ring_bytes

    def lost(self) -> dict[str, int]:
        """What could not be told since the start, by reason."""
        lost = {name: int(self._object.variables[name]) for name in LOST if name != "missed"}
        return lost | {"missed": self._object.missed(self._traced)}

    def executable(self, owner: int) -> str:
        """Base name of the executable of who connected or began to listen."""
        return executable_of(self._owners, owner)

    def cgroup_path(self, owner: int) -> str:
        """The kernel tells none."""
        return ""

    def _prepare(self, program: BpfObject) -> None:
        program.set_constants(
            wanted=self._wanted,
            window_ns=round(self._options.window_seconds * 1e9),
            with_sums=self._with_sums,
        )
        program.resize_map("connections", self._options.max_connections)
        for name in ("sums_0", "sums_1", "chunks_0", "chunks_1"):
            program.resize_map(name, self._options.max_series)
        program.resize_map("events", self._options.ring_bytes if self._wanted else PAGESIZE)

    def _open_maps(self) -> None:
        record = self._object.dtype("tcp_event")
        key, sums = self._object.dtype("tcp_key"), self._object.dtype("tcp_sums")
        classes = ("peer_class", "u1")
        self._event = np.dtype([*members(record), classes, ("reason_text", f"S{REASON_BYTES}")])
        buckets = ("buckets", self._object.dtype("tcp_row")["buckets"])
        self._row = np.dtype([*members(key), classes, *members(sums), buckets])
        self._ring = Ring.of(self._object.map("events"), record)
        self._sums = IntervalSums(self._object)
        self._owners = HashMap.of(self._object.map("owners"))

    def _attach(self, cgroup: str) -> None:
        with cgroup_directory(cgroup) as directory:
            self._object.attach_cgroup("tcp_ends", directory)
        note_open_sockets(self._object, "tcp_open_sockets")
        for program in ("tcp_state", "tcp_reset_sent", "tcp_reset_received"):
            self._object.attach(program)
        # Those whose events nothing else tells.
        self._traced = ["tcp_reset_sent", "tcp_reset_received", self._attach_first(_RETRANSMITS)]
        if self._wanted >> WHAT.index("state") & 1:
            self._traced.append("tcp_state")
        if self._wanted >> WHAT.index("drop") & 1:
            self._traced.append(self._attach_drops())
        if self._wanted >> WHAT.index("window") & 1:
            self._object.attach("tcp_window")

    def _attach_drops(self) -> str:
        try:
            return self._attach_first(_DROPS)
        except BpfError:
            raise PodscopeError(
                "drops: this kernel tells no reasons of them: it takes Linux 5.17 or newer"
            ) from None

    def _attach_first(self, programs: tuple[str, ...]) -> str:
        """A tracepoint refuses a program that reads more arguments than it has."""
        for program in programs[:-1]:
            with suppress(BpfError):
                self._object.attach(program)
                return program
        self._object.attach(programs[-1])
        return programs[-1]


def reason(code: int) -> str:
    """The kernel's reason of a drop, as ``TCP_OVERWINDOW``; the number where it has no name."""
    name = kernel_enum("skb_drop_reason").get(code, str(code))
    return name.removeprefix("SKB_DROP_REASON_").removeprefix("SKB_")[:REASON_BYTES]


def _wanted(events: Collection[str]) -> int:
    bits = 0
    for event in events:
        if event not in EVENTS:
            raise UsageError(f"events: {event!r}: choose from {', '.join(EVENTS)}")
        bits |= 1 << (EVENTS.index(event) + 1)
    return bits
