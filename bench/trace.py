# SPDX-License-Identifier: Apache-2.0
"""What traces cost beside bpftrace: starting, reading lines, merging; JSON out.

Each figure has its floor beside it, taken in the same run: bpftrace alone, the JSON parser alone,
sums of arrays whose rows are known to match.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from podscope.trace.decode import decode
from podscope.trace.tables import MapTable
from podscope.trace.tables import merge

NODES, KEYS, BUCKETS = 100, 4096, 24
LINES = 100_000
RUNS = 5
# Ends with the first maps that it is told of.
MAPS = """
import podscope
with podscope.trace("interval:ms:10 { @ = count(); }") as trace:
    next(answer for answer in trace if answer.maps)
print("first")
"""


def snapshot(node: int) -> MapTable:
    """A histogram map of 4,096 keys; each node has them in an order of its own."""
    random = np.random.default_rng(node)
    order = random.permutation(KEYS).tolist()
    low = 2 ** np.arange(BUCKETS, dtype=np.int64)
    return MapTable(
        name="@",
        kind="hist",
        keys=tuple((f"process-{key}", key) for key in order),
        values=random.integers(0, 1000, (KEYS, BUCKETS), np.int64),
        buckets=np.stack([low, 2 * low - 1], axis=1),
    )


def milliseconds(work: Callable[[], object]) -> dict[str, float]:
    """Least, middle and most of some runs."""
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1e3)
    return {
        "min": round(min(taken), 1),
        "median": round(statistics.median(taken), 1),
        "max": round(max(taken), 1),
    }


def line_costs() -> dict[str, Any]:
    """Reading lines that a program prints."""
    lines = [b'{"type": "printf", "data": "%d some words of a line\\n"}' % n for n in range(LINES)]
    return {
        "lines": LINES,
        "read_ms": milliseconds(lambda: [decode(line, (0, 17)) for line in lines]),
        "floor_ms": milliseconds(lambda: [json.loads(line) for line in lines]),
    }


def start_costs() -> dict[str, Any]:
    """From the start of the process to its end with a first answer; None where it cannot be."""
    program = 'interval:ms:1 { printf("first\\n"); exit(); }'
    alone = ["bpftrace", "-e", program]
    if os.geteuid() != 0 or shutil.which("bpftrace") is None:
        print("bench/trace: the start needs root and bpftrace", file=sys.stderr)
        return {}
    podscope = [sys.executable, "-m", "podscope", "run", "-e", program]
    maps = [sys.executable, "-c", MAPS]
    return {
        "first_maps_ms": milliseconds(lambda: ended(maps)),
        "first_answer_ms": milliseconds(lambda: ended(podscope)),
        "bpftrace_alone_ms": milliseconds(lambda: ended(alone)),
    }


def ended(command: list[str]) -> None:
    """Run a command that is to print ``first``."""
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "first" in told, told


def main() -> int:
    """Measure and print."""
    parts = [snapshot(node) for node in range(NODES)]

    def floor() -> None:
        total = np.zeros((KEYS, BUCKETS), np.int64)
        for one in parts:
            total += one.values

    result = {
        "nodes": NODES,
        "keys": KEYS,
        "buckets": BUCKETS,
        "merge_ms": milliseconds(lambda: merge(parts)),
        "floor_ms": milliseconds(floor),
    }
    print(json.dumps({"merge": result, "read": line_costs(), "start": start_costs()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
