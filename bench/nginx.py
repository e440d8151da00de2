# SPDX-License-Identifier: Apache-2.0
"""The traffic of the benchmarks: nginx with one worker, wrk with one thread, on loopback."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from podscope.errors import PodscopeError

CONNECTIONS = 16
PATIENCE = 10.0
TARGET = "/items/42"
CONFIGURATION = """
daemon off;
user root;
worker_processes 1;
pid {home}/nginx.pid;
error_log {home}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  keepalive_requests 1000000000;
  keepalive_timeout 60s;
  server {{
    listen 127.0.0.1:{port};
    default_type text/plain;
    location / {{ return 200 "hello"; }}
  }}
}}
"""
# Header fields of a browser, taken in this order until the head is as long as asked for.
FIELDS = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language: en-US,en;q=0.5",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Sec-Fetch-Dest: document",
    "Sec-Fetch-Mode: navigate",
    "Sec-Fetch-Site: same-origin",
    "Cookie: session=",
)


@dataclass(frozen=True)
class Load:
    """What wrk has sent and got.

    Attributes:
        requests: answers that came, by wrk's own count.
        seconds: how long it took, by wrk's own clock.
        per_second: requests a second.
    """

    requests: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


@dataclass(frozen=True)
class Traffic:
    """A running nginx, and how wrk is called.

    Attributes:
        port: where nginx listens, on 127.0.0.1.
        home: a directory that lives as long as nginx.
        fields: header fields that wrk adds.
    """

    port: int
    home: Path
    fields: tuple[str, ...]

    def run(self, seconds: int, delay_ms: int = 0) -> Load:
        """Sends requests on keep-alive connections, one at a time on each.

        Args:
            seconds: how long.
            delay_ms: how long a connection waits between an answer and the next request.

        Raises:
            PodscopeError: wrk failed, or met errors.
        """
        command = [tool("wrk"), "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s"]
        for one in self.fields:
            command += ["-H", one]
        if delay_ms:
            script = self.home / "delay.lua"
            script.write_text(f"function delay() return {delay_ms} end\n")
            command += ["-s", str(script)]
        ended = subprocess.run(
            [*pinned(1), *command, f"http://127.0.0.1:{self.port}{TARGET}"],
            check=False,
            capture_output=True,
            text=True,
            timeout=seconds + PATIENCE,
        )
        return load(ended.stdout, ended.stderr)

    def request_bytes(self) -> int:
        """Length of a request's head as wrk sends it."""
        fixed = f"GET {TARGET} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n"
        return len(fixed) + sum(len(field) + 2 for field in self.fields)


def load(out: str, errors: str) -> Load:
    """What wrk printed. Raises PodscopeError if it is not a run without errors."""
    found = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m),", out)
    if not found or "Socket errors" in out or "Non-2xx" in out:
        said = (errors or out).strip().splitlines() or ["nothing"]
        raise PodscopeError(f"wrk: a run that went wrong: {said[-1]}")
    unit = {"ms": 0.001, "s": 1.0, "m": 60.0}[found[3]]
    return Load(int(found[1]), float(found[2]) * unit)


def tool(name: str) -> str:
    """Path of a program; sbin is not on every PATH. Raises PodscopeError: not installed."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise PodscopeError(f"{name} is not installed: apt-get install {name}")
    return found


def pinned(place: int) -> list[str]:
    """How a command begins that keeps to one CPU, where there are two: less noise."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return []
    return [tool("taskset"), "-c", str(cpus[place % len(cpus)])]


def head_fields(extra: int) -> tuple[str, ...]:
    """Header fields that make a request longer by so many bytes, or by a few more."""
    taken: list[str] = []
    for one in FIELDS:
        left = extra - sum(len(field) + 2 for field in taken)
        if left <= 0:
            break
        taken.append(one.ljust(left - 2, "x") if one is FIELDS[-1] else one)
    return tuple(taken)


@contextmanager
def traffic(extra_head: int = 0) -> Iterator[Traffic]:
    """Runs nginx for as long as the ``with`` lasts.

    Args:
        extra_head: bytes of header fields that wrk adds to its own.

    Raises:
        PodscopeError: nginx is not installed or does not start.
    """
    with tempfile.TemporaryDirectory(prefix="podscope-bench-") as directory:
        home = Path(directory)
        port = free_port()
        configuration = home / "nginx.conf"
        configuration.write_text(CONFIGURATION.format(home=home, port=port))
        command = [*pinned(0), tool("nginx"), "-p", str(home), "-c", str(configuration)]
        with (home / "start.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(process, port, home)
            yield Traffic(port, home, head_fields(extra_head))
        finally:
            process.terminate()
            process.wait(PATIENCE)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(process: subprocess.Popen[bytes], port: int, home: Path) -> None:
    """Returns when nginx answers. Raises PodscopeError if it ends or takes too long."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    said = (home / "start.log").read_text().strip().splitlines() or ["nothing"]
    raise PodscopeError(f"nginx did not start: {said[-1]}")
