# SPDX-License-Identifier: Apache-2.0
"""What watching HTTP costs under nginx and wrk on this host: one JSON object on stdout.

The figures are explained in docs/reference/benchmarks.md. Needs root, nginx and wrk.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import agent
import nginx
import variants

from podscope.errors import PodscopeError

PARTS = ("engine", "throughput", "agent", "start")
# When wrk stops, one exchange a connection is under way: podscope counts it, wrk does not.
COUNTED_SLACK = 0.005


def main() -> int:
    """Prints the JSON object; 1 if something could not be measured or was counted wrong."""
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        report = measure(args)
    except (PodscopeError, OSError, subprocess.SubprocessError) as error:
        print(f"http_engine: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(lines(report))
    wrong = report.get("counted_wrong", [])
    for line in wrong:
        print(f"http_engine: {line}", file=sys.stderr)
    return 1 if wrong else 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench/http_engine", description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="measure this part only")
    parser.add_argument(
        "--rounds", type=positive, default=5, help="of the engine's four variants (5)"
    )
    parser.add_argument("--pairs", type=positive, default=15, help="of runs with and without (15)")
    parser.add_argument("--seconds", type=positive, help="of each run (3; pairs 1; agent 10)")
    parser.add_argument(
        "--extra-head", type=int, default=0, metavar="BYTES", help="added to wrk's requests (0)"
    )
    parser.add_argument(
        "--look-ups", type=int, default=1, choices=(1, 2), help="of the floor, a segment (1)"
    )
    return parser.parse_args()


def positive(text: str) -> int:
    """A number of 1 or more. Raises ValueError, which argparse reports."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the parts asked for, and puts their figures into one object."""
    parts = (args.only,) if args.only else PARTS
    if os.geteuid() != 0:
        raise PodscopeError("loading kernel programs needs root: run it with sudo")
    report: dict[str, Any] = {}
    with nginx.traffic(args.extra_head) as traffic:
        report["request_bytes"] = traffic.request_bytes()
        if "engine" in parts:
            costs = variants.measure_all(traffic, args.rounds, args.seconds or 3, args.look_ups)
            report |= engine_report(costs)
        if "throughput" in parts:
            report |= throughput_report(agent.rounds(traffic, args.pairs, args.seconds or 1))
        if "agent" in parts:
            report |= agent.use(traffic, args.seconds or 10)
        if "start" in parts:
            report |= start_report(agent.starts(7), agent.helps(15))
    return report


def lines(report: dict[str, Any]) -> str:
    """The report as JSON, one member a line."""
    members = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in report.items()]
    return "{\n" + ",\n".join(members) + "\n}"


def engine_report(costs: dict[str, list[variants.Cost]]) -> dict[str, Any]:
    """Medians, ratios of the medians, and how far the rounds were apart."""
    ns = {name: [cost.ns for cost in runs] for name, runs in costs.items()}
    middle = {name: statistics.median(values) for name, values in ns.items()}
    own = {name: value - middle["noop"] for name, value in middle.items()}
    return {
        **{f"{name}_ns": round(value, 1) for name, value in middle.items()},
        "ratio_red": round(middle["red"] / middle["floor"], 3),
        "ratio_full": round(middle["full"] / middle["floor"], 3),
        # Without what the taking of times adds to each.
        "ratio_red_less_noop": round(own["red"] / own["floor"], 3),
        "ratio_full_less_noop": round(own["full"] / own["floor"], 3),
        "ratio_red_rounds": spread(per_round(ns["red"], ns["floor"])),
        "ratio_full_rounds": spread(per_round(ns["full"], ns["floor"])),
        "engine": {
            name: {
                "ns": spread(ns[name]),
                "program_runs": spread([cost.runs for cost in runs]),
                "requests_per_second": spread([cost.per_second for cost in runs]),
                "counted": spread([cost.counted for cost in runs]),
            }
            for name, runs in costs.items()
        },
        "counted_wrong": [
            f"{name}: {cost.counted:.4f} requests counted for each one"
            for name, runs in costs.items()
            for cost in runs
            if abs(cost.counted - 1) > COUNTED_SLACK
        ],
    }


def throughput_report(rounds: list[agent.Round]) -> dict[str, Any]:
    """How much lower the rate is with podscope, and with the floor program; medians."""
    losses = [100 * (1 - one.watched / one.alone) for one in rounds]
    floor = [100 * (1 - one.floor / one.alone) for one in rounds]
    return {
        "throughput_loss_pct": round(statistics.median(losses), 2),
        "floor_throughput_loss_pct": round(statistics.median(floor), 2),
        "throughput": {
            "loss_pct": spread(losses),
            "floor_loss_pct": spread(floor),
            "requests_per_second_alone": spread([one.alone for one in rounds]),
            "requests_per_second_floor": spread([one.floor for one in rounds]),
            "requests_per_second_watched": spread([one.watched for one in rounds]),
        },
    }


def start_report(starts: list[float], helps: list[float]) -> dict[str, Any]:
    """How long it takes until podscope is attached, and until it has told its usage."""
    return {
        "start_s": round(statistics.median(starts), 3),
        "help_ms": round(statistics.median(helps), 1),
        "start": {"attached_s": spread(starts), "help_ms": spread(helps)},
    }


def per_round(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios of the runs of one round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest, and of how many."""
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "n": len(values),
    }


if __name__ == "__main__":
    sys.exit(main())
