# SPDX-License-Identifier: Apache-2.0
"""Sinks beside the field's usual client libraries, on the same rows: JSON on stdout.

Each is a process of its own that sends the same requests, 5,000 at once, to a server that swallows
them, or to the one that a flag names. CPU is of the process from its first row to its last.
``ours`` begins with the records of the kernel, ``ours_columns`` and ``theirs_columns`` with columns
that are the same, and ``theirs`` with row objects that were made before. Bodies are not compressed.

``longest_stop_ms`` is how long another thread of the process, which wakes each millisecond, had to
wait at the most while a flush of 100,000 rows of a kind went through a sink's queue: in CPU time of
the process, so that what else the machine does is no part of it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))

import records

from podscope.settings import Size
from podscope.settings import Url
from podscope.sinks import rows
from podscope.sinks.delivery import Delivery
from podscope.sinks.elastic_templates import names
from podscope.sinks.elasticsearch import Elasticsearch
from podscope.sinks.elasticsearch import ElasticsearchSettings
from podscope.sinks.influxdb import Influxdb
from podscope.sinks.influxdb import InfluxdbSettings
from podscope.sinks.line_protocol import is_tag
from podscope.sinks.otlp import Otlp
from podscope.sinks.otlp import OtlpSettings
from podscope.sinks.plugin import QueueSettings
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.rows import Rows

SINKS = ("influxdb", "elasticsearch", "otlp")
WAYS = ("ours", "ours_columns", "theirs", "theirs_columns")
AT_ONCE = 5000
FLUSH = 100_000


def main() -> int:
    """Prints one JSON object; 1 if a client failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    for name in SINKS:
        parser.add_argument(f"--{name}", metavar="URL", default="", help=f"a real {name}")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        sink, way = args.client.split(".")
        print(json.dumps(client(sink, way, args.url, args.rows)))
        return 0
    report: dict[str, Any] = {"rows": args.rows, "rounds": args.rounds, "at_once": AT_ONCE}
    server = subprocess.Popen(
        [sys.executable, __file__, "--client", "server.run"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        swallows = server.stdout.readline().strip()
        for name in SINKS:
            url = getattr(args, name) or swallows
            report[name] = compared(name, url, args.rows, args.rounds)
            stops = [told(f"{name}.stops", url, FLUSH) for _ in range(args.rounds)]
            report[name]["longest_stop_ms"] = {
                kind: statistics.median(one[kind] for one in stops) for kind in stops[0]
            }
    except subprocess.CalledProcessError as error:
        print(f"sinks: a client failed: {' '.join(error.cmd[2:])}", file=sys.stderr)
        return 1
    finally:
        server.kill()
        server.wait()
    print(json.dumps(report))
    return 0


def compared(name: str, url: str, count: int, rounds: int) -> dict[str, Any]:
    """Medians of one sink and its rival; null for a library that is not installed."""
    found: dict[str, Any] = {}
    for way in WAYS:
        runs = [told(f"{name}.{way}", url, count) for _ in range(rounds)]
        if None in runs:
            found[way] = None
            continue
        found[way] = {key: round(statistics.median(one[key] for one in runs), 2) for key in runs[0]}
    if found["theirs"]:
        theirs = found["theirs"]["cpu_us_per_row"]
        for way in WAYS[:2]:
            found[f"ratio_{way}"] = round(theirs / found[way]["cpu_us_per_row"], 2)
        both = [found[way]["cpu_us_per_row"] for way in ("theirs_columns", "ours_columns")]
        found["ratio_both_columns"] = round(both[0] / both[1], 2)
    return found


def told(client_name: str, url: str, count: int) -> Any:
    """What a process of its own says."""
    print(f"sinks: {client_name}", file=sys.stderr)
    command = [sys.executable, __file__, "--client", client_name, "--url", url]
    ended = subprocess.run(
        [*command, "--rows", str(count)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(ended.stdout)


def client(sink: str, way: str, url: str, count: int) -> dict[str, float] | None:
    """Sends the rows, and says what that took."""
    if sink == "server":
        return serve()
    if way == "stops":
        kinds = {"request": traffic(count), "http": series(count)}
        return {kind: longest_stop(OURS[sink](url), batch) for kind, batch in kinds.items()}
    batch = traffic(count)
    (first, *_) = pieces = [*rows.of_batches([batch])]
    if way in ("theirs", "theirs_columns"):
        try:
            make, write = RIVALS[sink](url, pieces[0])
        except ImportError as error:
            print(f"sinks: {sink}: no {error.name}: pip install --group bench", file=sys.stderr)
            return None
        objects_before = [make(some) for some in pieces] if way == "theirs" else []
        run = lambda: each(write, objects_before or map(make, pieces))  # noqa: E731
    else:
        made = OURS[sink](url)
        made.send(first)  # templates, connection
        given = pieces if way == "ours_columns" else None
        run = lambda: send(made, given or rows.of_batches([batch]))  # noqa: E731
    begin, cpu = time.monotonic(), cpu_seconds()
    run()
    used, wall = cpu_seconds() - cpu, time.monotonic() - begin
    return {"rows_per_s": count / wall, "cpu_us_per_row": used / count * 1e6}


def each(write: Callable[[list[Any]], None], some: Iterable[list[Any]]) -> None:
    """Writes lists of objects, one after the other."""
    for one in some:
        write(one)


def send(sink: Any, some: Any) -> None:
    """Sends portions of rows, each of an id of its own."""
    for number, one in enumerate(some):
        sink.send(replace(one, id=f"{one.id}.{number}"))


def longest_stop(sink: Any, batch: Any) -> float:
    """Milliseconds that another thread waits at the most while a batch is delivered."""
    settings = SinkSettings(type="bench", queue=QueueSettings(memory=Size(1 << 30)))
    waits = [0.0]
    ended = threading.Event()

    def tick() -> None:
        before = time.process_time()
        while not ended.is_set():
            time.sleep(0.001)
            now = time.process_time()
            waits.append(now - before)
            before = now

    delivery = Delivery(sink, settings, {"host.name": "node-1"}, void)
    thread = threading.Thread(target=tick)
    thread.start()
    delivery.put(batch)
    delivery.stop(600)
    delivery.join()
    ended.set()
    thread.join()
    return round(max(waits) * 1e3, 1)


def series(count: int) -> Any:
    """Rows of kind http: so many of the kernel, of 500 pods, which become some thousand series."""
    rows = records.http_rows(count)
    places = np.arange(count)
    key = rows["key"]
    key["cgroup_id"], key["pid"], key["side"], key["port"] = places % 500, 1, 1, 80
    key["method"], key["version"], key["status"] = 1, 11, 200 + places % 7
    key["route"] = places // 10_000 + 1
    rows["count"], rows["sum_ns"], rows["max_ns"] = 3, 3_000_000, 1_000_000
    rows["le"][:, 0] = rows["buckets"][:, 100] = 3
    pods = tuple(replace(records.WEB_A, pod=f"web-{n}", pod_uid=f"u-{n}") for n in range(500))
    routes = {n: f"/route/{n}/*" for n in range(1, count // 10_000 + 2)}
    return records.http_batch(rows, places % 500, pods, routes=routes)


def void(_: object) -> None:
    """Leaves it alone."""


def cpu_seconds() -> float:
    """CPU time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def traffic(count: int) -> Any:
    """Requests of two pods: many paths, clients and durations, a few routes and statuses."""
    batch = records.request_batch(count)
    chance = np.random.default_rng(1)
    told = batch.rows
    told["duration_ns"] = chance.integers(10**5, 10**9, count)
    told["status"] = chance.choice([200, 200, 200, 404, 500], count)
    told["peer_port"] = chance.integers(1024, 65535, count)
    told["time_ns"] += np.arange(count, dtype=np.uint64) * 1000
    told["path"] = [f"/items/{n}?full=1".encode() for n in chance.integers(0, count, count)]
    told["route"] = 7
    told["trace_id"] = chance.integers(0, 256, (count, 16))
    index = chance.integers(0, 2, count).astype(np.uint32)
    pods = (records.WEB_A, records.WEB_B)
    return replace(batch, identity=index, identities=pods, routes={7: "/items/*"})


# --- ours -------------------------------------------------------------------------------------

OURS: dict[str, Callable[[str], Any]] = {
    "influxdb": lambda url: Influxdb(
        InfluxdbSettings(type="influxdb", url=Url(url), version=1, compress=False)
    ),
    "elasticsearch": lambda url: Elasticsearch(
        ElasticsearchSettings(type="elasticsearch", url=Url(url), compress=False, setup=False)
    ),
    "otlp": lambda url: Otlp(OtlpSettings(type="otlp", url=Url(url), compress=False)),
}


# --- theirs -----------------------------------------------------------------------------------


def objects(some: Rows) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries, without what does not apply."""
    columns = {one.name: some.columns[one.name].tolist() for one in some.fields}
    absent = {one.name: some.absent(one).tolist() for one in some.fields}
    for place in range(len(some)):
        yield {name: column[place] for name, column in columns.items() if not absent[name][place]}


Rival = tuple[Callable[[Rows], list[Any]], Callable[[list[Any]], None]]


def influxdb_client(url: str, first: Rows) -> Rival:
    """influxdb-client: one Point a row."""
    from influxdb_client import InfluxDBClient
    from influxdb_client import Point
    from influxdb_client.client.write_api import SYNCHRONOUS

    tags = {one.name for one in first.fields if is_tag(one)}
    writer = InfluxDBClient(url, token="x:y", org="-").write_api(write_options=SYNCHRONOUS)

    def point(one: dict[str, Any]) -> Point:
        made = Point("podscope_request").time(one["time"])
        for name, value in one.items():
            if name in tags:
                made.tag(name, value)
            elif name != "time":
                made.field(name, value)
        return made

    def write(some: list[Any]) -> None:
        writer.write("podscope/", record=[point(one) for one in some])

    return lambda some: [*objects(some)], write


def elasticsearch_py(url: str, first: Rows) -> Rival:
    """elasticsearch-py: helpers.bulk."""
    from elasticsearch import Elasticsearch as Client
    from elasticsearch.helpers import bulk

    called = names(first.fields)
    client = Client(url)

    def document(one: dict[str, Any], row_id: str) -> dict[str, Any]:
        source = {called[name]: value for name, value in one.items()}
        source["@timestamp"] = f"{np.datetime64(one['time'], 'ns')}Z"
        return {"_op_type": "create", "_id": f"{row_id}.rival", "_source": source}

    def write(some: list[Any]) -> None:
        bulk(client, some, index="podscope-requests-bench", chunk_size=AT_ONCE)

    return lambda some: [*map(document, objects(some), some.row_ids)], write


def opentelemetry_sdk(url: str, _: Rows) -> Rival:
    """opentelemetry-sdk: the exporter of logs over HTTP."""
    from opentelemetry._logs import LogRecord
    from opentelemetry._logs import SeverityNumber
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    exporter = OTLPLogExporter(f"{url}/v1/logs")
    scope, resource = InstrumentationScope("podscope"), Resource({"host.name": "node-1"})

    def record(one: dict[str, Any]) -> ReadableLogRecord:
        told = LogRecord(
            timestamp=one.pop("time"),
            severity_number=SeverityNumber.INFO,
            severity_text="INFO",
            body="GET",
            attributes=one,
        )
        return ReadableLogRecord(told, resource=resource, instrumentation_scope=scope)

    return lambda some: [*map(record, objects(some))], lambda some: void(exporter.export(some))


RIVALS: dict[str, Callable[[str, Rows], Rival]] = {
    "influxdb": influxdb_client,
    "elasticsearch": elasticsearch_py,
    "otlp": opentelemetry_sdk,
}


# --- the server that swallows -------------------------------------------------------------------


def serve() -> None:
    """Takes everything, and answers as each of them would."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = b""
            if "_bulk" in self.path:
                items = [{"create": {"status": 201}}] * (body.count(b"\n") // 2)
                answer = json.dumps({"errors": False, "items": items}).encode()
            self.send_response(200 if answer or "/v1/" in self.path else 204)
            self.send_header("X-Elastic-Product", "Elasticsearch")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_PUT = do_GET = do_POST

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
