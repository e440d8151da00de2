# SPDX-License-Identifier: Apache-2.0
"""``podscope requests``: the request log, one line a request."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import TYPE_CHECKING
from typing import Any
from typing import TextIO

from podscope import filters
from podscope import render
from podscope import schema
from podscope.commands import targets
from podscope.commands.http import add_filters
from podscope.commands.http import keep
from podscope.commands.http import peer_cells
from podscope.commands.http import status_cells
from podscope.commands.http import tell_lost
from podscope.commands.http import workload_cells
from podscope.commands.lifetime import Lifetime

if TYPE_CHECKING:
    import argparse

    from podscope.batch import Batch

HELP = "Show single requests as they end; what is not asked for stays in the kernel."
OUTPUTS = ("table", "json", "csv")
# What rows say of themselves on a host, and in a cluster.
_ON_HOST = schema.ON_HOST
_IN_CLUSTER = (*schema.PLAIN, "address")
# Short enough to look immediate, long enough to cost nothing.
INTERVAL_SECONDS = 0.25

# Title, width, least width on a terminal, whether it is aligned to the right.
Column = tuple[str, int, int, bool]
_COLUMNS: tuple[Column, ...] = (
    ("TIME", 15, 12, False),
    ("SIDE", 6, 6, False),
    ("POD", 34, 14, False),
    ("WORKLOAD", 20, 14, False),
    ("METHOD", 6, 6, False),
    ("HOST", 20, 12, False),
    ("PATH", 30, 16, False),
    ("STATUS", 10, 6, True),
    ("DURATION", 8, 8, True),
    ("FIRST BYTE", 10, 10, True),
    ("IN", 6, 6, True),
    ("OUT", 6, 6, True),
    ("PEER", 21, 21, False),
    ("TRACE", 32, 32, False),
)
# Where the terminal is narrow, columns are left out in this order.
_DISPENSABLE = (
    *("TRACE", "PEER", "FIRST BYTE", "IN", "OUT", "HOST", "SIDE", "WORKLOAD", "TIME", "METHOD"),
    "POD",
)
# Where it is wider than it must be, columns get more in this order, up to their width, and the
# path the rest.
_GROWING = ("PATH", "TIME", "STATUS", "POD", "WORKLOAD", "HOST")


@dataclass(frozen=True)
class Options:
    """What to show, and how: ``output`` is one of ``OUTPUTS``, ``by`` what rows can say."""

    output: str = "table"
    keep: filters.Filter = field(default_factory=filters.Filter)
    by: tuple[str, ...] = _ON_HOST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    targets.add_arguments(parser)
    parser.add_argument(
        "--errors", action="store_true", help="only errors: 5xx, for clients also 4xx, no answer"
    )
    parser.add_argument("--slower", metavar="TIME", help="only those that take longer, as 200ms")
    parser.add_argument("--sample", metavar="1/N", help="only one in N, as 1/100")
    parser.add_argument("--path", metavar="GLOB", help="only these paths, as '/api/*'")
    add_filters(parser)
    targets.add_duration(parser)
    parser.add_argument(
        "-o",
        "--output",
        choices=OUTPUTS,
        default="table",
        help="form (default: table); json is one object a line",
    )


def log_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Members of ``RequestLog`` that the flags ask for; raises UsageError."""
    wanted = keep(args)
    path = filters.glob(args.path, "--path", "/api/*")
    picky = args.errors or args.slower is not None or args.sample is not None
    return {
        "all": not picky,
        "errors": args.errors,
        "slower_ns": 0 if args.slower is None else filters.duration_ns(args.slower, "--slower"),
        "one_in": 0 if args.sample is None else filters.one_in(args.sample, "--sample"),
        "path": None if path is None else filters.kernel_glob(path),
        "sides": {"server", "client"} if wanted.side is None else {wanted.side},
        "ports": wanted.ports,
        "statuses": wanted.statuses,
    }


def run(args: argparse.Namespace) -> int:
    """Watch and show until a signal or the end of the time."""
    settings = log_settings(args)
    chosen = Options(args.output, replace(keep(args), path=args.path))
    duration = targets.duration_ns(args)
    from podscope.sources.http import RequestLog

    log = RequestLog(**settings)
    if targets.is_for_cluster(args):
        there = replace(chosen, by=_IN_CLUSTER)
        return targets.watch_cluster(
            args,
            "request",
            INTERVAL_SECONDS,
            lambda nodes: show(nodes, nodes.lost, there, sys.stdout),
            log=log,
        )
    from podscope.pipeline import watch

    with (
        Lifetime() as lifetime,
        watch(kinds=("request",), interval=INTERVAL_SECONDS, log=log) as watched,
    ):
        lifetime.begin(watched.stop, duration)
        show(watched, watched.lost, chosen, sys.stdout)
    return 0


def show(
    batches: Iterable[Batch], lost: Callable[[], Mapping[str, int]], chosen: Options, out: TextIO
) -> None:
    """Write the requests of each batch of kind ``request``.

    Args:
        batches: as they come.
        lost: what was lost since the start, by reason.
        chosen: what to show.
        out: where to write it.
    """
    requests = 0
    before: Mapping[str, int] = {}
    fields = schema.told(schema.REQUEST, chosen.by)
    lines = Lines(out, chosen.by)
    if chosen.output == "table":
        lines.begin()
    if chosen.output == "csv":
        out.write(render.csv_header(fields))
    out.flush()
    for batch in batches:
        if batch.kind != "request":
            continue
        kept = chosen.keep.apply(batch)
        requests += len(kept)
        now = dict(lost())
        news = render.moved(before, now)
        before = now
        if len(kept) == 0 and not news:
            continue
        if chosen.output == "table":
            lines.write(kept)
        else:
            out.write(_text(kept, chosen))
        if chosen.output == "json":
            out.write(render.lost_lines(news, batch.time_ns))
        out.flush()
    if chosen.output == "json":
        out.write(render.summary_line(requests, lost()))
    elif chosen.output == "csv":
        tell_lost(lost())
    else:
        out.write(f"\ntotal: {requests} shown; {render.lost_text(lost()) or 'nothing lost'}\n")


def _text(batch: Batch, chosen: Options) -> str:
    fields = schema.told(schema.REQUEST, chosen.by)
    columns = schema.read(fields, schema.request_view(batch), chosen.by)
    if chosen.output == "json":
        return render.json_lines("request", fields, columns)
    return render.csv_lines(fields, columns)


class Lines:
    """The table: whole cells; on a terminal, as much as a line of it has room for."""

    def __init__(self, out: TextIO, by: tuple[str, ...] = _ON_HOST) -> None:
        self._out = out
        self._by = by
        self._columns = tuple(one for one in _COLUMNS if "pod" in by or one[0] != "POD")
        self._titles = tuple(title for title, *_ in self._columns)
        self._width: int | None = None
        self._layout: dict[str, int] | None = None

    def begin(self) -> None:
        """Write the header, and say once what the terminal has no room for."""
        self._fit()
        shown = self._layout or self._titles
        if hidden := [title for title in self._titles if title not in shown]:
            print(f"podscope: a wider terminal shows {', '.join(hidden)}", file=sys.stderr)
        self._out.write(self._line(self._titles))

    def write(self, batch: Batch) -> None:
        """Write a line a request, after a new header if the terminal has another width now."""
        if self._fit():
            self._out.write(self._line(self._titles))
        columns = schema.read(schema.REQUEST, schema.request_view(batch), self._by)
        cells = _cells(columns)
        rows = zip(*(cells[title] for title in self._titles), strict=True)
        self._out.write("".join(map(self._line, rows)))

    def _line(self, cells: tuple[str, ...]) -> str:
        return _line(cells, self._columns, self._layout)

    def _fit(self) -> bool:
        """Whether the lines are others than before."""
        width = shutil.get_terminal_size().columns if self._out.isatty() else None
        if width == self._width:
            return False
        self._width = width
        self._layout = None if width is None else layout(width, self._columns)
        return True


def layout(width: int, columns: tuple[Column, ...] = _COLUMNS) -> dict[str, int]:
    """The columns that fit a line of ``width``, by title, and how wide each is."""
    most = {title: most for title, most, _, _ in columns}
    made = {title: least for title, _, least, _ in columns}
    for title in _DISPENSABLE:
        if _room(made, width) >= 0:
            break
        made.pop(title, None)
    for title in _GROWING:
        if title in made:
            made[title] += max(min(_room(made, width), most[title] - made[title]), 0)
    made["PATH"] = max(made["PATH"] + _room(made, width), 1)
    return made


def _room(made: Mapping[str, int], width: int) -> int:
    return width - sum(made.values()) - render.GAP * (len(made) - 1)


def _cells(columns: Mapping[str, schema.Array]) -> dict[str, list[str]]:
    """The cells of each column, by its title."""
    methods = zip(
        columns["http.request.method_original"], columns["http.request.method"], strict=True
    )
    pods = {"POD": render.cells(columns["k8s.pod.name"])} if "k8s.pod.name" in columns else {}
    return pods | {
        "TIME": _times(columns["time"]),
        "SIDE": render.cells(columns["side"]),
        "WORKLOAD": workload_cells(columns),
        "METHOD": [render.clean(original or method) for original, method in methods],
        "HOST": render.cells(columns["server.address"]),
        "PATH": _targets(columns),
        "STATUS": status_cells(columns),
        "DURATION": render.cells(columns["duration"], render.seconds),
        "FIRST BYTE": render.cells(columns["time_to_first_byte"], render.seconds),
        "IN": render.cells(columns["http.request.body.size"], render.size),
        "OUT": render.cells(columns["http.response.body.size"], render.size),
        "PEER": _peers(columns),
        "TRACE": render.cells(columns["trace_id"]),
    }


def _peers(columns: Mapping[str, schema.Array]) -> list[str]:
    """Names where there are any, else addresses with ports."""
    pairs = zip(columns["network.peer.address"], columns["network.peer.port"], strict=True)
    addresses = [_peer(address, port) for address, port in pairs]
    if "service.peer.name" not in columns:
        return addresses
    names = zip(peer_cells(columns, names=True), columns["service.peer.name"], strict=True)
    told = zip(names, addresses, strict=True)
    return [cell if name else address for (cell, name), address in told]


def _times(column: schema.Array) -> list[str]:
    """Local time of day with microseconds."""
    stamps = column.astype("datetime64[ns]").astype("int64").tolist()
    return [f"{render.clock(ns)}.{ns // 1000 % 10**6:06d}" for ns in stamps]


def _targets(columns: Mapping[str, schema.Array]) -> list[str]:
    parts = zip(
        columns["url.path"], columns["url.query"], columns["podscope.target.size"], strict=True
    )
    return [
        render.clean((path or "") + ("" if query is None else f"?{query}") + ("…" if cut else ""))
        for path, query, cut in parts
    ]


def _peer(address: str | None, port: int) -> str:
    if address is None:
        return "-"
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _line(
    cells: tuple[str, ...], columns: tuple[Column, ...], made: Mapping[str, int] | None
) -> str:
    """The cells in columns; of a layout they have no more than its widths, else they are whole."""
    shown = []
    for cell, (title, least, _, right) in zip(cells, columns, strict=True):
        if made is not None and title not in made:
            continue
        width = least if made is None else made[title]
        told = cell if made is None else _cut(cell, title, width)
        shown.append(render.padded(told, width, right=right))
    return (" " * render.GAP).join(shown).rstrip() + "\n"


def _cut(cell: str, title: str, width: int) -> str:
    # Fractions of a second can be fewer; what a status begins with is what matters.
    if title == "TIME":
        return cell[:width]
    if title == "STATUS" and len(cell) > width:
        return f"{cell[: width - 1]}…"
    return render.shortened(cell, width)
