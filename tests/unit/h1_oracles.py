# SPDX-License-Identifier: Apache-2.0
"""Other parsers of HTTP/1.x on the same bytes: h11, and llhttp, which Node.js uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h11

HEAD_MAX = 1 << 20
REFUSED = "refused"
PARTIAL = "partial"  # more bytes are needed


@dataclass(frozen=True)
class Outcome:
    """What a parser makes of the first message of a stream.

    ``kind`` is request, answer, interim, tunnel, ``REFUSED`` or ``PARTIAL``; ``why`` is
    the parser's own word for a refusal.
    """

    kind: str
    version: int = 0
    body: int = 0
    end: int = 0
    status: int = 0
    name: bytes = b""
    target: bytes = b""
    to_the_close: bool = False
    why: str = ""


def h11_request(stream: bytes) -> Outcome:
    """The first request, by h11 as a server."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
    try:
        parser.receive_data(stream)
        head = parser.next_event()
        if not isinstance(head, h11.Request):
            return Outcome(PARTIAL)
        body, ended = _h11_content(parser)
    except h11.RemoteProtocolError as error:
        return Outcome(REFUSED, why=str(error))
    if not ended:
        return Outcome(PARTIAL)
    return Outcome(
        "request",
        version=_version(head.http_version),
        body=body,
        end=len(stream) - len(parser.trailing_data[0]),
        name=head.method,
        target=head.target,
    )


def h11_answer(stream: bytes, method: str) -> Outcome:
    """The first answer, interim ones included, to a request, by h11 as a client."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX)
    lines = [("Host", "oracle"), ("Upgrade", "any"), ("Connection", "upgrade")]
    parser.send(h11.Request(method=method, target="/", headers=lines))
    parser.send(h11.EndOfMessage())
    body, to_the_close = 0, False
    try:
        parser.receive_data(stream)
        head = parser.next_event()
        if not isinstance(head, h11.InformationalResponse | h11.Response):
            return Outcome(PARTIAL)
        interim = isinstance(head, h11.InformationalResponse)
        tunnel = head.status_code == 101 or (method == "CONNECT" and 200 <= head.status_code < 300)
        if not interim and not tunnel:
            body, ended = _h11_content(parser)
            if not ended:
                to_the_close = _h11_ends_at_the_close(parser)
                if not to_the_close:
                    return Outcome(PARTIAL)
    except h11.RemoteProtocolError as error:
        return Outcome(REFUSED, why=str(error))
    return Outcome(
        "interim" if interim and not tunnel else "tunnel" if tunnel else "answer",
        version=_version(head.http_version),
        body=body,
        end=len(stream) - len(parser.trailing_data[0]),
        status=head.status_code,
        to_the_close=to_the_close,
    )


def _h11_content(parser: h11.Connection) -> tuple[int, bool]:
    """Content bytes so far, and whether the message has ended."""
    content = 0
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Data):
            content += len(event.data)
        else:
            return content, isinstance(event, h11.EndOfMessage)


def _h11_ends_at_the_close(parser: h11.Connection) -> bool:
    parser.receive_data(b"")
    try:
        return isinstance(parser.next_event(), h11.EndOfMessage)
    except h11.RemoteProtocolError:
        return False


def _version(text: bytes) -> int:
    """enum http_version: the minor version counts as 1 if it is not 0."""
    return 10 if text.endswith(b".0") else 11


def llhttp_request(stream: bytes) -> Outcome:
    """The first request, by llhttp in its strict mode."""
    return _llhttp(stream, answers=False)


def llhttp_answer(stream: bytes) -> Outcome:
    """The first answer to GET, by llhttp in its strict mode."""
    return _llhttp(stream, answers=True)


def _llhttp(stream: bytes, *, answers: bool) -> Outcome:
    import llhttp

    class Message(llhttp.Response if answers else llhttp.Request):  # type: ignore[misc]
        """Adds up what comes, and stops behind the first message."""

        def __init__(self) -> None:
            self.name = b""
            self.target = b""
            self.body = 0
            self.heads = 0
            self.ended = False

        def on_method(self, part: Any) -> None:
            self.name += bytes(part)

        def on_url(self, part: Any) -> None:
            self.target += bytes(part)

        def on_headers_complete(self) -> None:
            self.heads += 1

        def on_body(self, part: Any) -> None:
            self.body += len(part)

        def on_message_complete(self) -> None:
            self.ended = True
            self.pause()

    parser = Message()
    try:
        end = parser.execute(stream)
        to_the_close = (
            answers and parser.heads > 0 and not parser.ended and parser.message_needs_eof
        )
    except llhttp.Error as error:
        return Outcome(REFUSED, why=f"{type(error).__name__}: {error}")
    if not parser.ended and not to_the_close:
        return Outcome(PARTIAL)
    status = parser.status if answers else 0
    interim = answers and status < 200
    return Outcome(
        "request"
        if not answers
        else "tunnel"
        if status == 101
        else "interim"
        if interim
        else "answer",
        version=10 if parser.minor == 0 else 11,
        body=parser.body,
        end=end,
        status=status,
        name=parser.name,
        target=parser.target,
        to_the_close=to_the_close,
    )
