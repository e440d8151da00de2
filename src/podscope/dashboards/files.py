# SPDX-License-Identifier: Apache-2.0
"""All files that ``podscope dashboards`` writes, by their paths; ``deploy/`` has the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping

from podscope.dashboards import grafana
from podscope.dashboards.elastic import ELASTICSEARCH
from podscope.dashboards.flux import FLUX
from podscope.dashboards.influxql import INFLUXQL
from podscope.dashboards.panels import BOARDS
from podscope.dashboards.panels import Object
from podscope.dashboards.panels import Source
from podscope.dashboards.promql import PROMETHEUS

SOURCES: tuple[Source, ...] = (PROMETHEUS, INFLUXQL, FLUX, ELASTICSEARCH)


def _grafana() -> Iterator[tuple[str, str]]:
    for source in SOURCES:
        for board in BOARDS:
            made = grafana.dashboard(board, source)
            if made is not None:
                yield f"dashboards/{source.name}/{board.name}.json", as_json(made)


def as_json(made: Object) -> str:
    """As people read it, and a diff shows it."""
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


# By what they are for.
_MAKERS: Mapping[str, Callable[[], Iterator[tuple[str, str]]]] = {"grafana": _grafana}
KINDS = tuple(_MAKERS)


def files(kind: str = "") -> dict[str, str]:
    """Texts by path.

    Args:
        kind: one of KINDS; empty: all of them.
    """
    chosen = [kind] if kind else KINDS
    return {f"{one}/{path}": text for one in chosen for path, text in _MAKERS[one]()}
