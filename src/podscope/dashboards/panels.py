# SPDX-License-Identifier: Apache-2.0
"""What the dashboards show, whatever keeps the rows: boards, sections, panels, variables."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import Any

Object = dict[str, Any]

# Names of units in Grafana (packages/grafana-data/src/valueFormats/categories.ts).
PER_SECOND, REQUESTS, SHARE, SECONDS = "cps", "reqps", "percentunit", "s"
BYTES, BYTES_PER_SECOND, NUMBER = "bytes", "Bps", "short"


# The variables, and which of those before narrow the values of each.
NARROWED_BY: Mapping[str, tuple[str, ...]] = {
    "cluster": (),
    "namespace": ("cluster",),
    "workload": ("cluster", "namespace"),
    "pod": ("cluster", "namespace", "workload"),
    "node": ("cluster",),
    "service": ("cluster", "namespace"),
    "side": (),
    "instance": ("cluster",),
}


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        key: by which a data source knows what to ask for.
        unit: of its values, by Grafana's name.
        view: ``timeseries``, ``stat`` or ``table``.
        width: of 24 columns.
        sort: of a table the title of the column that it is sorted by, the greatest first.
    """

    key: str
    title: str
    unit: str
    text: str
    view: str = "timeseries"
    width: int = 8
    sort: str = ""


@dataclass(frozen=True)
class Section:
    """Panels below a title."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """A dashboard: its variables narrow all its panels."""

    name: str
    title: str
    text: str
    variables: tuple[str, ...]
    sections: tuple[Section, ...]

    @property
    def panels(self) -> Iterator[Panel]:
        """All its panels."""
        for section in self.sections:
            yield from section.panels


@dataclass(frozen=True)
class Source:
    """How the panels are asked for in one query language.

    Attributes:
        name: ``prometheus``, ``influxql``, ``flux`` or ``elasticsearch``.
        plugin: Grafana's name of the data source.
        targets: by key of a panel what Grafana asks for; panels that are missing cannot be shown.
        variables: by name of a variable what its values are asked for with.
        all_values: by name of a variable what stands for all its values, or none.
        columns: by key of a table the titles of its columns, by name, in their order.
        legends: by key of a panel what its lines are called, where targets do not say it.
        least: the least time between two points; empty: the data source knows.
    """

    name: str
    title: str
    plugin: str
    targets: Mapping[str, tuple[Object, ...]]
    variables: Mapping[str, Any]
    all_values: Mapping[str, str]
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    legends: Mapping[str, str] = field(default_factory=dict)
    least: str = ""


VARIABLES = {
    "cluster": "Cluster",
    "namespace": "Namespace",
    "workload": "Workload",
    "pod": "Pod",
    "node": "Node",
    "service": "Service",
    "side": "Side",
    "path": "Path begins with",
    "instance": "Agent",
}
# Not asked for: the user writes it.
TYPED = frozenset({"path"})

_STAT, _TABLE = "stat", "table"


def _red(key: str, of: str) -> tuple[Panel, ...]:
    """Rate, errors and duration by something."""
    return (
        Panel(f"{key}.rate", f"Requests by {of}", REQUESTS, "Requests answered, a second."),
        Panel(
            f"{key}.errors",
            f"Errors by {of}",
            SHARE,
            "Share of requests with a status of 5xx, or without a whole answer.",
        ),
        Panel(
            f"{key}.p99",
            f"Duration by {of}, 99th percentile",
            SECONDS,
            "From the first byte of the request to the last byte of the answer.",
        ),
    )


OVERVIEW = Board(
    "overview",
    "Overview",
    "Rate, errors and duration of all HTTP servers.",
    ("cluster", "namespace", "workload", "node", "service"),
    (
        Section(
            "All",
            (
                Panel("all.rate", "Requests", REQUESTS, "Requests answered, a second.", _STAT, 5),
                Panel("all.errors", "Errors", SHARE, "Share of requests that failed.", _STAT, 5),
                Panel("all.mean", "Mean duration", SECONDS, "Of all requests.", _STAT, 5),
                Panel("all.p50", "Median duration", SECONDS, "Of all requests.", _STAT, 5),
                Panel("all.p99", "99th percentile", SECONDS, "Of all requests.", _STAT, 4),
            ),
        ),
        Section("Namespaces", _red("namespace", "namespace")),
        Section("Workloads", _red("workload", "workload")),
        Section("Services", _red("service", "Service")),
        Section(
            "Worst",
            (
                Panel(
                    "top.errors", "Most errors", NUMBER, "Failed requests.", _TABLE, 12, "Requests"
                ),
                Panel(
                    "top.routes",
                    "Slowest routes",
                    SECONDS,
                    "The slowest one of a hundred.",
                    _TABLE,
                    12,
                    "99th percentile",
                ),
            ),
        ),
    ),
)

POD = Board(
    "pod",
    "Pods",
    "Rate, errors and duration of pods, as servers and as clients.",
    ("cluster", "namespace", "workload", "pod", "node"),
    (
        Section(
            "As server",
            (
                Panel("pod.rate", "Requests", REQUESTS, "Requests answered, a second."),
                Panel("pod.errors", "Errors", REQUESTS, "Answers of 4xx and of 5xx, a second."),
                Panel("pod.duration", "Duration", SECONDS, "Median, 90th and 99th percentile."),
                Panel("route.rate", "Requests by route", REQUESTS, "Ids in paths are *."),
                Panel("status.rate", "Requests by status", REQUESTS, "0: no answer."),
                Panel("method.rate", "Requests by method", REQUESTS, "Requests a second."),
                Panel("route.p99", "Duration by route, 99th percentile", SECONDS, "", width=12),
                Panel("pod.bodies", "Bodies", BYTES_PER_SECOND, "Without headers.", width=12),
            ),
        ),
        Section(
            "As client",
            (
                Panel("client.rate", "Requests sent", REQUESTS, "Requests a second."),
                Panel("client.errors", "Errors", SHARE, "4xx, 5xx, or no whole answer."),
                Panel("client.p99", "Duration, 99th percentile", SECONDS, "As the client waits."),
            ),
        ),
    ),
)

AGENT = Board(
    "agent",
    "Agent",
    "What podscope itself costs, and what it could not count or deliver.",
    ("cluster", "instance"),
    (
        Section(
            "Cost",
            (
                Panel("agent.cpu", "CPU, user space", NUMBER, "In CPUs."),
                Panel("agent.kernel", "CPU, kernel programs", NUMBER, "In CPUs."),
                Panel("agent.run", "Time of one run of a kernel program", SECONDS, "The mean."),
                Panel("agent.memory", "Memory", BYTES, "Resident."),
                Panel("agent.series", "Series", NUMBER, "In the exposition of an agent."),
                Panel("agent.runs", "Runs of kernel programs", PER_SECOND, "A second."),
            ),
        ),
        Section(
            "Losses",
            (
                Panel(
                    "lost.rate",
                    "Exchanges not counted, by reason",
                    PER_SECOND,
                    "docs/reference/lost.md says what each reason means.",
                    width=12,
                ),
                Panel("lost.table", "Not counted", NUMBER, "By reason.", _TABLE, 12, "Exchanges"),
            ),
        ),
        Section(
            "Sinks",
            (
                Panel("sink.sent", "Rows delivered", PER_SECOND, "By sink."),
                Panel("sink.dropped", "Rows dropped", PER_SECOND, "By sink and reason."),
                Panel("sink.retries", "Retries", PER_SECOND, "Waits for a server, by sink."),
                Panel("sink.queued", "Rows that wait", NUMBER, "By sink."),
                Panel("sink.memory", "Queue in memory", BYTES, "By sink."),
                Panel("sink.disk", "Queue on disk", BYTES, "By sink."),
            ),
        ),
    ),
)

REQUESTS_BOARD = Board(
    "requests",
    "Request log",
    "Single requests, as far as the configuration has them logged.",
    ("cluster", "namespace", "workload", "pod", "node", "side", "path"),
    (
        Section(
            "Logged requests",
            (
                Panel("log.rate", "Requests by pod", REQUESTS, "Logged requests a second."),
                Panel("log.errors", "Errors by pod", SHARE, "Share of those that failed."),
                Panel("log.duration", "Duration by pod", SECONDS, "The 99th percentile."),
            ),
        ),
        Section(
            "Requests",
            (Panel("log.table", "Request log", NUMBER, "The newest.", _TABLE, 24, "Time"),),
        ),
    ),
)

_OF_POD = ("cluster", "namespace", "workload", "pod", "node")
_A_SECOND = "A second."

EVENTS = Board(
    "events",
    "Events",
    "What goes wrong below HTTP: memory, listeners, connections, names.",
    _OF_POD,
    (
        Section(
            "Kills for memory",
            (
                Panel("oom.kills", "OOM kills by workload", NUMBER, "Of each interval."),
                Panel("oom.table", "OOM kills", NUMBER, "The newest.", _TABLE, 16, "Time"),
            ),
        ),
        Section(
            "Listeners",
            (
                Panel(
                    "listen.usage",
                    "Accept queue",
                    SHARE,
                    "The fullest queue of each pod as a share of its limit.",
                ),
                Panel("listen.drops", "Dropped handshakes", PER_SECOND, _A_SECOND),
                Panel(
                    "listen.overflows",
                    "Overflows",
                    PER_SECOND,
                    "Those that were dropped because the accept queue was full.",
                ),
                Panel("listen.table", "Fullest queues", NUMBER, "By listener.", _TABLE, 24, "Most"),
            ),
        ),
        Section(
            "TCP",
            (
                Panel("tcp.opened", "Connections opened", PER_SECOND, "By workload."),
                Panel("tcp.failed", "Connections that failed", PER_SECOND, "By workload."),
                Panel("tcp.resets", "Resets", PER_SECOND, "Sent and received."),
                Panel("tcp.retransmits", "Segments sent again", PER_SECOND, "By workload."),
                Panel("tcp.bytes", "Payload", BYTES_PER_SECOND, "Sent and received."),
                Panel("tcp.connect", "Duration of connects", SECONDS, "The mean, by workload."),
                Panel("tcp.life", "Life of connections", SECONDS, "The mean, as they end."),
                Panel("tcp.table", "Events of TCP", NUMBER, "The newest.", _TABLE, 24, "Time"),
            ),
        ),
        Section(
            "DNS",
            (
                Panel("dns.rate", "Lookups by response", PER_SECOND, _A_SECOND),
                Panel("dns.errors", "Failed lookups by workload", SHARE, "Of all lookups."),
                Panel("dns.duration", "Duration of lookups", SECONDS, "The mean, by workload."),
                Panel("dns.table", "Names that fail", NUMBER, "By name.", _TABLE, 24, "Lookups"),
            ),
        ),
    ),
)

BOARDS = (OVERVIEW, POD, REQUESTS_BOARD, EVENTS, AGENT)
