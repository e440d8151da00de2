# SPDX-License-Identifier: Apache-2.0
"""Bytes that are no HTTP give no rows: in tunnels, and of other protocols."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from conversations.compare import check
from conversations.messages import NO_BODY
from conversations.messages import Body
from conversations.messages import conversation
from conversations.messages import exchange
from conversations.model import CLIENT_CLOSES
from conversations.model import DOWN
from conversations.model import SERVER_RESETS
from conversations.model import UP
from conversations.observed import Observer
from conversations.observed import assert_exact
from conversations.peers import connect
from conversations.peers import finish
from conversations.peers import listening
from conversations.peers import port_of
from conversations.peers import run
from conversations.peers import transfer
from conversations.samples import BAIT
from conversations.schedule import Write

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


# --- other protocols --------------------------------------------------------------------------

CLIENT_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(range(256)) * 2
NOT_HTTP = {
    "TLS": ((UP, CLIENT_HELLO), (DOWN, b"\x16\x03\x03\x00\x7a\x02" + bytes(300)), (UP, BAIT)),
    "Redis": ((UP, b"*1\r\n$4\r\nPING\r\n"), (DOWN, b"+PONG\r\n"), (UP, b"PING\r\n")),
    "Redis inline": ((UP, b"GET key\r\n"), (DOWN, b"$-1\r\n"), (UP, b"GET / HTTP\r\n")),
    "SSH": ((DOWN, b"SSH-2.0-OpenSSH_9.2\r\n"), (UP, b"SSH-2.0-x\r\n"), (DOWN, bytes(800))),
    "SMTP": ((DOWN, b"220 mail ESMTP\r\n"), (UP, b"HELO a\r\n"), (DOWN, b"250 ok\r\n")),
    "HTTP/2": ((UP, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)), (DOWN, bytes(9))),
    "HTTP/0.9": ((UP, b"GET /\r\n"), (DOWN, b"<html>")),
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
