# SPDX-License-Identifier: Apache-2.0
"""What all tests take for granted of the process that they run in."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Signals mean what they usually do: a shell has its background jobs ignore some."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
