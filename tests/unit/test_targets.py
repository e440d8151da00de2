# SPDX-License-Identifier: Apache-2.0
"""What ``deploy/web``, ``-n shop`` and their like mean."""

from __future__ import annotations

import argparse

import pytest
import records

from podscope.batch import Identity
from podscope.commands import targets
from podscope.errors import UsageError

NOBODY = frozenset[str]()


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    targets.add_arguments(parser)
    return parser.parse_args(words)


def scope(*words: str) -> targets.Scope:
    return targets.scope(parsed(*words), "shop")


def asked(*words: str, selected: frozenset[str] = NOBODY) -> list[str]:
    """Uids of the pods of ``records.cluster_batch`` whose rows are asked for."""
    batch = scope(*words).apply(records.cluster_batch(), selected)
    return sorted({batch.identities[place].pod_uid for place in batch.identity})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ["u-a", "u-b"]),
        (("-A",), ["u-a", "u-b", "u-c"]),
        (("-n", "lab"), ["u-c"]),
        (("-n", "empty"), []),
        (("pod/web-1-a",), ["u-a"]),
        (("web-1-a",), ["u-a"]),
        (("deploy/web",), ["u-a", "u-b"]),
        (("Deployment/web",), ["u-a", "u-b"]),
        (("sts/web",), []),
        (("svc/all",), ["u-b"]),
        (("svc/all", "pod/web-1-a"), ["u-a", "u-b"]),
        (("node/node-2",), ["u-b", "u-c"]),
        (("pod/web", "-n", "lab"), ["u-c"]),
        (("deploy/web", "-n", "lab"), []),
    ],
)
def test_rows_that_are_asked_for(words, expected):
    assert asked(*words) == expected


def test_a_selector_keeps_the_pods_that_it_selects():
    assert asked("-l", "app=x", selected=frozenset({"u-b", "u-c"})) == ["u-b"]
    assert asked("-l", "app=x", "-A", selected=frozenset({"u-b", "u-c"})) == ["u-b", "u-c"]
    assert asked("-l", "app=x", "node/node-2", selected=frozenset({"u-c"})) == ["u-c"]


def test_what_runs_on_a_node_outside_of_pods_is_in_no_namespace():
    # GIVEN
    kubelet = Identity("unit", "kubelet.service", "kubelet", 1, node="node-1")

    # WHEN / THEN
    assert not scope().has(kubelet, NOBODY)
    assert scope("-A").has(kubelet, NOBODY)
    assert scope("node/node-1").has(kubelet, NOBODY)
    assert not scope("node/node-2").has(kubelet, NOBODY)


@pytest.mark.parametrize(
    "words",
    [("deploy/",), ("/web",), ("thing/web",), ("a/b/c",), ("-A", "-n", "x"), ("-A", "deploy/web")],
)
def test_targets_that_are_none_are_refused(words):
    with pytest.raises(UsageError):
        scope(*words)


def test_a_cluster_is_meant_by_its_flags_and_by_the_plugin():
    assert not targets.is_for_cluster(parsed(), "/usr/bin/podscope")
    assert targets.is_for_cluster(parsed(), "/usr/bin/kubectl-podscope")
    for words in (("deploy/web",), ("-A",), ("-n", "x"), ("-l", "a=b"), ("--context", "c")):
        assert targets.is_for_cluster(parsed(*words), "/usr/bin/podscope")
