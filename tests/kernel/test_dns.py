# SPDX-License-Identifier: Apache-2.0
"""DNS lookups over UDP and TCP, as both ends see them."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from attached import wait_until_attached
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from podscope import schema_events
from podscope.pipeline import Feed
from podscope.sources import dns
from podscope.sources.dns import DnsOptions
from podscope.sources.dns import DnsSource

# An address of this process alone: port 53 is the same for all.
HOST = f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255 | 1}"
A, AAAA, TXT = 1, 28, 16
SERVER, CLIENT = 1, 2


def labels(name: str) -> bytes:
    """A name as it goes over the wire (RFC 1035, section 3.1)."""
    parts = [part.encode("latin-1") for part in name.split(".")] if name else []
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def query(name: str, number: int = 1, kind: int = A) -> bytes:
    return (
        struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels(name) + struct.pack("!2H", kind, 1)
    )


def answer(asked: bytes, code: int = 0, more: int = 0) -> bytes:
    """The response to a query; with so many more bytes."""
    return asked[:2] + struct.pack("!H", 0x8180 | code) + asked[4:] + bytes(more)


@pytest.fixture(params=["dns", "dns_v2"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[DnsSource]:
    """Both builds."""
    newest = dns.load_newest
    monkeypatch.setattr(dns, "load_newest", lambda _, prepare: newest(request.param, prepare))
    with DnsSource() as opened:
        yield opened


@pytest.fixture(scope="module")
def server() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind((HOST, 53))
        opened.settimeout(5)
        yield opened


@contextmanager
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.settimeout(5)
        yield opened


def look_up(
    client: socket.socket, server: socket.socket, name: str, code: int = 0, **asked: int
) -> None:
    """One lookup, done by hand on both ends."""
    client.sendto(query(name, **asked), server.getsockname())
    got, whence = server.recvfrom(4096)
    server.sendto(answer(got, code), whence)
    client.recv(4096)


def mine(rows: np.ndarray) -> np.ndarray:
    return rows[rows["pid"] == os.getpid()]


def test_a_lookup_is_told_by_both_ends(source, server):
    # GIVEN / WHEN
    with udp() as client:
        begun = time.monotonic_ns()
        look_up(client, server, "WWW.Example.ORG", kind=AAAA, number=77)
        took = time.monotonic_ns() - begun
        port = client.getsockname()[1]
    rows = mine(source.read_events()["dns_lookup"])

    # THEN
    assert sorted(rows["side"].tolist()) == [SERVER, CLIENT]
    assert set(rows["text"].tolist()) == {b"www.example.org"}
    assert set(rows["type"].tolist()) == {AAAA}
    assert set(rows["id"].tolist()) == {77}
    assert set(rows["code"].tolist()) == {0}
    own = rows[rows["side"] == CLIENT][0]
    other = rows[rows["side"] == SERVER][0]
    assert 0 < other["duration_ns"] <= own["duration_ns"] <= took
    assert (own["peer_port"], other["peer_port"]) == (53, port)
    assert own["peer"].tolist() == [*[0] * 10, 255, 255, *map(int, HOST.split("."))]
    assert source.lost() == dict.fromkeys(dns.LOST, 0)


def test_ipv6_is_told(source):
    # GIVEN a server on ::1
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client,
    ):
        try:
            server.bind(("::1", 53))
        except OSError:
            pytest.skip("port 53 of ::1 is in use: DNS over IPv6 is not tested")

        # WHEN
        look_up(client, server, "six.test")

    # THEN
    rows = mine(source.read_events()["dns_lookup"])
    own = rows[rows["side"] == CLIENT]
    assert own["text"].tolist() == [b"six.test"]
    assert bytes(own["peer"][0]) == socket.inet_pton(socket.AF_INET6, "::1")


def test_sums_are_exact_by_name_type_and_code(source, server):
    # GIVEN / WHEN
    with udp() as client:
        for number in range(30):
            look_up(client, server, "a.test", number=number)
            look_up(client, server, "a.test", number=number, kind=TXT)
            look_up(client, server, "b.test", code=3 if number % 3 else 2, number=number)
    rows = mine(source.read()["dns"])
    rows = rows[rows["side"] == CLIENT]

    # THEN
    told = {
        (row["text"].decode(), int(row["type"]), int(row["code"])): int(row["count"])
        for row in rows
    }
    assert told == {
        ("a.test", A, 0): 30,
        ("a.test", TXT, 0): 30,
        ("b.test", A, 3): 20,
        ("b.test", A, 2): 10,
    }
    assert (rows["le"].sum(axis=1) == rows["count"]).all()
    assert (rows["buckets"].sum(axis=1) == rows["count"]).all()
    assert (rows["max_ns"] <= rows["sum_ns"]).all()
    assert (rows["max_ns"] > 0).all()
    assert len(mine(source.read()["dns"])) == 0


def test_percentiles_are_those_of_the_single_lookups(source, server):
    # GIVEN lookups that take a while, some of them longer
    with udp() as client:
        for number in range(20):
            client.sendto(query("slow.test", number), server.getsockname())
            got, whence = server.recvfrom(4096)
            time.sleep(0.05 if number >= 17 else 0.005)
            server.sendto(answer(got), whence)
            client.recv(4096)
    feed = Feed("dns", source, ("dns", "dns_lookup"))

    # WHEN
    batches = {batch.kind: batch for batch in feed.interval()}
    columns = {kind: schema_events.columns(batch) for kind, batch in batches.items()}

    # THEN
    sums, each = columns["dns"], columns["dns_lookup"]
    (at,) = np.flatnonzero((sums["dns.question.name"] == "slow.test") & (sums["side"] == "client"))
    ours = (each["dns.question.name"] == "slow.test") & (each["side"] == "client")
    durations = np.sort(each["duration"][ours])
    for q, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99")):
        true = durations[int(np.ceil(q * 20)) - 1]
        assert abs(sums[f"duration.{name}"][at] - true) <= 0.091 * true
    assert sums["duration.max"][at] == durations[-1]


def test_a_query_without_a_response_is_a_lookup_that_failed(source, server, monkeypatch):
    # GIVEN a short patience
    monkeypatch.setattr(dns, "TIMEOUT_NS", 10**8)
    monkeypatch.setattr(dns, "LOOK_SECONDS", 0.0)

    # WHEN the server says nothing, and the client asks twice
    with udp() as client:
        for _ in range(2):
            client.sendto(query("silent.test"), server.getsockname())
            server.recv(4096)
        time.sleep(0.2)
        events = mine(source.read_events()["dns_lookup"])
        sums = mine(source.read()["dns"])

    # THEN
    own = events[events["side"] == CLIENT]
    assert own["text"].tolist() == [b"silent.test"]
    assert own["code"].tolist() == [255]
    assert own["repeats"].tolist() == [1]
    asked = sums[sums["side"] == CLIENT]
    assert asked["count"].tolist() == [1]
    # AND it has no duration
    assert asked["le"].sum() == asked["buckets"].sum() == 0


def test_a_response_to_another_question_is_no_response(source, server):
    # GIVEN
    with udp() as client:
        client.sendto(query("real.test", 5), server.getsockname())
        _, whence = server.recvfrom(4096)

        # WHEN one comes with the same id and another name
        server.sendto(answer(query("fake.test", 5)), whence)
        client.recv(4096)

    # THEN
    assert len(mine(source.read_events()["dns_lookup"])) == 0
    assert source.lost()["unasked"] == 2


def test_what_is_no_message_is_counted(source, server):
    # GIVEN / WHEN
    with udp() as client:
        for bad in (b"?", bytes(11), bytes(40), query("x" * 63)[:40], b"\xff" * 30):
            client.sendto(bad, server.getsockname())
            server.recv(4096)

    # THEN both ends have seen each of them
    assert source.lost()["malformed"] == 10
    assert len(mine(source.read_events()["dns_lookup"])) == 0


NAMES = st.lists(
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="."), min_size=1,
            max_size=30),
    max_size=8,
).map(".".join)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(names=st.lists(NAMES, min_size=1, max_size=20))
def test_any_name_is_told_in_small_letters(module_source, server, names):
    # GIVEN
    module_source.read_events()

    # WHEN
    with udp() as client:
        for number, name in enumerate(names):
            look_up(client, server, name, number=number)
    rows = mine(module_source.read_events()["dns_lookup"])

    # THEN of a long one the beginning
    wanted = [name.lower().encode()[:126] for name in names]
    told = rows[rows["side"] == CLIENT]["text"].tolist()
    assert [text[: len(want)] for text, want in zip(told, wanted, strict=True)] == wanted
    assert all(len(text) <= 127 for text in told)


@pytest.fixture(scope="module")
def module_source() -> Iterator[DnsSource]:
    with DnsSource() as opened:
        yield opened


# --- TCP -----------------------------------------------------------------------------------------


@contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.create_server((HOST, 53)) as listener,
        socket.create_connection((HOST, 53)) as client,
        listener.accept()[0] as server,
    ):
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(5)
        yield client, server


def framed(message: bytes) -> bytes:
    return struct.pack("!H", len(message)) + message


def receive(end: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        got += end.recv(count - len(got))
    return got


def pass_on(sender: socket.socket, receiver: socket.socket, *parts: bytes) -> None:
    """Each part in a segment of its own."""
    for part in parts:
        sender.sendall(part)
        receive(receiver, len(part))


def tcp_names(source: DnsSource, side: int = CLIENT) -> list[bytes]:
    rows = mine(source.read_events()["dns_lookup"])
    rows = rows[(rows["side"] == side) & (rows["tcp"] == 1)]
    return rows["text"].tolist()


@pytest.mark.parametrize("split", [0, 2])
def test_a_lookup_over_tcp_is_told(source, split):
    # GIVEN messages whole, or after their length alone
    with connection() as (client, server):
        for number in range(3):
            asked = query(f"tcp{number}.test", number)
            for sender, receiver, message in (
                (client, server, framed(asked)),
                (server, client, framed(answer(asked))),
            ):
                # WHEN
                parts = [message[:split], message[split:]] if split else [message]
                pass_on(sender, receiver, *parts)

    # THEN
    assert tcp_names(source) == [b"tcp0.test", b"tcp1.test", b"tcp2.test"]
    assert source.lost() == dict.fromkeys(dns.LOST, 0)


def test_messages_in_one_segment_are_told_apart(source):
    # GIVEN
    asked = [query(f"many{number}.test", number) for number in range(3)]

    # WHEN
    with connection() as (client, server):
        pass_on(client, server, b"".join(framed(one) for one in asked))
        pass_on(server, client, b"".join(framed(answer(one)) for one in reversed(asked)))

    # THEN
    assert tcp_names(source) == [b"many2.test", b"many1.test", b"many0.test"]
    assert source.lost()["tcp_unparsed"] == 0


def test_a_long_response_is_one(source):
    # GIVEN a response of many segments, and another after it
    asked = [query("long.test", 1), query("short.test", 2)]
    long = framed(answer(asked[0], more=60_000))

    # WHEN
    with connection() as (client, server):
        for one in asked:
            pass_on(client, server, framed(one))
        pass_on(server, client, *(long[at : at + 1000] for at in range(0, len(long), 1000)))
        pass_on(server, client, framed(answer(asked[1])))

    # THEN
    assert tcp_names(source) == [b"long.test", b"short.test"]
    assert source.lost()["tcp_unparsed"] == 0


def test_what_cannot_be_told_apart_is_counted_and_the_next_message_is_told(source):
    # GIVEN
    good = query("good.test", 9)

    # WHEN a segment is no message
    with connection() as (client, server):
        pass_on(client, server, b"\0\x30" + bytes(48))
        lost = source.lost()["tcp_unparsed"]
        pass_on(client, server, framed(good))
        pass_on(server, client, framed(answer(good)))

    # THEN
    assert lost == 2  # both ends
    assert tcp_names(source) == [b"good.test"]


# --- bounds --------------------------------------------------------------------------------------


def test_sums_are_exact_where_single_lookups_are_lost(server):
    # GIVEN a ring that is much too small
    with DnsSource(DnsOptions(ring_bytes=os.sysconf("SC_PAGESIZE"))) as source, udp() as client:
        # WHEN
        for number in range(500):
            look_up(client, server, "many.test", number=number)

        # THEN
        told = len(source.read_events()["dns_lookup"])
        assert source.lost()["ring_full"] + told >= 1000
        assert mine(source.read()["dns"])["count"].tolist() == [500, 500]


def test_names_beyond_the_cap_are_counted_together(server):
    # GIVEN
    with DnsSource(DnsOptions(max_names=8)) as source, udp() as client:
        # WHEN
        for number in range(100):
            look_up(client, server, f"name{number}.test", number=number)
        rows = mine(source.read()["dns"])

        # THEN
        assert rows["count"].sum() == 200
        other = rows[rows["text"] == b"_OTHER"]
        assert other["count"].sum() == source.lost()["names_full"] > 0
        # AND in the next interval there is room again
        look_up(client, server, "next.test")
        assert set(mine(source.read()["dns"])["text"].tolist()) == {b"next.test"}


def test_only_errors_are_told_where_only_they_are_asked_for(server):
    # GIVEN
    with DnsSource(DnsOptions(only_errors=True)) as source, udp() as client:
        # WHEN
        look_up(client, server, "good.test")
        look_up(client, server, "bad.test", code=3)

        # THEN
        rows = mine(source.read_events()["dns_lookup"])
        assert set(rows["text"].tolist()) == {b"bad.test"}


def test_rows_have_the_names_of_their_processes_and_of_codes(server):
    # GIVEN sockets from before the start
    with udp() as client, DnsSource() as source:
        feed = Feed("dns", source, ("dns", "dns_lookup"))

        # WHEN
        look_up(client, server, "who.test", code=3)
        batches = {batch.kind: batch for batch in feed.interval()}

        # THEN
        name = Path(os.path.realpath(sys.executable)).name
        for batch in batches.values():
            columns = schema_events.columns(batch)
            ours = columns["dns.question.name"] == "who.test"
            assert columns["process.executable.name"][ours].tolist() == [name] * 2
            assert set(columns["error.type"][ours]) == {"NXDOMAIN"}
            assert set(columns["podscope.dns.question.type"][ours]) == {"A"}
            assert sorted(columns["side"][ours]) == ["client", "server"]


@pytest.mark.parametrize("words", [["dns"], ["dns", "--each"], ["events", "dns"]])
def test_the_command_tells_lookups(server, words):
    # GIVEN
    command = [sys.executable, "-m", "podscope", *words, "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, udp() as client:
        # WHEN
        wait_until_attached(process)
        look_up(client, server, "told.test", code=3)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out = process.communicate(timeout=60)[0]

    # THEN
    lines = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 0
    rows = [line for line in lines if line.get("process.pid") == os.getpid()]
    assert [row["dns.question.name"] for row in rows] == ["told.test"] * 2
    assert {row["kind"] for row in rows} == {"dns" if words == ["dns"] else "dns_lookup"}
    assert lines[-1]["kind"] == "summary"
