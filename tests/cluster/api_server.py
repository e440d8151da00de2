# SPDX-License-Identifier: Apache-2.0
"""An API server that runs on this machine, and may be stopped for a while."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from podscope.identity.kubernetes_client import KubernetesError

if TYPE_CHECKING:
    from conftest import Cluster


def stop(pid_file: Path) -> list[bytes]:
    """Ends it; gives its command line."""
    pid = int(pid_file.read_text())
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists() and not is_zombie(pid):
        time.sleep(0.05)
    return command


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def start(pid_file: Path, command: list[bytes]) -> None:
    """Starts it as it was."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    pid_file.write_text(f"{process.pid}\n")


def reachable(cluster: Cluster) -> bool:
    try:
        cluster.connection.get("readyz", {}, 5)
    except KubernetesError:
        return False
    return True
