# SPDX-License-Identifier: Apache-2.0
"""From the kernel's records to rows: which members are told."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt


def members(record: np.dtype[Any], without: Collection[str] = ()) -> list[tuple[str, Any]]:
    """Name and dtype of each member that says something.

    Args:
        record: a structured dtype.
        without: members that are not told, beside padding and numbers of pieces.
    """
    left_out = {"pad", "chunk", *without}
    return [(name, record[name]) for name in record.names or () if name not in left_out]


def fill(rows: npt.NDArray[Any], records: npt.NDArray[Any]) -> None:
    """Copies each member that both have, of structured arrays of one shape."""
    for name in rows.dtype.names or ():
        if name in (records.dtype.names or ()):
            rows[name] = records[name]
