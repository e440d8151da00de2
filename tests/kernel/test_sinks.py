# SPDX-License-Identifier: Apache-2.0
"""Rows of real traffic in the sinks of the real command."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from pathlib import Path

from attached import wait_until_attached

SECONDS = 60
REQUESTS = 40


class Handler(BaseHTTPRequestHandler):
    """Answers 200, and 500 to /broken."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server() -> Iterator[int]:
    """A server, and its port."""
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made.server_address[1]
    made.shutdown()
    made.server_close()
    thread.join()


def watched(config: Path) -> subprocess.Popen[str]:
    """``podscope up``, ready."""
    started = subprocess.Popen(
        [sys.executable, "-m", "podscope", "up", "--config", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert "watching" in started.stdout.readline()
    wait_until_attached(started)  # sources beside HTTP start after that line
    return started


def lines(path: Path, port: int, side: str) -> list[dict]:
    """Rows of one side of the test's server."""
    told = [json.loads(line) for line in path.read_text().splitlines()]
    return [one for one in told if one.get("server.port") == port and one["side"] == side]


def test_sigterm_brings_every_request_into_the_files(tmp_path: Path) -> None:
    # GIVEN sinks that get rows once an hour, one of them with errors alone
    config = tmp_path / "podscope.yaml"
    config.write_text(
        "listen: 127.0.0.1:0\nrequests: all\ncluster: test\nsinks:\n"
        f"- {{type: files, path: {tmp_path / 'all'}, every: 1h}}\n"
        f"- {{type: files, name: b, path: {tmp_path / 'b'}, every: 1h, kinds: [http], "
        "sides: [server], by: [port, side, status]}\n"
    )
    with server() as port:
        process = watched(config)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
            for n in range(REQUESTS):
                connection.request("GET", "/broken" if n % 4 == 0 else f"/items/{n}")
                connection.getresponse().read()
            connection.close()

            # WHEN
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=SECONDS)
        finally:
            process.kill()

    # THEN
    assert process.returncode == 0, said
    assert "podscope: sink files: " in said and "nothing lost" in said
    for side in ("server", "client"):
        requests = lines(tmp_path / "all" / "request.jsonl", port, side)
        assert len(requests) == REQUESTS
        assert {one["k8s.cluster.name"] for one in requests} == {"test"}
        series = lines(tmp_path / "all" / "http.jsonl", port, side)
        assert sum(one["count"] for one in series) == REQUESTS
    grouped = {
        one["http.response.status_code"]: one["count"]
        for one in lines(tmp_path / "b" / "http.jsonl", port, "server")
    }
    assert grouped == {500: REQUESTS // 4, 200: REQUESTS - REQUESTS // 4}
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["http.jsonl"]


def test_events_beside_http_come_into_the_files(tmp_path: Path) -> None:
    # GIVEN
    config = tmp_path / "podscope.yaml"
    config.write_text(
        f"listen: 127.0.0.1:0\nevents: [tcp]\nsinks: [{{type: files, path: {tmp_path}}}]\n"
    )
    with server() as port:
        process = watched(config)
        try:
            for _ in range(3):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
                connection.request("GET", "/")
                connection.getresponse().read()
                connection.close()

            # WHEN
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=SECONDS)
        finally:
            process.kill()

    # THEN
    assert process.returncode == 0, said
    rows = lines(tmp_path / "tcp.jsonl", port, "server")
    assert sum(one["podscope.tcp.accepts"] for one in rows) == 3
    assert {one["kind"] for one in rows} == {"tcp"} and "host.name" in rows[0]
