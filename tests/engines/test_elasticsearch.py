# SPDX-License-Identifier: Apache-2.0
"""Rows in a real Elasticsearch and a real OpenSearch, read back by searches."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from typing import Any

import pytest
import sink_rows

from podscope import render
from podscope import schema
from podscope.__main__ import main
from podscope.settings import Url
from podscope.sinks import elastic_templates as templates
from podscope.sinks.elasticsearch import Elasticsearch
from podscope.sinks.elasticsearch import ElasticsearchSettings
from podscope.sinks.plugin import Partly
from podscope.sinks.rows import Rows


@pytest.fixture(params=["elasticsearch", "opensearch"])
def server(request):
    """Each of the two, and data streams of the test's own."""
    found = request.getfixturevalue(request.param)
    return Place(found, request.param, f"test{abs(hash(request.node.name))}")


@dataclass(frozen=True)
class Place:
    """A server, and the end of its data streams' names."""

    server: Any
    kind: str
    dataset: str

    def settings(self, **more: object) -> ElasticsearchSettings:
        """Settings of the sink."""
        url = Url(self.server.url)
        return ElasticsearchSettings(type=self.kind, url=url, dataset=self.dataset, **more)

    def stream(self, kind: str) -> str:
        """The data stream of a kind."""
        return templates.stream(kind, self.dataset)

    def search(self, kind: str, **query: object) -> dict[str, Any]:
        """What a search of a kind's data stream gives."""
        self.server.ask(f"/{self.stream(kind)}/_refresh", method="POST")
        return self.server.ask(
            f"/{self.stream(kind)}/_search", {"size": 1000, "track_total_hits": True, **query}
        )

    def documents(self, kind: str) -> dict[str, dict[str, Any]]:
        """All documents of the data stream, by id."""
        return {hit["_id"]: hit["_source"] for hit in self.search(kind)["hits"]["hits"]}


@pytest.fixture
def sink(server):
    """The sink, to the server."""
    made = Elasticsearch(server.settings())
    yield made
    made.close()


@pytest.mark.parametrize(
    "make",
    sink_rows.KINDS,
    ids=lambda make: make.__name__,
)
def test_every_value_of_every_kind_arrives_with_its_type_and_time(sink, server, make):
    # GIVEN
    some = make()

    # WHEN
    sink.send(some)

    # THEN
    found = server.documents(some.kind)
    names = templates.names(some.fields)
    assert [*sorted(found)] == sorted(some.row_ids)
    for place, row_id in enumerate(some.row_ids):
        one = found[row_id]
        assert one.pop("event.dataset") == f"podscope.{some.kind}"
        assert (one.pop("host.name"), one.pop("k8s.cluster.name")) == ("node-1", "test")
        assert one.pop("event.kind") in ("metric", "event")
        for field in some.fields:
            value = one.pop(names[field.name], None)
            assert (value is None) == bool(some.absent(field)[place])
            if value is not None:
                assert value == wanted(field, some, place)
        assert all(name.startswith("duration.") for name in one)


def wanted(field: schema.Field, some: Rows, place: int) -> object:
    """A row's value as its document has it."""
    column = some.columns[field.name]
    if field.name == "duration":
        return round(column[place] * 1e9)
    if field.type == "time":
        return render.rfc3339(column)[place]
    value = column[place]
    return pytest.approx(value, abs=1e-9) if field.type == "float" else value


def test_types_are_those_of_the_fields(sink, server):
    # GIVEN / WHEN
    some = sink_rows.request_rows()
    sink.send(some)

    # THEN
    names = "@timestamp,event.duration,network.peer.address,url.path,http.response.status_code"
    told = server.server.ask(f"/{server.stream('request')}/_mapping/field/{names}")
    (index,) = told.values()
    types = {
        name: next(iter(one["mapping"].values()))["type"] for name, one in index["mappings"].items()
    }
    assert types == {
        "@timestamp": "date_nanos",
        "event.duration": "long",
        "network.peer.address": "ip",
        "url.path": "keyword",
        "http.response.status_code": "long",
    }
    inside = {"query": {"term": {"network.peer.address": "127.0.0.0/8"}}}
    assert server.search(some.kind, **inside)["hits"]["total"]["value"] == 3


def test_sums_and_percentiles_are_those_of_the_rows(sink, server):
    # GIVEN
    some = sink_rows.http_rows()

    # WHEN
    sink.send(some)

    # THEN
    sums = {
        "count": {"sum": {"field": "podscope.count"}},
        "fast": {"sum": {"field": "duration.le_50ms"}},
    }
    histogram = {"p": {"percentiles": {"field": templates.HISTOGRAM, "percents": [50, 99]}}}
    # Small distributions lack the type.
    told = server.search(some.kind, aggs=sums | (histogram if sink._can.histograms else {}))
    found = told["aggregations"]
    assert found["count"]["value"] == some.columns["count"].sum()
    assert found["fast"]["value"] == some.le[:, :4].sum()
    if sink._can.histograms:
        # 60 exchanges: 30 of 1 ms, 10 of 2, 12 of 30, 3 of 700, 5 of 40.
        values = found["p"]["values"]
        assert values["50.0"] == pytest.approx(0.0015, rel=0.5)
        assert values["99.0"] == pytest.approx(0.7, rel=0.1)


def test_rows_sent_again_are_no_others_and_equal_rows_stay_apart(sink, server):
    # GIVEN
    some = sink_rows.request_rows(50)

    # WHEN
    sink.send(some)
    sink.send(some)
    Elasticsearch(server.settings()).send(some.take(slice(10, 20)))

    # THEN
    assert sorted(server.documents(some.kind)) == sorted(some.row_ids)


def test_the_good_rows_of_a_bulk_are_taken_and_the_bad_ones_told(sink, server):
    # GIVEN a number that has no place in 64 bits
    some = sink_rows.event_rows()
    sink.send(some)
    columns = dict(sink_rows.event_rows().columns)
    columns["podscope.oom.pages"] = columns["podscope.oom.pages"].astype(object)
    bad = replace(sink_rows.event_rows(), columns=columns)
    columns["podscope.oom.pages"][1] = 2**70

    # WHEN
    with pytest.raises(Partly) as caught:
        sink.send(bad)

    # THEN
    assert caught.value.again is None
    ((refused, why),) = caught.value.refused
    assert refused.row_ids == bad.row_ids[1:]
    assert "podscope.oom.pages.value" in why and str(2**70) in why
    assert bad.row_ids[0] in server.documents(some.kind)


def test_rows_wait_for_a_stream_that_the_server_may_not_make(opensearch):
    # GIVEN a server that makes no indexes by itself; Elasticsearch makes data streams all the same
    place = Place(opensearch, "opensearch", "not-made")
    sink = Elasticsearch(place.settings())
    rows = sink_rows.request_rows(3)
    may_make = {"persistent": {"action.auto_create_index": False}}
    opensearch.ask("/_cluster/settings", may_make, method="PUT")
    try:
        # WHEN
        with pytest.raises(Partly, match="404: index_not_found_exception") as caught:
            sink.send(rows)
        opensearch.ask(f"/_data_stream/{place.stream('request')}", method="PUT")
        sink.send(caught.value.again)
    finally:
        may_make["persistent"]["action.auto_create_index"] = None
        opensearch.ask("/_cluster/settings", may_make, method="PUT")
        sink.close()

    # THEN
    assert not caught.value.refused
    assert set(place.documents("request")) == set(rows.row_ids)


def test_rows_wait_while_a_stream_is_closed_to_writes(sink, server):
    # GIVEN
    first, second = sink_rows.request_rows(1), sink_rows.request_rows(2)
    sink.send(first)
    block = f"/{server.stream('request')}/_settings"
    server.server.ask(block, {"index.blocks.write": True}, method="PUT")

    # WHEN
    with pytest.raises(Partly, match="403: cluster_block_exception") as caught:
        sink.send(second)
    server.server.ask(block, {"index.blocks.write": None}, method="PUT")
    sink.send(caught.value.again)

    # THEN
    assert not caught.value.refused
    assert set(server.documents("request")) == {*first.row_ids, *second.row_ids}


def test_streams_are_data_streams(sink, server):
    # GIVEN / WHEN
    made = (sink_rows.http_rows(), sink_rows.request_rows(), sink_rows.event_rows())
    for some in made:
        sink.send(some)

    # THEN
    for some in made:
        (index,) = {hit["_index"] for hit in server.search(some.kind)["hits"]["hits"]}
        assert index.startswith(f".ds-{server.stream(some.kind)}-")
        assert server.stream(some.kind).startswith(
            {"http": "podscope-http-", "request": "podscope-requests-"}.get(
                some.kind, f"podscope-events-{some.kind}."
            )
        )


def test_set_up_is_made_once_and_again_only_for_others(server, sink, capsys, tmp_path):
    # GIVEN a server with data, and a template of another version
    sink.send(sink_rows.http_rows())
    file = tmp_path / "podscope.yaml"
    text = f"type: {server.kind}, url: '{server.server.url}', dataset: {server.dataset}"
    file.write_text(f"sinks: [{{{text}}}]\n")
    path = "/_index_template/podscope-http"
    component = "/_component_template/podscope-http"
    older = server.server.ask(component)["component_templates"][0]["component_template"]
    older["version"] = 0
    server.server.ask(component, older, method="PUT")

    def run() -> list[str]:
        assert main(["sinks", "setup", "--config", str(file)]) == 0
        return capsys.readouterr().out.splitlines()

    # WHEN
    first, second = run(), run()

    # THEN
    assert f"{server.kind}: {path} made" in first
    assert f"{server.kind}: /{server.stream('http')} rolled over" in first
    assert len(second) == len({*sink_rows.KINDS})
    assert all(line.endswith(" is there already") for line in second)


def test_agents_whose_rows_have_other_fields_do_not_undo_each_other(server, sink):
    # GIVEN the template of one whose rows have fewer fields
    some = sink_rows.event_rows()
    kind = f"fewer{server.dataset}"
    path = f"/_component_template/podscope-{kind}"
    [*sink.prepare(kind, some.fields[:3])]

    # WHEN
    lines = [*sink.prepare(kind, some.fields)]
    again = [[*sink.prepare(kind, fields)] for fields in (some.fields[:3], some.fields)]

    # THEN
    assert f"{path} made" in lines
    assert all(len(some) == 1 and "is there already" in some[0] for some in again)
    found = server.server.ask(path)["component_templates"][0]["component_template"]
    assert "podscope.oom.share" in found["template"]["mappings"]["properties"]
