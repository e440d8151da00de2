# SPDX-License-Identifier: Apache-2.0
"""Where a message ends, by each rule of framing; bodies that look like messages, or are large."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from conversations.compare import check
from conversations.messages import NO_BODY
from conversations.messages import Body
from conversations.messages import conversation
from conversations.messages import exchange
from conversations.model import CLIENT_CLOSES
from conversations.model import CLIENT_RESETS
from conversations.model import DOWN
from conversations.model import SERVER_CLOSES
from conversations.model import SERVER_RESETS
from conversations.model import UP
from conversations.model import Message
from conversations.observed import Observer
from conversations.observed import assert_exact
from conversations.peers import connect
from conversations.peers import finish
from conversations.peers import listening
from conversations.peers import port_of
from conversations.peers import transfer
from conversations.samples import BAIT
from conversations.samples import CONTINUE
from conversations.truth import outcomes

# --- each rule of framing ---------------------------------------------------------------------

CROSSINGS = 30


def bodies_of(data: bytes, framing: str) -> Body:
    return Body(data, framing, chunks=(1, 2, 3, 5, 8, 13, 21))


FRAMINGS = {
    "length": conversation(
        exchange(b"PUT", request_body=Body(BAIT, "length"), answer_body=Body(BAIT, "length")),
        exchange(),
    ),
    "chunked": conversation(
        exchange(
            b"PUT", request_body=bodies_of(BAIT, "chunked"), answer_body=bodies_of(BAIT, "chunked")
        ),
        exchange(),
    ),
    "chunk size with white space before its extension": conversation(
        exchange(
            b"PUT",
            request_body=Body(b"abc", "chunked", extension=b" ; a = b"),
            answer_body=Body(b"abc", "chunked", extension=b"\t;a"),
        ),
        exchange(),
    ),
    "extension with quotes": conversation(
        exchange(answer_body=Body(b"abc", "chunked", extension=b';a="x;\\"y"')), exchange()
    ),
    "extensions of two kilobytes": conversation(
        exchange(answer_body=Body(b"abc", "chunked", extension=b";a=" + b"5" * 2000)), exchange()
    ),
    "chunk sizes with leading zeros": conversation(
        exchange(answer_body=Body(b"a" * 300, "chunked", chunks=(255,), size_format="%012X")),
        exchange(),
    ),
    "gzip, chunked": conversation(
        exchange(
            b"PUT",
            request_body=Body(
                b"abc", "chunked", coding_lines=(b"Transfer-Encoding: gzip, chunked",)
            ),
            answer_body=Body(
                b"abc", "chunked", coding_lines=(b"Transfer-Encoding: gzip , , chunked ",)
            ),
        ),
        exchange(),
    ),
    "codings on two lines": conversation(
        exchange(
            answer_body=Body(
                b"abc",
                "chunked",
                coding_lines=(b"Transfer-Encoding: gzip", b"X: y", b"Transfer-Encoding: chunked"),
            )
        ),
        exchange(),
    ),
    "an answer that is gzip but not chunked ends with the connection": conversation(
        exchange(
            answer_lines=(b"Transfer-Encoding: gzip",), answer_body=Body(BAIT + b"x", "close")
        ),
        end=SERVER_CLOSES,
    ),
    "length and coding, coding last": conversation(
        exchange(b"PUT", request_body=Body(BAIT, "both"), answer_body=Body(BAIT, "both")),
        exchange(),
    ),
    "length and coding, length last": conversation(
        exchange(
            b"PUT",
            request_body=Body(
                BAIT, "chunked", coding_lines=(b"Transfer-Encoding: chunked", b"Content-Length: 3")
            ),
        ),
        exchange(),
    ),
    "equal lengths": conversation(
        exchange(
            b"PUT",
            request_body=Body(
                b"abc", "length", length_lines=(b"Content-Length: 3", b"CONTENT-LENGTH:3")
            ),
            answer_body=Body(b"abc", "length", length_lines=(b"Content-Length: 3, 3",)),
        ),
        exchange(),
    ),
    "until close": conversation(
        exchange(answer_body=Body(BAIT + CONTINUE, "close")), end=SERVER_CLOSES
    ),
    "until close, empty": conversation(exchange(answer_body=Body(b"", "close")), end=SERVER_CLOSES),
    "until close, HTTP/1.0": conversation(
        exchange(version="1.0", host=b"", answer_version="1.0", answer_body=Body(BAIT, "close")),
        end=SERVER_CLOSES,
    ),
    "HEAD": conversation(
        exchange(b"HEAD", answer_body=Body(framing="bare", length_lines=(b"Content-Length: 9",))),
        exchange(
            b"HEAD",
            answer_body=Body(framing="bare", length_lines=(b"Transfer-Encoding: chunked",)),
        ),
        exchange(b"HEAD", answer_body=NO_BODY),
        exchange(b"GET", b"/after"),
    ),
    "204": conversation(
        exchange(b"DELETE", status=204, answer_body=NO_BODY),
        exchange(
            b"DELETE",
            status=204,
            answer_body=Body(framing="bare", length_lines=(b"Content-Length: 9",)),
        ),
        exchange(b"GET", b"/after"),
    ),
    "304": conversation(
        exchange(
            status=304, answer_body=Body(framing="bare", length_lines=(b"Content-Length: 9",))
        ),
        exchange(
            status=304,
            answer_body=Body(framing="bare", length_lines=(b"Transfer-Encoding: chunked",)),
        ),
        exchange(b"GET", b"/after"),
    ),
    "a body on GET": conversation(
        exchange(b"GET", request_body=Body(BAIT, "length")), exchange(b"GET", b"/after")
    ),
    "status line without a reason or its space": conversation(
        exchange(reason=b"", answer_body=Body(b"abc", "length")),
        exchange(reason=b" ", answer_body=Body(b"abc", "length")),
    ),
    "bare line feeds": conversation(
        exchange(
            b"PUT",
            line_end=b"\n",
            request_lines=(b"X: \r",),
            request_body=Body(b"abc", "length"),
            answer_body=Body(b"abc", "length"),
        ),
        exchange(line_end=b"\n"),
    ),
    "empty lines before a request": conversation(
        exchange(before=b"\r\n"), exchange(before=b"\r\n\r\n\r\n"), exchange(before=b"\n")
    ),
    "a field folded into what looks like framing": conversation(
        exchange(
            request_lines=(b"X: a\r\n Content-Length: 7\r\n\tTransfer-Encoding: chunked",),
            answer_lines=(b"X: a\r\n Content-Length: 7\r\n\tTransfer-Encoding: chunked",),
        ),
        exchange(),
    ),
    "one letter off Content-Length and Transfer-Encoding": conversation(
        exchange(
            request_lines=tuple(
                name + b": 7"
                for name in (
                    b"Content-Lengt", b"Content-Lengthh", b"ontent-Length", b"Content_Length",
                    b"ContentmLength", b"Content\x2eLength", b"Contentslength", b"Cpntent-Length",
                )
            )
            + tuple(
                name + b": chunked"
                for name in (
                    b"Transfer-Encodin", b"Transfer-Encodings", b"TransfermEncoding",
                    b"Transfer_Encoding", b"Transfer-Encodimg", b"ransfer-Encoding",
                )
            )
        ),
        exchange(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMINGS)
@pytest.mark.parametrize("depth", [1, 64])
def test_framing_is_followed_exactly(exact: Observer, name: str, depth: int) -> None:
    # GIVEN a message with a framing of its own, and a request after it / WHEN / THEN
    check(exact, [replace(FRAMINGS[name], depth=depth)])


@pytest.mark.parametrize("status", [200, 403])
@pytest.mark.parametrize("name", FRAMINGS)
def test_framing_is_followed_after_half_close(exact: Observer, name: str, status: int) -> None:
    # GIVEN a client that has said that it is done before the last answer
    talk = FRAMINGS[name]
    extra = exchange(b"GET", b"/last", status, answer_body=Body(b"late", "chunked"))
    if talk.end == CLIENT_CLOSES:
        talk = replace(talk, exchanges=(*talk.exchanges, extra))

    # WHEN / THEN
    check(exact, [replace(talk, half_close=True)])


def test_interim_answers_are_no_answers(exact: Observer) -> None:
    # GIVEN 100, 102 and 103 before the answers, some in one segment with them
    early_hints = (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nContent-Length: 5\r\n\r\n"
    )
    many = tuple((b"HTTP/1.1 102 Processing\r\n\r\n", False) for _ in range(20))
    talk = conversation(
        exchange(
            b"PUT",
            request_lines=(b"Expect: 100-continue",),
            request_body=Body(b"abc", "chunked"),
            interims=((CONTINUE, True), (early_hints, False)),
            waits=True,
            answer_body=Body(b"ok", "length"),
        ),
        exchange(interims=many),
        exchange(interims=((early_hints, False), (CONTINUE, False))),
    )

    # WHEN / THEN
    check(exact, [talk, replace(talk, depth=3, choices=(True, False))])


def test_a_client_that_gets_417_does_not_send_its_body(exact: Observer) -> None:
    # GIVEN a request whose body is refused and never sent
    refused = exchange(
        b"PUT",
        b"/big",
        417,
        request_lines=(b"Expect: 100-continue",),
        request_body=Body(b"x" * 1000, "length"),
        early=0,
    )
    talk = conversation(refused, end=CLIENT_CLOSES)
    cut = replace(talk, stop=refused.request.head + len(refused.answer))

    # WHEN / THEN
    check(exact, [cut])


@pytest.mark.parametrize("end", [CLIENT_CLOSES, SERVER_CLOSES, CLIENT_RESETS, SERVER_RESETS])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_early_answers_are_counted_with_their_whole_request(
    exact: Observer, framing: str, end: str
) -> None:
    # GIVEN an answer before the request's end: the body goes on, or stops half-way
    early = exchange(
        b"POST", b"/up", 413, request_body=Body(BAIT * 3, framing, chunks=(40, 50)), early=7
    )
    goes_on = conversation(exchange(), early, exchange(b"GET", b"/after"))
    stops = conversation(early, end=end, stop=early.needed + len(early.answer) + 11)

    # WHEN / THEN
    check(exact, [goes_on, stops, replace(goes_on, depth=2)])


def test_expected_outcomes_are_not_empty() -> None:
    # GIVEN the conversations above / WHEN / THEN they say something (the tests can fail)
    assert all(outcomes(talk) for talk in FRAMINGS.values())


# --- large bodies -----------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("cut", [None, 1447])
def test_bodies_of_megabytes_are_skipped(exact: Observer, framing: str, cut: int | None) -> None:
    # GIVEN bodies full of requests and answers
    data = (
        BAIT + CONTINUE + b"0\r\n\r\n" + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    ) * 20_000
    up = "length" if framing == "close" else framing
    talk = conversation(
        exchange(
            b"POST",
            request_body=Body(data, up, chunks=(65_536, 1, 100_000, 9)),
            answer_body=Body(data, framing, chunks=(4096,) * 100),
        ),
        end=SERVER_CLOSES,
    )
    if cut:
        talk = replace(
            talk,
            cuts_up=frozenset(range(cut, len(talk.up), cut)),
            cuts_down=frozenset(range(cut, len(talk.down), cut)),
        )

    # WHEN / THEN
    check(exact, [talk])


def test_a_body_that_begins_each_segment_like_a_request(exact: Observer) -> None:
    # GIVEN a body whose every segment is a whole request
    head = exchange(b"POST", b"/up", request_body=Body(BAIT * 500, "length"))
    size = head.request.head
    cuts = frozenset(size + n * len(BAIT) for n in range(500))

    # WHEN / THEN
    check(exact, [conversation(head, exchange(), cuts_up=cuts)])


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_hundreds_of_tiny_chunks_in_one_segment(exact: Observer, direction: str) -> None:
    # GIVEN a body of chunks of one byte
    body = Body(b"x" * 300, "chunked", chunks=(1,) * 300)
    talk = conversation(
        exchange(b"POST", request_body=body if direction == UP else NO_BODY,
                 answer_body=body if direction == DOWN else None),
        exchange(),
    )  # fmt: skip

    # WHEN / THEN
    check(exact, [talk])


def test_lengths_beyond_32_bits(exact: Observer) -> None:
    # GIVEN messages that say that they are terabytes, and end early
    length = (b"Content-Length: 5000000000123",)
    body = Body(b"x" * 3000, "length", length_lines=length)
    chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n123456789ab\r\n"
    down = conversation(exchange(b"GET", b"/down", answer_body=body), end=SERVER_CLOSES)
    up = conversation(exchange(b"PUT", b"/up", 413, request_body=body, early=5))
    chunked = exchange(b"GET", b"/chunked")
    chunked = replace(
        chunked, answer=Message(chunk + b"y" * 500, chunk.index(b"123456"), ((len(chunk), 10**9),))
    )
    talks = [
        replace(down, stop=len(down.up) + len(down.down) - 1),
        replace(up, stop=len(up.up) + len(up.down) - 1),
        conversation(chunked, stop=len(chunked.request) + len(chunked.answer), end=CLIENT_RESETS),
    ]
    talks[2] = replace(
        talks[2],
        exchanges=(
            replace(chunked, answer=replace(chunked.answer, wire=chunked.answer.wire + b"y")),
        ),
    )

    # WHEN / THEN
    check(exact, talks)


def test_bytes_that_cross_on_the_way(exact: Observer) -> None:
    # GIVEN early answers of megabytes while requests of megabytes are still being sent
    data = BAIT * 60_000
    talk = conversation(
        exchange(b"POST", b"/echo", request_body=Body(data, "length"),
                 answer_body=Body(data, "length"), early=1000),
        exchange(b"GET", b"/after"),
    )  # fmt: skip
    first, after = talk.exchanges
    rest = first.request.wire[first.needed :]
    ports = []
    with listening() as listener:
        # Of many connections, two CPUs are at some of them for the first time at the same time.
        for _ in range(CROSSINGS):
            pair = connect(listener)
            ports.append(pair.client_port)

            # WHEN both directions are written at once
            transfer(pair.client, pair.server, first.request.wire[: first.needed])
            up = threading.Thread(target=transfer, args=(pair.client, pair.server, rest))
            up.start()
            transfer(pair.server, pair.client, first.answer.wire)
            up.join()
            transfer(pair.client, pair.server, after.request.wire)
            transfer(pair.server, pair.client, after.answer.wire)
            finish(pair, CLIENT_CLOSES)

        # THEN nothing is missing
        assert_exact(exact, port_of(listener), [talk] * CROSSINGS, ports)
