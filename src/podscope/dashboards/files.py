# SPDX-License-Identifier: Apache-2.0
"""All files that ``podscope dashboards`` writes, by their paths; ``deploy/`` has the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping

import msgspec

from podscope import schema
from podscope import schema_metrics
from podscope.dashboards import grafana
from podscope.dashboards import kibana
from podscope.dashboards import shippers
from podscope.dashboards.elastic import ELASTICSEARCH
from podscope.dashboards.flux import FLUX
from podscope.dashboards.influxql import INFLUXQL
from podscope.dashboards.panels import BOARDS
from podscope.dashboards.panels import Object
from podscope.dashboards.panels import Source
from podscope.dashboards.promql import PROMETHEUS
from podscope.dashboards.promql import PROMETHEUS_NATIVE
from podscope.schema import Field
from podscope.sources import source as sources

SOURCES: tuple[Source, ...] = (PROMETHEUS, PROMETHEUS_NATIVE, INFLUXQL, FLUX, ELASTICSEARCH)


def _grafana() -> Iterator[tuple[str, str]]:
    for source in SOURCES:
        for board in BOARDS:
            made = grafana.dashboard(board, source)
            if made is not None:
                yield f"dashboards/{source.name}/{board.name}.json", as_json(made)


def as_json(made: Object) -> str:
    """As people read it, and a diff shows it."""
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def _filebeat() -> Iterator[tuple[str, str]]:
    yield "filebeat.yml", HEAD + msgspec.yaml.encode(shippers.filebeat()).decode()
    yield "trace-job.yaml", HEAD + msgspec.yaml.encode(shippers.example_job()).decode()
    for asset in shippers.assets(kinds_of_rows()):
        yield f"{asset.path.strip('/').removeprefix('_')}.json", as_json(asset.body)


def kinds_of_rows() -> dict[str, tuple[Field, ...]]:
    """The fields of all kinds of rows that agents write."""
    others = {kind: sources.fields_of(kind) for kind in sources.kinds()}
    first = {"http": schema.HTTP, "request": schema.REQUEST, "lost": schema_metrics.LOST}
    return first | others


HEAD = "# SPDX-License-Identifier: Apache-2.0\n"
# By what they are for.
_MAKERS: Mapping[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "grafana": _grafana,
    "kibana": lambda: iter([("podscope.ndjson", kibana.ndjson())]),
    "filebeat": _filebeat,
}
KINDS = tuple(_MAKERS)


def files(kind: str = "") -> dict[str, str]:
    """Texts by path.

    Args:
        kind: one of KINDS; empty: all of them.
    """
    chosen = [kind] if kind else KINDS
    return {f"{one}/{path}": text for one in chosen for path, text in _MAKERS[one]()}
