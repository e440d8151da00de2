# SPDX-License-Identifier: Apache-2.0
"""``podscope dashboards``: dashboards as files, for Grafana and others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from podscope.errors import PodscopeError

if TYPE_CHECKING:
    import argparse

HELP = "Write dashboards for the servers that rows go to; without --out, list the files."
KINDS = ("grafana", "kibana", "filebeat")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "kind",
        nargs="?",
        choices=KINDS,
        metavar="KIND",
        help=f"only these: {', '.join(KINDS)}",
    )
    parser.add_argument("--out", metavar="DIR", default="", help="directory to write them to")


def run(args: argparse.Namespace) -> int:
    """List, or write."""
    from podscope.dashboards.files import files

    for name, text in files(args.kind or "").items():
        if args.out:
            _write(Path(args.out) / name, text)
        print(Path(args.out) / name, flush=True)
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PodscopeError(f"--out: cannot write {path}: {error.strerror}") from None
