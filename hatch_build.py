# SPDX-License-Identifier: Apache-2.0
"""Build hook: puts the compiled kernel programs into the wheel.

They are compiled by ``make bpf-objects``, or copied from the directory named by the environment
variable ``PODSCOPE_PREBUILT_BPF`` where no clang is at hand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OBJECTS = Path("src/podscope/_bpf")


class BpfBuildHook(BuildHookInterface):
    """Compiles ``bpf/*.bpf.c`` and names the wheel after the machine, for any Python 3."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        prebuilt = os.environ.get("PODSCOPE_PREBUILT_BPF")
        if prebuilt:
            copy_objects(Path(prebuilt), root / OBJECTS)
        else:
            compile_objects(root)
        build_data["artifacts"].append(f"{OBJECTS}/*.bpf.o")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{os.uname().machine}"


def copy_objects(source: Path, target: Path) -> None:
    """Copy ``*.bpf.o`` from ``source``, a directory, to ``target``."""
    objects = sorted(source.glob("*.bpf.o"))
    if not objects:
        fail(f"PODSCOPE_PREBUILT_BPF={source}: no *.bpf.o there")
    target.mkdir(parents=True, exist_ok=True)
    for compiled in objects:
        shutil.copyfile(compiled, target / compiled.name)


def compile_objects(root: Path) -> None:
    """Run the compiler by the one rule that the Makefile has for it."""
    if shutil.which("make") is None:
        fail("make is not installed: apt install make, or set PODSCOPE_PREBUILT_BPF=directory")
    # Without the outer make's flags: its job server is not ours.
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        ["make", "--silent", "bpf-objects"],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    ours = [line for line in done.stderr.splitlines() if line.startswith("podscope: ")]
    if ours:
        fail(ours[0].removeprefix("podscope: ") + ", or PODSCOPE_PREBUILT_BPF=directory")
    sys.stderr.write(done.stderr)
    fail("the kernel programs do not compile; the compiler's words are above")


def fail(line: str) -> None:
    """End the build with one line instead of a traceback."""
    sys.stderr.write(f"podscope: {line}\n")
    sys.exit(1)
