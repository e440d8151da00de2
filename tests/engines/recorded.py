# SPDX-License-Identifier: Apache-2.0
"""Batches of a recorded run (see record.py), at whatever time a test wants them."""

from __future__ import annotations

import functools
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from podscope import red
from podscope import wire
from podscope.batch import Batch
from podscope.sources import source as sources

FILE = Path(__file__).with_name("recorded.bin")


@functools.cache
def recorded() -> tuple[Batch, ...]:
    """One batch of each kind, as it was recorded."""
    found = []
    for batch in wire.frames(io.BytesIO(FILE.read_bytes()).read):
        known = batch.kind in sources.kinds()
        found.append(replace(batch, fields=sources.fields_of(batch.kind)) if known else batch)
    return tuple(found)


def batches(time_ns: int) -> tuple[Batch, ...]:
    """The run, its last event and the end of its interval at this time."""
    return tuple(_at(batch, time_ns) for batch in recorded())


def _at(batch: Batch, time_ns: int) -> Batch:
    if "time_ns" not in (batch.rows.dtype.names or ()):
        return replace(batch, time_ns=time_ns)
    last = int(batch.rows["time_ns"].astype(np.int64).max())
    return replace(batch, time_ns=time_ns, clock_offset_ns=time_ns - last)


def quantile(counts: npt.NDArray[np.uint64], share: float) -> float:
    """Of counts at the classic bounds, shape (15,): a line between two, as Prometheus draws it."""
    cumulative = counts.cumsum()
    rank = share * cumulative[-1]
    place = int(np.searchsorted(cumulative, rank))
    before = float(cumulative[place - 1]) if place else 0.0
    bounds = (0.0, *red.CLASSIC_BOUNDS)
    part = (rank - before) / (float(cumulative[place]) - before)
    return bounds[place] + part * (bounds[place + 1] - bounds[place])


def traced() -> list[dict[str, Any]]:
    """Rows that scripts printed, each with its script."""
    return [json.loads(line) for line in FILE.with_name("traced.jsonl").open()]
