# SPDX-License-Identifier: Apache-2.0
"""podscope's rows and log equal the truth of a conversation, to the last request and byte."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from conversations import strategies
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
from conversations.model import Conversation
from conversations.model import Message
from conversations.observed import Observer
from conversations.observed import assert_counted
from conversations.observed import assert_exact
from conversations.peers import FAMILIES
from conversations.peers import IPV4
from conversations.peers import IPV6
from conversations.peers import Family
from conversations.peers import accept
from conversations.peers import connect
from conversations.peers import finish
from conversations.peers import listening
from conversations.peers import play
from conversations.peers import play_all
from conversations.peers import port_of
from conversations.peers import read_end
from conversations.peers import run
from conversations.peers import transfer
from conversations.schedule import Write
from conversations.schedule import steps
from conversations.truth import Sums
from conversations.truth import outcomes
from conversations.truth import tally

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
BAIT = b"GET /bait HTTP/1.1\r\nHost: bait\r\n\r\n"
MEGABYTE = 1 << 20


def check(observer: Observer, conversations: Sequence[Conversation], family: Family = IPV4) -> None:
    """Plays conversations to a new port, one after another, and compares."""
    with listening(family) as listener:
        began = time.monotonic_ns()
        ports = play_all(listener, conversations, family)
        assert_exact(observer, port_of(listener), conversations, ports, began)


# --- any conversation -------------------------------------------------------------------------


@given(
    talks=st.lists(strategies.conversations(), min_size=1, max_size=3),
    family=st.sampled_from(FAMILIES),
)
def test_any_conversation_is_counted_exactly(
    exact: Observer, talks: list[Conversation], family: Family
) -> None:
    # GIVEN conversations of any shape / WHEN they are played / THEN rows and log equal them
    check(exact, talks, family)


@settings(max_examples=30)
@given(
    parts=st.lists(strategies.exchanges(last=False, early=False), min_size=40, max_size=64),
    depth=st.integers(33, 64),
)
def test_up_to_64_requests_in_flight_are_counted_exactly(
    exact: Observer, parts: list, depth: int
) -> None:
    # GIVEN a long pipeline of any exchanges / WHEN / THEN
    check(exact, [conversation(*parts, depth=depth)])


@settings(max_examples=15)
@given(talks=st.lists(strategies.conversations(max_exchanges=5), min_size=8, max_size=16))
def test_conversations_at_the_same_time_are_counted_exactly(
    exact: Observer, talks: list[Conversation]
) -> None:
    # GIVEN many connections
    with listening() as listener:
        pairs = [connect(listener) for _ in talks]
        ports = [pair.client_port for pair in pairs]

        # WHEN they talk all at once
        threads = [
            threading.Thread(target=play, args=(pair, talk))
            for pair, talk in zip(pairs, talks, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        # THEN each is counted as if it were alone
        assert_exact(exact, port_of(listener), talks, ports)


# --- splits -----------------------------------------------------------------------------------

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


@pytest.mark.parametrize("depth", [1, 4])
def test_requests_split_at_every_byte_are_counted_exactly(exact: Observer, depth: int) -> None:
    # GIVEN one conversation, split at each byte of the client's stream in turn
    talk = replace(SPLIT_ME, depth=depth)
    talks = [replace(talk, cuts_up=frozenset((at,))) for at in range(1, len(talk.up))]

    # WHEN / THEN
    check(exact, talks)


@pytest.mark.parametrize("depth", [1, 4])
def test_answers_split_at_every_byte_are_counted_exactly(exact: Observer, depth: int) -> None:
    # GIVEN one conversation, split at each byte of the server's stream in turn
    talk = replace(SPLIT_ME, depth=depth)
    talks = [replace(talk, cuts_down=frozenset((at,))) for at in range(1, len(talk.down))]

    # WHEN / THEN
    check(exact, talks)


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_segments_of_a_few_bytes_are_counted_exactly(exact: Observer, step: int) -> None:
    # GIVEN a conversation in segments of `step` bytes
    cut = replace(
        SPLIT_ME,
        cuts_up=frozenset(range(step, len(SPLIT_ME.up), step)),
        cuts_down=frozenset(range(step, len(SPLIT_ME.down), step)),
    )

    # WHEN / THEN
    check(exact, [cut, replace(cut, depth=4)])


def test_a_connection_that_ends_after_any_byte_is_counted_exactly(exact: Observer) -> None:
    # GIVEN a conversation that ends after each of its bytes in turn, in each way
    whole = sum(len(step.data) for step in steps(SPLIT_ME) if isinstance(step, Write))
    ends = (CLIENT_CLOSES, SERVER_CLOSES, CLIENT_RESETS, SERVER_RESETS)
    talks = [
        replace(SPLIT_ME, stop=stop, end=ends[stop % 4], depth=1 + stop % 3)
        for stop in range(whole + 1)
    ]

    # WHEN / THEN
    check(exact, talks)


# --- framing ----------------------------------------------------------------------------------


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


# --- tunnels ----------------------------------------------------------------------------------

OPAQUE = (
    (DOWN, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    (UP, BAIT),
    (DOWN, b"HTTP/1.1 500 Bait\r\n\r\n"),
    (UP, BAIT * 20),
    (DOWN, bytes(range(256)) * 50),
)


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("length", [b"Content-Length: 5", b"Transfer-Encoding: chunked", b"X: y"])
def test_what_goes_through_a_connect_tunnel_is_no_http(
    exact: Observer, depth: int, length: bytes
) -> None:
    # GIVEN a CONNECT that is refused, then one that is granted, and bytes that look like HTTP
    refused = exchange(
        b"CONNECT", b"db:1", 407, host=b"db:1", answer_body=Body(b"HTTP/1.1 200", "length")
    )
    granted = exchange(
        b"CONNECT",
        b"db:1",
        200,
        host=b"db:1",
        answer_body=Body(framing="bare", length_lines=(length,)),
    )
    talk = conversation(exchange(), refused, exchange(), granted, tunnel=OPAQUE, depth=depth)

    # WHEN / THEN
    check(exact, [talk, replace(talk, end=SERVER_RESETS)])


def upgrade(target: bytes, status: int, body: Body = NO_BODY) -> object:
    lines = (b"Connection: Upgrade", b"Upgrade: websocket")
    return exchange(
        b"GET", target, status, request_lines=lines, answer_lines=lines, answer_body=body
    )


@pytest.mark.parametrize("depth", [1, 4])
def test_what_follows_101_is_no_http(exact: Observer, depth: int) -> None:
    # GIVEN an upgrade that is refused, then one that is granted, and bytes that look like HTTP
    refused = upgrade(b"/no", 200, Body(b"plain", "length"))
    granted = upgrade(b"/chat", 101)
    talk = conversation(exchange(), refused, refused, granted, tunnel=OPAQUE, depth=depth)

    # WHEN / THEN
    check(exact, [talk])


def test_tunnel_bytes_in_the_segment_of_the_answers_head(exact: Observer) -> None:
    # GIVEN a server whose first opaque bytes come with the head of 101, a client that did not wait
    talk = conversation(upgrade(b"/chat", 101))
    granted = talk.exchanges[0]
    with listening() as listener:
        pair = connect(listener)
        port = pair.client_port

        # WHEN it is played
        transfer(pair.client, pair.server, granted.request.wire + BAIT)
        transfer(pair.server, pair.client, granted.answer.wire + b"HTTP/1.1 200 OK\r\n\r\n")
        finish(pair, CLIENT_CLOSES)

        # THEN the opaque bytes are no HTTP
        assert_exact(exact, port_of(listener), [talk], [port])


# --- methods, targets, heads ------------------------------------------------------------------


def test_each_known_method_has_its_name_and_all_others_are_other(exact: Observer) -> None:
    # GIVEN each method, its lower case, and tokens that begin or end like one
    known = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"QUERY")
    strange = [method.lower() for method in known]
    strange += [method + b"X" for method in known] + [method[:-1] for method in known]
    strange += [b"X" + method for method in known]
    strange += [b"HTTP", b"!#$%&'*+-.^_`|~", b"X" * 40, b"PROPFIND", b"CONNECTS", b"1", b"P"]
    talk = conversation(
        *(
            exchange(method, answer_body=NO_BODY if method == b"HEAD" else None)
            for method in (*known, *strange)
        )
    )

    # WHEN / THEN
    check(exact, [talk, replace(talk, depth=64)])


@pytest.mark.parametrize("method", [b"HTTP", b"!#$%", b"PROPFIND", b"X" * 40, b"get", b"1"])
def test_a_connection_may_begin_with_an_unknown_method(exact: Observer, method: bytes) -> None:
    # GIVEN / WHEN / THEN
    check(exact, [conversation(exchange(method, b"/a"), exchange())])


@pytest.mark.parametrize(
    "target",
    [
        b"*",
        b"http://example.test/a/b?c",
        b"http://example.test",
        b"http://example.test?q=/1/2",
        b"https://user@[2001:db8::1]:8443/users/77",
        b"/",
        b"//a//b",
        b"/?",
        b"/a?b?c/d/1",
        b"/users/42/orders/550e8400-e29b-41d4-a716-446655440000",
        b"/a%2Fb/%20;c=d",
        b"/" + b"a" * 126,
        b"/" + b"a" * 127,
        b"/" + b"b" * 128,
        b"/" + b"c/" * 70,
        b"/" + b"long-segment/" * 13 + b"?query",
        b"/q?" + b"x" * 5000,
        b"/" + b"y" * 191,
        b"/" + b"y" * 192,
        b"/" + b"y" * 8000,
        b"/\xe4\xf6",
    ],
)
def test_targets_give_their_route_and_are_logged_as_sent(exact: Observer, target: bytes) -> None:
    # GIVEN two requests with this target / WHEN / THEN
    method = b"OPTIONS" if target == b"*" else b"GET"
    check(exact, [conversation(exchange(method, target), exchange(method, target))])


@pytest.mark.parametrize(
    "lines",
    [
        (b"X-Big: " + b"v" * 65_000,),
        tuple(b"X-%d: %s" % (n, b"v" * 20) for n in range(2_200)),
        tuple(b"C%d: Content-Length: 5" % n for n in range(2_500)),
        (b"Content-" + b"x" * 60_000 + b": 1",),
    ],
    ids=["one line", "many lines", "many lines that begin with C", "a long name"],
)
@pytest.mark.parametrize("cut", [None, 1000])
def test_heads_of_64_kilobytes(exact: Observer, lines: tuple[bytes, ...], cut: int | None) -> None:
    # GIVEN heads of 64 KB on both sides, with the framing at the very end
    talk = conversation(
        exchange(
            b"PUT",
            request_lines=lines,
            request_body=Body(b"abc", "length"),
            answer_lines=lines,
            answer_body=Body(b"defg", "length"),
        ),
        exchange(),
    )
    if cut:
        talk = replace(
            talk,
            cuts_up=frozenset(range(cut, len(talk.up), cut)),
            cuts_down=frozenset(range(cut, len(talk.down), cut)),
        )

    # WHEN / THEN
    check(exact, [talk])


# --- bodies of megabytes, and many messages ---------------------------------------------------


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


@pytest.mark.parametrize("count", [2, 16, 64])
def test_many_messages_in_one_segment(exact: Observer, count: int) -> None:
    # GIVEN as many requests in one segment, and all their answers in one
    talk = conversation(
        *(
            exchange(
                (b"GET", b"HEAD", b"POST")[n % 3],
                b"/%d" % n,
                request_body=Body(b"abc", "chunked") if n % 3 == 2 else NO_BODY,
                answer_body=NO_BODY if n % 3 == 1 else Body(b"x" * n, "length"),
            )
            for n in range(count)
        ),
        depth=count,
    )
    assert len([step for step in steps(talk) if isinstance(step, Write)]) == 2

    # WHEN / THEN
    check(exact, [talk])


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


def test_thousands_of_requests_on_one_connection(exact: Observer) -> None:
    # GIVEN a connection that stays open
    talk = conversation(
        *(exchange(b"GET", b"/items/%d" % n, 200 + n % 5) for n in range(3000)), depth=7
    )

    # WHEN / THEN
    check(exact, [talk])


def test_seventy_thousand_requests_on_one_connection_while_rows_are_read(watch: Observer) -> None:
    # GIVEN a connection with more requests than 16 bits count, some with bodies
    parts = (
        exchange(b"GET", b"/g", host=b""),
        exchange(b"PUT", b"/p", 201, host=b"", request_body=Body(b"abc", "length")),
    )
    talk = conversation(*parts * 25, depth=50)
    rounds = 1400
    script = steps(talk)
    before = set(watch.lost())
    with listening() as listener:
        pair = connect(listener)

        def work() -> None:
            for _ in range(rounds):
                run(pair, script)
            finish(pair, CLIENT_CLOSES)

        # WHEN it is read again and again while it goes on
        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            watch.read()
        thread.join()

        # THEN the parts add up (the request log may lose some at this rate)
        seen = watch.seen(port_of(listener), 2 * 50 * rounds)
    expected = {
        key: Sums(one.count * rounds, one.request_bytes * rounds, one.answer_bytes * rounds)
        for key, one in tally(outcomes(talk)).items()
    }
    assert seen.sums == {"server": expected, "client": expected}
    assert set(watch.lost()) - before <= {"ring_full"}


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
    # GIVEN an early answer of megabytes while a request of megabytes is still being sent
    data = BAIT * 60_000
    talk = conversation(
        exchange(b"POST", b"/echo", request_body=Body(data, "length"),
                 answer_body=Body(data, "length"), early=1000),
        exchange(b"GET", b"/after"),
    )  # fmt: skip
    first, after = talk.exchanges
    with listening() as listener:
        pair = connect(listener)
        port = pair.client_port

        # WHEN both directions are written at once
        transfer(pair.client, pair.server, first.request.wire[: first.needed])
        rest = first.request.wire[first.needed :]
        up = threading.Thread(target=transfer, args=(pair.client, pair.server, rest))
        up.start()
        transfer(pair.server, pair.client, first.answer.wire)
        up.join()
        transfer(pair.client, pair.server, after.request.wire)
        transfer(pair.server, pair.client, after.answer.wire)
        finish(pair, CLIENT_CLOSES)

        # THEN
        assert_exact(exact, port_of(listener), [talk], [port])


# --- ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [CLIENT_CLOSES, SERVER_CLOSES, CLIENT_RESETS, SERVER_RESETS])
def test_empty_connections_give_nothing(exact: Observer, end: str) -> None:
    # GIVEN connections on which nothing is said / WHEN / THEN
    check(exact, [conversation(end=end)] * 5)


@pytest.mark.parametrize("end", [CLIENT_CLOSES, SERVER_CLOSES, CLIENT_RESETS, SERVER_RESETS])
def test_unanswered_requests_of_a_pipeline_are_counted(exact: Observer, end: str) -> None:
    # GIVEN ten requests of which three are answered, the fourth half
    parts = [exchange(b"GET", b"/a/%d" % n, answer_body=Body(b"abc", "length")) for n in range(10)]
    talk = conversation(*parts, depth=10, end=end)
    three = len(talk.up) + sum(len(part.answer) for part in parts[:3])

    # WHEN / THEN
    check(
        exact,
        [
            replace(talk, stop=three),
            replace(talk, stop=three + 10),
            replace(talk, stop=three + parts[3].answer.head + 1),
        ],
    )


def test_a_close_with_unread_bytes_is_a_reset(exact: Observer) -> None:
    # GIVEN a server that closes without having read the request
    part = exchange(b"POST", b"/unread", request_body=Body(b"x" * 100, "length"))
    talk = conversation(part, stop=len(part.request), end=SERVER_RESETS)
    with listening() as listener:
        pair = connect(listener)
        port = pair.client_port

        # WHEN
        pair.client.send(part.request.wire)
        time.sleep(0.05)
        pair.server.close()
        read_end(pair.client)
        pair.client.close()

        # THEN
        assert_exact(exact, port_of(listener), [talk], [port])


def test_a_fin_in_the_segment_of_the_last_bytes(exact: Observer) -> None:
    # GIVEN a client that ends its stream with its request, a server that does with its answer
    talk = conversation(
        exchange(b"POST", request_body=Body(b"abc", "length"), answer_body=Body(BAIT, "close")),
        end=SERVER_CLOSES,
        half_close=True,
    )
    whole = talk.exchanges[0]
    with listening() as listener:
        pair = connect(listener)
        port = pair.client_port

        # WHEN the last write and the end go out together
        pair.client.send(whole.request.wire, socket.MSG_MORE)
        pair.client.shutdown(socket.SHUT_WR)
        assert read_end(pair.server) == whole.request.wire
        pair.server.send(whole.answer.wire, socket.MSG_MORE)
        pair.server.shutdown(socket.SHUT_WR)
        assert read_end(pair.client) == whole.answer.wire
        pair.close()

        # THEN
        assert_exact(exact, port_of(listener), [talk], [port])


def test_a_port_that_is_used_again_at_once(exact: Observer) -> None:
    # GIVEN connections with the same two addresses and ports, one after another
    talks = [
        conversation(exchange(b"GET", b"/%s" % name), end=CLIENT_RESETS)
        for name in (b"a", b"b", b"c")
    ]
    with listening() as listener:
        port = 0

        # WHEN they are played
        for talk in talks:
            client = socket.socket()
            client.settimeout(5)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(("127.0.0.1", port))
            client.connect(("127.0.0.1", port_of(listener)))
            port = client.getsockname()[1]
            play(accept(listener, client), talk)

        # THEN each is counted
        assert_counted(exact, port_of(listener), talks)


# --- families, ways to write ------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_address_family_is_counted_exactly(exact: Observer, family: Family) -> None:
    # GIVEN / WHEN / THEN
    check(exact, [SPLIT_ME, replace(SPLIT_ME, depth=4)], family)


def test_both_sides_are_attributed_to_this_process(exact: Observer) -> None:
    # GIVEN a conversation of which both ends are here
    with listening() as listener:
        # WHEN
        play(connect(listener), conversation(exchange()))

        # THEN
        seen = exact.seen(port_of(listener), 2, 2)
    assert seen.pids == {os.getpid()}
    assert {record.pid for record in seen.records} == {os.getpid()}


def test_answers_by_sendfile(exact: Observer, tmp_path) -> None:
    # GIVEN a server that sends head and body of its answer from files and pages
    file = tmp_path / "body"
    file.write_bytes(BAIT * 10_000)
    size = file.stat().st_size
    talk = conversation(
        exchange(answer_body=Body(file.read_bytes(), "length")), exchange(b"GET", b"/after")
    )
    first, after = talk.exchanges
    with listening() as listener, file.open("rb") as body:
        pair = connect(listener)
        port = pair.client_port

        # WHEN
        transfer(pair.client, pair.server, first.request.wire)
        pair.server.settimeout(20)
        got: list[int] = []
        drain = threading.Thread(target=lambda: got.append(receive(pair.client, len(first.answer))))
        drain.start()
        pair.server.send(first.answer.wire[: first.answer.head], socket.MSG_MORE)
        sent = 0
        while sent < size:
            sent += os.sendfile(pair.server.fileno(), body.fileno(), sent, size - sent)
        drain.join()
        pair.server.setblocking(False)
        run(pair, [Write(UP, after.request.wire), Write(DOWN, after.answer.wire)])
        finish(pair, CLIENT_CLOSES)

        # THEN
        assert got == [len(first.answer)]
        assert_exact(exact, port_of(listener), [talk], [port])


def receive(end: socket.socket, size: int) -> int:
    """Reads ``size`` bytes."""
    end.settimeout(20)
    got = 0
    while got < size:
        got += len(end.recv(1 << 16))
    end.setblocking(False)
    return got


def test_heads_and_bodies_in_several_pages_of_one_write(exact: Observer) -> None:
    # GIVEN heads written by writev from many small buffers
    talk = conversation(
        exchange(b"POST", request_body=Body(BAIT, "chunked", chunks=(3,) * 9)), exchange()
    )
    with listening() as listener:
        pair = connect(listener)
        port = pair.client_port

        # WHEN
        for step in steps(talk):
            assert isinstance(step, Write)
            parts = [step.data[at : at + 5] for at in range(0, len(step.data), 5)]
            assert pair.source(step.direction).sendmsg(parts) == len(step.data)
            receive(pair.sink(step.direction), len(step.data))
        finish(pair, CLIENT_CLOSES)

        # THEN
        assert_exact(exact, port_of(listener), [talk], [port])


def test_a_request_that_comes_with_the_last_segment_of_the_handshake(exact: Observer) -> None:
    # GIVEN clients that hold back the last ACK of the handshake until they have something to say
    talk = conversation(exchange(b"GET", b"/with-ack"), exchange(b"GET", b"/after"))
    with listening() as listener:
        ports = []

        # WHEN
        for _ in range(10):
            client = socket.socket()
            client.settimeout(5)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
            client.connect(("127.0.0.1", port_of(listener)))
            client.send(talk.exchanges[0].request.wire)
            pair = accept(listener, client)
            ports.append(pair.client_port)
            pair.server.settimeout(5)
            request = pair.server.recv(65536)
            assert request == talk.exchanges[0].request.wire
            pair.server.setblocking(False)
            first, second = talk.exchanges
            run(
                pair,
                [
                    Write(DOWN, first.answer.wire),
                    Write(UP, second.request.wire),
                    Write(DOWN, second.answer.wire),
                ],
            )
            finish(pair, CLIENT_CLOSES)

        # THEN
        assert_exact(exact, port_of(listener), [talk] * 10, ports)


def test_a_server_that_wakes_only_when_data_have_come(exact: Observer) -> None:
    # GIVEN a listener with TCP_DEFER_ACCEPT, as nginx has with `deferred`
    talk = conversation(exchange(b"GET", b"/deferred"), exchange(b"GET", b"/after"))
    with listening() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        ports = []

        # WHEN
        for _ in range(10):
            client = socket.create_connection(("127.0.0.1", port_of(listener)), 5)
            first, second = talk.exchanges
            client.send(first.request.wire)
            pair = accept(listener, client)
            ports.append(pair.client_port)
            pair.server.settimeout(5)
            assert pair.server.recv(65536) == first.request.wire
            pair.server.setblocking(False)
            run(
                pair,
                [
                    Write(DOWN, first.answer.wire),
                    Write(UP, second.request.wire),
                    Write(DOWN, second.answer.wire),
                ],
            )
            finish(pair, CLIENT_CLOSES)

        # THEN
        assert_exact(exact, port_of(listener), [talk] * 10, ports)


TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21  # include/uapi/linux/tcp.h
SEND_QUEUE, REPAIR_OFF = 2, -1


def test_sequence_numbers_that_wrap(exact: Observer) -> None:
    # GIVEN connections whose sequence numbers pass 2^32 at each place of a pipeline in turn
    talk = conversation(
        *(exchange(b"POST", b"/w", request_body=Body(b"abc", "chunked")) for _ in range(3)),
        depth=3,
    )
    talk = replace(talk, cuts_up=frozenset(range(40, len(talk.up), 40)))
    places = range(0, len(talk.up) + 2, 3)
    with listening() as listener:
        ports = []

        # WHEN they are played
        for place in places:
            client = socket.socket()
            client.settimeout(5)
            client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, SEND_QUEUE)
            first = struct.pack("I", 2**32 - 1 - place)
            client.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, first)
            client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF)
            client.connect(("127.0.0.1", port_of(listener)))
            pair = accept(listener, client)
            ports.append(pair.client_port)
            play(pair, talk)

        # THEN
        assert_exact(exact, port_of(listener), [talk] * len(places), ports)


IPV6_DSTOPTS = 59  # include/uapi/linux/in6.h
IP_HEADERS = {
    "IPv4 options": (IPV4, socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x01\x01\x00"),
    "IPv4 options of 40 bytes": (IPV4, socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01" * 39 + b"\0"),
    "IPv6 extension header": (
        IPV6, socket.IPPROTO_IPV6, IPV6_DSTOPTS, b"\x00\x00\x01\x04\x00\x00\x00\x00",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IP_HEADERS)
def test_ip_headers_with_options(exact: Observer, name: str) -> None:
    # GIVEN ends whose IP headers are longer than usual
    family, level, option, value = IP_HEADERS[name]
    with listening(family) as listener:
        listener.setsockopt(level, option, value)
        client = socket.socket(family.connect[0])
        client.settimeout(5)
        client.setsockopt(level, option, value)
        client.connect((family.connect[1], port_of(listener)))
        pair = accept(listener, client)
        pair.server.setsockopt(level, option, value)
        port = pair.client_port

        # WHEN
        play(pair, SPLIT_ME)

        # THEN
        assert_exact(exact, port_of(listener), [SPLIT_ME], [port])


@pytest.mark.parametrize("seconds", [0.25])
def test_a_reader_that_is_slow(exact: Observer, seconds: float) -> None:
    # GIVEN a client with a small buffer that reads late, so that the window closes
    talk = conversation(
        exchange(answer_body=Body(BAIT * 10_000, "chunked", chunks=(1000,) * 300)),
        exchange(b"GET", b"/after"),
    )
    first, after = talk.exchanges
    with listening() as listener:
        client = socket.socket()
        client.settimeout(5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port_of(listener)))
        pair = accept(listener, client)
        port = pair.client_port

        # WHEN
        transfer(pair.client, pair.server, first.request.wire)
        pair.server.settimeout(20)
        writer = threading.Thread(target=pair.server.sendall, args=(first.answer.wire,))
        writer.start()
        time.sleep(seconds)
        assert receive(pair.client, len(first.answer)) == len(first.answer)
        writer.join()
        pair.server.setblocking(False)
        run(pair, [Write(UP, after.request.wire), Write(DOWN, after.answer.wire)])
        finish(pair, CLIENT_CLOSES)

        # THEN
        assert_exact(exact, port_of(listener), [talk], [port])


def test_mptcp_sockets_are_counted_exactly(exact: Observer) -> None:
    # GIVEN sockets as Go opens them since 1.24
    try:
        probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
        probe.close()
    except OSError as error:
        pytest.skip(f"this kernel has no MPTCP: {error}")
    talk = conversation(exchange(), exchange(b"GET", b"/after"))
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    with listener:
        listener.settimeout(5)
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)

        # WHEN plain TCP clients talk to them
        ports = []
        for _ in range(3):
            client = socket.create_connection(("127.0.0.1", port_of(listener)), 5)
            pair = accept(listener, client)
            ports.append(pair.client_port)
            play(pair, talk)

        # THEN
        assert_exact(exact, port_of(listener), [talk] * 3, ports)


# --- what is no HTTP --------------------------------------------------------------------------

CLIENT_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(range(256)) * 2
NOT_HTTP = {
    "TLS": ((UP, CLIENT_HELLO), (DOWN, b"\x16\x03\x03\x00\x7a\x02" + bytes(300)), (UP, BAIT)),
    "Redis": ((UP, b"*1\r\n$4\r\nPING\r\n"), (DOWN, b"+PONG\r\n"), (UP, b"PING\r\n")),
    "Redis inline": ((UP, b"GET key\r\n"), (DOWN, b"$-1\r\n"), (UP, b"GET / HTTP\r\n")),
    "SSH": ((DOWN, b"SSH-2.0-OpenSSH_9.2\r\n"), (UP, b"SSH-2.0-x\r\n"), (DOWN, bytes(800))),
    "SMTP": ((DOWN, b"220 mail ESMTP\r\n"), (UP, b"HELO a\r\n"), (DOWN, b"250 ok\r\n")),
    "HTTP/2": ((UP, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)), (DOWN, bytes(9))),
    "HTTP/0.9": ((UP, b"GET /\r\n"), (DOWN, b"<html>")),
    "almost a version": ((UP, b"GET / HTTP/11\r\n\r\n"), (DOWN, b"HTTP/1.1 400 Bad\r\n\r\n")),
    "RTSP": ((UP, b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"), (DOWN, b"RTSP/1.0 200 OK\r\n\r\n")),
    "ICY": ((UP, b"SOURCE /mount ICE/1.0\r\n\r\n"), (DOWN, b"OK\r\n")),
    "zeros": ((UP, bytes(1000)), (DOWN, bytes(1000))),
    "empty lines": ((UP, b"\r\n\r\n\r\n"), (DOWN, b"\r\n")),
    "memcached": ((UP, b"get a\r\n"), (DOWN, b"END\r\n")),
    "PostgreSQL": ((UP, b"\x00\x00\x00\x08\x04\xd2\x16\x2f"), (DOWN, b"N"), (UP, b"\0\3")),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_HTTP)
@pytest.mark.parametrize("split", [False, True])
def test_other_protocols_give_no_rows(exact: Observer, name: str, split: bool) -> None:
    # GIVEN bytes of another protocol, whole or byte by byte
    writes = [Write(direction, data) for direction, data in NOT_HTTP[name]]
    if split:
        writes = [
            Write(write.direction, write.data[at : at + 1])
            for write in writes
            for at in range(min(len(write.data), 60))
        ]
    with listening() as listener:
        # WHEN
        pair = connect(listener)
        run(pair, writes)
        finish(pair, CLIENT_CLOSES)

        # THEN
        seen = exact.seen(port_of(listener), 0)
        exact.forget(port_of(listener))
    assert seen.count() == 0 and not seen.records


@given(
    writes=st.lists(
        st.tuples(st.sampled_from((UP, DOWN)), st.binary(min_size=1, max_size=80)),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=60)
def test_random_bytes_give_no_rows(exact: Observer, writes: list[tuple[str, bytes]]) -> None:
    # GIVEN random bytes / WHEN
    with listening() as listener:
        pair = connect(listener)
        run(pair, [Write(direction, data) for direction, data in writes])
        finish(pair, CLIENT_CLOSES)

        # THEN
        seen = exact.seen(port_of(listener), 0)
        exact.forget(port_of(listener))
    assert seen.count() == 0 and not seen.records


def test_records_hold_nothing_of_earlier_requests(watch: Observer) -> None:
    # GIVEN a request with long texts, and one with short ones after it on the same connection
    long = exchange(b"GET", b"/secret" * 20, host=b"h" * 60, request_lines=(b"User-Agent: agent",))
    short = exchange(b"GET", b"/s", host=b"x", request_lines=(b"User-Agent: a",))
    found = []
    with listening() as listener:
        port = port_of(listener)
        watch.read()

        # WHEN
        play(connect(listener), conversation(long, short))
        deadline = time.monotonic() + 3
        while len(found) < 4 and time.monotonic() < deadline:
            for batch in watch.watch.read():
                if batch.kind == "request":
                    found += [
                        (bytes(row["path"]), bytes(row["host"]), bytes(row["agent"]))
                        for row in batch.rows
                        if port in (int(row["local_port"]), int(row["peer_port"]))
                    ]

    # THEN the second one's texts are its own
    assert found.count((b"/s", b"x", b"a")) == 2


def test_the_log_has_trace_ids(watch: Observer) -> None:
    # GIVEN a request with a W3C trace context, and two with broken ones
    good = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    talk = conversation(
        exchange(request_lines=(b"TraceParent:  " + good,)),
        exchange(request_lines=(b"traceparent: " + good.replace(b"a", b"g"),)),
        exchange(request_lines=(b"traceparent: " + good[:-1],)),
    )
    found = []
    with listening() as listener:
        port = port_of(listener)
        watch.read()

        # WHEN
        play(connect(listener), talk)
        deadline = time.monotonic() + 3
        while len(found) < 6 and time.monotonic() < deadline:
            for batch in watch.watch.read():
                if batch.kind == "request":
                    found += [
                        (bytes(row["trace_id"]).hex(), bytes(row["span_id"]).hex())
                        for row in batch.rows
                        if port in (int(row["local_port"]), int(row["peer_port"]))
                    ]

    # THEN the good one is there on both sides, and nothing is made of the broken ones
    nothing = ("0" * 32, "0" * 16)
    assert (
        sorted(found)
        == [nothing] * 4 + [("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")] * 2
    )


def test_nothing_is_counted_twice_by_two_watches(exact: Observer) -> None:
    # GIVEN a second watch
    from podscope.pipeline import watch as open_watch

    talks = [SPLIT_ME, replace(SPLIT_ME, depth=4)]
    with open_watch(kinds=("http",), interval=1.0, routes=True) as opened, listening() as listener:
        # WHEN
        ports = play_all(listener, talks)

        # THEN both say the same
        assert_counted(Observer(opened), port_of(listener), talks)
        assert_exact(exact, port_of(listener), talks, ports)


def test_expected_outcomes_are_not_empty() -> None:
    # GIVEN the conversations above / WHEN / THEN they say something (the tests can fail)
    assert all(outcomes(talk) for talk in FRAMINGS.values())
