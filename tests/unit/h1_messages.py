# SPDX-License-Identifier: Apache-2.0
"""Messages for the parser: valid ones, and ones that are nearly so."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

# Each is one or more whole messages of one direction, valid as RFC 9112 reads.
REQUESTS = {
    "get": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "http_1_0": b"GET /old?q=1 HTTP/1.0\r\n\r\n",
    "texts": (
        b"GET /users/42?a=%20 HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: a b/1\r\n"
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n"
    ),
    "length": b"POST /in HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello\r\n\r\nab",
    "no_content": b"PUT /in HTTP/1.1\r\nHost: a\r\ncontent-length:0\r\n\r\n",
    "chunked": (
        b"POST /in HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n0a;name=value\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n"
    ),
    "codings": (
        b"POST /in HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n"
        b"transfer-encoding: , Chunked\t,\r\nContent-Length: 99\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    ),
    "three": (
        b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"
        b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        b"\r\nDELETE /3 HTTP/1.1\r\nHost: a\r\n\r\n"
    ),
    "methods": b"".join(
        b"%b / HTTP/1.1\r\nHost: a\r\n\r\n" % method
        for method in b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH QUERY get M-SEARCH X".split()
    ),
    "long_method": b"ABCDEFGHIJKLMNOPQRSTUVWXYZ-0123456789 / HTTP/1.1\r\nHost: a\r\n\r\n",
    "forms": (
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"
        b"GET http://proxy.example/a?b HTTP/1.1\r\nHost: proxy.example\r\n\r\n"
    ),
    "long_target": b"GET /" + b"s" * 300 + b" HTTP/1.1\r\nHost: " + b"h" * 90 + b"\r\n\r\n",
    "names_like_ours": (
        b"GET / HTTP/1.1\r\nHost: a\r\nHosts: b\r\nContent-Lengthy: 5\r\nContent: 5\r\n"
        b"Content-Type: text/plain\r\nTransfer-Encodings: chunked\r\nTrace: x\r\nTE: trailers\r\n"
        b"Upgrade-Insecure-Requests: 1\r\nUser: x\r\nUsers-Agent: y\r\nC: d\r\n\r\n"
    ),
    "fold": b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: one\r\n two\r\n\tContent-Length: 5\r\n\r\n",
    "connect": b"CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\n"
    b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n",
    "upgrade": (
        b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
        b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
    ),
    "empty_lines": b"\r\n\n\r\nGET / HTTP/1.1\nHost: a\n\n",
    "no_value": b"GET / HTTP/1.1\r\nHost:\r\nUser-Agent: \r\nX:\r\n\r\n",
    "equal_lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n"
    b"Content-Length: 03 \r\n\r\nabc",
}
# The methods of the requests, and the answers.
ANSWERS = {
    "length": ("", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    "short_line": ("X", b"HTTP/1.1 200 OK\r\nX\r\nContent-Length: 5\r\n\r\nhello"),
    "no_reason": ("", b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n"),
    "close": ("", b"HTTP/1.0 200 OK\r\n\r\nall of this\r\n\r\nand that"),
    "other_coding": ("", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\nx"),
    "chunked": (
        "",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4 \r\nabcd\r\n10\r\n"
        b"0123456789abcdef\r\n000\r\nA: b\r\nC: d\r\n\r\n",
    ),
    "head": ("HEAD GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" * 2 + b"hello"),
    "statuses": (
        "",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n"
        b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"HTTP/1.1 599 \xc3\xa9\r\nContent-Length: 1\r\n\r\nx",
    ),
    "interim": (
        "POST GET",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nrest",
    ),
    "switch": ("", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x05hello"),
    "granted": ("CONNECT", b"HTTP/1.1 200 Connection established\r\n\r\n\x16\x03\x01"),
    "not_granted": ("CONNECT", b"HTTP/1.1 407 No\r\nContent-Length: 1\r\n\r\nx"),
    "long_line": ("", b"HTTP/1.1 200 OK\r\nX: " + b"v" * 1500 + b"\r\nContent-Length: 1\r\n\r\nx"),
    "bare_lf": ("", b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx"),
}


@dataclass(frozen=True)
class Answer:
    """An answer's bytes and the method it belongs to."""

    method: str
    stream: bytes


def mostly(usual: st.SearchStrategy[bytes], *odd: bytes) -> st.SearchStrategy[bytes]:
    """The usual fifteen times in sixteen."""
    return st.integers(0, 15).flatmap(lambda n: usual if n else st.sampled_from(odd))


ENDS = mostly(st.just(b"\r\n"), b"\n", b"\r\n", b"\r\r\n", b" \r\n")
VALUES = st.one_of(
    st.sampled_from([b"a", b"", b"text/plain; q=1", b"x" * 70, b"close", b"\xc3\xa9", b"a:b"]),
    st.binary(max_size=6).map(lambda b: b.replace(b"\n", b"")),
)
SPACES = mostly(st.sampled_from([b" ", b""]), b"  ", b"\t", b" \t ")
ODD_LINES = (
    b"no colon", b": no name", b"Sp ace: x", b"Late : x", b" folded", b"\tfolded: 5",
    b"Content-Length : 5", b"Transfer-Encoding\t: chunked", b"Content-Length", b"N\x00ul: x",
    b"\x80: y", b"X: a\rb", b"X: a\x00b", b"X: a\x0bb", b"X\r: a", b" Content-Length: 9",
)  # fmt: skip
PLAIN_NAMES = st.sampled_from(
    b"X Accept Content-Type Connection Cookie TE Trailer Hosts Users Content-Lengths Upgraded "
    b"Transfer Traceparents User-Agent traceparent ContentmLength Transfermencoding c t u".split()
)
CODINGS = st.sampled_from(
    [b"chunked", b"Chunked", b"gzip, chunked", b"chunked,", b",", b"", b"gzip", b"identity",
     b"chunked, chunked", b"chunked;q=1", b"chunk", b"chunkedd", b"chunked gzip", b"gzip,chunked ",
     b"chu\rnked", b"chunked\r", b"\rchunked", b"chunked\x00", b"chunked\x0b"]
)  # fmt: skip
LENGTHS = st.sampled_from(
    [b"0", b"5", b"05", b"5,5", b"5, 6", b"+5", b"-1", b"5 5", b"5,", b"", b"0x5", b"1" * 18,
     b"9" * 25, b"5\r", b"\r5", b"5\r5", b"5\x0b", b"72057594037927935"]
)  # fmt: skip
CASES = st.sampled_from([bytes, bytes.lower, bytes.upper, bytes.title, bytes.swapcase])


@st.composite
def field_lines(draw: st.DrawFn) -> bytes:
    """One field, now and then a line that is none, or one with a fold."""
    kind = draw(st.integers(0, 15))
    if kind == 0:
        return draw(st.sampled_from(ODD_LINES))
    name = draw(PLAIN_NAMES)
    value = draw(VALUES)
    if kind == 1:
        name, value = b"Transfer-Encoding", draw(CODINGS)
    elif kind == 2:
        name, value = b"Content-Length", draw(LENGTHS)
    elif kind == 3:
        name = b"Host"
    line = draw(CASES)(name) + b":" + draw(SPACES) + value + draw(mostly(st.just(b""), b" ", b"\t"))
    if draw(st.integers(0, 15)) == 0:
        line += draw(
            st.sampled_from([b"\r\n more", b"\n\tmore", b"\r\n Content-Length: 7", b"\r\n\t5"])
        )
    return line


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    """Chunked content, now and then with something wrong."""
    out = b""
    for data in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=3)):
        size = draw(st.sampled_from([b"%x", b"%X", b"0%x"])) % len(data)
        size += draw(mostly(st.just(b""), b";a=b", b' ; a="b"', b" ", b"\t", b"x", b" x", b";\r"))
        out += size + draw(mostly(st.just(b"\r\n"), b"\n", b"\r"))
        out += data + draw(mostly(st.just(b"\r\n"), b"\n", b"", b"xx", b"\r"))
    out += draw(mostly(st.sampled_from([b"0", b"00"]), b"0;x", b"0 ", b"", b"g")) + b"\r\n"
    trailer = draw(mostly(st.sampled_from([b"", b"X: y\r\n"]), b"no field\r\n", b"\rX\r\n", b"a\n"))
    return out + trailer + draw(mostly(st.just(b"\r\n"), b"\n", b"\r", b""))


@st.composite
def contents(draw: st.DrawFn, fields: bytes) -> bytes:
    """Content that fits the fields, most often."""
    if draw(st.integers(0, 7)) == 0:
        return draw(st.binary(max_size=30))
    if b"chunked" in fields.lower():
        return draw(chunks())
    return draw(st.sampled_from([b"hello", b"", b"hell"])) if b"ength" in fields.lower() else b""


NOISE = st.sampled_from([bytes([b]) for b in b"\r\n \t:,;0aH\x00\x7f\x80"])


@st.composite
def with_noise(draw: st.DrawFn, stream: bytes) -> bytes:
    """The stream, one time in eight with one byte more, less or changed."""
    kind = draw(st.integers(0, 23))
    if kind > 2 or not stream:
        return stream
    at = draw(st.integers(0, len(stream) - 1))
    put = draw(NOISE) if kind else b""
    return stream[:at] + put + stream[at + (kind != 1) :]


@st.composite
def heads(draw: st.DrawFn, start: bytes, first: list[bytes]) -> bytes:
    """A start line and fields: those given first, framing, and others."""
    lines = first + draw(st.lists(field_lines(), max_size=4))
    framing = draw(st.sampled_from([b"", b"", b"Content-Length: 5", b"Transfer-Encoding: chunked"]))
    if framing:
        lines.append(framing)
    lines = draw(st.permutations(lines)) if draw(st.booleans()) else lines
    out = start + draw(ENDS)
    for line in lines:
        out += line + draw(ENDS)
    return out + draw(mostly(st.just(b"\r\n"), b"\n", b"\r"))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that is nearly valid."""
    method = draw(
        mostly(
            st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"PATCH", b"DELETE"]),
            b"CONNECT", b"get", b"M-SEARCH", b"QUERY", b"A" * 64, b"A" * 65, b"G T", b"", b"\x80",
        )
    )  # fmt: skip
    target = draw(
        mostly(
            st.sampled_from([b"/", b"/a/b?c=d", b"*", b"http://h/p", b"/" + b"x" * 230]),
            b"", b"/\xc3\xa9", b"/\x7f", b"/a b", b"/\x01", b"a:1",
        )
    )  # fmt: skip
    version = draw(
        mostly(
            st.sampled_from([b"HTTP/1.1", b"HTTP/1.0"]),
            b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.10", b"HTTP/1.", b"HTTP/1.1 ", b"",
        )
    )  # fmt: skip
    space = draw(mostly(st.just(b" "), b"  ", b"\t", b""))
    before = draw(mostly(st.just(b""), b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" "))
    start = before + method + b" " + target + space + version
    host = draw(mostly(st.just([b"Host: one"]).map(b"".join), b"", b"Host : x"))
    head = draw(heads(start, [host] if host else []))
    return draw(with_noise(head + draw(contents(head))))


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    """An answer that is nearly valid."""
    method = draw(st.sampled_from(["GET", "GET", "GET", "HEAD", "CONNECT", "POST"]))
    status = draw(
        mostly(
            st.sampled_from([b"200", b"404", b"500", b"204", b"304", b"100", b"103", b"101"]),
            b"600", b"999", b"099", b"20", b"2000", b"2x0", b"",
        )
    )  # fmt: skip
    version = draw(
        mostly(st.sampled_from([b"HTTP/1.1", b"HTTP/1.0"]), b"HTTP/1.9", b"HTTP/3.0", b"http/1.1")
    )
    reason = draw(mostly(st.sampled_from([b" OK", b"", b" "]), b" \xe9", b"  a", b"OK", b" \x00"))
    before = draw(mostly(st.just(b""), b"\r\n", b"\n"))
    head = draw(heads(before + version + b" " + status + reason, []))
    stream = draw(with_noise(head + draw(contents(head))))
    return Answer(method, stream)


def write_seeds(directory: Path, methods: Sequence[str]) -> None:
    """Writes the messages as inputs of tests/host/h1_fuzz.c, one a file.

    Args:
        methods: names in the order of enum http_method.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, stream in REQUESTS.items():
        for settings in (0, 2, 4):
            head = bytes([settings, 1, 7, 64, 0])
            (directory / f"request_{name}_{settings}").write_bytes(head + stream)
    for name, (words, stream) in ANSWERS.items():
        first = methods.index(words.split()[0]) if words and words.split()[0] in methods else 1
        head = bytes([1 | first << 4, 3, 9, 200, 31])
        (directory / f"answer_{name}").write_bytes(head + stream)


if __name__ == "__main__":
    from h1 import METHODS

    write_seeds(Path(sys.argv[1]), METHODS)
