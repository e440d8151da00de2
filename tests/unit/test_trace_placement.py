# SPDX-License-Identifier: Apache-2.0
"""Where a trace of a cluster's targets runs: on the nodes of its pods, each once."""

from __future__ import annotations

import argparse
import re

import pytest
from test_kubernetes_identity import a_pod
from test_kubernetes_identity import a_service
from test_kubernetes_identity import a_slice

import podscope
from podscope import cluster_traces as placement
from podscope.commands import targets
from podscope.errors import UsageError
from podscope.identity.kubernetes import Cluster
from podscope.scope import Scope

HASH = {"pod-template-hash": "77"}
PODS = (
    a_pod("web-77-a", "u-a", node="n1", owner=("ReplicaSet", "web-77"), labels=HASH),
    a_pod("web-77-b", "u-b", node="n2", owner=("ReplicaSet", "web-77"), labels=HASH),
    a_pod("db-0", "u-c", node="n1", owner=("StatefulSet", "db")),
)


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    for pod in PODS:
        made.pod_changed(None, pod)
    made.service_changed(None, a_service("front"))
    made.slice_changed(None, a_slice("front-1", "front", ["u-b"]))
    return made


def scope(*words: str) -> Scope:
    parser = argparse.ArgumentParser()
    targets.add_arguments(parser)
    return targets.scope(parser.parse_args(words), "shop")


def placed(cluster: Cluster, *words: str, **options: object) -> dict[str, tuple[str, ...]]:
    """Targets by node."""
    found = placement.parts_of(scope(*words), PODS, cluster, **options)
    return {part.node: part.targets for part in found}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {"n1": ("pod/u-a", "pod/u-c"), "n2": ("pod/u-b",)}),
        (("deploy/web",), {"n1": ("pod/u-a",), "n2": ("pod/u-b",)}),
        (("sts/db",), {"n1": ("pod/u-c",)}),
        (("web-77-a",), {"n1": ("pod/u-a",)}),
        (("svc/front",), {"n2": ("pod/u-b",)}),
        (("svc/front", "sts/db"), {"n1": ("pod/u-c",), "n2": ("pod/u-b",)}),
        (("node/n1", "node/n9"), {"n1": (), "n9": ()}),
    ],
)
def test_targets_are_where_their_pods_run(cluster, words, expected):
    assert placed(cluster, *words) == expected


def test_labels_choose_the_pods_that_they_select(cluster):
    assert placed(cluster, "-l", "!pod-template-hash") == {"n1": ("pod/u-c",)}


@pytest.mark.parametrize(
    ("words", "options", "told"),
    [
        (("deploy/none",), {}, "it has no running pods"),
        (("-n", "other"), {}, "it has no running pods"),
        (("node/n1", "deploy/web"), {}, "give nodes and pods to different traces"),
        (("node/n1", "-l", "x=y"), {}, "give nodes and pods to different traces"),
        (("node/n1",), {"container": "app"}, "-c app: a node is traced whole"),
        (("deploy/web",), {"container": "none"}, "-c none: no such container runs"),
    ],
)
def test_targets_that_cannot_be_traced_are_refused(cluster, words, options, told):
    with pytest.raises(UsageError, match=told):
        placed(cluster, *words, **options)


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        ("", {"by": "pod"}, "by='pod': only in a cluster"),
        ("deploy/web", {"by": "zone"}, "by is node or pod"),
        ("deploy/web", {"way": "fax"}, "way is one of auto, agents, jobs"),
        ("deploy/web", {"all_nodes": True}, "leave out other targets"),
        ("thing/web", {}, "not a target: 'thing/web'"),
        ("node/a", {"by": "pod"}, "--by pod: only of pods"),
        ("deploy/web", {"program": " "}, "the program is empty"),
        ("deploy/web", {"program": "BEGIN {"}, "the program ends too early"),
        ("node/a", {"program": "uprobe:/proc/$container_pid/exe:x { @ = count(); }"},
         "a node has none; name a pod"),
    ],
)  # fmt: skip
def test_a_trace_from_python_that_cannot_be_is_refused_before_it_begins(
    tmp_path, target, options, told
):
    # GIVEN a cluster that nobody asks
    file = tmp_path / "config"
    file.write_text(
        "{clusters: [{name: a, cluster: {server: 'http://127.0.0.1:9'}}], current-context: a, "
        "contexts: [{name: a, context: {cluster: a, user: a}}], users: [{name: a, user: {}}]}"
    )
    place = {"kubeconfig": str(file)} if target else {}

    # WHEN / THEN
    with pytest.raises(UsageError, match=re.escape(told)):
        podscope.trace(**{"program": "BEGIN { exit(); }", "target": target, **place, **options})
