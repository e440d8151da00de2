# SPDX-License-Identifier: Apache-2.0
"""Connections of TCP, compared with what their ends measured and what the kernel counts."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from attached import wait_until_attached
from compile_bpf import SOURCES
from compile_bpf import compile_bpf
from network_namespace import network_namespace

from conversations.peers import listening
from conversations.peers import port_of
from podscope import red
from podscope import schema_events
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.kernel.kernel_types import kernel_enum
from podscope.kernel.objects import BpfObject
from podscope.pipeline import Feed
from podscope.schema_tcp import STATES
from podscope.schema_tcp import WHAT
from podscope.sources import tcp
from podscope.sources.tcp import EVENTS
from podscope.sources.tcp import TcpOptions
from podscope.sources.tcp import TcpSource

SIDES = ("", "server", "client")
# Reasons of drops came with Linux 5.17, the iterator over open files' sockets with 5.11.
TELLS_DROPS = bool(kernel_enum("skb_drop_reason"))
LEFT_OUT = ("window",) if TELLS_DROPS else ("window", "drop")


@pytest.fixture(params=["tcp", "tcp_v2"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[TcpSource]:
    """Both builds, with every event that this kernel has but samples of windows."""
    newest = tcp.load_newest
    monkeypatch.setattr(tcp, "load_newest", lambda _, prepare: newest(request.param, prepare))
    with TcpSource(TcpOptions(events=[one for one in EVENTS if one not in LEFT_OUT])) as opened:
        yield opened


def newest(source: TcpSource) -> bool:
    """Whether this kernel took the newest build."""
    return "tcp_open_sockets" in source._object.programs()


class Port:
    """What a source tells of the connections with one port of this host."""

    def __init__(self, source: TcpSource, port: int) -> None:
        self.source, self.port = source, port
        self.rows: list[np.void] = []

    def read(self) -> None:
        for row in self.source.read_events()["tcp_event"]:
            if self.port in (row["local_port"], row["peer_port"]):
                self.rows.append(row)

    def of(self, what: str, side: str = "") -> list[np.void]:
        return [
            row
            for row in self.rows
            if WHAT[row["what"]] == what and (not side or SIDES[row["side"]] == side)
        ]

    def wait(self, what: str, count: int, side: str = "") -> list[np.void]:
        deadline = time.monotonic() + 5
        while len(self.of(what, side)) < count and time.monotonic() < deadline:
            self.read()
            time.sleep(0.01)
        found = self.of(what, side)
        assert len(found) == count, (what, [WHAT[row["what"]] for row in self.rows])
        return found


class Reader(threading.Thread):
    """Reads all that a source tells, until it is stopped."""

    def __init__(self, source: TcpSource) -> None:
        super().__init__()
        self._source = source
        self._read: dict[str, list[np.ndarray]] = {"tcp": [], "tcp_event": []}
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.3):
            self._take()

    def _take(self) -> None:
        for kind, rows in {**self._source.read(), **self._source.read_events()}.items():
            self._read[kind].append(rows)

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        self._take()

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The sums, and the events."""
        return np.concatenate(self._read["tcp"]), np.concatenate(self._read["tcp_event"])


def receive(end: socket.socket, count: int) -> None:
    while count:
        count -= len(end.recv(min(count, 1 << 16)))


def exchange(listener: socket.socket, request: int, answer: int) -> float:
    """One connection, closed by the client first; how long it lived as the client measured."""
    with socket.create_connection(listener.getsockname()[:2]) as client:
        begun = time.monotonic()
        server, _ = listener.accept()
        with server:
            client.sendall(bytes(request))
            receive(server, request)
            server.sendall(bytes(answer))
            receive(client, answer)
            client.close()
            lived = time.monotonic() - begun
            assert server.recv(1) == b""
    return lived


@pytest.mark.parametrize(("request_bytes", "answer_bytes"), [(0, 0), (1, 0), (10_000, 300_000)])
def test_bytes_are_what_the_ends_have_sent_and_received(source, request_bytes, answer_bytes):
    # GIVEN
    with listening() as listener:
        told = Port(source, port_of(listener))

        # WHEN
        exchange(listener, request_bytes, answer_bytes)
        told.wait("life", 2)

        # THEN both ends are told, each once
        (client,), (server,) = told.of("life", "client"), told.of("life", "server")
        assert (client["sent"], client["received"]) == (request_bytes, answer_bytes)
        assert (server["sent"], server["received"]) == (answer_bytes, request_bytes)
        assert client["pid"] == server["pid"] == os.getpid()
        assert client["local_port"] == server["peer_port"] != 0


def test_connections_of_ipv6_are_told(source):
    # GIVEN
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        told = Port(source, listener.getsockname()[1])

        # WHEN
        exchange(listener, 7, 9)
        rows = told.wait("life", 2)

        # THEN
        loopback = socket.inet_pton(socket.AF_INET6, "::1")
        assert {bytes(row[end]) for row in rows for end in ("local", "peer")} == {loopback}
        assert sorted((int(row["sent"]), int(row["received"])) for row in rows) == [(7, 9), (9, 7)]


def test_duration_is_what_the_client_measured(source):
    # GIVEN
    with listening() as listener:
        told = Port(source, port_of(listener))

        # WHEN a connection lives for some time
        with socket.create_connection(listener.getsockname()), listener.accept()[0]:
            begun = time.monotonic()
            time.sleep(0.3)
            lived = time.monotonic() - begun
        rows = told.wait("life", 2)

        # THEN
        for row in rows:
            assert lived * 0.9 <= row["duration_ns"] / 1e9 <= lived + 2


def test_states_are_complete_and_in_order(source):
    # GIVEN
    with listening() as listener:
        told = Port(source, port_of(listener))

        # WHEN
        exchange(listener, 10, 10)
        told.wait("life", 2)

        # THEN
        states = told.of("state")
        of_client = [row for row in states if row["peer_port"] == told.port]
        # The first change of what is accepted comes before it has a peer (Linux before 6.12).
        first = STATES.index("SYN_RECV")
        of_server = [
            row
            for row in states
            if row["local_port"] == told.port and (row["peer_port"] or row["state"] == first)
        ]
        for rows, path in (
            (of_client, "CLOSE SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE"),
            (of_server, "LISTEN SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK CLOSE"),
        ):
            steps = [(STATES[row["old_state"]], STATES[row["state"]]) for row in rows]
            names = path.split()
            assert steps == list(itertools.pairwise(names))
            assert (np.diff([row["time_ns"] for row in rows]) >= 0).all()


def test_a_connect_is_told_with_its_latency_or_its_error(source):
    # GIVEN a listener, and a port where nobody listens
    with listening() as listener, listening() as other:
        good, bad = Port(source, port_of(listener)), port_of(other)
        other.close()

        # WHEN
        with socket.create_connection(listener.getsockname()):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", bad))
            (connected,) = good.wait("connect", 1)

        # THEN
        assert connected["error"] == 0 < connected["duration_ns"] < 5e9
        assert connected["pid"] == os.getpid()


def test_a_refused_connect_is_told_with_its_error(source):
    # GIVEN a port where nobody listens
    with listening() as listener:
        told = Port(source, port_of(listener))
    # WHEN
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", told.port))

    # THEN
    (refused,) = told.wait("connect", 1)
    assert refused["error"] == 111
    assert STATES[refused["state"]] == "CLOSE"
    assert len(told.wait("reset_received", 1)) == 1


def test_an_accept_is_told_with_the_length_of_the_queue_and_its_limit(source):
    # GIVEN a listener that does not accept
    with listening() as listener, ExitStack() as stack:
        listener.listen(5)
        told = Port(source, port_of(listener))

        # WHEN
        for _ in range(4):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        rows = told.wait("accept", 4)

        # THEN
        assert [row["queue"] for row in rows] == [1, 2, 3, 4]
        assert {int(row["limit"]) for row in rows} == {5}
        assert {int(row["pid"]) for row in rows} == {os.getpid()}


def test_a_reset_is_told_on_both_ends(source):
    # GIVEN a connection
    with listening() as listener:
        told = Port(source, port_of(listener))
        with socket.create_connection(listener.getsockname()) as client:
            server, _ = listener.accept()

            # WHEN the server gives it up (SO_LINGER with no time)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            server.close()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            rows = told.wait("reset_sent", 1) + told.wait("reset_received", 1)
            lives = told.wait("life", 2)

        # THEN
        assert [SIDES[row["side"]] for row in rows] == ["server", "client"]
        assert {SIDES[row["side"]]: int(row["error"]) for row in lives}["client"] == 104


@pytest.mark.skipif(TELLS_DROPS, reason="this kernel tells reasons of drops: nothing to refuse")
def test_drops_without_reasons_are_refused_in_one_line():
    with pytest.raises(PodscopeError, match=r"^drops: this kernel tells no reasons .* Linux 5.17"):
        TcpSource(TcpOptions(events=("drop",)))


@pytest.mark.skipif(not TELLS_DROPS, reason="this kernel has no reasons of drops")
def test_a_drop_is_told_with_the_kernels_reason(source):
    # GIVEN a port where nobody listens
    with listening() as listener:
        told = Port(source, port_of(listener))

    # WHEN
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", told.port))

    # THEN
    (row,) = told.wait("drop", 1)
    assert row["reason_text"] == b"NO_SOCKET"
    assert row["flags"] == 2  # SYN
    assert row["local_port"] == told.port


LOSSY = """
def transfer(count):
    listener = socket.create_server(("127.0.0.1", 0))
    if not os.fork():
        end = socket.create_connection(listener.getsockname())
        while end.recv(1 << 16):
            pass
        os._exit(0)
    end, _ = listener.accept()
    end.sendall(bytes(count))
    unacked = True
    while unacked:  # all has come to the other end
        told = ss("-tinO", "state", "established", f"sport = :{listener.getsockname()[1]}")
        unacked = " unacked:" in told or not told.split()[0] == told.split()[1] == "0"
    end.shutdown(socket.SHUT_WR)
    end.recv(1)
    end.close()
    os.wait()
    retransmits = [word for word in told.split() if word.startswith("retrans:")]
    return [listener.getsockname()[1], int(retransmits[0].partition("/")[2]) if retransmits else 0]
"""


def test_retransmits_are_the_kernels_own(own_cgroup, source, tmp_path):
    # GIVEN a network of its own that loses packets
    before = time.monotonic()
    lossy = compile_bpf(SOURCES / "loss.bpf.c", tmp_path / "loss.bpf.o")
    with BpfObject(lossy) as loss, network_namespace(LOSSY) as inside:
        loss.load()
        cgroup = os.open(own_cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            loss.attach_cgroup("lose", cgroup)
        finally:
            os.close(cgroup)

        # WHEN
        port, of_ss = inside.ask("transfer(3_000_000)")
        told = Port(source, port)
        told.wait("life", 2)
        counted = inside.ask("snmp()")["RetransSegs"]

        # THEN
        assert counted > 0, f"nothing was lost in {time.monotonic() - before:.1f} s"
        assert sum(int(row["retransmits"]) for row in told.of("retransmit")) == counted
        assert sum(int(row["retransmits"]) for row in told.of("life")) == counted
        sums = source.read()["tcp"]
        assert sums["retransmits"][sums["port"] == port].sum() == counted
        (server,) = told.of("life", "server")
        assert server["sent"] == 3_000_000
        assert server["retransmits"] == of_ss


def test_sums_are_exact_where_events_are_lost():
    # GIVEN a ring that is much too small
    small = TcpOptions(events=("connect", "accept", "life"), ring_bytes=os.sysconf("SC_PAGESIZE"))
    count = 1500
    with TcpSource(small) as source, listening() as listener:
        port = port_of(listener)

        # WHEN many short connections come and go, and the sums are read meanwhile
        rows = []
        for number in range(count):
            exchange(listener, 100, 50)
            if number % 250 == 0:
                rows.append(source.read()["tcp"])
        time.sleep(0.1)
        rows.append(source.read()["tcp"])
        events = source.read_events()["tcp_event"]

        # THEN
        sums = np.concatenate(rows)
        sums = sums[(sums["port"] == port) & (sums["pid"] == os.getpid())]
        client, server = sums[sums["side"] == 2], sums[sums["side"] == 1]
        assert client["connects"].sum() == server["accepts"].sum() == count
        assert client["closes"].sum() == server["closes"].sum() == count
        assert client["sent"].sum() == server["received"].sum() == 100 * count
        assert client["received"].sum() == server["sent"].sum() == 50 * count
        assert client["timed"].sum() == count
        assert source.lost()["ring_full"] + len(events) >= 4 * count


STORM = """
def client(port, result, seconds, most):
    made, until = 0, time.monotonic() + seconds
    while made < most and time.monotonic() < until:
        end = socket.socket()
        end.connect(("127.0.0.1", port))
        end.send(b"x" * 100)
        end.close()
        made += 1
    end = socket.create_connection(("127.0.0.1", port))  # with no bytes: the last one
    end.close()
    os.write(result, struct.pack("!I", made + 1))

def server(listener):
    empty = False
    while not empty:
        end, _ = listener.accept()
        empty = not end.recv(1000)
        end.close()

def storm(pairs, seconds, most):
    ends, ports = [], []
    for _ in range(pairs):
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        ports.append(listener.getsockname()[1])
        out, result = os.pipe()
        ends.append(out)
        for work in (lambda: client(ports[-1], result, seconds, most), lambda: server(listener)):
            if not os.fork():
                work()
                os._exit(0)
        listener.close()
    counts = [struct.unpack("!I", os.read(out, 4))[0] for out in ends]
    for _ in range(2 * pairs):
        assert os.wait()[1] == 0
    while ss("-tan", "state", "connected", "exclude", "time-wait"):
        time.sleep(0.05)  # the last segments are on their way
    return [ports, counts]
"""


def test_in_a_storm_sums_are_exact_and_events_told_or_counted():
    # GIVEN a ring that the storm fills, and as many pairs of programs as keep all CPUs busy
    options = TcpOptions(events=("life", "connect", "accept"), ring_bytes=1 << 16)
    pairs = max(os.cpu_count() or 1, 2)
    with TcpSource(options) as source, network_namespace(STORM) as inside:
        reader = Reader(source)
        reader.start()

        # WHEN they connect as fast as the machine lets them, while sums and events are read
        ports, counts = inside.ask(f"storm({pairs}, 3, 12_000)")
        reader.stop()
        rows, events = reader.rows()

        # THEN
        for port, count in zip(ports, counts, strict=True):
            ours = rows[rows["port"] == port]
            client, server = ours[ours["side"] == 2], ours[ours["side"] == 1]
            assert client["connects"].sum() == server["accepts"].sum() == count
            assert client["le"].sum() == client["buckets"].sum() == count
            assert client["closes"].sum() == count
            assert server["closes"].sum() == count
            assert client["sent"].sum() == server["received"].sum() == 100 * (count - 1)
        # AND each event is told once, or counted as lost
        mine = np.isin(events["local_port"], ports) | np.isin(events["peer_port"], ports)
        total = 4 * sum(counts)
        assert mine.sum() < total  # it was a storm for this ring
        assert mine.sum() + source.lost()["ring_full"] >= total
        names = ["what", "side", "local_port", "peer_port", "time_ns"]
        assert len(np.unique(events[mine][names])) == mine.sum()


def test_histograms_of_connects_are_exact_over_reads(source):
    # GIVEN
    with listening() as listener:
        told = Port(source, port_of(listener))

        # WHEN connections are made while the sums are read
        read = []
        for number in range(60):
            exchange(listener, 1, 1)
            if number % 20 == 0:
                read.append(source.read()["tcp"])
        events = told.wait("connect", 60, "client")
        read.append(source.read()["tcp"])

        # THEN together they are those of the single events
        rows = np.concatenate(read)
        rows = rows[(rows["port"] == told.port) & (rows["side"] == SIDES.index("client"))]
        ns = np.array([int(row["duration_ns"]) for row in events])
        assert rows["connects"].sum() == rows["le"].sum() == rows["buckets"].sum() == 60
        assert rows["connect_ns"].sum() == ns.sum()
        assert rows["connect_max_ns"].max() == ns.max()
        bounds = [*red.CLASSIC_BOUNDS, np.inf]
        classic = np.histogram(ns / 1e9, [-np.inf, *np.nextafter(bounds, np.inf)])[0]
        assert rows["le"].sum(axis=0).tolist() == classic.tolist()
        edges = np.exp2((np.arange(red.BUCKETS + 1) + red.OFFSET) / 8)
        buckets = np.bincount(np.searchsorted(edges[1:-1], ns / 1e9), minlength=red.BUCKETS)
        assert rows["buckets"].sum(axis=0).tolist() == buckets.tolist()


def test_histograms_beyond_the_cap_are_counted():
    # GIVEN room for one series, and one piece of a histogram
    with TcpSource(TcpOptions(max_series=1)) as source, ExitStack() as stack:
        listeners = [stack.enter_context(listening()) for _ in range(3)]

        # WHEN
        for listener in listeners:
            exchange(listener, 1, 1)
        rows = source.read()["tcp"]

        # THEN each that has a duration is in the histograms, or counted as not in them
        missing = int(rows["le"].sum()) - int(rows["buckets"].sum())
        assert 0 <= missing <= source.lost()["chunks_full"]


def test_sums_beyond_the_cap_are_counted_together():
    # GIVEN room for one series
    with TcpSource(TcpOptions(max_series=1)) as source, listening() as listener:
        # WHEN a connection has two ends
        exchange(listener, 1, 1)
        time.sleep(0.1)
        rows = source.read()["tcp"]

        # THEN what found no place is counted
        assert len(rows) <= 1
        assert source.lost()["table_full"] > 0


def test_a_connection_from_before_the_start_has_an_owner_and_no_duration():
    # GIVEN
    with listening() as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        client.sendall(b"before")
        server.recv(10)

        # WHEN
        with TcpSource() as source:
            told = Port(source, port_of(listener))
            client.close()
            server.close()
            rows = told.wait("life", 2)

            # THEN its totals are whole; an older build finds no process
            assert {int(row["pid"]) for row in rows} == {os.getpid() if newest(source) else 0}
            assert {int(row["duration_ns"]) for row in rows} == {0}
            assert sorted(int(row["sent"]) for row in rows) == [0, 6]


def test_samples_of_a_window_are_at_most_one_a_connection_and_interval():
    # GIVEN
    options = TcpOptions(events=("window",), window_seconds=60.0)
    with TcpSource(options) as source, listening() as listener:
        told = Port(source, port_of(listener))

        # WHEN many segments pass
        with socket.create_connection(listener.getsockname()) as client:
            server, _ = listener.accept()
            with server:
                for _ in range(100):
                    client.sendall(b"x")
                    server.recv(1)
                    server.sendall(b"y")
                    client.recv(1)
        told.read()

        # THEN
        rows = told.of("window")
        assert len(rows) == 2
        assert {SIDES[row["side"]] for row in rows} == {"server", "client"}
        assert all(row["cwnd"] > 0 and row["sndbuf"] > 0 for row in rows)


def test_an_event_that_there_is_not_is_refused():
    with pytest.raises(UsageError, match="events: 'x': choose from connect, accept"):
        TcpSource(TcpOptions(events=("x",)))


def test_rows_have_the_names_of_their_processes():
    # GIVEN
    with TcpSource() as source, listening() as listener:
        feed = Feed("tcp", source, ("tcp", "tcp_event"))
        port = port_of(listener)

        # WHEN
        exchange(listener, 1, 1)
        time.sleep(0.1)
        batches = {batch.kind: batch for batch in feed.interval()}

        # THEN
        name = Path(os.path.realpath(sys.executable)).name
        sums = schema_events.columns(batches["tcp"])
        mine = sums["server.port"] == port
        assert set(sums["process.executable.name"][mine]) == {name}
        assert set(sums["side"][mine]) == {"server", "client"}
        events = schema_events.columns(batches["tcp_event"])
        ours = (events["network.local.port"] == port) & (events["podscope.tcp.event"] == "life")
        assert events["process.executable.name"][ours].tolist() == [name]
        assert events["network.peer.address"][ours].tolist() == ["127.0.0.1"]


@pytest.mark.parametrize("words", [["connect"], ["life"], []])
def test_the_command_tells_connections(words):
    # GIVEN
    with listening() as listener:
        port = port_of(listener)
        command = [sys.executable, "-m", "podscope", "tcp", *words, "-o", "json"]
        only = ["--port", str(port)]
        with subprocess.Popen([*command, *only], stdout=subprocess.PIPE, text=True) as process:
            # WHEN
            wait_until_attached(process)
            exchange(listener, 10, 20)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            out = process.communicate(timeout=60)[0]

    # THEN
    lines = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 0
    rows = [line for line in lines if line.get("process.pid") == os.getpid()]
    if words:
        assert len(rows) == (1 if words == ["connect"] else 2)
        assert {row["podscope.tcp.event"] for row in rows} == set(words)
    else:
        assert sum(row["podscope.tcp.connects"] for row in rows) == 1
        assert {row["kind"] for row in rows} == {"tcp"}
    assert lines[-1]["kind"] == "summary"
