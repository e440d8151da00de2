# SPDX-License-Identifier: Apache-2.0
"""``podscope run`` and ``podscope scripts`` before anything runs: flags, files, targets."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest

from podscope.__main__ import main
from podscope.commands import run
from podscope.errors import UsageError
from podscope.trace import host_targets
from podscope.trace import scripts
from podscope.trace import session

ID = "4f1c9a" + "0" * 58


def chosen(*words: str) -> run.Options:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return run.options(parser.parse_intermixed_args(words))


def refusal(*words: str) -> str:
    with pytest.raises(UsageError) as refused:
        chosen(*words)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_script_and_target_are_told_apart_in_any_order():
    for words in (("syscalls", "pid/7"), ("pid/7", "syscalls")):
        told = chosen(*words)
        assert (told.script.name, told.target) == ("syscalls", "pid/7")


def test_with_a_program_the_words_are_targets():
    told = chosen("-e", "BEGIN { exit(); }", "unit/a.service")
    assert (told.script.text, told.target) == ("BEGIN { exit(); }", "unit/a.service")


def test_times_may_be_seconds_as_in_kubectl_trace():
    told = chosen("-e", "BEGIN {}", "--deadline", "60", "--deadline-grace-period", "1m")
    assert (told.deadline, told.grace) == (60.0, 60.0)


def test_head_of_a_file_names_the_columns(tmp_path):
    # GIVEN
    file = tmp_path / "x.bt"
    file.write_text("// help: x\n// columns: pid, program\nBEGIN { exit(); }\n")

    # WHEN / THEN
    assert chosen("-f", str(file)).script.columns == ("pid", "program")


def test_comments_below_the_head_say_what_they_like():
    told = scripts.read("", "// help: a\n\n// columns: b\nBEGIN {}\n// cgroup: of ours\n")
    assert (told.help, told.columns, told.cgroup) == ("a", ("b",), "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "what to run? Give -e PROGRAM, -f FILE, or a name of 'podscope scripts'"),
        (("pid/1",), "what to run? Give -e PROGRAM, -f FILE, or a name of 'podscope scripts'"),
        (("-e", ""), "the program is empty"),
        (("-e", "BEGIN {}", "-f", "x"), "-e and -f: give one of them"),
        (("-e", "BEGIN {}", "--program", "x"), "-e and --program: give one of them"),
        (("-f", "/nowhere/x.bt"), "-f /nowhere/x.bt: cannot be read: No such file or directory"),
        (("syscalls", "opens"), "one script at a time: syscalls opens"),
        (("-e", "BEGIN {}", "--deadline", "soon"),
         "--deadline: not a duration: 'soon'; write it as 200ms, 1s or 1m30s"),
        (("-e", "BEGIN {}", "--interval", "1ms"),
         "--interval: 1ms is too short; the least is 100ms"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line(words, told):
    assert refusal(*words) == told


def test_a_name_that_is_no_script_says_where_they_are_listed():
    assert "'podscope scripts' lists them" in refusal("nothing")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    assert refusal("-f", f"{tmp_path}/x") == f"-f {tmp_path}/x: cannot be read: not UTF-8"


@pytest.fixture
def root(tmp_path):
    """A tree of cgroups as directories."""
    for path in (
        "system.slice/nginx.service/worker",
        f"system.slice/docker-{ID}.scope/init",
        f"kubepods/besteffort/pod11111111-2222-3333-4444-555555555555/{ID[:5]}b{ID[6:]}",
    ):
        (tmp_path / path).mkdir(parents=True)
    return str(tmp_path)


def test_a_unit_is_its_cgroup_and_all_below_it(root):
    # GIVEN / WHEN
    told = host_targets.find("unit/nginx", root)

    # THEN
    assert told.directories == host_targets.find("unit/nginx.service", root).directories
    paths = {path.removeprefix(f"{root}/system.slice/") for path in told.cgroups().values()}
    assert paths == {"nginx.service", "nginx.service/worker"}
    assert {os.stat(path).st_ino for path in told.cgroups().values()} == set(told.cgroups())


def test_a_container_is_found_by_its_id_and_not_by_its_parts(root):
    told = host_targets.find(f"container/{ID[:12]}", root)
    assert told.directories == (f"{root}/system.slice/docker-{ID}.scope",)
    assert len(told.cgroups()) == 2


def test_a_pod_is_its_own_cgroup_with_its_containers(root):
    uid = "11111111-2222-3333-4444-555555555555"
    told = host_targets.find(f"pod/{uid}", root)
    assert [os.path.basename(one) for one in told.directories] == [f"pod{uid}"]
    assert len(told.cgroups()) == 2


def test_several_targets_are_one(root):
    told = host_targets.find_all(["unit/nginx", f"container/{ID}"], root)
    assert len(told.directories) == 2 and len(told.cgroups()) == 4
    both = host_targets.find_all([f"pid/{os.getpid()}", "pid/1"], root)
    assert both.pids == (os.getpid(), 1) and both.first_pid() == 1
    assert "/ pid == " in session.prepare("kprobe:f { @ = count(); }", both).text
    with pytest.raises(UsageError, match="do not go together"):
        host_targets.find_all(["pid/1", "unit/nginx"], root)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pod/1111", "no pod with this UID has a cgroup on this host"),
        ("nginx", "not a target on this host: 'nginx'; write it as unit/nginx.service"),
        ("unit/", "not a target on this host: 'unit/'"),
        ("deploy/web", "not a target on this host: 'deploy/web'"),
        ("unit/apache", "no unit 'apache.service' runs on this host"),
        ("container/beef", "no container with this id has a cgroup of version 2 on this host"),
        ("container/4f1", "give 4 digits of the id or more"),
        ("container/4f1c9", "more than one container"),
        ("pid/x", "not a process id; write it as pid/300"),
        ("pid/0", "not a process id; write it as pid/300"),
        ("pid/4194999", "there is no process 4194999"),
    ],
)
def test_a_target_that_is_none_is_refused(root, text, told):
    if text == "container/4f1c9":
        text = f"container/{ID[:5]}"
    with pytest.raises(UsageError) as refused:
        host_targets.find(text, root)
    assert told in str(refused.value)


def test_scripts_are_listed_with_their_help(capsys):
    assert main(["scripts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(scripts.names())
    assert "syscalls" in scripts.names()


def test_scripts_as_json_say_what_their_heads_say(capsys):
    assert main(["scripts", "-o", "json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["name"] for one in told] == list(scripts.names())
    assert all(one["help"] for one in told)


def test_reference_has_every_script_with_its_help_and_columns():
    # GIVEN
    text = (Path(__file__).parents[2] / "docs/reference/scripts.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]

    # WHEN
    told = {row[0].strip("| `"): (row[1].partition("; not:")[0], row[2]) for row in rows}

    # THEN
    for name in scripts.names():
        one = scripts.load(name)
        assert told.pop(name) == (one.help, ", ".join(f"`{column}`" for column in one.columns))
    assert told == {}


def test_rows_have_times_as_numbers_and_plain_addresses():
    row = scripts.row(["1700000000", "::ffff:10.0.0.1", "fe80::1", "17"],
                      ["time", "saddr", "daddr", "program"])  # fmt: skip
    assert row == [1700000000, "10.0.0.1", "fe80::1", "17"]


def test_head_of_a_program_says_whose_its_events_are(root):
    # GIVEN
    text = "// cgroup: args->cgroup_id + 1\nkprobe:f { @ = count(); }"
    target = host_targets.find("unit/nginx", root)

    # WHEN
    made = session.prepare(text, target)

    # THEN
    assert "/ @podscope_cgroups[args->cgroup_id + 1] /" in made.text
    with pytest.raises(UsageError, match="its events run in other programs"):
        session.prepare(text, host_targets.HostTarget("pid/1", pids=(1,)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("iter:task { @ = count(); }", "cannot be confined to a target"),
        ("BEGIN { @podscope_cgroups[1] = 1; }", "podscope's own"),
        ("kprobe:f {", "ends too early"),
        ("// cgroup: 1; exit()\nkprobe:f { @ = count(); }", "not an expression"),
    ],
)
def test_a_program_that_cannot_be_confined_is_refused(root, text, told):
    with pytest.raises(UsageError, match=told):
        session.prepare(text, host_targets.find("unit/nginx", root))


def test_container_pid_needs_a_target():
    with pytest.raises(UsageError, match="only a target has one"):
        session.prepare("uprobe:/proc/$container_pid/exe:f { @ = count(); }", None)


def test_a_script_is_shown_whole(capsys):
    assert main(["scripts", "syscalls"]) == 0
    assert capsys.readouterr().out == scripts.load("syscalls").text


def test_words_may_stand_between_flags(capsys):
    assert main(["run", "syscalls", "--interval", "1s", "pid/4194999", "-o", "json"]) in (1, 2)
    assert "unknown argument" not in capsys.readouterr().err


def test_without_root_nothing_is_begun(capsys, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["run", "-e", "BEGIN { exit(); }"]) == 1
    assert capsys.readouterr().err == "podscope: bpftrace needs root: run it with sudo\n"
