# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.x: loads the kernel programs, reads their counters and their request log."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from typing import Self

import numpy as np
import numpy.typing as npt

from podscope.errors import PodscopeError
from podscope.kernel.grace import wait_for_programs
from podscope.kernel.maps import HashMap
from podscope.kernel.maps import MmapArray
from podscope.kernel.maps import StackMap
from podscope.kernel.objects import BpfObject
from podscope.kernel.probes import find_cgroup2
from podscope.kernel.rings import Ring
from podscope.schema import error_mask
from podscope.sources.loading import cgroup_directory
from podscope.sources.loading import executable_of
from podscope.sources.loading import load_newest
from podscope.sources.open_sockets import note_open_sockets

# enum bpf_attach_type (include/uapi/linux/bpf.h)
INGRESS = 0
EGRESS = 1
# Slot 0 is never used; 1 and 2 take what finds no free one, for servers and clients.
RESERVED = 3
# Histogram chunks for each series: 16 buckets (two octaves) in each; most need two or three.
CHUNKS_PER_SERIES = 4
MAX_STRIPES = 8
IDLE_SECONDS = 300.0
GONE_SECONDS = 10.0
CLEAN_SECONDS = 60.0
# How long a program that began before a series was taken away may still write to it.
GRACE_SECONDS = 1.0


@dataclass(frozen=True)
class RequestLog:
    """Which exchanges go to the request log; decided in the kernel.

    Attributes:
        all: every one that passes the rest.
        errors: those that failed (server: 5xx; client: 4xx and 5xx; no whole answer).
        slower_ns: those that took as long or longer; 0: not asked for.
        one_in: only one request in so many; 0: all.
        path: only paths that match this glob (``*`` and ``?``).
        sides: ``server``, ``client``.
        ports: server ports, as (first, last) ranges. None: all.
        statuses: answer statuses, as (first, last) ranges. None: all.
    """

    all: bool = False
    errors: bool = False
    slower_ns: int = 0
    one_in: int = 0
    path: str | None = None
    sides: Collection[str] = ("server", "client")
    ports: Sequence[tuple[int, int]] | None = None
    statuses: Sequence[tuple[int, int]] | None = None

    @property
    def takes_all(self) -> bool:
        """Whether it asks for more than errors and slow ones."""
        return self.all or not (self.errors or self.slower_ns)

    def takes(self, rows: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
        """Which rows of ``struct http_request`` it asks for, shape (n,), as the kernel decides.

        ``one_in`` and ``path`` are not looked at.
        """
        side = rows["side"]
        keep = np.isin(side, [_SIDES[name] for name in self.sides])
        port = np.where(side == _SIDES["server"], rows["local_port"], rows["peer_port"])
        for values, ranges in ((port, self.ports), (rows["status"], self.statuses)):
            if ranges is not None:
                inside = [(values >= first) & (values <= last) for first, last in ranges]
                keep &= np.any(inside, axis=0)
        if self.takes_all:
            return np.asarray(keep, dtype=np.bool_)
        wanted = np.zeros(len(rows), dtype=np.bool_)
        if self.errors:
            wanted |= error_mask(rows)
        if self.slower_ns:
            wanted |= rows["duration_ns"] >= self.slower_ns
        return np.asarray(keep & wanted, dtype=np.bool_)


@dataclass(frozen=True)
class HttpOptions:
    """What the kernel programs do.

    Attributes:
        routes: make the route a part of a series.
        peers: make the address of the other end a part of a series.
        known_peers: the same, but only of addresses that ``know_peers`` named, and of some
            private ones that it may name soon.
        log: the request log; None: off.
        log_later: make room for a request log that ``set_log`` will ask for.
        max_series: series beyond these are counted together, under ``_OTHER``.
        routes_per_workload: routes beyond these are ``_OTHER``.
        ring_bytes: size of the request log's ring; a power of two.
        cgroup: path of the cgroup v2 to watch; None: the root, so all of the host.
    """

    routes: bool = True
    peers: bool = False
    known_peers: bool = False
    log: RequestLog | None = None
    log_later: bool = False
    max_series: int = 10_000
    routes_per_workload: int = 200
    ring_bytes: int = 8 << 20
    cgroup: str | None = None


@dataclass
class _Series:
    """What was read last of each slot. Buckets are kept only for slots that were used."""

    sums: npt.NDArray[np.uint64]
    le: npt.NDArray[np.uint64]
    buckets: npt.NDArray[np.uint32]
    active: npt.NDArray[np.float64]  # when it moved last; 0: never


@dataclass(frozen=True)
class _Retired:
    """Slots whose keys are deleted, waiting for the last programs that may write to them."""

    slots: npt.NDArray[np.intp]
    since: float


# Histograms are read in blocks: of ten thousand series they are megabytes.
_ROWS_AT_ONCE = 1024
SUMS = ("sum_ns", "ttfb_sum_ns", "request_bytes", "response_bytes")


class HttpSource:
    """The programs, attached. Close it, or use it in a ``with``.

    Raises:
        PodscopeError: no cgroup v2, no rights, or a kernel that cannot run the programs.
    """

    def __init__(self, options: HttpOptions | None = None) -> None:
        self.options = options or HttpOptions()
        check_rights()
        self._cgroup = self.options.cgroup or find_cgroup2()
        self._stripes = _stripes(os.cpu_count() or 1)
        self._cleaned = time.monotonic()
        self._ignored: frozenset[int] = frozenset()
        # What the kernel programs were told last.
        self._logged: tuple[RequestLog | None, frozenset[int]] = (self.options.log, frozenset())
        self._peers: frozenset[bytes] = frozenset()
        self._object = _load(self.options, self._stripes)
        try:
            self._open_maps()
            self._attach()
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

    @cached_property
    def row_dtype(self) -> np.dtype[Any]:
        """``struct http_row``."""
        return self._object.dtype("http_row")

    @cached_property
    def request_dtype(self) -> np.dtype[Any]:
        """``struct http_request``."""
        return self._object.dtype("http_request")

    @property
    def variables(self) -> dict[str, npt.NDArray[Any]]:
        """The programs' own globals, live."""
        return self._object.variables

    def program_ids(self) -> dict[str, int]:
        """Descriptor of each program by name, for statistics of the kernel."""
        return {name: self._object.program_fd(name) for name in self._object.programs()}

    def read(self) -> npt.NDArray[np.void]:
        """What was counted since the last read: one row a series that moved.

        Returns:
            Rows of ``struct http_row``, shape (n,), counts and sums of this interval.
        """
        now = time.monotonic()
        parity = int(self.variables["interval_parity"]) & 1
        self.variables["interval_parity"][...] = 1 - parity
        rows = self._deltas(self._live_slots(now), parity, now)
        self._free_retired(now)
        live = self._live_slots(now)
        self._retire_idle(live, now)
        if now - self._cleaned > CLEAN_SECONDS:
            self._cleaned = now
            self._forget_routes(live)
            self._forget_peers(live)
        return rows

    def read_requests(self) -> npt.NDArray[np.void]:
        """Takes what the request log holds: rows of ``struct http_request``, shape (n,)."""
        return self._ring.drain()

    def ring_use(self) -> float:
        """How full the request log's ring is, from 0 to 1."""
        return self._ring.pending() / self.options.ring_bytes

    def lost(self) -> dict[str, int]:
        """What could not be counted since the start, by reason; every reason, also with 0."""
        counts = self.variables["lost"]
        return {name: int(counts[number]) for name, number in self._reasons.items()}

    def routes(self) -> dict[int, str]:
        """Text of each route known, by hash."""
        return {0: "", 1: "_OTHER"} | self._forgotten | _route_texts(*self._routes.items())

    def executable(self, owner: int) -> str:
        """Base name of the executable of who opened a socket, or an empty string.

        Args:
            owner: the number in the rows: a process while it runs one program.
        """
        return executable_of(self._owners, owner)

    def series_count(self) -> int:
        """Series in use."""
        return int(np.count_nonzero(self._info["live"]))

    def route_count(self) -> int:
        """Routes in the kernel's map, of all programs."""
        return len(self._routes.items()[0])

    def ignore(self, cgroup_ids: Set[int]) -> None:
        """Changes whose sockets are not watched, at once: by their own cgroup, not those below.

        Raises:
            BpfError: more than the kernel's map holds.
        """
        if cgroup_ids == self._ignored:
            return
        new, gone = cgroup_ids - self._ignored, self._ignored - cgroup_ids
        self._ignored_map.delete_many(np.array(sorted(gone), np.uint64))
        for cgroup_id in new:
            self._ignored_map.update(cgroup_id, 1)
        self._ignored = frozenset(cgroup_ids)
        self.variables["epoch"] += 1  # connections look again

    def set_log(self, log: RequestLog | None, but: Set[int] = frozenset()) -> None:
        """Changes what goes to the request log, at once.

        Args:
            but: cgroups whose exchanges are not wanted, as far as the kernel's map holds them.
        """
        wanted = frozenset(sorted(but)[: self._not_logged_most])
        if (log, wanted) == self._logged:
            return
        before = self._logged[1]
        for cgroup_id in wanted - before:
            self._not_logged_map.update(cgroup_id, 1)
        gone = sorted(before - wanted)
        self._not_logged_map.delete_many(np.array(gone, np.uint64))
        # Programs that began before the last change may still read the rules that are written.
        wait_for_programs()
        _set_log(self.variables, log, but=bool(wanted))
        self._logged = (log, wanted)

    def know_peers(self, addresses: Set[bytes]) -> None:
        """Changes which addresses are told apart, of those that ``known_peers`` is about.

        Args:
            addresses: of 16 bytes each; IPv4 is mapped.

        Raises:
            BpfError: more than the kernel's map holds.
        """
        new, gone = addresses - self._peers, self._peers - addresses
        if not new and not gone:
            return
        for address in _address_keys(new):
            self._peers_map.update(address, _NAMED)
        self._peers_map.delete_many(_address_keys(gone))
        self._peers = frozenset(addresses)
        self.variables["peers_new"][...] = len(self._unnamed_peers())
        self.variables["epoch"] += 1  # connections look again

    def _unnamed_peers(self) -> set[bytes]:
        """Addresses that the kernel programs keep though nobody has named them."""
        keys, values = self._peers_map.items()
        return {bytes(address) for address in keys["bytes"][values != _NAMED]}

    def _forget_peers(self, live: npt.NDArray[np.intp]) -> None:
        """Makes room for other addresses that nobody has named: takes those of no series."""
        used = {bytes(address) for address in self._info[live]["key"]["peer"]}
        unnamed = self._unnamed_peers()
        self._peers_map.delete_many(_address_keys(unnamed - used))
        self.variables["peers_new"][...] = len(unnamed & used)

    def _open_maps(self) -> None:
        self._info = MmapArray.of(self._object.map("series_info")).array
        # More of both is mapped when it is used.
        self._values = self._first("series_values", 1)
        self._chunks = self._first("chunks", 1)
        self._slots = HashMap.of(self._object.map("series_slots"))
        self._routes = HashMap.of(self._object.map("routes"))
        self._route_counts = HashMap.of(self._object.map("route_counts"))
        self._owners = HashMap.of(self._object.map("owners"))
        self._ignored_map = HashMap.of(self._object.map("ignored"))
        self._not_logged_map = HashMap.of(self._object.map("log_except"))
        self._not_logged_most = self._object.map("log_except").max_entries
        self._peers_map = HashMap.of(self._object.map("peers"))
        self._free_slots = StackMap(self._object.map("free_slots").fd, "u4")
        self._free_chunks = StackMap(self._object.map("free_chunks").fd, "u4")
        self._ring = Ring.of(self._object.map("request_ring"), self.request_dtype)
        # Low numbers are taken first, so that what is read stays small.
        self._free_slots.push(np.arange(len(self._info) - 1, RESERVED - 1, -1, dtype="u4"))
        chunks = self._object.map("free_chunks").max_entries
        self._free_chunks.push(np.arange(chunks - 1, 0, -1, dtype="u4"))
        self._reasons = _reasons(self._object.enum("http_lost"))
        self._retired: list[_Retired] = []
        self._forgotten: dict[int, str] = {}
        self._seen = _Series(
            np.zeros((0, len(SUMS)), np.uint64),
            np.zeros((0, 15), np.uint64),
            np.zeros((0, 256), np.uint32),
            np.zeros(0),
        )
        sides = self._object.enum("http_side")
        for slot, side in ((1, "HTTP_SERVER"), (2, "HTTP_CLIENT")):
            self._info[slot]["key"]["side"] = sides[side]
            self._info[slot]["key"]["route"] = 1
            self._info[slot]["live"] = 1
        _set_log(self.variables, self.options.log)

    def _attach(self) -> None:
        with cgroup_directory(self._cgroup) as cgroup:
            # Owners first, of new sockets and then of those that are there: no packet is seen
            # before its socket has one.
            self._object.attach_cgroup("http_socket", cgroup)
            note_open_sockets(self._object)
            # Packets before handshakes: of a connection whose handshake is seen, all is seen.
            self._object.attach_cgroup_as("http_segment", cgroup, INGRESS)
            self._object.attach_cgroup_as("http_segment", cgroup, EGRESS)
            self._object.attach_cgroup("http_handshake", cgroup)

    def _live_slots(self, now: float) -> npt.NDArray[np.intp]:
        live = np.flatnonzero(self._info["live"])
        if len(live) and live[-1] >= len(self._seen.active):
            self._grow(int(live[-1]) + 1)
        new = live[self._seen.active[live] == 0]
        self._seen.active[new] = now
        return live

    def _grow(self, slots: int) -> None:
        room = min(max(64, slots + slots // 4), len(self._info))
        self._values = self._first("series_values", room)
        seen = self._seen
        more = room - len(seen.active)
        self._seen = _Series(
            np.vstack([seen.sums, np.zeros((more, seen.sums.shape[1]), np.uint64)]),
            np.vstack([seen.le, np.zeros((more, 15), np.uint64)]),
            np.vstack([seen.buckets, np.zeros((more, 256), np.uint32)]),
            np.concatenate([seen.active, np.zeros(more)]),
        )

    def _deltas(self, live: npt.NDArray[np.intp], parity: int, now: float) -> npt.NDArray[np.void]:
        values = self._values[live]
        totals = _added_up(values)
        new_le = totals["le"] - self._seen.le[live]
        moved = new_le.any(axis=1)
        slots, totals = live[moved], totals[moved]
        rows = np.zeros(len(slots), self.row_dtype)
        rows["key"] = self._info["key"][slots]
        rows["le"] = new_le[moved]
        rows["count"] = rows["le"].sum(axis=1)
        rows["max_ns"] = values["max_ns"][moved, :, parity].max(axis=1, initial=0)
        self._values["max_ns"][slots, :, parity] = 0
        self._seen.le[slots] = totals["le"]
        self._seen.active[slots] = now
        for column, name in enumerate(SUMS):
            total = _total(totals, name)
            if name == "ttfb_sum_ns":  # a sum of two that are not added to at once
                total = np.maximum(total, self._seen.sums[slots, column])
            rows[name] = total - self._seen.sums[slots, column]
            self._seen.sums[slots, column] = total
        for start in range(0, len(slots), _ROWS_AT_ONCE):
            block = slice(start, start + _ROWS_AT_ONCE)
            self._add_buckets(rows["buckets"][block], slots[block])
        return rows

    def _add_buckets(self, rows: npt.NDArray[np.uint32], slots: npt.NDArray[np.intp]) -> None:
        """What has come to the histograms of some slots, added to rows of shape (n, 256)."""
        ids = self._chunks_of(slots)
        # Most series have two or three. Chunk 0 takes what found no free chunk: it is nobody's.
        row, place = np.nonzero(ids)
        now = self._chunks["n"][ids[row, place]].sum(axis=1, dtype=np.uint32)
        seen = self._seen.buckets.reshape(-1, *ids.shape[1:], now.shape[1])
        at = slots[row], place
        rows.reshape(len(slots), *seen.shape[1:])[row, place] = now - seen[at]
        seen[at] = now

    def _chunks_of(self, slots: npt.NDArray[np.intp]) -> npt.NDArray[np.uint32]:
        """Numbers of the chunks of some slots, shape (n, 16), 0 where there is none; all mapped."""
        ids: npt.NDArray[np.uint32] = self._info["chunk"][slots]
        most = int(ids.max(initial=0))
        if most >= len(self._chunks):
            room = min(max(256, most + most // 4), self._object.map("free_chunks").max_entries)
            self._chunks = self._first("chunks", room)
        return ids

    def _first(self, name: str, entries: int) -> npt.NDArray[Any]:
        """So many entries of a map, as (entries, stripes) elements: low ones are used first."""
        info = self._object.map(name)
        assert info.value is not None
        return MmapArray(info.fd, info.value, (entries, self._stripes)).array

    def _retire_idle(self, live: npt.NDArray[np.intp], now: float) -> None:
        live = live[live >= RESERVED]
        idle = now - self._seen.active[live]
        old = live[idle > GONE_SECONDS]
        if not len(old):
            return
        pids, owner = np.unique(self._info["key"]["pid"][old], return_inverse=True)
        ended = np.array([not os.path.exists(f"/proc/{pid}") for pid in pids.tolist()], bool)
        slots = old[ended[owner] | (now - self._seen.active[old] > IDLE_SECONDS)]
        for retired in self._retired:
            slots = np.setdiff1d(slots, retired.slots)
        if not len(slots):
            return
        self._slots.delete_many(self._info[slots]["key"])
        self.variables["epoch"] += 1
        self._retired.append(_Retired(slots, now))

    def _forget_routes(self, live: npt.NDArray[np.intp]) -> None:
        """Makes room in the map of routes: takes those of processes that are gone.

        A request that is still on its way may end under such a route, so the texts are kept
        for a while here.
        """
        keys, values = self._routes.items()
        series = self._info[live]["key"]
        used = set(zip(series["cgroup_id"].tolist(), series["pid"].tolist(), strict=True))
        owners = list(zip(keys["cgroup_id"].tolist(), keys["pid"].tolist(), strict=True))
        gone = {owner for owner in set(owners) - used if not os.path.exists(f"/proc/{owner[1]}")}
        if not gone:
            return
        old = np.array([owner in gone for owner in owners], bool)
        self._forgotten = _route_texts(keys[old], values[old])
        self._routes.delete_many(keys[old])
        counted = self._route_counts.items()[0]
        pairs = zip(counted["cgroup_id"].tolist(), counted["pid"].tolist(), strict=True)
        self._route_counts.delete_many(counted[[pair in gone for pair in pairs]])
        self.variables["epoch"] += 1  # connections that outlive their owner put theirs up again

    def _free_retired(self, now: float) -> None:
        while self._retired and now - self._retired[0].since > GRACE_SECONDS:
            slots = self._retired.pop(0).slots
            late = self._seen.active[slots] > now - GRACE_SECONDS
            if late.any():
                self._retired.append(_Retired(slots[late], now))
                slots = slots[~late]
            self._free(slots)

    def _free(self, slots: npt.NDArray[np.intp]) -> None:
        ids = self._chunks_of(slots)
        ids = ids[ids > 0]
        self._chunks["n"][ids] = 0
        self._values[slots] = 0
        self._info["chunk"][slots] = 0
        self._info["live"][slots] = 0
        self._seen.sums[slots] = 0
        self._seen.le[slots] = 0
        self._seen.buckets[slots] = 0
        self._seen.active[slots] = 0
        self._free_chunks.push(ids.astype("u4"))
        self._free_slots.push(slots.astype("u4"))


def _route_texts(keys: npt.NDArray[np.void], values: npt.NDArray[np.void]) -> dict[int, str]:
    """Text by hash, from entries of the map of routes."""
    found = {}
    for route, length, text in zip(keys["hash"], values["len"], values["text"], strict=True):
        if not length:
            continue  # it is being written
        raw = bytes(text).ljust(int(length), b"\0")[: int(length)]
        found[int(route)] = raw.decode("utf-8", "backslashreplace")
    return found


def _address_keys(addresses: Iterable[bytes]) -> npt.NDArray[np.void]:
    """Keys of the map of peers, shape (n,)."""
    return np.frombuffer(b"".join(addresses), np.dtype([("bytes", "u1", 16)]))


def check_rights() -> None:
    """Raises PodscopeError where no programs may be loaded."""
    if os.geteuid() != 0:
        raise PodscopeError(
            "loading kernel programs needs root (or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON): "
            "run it with sudo"
        )


def _added_up(values: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Values of shape (n, stripes), each member added up over the stripes; all are u8."""
    words = values.view(np.uint64).reshape(*values.shape, values.dtype.itemsize // 8).sum(axis=1)
    added: npt.NDArray[np.void] = words.view(values.dtype).reshape(len(values))
    return added


def _total(values: npt.NDArray[np.void], name: str) -> npt.NDArray[np.uint64]:
    """A sum, shape (n,)."""
    if name == "ttfb_sum_ns":  # the kernel adds to sum_ns first, then to body_sum_ns
        return np.asarray(values["sum_ns"] - values["body_sum_ns"])
    return np.asarray(values[name])


def _stripes(cpus: int) -> int:
    """Copies of each counter: a power of two, as many as CPUs up to a bound."""
    stripes = 1
    while stripes < cpus and stripes < MAX_STRIPES:
        stripes *= 2
    return stripes


def _load(options: HttpOptions, stripes: int) -> BpfObject:
    """The newest object that this kernel takes.

    ``http`` also needs bpf_loop() (Linux commit e6f2dd0f8067, in 5.17).
    """

    def prepare(program: BpfObject) -> None:
        program.set_constants(
            with_routes=int(options.routes),
            with_peers=_PEERS_KNOWN if options.known_peers else int(options.peers),
            stripes=stripes,
            routes_per_workload=options.routes_per_workload,
        )
        slots = options.max_series + RESERVED
        for name, entries in (
            ("series_slots", slots),
            ("series_info", slots),
            ("free_slots", slots),
            ("series_values", slots * stripes),
            ("chunks", slots * CHUNKS_PER_SERIES * stripes),
            ("free_chunks", slots * CHUNKS_PER_SERIES),
            ("request_ring", options.ring_bytes if options.log or options.log_later else 4096),
        ):
            program.resize_map(name, entries)

    return load_newest("http", prepare)


def _reasons(enum: dict[str, int]) -> dict[str, int]:
    prefix = "HTTP_LOST_"
    return {
        name.removeprefix(prefix).lower(): number
        for name, number in enum.items()
        if name != f"{prefix}MAX"
    }


_LOG_ON, _LOG_ALL, _LOG_ERRORS, _LOG_SLOW, _LOG_EXCEPT = 1, 2, 4, 8, 16
_SIDES = {"server": 1, "client": 2}
# enum peers_kept, and the value of an address in the map of peers that user space has named.
_PEERS_KNOWN = 2
_NAMED = 1


def _set_log(
    variables: dict[str, npt.NDArray[Any]], log: RequestLog | None, *, but: bool = False
) -> None:
    """Writes the rules that are not in force, and then has them be so."""
    bank = 1 - int(variables["log_bank"])
    variables["log_rules"][bank] = 0 if log is None else _log_rules(variables, log, but=but)
    variables["log_bank"][...] = bank


def _log_rules(
    variables: dict[str, npt.NDArray[Any]], log: RequestLog, *, but: bool
) -> npt.NDArray[np.void]:
    flags = _LOG_ON
    flags |= _LOG_ALL if log.takes_all else 0
    flags |= _LOG_ERRORS if log.errors else 0
    flags |= _LOG_SLOW if log.slower_ns else 0
    flags |= _LOG_EXCEPT if but else 0
    path = (log.path or "").encode()[:64]
    settings = {
        "flags": flags,
        "one_in": log.one_in,
        "slower_ns": log.slower_ns,
        "sides": sum(1 << _SIDES[side] for side in set(log.sides)),
        "port_first": min((first for first, _ in log.ports or ()), default=0),
        "port_last": max((last for _, last in log.ports or ()), default=0),
        "status_first": min((first for first, _ in log.statuses or ()), default=0),
        "status_last": max((last for _, last in log.statuses or ()), default=0),
        "path_len": len(path),
        "path": path,
    }
    rules = np.zeros((), variables["log_rules"].dtype)
    for name, value in settings.items():
        rules[name] = value
    return rules
