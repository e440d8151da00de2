# SPDX-License-Identifier: Apache-2.0
"""The dashboards' form: what every query gives is told by tests/engines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from podscope.__main__ import main
from podscope.commands import dashboards as command
from podscope.dashboards import files
from podscope.dashboards import kibana
from podscope.dashboards import shippers
from podscope.dashboards.panels import BOARDS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
# Of Grafana itself.
MACROS = {"timeFilter", "col"}
GRAFANA = {path: text for path, text in files.files("grafana").items() if path.endswith(".json")}


def made(path: str) -> dict[str, Any]:
    """A dashboard as JSON."""
    return json.loads(GRAFANA[path])


def test_files_of_deploy_are_those_that_the_command_writes():
    # GIVEN / WHEN
    there = {
        str(path.relative_to(DEPLOY)): path.read_text()
        for kind in files.KINDS
        for path in (DEPLOY / kind).rglob("*")
        if path.is_file()
    }

    # THEN: else run `podscope dashboards --out deploy`
    assert there == files.files()


def test_command_writes_all_files_and_tells_their_names(tmp_path, capsys):
    # GIVEN / WHEN
    code = main(["dashboards", "--out", str(tmp_path)])

    # THEN
    assert code == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / one) for one in files.files()]
    for path, text in files.files().items():
        assert (tmp_path / path).read_text() == text
    assert command.KINDS == files.KINDS


def test_command_without_a_directory_only_lists(capsys, tmp_path, monkeypatch):
    # GIVEN
    monkeypatch.chdir(tmp_path)

    # WHEN
    code = main(["dashboards", "grafana"])

    # THEN
    assert (code, capsys.readouterr().out.split()) == (0, [*files.files("grafana")])
    assert not [*tmp_path.iterdir()]


def test_a_directory_that_cannot_be_written_is_told_in_one_line(tmp_path, capsys):
    # GIVEN
    (tmp_path / "grafana").write_text("a file")

    # WHEN
    code = main(["dashboards", "grafana", "--out", str(tmp_path)])

    # THEN
    assert code == 1
    assert re.fullmatch(r"podscope: --out: cannot write .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("path", GRAFANA)
def test_grafanas_own_model_knows_every_key_and_value(path):
    # GIVEN Grafana's published schema, as the classes made from it
    plugins.register_default_plugins()
    one = made(path)

    # WHEN
    back = json.loads(JSONEncoder().encode(Dashboard.from_json(one)))

    # THEN
    assert [*lacking(one, back)] == []


def lacking(one: Any, other: Any, at: str = "") -> Iterator[str]:
    """Places of what is in one and not, or not the same, in the other."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one:
            yield from lacking(one[key], other.get(key), f"{at}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from lacking(left, right, f"{at}/{place}")
    elif one != other:
        yield at


@pytest.mark.parametrize("path", GRAFANA)
def test_panels_have_numbers_of_their_own_and_do_not_overlap(path):
    # GIVEN / WHEN
    panels = made(path)["panels"]

    # THEN
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24 and not cells & taken
        taken |= cells


@pytest.mark.parametrize("path", GRAFANA)
def test_variables_that_are_asked_with_are_those_of_the_dashboard_and_all_are_used(path):
    # GIVEN
    one = made(path)
    known = [variable["name"] for variable in one["templating"]["list"]]

    # WHEN
    used = re.findall(r"\$\{?([a-z]\w*)", json.dumps([one["panels"], one["templating"]]))

    # THEN
    assert set(used) - MACROS == set(known)


@pytest.mark.parametrize("path", GRAFANA)
def test_a_dashboard_is_known_by_a_name_of_its_own(path):
    # GIVEN / WHEN
    uids = [made(other)["uid"] for other in GRAFANA]

    # THEN
    assert uids.count(made(path)["uid"]) == 1
    assert len(made(path)["uid"]) <= 40


def test_every_query_belongs_to_a_panel():
    # GIVEN
    keys = {panel.key for board in BOARDS for panel in board.panels}

    # WHEN / THEN
    for source in files.SOURCES:
        assert set(source.targets) <= keys
        assert set(source.columns) <= set(source.targets)
    assert keys == set().union(*(source.targets for source in files.SOURCES))


# --- Kibana -----------------------------------------------------------------------------------


def test_saved_objects_refer_to_objects_of_the_same_file():
    # GIVEN
    saved = [
        json.loads(line) for line in files.files("kibana")["kibana/podscope.ndjson"].splitlines()
    ]
    known = {(one["type"], one["id"]) for one in saved}

    # WHEN
    references = {(to["type"], to["id"]) for one in saved for to in one["references"]}

    # THEN
    assert len(known) == len(saved)
    assert references <= known
    shown = {one for one in known if one[0] in ("visualization", "search")}
    assert shown <= references


def test_panels_of_saved_dashboards_are_those_they_refer_to_and_do_not_overlap():
    for one in map(json.loads, files.files("kibana")["kibana/podscope.ndjson"].splitlines()):
        if one["type"] != "dashboard":
            continue
        panels = json.loads(one["attributes"]["panelsJSON"])
        assert [panel["panelRefName"] for panel in panels] == [
            to["name"] for to in one["references"]
        ]
        cells = [
            (x, y)
            for panel in panels
            for x in range(panel["gridData"]["x"], panel["gridData"]["x"] + panel["gridData"]["w"])
            for y in range(panel["gridData"]["y"], panel["gridData"]["y"] + panel["gridData"]["h"])
        ]
        assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 48


# --- documents --------------------------------------------------------------------------------

GUIDE = (DEPLOY.parent / "docs" / "guide" / "dashboards.md").read_text()


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_guide_tells_of_every_panel_which_data_sources_have_it(board):
    # GIVEN
    part = GUIDE.partition(f"### {board.title}\n")[2].partition("\n#")[0]

    # WHEN
    told = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in part.splitlines()
        if line.startswith("| ") and not line.startswith("| panel")
    ]

    # THEN
    assert told == [
        [
            f"{section.title}: {panel.title}",
            *("yes" if panel.key in source.targets else "" for source in files.SOURCES),
        ]
        for section in board.sections
        for panel in section.panels
    ]


@pytest.mark.parametrize("page", kibana.PAGES, ids=lambda page: page.key)
def test_guide_names_every_panel_of_a_saved_dashboard(page):
    assert f"| {page.title} | {', '.join(one.title for one in page.visuals)} |" in GUIDE


# --- log shippers -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["elasticsearch", "opensearch"])
def test_setup_makes_templates_of_all_rows_and_the_pipelines(kind, tmp_path, capsys):
    # GIVEN
    file = tmp_path / "podscope.yaml"
    file.write_text(f"sinks: [{{type: {kind}, url: 'http://127.0.0.1:1'}}]\n")

    # WHEN
    code = main(["sinks", "setup", "--pipelines", "--dry-run", "--config", str(file)])

    # THEN
    told = capsys.readouterr().out
    paths = re.findall(r"^PUT (.*)$", told, re.M)
    assert code == 0
    wanted = [asset.path for asset in shippers.assets(files.kinds_of_rows())]
    assert set(wanted) <= set(paths)
    for rows in files.kinds_of_rows():
        assert f"/_index_template/podscope-{rows}" in paths
    # Indexes of Elasticsearch name the policy by which they go; OpenSearch's policy names them.
    named = told.count('"index.lifecycle.name": "podscope"')
    components = sum("/_component_template/" in path for path in set(paths))
    assert named == (components if kind == "elasticsearch" else 0)


def test_columns_of_all_scripts_with_a_time_have_a_name_and_a_type():
    for script in shippers.row_scripts():
        assert set(script.columns) <= set(shippers.COLUMNS)
        names = [shippers.COLUMNS[column][0] for column in script.columns]
        assert len(set(names)) == len(names)
