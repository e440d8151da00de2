# SPDX-License-Identifier: Apache-2.0
"""Connections that end without the packets that usually tell, and sockets that are used again."""

from __future__ import annotations

import ctypes
import socket
import time
from collections.abc import Iterator

import pytest

from podscope.pipeline import Watch
from podscope.pipeline import watch as open_watch

SERVER, CLIENT = 1, 2
CLOSED = 1
GET = b"GET /hung HTTP/1.1\r\nHost: a\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.fixture
def watch() -> Iterator[Watch]:
    with open_watch(kinds=("http",)) as opened:
        yield opened


def rows(watch: Watch, port: int, wanted: int) -> list[tuple[int, int, int, int]]:
    """(side, status, error, count) of a port's rows, once there are so many exchanges."""
    found: list[tuple[int, int, int, int]] = []
    deadline = time.monotonic() + 5
    while sum(row[3] for row in found) < wanted and time.monotonic() < deadline:
        for batch in watch.read():
            for row in batch.rows[batch.rows["key"]["port"] == port]:
                key = row["key"]
                found.append(
                    (int(key["side"]), int(key["status"]), int(key["error"]), int(row["count"]))
                )
        time.sleep(0.01)
    return sorted(found)


def test_a_client_that_gives_up_on_a_hung_server_is_counted_at_once(watch: Watch) -> None:
    # GIVEN a server that reads nothing and answers nothing
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(GET * 2)
        held, _ = listener.accept()

        # WHEN the client closes: no packet says that the answers will not come
        client.close()

        # THEN its requests are counted as unanswered, on its side alone
        assert rows(watch, port, 2) == [(CLIENT, 0, CLOSED, 2)]
        held.close()


def test_a_socket_that_is_connected_again_starts_anew(watch: Watch) -> None:
    # GIVEN a client's socket that had a connection, half a request of it sent
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        first, _ = listener.accept()
        client.sendall(GET[:10])
        assert first.recv(100)

        # WHEN it is disconnected (AF_UNSPEC), connected again and used
        unspecified = bytes(16)
        assert ctypes.CDLL(None).connect(client.fileno(), unspecified, len(unspecified)) == 0
        client.connect(("127.0.0.1", port))
        second, _ = listener.accept()
        client.sendall(GET)
        assert second.recv(100)
        second.sendall(NO_CONTENT)
        assert client.recv(100)

        # THEN the new connection's exchange is there, and nothing of the old one
        assert rows(watch, port, 2) == [(SERVER, 204, 0, 1), (CLIENT, 204, 0, 1)]
        for one in (client, first, second):
            one.close()


def test_many_connections_leave_no_state_behind(watch: Watch) -> None:
    # GIVEN / WHEN hundreds of connections have come and gone
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for _ in range(300):
            client = socket.create_connection(("127.0.0.1", port))
            held, _ = listener.accept()
            client.sendall(GET)
            assert held.recv(100)
            held.sendall(NO_CONTENT)
            assert client.recv(100)
            client.close()
            held.close()

    # THEN all are counted, in few series
    seen = {(side, status): 0 for side in (SERVER, CLIENT) for status in (204,)}
    for side, status, _, count in rows(watch, port, 600):
        seen[side, status] += count
    assert seen == {(SERVER, 204): 300, (CLIENT, 204): 300}
    assert watch.cost()["series"] < 100
