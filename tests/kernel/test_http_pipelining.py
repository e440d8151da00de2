# SPDX-License-Identifier: Apache-2.0
"""Many requests on one connection, and many before the first answer."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from conversations import strategies
from conversations.compare import check
from conversations.messages import NO_BODY
from conversations.messages import Body
from conversations.messages import conversation
from conversations.messages import exchange
from conversations.model import CLIENT_CLOSES
from conversations.model import CLIENT_RESETS
from conversations.model import SERVER_CLOSES
from conversations.model import SERVER_RESETS
from conversations.observed import Observer
from conversations.peers import connect
from conversations.peers import finish
from conversations.peers import listening
from conversations.peers import port_of
from conversations.peers import run
from conversations.schedule import Write
from conversations.schedule import steps
from conversations.truth import Sums
from conversations.truth import outcomes
from conversations.truth import tally


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
