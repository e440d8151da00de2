# SPDX-License-Identifier: Apache-2.0
"""Traces whose answers also go to sinks: ``--config`` and ``--metric``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from podscope.commands.showing import Shown
    from podscope.sinks.outputs import Outputs
    from podscope.trace.maps import MapShape
    from podscope.trace.rows import TraceRows
    from podscope.trace.scripts import Script
    from podscope.trace.session import Answer


def add_sinks(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        default="",
        help="settings in YAML, whose sinks get what is found, too",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME[=@MAP]",
        action="append",
        default=[],
        help="make a map a metric in these sinks, with its keys as labels; may be repeated",
    )


class Feed:
    """Gives answers to sinks."""

    def __init__(self, sinks: Outputs, made: TraceRows) -> None:
        self._sinks = sinks
        self._made = made

    def put(self, answer: Answer, shapes: Mapping[str, MapShape], lost: Mapping[str, int]) -> None:
        """One more answer, with the shapes of its maps and what is missing since the start."""
        for batch in self._made.batches(answer, shapes, lost):
            self._sinks.put(batch)

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know."""
        return self._made.notes


def fed(answers: Iterable[Answer], shown: Shown, feed: Feed | None) -> Iterator[Answer]:
    """The answers of what is shown, each given to the sinks first, if there are any."""
    for answer in answers:
        if feed is not None:
            feed.put(answer, shown.shapes(), shown.lost)
        yield answer


@contextmanager
def feed(
    args: argparse.Namespace,
    script: Script,
    *,
    name: str = "",
    namespace: str = "",
    host: str = "",
    start_ns: int = 0,
) -> Iterator[Feed | None]:
    """What gives answers to the sinks of the configuration; None: there is none.

    Args:
        args: the flags.
        script: what runs.
        name: of the trace, in a cluster.
        namespace: of its pods, where all are of one.
        host: ``host.name`` of all rows.
        start_ns: when the trace began; 0: now.

    Raises:
        UsageError: a mistake in the configuration, or a metric that cannot be.
    """
    if args.metric and not args.config:
        raise UsageError("--metric: where to? Name a file with sinks by --config")
    if not args.config:
        yield None
        return
    from podscope import config
    from podscope import schema_trace
    from podscope.commands.configured import outputs
    from podscope.sources import source
    from podscope.trace.rows import Origin
    from podscope.trace.rows import TraceRows
    from podscope.trace.rows import metrics_of

    chosen = config.load(args.config, os.environ, {})
    if not chosen.sinks:
        raise UsageError(f"{args.config}: it has no sinks")
    metrics = metrics_of(args.metric, script.text)
    origin = Origin(name, script.name, namespace, script.columns)
    # A file that agents have, too, may name other kinds.
    kinds = (*schema_trace.KINDS, "http", "request", *source.kinds())
    made = TraceRows(origin, metrics, start_ns or time.time_ns())
    with outputs(chosen, host, kinds) as sinks:
        yield Feed(sinks, made)
