# SPDX-License-Identifier: Apache-2.0
"""The agents' configuration: a ConfigMap, whose changes running agents take up."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from workloads import log
from workloads import patch
from workloads import pods
from workloads import wait

pytestmark = pytest.mark.usefixtures("installed")

CONFIG_MAP = "api/v1/namespaces/podscope/configmaps/podscope-agent"
AGENTS = "app.kubernetes.io/component=agent"


@pytest.fixture
def restored(cluster) -> Iterator[None]:
    """The configuration is as before at the end."""
    before = cluster.get(CONFIG_MAP)["data"]
    yield
    configure(cluster, before["config.yaml"], "taken up: interval", 2)


def configure(cluster, text: str, words: str, times: int = 1) -> None:
    """Writes the ConfigMap, and waits until each agent has said so."""
    patch(cluster, CONFIG_MAP, {"data": {"config.yaml": text}})

    def heard() -> bool:
        # A pod that changes has its kubelet look at once, and not within a minute; that may
        # still be a look too early.
        time.sleep(2)
        note = {"metadata": {"annotations": {"podscope-test/configured": str(time.time())}}}
        for one in pods(cluster, AGENTS, "podscope"):
            patch(cluster, f"api/v1/namespaces/podscope/pods/{one['metadata']['name']}", note)
        return said(cluster, words, times)

    wait(heard)


def said(cluster, words: str, times: int = 1) -> bool:
    """Whether each agent has said so."""
    names = [one["metadata"]["name"] for one in pods(cluster, AGENTS, "podscope")]
    logs = [log(cluster, name, namespace="podscope").decode() for name in names]
    return bool(logs) and all(text.count(words) >= times for text in logs)


def test_running_agents_take_up_what_is_safe_and_tell_the_rest(cluster, restored):
    # GIVEN
    before = {one["metadata"]["uid"] for one in pods(cluster, AGENTS, "podscope")}

    # WHEN / THEN each of these is heard
    configure(cluster, "interval: 2s\n", "taken up: interval")
    configure(cluster, "interval: 2s\ncluster: other\n", "needs a restart: cluster")
    configure(cluster, "interval: soon\n", "config.yaml:1: interval: not a duration: 'soon'")
    assert said(cluster, "the settings from before stay")

    # THEN all of that without a restart
    now = pods(cluster, AGENTS, "podscope")
    assert {one["metadata"]["uid"] for one in now} == before
    assert not any(c["restartCount"] for one in now for c in one["status"]["containerStatuses"])
