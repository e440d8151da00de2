# SPDX-License-Identifier: Apache-2.0
"""Plays conversations while podscope watches, and compares what it says with their truth."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .model import Conversation
from .observed import Observer
from .observed import assert_exact
from .peers import IPV4
from .peers import Family
from .peers import listening
from .peers import play_all
from .peers import port_of


def check(observer: Observer, conversations: Sequence[Conversation], family: Family = IPV4) -> None:
    """Plays conversations to a new port, one after another, and compares."""
    with listening(family) as listener:
        began = time.monotonic_ns()
        ports = play_all(listener, conversations, family)
        assert_exact(observer, port_of(listener), conversations, ports, began)
