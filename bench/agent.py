# SPDX-License-Identifier: Apache-2.0
"""What podscope costs as a whole: throughput, its own CPU and memory, its start."""

from __future__ import annotations

import re
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nginx
import variants

from podscope.errors import PodscopeError

PODSCOPE = Path(sys.executable).parent / "podscope"
PATIENCE = 20.0
# The first intervals read each new series for the first time.
SETTLE_SECONDS = 2.0
CLOCK_SCHED = 2


@dataclass(frozen=True)
class Round:
    """Requests a second of three runs, one after the other.

    Attributes:
        alone: nothing is attached.
        floor: the floor program is attached.
        watched: ``podscope up`` runs.
    """

    alone: float
    floor: float
    watched: float


@contextmanager
def up() -> Iterator[int]:
    """Runs ``podscope up`` for as long as the ``with`` lasts; gives its process id.

    Raises:
        PodscopeError: it does not start.
    """
    address = f"127.0.0.1:{nginx.free_port()}"
    command = [str(PODSCOPE), "up", "--events", "none", "--listen", address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_line(process)
        yield process.pid
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def wait_for_line(process: subprocess.Popen[str]) -> None:
    """Returns when it has printed its first line: its programs are attached by then."""
    assert process.stdout is not None and process.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        ready = selector.select(PATIENCE)
    if not ready or not process.stdout.readline():
        process.kill()
        raise PodscopeError(f"podscope up did not start: {process.stderr.read().strip()}")


def rounds(traffic: nginx.Traffic, count: int, seconds: int) -> list[Round]:
    """Runs without, with the floor program and with podscope; each round begins with another."""
    runs = {"alone": alone_run, "floor": floor_run, "watched": watched_run}
    names = list(runs)
    found = []
    for number in range(count):
        begin = number % len(names)
        rates = {name: runs[name](traffic, seconds) for name in names[begin:] + names[:begin]}
        print(f"round {number + 1}: {rates}", file=sys.stderr)
        found.append(Round(**rates))
    return found


def alone_run(traffic: nginx.Traffic, seconds: int) -> float:
    """Requests a second while nothing is attached."""
    return traffic.run(seconds).per_second


def floor_run(traffic: nginx.Traffic, seconds: int) -> float:
    """Requests a second while the floor program is attached."""
    with closing(variants.attached("floor")):
        return traffic.run(seconds).per_second


def watched_run(traffic: nginx.Traffic, seconds: int) -> float:
    """Requests a second while podscope watches."""
    with up():
        return traffic.run(seconds).per_second


def use(traffic: nginx.Traffic, seconds: int) -> dict[str, Any]:
    """CPU and memory of podscope at the highest rate, and CPU at about a tenth of it.

    wrk sends less by waiting between an answer and the next request; the series are the same.
    """
    with up() as pid:
        traffic.run(round(SETTLE_SECONDS))
        high, high_pct = cpu_pct(traffic, pid, seconds)
        delay = max(1, round(10 * 1000 * nginx.CONNECTIONS / high.per_second))
        low, low_pct = cpu_pct(traffic, pid, seconds, delay)
        status = Path(f"/proc/{pid}/status").read_text()
    return {
        "agent_cpu_pct": round(high_pct, 2),
        "agent_cpu_pct_low": round(low_pct, 2),
        "agent_requests_per_second": round(high.per_second),
        "agent_requests_per_second_low": round(low.per_second),
        "rss_mb": round(memory_kb(status, "VmRSS") / 1024, 1),
        "rss_peak_mb": round(memory_kb(status, "VmHWM") / 1024, 1),
    }


def cpu_pct(
    traffic: nginx.Traffic, pid: int, seconds: int, delay_ms: int = 0
) -> tuple[nginx.Load, float]:
    """Sends requests; also how much of one core a process took meanwhile, in per cent."""
    before_cpu, before = cpu_seconds(pid), time.monotonic()
    load = traffic.run(seconds, delay_ms)
    after_cpu, after = cpu_seconds(pid), time.monotonic()
    return load, 100 * (after_cpu - before_cpu) / (after - before)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, by its CPU clock (clock_getcpuclockid(3)).

    /proc/PID/stat has the same in steps of 10 ms: too coarse for a part of a per cent.
    """
    return time.clock_gettime((~pid << 3) | CLOCK_SCHED)


def memory_kb(status: str, field: str) -> int:
    """A field of /proc/PID/status."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise PodscopeError(f"/proc/PID/status has no {field}")
    return int(found[1])


def starts(count: int) -> list[float]:
    """Seconds from the start of ``podscope up`` to its first line: it is attached then."""
    found = []
    for _ in range(count):
        begin = time.perf_counter()
        with up():
            found.append(time.perf_counter() - begin)
    return found


def helps(count: int) -> list[float]:
    """Milliseconds that ``podscope --help`` takes, from start to end."""
    found = []
    for _ in range(count):
        begin = time.perf_counter()
        subprocess.run([str(PODSCOPE), "--help"], check=True, capture_output=True)
        found.append(1000 * (time.perf_counter() - begin))
    return found
