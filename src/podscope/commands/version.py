# SPDX-License-Identifier: Apache-2.0
"""``podscope version``: what to write into a bug report."""

from __future__ import annotations

import json
import os
import platform
from typing import TYPE_CHECKING

from podscope import __version__

if TYPE_CHECKING:
    import argparse

HELP = "Print the versions of podscope, Python and the kernel."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="form (default: text)"
    )


def run(args: argparse.Namespace) -> int:
    """Print one line a component, or one JSON object."""
    versions = collect()
    if args.output == "json":
        print(json.dumps(versions))
        return 0
    for name, version in versions.items():
        print(f"{name} {version}")
    return 0


def collect() -> dict[str, str]:
    """Versions by component, podscope first."""
    system = os.uname()
    return {
        "podscope": __version__,
        "python": platform.python_version(),
        "kernel": system.release,
        "machine": system.machine,
    }
