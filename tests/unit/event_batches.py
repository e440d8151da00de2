# SPDX-License-Identifier: Apache-2.0
"""Batches of the sources beside HTTP, with the dtypes of the real records (no root needed)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import records

import podscope
from podscope.batch import Batch
from podscope.batch import Identity
from podscope.kernel import btf
from podscope.sources import dns
from podscope.sources import listen
from podscope.sources import oom
from podscope.sources.records import members
from podscope.sources.source import fields_of

BUILT = Path(podscope.__file__).parent / "_bpf"
SERVER, CLIENT = 1, 2


def _types(name: str) -> btf.Btf:
    built = BUILT / f"{name}.bpf.o"
    if not built.exists():
        pytest.skip(f"{built.name} is not compiled: run `make bpf`")
    return btf.read_elf(built)


def dtype(kind: str) -> np.dtype:
    """The dtype of the rows that the source gives."""
    types = _types(kind)
    if kind == "oom":
        return oom.row_dtype(types.dtype("oom_kill"))
    if kind == "listen":
        told = members(types.dtype("listen_row"), listen.COUNTERS)
        return np.dtype([*told, ("overflows", "i8"), ("event", "u1")])
    more = [] if kind == "tcp" else [("text", f"S{dns.TEXT_BYTES}")]
    return np.dtype(
        [
            *members(types.dtype(f"{kind}_key")),
            *members(types.dtype(f"{kind}_sums")),
            ("buckets", types.dtype(f"{kind}_row")["buckets"]),
            ("peer_class", "u1"),
            *more,
        ]
    )


def batch(
    kind: str,
    *rows: dict[str, object],
    whose: Sequence[Identity] = (records.WEB_A,),
    seconds: float = 0.0,
    **more: object,
) -> Batch:
    """A batch with the members given; row i is whose[i], the last one's if there are fewer.

    ``durations`` fills the histogram and the sums of those that succeeded, in nanoseconds.
    """
    made = np.zeros(len(rows), dtype(kind))
    for row, values in zip(made, rows, strict=True):
        for name, value in values.items():
            if name == "durations":
                _fill(row, value)
            else:
                row[name] = value
    return Batch(
        kind=kind,
        rows=made,
        identity=np.minimum(np.arange(len(rows)), len(whose) - 1).astype(np.uint32),
        identities=tuple(whose),
        time_ns=records.TIME_NS + round(seconds * 1e9),
        interval=0.0 if kind == "oom" else 1.0,
        fields=fields_of(kind),
        **more,
    )


def _fill(row: np.void, durations: Sequence[int]) -> None:
    filled = records.http_rows(1)[0]
    records.fill(filled, list(durations))
    row["le"], row["buckets"] = filled["le"], filled["buckets"]
    tcps = "connects" in (row.dtype.names or ())
    names = ("connects", "connect_ns", "connect_max_ns") if tcps else ("count", "sum_ns", "max_ns")
    for name, of in zip(names, ("count", "sum_ns", "max_ns"), strict=True):
        row[name] = filled[of]
