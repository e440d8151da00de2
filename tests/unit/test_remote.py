# SPDX-License-Identifier: Apache-2.0
"""Batches of many nodes as one; what goes over the network is tested in tests/cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import records
from fake_api_server import FakeApiServer

from podscope.errors import PodscopeError
from podscope.identity.kubernetes_client import ApiServer
from podscope.remote import Agent
from podscope.remote import Nodes
from podscope.remote import Wanted
from podscope.remote import find_agents

PATH = "api/v1/namespaces/podscope/pods"
SECOND = 10**9


def an_agent(node: str, name: str, *, ready: bool = True, ending: bool = False) -> dict:
    about = {"name": name, "uid": name, "labels": {"app.kubernetes.io/name": "podscope",
             "app.kubernetes.io/component": "agent"}}  # fmt: skip
    status = {"containerStatuses": [{"name": "agent", "ready": ready}]}
    gone = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if ending else {}
    return {"metadata": {**about, **gone}, "spec": {"nodeName": node}, "status": status}


@pytest.fixture
def server() -> Iterator[FakeApiServer]:
    with FakeApiServer() as found:
        found.collection(PATH)
        yield found


def nodes(server: FakeApiServer) -> Nodes:
    server.put(PATH, an_agent("n1", "a"))
    server.put(PATH, an_agent("n2", "b"))
    return Nodes(ApiServer(server.url), 1.0, Wanted())


def at(second: float):
    """An interval of a second with 60 exchanges, that ends then."""
    return replace(records.shop_batch(), time_ns=records.TIME_NS + round(second * SECOND))


def read(found: Nodes) -> list[tuple[int, float]]:
    """Exchanges and lengths of what has come."""
    found.stop()
    return [(batch.exchanges(), batch.interval) for batch in found]


def test_an_agent_that_is_ready_is_preferred_to_one_that_comes_or_goes(server):
    # GIVEN two of each node
    server.put(PATH, an_agent("n1", "old"))
    server.put(PATH, an_agent("n1", "new", ready=False))
    server.put(PATH, an_agent("n2", "going", ending=True))
    server.put(PATH, an_agent("n2", "here"))

    # WHEN / THEN
    assert find_agents(ApiServer(server.url)) == (Agent("n1", "old"), Agent("n2", "here"))


def test_without_agents_the_error_says_what_to_do(server):
    with pytest.raises(PodscopeError, match="run 'podscope install'"):
        find_agents(ApiServer(server.url))


def test_intervals_of_all_nodes_are_one(server):
    # GIVEN
    found = nodes(server)

    # WHEN
    found._take(Agent("n1", "a"), at(0.0))
    found._take(Agent("n1", "a"), at(1.0))
    found._take(Agent("n2", "b"), at(0.7))

    # THEN
    assert read(found) == [(180, 2.0)]
    assert found.lost() == {}


def test_nothing_is_counted_twice_when_a_nodes_agent_is_replaced(server):
    # GIVEN an agent that speaks until the first second
    found = nodes(server)
    found._take(Agent("n1", "a"), at(1.0))

    # WHEN another one has counted since before that, and goes on
    found._take(Agent("n1", "c"), at(1.4))
    found._take(Agent("n1", "c"), at(2.4))

    # THEN what it counted meanwhile is left out, and told
    assert read(found)[0][0] == 120
    assert found.lost() == {"agent_replaced": 60}


def test_an_agent_that_comes_after_the_end_of_another_is_counted_in_full(server):
    # GIVEN
    found = nodes(server)
    found._take(Agent("n1", "a"), at(1.0))

    # WHEN
    found._take(Agent("n1", "c"), at(2.0))

    # THEN
    assert read(found)[0][0] == 120
    assert found.lost() == {}
