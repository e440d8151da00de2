# SPDX-License-Identifier: Apache-2.0
"""What a source of rows is, beside HTTP: the protocol, and how sources are found.

A package of its own may bring a source: its class is named in the entry-point group
``podscope.sources`` under the source's name.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any
from typing import ClassVar
from typing import Protocol
from typing import cast

import numpy as np
import numpy.typing as npt

from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.schema import Field

GROUP = "podscope.sources"

Rows = Mapping[str, npt.NDArray[np.void]]


class Source(Protocol):
    """Kernel programs, attached, and what they tell.

    A source is made with its options, an object of its own kind, or None for all defaults, and
    the kinds of rows that are wanted; that raises PodscopeError, in one line, where the kernel or
    the rights do not allow it. Rows have the members
    ``cgroup_id``, ``pid`` and ``owner``, and single events also ``time_ns`` (``CLOCK_MONOTONIC``).
    """

    options: ClassVar[type]  # a dataclass
    fields: ClassVar[Mapping[str, tuple[Field, ...]]]  # columns of each kind of rows
    events: ClassVar[frozenset[str]]  # the kinds whose rows are single events

    def read(self) -> Rows:
        """Rows of an interval that ends now, by kind."""

    def read_events(self) -> Rows:
        """Single events since the last call, by kind."""

    def ring_use(self) -> float:
        """How full the ring of the events is, from 0 to 1."""

    def lost(self) -> dict[str, int]:
        """What could not be told since the start, by reason; every reason, also with 0."""

    def executable(self, owner: int) -> str:
        """Base name of the executable of an owner in the rows; empty if it is not known."""

    def cgroup_path(self, owner: int) -> str:
        """A path that the kernel told of an owner's cgroup of version 1; empty if it told none."""

    def close(self) -> None:
        """Detaches everything. A second call does nothing."""


class SourceClass(Protocol):
    """How a source is made."""

    options: ClassVar[type]
    fields: ClassVar[Mapping[str, tuple[Field, ...]]]

    def __call__(self, options: Any, kinds: Collection[str], /) -> Source:
        """Loads and attaches the programs; raises PodscopeError."""


def names() -> tuple[str, ...]:
    """Names of all sources that are installed, those of podscope first."""
    points = entry_points(group=GROUP)
    ours = [one.name for one in points if one.value.startswith("podscope.")]
    return (*ours, *sorted({one.name for one in points} - set(ours)))


def find(name: str) -> SourceClass:
    """The class of a source.

    Raises:
        UsageError: there is no source of that name.
        PodscopeError: its package cannot be imported.
    """
    for point in entry_points(group=GROUP, name=name):
        try:
            return cast("SourceClass", point.load())
        except Exception as error:  # whatever a foreign package raises
            told = f"{type(error).__name__}: {error}"
            raise PodscopeError(
                f"source {name} ({point.value}) cannot be imported: {told}: install its package "
                "again, or remove it"
            ) from error
    raise UsageError(f"no source {name!r}: choose from {', '.join(names())}")


def sources_of(kinds: tuple[str, ...]) -> dict[str, SourceClass]:
    """The sources that give some kinds of rows, by name."""
    return {name: one for name, one in _all().items() if any(kind in one.fields for kind in kinds)}


def kinds() -> tuple[str, ...]:
    """Every kind of rows that some source gives."""
    return tuple(kind for one in _all().values() for kind in one.fields)


def fields_of(kind: str) -> tuple[Field, ...]:
    """The columns of a kind of rows; empty if no source gives it."""
    return next((one.fields[kind] for one in _all().values() if kind in one.fields), ())


def _all() -> dict[str, SourceClass]:
    """Every source that can be imported, by name; warns (RuntimeWarning) of others."""
    found = {}
    for name in names():
        try:
            found[name] = find(name)
        except PodscopeError as error:
            warnings.warn(f"without {name}: {error}", RuntimeWarning, stacklevel=3)
    return found
