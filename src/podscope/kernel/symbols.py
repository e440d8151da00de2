# SPDX-License-Identifier: Apache-2.0
"""Names of the kernel's functions, by address, as its own ``%pB`` prints them.

Without rights of their own: a program of bpf/common/symbols.h asks. The formats of pointers are in
Documentation/core-api/printk-formats.rst.
"""

from __future__ import annotations

from collections.abc import Sequence

from podscope.kernel.maps import MmapArray
from podscope.kernel.objects import BpfObject

MOST_KEPT = 4096


class Symbols:
    """Functions by return address, each asked for once.

    Args:
        program: an object with bpf/common/symbols.h, loaded.
    """

    def __init__(self, program: BpfObject) -> None:
        self._program = program
        self._addresses = MmapArray.of(program.map("addresses"))
        self._known: dict[int, str] = {}

    def functions(self, addresses: Sequence[int]) -> list[str]:
        """The functions of a stack, innermost first; empty where the kernel knows none.

        Raises:
            BpfError: the kernel does not run the program.
        """
        if len(self._known) > MOST_KEPT:
            self._known.clear()
        wanted = sorted({address for address in addresses if address not in self._known})
        room = len(self._addresses.array)
        for first in range(0, len(wanted), room):
            part = wanted[first : first + room]
            self._known.update(zip(part, self._asked(part), strict=True))
        return [self._known[address] for address in addresses]

    def _asked(self, addresses: list[int]) -> list[str]:
        self._addresses.array[: len(addresses)] = addresses
        told = self._program.run_iter("print_symbols", "addresses").decode(errors="replace")
        return [function(line) for line in told.splitlines()[: len(addresses)]]


def function(line: str) -> str:
    """The function of ``name.part.0+0x12/0x340 [module]``, without what compilers append.

    Empty for what the kernel has no name for, which is printed as a number.
    """
    name = line.partition("+")[0].partition(".")[0]
    return "" if name == line or name.startswith("0x") else name
