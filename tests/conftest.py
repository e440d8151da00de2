# SPDX-License-Identifier: Apache-2.0
"""What all tests take for granted of the process that they run in."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck
from hypothesis import settings

# The same examples each time, so that a run says something of the change that it is for;
# PODSCOPE_RANDOM=1 looks for new ones. How long an example takes says more of the machine.
settings.register_profile(
    "steady",
    derandomize=os.environ.get("PODSCOPE_RANDOM") is None,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")


def pytest_configure() -> None:
    """Signals mean what they usually do: a shell has its background jobs ignore some."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
