# SPDX-License-Identifier: Apache-2.0
"""Where the parser takes more than h11 does, or less: by name, with what it means.

``strictly()`` writes a message that the parser takes in the words that h11 takes:
each change has a name. The list of names is the list of leniencies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field

TCHAR = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]"
FRAMING = (b"content-length", b"transfer-encoding")


@dataclass(frozen=True)
class Leniency:
    """Something the parser takes and h11 does not, or not in the same sense."""

    why: str
    example: bytes  # one request or answer


@dataclass(frozen=True)
class Strictness:
    """Something the parser refuses and another does not."""

    pattern: bytes
    example: bytes
    why: str


LENIENCIES = {
    "empty lines first": Leniency(
        "RFC 9112 2.2 asks servers for it; answers are read the same way",
        b"\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    "bytes from 0x80 on in a target": Leniency(
        "clients send them", b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n"
    ),
    "text of the status line": Leniency(
        "any bytes up to the line's end", b"HTTP/1.1 204 a\x00b\r\n\r\n"
    ),
    "a line that is no field": Leniency(
        "skipped, with what is folded under it",
        b"GET / HTTP/1.1\r\nHost: a\r\nno field\r\n Content-Length: 5\r\n\r\n",
    ),
    "a fold behind the start line": Leniency(
        "skipped, as RFC 9112 2.2 allows",
        b"GET / HTTP/1.1\r\n Content-Length: 5\r\nHost: a\r\n\r\n",
    ),
    "control in a value": Leniency(
        "NUL, bare CR, VT and FF; CR is a space (RFC 9112 2.2)",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00\rb\r\n\r\n",
    ),
    "a bare CR in Content-Length": Leniency(
        "a space: before or behind the digits",
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: \r1\r\n\r\nx",
    ),
    "equal lengths, written differently": Leniency(
        "numbers are compared", b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 01\r\n\r\nx"
    ),
    "codings before chunked": Leniency(
        "the last one frames the body (RFC 9112 6.3)",
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    "an empty list of codings": Leniency(
        "empty elements do not count (RFC 9110 5.6.1)",
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,\r\nContent-Length: 1\r\n\r\nx",
    ),
    "another coding: until the close": Leniency(
        "answers only (RFC 9112 6.3)",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 1\r\n\r\nxyz",
    ),
    "no Host, or several": Leniency("framing does not hang on it", b"GET / HTTP/1.1\r\n\r\n"),
    "content of CONNECT": Leniency(
        "there is none: what follows waits for the answer",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
    ),
    "a chunk's line": Leniency(
        "bare LF, and anything behind the size as an extension",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1 x\nx\r\n0\r\n\r\n",
    ),
    "a bare LF behind a chunk": Leniency(
        "as in heads",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\n0\r\n\r\n",
    ),
    "trailers": Leniency(
        "skipped unread",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nno field\r\n\r\n",
    ),
}

STRICTNESS = {
    "a version that is not HTTP/1.x": Strictness(
        rb"\A[\r\n]*(HTTP/[02-9]\.|[^\n]* HTTP/[02-9]\.)",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        "nothing else is meant to be counted",
    ),
    "a method of more than 64 letters": Strictness(
        rb"\A[\r\n]*" + TCHAR + rb"{65}",
        b"A" * 65 + b" / HTTP/1.1\r\nHost: a\r\n\r\n",
        "tells text of other protocols",
    ),
    "a fold on a field of framing": Strictness(
        rb"(?i)\n(content-length|transfer-encoding):[^\n]*\n([ \t][^\n]*\n)*[ \t]",
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n 1\r\n\r\nx",
        "parsers differ on it: a way to smuggle",
    ),
    "a length of more than 2^56": Strictness(
        rb"(?i)\ncontent-length:[^\n]*[0-9]{17}",
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 20 + b"\r\n\r\n",
        "no real content is as long",
    ),
    "a chunk of more than 2^56 bytes": Strictness(
        rb"\n0*[0-9A-Fa-f]{15}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 16 + b"\r\nx",
        "no real content is as long",
    ),
}

# What llhttp takes and the parser refuses, besides.
LLHTTP_ONLY = {
    "two spaces before the version": Strictness(
        rb"\A[\r\n]*[^ \n]+ ([^ \n]+ )? +HTTP/",
        b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
        "RFC 9112 3: one space",
    ),
    "no version": Strictness(
        rb"\A[\r\n]*[^ \n]+ [^ \n]+\r?\n", b"GET /\n\r\n", "HTTP/0.9 is another protocol"
    ),
    "a status below 100": Strictness(
        rb"\A[\r\n]*HTTP/1\.[0-9] 0", b"HTTP/1.1 099 No\r\n\r\n", "RFC 9110 15: invalid"
    ),
}


@dataclass
class Strict:
    """A message rewritten, and the names of the changes."""

    stream: bytes = b""
    names: set[str] = field(default_factory=set)


def strictly(message: bytes, head: int, *, answers: bool, connect: bool = False) -> Strict:
    """The message as h11 takes it.

    Args:
        message: bytes of one message, and of no other.
        head: length of its head.
        connect: the message is a CONNECT request.
    """
    out = Strict()
    lines, content = _lines(message[:head], out), message[head:]
    start, fields = lines[0], _unfolded(lines[1:], out)
    start = _status_line(start, out) if answers else _request_line(start, out)
    fields = [_value(line, out) for line in fields]
    fields, coding = _codings(fields, out)
    fields = _lengths(fields, out)
    if not answers:
        fields = _hosts(fields, out)
    if connect:
        fields = _without_framing(fields, out)
    elif answers and coding not in (b"", b"chunked"):
        fields = [f for f in fields if _name(f) not in FRAMING]
        out.names.add("another coding: until the close")
    elif coding == b"chunked":
        content = _chunks(content, out)
    out.stream = b"".join(line + b"\r\n" for line in [start, *fields, b""]) + content
    return out


def allowed_refusals(stream: bytes, rules: Mapping[str, Strictness] = STRICTNESS) -> list[str]:
    """Names of the rules by which the parser may refuse what another parser takes."""
    return [name for name, rule in rules.items() if re.search(rule.pattern, stream)]


def has_whole_head(raw: bytes) -> bool:
    """Is there an empty line behind a start line?"""
    return bool(re.search(rb"\n\r?\n", raw.lstrip(b"\r\n")))


def _lines(head: bytes, out: Strict) -> list[bytes]:
    stripped = head.lstrip(b"\r\n")
    if stripped != head:
        out.names.add("empty lines first")
    # h11 takes bare LF in heads too, so that this change needs no name
    lines = [line.removesuffix(b"\r") for line in stripped.split(b"\n")]
    assert lines[-2:] == [b"", b""], head
    return lines[:-2]


def _request_line(line: bytes, out: Strict) -> bytes:
    if re.search(rb"[\x80-\xff]", line):
        out.names.add("bytes from 0x80 on in a target")
    return re.sub(rb"[\x80-\xff]", b"x", line)


def _status_line(line: bytes, out: Strict) -> bytes:
    plain = re.sub(rb"(?s)\A(HTTP/1\.[0-9] [0-9]{3}).*", rb"\1", line)
    if not re.fullmatch(rb"( [ \t\x21-\xff]*)?", line[len(plain) :]):
        out.names.add("text of the status line")
    return plain


def _unfolded(lines: list[bytes], out: Strict) -> list[bytes]:
    """Fields with what is folded under them, without lines that are none."""
    fields: list[bytes] = []
    skipping = False
    for number, line in enumerate(lines):
        if line[:1] in (b" ", b"\t"):
            if not number:
                out.names.add("a fold behind the start line")
                skipping = True
            if not skipping:
                fields[-1] += b"\r\n" + line
        elif re.match(TCHAR + rb"+:", line):
            skipping = False
            fields.append(line)
        else:
            skipping = True
            out.names.add("a line that is no field")
    return fields


def _name(line: bytes) -> bytes:
    return line.partition(b":")[0].lower()


def _value(line: bytes, out: Strict) -> bytes:
    name, _, value = line.partition(b":")
    inner = value.replace(b"\r\n", b"")
    if not re.search(rb"[\x00\r\v\f]", inner):
        return line
    if _name(line) == b"content-length":
        out.names.add("a bare CR in Content-Length")
    else:
        out.names.add("control in a value")
    return name + b":" + re.sub(rb"[\x00\r\v\f]", b" ", inner)


def _codings(fields: list[bytes], out: Strict) -> tuple[list[bytes], bytes]:
    """One line for all codings, and the last one."""
    values = [f.partition(b":")[2] for f in fields if _name(f) == b"transfer-encoding"]
    if not values:
        return fields, b""
    elements = [e.strip(b" \t").lower() for e in b",".join(values).split(b",")]
    named = [e for e in elements if e]
    rest = [f for f in fields if _name(f) != b"transfer-encoding"]
    if not named:
        out.names.add("an empty list of codings")
        return rest, b""
    if len(elements) > 1:
        out.names.add("codings before chunked")
    return [*rest, b"Transfer-Encoding: " + named[-1]], named[-1]


def _lengths(fields: list[bytes], out: Strict) -> list[bytes]:
    values = [f.partition(b":")[2] for f in fields if _name(f) == b"content-length"]
    if not values:
        return fields
    texts = {e.strip(b" \t") for e in b",".join(values).split(b",")}
    if len(texts) > 1:
        out.names.add("equal lengths, written differently")
    rest = [f for f in fields if _name(f) != b"content-length"]
    return [*rest, b"Content-Length: %d" % int(texts.pop())]


def _hosts(fields: list[bytes], out: Strict) -> list[bytes]:
    hosts = [f for f in fields if _name(f) == b"host"]
    if len(hosts) != 1:
        out.names.add("no Host, or several")
    return [b"Host: one", *(f for f in fields if _name(f) != b"host")]


def _without_framing(fields: list[bytes], out: Strict) -> list[bytes]:
    rest = [f for f in fields if _name(f) not in FRAMING]
    if rest != fields:
        out.names.add("content of CONNECT")
    return rest


def _chunks(content: bytes, out: Strict) -> bytes:
    """Chunks with plain lines between them, as far as they go, without trailers."""
    written = b""
    while True:
        line = re.match(rb"([0-9A-Fa-f]+)((?:[; \t][^\n]*?)?\r?\n)", content)
        if not line:
            return written + content
        if not re.fullmatch(rb"(;[^\n]*?)?[ \t]*\r\n", line[2]):
            out.names.add("a chunk's line")
        size = int(line[1], 16)
        written += b"%x\r\n" % size
        content = content[line.end() :]
        if not size:
            return written + _trailers(content, out)
        written += content[:size]
        content = content[size:]
        end = re.match(rb"\r?\n", content)
        if not end:
            return written + content
        if end[0] == b"\n":
            out.names.add("a bare LF behind a chunk")
        written += b"\r\n"
        content = content[end.end() :]


def _trailers(content: bytes, out: Strict) -> bytes:
    if content not in (b"", b"\r\n", b"\r"):
        out.names.add("trailers")
    return b"\r\n" if re.search(rb"(\A|\n)\r?\n\Z", content) else b""
