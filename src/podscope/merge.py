# SPDX-License-Identifier: Apache-2.0
"""Rows of sums put together: of intervals that follow each other, and of a workload's processes.

The kernel counts by process and by the peer's address, which make rows without end. Where nobody
asked for them, rows are by container, and by the peer's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from podscope import wire
from podscope.batch import Batch
from podscope.batch import Identity
from podscope.schema import Array


@dataclass(frozen=True)
class Rule:
    """What becomes of the members of a kind's records; what is not named is added up.

    Attributes:
        by: they tell rows apart, beside whose these are.
        most: the highest counts.
        last: as they were at the end.
        bits: all that are set in any.
        known: added up, where a negative one says that the sum is not known.
        gone: left empty, as what tells processes apart.
    """

    by: tuple[str, ...]
    most: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    bits: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    gone: tuple[str, ...] = ("cgroup_id", "pid", "owner")


_PEER = ("cgroup_id", "pid", "owner", "peer", "peer_class")
RULES = {
    "tcp": Rule(("side", "port"), most=("connect_max_ns",), gone=_PEER),
    "dns": Rule(
        # The peer of a lookup is its server, of which there are few.
        ("side", "name", "type", "code", "tcp", "peer", "peer_class", "text"),
        most=("max_ns",),
    ),
    "listen": Rule(
        ("netns", "port", "address"),
        most=("limit", "accept_highest", "syn_highest"),
        last=("accept_queue", "syn_queue", "closed"),
        bits=("event", "was"),
        known=("overflows",),
    ),
}


def merged(batches: Sequence[Batch]) -> Batch:
    """One batch of some of one kind that follow each other, without processes and addresses.

    Its interval is the sum of theirs. Kinds that have no sums are only put one after the other.
    """
    whole = replace(wire.together(batches), interval=sum(batch.interval for batch in batches))
    rule = RULES.get(whole.kind)
    if rule is None or not len(whole):
        return whole
    owners, identities = _without_processes(whole.identities)
    peers = None if whole.peers is None else np.append(owners, -1)[whole.peers].astype(np.int32)
    whole = replace(whole, identity=owners[whole.identity], identities=identities, peers=peers)
    first, groups = _groups(whole, rule.by)
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(len(first)))
    turns = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    rows = np.zeros(len(first), whole.rows.dtype)
    for name in whole.rows.dtype.names or ():
        if name in rule.by:
            rows[name] = whole.rows[name][first]
        elif name not in rule.gone:
            rows[name] = _reduced(name, rule, whole.rows[name][order], starts, turns[order])
    return replace(
        whole,
        rows=rows,
        identity=whole.identity[first],
        peers=None if peers is None else peers[first],
    )


def _without_processes(
    identities: Sequence[Identity],
) -> tuple[npt.NDArray[np.uint32], tuple[Identity, ...]]:
    """The new place of each identity, shape (n,), and those that differ in more than the pid."""
    places: dict[Identity, int] = {}
    told = [places.setdefault(replace(one, pid=0), len(places)) for one in identities]
    return np.array(told, np.uint32), tuple(places)


def _groups(batch: Batch, by: Sequence[str]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The first row of each group, and each row's group."""
    dtype = batch.rows.dtype
    key = np.zeros(
        len(batch), [("identity", "u4"), ("other", "i4"), *((name, dtype[name]) for name in by)]
    )
    key["identity"] = batch.identity
    key["other"] = -1 if batch.peers is None else batch.peers
    for name in by:
        key[name] = batch.rows[name]
    raw = key.view(f"V{key.dtype.itemsize}")
    _, first, groups = np.unique(raw, return_index=True, return_inverse=True)
    return first, groups


def _reduced(name: str, rule: Rule, column: Array, starts: Array, turns: Array) -> Array:
    """A member of each group, of rows that are in the order of their groups."""
    if name in rule.most:
        return np.asarray(np.maximum.reduceat(column, starts))
    if name in rule.bits:
        return np.asarray(np.bitwise_or.reduceat(column, starts))
    if name in rule.last:
        latest = np.maximum.reduceat(turns, starts)
        lengths = np.diff(np.append(starts, len(column)))
        of_end = turns == np.repeat(latest, lengths)
        return np.asarray(np.maximum.reduceat(np.where(of_end, column, 0), starts))
    total = np.asarray(np.add.reduceat(column, starts, axis=0))
    if name in rule.known:
        return np.where(np.minimum.reduceat(column, starts) < 0, -1, total)
    return total
