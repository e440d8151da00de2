# SPDX-License-Identifier: Apache-2.0
"""The real commands as a user types them, with real servers and clients on this machine."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import io
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import pytest
from attached import links_of
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from podscope import schema

ROOT = Path(__file__).parents[2]
# Two packet hooks, the handshake hook and the socket hook.
LINKS = 4
SECONDS = 60
INTERPRETER = Path(os.path.realpath(sys.executable)).name


# --- traffic --------------------------------------------------------------------------------


@dataclass
class Server:
    """An HTTP server that answers each request by one write, and notes how long it took.

    ``/STATUS/MILLISECONDS/SIZE/...`` says how to answer.
    """

    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    seconds: list[float] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.listener.getsockname()[1]

    def run(self) -> None:
        """Accept until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError):
            while line := stream.readline():
                begin = time.perf_counter()
                length = 0
                while (head := stream.readline()) not in (b"\r\n", b""):
                    name, _, value = head.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                stream.read(length)
                status, milliseconds, size = map(int, line.split()[1].split(b"/")[1:4])
                time.sleep(milliseconds / 1000)
                body = b"" if line.startswith(b"HEAD ") else b"x" * size
                head = f"HTTP/1.1 {status} Told\r\nContent-Length: {size}\r\n\r\n"
                self.seconds.append(time.perf_counter() - begin)
                connection.sendall(head.encode() + body)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on a port of its own."""
    made = Server()
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    yield made
    made.listener.shutdown(socket.SHUT_RDWR)
    made.listener.close()
    thread.join()


class Client:
    """One connection; notes how long each request took."""

    def __init__(self, port: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.stream = self.connection.makefile("rb")
        self.seconds: list[float] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.connection.close()

    def ask(self, method: str, path: str, body: bytes = b"", heads: str = "") -> None:
        """Send one request in one write and read its answer to the end."""
        head = f"{method} {path} HTTP/1.1\r\nHost: shop.example:8080\r\n{heads}"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        begin = time.perf_counter()
        self.connection.sendall(head.encode() + body)
        lines = iter(self.stream.readline, b"\r\n")
        fields = dict(line.lower().split(b":", 1) for line in lines if b":" in line)
        if method != "HEAD":
            self.stream.read(int(fields[b"content-length"]))
        self.seconds.append(time.perf_counter() - begin)


# --- commands -------------------------------------------------------------------------------


# The user nobody, who may read everything: the interpreter may stand in root's home.
NOBODY = (
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
    "--bounding-set=-all,+dac_read_search",
)


class Command:
    """``podscope ...`` as a child process, started with its programs attached."""

    def __init__(
        self, *arguments: str, attached: bool = True, prefix: Sequence[str] = (), **options: Any
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "podscope", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        if attached:
            wait_for(lambda: links_of(self.process.pid) >= LINKS or self.process.poll() is not None)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self, number: signal.Signals = signal.SIGINT) -> Done:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> Done:
        """Wait for the end."""
        out, err = self.process.communicate(timeout=SECONDS)
        return Done(self.process.returncode, out, err)


@dataclass(frozen=True)
class Done:
    """What a command has said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """JSON lines of one kind."""
        return [line for line in self.lines if line["kind"] == kind]


def run(*arguments: str, **options: Any) -> Done:
    """Run a command to its end."""
    with Command(*arguments, attached=False, **options) as command:
        return command.wait()


def wait_for(condition: Any) -> None:
    """Wait until something is so, or fail."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def programs_of(pid: int) -> set[int]:
    """Ids of the BPF programs that a process holds."""
    found = set()
    for entry in os.scandir(f"/proc/{pid}/fdinfo"):
        with contextlib.suppress(OSError):
            found |= set(map(int, re.findall(r"^prog_id:\t(\d+)$", Path(entry).read_text(), re.M)))
    return found


def exists(program: int) -> bool:
    """Whether the kernel still has a BPF program (bpf(BPF_PROG_GET_FD_BY_ID))."""
    fd = ctypes.CDLL("libbpf.so.1").bpf_prog_get_fd_by_id(program)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def totals(rows: list[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], int]:
    """Counts by some fields."""
    found: dict[tuple[Any, ...], int] = {}
    for row in rows:
        key = tuple(row.get(name) for name in names)
        found[key] = found.get(key, 0) + row["count"]
    return found


# --- podscope http --------------------------------------------------------------------------


def test_http_json_tells_what_was_sent_to_the_last_request(server: Server) -> None:
    # GIVEN an interval that does not end before the signal comes
    with Command(
        "http", "-o", "json", "--interval", "1h", "--port", str(server.port)
    ) as command, Client(server.port) as client:  # fmt: skip
        # WHEN
        for number in range(20):
            client.ask("GET", f"/200/0/1000/item/{number}")
        client.ask("POST", "/503/0/7/pay", b"card")
        client.ask("HEAD", "/404/0/99/gone")
        client.ask("BREW", "/418/0/0/pot")
        done = command.end()

    # THEN
    assert (done.code, done.err) == (0, "")
    rows = done.of_kind("http")
    names = ("side", "http.request.method", "http.response.status_code", "error.type")
    assert totals(rows, *names) == {
        ("server", "GET", 200, None): 20,
        ("client", "GET", 200, None): 20,
        ("server", "POST", 503, "503"): 1,
        ("client", "POST", 503, "503"): 1,
        ("server", "HEAD", 404, None): 1,
        ("client", "HEAD", 404, "404"): 1,
        ("server", "_OTHER", 418, None): 1,
        ("client", "_OTHER", 418, "418"): 1,
    }
    for side in ("server", "client"):
        mine = [row for row in rows if row["side"] == side]
        assert sum(row["http.request.body.size"] for row in mine) == 4
        assert sum(row["http.response.body.size"] for row in mine) == 20_007
        assert {row["http.route"] for row in mine if row["count"] == 20} == {"/*/*/*/item/*"}
    assert done.lines[-1]["requests"] == 46
    assert own_losses(done.lines[-1]) == {}


def test_http_json_keeps_its_promise_about_keys(server: Server) -> None:
    # GIVEN
    before = time.time_ns()

    # WHEN
    with Command(
        "http", "-o", "json", "--interval", "200ms", "--port", str(server.port)
    ) as command, Client(server.port) as client:  # fmt: skip
        client.ask("PUT", "/500/0/5/x", b"abc")
        done = command.end(signal.SIGTERM)
    after = time.time_ns()

    # THEN
    row = next(row for row in done.of_kind("http") if row["side"] == "server")
    types = {
        "kind": str, "time": str, "interval": float, "side": str, "count": int,
        "duration": dict, "time_to_first_byte": dict, "service.name": str,
        "podscope.workload.kind": str, "process.executable.name": str, "process.pid": int,
        "server.port": int, "http.request.method": str, "http.route": str,
        "http.response.status_code": int, "error.type": str, "network.protocol.name": str,
        "network.protocol.version": str, "podscope.peer": str, "http.request.body.size": int,
        "http.response.body.size": int,
    }  # fmt: skip
    known = {one.path[0] for one in schema.HTTP} | {"kind"}
    assert set(types) <= set(row) <= known
    assert {name: type(row[name]) for name in types} == types
    assert {name: type(value) for name, value in row["duration"].items()} == dict.fromkeys(
        ("sum", "p50", "p90", "p99", "max"), float
    )
    assert row["process.pid"] == os.getpid()
    assert row["process.executable.name"] == INTERPRETER
    assert row["server.port"] == server.port
    assert row["network.protocol.version"] == "1.1"
    assert row["podscope.peer"] == "loopback"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", row["time"])
    assert before < unix_ns(row["time"]) < after
    assert 0 < row["interval"] < (after - before) / 1e9


def unix_ns(text: str) -> int:
    """Unix nanoseconds of an RFC 3339 time in UTC."""
    import calendar

    whole, _, rest = text.removesuffix("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) * 10**9 + int(rest)


def test_durations_are_those_that_both_ends_measure(server: Server) -> None:
    # GIVEN
    with Command(
        "http", "-o", "json", "--interval", "1h", "--port", str(server.port)
    ) as command, Client(server.port) as client:  # fmt: skip
        # WHEN answers that take 50 ms, and one that takes longer
        for _ in range(19):
            client.ask("GET", "/200/50/10/slow")
        client.ask("GET", "/200/200/10/slow")
        done = command.end()

    # THEN what the server's program measures lies inside what its socket sees, and that inside
    # what the client's socket sees, and so on
    by_side = {row["side"]: row["duration"] for row in done.of_kind("http")}
    inside, outside = server.seconds, client.seconds
    sums = [sum(inside), by_side["server"]["sum"], by_side["client"]["sum"], sum(outside)]
    assert sums == sorted(sums)
    longest = [max(inside), by_side["server"]["max"], by_side["client"]["max"], max(outside)]
    assert longest == sorted(longest)
    # Eight buckets an octave: at most 9.1 per cent beside the true one.
    step = 2 ** (1 / 8)
    for told in by_side.values():
        assert statistics.median(inside) / step <= told["p50"] <= max(sorted(outside)[:10]) * step
        assert told["p50"] <= told["p90"] <= told["p99"] <= told["max"]


@pytest.mark.parametrize(
    ("flags", "counts"),
    [
        (("--side", "client"), {("client", "GET", 200): 3, ("client", "POST", 503): 2}),
        (("--status", "5xx,404"), {("client", "POST", 503): 2, ("server", "POST", 503): 2}),
        (("--workload", f"{INTERPRETER[:3]}*", "--side", "server", "--status", "200"),
         {("server", "GET", 200): 3}),
        (("--workload", "no such workload"), {}),
    ],
)  # fmt: skip
def test_http_filters(server: Server, flags: tuple[str, ...], counts: dict[Any, int]) -> None:
    # GIVEN
    with Command(
        "http", "-o", "json", "--interval", "1h", "--port", str(server.port), *flags
    ) as command, Client(server.port) as client:  # fmt: skip
        # WHEN
        for _ in range(3):
            client.ask("GET", "/200/0/0/")
        for _ in range(2):
            client.ask("POST", "/503/0/0/", b"x")
        done = command.end()

    # THEN
    names = ("side", "http.request.method", "http.response.status_code")
    assert totals(done.of_kind("http"), *names) == counts
    assert done.lines[-1]["requests"] == sum(counts.values())


@pytest.mark.parametrize(
    ("by", "columns"),
    [
        ("workload,side", ["service.name", "podscope.workload.kind", "container.id",
                           "podscope.systemd.unit", "process.executable.name", "process.pid",
                           "side"]),
        ("port,version,method", ["server.port", "http.request.method", "network.protocol.name",
                                 "network.protocol.version"]),
        ("peer,status,route", ["http.route", "http.response.status_code", "error.type",
                               "server.address", "network.peer.address", "podscope.peer"]),
        ("executable,pid", ["process.executable.name", "process.pid"]),
    ],
)  # fmt: skip
def test_http_csv_is_grouped_by_what_is_asked_for(
    server: Server, by: str, columns: list[str]
) -> None:
    # GIVEN
    with (
        Command(
            "http", "-o", "csv", "--interval", "1h", "--port", str(server.port), "--by", by
        ) as command,
        Client(server.port) as client,
    ):
        # WHEN
        for _ in range(5):
            client.ask("GET", "/200/0/9/a/17")
        done = command.end()

    # THEN
    rows = list(csv.DictReader(io.StringIO(done.out)))
    told = {
        "service.name": INTERPRETER,
        "podscope.workload.kind": "process",
        "server.port": str(server.port),
        "http.request.method": "GET",
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "http.route": "/*/*/*/a/*",
        "http.response.status_code": "200",
        "network.peer.address": "127.0.0.1",
        "podscope.peer": "loopback",
        "process.executable.name": INTERPRETER,
        "process.pid": str(os.getpid()),
    }
    attributes = list(rows[0])[2 : list(rows[0]).index("count")]
    assert attributes == columns
    for row in rows:
        assert {name: row[name] for name in columns if name != "side"} == {
            name: told.get(name, "") for name in columns if name != "side"
        }
    sides = sorted((row.get("side"), int(row["count"])) for row in rows)
    assert sides == ([("client", 5), ("server", 5)] if "side" in by else [(None, 10)])


@pytest.mark.parametrize("output", ["table", "wide"])
def test_http_once_waits_for_one_interval_and_prints_one_table(server: Server, output: str) -> None:
    # GIVEN
    with Command(
        "http", "--once", "--interval", "1s", "-o", output, "--port", str(server.port)
    ) as command, Client(server.port) as client:  # fmt: skip
        # WHEN
        for _ in range(10):
            client.ask("GET", "/500/0/1000/report")
        done = command.wait()

    # THEN
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert sum(line.startswith("WORKLOAD") for line in lines) == 1
    (seen,) = [line.split() for line in lines if " server " in line and "/*/*/*/report" in line]
    assert seen[0] == f"{INTERPRETER}[{os.getpid()}]"
    assert seen[1:5] == ["server", str(server.port), "GET", "/*/*/*/report"]
    assert seen[6] == "100%"


def test_http_duration_ends_the_run_with_its_total(server: Server) -> None:
    # GIVEN
    with Command(
        "http", "--duration", "900ms", "--interval", "200ms", "--port", str(server.port)
    ) as command, Client(server.port) as client:  # fmt: skip
        # WHEN
        for _ in range(7):
            client.ask("GET", "/200/0/0/")
        done = command.wait()

    # THEN
    assert (done.code, done.err) == (0, "")
    assert done.out.count("WORKLOAD") >= 3
    assert re.fullmatch(
        r"total: 7 server, 7 client exchanges in \d+(ms|\.\d+s); .*", done.out.splitlines()[-1]
    )


# --- podscope requests ----------------------------------------------------------------------


def conversation(client: Client) -> None:
    """What the tests of the request log look at: 24 requests."""
    trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
    client.ask("GET", "/200/60/10/api/orders?id=17", heads=trace + "User-Agent: test/1\r\n")
    client.ask("POST", "/503/0/5/api/cart", b"hello")
    client.ask("BREW", "/404/0/0/pot")
    client.ask("GET", "/200/0/0/long/" + "x" * 300)
    for _ in range(20):
        client.ask("GET", "/200/0/10/many")


def logged(server: Server, *flags: str) -> Done:
    """What ``podscope requests`` tells of the conversation."""
    with Command("requests", "--port", str(server.port), *flags) as command:
        with Client(server.port) as client:
            conversation(client)
        return command.end()


def own_losses(summary: dict[str, Any]) -> dict[str, int]:
    """Losses but those on connections that other programs of this host had open before."""
    assert summary["kind"] == "summary"
    return {reason: n for reason, n in summary["lost"].items() if reason != "joined"}


def test_requests_json_tells_everything(server: Server) -> None:
    # GIVEN / WHEN
    done = logged(server, "-o", "json")

    # THEN
    assert (done.code, done.err) == (0, "")
    rows = done.of_kind("request")
    assert done.lines[-1]["requests"] == 48
    assert own_losses(done.lines[-1]) == {}
    assert len(rows) == 48
    ours, theirs = (next(row for row in rows if row["side"] == s) for s in ("server", "client"))
    for row in (ours, theirs):
        told = {
            "http.request.method": "GET", "server.address": "shop.example",
            "server.port": server.port, "url.path": "/200/60/10/api/orders",
            "url.query": "id=17", "http.response.status_code": 200,
            "http.response.body.size": 10, "user_agent.original": "test/1",
            "trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331",
            "network.peer.address": "127.0.0.1", "process.pid": os.getpid(),
        }  # fmt: skip
        assert {name: row[name] for name in told} == told
        assert 0 < row["time_to_first_byte"] <= row["duration"]
        assert set(row) <= {one.path[0] for one in schema.REQUEST} | {"kind"}
    assert ours["client.address"] == "127.0.0.1"
    assert "client.address" not in theirs
    assert theirs["network.peer.port"] == server.port
    assert server.seconds[0] <= ours["duration"]
    (brew, _) = [row for row in rows if "http.request.method_original" in row]
    assert (brew["http.request.method"], brew["http.request.method_original"]) == ("_OTHER", "BREW")
    cut = [row for row in rows if "podscope.target.size" in row]
    assert [row["podscope.target.size"] for row in cut] == [len("/200/0/0/long/") + 300] * 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--errors",), {("server", "/503/0/5/api/cart"): 1, ("client", "/503/0/5/api/cart"): 1,
                         ("client", "/404/0/0/pot"): 1}),
        (("--slower", "40ms"), {("server", "/200/60/10/api/orders"): 1,
                                ("client", "/200/60/10/api/orders"): 1}),
        (("--path", "/*/api/*", "--side", "server"), {("server", "/200/60/10/api/orders"): 1,
                                                      ("server", "/503/0/5/api/cart"): 1}),
        (("--path", "/[45]*/p?t", "--side", "client"), {("client", "/404/0/0/pot"): 1}),
        (("--status", "404,5xx", "--side", "server"), {("server", "/503/0/5/api/cart"): 1,
                                                       ("server", "/404/0/0/pot"): 1}),
        (("--errors", "--path", "*/many"), {}),
        (("--workload", "no such workload"), {}),
    ],
)  # fmt: skip
def test_requests_filters(server: Server, flags: tuple[str, ...], expected: Any) -> None:
    # GIVEN / WHEN
    done = logged(server, "-o", "json", *flags)

    # THEN
    found: dict[tuple[str, str], int] = {}
    for row in done.of_kind("request"):
        key = (row["side"], row["url.path"])
        found[key] = found.get(key, 0) + 1
    assert found == expected
    assert done.lines[-1]["requests"] == sum(expected.values())


def test_a_sample_is_of_both_sides(server: Server) -> None:
    # GIVEN / WHEN
    with Command(
        "requests", "-o", "json", "--sample", "1/10", "--port", str(server.port)
    ) as command:
        with Client(server.port) as client:
            for _ in range(1000):
                client.ask("GET", "/200/0/0/")
        done = command.end()

    # THEN a tenth of each
    sides = [row["side"] for row in done.of_kind("request")]
    assert 60 <= sides.count("server") <= 140
    assert 60 <= sides.count("client") <= 140


def test_requests_table_and_csv_agree(server: Server) -> None:
    # GIVEN / WHEN
    table = logged(server)
    rows = list(csv.DictReader(io.StringIO(logged(server, "-o", "csv").out)))

    # THEN
    lines = table.out.splitlines()
    assert lines[0].split()[:4] == ["TIME", "SIDE", "WORKLOAD", "METHOD"]
    assert lines[-1].startswith("total: 48 shown; ")
    assert len(lines) == 1 + 48 + 2
    assert len(rows) == 48
    first = lines[1].split()
    assert first[1:7] == [
        "server", f"{INTERPRETER}[{os.getpid()}]", "GET", "shop.example",
        "/200/60/10/api/orders?id=17", "200",
    ]  # fmt: skip
    assert first[-1] == rows[0]["trace_id"] == "0af7651916cd43dd8448eb211c80319c"


# --- podscope up ----------------------------------------------------------------------------


def fetch(url: str, accept: str = "*/*") -> tuple[int, str]:
    """Status and body."""
    request = urllib.request.Request(url, headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def free_port() -> int:
    """A port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def test_up_serves_metrics_that_prometheus_tools_accept(server: Server) -> None:
    # GIVEN
    address = f"127.0.0.1:{free_port()}"
    with Command("up", "--listen", address, "--interval", "100ms") as command:
        with Client(server.port) as client:
            for _ in range(5):
                client.ask("GET", "/200/8/1000/a/17")
            client.ask("POST", "/500/0/0/b", b"abc")
        ours = f'server_port="{server.port}"'
        wait_for(lambda: ours in fetch(f"http://{address}/metrics")[1])
        time.sleep(0.3)

        # WHEN
        text = fetch(f"http://{address}/metrics")[1]
        opened = fetch(f"http://{address}/metrics", "application/openmetrics-text; version=1.0.0")
        ready, health = (fetch(f"http://{address}/{page}")[0] for page in ("readyz", "healthz"))
        done = command.end(signal.SIGTERM)

    # THEN
    assert (ready, health, done.code, done.err) == (200, 200, 0, "")
    assert done.out.startswith(f"podscope: watching; metrics on http://{address}/metrics\n")
    assert re.fullmatch(r"total: \d+ server, \d+ client exchanges .*", done.out.splitlines()[-1])
    families = {one.name: one for one in text_string_to_metric_families(opened[1])}
    for side in ("server", "client"):
        samples = families[f"http_{side}_request_duration_seconds"].samples
        mine = [one for one in samples if one.labels["server_port"] == str(server.port)]
        counts = {
            (one.labels["http_request_method"], one.labels["http_response_status_code"]): one.value
            for one in mine
            if one.name.endswith("_count")
        }
        assert counts == {("GET", "200"): 5, ("POST", "500"): 1}
        fast = [one for one in mine if one.labels.get("le") == "0.005"]
        assert {one.labels["http_request_method"]: one.value for one in fast}["GET"] == 0
        total = sum(one.value for one in mine if one.name.endswith("_sum"))
        assert sum(server.seconds) <= total <= sum(client.seconds)
        bodies = families[f"podscope_http_{side}_response_body_bytes"].samples
        mine = [one for one in bodies if one.labels["server_port"] == str(server.port)]
        assert sum(one.value for one in mine) == 5000
    assert families["podscope_agent_resident_memory_bytes"].samples[0].value > 0
    promtool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if promtool is not None:
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_up_with_a_port_in_use_attaches_nothing_and_says_what_to_do() -> None:
    # GIVEN
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        # WHEN
        done = run("up", "--listen", f"127.0.0.1:{port}")

    # THEN
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"podscope: cannot listen on 127.0.0.1:{port}: the port is in use")
    assert len(done.err.splitlines()) == 1


# --- ends -----------------------------------------------------------------------------------

RUNNING = (
    ("http", "-o", "json", "--port", "1"),
    ("http", "--port", "1"),
    ("requests", "-o", "json", "--port", "1"),
    ("requests", "-o", "csv", "--port", "1"),
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
@pytest.mark.parametrize("arguments", RUNNING, ids=" ".join)
def test_signals_end_in_good_order(arguments: tuple[str, ...], number: signal.Signals) -> None:
    # GIVEN
    with Command(*arguments) as command:
        programs = programs_of(command.process.pid)

        # WHEN
        done = command.end(number)

    # THEN
    assert done.code == 0
    assert "Traceback" not in done.err
    if "json" in arguments:
        assert done.lines[-1]["kind"] == "summary"
    assert programs
    wait_for(lambda: not any(map(exists, programs)))


@pytest.mark.parametrize("arguments", RUNNING[:1], ids=" ".join)
def test_kill_leaves_nothing_attached(arguments: tuple[str, ...]) -> None:
    # GIVEN
    with Command(*arguments) as command:
        programs = programs_of(command.process.pid)
        assert all(map(exists, programs))

        # WHEN
        done = command.end(signal.SIGKILL)

    # THEN
    assert done.code == -signal.SIGKILL
    wait_for(lambda: not any(map(exists, programs)))


@pytest.mark.parametrize("moment", range(8))
def test_signals_at_any_moment_of_the_start_end_it(moment: int) -> None:
    # GIVEN a command that is not attached yet
    with Command("http", "-o", "json", "--port", "1", attached=False) as command:
        time.sleep(0.1 * moment)

        # WHEN
        done = command.end(signal.SIGTERM)

    # THEN
    assert done.code in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "arguments", [("http", "-o", "json"), ("http",), ("requests", "-o", "csv")]
)
def test_reader_that_goes_ends_the_command(server: Server, arguments: tuple[str, ...]) -> None:
    # GIVEN
    with Command(*arguments, "--port", str(server.port)) as command:
        command.process.stdout.close()

        # WHEN
        with Client(server.port) as client:
            while command.process.poll() is None:
                client.ask("GET", "/200/1/0/")

        # THEN
        assert command.process.returncode == 0
        assert command.process.stderr.read() == ""


def test_full_disk_is_one_line(server: Server) -> None:
    # GIVEN
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = subprocess.Popen(
            [sys.executable, "-m", "podscope", "http", "--once", "--interval", "100ms"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )

        # WHEN
        _, err = command.communicate(timeout=SECONDS)

    # THEN
    assert command.returncode == 1
    assert err == "podscope: cannot write the output: No space left on device\n"


@pytest.mark.parametrize(
    "arguments", [("up", "--listen", "127.0.0.1:0"), ("http", "--once"), ("requests",)]
)
def test_without_rights_is_one_line(arguments: tuple[str, ...]) -> None:
    # GIVEN / WHEN user nobody
    done = run(*arguments, prefix=NOBODY, cwd="/")

    # THEN
    assert (done.code, done.out) == (1, "")
    assert len(done.err.splitlines()) == 1
    assert "needs root" in done.err


def test_doctor_without_rights_says_what_is_missing() -> None:
    # GIVEN / WHEN
    done = run("doctor", "-o", "json", prefix=NOBODY, cwd="/")

    # THEN
    assert (done.code, done.err) == (1, "")
    rights = next(line for line in done.lines if line["feature"] == "rights")
    assert not rights["ok"] and rights["needed"] and rights["remedy"]


def test_doctor_finds_that_the_main_job_can_run() -> None:
    # GIVEN / WHEN
    table, lines = run("doctor"), run("doctor", "-o", "json")

    # THEN
    assert (table.code, lines.code) == (0, 0)
    assert table.out.endswith("\nThe main job can run.\n")
    assert all(line["ok"] for line in lines.lines if line["needed"])
    assert all(line["feature"] in table.out for line in lines.lines)


# --- whose it is ----------------------------------------------------------------------------

SERVE = """
import http.server, os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def server_in(cgroup: Path) -> Iterator[tuple[int, int]]:
    """A server program in a cgroup made for it: its process id and port."""
    missing = [one for one in (cgroup, *cgroup.parents) if not one.exists()]
    cgroup.mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, cgroup / "cgroup.procs"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()
        for one in missing:
            one.rmdir()


CONTAINER = "0123456789abcdef" * 4
LAYOUTS = (
    ("system.slice/podscope-demo.service", "unit", "podscope-demo.service", None),
    ("system.slice/podscope@1.service/inner", "unit", "podscope@1.service", None),
    (f"system.slice/docker-{CONTAINER}.scope", "container", CONTAINER[:12], CONTAINER),
    (f"podscope-docker/{CONTAINER}", "container", CONTAINER[:12], CONTAINER),
    (
        f"podscope.slice/podscope-burstable.slice/cri-containerd-{CONTAINER}.scope",
        "container",
        CONTAINER[:12],
        CONTAINER,
    ),
    (f"podscope.slice/libpod-{CONTAINER}.scope/container", "container", CONTAINER[:12], CONTAINER),
    ("podscope-shell.scope", "process", INTERPRETER, None),
    # A cgroup may be called anything.
    (os.fsdecode(b"podscope-\xff.scope"), "process", INTERPRETER, None),
    (os.fsdecode(b"podscope-\xff.service"), "unit", r"podscope-\xff.service", None),
)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("path", "kind", "name", "container"), LAYOUTS, ids=ascii)
def test_workload_is_told_by_the_cgroup(
    path: str, kind: str, name: str, container: str | None, when: str
) -> None:
    # GIVEN a server that is there before the command, or starts later
    from podscope.kernel.probes import find_cgroup2

    cgroup = Path(find_cgroup2()) / path
    with contextlib.ExitStack() as stack:
        if when == "before":
            pid, port = stack.enter_context(server_in(cgroup))
        command = stack.enter_context(
            Command("http", "-o", "json", "--side", "server", "--interval", "1h")
        )
        if when == "after":
            pid, port = stack.enter_context(server_in(cgroup))

        # WHEN
        fetch(f"http://127.0.0.1:{port}/nothing")
        done = command.end()

    # THEN
    (row,) = [row for row in done.of_kind("http") if row["server.port"] == port]
    assert (row["service.name"], row["podscope.workload.kind"]) == (name, kind)
    assert row["process.pid"] == pid
    assert row["process.executable.name"] == INTERPRETER
    assert row.get("container.id") == container
    assert row.get("podscope.systemd.unit") == (name if kind == "unit" else None)


# --- the library ----------------------------------------------------------------------------

LIBRARY = """
import http.client, podscope, sys
port = int(sys.argv[1])
with podscope.watch(interval=0.2) as watching:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(3):
        connection.request("GET", "/200/0/10/a/17")
        connection.getresponse().read()
    seen = 0
    for batch in watching:
        mine = batch.rows["key"]["port"] == port
        seen += int(batch.rows["count"][mine].sum())
        frame, table = batch.to_pandas(), batch.to_arrow()
        assert len(frame) == table.num_rows == len(batch)
        rows = frame[frame["server.port"] == port]
        if len(rows):
            print(sorted(zip(rows["side"], rows["http.route"], rows["count"])))
        if seen == 6:
            break
print(seen)
"""


def test_library_gives_batches(server: Server) -> None:
    # GIVEN
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")

    # WHEN
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, str(server.port)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    # THEN
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "6"
    assert "('server', '/*/*/*/a/*', 3)" in done.stdout
