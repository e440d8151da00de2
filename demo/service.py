# SPDX-License-Identifier: Apache-2.0
"""One service of the demo: ``service.py shop|api|auth SECONDS``. Its routes are in a table."""

from __future__ import annotations

import ctypes
import http.client
import os
import random
import re
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from typing import NamedTuple

PORTS = {"shop": 18080, "api": 18081, "auth": 18082}
PR_SET_PDEATHSIG = 1


class Route(NamedTuple):
    """What a route does: how long it takes, what it answers, whom it asks first."""

    method: str
    pattern: str
    seconds: float
    statuses: dict[int, int]  # status: weight
    size: int
    asks: tuple[tuple[str, str, str], ...] = ()  # (service, method, path)


ROUTES = {
    "shop": (
        Route("GET", r"/", 0.004, {200: 1}, 18_000, (("api", "GET", "/v1/products/17"),)),
        Route("GET", r"/products/\d+", 0.006, {200: 30, 404: 1}, 9_000),
        Route("GET", r"/search", 0.040, {200: 1}, 4_000),
        Route("GET", r"/img/[0-9a-f]{16}\.webp", 0.001, {200: 3, 304: 2}, 60_000),
        Route("POST", r"/cart/\d+/items", 0.010, {201: 20, 409: 1}, 120),
        Route(
            "POST",
            r"/checkout",
            0.120,
            {200: 18, 402: 2, 500: 1},
            900,
            (("auth", "GET", "/verify"), ("api", "POST", "/v1/orders")),
        ),
    ),
    "api": (
        Route("GET", r"/v1/products/\d+", 0.002, {200: 40, 404: 1}, 1_400),
        Route("GET", r"/v1/users/[0-9a-f-]{36}/orders", 0.015, {200: 1}, 6_000),
        Route("POST", r"/v1/orders", 0.030, {201: 25, 503: 1}, 300),
        Route("GET", r"/v1/report", 1.200, {200: 1}, 250_000),
    ),
    "auth": (
        Route("POST", r"/token", 0.060, {200: 12, 401: 1}, 700),
        Route("GET", r"/verify", 0.001, {204: 1}, 0),
    ),
}


class Handler(BaseHTTPRequestHandler):
    """Answers by the table of its server."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body go out together, or the body waits for an acknowledgement
    server: Service

    def answer(self) -> None:
        """Read the request's body, take the route's time, ask others, and answer."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        route = self.server.route(self.command, self.path.partition("?")[0])
        if route is None:
            self.send(404, b"no such page\n")
            return
        for service, method, path in route.asks:
            ask(service, method, path)
        # Most answers are near the middle, a few are slow: log-normal, like real services.
        time.sleep(min(route.seconds * random.lognormvariate(0, 0.6), 5))
        status = random.choices(list(route.statuses), list(route.statuses.values()))[0]
        self.send(status, b"x" * (route.size if status < 300 else 40))

    do_GET = do_POST = answer

    def send(self, status: int, body: bytes) -> None:
        """Send a whole answer; 204 and 304 have no body."""
        self.send_response(status)
        if status in (204, 304):
            self.end_headers()
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The terminal belongs to podscope."""


class Service(ThreadingHTTPServer):
    """The server of one service."""

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", PORTS[name]), Handler)
        self.routes = [(r.method, re.compile(r.pattern), r) for r in ROUTES[name]]

    def route(self, method: str, path: str) -> Route | None:
        """The route that the request belongs to."""
        matches = (r for m, p, r in self.routes if m == method and p.fullmatch(path))
        return next(matches, None)

    def handle_error(self, request: object, client_address: object) -> None:
        """A visitor that goes in mid-answer is no news here."""


def ask(service: str, method: str, path: str) -> int:
    """One request to another service over a connection of its own; returns the status, 0: none."""
    connection = http.client.HTTPConnection("127.0.0.1", PORTS[service], timeout=5)
    try:
        connection.request(method, path, body=b"{}" if method == "POST" else None)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except OSError:
        return 0
    finally:
        connection.close()


def end_with_parent() -> None:
    """SIGTERM when the demo ends, however it ends; Ctrl-C is the demo's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main(name: str, seconds: float) -> None:
    """Serve for so many seconds."""
    end_with_parent()
    service = Service(name)
    timer = threading.Timer(seconds, os._exit, (0,))
    timer.daemon = True
    timer.start()
    service.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
