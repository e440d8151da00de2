# SPDX-License-Identifier: Apache-2.0
"""Packs Python, the tests and what they need into one archive for a virtual machine.

The machine sees the host's files through 9p without a cache: every file looked up is a
round trip, so that an import of NumPy takes a minute. One archive is read in a second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ARCHIVE = "carried.tar"
# Top-level names in site-packages that the tests import, with their metadata (for plugins).
PACKAGES = (
    "numpy", "numpy.libs", "pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging",
    "pygments", "hypothesis", "_hypothesis*", "sortedcontainers",
)  # fmt: skip
# Parts of Python and of packages that no test imports.
LEFT_OUT = (
    "test", "tests", "idlelib", "lib2to3", "ensurepip", "pydoc_data", "tkinter", "turtledemo",
    "site-packages", "dist-packages", "f2py",
)  # fmt: skip
LEFT_OUT_KINDS = (".pyi", ".a", ".h", ".opt-1.pyc", ".opt-2.pyc")
PARTS = ("src", "tests", "bpf", "pyproject.toml")


def carry(root: Path, directory: Path) -> None:
    """Writes the archive of ``python/`` (a PYTHONHOME), ``packages/`` and ``project/``.

    The project stands in ``directory/carried/project`` as well: the machine unpacks the
    archive over it, so that byte code made here names files that are there.
    """
    project = directory / "carried" / "project"
    stage(root, project)
    home = Path("python", sys.platlibdir, f"python{sysconfig.get_python_version()}")
    with tarfile.open(directory / ARCHIVE, "w") as archive:
        add(archive, Path(sysconfig.get_path("stdlib")), home)
        for path in wanted_packages(Path(sysconfig.get_path("purelib"))):
            add(archive, path, Path("packages", path.name))
        for part in (*PARTS, "objects"):
            add(archive, project / part, Path("project", part))


def stage(root: Path, project: Path) -> None:
    """Copies the project, and does here what takes long without hardware help: compiling."""
    for part in PARTS:
        copy = shutil.copytree if (root / part).is_dir() else shutil.copy2
        project.mkdir(parents=True, exist_ok=True)
        copy(root / part, project / part)
    sys.path.insert(0, str(project / "tests" / "kernel"))
    from compile_bpf import SOURCES
    from compile_bpf import compile_bpf

    (project / "objects").mkdir()
    for source in sorted(SOURCES.glob("*.bpf.c")):
        compile_bpf(source, project / "objects" / f"{source.name.removesuffix('.c')}.o")
    environment = {**os.environ, "PYTHONPATH": "src"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    # Writes the byte code of all that is imported, tests with their assertions rewritten.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only"]
    subprocess.run(
        [*command, "tests/kernel"], cwd=project, env=environment, capture_output=True, check=False
    )


def wanted_packages(packages: Path) -> Iterator[Path]:
    """Directories and modules of PACKAGES."""
    for path in sorted(packages.iterdir()):
        name, _, kind = path.name.partition("-")
        top = name.split(".")[0] if path.is_file() else name
        if any(fnmatch(top, wanted) for wanted in PACKAGES) and (
            not kind or kind.endswith(".dist-info")
        ):
            yield path


def add(archive: tarfile.TarFile, path: Path, name: Path) -> None:
    """Adds a file or a tree."""
    if path.is_file():
        archive.add(path, str(name))
        return
    for found in files(path):
        archive.add(found, str(name / found.relative_to(path)))


def files(path: Path) -> Iterator[Path]:
    """Files below a directory that are wanted, in order; links to directories are followed."""
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.name.startswith((".", "config-")) or entry.name.endswith(LEFT_OUT_KINDS):
            continue
        if not entry.is_dir():
            yield Path(entry.path)
        elif entry.name not in LEFT_OUT:
            yield from files(Path(entry.path))
