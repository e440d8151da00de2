# SPDX-License-Identifier: Apache-2.0
"""Compiles the small BPF programs of the tests."""

import os
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent / "bpf"


def compile_bpf(source: Path, target: Path, *flags: str) -> Path:
    """Compiles one ``.bpf.c`` for the oldest instruction set that all kernels here take.

    PODSCOPE_TEST_OBJECTS names a directory with what was compiled before.
    """
    ready = os.environ.get("PODSCOPE_TEST_OBJECTS")
    if ready and not flags:
        shutil.copy(Path(ready, f"{source.name.removesuffix('.c')}.o"), target)
        return target
    clang = next(filter(None, map(shutil.which, ("clang-20", "clang-19", "clang"))))
    headers = f"/usr/include/{os.uname().machine}-linux-gnu"
    command = [clang, "-target", "bpf", "-mcpu=v2", "-g", "-O2", "-Wall", "-Werror", *flags]
    subprocess.run([*command, "-idirafter", headers, "-c", source, "-o", target], check=True)
    return target
