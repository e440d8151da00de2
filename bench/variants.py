# SPDX-License-Identifier: Apache-2.0
"""Kernel time a request and end: programs of growing duties under the same traffic."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import nginx

from podscope.errors import PodscopeError
from podscope.kernel.libbpf import libbpf
from podscope.kernel.objects import BpfObject
from podscope.kernel.probes import find_cgroup2
from podscope.sources.http import EGRESS
from podscope.sources.http import INGRESS
from podscope.sources.http import HttpOptions
from podscope.sources.http import HttpSource
from podscope.sources.http import RequestLog

OBJECTS = Path(__file__).parent.parent / "build" / "bench"
NAMES = ("noop", "floor", "red", "full")
ENDS = 2  # nginx and wrk are both on this host, under the same programs
BPF_STATS_RUN_TIME = 0


class ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info (include/uapi/linux/bpf.h) as far as it is read here."""

    _fields_ = [
        ("before", ctypes.c_uint8 * 192),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Cost:
    """One run of one variant.

    Attributes:
        ns: kernel time of its programs for a request at one end.
        runs: runs of its programs for a request at one end.
        per_second: requests a second, while times were being taken.
        counted: requests counted for a request and end; what counts nothing has 1.
    """

    ns: float
    runs: float
    per_second: float
    counted: float


class Variant(Protocol):
    """Programs that are attached."""

    def programs(self) -> list[int]:
        """Descriptors of the programs."""
        ...

    def counted(self, port: int) -> int | None:
        """Requests counted since the start at a server's port; None: it does not count."""
        ...

    def close(self) -> None:
        """Detaches them."""
        ...


class Yardstick:
    """The one program of ``noop.bpf.o`` or ``floor.bpf.o``, at ingress and egress."""

    def __init__(self, name: str, constants: dict[str, int]) -> None:
        path = OBJECTS / f"{name}.bpf.o"
        if not path.exists():
            raise PodscopeError(f"{path} is missing: run make bench-objects")
        self._object = BpfObject(path)
        try:
            self._object.set_constants(**constants)
            self._object.load()
            (self._program,) = self._object.programs()
            self._attach()
        except BaseException:
            self._object.close()
            raise

    def programs(self) -> list[int]:
        return [self._object.program_fd(self._program)]

    def counted(self, port: int) -> None:
        return None

    def close(self) -> None:
        self._object.close()

    def _attach(self) -> None:
        cgroup = os.open(find_cgroup2(), os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._object.attach_cgroup_as(self._program, cgroup, INGRESS)
            self._object.attach_cgroup_as(self._program, cgroup, EGRESS)
        finally:
            os.close(cgroup)


class Engine:
    """podscope's own programs."""

    def __init__(self, options: HttpOptions) -> None:
        self._source = HttpSource(options)

    def programs(self) -> list[int]:
        return list(self._source.program_ids().values())

    def counted(self, port: int) -> int:
        rows = self._source.read()
        return int(rows["count"][rows["key"]["port"] == port].sum())

    def close(self) -> None:
        self._source.close()


def attached(name: str, look_ups: int = 1) -> Variant:
    """Loads and attaches one of ``NAMES`` to the root of the cgroup v2 tree.

    Args:
        name: which.
        look_ups: storage look-ups of the floor program for a segment: 1 or 2.

    Raises:
        PodscopeError: an object is missing, or the kernel refuses it.
    """
    if name == "noop":
        return Yardstick(name, {})
    if name == "floor":
        return Yardstick(name, {"look_ups": look_ups})
    if name == "red":
        return Engine(HttpOptions(routes=False))
    return Engine(HttpOptions(routes=True, log=RequestLog(all=True, one_in=100)))


@contextmanager
def run_times() -> Iterator[None]:
    """Lets the kernel take the times of programs; it stops at the end, or with this process.

    BPF_ENABLE_STATS since Linux commit d46edd671a14 ("bpf: Sharing bpf runtime stats with
    BPF_ENABLE_STATS"), in 5.8.
    """
    fd = ctypes.CDLL(libbpf().path, use_errno=True).bpf_enable_stats(BPF_STATS_RUN_TIME)
    if fd < 0:
        raise OSError(-fd, "bpf_enable_stats")
    try:
        yield
    finally:
        os.close(fd)


def run_time(programs: list[int]) -> tuple[int, int]:
    """Nanoseconds and number of runs since the load, summed over the programs."""
    total_ns, total_runs = 0, 0
    for fd in programs:
        info = ProgramInfo()
        size = ctypes.c_uint32(ctypes.sizeof(info))
        libbpf().check(
            "program info", "bpf_obj_get_info_by_fd", fd, ctypes.byref(info), ctypes.byref(size)
        )
        total_ns += info.run_time_ns
        total_runs += info.run_cnt
    return total_ns, total_runs


def measure(traffic: nginx.Traffic, name: str, seconds: int, look_ups: int = 1) -> Cost:
    """Attaches a variant, sends requests, and says what they cost."""
    with closing(attached(name, look_ups)) as variant:
        before_ns, before_runs = run_time(variant.programs())
        load = traffic.run(seconds)
        after_ns, after_runs = run_time(variant.programs())
        counted = variant.counted(traffic.port)
    ends = load.requests * ENDS
    return Cost(
        ns=(after_ns - before_ns) / ends,
        runs=(after_runs - before_runs) / ends,
        per_second=load.per_second,
        counted=1.0 if counted is None else counted / ends,
    )


def measure_all(
    traffic: nginx.Traffic, rounds: int, seconds: int, look_ups: int = 1
) -> dict[str, list[Cost]]:
    """All variants in turn, each round beginning with another one."""
    costs: dict[str, list[Cost]] = {name: [] for name in NAMES}
    with run_times():
        for number in range(rounds):
            begin = number % len(NAMES)
            for name in NAMES[begin:] + NAMES[:begin]:
                cost = measure(traffic, name, seconds, look_ups)
                costs[name].append(cost)
                print(f"round {number + 1}: {name} {cost.ns:.0f} ns", file=sys.stderr)
    return costs
