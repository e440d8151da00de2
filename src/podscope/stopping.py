# SPDX-License-Identifier: Apache-2.0
"""The wish that something ends, as a signal's handler may tell it."""

from __future__ import annotations

import queue


class Stop:
    """Like `threading.Event`, but ``set`` may be called from a signal's handler.

    A handler runs between two steps of the main thread. ``Event.set`` takes a lock that
    ``Event.wait`` in the same thread may hold at that moment, and both would wait for ever;
    ``SimpleQueue.put`` is made for that (Python's documentation of `queue.SimpleQueue`).
    """

    def __init__(self) -> None:
        self._set = False
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """From now on it is set. May be called more than once, and from any thread."""
        self._set = True
        self._tokens.put(None)

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def wait(self, seconds: float) -> bool:
        """Whether it is set, after so many seconds at most."""
        if self._set:
            return True
        try:
            self._tokens.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            return self._set
        # Others may wait for it, too.
        self._tokens.put(None)
        return True
