# SPDX-License-Identifier: Apache-2.0
"""Kills by the kernel's OOM killer, one row each."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import ClassVar
from typing import Self

import numpy as np
import numpy.typing as npt

from podscope.kernel.cpus import learn_cpus
from podscope.kernel.libbpf import possible_cpus
from podscope.kernel.objects import BpfObject
from podscope.kernel.rings import Ring
from podscope.kernel.symbols import Symbols
from podscope.schema import Field
from podscope.schema_oom import OOM
from podscope.schema_oom import SCOPES
from podscope.sources.records import fill
from podscope.sources.source import Rows

# Reasons of losses.
LOST = ("ring_full", "missed")
PROGRAMS = ("oom_signal", "oom_victim")
# Names of victims are remembered for so many kills.
KEPT = 4096
PATH_BYTES = 1024


@dataclass(frozen=True)
class OomOptions:
    """What the programs do.

    Attributes:
        ring_bytes: size of the ring, a power of two; a kill takes two kilobytes.
    """

    ring_bytes: int = 1 << 19


class OomSource:
    """The programs, attached. Close it, or use it in a ``with``.

    Raises:
        PodscopeError: no rights, or a kernel that cannot run the programs.
    """

    options: ClassVar[type] = OomOptions
    fields: ClassVar[Mapping[str, tuple[Field, ...]]] = {"oom": OOM}
    events: ClassVar[frozenset[str]] = frozenset({"oom"})

    def __init__(self, options: OomOptions | None = None, _: Collection[str] = ()) -> None:
        self._options = options or OomOptions()
        self._victims: OrderedDict[int, tuple[str, str]] = OrderedDict()
        self._object = BpfObject.open("oom")
        try:
            self._object.resize_map("kills", self._options.ring_bytes)
            self._object.set_constants(page_size=mmap.PAGESIZE, cpus=possible_cpus())
            self._object.load()
            record = self._object.dtype("oom_kill")
            self._row = row_dtype(record)
            self._ring = Ring.of(self._object.map("kills"), record)
            self._symbols = Symbols(self._object)
            learn_cpus(self._object)
            for program in PROGRAMS:
                self._object.attach(program)
        except BaseException:
            self._object.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detaches everything. A second call does nothing."""
        self._object.close()

    def read(self) -> Rows:
        """Nothing is counted here: each kill is an event."""
        return {}

    def read_events(self) -> Rows:
        """Kills since the last call: the members of ``struct oom_kill`` that are numbers or
        texts, ``scope`` (a code of ``SCOPES``) and ``cgroup`` (the memory cgroup's path).
        """
        learn_cpus(self._object)
        kills = self._ring.drain()
        rows = np.zeros(len(kills), self._row)
        if not len(kills):
            return {"oom": rows}
        fill(rows, kills)
        for row, kill in zip(rows, kills, strict=True):
            stack = kill["stack"][: int(kill["frames"])].tolist()
            row["scope"] = SCOPES.index(scope(self._symbols.functions(stack)))
            path = path_of(kill["names"].tolist())
            row["cgroup"] = path.encode()
            self._remember(int(kill["owner"]), _text(kill["executable"]), path)
        return {"oom": rows}

    def ring_use(self) -> float:
        """How full the ring is, from 0 to 1."""
        return self._ring.pending() / self._options.ring_bytes

    def lost(self) -> dict[str, int]:
        """Kills since the start that could not be told, by reason."""
        missed = self._object.missed(PROGRAMS)
        return {"ring_full": int(self._object.variables["ring_full"]), "missed": missed}

    def executable(self, owner: int) -> str:
        """Base name of a victim's executable."""
        return self._victims.get(owner, ("", ""))[0]

    def cgroup_path(self, owner: int) -> str:
        """Path of a victim's memory cgroup."""
        return self._victims.get(owner, ("", ""))[1]

    def _remember(self, owner: int, executable: str, path: str) -> None:
        self._victims[owner] = (executable, path)
        if len(self._victims) > KEPT:
            self._victims.popitem(last=False)


def row_dtype(record: np.dtype[Any]) -> np.dtype[Any]:
    """The rows' dtype, from that of ``struct oom_kill``."""
    kept = [name for name in record.names or () if name not in ("stack", "names", "frames")]
    members = [(name, record[name]) for name in kept]
    return np.dtype([*members, ("scope", "u1"), ("cgroup", f"S{PATH_BYTES}")])


def scope(functions: Sequence[str]) -> str:
    """What ran out of memory, from the kernel's stack of whoever asked for more.

    mem_cgroup_out_of_memory() and out_of_memory() in mm/memcontrol.c and mm/oom_kill.c; the first
    calls the second. moom_callback() in drivers/tty/sysrq.c.
    """
    if any(name.startswith("mem_cgroup_o") for name in functions):
        return "memcg"
    if "moom_callback" in functions:
        return "sysrq"
    return "global" if "out_of_memory" in functions else ""


def path_of(names: Sequence[bytes | Any]) -> str:
    """The path of a cgroup from its names, innermost first; the root's is empty."""
    told = [bytes(name).rstrip(b"\0").decode("utf-8", "backslashreplace") for name in names]
    inside = told[: told.index("")] if "" in told else told
    return "/" + "/".join(reversed(inside))


def _text(raw: npt.NDArray[Any]) -> str:
    return bytes(raw).rstrip(b"\0").decode("utf-8", "backslashreplace")
