# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a connection: a pod, a Service, a node, or somebody outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from podscope.batch import Batch
from podscope.batch import Identity
from podscope.identity.kubernetes import Cluster
from podscope.identity.kubernetes import Owner
from podscope.identity.kubernetes import Peer
from podscope.schema import PEERS
from podscope.schema import Array

LOOPBACK = PEERS.index("loopback")
PUBLIC = PEERS.index("public")
EXTERNAL = Identity("external", "")
# How long an address that nobody knows may still be a new pod's.
NEW_SECONDS = 5.0
# Addresses that are not known are remembered so long.
KEPT_SECONDS = 600.0
MOST = 65536


class Peers:
    """Names the addresses in rows.

    Args:
        cluster: what is known of the cluster.
        node: this node's name.
        clock: seconds that never go back.
    """

    def __init__(
        self, cluster: Cluster, node: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster
        self._node = node
        self._clock = clock
        # Addresses that nobody knew, and when they were first seen.
        self._strangers: dict[bytes, float] = {}

    def told(self, batch: Batch) -> Batch:
        """The batch with ``peers``: for each row who is at the other end.

        A loopback address is the pod that speaks itself, or the node where it is no pod's. One
        that no object of the cluster has is ``external``, as is a public one that was not kept.
        Rows that are about no other end stay as they are.
        """
        keys = batch.keys
        if "peer" not in (keys.dtype.names or ()):
            return batch
        found: list[Identity] = list(batch.identities)
        places: dict[tuple[int, int, bytes], int] = {}
        addresses, classes = _addresses(keys), keys["peer_class"].tolist()
        index = np.full(len(batch), -1, np.int32)
        for row, (own, address) in enumerate(zip(batch.identity.tolist(), addresses, strict=True)):
            asked = (own if classes[row] == LOOPBACK else -1, classes[row], address)
            place = places.get(asked)
            if place is None:
                identity = self._identity(batch.identities[own], address, classes[row])
                place = places[asked] = -1 if identity is None else len(found)
                found += [] if identity is None else [identity]
            index[row] = place
        return replace(batch, identities=tuple(found), peers=index)

    def awaited(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Rows whose peer is not known, but may be a pod that the cluster tells of soon."""
        now = self._clock()
        keys = batch.keys
        waits = np.zeros(len(batch), dtype=np.bool_)
        if "peer" not in (keys.dtype.names or ()):
            return waits
        private = ~np.isin(keys["peer_class"], (LOOPBACK, PUBLIC)) & keys["peer"].any(axis=1)
        rows = np.flatnonzero(private)
        known: dict[bytes, bool] = {}
        for row, address in zip(rows.tolist(), _addresses(keys[rows]), strict=True):
            if address not in known:
                known[address] = self._is_new(address, now)
            waits[row] = known[address]
        return waits

    def _is_new(self, address: bytes, now: float) -> bool:
        if self._cluster.peer(address).kind != "external":
            self._strangers.pop(address, None)
            return False
        if len(self._strangers) >= MOST:
            self._strangers.clear()
        since = self._strangers.setdefault(address, now)
        if now - since > KEPT_SECONDS:
            since = self._strangers[address] = now
        return now - since < NEW_SECONDS

    def _identity(self, own: Identity, address: bytes, kind: int) -> Identity | None:
        """None: it cannot be said, since the address was not kept."""
        if kind == LOOPBACK:
            return own if own.pod else Identity("node", self._node, node=self._node)
        if not any(address):
            return EXTERNAL if kind == PUBLIC else None
        peer = self._cluster.peer(address)
        if peer.kind == "external":
            return EXTERNAL
        if peer.owner is not None:
            return _pod(peer, peer.owner)
        node = peer.name if peer.kind == "node" else ""
        return Identity(peer.kind, peer.name, namespace=peer.namespace, node=node)


def _pod(peer: Peer, owner: Owner) -> Identity:
    # A static pod's owner is the node, which says nothing: the pod stands for itself.
    itself = owner.kind == "Node"
    return Identity(
        "pod" if itself else owner.kind.lower(),
        peer.name if itself else owner.name,
        namespace=peer.namespace,
        pod=peer.name,
        pod_uid=peer.uid,
        node=peer.node,
    )


def _addresses(keys: Array) -> list[bytes]:
    """The addresses of the other ends, 16 bytes each."""
    raw = np.ascontiguousarray(keys["peer"]).tobytes()
    return [raw[at : at + 16] for at in range(0, len(raw), 16)]
