# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end: pods, Services and nodes by their addresses, the rest outside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import records

from podscope import schema
from podscope.batch import Batch
from podscope.batch import Identity
from podscope.identity.kubernetes import Cluster
from podscope.identity.kubernetes import address_key
from podscope.identity.kubernetes_objects import Metadata
from podscope.identity.kubernetes_objects import Node
from podscope.identity.kubernetes_objects import NodeAddress
from podscope.identity.kubernetes_objects import NodeStatus
from podscope.identity.kubernetes_objects import OwnerReference
from podscope.identity.kubernetes_objects import PeerPod
from podscope.identity.kubernetes_objects import PeerSpec
from podscope.identity.kubernetes_objects import PeerStatus
from podscope.identity.kubernetes_objects import PodIP
from podscope.identity.kubernetes_objects import Service
from podscope.identity.kubernetes_objects import ServiceSpec
from podscope.identity.peers import NEW_SECONDS
from podscope.identity.peers import Peers

HERE = "node-1"
CLASSES = {"": 0, "loopback": 1, "private": 2, "public": 3}
OWNER = (OwnerReference("StatefulSet", "db", controller=True),)


class Clock:
    """Seconds as tests set them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def cluster() -> Cluster:
    found = Cluster()
    found.peer_pod_changed(
        None,
        PeerPod(
            Metadata(name="db-0", namespace="shop", uid="u-db", owner_references=OWNER),
            PeerSpec("node-2"),
            PeerStatus("Running", (PodIP("10.0.0.7"), PodIP("2001:db8::7"))),
        ),
    )
    about = Metadata(name="web", namespace="shop", uid="u-service")
    found.service_changed(None, Service(about, ServiceSpec(cluster_ips=("10.96.0.1",))))
    addresses = (NodeAddress("InternalIP", "192.0.2.1"),)
    found.node_changed(None, Node(Metadata(name="node-3", uid="u-n"), NodeStatus(addresses)))
    return found


def batch_of(*peers: tuple[str, str], own: Identity = records.WEB_A) -> Batch:
    """A row for each address and class."""
    rows = records.http_rows(len(peers))
    rows["count"] = 1
    rows["key"]["side"] = 1
    for row, (address, kind) in zip(rows, peers, strict=True):
        row["key"]["peer_class"] = CLASSES[kind]
        if address:
            row["key"]["peer"] = np.frombuffer(address_key(address), "u1")
    return records.http_batch(rows, [0] * len(rows), (own,))


def told(cluster: Cluster, *peers: tuple[str, str], own: Identity = records.WEB_A) -> list[str]:
    """``kind:namespace/name pod node`` of each peer."""
    batch = Peers(cluster, HERE).told(batch_of(*peers, own=own))
    assert batch.peers is not None
    found = [batch.identities[place] if place >= 0 else None for place in batch.peers.tolist()]
    return [
        "-" if one is None else f"{one.kind}:{one.namespace}/{one.name} {one.pod} {one.node}"
        for one in found
    ]


def test_peers_are_named_by_their_addresses(cluster):
    assert told(
        cluster,
        ("10.0.0.7", "private"),
        ("2001:db8::7", "public"),
        ("10.96.0.1", "private"),
        ("192.0.2.1", "public"),
        ("10.9.9.9", "private"),
        ("", "public"),
        ("", "private"),
    ) == [
        "statefulset:shop/db db-0 node-2",
        "statefulset:shop/db db-0 node-2",
        "service:shop/web  ",
        "node:/node-3  node-3",
        "external:/  ",
        "external:/  ",
        "-",
    ]


def test_a_loopback_address_is_the_pod_itself_or_the_node(cluster):
    kubelet = Identity("unit", "kubelet.service", "kubelet", 1, node=HERE)
    assert told(cluster, ("127.0.0.1", "loopback")) == ["deployment:shop/web web-1-a node-1"]
    assert told(cluster, ("::1", "loopback"), own=kubelet) == ["node:/node-1  node-1"]


def test_an_address_that_may_be_a_new_pods_is_waited_for(cluster):
    # GIVEN
    clock = Clock()
    peers = Peers(cluster, HERE, clock)
    batch = batch_of(
        ("10.0.0.7", "private"), ("10.0.0.8", "private"), ("203.0.113.9", "public"),
        ("127.0.0.1", "loopback"), ("", "private"),
    )  # fmt: skip

    # WHEN / THEN
    assert peers.awaited(batch).tolist() == [False, True, False, False, False]
    clock.now += NEW_SECONDS
    assert not peers.awaited(batch).any()


def test_rows_by_peer_are_added_up_by_name(cluster):
    # GIVEN two addresses of one pod, and two strangers
    batch = Peers(cluster, HERE).told(
        batch_of(
            ("10.0.0.7", "private"),
            ("2001:db8::7", "private"),
            ("10.9.9.8", "private"),
            ("10.9.9.9", "private"),
        )
    )

    # WHEN
    from podscope import red

    by_peer = red.group(batch, ("peer",))
    by_address = red.group(batch, ("peer", "address"))

    # THEN a stranger is told by its address
    names = schema.read(schema.HTTP, by_peer.view(0, 1.0), by_peer.by)
    found = zip(
        names["service.peer.name"], names["network.peer.address"], names["count"], strict=True
    )
    assert sorted(found, key=str) == [("db", None, 2), (None, "10.9.9.8", 1), (None, "10.9.9.9", 1)]
    assert len(by_address) == 4


def test_a_batch_that_nobody_looked_at_has_no_peers():
    # GIVEN / WHEN
    batch = replace(records.shop_batch(), peers=None)

    # THEN
    columns = schema.columns(batch)
    assert "service.peer.name" not in columns
