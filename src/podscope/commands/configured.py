# SPDX-License-Identifier: Apache-2.0
"""Flags of the commands that have a configuration, and what it says."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from podscope.config import Config
    from podscope.config import Follower

LISTEN = "127.0.0.1:9435"
INTERVAL = "1s"


def add_config(parser: argparse.ArgumentParser) -> None:
    """Declare --config."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=os.environ.get("PODSCOPE_CONFIG", ""),
        help="settings in YAML; flags and PODSCOPE_... variables go before it",
    )


def add_listen(parser: argparse.ArgumentParser) -> None:
    """Declare --listen."""
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        help=f"where /metrics, /healthz and /readyz are (default: {LISTEN})",
    )


def add_interval(parser: argparse.ArgumentParser) -> None:
    """Declare --interval."""
    parser.add_argument(
        "--interval", metavar="TIME", help=f"time between updates (default: {INTERVAL})"
    )


def load(args: argparse.Namespace) -> Config:
    """What flags, variables and the file say now. Raises UsageError."""
    from podscope import config

    flags = {
        f"--{name.replace('_', '-')}": value
        for name, value in vars(args).items()
        if isinstance(value, str)
    }
    return config.load(args.config, os.environ, flags)


def follow(args: argparse.Namespace, now: Config, take: Callable[[Config], None]) -> Follower:
    """Takes up changes of the file, and tells of them on stderr; for a ``with``."""
    from podscope.config import Follower

    return Follower(args.config, now, lambda: load(args), take, tell=_tell)


def _tell(line: str) -> None:
    print(f"podscope: {line}", file=sys.stderr, flush=True)
