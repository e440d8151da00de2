# SPDX-License-Identifier: Apache-2.0
"""What merging costs: snapshots of many nodes into one, JSON out.

    bench/trace.py

The floor beside it adds arrays of the same size whose rows are known to match.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from podscope.trace.tables import MapTable
from podscope.trace.tables import merge

NODES, KEYS, BUCKETS = 100, 4096, 24
RUNS = 5


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
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
