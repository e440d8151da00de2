# SPDX-License-Identifier: Apache-2.0
"""From the kernel to batches with names: what every face reads."""

from __future__ import annotations

import errno
import mmap
import numbers
import os
import resource
import time
import warnings
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol
from typing import Self

import numpy as np
import numpy.typing as npt

from podscope.batch import Batch
from podscope.batch import Identity
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.identity.host import HostIdentities
from podscope.kernel.libbpf import MORE_FILES
from podscope.kernel.probes import find_cgroup2
from podscope.sources.http import HttpOptions
from podscope.sources.http import HttpSource
from podscope.sources.http import RequestLog
from podscope.sources.source import Rows
from podscope.sources.source import Source
from podscope.sources.source import SourceClass
from podscope.sources.source import kinds as kinds_of_sources
from podscope.sources.source import names as names_of_sources
from podscope.sources.source import sources_of
from podscope.stopping import Stop

# Those of the HTTP source; others have kinds of their own.
KINDS = ("http", "request")
# The request log is read so often; more often when its ring fills.
LOG_SECONDS = 0.2
LOG_SECONDS_LEAST = 0.01
# A hundred years, as for --interval: timers take little more.
MOST_SECONDS = 36500 * 86400
# Counters take kilobytes for each series, from the start.
MOST_SERIES = 1_000_000
MOST_RING_BYTES = 1 << 30


class Identities(Protocol):
    """Names for rows."""

    def resolve(
        self,
        cgroup_ids: npt.NDArray[np.uint64],
        pids: npt.NDArray[np.uint32],
        owners: npt.NDArray[np.uint32],
    ) -> tuple[npt.NDArray[np.uint32], tuple[Identity, ...]]:
        """For each row the position of its identity, shape (n,), and the identities."""


class Feed:
    """A source beside HTTP, and names for its rows.

    Args:
        name: the source's name; its losses are told with it.
        source: the programs, attached; closed with the feed.
        kinds: the kinds of rows that are wanted.
        identities: names for the rows; those of this host by default.
    """

    def __init__(
        self, name: str, source: Source, kinds: Sequence[str], identities: Identities | None = None
    ) -> None:
        self.name = name
        self.source = source
        self._kinds = tuple(kind for kind in kinds if kind in source.fields)
        # Whether single events are wanted, which should not wait for the interval's end.
        self.has_events = any(kind in source.events for kind in self._kinds)
        self._identities = identities or HostIdentities(
            find_cgroup2(), source.executable, source.cgroup_path
        )
        self._last_read = time.monotonic()
        self._last_lost = self.lost()

    def lost(self) -> dict[str, int]:
        """What could not be told since the start, by reason with the source's name before it."""
        return {f"{self.name}_{reason}": n for reason, n in self.source.lost().items()}

    def events(self) -> Iterator[Batch]:
        """Single events since the last time; no batch of a kind that there is nothing of."""
        if self.has_events:
            read = self.source.read_events()
            yield from self._batches({kind: rows for kind, rows in read.items() if len(rows)}, 0.0)

    def interval(self) -> Iterator[Batch]:
        """Rows of the interval that ends now: one batch a kind, also where there is nothing."""
        if self.has_events:
            yield from self._batches(self.source.read_events(), 0.0)
        if all(kind in self.source.events for kind in self._kinds):
            return
        rows = self.source.read()
        now = time.monotonic()
        length, self._last_read = now - self._last_read, now
        yield from self._batches(rows, length)

    def close(self) -> None:
        """Detaches everything from the kernel."""
        self.source.close()

    def _batches(self, read: Rows, interval: float) -> Iterator[Batch]:
        for kind in self._kinds:
            if kind not in read:
                continue
            rows = read[kind]
            lost = self.lost()
            index, identities = self._identities.resolve(
                rows["cgroup_id"], rows["pid"], rows["owner"]
            )
            yield Batch(
                kind=kind,
                rows=rows,
                identity=index,
                identities=identities,
                time_ns=time.time_ns(),
                interval=interval,
                clock_offset_ns=_clock_offset_ns(),
                lost={reason: n - self._last_lost.get(reason, 0) for reason, n in lost.items()},
                fields=self.source.fields[kind],
            )
            self._last_lost = lost


class Watch:
    """A running watch. Iterate over it, or :meth:`read` it at moments of your own.

    Args:
        source: the HTTP source; None if neither ``http`` nor ``request`` is wanted.
        kinds: the kinds of rows that are wanted.
        interval: seconds between two batches of a kind that is counted.
        identities: names for HTTP's rows; those of this host by default.
        feeds: other sources; closed with the watch.

    Attributes:
        refused: why a source that was asked for does not run, by name.
    """

    def __init__(
        self,
        source: HttpSource | None,
        kinds: Sequence[str],
        interval: float,
        identities: Identities | None = None,
        feeds: Sequence[Feed] = (),
    ) -> None:
        self.refused: dict[str, PodscopeError] = {}
        self._http_source = source
        self._feeds = tuple(feeds)
        self._kinds = tuple(kinds)
        self.interval = interval
        if source is not None:
            self._identities = identities or HostIdentities(find_cgroup2(), source.executable)
            self._last_lost = source.lost()
        self._routes: dict[int, str] = {0: ""}
        self._stopped = Stop()
        self._closed = False
        self._last_read = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detaches everything from the kernel: what was not read by then is gone."""
        self._closed = True
        if self._http_source is not None:
            self._http_source.close()
        for feed in self._feeds:
            feed.close()

    def stop(self) -> None:
        """Ends the iteration after one last read. May be called from a signal handler."""
        self._stopped.set()

    def __iter__(self) -> Iterator[Batch]:
        due = time.monotonic() + self.interval
        pause = LOG_SECONDS
        has_events = "request" in self._kinds or any(feed.has_events for feed in self._feeds)
        while not self._stopped.is_set():
            wait = due - time.monotonic()
            if has_events:
                wait = min(wait, pause)
            if wait > 0:
                self._stopped.wait(wait)
            if has_events:
                pause = self._pause(pause)
                yield from self._events()
            if time.monotonic() >= due and not self._stopped.is_set():
                due = max(due + self.interval, time.monotonic())
                yield from self._intervals()
        yield from self.read()

    def also(
        self,
        kinds: Sequence[str],
        settings: Mapping[str, Any] | None = None,
        identities: Callable[[Source], Identities | None] = lambda _: None,
    ) -> None:
        """Starts the sources of further kinds; to be called before the iteration begins.

        ``refused`` has those that this host cannot run.

        Args:
            settings: options of sources, by name.
            identities: as of `open_feeds`.

        Raises:
            UsageError: an option that cannot be.
        """
        if not kinds:
            return  # nobody needs to know which sources there are
        feeds, refused = open_feeds(kinds, settings or {}, identities=identities)
        self._feeds += tuple(feeds)
        self._kinds += tuple(kinds)
        self.refused |= refused

    def read(self) -> list[Batch]:
        """What has come since the last read: batches of the kinds asked for, at once.

        Raises:
            PodscopeError: the watch is closed; iterating over it then raises the same.
        """
        return [*self._requests(), *self._intervals()]

    def lost(self) -> dict[str, int]:
        """What could not be counted since the start, by reason."""
        lost = {} if self._http_source is None else self._http_source.lost()
        for feed in self._feeds:
            lost |= feed.lost()
        return lost

    def sources(self) -> dict[str, bool]:
        """The sources beside HTTP that were asked for, by name: whether they run."""
        return dict.fromkeys(self.refused, False) | {feed.name: True for feed in self._feeds}

    def cost(self) -> dict[str, float]:
        """What this process has used: ``cpu_seconds``, ``resident_bytes``, ``series``."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
        return {
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "resident_bytes": float(pages * os.sysconf("SC_PAGESIZE")),
            "series": 0.0 if self._http_source is None else float(self._source.series_count()),
        }

    @property
    def _source(self) -> HttpSource:
        if self._http_source is None:
            raise PodscopeError("the watch has no HTTP source")
        return self._http_source

    def _events(self) -> Iterator[Batch]:
        yield from self._requests()
        for feed in self._feeds:
            yield from self._of_feed(feed, feed.events())

    def _intervals(self) -> Iterator[Batch]:
        yield from self._http()
        for feed in self._feeds:
            yield from self._of_feed(feed, feed.interval())

    def _of_feed(self, feed: Feed, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Its batches. One that fails ends alone: the others go on, where there are any."""
        try:
            yield from batches
        except (PodscopeError, OSError) as error:
            rest = tuple(one for one in self._feeds if one is not feed)
            if self._closed or (self._http_source is None and not rest):
                raise
            self._feeds = rest
            self.refused[feed.name] = PodscopeError(f"it has failed: {error}")
            warnings.warn(f"without {feed.name}: it has failed: {error}", RuntimeWarning, 2)
            feed.close()

    def _check_open(self) -> None:
        if self._closed:
            raise PodscopeError("the watch is closed: read it inside of its with block")

    def _http(self) -> Iterator[Batch]:
        self._check_open()
        if "http" not in self._kinds:
            return
        rows = self._source.read()
        now = time.monotonic()
        lost = self._source.lost()
        keys = rows["key"]
        index, identities = self._identities.resolve(keys["cgroup_id"], keys["pid"], keys["owner"])
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
        self._check_open()
        if "request" not in self._kinds:
            return
        rows = self._source.read_requests()
        if not len(rows):
            return
        index, identities = self._identities.resolve(rows["cgroup_id"], rows["pid"], rows["owner"])
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
        uses = [feed.source.ring_use() for feed in self._feeds]
        if "request" in self._kinds:
            uses.append(self._source.ring_use())
        if max(uses, default=0.0) > 0.25:
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
    sources: Mapping[str, Any] | None = None,
    **options: Any,
) -> Watch:
    """Starts to watch this host; use it in a ``with`` and iterate over its batches.

    Args:
        kinds: ``http`` (rate, errors, duration by series, each interval), ``request``, and those
            of the other sources (docs/reference/library.md).
        interval: seconds between two batches of kind ``http``, or of another that is counted.
        routes: tell routes apart.
        peers: tell the addresses of the other ends apart.
        log: which exchanges become rows of kind ``request``; all, where that kind is asked for.
        sources: options of the other sources, by name, as ``{"tcp": TcpOptions(...)}``.
        options: further members of :class:`podscope.sources.http.HttpOptions`.

    Raises:
        UsageError: an argument that cannot be; the message names it and says what is right.
        PodscopeError: no rights, or a host that cannot run the programs. Where it can run some of
            the sources asked for, it warns (RuntimeWarning) of the others and goes on.
    """
    _check_kinds(kinds)
    _check_interval(interval)
    if log is not None and not isinstance(log, RequestLog):
        raise UsageError(f"log: {log!r}: it must be a podscope.sources.http.RequestLog, or None")
    if "request" in kinds and log is None:
        log = RequestLog(all=True)
    chosen = HttpOptions(routes=routes, peers=peers, log=log, **options)
    _check_sizes(chosen)
    if chosen.cgroup is not None:
        _check_cgroup(chosen.cgroup)
    try:
        return _open(chosen, kinds, interval, sources or {})
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise PodscopeError(f"{error.strerror}: {MORE_FILES}") from None


def open_feeds(
    kinds: Sequence[str],
    settings: Mapping[str, Any],
    classes: Mapping[str, SourceClass] | None = None,
    identities: Callable[[Source], Identities | None] = lambda _: None,
) -> tuple[list[Feed], dict[str, PodscopeError]]:
    """Starts the sources that give some kinds of rows.

    Args:
        kinds: the kinds that are wanted; those of no source are passed over.
        settings: options of sources, by name.
        classes: the sources, by name; all that give one of the kinds by default.
        identities: names for the rows of a source; None for those of this host.

    Returns:
        Those that this host can run, and why it cannot run the others, by name.

    Raises:
        UsageError: an option that cannot be. Nothing runs then.
    """
    chosen = sources_of(tuple(kinds)) if classes is None else classes
    feeds: list[Feed] = []
    refused: dict[str, PodscopeError] = {}
    try:
        for name, make in chosen.items():
            try:
                feeds.append(_open_feed(name, make, kinds, settings.get(name), identities))
            except UsageError:
                raise
            except PodscopeError as error:
                refused[name] = error
    except BaseException:
        for feed in feeds:
            feed.close()
        raise
    return feeds, refused


def _open_feed(
    name: str,
    make: SourceClass,
    kinds: Sequence[str],
    options: Any,
    identities: Callable[[Source], Identities | None],
) -> Feed:
    source = make(options, [kind for kind in kinds if kind in make.fields])
    try:
        return Feed(name, source, kinds, identities(source))
    except BaseException:
        source.close()
        raise


def _open(
    chosen: HttpOptions, kinds: Sequence[str], interval: float, settings: Mapping[str, Any]
) -> Watch:
    _check_sources(settings)
    others = tuple(kind for kind in kinds if kind not in KINDS)
    first = tuple(kind for kind in kinds if kind in KINDS)
    http = HttpSource(chosen) if first else None
    try:
        watch = Watch(http, first, interval)
    except BaseException:
        if http is not None:
            http.close()
        raise
    try:
        watch.also(others, settings)
        _tell(watch.refused, nothing=http is None and not any(watch.sources().values()))
    except BaseException:
        watch.close()
        raise
    return watch


def _tell(refused: Mapping[str, PodscopeError], *, nothing: bool) -> None:
    """Warns of sources that cannot run; raises the last one's reason where nothing else can."""
    if nothing and refused:
        raise list(refused.values())[-1]
    for name, error in refused.items():
        warnings.warn(f"without {name}: {error}", RuntimeWarning, stacklevel=4)


def _check_kinds(kinds: Sequence[str]) -> None:
    if isinstance(kinds, str) or not isinstance(kinds, Collection):
        raise UsageError(f"kinds: {kinds!r}: it must be a tuple or list, as kinds=('http',)")
    unknown = [kind for kind in kinds if kind not in KINDS]
    others = kinds_of_sources() if unknown or not kinds else ()
    unknown = [kind for kind in unknown if kind not in others]
    if unknown or not kinds:
        known = ", ".join((*KINDS, *others))
        raise UsageError(f"kinds: {unknown or 'none'}: choose from {known}")


def _check_sources(settings: Mapping[str, Any]) -> None:
    for name in settings:
        if name not in names_of_sources():
            raise UsageError(
                f"sources: {name!r}: there is no such source; choose from "
                f"{', '.join(names_of_sources())}"
            )


def _check_interval(interval: float) -> None:
    # False for NaN as well.
    if not isinstance(interval, numbers.Real) or not 0 < interval <= MOST_SECONDS:
        raise UsageError(
            f"interval: {interval!r}: it must be a number of seconds, more than 0 and at most "
            f"{MOST_SECONDS}"
        )


def _check_sizes(chosen: HttpOptions) -> None:
    _check_whole("max_series", chosen.max_series, 1, MOST_SERIES)
    _check_whole("routes_per_workload", chosen.routes_per_workload, 0, 2**32 - 1)
    size = chosen.ring_bytes
    _check_whole("ring_bytes", size, mmap.PAGESIZE, MOST_RING_BYTES)
    if size & (size - 1):
        raise UsageError(
            f"ring_bytes: {size}: it must be a power of two, as {1 << size.bit_length()}"
        )


def _check_whole(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{name}: {value!r}: it must be a whole number from {least} to {most}")


def _check_cgroup(cgroup: str) -> None:
    if not isinstance(cgroup, (str, os.PathLike)):
        raise UsageError(f"cgroup: {cgroup!r}: it must be a path, or None for all of the host")
    # Each directory of cgroup v2 has it, and none of v1 (Documentation/admin-guide/cgroup-v2.rst).
    if not os.path.exists(os.path.join(cgroup, "cgroup.controllers")):
        raise UsageError(
            f"cgroup: {os.fspath(cgroup)!r} is no directory of cgroup v2: name one below "
            f"{find_cgroup2()}"
        )


def _clock_offset_ns() -> int:
    """Unix time less CLOCK_MONOTONIC, in nanoseconds."""
    return time.time_ns() - time.monotonic_ns()
