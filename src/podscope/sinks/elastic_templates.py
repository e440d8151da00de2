# SPDX-License-Identifier: Apache-2.0
"""What Elasticsearch and OpenSearch are told of rows: names, types, templates, retention.

All of it is made from the fields of a kind of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from podscope import red
from podscope.schema import Field
from podscope.sinks.rows import SERVICE

# Changes when older templates must make room.
VERSION = 1
# Kinds of rows that are sums, with histograms.
SUMS = frozenset({"http", SERVICE})
# Names of ECS, where it has one. https://www.elastic.co/docs/reference/ecs
ECS = {
    "time": "@timestamp",
    "trace_id": "trace.id",
    "span_id": "span.id",
    "process.executable.name": "process.name",
    "network.protocol.name": "network.protocol",
    "network.protocol.version": "http.version",
    "http.request.body.size": "http.request.body.bytes",
    "http.response.body.size": "http.response.body.bytes",
    "side": "podscope.side",
    "podscope.peer": "podscope.peer.class",
    "interval": "podscope.interval",
    "count": "podscope.count",
}
# A duration of one event is ECS' event.duration, in nanoseconds.
EVENT_DURATION = "event.duration"
_IP = frozenset({"network.peer.address", "client.address"})
_LONG_TEXTS = frozenset({"url.path", "url.query", "user_agent.original"})
_TYPES = {"int": "long", "float": "double", "time": "date_nanos"}
LE_NAMES = (
    *(f"duration.le_{bound * 1000:g}ms" for bound in red.CLASSIC_BOUNDS),
    "duration.le_inf",
)
HISTOGRAM = "duration.histogram"
_STREAMS = {"http": "http", SERVICE: "services", "request": "requests"}


@dataclass(frozen=True)
class Asset:
    """One object of a server: where it is put, and what it is."""

    path: str
    body: dict[str, Any]


def names(fields: Sequence[Field]) -> dict[str, str]:
    """What each field is called there, by its name.

    A name cannot have a value and names inside of it: the value is then called ``value``.
    """
    found = {one.name: EVENT_DURATION if one.name == "duration" else one.name for one in fields}
    found |= {name: ECS[name] for name in found if name in ECS}
    told = set(found.values())
    holders = {name for name in told for other in told if other.startswith(f"{name}.")}
    return {name: f"{to}.value" if to in holders else to for name, to in found.items()}


def stream(kind: str, dataset: str) -> str:
    """The data stream of a kind of rows."""
    if kind in _STREAMS:
        return f"podscope-{_STREAMS[kind]}-{dataset}"
    return f"podscope-events-{kind}.{dataset}"


def properties(fields: Sequence[Field], kind: str, *, histograms: bool) -> dict[str, Any]:
    """The type of each field, by its name."""
    made: dict[str, Any] = {
        "event.dataset": {"type": "keyword"},
        "event.kind": {"type": "keyword"},
        "host.name": {"type": "keyword"},
        "k8s.cluster.name": {"type": "keyword"},
    }
    called = names(fields)
    for one in fields:
        made[called[one.name]] = _type(one)
    if kind in SUMS:
        made |= {name: {"type": "long"} for name in LE_NAMES}
        if histograms:
            made[HISTOGRAM] = {"type": "histogram"}
    return made


def _type(one: Field) -> dict[str, Any]:
    if one.name == "duration":
        return {"type": "long"}
    if one.type != "text":
        return {"type": _TYPES[one.type]}
    if one.name in _IP:
        return {"type": "ip", "ignore_malformed": True}
    return {"type": "keyword", "ignore_above": 8191 if one.name in _LONG_TEXTS else 1024}


def template_name(kind: str) -> str:
    """What the templates of a kind are called."""
    return f"podscope-{kind}"


@dataclass(frozen=True)
class Abilities:
    """What a server has, as far as is known.

    Attributes:
        lifecycle: indexes can be deleted by their age: ILM or ISM.
        histograms: the type ``histogram``.
    """

    lifecycle: bool = True
    histograms: bool = True


@dataclass(frozen=True)
class Found:
    """Templates of a kind of rows that a server has.

    Attributes:
        version: of who made them.
        properties: types of fields, by name.
        histograms: whether the server has the type ``histogram``.
    """

    version: int
    properties: dict[str, Any]
    histograms: bool

    def serve(self, wanted: Mapping[str, Any]) -> bool:
        """Whether they have all the fields that are wanted, or are of a newer version."""
        types = {name: one.get("type") for name, one in self.properties.items()}
        same = all(types.get(name) == one["type"] for name, one in wanted.items())
        return self.version > VERSION or (self.version == VERSION and same)


def found(index: Mapping[str, Any], component: Mapping[str, Any]) -> Found:
    """What the answers of a server say of its templates."""
    mappings = component.get("template", {}).get("mappings", {})
    versions = (index.get("version", 0), component.get("version", 0))
    has = component.get("_meta", {}).get("histograms", True)
    return Found(min(versions), dict(_flat("", mappings.get("properties", {}))), has)


def _flat(above: str, some: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields by their whole names, however a server groups them."""
    for name, one in some.items():
        if "properties" in one:
            yield from _flat(f"{above}{name}.", one["properties"])
        else:
            yield f"{above}{name}", one


def templates(
    kind: str,
    fields: Sequence[Field],
    *,
    opensearch: bool,
    can: Abilities,
    before: Found | None = None,
) -> tuple[Asset, Asset]:
    """The templates of a kind of rows, in the order of their making.

    Args:
        kind: of the rows.
        fields: theirs.
        opensearch: OpenSearch, and not Elasticsearch.
        can: what the server has.
        before: templates of the same version, whose fields stay: agents differ in theirs.
    """
    name = template_name(kind)
    settings: dict[str, Any] = {"index.codec": "best_compression"}
    if can.lifecycle and not opensearch:
        settings["index.lifecycle.name"] = "podscope"
    mappings = {
        "dynamic_templates": [
            {"texts": {"match_mapping_type": "string", "mapping": {"type": "keyword"}}}
        ],
        "date_detection": False,
        "properties": dict(before.properties if before is not None else ())
        | properties(fields, kind, histograms=can.histograms),
    }
    index = {
        "index_patterns": [stream(kind, "*")],
        "data_stream": {},
        "composed_of": [name],
        "priority": 200,
        "version": VERSION,
    }
    component = {"template": {"settings": settings, "mappings": mappings}, "version": VERSION}
    meta = {"_meta": {"podscope": VERSION, "histograms": can.histograms}}
    return (
        Asset(f"/_component_template/{name}", component | meta),
        Asset(f"/_index_template/{name}", index | meta),
    )


def lifecycle(*, opensearch: bool, retention: str, rollover: str) -> Asset:
    """When data goes: a policy of ILM or ISM.

    Args:
        opensearch: OpenSearch, and not Elasticsearch.
        retention: age at which data goes, as ``7d``.
        rollover: age at which an index is done, as ``1d``.
    """
    if not opensearch:
        phases = {
            "hot": {
                "actions": {
                    "rollover": {"max_age": rollover, "max_primary_shard_size": "20gb"},
                }
            },
            "delete": {"min_age": retention, "actions": {"delete": {}}},
        }
        return Asset("/_ilm/policy/podscope", {"policy": {"phases": phases}})
    states = [
        {
            "name": "hot",
            "actions": [
                {"rollover": {"min_index_age": rollover, "min_primary_shard_size": "20gb"}}
            ],
            "transitions": [
                {"state_name": "delete", "conditions": {"min_rollover_age": retention}}
            ],
        },
        {"name": "delete", "actions": [{"delete": {}}], "transitions": []},
    ]
    policy = {
        "description": "podscope",
        "default_state": "hot",
        "states": states,
        "ism_template": [{"index_patterns": ["podscope-*"], "priority": 100}],
    }
    return Asset("/_plugins/_ism/policies/podscope", {"policy": policy})
