# SPDX-License-Identifier: Apache-2.0
"""One visitor of the demo: ``visitor.py browser|mobile|crawler SECONDS``.

A few connections that are kept alive, each with a few requests a second.
"""

from __future__ import annotations

import ctypes
import http.client
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

PORTS = {"shop": 18080, "api": 18081, "auth": 18082}
PR_SET_PDEATHSIG = 1
REQUESTS_PER_CONNECTION = 60


class Habit(NamedTuple):
    """What a visitor asks for, and how often."""

    service: str
    connections: int
    rate: float  # requests a second on each connection
    pages: tuple[tuple[int, str, Callable[[], str]], ...]  # (weight, method, path)


def number() -> int:
    """An id as shops have them."""
    return random.randint(1, 90_000)


HABITS = {
    "browser": Habit(
        "shop",
        4,
        5.0,
        (
            (4, "GET", lambda: "/"),
            (9, "GET", lambda: f"/products/{number()}"),
            (9, "GET", lambda: f"/img/{random.getrandbits(64):016x}.webp"),
            (3, "GET", lambda: f"/search?q=shoe&page={random.randint(1, 9)}"),
            (2, "POST", lambda: f"/cart/{number()}/items"),
            (1, "POST", lambda: "/checkout"),
        ),
    ),
    "mobile": Habit(
        "api",
        3,
        4.0,
        (
            (12, "GET", lambda: f"/v1/products/{number()}"),
            (4, "GET", lambda: f"/v1/users/{uuid.uuid4()}/orders"),
            (1, "POST", lambda: "/v1/orders"),
            (1, "GET", lambda: "/v1/report"),
        ),
    ),
    "crawler": Habit(
        "auth",
        1,
        3.0,
        (
            (2, "POST", lambda: "/token"),
            (5, "GET", lambda: "/verify"),
            (1, "GET", lambda: "/admin"),
        ),
    ),
}


def browse(habit: Habit, until: float) -> None:
    """Ask over and over, on one connection after the other, until the given time."""
    while time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", PORTS[habit.service], timeout=10)
        try:
            for _ in range(REQUESTS_PER_CONNECTION):
                ask(connection, habit)
                time.sleep(random.expovariate(habit.rate))
                if time.monotonic() > until:
                    return
        except (OSError, http.client.HTTPException):
            time.sleep(1)
        finally:
            connection.close()


def ask(connection: http.client.HTTPConnection, habit: Habit) -> None:
    """One request, with a trace context as instrumented programs send it."""
    weights = [weight for weight, _, _ in habit.pages]
    _, method, path = random.choices(habit.pages, weights)[0]
    trace = f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-01"
    headers = {"traceparent": trace, "User-Agent": "podscope-demo"}
    body = b'{"quantity": 1}' if method == "POST" else None
    connection.request(method, path(), body=body, headers=headers)
    connection.getresponse().read()


def main(name: str, seconds: float) -> None:
    """Visit for so many seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    habit = HABITS[name]
    time.sleep(1)
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=browse, args=(habit, until), daemon=True)
        for _ in range(habit.connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
