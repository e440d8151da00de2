# SPDX-License-Identifier: Apache-2.0
"""A trace of a cluster while it runs: what its nodes tell, as one answer after the other."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import Self

from podscope.errors import PodscopeError
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import Connection
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.port_forward import PortForward
from podscope.trace import kept as traces
from podscope.trace.decode import Text
from podscope.trace.decode import Value
from podscope.trace.gather import Gathered
from podscope.trace.jobs import STOP_PORT
from podscope.trace.kept import Kept
from podscope.trace.kept import KeptJob
from podscope.trace.kept import Traces
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
# A container that does not start for one of these reasons never will.
_HOPELESS = {"ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError"}
# From the making of a Job until the making of its pod is asked about.
_NO_POD_SECONDS = 3.0
_ABOUT_SECONDS = 10.0
_FORBIDDEN = 403
STARTING, RUNNING, ENDED, FAILED = "starting", "running", "ended", "failed"


@dataclass
class Speaker:
    """One Job of a trace, as its follower knows it.

    Attributes:
        state: ``starting``, ``running``, ``ended`` or ``failed``.
        why: what keeps it from starting, or made it fail.
    """

    job: KeptJob
    reader: Reader
    state: str = STARTING
    why: str = ""
    pod: str = ""
    thread: threading.Thread | None = None
    since: float = 0.0

    @property
    def done(self) -> bool:
        """Whether nothing more comes from it."""
        return self.state in (ENDED, FAILED)


class Following:
    """The answers of a trace in a cluster: iterate over it, in a ``with``.

    The trace goes on when it is closed; `stop` ends it.

    Args:
        server: the API server, with the user's rights.
        kept: the trace.
        interval: seconds between two answers.
        by_node: keep maps apart by node.
        grace: seconds after `stop` in which a node may still tell its last values.
    """

    def __init__(
        self,
        server: ApiServer,
        kept: Kept,
        *,
        interval: float = 1.0,
        by_node: bool = False,
        grace: float = 30.0,
    ) -> None:
        self.kept = kept
        self._server = server
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
        self._streams: set[Connection] = set()
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
        with self._lock:
            streams = list(self._streams)
        for one in streams:
            one.close()
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
        while True:
            done = self._is_done()
            lines = self._new_lines(0.0 if done else _POLL_SECONDS)
            now = time.monotonic()
            if (done and self._lines.empty()) or now > self._grace_end or self.left:
                break
            if lines or now >= due:
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
        return Gathered(reports, tuple(self._name(one.job) for one in speakers))

    def maps(self) -> dict[str, MapTable]:
        """The maps of all nodes together."""
        gathered = self.gathered()
        return gathered.maps(by_node=self._by_node) if gathered.reports else {}

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
                self._speakers[job.name] = self._speaker(job)
                self.kept = replace(self.kept, jobs=(*self.kept.jobs, job))

    # --- how ----------------------------------------------------------------------------------

    def _name(self, job: KeptJob) -> str:
        """A node by its name; where it has several Jobs, the later ones by theirs."""
        first = next(one for one in self.kept.jobs if one.node == job.node)
        return job.node if first.name == job.name else f"{job.node} ({job.name[-8:]})"

    def _speaker(self, job: KeptJob) -> Speaker:
        return Speaker(job, Reader(f"node {job.node}", strict=False), since=time.monotonic())

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
        with Traces(self._server) as asked:
            while not self._closed.is_set():
                try:
                    self._look_at(asked)
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

    def _look_at(self, asked: Traces) -> None:
        """Begins to listen to pods that speak, and learns why others do not."""
        open_ones = [one for one in self._now() if not one.done and one.thread is None]
        if not open_ones:
            return
        pods = asked.pods(self.kept)
        found = asked.list(self.kept.namespace, self.kept.name)
        known = {job.name: job for job in found[0].jobs} if found else {}
        for one in open_ones:
            job = known.get(one.job.name)
            pod = pods.get(one.job.name)
            if pod is not None and _speaks(pod):
                one.pod = pod["metadata"]["name"]
                one.thread = threading.Thread(target=self._listen, args=(one,), daemon=True)
                one.thread.start()
            elif job is None:
                self._end(one, FAILED, "its Job was deleted")
            elif job.state == traces.FAILED:
                self._end(one, FAILED, job.why or _why(pod) or "its Job failed")
            elif job.state == traces.COMPLETED:
                self._end(one, FAILED, "its pod is gone, and what it told with it")
            else:
                self._wait_for(asked, one, pod)

    def _wait_for(self, asked: Traces, one: Speaker, pod: Mapping[str, Any] | None) -> None:
        """Why a Job's pod does not run yet; one that never will has failed."""
        if pod is None and time.monotonic() - one.since > _NO_POD_SECONDS:
            one.why = asked.complaint(self.kept, one.job)
            one.since = time.monotonic()
        elif pod is not None:
            one.why = _why(pod)
        hopeless = one.why.partition(":")[0] in _HOPELESS or "is forbidden" in one.why
        if hopeless or self._stopping.is_set():
            with suppress(PodscopeError):
                asked.drop(self.kept, one.job)
            self._end(one, FAILED, one.why or "was ended before it began")

    def _end(self, one: Speaker, state: str, why: str = "") -> None:
        with self._lock:
            one.why, one.state = why, state

    def _listen(self, one: Speaker) -> None:
        """Reads the log of a pod to its end, or until it breaks off."""
        connection = Connection(self._server)
        with self._lock:
            self._streams.add(connection)
        try:
            one.reader.again()
            self._read(one, connection)
        except PodscopeError as error:
            one.why = str(error)
        finally:
            with self._lock:
                self._streams.discard(connection)
            connection.release()
            self._after(one)
            one.thread = None
            self._looked.set()

    def _read(self, one: Speaker, connection: Connection) -> None:
        path = f"api/v1/namespaces/{self.kept.namespace}/pods/{one.pod}/log"
        rest = b""
        with connection.stream(path, {"follow": "true"}, _SILENCE_SECONDS) as pieces:
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
            with Traces(self._server) as asked:
                pod = asked.pods(self.kept).get(one.job.name)
        except PodscopeError:
            return  # asked again with the next look
        if pod is None:
            self._end(one, FAILED, "its pod is gone")
        elif pod["status"].get("phase") in ("Succeeded", "Failed"):
            self._end(one, FAILED, _why(pod) or one.why or "ended without its last values")

    def _stop_all(self) -> None:
        threads = [
            threading.Thread(target=self._stop_one, args=(one,), daemon=True)
            for one in self._now()
            if one.pod and not one.done
        ]
        self._looked.set()
        for thread in threads:
            thread.start()

    def _stop_one(self, one: Speaker) -> None:
        try:
            with PortForward(self._server, self.kept.namespace, one.pod, STOP_PORT) as forward:
                forward.socket.settimeout(_SILENCE_SECONDS)
                forward.socket.sendall(b"stop\n")
                forward.socket.recv(16)
        except (PodscopeError, OSError) as error:
            if one.done:
                return
            one.why = f"could not be told to end: {error}"
            if isinstance(error, KubernetesError) and error.status == _FORBIDDEN:
                self._end(one, FAILED, f"{one.why}; 'podscope delete' ends it")


def _speaks(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has a log."""
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return any("running" in one["state"] or "terminated" in one["state"] for one in statuses)


def _why(pod: Mapping[str, Any] | None) -> str:
    """Why a pod does not run, or how it ended."""
    if pod is None:
        return ""
    status = pod.get("status", {})
    for one in status.get("containerStatuses") or ():
        state = one["state"].get("waiting") or one["state"].get("terminated") or {}
        reason = state.get("reason", "")
        if reason in ("ContainerCreating", "PodInitializing", "Completed"):
            continue
        if reason == "Error":
            return f"its container ended with code {state.get('exitCode')}"
        return _one_line(f"{reason}: {state.get('message', '')}".removesuffix(": "))
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _one_line(condition.get("message", ""))
    return _one_line(f"{status.get('reason', '')}: {status.get('message', '')}".strip(": "))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def read_logs(asked: Traces, kept: Kept) -> Gathered:
    """What the pods of a trace have written until now; of those that can't tell, why.

    Raises:
        PodscopeError: no answer of the API server, or no right.
    """
    pods = asked.pods(kept)
    reports: dict[str, Report] = {}
    for job in kept.jobs:
        pod = pods.get(job.name)
        log = asked.log(kept, pod["metadata"]["name"]) if pod and _speaks(pod) else b""
        name = job.node if job.node not in reports else f"{job.node} ({job.name[-8:]})"
        reports[name] = _report(log, job, _why(pod) or "its pod is gone")
    return Gathered(reports)


def _report(log: bytes, job: KeptJob, why: str) -> Report:
    """What one pod has written."""
    reader = Reader(f"node {job.node}", strict=False)
    lines: list[Line] = []
    said = ""
    for line in log.decode("utf-8", "replace").splitlines():
        if line.startswith("{"):
            lines += reader.take(line)
        else:
            said = line.removeprefix("podscope: ") or said
    report = replace(reader.report or Report(About(job.node)), lines=_with_node(lines, job.node))
    if job.state != traces.RUNNING and not report.failed and not report.ended:
        return replace(report, failed=said or job.why or why)
    return report


def _with_node(lines: list[Line], node: str) -> tuple[Line, ...]:
    return tuple(replace(one, node=node) if isinstance(one, Text | Value) else one for one in lines)
