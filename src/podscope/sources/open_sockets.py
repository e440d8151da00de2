# SPDX-License-Identifier: Apache-2.0
"""Who owns the sockets that were open before podscope started."""

from __future__ import annotations

from podscope.kernel.libbpf import BpfError
from podscope.kernel.objects import BpfObject

PROGRAM = "http_open_sockets"


def note_open_sockets(program: BpfObject) -> None:
    """Notes an owner with every TCP socket that a process has open now.

    One walk by the kernel's task_file iterator. Kernels without it (the object then has no
    such program) leave the owner of older connections unknown.
    """
    if PROGRAM not in program.programs():
        return
    try:
        program.run_iter(PROGRAM)
    except BpfError:
        return
