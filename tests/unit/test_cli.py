# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: real processes, real exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from podscope import __version__
from podscope.__main__ import command_parser
from podscope.__main__ import load
from podscope.__main__ import main
from podscope.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"numpy", "rich", "asyncio", "pandas", "pyarrow", "prometheus_client"}


def podscope(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [sys.executable, "-m", "podscope", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def test_help_lists_every_command_with_its_line():
    # GIVEN the static table
    # WHEN
    shown = podscope("--help")

    # THEN
    assert shown.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^ +{command.name} +{re.escape(command.help)}$", shown.stdout, re.M)


def test_warnings_of_the_library_are_lines_of_the_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a command during which the library warns
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(
        "podscope.__main__.run",
        lambda _: warnings.warn("some sockets are missed", RuntimeWarning, stacklevel=1),
    )

    # WHEN
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        main(["http"])

    # THEN
    assert capsys.readouterr().err == "podscope: warning: some sockets are missed\n"


def test_a_cluster_without_the_extra_is_one_line(capsys, monkeypatch) -> None:
    # GIVEN a machine where the extra is not installed
    monkeypatch.setitem(sys.modules, "httpx", None)
    for name in [name for name in sys.modules if name.startswith("podscope.identity.kube")]:
        monkeypatch.delitem(sys.modules, name)

    # WHEN
    code = main(["http", "deploy/web"])

    # THEN
    assert code == 1
    said = capsys.readouterr().err
    assert said == "podscope: clusters need httpx: pip install 'podscope[kubernetes]'\n"


@pytest.mark.parametrize("command", ["http", "requests", "listen"])
def test_a_target_that_is_none_is_told_before_the_cluster_is_looked_for(command):
    # WHEN
    ran = podscope(command, "foo/bar", "--kubeconfig", "/nonexistent")

    # THEN
    assert ran.returncode == 2
    assert ran.stderr.startswith("podscope: TARGET: not a target: 'foo/bar'; write it as pod/X")


def test_without_a_command_the_help_is_shown():
    assert podscope().stdout == podscope("--help").stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonsense"], ["version"]])
def test_start_imports_nothing_heavy(arguments):
    # GIVEN a fresh interpreter that reports each import
    # WHEN
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "podscope", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )

    # THEN
    lines = [line for line in shown.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in lines}
    assert "argparse" in imported
    assert imported.isdisjoint(HEAVY)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_command_explains_its_flags(command):
    # GIVEN / WHEN
    shown = podscope(command.name, "--help")

    # THEN
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"usage: podscope {command.name}")
    for action in command_parser(command, load(command))._actions:
        assert action.help, f"{action.option_strings} has no help text"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_unknown_flag_is_one_line_and_exit_code_2(command):
    # GIVEN / WHEN
    shown = podscope(command.name, "--no-such-flag")

    # THEN
    assert shown.returncode == 2
    assert shown.stdout == ""
    assert len(shown.stderr.splitlines()) == 1
    assert "--no-such-flag" in shown.stderr


def test_unknown_command_names_the_nearest_one():
    # GIVEN / WHEN
    shown = podscope("reqests")

    # THEN
    assert shown.returncode == 2
    assert shown.stderr.splitlines() == [
        "podscope: unknown command 'reqests' (did you mean 'requests'?); see 'podscope --help'"
    ]


def test_misspelt_flag_names_the_nearest_one():
    # GIVEN / WHEN
    shown = podscope("version", "--outptu=json")

    # THEN
    assert shown.returncode == 2
    assert "did you mean '--output'?" in shown.stderr


def test_abbreviated_flags_are_refused_because_new_flags_would_break_them():
    assert podscope("version", "--out", "json").returncode == 2


def test_unknown_flag_before_the_command_is_refused():
    # GIVEN / WHEN
    shown = podscope("--fast", "version")

    # THEN
    assert shown.returncode == 2
    assert len(shown.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("http", "--interval", "-1s"),
        ("requests", "--slower", "-1s"),
        ("requests", "--sample", "-1/2"),
        ("up", "--interval", "-5"),
    ],
)
def test_value_that_begins_with_a_minus_is_told_from_a_flag(arguments):
    # GIVEN / WHEN
    shown = podscope(*arguments)

    # THEN
    assert shown.returncode == 2
    assert len(shown.stderr.splitlines()) == 1
    assert f"{arguments[1]}: not a " in shown.stderr
    assert repr(arguments[2]) in shown.stderr


@pytest.mark.parametrize("words", [["http", "-1s"], ["version", "--", "-1s"]])
def test_number_after_no_flag_stays_an_unknown_argument(words):
    # GIVEN / WHEN
    shown = podscope(*words)

    # THEN
    assert shown.returncode == 2
    assert "'-1s'" in shown.stderr


def test_version_as_text_and_json_agree():
    # GIVEN / WHEN
    text = podscope("version").stdout.splitlines()
    as_json = json.loads(podscope("version", "-o", "json").stdout)

    # THEN
    assert text[0] == f"podscope {__version__}"
    assert [f"{name} {version}" for name, version in as_json.items()] == text
    assert as_json["kernel"] == os.uname().release


def test_version_flag_is_one_line():
    assert podscope("--version").stdout == f"podscope {__version__}\n"


def test_reader_that_has_gone_is_no_error():
    # GIVEN a pipe that nobody reads
    read, write = os.pipe()
    os.close(read)

    # WHEN
    shown = subprocess.run(
        [sys.executable, "-m", "podscope", "version"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)

    # THEN
    assert shown.returncode == 0
    assert shown.stderr == ""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
@pytest.mark.parametrize("arguments", ["version", "--help", "doctor -o json", "version --bad"])
def test_closed_streams_are_no_error(closed, arguments):
    # GIVEN
    expected = podscope(*arguments.split()).returncode

    # WHEN
    shown = subprocess.run(
        ["sh", "-c", f'"$0" -m podscope {arguments} {closed}', sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )

    # THEN
    assert shown.returncode == expected
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("command", ["version", "doctor", "--help"])
def test_full_disk_is_one_line(command):
    # GIVEN / WHEN
    with open("/dev/full", "w", encoding="utf-8") as full:
        shown = subprocess.run(
            [sys.executable, "-m", "podscope", command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    # THEN
    assert shown.returncode == 1
    assert shown.stderr == "podscope: cannot write the output: No space left on device\n"


def test_arguments_that_are_not_utf_8_are_refused():
    # GIVEN / WHEN
    shown = subprocess.run(
        [sys.executable, "-m", "podscope", "http", "--workload", b"\xff*"],
        capture_output=True,
        text=True,
        check=False,
    )

    # THEN
    assert shown.returncode == 2
    assert "not UTF-8" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def run_with_command(tmp_path: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run main() with one more command, ``extra``, whose run() has the given body."""
    (tmp_path / "extra.py").write_text(
        f"from podscope.errors import PodscopeError, UsageError\n"
        f"HELP = 'extra'\ndef add_arguments(parser): pass\ndef run(args):\n    {body}\n"
    )
    program = (
        "import sys; from podscope import __main__ as m; from podscope.commands import Command; "
        "m.COMMANDS += (Command('extra', 'extra', 'extra'),); sys.exit(m.main(['extra']))"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        (
            "raise PodscopeError('no BTF: boot another kernel')",
            1,
            "podscope: no BTF: boot another kernel\n",
        ),
        ("raise UsageError('--interval 0s: too short')", 2, "podscope: --interval 0s: too short\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("return 3", 3, ""),
    ],
)
def test_errors_of_a_command_are_one_line_and_its_exit_code(tmp_path, body, code, error):
    # GIVEN / WHEN
    shown = run_with_command(tmp_path, body)

    # THEN
    assert shown.returncode == code
    assert shown.stderr == error


@pytest.mark.parametrize("module", ["argparse", "podscope.commands"])
def test_ctrl_c_while_the_program_is_being_imported_ends_it_without_a_word(module):
    # GIVEN an import in which Ctrl-C is noticed
    program = f"""
import sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.modules.pop({module!r}, None)
sys.meta_path.insert(0, Interrupted())
from podscope.__main__ import main
sys.exit(main(["version"]))
"""

    # WHEN
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    # THEN
    assert (shown.returncode, shown.stdout, shown.stderr) == (130, "", "")


def test_package_gives_its_version_without_numpy():
    # GIVEN / WHEN
    program = "import sys, podscope; print(podscope.__version__, 'numpy' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    # THEN
    assert shown.stdout == f"{__version__} False\n"


def test_unknown_attribute_of_the_package_is_an_attribute_error():
    # GIVEN
    import podscope as package

    # WHEN / THEN
    with pytest.raises(AttributeError, match="'wach'"):
        package.wach  # noqa: B018


UNREAD = """
import signal, sys
from podscope.__main__ import open_streams
signal.signal(signal.SIGTERM, lambda *_: None)
open_streams()
print("x" * 1_500_000)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_signal_in_the_middle_of_a_write_loses_nothing(unbuffered):
    # GIVEN a reader that is slow, so that a pipe is full
    command = [sys.executable, "-c", UNREAD]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        got = process.stdout.read(1)

        # WHEN a signal comes while the program waits for it
        time.sleep(0.2)
        process.terminate()
        time.sleep(0.1)
        got += process.stdout.read()

    # THEN
    assert len(got) == 1_500_001
