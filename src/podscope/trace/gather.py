# SPDX-License-Identifier: Apache-2.0
"""What several nodes say of one trace, as one answer that tells how whole it is."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace

from podscope.trace.maps import MapShape
from podscope.trace.reports import Report
from podscope.trace.tables import MERGED
from podscope.trace.tables import MapTable
from podscope.trace.tables import apart
from podscope.trace.tables import merged_maps


@dataclass(frozen=True)
class Gathered:
    """Reports of nodes, by the name of the node.

    Attributes:
        reports: what came.
        expected: nodes that were asked; those that did not answer have no report.
        nodes: by the name of a report its node, where one node has several.
    """

    reports: Mapping[str, Report]
    expected: tuple[str, ...] = ()
    nodes: Mapping[str, str] = field(default_factory=dict)

    def maps(self, *, by_node: bool = False) -> dict[str, MapTable]:
        """One table for each map: merged, or with the node as the first part of each key.

        Values that are set have no sum: they are always apart, but where one node alone has them.
        """
        nodes = {node: report.maps for node, report in self.reports.items()}
        if len(nodes) == 1 and not by_node:
            (maps,) = nodes.values()
            return dict(maps)
        if not by_node:
            return merged_maps(nodes)
        several: dict[str, dict[str, Mapping[str, MapTable]]] = {}
        for report, maps in nodes.items():
            several.setdefault(self.nodes.get(report, report), {})[report] = maps
        nodes = {
            node: merged_maps(found) if len(found) > 1 else next(iter(found.values()))
            for node, found in several.items()
        }
        names = dict.fromkeys(name for maps in nodes.values() for name in maps)
        return {
            name: _by_node({node: maps[name] for node, maps in nodes.items() if name in maps})
            for name in names
        }

    def shapes(self) -> dict[str, MapShape]:
        """What the parts of keys are called, the node's not among them."""
        return {
            name: shape for report in self.reports.values() for name, shape in report.shapes.items()
        }

    def told_shapes(self, *, by_node: bool = False) -> dict[str, MapShape]:
        """Shapes of `maps`: with the node as the first part of keys, where it is."""
        maps = self.maps(by_node=by_node) if self.reports else {}
        made = {}
        for name, shape in self.shapes().items():
            width = max((len(key) for key in maps[name].keys), default=0)
            added = width == len(shape.titles) + 1
            made[name] = replace(shape, titles=("node", *shape.titles)) if added else shape
        return made

    def lost(self) -> dict[str, int]:
        """What is missing on all nodes together, by reason."""
        total: dict[str, int] = {}
        for report in self.reports.values():
            for reason, count in report.lost.items():
                total[reason] = total.get(reason, 0) + count
        return total

    def notes(self) -> list[str]:
        """What keeps the answer from being whole, or one: a line each."""
        said = [f"{node}: no answer" for node in self.expected if node not in self.reports]
        failed: dict[str, list[str]] = {}
        for node, report in self.reports.items():
            if report.failed:
                failed.setdefault(report.failed, []).append(node)
        said += [f"{', '.join(nodes)}: {why}" for why, nodes in failed.items()]
        told = [note for report in self.reports.values() for note in report.notes]
        said += dict.fromkeys(told)
        for node, report in self.reports.items():
            if not report.failed and not report.ended:
                said.append(f"{node}: did not tell its end; what it told last is counted")
            said += [f"{node}: {name} is full with {n} entries" for name, n in report.full.items()]
        versions = {report.about.bpftrace for report in self.reports.values()}
        if len(versions) > 1:
            said.append(f"nodes have different versions of bpftrace: {', '.join(sorted(versions))}")
        if len({report.about.program for report in self.reports.values()}) > 1:
            said.append("nodes ran different programs")
        return said

    def whole(self) -> bool:
        """Whether every node that was asked has told its end."""
        told = all(one.ended and not one.failed for one in self.reports.values())
        return told and set(self.expected) <= set(self.reports)


def _by_node(parts: Mapping[str, MapTable]) -> MapTable:
    """Tables one below the other, of the kind that they have where that is one."""
    kinds = {one.kind for one in parts.values()}
    if len(kinds) > 1 or not kinds <= set(MERGED):
        return apart(parts)
    named = [_named(node, one) for node, one in parts.items()]
    merged = merged_maps({str(number): {one.name: one} for number, one in enumerate(named)})
    (made,) = merged.values()
    return made


def _named(node: str, one: MapTable) -> MapTable:
    return replace(one, keys=tuple((node, *key) for key in one.keys))


def by_names(reports: Sequence[tuple[str, Report]]) -> dict[str, Report]:
    """Reports by the name of their node; where two have the same, by where they come from."""
    nodes = [report.about.node for _, report in reports]
    return {
        (node if nodes.count(node) == 1 else f"{node} ({place})"): report
        for node, (place, report) in zip(nodes, reports, strict=True)
    }
