# SPDX-License-Identifier: Apache-2.0
"""An independent parser, h11, reads what the wire carried."""

from __future__ import annotations

from dataclasses import dataclass

import h11

HEAD_MAX = 1 << 20


@dataclass(frozen=True)
class Read:
    """What h11 made of one message."""

    method: bytes = b""
    target: bytes = b""
    version: str = ""
    status: int = 0
    interims: tuple[int, ...] = ()
    content: int = 0
    consumed: int = 0


def read_request(stream: bytes) -> Read | None:
    """The first request of a stream; None where h11 refuses it.

    h11 does not skip empty lines before a request line, so they are skipped here.
    """
    rest = stream.lstrip(b"\r\n")
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
    try:
        parser.receive_data(rest)
        head = parser.next_event()
        if not isinstance(head, h11.Request):
            return None
        content = _content(parser)
    except h11.RemoteProtocolError:
        return None
    if content is None:
        return None
    return Read(
        method=head.method,
        target=head.target,
        version=head.http_version.decode(),
        content=content,
        consumed=len(stream) - len(parser.trailing_data[0]),
    )


def read_answer(stream: bytes, request: Read, *, ends: bool) -> Read | None:
    """The answer to a request, with the interim ones before it; None where h11 refuses it.

    Args:
        ends: the stream ends with a FIN of the server.
    """
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX)
    lines = [(b"Host", b"oracle")]
    if request.method != b"CONNECT":
        lines += [(b"Upgrade", b"any"), (b"Connection", b"upgrade")]
    interims: list[int] = []
    try:
        parser.send(h11.Request(method=request.method, target=request.target, headers=lines))
        parser.send(h11.EndOfMessage())
        parser.receive_data(stream)
        if ends:
            parser.receive_data(b"")
        while True:
            head = parser.next_event()
            if isinstance(head, h11.InformationalResponse) and head.status_code != 101:
                interims.append(head.status_code)
                continue
            break
        if isinstance(head, h11.InformationalResponse):
            content: int | None = 0
        elif isinstance(head, h11.Response):
            tunnel = request.method == b"CONNECT" and 200 <= head.status_code < 300
            content = 0 if tunnel else _content(parser)
        else:
            return None
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return None
    if content is None:
        return None
    return Read(
        status=head.status_code,
        interims=tuple(interims),
        content=content,
        consumed=len(stream) - len(parser.trailing_data[0]),
    )


def _content(parser: h11.Connection) -> int | None:
    """Content bytes up to the end of the message; None where it does not end."""
    content = 0
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Data):
            content += len(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return content
        else:
            return None
