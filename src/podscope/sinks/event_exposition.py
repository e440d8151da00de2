# SPDX-License-Identifier: Apache-2.0
"""Metrics of the kinds of rows beside HTTP as text 0.0.4 or OpenMetrics 1.0."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from podscope import red
from podscope.schema import Array
from podscope.schema_metrics import Metric
from podscope.sinks.cumulative import Labels
from podscope.sinks.event_totals import EventShot

_BOUNDS = (*(str(bound) for bound in red.CLASSIC_BOUNDS), "+Inf")
# Other threads wait no longer than the text of so many takes.
_SERIES_AT_ONCE = 256


def head(name: str, kind: str, unit: str, text: str, openmetrics: bool) -> bytes:
    """The lines before a family's samples."""
    if openmetrics:
        told = f"# UNIT {name} {unit}\n" if unit else ""
        return f"# TYPE {name} {kind}\n{told}# HELP {name} {text}\n".encode()
    family = f"{name}_total" if kind == "counter" else name
    return f"# HELP {family} {text}\n# TYPE {family} {kind}\n".encode()


def escaped(value: str) -> str:
    """A label's value between its quotes."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def families(
    metrics: Sequence[Metric], shot: EventShot, labels: Sequence[Labels], openmetrics: bool
) -> Iterator[bytes]:
    """Each metric with its samples; none of which no series has a value.

    Args:
        metrics: of the kind, as the columns of the shot's values.
        shot: the totals.
        labels: of all series, by place.
        openmetrics: in which of the two forms.
    """
    texts = [_text(labels[place]) for place in shot.places.tolist()]
    for column, metric in enumerate(metrics):
        values = shot.values[:, column]
        some = np.flatnonzero(~np.isnan(values))
        if not len(some):
            continue
        name = metric.prometheus_name
        yield head(name, metric.type, metric.prometheus_unit, metric.text, openmetrics)
        for start in range(0, len(some), _SERIES_AT_ONCE):
            part = some[start : start + _SERIES_AT_ONCE]
            mine = [texts[row] for row in part.tolist()]
            lines = (
                _histogram(name, mine, shot.le[part], values[part])
                if metric.type == "histogram"
                else _plain(name, metric.type, mine, values[part])
            )
            yield "".join(lines).encode()


def _text(labels: Labels) -> str:
    told = sorted((name.replace(".", "_"), str(value)) for name, value in labels)
    return ",".join(f'{name}="{escaped(value)}"' for name, value in told)


def _plain(name: str, kind: str, labels: Sequence[str], values: Array) -> Iterator[str]:
    sample = f"{name}_total" if kind == "counter" else name
    for one, value in zip(labels, values.tolist(), strict=True):
        yield f"{sample}{{{one}}} {int(value) if value.is_integer() else repr(value)}\n"


def _histogram(name: str, labels: Sequence[str], le: Array, sums: Array) -> Iterator[str]:
    for one, counts, total in zip(labels, le.tolist(), sums.tolist(), strict=True):
        comma = "," if one else ""
        for bound, count in zip(_BOUNDS, counts, strict=True):
            yield f'{name}_bucket{{{one}{comma}le="{bound}"}} {count}\n'
        yield f"{name}_sum{{{one}}} {total!r}\n{name}_count{{{one}}} {counts[-1]}\n"
