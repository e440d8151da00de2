# SPDX-License-Identifier: Apache-2.0
"""Nothing grows with time: series and routes that are not used any more go."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conversations.messages import conversation
from conversations.messages import exchange
from conversations.peers import connect
from conversations.peers import listening
from conversations.peers import port_of
from conversations.peers import run
from conversations.schedule import steps
from podscope.sources import http
from podscope.sources.http import HttpOptions
from podscope.sources.http import HttpSource

PATIENCE = 10.0
# A program that talks to itself: it serves and asks for the paths of its arguments.
PROGRAM = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
for path in sys.argv[1:]:
    client.sendall(b"GET %s HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n" % path.encode())
    server.recv(4096)
    server.sendall(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
    client.recv(4096)
"""


@pytest.fixture
def source(own_cgroup: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpSource]:
    """A source that lets go of things soon."""
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(http, "GONE_SECONDS", 0.2)
    monkeypatch.setattr(http, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(http, "CLEAN_SECONDS", 0.2)
    with HttpSource(HttpOptions(cgroup=own_cgroup, max_series=24)) as opened:
        yield opened


def run_program(*paths: str) -> None:
    subprocess.run([sys.executable, "-S", "-c", PROGRAM, *paths], check=True, timeout=20)


def counted(source: HttpSource) -> dict[str, int]:
    """Exchanges by route since the last call, both sides together."""
    found: dict[str, int] = {}
    rows = source.read()
    texts = source.routes()
    for row in rows:
        text = texts[int(row["key"]["route"])]
        found[text] = found.get(text, 0) + int(row["count"])
    return found


def wait_for_series(source: HttpSource, most: int) -> dict[str, int]:
    """Reads until so few series are left; what was counted meanwhile."""
    found: dict[str, int] = {}
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for text, count in counted(source).items():
            found[text] = found.get(text, 0) + count
        if source.series_count() <= most:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{source.series_count()} series are left")


def test_series_of_programs_that_are_gone_make_room_for_others(source: HttpSource) -> None:
    # GIVEN room for 24 series, of which each program needs 10
    before = source.series_count()
    for turn in range(6):
        paths = [f"/turn{'abcdef'[turn]}/{name}" for name in "vwxyz"]

        # WHEN programs come and go
        run_program(*paths)

        # THEN each is counted, and its series go after it
        assert wait_for_series(source, before) == dict.fromkeys(paths, 2)
    assert not any(source.lost().values())


def mapped_bytes() -> int:
    """What this process has mapped of BPF maps."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if "bpf-map" in line]
    return sum(int(end, 16) - int(begin, 16) for begin, end in ranges)


def test_more_of_the_counters_is_mapped_as_series_come(own_cgroup: str) -> None:
    # GIVEN room for 10,000 series
    names = [f"/{one}{two}" for one in "bcdfghjklmnpqrst" for two in "vwxyzabcd"]
    with HttpSource(HttpOptions(cgroup=own_cgroup)) as source:
        first = counted(source)
        before = mapped_bytes()
        for count in (1, 40, 144):
            # WHEN
            run_program(*names[:count], *names[:count])
            rows = source.read()

            # THEN each has its count and its histogram
            assert len(rows) == 2 * count
            assert rows["count"].tolist() == [2] * len(rows)
            assert rows["buckets"].sum(axis=1).tolist() == [2] * len(rows)
        assert not first
        assert 0 < mapped_bytes() - before < 1 << 20


def test_a_connection_that_was_idle_for_long_is_counted_as_before(source: HttpSource) -> None:
    # GIVEN a connection whose series have gone meanwhile
    before = source.series_count()
    with listening() as listener:
        pair = connect(listener)
        part = exchange(b"GET", b"/kept/open")
        run(pair, steps(conversation(part, part)))
        assert wait_for_series(source, before) == {"/kept/open": 4}

        # WHEN it is used again
        run(pair, steps(conversation(part, part, part)))

        # THEN
        found = counted(source)
        pair.client.close()
        pair.server.close()
        assert port_of(listener)
    assert found == {"/kept/open": 6}
    assert source.series_count() == before + 2


def test_routes_of_programs_that_are_gone_go(source: HttpSource) -> None:
    # GIVEN a program that stays, and others with routes of their own
    with listening() as listener:
        pair = connect(listener)
        run(pair, steps(conversation(exchange(b"GET", b"/stays"))))
        run_program("/goes/a")
        run_program("/goes/b")
        seen = counted(source)

        # WHEN they are gone for a while
        wait_for_series(source, http.RESERVED - 1)
        deadline = time.monotonic() + PATIENCE
        while source.route_count() > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
            source.read()

        # THEN the map has the other's route alone, and what was said of them can still be named
        assert seen == {"/stays": 2, "/goes/a": 2, "/goes/b": 2}
        assert source.route_count() == 1
        assert {"/stays", "/goes/a", "/goes/b"} <= set(source.routes().values())

        # AND the program that stays has the name of its route still
        run(pair, steps(conversation(exchange(b"GET", b"/stays"))))
        assert counted(source) == {"/stays": 2}
        pair.client.close()
        pair.server.close()


def test_a_cgroup_is_left_alone_as_long_as_it_is_ignored(
    source: HttpSource, own_cgroup: str
) -> None:
    # GIVEN a connection that is counted
    own = os.stat(own_cgroup).st_ino
    with listening() as listener:
        pair = connect(listener)
        part = exchange(b"GET", b"/private")
        run(pair, steps(conversation(part)))
        before = counted(source)

        # WHEN its cgroup is ignored, and then no more
        source.ignore({own})
        run(pair, steps(conversation(part, part)))
        meanwhile = counted(source)
        source.ignore(set())
        run(pair, steps(conversation(part, part, part)))

        # THEN both changes count from the next exchange on
        assert before == {"/private": 2}
        assert meanwhile == {}
        assert counted(source) == {"/private": 6}
        pair.close()
    assert not any(source.lost().values())


@pytest.fixture
def known_peers(own_cgroup: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpSource]:
    monkeypatch.setattr(http, "CLEAN_SECONDS", 0.0)
    with HttpSource(HttpOptions(cgroup=own_cgroup, known_peers=True)) as opened:
        yield opened


def key_of(address: str) -> bytes:
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return b"\0" * 10 + b"\xff\xff" + socket.inet_aton(address)


def peers_counted(source: HttpSource) -> dict[bytes, int]:
    """Exchanges on the servers' side by the client's address."""
    found: dict[bytes, int] = {}
    for row in source.read():
        if row["key"]["side"] == 1:
            peer = bytes(row["key"]["peer"])
            found[peer] = found.get(peer, 0) + int(row["count"])
    return found


def ask_from(address: str) -> None:
    """One exchange over loopback, of a client with this address."""
    six = ":" in address
    with socket.create_server(
        (address if six else "127.0.0.1", 0), family=socket.AF_INET6 if six else socket.AF_INET
    ) as listener:
        where = listener.getsockname()[:2]
        client = socket.create_connection(where, source_address=(address, 0))
        server, _ = listener.accept()
        with client, server:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            server.recv(4096)
            server.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            client.recv(4096)


@contextmanager
def addresses(*texts: str) -> Iterator[None]:
    """Addresses that this host has for a while."""
    try:
        for text in texts:
            subprocess.run(["ip", "address", "add", *place(text)], check=True)
        yield
    finally:
        for text in texts:
            subprocess.run(["ip", "address", "del", *place(text)], check=False)


def place(text: str) -> list[str]:
    """Words for ip-address(8); without a test for duplicates, which takes a second."""
    whole = [f"{text}/128", "nodad"] if ":" in text else [f"{text}/32"]
    return [*whole, "dev", "lo"]


PRIVATE = "10.213.7.9"
NOBODY = bytes(16)


@pytest.mark.parametrize(
    ("public", "named", "private"),
    [
        ("198.51.100.77", "198.51.100.78", PRIVATE),
        ("2001:db8:77::1", "2001:db8:77::2", "fd00:213::9"),
    ],
    ids=["IPv4", "IPv6"],
)
def test_addresses_are_told_apart_where_they_are_known_or_may_be_soon(
    known_peers: HttpSource, public: str, named: str, private: str
) -> None:
    # GIVEN an address that user space has named, and others
    known_peers.know_peers({key_of(named)})
    with addresses(public, named, private):
        # WHEN
        for address in (public, named, private):
            ask_from(address)

        # THEN a public one that nobody named is kept by its class alone
        found = peers_counted(known_peers)
        assert found == {NOBODY: 1, key_of(named): 1, key_of(private): 1}

        # AND a name that is taken back is kept no more
        known_peers.know_peers(set())
        ask_from(named)
        assert peers_counted(known_peers) == {NOBODY: 1}


def test_addresses_that_nobody_names_have_a_limit(known_peers: HttpSource) -> None:
    # GIVEN as many as there may be, but one
    known_peers.variables["peers_new"][...] = 999
    with addresses("10.213.7.1", "10.213.7.2"):
        # WHEN
        ask_from("10.213.7.1")
        ask_from("10.213.7.2")

        # THEN the next one is counted without, and that is said
        lost = known_peers.lost()["peers_full"]
        assert peers_counted(known_peers) == {NOBODY: 1, key_of("10.213.7.1"): 1}
        assert lost == 1

        # AND there is room again: reading it has counted them anew
        ask_from("10.213.7.2")
        assert peers_counted(known_peers) == {key_of("10.213.7.2"): 1}


def test_an_address_that_gets_a_name_makes_room(known_peers: HttpSource) -> None:
    # GIVEN
    with addresses(PRIVATE):
        ask_from(PRIVATE)
        assert int(known_peers.variables["peers_new"]) == 1

        # WHEN
        known_peers.know_peers({key_of(PRIVATE)})

        # THEN
        assert int(known_peers.variables["peers_new"]) == 0
        ask_from(PRIVATE)
        assert peers_counted(known_peers) == {key_of(PRIVATE): 2}
