# SPDX-License-Identifier: Apache-2.0
"""Addresses, IP options, handshakes, ways to write and ways to end: HTTP is counted exactly."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from dataclasses import replace

import pytest

from conversations.compare import check
from conversations.messages import Body
from conversations.messages import conversation
from conversations.messages import exchange
from conversations.model import CLIENT_CLOSES
from conversations.model import CLIENT_RESETS
from conversations.model import DOWN
from conversations.model import SERVER_CLOSES
from conversations.model import SERVER_RESETS
from conversations.model import UP
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
from conversations.peers import port_of
from conversations.peers import read_end
from conversations.peers import run
from conversations.peers import transfer
from conversations.samples import BAIT
from conversations.samples import SPLIT_ME
from conversations.schedule import Write
from conversations.schedule import steps

# --- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_address_family_is_counted_exactly(exact: Observer, family: Family) -> None:
    # GIVEN / WHEN / THEN
    check(exact, [SPLIT_ME, replace(SPLIT_ME, depth=4)], family)


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


# --- handshakes and sequence numbers ----------------------------------------------------------


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


# --- ways to write and read -------------------------------------------------------------------


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


# --- ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [CLIENT_CLOSES, SERVER_CLOSES, CLIENT_RESETS, SERVER_RESETS])
def test_empty_connections_give_nothing(exact: Observer, end: str) -> None:
    # GIVEN connections on which nothing is said / WHEN / THEN
    check(exact, [conversation(end=end)] * 5)


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
