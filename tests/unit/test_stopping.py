# SPDX-License-Identifier: Apache-2.0
"""Ends that are told by signals."""

from __future__ import annotations

import random
import signal
import threading
import time

import pytest

from podscope.stopping import Stop


@pytest.fixture
def alarm():
    """Calls a function once from a signal's handler, after some seconds."""
    before = signal.getsignal(signal.SIGALRM)

    def begin(called, seconds: float) -> None:
        signal.signal(signal.SIGALRM, lambda *_: called())
        signal.setitimer(signal.ITIMER_REAL, seconds)

    yield begin
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_handler_that_stops_in_the_middle_of_a_wait_never_blocks(alarm):
    # GIVEN a signal at any moment of a wait (threading.Event hangs here within a second, and
    # queue.SimpleQueue on a busy machine)
    chance = random.Random(1)
    end = time.monotonic() + 2
    seen = 0
    while time.monotonic() < end:
        stop = Stop()
        alarm(stop.set, chance.uniform(1e-6, 1e-3))

        # WHEN
        seen += stop.wait(1e-3)

    # THEN it came in some of them, and the test is here
    assert seen


def test_a_stop_that_was_set_is_seen_by_all_who_wait_and_by_those_who_come_later():
    # GIVEN
    stop = Stop()
    seen: list[bool] = []
    threads = [threading.Thread(target=lambda: seen.append(stop.wait(60))) for _ in range(4)]
    for thread in threads:
        thread.start()

    # WHEN
    stop.set()
    stop.set()
    for thread in threads:
        thread.join(30)

    # THEN
    assert seen == [True] * 4
    assert stop.is_set()
    assert stop.wait(0)


def test_a_wait_without_a_stop_says_so():
    stop = Stop()
    assert not stop.wait(0.001)
    assert not stop.wait(-1)
    assert not stop.is_set()
