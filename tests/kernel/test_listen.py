# SPDX-License-Identifier: Apache-2.0
"""Listeners' queues and drops, compared with the kernel's own counters."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from in_a_pod import in_a_pod
from network_namespace import Inside
from network_namespace import network_namespace

from podscope import schema_events
from podscope.errors import PodscopeError
from podscope.pipeline import Feed
from podscope.schema_listen import REASONS
from podscope.sources import listen
from podscope.sources.listen import ListenOptions
from podscope.sources.listen import ListenSource

FUNCTIONS = """
HERE = "198.51.100.1"  # RFC 5737: of no one

def listen(backlog, address="127.0.0.1"):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kept.append(socket.create_server((address, 0), backlog=backlog, family=family))
    return kept[-1].getsockname()[1]

def listen_mptcp(backlog):
    kept.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP))
    kept[-1].bind(("127.0.0.1", 0))
    kept[-1].listen(backlog)
    return kept[-1].getsockname()[1]

def accept(which=0):
    end, _ = kept[which].accept()
    end.close()

def close(which=0):
    kept[which].close()

def connect(port, count, address="127.0.0.1"):
    # another process: whose packets come is not whose listener it is
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    if os.fork():
        os._exit(0)
    for one in kept:
        one.close()
    ends = []
    for _ in range(count):
        end = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        end.setblocking(False)
        end.connect_ex((address, port))
        ends.append(end)
    time.sleep(20)
    os._exit(0)

def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

def syn(source, source_port, port):
    pseudo = socket.inet_aton(source) + socket.inet_aton(HERE) + struct.pack("!BBH", 0, 6, 20)
    head = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 5 << 4, 2, 1024, 0, 0)
    tcp = head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0)
    return ip + socket.inet_aton(source) + socket.inet_aton(HERE) + tcp

def nowhere():
    for words in (
        "link add veth-a type veth peer name veth-b", f"address add {HERE}/24 dev veth-a",
        "link set veth-a up", "link set veth-b up",
        "neighbour add 198.51.100.7 lladdr 02:00:00:00:00:07 dev veth-a",
    ):
        subprocess.run(["ip", *words.split()], check=True)

def flood(port, count):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for number in range(count):
            raw.sendto(syn("198.51.100.7", 1024 + number, port), (HERE, 0))
"""


@pytest.fixture
def inside() -> Iterator[Inside]:
    with network_namespace(FUNCTIONS) as opened:
        yield opened


@pytest.fixture(params=["listen", "listen_v2"])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both builds: that for older kernels has no iterator over open files."""
    newest = listen.load_newest
    monkeypatch.setattr(listen, "load_newest", lambda _, prepare: newest(request.param, prepare))
    return str(request.param)


@pytest.fixture
def source(build: str) -> Iterator[ListenSource]:
    with ListenSource() as opened:
        yield opened


def of_port(rows: np.ndarray, port: int, pid: int) -> np.ndarray:
    return rows[(rows["port"] == port) & (rows["pid"] == pid)]


class Told:
    """What a source has told of a listener so far."""

    def __init__(self, source: ListenSource, port: int, pid: int) -> None:
        self.source, self.port, self.pid = source, port, pid
        self.drops = self.overflows = 0
        self.rows: list[np.void] = []

    def read(self) -> np.void:
        (row,) = of_port(self.source.read()["listen"], self.port, self.pid)
        self.drops += int(row["drops"])
        self.overflows += int(row["overflows"])
        self.rows.append(row)
        return row

    def compare(self, inside: Inside) -> dict[str, int]:
        """Reads until the kernel's counters stood still meanwhile; they are then the same."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            before = inside.ask("counters()")
            self.read()
            after = inside.ask("counters()")
            if before["ListenDrops"] == after["ListenDrops"]:
                assert self.drops == after["ListenDrops"]
                assert self.overflows == after["ListenOverflows"]
                return dict(after)
        raise AssertionError("the counters did not stand still for a moment in 30 s")


def until(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_queue_and_limit_are_those_of_ss(inside, source):
    # GIVEN a listener that does not accept, and connections that fit into its queue
    port = inside.ask("listen(8)")
    told = Told(source, port, inside.pid)
    inside.ask(f"connect({port}, 5)")

    # WHEN
    until(lambda: inside.ask("ss('-ltn')").split()[1] == "5")
    row = told.read()

    # THEN
    state, queue, limit = inside.ask("ss('-ltn')").split()[:3]
    assert (state, int(queue), int(limit)) == ("LISTEN", row["accept_queue"], row["limit"])
    assert row["limit"] == 8
    assert row["accept_highest"] == 5
    assert told.drops == 0
    assert row["netns"] == Path(f"/proc/{inside.pid}/ns/net").stat().st_ino


def test_drops_of_a_full_accept_queue_are_the_kernels_own(inside, source):
    # GIVEN a listener that does not accept
    port = inside.ask("listen(4)")
    told = Told(source, port, inside.pid)
    told.read()

    # WHEN it is flooded by another process
    inside.ask(f"connect({port}, 40)")
    until(lambda: inside.ask("counters()")["ListenOverflows"] > 10)
    counters = told.compare(inside)

    # THEN one more than the limit is in the queue, and the rest was dropped
    assert counters["ListenOverflows"] == counters["ListenDrops"] > 10
    assert told.rows[-1]["accept_queue"] == 5
    assert any(row["event"] & 1 for row in told.rows)
    assert any(row["event"] & 4 for row in told.rows)


def test_the_highest_is_told_also_where_the_queue_was_emptied_since(inside, source):
    # GIVEN
    port = inside.ask("listen(10)")
    told = Told(source, port, inside.pid)
    inside.ask(f"connect({port}, 9)")
    until(lambda: inside.ask("ss('-ltn')").split()[1] == "9")

    # WHEN
    inside.ask("[accept() for _ in range(9)]")
    first, second = told.read(), told.read()

    # THEN the event is told once
    assert (first["accept_queue"], first["accept_highest"], first["event"]) == (0, 9, 1)
    assert (second["accept_queue"], second["accept_highest"], second["event"]) == (0, 0, 0)


@pytest.mark.parametrize("cookies", [0, 1])
def test_a_syn_flood_fills_the_other_queue(inside, source, cookies):
    # GIVEN a listener, and addresses that never answer
    inside.ask(f"setting('ipv4/tcp_syncookies', {cookies})")
    inside.ask("nowhere()")
    port = inside.ask("listen(16, HERE)")
    told = Told(source, port, inside.pid)

    # WHEN
    inside.ask(f"flood({port}, 60)")
    counters = told.compare(inside)

    # THEN
    last = told.rows[-1]
    assert last["accept_highest"] == 0
    # Full is >= the limit in older kernels, and > in newer ones (inet_csk_reqsk_queue_is_full).
    assert last["syn_highest"] == last["syn_queue"]
    assert last["syn_queue"] in (16, 17)
    assert last["event"] & 2
    if cookies:
        assert counters["SyncookiesSent"] > 0
        assert told.drops == 0
    else:
        assert told.drops == 60 - int(last["syn_queue"])
        assert told.overflows == 0


def test_drops_of_a_listener_that_is_closed_within_the_interval_are_told(inside):
    # GIVEN a listener that has dropped
    with ListenSource() as source:
        port = inside.ask("listen(2)")
        told = Told(source, port, inside.pid)
        inside.ask(f"connect({port}, 12)")
        until(lambda: inside.ask("counters()")["ListenOverflows"] > 5)
        inside.ask("setting('ipv4/tcp_syn_retries', 1)")

        # WHEN
        counters = inside.ask("(close(), counters())[1]")
        row = told.read()

        # THEN
        assert row["closed"] == 1
        assert row["drops"] == counters["ListenDrops"]
        assert len(of_port(source.read()["listen"], port, inside.pid)) == 0


def test_a_listener_that_is_there_already_is_told_with_its_process(own_cgroup):
    # GIVEN
    with socket.create_server(("127.0.0.1", 0), backlog=7) as listener:
        port = listener.getsockname()[1]
        with ListenSource() as source:
            # WHEN
            feed = Feed("listen", source, ("listen",))
            (batch,) = feed.interval()
            columns = schema_events.columns(batch)
            place = columns["server.port"].tolist().index(port)

            # THEN
            told = {name: column[place] for name, column in columns.items()}
            assert told["process.pid"] == os.getpid()
            assert told["process.executable.name"] == Path(os.path.realpath(sys.executable)).name
            assert told["podscope.listen.limit"] == 7
            assert told["server.address"] == "127.0.0.1"
            assert batch.rows["cgroup_id"][place] == os.stat(own_cgroup).st_ino


def test_a_listener_of_mptcp_is_told_from_before_the_start_and_after_it(inside):
    # GIVEN listeners such as Go's servers have
    if not hasattr(socket, "IPPROTO_MPTCP"):
        pytest.skip("this Python has no IPPROTO_MPTCP")
    try:
        before = inside.ask("listen_mptcp(6)")
    except AssertionError:
        pytest.skip("this kernel has no MPTCP")
    with ListenSource() as source:
        after = inside.ask("listen_mptcp(7)")

        # WHEN connections wait
        inside.ask(f"connect({before}, 3)")
        inside.ask(f"connect({after}, 3)")
        until(lambda: inside.ask("ss('-ltn')").count(" 3 ") == 2)
        rows = source.read()["listen"]

        # THEN both are told, each once
        for port, limit in ((before, 6), (after, 7)):
            (row,) = of_port(rows, port, inside.pid)
            assert (row["accept_queue"], row["limit"]) == (3, limit)
        # AND not any more when they are closed
        inside.ask("[close(which) for which in (0, 1)]")
        assert of_port(source.read()["listen"], before, inside.pid).size == 0


# A source that tells what it has read for each line that it is given.
READER = """
import json, sys
from podscope.sources import listen
newest = listen.load_newest
listen.load_newest = lambda _, prepare: newest(sys.argv[1], prepare)
with listen.ListenSource() as source:
    print(flush=True)
    for port in map(int, sys.stdin):
        rows = source.read()["listen"]
        ours = rows[rows["port"] == port]
        print(json.dumps([int(ours[name].sum()) for name in ("drops", "overflows")]), flush=True)
"""


def test_overflows_are_told_with_the_rights_of_an_agent(inside, build):
    # GIVEN
    with in_a_pod(READER, build) as ask:
        port = inside.ask("listen(3)")

        # WHEN it is flooded
        inside.ask(f"connect({port}, 30)")
        until(lambda: inside.ask("counters()")["ListenOverflows"] > 8, 30)
        drops = overflows = 0
        settled = False
        while not settled:
            before = inside.ask("counters()")
            more = ask(str(port))
            drops, overflows = drops + more[0], overflows + more[1]
            settled = before["ListenDrops"] == inside.ask("counters()")["ListenDrops"]

    # THEN they are the kernel's own
    assert (overflows, drops) == (before["ListenOverflows"], before["ListenDrops"])


def test_overflows_of_a_process_that_is_gone_are_told(source):
    # GIVEN a listener that has dropped
    with network_namespace(FUNCTIONS) as inside:
        port = inside.ask("listen(2)")
        pid = inside.pid
        source.read()
        inside.ask(f"connect({port}, 12)")
        until(lambda: inside.ask("counters()")["ListenOverflows"] > 5, 30)

    # WHEN it has ended
    (row,) = of_port(source.read()["listen"], port, pid)

    # THEN
    assert row["closed"] == 1
    assert row["overflows"] == row["drops"] > 5


def test_overflows_count_from_where_a_listener_begins(inside, source):
    # GIVEN a listener that has dropped and is gone since more than an interval
    gone = inside.ask("listen(2)")
    inside.ask("setting('ipv4/tcp_syn_retries', 1)")
    inside.ask(f"connect({gone}, 12)")
    until(lambda: inside.ask("counters()")["ListenOverflows"] > 5, 30)
    inside.ask("close()")
    source.read()
    source.read()
    earlier = inside.ask("counters()")

    # WHEN another one in its place drops handshakes of which none is an overflow
    inside.ask("setting('ipv4/tcp_syncookies', 0)")
    inside.ask("nowhere()")
    port = inside.ask("listen(8, HERE)")
    inside.ask(f"flood({port}, 40)")
    (row,) = of_port(source.read()["listen"], port, inside.pid)

    # THEN
    counters = inside.ask("counters()")
    assert counters["ListenOverflows"] == earlier["ListenOverflows"]
    assert row["drops"] == counters["ListenDrops"] - earlier["ListenDrops"] > 0
    assert row["overflows"] == 0


def test_of_several_listeners_the_one_that_overflows_is_told(inside, source):
    # GIVEN three in one network namespace
    ports = inside.ask("[listen(4) for _ in range(3)]")
    told = [Told(source, port, inside.pid) for port in ports]

    # WHEN
    inside.ask(f"connect({ports[1]}, 30)")
    until(lambda: inside.ask("counters()")["ListenOverflows"] > 10, 30)
    rows = source.read()["listen"]

    # THEN
    found = [of_port(rows, one.port, one.pid)[0] for one in told]
    assert [bool(row["drops"]) for row in found] == [False, True, False]
    assert [int(row["overflows"]) for row in found] == [0, int(found[1]["drops"]), 0]


def test_drops_from_before_the_start_are_nobodys(inside):
    # GIVEN
    port = inside.ask("listen(2)")
    inside.ask(f"connect({port}, 12)")
    until(lambda: inside.ask("counters()")["ListenOverflows"] > 5)
    inside.ask("setting('ipv4/tcp_syn_retries', 1)")

    # WHEN
    with ListenSource() as source:
        before = inside.ask("counters()")["ListenDrops"]
        row = Told(source, port, inside.pid).read()
        after = inside.ask("counters()")["ListenDrops"]

    # THEN
    assert row["drops"] <= after - before


def test_addresses_of_both_families_are_told():
    # GIVEN
    with (
        ListenSource() as source,
        socket.create_server(("", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        # WHEN
        (batch,) = Feed("listen", source, ("listen",)).interval()
        columns = schema_events.columns(batch)
        ports = columns["server.port"].tolist()

        # THEN
        addresses = [
            columns["server.address"][ports.index(s.getsockname()[1])] for s in (four, six)
        ]
        assert addresses == ["0.0.0.0", "::1"]


def test_a_connection_is_no_listener():
    # GIVEN a connection accepted from a listener: notes are copied to it
    with ListenSource() as source, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
            # WHEN
            rows = source.read()["listen"]

            # THEN
            assert (rows["port"] == port).sum() == 1


def podscope(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "podscope", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_lists_every_listener_with_its_owner():
    # GIVEN
    with socket.create_server(("127.0.0.1", 0), backlog=9) as listener:
        port = listener.getsockname()[1]

        # WHEN
        table = podscope("listen", "--once", "--port", str(port))
        lines = [
            json.loads(line) for line in podscope("listen", "--once", "-o", "json").splitlines()
        ]

    # THEN
    header, row = table.splitlines()[:2]
    assert header.split()[:2] == ["LISTENER", "ACCEPT"]
    assert row.split()[0] == f"127.0.0.1:{port}"
    assert f"[{os.getpid()}]" in row
    (told,) = [one for one in lines if one.get("server.port") == port]
    assert told["kind"] == "listen"
    assert told["podscope.listen.limit"] == 9
    assert lines[-1]["kind"] == "summary"


# --- single drops --------------------------------------------------------------------------------


@pytest.fixture(params=[listen.WAYS[0], listen.WAYS[2]], ids=["fentry", "kprobes"])
def drops(
    request: pytest.FixtureRequest, build: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ListenSource]:
    """Each way to tell single drops, with each build."""
    monkeypatch.setattr(listen, "WAYS", [request.param])
    try:
        opened = ListenSource(kinds=("listen", "listen_drop"))
    except PodscopeError as error:
        pytest.skip(f"not told one by one here: {error}")
    with opened:
        yield opened


def settled_drops(source: ListenSource, inside: Inside, port: int) -> tuple[np.ndarray, dict]:
    """Single drops of a port, and the counters of its namespace, which stood still meanwhile."""
    told = source.read_events()["listen_drop"]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        before = inside.ask("counters()")
        told = np.concatenate([told, source.read_events()["listen_drop"]])
        if before["ListenDrops"] == inside.ask("counters()")["ListenDrops"]:
            return told[told["port"] == port], before
    raise AssertionError("the counters did not stand still for a moment in 30 s")


def test_each_drop_of_a_full_accept_queue_is_told_with_its_listener(inside, drops):
    # GIVEN a listener that does not accept
    port = inside.ask("listen(4)")

    # WHEN it is flooded by another process
    inside.ask(f"connect({port}, 40)")
    until(lambda: inside.ask("counters()")["ListenOverflows"] > 10, 30)
    rows, counters = settled_drops(drops, inside, port)

    # THEN
    assert rows["drops"].sum() == counters["ListenDrops"] == counters["ListenOverflows"]
    assert set(rows["pid"].tolist()) == {inside.pid}
    assert set(rows["reason"].tolist()) == {REASONS.index("accept_queue")}
    assert set(rows["accept_queue"].tolist()) == {5}
    assert set(rows["limit"].tolist()) == {4}
    assert set(rows["netns"].tolist()) == {Path(f"/proc/{inside.pid}/ns/net").stat().st_ino}
    assert {bytes(row)[-4:] for row in rows["peer"]} == {bytes([127, 0, 0, 1])}
    assert (rows["peer_port"] > 0).all()
    assert drops.lost() == dict.fromkeys(listen.LOST, 0)


def test_each_drop_over_ipv6_is_told(inside, drops):
    # GIVEN
    port = inside.ask("listen(4, '::1')")

    # WHEN
    inside.ask(f"connect({port}, 40, '::1')")
    until(lambda: inside.ask("counters()")["ListenOverflows"] > 10, 30)
    rows, counters = settled_drops(drops, inside, port)

    # THEN
    assert rows["drops"].sum() == counters["ListenDrops"]
    loopback = socket.inet_pton(socket.AF_INET6, "::1")
    assert {bytes(row[end]) for row in rows for end in ("address", "peer")} == {loopback}


@pytest.mark.parametrize("cookies", [0, 1])
def test_each_drop_of_a_syn_flood_is_told_with_who_sent_it(inside, drops, cookies):
    # GIVEN a listener, and addresses that never answer
    inside.ask(f"setting('ipv4/tcp_syncookies', {cookies})")
    inside.ask("nowhere()")
    port = inside.ask("listen(16, HERE)")

    # WHEN
    inside.ask(f"flood({port}, 60)")
    rows, counters = settled_drops(drops, inside, port)

    # THEN with cookies nothing is dropped
    assert rows["drops"].sum() == counters["ListenDrops"]
    assert bool(len(rows)) == (not cookies)
    assert set(rows["reason"].tolist()) <= {REASONS.index("syn_queue")}
    assert {socket.inet_ntoa(bytes(row)[-4:]) for row in rows["peer"]} <= {"198.51.100.7"}
    assert len(set(rows["peer_port"].tolist())) == len(rows)


def test_single_drops_of_a_listener_from_before_the_start_are_told(inside, build):
    # GIVEN drops from before the start
    port = inside.ask("listen(2)")
    inside.ask(f"connect({port}, 12)")
    until(lambda: inside.ask("counters()")["ListenOverflows"] > 5, 30)
    try:
        opened = ListenSource(kinds=("listen_drop",))
    except PodscopeError as error:
        pytest.skip(f"not told one by one here: {error}")
    with opened as source:
        before = inside.ask("counters()")["ListenDrops"]

        # WHEN
        inside.ask(f"connect({port}, 12)")
        until(lambda: inside.ask("counters()")["ListenDrops"] > before + 5, 30)
        rows, counters = settled_drops(source, inside, port)

    # THEN only what came since is told
    assert before <= counters["ListenDrops"] - rows["drops"].sum() + 12
    assert rows["drops"].sum() <= counters["ListenDrops"] - 5
    assert set(rows["pid"].tolist()) == {inside.pid}


def test_who_wants_drops_alone_loses_no_listener(inside, build):
    # GIVEN
    try:
        opened = ListenSource(kinds=("listen_drop",))
    except PodscopeError as error:
        pytest.skip(f"not told one by one here: {error}")
    with opened as source:
        # WHEN more listeners end than there is room for
        for _ in range(40):
            for _ in range(100):
                socket.create_server(("127.0.0.1", 0)).close()
            source.read_events()

        # THEN
        assert source.lost() == dict.fromkeys(listen.LOST, 0)
        assert source.ring_use() < 0.1


def test_drops_that_found_no_room_are_counted(inside, build):
    # GIVEN a ring for some tens of drops
    try:
        opened = ListenSource(ListenOptions(ring_bytes=os.sysconf("SC_PAGESIZE")), ("listen_drop",))
    except PodscopeError as error:
        pytest.skip(f"not told one by one here: {error}")
    with opened as source:
        inside.ask("setting('ipv4/tcp_syncookies', 0)")
        inside.ask("nowhere()")
        port = inside.ask("listen(8, HERE)")

        # WHEN
        inside.ask(f"flood({port}, 300)")
        rows, counters = settled_drops(source, inside, port)

        # THEN
        lost = source.lost()["drops_ring_full"]
        assert lost > 0
        assert rows["drops"].sum() + lost == counters["ListenDrops"]


def test_single_drops_are_refused_in_one_line_where_the_kernel_has_no_way(monkeypatch):
    # GIVEN
    monkeypatch.setattr(listen, "WAYS", [])

    # WHEN / THEN
    with pytest.raises(PodscopeError, match=r"^single drops: this kernel has no fentry and no kpr"):
        ListenSource(kinds=("listen_drop",))
    # AND listeners are watched all the same
    ListenSource().close()
