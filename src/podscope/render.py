# SPDX-License-Identifier: Apache-2.0
"""Text forms of columns: JSON lines, CSV, plain tables, and a table that redraws itself."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import shutil
import signal
import time
import unicodedata
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from typing import TYPE_CHECKING
from typing import Any
from typing import TextIO

import numpy as np

if TYPE_CHECKING:
    from types import FrameType
    from types import TracebackType

    from podscope.schema import Array
    from podscope.schema import Field

_BOLD = "\x1b[1m"
_RED = "\x1b[31m"
_DIM = "\x1b[2m"
_PLAIN = "\x1b[0m"
# Blanks between two columns.
GAP = 2
# DEC private modes: 1049 alternate screen, 25 cursor, 7 wrap of long lines.
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
# Before the line: after one as wide as the terminal it would clear the last character.
_CLEAR_LINE = "\x1b[K"
_CLEAR_BELOW = "\x1b[J"


def json_lines(kind: str, fields: Sequence[Field], columns: Mapping[str, Array]) -> str:
    """One JSON object a line, each ended by a newline; fields that do not apply are left out.

    Args:
        kind: value of the key ``kind``.
        fields: the fields of the columns, in the order of the keys.
        columns: shape (n,) each, by field name, from ``schema.read``.
    """
    shown = [field for field in fields if field.name in columns]
    if not shown:
        return ""
    parts: list[list[str]] = []
    place = 0
    while place < len(shown):
        parent = shown[place].path[0]
        inside = [field for field in shown[place:] if field.path[0] == parent]
        members = [_json_members(field, columns[field.name]) for field in inside]
        nested = len(shown[place].path) > 1
        parts.append(_json_object(parent, members) if nested else members[0])
        place += len(inside) if nested else 1
    start = f'{{"kind":{json.dumps(kind)},'
    rows = (",".join(filter(None, row)) for row in zip(*parts, strict=True))
    return "".join(f"{start}{row}}}\n" for row in rows)


def _json_object(name: str, members: list[list[str]]) -> list[str]:
    rows = (",".join(filter(None, row)) for row in zip(*members, strict=True))
    return [f'"{name}":{{{row}}}' for row in rows]


def _json_members(field: Field, column: Array) -> list[str]:
    """``"key":value`` for each entry, empty where the field does not apply."""
    key = json.dumps(field.path[-1]) + ":"
    if field.type == "text":
        # Few texts are distinct: quote each once.
        quoted = {text: key + json.dumps(text) for text in set(column.tolist()) if text is not None}
        return [quoted.get(text, "") for text in column.tolist()]
    if field.type == "time":
        return [f'{key}"{text}"' for text in rfc3339(column)]
    return [key + text if text else "" for text in _numbers(field, column)]


def _numbers(field: Field, column: Array) -> list[str]:
    if field.type == "int":
        blank = "" if field.blank else "0"
        return [str(number) if number else blank for number in column.tolist()]
    return ["" if math.isnan(number) else repr(number) for number in np.round(column, 9).tolist()]


def rfc3339(times: Array) -> list[str]:
    """RFC 3339 texts, UTC, nanoseconds, of ``datetime64[ns]``."""
    texts: list[str] = np.datetime_as_string(times.astype("datetime64[ns]")).tolist()
    return [text + "Z" for text in texts]


def csv_header(fields: Sequence[Field]) -> str:
    """The first line of CSV: names of fields."""
    return ",".join(field.name for field in fields) + "\n"


def csv_lines(
    fields: Sequence[Field], columns: Mapping[str, Array], *, header: bool = False
) -> str:
    """Comma-separated values (RFC 4180 but for the line ends); empty where a field is absent."""
    shown = [field for field in fields if field.name in columns]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        text.write(csv_header(shown))
    cells = [_csv_cells(field, columns[field.name]) for field in shown]
    writer.writerows(zip(*cells, strict=True))
    return text.getvalue()


def _csv_cells(field: Field, column: Array) -> list[str]:
    if field.type == "text":
        return ["" if text is None else text for text in column.tolist()]
    if field.type == "time":
        return rfc3339(column)
    return _numbers(field, column)


def lost_lines(lost: Mapping[str, int], time_ns: int) -> str:
    """JSON lines of kind ``lost``: what was lost in an interval that ended at ``time_ns``."""
    when = rfc3339(np.array([time_ns], dtype="datetime64[ns]"))[0]
    return "".join(
        _json_line({"kind": "lost", "time": when, "reason": reason, "count": count})
        for reason, count in lost.items()
        if count
    )


def summary_line(requests: int, lost: Mapping[str, int]) -> str:
    """The last JSON line of a run."""
    told = {reason: count for reason, count in lost.items() if count}
    return _json_line({"kind": "summary", "requests": requests, "lost": told})


def _json_line(members: dict[str, object]) -> str:
    return json.dumps(members, separators=(",", ":")) + "\n"


def lost_text(lost: Mapping[str, int]) -> str:
    """``lost: joined 3, ring_full 12``; empty if nothing was lost."""
    told = [f"{reason} {count}" for reason, count in lost.items() if count]
    return f"lost: {', '.join(told)}" if told else ""


def moved(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """What each counter of losses grew by, where it did."""
    grown = {reason: count - before.get(reason, 0) for reason, count in now.items()}
    return {reason: count for reason, count in grown.items() if count > 0}


def seconds(value: float) -> str:
    """A duration for people: ``850µs``, ``1.25ms``, ``2.50s``, ``3m05s``."""
    if math.isnan(value):
        return "-"
    if value < 0.9995e-3:
        return f"{value * 1e6:.0f}µs"
    if value < 0.9995:
        return f"{_three_digits(value * 1e3)}ms"
    if value < 59.95:
        return f"{_three_digits(value)}s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes}m{rest:02d}s"


def number(value: float) -> str:
    """A count or rate for people: ``0``, ``12.3``, ``4.56k``, ``7.89M``."""
    if value == 0:
        return "0"
    for limit, unit in ((999.5, ""), (999.5e3, "k"), (999.5e6, "M")):
        if value < limit:
            return _three_digits(value / (limit / 999.5)) + unit
    return _three_digits(value / 1e9) + "G"


def size(value: float) -> str:
    """Bytes for people, in powers of 1000: ``0B``, ``612B``, ``1.25MB``."""
    if value < 999.5:
        return f"{value:.0f}B"
    return number(value) + "B"


def share(value: float) -> str:
    """A share of one as per cent; never ``0%`` or ``100%`` unless it is."""
    if value <= 0:
        return "0%"
    if value < 0.0001:
        return "<0.01%"
    if 0.999 < value < 1:
        return ">99.9%"
    return f"{_three_digits(value * 100)}%"


def _three_digits(value: float) -> str:
    if value < 9.995:
        return f"{value:.2f}"
    if value < 99.95:
        return f"{value:.1f}"
    return f"{value:.0f}"


def clean(text: object) -> str:
    """A text that cannot move the cursor: what does not print is escaped; ``-`` for none."""
    if text is None or text == "":
        return "-"
    told = str(text)
    if told.isprintable():
        return told
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in told)


def shortened(text: str, width: int) -> str:
    """At most ``width`` columns, one at least; the middle of what is longer is left out."""
    if text_width(text) <= width:
        return text
    head = max(width - 1, 0) // 2
    tail = max(width - 1, 0) - head
    return f"{_beginning(text, head)}…{_beginning(text[::-1], tail)[::-1]}"


def _beginning(text: str, width: int) -> str:
    if text.isascii():
        return text[:width]
    widths = itertools.accumulate(map(text_width, text))
    return text[: sum(one <= width for one in widths)]


def text_width(text: str) -> int:
    """Columns of a terminal that a text takes: two for a wide character, none for a mark on one."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(unicodedata.category(one) in ("Mn", "Me") for one in text)


def padded(text: str, width: int, *, right: bool) -> str:
    """The text with blanks up to ``width`` columns: before it, where ``right``, or after it."""
    blanks = " " * (width - text_width(text))
    return blanks + text if right else text + blanks


@dataclass(frozen=True)
class Table:
    """Cells as texts.

    Attributes:
        titles: one a column.
        right: whether the column is aligned to the right.
        rows: one text a column each.
        alert: column that is red where its cell is not ``0%`` or ``-``; None for none.
    """

    titles: tuple[str, ...]
    right: tuple[bool, ...]
    rows: Sequence[Sequence[str]]
    alert: int | None = None

    @property
    def widths(self) -> list[int]:
        """Characters of each column."""
        return [
            max([len(title), *(text_width(row[place]) for row in self.rows)])
            for place, title in enumerate(self.titles)
        ]

    @property
    def width(self) -> int:
        """Characters of a line."""
        return sum(self.widths) + GAP * (len(self.titles) - 1)

    def without(self, title: str) -> Table:
        """The table without the column of this title, if it has one."""
        if title not in self.titles:
            return self
        place = self.titles.index(title)
        alert = self.alert
        if alert is not None and alert >= place:
            alert = alert - 1 if alert > place else None
        return replace(
            self,
            alert=alert,
            titles=(*self.titles[:place], *self.titles[place + 1 :]),
            right=(*self.right[:place], *self.right[place + 1 :]),
            rows=[(*row[:place], *row[place + 1 :]) for row in self.rows],
        )


def table_lines(table: Table, *, colour: bool = False) -> list[str]:
    """A header line and one line a row, in columns two spaces apart."""
    widths = table.widths
    header = _joined(_padded(table.titles, widths, table.right))
    lines = [f"{_BOLD}{header}{_PLAIN}" if colour else header]
    for row in table.rows:
        cells = _padded(row, widths, table.right)
        if colour and table.alert is not None and row[table.alert] not in ("0%", "-"):
            cells[table.alert] = f"{_RED}{cells[table.alert]}{_PLAIN}"
        lines.append(_joined(cells))
    return lines


def _padded(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    return [
        padded(cell, width, right=to_right)
        for cell, width, to_right in zip(row, widths, right, strict=True)
    ]


def _joined(cells: Iterable[str]) -> str:
    return (" " * GAP).join(cells).rstrip()


def folded(parts: Iterable[str], width: int | None, gap: str = " " * GAP) -> list[str]:
    """The parts in as many lines of ``width`` as they need, never cut; None: in one line."""
    lines: list[str] = []
    for part in parts:
        joined = f"{lines[-1]}{gap}{part}" if lines else part
        if lines and (width is None or len(joined.rstrip()) <= width):
            lines[-1] = joined
        else:
            lines.append(part)
    return [line.rstrip() for line in lines]


def clock(time_ns: int) -> str:
    """Local time of day, for people."""
    return time.strftime("%H:%M:%S", time.localtime(time_ns // 10**9))


class Screen:
    """A terminal that shows one frame at a time and keeps the last one at the end.

    Escape sequences of ECMA-48, written as one string a frame: it costs a hundredth of what a
    layout library takes, and podscope must stay below one per cent of a core. A signal that stops
    or ends the process (Ctrl-Z, Ctrl-\\) gives the terminal back first, and in the background
    nothing is drawn: the terminal is the shell's then. Use it in the main thread.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal: int | None = None
        self._drawn = False
        self._last: list[str] = []
        self._before: list[tuple[signal.Signals, Any]] = []
        self.colour = "NO_COLOR" not in os.environ

    @staticmethod
    def fits(out: TextIO) -> bool:
        """Whether ``out`` is a terminal that can redraw."""
        return out.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def __enter__(self) -> Screen:
        self._out.flush()
        self._terminal = self._out.fileno() if self._out.isatty() else None
        if self._terminal is not None:
            self._catch(signal.SIGTSTP, self._give_back)
            self._catch(signal.SIGQUIT, self._give_back)
            self._catch(signal.SIGCONT, self._redraw)
        self._paint()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)
        self._leave()
        self._write("".join(f"{line}\n" for line in self._last))

    @property
    def height(self) -> int:
        """Lines of the terminal."""
        return shutil.get_terminal_size().lines

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return shutil.get_terminal_size().columns

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines in place of the last ones; what does not fit is cut."""
        self._last = list(lines)[: self.height - 1]
        self._paint()

    def _paint(self) -> None:
        if not self._is_in_foreground():
            return
        frame = "".join(f"{_CLEAR_LINE}{line}\r\n" for line in self._last)
        # Before the text goes out: a signal may come in the midst of it.
        start, self._drawn = "" if self._drawn else _ENTER, True
        self._write(start + _HOME + frame + _CLEAR_BELOW)

    def _leave(self) -> None:
        if self._drawn:
            self._drawn = False
            self._write(_LEAVE)

    def _write(self, text: str) -> None:
        if self._terminal is None:
            self._out.write(text)
            self._out.flush()
            return
        # Not by the stream: a handler must not enter a buffered write that its signal interrupted.
        left = text.encode(self._out.encoding, "replace")
        while left:
            left = left[os.write(self._terminal, left) :]

    def _is_in_foreground(self) -> bool:
        if self._terminal is None:
            return True
        try:
            group = os.tcgetpgrp(self._terminal)
        except OSError:  # a terminal without jobs
            return True
        return group in (0, os.getpgrp())  # 0: a group of another PID namespace

    def _catch(self, number: signal.Signals, handler: Any) -> None:
        if signal.getsignal(number) is not signal.SIG_IGN:
            self._before.append((number, signal.signal(number, handler)))

    def _give_back(self, number: int, frame: FrameType | None) -> None:
        """Leave the screen, then let the signal do what it does."""
        self._leave()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        # Here only if it stopped the process, and that was continued.
        signal.signal(number, self._give_back)
        self._paint()

    def _redraw(self, number: int, frame: FrameType | None) -> None:
        """Whoever had the terminal meanwhile may have left anything on it."""
        self._drawn = False
        self._paint()


def dim(text: str, *, colour: bool) -> str:
    """Text in the background, where there is colour."""
    return f"{_DIM}{text}{_PLAIN}" if colour else text


def cells(column: Array, text: Any = clean) -> list[str]:
    """A column as texts."""
    return [text(item) for item in column.tolist()]
