# SPDX-License-Identifier: Apache-2.0
"""A trace in a cluster: which nodes it runs on, and the Jobs that do it."""

from __future__ import annotations

import argparse
import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podscope.commands import run
from podscope.errors import UsageError
from podscope.identity.kubernetes_objects import Pod
from podscope.trace import jobs
from podscope.trace import kept

ID = "4f" * 32
UIDS = ("0e6d8fd0-1111-4222-8333-444444444444", "f" * 32)
PROGRAM = 'BEGIN { printf("$(HOME) $$(x) $x %d\\n", pid); exit(); }'


def pod(name, node="n1", *containers, phase="Running", runtime="cri-o", **annotations):
    """A pod as the API server tells of it."""
    names = containers or ("app",)
    return msgspec.convert(
        {
            "metadata": {
                "name": name,
                "namespace": "shop",
                "uid": f"uid-{name}",
                "annotations": annotations,
            },
            "spec": {"nodeName": node, "containers": [{"name": one} for one in names]},
            "status": {
                "phase": phase,
                "containerStatuses": [
                    {
                        "name": one,
                        "containerID": f"{runtime}://{place}{ID[1:]}",
                        "state": {"running": {}} if one != "ended" else {"terminated": {}},
                    }
                    for place, one in enumerate(names)
                ],
            },
        },
        Pod,
    )


def test_each_node_has_one_part_with_all_its_pods():
    # GIVEN
    pods = [pod("a"), pod("b", "n2"), pod("c"), pod("d", phase="Pending"), pod("e", "")]

    # WHEN / THEN
    assert jobs.on_pods(pods) == (
        jobs.Part("n1", ("pod/uid-a", "pod/uid-c"), ("a", "c")),
        jobs.Part("n2", ("pod/uid-b",), ("b",)),
    )


@pytest.mark.parametrize("runtime", ["containerd", "cri-o", "docker"])
def test_a_container_is_named_by_its_id_whatever_the_runtime(runtime):
    (part,) = jobs.on_pods([pod("a", "n1", "app", "side", runtime=runtime)], "side")
    assert part.targets == (f"container/1{ID[1:]}",)


def test_a_container_that_only_some_pods_have_leaves_the_others_out():
    parts = jobs.on_pods([pod("a", "n1", "app", "side"), pod("b", "n2")], "side")
    assert [part.node for part in parts] == ["n1"]


def test_a_static_pod_has_the_uid_of_its_cgroups():
    (part,) = jobs.on_pods([pod("a", **{"kubernetes.io/config.mirror": "abc"})])
    assert part.targets == ("pod/abc",)


@pytest.mark.parametrize(
    ("pods", "container", "one", "told"),
    [
        ([], "", False, "it has no running pods"),
        ([pod("a", phase="Succeeded")], "", False, "it has no running pods"),
        ([pod("a")], "side", False, "-c side: no such container runs; there are app"),
        ([pod("a", "n1", "app", "ended")], "ended", False, "-c ended: no such container runs"),
        ([pod("a", "n1", "x", "y")], "", True, "choose it with -c, of x, y"),
    ],
)
def test_targets_without_anything_to_trace_are_refused(pods, container, one, told):
    with pytest.raises(UsageError) as refused:
        jobs.on_pods(pods, container, one=one)
    assert told in str(refused.value)


def test_nodes_are_traced_whole_and_once():
    assert jobs.on_nodes(["n1", "n2", "n1"]) == (jobs.Part("n1"), jobs.Part("n2"))


def made(owner=None, **options):
    request = jobs.Request(
        "podscope-trace-ab12", PROGRAM, target="deploy/web", namespace="shop", **options
    )
    part = jobs.Part("n1.internal", (f"pod/{UIDS[0]}", f"pod/{UIDS[1]}"), ("a", "b"))
    return jobs.job(request, part, owner)


def test_a_job_is_whole_and_leaves_nothing_behind():
    # GIVEN / WHEN
    one = made(deadline=60, grace=10, ttl=3600, service_account="tracer")
    spec = one["spec"]
    inside = spec["template"]["spec"]

    # THEN
    assert (one["kind"], one["metadata"]["name"]) == ("Job", "podscope-trace-ab12-91c31af4")
    assert one["metadata"]["labels"][jobs.TRACE_LABEL] == "podscope-trace-ab12"
    assert spec["template"]["metadata"]["labels"] == one["metadata"]["labels"]
    assert spec["backoffLimit"] == 0
    assert spec["activeDeadlineSeconds"] > 70
    assert spec["ttlSecondsAfterFinished"] == 3600 + 60 + 10
    assert inside["restartPolicy"] == "Never"
    assert inside["hostPID"] is True
    assert inside["serviceAccountName"] == "tracer"
    assert json.loads(json.dumps(one)) == one


def test_a_job_runs_on_its_node_by_name_whatever_the_taints():
    inside = made()["spec"]["template"]["spec"]
    (term,) = inside["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]  # fmt: skip
    assert term == {
        "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1.internal"]}]
    }
    assert inside["tolerations"] == [{"operator": "Exists"}]
    assert "nodeName" not in inside  # would pass the scheduler by, and its limits


def expanded(word: str) -> str:
    """What Kubernetes makes of a word of a container's arguments, with no variable set."""
    return re.sub(r"\$\$|\$\([^)]*\)?", lambda m: "$" if m[0] == "$$" else m[0], word)


def parsed(one):
    """The words of a Job as ``podscope run`` on the node reads them."""
    (container,) = one["spec"]["template"]["spec"]["containers"]
    command, *words = [expanded(word) for word in container["args"]]
    assert command == "run"
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return run.options(parser.parse_intermixed_args(words))


def test_the_node_runs_what_was_asked_for():
    # GIVEN / WHEN
    told = parsed(
        made(arguments=("-x", "a b"), deadline=90, interval=0.5, confine=False, unsafe=True)
    )

    # THEN
    assert told.script.text == PROGRAM
    assert (told.form, told.target) == ("snapshots", f"pod/{UIDS[0]} pod/{UIDS[1]}")
    assert (told.arguments, told.deadline, told.interval) == (("-x", "a b"), 90.0, 0.5)
    assert (told.confine, told.unsafe, told.grace) == (False, True, 30.0)


@given(st.text(alphabet="$()ab ", max_size=12))
def test_kubernetes_leaves_every_program_as_it_was_written(text):
    assert expanded(jobs._as_written(text)) == text


def test_the_first_job_takes_the_others_with_it_and_lives_longest():
    # GIVEN
    first = made() | {"metadata": {"name": "first", "uid": "u"}}

    # WHEN
    second = made(first, ttl=60)

    # THEN
    assert [(o["kind"], o["uid"]) for o in second["metadata"]["ownerReferences"]] == [("Job", "u")]
    assert second["spec"]["ttlSecondsAfterFinished"] == 60
    assert made(ttl=60)["spec"]["ttlSecondsAfterFinished"] > 3600


def test_a_job_of_the_same_part_has_the_same_name():
    assert made()["metadata"]["name"] == made(deadline=7)["metadata"]["name"]


def test_names_of_pods_and_their_keeping_apart_are_for_confined_programs():
    assert parsed(made(by_pod=True)).names == ("a", "b")
    assert parsed(made(by_pod=True)).by == "pod"
    assert parsed(made(confine=False)).names == ()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, "Unknown"),
        ({"active": 1}, "Running"),
        ({"succeeded": 1}, "Completed"),
        ({"failed": 1}, "Failed"),
        ({"active": 0, "failed": 1}, "Failed"),
    ],
)
def test_state_of_a_job_has_the_words_of_kubectl_trace(status, expected):
    assert kept.state({"status": status}) == expected


def test_why_a_job_failed_is_told():
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "late"}
    assert kept.why_failed({"status": {"conditions": [failed]}}) == "DeadlineExceeded: late"
    assert kept.why_failed({}) == ""


def test_a_job_for_log_shippers_has_the_label_of_its_rows_and_writes_them():
    # GIVEN / WHEN
    spec = made(rows="tcplife")["spec"]["template"]

    # THEN
    assert spec["metadata"]["labels"][jobs.ROWS_LABEL] == "tcplife"
    arguments = spec["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--form") + 1] == "json"


def test_containers_can_be_named_one_by_one_with_their_pod():
    # GIVEN / WHEN
    (part,) = jobs.on_pods([pod("a", "n1", "app", "side", "ended")], each=True)

    # THEN
    assert part.targets == (f"container/0{ID[1:]}", f"container/1{ID[1:]}")
    assert part.pods == ("a", "a")
