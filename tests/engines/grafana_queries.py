# SPDX-License-Identifier: Apache-2.0
"""What Grafana does between a dashboard and a server: variables, macros, requests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from podscope.dashboards import files

Object = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """One query of one panel."""

    source: str
    board: str
    panel: str
    kind: str
    target: Object

    def __str__(self) -> str:
        return f"{self.board}: {self.panel} {self.target['refId']}"


def dashboards(source: str) -> dict[str, Object]:
    """The dashboards of a data source, by the names of their boards."""
    made = files.files("grafana")
    return {
        path.rpartition("/")[2].removesuffix(".json"): json.loads(text)
        for path, text in made.items()
        if path.startswith(f"grafana/dashboards/{source}/")
    }


def queries(source: str) -> Iterator[Query]:
    """All queries of all panels."""
    for board, made in dashboards(source).items():
        for panel in made["panels"]:
            for target in panel.get("targets", ()):
                yield Query(source, board, panel["title"], panel["type"], target)


def variables(source: str) -> Iterator[tuple[str, Object]]:
    """All variables that are asked for, with the names of their boards."""
    for board, made in dashboards(source).items():
        for one in made["templating"]["list"]:
            if one["type"] == "query":
                yield board, one


def all_of(made: Object) -> dict[str, str]:
    """Each variable as if 'All' was chosen."""
    return {
        one["name"]: one["allValue"] if one["type"] == "query" else ""
        for one in made["templating"]["list"]
        if one["type"] in ("query", "textbox")
    }


def substituted(text: str, values: Mapping[str, str]) -> str:
    """``$name`` and ``${name}`` replaced, longer names first; what is left over is a mistake."""
    for name in sorted(values, key=len, reverse=True):
        text = re.sub(rf"\$(?:{name}\b|\{{{name}(?::\w+)?\}})", lambda _, n=name: values[n], text)
    assert "$" not in re.sub(r"\$[/\"'|)]", "", text), text
    return text
