# SPDX-License-Identifier: Apache-2.0
"""The wish that something ends, as a signal's handler may tell it."""

from __future__ import annotations

import os
import select


class Stop:
    """Like `threading.Event`, but ``set`` may be called from a signal's handler.

    A handler runs between two steps of the main thread. ``Event.set`` takes a lock that
    ``Event.wait`` in the same thread may hold at that moment, and both would wait for ever.
    ``SimpleQueue`` is made for that, but its ``get`` waits for ever if its time is over before it
    has begun to wait (seen with Python 3.11). An eventfd (eventfd(2)) has no lock.
    """

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._set = False

    def __del__(self) -> None:
        if hasattr(self, "_event"):  # there may have been no descriptor left for it
            os.close(self._event)

    def set(self) -> None:
        """From now on it is set. May be called more than once, and from any thread."""
        if not self._set:
            self._set = True
            os.eventfd_write(self._event, 1)

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def wait(self, seconds: float) -> bool:
        """Whether it is set, after so many seconds at most."""
        if not self._set:
            waiting = select.poll()
            waiting.register(self._event, select.POLLIN)
            # Nobody reads it: it stays as it is, for all who wait.
            waiting.poll(max(seconds, 0.0) * 1000)
        return self._set
