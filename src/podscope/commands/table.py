# SPDX-License-Identifier: Apache-2.0
"""Tables of what is counted each interval: live on a terminal, else one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import TextIO

from podscope import render
from podscope import schema
from podscope import schema_events
from podscope.commands.http import tell_lost
from podscope.commands.rows import Columns
from podscope.commands.rows import Shown
from podscope.commands.rows import chosen

if TYPE_CHECKING:
    from podscope.batch import Batch


@dataclass(frozen=True)
class View:
    """How rows of one kind are shown.

    Attributes:
        kind: of the rows.
        shown: its fields and columns, and which rows.
        order: positions of the rows, most important first, from the columns by field name.
        title: the first line of a live table.
        dispensable: titles of columns that are left out where the terminal is narrow, in this
            order.
        output: ``table``, ``json`` or ``csv``.
        once: end after one interval.
        named: only workloads whose name matches this glob.
    """

    kind: str
    shown: Shown
    order: Callable[[Columns], schema.Array]
    title: str
    dispensable: tuple[str, ...] = ()
    output: str = "table"
    once: bool = False
    named: str | None = None


def show(
    batches: Iterable[Batch], lost: Callable[[], Mapping[str, int]], chosen_view: View, out: TextIO
) -> None:
    """Write what each batch says, until they end."""
    told = (
        (batch, _columns(batch, chosen_view)) for batch in batches if batch.kind == chosen_view.kind
    )
    if chosen_view.output != "table":
        _show_lines(told, lost, chosen_view, out)
    elif render.Screen.fits(out) and not chosen_view.once:
        _show_screen(told, lost, chosen_view, out)
    else:
        _show_tables(told, lost, chosen_view, out)


def _columns(batch: Batch, view: View) -> dict[str, schema.Array]:
    kept = chosen(batch, view.shown.keep, view.named)
    columns = schema_events.columns(kept)
    places = view.order(columns)
    return {name: column[places] for name, column in columns.items()}


def _show_lines(
    told: Iterable[tuple[Batch, dict[str, schema.Array]]],
    lost: Callable[[], Mapping[str, int]],
    view: View,
    out: TextIO,
) -> None:
    count = 0
    before: Mapping[str, int] = {}
    for number, (batch, columns) in enumerate(told):
        now = dict(lost())
        if view.output == "csv":
            out.write(render.csv_lines(view.shown.fields, columns, header=number == 0))
        else:
            out.write(render.json_lines(view.kind, view.shown.fields, columns))
            out.write(render.lost_lines(render.moved(before, now), batch.time_ns))
        out.flush()
        before = now
        count += len(columns["time"])
        if view.once:
            break
    if view.output == "csv":
        tell_lost(lost())
        return
    gone = {reason: lose for reason, lose in lost().items() if lose}
    members = {"kind": "summary", "rows": count, "lost": gone}
    out.write(json.dumps(members, separators=(",", ":")) + "\n")


def _show_tables(
    told: Iterable[tuple[Batch, dict[str, schema.Array]]],
    lost: Callable[[], Mapping[str, int]],
    view: View,
    out: TextIO,
) -> None:
    for number, (_, columns) in enumerate(told):
        lines = render.table_lines(_table(columns, view))
        out.write("\n" * bool(number) + "".join(f"{line}\n" for line in lines))
        out.flush()
        if view.once:
            break
    out.write(f"\n{render.lost_text(lost()) or 'nothing lost'}\n")


def _show_screen(
    told: Iterable[tuple[Batch, dict[str, schema.Array]]],
    lost: Callable[[], Mapping[str, int]],
    view: View,
    out: TextIO,
) -> None:
    with render.Screen(out) as screen:
        screen.draw([view.title, "watching"])
        for batch, columns in told:
            whole = _table(columns, view)
            made = _fitted(whole, view.dispensable, screen.width)
            head = [view.title, render.clock(batch.time_ns), f"{len(columns['time'])} rows"]
            if hidden := [title for title in whole.titles if title not in made.titles]:
                head.append(f"a wider terminal shows {', '.join(hidden)}")
            gone = render.lost_text(lost())
            lines = render.folded([*head, *([gone] if gone else [])], screen.width)
            screen.draw([*lines, "", *render.table_lines(made, colour=screen.colour)])


def _fitted(made: render.Table, dispensable: tuple[str, ...], width: int) -> render.Table:
    """The table with as many columns left out as it takes to fit."""
    for title in dispensable:
        if made.width <= width:
            break
        made = made.without(title)
    return made


def _table(columns: Columns, view: View) -> render.Table:
    cells = [one.cells(columns) for one in view.shown.table]
    return render.Table(
        titles=tuple(one.title for one in view.shown.table),
        right=tuple(one.right for one in view.shown.table),
        rows=list(zip(*cells, strict=True)),
    )
