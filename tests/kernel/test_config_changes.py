# SPDX-License-Identifier: Apache-2.0
"""Changes of the configuration while the real command runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 60


@contextmanager
def up(file: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``podscope up`` with a configuration, and the address of its pages."""
    started = subprocess.Popen(
        [sys.executable, "-m", "podscope", "up", "--config", str(file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        line = started.stdout.readline()
        found = re.search(r"http://([0-9.:]+)/metrics", line)
        assert found, started.stderr.read()
        yield started, found[1]
    finally:
        started.kill()
        started.communicate()


def ready(address: str) -> int:
    """Status of the page that says whether it is ready."""
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=SECONDS) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_an_interval_changes_and_a_wrong_file_changes_nothing(tmp_path: Path) -> None:
    # GIVEN an interval whose end nobody awaits
    file = tmp_path / "podscope.yaml"
    file.write_text("listen: 127.0.0.1:0\ninterval: 100ms\n")
    with up(file) as (process, address):
        # WHEN
        file.write_text("listen: 127.0.0.1:1\ninterval: 200ms\n")

        # THEN
        told = process.stderr.readline()
        assert told == f"podscope: {file}: taken up: interval; needs a restart: listen\n"

        # WHEN
        file.write_text("interval: 200ms\nsecond: 2\n")

        # THEN
        told = process.stderr.readline()
        assert told.startswith(f"podscope: {file}:2: unknown key 'second'")
        assert told.endswith("; the settings from before stay\n")
        assert ready(address) == 200

        # WHEN
        process.send_signal(signal.SIGTERM)

        # THEN
        assert process.wait(SECONDS) == 0
