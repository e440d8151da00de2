# SPDX-License-Identifier: Apache-2.0
"""Flags of the commands that have a configuration, and what it says."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from podscope.config import Config
    from podscope.config import Follower
    from podscope.errors import PodscopeError
    from podscope.sinks.outputs import Outputs
    from podscope.sources.http import RequestLog

LISTEN = "127.0.0.1:9435"
INTERVAL = "1s"
GRACE = "5s"
EVENTS = "oom,listen,tcp,dns"


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


def add_sinks(parser: argparse.ArgumentParser) -> None:
    """Declare what the sinks of the configuration get."""
    parser.add_argument(
        "--cluster", metavar="NAME", help="k8s.cluster.name of the rows that sinks get"
    )
    parser.add_argument(
        "--requests",
        choices=("none", "errors", "all"),
        help="which requests sinks get (default: none)",
    )
    parser.add_argument(
        "--requests-slower", metavar="TIME", help="those that take longer, too, as 500ms"
    )
    parser.add_argument(
        "--requests-sample", metavar="1/N", help="one in N of the requests, as 1/100"
    )
    parser.add_argument(
        "--events",
        metavar="KIND,...",
        help=f"kinds of rows beside HTTP, or none (default: {EVENTS})",
    )
    parser.add_argument(
        "--grace",
        metavar="TIME",
        help=f"how long sinks may send what is left at the end (default: {GRACE})",
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

    return Follower(args.config, now, lambda: load(args), take, tell=tell)


def request_log(config: Config) -> RequestLog | None:
    """Which requests the sinks are to get; None: none of them."""
    from podscope.sources.http import RequestLog

    if config.requests == "none":
        return None
    return RequestLog(
        all=config.requests == "all",
        errors=config.requests == "errors",
        slower_ns=round(config.requests_slower * 1e9),
        one_in=config.requests_sample if config.requests_sample > 1 else 0,
    )


def events(config: Config) -> tuple[str, ...]:
    """The kinds of rows beside HTTP that are watched.

    Raises:
        UsageError: no source gives one that is asked for.
    """
    asked = () if config.events == ("none",) else config.events
    # Who wants the usual ones need not import the sources yet.
    known: Sequence[str] = EVENTS.split(",")
    if not set(asked) <= set(known):
        from podscope.sources import source

        known = source.kinds()
    for one in asked:
        if one not in known:
            told = ", ".join((*known, "none"))
            raise UsageError(f"events: no such kind: {one!r}; choose from {told}")
    return tuple(dict.fromkeys(asked))


def http_kinds(config: Config) -> tuple[str, ...]:
    """The kinds of rows of HTTP that sinks can get."""
    return ("http", *(("request",) if config.requests != "none" else ()))


def kinds(config: Config) -> tuple[str, ...]:
    """The kinds of rows that sinks can get; raises UsageError as `events` does."""
    return (*http_kinds(config), *events(config))


@contextmanager
def outputs(config: Config, host: str, some: Sequence[str] | None = None) -> Iterator[Outputs]:
    """The sinks of the configuration; at the end stderr has a line for each of them.

    Args:
        config: the configuration.
        host: ``host.name`` of all rows.
        some: kinds of rows that there may be; None: those that are watched.

    Raises:
        PodscopeError: a sink that cannot work so.
    """
    from podscope.sinks.outputs import Outputs

    resource = {"host.name": host, "k8s.cluster.name": config.cluster}
    told = {name: text for name, text in resource.items() if text}
    known = kinds(config) if some is None else some
    made = Outputs(config.sinks, told, known, grace=float(config.grace), tell=tell)
    try:
        with made:
            yield made
    finally:
        for line in made.summary():
            tell(line)


def tell_refused(refused: Mapping[str, PodscopeError]) -> None:
    """A line on stderr for each source that cannot run here."""
    for name, error in refused.items():
        tell(f"without {name}: {error}")


def tell(line: str) -> None:
    """A line on stderr; in one piece, since sinks tell theirs at the same time."""
    sys.stderr.write(f"podscope: {line}\n")
    sys.stderr.flush()
