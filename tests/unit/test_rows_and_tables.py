# SPDX-License-Identifier: Apache-2.0
"""How rows of the sources beside HTTP are shown."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest

from podscope import schema_events
from podscope.batch import Batch
from podscope.batch import Identity
from podscope.commands import rows
from podscope.commands import table
from podscope.render import Table

ROW = np.dtype([("cgroup_id", "u8"), ("pid", "u4"), ("owner", "u4"), ("size", "u8")])
FIELDS = (
    schema_events.END,
    *schema_events.WORKLOAD,
    *schema_events.process("the process"),
    schema_events.value("size", "size", ("int", "By"), schema_events.number("size"), "a size"),
)
CURL = Identity("process", "curl", "curl", 7)
POD = Identity("deployment", "web", "nginx", 9, namespace="shop", pod="web-1")
SHOWN = rows.Shown(
    FIELDS,
    (rows.Column("WORKLOAD", 10, rows.workloads), rows.Column("SIZE", 6, rows.sizes("size"))),
)


def batch(*sizes: int, identity: Identity = CURL) -> Batch:
    made = np.zeros(len(sizes), ROW)
    made["size"], made["pid"] = sizes, identity.pid
    index = np.zeros(len(sizes), np.uint32)
    return Batch("thing", made, index, (identity,), 10**18, 1.0, fields=FIELDS)


def shown(*batches: Batch, output: str = "table", shown: rows.Shown = SHOWN, **more) -> str:
    out = io.StringIO()
    rows.show(batches, lambda: {"thing_full": 2}, {"thing": shown}, output, out, **more)
    return out.getvalue()


def test_a_table_has_a_header_and_whole_cells_and_says_what_was_lost():
    assert shown(batch(1000), batch(), batch(5, identity=POD)).splitlines() == [
        "WORKLOAD    SIZE",
        "curl[7]     1.00kB",
        "shop/web-1[9]  5B",
        "",
        "total: 2 shown; lost: thing_full 2",
    ]


def test_json_has_a_line_a_row_and_ends_with_a_summary():
    # GIVEN / WHEN
    lines = [json.loads(line) for line in shown(batch(3, 4), output="json").splitlines()]

    # THEN
    assert [line["kind"] for line in lines] == ["thing", "thing", "lost", "summary"]
    assert lines[0]["size"] == 3
    assert lines[0]["service.name"] == "curl"
    assert lines[-1] == {"kind": "summary", "rows": 2, "lost": {"thing_full": 2}}


def test_csv_has_one_header(capsys):
    # GIVEN / WHEN
    lines = shown(batch(3), batch(4), output="csv").splitlines()

    # THEN
    assert lines[0].startswith("time,service.name,")
    assert [line.rsplit(",", 1)[1] for line in lines[1:]] == ["3", "4"]
    assert capsys.readouterr().err == "podscope: lost: thing_full 2\n"


def test_rows_of_other_kinds_and_workloads_are_passed_over():
    # GIVEN
    other = replace(batch(1), kind="other")

    # WHEN
    text = shown(other, batch(2), batch(3, identity=POD), named="w*")

    # THEN
    assert "curl" not in text
    assert "shop/web-1[9]" in text
    assert "total: 1 shown" in text


def test_only_rows_that_are_asked_for_are_shown():
    # GIVEN
    large = replace(SHOWN, keep=lambda one: np.asarray(one.rows["size"] > 2))

    # WHEN / THEN
    assert "total: 2 shown" in shown(batch(1, 3, 4), shown=large)


@pytest.mark.parametrize(
    ("address", "port", "text"),
    [("127.0.0.1", 80, "127.0.0.1:80"), ("::1", 80, "[::1]:80"), (None, 0, "-")],
)
def test_endpoints_are_written_as_urls_have_them(address, port, text):
    assert rows.endpoint(address, port) == text


def view(**more) -> table.View:
    return table.View(
        "thing", SHOWN, lambda columns: np.argsort(-columns["size"]), "things", **more
    )


def told(*batches: Batch, **more) -> str:
    out = io.StringIO()
    table.show(batches, dict, view(**more), out)
    return out.getvalue()


def test_a_table_is_ordered_and_comes_once_an_interval():
    assert told(batch(1, 3), batch(2)).splitlines() == [
        "WORKLOAD  SIZE",
        "curl[7]   3B",
        "curl[7]   1B",
        "",
        "WORKLOAD  SIZE",
        "curl[7]   2B",
        "",
        "nothing lost",
    ]


def test_once_is_one_interval():
    assert told(batch(1), batch(2), once=True).count("curl") == 1
    lines = told(batch(1), batch(2), once=True, output="json").splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["thing", "summary"]


def test_csv_of_intervals_has_one_header_also_where_the_first_is_empty():
    lines = told(batch(), batch(5), batch(6), output="csv").splitlines()
    assert [line.split(",")[0] for line in lines].count("time") == 1
    assert len(lines) == 3


def test_columns_that_matter_least_are_left_out_where_there_is_no_room():
    # GIVEN
    made = Table(("A", "BB", "CCC"), (False, False, False), [("aaaa", "bbbb", "cccc")])

    # WHEN
    fitted = [table._fitted(made, ("BB", "A"), width).titles for width in (16, 12, 5)]

    # THEN
    assert fitted == [("A", "BB", "CCC"), ("A", "CCC"), ("CCC",)]
