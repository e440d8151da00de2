# SPDX-License-Identifier: Apache-2.0
"""``podscope scripts``: the bpftrace programs that come with podscope."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse

HELP = "List the shipped bpftrace programs, or show one; 'podscope run NAME' runs it."
OUTPUTS = ("table", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this program's text")
    parser.add_argument(
        "-o",
        "--output",
        choices=OUTPUTS,
        default="table",
        help="form (default: table); json is one object a line",
    )


def run(args: argparse.Namespace) -> int:
    """List, or show."""
    from podscope.trace import scripts

    if args.name is not None:
        if args.output == "json":
            raise UsageError("-o json: lists all programs; leave the name out")
        sys.stdout.write(scripts.load(args.name).text)
        return 0
    shipped = [scripts.load(name) for name in scripts.names()]
    if args.output == "json":
        for one in shipped:
            told = {
                "name": one.name,
                "help": one.help,
                "columns": list(one.columns),
                "arguments": one.arguments,
                "without": one.without,
            }
            print(json.dumps(told))
        return 0
    width = max(len(one.name) for one in shipped)
    for one in shipped:
        arguments = f" [--args {one.arguments}]" if one.arguments else ""
        print(f"{one.name:<{width}}  {one.help}{arguments}")
    return 0
