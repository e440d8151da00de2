# SPDX-License-Identifier: Apache-2.0
"""What sinks make of whole columns."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from itertools import repeat
from typing import Any
from typing import AnyStr
from typing import TypeAlias
from typing import TypeVar

import numpy as np

from podscope.schema import Array

Encode = Callable[[Array], Sequence[AnyStr]]


def is_constant(column: Array) -> bool:
    """Whether all values are the same; of most columns of a delivery they are."""
    if column.strides == (0,):
        return True
    first = column[:1]
    if column.dtype.kind == "f" and np.isnan(first).all():
        return bool(np.isnan(column).all())
    return bool((column == first).all())


def is_repeated(items: Sequence[Hashable]) -> bool:
    """Whether most values come several times, as far as the first ones tell."""
    some = items[:64]
    return len({*some}) * 4 <= len(some)


def apart(
    columns: Iterable[tuple[Array, Encode[AnyStr]]],
) -> tuple[list[AnyStr], list[Sequence[AnyStr]]]:
    """Encodes columns: those that are the same in all rows once.

    Args:
        columns: one row at least; each with what makes a text or bytes of each value.

    Returns:
        What all rows have, without what is empty, and the lists of what differs.
    """
    fixed: list[AnyStr] = []
    varying: list[Sequence[AnyStr]] = []
    for column, encode in columns:
        if is_constant(column):
            fixed += filter(None, encode(column[:1]))
        else:
            varying.append(encode(column))
    return fixed, varying


def joined(parts: Sequence[Sequence[AnyStr]], count: int, empty: AnyStr) -> list[AnyStr]:
    """The parts of each row as one."""
    return [empty.join(row) for row in zip(*parts, strict=True)] if parts else [empty] * count


# --- rows as parts that stand one behind the other ----------------------------------------------

# A text or bytes that all rows have there, or a list with that of each row.
Part: TypeAlias = AnyStr | list[AnyStr]
Value = TypeVar("Value", bound=Hashable)


def in_rows(parts: Sequence[Part[AnyStr]], count: int, empty: AnyStr) -> Iterator[Iterable[AnyStr]]:
    """The parts of each row, neighbours that all rows have as one."""
    merged = _merged(parts, empty)
    return zip(
        *(part if isinstance(part, list) else repeat(part, count) for part in merged), strict=True
    )


def whole(parts: Sequence[Part[AnyStr]], count: int, empty: AnyStr) -> AnyStr:
    """All rows one behind the other, put together at once."""
    merged = _merged(parts, empty)
    every = [empty if isinstance(part, list) else part for part in merged] * count
    for place, part in enumerate(merged):
        if isinstance(part, list):
            every[place :: len(merged)] = part
    return empty.join(every)


def _merged(parts: Sequence[Part[AnyStr]], empty: AnyStr) -> list[Part[AnyStr]]:
    """The same parts, neighbours that all rows have as one."""
    merged: list[Any] = []
    same: list[Any] = []
    for part in (*parts, None):
        if part is not None and not isinstance(part, list):
            same.append(part)
            continue
        if same:
            merged.append(empty.join(same))
            same = []
        if part is not None:
            merged.append(part)
    return merged


def same_last(members: Iterable[Sequence[Part[AnyStr]]]) -> list[Part[AnyStr]]:
    """The parts of members in an order in which rows have the fewest: what all have, at the end."""
    first: list[Part[AnyStr]] = []
    last: list[Part[AnyStr]] = []
    for member in members:
        differs = any(isinstance(part, list) for part in member)
        (first if differs else last).extend(member)
    return first + last


def rounded(column: Array) -> Array:
    """Floats without the digits below a billionth, which durations do not have."""
    with np.errstate(over="ignore", invalid="ignore"):
        made = np.round(column, 9)
    return np.where(np.isfinite(made), made, column)


def numbers(column: Array) -> list[bytes]:
    """Numbers as Python writes them, made at once."""
    return str(column.tolist())[1:-1].encode().split(b", ")


def made_once(items: list[Value], make: Callable[[Value], AnyStr]) -> list[AnyStr]:
    """What is made of each item; of what comes again, once."""
    made = {item: make(item) for item in set(items)}
    return list(map(made.__getitem__, items))
