# SPDX-License-Identifier: Apache-2.0
"""``podscope up``: watch this machine: a live table, and Prometheus metrics on /metrics."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import TextIO

from podscope import render
from podscope.commands.configured import add_config
from podscope.commands.configured import add_interval
from podscope.commands.configured import add_listen
from podscope.commands.configured import add_sinks
from podscope.commands.configured import events
from podscope.commands.configured import follow
from podscope.commands.configured import http_kinds
from podscope.commands.configured import load
from podscope.commands.configured import outputs
from podscope.commands.configured import request_log
from podscope.commands.configured import tell_refused
from podscope.commands.http import Options
from podscope.commands.http import Run
from podscope.commands.http import frame
from podscope.commands.http import live
from podscope.commands.lifetime import Lifetime
from podscope.sinks import http_server
from podscope.sinks import prometheus

if TYPE_CHECKING:
    import argparse

    from podscope.batch import Batch
    from podscope.config import Config
    from podscope.errors import PodscopeError
    from podscope.pipeline import Watch

HELP = "Watch this machine: a live table here, Prometheus metrics at /metrics. Ctrl-C ends it."
# A log of the output should not fill a disk.
PLAIN_SECONDS = 10.0
# This command has no flags to choose rows by.
FEWER = "'podscope http' with --port, --workload or --by shows fewer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_listen(parser)
    add_interval(parser)
    add_sinks(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Watch until a signal."""
    config = load(args)
    from podscope.pipeline import watch

    log = request_log(config)

    def take(changed: Config) -> None:
        sinks.take(changed.sinks)
        watched.interval = float(changed.interval)

    totals = prometheus.Totals()
    ready = threading.Event()
    refused: dict[str, PodscopeError] = {}
    others = events(config)
    # The port first: if it is taken, nothing was attached.
    with (
        Lifetime() as lifetime,
        http_server.HttpServer(config.listen.pair, pages(totals, ready, refused)) as server,
        watch(kinds=http_kinds(config), interval=float(config.interval), log=log) as watched,
        outputs(config, socket.gethostname()) as sinks,
        follow(args, config, take),
    ):
        lifetime.begin(watched.stop)
        watched.refused = refused
        totals.expose_also(sinks.expose)
        batches = counted(sinks.follow(with_others(watched, others)), watched, totals, ready)
        chosen = Options(interval=float(config.interval))
        show(batches, watched.lost, chosen, sys.stdout, server.address)
    return 0


def pages(
    totals: prometheus.Totals, ready: threading.Event, refused: Mapping[str, PodscopeError]
) -> dict[str, http_server.Page]:
    """The pages of the agent, by path; it is ready also without the sources that are refused."""

    def metrics(request: http_server.Request) -> http_server.Answer:
        openmetrics = prometheus.wants_openmetrics(request.fields.get("accept", ""))
        form = prometheus.OPENMETRICS if openmetrics else prometheus.TEXT
        return http_server.Answer(200, form, totals.expose(openmetrics=openmetrics))

    def health(_: http_server.Request) -> http_server.Answer:
        return http_server.text(200, "ok\n")

    def readiness(_: http_server.Request) -> http_server.Answer:
        if ready.is_set():
            without = [f"without {name}: {error}\n" for name, error in refused.items()]
            return http_server.text(200, "".join(("ready\n", *without)))
        return http_server.text(503, "not ready: the first interval has not ended\n")

    return {"/metrics": metrics, "/healthz": health, "/readyz": readiness}


def with_others(watched: Watch, others: Sequence[str]) -> Iterator[Batch]:
    """Its batches; the programs of other sources start when HTTP's are attached and told to be."""
    watched.also(others)
    tell_refused(watched.refused)
    yield from watched


def counted(
    batches: Iterable[Batch], watched: Watch, totals: prometheus.Totals, ready: threading.Event
) -> Iterable[Batch]:
    """The same batches, each added to the totals before it is passed on."""
    for batch in batches:
        totals.add(batch)
        if batch.kind == "http":
            totals.tell(watched.lost(), watched.cost(), watched.sources())
            ready.set()
        yield batch


def show(
    batches: Iterable[Batch],
    lost: Callable[[], Mapping[str, int]],
    chosen: Options,
    out: TextIO,
    address: str,
) -> None:
    """A live table on a terminal; elsewhere a plain one every ten seconds."""
    metrics = f"http://{address}/metrics"
    kept = (batch for batch in batches if batch.kind == "http")
    run = Run()
    if render.Screen.fits(out):
        title = f"podscope  {metrics}"
        live(run.follow(kept), lost, chosen, out, title=title, fewer=FEWER)
        out.write(f"{run.summary(lost())}\n")
        return
    out.write(f"podscope: watching; metrics on {metrics}\n")
    out.flush()
    due_ns = 0
    for batch in run.follow(kept):
        if batch.time_ns < due_ns:
            continue
        due_ns = batch.time_ns + round((PLAIN_SECONDS - chosen.interval / 2) * 1e9)
        out.write("".join(f"{line}\n" for line in (*frame(batch, chosen, lost()), "")))
        out.flush()
    out.write(f"{run.summary(lost())}\n")
