# SPDX-License-Identifier: Apache-2.0
"""From the kernel to batches with names: what every face reads."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import Self

from podscope.batch import Batch
from podscope.errors import UsageError
from podscope.identity.host import HostIdentities
from podscope.kernel.probes import find_cgroup2
from podscope.sources.http import HttpOptions
from podscope.sources.http import HttpSource
from podscope.sources.http import RequestLog

KINDS = ("http", "request")
# The request log is read so often; more often when its ring fills.
LOG_SECONDS = 0.2
LOG_SECONDS_LEAST = 0.01


class Watch:
    """A running watch. Iterate over it, or :meth:`read` it at moments of your own."""

    def __init__(self, source: HttpSource, kinds: Sequence[str], interval: float) -> None:
        self._source = source
        self._kinds = tuple(kinds)
        self.interval = interval
        self._identities = HostIdentities(find_cgroup2(), source.executable)
        self._routes: dict[int, str] = {0: ""}
        self._stopped = threading.Event()
        self._last_read = time.monotonic()
        self._last_lost = source.lost()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detaches everything from the kernel."""
        self._source.close()

    def stop(self) -> None:
        """Ends the iteration after one last read. May be called from a signal handler."""
        self._stopped.set()

    def __iter__(self) -> Iterator[Batch]:
        due = time.monotonic() + self.interval
        pause = LOG_SECONDS
        while not self._stopped.is_set():
            wait = due - time.monotonic()
            if "request" in self._kinds:
                wait = min(wait, pause)
            if wait > 0:
                self._stopped.wait(wait)
            if "request" in self._kinds:
                pause = self._pause(pause)
                yield from self._requests()
            if time.monotonic() >= due and not self._stopped.is_set():
                due = max(due + self.interval, time.monotonic())
                yield from self._http()
        yield from self.read()

    def read(self) -> list[Batch]:
        """What has come since the last read: batches of the kinds asked for, at once."""
        return [*self._requests(), *self._http()]

    def lost(self) -> dict[str, int]:
        """What could not be counted since the start, by reason."""
        return self._source.lost()

    def cost(self) -> dict[str, float]:
        """What this process has used: ``cpu_seconds``, ``resident_bytes``, ``series``."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
        return {
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "resident_bytes": float(pages * os.sysconf("SC_PAGESIZE")),
            "series": float(self._source.series_count()),
        }

    def _http(self) -> Iterator[Batch]:
        if "http" not in self._kinds:
            return
        rows = self._source.read()
        now = time.monotonic()
        lost = self._source.lost()
        index, identities = self._identities.resolve(rows["key"]["cgroup_id"], rows["key"]["pid"])
        yield Batch(
            kind="http",
            rows=rows,
            identity=index,
            identities=identities,
            time_ns=time.time_ns(),
            interval=now - self._last_read,
            clock_offset_ns=_clock_offset_ns(),
            routes=self._route_texts(rows["key"]["route"]),
            lost={name: lost[name] - self._last_lost[name] for name in lost},
        )
        self._last_read = now
        self._last_lost = lost

    def _requests(self) -> Iterator[Batch]:
        if "request" not in self._kinds:
            return
        rows = self._source.read_requests()
        if not len(rows):
            return
        index, identities = self._identities.resolve(rows["cgroup_id"], rows["pid"])
        yield Batch(
            kind="request",
            rows=rows,
            identity=index,
            identities=identities,
            time_ns=time.time_ns(),
            interval=0.0,
            clock_offset_ns=_clock_offset_ns(),
            routes=self._route_texts(rows["route"]),
        )

    def _pause(self, pause: float) -> float:
        if self._source.ring_use() > 0.25:
            return max(pause / 2, LOG_SECONDS_LEAST)
        return min(pause * 1.25, LOG_SECONDS)

    def _route_texts(self, hashes: Any) -> dict[int, str]:
        wanted = set(hashes.tolist())
        if not wanted <= self._routes.keys():
            self._routes = self._source.routes()
        return {route: self._routes.get(route, "") for route in wanted}


def watch(
    kinds: Sequence[str] = ("http",),
    interval: float = 1.0,
    *,
    routes: bool = True,
    peers: bool = False,
    log: RequestLog | None = None,
    **options: Any,
) -> Watch:
    """Starts to watch this host; use it in a ``with`` and iterate over its batches.

    Args:
        kinds: ``http`` (rate, errors, duration by series, each interval) and ``request``.
        interval: seconds between two batches of kind ``http``.
        routes: tell routes apart.
        peers: tell the addresses of the other ends apart.
        log: which exchanges become rows of kind ``request``; all, where that kind is asked for.
        options: further members of :class:`podscope.sources.http.HttpOptions`.

    Raises:
        UsageError: an unknown kind, or an interval that is not positive.
        PodscopeError: no rights, or a host that cannot run the programs.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UsageError(f"kinds: {unknown or 'none'}: choose from {', '.join(KINDS)}")
    if interval <= 0:
        raise UsageError(f"interval: {interval}: it must be longer than 0 seconds")
    if "request" in kinds and log is None:
        log = RequestLog(all=True)
    source = HttpSource(HttpOptions(routes=routes, peers=peers, log=log, **options))
    return Watch(source, kinds, interval)


def _clock_offset_ns() -> int:
    """Unix time less CLOCK_MONOTONIC, in nanoseconds."""
    return time.time_ns() - time.monotonic_ns()
