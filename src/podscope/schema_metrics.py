# SPDX-License-Identifier: Apache-2.0
"""Metrics of the kinds of rows beside HTTP: which column each is, its name, unit and labels.

Prometheus' exposition, remote write and OTLP all make them from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from podscope.schema import Array
from podscope.schema import Field
from podscope.schema import View
from podscope.schema_events import END
from podscope.schema_events import attribute
from podscope.schema_events import value

# As Prometheus writes units, at the end of a name.
_UNITS = {"s": "seconds", "By": "bytes", "1": "ratio"}


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: OpenTelemetry's; podscope.* where it has none.
        type: a counter adds up all rows, a gauge is the highest of the last minute.
        unit: UCUM.
        column: of the rows; of a histogram that of the sum; empty: each row counts one.
        text: what it means.
        side: only of rows of this side; empty: of all.
        whole: a series of which a part could not be told is left out from then on.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    unit: str
    column: str
    text: str
    side: str = ""
    whole: bool = False

    @property
    def prometheus_unit(self) -> str:
        """The unit as Prometheus writes it; empty if it has none."""
        return _UNITS.get(self.unit, "")

    @property
    def prometheus_name(self) -> str:
        """The name as Prometheus writes it, without ``_total``."""
        unit = self.prometheus_unit
        return self.name.replace(".", "_") + (f"_{unit}" if unit else "")


def _read(_: View) -> Array:
    raise TypeError("losses have no records: their columns are made as they are")


# What could not be counted in an interval, by reason; no source gives them.
LOST: tuple[Field, ...] = (
    END,
    attribute("reason", "", _read, "why", label=True),
    value("count", "", ("int", ""), _read, "how often"),
)

_TCP = "podscope.tcp."
METRICS: dict[str, tuple[Metric, ...]] = {
    "oom": (
        Metric("podscope.oom.kills", "counter", "{kill}", "", "Kills by the kernel's OOM killer."),
    ),
    "listen": (
        Metric(
            "podscope.listen.overflows",
            "counter",
            "{connection}",
            "podscope.listen.overflows",
            "Handshakes dropped because the accept queue was full, where that can be told.",
            whole=True,
        ),
        Metric(
            "podscope.listen.drops",
            "counter",
            "{connection}",
            "podscope.listen.drops",
            "Handshakes dropped, for whatever reason.",
        ),
        Metric(
            "podscope.listen.queue.usage",
            "gauge",
            "1",
            "podscope.listen.queue.usage",
            "Highest share of the limit that the accept queue had in the last minute.",
        ),
        Metric(
            "podscope.listen.syn_queue",
            "gauge",
            "{connection}",
            "podscope.listen.syn_queue.highest",
            "Most handshakes that were not complete in the last minute.",
        ),
        Metric(
            "podscope.listen.limit",
            "gauge",
            "{connection}",
            "podscope.listen.limit",
            "Limit of both queues of the listener.",
        ),
    ),
    "tcp": (
        Metric(
            "podscope.tcp.connect.duration",
            "histogram",
            "s",
            "podscope.tcp.connect.duration.sum",
            "Duration of connects that succeeded and whose beginning was seen.",
            side="client",
        ),
        Metric(
            "podscope.tcp.connects",
            "counter",
            "{connection}",
            "podscope.tcp.connects",
            "Connects that succeeded.",
            side="client",
        ),
        Metric(
            "podscope.tcp.connects.failed",
            "counter",
            "{connection}",
            "podscope.tcp.connects.failed",
            "Connects that failed.",
            side="client",
        ),
        Metric(
            "podscope.tcp.accepts",
            "counter",
            "{connection}",
            "podscope.tcp.accepts",
            "Connections accepted.",
            side="server",
        ),
        Metric(
            "podscope.tcp.closes",
            "counter",
            "{connection}",
            "podscope.tcp.closes",
            "Connections that ended.",
        ),
        Metric(
            "podscope.tcp.sent",
            "counter",
            "By",
            "podscope.tcp.sent",
            "Payload that connections which ended have sent.",
        ),
        Metric(
            "podscope.tcp.received",
            "counter",
            "By",
            "podscope.tcp.received",
            "Payload that connections which ended have received.",
        ),
        Metric(
            "podscope.tcp.retransmits",
            "counter",
            "{segment}",
            "podscope.tcp.retransmits",
            "Segments sent again.",
        ),
        Metric(
            "podscope.tcp.resets.sent",
            "counter",
            "{connection}",
            "podscope.tcp.resets.sent",
            "Resets sent on connections.",
        ),
        Metric(
            "podscope.tcp.resets.received",
            "counter",
            "{connection}",
            "podscope.tcp.resets.received",
            "Resets received on connections.",
        ),
    ),
    "dns": (
        Metric(
            "dns.lookup.duration",
            "histogram",
            "s",
            "duration.sum",
            "Duration of lookups that a response came to.",
        ),
        Metric(
            "podscope.dns.lookups",
            "counter",
            "{lookup}",
            "count",
            "Lookups that ended, also those without a response.",
        ),
    ),
    "lost": (
        Metric(
            "podscope.lost",
            "counter",
            "",
            "count",
            "What could not be counted, or not in full, by reason.",
        ),
    ),
}

# What tells series apart beside whose they are. No peers and no names of DNS, which are without
# end: rows have them.
LABELS: dict[str, tuple[str, ...]] = {
    "oom": ("podscope.oom.scope",),
    "listen": ("server.port",),
    "tcp": ("side", "server.port"),
    "dns": ("side", "podscope.dns.question.type", "error.type"),
    "lost": ("reason",),
}

# Kinds whose rows are sums or states of an interval, not events.
SUMS = frozenset({"listen", "tcp", "dns", "lost"})


def is_label(kind: str, field: Field) -> bool:
    """Whether a field of a kind of rows is a label of its metrics."""
    return field.label or field.name in LABELS[kind]
