# SPDX-License-Identifier: Apache-2.0
"""How fast full rings are drained: records of 64 bytes a second of drain time, as JSON.

Beside it, in the same run, the physical limit: a plain copy of as many bytes as the ring held.
Needs root and clang. Usage: python bench/ring_drain.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from podscope.errors import PodscopeError
from podscope.kernel.objects import BpfObject
from podscope.kernel.rings import Ring

SOURCE = Path(__file__).parent / "bpf" / "ring_fill.bpf.c"
PACKET = bytes(64)
RUNS_TO_FILL = 300  # of 1024 records: more than the ring holds


@dataclass(frozen=True)
class Round:
    """One filling of the ring: records, and the seconds to drain and to copy as many bytes."""

    records: int
    drain: float
    copy: float


def main() -> int:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        try:
            compiled = compile_bpf(Path(directory) / "ring_fill.bpf.o")
            rounds = measure(compiled, args.rounds)
        except (PodscopeError, OSError, subprocess.CalledProcessError) as error:
            print(f"ring_drain: {error}", file=sys.stderr)
            return 1
    print(json.dumps(report(rounds)))
    return 0


def compile_bpf(target: Path) -> Path:
    """Compiles the program that fills the ring. Raises OSError without clang."""
    clang = next(filter(None, map(shutil.which, ("clang-20", "clang-19", "clang"))), None)
    if clang is None:
        raise OSError("clang was not found: install clang-19")
    headers = f"/usr/include/{os.uname().machine}-linux-gnu"
    command = [clang, "-target", "bpf", "-g", "-O2", "-idirafter", headers]
    subprocess.run([*command, "-c", SOURCE, "-o", target], check=True)
    return target


def measure(compiled: Path, rounds: int) -> list[Round]:
    """Fills the ring and drains it, each time."""
    with BpfObject(compiled) as bpf:
        bpf.load()
        ring = Ring.of(bpf.map("records"), bpf.dtype("record"))
        return [one_round(bpf, ring) for _ in range(rounds)]


def one_round(bpf: BpfObject, ring: Ring) -> Round:
    """Fills, drains, checks that nothing is missing, and copies as many bytes."""
    expected = int(bpf.variables["submitted"])
    bpf.test_run("fill", PACKET, repeat=RUNS_TO_FILL)
    held = np.ones(ring.pending(), np.uint8)
    records, drain = timed(ring.drain)
    _, copy = timed(held.copy)
    wanted = np.arange(expected, int(bpf.variables["submitted"]), dtype=np.uint64)
    if not np.array_equal(records["sequence"], wanted):
        raise PodscopeError("records are missing or out of order")
    return Round(len(records), drain, copy)


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """The result and the seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def report(rounds: list[Round]) -> dict[str, float | int]:
    """The median of the rounds; the first one, whose memory is new to the process, apart."""
    drains = [one.records / one.drain for one in rounds]
    copies = [one.records / one.copy for one in rounds]
    return {
        "record_bytes": 64,
        "records": sum(one.records for one in rounds),
        "rounds": len(rounds),
        "drained_per_second": round(float(np.median(drains))),
        "drained_per_second_total": round(
            sum(one.records for one in rounds) / sum(one.drain for one in rounds)
        ),
        "drained_per_second_first": round(drains[0]),
        "copied_per_second": round(float(np.median(copies))),
        "ratio_to_copy": round(float(np.median(copies) / np.median(drains)), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
