# SPDX-License-Identifier: Apache-2.0
"""When a command's programs are attached: what comes after that must be told."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time

SECONDS = 60.0
STEADY_SECONDS = 0.5


def links_of(pid: int) -> int:
    """BPF links that a process holds."""
    held = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                held += "bpf_link" in os.readlink(entry.path)
    return held


def wait_until_attached(process: subprocess.Popen[str]) -> None:
    """Until it has links, and for a while no more of them, or has ended."""
    deadline = time.monotonic() + SECONDS
    held, since = 0, time.monotonic()
    while process.poll() is None and (not held or time.monotonic() < since + STEADY_SECONDS):
        assert time.monotonic() < deadline, "nothing was attached"
        time.sleep(0.02)
        if (now := links_of(process.pid)) != held:
            held, since = now, time.monotonic()
