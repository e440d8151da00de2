# SPDX-License-Identifier: Apache-2.0
"""Whose the events of a confined program are: names of the parts of a target, by cgroup."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping


class Owners:
    """Names of cgroups.

    Args:
        cgroups: for each name what gives the ids of its cgroups as they are now.
    """

    def __init__(self, cgroups: Mapping[str, Callable[[], Mapping[int, str]]]) -> None:
        self._cgroups = cgroups
        self._names: dict[int, str] = {}
        self._unknown: set[int] = set()

    @property
    def only(self) -> str:
        """The name of all, where there is one; else empty."""
        return next(iter(self._cgroups)) if len(self._cgroups) == 1 else ""

    def name(self, cgroup: int) -> str:
        """Whose a cgroup is; the id as text if it is nobody's, or gone before it was seen."""
        if cgroup not in self._names and cgroup not in self._unknown:
            self._look()
            if cgroup not in self._names:
                self._unknown.add(cgroup)
        return self._names.get(cgroup) or f"cgroup {cgroup}"

    def _look(self) -> None:
        for name, cgroups in self._cgroups.items():
            self._names |= dict.fromkeys(cgroups(), name)
