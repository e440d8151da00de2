# SPDX-License-Identifier: Apache-2.0
"""Every query of the dashboards for Prometheus, asked of servers that scrape a real run."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from pathlib import Path
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
from conftest import free_port
from conftest import prometheus_server
from conftest import victoria_server
from podscope.settings import Size
from podscope.settings import Url
from podscope.sinks import prometheus
from podscope.sinks.files import Files
from podscope.sinks.files import FilesSettings
from podscope.sinks.influxdb import Influxdb
from podscope.sinks.influxdb import InfluxdbSettings
from podscope.sinks.outputs import Outputs
from podscope.sinks.plugin import Choice
from podscope.sinks.plugin import Every
from podscope.sinks.plugin import QueueSettings
from podscope.sinks.prometheus_write import Prometheus
from podscope.sinks.prometheus_write import PrometheusSettings
from podscope.sinks.rows import of_batches
from podscope.sinks.rows import of_losses

SECONDS = 90
SOURCE = "prometheus"
RESOURCE = {"host.name": "node-1", "k8s.cluster.name": "test"}
# $__interval, $__rate_interval and $__range, with a scrape each second.
SPANS = {"__interval": "2s", "__rate_interval": "8s", "__range": "60s"}
SCRAPE = """
scrape_configs:
  - job_name: podscope
    scrape_interval: 1s
    static_configs:
      - targets: ["{target}"]
        labels: {{instance: node-1, k8s_cluster_name: test}}
"""


class Exposition:
    """An agent's /metrics, in which the recorded run happens once more each time it is asked."""

    def __init__(self, directory: Path) -> None:
        self._totals = prometheus.Totals()
        self._lock = threading.Lock()
        self._rounds = 0
        down = InfluxdbSettings(
            type="influxdb",
            name="down",
            version=1,
            every=Every(0.1),
            url=Url(f"http://127.0.0.1:{free_port()}"),
            queue=QueueSettings(memory=Size(1), disk=Size(1 << 17), path=str(directory / "queue")),
        )
        files = FilesSettings(type="files", every=Every(0.1), path=str(directory / "files"))
        self.outputs = Outputs(
            (Choice(Files, files), Choice(Influxdb, down)),
            {"host.name": "node-1"},
            ("http", "request", "oom", "listen", "tcp", "tcp_event", "dns", "dns_lookup"),
            grace=1,
            tell=lambda _: None,
        )
        self._totals.expose_also(self.outputs.expose)

    def text(self) -> bytes:
        """The exposition after one more interval."""
        with self._lock:
            self._rounds += 1
            n = self._rounds
            for batch in recorded.batches(time.time_ns()):
                self._totals.add(batch)
                self.outputs.put(batch)
            cost = {"cpu_seconds": n / 50, "resident_bytes": 8e7}
            kernel = {"kernel_runs": 9000 * n, "kernel_seconds": n / 90}
            self._totals.tell({"joined": 2 * n, "ring_full": 0}, cost | kernel)
            return b"".join(self._totals.expose(openmetrics=False))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server of the exposition."""
    exposition = Exposition(tmp_path_factory.mktemp("exposition"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = exposition.text()
            self.send_response(200)
            self.send_header("Content-Type", prometheus.TEXT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    with exposition.outputs:
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module", params=["prometheus", "victoria_metrics"])
def server(request: Any, target: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Each of the two, which scrapes."""
    home = tmp_path_factory.mktemp(request.param)
    config = SCRAPE.format(target=target)
    if request.param == "prometheus":
        with prometheus_server(home, config) as found:
            yield found
        return
    (home / "scrape.yaml").write_text(config)
    with victoria_server(home, f"-promscrape.config={home}/scrape.yaml") as found:
        yield found


def ask(
    server: Server, query: Query, values: dict[str, str], at: float = 0.0
) -> list[dict[str, Any]]:
    """Series at a time, or now as soon as there are any with a number in them."""
    text = substituted(query.target["expr"], values | SPANS)
    due = time.monotonic() + SECONDS
    while True:
        now = at or time.time()
        if query.target.get("instant"):
            told = server.ask("/api/v1/query", query=text, time=f"{now:.3f}")
        else:
            span = {"start": f"{now - 30:.3f}", "end": f"{now:.3f}", "step": "2"}
            told = server.ask("/api/v1/query_range", query=text, **span)
        assert isinstance(told, dict) and told["status"] == "success", (text, told)
        found = [one for one in told["data"]["result"] if numbers(one)]
        if found:
            return found
        assert not at and time.monotonic() < due, f"{query} has no rows: {text}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def with_native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, float]]:
    """Prometheus to which the run is written again and again for a minute, and when that ends."""
    with prometheus_server(tmp_path_factory.mktemp("native"), "global: {}\n") as found:
        url = Url(f"{found.url}/api/v1/write")
        sink = Prometheus(PrometheusSettings(type="prometheus", url=url, native=True))
        end = time.time_ns()
        for time_ns in range(end - 60 * 10**9, end + 1, 2 * 10**9):
            for rows in of_batches(recorded.batches(time_ns), resource=RESOURCE):
                if rows.kind in sink.only_kinds:
                    sink.send(rows)
            sink.send(of_losses({"joined": 3, "ring_full": 1}, time_ns, RESOURCE))
        sink.close()
        yield found, end / 1e9


@pytest.mark.parametrize("query", [*queries("prometheus-native")], ids=str)
def test_every_panel_of_native_histograms_has_rows(with_native, query):
    # GIVEN
    made = dashboards(query.source)[query.board]

    # WHEN
    server, at = with_native
    found = ask(server, query, all_of(made), at)

    # THEN what its legend names is there
    names = re.findall(r"{{(\w+)}}", query.target.get("legendFormat", ""))
    assert names == [name for name in names if any(name in one["metric"] for one in found)]


@pytest.mark.parametrize("board", [*dashboards("prometheus-native")])
def test_every_variable_has_values_where_histograms_are_native(with_native, board):
    for name, one in variables("prometheus-native"):
        if name == board:
            chosen = all_of(dashboards("prometheus-native")[board])
            assert label_values(with_native[0], one["query"]["query"], chosen)


def test_numbers_of_native_histograms_are_those_of_the_run(with_native):
    # GIVEN a run every two seconds
    (rows,) = of_batches(
        [one for one in recorded.batches(time.time_ns()) if one.kind == "http"], by=("side",)
    )
    (servers,) = rows.columns["count"][rows.columns["side"] == "server"].tolist()
    told = {one.panel: one for one in queries("prometheus-native") if one.board == "overview"}
    values = all_of(dashboards("prometheus-native")["overview"])

    # WHEN
    server, at = with_native
    (rate,) = ask(server, told["Requests"], values, at)
    (median,) = ask(server, told["Median duration"], values, at)

    # THEN
    assert max(numbers(rate)) == pytest.approx(servers / 2, rel=0.01)
    (wanted,) = rows.columns["duration.p50"][rows.columns["side"] == "server"].tolist()
    assert numbers(median)[-1] == pytest.approx(wanted, rel=0.1)


def numbers(series: dict[str, Any]) -> list[float]:
    """The numbers of a series that are some."""
    pairs = series.get("values") or [series["value"]]
    return [float(text) for _, text in pairs if math.isfinite(float(text))]


@pytest.mark.parametrize("query", [*queries(SOURCE)], ids=str)
def test_every_panel_has_rows(server, query):
    # GIVEN
    made = dashboards(SOURCE)[query.board]

    # WHEN
    found = ask(server, query, all_of(made))

    # THEN what its legend and its columns name is there
    names = re.findall(r"{{(\w+)}}", query.target.get("legendFormat", ""))
    panel = next(one for one in made["panels"] if one["title"] == query.panel)
    for transformation in panel.get("transformations", ()):
        columns = set(transformation["options"].get("renameByName", ())) - {"Value"}
        names += sorted(columns)
    assert names == [name for name in names if any(name in one["metric"] for one in found)]


@pytest.mark.parametrize("board", [*dashboards(SOURCE)])
def test_every_variable_has_values_and_narrows_those_below_it(server, board):
    # GIVEN
    made = dashboards(SOURCE)[board]
    chosen = all_of(made)

    # WHEN each is chosen in turn: the namespace of the shop, and of others the first value
    for one in made["templating"]["list"]:
        if one["type"] == "query":
            values = label_values(server, one["query"]["query"], chosen)
            chosen[one["name"]] = "store" if "store" in values else values[0]

    # THEN
    assert len(set(chosen)) == len([one for name, one in variables(SOURCE) if name == board])


def label_values(server: Server, query: str, values: dict[str, str]) -> list[str]:
    """What Grafana asks for with ``label_values``."""
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", substituted(query, values))
    assert found is not None, query
    due = time.monotonic() + SECONDS
    while True:
        told = server.ask(f"/api/v1/label/{found[2]}/values", **{"match[]": found[1]})
        if told.get("data"):
            return told["data"]
        assert time.monotonic() < due, (query, values, told)
        time.sleep(0.5)


def test_a_chosen_namespace_narrows_the_panels(server):
    # GIVEN
    query = next(one for one in queries(SOURCE) if one.panel == "Requests by workload")
    values = all_of(dashboards(SOURCE)["overview"]) | {"namespace": "(login|store)"}

    # WHEN
    found = ask(server, query, values)

    # THEN
    spaces = {one["metric"]["k8s_namespace_name"] for one in found}
    assert spaces == {"login", "store"}, json.dumps(found)
