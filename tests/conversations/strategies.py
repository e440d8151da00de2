# SPDX-License-Identifier: Apache-2.0
"""hypothesis strategies: legal HTTP/1.x conversations in any shape."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from .messages import NO_BODY
from .messages import Body
from .messages import exchange
from .model import CLIENT_CLOSES
from .model import CLIENT_RESETS
from .model import DOWN
from .model import SERVER_CLOSES
from .model import SERVER_RESETS
from .model import UP
from .model import Conversation
from .model import Exchange
from .schedule import written

# What bodies and opaque bytes are made of: bytes that look like HTTP where they are none.
BAIT = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /bait HTTP/1.1\r\nHost: bait\r\n\r\n",
    b"POST /bait HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 500 Bait\r\n\r\n",
    b"\r\n0\r\n\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"\r",
    b"\n",
    b"\x00\xff",
    b"Content-Length: 1\r\n",
)
content = st.lists(st.one_of(st.sampled_from(BAIT), st.binary(max_size=40)), max_size=6).map(
    b"".join
)

METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"QUERY")
STRANGE_METHODS = (
    b"PURGE", b"PROPFIND", b"M-SEARCH", b"get", b"GETX", b"GE", b"POSTS", b"HEADER", b"X",
    b"BASELINE-CONTROL", b"HTTP",
)  # fmt: skip
SEGMENTS = (
    b"", b"users", b"api", b"v1", b"1", b"1234567890", b"deadbeef", b"deadbee1", b"DEADBEE1",
    b"abcdefab", b"12345678", b"1a", b"550e8400-e29b-41d4-a716-446655440000", b"a.html", b"%20",
    b"abcdefghijklmnop", b"abcdefgh12345678", b"ABCDEFGHIJKLMNO1", b"abcdefgh1234567", b"x1234567",
    b"deadbeeg1", b"0", b"..", b"item;v=1", b"~me", b"a+b", b"@", b"deadbeef0", b"1234567g",
)  # fmt: skip
DECOYS = (
    b"X-Content-Length: 77",
    b"Content-Length-Of: 5",
    b"Content-Lengt: 9",
    b"Content-Type: text/plain; Content-Length: 8",
    b"Cookie: Transfer-Encoding: chunked",
    b"Transfer-Encodings: chunked",
    b"X-Transfer-Encoding: chunked",
    b"TE: trailers, chunked",
    b"Trailer: X-Sum",
    b"Connection: keep-alive",
    b"C:",
    b"T: ",
    b"c: d",
    b"Cache-Control: no-cache",
    b"X-Empty:",
    b"X-Long: " + b"y" * 300,
    b"X-Text: \xe4\xf6\xfc",
    b"User-Agent: sceptic/1.0",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"X-Line: GET /bait HTTP/1.1",
)
FOLDED = (b"X-Fold: a\r\n Content-Length: 99", b"X-Fold: b\r\n\tTransfer-Encoding: chunked")
EXTENSIONS = (
    b"", b"", b";a", b";name=value", b';n="q;u\\"o"', b";x=" + b"e" * 100, b";5", b" ",
)  # fmt: skip
TRAILERS = (
    b"X-Sum: 1", b"Content-Length: 4", b"0: 0", b"Transfer-Encoding: chunked", b"X-T: " + b"t" * 90,
)  # fmt: skip
CODINGS = (
    (b"Transfer-Encoding: chunked",),
    (b"transfer-encoding:chunked",),
    (b"TRANSFER-ENCODING:  Chunked ",),
    (b"tRaNsFeR-eNcOdInG:\tCHUNKED\t",),
)
PLAIN_STATUSES = (200, 201, 202, 206, 299, 301, 302, 400, 401, 404, 418, 429, 451, 500, 503, 599)
INTERIMS = (
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nX: 200\r\n\r\n",
)
TARGET_BEFORE = (b"", b"", b"", b"http://example.test", b"http://[::1]:8080", b"HTTPS://e.test:1")


def lengths(size: int) -> st.SearchStrategy[tuple[bytes, ...]]:
    """Header lines that say one length, in one of its legal shapes."""
    number = b"%d" % size
    return st.sampled_from(
        (
            (b"Content-Length: " + number,),
            (b"content-length:" + number,),
            (b"CONTENT-LENGTH:\t" + number + b" \t",),
            (b"cOnTeNt-LeNgTh:   " + number,),
            (b"Content-Length: 000" + number,),
            (b"Content-Length: " + number, b"X: y", b"content-length: " + number),
        )
    )


@st.composite
def bodies(draw: st.DrawFn, framings: tuple[str, ...]) -> Body:
    """A body in one of these framings."""
    framing = draw(st.sampled_from(framings))
    if framing == "none":
        return NO_BODY
    if framing == "bare":
        return Body(framing="bare", length_lines=draw(lengths(draw(st.integers(1, 5000)))))
    if framing == "bare coding":
        return Body(framing="bare", length_lines=draw(st.sampled_from(CODINGS)))
    data = draw(content)
    if framing == "length":
        return Body(data, "length", length_lines=draw(lengths(len(data))))
    if framing == "close":
        return Body(data, "close")
    return Body(
        data,
        framing,
        chunks=tuple(draw(st.lists(st.integers(1, 30), max_size=5))),
        extension=draw(st.sampled_from(EXTENSIONS)),
        size_format=draw(st.sampled_from(("%x", "%X", "%04x"))),
        trailers=tuple(draw(st.lists(st.sampled_from(TRAILERS), max_size=2, unique=True))),
        coding_lines=draw(st.sampled_from(CODINGS)),
    )


@st.composite
def targets(draw: st.DrawFn) -> bytes:
    """A target in origin-form or absolute-form."""
    before = draw(st.sampled_from(TARGET_BEFORE))
    segments = draw(st.lists(st.sampled_from(SEGMENTS), max_size=4))
    query = draw(st.sampled_from((b"", b"", b"?", b"?q=1", b"?a=/b/12345678&c=%20?d")))
    if before and not segments:
        return before + query
    path = b"/" + b"/".join(segments)
    # An origin-form that begins with two slashes is legal, but h11 and people disagree on it.
    return before + (b"/" + path.lstrip(b"/")) + query


@st.composite
def header_lines(draw: st.DrawFn) -> tuple[bytes, ...]:
    """Header lines that say nothing about framing, though some look so."""
    return tuple(draw(st.lists(st.sampled_from(DECOYS + FOLDED), max_size=4)))


@st.composite
def exchanges(draw: st.DrawFn, *, last: bool, early: bool = True) -> Exchange:
    """One exchange; what ends the connection's HTTP only where it is the last one."""
    version = draw(st.sampled_from(("1.1", "1.1", "1.1", "1.0")))
    chunked = ("chunked", "both") if version == "1.1" else ()
    method = draw(st.sampled_from(METHODS + STRANGE_METHODS))
    request_body = draw(bodies(("none", "none", "length", *chunked)))
    interims: list[tuple[bytes, bool]] = []
    if version == "1.1":
        interims = draw(st.lists(st.tuples(st.sampled_from(INTERIMS), st.booleans()), max_size=2))
        interims.sort(key=lambda interim: not interim[1])
    waits = bool(interims) and interims[0][1] and draw(st.booleans())
    kind = draw(st.sampled_from(("plain", "plain", "plain", "empty")))
    answer_version = draw(st.sampled_from(("1.1", "1.1", "1.0" if version == "1.0" else "1.1")))
    chunked = chunked if answer_version == "1.1" else ()
    ends = ("close",) if last else ()
    status = draw(st.sampled_from(PLAIN_STATUSES if kind == "plain" else (204, 304)))
    if kind == "empty" or method == b"HEAD":
        coding = ("bare coding",) if chunked and status != 204 else ()
        answer_body = draw(bodies(("none", "bare", *coding)))
    else:
        answer_body = draw(bodies(("length", "length", *chunked, *ends)))
    size = len(request_body.content)
    reached = -1
    if early and size and not waits and draw(st.sampled_from((False, False, True))):
        reached = draw(st.integers(0, size - 1))
        interims = [(wire, True) for wire, _ in interims]
    return exchange(
        method,
        draw(targets()),
        status,
        version=version,
        host=draw(st.sampled_from((b"example.test", b"e:8080", b"[::1]:80", b"h" * 70))),
        request_lines=draw(header_lines()),
        request_body=request_body,
        answer_lines=draw(header_lines()),
        answer_body=answer_body,
        answer_version=answer_version,
        reason=draw(st.sampled_from((b" OK", b" ", b" Not 404 at all", b" \xe4HTTP/1.1 500"))),
        interims=interims,
        waits=waits,
        early=reached,
        line_end=draw(st.sampled_from((b"\r\n", b"\r\n", b"\r\n", b"\n"))),
        before=draw(st.sampled_from((b"", b"", b"", b"\r\n", b"\r\n\r\n"))),
    )


@st.composite
def tunnel_exchanges(draw: st.DrawFn) -> Exchange:
    """CONNECT with 2xx, or a switch of protocols."""
    if draw(st.booleans()):
        body = draw(bodies(("none", "bare")))  # lengths of such an answer mean nothing
        return exchange(b"CONNECT", b"db.test:443", 200, host=b"db.test:443", answer_body=body)
    return exchange(
        b"GET",
        b"/chat",
        101,
        request_lines=(b"Connection: Upgrade", b"Upgrade: websocket"),
        answer_lines=(b"Connection: Upgrade", b"Upgrade: websocket"),
        answer_body=NO_BODY,
        reason=b" Switching Protocols",
    )


def _cuts(length: int) -> st.SearchStrategy[frozenset[int]]:
    if length < 2:
        return st.just(frozenset())
    return st.frozensets(st.integers(1, length - 1), max_size=12)


@st.composite
def conversations(
    draw: st.DrawFn, max_exchanges: int = 8, *, tunnels: bool = True, stops: bool = True
) -> Conversation:
    """A conversation: any exchanges, depth, order and splits; maybe a tunnel or an early end."""
    count = draw(st.integers(0, max_exchanges))
    tunnel = tunnels and draw(st.integers(0, 7)) == 0
    parts = [draw(exchanges(last=n == count - 1 and not tunnel)) for n in range(count)]
    opaque: tuple[tuple[str, bytes], ...] = ()
    if tunnel:
        parts.append(draw(tunnel_exchanges()))
        opaque = tuple(draw(st.lists(st.tuples(st.sampled_from((UP, DOWN)), content), max_size=5)))
    until_close = bool(parts) and parts[-1].until_close
    talk = Conversation(
        exchanges=tuple(parts),
        depth=draw(st.sampled_from((1, 1, 2, 4, 64))),
        choices=tuple(draw(st.lists(st.booleans(), min_size=1, max_size=6))),
        tunnel=opaque,
        end=SERVER_CLOSES if until_close else draw(st.sampled_from((CLIENT_CLOSES, SERVER_CLOSES))),
        half_close=not tunnel and draw(st.integers(0, 5)) == 0,
    )
    talk = replace(
        talk,
        cuts_up=draw(_cuts(len(talk.up))),
        cuts_down=draw(_cuts(len(talk.down))),
    )
    if not stops or tunnel or draw(st.integers(0, 3)):
        return talk
    whole = sum(written(talk))
    ends = (CLIENT_CLOSES, SERVER_CLOSES, CLIENT_RESETS, SERVER_RESETS)
    return replace(
        talk,
        stop=draw(st.integers(0, whole)),
        end=draw(st.sampled_from(ends)),
        half_close=False,
    )
