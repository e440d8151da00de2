# SPDX-License-Identifier: Apache-2.0
"""What a line of the request log holds: texts of its own request, trace ids."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time

from conversations.messages import conversation
from conversations.messages import exchange
from conversations.model import Conversation
from conversations.observed import Observer
from conversations.peers import connect
from conversations.peers import listening
from conversations.peers import play
from conversations.peers import port_of
from podscope.sources.http import HttpOptions
from podscope.sources.http import HttpSource
from podscope.sources.http import RequestLog


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


def test_a_log_leaves_out_the_cgroups_that_nobody_asked_for(own_cgroup: str) -> None:
    # GIVEN a log that nobody has asked for yet
    with HttpSource(HttpOptions(cgroup=own_cgroup, log_later=True)) as source:
        own = os.stat(own_cgroup).st_ino
        talk = conversation(exchange())
        with listening() as listener:
            # WHEN / THEN it is on, then leaves this cgroup out, and then another one
            assert logged(source, listener, talk) == 0
            source.set_log(RequestLog(all=True))
            assert logged(source, listener, talk) == 2
            source.set_log(RequestLog(all=True), but={own, 1})
            assert logged(source, listener, talk) == 0
            source.set_log(RequestLog(all=True), but={1})
            assert logged(source, listener, talk) == 2
            source.set_log(None)
            assert logged(source, listener, talk) == 0


def logged(source: HttpSource, listener: socket.socket, talk: Conversation) -> int:
    play(connect(listener), talk)
    time.sleep(0.05)
    return len(source.read_requests())


def test_a_log_that_changes_leaves_out_nothing_that_all_of_them_ask_for(own_cgroup: str) -> None:
    # GIVEN two logs that both have every request of this path, one by a glob
    logs = (RequestLog(all=True), RequestLog(all=True, path="/w*", ports=[(1, 65535)]))
    talk = conversation(*[exchange(b"GET", b"/wanted")] * 20)
    rows = 0
    with HttpSource(HttpOptions(cgroup=own_cgroup, log_later=True)) as source:
        source.set_log(logs[0])
        ended = threading.Event()

        def change() -> None:
            for turn in itertools.count():
                if ended.is_set():
                    return
                source.set_log(logs[turn % 2], but={turn % 3 + 1} - {3})

        changing = threading.Thread(target=change)
        changing.start()
        try:
            # WHEN requests come while one takes the place of the other all the time
            with listening() as listener:
                for _ in range(50):
                    play(connect(listener), talk)
                    rows += len(source.read_requests())
        finally:
            ended.set()
            changing.join()
        time.sleep(0.05)
        rows += len(source.read_requests())

    # THEN each is there, of both sides
    assert rows == 50 * 20 * 2
