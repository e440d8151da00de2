# SPDX-License-Identifier: Apache-2.0
"""``podscope install``, ``status`` and ``uninstall`` in a real cluster."""

from __future__ import annotations

import json

import pytest

NAMESPACE = "podscope"


@pytest.fixture(autouse=True)
def removed(cluster, not_installed):
    """Whatever a test leaves behind."""
    yield
    cluster.podscope("uninstall")


def install(cluster, *arguments):
    """With the image that the nodes have."""
    return cluster.podscope("install", "--image", cluster.image, *arguments)


def test_install_makes_every_node_ready_and_uninstall_leaves_nothing(cluster):
    # GIVEN
    before = cluster.objects()

    # WHEN
    installed = install(cluster, "--set", "imagePullPolicy=IfNotPresent")
    status = cluster.podscope("status", "-o", "json")
    uninstalled = cluster.podscope("uninstall")
    after = cluster.objects()

    # THEN
    assert installed.returncode == 0, installed.stderr
    states = [json.loads(line) for line in status.stdout.splitlines()]
    nodes = [name for (resource, _, name) in before if resource == "api/v1/nodes"]
    assert status.returncode == 0
    assert sorted(state["node"] for state in states) == sorted(nodes)
    assert {(state["agent"], state["why"]) for state in states} == {("ready", "")}
    assert uninstalled.returncode == 0, uninstalled.stderr
    assert after == before


def test_installing_twice_changes_nothing(cluster):
    # GIVEN
    install(cluster)
    before = cluster.objects()

    # WHEN
    again = install(cluster)

    # THEN
    assert again.returncode == 0, again.stderr
    assert cluster.objects() == before


def test_an_agent_that_cannot_start_is_told_with_its_reason(cluster):
    # GIVEN an image that is nowhere
    absent = "docker.io/library/podscope-absent:0"
    arguments = ("--set", "imagePullPolicy=Never", "--wait", "5s")

    # WHEN
    installed = cluster.podscope("install", "--image", absent, *arguments)
    status = cluster.podscope("status")

    # THEN
    assert installed.returncode == 1
    assert len(installed.stderr.splitlines()) == 1
    assert "ErrImageNeverPull" in installed.stderr
    assert status.returncode == 1
    assert absent in status.stdout


def test_a_node_that_is_not_chosen_is_no_failure(cluster):
    # GIVEN
    nodes = [item["metadata"]["name"] for item in cluster.get("api/v1/nodes")["items"]]
    setting = f"nodeSelector.kubernetes.io/hostname={nodes[0]}"

    # WHEN
    installed = install(cluster, "--set", setting)
    status = cluster.podscope("status", "-o", "json")

    # THEN
    assert installed.returncode == status.returncode == 0, installed.stderr
    states = map(json.loads, status.stdout.splitlines())
    agents = {state["node"]: state["agent"] for state in states}
    assert agents == {nodes[0]: "ready", **dict.fromkeys(nodes[1:], "not chosen")}


@pytest.mark.usefixtures("own_namespace")
def test_a_namespace_that_was_there_before_stays(cluster):
    # GIVEN / WHEN
    installed = install(cluster)
    uninstalled = cluster.podscope("uninstall")

    # THEN
    assert installed.returncode == uninstalled.returncode == 0, installed.stderr
    assert f"namespace/{NAMESPACE} removed" not in uninstalled.stdout
    assert cluster.get(f"api/v1/namespaces/{NAMESPACE}")["status"]["phase"] == "Active"


def test_a_second_installation_elsewhere_is_refused(cluster):
    # GIVEN
    install(cluster, "--wait", "0s")

    # WHEN
    second = cluster.podscope("install", "--namespace", "podscope-test-second")

    # THEN
    assert second.returncode == 1
    assert f"is installed in namespace '{NAMESPACE}'" in second.stderr


@pytest.mark.parametrize("command", ["status", "uninstall"])
def test_without_an_installation_the_error_says_so(cluster, command):
    # GIVEN / WHEN
    ended = cluster.podscope(command)

    # THEN
    assert ended.returncode == 1
    assert "is not installed" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
