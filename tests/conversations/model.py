# SPDX-License-Identifier: Apache-2.0
"""What a conversation is made of."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field

UP = "up"
DOWN = "down"


@dataclass(frozen=True)
class Message:
    """A head and a body as they are on the wire.

    Attributes:
        wire: all bytes of the message.
        head: how many of them are the head (with the empty line, and CRLFs before it).
        content: the ranges of ``wire`` that are content, not framing.
    """

    wire: bytes = field(repr=False)
    head: int
    content: tuple[tuple[int, int], ...] = ()

    def content_within(self, sent: int) -> int:
        """Content bytes among the first ``sent`` bytes of the message."""
        return sum(max(0, min(end, sent) - start) for start, end in self.content)

    def __len__(self) -> int:
        return len(self.wire)


@dataclass(frozen=True)
class Interim:
    """A 1xx answer: goes once ``after`` bytes of the request have been sent."""

    wire: bytes
    after: int


@dataclass(frozen=True)
class Exchange:
    """A request and its answers.

    Attributes:
        method: as podscope names it: one of the known methods, or ``_OTHER``.
        target: as sent. ``route`` is None where the rule says nothing about the target.
        answer_after: bytes of the request that must be there before the answer goes; less than
            the whole request makes an early answer.
        waits: the body waits for the first interim answer.
        until_close: the answer's body ends where the server closes.
        tunnel: what follows this exchange is no HTTP (CONNECT with 2xx, or 101).
    """

    request: Message
    answer: Message
    method: str
    target: bytes
    route: str | None
    status: int
    version: str = "1.1"
    host: bytes = b""
    interims: tuple[Interim, ...] = ()
    answer_after: int = -1
    waits: bool = False
    until_close: bool = False
    tunnel: bool = False

    @property
    def needed(self) -> int:
        """Bytes of the request that must be there before the answer goes."""
        return len(self.request) if self.answer_after < 0 else self.answer_after


# How a connection ends: who does it first, and by FIN or by RST.
CLIENT_CLOSES = "client closes"
SERVER_CLOSES = "server closes"
CLIENT_RESETS = "client resets"
SERVER_RESETS = "server resets"


@dataclass(frozen=True)
class Conversation:
    """The exchanges of one connection, and how they are written to it.

    Attributes:
        depth: requests in flight at most.
        choices: where both ends may write next, the n-th choice (repeated): True, the client does.
        cuts: offsets in the stream of a direction at which a write ends. Writes also end where
            the other end has something to say first.
        tunnel: opaque bytes after the last exchange, in order, by direction.
        stop: bytes of both directions together that are written before the end; None: all.
        half_close: the client shuts its direction down after its last byte and reads on.
    """

    exchanges: tuple[Exchange, ...]
    depth: int = 1
    choices: tuple[bool, ...] = (True,)
    cuts_up: frozenset[int] = frozenset()
    cuts_down: frozenset[int] = frozenset()
    tunnel: tuple[tuple[str, bytes], ...] = ()
    stop: int | None = None
    end: str = CLIENT_CLOSES
    half_close: bool = False

    @property
    def up(self) -> bytes:
        """What the client would write, without tunnel and stop."""
        return b"".join(exchange.request.wire for exchange in self.exchanges)

    @property
    def down(self) -> bytes:
        """What the server would write, without tunnel and stop."""
        return b"".join(
            b"".join(interim.wire for interim in exchange.interims) + exchange.answer.wire
            for exchange in self.exchanges
        )
