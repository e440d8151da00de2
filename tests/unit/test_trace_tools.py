# SPDX-License-Identifier: Apache-2.0
"""Tracers beside bpftrace: found, run as a child, ended; and what of them is refused."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from podscope.commands import run
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.trace import jobs
from podscope.trace import processes
from podscope.trace import tools
from podscope.trace.processes import Selector
from podscope.trace.tools import Tool
from podscope.trace.tools import ToolTrace

# Says its words, and then ticks until Ctrl-C, to which it says a last one.
TOOL = """
import signal, sys, time
def end(*_):
    print("maps", flush=True)
    sys.exit(0)
signal.signal(signal.SIGINT, end)
print("begun", *sys.argv[1:], flush=True)
while True:
    time.sleep(0.05)
"""
DEAF = (
    "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True)"
)


def python(text: str, *words: str) -> Tool:
    return Tool((sys.executable, "-c", text, *words), "bcc it")


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def lines(some) -> list[str]:
    return [line.text for answer in some for line in answer.lines]


def chosen(*words: str) -> run.Options:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return run.options(parser.parse_intermixed_args(words))


def test_a_tool_s_lines_are_the_answer_and_it_ends_as_by_ctrl_c():
    # GIVEN
    with ToolTrace(python(TOOL, "-p", "7")) as trace:
        answers = iter(trace)
        first = next(answers)

        # WHEN
        trace.stop()
        *_, last = rest = [*answers]

    # THEN
    assert lines([first]) == ["begun -p 7\n"]
    assert lines(rest) == ["maps\n"]
    assert last.last and not any(one.last for one in rest[:-1])


def test_the_deadline_ends_a_tool():
    with ToolTrace(python(TOOL), deadline=1.0) as trace:
        assert lines(trace)[-1] == "maps\n"


def test_a_tool_that_does_not_end_is_killed_and_that_is_said():
    # GIVEN
    with ToolTrace(python(f"{DEAF}; time.sleep(1000)"), grace=0.3) as trace:
        answers = iter(trace)
        next(answers)

        # WHEN
        trace.stop()
        *_, last = answers

    # THEN
    assert last.last
    assert trace.notes == ["bcc it: did not end within 0.3 s of grace"]


def test_a_tool_that_fails_is_an_error_with_its_last_words():
    tool = python("import sys; print('no kernel headers'); sys.exit(3)")
    with ToolTrace(tool) as trace, pytest.raises(PodscopeError, match="bcc it: no kernel headers"):
        list(trace)


def test_a_tool_that_cannot_be_run_is_an_error():
    # setpriv, where it is there, says it
    with (
        pytest.raises(PodscopeError, match="nowhere"),
        ToolTrace(Tool(("/nowhere/tool",), "bcc it")) as trace,
    ):
        list(trace)


def test_leaving_the_block_ends_all_that_a_tool_has_started():
    # GIVEN
    child = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; "
    child += "time.sleep(1000)']); print(p.pid, flush=True); p.wait()"
    with ToolTrace(python(child)) as trace:
        answers = iter(trace)
        (told,) = lines([next(answers)])

    # WHEN / THEN
    due = time.monotonic() + 30
    while not is_gone(int(told)):
        assert time.monotonic() < due
        time.sleep(0.02)


def test_a_tool_that_never_pauses_is_heard_and_ends_at_its_deadline():
    # GIVEN
    endless = "import sys\nwhile True: sys.stdout.write('x\\n')"

    # WHEN
    with ToolTrace(python(endless), deadline=1.0) as trace:
        answers = [len(answer.lines) for answer in trace]

    # THEN
    assert len(answers) > 1
    assert max(answers) <= tools._AT_ONCE


def test_the_file_that_a_tool_writes_belongs_to_its_answer_and_goes(tmp_path):
    # GIVEN
    file = tmp_path / "profile"
    tool = Tool((sys.executable, "-c", f"open({str(file)!r}, 'w').write('a\\nb\\n')"), "rbspy",
                result=str(file))  # fmt: skip

    # WHEN
    with ToolTrace(tool) as trace:
        told = lines(trace)

    # THEN
    assert told == ["a\n", "b\n"]
    assert not file.exists()


def program(place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("#!/bin/sh\n")
    place.chmod(0o755)
    return place


def test_tools_are_found_by_each_of_their_names_and_get_the_process(tmp_path, monkeypatch):
    # GIVEN
    here = program(tmp_path / "bin" / "ourtool-bpfcc")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    monkeypatch.delenv("NODE_NAME", raising=False)

    # WHEN / THEN
    for name in ("ourtool", "ourtool-bpfcc", "/usr/sbin/ourtool-bpfcc", " /usr/bin/ourtool\n"):
        found = tools.find("bcc", name, ("-p", "$container_pid", "--x=$target_pid"), 7)
        assert found.command == (str(here), "-p", "7", "--x=7")


def test_tools_of_the_node_are_taken_where_the_image_has_none(tmp_path, monkeypatch):
    # GIVEN a node's root as a container sees it
    node = f"{tmp_path}/node"
    program(Path(f"{node}/usr/share/bcc/tools/ourtool"))
    program(Path(f"{node}/usr/bin/rbspy"))
    monkeypatch.setenv("PATH", f"{tmp_path}/empty")

    # WHEN / THEN
    monkeypatch.delenv("NODE_NAME", raising=False)
    for tracer, told in (("bcc", "bcc has no tool 'ourtool' here"), ("rbspy", "rbspy is not here")):
        with pytest.raises(PodscopeError, match=told):
            tools.find(tracer, "ourtool", (), 7, node)
    monkeypatch.setenv("NODE_NAME", "n1")
    found = tools.find("bcc", "ourtool", ("1",), 7, node)
    assert found.command == ("chroot", node, "/usr/share/bcc/tools/ourtool", "1")
    found = tools.find("rbspy", "", ("--rate", "9"), 7, node)
    assert found.command[:6] == ("chroot", node, "/usr/bin/rbspy", "record", "--pid", "7")
    assert found.command[-2:] == ("--rate", "9")
    assert found.result.startswith(f"{node}/tmp/")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pid=1", Selector(1)),
        ("pid=last,exe=ruby", Selector(exe="ruby")),
        ("comm=a b,cmdline=x", Selector(comm="a b", cmdline="x")),
    ],
)
def test_selectors_are_those_of_kubectl_trace(text, told):
    assert processes.selector(text) == told


@pytest.mark.parametrize("text", ["", "pid", "pid=", "pid=0", "pid=x", "name=x", "exe=a,exe=b"])
def test_a_selector_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="--process-selector: "):
        processes.selector(text)


def test_a_selector_finds_processes_of_this_host():
    own = iter([os.getpid(), 2**22 + 1])
    assert processes.chosen(Selector(cmdline="pytest"), own) == os.getpid()
    with pytest.raises(UsageError, match="no process of the target is like that"):
        processes.chosen(Selector(comm="nobody"), iter([os.getpid()]))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--tracer bcc: which tool?"),
        (("-e", "a", "--program", "b"), "--tracer bcc: which tool?"),
        (("--program", "../x y"), "--tracer bcc: no name of a tool"),
        (("-f", "x"), "-f: not with --tracer bcc"),
        (("--program", "x", "--by", "pod"), "--by: not with --tracer bcc"),
        (("--program", "x", "--metric", "m"), "--metric: not with --tracer bcc"),
        (("--program", "x", "--process-selector", "x"), "--process-selector: not a part of one"),
        (("--program", "x", "--tracer", "rbspy"), "--tracer rbspy: takes no program"),
        (("-e", "BEGIN {}", "--tracer", "bpftrace", "--process-selector", "pid=1"),
         "--process-selector: only for other tracers"),
    ],
)  # fmt: skip
def test_what_tools_cannot_do_is_refused_in_a_line(words, told):
    with pytest.raises(UsageError) as refused:
        chosen("--tracer", "bcc", *words)
    assert str(refused.value).startswith(told)


def test_a_node_is_told_what_to_run_in_the_words_that_it_reads_itself():
    # GIVEN
    request = jobs.Request(
        "t", "tcplife", arguments=("-p", "$target_pid"), tracer="bcc", selector="pid=last",
        confine=False,
    )  # fmt: skip

    # WHEN
    words = jobs.words(request, jobs.Part("n1", ("pod/7c9e6679-7425-40de-944b-e07fc1f90ae7",)))

    # THEN
    assert words[0] == "run"
    told = chosen(*words[1:])
    assert (told.tracer, told.script.name, told.selector) == ("bcc", "tcplife", "pid=last")
    assert told.arguments == ("-p", "$target_pid")
    assert not told.confine


def test_a_killed_reader_leaves_no_tool(tmp_path):
    # GIVEN podscope in a process of its own, since the kernel ends the tool with its parent
    program(tmp_path / "tick-bpfcc").write_text("#!/bin/sh\necho $$\nexec sleep 1000\n")
    code = (
        "from podscope.trace.tools import *; t = ToolTrace(find('bcc', 'tick', ()));"
        "print(next(iter(t)).lines[0].text, end='', flush=True); import time; time.sleep(1000)"
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    reader, writer = os.pipe()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ | {"PATH": path},
                         file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)])  # fmt: skip
    os.close(writer)
    tool = int(os.read(reader, 32))

    # WHEN
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)

    # THEN
    due = time.monotonic() + 30
    while not is_gone(tool):
        assert time.monotonic() < due
        time.sleep(0.02)
