# SPDX-License-Identifier: Apache-2.0
"""Who listens to an agent's rows: which each asked for, and what of them it gets."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Any
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from podscope import wire
from podscope.batch import Batch
from podscope.batch import Identity
from podscope.errors import UsageError
from podscope.identity.kubernetes_objects import Pod
from podscope.schema import CLIENT
from podscope.schema import SERVER
from podscope.scope import Has
from podscope.scope import Scope
from podscope.sources.http import RequestLog
from podscope.sources.source import find

# Batches that a listener may be behind before it loses some.
QUEUE = 30
# Intervals are kept for who listens again, after a broken connection or another agent's end: so
# long and so much of them, while somebody has listened, or the first one ended, no longer ago.
RECENT_NS = 20 * 10**9
RECENT_BYTES = 4 << 20
KINDS = ("http", "request")
# Any others, each listener by itself: their programs run while somebody listens.
EVENTS = "events"
# Where an agent serves them, on its pod's loopback address.
STREAM_PORT = 9436
STREAM_PATH = "/v1/"  # and the kind of batches
TRACES_PATH = "/v1/traces/"  # and what is to be done
FindPod = Callable[[str], Pod | None]
T = TypeVar("T")
# How long those who listen may take what is left at the end.
END_SECONDS = 2.0
LEAST_SECONDS, MOST_SECONDS = 0.1, 86400.0


@dataclass(eq=False)
class Listener:
    """One who listens: to one kind of rows, of one scope.

    Attributes:
        kind: of its batches.
        has: which rows are in its scope.
        log: which requests it asked for; None: its rows are of another kind.
        since_ns: it has got all intervals that ended until then, in Unix time; 0: it wants none
            from before.
    """

    kind: str
    has: Has
    log: RequestLog | None
    since_ns: int = 0
    batches: queue.Queue[Batch] = field(default_factory=lambda: queue.Queue(QUEUE))
    passed: dict[int, int] = field(default_factory=dict)

    def put(self, batch: Batch) -> None:
        """Gives it a batch; if it is too far behind it loses one, and is told by the reason."""
        try:
            self.batches.put_nowait(batch)
        except queue.Full:
            self._skip(batch)

    def _skip(self, batch: Batch) -> None:
        """Makes room by dropping the oldest, whose exchanges count as lost."""
        try:
            oldest = self.batches.get_nowait()
        except queue.Empty:
            return
        lost = {"slow_reader": oldest.exchanges()}
        for reason, count in (*oldest.lost.items(), *batch.lost.items()):
            lost[reason] = lost.get(reason, 0) + count
        self.batches.put_nowait(replace(batch, lost=lost))

    def mine(self, batch: Batch, find_pod: FindPod, sampled: int) -> Batch:
        """Its rows of a batch.

        Args:
            find_pod: a pod by its uid.
            sampled: one in so many requests is in the batch already; 0: all are.
        """
        asked = [self.has(one, _pod(one, find_pod)) for one in batch.identities]
        found = batch.where(np.array([*asked, False], dtype=np.bool_)[batch.identity])
        if self.log is None:
            return found
        return found.where(self._taken(found, sampled))

    def _taken(self, batch: Batch, sampled: int) -> npt.NDArray[np.bool_]:
        """Others may have asked for more: what this one did not ask for, shape (n,)."""
        assert self.log is not None
        keep = self.log.takes(batch.rows)
        if self.log.one_in <= 1 or self.log.one_in == sampled:
            return keep
        # Of each side by itself, as the kernel does: they take turns.
        for side in (SERVER, CLIENT):
            mine = keep & (batch.rows["side"] == side)
            numbers = self.passed.get(side, 0) + np.cumsum(mine)
            self.passed[side] = int(numbers[-1]) if len(numbers) else self.passed.get(side, 0)
            keep &= ~mine | (numbers % self.log.one_in == 0)
        return keep


def _pod(identity: Identity, find_pod: FindPod) -> Pod | None:
    return find_pod(identity.pod_uid) if identity.pod_uid else None


@dataclass(frozen=True)
class Asked:
    """Rows of other sources, for one listener.

    Attributes:
        kinds: of its batches.
        interval: seconds between two batches of a kind that is counted.
        sources: options of sources, by name.
    """

    kinds: tuple[str, ...]
    interval: float = 1.0
    sources: dict[str, Any] = field(default_factory=dict)


class Streams:
    """Sends batches to all who listen, each at its own pace."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: set[Listener] = set()
        self._recent: deque[Batch] = deque()
        self._keep_until_ns = 0
        self._sampled = 0
        self._sending = 0
        self._sent = threading.Condition(self._lock)
        self._standing: Listener | None = None
        # The agent's, from when it runs.
        self.find_pod: FindPod = lambda uid: None
        self.on_change: Callable[[], None] = lambda: None
        self.watch_events: Callable[[Asked], Iterator[Batch]] = lambda asked: iter(())

    def publish(self, batch: Batch, no_requests: Batch | None = None) -> None:
        """Gives a batch to everyone who asked for its kind.

        Args:
            no_requests: an empty batch for those who asked for requests: they hear so what was
                lost, and that the agent is there.
        """
        with self._lock:
            listeners = list(self._listeners)
            if batch.kind == "http":
                self._keep(batch)
        for one in listeners:
            if one.kind == batch.kind:
                one.put(batch)
            elif one.kind == "request" and no_requests is not None:
                one.put(no_requests)

    def _keep(self, batch: Batch) -> None:
        heard = any(one.kind == batch.kind for one in self._listeners)
        if heard or not self._keep_until_ns:
            self._keep_until_ns = batch.time_ns + RECENT_NS
        if batch.time_ns > self._keep_until_ns:
            self._recent.clear()
            return
        self._recent.append(batch)
        while self._recent and (
            self._recent[0].time_ns < batch.time_ns - RECENT_NS
            or sum(one.rows.nbytes for one in self._recent) > RECENT_BYTES
        ):
            self._recent.popleft()

    def listen(self, kind: str, query: Mapping[str, Sequence[str]]) -> Iterator[bytes]:
        """Frames of the batches of a kind that are published from now on.

        Args:
            query: ``scope`` (a `Scope`), for requests ``log`` (a `RequestLog`), for events
                ``asked`` (an `Asked`), and for intervals ``since`` (a Unix time in nanoseconds:
                also those that ended after it, as far as they are kept), as JSON.

        Raises:
            UsageError: what is asked for cannot be understood.
            PodscopeError: no source can give it here.
        """
        if kind == EVENTS:
            return self._events(_listener(kind, query), _asked(query))
        return self._frames(_listener(kind, query))

    def always_want(self, log: RequestLog) -> None:
        """Asks for requests for as long as the agent runs: `always_wanted` tells which they are."""
        self._standing = Listener("request", lambda identity, pod: True, log)
        self.on_change()

    def always_wanted(self, batch: Batch) -> Batch:
        """The batch without requests that nobody but a listener asked for."""
        if batch.kind != "request":
            return batch
        if self._standing is None:
            return batch.where(np.zeros(len(batch), dtype=np.bool_))
        return self._standing.mine(batch, self.find_pod, self._sampled)

    def wanted_log(self) -> tuple[RequestLog | None, tuple[Has, ...]]:
        """One request log that has all that anyone asked for, and whose requests those are."""
        with self._lock:
            asking = [*self._listeners, *([self._standing] if self._standing else [])]
            listeners = [one for one in asking if one.log is not None]
            wanted = together([one.log for one in listeners if one.log is not None])
            self._sampled = wanted.one_in if wanted is not None else 0
        return wanted, tuple(one.has for one in listeners)

    def close(self) -> None:
        """Ends what is sent: of all who listen, each after what it was given before."""
        with self._lock:
            listeners, self._listeners = self._listeners, set()
        for one in listeners:
            one.put(_END)
        with self._sent:
            self._sent.wait_for(lambda: self._sending == 0, END_SECONDS)

    @contextmanager
    def _is_sending(self) -> Iterator[None]:
        with self._lock:
            self._sending += 1
        try:
            yield
        finally:
            with self._sent:
                self._sending -= 1
                self._sent.notify_all()

    def _events(self, listener: Listener, asked: Asked) -> Iterator[bytes]:
        """Frames of the rows of other sources: they run from now until nobody reads."""
        batches = self.watch_events(asked)
        first = next(batches, None)  # what cannot be is told here

        def frames() -> Iterator[bytes]:
            nonlocal first
            try:
                with self._is_sending():
                    while first is not None:
                        yield wire.packed(listener.mine(first, self.find_pod, 0))
                        first = next(batches, None)
            finally:
                close = getattr(batches, "close", None)
                if close is not None:
                    close()

        return frames()

    def _frames(self, listener: Listener) -> Iterator[bytes]:
        with self._lock:
            self._listeners.add(listener)
            if listener.since_ns:
                for batch in self._recent:
                    if batch.time_ns > listener.since_ns:
                        listener.put(batch)
        try:
            self.on_change()
            with self._is_sending():
                while (batch := listener.batches.get()).kind:
                    yield wire.packed(listener.mine(batch, self.find_pod, self._sampled))
        finally:
            with self._lock:
                self._listeners.discard(listener)
            self.on_change()


# One without a kind, also where room was made for it.
_END = Batch("", np.zeros(0, "V1"), np.zeros(0, np.uint32), (), 0, 0.0)


def _listener(kind: str, query: Mapping[str, Sequence[str]]) -> Listener:
    more = {"http": {"since"}, "request": {"log"}, EVENTS: {"asked"}}
    known = {"scope"} | more.get(kind, set())
    if unknown := query.keys() - known:
        raise UsageError(f"{sorted(unknown)[0]}: no such setting of {kind}")
    try:
        scope = _decoded(query, "scope", Scope)
        log = _decoded(query, "log", RequestLog) if kind == "request" else None
        since = msgspec.json.decode(query.get("since", ["0"])[-1], type=int)
    except msgspec.MsgspecError as error:
        raise UsageError(f"what is asked for cannot be understood: {error}") from None
    return Listener(kind, scope.rule(), log, since)


def _asked(query: Mapping[str, Sequence[str]]) -> Asked:
    try:
        asked = _decoded(query, "asked", Asked)
        settings: dict[str, Any] = {
            name: msgspec.convert(values, find(name).options)
            for name, values in asked.sources.items()
        }
    except msgspec.MsgspecError as error:
        raise UsageError(f"what is asked for cannot be understood: {error}") from None
    if not LEAST_SECONDS <= asked.interval <= MOST_SECONDS:
        raise UsageError(f"interval: {asked.interval:g} s cannot be")
    return replace(asked, sources=settings)


def _decoded(query: Mapping[str, Sequence[str]], name: str, kind: type[T]) -> T:
    return msgspec.json.decode(query.get(name, ["{}"])[-1], type=kind)


def together(logs: Sequence[RequestLog]) -> RequestLog | None:
    """A request log that has at least what each of some has; None for none."""
    if not logs:
        return None
    first = logs[0]
    same = {one: all(getattr(log, one) == getattr(first, one) for log in logs) for one in _ALIKE}
    slowest = [log.slower_ns for log in logs if log.slower_ns]
    return RequestLog(
        all=any(log.takes_all for log in logs),
        errors=any(log.errors for log in logs),
        slower_ns=min(slowest, default=0),
        one_in=first.one_in if same["one_in"] else 0,
        path=first.path if same["path"] else None,
        sides=sorted({side for log in logs for side in log.sides}),
        ports=_ranges([log.ports for log in logs]),
        statuses=_ranges([log.statuses for log in logs]),
    )


_ALIKE = ("one_in", "path")
_Ranges = Sequence[tuple[int, int]] | None


def _ranges(asked: Sequence[_Ranges]) -> _Ranges:
    if any(ranges is None for ranges in asked):
        return None
    return [one for ranges in asked for one in ranges or ()]
