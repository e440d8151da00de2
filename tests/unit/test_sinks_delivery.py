# SPDX-License-Identifier: Apache-2.0
"""The way to a sink: queues, retries, drops that are counted, and the end."""

from __future__ import annotations

import time

import pytest
import records
import sink_rows
from sink_rows import Recorder
from sink_rows import wait_for

from podscope.errors import PodscopeError
from podscope.settings import Size
from podscope.sinks import delivery
from podscope.sinks.delivery import Delivery
from podscope.sinks.disk_queue import DiskQueue
from podscope.sinks.plugin import Every
from podscope.sinks.plugin import Partly
from podscope.sinks.plugin import QueueSettings
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.plugin import TooLarge
from podscope.sinks.plugin import Unavailable

REQUEST_BYTES = records.requests(1).nbytes


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Waits of milliseconds."""
    monkeypatch.setattr(delivery, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(delivery, "LAST_WAIT", 0.1)


@pytest.fixture
def told():
    """Lines for the user."""
    return []


@pytest.fixture
def start(told):
    """Starts deliveries, and ends them after the test."""
    started = []

    def make(sink, **settings):
        queue = {
            name: settings.pop(name) for name in ("memory", "disk", "path") if name in settings
        }
        made = SinkSettings(
            type="recorder", every=Every(0.01), queue=QueueSettings(**queue), **settings
        )
        started.append(Delivery(sink, made, sink_rows.RESOURCE, told.append))
        return started[-1]

    yield make
    for one in started:
        one.stop(0.2)
        one.join()


def end(one, seconds=5.0):
    """Ends a delivery, as SIGTERM does."""
    one.stop(seconds)
    one.join()


def test_every_row_comes_once_and_in_order(start, told):
    # GIVEN
    sink = Recorder()
    one = start(sink)

    # WHEN
    for n in range(20):
        one.put(sink_rows.requests_later(n, n + 1, pid=n))
    end(one)

    # THEN
    pids = [pid for rows in sink.got for pid in rows.columns["process.pid"].tolist()]
    assert pids == [n for n in range(20) for _ in range(n + 1)]
    assert one.counts.sent == len(pids)
    assert sink.closed.is_set() and not told


def test_large_batches_come_in_pieces(start, monkeypatch):
    # GIVEN
    monkeypatch.setattr(delivery, "PIECE", 100)
    sink = Recorder()
    one = start(sink)

    # WHEN
    one.put(records.request_batch(950))
    end(one)

    # THEN
    assert [len(rows) for rows in sink.got] == [100] * 9 + [50]


def test_filters_keep_kinds_sides_and_namespaces(start):
    # GIVEN
    kinds, sides, spaces = Recorder(), Recorder(), Recorder()
    all_three = [
        start(kinds, kinds=("request",)),
        start(sides, sides=("client",)),
        start(spaces, namespaces=("sho*",)),
    ]

    # WHEN
    for one in all_three:
        one.put(records.cluster_batch())
        one.put(records.request_batch(2))
        end(one)

    # THEN
    assert [rows.kind for rows in kinds.got] == ["request"]
    assert [len(rows) for rows in sides.got] == [1]
    assert set(spaces.got[0].columns["k8s.namespace.name"]) == {"shop"}
    assert [rows.kind for rows in spaces.got] == ["http"]


def test_kinds_that_a_sink_does_not_take_do_not_come_and_are_no_drops(start):
    # GIVEN
    sink = Recorder()
    sink.only_kinds = ("http",)
    one = start(sink)

    # WHEN
    one.put(records.request_batch(2))
    one.put(records.shop_batch())
    end(one)

    # THEN
    assert [rows.kind for rows in sink.got] == ["http"]
    assert sum(one.counts.dropped.values()) == 0


def test_a_sink_that_hangs_holds_up_nobody_and_its_drops_are_counted(start, told):
    # GIVEN a queue of ten rows, and a sink that takes nothing
    sink = Recorder()
    sink.gate.clear()
    one = start(sink, memory=Size(10 * REQUEST_BYTES))

    # WHEN a thousand rows come
    begin = time.monotonic()
    for n in range(1000):
        one.put(records.request_batch(1, pid=n))
    took = time.monotonic() - begin
    sink.gate.set()
    end(one)

    # THEN all are sent or counted as dropped, and the newest are among the sent
    assert took < sink_rows.SECONDS / 4
    assert one.counts.dropped["queue_full"] > 900
    assert one.counts.sent + one.counts.dropped["queue_full"] == 1000
    assert sink.got[-1].columns["process.pid"].tolist()[-1] == 999


def test_what_cannot_be_taken_now_is_sent_again_and_told_once(start, told):
    # GIVEN
    sink = Recorder(*[Unavailable("connection refused")] * 3)
    one = start(sink)

    # WHEN
    one.put(records.request_batch(2))
    wait_for(lambda: sink.got)
    one.put(records.request_batch(1))
    end(one)

    # THEN
    assert (one.counts.sent, one.counts.retries) == (3, 3)
    assert len({rows.id for rows in sink.tried[:4]}) == 1
    assert told == ["sink recorder: connection refused", "sink recorder: works again"]


def test_a_server_that_asks_to_wait_is_waited_for(start):
    # GIVEN
    times = []
    sink = Recorder(Unavailable("too many requests", after=0.4))
    send = sink.send
    sink.send = lambda rows: (times.append(time.monotonic()), send(rows))[1]
    one = start(sink)

    # WHEN
    one.put(records.request_batch(1))
    wait_for(lambda: sink.got)

    # THEN
    assert times[1] - times[0] >= 0.4


def test_waits_grow_and_differ():
    # GIVEN / WHEN
    waits = [[delivery.backoff(n) for _ in range(50)] for n in (1, 2, 3, 50, 5000)]

    # THEN
    assert all(len(set(some)) > 1 for some in waits)
    assert [max(some) <= delivery.LAST_WAIT for some in waits] == [True] * 5
    assert max(waits[0]) < min(waits[3])


def test_rows_that_are_refused_are_dropped_counted_and_told(start, told):
    # GIVEN
    sink = Recorder(Refused("mapping conflict"))
    one = start(sink)

    # WHEN
    one.put(records.request_batch(3))
    wait_for(lambda: sink.tried)
    one.put(records.request_batch(2))
    end(one)

    # THEN
    assert (one.counts.sent, one.counts.dropped["refused"]) == (2, 3)
    assert told[0] == "sink recorder: 3 rows refused: mapping conflict"


def test_the_same_refusal_is_told_once_however_many_rows_it_takes(start, told):
    # GIVEN
    sink = Recorder(*[Refused("no such index")] * 3, Refused("mapping conflict"))
    one = start(sink)

    # WHEN
    for tried, count in enumerate((3, 2, 1, 4), start=1):
        one.put(records.request_batch(count))
        wait_for(lambda tried=tried: len(sink.tried) == tried)
    end(one)

    # THEN
    assert one.counts.dropped["refused"] == 10
    assert told == [
        "sink recorder: 3 rows refused: no such index",
        "sink recorder: 4 rows refused: mapping conflict",
    ]


def test_the_good_rows_of_a_refused_bulk_are_sent(start):
    # GIVEN a server that takes the first row, refuses the second for ever and the others for now
    def some(rows):
        raise Partly(rows.take(slice(2, None)), ((rows.take(slice(1, 2)), "too old"),), why="busy")

    sink = Recorder(some)
    one = start(sink)

    # WHEN
    one.put(records.request_batch(5))
    end(one)

    # THEN
    assert [len(rows) for rows in sink.got] == [3]
    assert (one.counts.sent, one.counts.dropped["refused"]) == (4, 1)


def test_what_is_too_large_is_sent_in_halves(start):
    # GIVEN a server that takes two rows at once, and one row never
    def at_most_two(rows):
        if len(rows) > 2 or rows.columns["process.pid"].tolist() == [3]:
            raise TooLarge("413")

    sink = Recorder(*[at_most_two] * 100)
    one = start(sink)

    # WHEN
    for n in range(4):
        one.put(records.request_batch(2, pid=n))
    end(one)

    # THEN
    pids = [pid for rows in sink.got for pid in rows.columns["process.pid"].tolist()]
    assert pids == [0, 0, 1, 1, 2, 2, 3, 3]
    assert one.counts.dropped["refused"] == 0


def test_a_single_row_that_is_too_large_is_refused(start):
    # GIVEN
    sink = Recorder(TooLarge("413"))
    one = start(sink)

    # WHEN
    one.put(records.request_batch(1))
    end(one)

    # THEN
    assert one.counts.dropped["refused"] == 1


def test_a_fault_in_a_sink_is_counted_and_does_not_end_it(start, told):
    # GIVEN
    sink = Recorder(ZeroDivisionError("division by zero"))
    one = start(sink)

    # WHEN
    one.put(records.request_batch(3))
    wait_for(lambda: sink.tried)
    one.put(records.request_batch(1))
    end(one)

    # THEN
    assert (one.counts.sent, one.counts.dropped["failed"]) == (1, 3)
    assert told[0] == "sink recorder: ZeroDivisionError: division by zero"


def test_the_end_sends_what_is_left(start):
    # GIVEN a sink that gets rows once an hour
    sink = Recorder()
    one = Delivery(
        sink, SinkSettings(type="recorder", every=Every(3600)), sink_rows.RESOURCE, print
    )

    # WHEN
    one.put(records.request_batch(4))
    end(one)

    # THEN
    assert sink.count == 4 and sink.closed.is_set()


def test_what_is_not_sent_in_time_at_the_end_is_counted(start):
    # GIVEN
    sink = Recorder(*[Unavailable("down")] * 1000)
    one = start(sink)
    one.put(records.request_batch(4))
    wait_for(lambda: sink.tried)

    # WHEN
    end(one, seconds=0.1)

    # THEN
    assert one.counts.dropped["ended"] == 4
    assert one.lost_text == "lost: ended 4"


def test_a_sink_that_hangs_at_the_end_is_left_and_counted(start):
    # GIVEN
    sink = Recorder()
    sink.gate.clear()
    one = start(sink)
    one.put(records.request_batch(4))
    wait_for(lambda: one.state().queued == 4)

    # WHEN
    end(one, seconds=0.1)

    # THEN
    assert one.counts.dropped["ended"] == 4
    sink.gate.set()


# --- the queue on disk ------------------------------------------------------------------------


def disk(tmp_path, size=1 << 20):
    """Settings of a queue on disk."""
    return {"disk": Size(size), "path": str(tmp_path / "queue")}


def test_rows_wait_on_disk_while_the_server_is_down_and_keep_their_order(start, tmp_path):
    # GIVEN a server that is down, and room in memory for ten rows
    sink = Recorder(*[Unavailable("down")] * 10)
    one = start(sink, memory=Size(10 * REQUEST_BYTES), **disk(tmp_path))

    # WHEN more come than memory holds
    for n in range(40):
        one.put(records.request_batch(1, pid=n))
        wait_for(lambda: one.state().queued_bytes * 2 <= 10 * REQUEST_BYTES)
    wait_for(lambda: sink.count == 40)

    # THEN
    pids = [pid for rows in sink.got for pid in rows.columns["process.pid"].tolist()]
    assert pids == list(range(40))
    assert sum(one.counts.dropped.values()) == 0
    wait_for(lambda: one.state().disk_bytes == 0)


def test_rows_on_disk_outlive_the_process(start, tmp_path):
    # GIVEN rows that could not be sent
    down = Recorder(*[Unavailable("down")] * 1000)
    one = start(down, **disk(tmp_path))
    one.put(records.request_batch(4, pid=7))
    wait_for(lambda: down.tried)
    end(one, seconds=0.05)
    assert sum(one.counts.dropped.values()) == 0

    # WHEN another process begins
    up = Recorder()
    other = start(up, **disk(tmp_path))
    wait_for(lambda: up.count == 4)

    # THEN they are the same rows, with their id
    assert up.got[0].id == down.tried[0].id
    assert up.got[0].columns["process.pid"].tolist() == [7] * 4
    end(other)
    assert not [*(tmp_path / "queue").glob("*.rows")]


def test_a_full_disk_queue_drops_the_oldest_and_counts_them(start, tmp_path):
    # GIVEN room for a few files
    sink = Recorder(*[Unavailable("down")] * 20)
    one = start(sink, **disk(tmp_path, size=6000))

    # WHEN
    for n in range(30):
        one.put(records.request_batch(1, pid=n))
        wait_for(lambda: one.state().queued_bytes == 0)
    wait_for(lambda: sink.count + one.counts.dropped["queue_full"] == 30)

    # THEN
    assert one.counts.dropped["queue_full"] > 0
    assert sink.got[-1].columns["process.pid"].tolist()[-1] == 29


def test_refused_rows_are_kept_beside_the_queue_on_disk(start, tmp_path):
    # GIVEN
    sink = Recorder(Refused("never"))
    one = start(sink, **disk(tmp_path))

    # WHEN
    one.put(records.request_batch(2))
    end(one)

    # THEN
    kept = (tmp_path / "queue" / "refused.jsonl").read_text().splitlines()
    assert len(kept) == 2 and all('"kind":"request"' in line for line in kept)


def test_a_file_that_cannot_be_read_is_counted_by_its_name(start, tmp_path, told):
    # GIVEN
    queue = DiskQueue(str(tmp_path / "queue"), 1 << 20)
    for _ in range(2):
        queue.add(sink_rows.request_rows(5))
    queue.close()
    first = min((tmp_path / "queue").glob("*.rows"))
    first.write_bytes(first.read_bytes()[:-9])

    # WHEN
    sink = Recorder()
    one = start(sink, **disk(tmp_path))
    wait_for(lambda: sink.got)

    # THEN
    assert (sink.count, one.counts.dropped["unreadable"]) == (5, 5)
    assert told[0].startswith(f"sink recorder: rows in {tmp_path / 'queue'} cannot be read: ")


def test_one_queue_on_disk_is_not_for_two(start, tmp_path):
    # GIVEN
    start(Recorder(), **disk(tmp_path))

    # WHEN / THEN
    with pytest.raises(PodscopeError, match="another podscope has the queue in .*own path"):
        start(Recorder(), **disk(tmp_path))


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    # GIVEN
    queue = DiskQueue(str(tmp_path), 1 << 20)
    queue.add(sink_rows.request_rows(5))
    queue.close()
    (tmp_path / "000000000009-5.tmp").write_bytes(b"half")

    # WHEN
    again = DiskQueue(str(tmp_path), 1 << 20)

    # THEN
    assert (len(again), again.rows) == (1, 5)
    assert not [*tmp_path.glob("*.tmp")]
    again.close()
