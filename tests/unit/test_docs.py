# SPDX-License-Identifier: Apache-2.0
"""The reference says everything that the code knows: flags, fields, losses."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import pytest
from records import cluster_batch
from records import shop_batch

from podscope import schema
from podscope.__main__ import command_parser
from podscope.__main__ import load
from podscope.commands import COMMANDS
from podscope.schema_metrics import LABELS
from podscope.schema_metrics import LOST as LOST_FIELDS
from podscope.schema_metrics import METRICS as METRICS_BELOW
from podscope.schema_trace import FIELDS as TRACE_FIELDS
from podscope.sinks import prometheus
from podscope.sources import source as sources

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
CLI = (REFERENCE / "cli.md").read_text()
FIELDS = (REFERENCE / "fields.md").read_text()
LOST = (REFERENCE / "lost.md").read_text()
LIBRARY = (REFERENCE / "library.md").read_text()
METRICS = (REFERENCE / "metrics.md").read_text()


def section(document: str, title: str) -> str:
    """The text below ``## title``, up to the next title of that level; empty if there is none."""
    parts = re.split(r"^## (.+)$", document, flags=re.M)
    titles = [part.strip("`") for part in parts[1::2]]
    return parts[2 * titles.index(title) + 2] if title in titles else ""


def first_cells(text: str) -> list[str]:
    """First cells of a document's table rows, their first word in code marks."""
    return re.findall(r"^\| `([^`]+)`", text, re.M)


def flags_of(text: str) -> set[str]:
    """Flags in the first cells of table rows."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `-")]
    return {flag for cell in cells for flag in re.findall(r"(?<!\S)`?(--?[A-Za-z][a-z-]*)", cell)}


def actions(name: str) -> list[argparse.Action]:
    """What argparse knows of the command, but for --help."""
    command = next(command for command in COMMANDS if command.name == name)
    parser = command_parser(command, load(command))
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_reference_has_exactly_the_flags_of_the_command(command):
    # GIVEN
    text = section(CLI, f"podscope {command}")

    # WHEN
    known = {flag for action in actions(command) for flag in action.option_strings}

    # THEN
    assert text, f"docs/reference/cli.md has no section 'podscope {command}'"
    assert flags_of(text) == known


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_reference_names_every_choice_of_a_flag(command):
    # GIVEN
    text = section(CLI, f"podscope {command}")

    # WHEN
    choices = [choice for action in actions(command) for choice in action.choices or ()]

    # THEN
    assert [choice for choice in choices if f"`{choice}`" not in text] == []


def test_reference_names_every_field_to_group_by():
    # GIVEN
    text = section(CLI, "podscope http")

    # WHEN
    row = next(line for line in text.splitlines() if line.startswith("| `--by"))

    # THEN
    meaning = row.split("|")[2].partition("(")[0]
    assert re.findall(r"`(\w+)`", meaning) == list(schema.DIMENSIONS)


def test_reference_has_no_section_of_a_command_that_is_not_there():
    # GIVEN / WHEN
    documented = re.findall(r"^## podscope (\S+)$", CLI, re.M)

    # THEN
    assert documented == [command.name for command in COMMANDS]


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        ("http", schema.HTTP),
        ("request", schema.REQUEST),
        ("lost", LOST_FIELDS),
        *TRACE_FIELDS.items(),
        *((kind, sources.fields_of(kind)) for kind in sources.kinds()),
    ],
    ids=lambda v: str(v)[:7],
)
def test_every_field_is_in_the_reference_with_its_type_and_unit(title, fields):
    # GIVEN
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \| `?([^|`]*?)`? ?\|", section(FIELDS, title), re.M)

    # WHEN
    known = [(field.name, field.type, field.unit) for field in fields]

    # THEN
    assert rows == known


def test_every_reason_of_loss_is_in_the_reference_and_no_other():
    # GIVEN the enum that the kernel program counts by
    header = (ROOT / "bpf" / "http" / "http.h").read_text()
    enum = re.search(r"enum http_lost \{(.*?)\};", header, re.S)
    assert enum is not None

    # WHEN
    names = re.findall(r"\bHTTP_LOST_(\w+)", enum[1])

    # THEN
    assert len(names) > 5
    of_the_kernel = LOST.partition("\n## ")[0]
    assert first_cells(of_the_kernel) == [name.lower() for name in names if name != "MAX"]


@pytest.mark.parametrize("name", sources.names())
def test_every_source_is_in_the_reference_with_its_kinds_and_losses(name):
    # GIVEN
    module = importlib.import_module(f"podscope.sources.{name}")

    # WHEN
    row = re.search(rf"^\| `{name}` \| (.*?) \|", section(LIBRARY, "Sources"), re.M)

    # THEN
    assert row is not None
    assert re.findall(r"`(\w+)`", row[1]) == list(sources.find(name).fields)
    told = {one for one in first_cells(LOST) if one.startswith(f"{name}_")}
    assert told == {f"{name}_{reason}" for reason in module.LOST}


def exposed() -> str:
    """OpenMetrics text with every metric: both sides, all costs, some loss."""
    totals = prometheus.Totals()
    totals.add(shop_batch())
    totals.add(cluster_batch())
    costs = ("cpu_seconds", "resident_bytes", "kernel_runs", "kernel_seconds")
    totals.tell({"joined": 1}, dict.fromkeys(costs, 1.0), {"tcp": True})
    return b"".join(totals.expose(openmetrics=True)).decode()


def test_every_metric_is_in_the_reference_with_its_type():
    # GIVEN
    table = METRICS.partition("\n## ")[0]

    # WHEN
    metrics = re.findall(r"^# TYPE (\S+) (\w+)$", exposed(), re.M)

    # THEN
    assert len(metrics) == 16
    documented = re.findall(r"^\| `(\w+)` \| (\w+) ", table, re.M)
    assert sorted(documented) == sorted(metrics)


def test_every_metric_below_http_is_in_the_reference_with_its_type_and_unit():
    # GIVEN
    table = section(METRICS, "Below HTTP")

    # WHEN
    documented = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w*) ?\|", table, re.M)

    # THEN
    below = [one for kind, some in METRICS_BELOW.items() if kind != "lost" for one in some]
    assert documented == [(one.prometheus_name, one.type, one.prometheus_unit) for one in below]
    names = {name.replace(".", "_") for kind in LABELS if kind != "lost" for name in LABELS[kind]}
    assert [name for name in names if f"`{name}`" not in table] == []


def test_every_label_is_in_the_reference():
    # GIVEN
    labels = set(re.findall(r'[{,](\w+)="', exposed())) - {"le", "reason", "source"}

    # WHEN
    documented = set(first_cells(section(METRICS, "Labels")))

    # THEN
    possible = {
        field.label_name for field in schema.HTTP if field.label or field.dimension == "service"
    }
    assert documented == labels | possible | {"otel_metric_overflow"}


def test_reasons_of_loss_in_the_metrics_are_in_the_reference():
    # GIVEN / WHEN
    reasons = re.findall(r'^podscope_lost_total{reason="(\w+)"}', exposed(), re.M)

    # THEN
    assert "metric_series_full" in reasons
    assert set(reasons) <= set(first_cells(LOST))


def markdown_files() -> list[Path]:
    """Every document of the project."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("path", markdown_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path):
    # GIVEN
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())

    # WHEN
    dead = [target for target in targets if not (path.parent / target).exists()]

    # THEN
    assert dead == []


def test_make_targets_that_documents_name_exist():
    # GIVEN
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))

    # WHEN
    text = "\n".join(path.read_text() for path in markdown_files())
    named = set(re.findall(r"`make ([a-z-]+)|^    make ([a-z-]+)", text, re.M))
    used = {code or block for code, block in named}

    # THEN
    assert used
    assert used <= targets
