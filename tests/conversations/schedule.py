# SPDX-License-Identifier: Apache-2.0
"""Lays a conversation out as the writes of its two ends, in order."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from itertools import count
from itertools import pairwise

from .model import DOWN
from .model import UP
from .model import Conversation


@dataclass(frozen=True)
class Write:
    """One write() of one end; the next step comes when the other end has read all of it."""

    direction: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class HalfClose:
    """The client shuts its direction down; the server reads to the end of it."""


@dataclass(frozen=True)
class _Piece:
    """Bytes of one direction that may go once the other direction is so far."""

    data: bytes
    needs: int


def steps(conversation: Conversation) -> list[Write | HalfClose]:
    """The writes of a conversation. Where both ends may write, ``choices`` says who does."""
    script = list(_cut(conversation, _merge(_order(conversation))))
    if conversation.stop is not None:
        return script
    return [*script, *(Write(direction, data) for direction, data in conversation.tunnel if data)]


def written(conversation: Conversation) -> tuple[int, int]:
    """Bytes that the client and the server write, without those of a tunnel."""
    sent = {UP: 0, DOWN: 0}
    for step in _cut(conversation, _merge(_order(conversation))):
        if isinstance(step, Write):
            sent[step.direction] += len(step.data)
    return sent[UP], sent[DOWN]


def _pieces(conversation: Conversation) -> tuple[list[_Piece], list[_Piece]]:
    """Pieces of both directions, each with the bytes of the other that must be there before."""
    ups: list[_Piece] = []
    downs: list[_Piece] = []
    up = down = 0
    ends: list[int] = []  # of answers, in the stream of the server
    for index, exchange in enumerate(conversation.exchanges):
        first = ends[index - conversation.depth] if index >= conversation.depth else 0
        starts = {0: first}
        at = down
        for interim in exchange.interims:
            at += len(interim.wire)
            downs.append(_Piece(interim.wire, up + interim.after))
            if exchange.waits and exchange.request.head not in starts:
                starts[exchange.request.head] = at
        downs.append(_Piece(exchange.answer.wire, up + exchange.needed))
        down = at + len(exchange.answer)
        if exchange.answer_after >= 0:
            starts.setdefault(exchange.needed, down)
        ends.append(down)
        wire = exchange.request.wire
        for start, end in pairwise([*sorted(starts), len(wire)]):
            ups.append(_Piece(wire[start:end], starts[start]))
        up += len(wire)
    return ups, downs


def _order(conversation: Conversation) -> Iterator[tuple[str, bytes]]:
    ups, downs = _pieces(conversation)
    up = down = 0
    choices = (conversation.choices[n % len(conversation.choices)] for n in count())
    while ups or downs:
        may_up = bool(ups) and down >= ups[0].needs
        may_down = bool(downs) and up >= downs[0].needs
        if not may_up and not may_down:
            raise AssertionError("the conversation can't go on: each end waits for the other")
        if may_up and (not may_down or next(choices)):
            up += len(ups[0].data)
            yield UP, ups.pop(0).data
        else:
            down += len(downs[0].data)
            yield DOWN, downs.pop(0).data


def _merge(order: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Bytes of one direction that nothing parts go together."""
    direction, parts = UP, []
    for now, data in order:
        if now != direction and parts:
            yield direction, b"".join(parts)
            parts = []
        direction = now
        parts.append(data)
    if parts:
        yield direction, b"".join(parts)


def _cut(
    conversation: Conversation, blobs: Iterable[tuple[str, bytes]]
) -> Iterator[Write | HalfClose]:
    at = {UP: 0, DOWN: 0}
    cuts = {UP: conversation.cuts_up, DOWN: conversation.cuts_down}
    whole = len(conversation.up)
    left = len(conversation.down) + whole if conversation.stop is None else conversation.stop
    closed = False
    for direction, blob in blobs:
        start = at[direction]
        end = start + min(len(blob), left)
        inside = sorted(cut for cut in cuts[direction] if start < cut < end)
        for first, last in pairwise([start, *inside, end]):
            if last > first:
                yield Write(direction, blob[first - start : last - start])
        at[direction] = end
        left -= end - start
        if left <= 0:
            return
        if conversation.half_close and not closed and at[UP] == whole:
            closed = True
            yield HalfClose()
