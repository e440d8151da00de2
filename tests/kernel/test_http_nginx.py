# SPDX-License-Identifier: Apache-2.0
"""nginx's access log, wrk's own count and podscope agree to the last request at full load."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conversations.observed import Observer
from conversations.routes import route
from conversations.truth import Key
from conversations.truth import Sums

PATIENCE = 30.0
CONFIGURATION = """
daemon off;
user {user};
worker_processes 2;
pid {home}/nginx.pid;
error_log {home}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  log_format truth '$server_port $request_method $status $request_uri'
                   ' $http_content_length $body_bytes_sent';
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  keepalive_requests {reuse};
  keepalive_timeout 60s;
  sendfile on;
  tcp_nopush on;
  upstream back {{ server 127.0.0.1:{back}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{front};
    access_log {home}/access.log truth;
    root {home}/files;
    location = /ok {{ return 200 "hello"; }}
    location /items/ {{ return 201 "an item"; }}
    location /nothing {{ return 204; }}
    location /broken {{ return 503; }}
    location /up/ {{
      proxy_pass http://back;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
  server {{
    listen 127.0.0.1:{back};
    access_log {home}/access.log truth;
    location / {{ return 202 "from behind"; }}
  }}
}}
"""
# Each thread sends its share of the requests and then nothing more: none is under way at the end.
# wrk asks for one request on its own, to see how many are in it, and does not send that one.
SCRIPT = """
local kinds = {
  {"GET", "/ok"}, {"GET", "/items/42"}, {"GET", "/file"}, {"GET", "/missing"},
  {"POST", "/items/7f3e9a10", "some content"}, {"GET", "/broken?a=b"}, {"GET", "/nothing"},
  {"PUT", "/up/1", string.rep("x", 3000)}, {"DELETE", "/up/" .. string.rep("9", 9)},
}
local share, batch = %d, %d
local sent, shape = 0, 0
local batches = {}
function init(args)
  for n = 1, #kinds do
    local parts = {}
    for i = 1, batch do
      local kind = kinds[(n + i) %% #kinds + 1]
      parts[i] = wrk.format(kind[1], kind[2], {["Host"] = "nginx.test"}, kind[3])
    end
    batches[n] = table.concat(parts)
  end
end
function request()
  if sent >= share then
    return ""
  end
  sent = sent + batch
  shape = shape + 1
  return batches[shape %% #batches + 1]
end
"""


def needed() -> str:
    """Why these tests can't run, or an empty string."""
    absent = [tool for tool in ("nginx", "wrk") if tool_path(tool) is None]
    return f"{absent[0]} is not installed: apt install {absent[0]}" if absent else ""


def tool_path(tool: str) -> str | None:
    """Where a program is; sbin is not on every PATH."""
    return shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


pytestmark = pytest.mark.skipif(bool(needed()), reason=needed() or "tools are there")


@dataclass(frozen=True)
class Nginx:
    """A running nginx: a server in front of another one."""

    home: Path
    front: int
    back: int

    def lines(self) -> list[list[str]]:
        """The whole lines of the access log."""
        text = (self.home / "access.log").read_text()
        return [line.split(" ") for line in text[: text.rfind("\n") + 1].splitlines()]

    def truth(self, port: int) -> dict[Key, Sums]:
        """What the access log says about one of the servers."""
        sums: dict[Key, Sums] = {}
        for line in self.lines():
            if int(line[0]) != port:
                continue
            key = (line[1], int(line[2]), "1.1", route(line[3].encode()), "")
            size = 0 if line[4] == "-" else int(line[4])
            sums[key] = sums.get(key, Sums()) + Sums(1, size, int(line[5]))
        return sums


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def nginx(own_cgroup: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Nginx]:
    """nginx that closes a connection after as many requests as the test's parameter says."""
    front, back = free_ports(2)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "file").write_bytes(b"GET / HTTP/1.1\r\n\r\n" * 1000)
    tmp_path.chmod(0o755)
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(
            home=tmp_path, front=front, back=back, user="root", reuse=request.param
        )
    )
    with subprocess.Popen(
        [str(tool_path("nginx")), "-p", str(tmp_path), "-c", str(configuration)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            wait_for_port(front, process)
            yield Nginx(tmp_path, front, back)
        finally:
            process.send_signal(signal.SIGQUIT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until something listens on the port."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"nginx did not start: {process.communicate()[1].decode()}")


@pytest.fixture
def rows(own_cgroup: str) -> Iterator[Observer]:
    """A watch without a request log, as most people will run it."""
    from podscope.pipeline import watch

    with watch(kinds=("http",), interval=1.0, routes=True, cgroup=own_cgroup) as opened:
        yield Observer(opened)


def load(rows: Observer, nginx: Nginx, requests: int, connections: int, batch: int) -> int:
    """Sends so many requests to nginx with wrk; returns how many wrk says were answered."""
    script = nginx.home / "load.lua"
    script.write_text(SCRIPT % (requests // 2, batch))
    with subprocess.Popen(
        [
            *(str(tool_path("wrk")), "-t2", f"-c{connections}", "-d120s", "--timeout", "20s"),
            *("-s", str(script), f"http://127.0.0.1:{nginx.front}/"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as wrk:
        try:
            wait_until_idle(rows, nginx)
            wrk.send_signal(signal.SIGINT)
            said, _ = wrk.communicate(timeout=20)
        finally:
            wrk.kill()
    found = re.search(r"(\d+) requests in", said)
    assert found, said
    assert "Socket errors" not in said, said
    return int(found[1])


def wait_until_idle(rows: Observer, nginx: Nginx) -> None:
    """Until the access log has stopped growing; rows are read meanwhile."""
    deadline = time.monotonic() + PATIENCE
    size, quiet = -1, 0
    while quiet < 4 and time.monotonic() < deadline:
        time.sleep(0.15)
        rows.read()
        now = (nginx.home / "access.log").stat().st_size
        quiet = quiet + 1 if now == size and now > 0 else 0
        size = now
    assert quiet, "nginx was still answering when time was up"


@pytest.mark.parametrize(
    ("nginx", "requests", "connections", "batch"),
    [(10**6, 40_000, 64, 1), (10**6, 40_000, 8, 16), (100, 10_000, 16, 1)],
    ids=["keep-alive", "pipelined", "a hundred requests a connection"],
    indirect=["nginx"],
)
def test_access_log_and_wrk_and_both_sides_agree_to_the_last_request(
    rows: Observer, nginx: Nginx, requests: int, connections: int, batch: int
) -> None:
    # GIVEN a running watch, and nothing lost so far
    rows.read()
    before = rows.lost()

    # WHEN wrk sends requests of nine kinds as fast as it can
    answered = load(rows, nginx, requests, connections, batch)

    # THEN its count is that of the access log
    truth = nginx.truth(nginx.front)
    assert sum(one.count for one in truth.values()) == answered >= requests - batch

    # AND both sides of podscope say the same, by method, status and route, in count and bytes,
    # also for nginx as a client of the server behind it
    for port in (nginx.front, nginx.back):
        truth = nginx.truth(port)
        seen = rows.seen(port, 2 * sum(one.count for one in truth.values()))
        assert seen.sums["server"] == truth, f"server side of port {port}"
        assert seen.sums["client"] == truth, f"client side of port {port}"
    assert rows.lost() == before, "something was lost"
