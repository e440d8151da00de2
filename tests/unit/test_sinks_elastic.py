# SPDX-License-Identifier: Apache-2.0
"""What Elasticsearch is sent, and what its answers to a bulk mean."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import sink_rows
from stub_server import stub_server

from podscope import schema
from podscope.__main__ import main
from podscope.settings import Secret
from podscope.settings import Url
from podscope.sinks import elastic_templates as templates
from podscope.sinks.elasticsearch import Elasticsearch
from podscope.sinks.elasticsearch import ElasticsearchSettings
from podscope.sinks.elasticsearch import documents
from podscope.sinks.plugin import Partly
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import Unavailable


@pytest.fixture
def stub():
    with stub_server() as made:
        yield made


def sink(url: str, **more: object) -> Elasticsearch:
    return Elasticsearch(
        ElasticsearchSettings(type="elasticsearch", url=Url(url), setup=False, **more)
    )


def item(status: int, reason: str = "") -> dict[str, object]:
    """An item of an answer to a bulk."""
    told = {"status": status}
    return {"create": told | ({"error": {"type": "e", "reason": reason}} if reason else {})}


def test_a_bulk_is_pairs_of_lines_with_the_key_of_the_user(stub, monkeypatch):
    # GIVEN
    monkeypatch.setenv("A_KEY", "abc==")
    stub.answers = [(200, {}, b'{"errors":false}')]
    rows = sink_rows.http_rows()

    # WHEN
    sink(stub.url, api_key=Secret(variable="A_KEY")).send(rows)

    # THEN
    (request,) = stub.requests
    assert request.path == "/podscope-http-default/_bulk"
    assert request.headers["authorization"] == "ApiKey abc=="
    assert request.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in request.body.splitlines()]
    assert [line["create"]["_id"] for line in lines[::2]] == rows.row_ids
    for place, line in enumerate(lines[1::2]):
        assert sum(line["duration.histogram"]["counts"]) == rows.columns["count"][place]
        assert line["duration.le_inf"] == rows.columns["count"][place]


@pytest.mark.parametrize("text", ["plain", 'a"b', "a\\b", "a\nb", "\x7f", "é", "\ud800", "a'b/"])
def test_any_text_arrives_in_the_document(stub, text):
    # GIVEN
    stub.answers = [(200, {}, b'{"errors":false}')]
    some = sink_rows.request_rows(2)
    texts = np.array([text, None], dtype=object)

    # WHEN
    sink(stub.url).send(replace(some, columns={**some.columns, "url.path": texts}))

    # THEN
    lines = [json.loads(line) for line in stub.requests[0].body.splitlines()]
    assert lines[1]["url.path"] == text
    assert "url.path" not in lines[3]


def test_items_are_told_apart_by_their_status(stub):
    # GIVEN
    items = [item(201), item(409, "there"), item(429, "full"), item(400, "bad"), item(400, "bad")]
    told = json.dumps({"errors": True, "items": items}).encode()
    stub.answers = [(200, {}, told)]
    rows = sink_rows.request_rows(5)

    # WHEN
    with pytest.raises(Partly) as caught:
        sink(stub.url).send(rows)

    # THEN
    assert caught.value.again.row_ids == rows.row_ids[2:3]
    ((refused, why),) = caught.value.refused
    assert (refused.row_ids, why) == (rows.row_ids[3:], "e: bad")
    assert str(caught.value) == "429: e: full"


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [(400, b"what", Refused), (503, b"", Unavailable), (200, b"<html>", Unavailable)],
)
def test_other_answers_are_no_success(stub, status, body, error):
    # GIVEN
    stub.answers = [(status, {}, body)]

    # WHEN / THEN
    with pytest.raises(error):
        sink(stub.url).send(sink_rows.request_rows())


KINDS = [
    ("http", schema.HTTP),
    ("request", schema.REQUEST),
    ("oom", sink_rows.event_rows().fields),
]


@pytest.mark.parametrize(("kind", "fields"), KINDS)
def test_no_field_is_inside_of_another(kind, fields):
    # GIVEN / WHEN
    names = set(templates.properties(fields, kind, histograms=True))

    # THEN
    assert not [name for name in names for other in names if other.startswith(f"{name}.")]


def test_policies_delete_what_is_old():
    # GIVEN / WHEN
    ilm = templates.lifecycle(opensearch=False, retention="7d", rollover="1d").body["policy"]
    ism = templates.lifecycle(opensearch=True, retention="7d", rollover="1d").body["policy"]

    # THEN
    assert ilm["phases"]["delete"] == {"min_age": "7d", "actions": {"delete": {}}}
    assert ilm["phases"]["hot"]["actions"]["rollover"]["max_age"] == "1d"
    hot, delete = ism["states"]
    assert hot["transitions"][0]["conditions"] == {"min_rollover_age": "7d"}
    assert delete["actions"] == [{"delete": {}}]


def test_a_dry_run_prints_what_would_be_made(tmp_path, capsys):
    # GIVEN
    file = tmp_path / "podscope.yaml"
    file.write_text("sinks: [{type: opensearch, url: 'http://127.0.0.1:1'}]\n")

    # WHEN
    code = main(["sinks", "setup", "--dry-run", "--config", str(file)])

    # THEN
    told = capsys.readouterr().out
    assert code == 0
    assert "PUT /_plugins/_ism/policies/podscope" in told
    assert "PUT /_index_template/podscope-http" in told


def test_a_server_that_is_not_there_is_one_line_and_exit_code_1(tmp_path, capsys):
    # GIVEN
    file = tmp_path / "podscope.yaml"
    file.write_text("sinks: [{type: opensearch, url: 'http://127.0.0.1:1'}]\n")

    # WHEN
    code = main(["sinks", "setup", "--config", str(file)])

    # THEN
    assert code == 1
    told = capsys.readouterr().err
    assert told.startswith("podscope: sink opensearch: http://127.0.0.1:1: ")
    assert len(told.splitlines()) == 1


def test_a_configuration_without_such_sinks_says_so(tmp_path, capsys):
    # GIVEN
    file = tmp_path / "podscope.yaml"
    file.write_text("sinks: []\n")

    # WHEN
    code = main(["sinks", "setup", "--config", str(file)])

    # THEN
    assert code == 0
    assert capsys.readouterr().err == f"podscope: {file} has no sink that needs to be set up\n"


def test_a_duration_that_is_not_known_is_left_out():
    # GIVEN a request and one whose duration nobody knows
    rows = sink_rows.request_rows(2)
    durations = rows.columns["duration"].copy()
    durations[1] = np.nan

    # WHEN
    body = documents(
        replace(rows, columns={**rows.columns, "duration": durations}), histograms=False
    )

    # THEN
    first, second = (json.loads(line) for line in body.splitlines()[1::2])
    assert first["event.duration"] == 2_500_000
    assert "event.duration" not in second


# --- retention, on servers that have it ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["elasticsearch", "opensearch"])
def test_retention_is_made_once_and_belongs_to_who_changes_it(stub, kind):
    # GIVEN a server with ILM or ISM, without anything of ours, and then with all of it
    settings = ElasticsearchSettings(type=kind, url=Url(stub.url))
    one = Elasticsearch(settings)
    no, yes = (404, {}, b"{}"), (200, {}, b"{}")
    stub.answers = [no, no, yes, yes, yes, no, no, yes, yes, yes, no]

    # WHEN it has no policy; and then one, and templates of another kind are made
    first = [*one.prepare("http", schema.HTTP)]
    second = [*one.prepare("request", schema.REQUEST)]

    # THEN
    path = (
        "/_ilm/policy/podscope" if kind == "elasticsearch" else "/_plugins/_ism/policies/podscope"
    )
    assert first[0] == f"{path} made" and second[0] == f"{path} is there already"
    puts = {request.path: json.loads(request.body) for request in stub.requests if request.body}
    assert [name for name in puts if name == path] == [path]
    component = puts["/_component_template/podscope-http"]["template"]["settings"]
    named = component.get("index.lifecycle.name")
    assert named == ("podscope" if kind == "elasticsearch" else None)
    if kind == "opensearch":
        assert puts[path]["policy"]["ism_template"][0]["index_patterns"] == ["podscope-*"]
