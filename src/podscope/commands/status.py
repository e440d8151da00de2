# SPDX-License-Identifier: Apache-2.0
"""``podscope status``: which nodes of a cluster have an agent that is ready."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from podscope.commands.install import add_cluster
from podscope.commands.install import server_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from podscope.deploy.states import NodeState

HELP = (
    "Show which nodes have an agent that is ready, and why others have not. "
    "The exit code is 0 only if all chosen nodes have."
)
COLUMNS = ("NODE", "AGENT", "VERSION", "IMAGE", "WHY")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_cluster(parser)
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="form (default: table)"
    )


def run(args: argparse.Namespace) -> int:
    """Print all nodes; 0 only if every chosen one has a ready agent."""
    server = server_of(args)
    from podscope.deploy.installation import Installation

    with Installation(server, args.namespace) as installation:
        states = installation.states()
    print("\n".join(json_lines(states) if args.output == "json" else table_lines(states)))
    return 0 if not any(state.agent == "not ready" for state in states) else 1


def json_lines(states: Sequence[NodeState]) -> list[str]:
    """One object a node."""
    return [json.dumps(asdict(state), ensure_ascii=False) for state in states]


def table_lines(states: Sequence[NodeState]) -> list[str]:
    """A head, one line a node, and the sum."""
    rows = [COLUMNS, *((s.node, s.agent, s.version, s.image, s.why) for s in states)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    chosen = [state for state in states if state.agent != "not chosen"]
    ready = sum(state.agent == "ready" for state in chosen)
    return [*lines, "", f"{ready} of {len(chosen)} nodes have a ready agent"]
