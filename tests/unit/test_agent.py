# SPDX-License-Identifier: Apache-2.0
"""What the agent does with rows: names that come late."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import records

from podscope import agent
from podscope.batch import Batch
from podscope.batch import Identity

UNNAMED = Identity("pod", "", "nginx", 11, "a" * 64, pod_uid="u-a", node="node-1")


class Known:
    """Identities by cgroup id, as tests set them."""

    def __init__(self) -> None:
        self.names: dict[int, Identity] = {}

    @property
    def version(self):
        """Changes with the names."""
        return tuple(self.names)

    def new_peers(self, batch):
        """Nobody's peer is awaited."""
        return np.zeros(len(batch), dtype=np.bool_)

    def resolve(self, cgroup_ids, pids, owners):
        found = [self.names.get(one, UNNAMED) for one in cgroup_ids.tolist()]
        return np.arange(len(found), dtype=np.uint32), tuple(found)


def followed(named: agent.Named, found: Iterable[Batch]) -> Iterator[Batch]:
    """What comes of batches, up to the end."""
    return agent.with_names(found, {"http": named, "request": named})


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
    named = followed(agent.Named(known), batches(known, 0, 1, 2, 3))

    # WHEN / THEN its rows come when it is, all of them, once
    assert counted(next(named)) == {"web-1-b": 15, "web": 5}
    assert counted(next(named)) == {"web-1-b": 15, "web": 5}
    known.names[1] = records.WEB_A
    assert counted(next(named)) == {"web-1-a": 120, "web-1-b": 15, "web": 5}
    assert counted(next(named)) == {"web-1-a": 40, "web-1-b": 15, "web": 5}


def test_names_are_not_asked_for_again_while_nothing_changes():
    # GIVEN a pod that is not known
    known = Known()
    known.names = {2: records.WEB_B, 3: records.BARE}
    asked = []
    resolve = known.resolve
    made = list(batches(known, 0, 1, 2, 3, 4, 5))
    known.resolve = lambda *keys: asked.append(1) or resolve(*keys)

    # WHEN
    named = agent.Named(known)
    found = [counted(named.take(batch)).get("", 0) for batch in made]

    # THEN its rows are looked at once in a while, all that wait
    assert found == [0] * 6
    assert len(asked) == 4  # those of the first four seconds, at the end of these


def test_rows_of_a_pod_that_stays_unknown_go_on_with_its_uid():
    # GIVEN
    known = Known()
    known.names = {2: records.WEB_B, 3: records.BARE}
    named = followed(agent.Named(known), batches(known, 0, 20, 31, 32))

    # WHEN
    found = [counted(batch).get("", 0) for batch in named]

    # THEN those of the first batch after half a minute, the others at the end, and no row twice
    assert found == [0, 0, 40, 0, 120]


def test_requests_that_wait_come_with_the_next_interval():
    # GIVEN a request of a pod that is not known, and no further one
    known = Known()
    requests = replace(records.request_batch(3), identities=(UNNAMED,))
    quiet = replace(records.shop_batch(), rows=records.http_rows(0), identity=np.zeros(0, "u4"))
    named = followed(agent.Named(known), iter([requests, quiet, quiet]))
    assert len(next(named)) == 0

    # WHEN its name comes
    known.names[0] = records.WEB_A
    found = list(named)

    # THEN
    assert [(batch.kind, len(batch)) for batch in found] == [
        ("http", 0),
        ("request", 3),
        ("http", 0),
    ]
    assert {found[1].identities[place].pod for place in found[1].identity} == {"web-1-a"}


def test_rows_that_still_wait_at_the_end_go_on_with_the_uid_alone():
    # GIVEN
    known = Known()
    known.names = {2: records.WEB_B, 3: records.BARE}
    named = agent.Named(known)

    # WHEN the agent ends before a pod is known
    found = list(followed(named, batches(known, 0, 1)))

    # THEN no row is missing, and none is there twice
    assert [counted(batch) for batch in found] == [
        {"web-1-b": 15, "web": 5},
        {"web-1-b": 15, "web": 5},
        {"": 80},
    ]
    assert {found[-1].identities[place].pod_uid for place in found[-1].identity} == {"u-a"}
    assert list(named.rest()) == []


def test_what_was_lost_is_told_once_also_if_rows_wait():
    # GIVEN
    known = Known()
    first, second = (replace(one, lost={"joined": 3}) for one in batches(known, 0, 1))

    # WHEN
    found = list(followed(agent.Named(known), [first, second]))

    # THEN
    assert [batch.lost for batch in found] == [{"joined": 3}, {"joined": 3}, {}]
    assert [len(batch) for batch in found] == [0, 0, 10]
