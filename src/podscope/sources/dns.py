# SPDX-License-Identifier: Apache-2.0
"""DNS lookups: sums by owner, name and response, and single lookups where they are asked for."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import PAGESIZE
from typing import Any
from typing import ClassVar
from typing import Self

import numpy as np
import numpy.typing as npt

from podscope.kernel.maps import HashMap
from podscope.kernel.objects import BpfObject
from podscope.kernel.probes import find_cgroup2
from podscope.kernel.rings import Ring
from podscope.schema import Field
from podscope.schema_dns import DNS
from podscope.schema_dns import DNS_LOOKUP
from podscope.schema_dns import NO_ANSWER
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
LOST = (
    "ring_full",
    "table_full",
    "chunks_full",
    "names_full",
    "queries_full",
    "replaced",
    "unasked",
    "malformed",
    "tcp_unparsed",
)
# enum bpf_attach_type (include/uapi/linux/bpf.h)
_INGRESS, _EGRESS = 0, 1
TIMEOUT_NS = 5 * 10**9
# Queries without a response are looked for so often.
LOOK_SECONDS = 1.0
TEXT_BYTES = 128
_OTHER = 1
_CLIENT = 2


@dataclass(frozen=True)
class DnsOptions:
    """What the programs do.

    Attributes:
        only_errors: of single lookups, only those that failed.
        max_series: owners, names and responses beyond these are counted together, each interval;
            also how many pieces histograms may have.
        max_names: names beyond these are counted as ``_OTHER``, each interval.
        max_queries: queries that may wait for a response at the same time.
        ring_bytes: size of the ring of single lookups, a power of two.
        cgroup: path of the cgroup v2 to watch; None: the root, so all of the host.
    """

    only_errors: bool = False
    max_series: int = 8192
    max_names: int = 4096
    max_queries: int = 16_384
    ring_bytes: int = 2 << 20
    cgroup: str | None = None


class DnsSource:
    """The programs, attached. Close it, or use it in a ``with``.

    Args:
        options: what they do.
        kinds: ``dns`` (sums), ``dns_lookup``, or both.

    Raises:
        PodscopeError: no cgroup v2, no rights, or a kernel that cannot run the programs.
    """

    options: ClassVar[type] = DnsOptions
    fields: ClassVar[Mapping[str, tuple[Field, ...]]] = {"dns": DNS, "dns_lookup": DNS_LOOKUP}
    events: ClassVar[frozenset[str]] = frozenset({"dns_lookup"})

    def __init__(
        self, options: DnsOptions | None = None, kinds: Collection[str] = ("dns", "dns_lookup")
    ) -> None:
        self._options = options or DnsOptions()
        self._kinds = tuple(kinds)
        self._looked = time.monotonic()
        cgroup = self._options.cgroup or find_cgroup2()
        self._object = load_newest("dns", self._prepare)
        try:
            lookup, key = self._object.dtype("dns_lookup"), self._object.dtype("dns_key")
            more = (("peer_class", "u1"), ("text", f"S{TEXT_BYTES}"))
            own, keys = members(lookup, ("key", "name")), members(key, ("name", "peer"))
            sums = members(self._object.dtype("dns_sums"))
            sums.append(("buckets", self._object.dtype("dns_row")["buckets"]))
            self._event = np.dtype([*own, *keys, *more])
            self._row = np.dtype([*members(key), *sums, *more])
            self._late_sums: npt.NDArray[Any] = np.zeros(0, self._row)
            self._late_events: npt.NDArray[Any] = np.zeros(0, self._event)
            self._ring = Ring.of(self._object.map("lookups"), lookup)
            self._sums = IntervalSums(self._object)
            self._names = [HashMap.of(self._object.map(f"names_{place}")) for place in (0, 1)]
            self._queries = HashMap.of(self._object.map("queries"))
            self._owners = HashMap.of(self._object.map("owners"))
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
        """What was counted since the last read: one row for each owner, name and response.

        The members are those of ``struct dns_key`` and ``struct dns_sums``, ``buckets`` of
        ``struct dns_row``, ``peer_class`` and ``text``.
        """
        self._look()
        ended = self._sums.turn()
        keys, sums, buckets = self._sums.take(ended)
        hashes, names = self._names[ended].items()
        self._names[ended].delete_many(hashes)
        told = dict(zip(hashes.tolist(), map(_text, names), strict=True))
        told[_OTHER] = b"_OTHER"
        rows = np.zeros(len(keys), self._row)
        fill(rows, keys)
        fill(rows, sums)
        rows["buckets"] = buckets
        rows["text"] = [told.get(number, b"") for number in keys["name"].tolist()]
        late, self._late_sums = self._late_sums, self._late_sums[:0]
        return {"dns": _classed(np.concatenate([rows, late]))}

    def read_events(self) -> Rows:
        """Lookups since the last call: ``struct dns_lookup``, flat, ``peer_class`` and
        ``text``.
        """
        self._look()
        lookups = self._ring.drain()
        rows = np.zeros(len(lookups), self._event)
        fill(rows, lookups["key"])
        fill(rows, lookups)
        rows["text"] = [_text(name) for name in lookups["name"]]
        late, self._late_events = self._late_events, self._late_events[:0]
        return {"dns_lookup": _classed(np.concatenate([rows, late]))}

    def ring_use(self) -> float:
        """How full the ring of lookups is, from 0 to 1."""
        return self._ring.pending() / self._options.ring_bytes

    def lost(self) -> dict[str, int]:
        """What could not be told since the start, by reason."""
        return {name: int(self._object.variables[name]) for name in LOST}

    def executable(self, owner: int) -> str:
        """Base name of the executable of who opened the socket."""
        return executable_of(self._owners, owner)

    def cgroup_path(self, owner: int) -> str:
        """The kernel tells none."""
        return ""

    def _prepare(self, program: BpfObject) -> None:
        program.set_constants(
            with_sums="dns" in self._kinds,
            with_events="dns_lookup" in self._kinds,
            only_errors=self._options.only_errors,
        )
        for name, entries in (
            ("sums_0", self._options.max_series),
            ("sums_1", self._options.max_series),
            ("chunks_0", self._options.max_series),
            ("chunks_1", self._options.max_series),
            ("names_0", self._options.max_names),
            ("names_1", self._options.max_names),
            ("queries", self._options.max_queries),
            ("lookups", self._options.ring_bytes if "dns_lookup" in self._kinds else PAGESIZE),
        ):
            program.resize_map(name, entries)

    def _attach(self, cgroup: str) -> None:
        with cgroup_directory(cgroup) as directory:
            # Owners first, of new sockets and then of those that are there.
            self._object.attach_cgroup("dns_socket", directory)
            both = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
            note_open_sockets(self._object, "dns_open_sockets", types=both)
            self._object.attach_cgroup_as("dns_packet", directory, _INGRESS)
            self._object.attach_cgroup_as("dns_packet", directory, _EGRESS)

    def _look(self) -> None:
        """Takes queries that have waited for too long: they count as lookups that failed."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        keys, queries = self._queries.items()
        # CLOCK_MONOTONIC, as bpf_ktime_get_ns()
        old = queries["time_ns"].astype(np.int64) + TIMEOUT_NS < time.monotonic_ns()
        keys, queries = keys[old], queries[old]
        self._queries.delete_many(keys)
        if "dns" in self._kinds:
            rows = _late(self._row, keys, queries)
            rows["count"], rows["name"] = 1, queries["hash"]
            self._late_sums = np.concatenate([self._late_sums, rows])
        if "dns_lookup" in self._kinds:
            rows = _late(self._event, keys, queries)
            rows["peer"] = keys["peer"]
            for name in ("peer_port", "id"):
                rows[name] = keys[name]
            for name in ("time_ns", "repeats"):
                rows[name] = queries[name]
            self._late_events = np.concatenate([self._late_events, rows])


def _late(
    row: np.dtype[Any], keys: npt.NDArray[Any], queries: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """What both kinds of rows say of a query without a response."""
    rows = np.zeros(len(keys), row)
    for name in ("cgroup_id", "pid", "owner", "type"):
        rows[name] = queries[name]
    for name in ("side", "tcp"):
        rows[name] = keys[name]
    clients = keys["side"] == _CLIENT
    rows["peer"][clients] = keys["peer"][clients]
    rows["code"] = NO_ANSWER
    rows["text"] = [_text(name) for name in queries["name"]]
    return rows


def _classed(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    rows["peer_class"] = peer_classes(rows["peer"])
    return rows


def _text(name: npt.NDArray[Any] | np.void) -> bytes:
    """The text of a ``struct dns_name``; what follows it has no meaning."""
    return bytes(name["text"].tobytes()[: int(name["len"])])
