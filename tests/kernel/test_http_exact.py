# SPDX-License-Identifier: Apache-2.0
"""podscope's rows and log equal the truth of a conversation, to the last request and byte."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from conversations import strategies
from conversations.compare import check
from conversations.messages import conversation
from conversations.messages import exchange
from conversations.model import CLIENT_CLOSES
from conversations.model import CLIENT_RESETS
from conversations.model import SERVER_CLOSES
from conversations.model import SERVER_RESETS
from conversations.model import Conversation
from conversations.observed import Observer
from conversations.observed import assert_counted
from conversations.observed import assert_exact
from conversations.peers import FAMILIES
from conversations.peers import Family
from conversations.peers import connect
from conversations.peers import listening
from conversations.peers import play
from conversations.peers import play_all
from conversations.peers import port_of
from conversations.samples import SPLIT_ME
from conversations.schedule import Write
from conversations.schedule import steps

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


# --- whose it is, and two watches -------------------------------------------------------------


def test_both_sides_are_attributed_to_this_process(exact: Observer) -> None:
    # GIVEN a conversation of which both ends are here
    with listening() as listener:
        # WHEN
        play(connect(listener), conversation(exchange()))

        # THEN
        seen = exact.seen(port_of(listener), 2, 2)
    assert seen.pids == {os.getpid()}
    assert {record.pid for record in seen.records} == {os.getpid()}


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
