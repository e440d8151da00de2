# SPDX-License-Identifier: Apache-2.0
"""``podscope agent``: watch a node of a cluster, for Prometheus and ``kubectl podscope``."""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from podscope.commands.configured import add_config
from podscope.commands.configured import add_interval
from podscope.commands.configured import add_listen
from podscope.commands.configured import add_sinks
from podscope.commands.configured import events
from podscope.commands.configured import follow
from podscope.commands.configured import load
from podscope.commands.configured import outputs
from podscope.commands.configured import request_log
from podscope.commands.configured import tell_refused
from podscope.commands.lifetime import Lifetime
from podscope.commands.up import pages
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.sinks import http_server
from podscope.sinks import prometheus

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from collections.abc import Iterable
    from collections.abc import Iterator

    from podscope.agent import Agent
    from podscope.config import Config
    from podscope.streams import Streams

HELP = "Watch this node of a Kubernetes cluster; 'podscope install' runs it on every node."
# Reached through the API server alone, which asks for the user's rights.
STREAM_HOST = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--kubeconfig", metavar="FILE", help="default: the pod's service account")
    parser.add_argument(
        "--context", metavar="NAME", help="of the kubeconfig (default: the current one)"
    )
    parser.add_argument(
        "--node",
        metavar="NAME",
        help="this node's name (default: NODE_NAME, else the host's name)",
    )
    parser.add_argument(
        "--traces", metavar="BOOL", help="run traces that 'podscope run' asks for (default: false)"
    )
    add_listen(parser)
    add_interval(parser)
    add_sinks(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Watch until a signal."""
    config = load(args)
    others = events(config)
    node = config.node or os.environ.get("NODE_NAME") or socket.gethostname()
    from podscope.agent import Agent
    from podscope.identity.kubernetes_client import find_server
    from podscope.streams import EVENTS
    from podscope.streams import KINDS
    from podscope.streams import STREAM_PATH
    from podscope.streams import STREAM_PORT
    from podscope.streams import Streams

    server = find_server(config.kubeconfig, config.context)
    totals = prometheus.Totals()
    streams = Streams()
    counted = threading.Event()

    def take(changed: Config) -> None:
        sinks.take(changed.sinks)
        agent.interval = float(changed.interval)

    stream_pages = {f"{STREAM_PATH}{kind}": _stream(streams, kind) for kind in (*KINDS, EVENTS)}
    with (
        Lifetime() as lifetime,
        _traces(config) as trace_pages,
        http_server.HttpServer((STREAM_HOST, STREAM_PORT), stream_pages | trace_pages),
        Agent(server, node, streams, float(config.interval), others, tell=tell_refused) as agent,
        http_server.HttpServer(config.listen.pair, _pages(totals, counted, agent)) as served,
        outputs(config, node) as sinks,
        follow(args, config, take),
    ):
        lifetime.begin(agent.stop)
        totals.expose_also(sinks.expose)
        print(f"podscope: watching node {node}; metrics on http://{served.address}/metrics")
        sys.stdout.flush()
        if (log := request_log(config)) is not None:
            streams.always_want(log)
        for batch in agent:
            sinks.put(streams.always_wanted(batch))
            totals.add(batch)
            if batch.kind == "http":
                totals.tell(agent.lost(), agent.cost(), agent.sources())
                if agent.is_whole:
                    counted.set()
    return 0


def _page(give: Callable[[http_server.Request], Iterable[bytes]]) -> http_server.Page:
    """A page of what is given, or one line that says why it cannot be."""

    def page(request: http_server.Request) -> http_server.Answer:
        try:
            pieces = give(request)
        except UsageError as error:
            return http_server.text(400, f"{error}\n")
        except PodscopeError as error:
            return http_server.text(501, f"{error}\n")
        return http_server.Answer(200, "application/octet-stream", pieces)

    return page


def _stream(streams: Streams, kind: str) -> http_server.Page:
    return _page(lambda request: streams.listen(kind, request.query))


@contextmanager
def _traces(config: Config) -> Iterator[dict[str, http_server.Page]]:
    """Pages for traces, each of which does what its name says; none where there are no traces.

    The parser of programs takes memory, and is loaded where it is asked for.
    """
    if not config.traces:
        yield {}
        return
    from podscope import node_traces
    from podscope.streams import TRACES_PATH

    def page(what: str) -> http_server.Page:
        return _page(lambda request: node_traces.answer(traces, what, request.query))

    with node_traces.NodeTraces() as traces:
        yield {f"{TRACES_PATH}{what}": page(what) for what in node_traces.PAGES}


def _pages(
    totals: prometheus.Totals, counted: threading.Event, agent: Agent
) -> dict[str, http_server.Page]:
    """Those of ``podscope up``; ready is who also knows the cluster."""
    found = pages(totals, counted, agent.refused)

    def readiness(request: http_server.Request) -> http_server.Answer:
        missing = [f"{name}: {why}" for name, why in agent.identities.states.items() if why]
        if counted.is_set() and not agent.identities.synced:
            told = "; ".join(missing) or "the first lists have not come"
            return http_server.text(
                503, f"not ready: the cluster's objects are not known: {told}\n"
            )
        return found["/readyz"](request)

    return {**found, "/readyz": readiness}
