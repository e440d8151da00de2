# SPDX-License-Identifier: Apache-2.0
"""What a line of the request log holds: texts of its own request, trace ids."""

from __future__ import annotations

import time

from conversations.messages import conversation
from conversations.messages import exchange
from conversations.observed import Observer
from conversations.peers import connect
from conversations.peers import listening
from conversations.peers import play
from conversations.peers import port_of


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
