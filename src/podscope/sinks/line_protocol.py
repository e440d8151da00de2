# SPDX-License-Identifier: Apache-2.0
"""InfluxDB's line protocol, made column by column.

A measurement for each kind. Tags are what there are few of; what grows without end (paths, ports of
clients, process ids) is a field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial

import numpy as np

from podscope import red
from podscope import schema
from podscope.schema import Array
from podscope.schema import Field
from podscope.schema_metrics import METRICS
from podscope.schema_trace import KEY
from podscope.sinks.columns import apart
from podscope.sinks.columns import joined
from podscope.sinks.columns import rounded
from podscope.sinks.rows import Rows

# Attributes that grow without end, or change with each start of a container.
_UNBOUNDED = frozenset(
    {
        "process.pid",
        "container.id",
        "k8s.pod.uid",
        "network.peer.address",
        "server.address",
        "podscope.peer.pod.name",
    }
)
_KNOWN = frozenset(one.name for one in schema.HTTP if one.dimension)
# Words of other kinds of rows, of which there are few.
_FEW = frozenset(
    {
        "network.transport",
        "podscope.dns.question.type",
        "podscope.dns.response_code",
        "podscope.oom.scope",
        "podscope.tcp.event",
        "podscope.trace.map",
        "podscope.trace.name",
        "podscope.trace.program",
        "podscope.trace.type",
        "reason",
    }
)
TAGS = (_KNOWN | _FEW | {"host.name", "k8s.cluster.name"}) - _UNBOUNDED
# Counts at the bounds.
LE_NAMES = (*(f"duration.le_{bound}" for bound in red.CLASSIC_BOUNDS), "duration.le_inf")


class Distinct:
    """Gives points of the same series and nanosecond times of their own: each stays a point."""

    def __init__(self) -> None:
        self._before: set[tuple[str, int]] = set()

    def times(self, series: Sequence[str], times: Sequence[int]) -> list[int]:
        """Times, of which some are a few nanoseconds later than given."""
        taken: set[tuple[str, int]] = set()
        found = []
        for one, time in zip(series, times, strict=True):
            at = time
            while (one, at) in taken or (one, at) in self._before:
                at += 1
            taken.add((one, at))
            found.append(at)
        self._before = taken
        return found


def lines_of(rows: Rows, measurement: str, distinct: Distinct) -> list[str]:
    """A line of InfluxDB's line protocol for each row, with its end; empty if it has no values.

    Strings are made for whole columns; of what comes again, once.
    """
    fields, columns = rows.with_resource()
    tags = sorted((one for one in fields if is_tag(one)), key=lambda one: one.name)
    values = [one for one in fields if not is_tag(one) and one.name != "time"]
    # All of them in their order, whatever a delivery has: the same series is the same text.
    series = joined([_tags(one, columns[one.name]) for one in tags], len(rows), "")
    encoders = [(columns[one.name], partial(_values, one)) for one in values]
    if rows.kind not in METRICS and rows.le is not None:
        cumulative = np.cumsum(rows.le, axis=1)
        encoders += [
            (cumulative[:, n], partial(_integers, name)) for n, name in enumerate(LE_NAMES)
        ]
    same_values, other_values = apart(encoders)
    told = joined(other_values, len(rows), "")
    head, end = key(measurement), "".join(same_values)
    times = distinct.times(series, columns["time"].astype("M8[ns]").astype(np.int64).tolist())
    return [
        f"{head}{one} {(value + end)[:-1]} {time}\n" if value or end else ""
        for one, value, time in zip(series, told, times, strict=True)
    ]


def is_tag(one: Field) -> bool:
    """Whether a field is a tag: it says what a row is about, and there are few of it."""
    return one.name in TAGS or one.name.startswith(KEY)


def key(text: str) -> str:
    """A measurement, or the key of a tag or field."""
    return text.replace(",", "\\,").replace("=", "\\=").replace(" ", "\\ ")


def tag_value(text: str) -> str:
    """The value of a tag; a backslash before what is escaped cannot be written, and becomes /."""
    safe = re.sub(r"\\(?=[,= ]|$)", "/", text.replace("\n", "\\n").replace("\r", "\\r"))
    return key(safe)


def string(text: str) -> str:
    """The value of a field that is a text."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _tags(one: Field, column: Array) -> list[str]:
    """``,key=value`` for each row; empty where it does not apply."""
    name = key(one.name)
    items = column.tolist()
    told = {
        item: f",{name}={tag_value(str(item))}" if item not in (None, 0, "") else ""
        for item in set(items)
    }
    return [told[item] for item in items]


def _values(one: Field, column: Array) -> list[str]:
    """``key=value,`` for each row; empty where it does not apply."""
    name = key(one.name)
    if one.type == "text":
        items = column.tolist()
        quoted = {item: f"{name}={string(item)}," for item in set(items) if item}
        return [quoted.get(item, "") for item in items]
    if one.type == "float":
        items = rounded(column).tolist()
        return [f"{name}={item!r}," if math.isfinite(item) else "" for item in items]
    if one.type == "time":
        return _integers(one.name, column.astype("M8[ns]").astype(np.int64))
    if not one.blank:
        return _integers(one.name, column)
    return [f"{name}={item}i," if item else "" for item in column.tolist()]


def _integers(name: str, column: Array) -> list[str]:
    head = key(name)
    return [f"{head}={item}i," for item in column.tolist()]
