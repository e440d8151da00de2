# SPDX-License-Identifier: Apache-2.0
"""Rows as container logs, by way of Filebeat's configuration and the pipelines, into a server.

The pipelines need modules that are to be had for OpenSearch alone. Filebeat itself is not to be
had: filebeat_reader.py does what it does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import recorded
import yaml
from filebeat_reader import Pod
from filebeat_reader import bulks

from conftest import Server
from podscope import render
from podscope.__main__ import main
from podscope.dashboards import files
from podscope.dashboards import shippers
from podscope.settings import Url
from podscope.sinks import elastic_templates
from podscope.sinks.elasticsearch import Elasticsearch
from podscope.sinks.elasticsearch import ElasticsearchSettings
from podscope.sinks.rows import Rows
from podscope.sinks.rows import of_batches
from podscope.sinks.rows import of_losses
from podscope.trace import jobs

RESOURCE = {"host.name": "node-1", "k8s.cluster.name": "test"}
AGENT = Pod(
    "podscope-agent-x7k",
    {"app.kubernetes.io/name": "podscope", "app.kubernetes.io/component": "agent"},
    "a" * 64,
)
OTHER = Pod("web-1", {"app.kubernetes.io/name": "web"}, "b" * 64)
TRACED = recorded.traced()


@pytest.fixture(scope="module")
def server(opensearch: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server that was set up as the documents say."""
    told = opensearch.ask("/_nodes/ingest")["nodes"]
    processors = {one["type"] for node in told.values() for one in node["ingest"]["processors"]}
    if not {"json", "script"} <= processors:
        pytest.skip("this distribution of the server has no pipelines (module ingest-common)")
    config = tmp_path_factory.mktemp("setup") / "podscope.yaml"
    config.write_text(f"sinks: [{{type: opensearch, url: '{opensearch.url}'}}]\n")
    assert main(["sinks", "setup", "--pipelines", "--config", str(config)]) == 0
    return opensearch


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The configuration of Filebeat, as the command writes it."""
    out = tmp_path_factory.mktemp("out")
    assert main(["dashboards", "filebeat", "--out", str(out)]) == 0
    return yaml.safe_load((out / "filebeat" / "filebeat.yml").read_text())


def recorded_rows() -> Iterator[Rows]:
    """Rows of the recorded run as an agent's sinks get them."""
    now = time.time_ns()
    yield from of_batches(recorded.batches(now), resource=RESOURCE)
    yield of_losses({"joined": 3}, now, RESOURCE)


def log(root: Path, pod: Pod, lines: list[tuple[str, str]]) -> None:
    """A container's log as containerd writes it: (stream, text), long ones in parts."""
    path = root / "var/log/containers" / f"{pod.name}_podscope_main-{pod.container_id}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for stream, text in lines:
        parts = [text[at : at + 300] for at in range(0, len(text), 300)] or [""]
        tags = ["P"] * (len(parts) - 1) + ["F"]
        written += [
            f"2026-01-01T00:00:00.000000001Z {stream} {tag} {part}\n"
            for tag, part in zip(tags, parts, strict=True)
        ]
    path.write_text("".join(written))


def ship(server: Server, config: dict[str, Any], pods: list[Pod], root: Path) -> list[Any]:
    """Sends all bulks; the items of the answers."""
    items = []
    for pipeline, index, body in bulks(config, pods, root):
        told = server.ask_raw(f"/{index}/_bulk?pipeline={pipeline}&refresh=true", body)
        items += [item["create"] for item in told["items"]]
    return items


def documents(server: Server, index: str) -> list[dict[str, Any]]:
    """All documents of a data stream."""
    server.ask(f"/{index}/_refresh", method="POST")
    hits = server.ask(f"/{index}/_search", {"size": 1000})["hits"]["hits"]
    return [hit["_source"] for hit in hits]


def test_rows_of_an_agents_log_are_the_documents_that_its_sink_would_write(
    server, config, tmp_path
):
    # GIVEN an agent whose log has all its rows and a message, and the log of another pod
    made = [*recorded_rows()]
    lines = [("stderr", "podscope: agent of node-1 is ready"), ("stdout", "a banner")]
    for rows in made:
        fields, columns = rows.with_resource()
        text = render.json_lines(rows.kind, fields, columns)
        lines += [("stdout", line) for line in text.splitlines()]
    log(tmp_path, AGENT, lines)
    log(tmp_path, OTHER, [("stdout", '{"kind":"http","time":"2026-01-01T00:00:00Z"}')])

    # WHEN
    items = ship(server, config, [AGENT, OTHER], tmp_path)

    # THEN
    assert [item for item in items if item["status"] != 201 and "error" in item] == []
    settings = ElasticsearchSettings(type="opensearch", url=Url(server.url), dataset="compared")
    sink = Elasticsearch(settings)
    for rows in made:
        # Bounds travel by the sink alone.
        sink.send(replace(rows, le=None, buckets=None))
        shipped = documents(server, elastic_templates.stream(rows.kind, "default"))
        wanted = documents(server, elastic_templates.stream(rows.kind, "compared"))
        assert normal(shipped) == normal(wanted)
    assert not server.ask("/podscope-events-unread.default/_count").get("count")


def normal(docs: list[dict[str, Any]]) -> list[str]:
    """Documents that can be compared: names without nesting, numbers rounded, in some order."""
    return sorted(json.dumps(dict(sorted(flat(doc)))) for doc in docs)


def flat(doc: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in doc.items():
        if above + name == "log":
            continue
        if isinstance(value, dict):
            yield from flat(value, f"{above}{name}.")
        else:
            number = isinstance(value, int | float)
            yield above + name, round(float(value), 6) if number else value


def test_a_line_that_is_read_once_more_makes_no_second_document(server, config, tmp_path):
    # GIVEN
    pod = replace(AGENT, container_id="c" * 64)
    rows = next(rows for rows in recorded_rows() if rows.kind == "oom")
    fields, columns = rows.with_resource()
    log(tmp_path, pod, [("stdout", render.json_lines("oom", fields, columns).strip())])
    first = ship(server, config, [pod], tmp_path)

    # WHEN
    second = ship(server, config, [pod], tmp_path)

    # THEN
    assert [item["status"] for item in first] == [201]
    assert [item["status"] for item in second] == [409]


@pytest.mark.parametrize("label", [jobs.ROWS_LABEL, shippers.OLDER_LABEL])
@pytest.mark.parametrize("script", ["tcpaccept", "tcplife", "tcpstate", "tcpwin"])
def test_rows_of_a_script_arrive_with_their_types(server, config, tmp_path, script, label):
    # GIVEN a pod of a job with the label, whose log has the rows and a summary
    rows = [one["row"] for one in TRACED if one["script"] == script]
    pod = Pod(f"{script}-0", {label: script}, f"{script}{label}".encode().hex(), "node-7")
    summary = json.dumps({"kind": "summary", "seconds": 3, "lost": {}})
    log(tmp_path, pod, [("stdout", json.dumps(row)) for row in rows] + [("stdout", summary)])

    # WHEN
    items = ship(server, config, [pod], tmp_path)

    # THEN
    assert all(item["status"] == 201 for item in items), items
    index = shippers.script_stream(script)
    docs = documents(server, index)
    for row in rows:
        told = [(*shippers.COLUMNS[name], row[name]) for name in row if name in shippers.COLUMNS]
        wanted = {to: value * by if by else str(value) for to, _, by, value in told}
        wanted["@timestamp"] = pytest.approx(row["time"] * 1000)
        wanted |= {"k8s.node.name": "node-7", "event.dataset": f"podscope.trace.{script}"}
        assert any(fits(wanted, doc) for doc in docs), (row, docs)
    for to, kind, *_ in told:
        (found,) = server.ask(f"/{index}/_mapping/field/{to}").values()
        (mapping,) = found["mappings"][to]["mapping"].values()
        assert mapping["type"] == kind


def fits(wanted: dict[str, Any], doc: dict[str, Any]) -> bool:
    """Whether a document has these values; of fractions as near as they are."""
    near = {to: pytest.approx(it) if isinstance(it, float) else it for to, it in wanted.items()}
    return all(doc.get(to) == it for to, it in near.items())


def test_what_is_no_row_is_kept_with_its_reason(server, config, tmp_path):
    # GIVEN a line of a kind that nobody knows
    pod = replace(AGENT, container_id="d" * 64)
    log(tmp_path, pod, [("stdout", '{"kind":"weather","time":"2026-01-01T00:00:00Z"}')])

    # WHEN
    ship(server, config, [pod], tmp_path)

    # THEN
    docs = documents(server, "podscope-events-unread.default")
    assert any("weather" in doc.get("error", {}).get("message", "") for doc in docs)


def test_names_of_labels_pipelines_and_streams_belong_together():
    # GIVEN
    made = shippers.assets(files.kinds_of_rows())
    pipelines = {one.path.rpartition("/")[2] for one in made if "_ingest" in one.path}
    patterns = [one.body["index_patterns"][0] for one in made if "_index_template" in one.path]

    # WHEN
    (provider,) = shippers.filebeat()["filebeat.autodiscover"]["providers"]
    used = {one["config"][0]["pipeline"] for one in provider["templates"]}

    # THEN
    assert used == pipelines
    for script in shippers.row_scripts():
        assert shippers.script_stream(script.name, "*") in patterns
        assert set(script.columns) <= set(shippers.COLUMNS)
