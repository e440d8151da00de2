# SPDX-License-Identifier: Apache-2.0
"""What can't be counted is counted by reason, and no row is ever wrong."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conversations.links import inside
from conversations.links import veth
from conversations.messages import NO_BODY
from conversations.messages import Body
from conversations.messages import conversation
from conversations.messages import exchange
from conversations.model import CLIENT_CLOSES
from conversations.model import DOWN
from conversations.model import UP
from conversations.model import Conversation
from conversations.model import Exchange
from conversations.observed import Observer
from conversations.observed import Seen
from conversations.observed import assert_exact
from conversations.peers import Pair
from conversations.peers import connect
from conversations.peers import finish
from conversations.peers import listening
from conversations.peers import play
from conversations.peers import play_all
from conversations.peers import port_of
from conversations.peers import run
from conversations.peers import transfer
from conversations.schedule import Write
from conversations.schedule import steps
from conversations.truth import Sums
from conversations.truth import outcomes
from conversations.truth import tally
from podscope.kernel.probes import has_loop

BAIT = b"GET /bait HTTP/1.1\r\nHost: bait\r\n\r\n"


Observing = Callable[..., AbstractContextManager[Observer]]


@pytest.fixture
def observing(own_cgroup: str) -> Observing:
    """Opens a watch that begins when the test says so, with settings of its own."""
    from podscope.pipeline import watch

    @contextmanager
    def start(**settings: Any) -> Iterator[Observer]:
        settings = {"kinds": ("http",), "interval": 1.0, "cgroup": own_cgroup} | settings
        with watch(**settings) as opened:
            yield Observer(opened)

    return start


class Losses:
    """What is lost from now on."""

    def __init__(self, observer: Observer) -> None:
        observer.read()
        self._observer = observer
        self._before = observer.lost()

    def now(self) -> dict[str, int]:
        """Count by reason, only those that moved."""
        self._observer.read()
        after = self._observer.lost()
        moved = {reason: n - self._before.get(reason, 0) for reason, n in after.items()}
        return {reason: n for reason, n in moved.items() if n}

    def total(self) -> int:
        return sum(self.now().values())


def assert_no_wrong_row(seen: Seen, talk: Conversation) -> None:
    """Every series is one of the conversation's, with no more exchanges than were sent."""
    expected = tally(outcomes(talk))
    for side, sums in seen.sums.items():
        for series, one in sums.items():
            assert series in expected, f"a row that is wrong on the {side} side"
            assert one.count <= expected[series].count, f"counted twice on the {side} side"


def say(pair: Pair, *parts: Exchange) -> None:
    """Exchanges one after another on an open connection."""
    run(pair, steps(conversation(*parts)))


def paths(seen: Seen, side: str) -> dict[str, int]:
    """Exchanges by route."""
    found: dict[str, int] = {}
    for (_, _, _, text, _), one in seen.sums[side].items():
        found[text] = found.get(text, 0) + one.count
    return found


# --- joined -----------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_connection_that_was_idle_at_the_start_is_counted_or_lost(
    observing: Observing, before: int
) -> None:
    # GIVEN an open connection on which nothing is under way
    parts = [exchange(b"GET", b"/after/%s" % name) for name in (b"a", b"b", b"c", b"d", b"e")]
    talk = conversation(*parts)
    with listening() as listener:
        pair = connect(listener)
        say(pair, *(exchange(b"GET", b"/before"),) * before)

        # WHEN podscope starts, and it is used
        with observing() as observer:
            losses = Losses(observer)
            say(pair, *parts)
            finish(pair, CLIENT_CLOSES)
            seen = observer.seen(port_of(listener), 2 * len(parts) - 2)

            # THEN what was not counted is lost, by its reason, on each side
            assert_no_wrong_row(seen, talk)
            assert set(losses.now()) <= {"joined"}
            assert seen.count() + losses.now().get("joined", 0) == 2 * len(parts)
            # AND a boundary is proved soon
            assert paths(seen, "server").get("/after/e") == 1
            assert paths(seen, "client").get("/after/e") == 1


BIG = exchange(
    b"POST",
    b"/up",
    201,
    request_body=Body(BAIT * 60, "length"),
    answer_body=Body(BAIT * 60 + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "length"),
)
CHUNKED = exchange(
    b"POST",
    b"/up",
    201,
    request_body=Body(BAIT * 60, "chunked", chunks=(len(BAIT),) * 60),
    answer_body=Body(BAIT * 60, "chunked", chunks=(len(BAIT),) * 60),
)


@pytest.mark.parametrize("big", [BIG, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("direction", [UP, DOWN])
@pytest.mark.parametrize("more", [0, 3])
def test_a_connection_joined_inside_a_body_never_gives_a_wrong_row(
    observing: Observing, big: Exchange, direction: str, more: int
) -> None:
    # GIVEN a connection on which a body is under way that is full of requests and answers
    rest = [exchange(b"GET", b"/after/%s" % (b"a", b"b", b"c")[n]) for n in range(more)]
    bodies_start = big.request.head if direction == UP else big.answer.head
    cuts = frozenset(
        bodies_start + n * len(BAIT) + start for n in range(60) for start in (0, len(b"1e\r\n"))
    )
    talk = conversation(big, *rest)
    talk = replace(talk, cuts_up=cuts) if direction == UP else replace(talk, cuts_down=cuts)
    script = [step for step in steps(talk) if isinstance(step, Write)]
    begun = 20 if direction == UP else 21
    with listening() as listener:
        pair = connect(listener)
        run(pair, script[:begun])

        # WHEN podscope starts in its midst
        with observing() as observer:
            losses = Losses(observer)
            run(pair, script[begun:])
            finish(pair, CLIENT_CLOSES)
            seen = observer.seen(port_of(listener), 2 * more)

            # THEN all that was sent is counted or lost, and nothing that was not sent is counted
            assert_no_wrong_row(seen, talk)
            assert set(losses.now()) <= {"joined"}
            lost = losses.now().get("joined", 0)
            assert 2 * more <= seen.count() + lost <= 2 * (more + 1)


def test_the_rest_of_a_refused_body_is_no_request(observing: Observing) -> None:
    # GIVEN an upload that was refused early, by an answer that podscope sees from its head
    big = exchange(b"POST", b"/up", 413, request_body=Body(b"x" * 50 + BAIT, "length"), early=10)
    real = exchange(b"GET", b"/real")
    talk = conversation(big, real, real)
    with listening() as listener:
        pair = connect(listener)
        transfer(pair.client, pair.server, big.request.wire[: big.needed])

        # WHEN podscope starts, and the rest of the body looks like a request
        with observing() as observer:
            transfer(pair.server, pair.client, big.answer.wire)
            transfer(pair.client, pair.server, b"x" * 40)
            transfer(pair.client, pair.server, BAIT)
            say(pair, real, real)
            finish(pair, CLIENT_CLOSES)
            seen = observer.seen(port_of(listener), 0)
            time.sleep(0.05)
            observer.read()

            # THEN it gives no row
            assert_no_wrong_row(seen, talk)


def test_a_tunnel_that_was_joined_gives_no_rows(observing: Observing) -> None:
    # GIVEN a connection that became a tunnel before the start
    tunnel = exchange(b"CONNECT", b"db:1", 200, host=b"db:1", answer_body=NO_BODY)
    with listening() as listener:
        pair = connect(listener)
        say(pair, tunnel)

        # WHEN podscope starts, and other protocols speak through it
        with observing() as observer:
            for _ in range(5):
                transfer(pair.client, pair.server, b"\x00\x01\x02ping" * 10)
                transfer(pair.server, pair.client, b"\x00\x01\x02pong" * 10)
            finish(pair, CLIENT_CLOSES)
            seen = observer.seen(port_of(listener), 0)

    # THEN
    assert seen.count() == 0


def test_other_protocols_that_were_joined_lose_nothing(observing: Observing) -> None:
    # GIVEN connections of other protocols
    with listening() as listener:
        pair = connect(listener)
        transfer(pair.client, pair.server, b"PING\r\n")

        # WHEN podscope starts, and they go on
        with observing() as observer:
            losses = Losses(observer)
            for _ in range(5):
                transfer(pair.server, pair.client, b"+PONG\r\n")
                transfer(pair.client, pair.server, b"PING\r\n")
            finish(pair, CLIENT_CLOSES)
            seen = observer.seen(port_of(listener), 0)

            # THEN
            assert seen.count() == 0
            assert losses.now() == {}


def test_new_connections_are_exact_while_old_ones_are_lost(observing: Observing) -> None:
    # GIVEN a connection in mid-message
    talk = conversation(exchange(b"GET", b"/new"), exchange(b"GET", b"/new"))
    with listening() as listener:
        old = connect(listener)
        run(old, [Write(UP, BIG.request.wire[:100])])
        with observing() as observer:
            # WHEN it goes on while new ones come
            play(connect(listener), talk)
            run(old, [Write(UP, BIG.request.wire[100:]), Write(DOWN, BIG.answer.wire)])
            play(connect(listener), talk)
            finish(old, CLIENT_CLOSES)

            # THEN the new ones are all there
            seen = observer.seen(port_of(listener), 8)
    assert paths(seen, "server") == {"/new": 4}
    assert paths(seen, "client") == {"/new": 4}


# --- malformed --------------------------------------------------------------------------------

GOOD = exchange(b"GET", b"/good")
MALFORMED_REQUESTS = {
    "lengths that differ": b"POST /x HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "a list of lengths that differ": b"POST /x HTTP/1.1\r\nContent-Length: 3, 4\r\n\r\nabc",
    "a length that is no number": b"POST /x HTTP/1.1\r\nContent-Length: 3x\r\n\r\nabc",
    "a negative length": b"POST /x HTTP/1.1\r\nContent-Length: -3\r\n\r\nabc",
    "an empty length": b"POST /x HTTP/1.1\r\nContent-Length:\r\n\r\nabc",
    "a length over 64 bits": b"POST /x HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "a coding that is not chunked": b"POST /x HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nabc",
    "chunked before another coding": (
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    ),
    "white space before the colon": b"POST /x HTTP/1.1\r\nContent-Length : 3\r\n\r\nabc",
    "a chunk size that is no number": (
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n"
    ),
    "a chunk that is longer than it says": (
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n"
    ),
    "a chunk size over 64 bits": (
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n"
    ),
    "no request line": b"\x16\x03\x01\x00\x00",
}


@pytest.mark.parametrize("name", MALFORMED_REQUESTS)
def test_malformed_requests_are_lost_and_nothing_after_them_is_guessed(
    watch: Observer, name: str
) -> None:
    # GIVEN a connection on which a good exchange went over
    losses = Losses(watch)
    bad = MALFORMED_REQUESTS[name]
    with listening() as listener:
        pair = connect(listener)
        say(pair, GOOD)

        # WHEN a malformed request comes, and a request that nobody should trust, and one answer
        transfer(pair.client, pair.server, bad + BAIT)
        transfer(pair.server, pair.client, b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n")
        finish(pair, CLIENT_CLOSES)

        # THEN the good one is counted, at most the refusal of the malformed one beside it, never
        # what came behind it; and each side has lost something as malformed
        seen = watch.seen(port_of(listener), 2)
    for side in ("server", "client"):
        found = dict(seen.sums[side])
        assert found.pop(("GET", 200, "1.1", "/good", "")) == Sums(1, 0, 0)
        assert [(series[1], series[3], one.count) for series, one in found.items()] in (
            [],
            [(400, "/x", 1)],
        )
    assert losses.now().get("malformed", 0) >= 2
    assert set(losses.now()) <= {"malformed", "unrequested"}


MALFORMED_ANSWERS = {
    "no status line": b"oops\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "lengths that differ": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a chunk size that is no number": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("name", MALFORMED_ANSWERS)
def test_malformed_answers_are_lost_and_nothing_after_them_is_guessed(
    watch: Observer, name: str
) -> None:
    # GIVEN a connection on which a good exchange went over
    losses = Losses(watch)
    with listening() as listener:
        pair = connect(listener)
        say(pair, GOOD)

        # WHEN a malformed answer comes
        transfer(pair.client, pair.server, BAIT)
        transfer(pair.server, pair.client, MALFORMED_ANSWERS[name])
        finish(pair, CLIENT_CLOSES)

        # THEN the good one is counted, and each side has lost something as malformed
        seen = watch.seen(port_of(listener), 2)
    assert paths(seen, "server").pop("/good") == 1
    assert paths(seen, "client").pop("/good") == 1
    assert sum(one.count for one in seen.sums["server"].values()) <= 2
    assert losses.now().get("malformed", 0) >= 2


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET  /two/spaces HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1,1\r\n\r\n",
        b"GET /a space HTTP/1.1\r\n\r\n",
    ],
)
def test_a_first_request_line_that_is_broken_is_lost(watch: Observer, request_line: bytes) -> None:
    # GIVEN a new connection
    losses = Losses(watch)
    with listening() as listener:
        pair = connect(listener)

        # WHEN all that is said on it begins as HTTP, and is none
        pair.client.sendall(request_line)
        pair.server.recv(100)
        pair.server.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        pair.client.recv(100)
        pair.close()

        # THEN there is no row of it, and each side tells that something is missing
        seen = watch.seen(port_of(listener), 0)
    assert seen.count() == 0
    assert losses.now() == {"malformed": 2}


@pytest.mark.parametrize(
    "first", [b"OPTIONS rtsp://a/b RTSP/1.0\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n"]
)
def test_protocols_with_requests_like_those_of_http_lose_nothing(
    watch: Observer, first: bytes
) -> None:
    # GIVEN / WHEN
    losses = Losses(watch)
    with listening() as listener:
        pair = connect(listener)
        pair.client.sendall(first)
        pair.server.recv(100)
        pair.close()

    # THEN
    assert losses.now() == {}


# --- queue, work, unrequested -----------------------------------------------------------------


@pytest.mark.parametrize("count", [65, 200, 1000])
@pytest.mark.parametrize("in_one_segment", [True, False])
def test_more_requests_in_flight_than_the_queue_holds_are_counted_or_lost(
    watch: Observer, count: int, in_one_segment: bool
) -> None:
    # GIVEN a pipeline that is deeper than 64
    losses = Losses(watch)
    talk = conversation(
        *(exchange(b"GET", b"/q/%s" % (b"a", b"b", b"c")[n % 3]) for n in range(count)),
        *(exchange(b"GET", b"/after") for _ in range(3)),
        depth=count,
    )
    flood = replace(talk, exchanges=talk.exchanges[:count])
    if not in_one_segment:
        size = len(flood.exchanges[0].request)
        flood = replace(flood, cuts_up=frozenset(range(size, len(flood.up), size)))
    with listening() as listener:
        pair = connect(listener)

        # WHEN it is played, and then the connection is used one request at a time
        run(pair, steps(flood))
        say(pair, *talk.exchanges[count:])
        finish(pair, CLIENT_CLOSES)

        # THEN all are counted or lost, no row is wrong, and the connection is exact again
        seen = watch.seen(port_of(listener), 2 * len(talk.exchanges))
    lost = losses.now()
    assert_no_wrong_row(seen, talk)
    if count == 1000 and not has_loop():
        assert lost.get("work_bound", 0) > 0  # without bpf_loop() a run may take 512 steps
        return
    assert set(lost) <= {"queue_full"}
    assert seen.count() + lost.get("queue_full", 0) == 2 * len(talk.exchanges)
    assert paths(seen, "server").get("/after") == 3
    assert paths(seen, "client").get("/after") == 3
    if count == 1000:
        assert lost.get("queue_full", 0) > 0


def test_a_segment_with_thousands_of_messages_is_counted_or_lost(watch: Observer) -> None:
    # GIVEN 64 KB of interim answers before the answer: no queue can be full of them
    losses = Losses(watch)
    flood = tuple((b"HTTP/1.1 102 P\r\n\r\n", False) for _ in range(3400))
    talk = conversation(exchange(b"GET", b"/flood", interims=flood), exchange(b"GET", b"/after"))
    with listening() as listener:
        # WHEN it is played
        play(connect(listener), talk)

        # THEN the bound was reached, or the work was done
        seen = watch.seen(port_of(listener), 4)
    lost = losses.now()
    assert_no_wrong_row(seen, talk)
    assert set(lost) <= {"work_bound", "joined"}
    assert seen.count() == 4 or lost.get("work_bound", 0) > 0


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_thousands_of_tiny_chunks_in_one_segment_are_counted_or_lost(
    watch: Observer, direction: str
) -> None:
    # GIVEN a body of chunks of one byte, all in one segment
    losses = Losses(watch)
    body = Body(b"x" * 9000, "chunked", chunks=(1,) * 9000)
    big = exchange(
        b"POST",
        b"/tiny",
        request_body=body if direction == UP else NO_BODY,
        answer_body=body if direction == DOWN else None,
    )
    talk = conversation(big, *(exchange(b"GET", b"/after") for _ in range(4)))
    with listening() as listener:
        # WHEN
        play(connect(listener), talk)

        # THEN no row is wrong, and what is not there is lost by a reason
        seen = watch.seen(port_of(listener), 2 * len(talk.exchanges))
    lost = losses.now()
    assert_no_wrong_row(seen, talk)
    assert set(lost) <= {"work_bound", "joined"}
    if seen.count() < 2 * len(talk.exchanges):
        assert lost.get("work_bound", 0) > 0
        assert seen.count() + sum(lost.values()) >= 2 * len(talk.exchanges)
    assert paths(seen, "server")["/after"] >= 1
    assert paths(seen, "client")["/after"] >= 1


def test_thousands_of_tiny_requests_in_one_segment_are_counted_or_lost(watch: Observer) -> None:
    # GIVEN 60 KB of the smallest requests there are
    losses = Losses(watch)
    one = exchange(b"GET", b"/t", host=b"")
    talk = conversation(*(one,) * (60_000 // len(one.request)), depth=10_000)
    with listening() as listener:
        # WHEN
        play(connect(listener), talk)

        # THEN no row is wrong, and what is not there is lost by a reason
        seen = watch.seen(port_of(listener), 2 * len(talk.exchanges))
    lost = losses.now()
    assert_no_wrong_row(seen, talk)
    assert set(lost) <= {"work_bound", "queue_full", "joined", "unrequested"}
    assert seen.count() + sum(lost.values()) >= 2 * len(talk.exchanges) or lost.get("work_bound")
    assert seen.count() <= 2 * len(talk.exchanges)
    assert lost


def test_answers_that_nobody_asked_for_are_lost(watch: Observer) -> None:
    # GIVEN a connection on which a good exchange went over
    losses = Losses(watch)
    with listening() as listener:
        pair = connect(listener)
        say(pair, GOOD)

        # WHEN the server goes on answering (as some do with 408 before they close)
        transfer(pair.server, pair.client, b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n")
        finish(pair, CLIENT_CLOSES)

        # THEN it is lost on each side, and the good one is there
        seen = watch.seen(port_of(listener), 2)
    assert paths(seen, "server") == {"/good": 1}
    assert paths(seen, "client") == {"/good": 1}
    assert losses.now() == {"unrequested": 2}


def test_a_server_that_speaks_first_gives_no_rows(watch: Observer) -> None:
    # GIVEN a connection on which the first bytes are an answer
    losses = Losses(watch)
    with listening() as listener:
        pair = connect(listener)

        # WHEN
        transfer(pair.server, pair.client, b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n")
        finish(pair, CLIENT_CLOSES)

        # THEN
        seen = watch.seen(port_of(listener), 0)
    assert seen.count() == 0
    assert set(losses.now()) <= {"unrequested"}


# --- tables and rings -------------------------------------------------------------------------


def test_series_beyond_the_table_are_put_together(observing: Observing) -> None:
    # GIVEN a table that is too small
    methods = (b"GET", b"PUT", b"POST")
    parts = [
        exchange(methods[n % 3], b"/s" + b"abcdefghij"[n % 10 : n % 10 + 1], 200 + n)
        for n in range(90)
    ]
    with observing(max_series=32) as observer, listening() as listener:
        losses = Losses(observer)

        # WHEN there are more series than it holds
        play(connect(listener), conversation(*parts))
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and losses.total() == 0:
            time.sleep(0.01)
        seen = observer.seen(port_of(listener), 1)
        elsewhere = observer.overflow()

        # THEN those that found room are right; all others are under _OTHER and counted as such
        assert_no_wrong_row(seen, conversation(*parts))
        assert set(losses.now()) == {"table_full"}
        assert seen.count() + losses.now()["table_full"] == 2 * len(parts)
        assert elsewhere >= losses.now()["table_full"]


def test_records_beyond_the_ring_are_lost_and_still_counted(observing: Observing) -> None:
    # GIVEN a ring that holds a few records
    from podscope.sources.http import RequestLog

    talk = conversation(*(exchange(b"GET", b"/r") for _ in range(400)))
    with observing(log=RequestLog(all=True), ring_bytes=65536) as observer:
        losses = Losses(observer)
        with listening() as listener:
            # WHEN nobody reads while many come
            play(connect(listener), talk)

            # THEN the rows are exact, and the records that are not there are lost
            seen = observer.seen(port_of(listener), 800)
        assert paths(seen, "server") == {"/r": 400}
        assert paths(seen, "client") == {"/r": 400}
        assert set(losses.now()) == {"ring_full"}


def test_texts_beyond_their_table_are_lost_and_the_exchanges_still_logged(
    observing: Observing,
) -> None:
    # GIVEN more logged requests in flight than texts are kept
    from podscope.sources.http import RequestLog

    connections, depth = 60, 100
    with (
        observing(
            kinds=("http", "request"), log=RequestLog(all=True), ring_bytes=16 << 20
        ) as observer,
        listening() as listener,
    ):
        losses = Losses(observer)
        pairs = [connect(listener) for _ in range(connections)]
        for pair in pairs:
            pair.client.sendall(b"GET /texts HTTP/1.1\r\nHost: a\r\n\r\n" * depth)

        # WHEN their answers come at last
        for pair in pairs:
            pair.server.sendall(b"HTTP/1.1 204 No Content\r\n\r\n" * depth)
        records = 2 * connections * depth
        seen = observer.seen(port_of(listener), records, records)
        for pair in pairs:
            pair.close()

        # THEN all are counted and logged, and those without a text are lost by that reason
        assert paths(seen, "server") == {"/texts": connections * depth}
        assert paths(seen, "client") == {"/texts": connections * depth}
        bare = [one for one in seen.records if not one.outcome.target]
        assert len(seen.records) == records
        assert 0 < len(bare) < records
        assert losses.now() == {"details_full": len(bare)}


def test_connections_without_memory_for_their_state_are_lost(observing: Observing) -> None:
    # GIVEN sockets that may hold little more than the note of who opened them
    setting = Path("/proc/sys/net/core/optmem_max")
    with veth() as link:
        if not inside(link.client, setting.exists):
            pytest.skip("optmem_max is of the whole host here (Linux 6.8)")
        with observing() as observer:
            losses = Losses(observer)
            listener = link.listen()
            inside(link.client, setting.write_text, "512")

            # WHEN they speak
            pair = link.connect(listener)
            say(pair, exchange(b"GET", b"/no/room"))
            say(pair, exchange(b"GET", b"/no/room"))
            pair.close()

            # THEN the other end has its rows, and this one is lost
            seen = observer.seen(port_of(listener), 2)
            listener.close()
            assert paths(seen, "server") == {"/no/room": 2}
            assert paths(seen, "client") == {}
            assert losses.now() == {"no_memory": 1}


def test_routes_beyond_the_cap_are_other(observing: Observing) -> None:
    # GIVEN a cap of eight routes
    names = [bytes((97 + n // 26, 97 + n % 26)) for n in range(60)]
    talk = conversation(*(exchange(b"GET", b"/" + name) for name in names))
    with observing(routes_per_workload=8) as observer, listening() as listener:
        losses = Losses(observer)

        # WHEN a program has more
        play(connect(listener), talk)
        seen = observer.seen(port_of(listener), 120)

        # THEN all are counted, those beyond the cap without their route
        for side in ("server", "client"):
            found = paths(seen, side)
            other = found.pop("_OTHER")
            assert other + sum(found.values()) == 60
            assert all(found[text] == 1 and text[1:].encode() in names for text in found)
            assert len(found) <= 8
        assert set(losses.now()) == {"routes_full"}
        assert losses.now()["routes_full"] >= 104


# --- ordinary life ----------------------------------------------------------------------------


def test_a_thousand_short_connections_leave_nothing_behind(watch: Observer) -> None:
    # GIVEN / WHEN many connections come and go
    losses = Losses(watch)
    talk = conversation(exchange(b"GET", b"/short"))
    with listening() as listener:
        ports = play_all(listener, [talk] * 1000)

        # THEN each is counted, and nothing was lost
        assert_exact(watch, port_of(listener), [talk] * 1000, ports)
    assert losses.now() == {}


def test_sockets_that_never_speak_lose_nothing(watch: Observer) -> None:
    # GIVEN / WHEN
    losses = Losses(watch)
    with listening() as listener:
        for _ in range(50):
            client = socket.create_connection(("127.0.0.1", port_of(listener)))
            server, _ = listener.accept()
            client.close()
            server.close()

        # THEN
        assert watch.seen(port_of(listener), 0).count() == 0
    assert losses.now() == {}
