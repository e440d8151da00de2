# SPDX-License-Identifier: Apache-2.0
"""Every query of the dashboards for Elasticsearch, asked of servers that hold a recorded run.

Grafana's, and those of Kibana and OpenSearch Dashboards.
"""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import elastic_queries
import pytest
import recorded
from grafana_queries import Query
from grafana_queries import all_of
from grafana_queries import dashboards
from grafana_queries import queries
from grafana_queries import substituted
from grafana_queries import variables

from conftest import Server
from podscope.dashboards import files
from podscope.dashboards import kibana
from podscope.dashboards import shippers
from podscope.settings import Url
from podscope.sinks import elastic_templates
from podscope.sinks.elasticsearch import Elasticsearch
from podscope.sinks.elasticsearch import ElasticsearchSettings
from podscope.sinks.rows import of_batches
from podscope.sinks.rows import of_losses

SOURCE = "elasticsearch"
MINUTES = 2
# Other tests have data streams of their own there.
INDEX = ",".join(
    (
        *(f"podscope-{kind}-dashboards" for kind in ("http", "services", "requests")),
        "podscope-events-*.dashboards",
        "podscope-trace-*-dashboards",
    )
)
RESOURCE = {"host.name": "node-1", "k8s.cluster.name": "test"}
Place = tuple[Server, int, int]


@pytest.fixture(scope="module", params=["elasticsearch", "opensearch"])
def place(request: Any) -> Place:
    """Each of the two, with the run so often that it fills some minutes; these, in milliseconds."""
    server = request.getfixturevalue(request.param)
    end = time.time_ns()
    begin = end - MINUTES * 60 * 10**9
    settings = ElasticsearchSettings(type=request.param, url=Url(server.url), dataset="dashboards")
    sink = Elasticsearch(settings)
    for time_ns in range(begin + 10**10, end, 10**10):
        for rows in of_batches(recorded.batches(time_ns), resource=RESOURCE, also_by=sink.also_by):
            sink.send(rows)
        sink.send(of_losses({"joined": 3, "ring_full": 1}, time_ns, RESOURCE))
    sink.close()
    if has_pipelines(server):
        fill_traces(server, end // 10**9 - 30)
    server.ask(f"/{INDEX}/_refresh", method="POST")
    return server, begin // 10**6, end // 10**6


def fill_traces(server: Server, seconds: int) -> None:
    """Rows of scripts, by the pipelines."""
    for asset in shippers.assets(files.kinds_of_rows(), "dashboards", ilm=False):
        assert server.ask(asset.path, asset.body, method="PUT")["acknowledged"]
    for script in {one["script"] for one in recorded.traced()}:
        rows = [one["row"] for one in recorded.traced() if one["script"] == script]
        lines = []
        for place, row in enumerate(rows):
            log = {"offset": place, "file": {"path": script}}
            node = {"node": {"name": "node-1"}}
            event = {"message": json.dumps(row | {"time": seconds}), "log": log, "kubernetes": node}
            lines += ['{"create":{}}', json.dumps({"@timestamp": 0, **event})]
        pipeline = shippers.script_pipeline(script)
        path = f"/podscope-events-unread.dashboards/_bulk?pipeline={pipeline}"
        told = server.ask_raw(path, "".join(f"{line}\n" for line in lines).encode())
        assert not told["errors"], told


def has_pipelines(server: Server) -> bool:
    """Whether the server has the processors of the pipelines."""
    told = server.ask("/_nodes/ingest")["nodes"].values()
    return any(one["type"] == "script" for node in told for one in node["ingest"]["processors"])


def search(place: Place, target: dict[str, Any], values: dict[str, str]) -> dict[str, Any]:
    """What a query of a panel gives."""
    server, begin, end = place
    query = substituted(target["query"], values)
    if "script" in json.dumps(target["metrics"]) and not has_scripts(server):
        pytest.skip("this distribution of the server has no scripts (module lang-painless)")
    told = server.ask(f"/{INDEX}/_search", elastic_queries.of_target(target, query, begin, end))
    assert "error" not in told and not told["_shards"].get("failures"), (query, told)
    return told


def has_scripts(server: Server) -> bool:
    """Whether the server runs scripts of Painless."""
    told = server.ask("/_script_language")["language_contexts"]
    return any(one["language"] == "painless" for one in told)


@pytest.mark.parametrize("query", [*queries(SOURCE)], ids=str)
def test_every_panel_has_rows(place, query):
    # GIVEN
    target = query.target

    # WHEN
    told = search(place, target, all_of(dashboards(SOURCE)[query.board]))

    # THEN
    if not target["bucketAggs"]:
        fields = set().union(*(hit["_source"] for hit in told["hits"]["hits"]))
        assert titles(query) <= fields
        return
    ids = [one["id"] for one in target["bucketAggs"]]
    shown = [one for one in target["metrics"] if not one.get("hide")]
    buckets = elastic_queries.leaves(told, ids)
    assert shown
    for metric in shown:
        assert any(elastic_queries.numbers(bucket, metric) for bucket in buckets), told
    # AND the columns of a table are there: fields, and metrics by Grafana's names of them
    names = {"sum": "Sum", "max": "Max", "bucket_script": "Bucket Script"}
    columns = {one["field"] for one in target["bucketAggs"]}
    columns |= {names[one["type"]] for one in shown if one["type"] in names}
    assert titles(query) <= columns


def titles(query: Query) -> set[str]:
    """Names of the columns that a table shows."""
    panels = dashboards(SOURCE)[query.board]["panels"]
    panel = next(one for one in panels if one["title"] == query.panel)
    options = [one["options"] for one in panel.get("transformations", ())]
    return {name for one in options for name in one.get("renameByName", ())}


@pytest.mark.parametrize("board", [*dashboards(SOURCE)])
def test_every_variable_has_values_and_narrows_those_below_it(place, board):
    # GIVEN
    server, begin, end = place
    chosen = all_of(dashboards(SOURCE)[board])

    # WHEN each is chosen in turn: the shop's namespace, and of others the first value alone
    for name, one in variables(SOURCE):
        if name != board:
            continue
        asked = json.loads(one["query"])
        body = elastic_queries.body(substituted(asked["query"], chosen), begin, end)
        body["aggs"] = {"1": {"terms": {"field": asked["field"], "size": asked["size"]}}}
        told = server.ask(f"/{INDEX}/_search", body)
        values = sorted(bucket["key"] for bucket in told["aggregations"]["1"]["buckets"])
        assert values, one["query"]
        chosen[one["name"]] = '"store"' if "store" in values else f'"{values[0]}"'

    # THEN
    assert not any("_exists_" in value for value in chosen.values())


def test_a_chosen_namespace_narrows_a_panel(place):
    # GIVEN
    query = next(one for one in queries(SOURCE) if one.panel == "Requests by workload")
    values = all_of(dashboards(SOURCE)["overview"]) | {"namespace": '("login" OR "store")'}

    # WHEN
    buckets = elastic_queries.leaves(search(place, query.target, values), ["by0", "by1"])

    # THEN
    assert {bucket["keys"][0] for bucket in buckets} == {"login", "store"}


def test_a_beginning_of_a_path_narrows_the_request_log(place):
    # GIVEN what a user types, as Grafana escapes it for Lucene
    query = next(one for one in queries(SOURCE) if one.panel == "Request log")
    values = all_of(dashboards(SOURCE)["requests"]) | {"path": r"\/products\/"}

    # WHEN
    hits = search(place, query.target, values)["hits"]["hits"]

    # THEN
    paths = {hit["_source"]["url.path"] for hit in hits}
    assert paths and all(path.startswith("/products/") for path in paths)


def test_rows_without_a_field_are_among_all_and_not_among_chosen_ones(place):
    # GIVEN the drop of a packet, which was nobody's
    query = next(one for one in queries(SOURCE) if one.panel == "Events of TCP")
    every = all_of(dashboards(SOURCE)["events"])

    def events(values: dict[str, str]) -> set[str]:
        hits = search(place, query.target, values)["hits"]["hits"]
        return {hit["_source"]["podscope.tcp.event"] for hit in hits}

    # WHEN / THEN
    assert "drop" in events(every)
    assert "drop" not in events(every | {"namespace": '"store"'})


def test_a_quantile_is_that_of_the_histogram(place):
    # GIVEN
    query = next(one for one in queries(SOURCE) if one.panel == "99th percentile")

    # WHEN
    told = search(place, query.target, all_of(dashboards(SOURCE)["overview"]))

    # THEN each interval is the same run
    buckets = elastic_queries.leaves(told, ["time"])
    found = {round(bucket["script"]["value"], 6) for bucket in buckets if "script" in bucket}
    rows = next(of_batches(recorded.batches(time.time_ns())))
    wanted = recorded.quantile(rows.le[rows.columns["side"] == "server"].sum(axis=0), 0.99)
    assert found == {round(wanted, 6)}


def test_fields_that_panels_name_are_fields_of_the_documents(place):
    # GIVEN the fields of all templates
    server, *_ = place
    known = {"_count"}
    for kind in ("http", "service", "request", "lost", "oom", "listen", "tcp", "tcp_event", "dns"):
        path = f"/_component_template/{elastic_templates.template_name(kind)}"
        (made,) = server.ask(path)["component_templates"]
        flat = made["component_template"]["template"]["mappings"]["properties"]
        known |= set(flat) | set(leaf_names(flat))

    # WHEN
    named = {
        part["field"]
        for query in queries(SOURCE)
        for part in itertools.chain(query.target["metrics"], query.target["bucketAggs"])
        if "field" in part
    }

    # THEN
    assert named <= known


def leaf_names(properties: dict[str, Any], above: str = "") -> list[str]:
    """Full names of fields in a mapping."""
    found = []
    for name, one in properties.items():
        whole = f"{above}{name}"
        found += leaf_names(one["properties"], f"{whole}.") if "properties" in one else [whole]
    return found


# --- Kibana and OpenSearch Dashboards ---------------------------------------------------------

SAVED = {one["id"]: one for one in kibana.objects()}
SHOWN = [
    (page["id"], reference["id"])
    for page in SAVED.values()
    if page["type"] == "dashboard"
    for reference in page["references"]
]


@pytest.mark.parametrize(("page", "name"), SHOWN, ids=lambda name: name)
def test_every_saved_object_has_rows(place, page, name):
    # GIVEN
    server, begin, end = place
    if page == "podscope-trace" and not has_pipelines(server):
        pytest.skip("this distribution of the server has no pipelines (module ingest-common)")
    attributes = SAVED[name]["attributes"]
    source = json.loads(attributes["kibanaSavedObjectMeta"]["searchSourceJSON"])
    (pattern,) = SAVED[name]["references"]
    index = SAVED[pattern["id"]]["attributes"]["title"].replace("*", "*dashboards")

    # WHEN
    if SAVED[name]["type"] == "search":
        body = elastic_queries.body(source["query"]["query"], begin, end) | {"size": 500}
        hits = server.ask(f"/{index}/_search", body)["hits"]["hits"]
        fields = set().union(*(hit["_source"] for hit in hits))
        assert set(attributes["columns"]) <= fields
        return
    state = json.loads(attributes["visState"])
    body = elastic_queries.of_visual(state, source["query"]["query"], begin, end)
    told = server.ask(f"/{index}/_search", body)

    # THEN
    assert "error" not in told and not told["_shards"].get("failures"), told
    groups = [one["id"] for one in state["aggs"] if one["schema"] != "metric"]
    buckets = elastic_queries.leaves(told, groups)
    for metric in (one for one in state["aggs"] if one["schema"] == "metric"):
        assert any(elastic_queries.numbers(bucket, metric) for bucket in buckets), told
