# SPDX-License-Identifier: Apache-2.0
"""How long a command runs: until a signal, or for a time."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from types import FrameType
    from types import TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


class Lifetime:
    """SIGINT, SIGTERM, SIGHUP or the end of the time call ``stop`` once.

    A second SIGINT interrupts.
    The signals are caught from the beginning, so that one which comes while programs are being
    attached still ends the command in good order. Use it in the main thread.
    """

    def __init__(self) -> None:
        self._stop: Callable[[], object] | None = None
        self._before: list[tuple[signal.Signals, Any]] = []
        self.ended = False
        self.hung_up = False
        self.terminated = False

    def __enter__(self) -> Lifetime:
        # nohup ignores SIGHUP, and that is to stay.
        kept = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        caught = [number for number in _SIGNALS if not (kept and number == signal.SIGHUP)]
        self._before = [(number, signal.signal(number, self._end)) for number in caught]
        return self

    def begin(self, stop: Callable[[], object], duration_ns: int | None = None) -> None:
        """Call ``stop`` at the end: after ``duration_ns``, or at a signal, if not already."""
        self._stop = stop
        if self.ended:
            stop()
        elif duration_ns is not None:
            signal.setitimer(signal.ITIMER_REAL, duration_ns / 1e9)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before:
            signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.ended and number == signal.SIGINT:
            raise KeyboardInterrupt
        again, self.ended = self.ended, True
        self.hung_up = self.hung_up or number == signal.SIGHUP
        self.terminated = self.terminated or number == signal.SIGTERM
        if self._stop is not None and not again:
            self._stop()
