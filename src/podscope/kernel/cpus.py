# SPDX-License-Identifier: Apache-2.0
"""Where each CPU keeps its part of the kernel's counters, for programs with common/percpu.h."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from podscope.kernel.libbpf import BpfError
from podscope.kernel.objects import BpfObject

ONLINE = Path("/sys/devices/system/cpu/online")
PROGRAM = "learn_cpu"


def learn_cpus(program: BpfObject, online: Path = ONLINE) -> None:
    """Has each CPU that is online, and that was not before, tell where its part is."""
    offsets = program.variables["cpu_offsets"]
    for cpu in cpu_list(online.read_text()):
        if cpu < len(offsets) and not offsets[cpu]:
            with suppress(BpfError):  # it has gone again
                program.run_on(PROGRAM, cpu)


def cpu_list(text: str) -> list[int]:
    """Numbers of ``0-3,8``: section "Available interfaces" of cputopology.rst in the kernel's
    documentation.
    """
    ranges = [one.partition("-") for one in text.strip().split(",") if one]
    return [cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)]
