# SPDX-License-Identifier: Apache-2.0
"""Rows for tests of sinks, and sinks that do what a test says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import event_batches
import numpy as np
import records

from podscope.batch import Batch
from podscope.schema import Field
from podscope.sinks import rows
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.rows import Rows
from podscope.trace.decode import MapData
from podscope.trace.decode import Text
from podscope.trace.decode import Value
from podscope.trace.maps import MapShape
from podscope.trace.rows import Origin
from podscope.trace.rows import TraceRows
from podscope.trace.session import Answer
from podscope.trace.tables import table

SECONDS = 20
RESOURCE = {"host.name": "node-1", "k8s.cluster.name": "test"}


def http_rows(batch: Batch | None = None) -> Rows:
    """The shop's five series, by all that tells rows apart."""
    (made,) = rows.of_batches([batch or records.cluster_batch()], resource=RESOURCE)
    return made


def service_rows() -> Rows:
    """The shop's rows by Service."""
    also = {rows.SERVICE: rows.BY_SERVICE}
    _, made = rows.of_batches([records.cluster_batch()], resource=RESOURCE, also_by=also)
    return made


def request_rows(n: int = 3) -> Rows:
    """So many requests, all at the same nanosecond."""
    (made,) = rows.of_batches([records.request_batch(n)], resource=RESOURCE)
    return made


def requests_later(seconds: float, n: int = 1, **members: object) -> Batch:
    """Requests that came later than those of ``records``."""
    batch = records.request_batch(n, **members)
    return replace(batch, time_ns=batch.time_ns + round(seconds * 1e9))


class Recorder:
    """A sink that notes what it gets, and first raises what it was told to."""

    Settings = SinkSettings

    def __init__(self, *errors: BaseException | Callable[[Rows], None]) -> None:
        self.errors = [*errors]
        self.got: list[Rows] = []
        self.tried: list[Rows] = []
        self.closed = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def send(self, some: Rows) -> None:
        self.gate.wait()
        self.tried.append(some)
        if self.errors:
            error = self.errors.pop(0)
            if isinstance(error, BaseException):
                raise error
            error(some)
        self.got.append(some)

    def close(self) -> None:
        self.closed.set()

    @property
    def count(self) -> int:
        return sum(map(len, self.got))


def wait_for(condition: Callable[[], object]) -> None:
    """Until something is so, or the test fails."""
    due = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < due, "it did not come"
        time.sleep(0.005)


def event_rows() -> Rows:
    """Rows of a kind that no sink has heard of, with fields of every type."""
    texts = np.empty(2, dtype=object)
    texts[:] = ["web-1-a", None]
    more = np.empty(2, dtype=object)
    more[:] = ['kill "it", now', "x=y"]
    times = np.array([records.TIME_NS, records.TIME_NS + 1]).astype("M8[ns]")
    columns = {
        "time": times,
        "k8s.pod.name": texts,
        "podscope.oom.message": more,
        "process.pid": np.array([17, 0]),
        "podscope.oom.pages": np.array([0, 2**40]),
        "podscope.oom.pages.highest": np.array([3, 4]),
        "podscope.oom.share": np.array([0.25, np.nan]),
        "podscope.oom.limit_hit": times,
    }
    kinds = ("time", "text", "text", "int", "int", "int", "float", "time")
    fields = tuple(
        Field(name, "", kind, "", "", False, name == "process.pid", _unread, "")
        for name, kind in zip(columns, kinds, strict=True)
    )
    return Rows("oom", fields, columns, records.TIME_NS, resource=RESOURCE)


def _unread(_: object) -> np.ndarray:
    raise AssertionError("read already")


def _of_batch(batch: Batch) -> Rows:
    (made,) = rows.of_batches([batch], resource=RESOURCE)
    return made


def tcp_rows() -> Rows:
    """Connections of a client, and of a server."""
    client = {"side": 2, "port": 443, "durations": [4 * 10**6, 10**8], "failed": 1}
    return _of_batch(event_batches.batch("tcp", client, {"side": 1, "port": 80, "accepts": 5}))


def dns_rows() -> Rows:
    """Lookups that had a response, and one that had none."""
    answered = {"side": 2, "type": 1, "name": 5, "text": b"a.test", "durations": [10**6]}
    late = answered | {"durations": [], "code": 255, "count": 1}
    return _of_batch(event_batches.batch("dns", answered, late))


def listen_rows() -> Rows:
    """A queue that has overflowed, and one of which that cannot be told."""
    full = {"port": 80, "limit": 10, "accept_highest": 11, "drops": 3, "overflows": 2, "event": 5}
    return _of_batch(event_batches.batch("listen", full, full | {"port": 81, "overflows": -1}))


def lost_rows() -> Rows:
    """Two reasons."""
    return rows.of_losses({"joined": 3, "ring_full": 1}, records.TIME_NS, RESOURCE)


def trace_batches(step: int = 1, *, more: int = 0, start_ns: int = records.TIME_NS) -> list[Batch]:
    """A trace's lines and its maps, each as large as the step says; one histogram has grown."""
    shapes = {
        "@calls": MapShape("@calls", "count", ("text", "number"), titles=("comm", "args.fd")),
        "@sizes": MapShape("@sizes", "hist", ("text",), titles=("pod",)),
        "@took": MapShape("@took", "avg"),
        "@last": MapShape("@last", "value", titles=("comm",)),
    }
    buckets = [
        {"min": 1, "max": 1, "count": 2 * step},
        {"min": 4, "max": 7, "count": 3 * step},
        *([{"min": 1024, "max": 2047, "count": more}] if more else []),
    ]
    entries = {
        "@calls": [('curl, "x",3', 5 * step), ("nginx,4", 7 * step)],
        "@sizes": [("web-1-a", buckets), ("web-1-b", buckets[1:2])],
        "@took": [(None, {"count": 2 * step, "average": 0, "total": 7 * step})],
        "@last": [("nginx", "GET"), ("curl", 2**60 + 1)],
    }
    maps = {
        name: table(MapData(name, "map", tuple(entries[name])), shape, (0, 17))
        for name, shape in shapes.items()
    }
    lines = (Text("one\ntwo\n", "shop/web-1-a", "node-1"), Value([7, "x"]), maps["@took"])
    time_ns = start_ns + step * 10**10
    metrics = {"@calls": "app.calls", "@sizes": "app_sizes", "@took": "app_took"}
    origin = Origin("podscope-trace-1", "calls", "shop", ("fd", "what"))
    made = TraceRows(origin, metrics, start_ns)
    return [*made.batches(Answer(lines, maps, time_ns), shapes, {"lines": step})]


def trace_rows(step: int = 1, **more: int) -> Rows:
    """Maps of a trace."""
    return _of_batch(trace_batches(step, **more)[1])


def trace_line_rows() -> Rows:
    """What its program has printed."""
    return _of_batch(trace_batches()[0])


# Rows of every kind that sinks get.
KINDS = (
    *(http_rows, service_rows, request_rows, event_rows),
    *(tcp_rows, dns_rows, listen_rows, lost_rows, trace_rows, trace_line_rows),
)
