# SPDX-License-Identifier: Apache-2.0
"""Rows of the sources beside HTTP as lines: a table, JSON or CSV, as they come."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
import shutil
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any
from typing import Protocol
from typing import TextIO

import numpy as np

from podscope import filters
from podscope import render
from podscope import schema
from podscope import schema_events
from podscope.commands import targets
from podscope.commands.http import tell_lost
from podscope.commands.lifetime import Lifetime

if TYPE_CHECKING:
    import argparse

    from podscope.batch import Batch

OUTPUTS = ("table", "json", "csv")


class Watched(Protocol):
    """What is iterated over: a watch of this host, or the agents of a cluster."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches, as they come."""

    def lost(self) -> dict[str, int]:
        """What could not be told since the start, by reason."""


Columns = Mapping[str, schema.Array]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: what stands above it.
        width: characters at least; longer cells are whole.
        cells: texts of a batch's rows, from its columns by field name.
        right: aligned to the right.
    """

    title: str
    width: int
    cells: Callable[[Columns], list[str]]
    right: bool = False


@dataclass(frozen=True)
class Shown:
    """What to show of a kind of rows, and how.

    Attributes:
        fields: its fields, for CSV's header.
        table: columns of the table.
        keep: which rows, a mask of shape (n,); None: all.
    """

    fields: Sequence[schema.Field]
    table: Sequence[Column]
    keep: Callable[[Batch], schema.Array] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that all these commands have."""
    targets.add_flags(parser)
    parser.add_argument("--workload", metavar="GLOB", help="workloads by name, as 'nginx*'")
    parser.add_argument("--duration", metavar="TIME", help="end after this time, as 30s")
    parser.add_argument(
        "-o",
        "--output",
        choices=OUTPUTS,
        default="table",
        help="form (default: table); json is one object a line",
    )


def watched(
    args: argparse.Namespace,
    kinds: tuple[str, ...],
    interval: float,
    show: Callable[[Watched], None],
    sources: Mapping[str, Any] | None = None,
) -> int:
    """Shows rows of this host or of a cluster until a signal or the end of the time.

    Args:
        kinds: of the rows.
        interval: seconds between two batches of a kind that is counted.
        show: is given what to iterate over.
        sources: options of the sources, by name.

    Returns:
        The exit code.
    """
    settings = dict(sources or {})
    if targets.is_for_cluster(args):
        from podscope.streams import Asked

        told = {name: dataclasses.asdict(one) for name, one in settings.items()}
        return targets.watch_cluster(
            args, "events", interval, show, asked=Asked(kinds, interval, told)
        )
    duration = targets.duration_ns(args)
    from podscope.pipeline import watch

    with Lifetime() as lifetime, watch(kinds, interval, sources=settings) as found:
        lifetime.begin(found.stop, duration)
        show(found)
    return 0


def workload(args: argparse.Namespace) -> str | None:
    """--workload; raises UsageError."""
    return filters.glob(args.workload, "--workload", "nginx*")


def show(
    batches: Iterable[Batch],
    lost: Callable[[], Mapping[str, int]],
    kinds: Mapping[str, Shown],
    output: str,
    out: TextIO,
    *,
    named: str | None = None,
) -> None:
    """Write the rows of each batch of some kinds.

    Args:
        batches: as they come.
        lost: what was lost since the start, by reason.
        kinds: what to show, by kind of rows; all have the same columns in the table.
        output: one of ``OUTPUTS``.
        out: where to write it.
        named: only workloads whose name matches this glob.
    """
    count = 0
    before: Mapping[str, int] = {}
    first = next(iter(kinds.values()))
    if output == "table":
        out.write(_line(first.table, [one.title for one in first.table], out))
    if output == "csv":
        out.write(render.csv_header(schema.told(first.fields, schema.ON_HOST)))
    out.flush()
    for batch in batches:
        if batch.kind not in kinds:
            continue
        shown = kinds[batch.kind]
        kept = chosen(batch, shown.keep, named)
        count += len(kept)
        now = dict(lost())
        news = render.moved(before, now)
        before = now
        if len(kept):
            out.write(_text(kept, shown, output, out))
        if output == "json":
            out.write(render.lost_lines(news, batch.time_ns))
        out.flush()
    if output == "json":
        told = {reason: number for reason, number in lost().items() if number}
        members = {"kind": "summary", "rows": count, "lost": told}
        out.write(json.dumps(members, separators=(",", ":")) + "\n")
    elif output == "csv":
        tell_lost(lost())
    else:
        out.write(f"\ntotal: {count} shown; {render.lost_text(lost()) or 'nothing lost'}\n")


def chosen(
    batch: Batch, keep: Callable[[Batch], schema.Array] | None, named: str | None = None
) -> Batch:
    """The rows that are asked for."""
    mask = np.ones(len(batch), dtype=np.bool_) if keep is None else keep(batch)
    if named is not None:
        matches = re.compile(fnmatch.translate(named)).match
        wanted = [bool(matches(identity.name)) for identity in batch.identities]
        mask &= np.array([*wanted, False])[batch.identity]
    return batch.where(mask)


def _text(batch: Batch, shown: Shown, output: str, out: TextIO) -> str:
    columns = schema_events.columns(batch)
    if output == "json":
        return render.json_lines(batch.kind, shown.fields, columns)
    if output == "csv":
        return render.csv_lines(shown.fields, columns)
    rows = zip(*(one.cells(columns) for one in shown.table), strict=True)
    return "".join(_line(shown.table, row, out) for row in rows)


def _line(table: Sequence[Column], cells: Sequence[str], out: TextIO) -> str:
    padded = (
        render.padded(cell, one.width, right=one.right)
        for cell, one in zip(cells, table, strict=True)
    )
    line = (" " * render.GAP).join(padded).rstrip()
    if out.isatty():
        line = line[: shutil.get_terminal_size().columns]
    return line + "\n"


# --- cells that several tables have --------------------------------------------------------------


def times(columns: Columns) -> list[str]:
    """Local time of day with milliseconds."""
    stamps = columns["time"].astype("datetime64[ns]").astype("int64").tolist()
    return [f"{render.clock(ns)}.{ns // 10**6 % 1000:03d}" for ns in stamps]


def workloads(columns: Columns) -> list[str]:
    """The pod with its namespace, or what the host calls it; with the process."""
    names, pids = columns["service.name"].tolist(), columns["process.pid"].tolist()
    pods = columns.get("k8s.pod.name", [None] * len(names))
    spaces = columns.get("k8s.namespace.name", [None] * len(names))
    told = (
        f"{space}/{pod}" if pod else name
        for name, pod, space in zip(names, pods, spaces, strict=True)
    )
    return [
        f"{render.clean(name)}[{pid}]" if pid else render.clean(name)
        for name, pid in zip(told, pids, strict=True)
    ]


def plain(name: str) -> Callable[[Columns], list[str]]:
    """Texts, or numbers as they are; ``-`` where there is none."""
    return lambda columns: render.cells(columns[name])


def peers(columns: Columns) -> list[str]:
    """Who is at the other end, by name where it has one, else by address; with the port."""
    names = columns.get("service.peer.name", [None] * len(columns["time"]))
    pods = columns.get("podscope.peer.pod.name", names)
    spaces = columns.get("service.peer.namespace", names)
    ends = zip(
        names, pods, spaces, columns["network.peer.address"], columns["network.peer.port"],
        strict=True,
    )  # fmt: skip
    return [
        f"{space}/{pod or name}:{port}" if space else endpoint(address, port)
        for name, pod, space, address, port in ends
    ]


def peer_names(columns: Columns) -> list[str]:
    """Who is at the other end, by name where it has one, else by address."""
    addresses = columns["network.peer.address"].tolist()
    names = columns.get("service.peer.name", [None] * len(addresses))
    spaces = columns.get("service.peer.namespace", [None] * len(addresses))
    return [
        render.clean(f"{space}/{name}" if space else name or address or "-")
        for name, space, address in zip(names, spaces, addresses, strict=True)
    ]


def numbers(name: str) -> Callable[[Columns], list[str]]:
    """Numbers as they are, 0 too."""
    return lambda columns: [str(number) for number in columns[name].tolist()]


def durations(name: str) -> Callable[[Columns], list[str]]:
    """Seconds for people."""
    return lambda columns: render.cells(columns[name], render.seconds)


def sizes(name: str) -> Callable[[Columns], list[str]]:
    """Bytes for people."""
    return lambda columns: render.cells(columns[name], render.size)


def endpoints(address: str, port: str) -> Callable[[Columns], list[str]]:
    """Addresses with their ports."""

    def cells(columns: Columns) -> list[str]:
        pairs = zip(columns[address].tolist(), columns[port].tolist(), strict=True)
        return [endpoint(host, number) for host, number in pairs]

    return cells


def endpoint(address: str | None, port: int) -> str:
    """``127.0.0.1:80``, ``[::1]:80`` or ``-``."""
    if address is None:
        return "-"
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
