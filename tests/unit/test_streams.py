# SPDX-License-Identifier: Apache-2.0
"""Who listens to an agent gets what it asked for, at its own pace."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import records

from podscope import streams
from podscope import wire
from podscope.batch import Batch
from podscope.errors import UsageError
from podscope.sources.http import RequestLog
from podscope.streams import Streams


def listening(found: Streams, kind: str = "http", **asked: object) -> Iterator[bytes]:
    """Frames for one who asks for this; it listens from its first frame on."""
    return found.listen(kind, {name: [json.dumps(one)] for name, one in asked.items()})


def start(found: Streams, listener: Iterator[bytes], batch: Batch) -> Batch:
    """The first batch: a generator listens only once it has begun."""
    came: list[bytes] = []
    thread = threading.Thread(target=lambda: came.append(next(listener)))
    thread.start()
    while thread.is_alive():
        found.publish(batch)
        thread.join(0.01)
    return read(came[0])


def read(frame: bytes) -> Batch:
    (batch,) = wire.frames(io.BytesIO(frame).read)
    return batch


def flush(found: Streams, listener: Iterator[bytes]) -> None:
    """Takes what was published before."""
    while True:
        (one,) = found._listeners
        if one.batches.empty():
            return
        next(listener)


def test_a_listener_gets_every_batch_from_then_on():
    # GIVEN
    found = Streams()
    found.publish(records.shop_batch())
    listener = listening(found)

    # WHEN it listens
    published = records.cluster_batch()
    first = start(found, listener, published)
    flush(found, listener)
    found.publish(records.shop_batch())

    # THEN
    assert [i.pod for i in first.identities] == [i.pod for i in published.identities]
    assert len(read(next(listener))) == 5


def test_a_listener_gets_the_rows_of_its_scope_alone():
    # GIVEN
    found = Streams()
    listener = listening(found, scope={"namespace": "lab"})

    # WHEN
    batch = start(found, listener, records.cluster_batch())

    # THEN
    assert [identity.pod for identity in batch.identities] == ["web"]
    assert batch.rows["count"].tolist() == [5]


def at(batch: Batch, seconds: float) -> Batch:
    return replace(batch, time_ns=records.TIME_NS + round(seconds * 1e9))


def test_one_who_listens_again_gets_what_it_missed():
    # GIVEN one who listened until the second of 50.5, and intervals after that
    found = Streams()
    listener = listening(found)
    start(found, listener, at(records.shop_batch(), 50))
    listener.close()
    for second in range(51, 70):
        found.publish(at(records.shop_batch(), second))

    # WHEN it listens again
    listener = listening(found, since=at(records.shop_batch(), 50.5).time_ns)
    came = [read(next(listener)) for _ in range(19)]
    found.publish(at(records.shop_batch(), 70))
    came.append(read(next(listener)))

    # THEN
    assert [(one.time_ns - records.TIME_NS) / 1e9 for one in came] == list(range(51, 71))


def test_one_who_listened_to_another_agent_gets_what_it_missed_of_a_new_one():
    # GIVEN a new agent that nobody has listened to
    found = Streams()
    for second in range(20):
        found.publish(at(records.shop_batch(), second))

    # WHEN
    listener = listening(found, since=at(records.shop_batch(), 17.5).time_ns)
    came = [read(next(listener)) for _ in range(2)]

    # THEN
    assert [(one.time_ns - records.TIME_NS) / 1e9 for one in came] == [18, 19]


def test_nothing_is_kept_where_nobody_has_listened_for_long():
    # GIVEN
    found = Streams()
    for second in range(21):
        found.publish(at(records.shop_batch(), second))
    kept = len(found._recent)

    # WHEN
    found.publish(at(records.shop_batch(), 22))

    # THEN
    assert kept == 21
    assert not found._recent
    # AND again from when somebody listens
    listener = listening(found)
    start(found, listener, at(records.shop_batch(), 23))
    assert found._recent


def test_what_is_kept_has_a_bound_in_bytes(monkeypatch):
    # GIVEN room for two batches
    batch = records.shop_batch()
    monkeypatch.setattr(streams, "RECENT_BYTES", 2 * batch.rows.nbytes)
    found = Streams()

    # WHEN
    for second in range(5):
        found.publish(at(batch, second))

    # THEN
    listener = listening(found, since=1)
    assert read(next(listener)).time_ns == at(batch, 3).time_ns
    # AND one that is too large by itself is not kept
    monkeypatch.setattr(streams, "RECENT_BYTES", 1)
    found.publish(at(batch, 6))
    assert not found._recent


def test_a_slow_listener_is_told_what_it_lost():
    # GIVEN a listener that has taken nothing for long
    found = Streams()
    listener = listening(found)
    start(found, listener, records.shop_batch())

    # WHEN
    for _ in range(2 * streams.QUEUE):
        found.publish(records.shop_batch())
    batches = [read(next(listener)) for _ in range(streams.QUEUE)]

    # THEN what is missing is counted
    lost = sum(batch.lost.get("slow_reader", 0) for batch in batches)
    assert lost > 0
    assert lost % 60 == 0


def test_a_listener_that_goes_is_forgotten():
    # GIVEN
    found = Streams()
    listener = listening(found, "request", log={"all": True})
    empty = records.request_batch(0)
    start(found, listener, empty)
    assert found.wanted_log()[0] == RequestLog(all=True, sides=["client", "server"])

    # WHEN
    listener.close()

    # THEN
    assert not found._listeners
    assert found.wanted_log() == (None, ())


def test_an_end_of_the_agent_ends_what_it_sends():
    # GIVEN
    found = Streams()
    listener = listening(found)
    start(found, listener, records.shop_batch())
    flush(found, listener)

    # WHEN
    found.close()

    # THEN
    assert list(listener) == []


def test_each_gets_the_requests_that_it_asked_for():
    # GIVEN two who listen, and a log that has what both want
    found = Streams()
    errors = listening(found, "request", log={"errors": True})
    slow = listening(found, "request", log={"slower_ns": 2_000_000, "ports": [[80, 80]]})
    start(found, errors, records.request_batch(0))
    start(found, slow, records.request_batch(0))
    wanted, _ = found.wanted_log()
    assert wanted == RequestLog(errors=True, slower_ns=2_000_000, sides=["client", "server"])

    # WHEN
    batch = records.request_batch(4)
    batch.rows["status"] = [200, 500, 500, 200]
    batch.rows["duration_ns"] = [1, 1, 3_000_000, 3_000_000]
    batch.rows["local_port"] = [80, 80, 80, 81]
    found.publish(batch)

    # THEN
    assert last(errors)["status"].tolist() == [500, 500]
    assert last(slow)["duration_ns"].tolist() == [3_000_000]


def test_what_is_always_wanted_is_told_from_what_others_ask_for():
    # GIVEN an agent whose sinks want errors, and one who listens to all
    found = Streams()
    found.always_want(RequestLog(errors=True))
    assert found.wanted_log()[0] == RequestLog(errors=True, sides=["client", "server"])
    everything = listening(found, "request", log={"all": True})
    start(found, everything, records.request_batch(0))
    assert found.wanted_log()[0].all

    # WHEN
    batch = records.request_batch(3)
    batch.rows["status"] = [200, 500, 200]
    kept = found.always_wanted(batch)

    # THEN
    assert kept.rows["status"].tolist() == [500]
    assert len(found.always_wanted(records.shop_batch())) == 5
    assert len(Streams().always_wanted(batch)) == 0


def last(listener: Iterator[bytes]) -> np.ndarray:
    """Rows of the first batch that has some."""
    return next(rows for frame in listener if len(rows := read(frame).rows))


def test_a_sample_is_taken_here_where_another_wants_all():
    # GIVEN
    found = Streams()
    everything = listening(found, "request", log={"all": True})
    tenth = listening(found, "request", log={"all": True, "one_in": 10})
    start(found, everything, records.request_batch(0))
    start(found, tenth, records.request_batch(0))
    assert found.wanted_log()[0].one_in == 0

    # WHEN servers' and clients' requests come in turns
    batch = records.request_batch(30)
    batch.rows["side"] = [1, 2] * 15
    for _ in range(7):
        found.publish(batch)

    # THEN one in ten of each side, counted over all batches
    found.close()
    taken = np.concatenate([read(frame).rows["side"] for frame in tenth])
    assert np.bincount(taken).tolist() == [0, 10, 10]
    assert sum(len(read(frame)) for frame in everything) == 210


def test_a_sample_that_all_want_is_the_kernels():
    # GIVEN
    found = Streams()
    tenth = listening(found, "request", log={"all": True, "one_in": 10})
    start(found, tenth, records.request_batch(0))
    assert found.wanted_log()[0].one_in == 10

    # WHEN
    found.publish(records.request_batch(15))

    # THEN
    assert len(last(tenth)) == 15


def test_who_listens_to_requests_hears_of_losses():
    # GIVEN
    found = Streams()
    listener = listening(found, "request", log={"all": True})
    start(found, listener, records.request_batch(0))
    flush(found, listener)

    # WHEN an interval of another kind ends
    nothing = records.request_batch(0)
    nothing.lost["ring_full"] = 3
    found.publish(records.shop_batch(), nothing)

    # THEN
    assert read(next(listener)).lost == {"ring_full": 3}


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("http", {"scope": ["{"]}),
        ("http", {"scope": ['{"namespace": 3}']}),
        ("http", {"scope": ['{"selector": "a=b=c"}']}),
        ("http", {"log": ["{}"]}),
        ("request", {"log": ['{"one_in": "x"}']}),
        ("http", {"scop": ["{}"]}),
        ("http", {"since": ['"yesterday"']}),
        ("request", {"since": ["1"]}),
    ],
)
def test_what_cannot_be_understood_is_refused(kind, asked):
    with pytest.raises(UsageError):
        Streams().listen(kind, asked)
