# SPDX-License-Identifier: Apache-2.0
"""The traces of a cluster: made, listed, found and deleted. Each is its Jobs, one a node or more.

The first Job owns the others, so that nothing of a trace stays behind when it goes.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from typing import Self

from podscope.errors import PodscopeError
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import Connection
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.refusals import explained
from podscope.trace import jobs
from podscope.trace.jobs import Object

PREFIX = "podscope-trace-"
WAY_JOBS, WAY_AGENTS = "jobs", "agents"
RUNNING, COMPLETED, FAILED, UNKNOWN = "Running", "Completed", "Failed", "Unknown"
SECONDS = 30.0
_POLL_SECONDS = 0.2
_GONE_SECONDS = 120.0
_SELECTOR = "app.kubernetes.io/managed-by=podscope,app.kubernetes.io/component=trace"
_NOT_FOUND, _CONFLICT = 404, 409


@dataclass(frozen=True)
class KeptJob:
    """A part of a trace: a Job on one node.

    Attributes:
        state: ``Running``, ``Completed``, ``Failed`` or ``Unknown``, as kubectl-trace has it.
        why: what Kubernetes says of its failure.
        owner: name of the trace's first Job; empty: it is the first.
        targets: what it sees on the node; none: all.
    """

    name: str
    node: str
    state: str
    why: str
    created: str
    owner: str
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """A trace, with all its parts; ``way`` is by what they run."""

    name: str
    namespace: str
    target: str
    title: str
    by_pod: bool
    jobs: tuple[KeptJob, ...]
    way: str = WAY_JOBS

    @property
    def state(self) -> str:
        """Of all Jobs together: one that runs before one that failed."""
        states = {one.state for one in self.jobs}
        return next(one for one in (RUNNING, UNKNOWN, FAILED, COMPLETED) if one in states)

    @property
    def created(self) -> str:
        """When it began, as the API server writes it."""
        return min(one.created for one in self.jobs)

    @property
    def of_pods(self) -> bool:
        """Whether it sees pods, and not whole nodes."""
        return any(one.targets for one in self.jobs)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Nodes that it runs on, each once."""
        return tuple(dict.fromkeys(one.node for one in self.jobs))


def new_name() -> str:
    """A name that no other trace has."""
    return f"{PREFIX}{uuid.uuid4().hex[:12]}"


class Traces:
    """Traces of a cluster, for one thread. Use it in a ``with``.

    Every method raises PodscopeError: no answer, or a right that is missing, with its name.
    """

    def __init__(self, server: ApiServer) -> None:
        self._connection = Connection(server)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.release()

    def create(
        self,
        request: jobs.Request,
        parts: Sequence[jobs.Part],
        change: Callable[[Object], Object] = lambda made: made,
    ) -> Kept:
        """Makes the Jobs of a trace: all, or none.

        Args:
            change: what is to be changed in each Job.
        """
        first: Object | None = None
        made: list[Object] = []
        try:
            for part in parts:
                made.append(self._post(request.namespace, change(jobs.job(request, part, first))))
                first = first or made[0]
        except BaseException:
            for one in made:
                with suppress(PodscopeError):
                    self._delete(request.namespace, one["metadata"]["name"])
            raise
        (kept,) = _grouped(made)
        return kept

    def add(self, request: jobs.Request, part: jobs.Part, kept: Kept) -> bool:
        """Makes one more Job of a trace that runs; False if it is there already, or ends."""
        owner = next((one for one in kept.jobs if not one.owner), None)
        path = _path(kept.namespace)
        try:
            found = json.loads(self._connection.get(f"{path}/{owner.name}", {}, SECONDS)) if owner \
                else None  # fmt: skip
            if found is None or found["metadata"].get("deletionTimestamp"):
                return False
            body = json.dumps(jobs.job(request, part, found)).encode()
            self._connection.send("POST", path, {}, body)
        except KubernetesError as error:
            if error.status in (_CONFLICT, _NOT_FOUND):
                return False
            raise
        return True

    def list(self, namespace: str | None, name: str = "") -> tuple[Kept, ...]:
        """Traces of a namespace, or (None) of all, the oldest first; those of one name alone."""
        selector = _SELECTOR + (f",{jobs.TRACE_LABEL}={name}" if name else "")
        with explained():
            body = self._connection.get(_path(namespace), {"labelSelector": selector}, SECONDS)
        return tuple(sorted(_grouped(json.loads(body)["items"] or ()), key=lambda k: k.created))

    def pods(self, kept: Kept) -> dict[str, Object]:
        """The pod of each Job that has one, by the Job's name."""
        query = {"labelSelector": f"{jobs.TRACE_LABEL}={kept.name}"}
        with explained():
            body = self._connection.get(f"api/v1/namespaces/{kept.namespace}/pods", query, SECONDS)
        found = {}
        for one in json.loads(body)["items"] or ():
            found[one["metadata"]["labels"].get("job-name", "")] = one
        return found

    def complaint(self, kept: Kept, job: KeptJob) -> str:
        """Why a Job has no pod, in the words of the newest event; empty without the right."""
        query = {"fieldSelector": f"involvedObject.name={job.name},reason=FailedCreate"}
        path = f"api/v1/namespaces/{kept.namespace}/events"
        try:
            items = json.loads(self._connection.get(path, query, SECONDS))["items"]
        except KubernetesError:
            return ""
        return " ".join(str(items[-1].get("message", "")).split()) if items else ""

    def log(self, kept: Kept, pod: str) -> bytes:
        """All that a pod has written."""
        path = f"api/v1/namespaces/{kept.namespace}/pods/{pod}/log"
        with explained():
            return bytes(self._connection.get(path, {}, SECONDS))

    def delete(self, kept: Kept) -> None:
        """Deletes a trace and waits until it is gone: what runs is ended.

        Raises:
            PodscopeError: it is not gone in time.
        """
        for one in sorted(kept.jobs, key=lambda job: job.owner != ""):
            self._delete(kept.namespace, one.name)
        due = time.monotonic() + _GONE_SECONDS
        while self.list(kept.namespace, kept.name):
            if time.monotonic() > due:
                raise PodscopeError(
                    f"{kept.name} is not gone after {_GONE_SECONDS:g} s: see what keeps it with "
                    f"'kubectl describe job -l {jobs.TRACE_LABEL}={kept.name}'"
                )
            time.sleep(_POLL_SECONDS)

    def drop(self, kept: Kept, job: KeptJob) -> None:
        """Deletes one Job that has nothing to tell."""
        self._delete(kept.namespace, job.name)

    def _post(self, namespace: str, body: Object) -> Object:
        with explained():
            answer = self._connection.send("POST", _path(namespace), {}, json.dumps(body).encode())
        made: Object = json.loads(answer)
        return made

    def _delete(self, namespace: str, name: str) -> None:
        body = json.dumps({"propagationPolicy": "Foreground"}).encode()
        with explained():
            try:
                self._connection.send("DELETE", f"{_path(namespace)}/{name}", {}, body)
            except KubernetesError as error:
                if error.status != _NOT_FOUND:
                    raise


def _path(namespace: str | None) -> str:
    return (
        "apis/batch/v1/jobs" if namespace is None else f"apis/batch/v1/namespaces/{namespace}/jobs"
    )


def _grouped(items: Sequence[Mapping[str, Any]]) -> Iterator[Kept]:
    by_trace: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in items:
        about = one["metadata"]
        key = (about["namespace"], about["labels"].get(jobs.TRACE_LABEL, ""))
        by_trace.setdefault(key, []).append(one)
    for (namespace, name), found in by_trace.items():
        notes = found[0]["metadata"].get("annotations") or {}
        yield Kept(
            name,
            namespace,
            notes.get(jobs.TARGET_ANNOTATION, ""),
            notes.get(jobs.TITLE_ANNOTATION, ""),
            notes.get(jobs.BY_ANNOTATION, "") == "pod",
            tuple(_kept_job(one) for one in found),
        )


def _kept_job(one: Mapping[str, Any]) -> KeptJob:
    about = one["metadata"]
    owners = about.get("ownerReferences") or ()
    notes = about.get("annotations") or {}
    return KeptJob(
        about["name"],
        notes.get(jobs.NODE_ANNOTATION, ""),
        state(one),
        why_failed(one),
        about.get("creationTimestamp", ""),
        owners[0]["name"] if owners else "",
        tuple(notes.get(jobs.PARTS_ANNOTATION, "").split()),
    )


def state(one: Mapping[str, Any]) -> str:
    """Of a Job: ``Running``, ``Completed``, ``Failed`` or ``Unknown``, as kubectl-trace has it."""
    status = one.get("status") or {}
    ended = {c["type"] for c in status.get("conditions") or () if c.get("status") == "True"}
    # FailureTarget: as good as failed, but for pods whose node does not say that they have ended.
    if ended & {"Failed", "FailureTarget"} or status.get("failed"):
        return FAILED
    if "Complete" in ended or status.get("succeeded"):
        return COMPLETED
    return RUNNING if status.get("active") else UNKNOWN


def why_failed(one: Mapping[str, Any]) -> str:
    """What Kubernetes says of a Job that failed; empty: it did not, or nothing is said."""
    conditions: Sequence[Mapping[str, Any]] = (one.get("status") or {}).get("conditions") or ()
    for condition in conditions:
        if (
            condition.get("type") in ("Failed", "FailureTarget")
            and condition.get("status") == "True"
        ):
            return f"{condition.get('reason', '')}: {condition.get('message', '')}".strip(": ")
    return ""
