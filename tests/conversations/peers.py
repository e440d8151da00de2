# SPDX-License-Identifier: Apache-2.0
"""Two plain sockets that play a conversation. No HTTP library: any shape can be played.

One thread holds both ends. A write is followed by reads of the other end until all of it is
there, so every write is a segment of its own (TCP_NODELAY) and the order is the same each time.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass

from .model import CLIENT_CLOSES
from .model import CLIENT_RESETS
from .model import SERVER_CLOSES
from .model import SERVER_RESETS
from .model import UP
from .model import Conversation
from .schedule import HalfClose
from .schedule import Write
from .schedule import steps

TIMEOUT = 20.0


@dataclass(frozen=True)
class Family:
    """How a client gets to a server: address family and address of each."""

    name: str
    listen: tuple[socket.AddressFamily, str]
    connect: tuple[socket.AddressFamily, str]


IPV4 = Family("ipv4", (socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.1"))
IPV6 = Family("ipv6", (socket.AF_INET6, "::1"), (socket.AF_INET6, "::1"))
MAPPED_SERVER = Family("mapped server", (socket.AF_INET6, "::"), (socket.AF_INET, "127.0.0.1"))
MAPPED_CLIENT = Family(
    "mapped client", (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::ffff:127.0.0.1")
)
FAMILIES = (IPV4, IPV6, MAPPED_SERVER, MAPPED_CLIENT)


@dataclass(frozen=True)
class Pair:
    """The two ends of one connection."""

    client: socket.socket
    server: socket.socket

    @property
    def client_port(self) -> int:
        return int(self.client.getsockname()[1])

    def source(self, direction: str) -> socket.socket:
        return self.client if direction == UP else self.server

    def sink(self, direction: str) -> socket.socket:
        return self.server if direction == UP else self.client

    def close(self) -> None:
        self.client.close()
        self.server.close()


def listen(family: Family = IPV4, port: int = 0) -> socket.socket:
    """A listening socket; ``port`` 0: a free one."""
    kind, address = family.listen
    listener = socket.socket(kind, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.settimeout(TIMEOUT)
    listener.bind((address, port))
    listener.listen(256)
    return listener


def port_of(listener: socket.socket) -> int:
    """The port a socket is bound to."""
    return int(listener.getsockname()[1])


def connect(
    listener: socket.socket,
    family: Family = IPV4,
    make: Callable[[int, int], socket.socket] = socket.socket,
) -> Pair:
    """A new connection to the listener; ``make`` opens the client's socket."""
    kind, address = family.connect
    client = make(kind, socket.SOCK_STREAM)
    client.settimeout(TIMEOUT)
    client.connect((address, port_of(listener)))
    return accept(listener, client)


def accept(listener: socket.socket, client: socket.socket) -> Pair:
    """The pair of a client that has just connected."""
    server, _ = listener.accept()
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.setblocking(False)
    return Pair(client, server)


def transfer(source: socket.socket, sink: socket.socket, data: bytes) -> bytes:
    """Writes ``data`` to one end and reads it all from the other.

    Raises:
        TimeoutError: it took longer than TIMEOUT.
        ConnectionError: the connection broke.
    """
    deadline = time.monotonic() + TIMEOUT
    rest = memoryview(data)
    got = bytearray()
    while len(got) < len(data):
        if rest:
            with suppress(BlockingIOError):
                rest = rest[source.send(rest) :]
        try:
            part = sink.recv(min(1 << 20, len(data) - len(got)))
            if not part:
                raise ConnectionError("the other end closed early")
            got += part
        except BlockingIOError:
            _wait(source if rest else None, sink, deadline)
    return bytes(got)


def _wait(source: socket.socket | None, sink: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("a write of the conversation took too long")
    select.select([sink], [source] if source else [], [], min(left, 1.0))


def read_end(sink: socket.socket) -> bytes:
    """Reads until the other end closes; b"" where nothing came before that."""
    deadline = time.monotonic() + TIMEOUT
    got = bytearray()
    while True:
        try:
            part = sink.recv(1 << 16)
        except BlockingIOError:
            _wait(None, sink, deadline)
            continue
        except ConnectionResetError:
            return bytes(got)
        if not part:
            return bytes(got)
        got += part


def reset(end: socket.socket) -> None:
    """Closes with a RST."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def finish(pair: Pair, end: str) -> None:
    """Ends a connection; both sockets are closed, and each end has seen the other's end."""
    first, second = pair.client, pair.server
    if end in (SERVER_CLOSES, SERVER_RESETS):
        first, second = second, first
    if end in (CLIENT_RESETS, SERVER_RESETS):
        reset(first)
        read_end(second)
        second.close()
        return
    first.shutdown(socket.SHUT_WR)
    read_end(second)
    second.close()
    read_end(first)
    first.close()


def run(pair: Pair, script: Iterable[Write | HalfClose]) -> dict[str, bytes]:
    """Plays writes; returns what each end has read, by direction.

    Raises:
        AssertionError: bytes did not arrive as they were sent.
    """
    heard: dict[str, bytearray] = {"up": bytearray(), "down": bytearray()}
    for step in script:
        if isinstance(step, HalfClose):
            pair.client.shutdown(socket.SHUT_WR)
            assert read_end(pair.server) == b""
            continue
        got = transfer(pair.source(step.direction), pair.sink(step.direction), step.data)
        assert got == step.data, "the bytes changed on the way"
        heard[step.direction] += got
    return {direction: bytes(data) for direction, data in heard.items()}


def play(pair: Pair, conversation: Conversation) -> dict[str, bytes]:
    """Plays a conversation to its end and closes both sockets."""
    try:
        heard = run(pair, steps(conversation))
        finish(pair, conversation.end)
    finally:
        pair.close()
    return heard


@contextmanager
def listening(family: Family = IPV4) -> Iterator[socket.socket]:
    """A listener for a test."""
    listener = listen(family)
    try:
        yield listener
    finally:
        listener.close()


def play_all(
    listener: socket.socket, conversations: Iterable[Conversation], family: Family = IPV4
) -> list[int]:
    """Plays conversations one after another; returns the client ports."""
    ports = []
    for conversation in conversations:
        pair = connect(listener, family)
        ports.append(pair.client_port)
        play(pair, conversation)
    return ports


__all__ = [
    "CLIENT_CLOSES",
    "CLIENT_RESETS",
    "FAMILIES",
    "IPV4",
    "IPV6",
    "MAPPED_CLIENT",
    "MAPPED_SERVER",
    "SERVER_CLOSES",
    "SERVER_RESETS",
    "Family",
    "Pair",
    "accept",
    "connect",
    "finish",
    "listen",
    "listening",
    "play",
    "play_all",
    "port_of",
    "read_end",
    "reset",
    "run",
    "transfer",
]
