# SPDX-License-Identifier: Apache-2.0
"""``podscope http``: rate, errors and duration by workload, live."""

from __future__ import annotations

import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import TYPE_CHECKING
from typing import TextIO

import numpy as np
import numpy.typing as npt

from podscope import filters
from podscope import red
from podscope import render
from podscope import schema
from podscope.commands import targets
from podscope.commands.lifetime import Lifetime

if TYPE_CHECKING:
    import argparse

    from podscope.batch import Batch

HELP = "Show rate, errors and duration of HTTP by workload, each interval."
TABLE_BY = ("workload", "side", "port", "method", "route")
CLUSTER_BY = ("namespace", "workload", "side", "port", "method", "route")
OUTPUTS = ("table", "wide", "json", "csv")
SORTS = ("rate", "errors", "p50", "p90", "p99", "max", "bytes", "name")
LEAST_INTERVAL_NS = 100 * 10**6

_ATTRIBUTES = tuple(one for one in schema.HTTP if one.dimension)
# Dimension: title of its column, whether numbers are in it.
_TITLES = {
    "service": ("SERVICE", False),
    "workload": ("WORKLOAD", False),
    "namespace": ("NAMESPACE", False),
    "pod": ("POD", False),
    "container": ("CONTAINER", False),
    "node": ("NODE", False),
    "executable": ("EXECUTABLE", False),
    "pid": ("PID", True),
    "side": ("SIDE", False),
    "port": ("PORT", True),
    "method": ("METHOD", False),
    "route": ("ROUTE", False),
    "status": ("STATUS", True),
    "version": ("VERSION", True),
    "peer": ("PEER", False),
    "address": ("ADDRESS", False),
}
_PEER_NAME = ("service.peer.name", "service.peer.namespace", "podscope.peer.kind")
_NUMBERS = ("RATE/S", "ERRORS", "P50", "P90", "P99", "MAX", "IN/S", "OUT/S")
_WIDE = ("COUNT", "FAILED", "FIRST BYTE")
# Columns that tell whose the rows are: title and field.
_WIDE_OWNERS = (
    ("KIND", "podscope.workload.kind"),
    ("PROCESS", "process.executable.name"),
    ("CONTAINER ID", "container.id"),
)
# Where the terminal is narrow: names are cut to this, then columns are left out in this order,
# then names are cut to the least, then more columns are left out. Numbers are never cut.
_SHORT_NAME = 18
_LEAST_NAME = 8
_DISPENSABLE = (
    *("IN/S", "OUT/S", "CONTAINER ID", "PROCESS", "KIND"),
    *("COUNT", "FAILED", "FIRST BYTE", "P90", "MAX"),
)
_LAST_RESORT = (
    *("P50", "VERSION", "NODE", "METHOD", "ADDRESS", "PEER", "SIDE", "PID", "STATUS", "EXECUTABLE"),
    *("CONTAINER", "PORT", "NAMESPACE", "ROUTE", "P99", "ERRORS"),
)
# Room for a side's numbers in the first line, and for all of that line but its title.
_SIDE_WIDTH = len("server 99.9k/s, >99.9% errors")
_TOTALS_WIDTH = len("  12:34:56") + 2 * (2 + _SIDE_WIDTH) + len("  12345 series")
_FEWER = "--port, --workload or --by show fewer"
# How much of a row's past counts for its place on the screen, each interval.
_MEMORY = 0.8


@dataclass(frozen=True)
class Options:
    """What to show, and how.

    Attributes:
        output: one of ``OUTPUTS``.
        by: dimensions of ``schema.DIMENSIONS``.
        sort: one of ``SORTS``.
        keep: rows to show.
        once: end after one interval.
        interval: seconds.
    """

    output: str = "table"
    by: tuple[str, ...] = TABLE_BY
    sort: str = "rate"
    keep: filters.Filter = field(default_factory=filters.Filter)
    once: bool = False
    interval: float = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    targets.add_arguments(parser)
    add_interval(parser)
    targets.add_duration(parser)
    parser.add_argument("--once", action="store_true", help="end after one interval")
    parser.add_argument(
        "-o",
        "--output",
        choices=OUTPUTS,
        default="table",
        help="form (default: table); json is one object a line",
    )
    parser.add_argument(
        "--by",
        metavar="FIELD,...",
        help=f"group by these, of {', '.join(schema.DIMENSIONS)} "
        f"(default: {','.join(TABLE_BY)}; all but service and address for json and csv)",
    )
    add_filters(parser)
    parser.add_argument(
        "--sort", choices=SORTS, default="rate", help="order, largest first (default: rate)"
    )


def add_interval(parser: argparse.ArgumentParser) -> None:
    """Declare --interval."""
    parser.add_argument(
        "--interval", metavar="TIME", default="1s", help="time between updates (default: 1s)"
    )


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that ``keep`` reads."""
    parser.add_argument("--side", metavar="SIDE", help="server or client (default: both)")
    parser.add_argument("--port", metavar="PORTS", help="ports of the server, as 80,8000-8100")
    parser.add_argument("--workload", metavar="GLOB", help="workloads by name, as 'nginx*'")
    parser.add_argument(
        "--status", metavar="STATUSES", help="as 5xx, 404 or 4xx,500; none: no answer came"
    )


def keep(args: argparse.Namespace) -> filters.Filter:
    """The filter that the flags of ``add_filters`` ask for; raises UsageError."""
    return filters.Filter(
        side=filters.side(args.side, "--side"),
        ports=None if args.port is None else filters.ports(args.port, "--port"),
        statuses=None if args.status is None else filters.statuses(args.status, "--status"),
        workload=filters.glob(args.workload, "--workload", "nginx*"),
    )


def interval_ns(args: argparse.Namespace) -> int:
    """--interval in nanoseconds; raises UsageError."""
    return filters.duration_ns(args.interval, "--interval", least_ns=LEAST_INTERVAL_NS)


def options(args: argparse.Namespace) -> Options:
    """The flags as values; raises UsageError."""
    in_cluster = targets.is_for_cluster(args)
    if args.output in ("json", "csv"):
        by = schema.PLAIN if in_cluster else schema.ON_HOST
    else:
        by = CLUSTER_BY if in_cluster else TABLE_BY
    if args.by is not None:
        by = filters.dimensions(args.by, "--by")
    if not in_cluster:  # there a peer is its address
        by = tuple(dict.fromkeys("address" if name == "peer" else name for name in by))
    if in_cluster and "workload" in by and "namespace" not in by:
        by = ("namespace", *by)  # names are one's own in each namespace
    return Options(
        output=args.output,
        by=by,
        sort=args.sort,
        keep=keep(args),
        once=args.once,
        interval=interval_ns(args) / 1e9,
    )


def wants_peers(args: argparse.Namespace) -> bool:
    """Whether to keep peers' addresses: only if asked, since each makes a series of its own."""
    asked = () if args.by is None else filters.dimensions(args.by, "--by")
    return bool({"peer", "address"} & set(asked))


def run(args: argparse.Namespace) -> int:
    """Watch and show until a signal or the end of the time."""
    chosen = options(args)
    duration = targets.duration_ns(args)
    if targets.is_for_cluster(args):
        return targets.watch_cluster(
            args,
            "http",
            chosen.interval,
            lambda nodes: show(nodes, nodes.lost, chosen, sys.stdout),
        )
    from podscope.pipeline import watch

    with (
        Lifetime() as lifetime,
        watch(
            kinds=("http",),
            interval=chosen.interval,
            routes="route" in chosen.by,
            peers=wants_peers(args),
        ) as watched,
    ):
        lifetime.begin(watched.stop, duration)
        show(watched, watched.lost, chosen, sys.stdout)
    return 0


def show(
    batches: Iterable[Batch], lost: Callable[[], Mapping[str, int]], chosen: Options, out: TextIO
) -> None:
    """Write what each batch of kind ``http`` says.

    Args:
        batches: one an interval.
        lost: what was lost since the start, by reason.
        chosen: what to show.
        out: where to write it.
    """
    kept = (chosen.keep.apply(batch) for batch in batches if batch.kind == "http")
    if chosen.output == "json":
        _show_json(kept, lost, chosen, out)
    elif chosen.output == "csv":
        _show_csv(kept, lost, chosen, out)
    elif render.Screen.fits(out) and not chosen.once:
        _show_screen(kept, lost, chosen, out)
    else:
        _show_tables(kept, lost, chosen, out)


def _show_json(
    batches: Iterable[Batch], lost: Callable[[], Mapping[str, int]], chosen: Options, out: TextIO
) -> None:
    requests = 0
    before: Mapping[str, int] = {}
    for batch in batches:
        requests += int(batch.rows["count"].sum())
        now = dict(lost())
        out.write(render.json_lines("http", schema.HTTP, columns(batch, chosen)))
        out.write(render.lost_lines(render.moved(before, now), batch.time_ns))
        out.flush()
        before = now
        if chosen.once:
            break
    out.write(render.summary_line(requests, lost()))


def _show_csv(
    batches: Iterable[Batch], lost: Callable[[], Mapping[str, int]], chosen: Options, out: TextIO
) -> None:
    header = True
    for batch in batches:
        out.write(render.csv_lines(schema.HTTP, columns(batch, chosen), header=header))
        out.flush()
        header = False
        if chosen.once:
            break
    tell_lost(lost())


def tell_lost(lost: Mapping[str, int]) -> None:
    """Say what was lost on stderr, where stdout has a form of its own."""
    if told := render.lost_text(lost):
        print(f"podscope: {told}", file=sys.stderr)


def _show_tables(
    batches: Iterable[Batch], lost: Callable[[], Mapping[str, int]], chosen: Options, out: TextIO
) -> None:
    run = Run()
    for number, batch in enumerate(run.follow(batches)):
        if number:
            out.write("\n")
        out.write("".join(f"{line}\n" for line in frame(batch, chosen, lost())))
        out.flush()
        if chosen.once:
            break
    out.write(f"\n{run.summary(lost())}\n")


def _show_screen(
    batches: Iterable[Batch], lost: Callable[[], Mapping[str, int]], chosen: Options, out: TextIO
) -> None:
    run = Run()
    live(run.follow(batches), lost, chosen, out)
    out.write(f"{run.summary(lost())}\n")


def live(
    batches: Iterable[Batch],
    lost: Callable[[], Mapping[str, int]],
    chosen: Options,
    out: TextIO,
    *,
    title: str = "podscope",
    fewer: str = _FEWER,
) -> None:
    """A table on a terminal that redraws itself; its last state stays."""
    places = Places()
    with render.Screen(out) as screen:
        first = [title, f"watching; the first numbers come in {chosen.interval:g} s"]
        screen.draw(render.folded(first, screen.width))
        for number, batch in enumerate(batches):
            # The rest of an interval that a signal cut says little.
            if number and batch.interval < chosen.interval / 2:
                continue
            screen.draw(
                frame(batch, chosen, lost(), screen, title=title, places=places, fewer=fewer)
            )


class Run:
    """Adds up what a run has shown, for its last line."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(("server", "client"), 0)
        self._seconds = 0.0

    def follow(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """The same batches, each counted before it is passed on."""
        for batch in batches:
            self._seconds += batch.interval
            for side, (count, _) in _sides(batch).items():
                self._counts[side] += count
            yield batch

    def summary(self, lost: Mapping[str, int]) -> str:
        """``total: 120 server, 5 client exchanges in 30.0s; lost: joined 3``."""
        told = ", ".join(f"{count} {side}" for side, count in self._counts.items())
        gone = render.lost_text(lost) or "nothing lost"
        return f"total: {told} exchanges in {render.seconds(self._seconds)}; {gone}"


def _sides(batch: Batch) -> dict[str, tuple[int, int]]:
    """Exchanges and errors of a batch of kind ``http``, by side."""
    keys, counts = batch.rows["key"], batch.rows["count"]
    errors = schema.error_mask(keys)
    mine = {side: keys["side"] == schema.SIDES.index(side) for side in ("server", "client")}
    return {
        side: (int(counts[rows].sum()), int(counts[rows & errors].sum()))
        for side, rows in mine.items()
    }


class Places:
    """An order of rows that does not jump about: each row's past counts for its place."""

    def __init__(self) -> None:
        self._past: dict[tuple[str, ...], float] = {}

    def order(self, groups: red.Groups, sort: str) -> schema.Array:
        """As ``order``, by what the value has been lately."""
        names = _names(groups)
        now = dict(zip(names, _sort_value(groups, sort).tolist(), strict=True))
        # Rows that have not been seen for long are forgotten.
        least = 1e-3 * max(self._past.values(), default=0.0)
        past = {name: value * _MEMORY for name, value in self._past.items() if value > least}
        fresh = {
            name: value * (1 - _MEMORY if name in past else 1.0) for name, value in now.items()
        }
        self._past = past | {name: past.get(name, 0.0) + value for name, value in fresh.items()}
        return _ranked([self._past[name] for name in names], names)


def columns(batch: Batch, chosen: Options) -> dict[str, schema.Array]:
    """The batch's groups as columns named as in the JSON output, in the order asked for."""
    groups = red.group(batch, chosen.by)
    told = schema.read(schema.HTTP, groups.view(batch.time_ns, batch.interval), groups.by)
    ranked = order(groups, chosen.sort)
    return {name: column[ranked] for name, column in told.items()}


def order(groups: red.Groups, sort: str) -> schema.Array:
    """Positions of the groups, largest first; ties and ``name`` by name."""
    return _ranked(_sort_value(groups, sort).tolist(), _names(groups))


def _ranked(value: list[float], names: list[tuple[str, ...]]) -> schema.Array:
    ranked = sorted(range(len(value)), key=lambda place: (-value[place], names[place]))
    return np.array(ranked, dtype=np.intp)


def _sort_value(groups: red.Groups, sort: str) -> npt.NDArray[np.float64]:
    if sort == "name":
        return np.zeros(len(groups))
    if sort == "errors":
        return groups.error_share()
    if sort == "max":
        return groups.max_ns.astype(np.float64)
    if sort == "bytes":
        return (groups.request_bytes + groups.response_bytes).astype(np.float64)
    if sort == "rate":
        return groups.count.astype(np.float64)
    return np.nan_to_num(groups.quantile(int(sort[1:]) / 100))


def _names(groups: red.Groups) -> list[tuple[str, ...]]:
    """What each group is, as sortable texts."""
    columns = schema.read(_ATTRIBUTES, groups.labels(), groups.by).values()
    texts = [[_sortable(cell) for cell in column.tolist()] for column in columns]
    return list(zip(*texts, strict=True)) if texts else [()] * len(groups)


def _sortable(cell: str | int | None) -> str:
    return f"{cell:010d}" if isinstance(cell, int) else cell or ""


def frame(
    batch: Batch,
    chosen: Options,
    lost: Mapping[str, int],
    screen: render.Screen | None = None,
    *,
    title: str = "podscope",
    places: Places | None = None,
    fewer: str = _FEWER,
) -> list[str]:
    """The lines of one interval: totals, the table, what was lost since the start.

    Args:
        batch: the interval.
        chosen: what to show.
        lost: counts by reason.
        screen: fit the table to it, with colour; None: whole and plain.
        title: how the first line begins.
        places: where rows were before; None: each interval by itself.
        fewer: what to do where not all rows have room.
    """
    groups = red.group(batch, chosen.by)
    width = None if screen is None else screen.width
    colour = screen is not None and screen.colour
    head = [*_total_lines(batch, title, width), ""]
    tail = ["", *_words(render.lost_text(lost), width)] if any(lost.values()) else []
    room = None if screen is None else max(screen.height - 1 - len(head) - len(tail), 2)
    ranked = order(groups, chosen.sort) if places is None else places.order(groups, chosen.sort)
    whole = table(groups.take(ranked[:room]), batch.interval, wide=chosen.output == "wide")
    made = whole if width is None else _fitted(whole, width)
    notes = ["no HTTP in this interval"] if len(groups) == 0 else []
    if hidden := [name for name in whole.titles if name not in made.titles]:
        notes += _words(f"a wider terminal shows {', '.join(hidden)}", width)
    if room is not None and len(groups) > (left := room - 1 - len(notes)):
        left = max(left - len(_words(f"{len(groups)} more rows; {fewer}", width)), 1)
        made = replace(made, rows=made.rows[:left])
        notes += _words(f"{len(groups) - left} more rows; {fewer}", width)
    lines = [*head, *render.table_lines(made, colour=colour)]
    return [*lines, *(render.dim(note, colour=colour) for note in notes), *tail]


def _words(text: str, width: int | None) -> list[str]:
    return render.folded(text.split(" "), width, " ")


def _total_lines(batch: Batch, title: str, width: int | None) -> list[str]:
    """Servers and clients apart: what goes on inside the machine is seen at both ends."""
    head = [title, render.clock(batch.time_ns)]
    sides = []
    for side, (count, errors) in _sides(batch).items():
        rate = render.number(count / batch.interval) if batch.interval else "0"
        sides.append(f"{side} {rate}/s, {render.share(errors / max(count, 1))} errors")
    sides.append(f"{len(batch)} series")
    if width is None:
        return render.folded([*head, *sides], None)
    # In places that do not depend on the numbers, so that nothing jumps about.
    sides = [one.ljust(_SIDE_WIDTH) for one in sides]
    if len(title) + _TOTALS_WIDTH <= width:
        return render.folded([*head, *sides], None)
    return [*render.folded(head, width), *render.folded(sides, width)]


def table(groups: red.Groups, interval: float, *, wide: bool = False) -> render.Table:
    """Cells of the groups in units for people."""
    told = schema.read(_ATTRIBUTES, groups.labels(), groups.by)
    quantiles = red.quantiles(groups.buckets, groups.max_ns, red.QUANTILES).T
    period = interval or 1.0
    made = [_dimension_cells(name, told) for name in groups.by]
    made += [
        render.cells(groups.count / period, render.number),
        render.cells(groups.error_share(), render.share),
        *(render.cells(column, render.seconds) for column in quantiles),
        render.cells(groups.max_ns / 1e9, render.seconds),
        render.cells(groups.request_bytes / period, render.size),
        render.cells(groups.response_bytes / period, render.size),
    ]
    titles = [_TITLES[name][0] for name in groups.by] + list(_NUMBERS)
    right = [_TITLES[name][1] for name in groups.by] + [True] * len(_NUMBERS)
    if wide:
        owners = [title for title, name in _WIDE_OWNERS if name in told]
        made += [*_wide_cells(groups), *(_owner_cells(title, told) for title in owners)]
        titles += [*_WIDE, *owners]
        right += [True] * len(_WIDE) + [False] * len(owners)
    rows = list(zip(*made, strict=True))
    return render.Table(tuple(titles), tuple(right), rows, alert=len(groups.by) + 1)


def _dimension_cells(name: str, told: Mapping[str, schema.Array]) -> list[str]:
    if name == "workload":
        return workload_cells(told)
    if name == "status":
        return status_cells(told)
    if name in ("peer", "address"):
        return peer_cells(told, names=name == "peer")
    found = next(one for one in _ATTRIBUTES if one.dimension == name)
    if name == "version":
        return render.cells(told["network.protocol.version"])
    return ["-" if cell in (0, None) else render.clean(cell) for cell in told[found.name].tolist()]


def workload_cells(told: Mapping[str, schema.Array]) -> list[str]:
    """Names of workloads; a process that stands for itself with its id: ``curl[300]``."""
    columns = (told["service.name"], told["podscope.workload.kind"], told["process.pid"])
    return [
        f"{render.clean(name)}[{pid}]" if kind == "process" and pid else render.clean(name)
        for name, kind, pid in zip(*columns, strict=True)
    ]


def peer_cells(told: Mapping[str, schema.Array], *, names: bool) -> list[str]:
    """``web.shop``, ``service/web.shop``, ``node/n1``; an address where there is no name."""
    addresses = zip(told["network.peer.address"], told["podscope.peer"], strict=True)
    cells = [render.clean(address or kind) for address, kind in addresses]
    if not names:
        return cells
    parts = (told[name] for name in _PEER_NAME)
    named = [_peer_cell(*part) for part in zip(*parts, strict=True)]
    return [name or cell for name, cell in zip(named, cells, strict=True)]


def _peer_cell(name: str | None, namespace: str | None, kind: str | None) -> str:
    if not name:
        return ""
    whole = f"{name}.{namespace}" if namespace else name
    return render.clean(f"{kind}/{whole}" if kind in ("service", "node") else whole)


def status_cells(told: Mapping[str, schema.Array]) -> list[str]:
    """``200``; the error where no answer came, both where it was cut."""
    pairs = zip(told["http.response.status_code"].tolist(), told["error.type"], strict=True)
    return [_status_cell(code, error) for code, error in pairs]


def _status_cell(code: int, error: str | None) -> str:
    if code == 0:
        return error or "-"
    if error is None or error == str(code):
        return str(code)
    return f"{code} {error}"


def _wide_cells(groups: red.Groups) -> list[list[str]]:
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 of 0 is none
        first_byte = groups.ttfb_sum_ns / groups.answered / 1e9
    return [
        render.cells(groups.count, str),
        render.cells(groups.errors, str),
        render.cells(first_byte, render.seconds),
    ]


def _owner_cells(title: str, told: Mapping[str, schema.Array]) -> list[str]:
    if title == "KIND":
        return render.cells(told["podscope.workload.kind"])
    if title == "CONTAINER ID":
        return [(text or "")[:12] or "-" for text in told["container.id"]]
    names = told["process.executable.name"]
    pids = told.get("process.pid", np.zeros(len(names), dtype=np.int64))
    return [
        f"{render.clean(name)}[{pid}]" if pid else render.clean(name)
        for name, pid in zip(names, pids, strict=True)
    ]


def _fitted(made: render.Table, width: int) -> render.Table:
    """The table with what matters least left out, so that the numbers stay on the screen."""
    made = _without(made, _DISPENSABLE, width, _SHORT_NAME)
    made = _without(made, _LAST_RESORT, width, _LEAST_NAME)
    return _cut(made, width, _LEAST_NAME)


def _without(
    made: render.Table, dispensable: tuple[str, ...], width: int, least: int
) -> render.Table:
    """The table without as many of these columns as it takes to fit, but with its first one."""
    floors = _floors(made, least)
    over = made.width - sum(made.widths) + sum(floors) - width
    room = dict(zip(made.titles[1:], floors[1:], strict=True))
    for title in dispensable:
        if over > 0 and title in room:
            over -= room[title] + render.GAP
            made = made.without(title)
    return made


def _floors(made: render.Table, least: int) -> list[int]:
    """What each column can be cut to: names to ``least``, or their title, and numbers not."""
    return [
        width if right else min(width, max(least, len(title)))
        for title, width, right in zip(made.titles, made.widths, made.right, strict=True)
    ]


def _cut(made: render.Table, width: int, least: int) -> render.Table:
    """The table with its longest names shortened, to no less than ``least``."""
    widths = made.widths
    floors = _floors(made, least)
    for _ in range(made.width - width):
        places = [place for place, floor in enumerate(floors) if widths[place] > floor]
        if not places:
            break
        widths[max(places, key=widths.__getitem__)] -= 1
    rows = [
        tuple(
            cell if right else render.shortened(cell, room)
            for cell, room, right in zip(row, widths, made.right, strict=True)
        )
        for row in made.rows
    ]
    return replace(made, rows=rows)
