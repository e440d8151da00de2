# SPDX-License-Identifier: Apache-2.0
"""What a sink is, how it says that rows were not taken, and where sinks are found.

A sink is a class named by an entry point of the group ``podscope.sinks``; the entry point's name is
the ``type`` of its settings. docs/guide/sinks.md has a whole one.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from importlib.metadata import entry_points
from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import Literal
from typing import Protocol
from typing import cast

import msgspec
from msgspec import Meta

from podscope.schema import DIMENSIONS
from podscope.settings import Duration
from podscope.settings import Size
from podscope.settings import convert
from podscope.sinks.rows import BY
from podscope.sinks.rows import Rows

GROUP = "podscope.sinks"


class Every(Duration):
    """Time between two deliveries."""

    LEAST_NS: ClassVar[int] = 100 * 10**6


class Dimension(str):
    """A dimension that rows of kind http are told apart by."""

    __slots__ = ()

    @classmethod
    def read(cls, value: object) -> Dimension:
        """The setting; raises ValueError with what is wrong."""
        if value not in DIMENSIONS:
            raise ValueError(f"no such field: {value!r}; choose from {', '.join(DIMENSIONS)}")
        return cls(value)


class QueueSettings(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """Where rows wait for a server that is down."""

    memory: Annotated[Size, Meta(description="rows in memory, before any are dropped")] = Size(
        16 << 20
    )
    disk: Annotated[Size, Meta(description="rows on disk; 0: none")] = Size(0)
    path: Annotated[str, Meta(description="directory of the rows on disk")] = ""

    def __post_init__(self) -> None:
        if bool(self.disk) != bool(self.path):
            raise ValueError("disk and path are set together: a size, and a directory")


class SinkSettings(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """What all sinks have; a sink's own settings are a subclass."""

    type: Annotated[str, Meta(description="which sink it is")]
    name: Annotated[str, Meta(description="in messages and metrics; empty: its type")] = ""
    kinds: Annotated[tuple[str, ...], Meta(description="only rows of these kinds")] = ()
    namespaces: Annotated[
        tuple[str, ...], Meta(description="only rows of these namespaces; globs")
    ] = ()
    sides: Annotated[
        tuple[Literal["server", "client"], ...], Meta(description="only rows of this side")
    ] = ()
    by: Annotated[
        tuple[Dimension, ...], Meta(description="what tells rows of kind `http` apart")
    ] = tuple(map(Dimension, BY))
    every: Annotated[Every, Meta(description="time between two deliveries")] = Every(10)
    queue: QueueSettings = QueueSettings()

    @property
    def title(self) -> str:
        """What it is called."""
        return self.name or self.type


class Sink(Protocol):
    """Takes rows somewhere. All its methods are called in one thread, its own.

    It is made with its settings; that raises PodscopeError if it cannot work with them. A server
    that does not answer is no reason: rows wait for it.

    Four attributes are looked for and may be missing: ``most_rows``, the most rows that it gets at
    once; ``only_kinds``, if it takes no others; ``also_by``, further groups of kind http
    (dimensions by the name of their kind); and ``notes``, a list of lines that people are to be
    told, which is emptied when they are.
    """

    Settings: ClassVar[type[SinkSettings]]

    def __init__(self, settings: Any) -> None:
        """Makes the sink; connects to nothing yet."""

    def send(self, rows: Rows) -> None:
        """Delivers the rows: after it returns they are the server's.

        Raises:
            Unavailable, Refused, TooLarge, Partly: they are not, or not all.
        """

    def close(self) -> None:
        """Ends it: nothing is sent after that."""


class NotTaken(Exception):
    """The base of what ``send`` raises."""


class Unavailable(NotTaken):
    """The server cannot take the rows now: they are sent again, after a while.

    Args:
        why: one line.
        after: the server asks to wait so many seconds.
    """

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class Refused(NotTaken):
    """The server will never take these rows, and says why."""


class TooLarge(NotTaken):
    """The server takes fewer rows at once: they are sent in two halves."""


class Partly(NotTaken):
    """The server took some rows.

    Args:
        again: those that it may take later; None: there are none.
        refused: those that it will never take, with the reason.
        unnamed: how many more it will never take, of which it does not say which they are.
        why: one line; of the rows to be sent again, or else of those.
        after: the server asks to wait so many seconds.
    """

    def __init__(
        self,
        again: Rows | None,
        refused: tuple[tuple[Rows, str], ...] = (),
        *,
        unnamed: int = 0,
        why: str = "",
        after: float = 0.0,
    ) -> None:
        super().__init__(why)
        self.again = again
        self.refused = refused
        self.unnamed = unnamed
        self.after = after


class Choice:
    """The settings of one sink in a list of sinks, of the class that its ``type`` asks for."""

    __slots__ = ("settings", "sink")

    def __init__(self, sink: Callable[[Any], Sink], settings: SinkSettings) -> None:
        self.sink = sink
        self.settings = settings

    @classmethod
    def read(cls, value: object) -> Choice:
        """The setting; raises ValueError with what is wrong."""
        if not isinstance(value, Mapping):
            raise ValueError("it must be the keys of a sink, as {type: files, path: /var/log/x}")
        kind = value.get("type")
        points = {point.name: point for point in entry_points(group=GROUP)}
        if kind is None:
            raise ValueError(f"type is missing: choose from {', '.join(sorted(points))}")
        if kind not in points:
            near = get_close_matches(str(kind), points, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"no sink of type {kind!r}{hint}: choose from {', '.join(sorted(points))}"
            )
        return cls(*_settings(points[kind], value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and self.settings == other.settings

    def __hash__(self) -> int:
        return hash(self.settings)


def _settings(
    point: EntryPoint, value: Mapping[str, Any]
) -> tuple[Callable[[Any], Sink], SinkSettings]:
    try:
        sink = cast("Any", point.load())
    except ImportError as error:
        raise ValueError(
            f"the sink {point.name} needs {error.name}: pip install 'podscope[sinks]'"
        ) from None
    try:
        return sink, convert(value, sink.Settings)
    except msgspec.ValidationError as error:
        # msgspec puts the place of the sink behind a ValueError alone.
        raise ValueError(str(error)) from None
