# SPDX-License-Identifier: Apache-2.0
"""Bytes and a conversation that several tests play."""

from __future__ import annotations

from .messages import Body
from .messages import conversation
from .messages import exchange

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
BAIT = b"GET /bait HTTP/1.1\r\nHost: bait\r\n\r\n"

# Something of everything, to be split at any place.
SPLIT_ME = conversation(
    exchange(
        b"POST",
        b"/users/42?q=1",
        201,
        before=b"\r\n",
        request_lines=(b"Content-Type: text/plain", b"X-Fold: a\r\n Content-Length: 9"),
        request_body=Body(
            BAIT + b"0\r\n\r\n", "both", chunks=(10, 3), extension=b";a=b", trailers=(b"X-T: 1",)
        ),
        interims=((CONTINUE, True),),
        answer_lines=(b"Connection: keep-alive",),
        answer_body=Body(b"HTTP/1.1 500 Bait\r\n\r\n", "length"),
    ),
    exchange(b"HEAD", b"/a", answer_body=Body(framing="bare", length_lines=(b"content-length:9",))),
    exchange(
        b"PURGE",
        b"http://h/b/deadbee1",
        404,
        line_end=b"\n",
        answer_body=Body(b"not found", "chunked", chunks=(4,), trailers=(b"X-T: 1",)),
    ),
    exchange(b"GET", b"/c", 304,
             answer_body=Body(framing="bare", length_lines=(b"Content-Length: 7",))),
)  # fmt: skip
