# SPDX-License-Identifier: Apache-2.0
"""What the field tables of all kinds beside HTTP are made from, and how their columns are read."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from podscope import red
from podscope import schema
from podscope.schema import Array
from podscope.schema import Field
from podscope.schema import View

if TYPE_CHECKING:
    from podscope.batch import Batch

_WHOSE = ("workload", "namespace", "owner", "pod", "container", "node")

TIME = replace(schema.TIME, text="when, RFC 3339, UTC")
END = schema.TIME
INTERVAL = schema.INTERVAL
# Whose a row is: the workload, and in a cluster its pod.
WORKLOAD = tuple(one for one in schema.REQUEST if one.dimension in _WHOSE)

# Who is at the other end, in a cluster.
PEER = tuple(one for one in schema.REQUEST if one.dimension in ("peer", "peer pod"))


def process(text: str) -> tuple[Field, Field]:
    """Executable and number of the process that a row is about; ``text`` says which that is."""
    found = {one.name: one for one in schema.REQUEST}
    return (
        replace(found["process.executable.name"], text=f"base name of the executable of {text}"),
        replace(found["process.pid"], text=text),
    )


def attribute(
    name: str,
    source: str,
    read: Callable[[View], Array],
    text: str,
    *,
    type: str = "text",
    label: bool = False,
) -> Field:
    """A field that says what a row is about; numbers are left out where they are 0."""
    return Field(name, source, type, "", "", label, type == "int", read, text)


def value(
    name: str, source: str, measure: tuple[str, str], read: Callable[[View], Array], text: str
) -> Field:
    """A field that is a number with a unit, given as (type, unit); 0 is a value."""
    kind, unit = measure
    return Field(name, source, kind, unit, "", False, False, read, text)


def number(name: str) -> Callable[[View], Array]:
    """Reads a member as integers."""
    return lambda view: np.asarray(view.values[name]).astype(np.int64)


def seconds(name: str) -> Callable[[View], Array]:
    """Reads a member in nanoseconds as seconds."""
    return lambda view: np.asarray(view.values[name]) / 1e9


def known_seconds(name: str) -> Callable[[View], Array]:
    """The same where 0 stands for not known."""

    def read(view: View) -> Array:
        column = np.asarray(view.values[name])
        return np.where(column == 0, np.nan, column / 1e9)

    return read


def percentiles(name: str, what: str, longest: str) -> tuple[Field, ...]:
    """Fields of a histogram of durations: its quantiles, as `red.quantiles` finds them.

    Args:
        name: of the fields, without the last part.
        what: of what, for their texts.
        longest: member that is the exact maximum in nanoseconds.
    """
    return tuple(
        value(
            f"{name}.p{round(q * 100)}",
            "buckets",
            ("float", "s"),
            _quantile(q, longest),
            f"median of {what}" if q == 0.5 else f"{round(q * 100)}th percentile",
        )
        for q in red.QUANTILES
    )


def _quantile(q: float, longest: str) -> Callable[[View], Array]:
    def read(view: View) -> Array:
        column = np.full(len(view.records), np.nan)
        some = np.flatnonzero(view.records[longest])  # most rows of TCP have no connect
        column[some] = red.quantile(view.records["buckets"][some], view.records[longest][some], q)
        return column

    return read


def text(name: str) -> Callable[[View], Array]:
    """Reads a member that is a text; what is not UTF-8 stays visible."""

    def read(view: View) -> Array:
        return texts(
            [item.decode("utf-8", "backslashreplace") for item in view.records[name].tolist()]
        )

    return read


def word(name: str, words: Sequence[str]) -> Callable[[View], Array]:
    """Reads a member that is the code of a word; codes beyond the words have none."""
    table = texts([*words, ""])
    return lambda view: table[np.minimum(view.records[name], len(words))]


def address(name: str) -> Callable[[View], Array]:
    """Reads a member that is an address of 16 bytes."""
    return lambda view: schema.addresses(view.records[name])


def texts(items: Sequence[str | None]) -> Array:
    """A column of texts, None where there is none."""
    column = np.empty(len(items), dtype=object)
    column[:] = [item or None for item in items]
    return column


def view(batch: Batch) -> View:
    """The records of a batch of one of these kinds, to read fields from."""
    index = batch.identity.astype(np.int64)
    if "time_ns" in (batch.rows.dtype.names or ()):
        time = batch.rows["time_ns"].astype(np.int64) + batch.clock_offset_ns
    else:
        time = np.full(len(batch), batch.time_ns)
    return View(
        records=batch.rows,
        values=batch.rows,
        whose=dict.fromkeys(schema.OF_IDENTITY, index) | schema.peers_of(batch),
        identities=batch.identities,
        routes=batch.routes,
        time=time,
        interval=batch.interval,
    )


def columns(batch: Batch, names: Collection[str] | None = None) -> dict[str, Array]:
    """Fields of such a batch as arrays of shape (n,), named as in the JSON output.

    Args:
        batch: rows of such a kind.
        names: only these; all by default.
    """
    named = any(one.namespace or one.pod_uid for one in batch.identities)
    fields = [one for one in batch.fields if names is None or one.name in names]
    return schema.read(fields, view(batch), schema.PLAIN if named else schema.ON_HOST)
