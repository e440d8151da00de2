# SPDX-License-Identifier: Apache-2.0
"""Waiting until every kernel program that runs now has ended."""

from __future__ import annotations

import ctypes
import platform
import time

# __NR_membarrier; MEMBARRIER_CMD_GLOBAL of include/uapi/linux/membarrier.h
_NUMBERS = {"x86_64": 324, "aarch64": 283, "riscv64": 283}
_GLOBAL = 1
# Far longer than a program runs.
_SECONDS = 0.05
_LIBC = ctypes.CDLL(None)  # once: ctypes makes a class for each


def wait_for_programs() -> None:
    """Returns when all BPF programs that ran at the call have ended.

    They run inside of RCU's read sections, and membarrier(2) of the global kind waits for these
    (synchronize_rcu() in kernel/sched/membarrier.c). Where it may not be called, it sleeps.
    """
    number = _NUMBERS.get(platform.machine())
    if number is not None and _LIBC.syscall(number, _GLOBAL, 0, 0) == 0:
        return
    time.sleep(_SECONDS)
