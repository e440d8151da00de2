# SPDX-License-Identifier: Apache-2.0
"""Traces that are kept or sent: written, read again, and those of many nodes as one."""

from __future__ import annotations

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podscope.__main__ import main
from podscope.errors import UsageError
from podscope.trace import reports
from podscope.trace.decode import MapData
from podscope.trace.decode import Text
from podscope.trace.decode import Value
from podscope.trace.gather import Gathered
from podscope.trace.gather import by_names
from podscope.trace.maps import MapShape
from podscope.trace.session import Answer
from podscope.trace.tables import table

BUCKETS = [{"max": -1, "count": 1}, {"min": 4, "max": 7, "count": 2}]
WHOLE = {"count": 2, "average": 0, "total": 7}
SHAPES = {
    "@count": MapShape("@count", "count", ("text", "number"), titles=("comm", "pid")),
    "@max": MapShape("@max", "max"),
    "@avg": MapShape("@avg", "avg", ("text",), titles=("comm",)),
    "@hist": MapShape("@hist", "hist", ("text",), titles=("comm",)),
    "@set": MapShape("@set", "value", ("number",), titles=("pid",)),
}
ENTRIES = {
    "@count": [("a b,1", 5), ("é,2", 2**63 - 1)],
    "@max": [(None, -3)],
    "@avg": [("x", WHOLE)],
    "@hist": [("x", BUCKETS), ("y", BUCKETS[1:])],
    "@set": [("7", ["t", 1]), ("8", "z")],
}


def tables():
    return {
        name: table(MapData(name, "map", tuple(ENTRIES[name])), shape, (0, 17))
        for name, shape in SHAPES.items()
    }


def written(node="n1", *, last=True, bpftrace="0.17", program="p", columns=(), lines=(), **told):
    """The lines of one node."""
    about = reports.About(node, "unit/x", program, bpftrace, tuple(columns))
    answer = Answer(tuple(lines), tables(), 5, last)
    lost, full = told.get("lost", {}), told.get("full", {})
    early = Answer((), {}, 1)
    return [
        reports.begin_line(about),
        reports.answer_line(early, SHAPES, {}, {}),
        reports.answer_line(answer, SHAPES, lost, full),
    ]


def test_several_reports_of_one_node_are_one_node():
    # GIVEN
    reports_of = {name: read(written(name)) for name in ("n1", "n1 (b)", "n2")}

    # WHEN
    gathered = Gathered(reports_of, nodes={"n1 (b)": "n1"})

    # THEN
    assert gathered.maps(by_node=True)["@max"].to_dict() == {("n1",): -3, ("n2",): -3}
    assert gathered.maps(by_node=True)["@count"].to_dict()["n1", "a b", 1] == 10


def read(lines):
    return reports.read(lines, "x.trace")


def contents(maps):
    return {name: (one.kind, one.to_dict(), one.buckets.tolist()) for name, one in maps.items()}


def test_what_is_written_is_read_again_whole():
    # GIVEN / WHEN
    lines = [Text("hi\n"), Value([1, "é"]), tables()["@hist"]]
    told = read(written(lines=lines, columns=("pid",), lost={"lines": 3}, full={"@count": 4096}))

    # THEN
    assert contents(told.maps) == contents(tables())
    assert told.about == reports.About("n1", "unit/x", "p", "0.17", ("pid",))
    assert told.lines[:2] == (Text("hi\n"), Value([1, "é"]))
    assert told.lines[2].to_dict() == tables()["@hist"].to_dict()
    assert (told.lost, told.full, told.ended) == ({"lines": 3}, {"@count": 4096}, True)
    assert {name: shape.titles for name, shape in told.shapes.items()} == {
        name: shape.titles for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("kept", [5, 100, -2])
def test_a_file_that_breaks_off_is_as_good_as_its_last_whole_line(kept):
    # GIVEN the last line cut
    *before, last = written()

    # WHEN
    told = read([*before, last[:kept]])

    # THEN
    assert (told.maps, told.ended) == ({}, False)
    assert Gathered({"n1": told}).notes() == [
        "n1: did not tell its end; what it told last is counted"
    ]


def test_a_last_line_without_its_end_is_whole():
    *before, last = written()
    assert read([*before, last.rstrip("\n")]).ended


def test_an_error_is_kept():
    told = read([*written(last=False), reports.failed_line("bpftrace: no such probe")])
    assert told.failed == "bpftrace: no such probe"
    assert not Gathered({"n1": told}).whole()


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["\n"],
        ["plain words\n"],
        [reports.begin_line(reports.About("n")), "broken\n", reports.failed_line("x")],
        [reports.failed_line("x")],
        ['{"kind":"trace"}\n'],
        [reports.begin_line(reports.About("n")), '{"kind":"answer"}\n'],
        [reports.begin_line(reports.About("n")).replace('"format":1', '"format":2')],
        [written()[0], written()[2].replace('"type":"count"', '"type":"other"')],
        [written()[0], written()[2].replace("[[-9223372036854775808,-1],[4,7]]", "[[4,7]]")],
    ],
)
def test_files_that_are_no_traces_are_refused_in_one_line(lines):
    with pytest.raises(UsageError) as refused:
        read(lines)
    assert str(refused.value).startswith("x.trace")
    assert "\n" not in str(refused.value)


@given(st.lists(st.text() | st.sampled_from(written()), max_size=4))
def test_any_lines_are_a_trace_or_refused(lines):
    try:
        read(lines)
    except UsageError as refused:
        told = str(refused)
    else:
        told = "x.trace"
    assert told.startswith("x.trace")


def test_many_nodes_are_one_answer():
    # GIVEN
    nodes = Gathered({"n1": read(written("n1")), "n2": read(written("n2"))}, ("n1", "n2"))

    # WHEN
    maps = nodes.maps()

    # THEN
    assert maps["@count"].to_dict() == {("a b", 1): 10, ("é", 2): 2**64 - 2}
    assert maps["@max"].to_dict() == {(): -3}
    assert maps["@avg"].to_dict() == {("x",): [4, 14]}
    assert maps["@hist"].to_dict() == {("x",): [2, 4], ("y",): [0, 4]}
    assert maps["@set"].keys == (("n1", 7), ("n1", 8), ("n2", 7), ("n2", 8))
    assert nodes.whole() and nodes.notes() == []


def test_nodes_can_be_kept_apart_with_their_kind():
    nodes = Gathered({"n1": read(written("n1")), "n2": read(written("n2"))})
    apart = nodes.maps(by_node=True)
    assert apart["@count"].kind == "count"
    assert apart["@count"].to_dict()[("n2", "a b", 1)] == 5
    assert apart["@hist"].to_dict()[("n1", "x")] == [1, 2]


def test_what_is_missing_is_told_by_node():
    # GIVEN
    one = read(written("n1", lost={"lines": 2}, full={"@count": 4096}))
    other = read(written("n2", last=False, bpftrace="0.23", program="q", lost={"lines": 3}))

    # WHEN
    nodes = Gathered({"n1": one, "n2": other}, ("n1", "n2", "n3"))

    # THEN
    assert nodes.lost() == {"lines": 5}
    assert not nodes.whole()
    assert nodes.notes() == [
        "n3: no answer",
        "n1: @count is full with 4096 entries",
        "n2: did not tell its end; what it told last is counted",
        "nodes have different versions of bpftrace: 0.17, 0.23",
        "nodes ran different programs",
    ]


def test_nodes_of_one_name_are_told_apart_by_their_files():
    told = by_names([("a", read(written("n"))), ("b", read(written("n"))), ("c", read(written()))])
    assert list(told) == ["n (a)", "n (b)", "n1"]


@pytest.fixture
def files(tmp_path):
    """Two hosts' traces of a script of rows."""
    paths = []
    for node in ("n1", "n2"):
        path = tmp_path / f"{node}.trace"
        lines = [Value([5, f"of {node}"])]
        path.write_text("".join(written(node, lines=lines, columns=("pid", "what"))))
        paths.append(str(path))
    return paths


def test_get_shows_one_table(files, capsys):
    assert main(["get", *files]) == 0
    out = capsys.readouterr().out
    assert "@max: -3\n" in out and "@set\nNODE  PID  VALUE" in out
    assert out.endswith("2 of 2 told their end; nothing lost\n")


def test_get_gives_json_with_the_node_of_each_row(files, capsys):
    assert main(["get", "-o", "json", *files]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[0] == {"node": "n1", "kind": "row", "pid": 5, "what": "of n1"}
    assert told[-1]["nodes"] == ["n1", "n2"] and told[-1]["whole"] is True
    assert [one["name"] for one in told if one["kind"] == "map"] == list(SHAPES)


def test_get_gives_rows_as_csv(files, capsys):
    assert main(["get", "-o", "csv", *files]) == 0
    rows = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert rows == [["node", "pid", "what"], ["n1", "5", "of n1"], ["n2", "5", "of n2"]]


def test_get_fails_where_a_host_did_not_tell_its_end(tmp_path, capsys):
    (tmp_path / "x").write_text("".join(written(last=False)))
    assert main(["get", str(tmp_path / "x")]) == 1
    assert "n1: did not tell its end" in capsys.readouterr().err


def test_get_refuses_what_is_not_there(capsys):
    assert main(["get", "/nowhere/x"]) == 2
    assert capsys.readouterr().err == (
        "podscope: /nowhere/x: cannot be read: No such file or directory\n"
    )
