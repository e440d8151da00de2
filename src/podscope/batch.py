# SPDX-License-Identifier: Apache-2.0
"""What passes between the rooms: rows as one NumPy array, and the identities they point to."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas
    import pyarrow


@dataclass(frozen=True)
class Service:
    """A Service of Kubernetes that leads to a pod, and to which ports of the pod."""

    name: str
    ports: tuple[int, ...] = ()


@dataclass(frozen=True)
class Identity:
    """Whose a row is.

    ``kind`` is ``container``, ``unit`` (systemd) or ``process``; in a cluster it is the kind of
    the pod's owner: ``deployment``, ``statefulset``, ``daemonset``, ``replicaset``, ``job``,
    ``cronjob``, or ``pod`` where it has none. ``name`` is what people call it: the owner's name,
    the container's name or short id, the unit's name, or the executable's base name.
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
        kind: ``http`` (rows of ``struct http_row``) or ``request`` (``struct http_request``).
        rows: structured array, shape (n,), dtype made from the BTF of the compiled object.
        identity: index into ``identities``, shape (n,), dtype u4.
        identities: the identities that rows point to.
        time_ns: end of the interval, Unix time in nanoseconds.
        interval: length of the interval in seconds.
        clock_offset_ns: add it to a row's ``CLOCK_MONOTONIC`` times to get Unix time.
        routes: text of each route hash in the rows.
        lost: what could not be counted in the interval, by reason.
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

    def __len__(self) -> int:
        return len(self.rows)

    def to_pandas(self) -> pandas.DataFrame:
        """One line a row, columns named as in the JSON output. Needs pandas."""
        import pandas

        return pandas.DataFrame(self._columns())

    def to_arrow(self) -> pyarrow.Table:
        """One line a row, columns named as in the JSON output. Needs pyarrow."""
        import pyarrow

        return pyarrow.table(self._columns())

    def _columns(self) -> dict[str, Any]:
        from podscope.schema import columns

        return columns(self)
