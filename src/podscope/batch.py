# SPDX-License-Identifier: Apache-2.0
"""What passes between the rooms: rows as one NumPy array, and the identities they point to."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
import numpy.typing as npt

from podscope.errors import PodscopeError

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from podscope.schema import Field


class MissingLibrary(PodscopeError, ImportError):
    """A library is not installed that podscope can do without elsewhere."""


@dataclass(frozen=True)
class Service:
    """A Service of Kubernetes that leads to a pod.

    Attributes:
        ports: those of the pod that it leads to; none: all.
        published: for each of them the Service's own; 0: not known.
    """

    name: str
    ports: tuple[int, ...] = ()
    published: tuple[int, ...] = ()

    def leads_to(self, port: int) -> bool:
        """Whether what comes to a port of the pod may have come through it."""
        return not self.ports or port in self.ports

    def port_of(self, port: int) -> int:
        """The Service's port that leads to a port of the pod; 0: not known."""
        return dict(zip(self.ports, self.published, strict=False)).get(port, 0)


@dataclass(frozen=True)
class Identity:
    """Whose a row is.

    ``kind`` is ``container``, ``unit`` (systemd) or ``process``; in a cluster it is the kind of
    the pod's owner: ``deployment``, ``statefulset``, ``daemonset``, ``replicaset``, ``job``,
    ``cronjob``, or ``pod`` where it has none. ``name`` is what people call it: the owner's name,
    the first 12 digits of the container's id, the unit's name, or the executable's base name.
    Who is at the other end may also be of kind ``service``, ``node`` or ``external``.
    Empty strings and zero: not known, or does not apply.
    """

    kind: str
    name: str
    executable: str = ""
    pid: int = 0
    container_id: str = ""
    cgroup: str = ""
    namespace: str = ""
    pod: str = ""
    pod_uid: str = ""
    container: str = ""
    node: str = ""
    services: tuple[Service, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Rows of one kind over one interval.

    Attributes:
        kind: ``http`` (rows of ``struct http_row``), ``request`` (``struct http_request``), or a
            kind of another source.
        rows: structured array, shape (n,), dtype made from the BTF of the compiled object.
        identity: index into ``identities``, shape (n,), dtype u4.
        identities: the identities that rows point to.
        time_ns: end of the interval, Unix time in nanoseconds.
        interval: length of the interval in seconds.
        clock_offset_ns: add it to a row's ``CLOCK_MONOTONIC`` times to get Unix time.
        routes: text of each route hash in the rows.
        lost: what could not be counted in the interval, by reason.
        peers: index into ``identities`` of who is at the other end, shape (n,), dtype i4; -1: not
            known. None: nobody has looked.
        fields: the columns of kinds other than ``http`` and ``request``.
    """

    kind: str
    rows: npt.NDArray[np.void]
    identity: npt.NDArray[np.uint32]
    identities: tuple[Identity, ...]
    time_ns: int
    interval: float
    clock_offset_ns: int = 0
    routes: dict[int, str] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    peers: npt.NDArray[np.int32] | None = None
    fields: tuple[Field, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> int:
        """About how many bytes its rows need, with texts that are not inside of them."""
        names = self.rows.dtype.names or ()
        texts = [name for name in names if self.rows.dtype[name].hasobject]
        long = sum(len(text) for name in texts for text in self.rows[name].tolist() if text)
        return self.rows.nbytes + long

    @property
    def keys(self) -> npt.NDArray[np.void]:
        """The members that say whose each row is: ``cgroup_id``, ``pid``, ``owner``, ``peer``."""
        return self.rows["key"] if "key" in (self.rows.dtype.names or ()) else self.rows

    def exchanges(self) -> int:
        """How many exchanges its rows stand for."""
        names = self.rows.dtype.names or ()
        return int(self.rows["count"].sum()) if "count" in names else len(self)

    def where(self, keep: npt.NDArray[np.bool_] | npt.NDArray[np.intp] | slice) -> Batch:
        """The rows for which ``keep``, shape (n,), holds, or those at these positions.

        Rows of a slice are not copied.
        """
        if isinstance(keep, np.ndarray) and keep.dtype == np.bool_ and keep.all():
            return self  # a row is a kilobyte
        peers = None if self.peers is None else self.peers[keep]
        return replace(self, rows=self.rows[keep], identity=self.identity[keep], peers=peers)

    def to_pandas(self) -> pandas.DataFrame:
        """One line a row, columns named and typed as in the JSON output. Needs pandas.

        Texts are ``string``, numbers that may not apply ``Int64``, both with ``pandas.NA`` where
        there is none; times are ``datetime64[ns, UTC]``. They are so in every batch.

        Raises:
            MissingLibrary: pandas is not installed.
        """
        pandas = _library("pandas", "to_pandas", "pandas")
        return pandas.DataFrame(
            {one.name: _series(pandas, one, column) for one, column in self._columns()}
        )

    def told(self) -> list[tuple[Field, npt.NDArray[Any]]]:
        """Each field with its column, shape (n,), named and typed as in the JSON output."""
        return self._columns()

    def to_arrow(self) -> pyarrow.Table:
        """One line a row, columns named and typed as in the JSON output. Needs pyarrow.

        Types are ``string``, ``int64``, ``double`` and ``timestamp[ns, tz=UTC]``, the same in
        every batch; what does not apply is null.

        Raises:
            MissingLibrary: pyarrow is not installed.
        """
        pyarrow = _library("pyarrow", "to_arrow", "arrow")
        told = self._columns()
        types = {
            "text": pyarrow.string(),
            "int": pyarrow.int64(),
            "float": pyarrow.float64(),
            "time": pyarrow.timestamp("ns", tz="UTC"),
        }
        return pyarrow.table(
            {
                one.name: pyarrow.array(column, types[one.type], mask=_absent(one, column))
                for one, column in told
            }
        )

    def _columns(self) -> list[tuple[Field, npt.NDArray[Any]]]:
        from podscope import schema
        from podscope import schema_events

        if self.fields:
            columns = schema_events.columns(self)
            return [(one, columns[one.name]) for one in self.fields if one.name in columns]
        fields = schema.REQUEST if self.kind == "request" else schema.HTTP
        columns = schema.columns(self)
        return [(one, columns[one.name]) for one in fields if one.name in columns]


def _library(name: str, method: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        if error.name != name:  # it is there, and something that it needs is not
            raise
        raise MissingLibrary(
            f"Batch.{method}() needs {name}: pip install 'podscope[{extra}]'", name=name
        ) from None


def _series(pandas: Any, one: Field, column: npt.NDArray[Any]) -> Any:
    if one.type == "text":
        return pandas.array(column, dtype="string")
    if one.type == "time":
        return pandas.DatetimeIndex(column).tz_localize("UTC")
    absent = _absent(one, column)
    return column if absent is None else pandas.arrays.IntegerArray(column, absent)


def _absent(one: Field, column: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Where a field does not apply, shape (n,); None: the column says it itself."""
    return column == 0 if one.blank else None
