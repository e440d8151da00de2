# SPDX-License-Identifier: Apache-2.0
"""The rules of the layout that CONTRIBUTING.md states, checked on the files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "podscope"
# Tables of fields, one a source.
SCHEMAS = {
    "schema",
    *(f"schema_{name}" for name in ("dns", "events", "listen", "metrics", "oom", "tcp", "trace")),
}
# A room imports only from itself and the rooms of the lines before it.
ROOMS = (
    {"errors", "stopping"},
    {"batch", *SCHEMAS, "red", "filters", "render", "wire"},
    {"merge"},
    {"settings"},
    {"kernel"},
    {"sources"},
    {"identity"},
    {"sinks", "store"},
    {"pipeline", "trace"},
    {"scope", "config", "dashboards"},
    {"streams"},
    {"node_traces"},
    {"agent", "remote", "deploy"},
    {"agent_traces"},
    {"cluster_traces"},
    {"tracing"},
    {"commands", "tui", "web", "__main__"},
)
# What passes between the rooms, and the arithmetic on it.
OPEN_TO_ALL = {"", "errors", "batch", "red", "filters", *SCHEMAS}
VAGUE = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
LINES = 1000
PYTHON_LICENSE = "# SPDX-License-Identifier: Apache-2.0"
KERNEL_LICENSE = "/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */"
NAMES_OF_A_MACHINE = ("/" + "work/", ".lib" + "rary/")


def python_files(*directories: str) -> list[Path]:
    """Python files below the directories that are there."""
    return sorted(f for d in directories for f in (ROOT / d).rglob("*.py"))


def c_files(*directories: str) -> list[Path]:
    """C files below the directories that are there."""
    return sorted(f for d in directories for f in (ROOT / d).rglob("*.[ch]"))


def text_files() -> list[Path]:
    """Every source and document of the project."""
    inside = [
        path
        for directory in ("src", "bpf", "tests", "bench", "demo", "docs", "scripts", ".ci")
        for path in (ROOT / directory).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".o", ".so", ".svg", ".png")
    ]
    return sorted([*inside, *(path for path in ROOT.glob("*") if path.is_file())])


def room_of(path: Path) -> str:
    """``kernel`` for src/podscope/kernel/btf.py, ``pipeline`` for src/podscope/pipeline.py."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def rank(room: str) -> int:
    """The line of ROOMS that the room is on."""
    return next(number for number, rooms in enumerate(ROOMS) if room in rooms)


def imports_at_run_time(tree: ast.Module) -> list[str]:
    """Dotted names imported anywhere but under ``if TYPE_CHECKING:``."""
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import on line {node.lineno}"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def package_rooms(path: Path) -> set[str]:
    """Rooms of podscope that the file imports from."""
    names = imports_at_run_time(ast.parse(path.read_text()))
    ours = [name.split(".") for name in names if name.split(".")[0] == "podscope"]
    known = set().union(*ROOMS)
    return {parts[1] if len(parts) > 1 and parts[1] in known else "" for parts in ours}


@pytest.mark.parametrize("path", python_files("src"), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_room_imports_only_from_rooms_before_it(path):
    # GIVEN
    room = room_of(path)
    if room in ("", "__main__"):
        return

    # WHEN
    others = package_rooms(path) - OPEN_TO_ALL - {room}

    # THEN
    later = sorted(other for other in others if rank(other) >= rank(room))
    assert not later, f"{room} may not import from {later}"


def test_a_wrong_import_would_be_seen(tmp_path):
    # GIVEN a file of an early room that imports from a late one, inside a function
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def late():\n    from podscope.pipeline import watch\n    return watch\n")

    # WHEN
    rooms = package_rooms(wrong)

    # THEN
    assert rooms == {"pipeline"}
    assert rank("pipeline") > rank("kernel")


def test_every_room_of_the_package_has_its_place():
    # GIVEN / WHEN
    rooms = {room_of(path) for path in python_files("src")} - {""}

    # THEN
    assert rooms <= set().union(*ROOMS)


@pytest.mark.parametrize(
    "path", python_files("src", "tests", "demo", "bench"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_python_file_has_license_sane_length_and_telling_name(path):
    # GIVEN
    lines = path.read_text().splitlines()

    # WHEN
    head = [line for line in lines[:2] if not line.startswith("#!")]

    # THEN
    assert head[0] == PYTHON_LICENSE
    assert len(lines) <= LINES
    assert path.stem not in VAGUE


@pytest.mark.parametrize("path", c_files("bpf"), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernel_file_has_license_and_sane_length(path):
    # GIVEN / WHEN
    lines = path.read_text().splitlines()

    # THEN
    assert lines[0] == KERNEL_LICENSE
    assert len(lines) <= LINES
    assert path.name.split(".")[0] not in VAGUE


def scripts_and_other_c() -> list[Path]:
    """C outside of bpf/, and all that begins with ``#!`` or is read by make."""
    scripts = [path for path in text_files() if path.read_bytes().startswith(b"#!")]
    return sorted({*c_files("tests", "bench", "demo"), *scripts, ROOT / "Makefile"})


@pytest.mark.parametrize("path", scripts_and_other_c(), ids=lambda p: str(p.relative_to(ROOT)))
def test_script_or_c_file_names_its_license_in_its_first_lines(path):
    assert any("SPDX-License-Identifier: " in line for line in path.read_text().splitlines()[:2])


@pytest.mark.parametrize("name", ["LICENSE", "bpf/LICENSE.GPL-2.0", "bpf/LICENSE.BSD-2-Clause"])
def test_license_texts_are_there(name):
    assert "CONDITIONS" in (ROOT / name).read_text().upper()


def test_no_file_names_the_machine_it_was_written_on():
    # GIVEN / WHEN
    named = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in text_files()
        for word in NAMES_OF_A_MACHINE
        if word in path.read_text(errors="replace")
    ]

    # THEN
    assert not named
