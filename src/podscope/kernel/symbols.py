# SPDX-License-Identifier: Apache-2.0
"""Names of the kernel's functions, by address: /proc/kallsyms, proc(5)."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from pathlib import Path

KALLSYMS = Path("/proc/kallsyms")


class Symbols:
    """The functions of the kernel itself, read once.

    Addresses are 0 without the right to see them (kptr_restrict): nothing is found then.
    """

    def __init__(self, path: Path = KALLSYMS) -> None:
        found: list[tuple[int, str]] = []
        try:
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    address, kind, name = line.split(maxsplit=2)
                    if kind in "tTwW" and address.strip("0"):
                        found.append((int(address, 16), name.rstrip()))
        except OSError:
            pass
        found.sort()
        self._addresses = [address for address, _ in found]
        self._names = [name for _, name in found]

    def function(self, address: int) -> str:
        """The function that an address lies in, without what compilers append; or empty."""
        place = bisect.bisect_right(self._addresses, address) - 1
        # "name.isra.0", "name.cold"; of a module "name [module]"
        return self._names[place].split("\t")[0].partition(".")[0] if place >= 0 else ""

    def functions(self, addresses: Iterable[int]) -> list[str]:
        """The functions of a stack, innermost first."""
        return [self.function(address) for address in addresses]
