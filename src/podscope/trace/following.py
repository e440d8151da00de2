# SPDX-License-Identifier: Apache-2.0
"""A trace of a cluster while it runs: what its nodes tell, as one answer after the other."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace
from typing import Protocol
from typing import Self

from podscope.errors import PodscopeError
from podscope.identity.kubernetes_client import KubernetesError
from podscope.trace.decode import Text
from podscope.trace.decode import Value
from podscope.trace.gather import Gathered
from podscope.trace.kept import Kept
from podscope.trace.kept import KeptJob
from podscope.trace.maps import MapShape
from podscope.trace.reports import About
from podscope.trace.reports import Reader
from podscope.trace.reports import Report
from podscope.trace.session import Answer
from podscope.trace.session import Line
from podscope.trace.tables import MapTable

# How often the trace's pods are looked at: while some do not speak yet, and when all do.
_SOON_SECONDS, _LATER_SECONDS = 0.3, 3.0
# A node says something at least every ten seconds.
_SILENCE_SECONDS = 60.0
_POLL_SECONDS = 0.05
_WAITING_LINES = 100_000
_ABOUT_SECONDS = 10.0
_FORBIDDEN = 403
STARTING, RUNNING, ENDED, FAILED = "starting", "running", "ended", "failed"


@dataclass(frozen=True)
class Seen:
    """What is to be seen of a part of a trace from outside.

    Attributes:
        speaker: where it can be heard; empty: nowhere yet.
        why: what keeps it from speaking, or how it ended.
        final: whether nothing more will come than what it has said already.
    """

    speaker: str = ""
    why: str = ""
    final: bool = False


class Place(Protocol):
    """Where the parts of a trace run: in Jobs, or under agents. For any thread.

    All raise PodscopeError or OSError where something does not answer.
    """

    def look(self, kept: Kept, jobs: Sequence[KeptJob]) -> Mapping[str, Seen]:
        """Parts by their name."""

    def stream(self, kept: Kept, speaker: str) -> AbstractContextManager[Iterator[bytes]]:
        """All that one says, from the beginning and as it comes."""

    def stop(self, kept: Kept, speaker: str) -> None:
        """Lets one print its maps and end."""

    def drop(self, kept: Kept, job: KeptJob) -> None:
        """Takes away a part that has not begun."""

    def close(self) -> None:
        """Ends all streams."""


@dataclass
class Speaker:
    """One Job of a trace, as its follower knows it.

    Attributes:
        state: ``starting``, ``running``, ``ended`` or ``failed``.
        why: what keeps it from starting, or made it fail.
        speaker: where it is heard; empty: not known yet.
        is_stopping: whether it is told to end.
        joined: whether it came to the trace later.
    """

    job: KeptJob
    reader: Reader
    state: str = STARTING
    why: str = ""
    speaker: str = ""
    thread: threading.Thread | None = None
    is_stopping: bool = False
    joined: bool = False

    @property
    def done(self) -> bool:
        """Whether nothing more comes from it."""
        return self.state in (ENDED, FAILED)


class Following:
    """The answers of a trace in a cluster: iterate over it, in a ``with``.

    The trace goes on when it is closed; `stop` ends it.

    Args:
        place: where it runs.
        kept: the trace.
        interval: seconds between two answers.
        by_node: keep maps apart by node.
        grace: seconds after `stop` in which a node may still tell its last values.
    """

    def __init__(
        self,
        place: Place,
        kept: Kept,
        *,
        interval: float = 1.0,
        by_node: bool = False,
        grace: float = 30.0,
    ) -> None:
        self.kept = kept
        self._place = place
        self._interval = interval
        self._by_node = by_node
        self._grace = grace
        self._lock = threading.Lock()
        self._lines: queue.Queue[Line] = queue.Queue(_WAITING_LINES)
        self._parts: dict[tuple[str, str], str] = {}
        self._closed = threading.Event()
        self._stopping = threading.Event()
        self._grace_end = float("inf")
        self.left = False
        self._away = ""
        self._speakers = {one.name: self._speaker(one) for one in kept.jobs}
        self._looker = threading.Thread(target=self._look, daemon=True)
        self._looked = threading.Event()

    def __enter__(self) -> Self:
        self._looker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the following; the trace goes on."""
        self._closed.set()
        self._place.close()
        self._looked.set()
        self._looker.join(1.0)

    @property
    def is_ending(self) -> bool:
        """Whether its end has been asked for."""
        return self._stopping.is_set() or self.left

    def leave(self) -> None:
        """Ends the following with one last answer; the trace goes on."""
        self.left = True

    def stop(self) -> None:
        """Asks every node to print its maps and to end."""
        self._grace_end = time.monotonic() + self._grace + _SILENCE_SECONDS
        self._stopping.set()
        threading.Thread(target=self._stop_all, daemon=True).start()

    def __iter__(self) -> Iterator[Answer]:
        """Answers as they come; the last one has ``last``."""
        due = time.monotonic() + self._interval
        known = 0
        while True:
            done = self._is_done()
            lines = self._new_lines(0.0 if done else _POLL_SECONDS)
            now = time.monotonic()
            if (done and self._lines.empty()) or now > self._grace_end or self.left:
                break
            # The first that a node tells of its maps is shown at once.
            before, known = known, self._with_maps()
            if lines or now >= due or known > before:
                due = max(due + self._interval, now) if now >= due else due
                yield Answer(tuple(lines), self.maps(), time.time_ns())
        lines += [Text(text, *whose) for whose, text in self._rests()]
        yield Answer(tuple(lines), self.maps(), time.time_ns(), last=True)

    # --- what is known ----------------------------------------------------------------------

    def gathered(self) -> Gathered:
        """All that nodes have said until now."""
        with self._lock:
            speakers = list(self._speakers.values())
        reports: dict[str, Report] = {}
        for one in speakers:
            report = one.reader.report
            if report is None:
                continue
            if one.state == FAILED and not report.failed:
                report = replace(report, failed=one.why)
            reports[self._name(one.job)] = report
        nodes = {self._name(one.job): one.job.node for one in speakers}
        return Gathered(reports, tuple(nodes), nodes)

    def maps(self) -> dict[str, MapTable]:
        """The maps of all nodes together."""
        gathered = self.gathered()
        return gathered.maps(by_node=self._by_node) if gathered.reports else {}

    def _with_maps(self) -> int:
        """How many have told of maps."""
        reports = [one.reader.report for one in self._now()]
        return sum(report is not None and bool(report.maps) for report in reports)

    def shapes(self) -> Mapping[str, MapShape]:
        """What the parts of keys are called."""
        return self.gathered().told_shapes(by_node=self._by_node)

    def states(self) -> dict[str, tuple[str, str]]:
        """Of each node its state, and why."""
        with self._lock:
            found = list(self._speakers.values())
        told: dict[str, tuple[str, str]] = {}
        for one in sorted(found, key=lambda one: one.state == FAILED):
            told[one.job.node] = (one.state, one.why)
        return told

    def about(self) -> About | None:
        """What runs, once a node has said it; None: it ended before, or there is no hurry."""
        due = time.monotonic() + _ABOUT_SECONDS
        while time.monotonic() < due and not self._is_done():
            for one in self.gathered().reports.values():
                return one.about
            time.sleep(_POLL_SECONDS)
        return next((one.about for one in self.gathered().reports.values()), None)

    @property
    def away(self) -> str:
        """Why the API server cannot be asked at the moment; empty: it can."""
        return self._away

    def join(self, job: KeptJob) -> None:
        """Follows one more Job of the trace."""
        with self._lock:
            if job.name not in self._speakers:
                self._speakers[job.name] = replace(self._speaker(job), joined=True)
                self.kept = replace(self.kept, jobs=(*self.kept.jobs, job))

    # --- how ----------------------------------------------------------------------------------

    def _name(self, job: KeptJob) -> str:
        """A node by its name; where it has several Jobs, the later ones by theirs."""
        first = next(one for one in self.kept.jobs if one.node == job.node)
        return job.node if first.name == job.name else f"{job.node} ({job.name[-8:]})"

    def _speaker(self, job: KeptJob) -> Speaker:
        return Speaker(job, Reader(f"node {job.node}", strict=False))

    def _is_done(self) -> bool:
        with self._lock:
            return all(one.done for one in self._speakers.values())

    def _new_lines(self, seconds: float) -> list[Line]:
        """Whole lines that have come: each with its pod, or else its node."""
        found: list[Line] = []
        wait = seconds
        while len(found) < _WAITING_LINES:
            try:
                one = self._lines.get(timeout=wait) if wait else self._lines.get_nowait()
            except queue.Empty:
                break
            wait = 0.0
            if not isinstance(one, Text):
                found.append(one)
                continue
            whose = (one.whose, one.node)
            whole = self._parts.pop(whose, "") + one.text
            text, newline, rest = whole.rpartition("\n")
            if newline:
                found += [Text(f"{line}\n", *whose) for line in text.split("\n")]
            if rest:
                self._parts[whose] = rest
        return found

    def _rests(self) -> list[tuple[tuple[str, str], str]]:
        """What was printed without an end of line."""
        return [(whose, f"{text}\n") for whose, text in self._parts.items()]

    def _look(self) -> None:
        while not self._closed.is_set():
            try:
                self._look_at()
                self._away = ""
            except PodscopeError as error:
                self._away = str(error)
            all_speak = all(one.thread or one.done for one in self._now())
            pause = _LATER_SECONDS if all_speak and not self._stopping.is_set() else None
            self._looked.clear()
            self._looked.wait(pause or _SOON_SECONDS)

    def _now(self) -> list[Speaker]:
        with self._lock:
            return list(self._speakers.values())

    def _look_at(self) -> None:
        """Begins to listen to those that speak, and learns why others do not."""
        open_ones = {one.job.name: one for one in self._now() if not one.done and not one.thread}
        if not open_ones:
            return
        seen = self._place.look(self.kept, [one.job for one in open_ones.values()])
        for name, one in open_ones.items():
            found = seen[name]
            one.why = found.why
            if found.speaker:
                one.speaker = found.speaker
                one.thread = threading.Thread(target=self._listen, args=(one,), daemon=True)
                one.thread.start()
                if self._stopping.is_set():
                    self._stop_soon(one)
            elif found.final:
                self._end(one, FAILED, found.why)
            elif self._stopping.is_set():
                with suppress(PodscopeError, OSError):
                    self._place.drop(self.kept, one.job)
                self._end(one, FAILED, found.why or "was ended before it began")
                self._forget(one)

    def _forget(self, one: Speaker) -> None:
        """One that came late and has not begun is no node that is missing."""
        with self._lock:
            if one.joined:
                self._speakers.pop(one.job.name, None)

    def _end(self, one: Speaker, state: str, why: str = "") -> None:
        with self._lock:
            one.why, one.state = why, state

    def _listen(self, one: Speaker) -> None:
        """Reads what a node says to its end, or until it breaks off."""
        try:
            one.reader.again()
            self._read(one)
        except (PodscopeError, OSError) as error:
            one.why = " ".join(str(error).split())
            self._closed.wait(_SOON_SECONDS)
        finally:
            self._after(one)
            one.thread = None
            self._looked.set()

    def _read(self, one: Speaker) -> None:
        rest = b""
        with self._place.stream(self.kept, one.speaker) as pieces:
            for piece in pieces:
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    self._take(one, line.decode("utf-8", "replace"))
                if self._closed.is_set():
                    return

    def _take(self, one: Speaker, line: str) -> None:
        if not line.startswith("{"):
            # What the program said on its other stream: of its end, if it has one.
            one.why = line.removeprefix("podscope: ") or one.why
            return
        for told in one.reader.take(line):
            if isinstance(told, Text | Value):
                self._put(replace(told, node=one.job.node))
            else:
                self._put(told)
        if one.state == STARTING:
            self._end(one, RUNNING)

    def _put(self, line: Line) -> None:
        while not self._closed.is_set():
            with suppress(queue.Full):
                self._lines.put(line, timeout=_POLL_SECONDS)
                return

    def _after(self, one: Speaker) -> None:
        """The log has ended, or broken off: has the node told its end?"""
        report = one.reader.report
        if report is not None and report.failed:
            self._end(one, FAILED, report.failed)
        elif report is not None and report.ended:
            self._end(one, ENDED)
        elif not self._closed.is_set():
            self._judge(one)

    def _judge(self, one: Speaker) -> None:
        """Whether a node that broke off may still say something."""
        try:
            found = self._place.look(self.kept, [one.job])[one.job.name]
        except PodscopeError:
            return  # asked again with the next look
        if found.final:
            self._end(one, FAILED, found.why or one.why or "ended without its last values")

    def _stop_all(self) -> None:
        self._looked.set()
        for one in self._now():
            if one.speaker and not one.done:
                self._stop_soon(one)

    def _stop_soon(self, one: Speaker) -> None:
        """Tells one to end, once: it may not listen yet, or its node be away for a moment."""
        with self._lock:
            if one.is_stopping:
                return
            one.is_stopping = True
        threading.Thread(target=self._stop_one, args=(one,), daemon=True).start()

    def _stop_one(self, one: Speaker) -> None:
        while not one.done and not self._closed.is_set():
            try:
                self._place.stop(self.kept, one.speaker)
                return
            except (PodscopeError, OSError) as error:
                one.why = f"could not be told to end: {error}"
                if isinstance(error, KubernetesError) and error.status == _FORBIDDEN:
                    self._end(one, FAILED, f"{one.why}; 'podscope delete' ends it")
            self._closed.wait(_SOON_SECONDS)
