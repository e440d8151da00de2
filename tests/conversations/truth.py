# SPDX-License-Identifier: Apache-2.0
"""What an exact observer must say about a conversation, from what it was written to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .model import CLIENT_RESETS
from .model import SERVER_CLOSES
from .model import SERVER_RESETS
from .model import Conversation
from .model import Exchange
from .schedule import written

PATH_MAX = 192
HOST_MAX = 64


@dataclass(frozen=True)
class Outcome:
    """One exchange that counts.

    ``error`` is empty, ``closed`` or ``reset``. ``status`` 0: no answer. Sizes are content bytes.
    """

    method: str
    status: int
    version: str
    route: str | None
    error: str
    request_bytes: int
    answer_bytes: int
    target: bytes = b""
    host: bytes = b""


@dataclass(frozen=True)
class Sums:
    """What the exchanges of a series add up to."""

    count: int = 0
    request_bytes: int = 0
    answer_bytes: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count,
            self.request_bytes + other.request_bytes,
            self.answer_bytes + other.answer_bytes,
        )


Key = tuple[str, int, str, str, str]


def key(outcome: Outcome) -> Key:
    """What tells series apart: method, status, version, route (``?``: any), error."""
    return (
        outcome.method,
        outcome.status,
        outcome.version,
        "?" if outcome.route is None else outcome.route,
        outcome.error,
    )


def tally(outcomes: Iterable[Outcome]) -> dict[Key, Sums]:
    """Adds outcomes up by series."""
    sums: dict[Key, Sums] = {}
    for outcome in outcomes:
        one = Sums(1, outcome.request_bytes, outcome.answer_bytes)
        sums[key(outcome)] = sums.get(key(outcome), Sums()) + one
    return sums


def outcomes(conversation: Conversation) -> tuple[Outcome, ...]:
    """The exchanges of a conversation that count, in the order of the requests."""
    sent_up, sent_down = written(conversation)
    found = []
    up = down = 0
    for exchange in conversation.exchanges:
        outcome = _outcome(exchange, sent_up - up, sent_down - down, conversation.end)
        if outcome is not None:
            found.append(outcome)
        up += len(exchange.request)
        down += sum(len(interim.wire) for interim in exchange.interims) + len(exchange.answer)
    return tuple(found)


def _outcome(exchange: Exchange, up: int, down: int, end: str) -> Outcome | None:
    """Outcome of an exchange of which ``up`` and ``down`` bytes (or more) were sent."""
    answer = down - sum(len(interim.wire) for interim in exchange.interims)
    head_seen = answer >= exchange.answer.head
    reset = end in (CLIENT_RESETS, SERVER_RESETS)
    whole = answer >= len(exchange.answer)
    if exchange.until_close:
        # A FIN of the server is the end of such a body, wherever it comes (RFC 9112 6.3).
        whole = head_seen and end == SERVER_CLOSES
    if not head_seen and up < len(exchange.request):
        return None
    error = "" if whole else "reset" if reset else "closed"
    return Outcome(
        method=exchange.method,
        status=exchange.status if head_seen else 0,
        version=exchange.version,
        route=exchange.route,
        error=error,
        request_bytes=exchange.request.content_within(up),
        answer_bytes=exchange.answer.content_within(max(0, answer)) if head_seen else 0,
        target=exchange.target,
        host=exchange.host,
    )


def methods(conversation: Conversation) -> Counter[str]:
    """Count of exchanges by method: for messages of tests."""
    return Counter(outcome.method for outcome in outcomes(conversation))
