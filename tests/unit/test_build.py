# SPDX-License-Identifier: Apache-2.0
"""Building without a compiler, with a broken program, and from compiled objects."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */\nint answer = 42;\n"
CALL = "import sys; from pathlib import Path; from hatch_build import compile_objects; "


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small project with the real build rules and one kernel program."""
    for name in ("Makefile", "hatch_build.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bpf").mkdir()
    (tmp_path / "bpf" / "small.bpf.c").write_text(PROGRAM)
    return tmp_path


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Compile by the build hook, as pip does."""
    return subprocess.run(
        [sys.executable, "-c", f"{CALL}compile_objects(Path('.'))"],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_compiled_object_has_types_and_no_debug_sections(tree):
    # GIVEN / WHEN
    done = build(tree)

    # THEN
    assert done.returncode == 0, done.stderr
    compiled = (tree / "src/podscope/_bpf/small.bpf.o").read_bytes()
    assert compiled.startswith(b"\x7fELF")
    assert b".BTF" in compiled
    assert b".debug_info" not in compiled


@pytest.mark.parametrize(
    ("variable", "package"), [("CLANG", "clang-19"), ("LLVM_STRIP", "llvm-19")]
)
def test_missing_compiler_is_one_line_that_says_what_to_install(tree, variable, package):
    # GIVEN / WHEN
    done = build(tree, **{variable: "/no/such/tool"})

    # THEN
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert package in done.stderr
    assert "PODSCOPE_PREBUILT_BPF" in done.stderr


def test_program_that_does_not_compile_shows_the_compilers_words_and_leaves_no_object(tree):
    # GIVEN
    (tree / "bpf" / "small.bpf.c").write_text(PROGRAM + "int broken = ;\n")

    # WHEN
    done = build(tree)

    # THEN
    assert done.returncode == 1
    assert "expected expression" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("podscope: the kernel programs do not compile")
    assert not (tree / "src/podscope/_bpf/small.bpf.o").exists()


def test_changed_header_compiles_the_program_again(tree):
    # GIVEN
    header = tree / "bpf" / "answer.h"
    header.write_text("#define ANSWER 42\n")
    (tree / "bpf" / "small.bpf.c").write_text('#include "answer.h"\nint answer = ANSWER;\n')
    build(tree)
    compiled = tree / "src/podscope/_bpf/small.bpf.o"
    before = compiled.read_bytes()

    # WHEN the header is newer than the object
    header.write_text("#define ANSWER 43\n")
    later = compiled.stat().st_mtime + 2
    os.utime(header, (later, later))
    build(tree)

    # THEN
    assert compiled.read_bytes() != before


def load_hook():
    """The build hook as a module."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_prebuilt_objects_are_copied_and_nothing_else(tmp_path):
    # GIVEN
    (tmp_path / "http.bpf.o").write_bytes(b"\x7fELF")
    (tmp_path / "notes.txt").write_text("no object")

    # WHEN
    load_hook().copy_objects(tmp_path, tmp_path / "_bpf")

    # THEN
    assert [path.name for path in (tmp_path / "_bpf").iterdir()] == ["http.bpf.o"]


def test_empty_prebuilt_directory_ends_the_build_with_one_line(tmp_path, capsys):
    # GIVEN / WHEN
    with pytest.raises(SystemExit) as ended:
        load_hook().copy_objects(tmp_path, tmp_path / "_bpf")

    # THEN
    assert ended.value.code == 1
    assert (
        capsys.readouterr().err == f"podscope: PODSCOPE_PREBUILT_BPF={tmp_path}: no *.bpf.o there\n"
    )
