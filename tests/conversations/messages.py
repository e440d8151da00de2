# SPDX-License-Identifier: Apache-2.0
"""Writes HTTP/1.x messages in any legal shape (RFC 9112), byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace

from .model import Conversation
from .model import Exchange
from .model import Interim
from .model import Message
from .routes import route

KNOWN_METHODS = frozenset(b"GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH QUERY".split())
CRLF = b"\r\n"


@dataclass(frozen=True)
class Body:
    """A body and how it is framed.

    Attributes:
        framing: ``none``, ``length``, ``chunked``, ``close`` (until close), ``both`` (chunked,
            and a Content-Length that must be ignored), ``bare`` (the header says a length but
            no body follows: HEAD, 204, 304).
        chunks: sizes of the chunks; what is left over is the last one.
        extension: goes after every chunk size.
        trailers: field lines without line ends.
    """

    content: bytes = b""
    framing: str = "none"
    chunks: tuple[int, ...] = ()
    extension: bytes = b""
    size_format: str = "%x"
    trailers: tuple[bytes, ...] = ()
    length_lines: tuple[bytes, ...] = ()
    coding_lines: tuple[bytes, ...] = (b"Transfer-Encoding: chunked",)


NO_BODY = Body()


def body_lines(body: Body) -> tuple[bytes, ...]:
    """Header lines that announce a body."""
    length = body.length_lines or (b"Content-Length: %d" % len(body.content),)
    if body.framing == "chunked":
        return body.coding_lines
    if body.framing == "both":
        return (b"Content-Length: %d" % (len(body.content) + 7), *body.coding_lines)
    if body.framing in ("length", "bare"):
        return length
    return ()


def write_body(body: Body) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """Bytes of a body, and the ranges in them that are content."""
    if body.framing in ("none", "bare"):
        return b"", ()
    if body.framing in ("length", "close"):
        return body.content, ((0, len(body.content)),) if body.content else ()
    wire = bytearray()
    ranges = []
    for chunk in _chunks(body):
        wire += (body.size_format % len(chunk)).encode() + body.extension + CRLF
        ranges.append((len(wire), len(wire) + len(chunk)))
        wire += chunk + CRLF
    wire += (body.size_format % 0).encode() + body.extension + CRLF
    for line in body.trailers:
        wire += line + CRLF
    wire += CRLF
    return bytes(wire), tuple(ranges)


def _chunks(body: Body) -> list[bytes]:
    rest = body.content
    chunks = []
    for size in body.chunks:
        if rest and size:
            chunks.append(rest[:size])
            rest = rest[size:]
    return [*chunks, rest] if rest else chunks


def message(
    start_line: bytes,
    lines: Sequence[bytes] = (),
    body: Body = NO_BODY,
    line_end: bytes = CRLF,
    before: bytes = b"",
) -> Message:
    """A message. ``before`` goes in front of the start line (empty lines, RFC 9112 2.2)."""
    head = before + line_end.join([start_line, *lines, *body_lines(body), b"", b""])
    wire, ranges = write_body(body)
    content = tuple((start + len(head), end + len(head)) for start, end in ranges)
    return Message(wire=head + wire, head=len(head), content=content)


def exchange(
    method: bytes = b"GET",
    target: bytes = b"/",
    status: int = 200,
    *,
    version: str = "1.1",
    host: bytes = b"example.test",
    request_lines: Sequence[bytes] = (),
    request_body: Body = NO_BODY,
    answer_lines: Sequence[bytes] = (),
    answer_body: Body | None = None,
    answer_version: str = "1.1",
    reason: bytes = b" OK",
    interims: Sequence[tuple[bytes, bool]] = (),
    waits: bool = False,
    early: int = -1,
    line_end: bytes = CRLF,
    before: bytes = b"",
) -> Exchange:
    """An exchange. Without ``answer_body`` the answer says ``Content-Length: 0``.

    Args:
        interims: 1xx heads; True: goes after the request's head, not after its end.
        early: content bytes of the request that are sent before the answer.
    """
    answer_body = Body(framing="length") if answer_body is None else answer_body
    host_lines = (b"Host: " + host,) if host else ()
    request = message(
        b"%s %s HTTP/%s" % (method, target, version.encode()),
        (*host_lines, *request_lines),
        request_body,
        line_end,
        before,
    )
    answer = message(
        b"HTTP/%s %d%s" % (answer_version.encode(), status, reason),
        answer_lines,
        answer_body,
        line_end,
    )
    connects = method == b"CONNECT"
    return Exchange(
        request=request,
        answer=answer,
        method=method.decode() if method in KNOWN_METHODS else "_OTHER",
        target=target,
        route=None if connects else route(target),
        status=status,
        version=version,
        host=host,
        interims=tuple(
            Interim(wire, request.head if at_head else len(request)) for wire, at_head in interims
        ),
        answer_after=-1 if early < 0 else request.head + early,
        waits=waits,
        until_close=answer_body.framing == "close",
        tunnel=status == 101 or (connects and 200 <= status < 300),
    )


def conversation(*exchanges: Exchange, **settings: object) -> Conversation:
    """A conversation of these exchanges; ``settings`` are fields of Conversation."""
    return replace(Conversation(exchanges=exchanges), **settings)  # type: ignore[arg-type]
