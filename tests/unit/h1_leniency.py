# SPDX-License-Identifier: Apache-2.0
"""Where the parser takes more than h11 does, or less: by name, with what it means.

``strictly()`` writes a message that the parser takes in the words that h11 takes:
each change has a name. The list of names is the list of leniencies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from dataclasses import field

TCHAR = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]"
FRAMING = (b"content-length", b"transfer-encoding")

LENIENCIES = {
    "empty lines first": "RFC 9112 2.2 asks servers for it; answers are read the same way",
    "bytes from 0x80 on in a target": "sent as they are by many clients",
    "text of the status line": "any bytes up to the line's end",
    "a line that is no field": "skipped, with what is folded under it",
    "a fold behind the start line": "skipped, as RFC 9112 2.2 allows",
    "control in a value": "NUL, bare CR, VT and FF outside of framing",
    "a bare CR in Content-Length": "before or behind the digits",
    "equal lengths, written differently": "05 and 5",
    "codings before chunked": "the last one frames the body (RFC 9112 6.3)",
    "an empty list of codings": "RFC 9110 5.6.1: empty elements do not count",
    "another coding: until the close": "answers only (RFC 9112 6.3)",
    "no Host, or several": "framing does not hang on it",
    "content of CONNECT": "there is none: what follows waits for the answer",
    "a chunk's line": "bare LF, and anything behind the size as an extension",
    "a bare LF behind a chunk": "as in heads",
    "trailers": "skipped unread",
}

STRICTNESS = {
    "a version that is not HTTP/1.x": rb"\A[\r\n]*([^ ]+ [^ ]+ )?HTTP/[02-9]\.",
    "a method of more than 64 letters": rb"\A[\r\n]*" + TCHAR + rb"{65}",
    "a status of 600 or more": rb"\A[\r\n]*HTTP/1\.[0-9] [6-9]",
    "a fold on a field of framing": (
        rb"(?i)\n(content-length|transfer-encoding):[^\n]*\n([ \t][^\n]*\n)*[ \t]"
    ),
    "a length of more than 2^56": rb"(?i)\n(content-length):[^\n]*[0-9]{17}",
    "a chunk of more than 2^56 bytes": rb"\n0*[0-9A-Fa-f]{15}",
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


def allowed_refusals(stream: bytes) -> list[str]:
    """Names of the rules by which the parser may refuse what h11 takes."""
    return [name for name, pattern in STRICTNESS.items() if re.search(pattern, stream)]


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
