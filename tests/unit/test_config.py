# SPDX-License-Identifier: Apache-2.0
"""The configuration of the agent: where it comes from, and changes while it runs."""

from __future__ import annotations

import os
import queue
from pathlib import Path

import pytest

from podscope import config
from podscope.__main__ import command_parser
from podscope.__main__ import load as load_module
from podscope.__main__ import main
from podscope.commands import COMMANDS
from podscope.commands import configured
from podscope.config import Config
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.settings import settings_of

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = (ROOT / "docs" / "reference" / "config.md").read_text()
SECONDS = 20


@pytest.fixture
def file(tmp_path):
    """A configuration with every setting."""
    made = tmp_path / "podscope.yaml"
    made.write_text("listen: ':9999'\ninterval: 2s\nnode: from-file\n")
    return made


def test_flags_go_before_variables_and_these_before_the_file(file):
    # GIVEN
    environment = {"PODSCOPE_INTERVAL": "3s", "PODSCOPE_NODE": "from-variable"}

    # WHEN
    made = config.load(str(file), environment, {"--node": "from-flag"})

    # THEN
    assert (made.listen, made.interval, made.node) == (":9999", 3, "from-flag")


def test_without_anything_it_is_what_it_always_is():
    assert config.load("", {"PODSCOPE_NODE": "", "PODSCOPE_OTHER": "x"}, {}) == Config()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, ": cannot read the configuration: No such file or directory"),
        (b"interval: \xff\n", ":1: it is not UTF-8"),
        (b"#" * (config.MOST_BYTES + 1), ": it is larger than 1024 KiB"),
        (b"\ninterval: 1ms\n", ":2: interval: 1ms is too short; the least is 100ms"),
        (b"listen: here\n", ":1: listen: not an address: 'here'; write it as 127.0.0.1:9435"),
    ],
)
def test_a_file_that_cannot_be_is_refused_with_its_name(file, content, said):
    # GIVEN
    file.unlink() if content is None else file.write_bytes(content)

    # WHEN
    with pytest.raises(UsageError) as caught:
        config.load(str(file), {}, {})

    # THEN
    assert str(caught.value) == f"{file}{said}"


@pytest.mark.parametrize("command", ["agent", "up"])
def test_a_wrong_file_is_one_line_and_exit_code_2(command, file, capsys):
    # GIVEN
    file.write_text("interval: 1s\nlissen: :1\n")

    # WHEN
    code = main([command, "--config", str(file)])

    # THEN
    assert code == 2
    told = capsys.readouterr().err
    assert told == f"podscope: {file}:2: unknown key 'lissen' (did you mean 'listen'?)\n"


def test_a_wrong_variable_is_one_line_and_exit_code_2(monkeypatch, capsys):
    # GIVEN
    monkeypatch.setenv("PODSCOPE_INTERVAL", "never")

    # WHEN
    code = main(["up"])

    # THEN
    assert code == 2
    assert capsys.readouterr().err.startswith("podscope: PODSCOPE_INTERVAL: not a duration: 'nev")


def test_every_setting_is_a_flag_of_the_agent():
    # GIVEN
    command = next(command for command in COMMANDS if command.name == "agent")
    parser = command_parser(command, load_module(command))

    # WHEN
    flags = {flag for action in parser._actions for flag in action.option_strings}

    # THEN
    assert {one.flag for one in settings_of(Config)} <= flags


def test_an_event_that_no_source_has_is_refused(file, capsys):
    # GIVEN
    file.write_text("events: [oom, crash]\n")

    # WHEN
    code = main(["up", "--config", str(file)])

    # THEN
    assert code == 2
    told = capsys.readouterr().err
    assert told.startswith("podscope: events: no such kind: 'crash'; choose from ")


def test_events_are_a_list_in_the_file_and_names_with_commas_elsewhere(file):
    # GIVEN
    file.write_text("events: [oom, tcp]\n")

    # WHEN / THEN
    assert config.load(str(file), {}, {}).events == ("oom", "tcp")
    assert config.load("", {"PODSCOPE_EVENTS": "oom, tcp"}, {}).events == ("oom", "tcp")
    file.write_text("events: 5\n")
    with pytest.raises(UsageError, match="events: no list of names: 5"):
        config.load(str(file), {}, {})


def test_the_agent_refuses_an_event_before_it_asks_for_a_cluster(file, capsys):
    # GIVEN
    file.write_text("events: [oom, crash]\n")

    # WHEN
    code = main(["agent", "--config", str(file)])

    # THEN
    assert code == 2
    assert capsys.readouterr().err.startswith("podscope: events: no such kind: 'crash'")


@pytest.mark.parametrize("told", ["[]", "none", "[none]"])
def test_events_can_be_turned_off(file, told):
    # GIVEN
    file.write_text(f"events: {told}\n")

    # WHEN / THEN
    assert configured.kinds(config.load(str(file), {}, {})) == ("http",)


def test_what_costs_little_is_watched_unless_it_is_turned_off():
    assert configured.kinds(config.Config()) == ("http", "oom", "listen", "tcp", "dns")
    assert ",".join(config.EVENTS) == configured.EVENTS


# --- changes ----------------------------------------------------------------------------------


class Running:
    """What a command does with a file that it follows."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.taken: list[Config] = []
        self.told: queue.Queue[str] = queue.Queue()
        self.refuses = False

    def load(self) -> Config:
        return config.load(str(self.file), {}, {})

    def take(self, changed: Config) -> None:
        if self.refuses:
            raise PodscopeError("no")
        self.taken.append(changed)

    def follow(self) -> config.Follower:
        return config.Follower(
            str(self.file), self.load(), self.load, self.take, tell=self.told.put, seconds=0.01
        )

    def next(self) -> str:
        return self.told.get(timeout=SECONDS)


def test_a_safe_change_is_taken_up_and_told(file):
    # GIVEN
    running = Running(file)
    with running.follow():
        # WHEN
        file.write_text("listen: ':9999'\ninterval: 5s\nnode: from-file\n")

        # THEN
        assert running.next() == f"{file}: taken up: interval"
    assert [one.interval for one in running.taken] == [5]


def test_a_file_that_is_being_written_is_left_alone(file, monkeypatch):
    # GIVEN a look that finds what an editor has truncated and not yet written
    running = Running(file)
    whole = file.read_bytes()
    changed = whole.replace(b"2s", b"5s")
    looks = iter([whole, b"", changed[:-4]])

    def look(_: str) -> bytes:
        found = next(looks, changed)
        file.write_bytes(found)
        return found

    # WHEN
    monkeypatch.setattr(config, "_mark", look)
    with running.follow():
        # THEN only the whole is taken
        assert running.next() == f"{file}: taken up: interval"
    assert [one.interval for one in running.taken] == [5]
    assert running.told.empty()


def test_a_change_that_needs_a_restart_is_told_once_and_not_taken(file):
    # GIVEN
    running = Running(file)
    with running.follow():
        # WHEN
        file.write_text("listen: ':1'\ninterval: 5s\nnode: from-file\n")
        first = running.next()
        file.write_text("listen: ':1'\ninterval: 6s\nnode: from-file\n")
        second = running.next()

    # THEN
    assert first == f"{file}: taken up: interval; needs a restart: listen"
    assert second == f"{file}: taken up: interval"
    assert [one.listen for one in running.taken] == [":9999", ":9999"]


def test_a_change_taken_back_needs_no_restart(file):
    # GIVEN
    before = file.read_text()
    running = Running(file)
    with running.follow():
        file.write_text("interval: 2s\nnode: from-file\n")
        assert running.next() == f"{file}: needs a restart: listen"

        # WHEN
        file.write_text(before + "# again\n")
        file.write_text(before.replace("2s", "4s"))

        # THEN
        assert running.next() == f"{file}: taken up: interval"


@pytest.mark.parametrize("content", ["interval: soon\n", "interval: [\n", None])
def test_a_wrong_file_leaves_the_settings_as_they_are(file, content):
    # GIVEN
    running = Running(file)
    with running.follow():
        # WHEN
        file.unlink() if content is None else file.write_text(content)

        # THEN
        told = running.next()
        assert told.startswith(str(file))
        assert told.endswith("; the settings from before stay")
        assert running.taken == []

        # WHEN it is put right
        file.write_text("listen: ':9999'\ninterval: 7s\nnode: from-file\n")

        # THEN
        assert running.next() == f"{file}: taken up: interval"
    assert running.taken[-1].interval == 7


def test_what_could_not_be_taken_up_is_tried_again_with_the_next_change(file):
    # GIVEN
    running = Running(file)
    running.refuses = True
    with running.follow():
        file.write_text("listen: ':9999'\ninterval: 5s\nnode: from-file\n")
        assert running.next() == "no; the settings from before stay"

        # WHEN
        running.refuses = False
        file.write_text("listen: ':9999'\ninterval: 5s\nnode: from-file\n\n")

        # THEN
        assert running.next() == f"{file}: taken up: interval"


def test_a_configmap_whose_link_is_swapped_is_a_change(tmp_path):
    # GIVEN the links of kubelet's AtomicWriter: config.yaml -> ..data/config.yaml
    for name, interval in (("..one", "1s"), ("..two", "2s")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"interval: {interval}\n")
    (tmp_path / "..data").symlink_to("..one")
    file = tmp_path / "config.yaml"
    file.symlink_to("..data/config.yaml")
    running = Running(file)
    with running.follow():
        # WHEN
        (tmp_path / "..data_tmp").symlink_to("..two")
        os.rename(tmp_path / "..data_tmp", tmp_path / "..data")

        # THEN
        assert running.next() == f"{file}: taken up: interval"
    assert running.taken[-1].interval == 2


# --- documents --------------------------------------------------------------------------------


def test_reference_has_every_setting_with_its_default_and_whether_it_is_live():
    # GIVEN
    rows = [line.split("|")[1:-1] for line in REFERENCE.splitlines() if line.startswith("| `")]

    # WHEN
    documented = {cells[0].strip(" `"): (cells[1].strip(" `"), cells[2].strip()) for cells in rows}

    # THEN
    known = {
        one.name: (str(one.default), "yes" if one.live else "no") for one in settings_of(Config)
    }
    assert {name: documented.get(name) for name in known} == known
