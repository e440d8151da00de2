# SPDX-License-Identifier: Apache-2.0
"""Boards as Grafana's JSON, for any of the data sources.

Form: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping

from podscope.dashboards.panels import TYPED
from podscope.dashboards.panels import VARIABLES
from podscope.dashboards.panels import Board
from podscope.dashboards.panels import Object
from podscope.dashboards.panels import Panel
from podscope.dashboards.panels import Section
from podscope.dashboards.panels import Source

# Of Grafana 10.3 and newer; newer ones take it and bring it up to date.
SCHEMA = 39
COLUMNS = 24
_HEIGHTS = {"stat": 4, "table": 10}
_HEIGHT = 8


def uid(board: Board, source: Source) -> str:
    """What a dashboard is known by; Grafana takes 40 characters."""
    return f"podscope-{board.name}-{source.name}"


def dashboard(board: Board, source: Source) -> Object | None:
    """A dashboard; None: the data source has nothing of it."""
    sections = [some for one in board.sections if (some := _known(one, source)).panels]
    if not sections:
        return None
    return {
        "uid": uid(board, source),
        "title": f"podscope {board.title.lower()} ({source.title})",
        "description": board.text,
        "tags": ["podscope", source.name],
        "timezone": "browser",
        "editable": True,
        # A crosshair in all panels.
        "graphTooltip": 1,
        "schemaVersion": SCHEMA,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": []},
        "links": [_link(source)],
        "templating": {"list": [*_variables(board, source)]},
        "panels": [*_panels(sections, source)],
    }


def _known(section: Section, source: Source) -> Section:
    return Section(section.title, tuple(one for one in section.panels if one.key in source.targets))


def _link(source: Source) -> Object:
    """The other boards, with the same variables and time."""
    return {
        "title": "podscope",
        "type": "dashboards",
        "icon": "external link",
        "tooltip": "",
        "url": "",
        "tags": ["podscope", source.name],
        "asDropdown": True,
        "targetBlank": False,
        "includeVars": True,
        "keepTime": True,
    }


def _variables(board: Board, source: Source) -> Iterator[Object]:
    yield {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": source.plugin,
        "regex": "",
        "multi": False,
        "includeAll": False,
        "hide": 0,
        "skipUrlSync": False,
        "refresh": 1,
        "options": [],
    }
    for name in board.variables:
        if name in TYPED:
            yield _textbox(name)
        elif name in source.variables:
            yield _query(name, source)


def _textbox(name: str) -> Object:
    return {
        "type": "textbox",
        "name": name,
        "label": VARIABLES[name],
        "query": "",
        "hide": 0,
        "skipUrlSync": False,
        "current": {"selected": True, "text": "", "value": ""},
        "options": [{"selected": True, "text": "", "value": ""}],
    }


def _query(name: str, source: Source) -> Object:
    query = source.variables[name]
    return {
        "type": "query",
        "name": name,
        "label": VARIABLES[name],
        "datasource": _datasource(source),
        "query": query,
        "regex": "",
        # On each change of the time range.
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": source.all_values[name],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
        "skipUrlSync": False,
    }


def _datasource(source: Source) -> Object:
    return {"type": source.plugin, "uid": "${datasource}"}


def _panels(sections: list[Section], source: Source) -> Iterator[Object]:
    """The panels from left to right, each section in lines of its own."""
    number, top = 0, 0
    for section in sections:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": section.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        top, left, height = top + 1, 0, 0
        for panel in section.panels:
            if left + panel.width > COLUMNS:
                top, left, height = top + height, 0, 0
            number += 1
            tall = _HEIGHTS.get(panel.view, _HEIGHT)
            place = {"x": left, "y": top, "w": panel.width, "h": tall}
            yield {"id": number, "gridPos": place, **_panel(panel, source)}
            left, height = left + panel.width, max(height, tall)
        top += height


def _panel(panel: Panel, source: Source) -> Object:
    targets = [
        {"refId": chr(ord("A") + n), "datasource": _datasource(source), **target}
        for n, target in enumerate(source.targets[panel.key])
    ]
    columns = source.columns.get(panel.key)
    made = {
        "type": panel.view,
        "title": panel.title,
        "description": panel.text,
        "datasource": _datasource(source),
        "targets": targets,
        **_VIEWS[panel.view](panel),
    }
    if source.least:
        made["interval"] = source.least
    if columns:
        made["transformations"] = [*_named(columns)]
    if legend := source.legends.get(panel.key):
        made["fieldConfig"]["defaults"]["displayName"] = legend
    return made


def _named(titles: Mapping[str, str]) -> Iterator[Object]:
    """A table has these columns alone, in this order."""
    yield {"id": "filterFieldsByName", "options": {"include": {"names": [*titles]}}}
    order = {name: place for place, name in enumerate(titles)}
    yield {
        "id": "organize",
        "options": {"indexByName": order, "renameByName": dict(titles), "excludeByName": {}},
    }


def _timeseries(panel: Panel) -> Object:
    style = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": True}
    return {
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": style},
            "overrides": [],
        },
        "options": {
            "legend": {
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
                "calcs": ["lastNotNull", "max"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _stat(panel: Panel) -> Object:
    return {
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {
            "reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": ""},
            "graphMode": "area",
            "colorMode": "value",
            "justifyMode": "auto",
            "textMode": "auto",
            "orientation": "auto",
        },
    }


def _table(panel: Panel) -> Object:
    return {
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": {"align": "auto", "filterable": True}},
            "overrides": [
                {
                    "matcher": {"id": "byName", "options": title},
                    "properties": [{"id": "unit", "value": unit}],
                }
                for title, unit in _UNITS.items()
            ],
        },
        "options": {
            "showHeader": True,
            "cellHeight": "sm",
            "sortBy": [{"displayName": panel.sort, "desc": True}],
        },
    }


# Of columns, by their titles.
_UNITS = {
    "Memory limit": "bytes",
    "Resident memory": "bytes",
    "Duration (s)": "s",
    "Duration (ns)": "ns",
    # A port is a number without thousands.
    **dict.fromkeys(("Port", "Source port", "Peer's port", "Status"), "none"),
}
_VIEWS = {"timeseries": _timeseries, "stat": _stat, "table": _table}
