# SPDX-License-Identifier: Apache-2.0
"""The tests of the exactness tests: are the conversations legal, is their truth the truth?"""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import event
from hypothesis import given
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[1]))

from conversations import oracle
from conversations import peers
from conversations import strategies
from conversations.messages import Body
from conversations.messages import conversation
from conversations.messages import exchange
from conversations.model import CLIENT_CLOSES
from conversations.model import CLIENT_RESETS
from conversations.model import DOWN
from conversations.model import SERVER_CLOSES
from conversations.model import UP
from conversations.model import Conversation
from conversations.routes import route
from conversations.schedule import HalfClose
from conversations.schedule import Write
from conversations.schedule import steps
from conversations.truth import Sums
from conversations.truth import outcomes
from conversations.truth import tally

bounded = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TCP_INFO_DATA_SEGS_OUT = 156  # offset in struct tcp_info (include/uapi/linux/tcp.h)


def data_segments_sent(end: socket.socket) -> int:
    info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("I", info, TCP_INFO_DATA_SEGS_OUT)[0])


@bounded
@given(strategies.conversations(stops=False))
def test_an_independent_parser_finds_the_same_requests(talk: Conversation) -> None:
    # GIVEN the bytes of the client
    stream = talk.up + b"".join(data for direction, data in talk.tunnel if direction == UP)
    expected = outcomes(talk)

    # WHEN h11 reads them one request at a time
    found = []
    for _ in talk.exchanges:
        read = oracle.read_request(stream)
        assert read is not None, stream[:200]
        stream = stream[read.consumed :]
        found.append(read)

    # THEN it finds what the conversation was written to be, and the tunnel is left over
    assert [(read.target, read.version, read.content) for read in found] == [
        (outcome.target, outcome.version, outcome.request_bytes) for outcome in expected
    ]
    assert [
        read.method.decode() if outcome.method != "_OTHER" else "_OTHER"
        for read, outcome in zip(found, expected, strict=True)
    ] == [outcome.method for outcome in expected]
    assert stream == b"".join(data for direction, data in talk.tunnel if direction == UP)


@bounded
@given(strategies.conversations(stops=False))
def test_an_independent_parser_finds_the_same_answers(talk: Conversation) -> None:
    # GIVEN the bytes of the server, and the requests that they answer
    opaque = b"".join(data for direction, data in talk.tunnel if direction == DOWN)
    stream = talk.down + opaque
    expected = outcomes(talk)

    # WHEN h11 reads them one answer at a time
    found = []
    for part in talk.exchanges:
        request = oracle.read_request(part.request.wire)
        assert request is not None
        read = oracle.read_answer(stream, request, ends=part.until_close)
        assert read is not None, stream[:200]
        stream = stream[read.consumed :]
        found.append(read)
        event(f"framing until close: {part.until_close}")

    # THEN it finds what the conversation was written to be, and the tunnel is left over
    assert [(read.status, read.content) for read in found] == [
        (outcome.status, outcome.answer_bytes) for outcome in expected
    ]
    assert [len(read.interims) for read in found] == [len(part.interims) for part in talk.exchanges]
    assert stream == opaque


@bounded
@given(strategies.conversations())
def test_a_schedule_keeps_the_bytes_and_their_order(talk: Conversation) -> None:
    # GIVEN a conversation
    opaque = {
        direction: b"".join(data for way, data in talk.tunnel if way == direction)
        for direction in (UP, DOWN)
    }

    # WHEN it is laid out
    script = steps(talk)

    # THEN each direction has its bytes in order, and no write is empty
    written = {UP: b"", DOWN: b""}
    for step in script:
        if isinstance(step, Write):
            assert step.data
            written[step.direction] += step.data
    if talk.stop is None:
        assert written == {UP: talk.up + opaque[UP], DOWN: talk.down + opaque[DOWN]}
    else:
        assert talk.up.startswith(written[UP]) and talk.down.startswith(written[DOWN])
        assert sum(map(len, written.values())) == talk.stop


@settings(bounded, max_examples=60)
@given(strategies.conversations())
def test_peers_carry_a_conversation_and_every_write_is_a_segment(talk: Conversation) -> None:
    # GIVEN a connection
    script = steps(talk)
    with peers.listening() as listener:
        pair = peers.connect(listener)

        # WHEN a conversation is played on it
        heard = peers.run(pair, script)
        segments = {UP: data_segments_sent(pair.client), DOWN: data_segments_sent(pair.server)}
        peers.finish(pair, talk.end)

    # THEN each end has read what the other wrote, in as many segments as there were writes
    for direction in (UP, DOWN):
        writes = [
            step for step in script if isinstance(step, Write) and step.direction == direction
        ]
        assert heard[direction] == b"".join(step.data for step in writes)
        assert segments[direction] == len(writes)


@pytest.mark.parametrize("family", peers.FAMILIES, ids=lambda family: family.name)
def test_peers_connect_by_each_address_family(family: peers.Family) -> None:
    # GIVEN a listener
    talk = conversation(exchange(), exchange(b"POST", request_body=Body(b"abc", "length")))
    with peers.listening(family) as listener:
        # WHEN a conversation is played to it
        heard = peers.play(peers.connect(listener, family), talk)

    # THEN all bytes came
    assert heard == {UP: talk.up, DOWN: talk.down}


def test_megabytes_pass_without_a_deadlock() -> None:
    # GIVEN bodies that are larger than any socket buffer
    data = b"GET / HTTP/1.1\r\n\r\n" * 400_000
    talk = conversation(
        exchange(
            b"POST",
            request_body=Body(data, "length"),
            answer_body=Body(data, "chunked", chunks=(65536,) * 100),
        )
    )
    with peers.listening() as listener:
        # WHEN they are played
        heard = peers.play(peers.connect(listener), talk)

    # THEN they came whole
    assert len(heard[UP]) == len(talk.up) and len(heard[DOWN]) == len(talk.down)


def test_a_request_that_waits_is_not_sent_before_100_continue() -> None:
    # GIVEN a request that waits
    talk = conversation(
        exchange(
            b"PUT",
            request_lines=(b"Expect: 100-continue",),
            request_body=Body(b"body", "length"),
            interims=((b"HTTP/1.1 100 Continue\r\n\r\n", True),),
            waits=True,
        )
    )

    # WHEN it is laid out
    script = [step for step in steps(talk) if isinstance(step, Write)]

    # THEN head, 100, body, answer
    assert [step.direction for step in script] == [UP, DOWN, UP, DOWN]
    assert script[1].data == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert script[2].data == b"body"


def test_an_early_answer_goes_before_the_end_of_the_request() -> None:
    # GIVEN an answer after two of five bytes, and a request after it
    talk = conversation(
        exchange(b"POST", request_body=Body(b"hello", "length"), status=403, early=2),
        exchange(b"GET", b"/next"),
    )

    # WHEN it is laid out
    script = [step for step in steps(talk) if isinstance(step, Write)]

    # THEN the answer goes between the parts of the body
    assert [step.direction for step in script] == [UP, DOWN, UP, DOWN]
    assert script[0].data.endswith(b"he")
    assert script[2].data.startswith(b"lloGET /next")


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_requests_are_in_flight_than_the_depth(depth: int) -> None:
    # GIVEN ten exchanges
    talk = conversation(*(exchange(target=b"/%d" % n) for n in range(10)), depth=depth)

    # WHEN they are laid out
    in_flight, most = 0, 0
    for step in steps(talk):
        assert isinstance(step, Write)
        in_flight += step.data.count(b"GET /") - step.data.count(b"HTTP/1.1 200")
        most = max(most, in_flight)

    # THEN the pipeline is filled and never overfilled
    assert most == depth


def test_half_close_comes_after_the_last_request_and_before_its_answer() -> None:
    # GIVEN a client that says that it is done
    talk = conversation(exchange(), half_close=True)

    # WHEN it is laid out
    script = steps(talk)

    # THEN the answer comes after the end of the requests
    assert [type(step) for step in script] == [Write, HalfClose, Write]


BROKEN = conversation(
    exchange(b"POST", b"/a", 200, request_body=Body(b"12345", "length"),
             answer_body=Body(b"abcdef", "length")),
)  # fmt: skip
REQUEST = len(BROKEN.exchanges[0].request)
HEAD = BROKEN.exchanges[0].answer.head


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (0, None),
        (REQUEST - 1, None),
        (REQUEST, (0, "E", 5, 0)),
        (REQUEST + HEAD - 1, (0, "E", 5, 0)),
        (REQUEST + HEAD, (200, "E", 5, 0)),
        (REQUEST + HEAD + 3, (200, "E", 5, 3)),
        (REQUEST + HEAD + 6, (200, "", 5, 6)),
    ],
)
@pytest.mark.parametrize(
    ("end", "error"),
    [(CLIENT_CLOSES, "closed"), (SERVER_CLOSES, "closed"), (CLIENT_RESETS, "reset")],
)
def test_truth_of_a_connection_that_ends_early(
    stop: int, expected: tuple[int, str, int, int] | None, end: str, error: str
) -> None:
    # GIVEN an exchange that is cut off
    talk = replace(BROKEN, stop=stop, end=end)

    # WHEN its truth is worked out
    found = outcomes(talk)

    # THEN only a whole request or an answered one counts, under what was seen of its answer
    wanted = []
    if expected is not None:
        wanted.append((expected[0], expected[1].replace("E", error), *expected[2:]))
    assert [
        (outcome.status, outcome.error, outcome.request_bytes, outcome.answer_bytes)
        for outcome in found
    ] == (
        [] if expected is None else [(expected[0], expected[1].replace("E", error), *expected[2:])]
    )


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/", "/"),
        (b"/a/b?c=/d", "/a/b"),
        (b"*", "*"),
        (b"/users/12", "/users/*"),
        (b"/users/12/", "/users/*/"),
        (b"/deadbee1", "/*"),
        (b"/deadbeef", "/deadbeef"),
        (b"/deadbe1", "/deadbe1"),
        (b"/550e8400-e29b-41d4-a716-446655440000/x", "/*/x"),
        (b"/abcdefgh12345678", "/*"),
        (b"/abcdefgh1234567", "/abcdefgh1234567"),
        (b"/abcdefghijklmnopq", "/abcdefghijklmnopq"),
        (b"http://h:80/a/1?x", "/a/*"),
        (b"http://h", "/"),
        (b"http://h?x=/1", "/"),
        (b"/" + b"a" * 200, "/" + "a" * 127),
    ],
)
def test_route_of_a_target(target: bytes, expected: str) -> None:
    # GIVEN a target / WHEN its route is asked for / THEN ids and queries are gone
    assert route(target) == expected


def test_tally_adds_up_by_series() -> None:
    # GIVEN two equal exchanges and another
    body = Body(b"123", "chunked", chunks=(1, 1))
    talk = conversation(
        exchange(b"PUT", b"/x/1", 201, request_body=body, answer_body=Body(b"ab", "length")),
        exchange(b"PUT", b"/x/2", 201, request_body=body, answer_body=Body(b"ab", "length")),
        exchange(b"PURGE", b"/x", 204, answer_body=Body()),
    )

    # WHEN they are added up
    sums = tally(outcomes(talk))

    # THEN content counts and framing does not
    assert sums == {
        ("PUT", 201, "1.1", "/x/*", ""): Sums(2, 6, 4),
        ("_OTHER", 204, "1.1", "/x", ""): Sums(1, 0, 0),
    }
