# SPDX-License-Identifier: Apache-2.0
"""The way to one sink: a queue, a thread, and sending again what was not taken.

Whoever gives rows never waits: what the queue cannot hold is dropped, oldest first, and counted.
"""

from __future__ import annotations

import fnmatch
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from podscope import render
from podscope.sinks.backlog import Backlog
from podscope.sinks.disk_queue import DiskQueue
from podscope.sinks.plugin import Partly
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import Sink
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.plugin import TooLarge
from podscope.sinks.plugin import Unavailable
from podscope.sinks.rows import SERVICE
from podscope.sinks.rows import Rows
from podscope.sinks.rows import RowsError
from podscope.sinks.rows import of_batches
from podscope.sinks.rows import of_losses

if TYPE_CHECKING:
    from podscope.batch import Batch

# Rows that a sink gets at once: other threads wait no longer than encoding so many takes.
PIECE = 5000
# Waits between two tries double from the first to the last, each shortened by chance.
FIRST_WAIT = 0.5
LAST_WAIT = 30.0
MOST_WAIT = 300.0
# At the end there is less time.
LAST_MOMENT_WAIT = 0.5
# Rows that no server wants are kept up to so many bytes, beside the queue on disk.
MOST_REFUSED_BYTES = 16 << 20
REASONS = ("queue_full", "refused", "failed", "ended", "unreadable")


@dataclass
class Counts:
    """What became of a sink's rows since the start."""

    sent: int = 0
    retries: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    last_ns: int = 0
    queued: int = 0
    queued_bytes: int = 0
    disk_bytes: int = 0


class Delivery:
    """Delivers batches to one sink, in a thread of its own.

    Args:
        sink: where they go.
        settings: its filters, its queue, and how often it gets rows.
        resource: what all rows have in common.
        tell: gets a line when the sink begins to fail, and when it works again.

    Raises:
        PodscopeError: the queue on disk cannot be had.
    """

    def __init__(
        self,
        sink: Sink,
        settings: SinkSettings,
        resource: Mapping[str, str],
        tell: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.counts = Counts()
        self._sink = sink
        self._resource = resource
        kinds = (settings.kinds, getattr(sink, "only_kinds", ()))
        self._kinds = tuple(some for some in kinds if some)
        self._tell = tell
        self._condition = threading.Condition()
        self._queue: deque[Batch] = deque()
        self._queued_bytes = 0
        self._lost: dict[str, int] = {}
        self._lost_ns = 0
        limits = settings.queue
        self._backlog = Backlog(DiskQueue(limits.path, limits.disk) if limits.disk else None)
        self._most_rows: int = getattr(sink, "most_rows", PIECE)
        self._failures = 0
        self._is_behind = False
        self._broken = ""
        self._next_try = 0.0
        self._deadline: float | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"podscope-sink-{settings.title}", daemon=True
        )
        self._thread.start()

    def put(self, batch: Batch) -> None:
        """Gives rows and losses to the sink; never waits."""
        if any(batch.lost.values()) and all("lost" in some for some in self._kinds):
            self._note_lost(batch)
        if len(batch) == 0 or any(batch.kind not in some for some in self._kinds):
            return
        size = batch.size
        with self._condition:
            while self._queue and self._queued_bytes + size > self.settings.queue.memory:
                self._drop(len(self._pop()), "queue_full")
            if size > self.settings.queue.memory:
                self._drop(len(batch), "queue_full")
                return
            self._queue.append(batch)
            self._queued_bytes += size
            if self._is_half_full():
                self._condition.notify()

    def _note_lost(self, batch: Batch) -> None:
        """What was lost is a row for each reason, with the next delivery."""
        with self._condition:
            self._lost_ns = batch.time_ns
            for reason, count in batch.lost.items():
                self._lost[reason] = self._lost.get(reason, 0) + count

    def stop(self, seconds: float) -> None:
        """Sends what is left, for so long; call ``join`` afterwards."""
        with self._condition:
            self._deadline = time.monotonic() + seconds
            self._next_try = 0.0
            self._condition.notify()

    def join(self) -> None:
        """Waits until ``stop`` is done; what a server still has in its hands then is dropped."""
        assert self._deadline is not None
        self._thread.join(max(self._deadline - time.monotonic(), 0) + LAST_MOMENT_WAIT)
        if self._thread.is_alive() and not self._backlog.on_disk:
            self.counts.dropped["ended"] += self.state().queued

    def state(self) -> Counts:
        """The counts as they are now."""
        with self._condition:
            self.counts.queued = sum(map(len, self._queue)) + self._backlog.rows
            self.counts.queued_bytes = self._queued_bytes
            self.counts.disk_bytes = self._backlog.disk_bytes
        return self.counts

    @property
    def lost_text(self) -> str:
        """``lost: queue_full 3``; empty if nothing was."""
        return render.lost_text(self.counts.dropped)

    # Below: in the thread of the sink, but for what holds the condition.

    def _run(self) -> None:
        due = time.monotonic() + self.settings.every
        while not self._is_done():
            self._wait(due)
            is_due = time.monotonic() >= due
            if is_due:
                due = max(due + self.settings.every, time.monotonic())
            if is_due or self._is_half_full() or self._deadline is not None:
                self._take()
            self._send_all()
        self._end()
        try:
            self._sink.close()
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}")

    def _is_done(self) -> bool:
        if self._deadline is None:
            return False
        return (
            not (self._queue or self._lost or self._backlog) or time.monotonic() >= self._deadline
        )

    def _wait(self, due: float) -> None:
        """Until there is something to do: the time has come, the queue fills, or it is the end."""
        with self._condition:
            if self._failures:
                due = min(due, self._next_try)
            if self._deadline is not None:
                due = min(self._next_try, self._deadline)
            elif self._is_half_full() and not self._holds_back():
                return
            before = self._deadline
            self._condition.wait_for(
                lambda: (
                    self._deadline != before or (self._is_half_full() and not self._holds_back())
                ),
                timeout=max(due - time.monotonic(), 0),
            )

    def _is_half_full(self) -> bool:
        return self._queued_bytes * 2 > self.settings.queue.memory

    def _holds_back(self) -> bool:
        """Whether batches stay in the queue, which is bounded, since earlier rows wait."""
        return bool(self._backlog) and not self._backlog.on_disk

    def _pop(self) -> Batch:
        batch = self._queue.popleft()
        self._queued_bytes -= batch.size
        return batch

    def _drop(self, count: int, reason: str) -> None:
        self.counts.dropped[reason] += count

    def _take(self) -> None:
        """Makes rows of the batches in the queue."""
        if self._holds_back():
            return
        with self._condition:
            batches = [self._pop() for _ in range(len(self._queue))]
            lost, self._lost = of_losses(self._lost, self._lost_ns, self._resource), {}
        try:
            if len(lost):
                self._drop(self._backlog.add(lost), "queue_full")
            also_by = getattr(self._sink, "also_by", None)
            for rows in of_batches(batches, self.settings.by, self._resource, also_by):
                for piece in self._chosen(rows).pieces(self._most_rows):
                    if len(piece):
                        self._drop(self._backlog.add(piece), "queue_full")
            if self._failures or self._is_behind:
                self._drop(self._backlog.save(), "queue_full")
        except OSError as error:
            self._drop(sum(map(len, batches)), "failed")
            self._fail(f"cannot write to {self.settings.queue.path}: {error.strerror}")
        except Exception as error:  # a fault in the code: counted, told, and no end of the rest
            self._drop(sum(map(len, batches)), "failed")
            self._fail(f"{type(error).__name__}: {error}")

    def _chosen(self, rows: Rows) -> Rows:
        """Those that the sink's filters keep."""
        keep = np.ones(len(rows), dtype=np.bool_)
        if self.settings.sides and "side" in rows.columns:
            keep &= np.isin(rows.columns["side"].astype(str), self.settings.sides)
        if rows.kind == SERVICE and self.settings.sides:
            keep &= "server" in self.settings.sides
        if self.settings.namespaces:
            keep &= _matches(rows, "k8s.namespace.name", self.settings.namespaces)
        return rows if keep.all() else rows.take(keep)

    def _send_all(self) -> None:
        self._is_behind = False
        while self._backlog and time.monotonic() >= self._next_try:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return
            if self._is_half_full() and self._backlog.on_disk:
                # The server is slow: what waits goes to the disk, and the queue is emptied.
                self._is_behind = True
                return
            self._send_one()

    def _send_one(self) -> None:
        """Sends the oldest rows; after that they are sent, dropped and counted, or to be tried."""
        try:
            rows = self._backlog.head()
        except RowsError as error:
            self._drop(self._backlog.skip(), "unreadable")
            self._fail(f"rows in {self.settings.queue.path} cannot be read: {error}")
            return
        try:
            self._sink.send(rows)
        except Unavailable as error:
            self._later(str(error), error.after)
        except Partly as error:
            self._partly(rows, error)
        except TooLarge as error:
            if len(rows) > 1:
                self._backlog.replace([*rows.pieces((len(rows) + 1) // 2)])
            else:
                self._refused(rows, str(error))
                self._backlog.pop()
        except Refused as error:
            self._refused(rows, str(error))
            self._backlog.pop()
        except Exception as error:  # a fault in the sink: counted, told, and no end of the rest
            self._drop(len(rows), "failed")
            self._fail(f"{type(error).__name__}: {error}")
            self._backlog.pop()
        else:
            self._works(len(rows))
            self._backlog.pop()
        self._tell_notes()

    def _tell_notes(self) -> None:
        notes: list[str] = getattr(self._sink, "notes", [])
        while notes:
            self._tell(f"sink {self.settings.title}: {notes.pop(0)}")

    def _works(self, count: int) -> None:
        self.counts.sent += count
        self.counts.last_ns = time.time_ns()
        self._failures = 0
        self._next_try = 0.0
        if self._broken:
            self._broken = ""
            self._tell(f"sink {self.settings.title}: works again")

    def _later(self, why: str, after: float) -> None:
        self._fail(why)
        self._failures += 1
        self.counts.retries += 1
        wait = max(backoff(self._failures), min(after, MOST_WAIT))
        if self._deadline is not None:
            wait = min(wait, LAST_MOMENT_WAIT)
        self._next_try = time.monotonic() + wait
        try:
            self._drop(self._backlog.save(), "queue_full")
        except OSError as error:
            self._fail(f"cannot write to {self.settings.queue.path}: {error.strerror}")

    def _partly(self, rows: Rows, error: Partly) -> None:
        refused = sum(len(some) for some, _ in error.refused) + error.unnamed
        again = len(error.again) if error.again is not None else 0
        if error.again is None or not again:
            self._works(len(rows) - refused)
            self._backlog.pop()
        else:
            self.counts.sent += len(rows) - refused - again
            self._backlog.replace([error.again])
            self._later(str(error), error.after)
        for some, why in error.refused:
            self._refused(some, why)
        if error.unnamed:
            self._drop(error.unnamed, "refused")
            told = f"{error.unnamed} of {len(rows)} rows refused: {error}"
            self._fail(told, f"refused: {error}")

    def _refused(self, rows: Rows, why: str) -> None:
        """Drops rows that the server will never take; beside a queue on disk they are kept."""
        self._drop(len(rows), "refused")
        self._fail(f"{len(rows)} rows refused: {why}", f"refused: {why}")
        if not self._backlog.on_disk:
            return
        file = Path(self.settings.queue.path) / "refused.jsonl"
        try:
            with open(file, "a", encoding="utf-8") as stream:
                if stream.tell() < MOST_REFUSED_BYTES:
                    stream.write(render.json_lines(rows.kind, rows.fields, rows.columns))
        except OSError as error:
            self._fail(f"cannot write to {file}: {error.strerror}")

    def _fail(self, why: str, kind: str = "") -> None:
        """Tells of a failure once, until it is another one or rows are sent again.

        Args:
            why: one line.
            kind: the same for what is not to be told again; empty: ``why``.
        """
        told = " ".join(why.split())
        if (kind or told) != self._broken:
            self._broken = kind or told
            self._tell(f"sink {self.settings.title}: {told}")

    def _end(self) -> None:
        """What could not be sent stays on disk, or is dropped."""
        self._failures += 1
        if self._backlog.on_disk:
            self._take()
        self._drop(self._backlog.close(), "ended")
        with self._condition:
            while self._queue:
                self._drop(len(self._pop()), "ended")
            self._drop(len(self._lost), "ended")


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row: exponential, with full jitter."""
    most: float = min(FIRST_WAIT * 2.0 ** min(failures - 1, 10), LAST_WAIT)
    return most / 2 + random.random() * most / 2


def _matches(rows: Rows, name: str, globs: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Where a column matches one of the globs, shape (n,)."""
    if name not in rows.columns:
        return np.zeros(len(rows), dtype=np.bool_)
    matches = re.compile("|".join(fnmatch.translate(glob) for glob in globs)).match
    texts = rows.columns[name].tolist()
    fits = {text: text is not None and bool(matches(text)) for text in set(texts)}
    return np.array([fits[text] for text in texts], dtype=np.bool_)
