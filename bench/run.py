# SPDX-License-Identifier: Apache-2.0
"""All benchmarks, one after the other: one JSON object on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC
from datetime import datetime
from pathlib import Path
from typing import Any

import http_engine

HERE = Path(__file__).parent
LONG_HEAD = "400"


def main() -> int:
    """Prints the JSON object; 1 if one of the benchmarks failed."""
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    quick = parser.parse_args().quick
    report: dict[str, Any] = {"host": host()}
    failed = []
    for name, command in commands(quick).items():
        print(f"{name}:", file=sys.stderr)
        ended = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, check=False)
        if ended.returncode:
            failed.append(name)
        if ended.stdout.strip():
            report[name] = json.loads(ended.stdout)
    print(http_engine.lines(report))
    if failed:
        print(f"bench/run: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def commands(quick: bool) -> dict[str, list[str]]:
    """The benchmarks by name, and how each is called."""
    engine = [str(HERE / "http_engine.py")]
    short = ["--rounds", "3", "--pairs", "8", "--seconds", "2"] if quick else []
    events = ["--rounds", "2", "--pairs", "3"] if quick else []
    long_heads = ["--only", "engine", "--extra-head", LONG_HEAD]
    return {
        "http_engine": [*engine, *short],
        "http_engine_long_heads": [*engine, *short, *long_heads],
        "ring_drain": [str(HERE / "ring_drain.py")],
        "node_agent": [str(HERE / "node_agent.py")],
        "events": [str(HERE / "events.py"), *events],
        "sinks": [str(HERE / "sinks.py"), *(["--rounds", "1"] if quick else [])],
        "reflector": [str(HERE / "reflector.py"), *(["--rounds", "1"] if quick else [])],
        "trace": [str(HERE / "trace.py")],
    }


def host() -> dict[str, Any]:
    """Where it was measured: figures of different machines can't be compared."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": found[1] if found else "",
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
