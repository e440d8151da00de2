# SPDX-License-Identifier: Apache-2.0
"""What ``deploy/web``, ``-n shop`` and their like mean."""

from __future__ import annotations

import argparse

import msgspec
import pytest
import records
from hypothesis import given
from hypothesis import strategies as st

from podscope.batch import Identity
from podscope.commands import targets
from podscope.errors import UsageError
from podscope.identity.kubernetes_objects import Metadata
from podscope.identity.kubernetes_objects import OwnerReference
from podscope.identity.kubernetes_objects import Pod
from podscope.scope import Scope
from podscope.scope import Target
from podscope.scope import selector


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    targets.add_arguments(parser)
    return parser.parse_args(words)


def scope(*words: str) -> Scope:
    return targets.scope(parsed(*words), "shop")


def pod(uid: str) -> Pod | None:
    """The pods behind ``records.cluster_batch``: web-1-b is canary, and stands below others."""
    owners = {
        "u-a": (OwnerReference("ReplicaSet", "web-1", controller=True),),
        "u-b": (OwnerReference("ReplicaSet", "web-1", controller=True),),
        "u-c": (OwnerReference("Job", "load-17", controller=True),),
    }
    labels = {"u-a": {"app": "web"}, "u-b": {"app": "web", "canary": ""}, "u-c": {"app": "load"}}
    return Pod(Metadata(uid=uid, labels=labels[uid], owner_references=owners[uid]))


def asked(*words: str) -> list[str]:
    """Uids of the pods of ``records.cluster_batch`` whose rows are asked for."""
    has = scope(*words).rule()
    batch = records.cluster_batch()
    return sorted({one.pod_uid for one in batch.identities if has(one, pod(one.pod_uid))})


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
        (("rs/web-1",), ["u-a", "u-b"]),
        (("rs/web-2",), []),
        (("job/load-17", "-n", "lab"), ["u-c"]),
        (("-l", "app=web"), ["u-a", "u-b"]),
        (("-l", "app=web,!canary"), ["u-a"]),
        (("-l", "canary"), ["u-b"]),
        (("-l", "app!=web", "-A"), ["u-c"]),
        (("-l", "app in (load, other)", "-A"), ["u-c"]),
        (("-l", "app notin (load,other)", "-A"), ["u-a", "u-b"]),
        (("-l", "tier notin (back)"), ["u-a", "u-b"]),
        (("-l", "app==load", "node/node-2"), ["u-c"]),
    ],
)
def test_rows_that_are_asked_for(words, expected):
    assert asked(*words) == expected


@pytest.mark.parametrize(
    "text", ["app=", "a.b/c=d", "a = b , c != d", "x in (a,b,c),y", "!x", "x notin ()"]
)
def test_selectors_of_the_api_server_are_understood(text):
    assert selector(text)


@pytest.mark.parametrize(
    "text", ["", "a=b,", "=b", "a in b", "a in (b", "a=b=c", "a in (!)", "a>1"]
)
def test_selectors_that_are_none_are_refused(text):
    with pytest.raises(UsageError, match="-l: not a label selector"):
        selector(text)


@given(st.builds(Scope, st.none() | st.text(), st.just((Target("pod", "x"),)), st.text()))
def test_a_scope_is_the_same_after_its_way_to_an_agent(told):
    assert msgspec.json.decode(msgspec.json.encode(told), type=Scope) == told


def test_what_runs_on_a_node_outside_of_pods_is_in_no_namespace():
    # GIVEN
    kubelet = Identity("unit", "kubelet.service", "kubelet", 1, node="node-1")

    # WHEN / THEN
    assert not scope().rule()(kubelet, None)
    assert scope("-A").rule()(kubelet, None)
    assert scope("node/node-1").rule()(kubelet, None)
    assert not scope("node/node-2").rule()(kubelet, None)
    assert not scope("-A", "-l", "app=web").rule()(kubelet, None)


@pytest.mark.parametrize(
    "words",
    [
        ("deploy/",),
        ("/web",),
        ("thing/web",),
        ("a/b/c",),
        ("-A", "-n", "x"),
        ("-A", "deploy/web"),
        ("-l", "a=b=c"),
    ],
)
def test_targets_that_are_none_are_refused(words):
    with pytest.raises(UsageError):
        scope(*words)


def test_a_cluster_is_meant_by_its_flags_and_by_the_plugin():
    assert not targets.is_for_cluster(parsed(), "/usr/bin/podscope")
    assert targets.is_for_cluster(parsed(), "/usr/bin/kubectl-podscope")
    for words in (("deploy/web",), ("-A",), ("-n", "x"), ("-l", "a=b"), ("--context", "c")):
        assert targets.is_for_cluster(parsed(*words), "/usr/bin/podscope")
