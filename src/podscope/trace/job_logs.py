# SPDX-License-Identifier: Apache-2.0
"""Traces that run as Jobs: what their pods say is their logs."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import replace
from typing import Any

from podscope.errors import PodscopeError
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import Connection
from podscope.identity.port_forward import PortForward
from podscope.trace import kept as traces
from podscope.trace.decode import Text
from podscope.trace.decode import Value
from podscope.trace.following import Seen
from podscope.trace.gather import Gathered
from podscope.trace.jobs import STOP_PORT
from podscope.trace.kept import Kept
from podscope.trace.kept import KeptJob
from podscope.trace.kept import Traces
from podscope.trace.reports import About
from podscope.trace.reports import Reader
from podscope.trace.reports import Report
from podscope.trace.session import Line

# A node says something at least every ten seconds.
_SILENCE_SECONDS = 60.0
# A container that does not start for one of these reasons never will.
_HOPELESS = {"ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError"}
# From the making of a Job until the making of its pod is asked about.
_NO_POD_SECONDS = 3.0
# Clocks differ, and who counts a pod's last seconds may be late.
_OVERDUE_SECONDS = 20.0


class JobLogs:
    """The Jobs of traces, as `following.Place`."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._streams: set[Connection] = set()
        self._since: dict[str, float] = {}

    def look(self, kept: Kept, jobs: Sequence[KeptJob]) -> Mapping[str, Seen]:
        """Parts by their name."""
        with Traces(self._server) as asked:
            pods = asked.pods(kept)
            found = asked.list(kept.namespace, kept.name)
            known = {job.name: job for job in found[0].jobs} if found else {}
            return {
                job.name: self._seen(asked, kept, known.get(job.name), pods.get(job.name))
                for job in jobs
            }

    def _seen(
        self, asked: Traces, kept: Kept, job: KeptJob | None, pod: Mapping[str, Any] | None
    ) -> Seen:
        if pod is not None and _speaks(pod):
            return speaker(pod, time.time())
        if job is None:
            return Seen(why="its Job was deleted", final=True)
        if job.state == traces.FAILED:
            return Seen(why=job.why or _why(pod) or "its Job failed", final=True)
        if job.state == traces.COMPLETED:
            return Seen(why="its pod is gone, and what it told with it", final=True)
        why = _why(pod) if pod is not None else self._complaint(asked, kept, job)
        hopeless = why.partition(":")[0] in _HOPELESS or "is forbidden" in why
        if hopeless:
            with suppress(PodscopeError):
                asked.drop(kept, job)
        return Seen(why=why, final=hopeless)

    def _complaint(self, asked: Traces, kept: Kept, job: KeptJob) -> str:
        """Why a Job has no pod, some time after it was made."""
        now = time.monotonic()
        if now - self._since.setdefault(job.name, now) < _NO_POD_SECONDS:
            return ""
        self._since[job.name] = now
        return asked.complaint(kept, job)

    @contextmanager
    def stream(self, kept: Kept, speaker: str) -> Iterator[Iterator[bytes]]:
        """All that a pod says, from the beginning and as it comes."""
        connection = Connection(self._server)
        with self._lock:
            self._streams.add(connection)
        path = f"api/v1/namespaces/{kept.namespace}/pods/{speaker}/log"
        try:
            with connection.stream(path, {"follow": "true"}, _SILENCE_SECONDS) as pieces:
                yield pieces
        finally:
            with self._lock:
                self._streams.discard(connection)
            connection.release()

    def stop(self, kept: Kept, speaker: str) -> None:
        """Lets a pod's program print its maps and end."""
        with PortForward(self._server, kept.namespace, speaker, STOP_PORT) as forward:
            forward.socket.settimeout(_SILENCE_SECONDS)
            forward.socket.sendall(b"stop\n")
            forward.socket.recv(16)

    def drop(self, kept: Kept, job: KeptJob) -> None:
        """Deletes a Job that has nothing to tell."""
        with Traces(self._server) as asked:
            asked.drop(kept, job)

    def close(self) -> None:
        """Ends all streams."""
        with self._lock:
            streams = list(self._streams)
        for one in streams:
            one.close()


def speaker(pod: Mapping[str, Any], now: float) -> Seen:
    """What is to be seen of a pod that has a log.

    A node that is gone leaves its pods as they were: the node controller says that they are not
    ready, and one whose time is up is never seen to end.

    Args:
        now: Unix time.
    """
    name, status = pod["metadata"]["name"], pod["status"]
    if status.get("phase") in ("Succeeded", "Failed"):
        return Seen(name, _why(pod), final=True)
    runs = any("running" in one["state"] for one in status.get("containerStatuses") or ())
    ready = {one["type"]: one["status"] for one in status.get("conditions") or ()}.get("Ready")
    if not runs or ready in (None, "True"):
        return Seen(name, _why(pod))
    why = f"node {pod['spec'].get('nodeName', '')} does not answer; what it told last is counted"
    gone = pod["metadata"].get("deletionTimestamp")
    due = datetime.datetime.fromisoformat(gone).timestamp() if gone else float("inf")
    return Seen(name, why, final=now > due + _OVERDUE_SECONDS)


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
        reports[name] = report_of(log, job, _why(pod) or "its pod is gone")
    return Gathered(reports, nodes={name: name.partition(" ")[0] for name in reports})


def report_of(log: bytes, job: KeptJob, why: str) -> Report:
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
