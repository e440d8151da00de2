# SPDX-License-Identifier: Apache-2.0
"""``podscope sinks``: prepare the servers that rows go to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING
from typing import Any

from podscope.commands.configured import add_config
from podscope.commands.configured import events
from podscope.commands.configured import load
from podscope.errors import PodscopeError
from podscope.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from podscope.schema import Field
    from podscope.sinks.elastic_templates import Asset
    from podscope.sinks.plugin import SinkSettings

HELP = "Prepare the servers of the configuration's sinks: templates, types, retention."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("setup",),
        metavar="setup",
        help="make what is missing or old",
    )
    add_config(parser)
    parser.add_argument(
        "--pipelines",
        action="store_true",
        help="also what log shippers need: templates of all rows, and ingest pipelines",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only print what would be made; asks no server"
    )


def run(args: argparse.Namespace) -> int:
    """Prepare each server, or say that there is none to prepare."""
    if args.action is None:
        raise UsageError("say what to do, as 'podscope sinks setup'")
    config = load(args)
    chosen = [one.settings for one in config.sinks if _is_elastic(one.settings)]
    if not chosen:
        where = args.config or "the configuration"
        print(f"podscope: {where} has no sink that needs to be set up", file=sys.stderr)
        return 0
    failed = False
    for settings in chosen:
        try:
            for line in _lines(settings, events(config), args):
                print(line, flush=True)
        except PodscopeError as error:
            print(f"podscope: sink {settings.title}: {error}", file=sys.stderr)
            failed = True
    return 1 if failed else 0


def _is_elastic(settings: SinkSettings) -> bool:
    return settings.type in ("elasticsearch", "opensearch")


def _lines(settings: Any, others: Sequence[str], args: argparse.Namespace) -> Iterator[str]:
    from podscope import schema
    from podscope import schema_metrics
    from podscope import schema_trace
    from podscope.sinks import elasticsearch
    from podscope.sinks.rows import BY_SERVICE
    from podscope.sinks.rows import SERVICE
    from podscope.sources.source import fields_of

    services = schema.told(schema.HTTP, BY_SERVICE)
    kinds = {"http": schema.HTTP, SERVICE: services, "request": schema.REQUEST}
    kinds |= {kind: fields_of(kind) for kind in others} | {"lost": schema_metrics.LOST}
    kinds |= schema_trace.FIELDS
    more: Callable[[bool], Sequence[Asset]] | None = None
    if args.pipelines:
        from podscope.dashboards import files

        kinds = files.kinds_of_rows() | kinds
        more = partial(_pipelines, kinds, settings.dataset)
    if not args.dry_run:
        for line in elasticsearch.setup(settings, kinds, more):
            yield f"{settings.title}: {line}"
        return
    sink = elasticsearch.Elasticsearch(settings)
    made = [asset for kind, fields in kinds.items() for asset in sink.assets(kind, fields)]
    made += more(settings.type == "elasticsearch") if more is not None else ()
    for asset in made:
        yield f"PUT {asset.path}"
        yield json.dumps(asset.body, indent=2)
    sink.close()


def _pipelines(kinds: Mapping[str, Sequence[Field]], dataset: str, ilm: bool) -> Sequence[Asset]:
    from podscope.dashboards import shippers

    return shippers.assets(kinds, dataset, ilm=ilm)
