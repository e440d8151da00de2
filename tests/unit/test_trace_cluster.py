# SPDX-License-Identifier: Apache-2.0
"""Traces of a cluster, without one: what a node's log says, whose lines are, changes of Jobs."""

from __future__ import annotations

import argparse
import io
import json
import socket

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from podscope.commands import run
from podscope.commands import showing
from podscope.commands.lifetime import Lifetime
from podscope.commands.stop_port import StopPort
from podscope.errors import UsageError
from podscope.trace import job_logs
from podscope.trace import kept
from podscope.trace import patches
from podscope.trace import reports
from podscope.trace import rewrite
from podscope.trace.decode import MapData
from podscope.trace.decode import Text
from podscope.trace.decode import Value
from podscope.trace.following import Seen
from podscope.trace.maps import MapShape
from podscope.trace.owners import Owners
from podscope.trace.parse import parse
from podscope.trace.session import Answer
from podscope.trace.tables import renamed
from podscope.trace.tables import table
from podscope.trace.unparse import unparse

SHAPE = MapShape("@", "count", ("text",), titles=("comm",))
ABOUT = reports.About("n1", program="p", bpftrace="0.17")


class Told:
    """Of a trace beside its answers."""

    def __init__(self) -> None:
        self.notes = ["a note"]
        self.lost = {"lines": 2}
        self.full: dict[str, int] = {}


def counted(number: int):
    return {"@": table(MapData("@", "map", (("x", number),)), SHAPE, (0, 17))}


def log_of(*answers: Answer) -> list[str]:
    out = io.StringIO()
    writer = reports.Writer(out, ABOUT, {"@": SHAPE})
    for answer in answers:
        writer.answer(answer, Told())
    return out.getvalue().splitlines(keepends=True)


def line(number: int, *, last: bool = False, maps=None) -> Answer:
    return Answer((Text(f"{number}\n"),), counted(1) if maps is None else maps, number, last)


def test_a_log_has_maps_only_where_they_have_changed():
    # GIVEN
    one = counted(1)

    # WHEN
    log = log_of(line(1, maps=one), line(2, maps=one), line(3, maps=counted(2)))

    # THEN
    assert ["maps" in json.loads(text) for text in log[1:]] == [True, False, True]
    told = reports.read(log, "x")
    assert told.maps["@"].to_dict() == {("x",): 2}
    assert told.lines == (Text("1\n"), Text("2\n"), Text("3\n"))


def test_answers_that_say_nothing_new_are_not_written():
    quiet = Answer((), counted(1), 1)
    assert len(log_of(quiet, quiet, quiet)) == 2


def test_the_last_answer_has_all_and_its_notes():
    # GIVEN / WHEN
    log = log_of(line(1), line(2, last=True))

    # THEN
    assert json.loads(log[-2])["kind"] == "trace"
    told = reports.read(log[-2:], "x")
    assert (told.ended, told.notes, told.maps["@"].to_dict()) == (True, ("a note",), {("x",): 1})
    # AND the line that was only in the part that is gone is counted
    assert told.lost == {"lines": 2, "log": 1}


@given(st.integers(0, 12), st.integers(0, 12))
def test_what_is_read_twice_counts_once(cut, again):
    # GIVEN a log that breaks off, and comes again from some later place on
    log = log_of(*(line(number) for number in range(5)), line(5, last=True))
    reader = reports.Reader("n1")
    lines: list[object] = []
    for text in log[:cut]:
        lines += reader.take(text)
    if cut:
        lines += reader.take(log[min(cut, len(log) - 1)][:7])
    reader.again()

    # WHEN
    start = min(again, cut)
    for text in log[start:]:
        lines += reader.take(text)

    # THEN
    assert lines == [Text(f"{number}\n") for number in range(6)]
    assert reader.end().ended
    assert "log" not in reader.end().lost


def test_a_log_without_its_beginning_begins_with_the_next_copy_of_it(monkeypatch):
    # GIVEN
    monkeypatch.setattr(reports, "REPEAT_BYTES", 300)
    log = log_of(*(line(number) for number in range(20)))
    heads = [number for number, text in enumerate(log) if json.loads(text)["kind"] == "trace"]
    assert len(heads) > 2

    # WHEN the kubelet has thrown away the first part
    reader = reports.Reader("n1")
    lines = [one for text in log[heads[1] - 1 :] for one in reader.take(text)]

    # THEN
    first = int(lines[0].text)
    assert lines == [Text(f"{number}\n") for number in range(first, 20)]
    assert reader.end().lost["log"] == first
    assert reader.end().maps["@"].to_dict() == {("x",): 1}


def test_a_broken_line_of_a_log_is_counted_and_the_rest_is_read():
    # GIVEN
    log = log_of(line(1), line(2), line(3, last=True))
    reader = reports.Reader("n1", strict=False)

    # WHEN
    for text in (log[0], log[1], log[2][:9], *log[3:]):
        reader.take(text)

    # THEN
    assert reader.end().ended
    assert reader.end().lost == {"lines": 2, "log": 1, "broken_lines": 1}


def test_a_report_is_kept_in_a_file_with_those_of_other_nodes():
    # GIVEN
    one = reports.read(log_of(line(1, last=True)), "x")
    other = reports.read([reports.begin_line(reports.About("n2")), reports.failed_line("no")], "y")

    # WHEN
    told = reports.read_all([*reports.lines_of(one), *reports.lines_of(other)], "file")

    # THEN
    assert [(o.about.node, o.lines, o.failed, o.ended) for o in told] == [
        ("n1", (Text("1\n"),), "", True),
        ("n2", (), "no", False),
    ]
    assert told[0].notes == ("a note",)


# --- whose it is --------------------------------------------------------------------------------


def test_owners_of_cgroups_are_looked_for_when_they_are_needed():
    # GIVEN
    here = {5: "/a"}
    owners = Owners({"a": lambda: here, "b": lambda: {7: "/b"}})

    # WHEN / THEN
    assert (owners.name(5), owners.name(7), owners.only) == ("a", "b", "")
    assert owners.name(9) == "cgroup 9"
    here[11] = "/a/new"
    assert owners.name(11) == "a"
    assert Owners({"a": dict}).only == "a"


def test_lines_and_keys_get_the_cgroup_of_their_event():
    # GIVEN
    program = parse(
        'BEGIN { printf("b"); } tracepoint:a:b { @n = count(); @k[pid] = sum(1); @v = 1; '
        'printf("%d\\n", pid); print((1, comm)); print(comm); print(@n); }'
    )

    # WHEN
    told = " ".join(unparse(rewrite.with_owners(program, ["@n", "@k"], "t@")).split())

    # THEN
    tag = rewrite.value_tag("t@")
    assert 'printf("b")' in told
    assert 'printf("t@%llu:%d\\n", cgroup, pid)' in told
    assert "@n[cgroup] = count()" in told
    assert "@k[cgroup, pid] = sum(1)" in told
    assert f"print(((uint64){tag}, cgroup, 1, comm))" in told
    assert f"print(((uint64){tag}, cgroup, comm))" in told
    assert "print(@n)" in told
    assert "@v = 1" in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tracepoint:a:b { @ = count(); print(@); clear(@); }", True),
        ("tracepoint:a:b { @[pid] = hist(1); } tracepoint:a:c { @[pid] = hist(2); }", True),
        ("tracepoint:a:b { @ = count(); if (@ > 5) { exit(); } }", False),
        ("tracepoint:a:b { @[pid] = count(); delete(@[pid]); }", False),
        ("BEGIN { @ = count(); }", False),
        ("tracepoint:a:b, interval:s:1 { @ = count(); }", False),
    ],
)
def test_maps_that_can_be_kept_apart_are_told_from_those_that_cannot(text, expected):
    assert rewrite.can_be_owned(parse(text), "@") is expected


def test_containers_of_one_pod_are_one_row():
    # GIVEN
    shape = MapShape("@", "count", ("number", "text"))
    entries = (("1,x", 2), ("2,x", 3), ("3,x", 4))
    one = table(MapData("@", "map", entries), shape, (0, 17))

    # WHEN
    told = renamed(one, lambda cgroup: "a" if cgroup < 3 else "b")

    # THEN
    assert told.to_dict() == {("a", "x"): 5, ("b", "x"): 4}
    assert told.same_keys == 0


def test_lines_are_shown_with_their_pod_or_node():
    text = Text("one\ntwo\n", "web-1", "n1", 10**9)
    assert showing.prefixed(text, {}) == "web-1: one\nweb-1: two\n"
    assert showing.prefixed(Value([1, "a"], node="n1"), {}) == "n1: (1, a)\n"
    assert showing.prefixed(Text("x"), {}) == "x"
    timed = showing.prefixed(text, {}, times=True)
    assert timed.startswith("1970-01-01T00:00:01.000000000Z web-1: one\n")
    assert showing.prefixed(text, {}, colour=True).count("\x1b[") == 4


# --- where it runs ------------------------------------------------------------------------------


def is_for_cluster(*words: str) -> bool:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    args = parser.parse_intermixed_args(["-e", "BEGIN {}", *words])
    return run.is_for_cluster(run.options(args).targets, args)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), False),
        (("unit/nginx",), False),
        (("container/4f1c",), False),
        (("pid/3",), False),
        (("pod/11111111-2222-3333-4444-555555555555",), False),
        (("pod/web-0",), True),
        (("deploy/web",), True),
        (("node-1",), True),
        (("-n", "shop"), True),
        (("--all-nodes",), True),
        (("-A",), True),
        (("-l", "a=b"), True),
    ],
)
def test_targets_and_flags_say_whether_a_cluster_is_meant(words, expected):
    assert is_for_cluster(*words) is expected


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        ({"status": {"containerStatuses": [
            {"state": {"waiting": {"reason": "ErrImagePull", "message": "no\nsuch"}}}]}},
         "ErrImagePull: no such"),
        ({"status": {"containerStatuses": [
            {"state": {"waiting": {"reason": "ContainerCreating"}}}]}}, ""),
        ({"status": {"containerStatuses": [
            {"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]}}, "OOMKilled"),
        ({"status": {"containerStatuses": [
            {"state": {"terminated": {"reason": "Error", "exitCode": 1}}}]}},
         "its container ended with code 1"),
        ({"status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "message": "no node"}]}}, "no node"),
        ({"status": {"reason": "Evicted", "message": "disk"}}, "Evicted: disk"),
        (None, ""),
    ],
)  # fmt: skip
def test_why_a_pod_does_not_speak_is_one_line(pod, expected):
    assert job_logs._why(pod) == expected


def job(name: str, node: str, owner: str = "", **status: object) -> dict:
    about = {
        "name": name,
        "namespace": "shop",
        "labels": {"podscope.dev/trace": "podscope-trace-1"},
        "annotations": {"podscope.dev/node": node, "podscope.dev/target": "deploy/web"},
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "ownerReferences": [{"name": owner}] if owner else [],
    }
    return {"metadata": about, "status": status}


def test_a_trace_is_its_jobs_together():
    # GIVEN / WHEN
    (found,) = kept._grouped(
        [job("a", "n1", succeeded=1), job("b", "n2", "a", active=1), job("c", "n2", "a", failed=1)]
    )

    # THEN
    assert (found.name, found.state, found.nodes) == (
        "podscope-trace-1", "Running", ("n1", "n2"),
    )  # fmt: skip
    assert [one.state for one in found.jobs] == ["Completed", "Running", "Failed"]


def test_a_connection_to_the_stop_port_is_as_ctrl_c():
    # GIVEN
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended = []
    with Lifetime() as lifetime, StopPort(port):
        lifetime.begin(lambda: ended.append(True))

        # WHEN
        with socket.create_connection(("127.0.0.1", port), 30) as asking:
            answer = asking.recv(16)

    # THEN
    assert answer == b"ok\n"
    assert ended == [True]


# --- changes of Jobs ----------------------------------------------------------------------------

OBJECT = {
    "spec": {
        "containers": [
            {"name": "trace", "image": "a", "env": [{"name": "X", "value": "1"}]},
            {"name": "other"},
        ],
        "tolerations": [{"operator": "Exists"}],
        "keep": {"a": 1, "b": 2},
    }
}


def patched(tmp_path, kind: str, change: object) -> dict:
    file = tmp_path / "patch"
    file.write_text(yaml.safe_dump(change))
    return patches.load(str(file), kind)(json.loads(json.dumps(OBJECT)))["spec"]


def test_a_strategic_patch_merges_lists_by_their_keys(tmp_path):
    # GIVEN
    env = [{"name": "Y", "value": "2"}]
    change = {
        "containers": [{"name": "trace", "env": env}, {"name": "other", "$patch": "delete"}],
        "tolerations": [],
        "keep": {"a": None},
    }

    # WHEN
    told = patched(tmp_path, "strategic", {"spec": change})

    # THEN
    (container,) = told["containers"]
    assert container["image"] == "a"
    assert [one["name"] for one in container["env"]] == ["X", "Y"]
    assert (told["tolerations"], told["keep"]) == ([], {"b": 2})


def test_a_merge_patch_replaces_lists(tmp_path):
    told = patched(tmp_path, "merge", {"spec": {"containers": [{"name": "x"}], "keep": None}})
    assert told == {"containers": [{"name": "x"}], "tolerations": [{"operator": "Exists"}]}


def test_a_json_patch_does_its_operations(tmp_path):
    change = [{"op": "replace", "path": "/spec/containers/0/image", "value": "b"}]
    assert patched(tmp_path, "json", change)["containers"][0]["image"] == "b"


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        ("json", "{}", "a patch of type json is a list of operations"),
        ("merge", "[]", "a patch of type merge is an object"),
        ("merge", "{", "cannot be read: neither YAML nor JSON"),
        ("json", '[{"op": "remove", "path": "/none"}]', "does not fit a Job"),
    ],
)
def test_a_wrong_patch_is_one_line(tmp_path, kind, text, told):
    file = tmp_path / "patch"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        patches.load(str(file), kind)(dict(OBJECT))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@given(
    st.recursive(
        st.integers(0, 3),
        lambda one: st.dictionaries(st.sampled_from("abc"), one, max_size=3),
        max_leaves=8,
    ).filter(lambda one: isinstance(one, dict)),
    st.dictionaries(st.sampled_from("abc"), st.none() | st.integers(0, 3), max_size=3),
)
def test_a_merge_patch_sets_what_it_names_and_leaves_the_rest(made, change):
    # GIVEN / WHEN
    told = patches._merged(json.loads(json.dumps(made)), change, strategic=False)

    # THEN
    assert {k: v for k, v in told.items() if k not in change} == {
        k: v for k, v in made.items() if k not in change
    }
    assert {k: told.get(k) for k in change} == change


def a_pod(ready: str, *, state: str = "running", phase: str = "Running", gone: str = "") -> dict:
    about = {"name": "p"} | ({"deletionTimestamp": gone} if gone else {})
    return {
        "metadata": about,
        "spec": {"nodeName": "n1"},
        "status": {
            "phase": phase,
            "containerStatuses": [{"state": {state: {}}}],
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


NODE_GONE = "node n1 does not answer; what it told last is counted"
LONG_AGO, SOON = "2026-01-01T00:00:00Z", "2026-01-01T00:59:50Z"
NOW = 1767229200.0  # 2026-01-01T01:00:00Z


@pytest.mark.parametrize(
    ("pod", "why", "final"),
    [
        (a_pod("True"), "", False),
        (a_pod("True", gone=LONG_AGO), "", False),
        (a_pod("False"), NODE_GONE, False),
        (a_pod("Unknown"), NODE_GONE, False),
        (a_pod("False", gone=SOON), NODE_GONE, False),
        (a_pod("False", gone=LONG_AGO), NODE_GONE, True),
        (a_pod("False", state="terminated", gone=LONG_AGO), "", False),
        (a_pod("False", state="terminated", phase="Succeeded"), "", True),
        (a_pod("False", state="terminated", phase="Failed"), "", True),
    ],
)
def test_a_pod_whose_node_is_gone_is_told_and_waited_for_until_its_time_is_up(pod, why, final):
    assert job_logs.speaker(pod, NOW) == Seen("p", why, final)
