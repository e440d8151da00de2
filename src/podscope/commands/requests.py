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
from podscope.commands.http import add_filters
from podscope.commands.http import duration_ns
from podscope.commands.http import keep
from podscope.commands.http import status_cells
from podscope.commands.http import tell_lost
from podscope.commands.http import workload_cells
from podscope.commands.lifetime import Lifetime

if TYPE_CHECKING:
    import argparse

    from podscope.batch import Batch

HELP = "Show single requests as they end; what is not asked for stays in the kernel."
OUTPUTS = ("table", "json", "csv")
_FIELDS = schema.told(schema.REQUEST, schema.ON_HOST)
# Short enough to look immediate, long enough to cost nothing.
INTERVAL_SECONDS = 0.25

# Title, width, least width on a terminal, whether it is aligned to the right.
_COLUMNS = (
    ("TIME", 15, 12, False),
    ("SIDE", 6, 6, False),
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
_TITLES = tuple(title for title, _, _, _ in _COLUMNS)
# Where the terminal is narrow, columns are left out in this order.
_DISPENSABLE = (
    *("TRACE", "PEER", "FIRST BYTE", "IN", "OUT", "HOST", "SIDE", "TIME", "METHOD", "WORKLOAD"),
)
# Where it is wider than it must be, columns get more in this order, up to their width, and the
# path the rest.
_GROWING = ("PATH", "TIME", "STATUS", "WORKLOAD", "HOST")


@dataclass(frozen=True)
class Options:
    """What to show, and how: ``output`` is one of ``OUTPUTS``."""

    output: str = "table"
    keep: filters.Filter = field(default_factory=filters.Filter)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--errors", action="store_true", help="only errors: 5xx, for clients also 4xx, no answer"
    )
    parser.add_argument("--slower", metavar="TIME", help="only those that take longer, as 200ms")
    parser.add_argument("--sample", metavar="1/N", help="only one in N, as 1/100")
    parser.add_argument("--path", metavar="GLOB", help="only these paths, as '/api/*'")
    add_filters(parser)
    parser.add_argument("--duration", metavar="TIME", help="end after this time, as 30s")
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
    duration = duration_ns(args)
    from podscope.pipeline import watch
    from podscope.sources.http import RequestLog

    with (
        Lifetime() as lifetime,
        watch(kinds=("request",), interval=INTERVAL_SECONDS, log=RequestLog(**settings)) as watched,
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
    lines = Lines(out)
    if chosen.output == "table":
        lines.begin()
    if chosen.output == "csv":
        out.write(render.csv_header(_FIELDS))
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
            out.write(_text(kept, chosen.output))
        if chosen.output == "json":
            out.write(render.lost_lines(news, batch.time_ns))
        out.flush()
    if chosen.output == "json":
        out.write(render.summary_line(requests, lost()))
    elif chosen.output == "csv":
        tell_lost(lost())
    else:
        out.write(f"\ntotal: {requests} shown; {render.lost_text(lost()) or 'nothing lost'}\n")


def _text(batch: Batch, output: str) -> str:
    columns = schema.read(_FIELDS, schema.request_view(batch), schema.ON_HOST)
    if output == "json":
        return render.json_lines("request", _FIELDS, columns)
    return render.csv_lines(_FIELDS, columns)


class Lines:
    """The table: whole cells; on a terminal, as much as a line of it has room for."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._width: int | None = None
        self._layout: dict[str, int] | None = None

    def begin(self) -> None:
        """Write the header, and say once what the terminal has no room for."""
        self._fit()
        if hidden := [title for title in _TITLES if title not in (self._layout or _TITLES)]:
            print(f"podscope: a wider terminal shows {', '.join(hidden)}", file=sys.stderr)
        self._out.write(_line(_TITLES, self._layout))

    def write(self, batch: Batch) -> None:
        """Write a line a request, after a new header if the terminal has another width now."""
        if self._fit():
            self._out.write(_line(_TITLES, self._layout))
        columns = schema.read(_FIELDS, schema.request_view(batch), schema.ON_HOST)
        self._out.write("".join(_line(row, self._layout) for row in _rows(columns)))

    def _fit(self) -> bool:
        """Whether the lines are others than before."""
        width = shutil.get_terminal_size().columns if self._out.isatty() else None
        if width == self._width:
            return False
        self._width = width
        self._layout = None if width is None else layout(width)
        return True


def layout(width: int) -> dict[str, int]:
    """The columns that fit a line of ``width``, by title, and how wide each is."""
    most = {title: most for title, most, _, _ in _COLUMNS}
    made = {title: least for title, _, least, _ in _COLUMNS}
    for title in _DISPENSABLE:
        if _room(made, width) >= 0:
            break
        del made[title]
    for title in _GROWING:
        if title in made:
            made[title] += max(min(_room(made, width), most[title] - made[title]), 0)
    made["PATH"] = max(made["PATH"] + _room(made, width), 1)
    return made


def _room(made: Mapping[str, int], width: int) -> int:
    return width - sum(made.values()) - render.GAP * (len(made) - 1)


def _rows(columns: Mapping[str, schema.Array]) -> Iterable[tuple[str, ...]]:
    methods = zip(
        columns["http.request.method_original"], columns["http.request.method"], strict=True
    )
    peers = zip(columns["network.peer.address"], columns["network.peer.port"], strict=True)
    return zip(
        _times(columns["time"]),
        render.cells(columns["side"]),
        workload_cells(columns),
        [render.clean(original or method) for original, method in methods],
        render.cells(columns["server.address"]),
        _targets(columns),
        status_cells(columns),
        render.cells(columns["duration"], render.seconds),
        render.cells(columns["time_to_first_byte"], render.seconds),
        render.cells(columns["http.request.body.size"], render.size),
        render.cells(columns["http.response.body.size"], render.size),
        [_peer(address, port) for address, port in peers],
        render.cells(columns["trace_id"]),
        strict=True,
    )


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


def _line(cells: tuple[str, ...], made: Mapping[str, int] | None) -> str:
    """The cells in columns; of a layout they have no more than its widths, else they are whole."""
    shown = []
    for cell, (title, least, _, right) in zip(cells, _COLUMNS, strict=True):
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
