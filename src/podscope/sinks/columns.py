# SPDX-License-Identifier: Apache-2.0
"""What sinks make of whole columns."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import AnyStr

import numpy as np

from podscope.schema import Array

Encode = Callable[[Array], Sequence[AnyStr]]


def is_constant(column: Array) -> bool:
    """Whether all values are the same; of most columns of a delivery they are."""
    first = column[:1]
    if column.dtype.kind == "f" and np.isnan(first).all():
        return bool(np.isnan(column).all())
    return bool((column == first).all())


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
