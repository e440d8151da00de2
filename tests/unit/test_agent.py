# SPDX-License-Identifier: Apache-2.0
"""What the agent does with rows: names that come late, listeners that are slow."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import records

from podscope import agent
from podscope import wire
from podscope.batch import Batch
from podscope.batch import Identity

UNNAMED = Identity("pod", "", "nginx", 11, "a" * 64, pod_uid="u-a", node="node-1")


class Known:
    """Identities by cgroup id, as tests set them."""

    def __init__(self) -> None:
        self.names: dict[int, Identity] = {}

    def resolve(self, cgroup_ids, pids, owners):
        found = [self.names.get(one, UNNAMED) for one in cgroup_ids.tolist()]
        return np.arange(len(found), dtype=np.uint32), tuple(found)


def batches(known: Known, *seconds: float) -> Iterator[Batch]:
    """The shop's five rows, named as is known at that moment, at times of their own."""
    for second in seconds:
        batch = records.shop_batch()
        index, identities = known.resolve(batch.rows["key"]["cgroup_id"], None, None)
        time_ns = records.TIME_NS + round(second * 1e9)
        yield replace(batch, identity=index, identities=identities, time_ns=time_ns)


def counted(batch: Batch) -> dict[str, int]:
    """Exchanges by pod."""
    found: dict[str, int] = {}
    for row, place in zip(batch.rows, batch.identity, strict=True):
        name = batch.identities[place].pod
        found[name] = found.get(name, 0) + int(row["count"])
    return found


def test_rows_of_a_pod_that_is_not_known_yet_wait_for_its_name():
    # GIVEN two pods that are known, and one that is not
    known = Known()
    known.names = {2: records.WEB_B, 3: records.BARE}
    named = agent.Named(known).follow(batches(known, 0, 1, 2, 3))

    # WHEN / THEN its rows come when it is, all of them, once
    assert counted(next(named)) == {"web-1-b": 15, "web": 5}
    assert counted(next(named)) == {"web-1-b": 15, "web": 5}
    known.names[1] = records.WEB_A
    assert counted(next(named)) == {"web-1-a": 120, "web-1-b": 15, "web": 5}
    assert counted(next(named)) == {"web-1-a": 40, "web-1-b": 15, "web": 5}


def test_rows_of_a_pod_that_stays_unknown_go_on_with_its_uid():
    # GIVEN
    known = Known()
    known.names = {2: records.WEB_B, 3: records.BARE}
    named = agent.Named(known).follow(batches(known, 0, 20, 31, 32))

    # WHEN
    found = [counted(batch).get("", 0) for batch in named]

    # THEN those of the first batch after half a minute, and no row twice
    assert found == [0, 0, 40, 0]


def test_a_listener_gets_every_batch_from_then_on():
    # GIVEN
    streams = agent.Streams()
    streams.publish(records.shop_batch())
    listener = streams.listen()

    # WHEN it listens
    published = records.cluster_batch()
    first = start(streams, listener, published)
    streams.publish(records.shop_batch())
    second = next(listener)

    # THEN
    (one,) = wire.frames(io.BytesIO(first).read)
    (two,) = wire.frames(io.BytesIO(second).read)
    assert [i.pod for i in one.identities] == [i.pod for i in published.identities]
    assert len(two) == 5


def start(streams: agent.Streams, listener: Iterator[bytes], batch: Batch) -> bytes:
    """The first frame: a generator listens only once it has begun."""
    import threading

    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(next(listener)))
    thread.start()
    while thread.is_alive():
        streams.publish(batch)
        thread.join(0.01)
    return found[0]


def test_a_slow_listener_is_told_what_it_lost():
    # GIVEN a listener that has taken nothing for long
    streams = agent.Streams()
    listener = streams.listen()
    start(streams, listener, records.shop_batch())

    # WHEN
    for _ in range(2 * agent.QUEUE):
        streams.publish(records.shop_batch())
    frames = [next(listener) for _ in range(agent.QUEUE)]

    # THEN what is missing is counted
    found = list(wire.frames(io.BytesIO(b"".join(frames)).read))
    lost = sum(batch.lost.get("slow_reader", 0) for batch in found)
    assert lost > 0
    assert lost % 60 == 0


def test_a_listener_that_goes_is_forgotten():
    # GIVEN
    streams = agent.Streams()
    listener = streams.listen()
    start(streams, listener, records.shop_batch())

    # WHEN
    listener.close()

    # THEN
    assert not streams._listeners
