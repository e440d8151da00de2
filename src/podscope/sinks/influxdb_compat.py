# SPDX-License-Identifier: Apache-2.0
"""The measurements of owlk8s and kubebpfbox, for dashboards that read these.

Their names are kept, and their faults are not: totals are counted for each pod and Service, times
are those of the rows, durations are means of an interval and not the last one, ``servicename`` is a
Service's name, ``flow`` is 0 for requests that come in, and ``url`` is the route, of which there
are few.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from podscope.sinks.line_protocol import Distinct
from podscope.sinks.line_protocol import string
from podscope.sinks.line_protocol import tag_value
from podscope.sinks.rows import Rows

# Rows of kind http by Service, which only these measurements need.
BY_SERVICE = "http_by_service"
_BY = ("service", "workload", "namespace", "pod", "node", "side", "status")
_OWLK8S = (
    ("namespace", "k8s.namespace.name"),
    ("podname", "k8s.pod.name"),
    ("owner", "service.name"),
    ("service", "k8s.service.name"),
)
_KUBEBPFBOX = (
    ("namespace", "k8s.namespace.name"),
    ("nodename", "k8s.node.name"),
    ("podname", "k8s.pod.name"),
    ("servicename", "k8s.service.name"),
)


class Compat:
    """Writes points as other systems did.

    Args:
        systems: of ``owlk8s`` and ``kubebpfbox``.

    Attributes:
        also_by: the groups that it needs, by the kind under which they come.
    """

    def __init__(self, systems: Sequence[str]) -> None:
        self._owlk8s = "owlk8s" in systems
        self._kubebpfbox = "kubebpfbox" in systems
        self.also_by: Mapping[str, Sequence[str]] = {BY_SERVICE: _BY} if systems else {}
        self._distinct = Distinct()
        self._totals: dict[str, list[int]] = {}

    def lines(self, rows: Rows) -> list[str]:
        """Lines for each row, each line with its end; none for kinds that they did not have.

        A line of several rows is that of the first of them.
        """
        if rows.kind == BY_SERVICE:
            found = [""] * len(rows)
            for made in (
                self._svcmetrics(rows) if self._owlk8s else {},
                _red(rows) if self._kubebpfbox else {},
            ):
                for place, line in made.items():
                    found[place] += line
            return found
        if not self._kubebpfbox or rows.kind not in _EVENTS:
            return []
        return _EVENTS[rows.kind](rows, self._distinct)

    def _svcmetrics(self, rows: Rows) -> dict[int, str]:
        """``INT_svcmetrics``: counters since the start, and microseconds."""
        lines = {}
        for tags, some in _groups(rows, _OWLK8S).items():
            columns = {name: column[some] for name, column in rows.columns.items()}
            count = columns["count"]
            status = columns["http.response.status_code"]
            totals = self._totals.setdefault(tags, [0, 0, 0])
            totals[0] += int(count.sum())
            totals[1] += int(count[(status >= 400) & (status < 500)].sum())
            totals[2] += int(count[status >= 500].sum())
            mean = columns["duration.sum"].sum() / max(int(count.sum()), 1)
            lines[int(some[0])] = (
                f"INT_svcmetrics{tags} duration={mean * 1e6:.0f}i,requests={totals[0]}i,"
                f"err4={totals[1]}i,err5={totals[2]}i {rows.time_ns}\n"
            )
        return lines


def _red(rows: Rows) -> dict[int, str]:
    """``red``: requests a second, per cent of 5xx, and mean milliseconds."""
    lines = {}
    for tags, some in _groups(rows, _KUBEBPFBOX).items():
        count = rows.columns["count"][some]
        errors = int(count[rows.columns["http.response.status_code"][some] > 499].sum())
        total = max(int(count.sum()), 1)
        mean = float(rows.columns["duration.sum"][some].sum()) / total
        rate = int(count.sum()) / max(rows.interval, 1e-9)
        lines[int(some[0])] = (
            f"red{tags} qps={rate!r},errrate={100 * errors / total!r},duration={mean * 1e3!r} "
            f"{rows.time_ns}\n"
        )
    return lines


def _groups(rows: Rows, names: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Positions of servers' rows, by their tags as these are written."""
    columns = [(tag, rows.columns[name].tolist()) for tag, name in names if name in rows.columns]
    servers = rows.columns["side"] == "server"
    found: dict[str, list[int]] = {}
    for place in np.flatnonzero(servers).tolist():
        told = ((tag, column[place]) for tag, column in columns)
        tags = "".join(f",{tag}={tag_value(text)}" for tag, text in told if text)
        found.setdefault(tags, []).append(place)
    return {tags: np.array(places) for tags, places in found.items()}


def _traffic(rows: Rows, distinct: Distinct) -> list[str]:
    """``traffic``: single requests, milliseconds."""
    servers = (rows.columns["side"] == "server").tolist()
    empty: list[Any] = [None] * len(rows)
    column: dict[str, list[Any]] = {
        name: rows.columns[name].tolist() if name in rows.columns else empty
        for name in (
            *("k8s.namespace.name", "k8s.node.name", "k8s.pod.name", "service.name"),
            *("http.request.method", "http.route", "http.response.status_code", "server.port"),
            *("network.peer.address", "network.peer.port", "url.path", "duration"),
        )
    }
    times = rows.columns["time"].astype("M8[ns]").astype(np.int64).tolist()
    series, fields = [], []
    for place, is_server in enumerate(servers):
        one = {name: values[place] for name, values in column.items()}
        tags = {
            "namespace": one["k8s.namespace.name"],
            "nodename": one["k8s.node.name"],
            "podname": one["k8s.pod.name"],
            "servicename": one["service.name"],
            "type": 1,
            "flow": "0" if is_server else "1",
            "srcip" if is_server else "dstip": one["network.peer.address"],
            "dstport": one["server.port"],
            "method": one["http.request.method"],
            "url": one["http.route"],
            "code": one["http.response.status_code"],
        }
        series.append(
            "".join(f",{name}={tag_value(str(value))}" for name, value in tags.items() if value)
        )
        path = string(one["url.path"] or "")
        port = one["network.peer.port"] if is_server else 0
        fields.append(f"duration={one['duration'] * 1e3!r},path={path},srcport={port}i")
    told = zip(series, fields, distinct.times(series, times), strict=True)
    return [f"traffic{one} {value} {time}\n" for one, value, time in told]


_PAGE_BYTES = 4096
_POD = (
    ("poduid", "k8s.pod.uid"),
    ("podname", "k8s.pod.name"),
    ("nodename", "k8s.node.name"),
    ("namespace", "k8s.namespace.name"),
    ("containerid", "container.id"),
    ("containername", "k8s.container.name"),
)


def _oomkill(rows: Rows, distinct: Distinct) -> list[str]:
    """``oomkill``: pages of the limit, or of the machine."""
    tags = (
        *_POD,
        ("comm", "podscope.process.comm"),
        ("triggercomm", "podscope.oom.trigger.comm"),
    )
    pages = rows.columns["podscope.oom.limit"] // _PAGE_BYTES
    # They change with each process: fields here, so that there are few series.
    pid, trigger = rows.columns["process.pid"], rows.columns["podscope.oom.trigger.pid"]
    fields = [
        f'pages={n}i,pid={one}i,triggerpid={other}i,message="Out of memory"'
        for n, one, other in zip(pages.tolist(), pid.tolist(), trigger.tolist(), strict=True)
    ]
    return _points("oomkill", rows, tags, fields, distinct)


def _tcpsynbl(rows: Rows, distinct: Distinct) -> list[str]:
    """``tcpsynbl``: listeners whose accept queue is nearly full, or dropped; as numbers."""
    told = np.asarray(rows.columns["podscope.listen.event"] != np.array(None))
    some = rows.take(told)
    columns = some.columns
    numbers = (
        columns["podscope.listen.limit"].tolist(),
        columns["podscope.listen.accept_queue"].tolist(),
        columns["process.pid"].tolist(),
    )
    fields = [
        f"maxackbacklog={most}i,ackbacklog={now}i,pid={pid}i"
        for most, now, pid in zip(*numbers, strict=True)
    ]
    tags = (*_POD, ("comm", "process.executable.name"))
    lines = iter(_points("tcpsynbl", some, tags, fields, distinct))
    return [next(lines) if is_told else "" for is_told in told.tolist()]


def _points(
    measurement: str,
    rows: Rows,
    names: Sequence[tuple[str, str]],
    fields: Sequence[str],
    distinct: Distinct,
) -> list[str]:
    columns = [(tag, rows.columns[name].tolist()) for tag, name in names if name in rows.columns]
    series = [
        measurement
        + "".join(f",{tag}={tag_value(text)}" for tag, column in columns if (text := column[row]))
        for row in range(len(rows))
    ]
    times = rows.columns["time"].astype("M8[ns]").astype(np.int64).tolist()
    told = zip(series, fields, distinct.times(series, times), strict=True)
    return [f"{one} {value} {time}\n" for one, value, time in told]


_EVENTS: Mapping[str, Callable[[Rows, Distinct], list[str]]] = {
    "request": _traffic,
    "oom": _oomkill,
    "listen": _tcpsynbl,
}
