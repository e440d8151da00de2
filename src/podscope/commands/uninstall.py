# SPDX-License-Identifier: Apache-2.0
"""``podscope uninstall``: takes away all that ``podscope install`` made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from podscope.commands.install import add_cluster
from podscope.commands.install import add_wait
from podscope.commands.install import server_of
from podscope.commands.install import wait_seconds

if TYPE_CHECKING:
    import argparse

HELP = "Remove all that 'podscope install' made, and wait until it is gone."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_cluster(parser)
    parser.add_argument(
        "--purge",
        action="store_true",
        help="remove volumes and passwords of servers, too, that 'install --with' made",
    )
    add_wait(parser, "until all is gone")


def run(args: argparse.Namespace) -> int:
    """Remove, and wait."""
    seconds = wait_seconds(args)
    server = server_of(args)
    from podscope.deploy.installation import Installation

    with Installation(server, args.namespace) as installation:
        for line in installation.remove(seconds, purge=args.purge):
            print(line, flush=True)
    return 0
