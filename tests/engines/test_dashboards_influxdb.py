# SPDX-License-Identifier: Apache-2.0
"""Every query of the dashboards for InfluxDB, asked of real servers that hold a recorded run."""

from __future__ import annotations

import csv
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import pytest
import recorded
from grafana_queries import Query
from grafana_queries import all_of
from grafana_queries import dashboards
from grafana_queries import queries
from grafana_queries import substituted
from grafana_queries import variables

from conftest import Server
from podscope.settings import Url
from podscope.sinks.influxdb import Influxdb
from podscope.sinks.influxdb import InfluxdbSettings
from podscope.sinks.rows import of_batches
from podscope.sinks.rows import of_losses

DATABASE = "dashboards"
MINUTES = 5
RESOURCE = {"host.name": "node-1", "k8s.cluster.name": "test"}


def fill(server: Server) -> tuple[int, int]:
    """Writes the run so often that it fills some minutes; when they begin and end."""
    end = time.time_ns()
    begin = end - MINUTES * 60 * 10**9
    url = Url(server.url)
    sink = Influxdb(InfluxdbSettings(type="influxdb", url=url, version=1, database=DATABASE))
    for time_ns in range(begin + 10**10, end, 10**10):
        for rows in of_batches(recorded.batches(time_ns), resource=RESOURCE, also_by=sink.also_by):
            sink.send(rows)
        sink.send(of_losses({"joined": 3, "ring_full": 1}, time_ns, RESOURCE))
    sink.close()
    return begin, end


@pytest.fixture(scope="module")
def filled(influxdb) -> tuple[Server, int, int]:
    """InfluxDB 1, and when its data begin and end."""
    return influxdb, *fill(influxdb)


@pytest.fixture(scope="module")
def with_flux(influxdb_flux) -> tuple[Server, int, int]:
    """InfluxDB 1.8, which knows Flux."""
    return influxdb_flux, *fill(influxdb_flux)


# --- InfluxQL ---------------------------------------------------------------------------------


def influxql(place: tuple[Server, int, int], text: str, values: Mapping[str, str]) -> list[Any]:
    """Series that a query gives, asked as Grafana does."""
    server, begin, end = place
    spans = {
        "timeFilter": f"time >= {begin // 10**6}ms and time <= {end // 10**6}ms",
        "__interval_ms": "10000",
        "__interval": "10s",
    }
    told = server.ask("/query", db=DATABASE, q=substituted(text, {**values, **spans}), epoch="ms")
    (result,) = told["results"]
    assert "error" not in result, (text, result)
    return [one for one in result.get("series", ()) if one["values"]]


@pytest.mark.parametrize("query", [*queries("influxql")], ids=str)
def test_every_panel_in_influxql_has_rows(filled, query):
    # GIVEN
    made = dashboards("influxql")[query.board]

    # WHEN
    found = influxql(filled, query.target["query"], all_of(made))

    # THEN there are numbers, not just times
    assert found, query.target["query"]
    cells = {cell for one in found for row in one["values"] for cell in row[1:]}
    assert cells - {None}
    # AND what its legend and its columns name is there
    tags = set().union(*(one.get("tags", {}) for one in found))
    assert set(re.findall(r"\[\[tag_([^\]]+)\]\]", query.target.get("alias", ""))) <= tags
    columns = {"Time"}.union(*(one["columns"] for one in found)) | tags
    assert titles(query) <= columns


def titles(query: Query) -> set[str]:
    """Names of the columns that a table shows."""
    panels = dashboards(query.source)[query.board]["panels"]
    panel = next(one for one in panels if one["title"] == query.panel)
    options = [one["options"] for one in panel.get("transformations", ())]
    return {name for one in options for name in one.get("renameByName", ())}


@pytest.mark.parametrize("board", [*dashboards("influxql")])
def test_every_variable_in_influxql_has_values_and_narrows_those_below_it(filled, board):
    # GIVEN
    made = dashboards("influxql")[board]
    chosen = all_of(made)

    # WHEN each is chosen in turn: the shop's namespace, and of others the first value alone
    for name, one in variables("influxql"):
        if name == board:
            found = influxql(filled, one["query"], chosen)
            assert found, one["query"]
            values = sorted({value for series in found for _, value in series["values"]})
            chosen[one["name"]] = "store" if "store" in values else values[0]

    # THEN
    assert all(chosen[name] != ".*" for name in chosen)


def test_a_chosen_namespace_narrows_a_panel_in_influxql(filled):
    # GIVEN
    query = next(one for one in queries("influxql") if one.panel == "Requests by workload")
    values = all_of(dashboards("influxql")["overview"]) | {"namespace": "(login|store)"}

    # WHEN
    found = influxql(filled, query.target["query"], values)

    # THEN
    assert {one["tags"]["k8s.namespace.name"] for one in found} == {"login", "store"}


@pytest.mark.parametrize(("panel", "share"), [("Median duration", 0.5), ("99th percentile", 0.99)])
def test_a_quantile_in_influxql_is_that_of_the_histogram(filled, panel, share):
    # GIVEN
    query = next(one for one in queries("influxql") if one.panel == panel)

    # WHEN
    (found,) = influxql(filled, query.target["query"], all_of(dashboards("influxql")["overview"]))

    # THEN each interval is the same run
    rows = next(of_batches(recorded.batches(time.time_ns())))
    wanted = recorded.quantile(rows.le[rows.columns["side"] == "server"].sum(axis=0), share)
    told = [value for _, value in found["values"]]
    assert len(told) > 20 and told == pytest.approx([wanted] * len(told), rel=1e-5)


def test_slowest_routes_in_influxql_are_those_of_the_histograms(filled):
    # GIVEN
    query = next(one for one in queries("influxql") if one.panel == "Slowest routes")

    # WHEN
    found = influxql(filled, query.target["query"], all_of(dashboards("influxql")["overview"]))

    # THEN
    (rows,) = of_batches(
        [one for one in recorded.batches(time.time_ns()) if one.kind == "http"],
        by=("namespace", "workload", "route", "side"),
    )
    names = ("k8s.namespace.name", "service.name", "http.route")
    wanted = {
        tuple(rows.columns[name][place] or "" for name in names): recorded.quantile(counts, 0.99)
        for place, counts in enumerate(rows.le)
        if rows.columns["side"][place] == "server"
    }
    told = {tuple(one["tags"][name] for name in names): one["values"][0][1] for one in found}
    assert told == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("language", ["influxql", "flux"])
def test_a_beginning_of_a_path_narrows_the_request_log(request, language):
    # GIVEN what a user types, as Grafana escapes it for a regular expression
    place = request.getfixturevalue("filled" if language == "influxql" else "with_flux")
    query = next(one for one in queries(language) if one.panel == "Request log")
    values = all_of(dashboards(language)["requests"]) | {"path": r"\/products\/"}

    # WHEN
    if language == "flux":
        paths = {one["url.path"] for one in flux(place, query.target["query"], values)}
    else:
        (found,) = influxql(place, query.target["query"], values)
        place_of_path = found["columns"].index("url.path")
        paths = {row[place_of_path] for row in found["values"]}

    # THEN
    assert paths and all(path.startswith("/products/") for path in paths)


# --- Flux -------------------------------------------------------------------------------------


def flux(place: tuple[Server, int, int], text: str, values: Mapping[str, str]) -> list[Any]:
    """Records that a query gives, asked as Grafana does."""
    server, begin, end = place
    words = {
        "v.timeRangeStart": rfc3339(begin),
        "v.timeRangeStop": rfc3339(end),
        "v.windowPeriod": "10000ms",
        "v.defaultBucket": f'"{DATABASE}/autogen"',
    }
    for word, value in words.items():
        text = text.replace(word, value)
    request = urllib.request.Request(
        f"{server.url}/api/v2/query",
        data=json.dumps({"query": substituted(text, values), "type": "flux"}).encode(),
        headers={"Content-Type": "application/json", "Accept": "application/csv"},
    )
    try:
        with urllib.request.urlopen(request, timeout=90) as answer:
            told = answer.read().decode()
    except urllib.error.HTTPError as error:
        raise AssertionError((error.read().decode(), text)) from None
    tables = [part.splitlines() for part in re.split(r"\r?\n\r?\n", told) if part.strip()]
    records = []
    for table in tables:
        assert not table[0].startswith("error"), (told, text)
        records += csv.DictReader([line for line in table if not line.startswith("#")])
    return records


def rfc3339(time_ns: int) -> str:
    """As Grafana writes the ends of the range."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_ns // 10**9))


@pytest.mark.parametrize("query", [*queries("flux")], ids=str)
def test_every_panel_in_flux_has_rows(with_flux, query):
    # GIVEN
    made = dashboards("flux")[query.board]

    # WHEN
    found = flux(with_flux, query.target["query"], all_of(made))

    # THEN
    assert found, query.target["query"]
    wanted = {"_time" if name == "Time" else name for name in titles(query)}
    columns = set().union(*found)
    assert wanted <= columns
    if not wanted:
        # What Grafana knows lines by, and their one label.
        assert {"_measurement", "_field", "_time", "_value"} <= columns
        labels = {name for name in columns if name and not name.startswith("_")}
        assert labels == {"result", "table", "by"}
    assert any(one.get(name) for one in found for name in (wanted or {"_value"}) - {"_time"})


@pytest.mark.parametrize("board", [*dashboards("flux")])
def test_every_variable_in_flux_has_values(with_flux, board):
    for name, one in variables("flux"):
        if name == board:
            assert flux(with_flux, one["query"], {}), one["query"]


def test_a_quantile_in_flux_is_that_of_the_histogram(with_flux):
    # GIVEN
    query = next(one for one in queries("flux") if one.panel == "99th percentile")

    # WHEN
    found = flux(with_flux, query.target["query"], all_of(dashboards("flux")["overview"]))

    # THEN each interval is the same run
    rows = next(of_batches(recorded.batches(time.time_ns())))
    wanted = recorded.quantile(rows.le[rows.columns["side"] == "server"].sum(axis=0), 0.99)
    assert {round(wanted, 6)} == {round(float(one["_value"]), 6) for one in found[1:-1]}
