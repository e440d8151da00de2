# SPDX-License-Identifier: Apache-2.0
"""Maps as arrays: made of what bpftrace prints, and merged over nodes."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Any
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from podscope.trace.decode import KEYS_WITHOUT_BLANKS
from podscope.trace.decode import MapData
from podscope.trace.decode import Version
from podscope.trace.maps import VALUE
from podscope.trace.maps import MapShape

Key: TypeAlias = tuple[int | str, ...]

ADDED = ("count", "sum")
STATISTICS = ("avg", "stats")
HISTOGRAMS = ("hist", "lhist")
MERGED = (*ADDED, "min", "max", *STATISTICS, *HISTOGRAMS)
# Ends of a bucket that has none: all that is less, or more.
LOWEST, HIGHEST = -(2**63), 2**63 - 1


def _none() -> npt.NDArray[np.int64]:
    """No buckets."""
    return np.empty((0, 2), np.int64)


@dataclass(frozen=True, eq=False)
class MapTable:
    """A map as it stood, or several merged.

    Attributes:
        name: with the ``@``.
        kind: one of ``maps.AGGREGATIONS``, or ``value``.
        keys: one a row; ``()`` for a map without keys.
        values: int64, or object where numbers are larger. Shape (n,); of ``avg`` and ``stats``
            (n, 2): count and total; of ``hist`` and ``lhist`` (n, b): a count for each bucket; of
            ``value`` what was there, as objects.
        buckets: of histograms, shape (b, 2): lowest and highest number in each, both inclusive.
        same_keys: rows whose key was written like that of another row; they are added up.
        unsplit: rows whose key has several parts that could not be told apart.
    """

    name: str
    kind: str
    keys: tuple[Key, ...]
    values: npt.NDArray[Any]
    buckets: npt.NDArray[np.int64] = field(default_factory=_none)
    same_keys: int = 0
    unsplit: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    def to_dict(self) -> dict[Key, Any]:
        """Values by key: numbers; of ``avg`` and ``stats`` (count, total), of histograms lists."""
        return dict(zip(self.keys, self.values.tolist(), strict=True))

    def total(self) -> npt.NDArray[Any]:
        """By what rows are ordered, shape (n,): a number, a count of a histogram, an average."""
        if self.kind in HISTOGRAMS:
            added: npt.NDArray[Any] = self.values.sum(axis=1)
            return added
        if self.kind in STATISTICS:
            means: npt.NDArray[Any] = self.values[:, 1] / np.maximum(self.values[:, 0], 1)
            return means
        return self.values


def table(data: MapData, shape: MapShape | None, version: Version) -> MapTable:
    """A map that bpftrace printed.

    Args:
        data: what it printed.
        shape: what the program's text tells of the map; None: nothing, so it stays apart by node.
        version: bpftrace's.

    Raises:
        ValueError: the values are not of the map's kind.
    """
    kind = _kind(data, shape)
    parts = shape.key if shape is not None else ()
    keys, unsplit = _keys([key for key, _ in data.entries], parts, version)
    values = [value for _, value in data.entries]
    if kind in HISTOGRAMS:
        made = _histogram(data.name, kind, keys, values)
    elif kind in STATISTICS:
        pairs = [(int(one["count"]), int(one["total"])) for one in values]
        made = MapTable(data.name, kind, keys, integers(pairs).reshape(-1, 2))
    elif kind == VALUE:
        made = MapTable(data.name, kind, keys, objects(values))
    else:
        made = MapTable(data.name, kind, keys, integers([int(one) for one in values]))
    return replace(_without_twins(made), unsplit=unsplit)


def _kind(data: MapData, shape: MapShape | None) -> str:
    if shape is None:
        return data.form if data.form in ("hist", "stats") and _is_whole(data) else VALUE
    if shape.kind in (VALUE, "tseries"):
        return VALUE
    # An average that was not made stats has no count.
    if shape.kind == "avg" and not _is_whole(data):
        return VALUE
    return shape.kind


def _is_whole(data: MapData) -> bool:
    """Whether statistics have their counts, as averages have not."""
    return all(isinstance(one, dict | list) for _, one in data.entries)


def integers(numbers: Sequence[Any]) -> npt.NDArray[Any]:
    """The numbers as int64, or as Python's where one is too large for that."""
    try:
        return np.array(numbers, np.int64)
    except OverflowError:
        return np.array(numbers, object)


def objects(values: Sequence[Any]) -> npt.NDArray[Any]:
    """The values as objects, shape (n,)."""
    made = np.empty(len(values), object)
    for number, value in enumerate(values):  # one by one: lists are values too, and no axis
        made[number] = value
    return made


def _histogram(name: str, kind: str, keys: tuple[Key, ...], rows: list[Any]) -> MapTable:
    """All rows over the same buckets: bpftrace leaves out empty ones at the ends of each."""
    columns: dict[tuple[Any, Any], int] = {}
    cells = [
        (number, columns.setdefault((one.get("min"), one.get("max")), len(columns)), one["count"])
        for number, row in enumerate(rows)
        for one in row
    ]
    bounds = [_bounds(low, high) for low, high in columns]
    order = sorted(range(len(bounds)), key=bounds.__getitem__)
    counts = np.zeros((len(rows), len(bounds)), np.int64)
    for number, column, count in cells:
        counts[number, column] += int(count)
    buckets = np.array([bounds[column] for column in order], np.int64).reshape(-1, 2)
    return MapTable(name, kind, keys, counts[:, order], buckets)


def _bounds(low: Any, high: Any) -> tuple[int, int]:
    """Both ends; an open one is as far as numbers go."""
    return (
        LOWEST if low is None else max(int(low), LOWEST),
        HIGHEST if high is None else min(int(high), HIGHEST),
    )


def _keys(
    texts: Sequence[str | None], parts: tuple[str, ...], version: Version
) -> tuple[tuple[Key, ...], int]:
    """Keys in their parts, and how many could not be told apart."""
    if len(parts) < 2:
        kind = parts[0] if parts else "unknown"
        return tuple(() if text is None else (_part(text, kind),) for text in texts), 0
    split = _Splitter(parts)
    made: list[Key] = []
    unsplit = 0
    for text in texts:
        found = None if text is None else split(text)
        unsplit += found is None
        made.append(found if found is not None else (text or "",))
    return tuple(made), unsplit


def _part(text: str, kind: str) -> int | str:
    return int(text) if kind == "number" and _INTEGER.fullmatch(text) else text


_INTEGER = re.compile(r"-?[0-9]{1,20}")
# bpftrace writes a stack as lines after an empty one.
_PATTERNS = {
    "number": "(-?[0-9]+)",
    "stack": r"((?:\n(?:[^\n]*\n)*)?)",
    "text": "(.*{})",
    "unknown": "(.*{})",
}


class _Splitter:
    """Tells the parts of keys that bpftrace joined by commas, where only one reading is possible.

    Texts may have commas in them. A key is split only if a reading that gives the first parts as
    much as they can take, and one that gives them as little, are the same.
    """

    def __init__(self, parts: tuple[str, ...]) -> None:
        self._parts = parts
        self._readings = [
            re.compile(",".join(_PATTERNS[one].format(lazy) for one in parts), re.DOTALL)
            for lazy in ("", "?")
        ]

    def __call__(self, text: str) -> Key | None:
        found = [reading.fullmatch(text) for reading in self._readings]
        if found[0] is None or found[1] is None or found[0].groups() != found[1].groups():
            return None
        kinds = zip(found[0].groups(), self._parts, strict=True)
        return tuple(_part(one, kind) for one, kind in kinds)


def blanks_are_lost(shape: MapShape, version: Version) -> bool:
    """Whether this version of bpftrace drops the blanks in the keys of a map."""
    return version >= KEYS_WITHOUT_BLANKS and any(one != "number" for one in shape.key)


def _without_twins(made: MapTable) -> MapTable:
    """Rows whose keys are written the same are added up, and counted."""
    if len(set(made.keys)) == len(made.keys):
        return made
    if made.kind == VALUE:
        seen: dict[Key, int] = {}
        for key in made.keys:
            seen[key] = seen.get(key, 0) + 1
        return replace(made, same_keys=sum(n for n in seen.values() if n > 1))
    rows = [_row(made, number) for number in range(len(made))]
    merged = merge(rows)
    return replace(merged, same_keys=len(made) - len(merged))


def _row(made: MapTable, number: int) -> MapTable:
    part = slice(number, number + 1)
    return replace(made, keys=made.keys[part], values=made.values[part])


def renamed(one: MapTable, name: Callable[[Any], str]) -> MapTable:
    """The table with a name for the first part of each key; rows that are one then are added up."""
    keys = tuple((name(key[0]), *key[1:]) if key else key for key in one.keys)
    made = replace(one, keys=keys)
    if len(set(keys)) == len(keys) or one.kind not in MERGED:
        return made
    merged = merge([_row(made, number) for number in range(len(made))])
    return replace(merged, same_keys=one.same_keys, unsplit=one.unsplit)


def merge(parts: Sequence[MapTable]) -> MapTable:
    """One table of those of several nodes: exact for each kind of ``MERGED``.

    Counts, sums and buckets are added, of ``avg`` and ``stats`` count and total; ``min`` and
    ``max`` are taken of those nodes that have the key.

    Raises:
        ValueError: no table, tables of other maps, or of a kind that cannot be merged.
    """
    if not parts or any((one.name, one.kind) != (parts[0].name, parts[0].kind) for one in parts):
        raise ValueError("tables of one map are needed")
    kind = parts[0].kind
    if kind not in MERGED:
        raise ValueError(f"{parts[0].name}: values that are set cannot be merged")
    index: dict[Key, int] = {}
    places = [
        np.array([index.setdefault(key, len(index)) for key in one.keys], np.intp) for one in parts
    ]
    buckets = _all_buckets([one.buckets for one in parts]) if kind in HISTOGRAMS else _none()
    shape = (len(index), *_width(kind, len(buckets)))
    exact = object if _could_overflow(parts) else np.int64
    made = _filled(kind, shape, exact)
    for one, rows in zip(parts, places, strict=True):
        values = _over(one, buckets) if kind in HISTOGRAMS else one.values
        if kind in ("min", "max"):
            pick = np.minimum if kind == "min" else np.maximum
            made[rows] = pick(made[rows], values)
        else:
            made[rows] += values
    return MapTable(
        name=parts[0].name,
        kind=kind,
        keys=tuple(index),
        values=made,
        buckets=buckets,
        same_keys=sum(one.same_keys for one in parts),
        unsplit=sum(one.unsplit for one in parts),
    )


def apart(parts: Mapping[str, MapTable]) -> MapTable:
    """Tables of several nodes one below the other: the node's name is the first part of a key."""
    tables = list(parts.values())
    keys = tuple((node, *key) for node, one in parts.items() for key in one.keys)
    values = np.concatenate([objects(one.values.tolist()) for one in tables])
    return MapTable(
        name=tables[0].name,
        kind=VALUE,
        keys=keys,
        values=values,
        same_keys=sum(one.same_keys for one in tables),
        unsplit=sum(one.unsplit for one in tables),
    )


def merged_maps(nodes: Mapping[str, Mapping[str, MapTable]]) -> dict[str, MapTable]:
    """One table for each map of any node: merged where that is exact, else apart by node."""
    names = dict.fromkeys(name for maps in nodes.values() for name in maps)
    made: dict[str, MapTable] = {}
    for name in names:
        parts = {node: maps[name] for node, maps in nodes.items() if name in maps}
        kinds = {one.kind for one in parts.values()}
        mergeable = len(kinds) == 1 and kinds <= set(MERGED)
        made[name] = merge(list(parts.values())) if mergeable else _alone_or_apart(parts)
    return made


def _alone_or_apart(parts: Mapping[str, MapTable]) -> MapTable:
    """What only one node has, and has no name of a node, needs none."""
    if len(parts) == 1 and "" in parts:
        return parts[""]
    return apart(parts)


def _width(kind: str, buckets: int) -> tuple[int, ...]:
    if kind in HISTOGRAMS:
        return (buckets,)
    return (2,) if kind in STATISTICS else ()


def _filled(kind: str, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Rows before anything is in them."""
    start = {"min": 2**64, "max": LOWEST} if dtype is object else {"min": HIGHEST, "max": LOWEST}
    return np.full(shape, start.get(kind, 0), dtype)


def _could_overflow(parts: Sequence[MapTable]) -> bool:
    if any(one.values.dtype == object for one in parts):
        return True
    most = sum(_largest(one.values) for one in parts)
    return most > HIGHEST


def _largest(values: npt.NDArray[Any]) -> int:
    if values.size == 0:
        return 0
    return max(int(values.max()), -int(values.min()))


def _all_buckets(parts: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """All buckets of several histograms, each once, from low to high."""
    found = np.unique(np.concatenate([_none(), *parts]), axis=0)
    return found.astype(np.int64)


def _over(one: MapTable, buckets: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The counts of a histogram over more buckets than it has."""
    if len(one.buckets) == len(buckets):
        return one.values
    place = {bound: number for number, bound in enumerate(map(tuple, buckets.tolist()))}
    columns = [place[tuple(bound)] for bound in one.buckets.tolist()]
    wide = np.zeros((len(one), len(buckets)), one.values.dtype)
    wide[:, columns] = one.values
    return wide
