# SPDX-License-Identifier: Apache-2.0
"""The fields of rows of traces: maps as they stand, and what programs print."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

from podscope.schema import Array
from podscope.schema import Field
from podscope.schema import View
from podscope.schema_events import END
from podscope.schema_events import TIME
from podscope.schema_events import attribute
from podscope.schema_events import value

# Maps, and single things that were printed.
MAPS, LINES = "trace", "trace_line"
KINDS = (MAPS, LINES)
KEY = "podscope.trace.label."
COLUMN = "podscope.trace.column."
_METRIC = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,200}")
# Labels that readers of metrics have for themselves.
_TAKEN = frozenset({"le", "quantile", "job", "instance", "host_name", "k8s_cluster_name"})


def _text(name: str) -> Callable[[View], Array]:
    return lambda view: np.asarray(view.records[name])


def _number(name: str) -> Callable[[View], Array]:
    return lambda view: np.asarray(view.records[name])


def _start(view: View) -> Array:
    return np.asarray(view.records["start_ns"].astype("M8[ns]"))


_WHOSE = (
    attribute("podscope.trace.name", "name", _text("name"), "name of the trace; in a cluster only"),
    attribute(
        "podscope.trace.program", "program", _text("program"), "the script, where it has a name"
    ),
    attribute(
        "k8s.namespace.name", "namespace", _text("namespace"), "namespace of the pod", label=True
    ),
    attribute(
        "k8s.pod.name", "pod", _text("pod"), "the pod, where that is known: --by pod", label=True
    ),
    attribute(
        "k8s.node.name", "node", _text("node"), "the node, where that is known: --by node",
        label=True,
    ),
)  # fmt: skip
TRACE: tuple[Field, ...] = (
    END,
    *_WHOSE,
    attribute("podscope.trace.map", "map", _text("map"), "the map, as @bytes"),
    attribute(
        "podscope.trace.type",
        "type",
        _text("type"),
        "count, sum, min, max, avg, stats, hist, lhist, or value for what is set",
    ),
    attribute(
        "podscope.trace.key", "key", _text("key"), "the key, its parts with commas between them"
    ),
    attribute(
        "podscope.trace.metric", "metric", _text("metric"), "the metric that --metric makes of it"
    ),
    value(
        "podscope.trace.start", "start_ns", ("time", "ns"), _start, "when counting began, RFC 3339"
    ),
    value(
        "podscope.trace.value",
        "value",
        ("float", ""),
        _number("value"),
        "the number; of avg and stats the total",
    ),
    attribute(
        "podscope.trace.text",
        "text",
        _text("text"),
        "a value that is no number, or the digits of one that a float cannot hold",
    ),
    attribute(
        "podscope.trace.count",
        "count",
        _number("count"),
        "of avg and stats how many values; of histograms how many are in the bucket",
        type="int",
    ),
    value(
        "podscope.trace.bucket.min",
        "low",
        ("float", ""),
        _number("low"),
        "least number of the bucket; absent: it has none",
    ),
    value(
        "podscope.trace.bucket.max",
        "high",
        ("float", ""),
        _number("high"),
        "largest number of the bucket, in it; absent: it has none",
    ),
)
TRACE_LINE: tuple[Field, ...] = (
    TIME,
    *_WHOSE,
    attribute("podscope.trace.text", "text", _text("text"), "what was printed, without its end"),
)
FIELDS = {MAPS: TRACE, LINES: TRACE_LINE}


def is_metric_name(text: str) -> bool:
    """Whether it can be the name of a metric, for OpenTelemetry and Prometheus both."""
    return _METRIC.fullmatch(text) is not None


def label(title: str) -> str:
    """What a part of a key is called as a label: ``args_ret`` for ``args.ret``."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", title).strip("_").replace("__", "_") or "key"
    return f"key_{name}" if name[0].isdigit() or name in _TAKEN else name


def key_fields(names: Sequence[str]) -> tuple[Field, ...]:
    """Fields of the parts of keys, by their labels; the members are ``key0`` and on."""
    return tuple(
        attribute(f"{KEY}{name}", f"key{n}", _text(f"key{n}"), "a part of the key", label=True)
        for n, name in enumerate(names)
    )


def column_fields(names: Sequence[str]) -> tuple[Field, ...]:
    """Fields of the columns that a script names; the members are ``column0`` and on."""
    return tuple(
        attribute(f"{COLUMN}{name}", f"column{n}", _text(f"column{n}"), "a column of the script")
        for n, name in enumerate(names)
    )
