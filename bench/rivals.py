# SPDX-License-Identifier: Apache-2.0
"""bcc's tools for TCP as programs of others to measure beside (Debian: libbpf-tools)."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from podscope.errors import PodscopeError

NAMES = ("tcplife", "tcpconnlat", "tcpconnect")
SECONDS = 20.0


class Rival:
    """One of the tools, running, with its programs attached.

    Raises:
        PodscopeError: it is not installed, or does not run here, with what it says.
    """

    def __init__(self, name: str) -> None:
        path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if path is None:
            raise PodscopeError("not installed (Debian: libbpf-tools)")
        # Tracepoints are looked for in tracefs, which need not be mounted here.
        mount = "[ -e /sys/kernel/tracing/events ] || mount -t tracefs none /sys/kernel/tracing"
        self._process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f'{mount}; exec "$0"', path],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._waits_for_events():
                return
            time.sleep(0.05)
        self.close()
        raise PodscopeError(self._why())

    def kernel_ns(self) -> int:
        """Time in its programs so far, nanoseconds: the kernel tells it with each descriptor."""
        return sum(
            int(line.split()[1])
            for info in Path(f"/proc/{self._process.pid}/fdinfo").iterdir()
            for line in info.read_text().splitlines()
            if line.startswith("run_time_ns:")
        )

    def close(self) -> None:
        """Ends it, and so detaches its programs."""
        self._process.terminate()
        self._process.wait(SECONDS)

    def _waits_for_events(self) -> bool:
        """That it begins when all is attached."""
        directory = f"/proc/{self._process.pid}/fd"
        with suppress(OSError):
            return any(
                "eventpoll" in os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory)
            )
        return False

    def _why(self) -> str:
        assert self._process.stderr is not None
        said = self._process.stderr.read().strip().splitlines()
        return next((line for line in said if line.startswith("libbpf: ")), "it did not attach")
