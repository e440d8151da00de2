# SPDX-License-Identifier: Apache-2.0
"""Traces in a real cluster: on its nodes by Jobs, and one answer of them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import api_server
import pytest
import traces
import workloads
import yaml
from traces import PATIENCE
from traces import SPACE
from traces import Tracing
from traces import listed
from traces import mark
from traces import marked_until
from traces import marking
from traces import pods
from workloads import create
from workloads import delete
from workloads import patch
from workloads import wait

import podscope
from podscope.__main__ import main
from podscope.trace.decode import Text

AWAY_SECONDS = 6
COUNT = 'BEGIN { printf("hello\\n"); @ = count(); exit(); }'
RBAC = "apis/rbac.authorization.k8s.io/v1"


@pytest.fixture(scope="module")
def space(cluster) -> Iterator[None]:
    """Four pods of a Deployment on two nodes, and a busy neighbour on each."""
    with traces.traced(cluster, 4):
        yield


@pytest.fixture
def clean(cluster, space) -> Iterator[None]:
    """No trace is there before a test, and none is left when its traces are deleted."""
    yield
    done = cluster.podscope_here("delete", "--all", "-n", SPACE)
    assert done.returncode == 0, done.stderr
    assert not cluster.get(traces.JOBS)["items"]
    left = workloads.pods(cluster, "app.kubernetes.io/component=trace", SPACE)
    assert not left, [one["metadata"]["name"] for one in left]
    assert not bpftraces()


pytestmark = pytest.mark.usefixtures("clean")


def bpftraces() -> list[str]:
    """Processes of bpftrace in pods, where the nodes are on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "comm").read_text() == "bpftrace\n" and "kubepods" in (
                path / "cgroup"
            ).read_text():
                found.append(path.name)
        except OSError:
            continue
    return found


def run(cluster, *arguments: str):
    return cluster.podscope_here("run", *arguments, "-n", SPACE)


def summary(done) -> dict:
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# --- one exact answer ---------------------------------------------------------------------------


def test_counts_of_pods_on_two_nodes_are_one_exact_answer_without_their_neighbours(
    cluster, tmp_path
):
    # GIVEN
    web, busy = pods(cluster, "web"), pods(cluster, "busy")
    assert len(set(web.values())) == 2
    program = marking("@ = count(); @by[comm] = sum(2); @h = hist(7); @least = min(3);")
    config = tmp_path / "podscope.yaml"
    config.write_text(f"sinks: [{{type: files, path: {tmp_path}/rows}}]\n")
    words = ("--by", "pod", "--config", str(config), "--metric", "marks=@")

    # WHEN each container marks another number of times
    with Tracing(cluster, "deploy/web", "-e", program, *words) as tracing:
        for neighbour in busy:
            mark(cluster, neighbour, 5000)
        for number, pod in enumerate(web):
            mark(cluster, pod, 1000 + number)
            mark(cluster, pod, 10, traces.SIDE)
        told = tracing.end()

    # THEN
    assert tracing.code == 0, tracing.errors
    maps = tracing.maps()
    expected = {(pod,): 1010 + number for number, pod in enumerate(web)}
    assert maps["@"] == expected
    assert maps["@by"] == {(pod, "python3"): 2 * n for (pod,), n in expected.items()}
    assert maps["@h"] == {
        key: {"buckets": [{"min": 4, "max": 7, "count": n}]} for key, n in expected.items()
    }
    assert maps["@least"] == dict.fromkeys(expected, 3)
    assert (told["expected"], traces.lost(told)) == (["node-1", "node-2"], {})
    assert told["reported"] == told["expected"]
    # AND sinks have it, too
    rows = [json.loads(one) for one in (tmp_path / "rows/trace.jsonl").read_text().splitlines()]
    marks = {
        (one["k8s.namespace.name"], one["k8s.pod.name"]): one["podscope.trace.value"]
        for one in rows
        if one.get("podscope.trace.metric") == "marks"
    }
    assert marks == {(SPACE, pod): count for (pod,), count in expected.items()}


def test_without_by_the_answer_is_the_sum_and_lines_name_their_pod(cluster):
    # GIVEN
    web = pods(cluster, "web")
    program = marking('@ = count(); printf("marked %s\\n", comm); print((pid > 0, comm));')

    # WHEN
    with Tracing(cluster, "-l", "app=web", "-c", "side", "-e", program) as tracing:
        for pod in web:
            mark(cluster, pod, 9)
            mark(cluster, pod, 3, traces.SIDE)
        tracing.end()

    # THEN the other container is not seen
    assert tracing.maps()["@"] == {(): 12}
    marked = [one for one in tracing.lines if one.get("text") == "marked python3\n"]
    assert sorted((one["node"], one["pod"]) for one in marked) == sorted(
        (node, pod) for pod, node in web.items() for _ in range(3)
    )
    values = [one["pod"] for one in tracing.lines if one.get("value") == [1, "python3"]]
    assert sorted(values) == sorted(pod for pod in web for _ in range(3))


def test_what_joins_the_target_later_is_in_and_what_ends_leaves_its_counts(cluster):
    # GIVEN a program that names who marks
    path = f"{traces.DEPLOYMENTS}/web"
    before = pods(cluster, "web")
    first = next(iter(before))
    program = marking('@ = count(); printf("mark\\n");')

    def marks(pod: str) -> int:
        return sum(one.get("pod") == pod and one["text"] == "mark\n" for one in tracing.lines)

    try:
        with Tracing(cluster, "deploy/web", "-e", program, "--by", "pod") as tracing:
            mark(cluster, first, 5)
            # WHEN a container starts again in its pod
            mark(cluster, first, "exit")
            mark(cluster, first, 7)
            # AND another pod comes
            patch(cluster, path, {"spec": {"replicas": 5}})
            wait(lambda: len(pods(cluster, "web")) == 5, PATIENCE)
            (later,) = pods(cluster, "web").keys() - before.keys()
            asked = marked_until(cluster, later, lambda: marks(later) > 0)
            tracing.wait(lambda: marks(first) == 12)
            patch(cluster, path, {"spec": {"replicas": 4}})
            tracing.end()
    finally:
        patch(cluster, path, {"spec": {"replicas": 4}})
    wait(lambda: len(pods(cluster, "web")) == 4, PATIENCE)

    # THEN
    counts = tracing.maps()["@"]
    assert counts[(first,)] == 12
    assert 1 <= counts[(later,)] <= asked


def test_python_gets_merged_maps_live_and_leaves_nothing(cluster, monkeypatch):
    # GIVEN
    monkeypatch.setenv("BPFTRACE_STRLEN", "32")
    web = pods(cluster, "web")
    marked = {}
    place = {"namespace": SPACE, "kubeconfig": cluster.kubeconfig}

    # WHEN pods mark once both nodes have said twice that they run
    with podscope.trace(marking(), "deploy/web", by="pod", interval=0.3, **place) as trace:
        ticks = []
        for answer in trace:
            ticks += [line.node for line in answer.lines if isinstance(line, Text)]
            if not marked and min(ticks.count(node) for node in set(web.values())) >= 2:
                for number, pod in enumerate(web):
                    mark(cluster, pod, 3 + number)
                    marked[(pod,)] = 3 + number
            counts = answer.maps["@"].to_dict() if "@" in answer.maps else {}
            if marked and counts == marked:
                trace.stop()
        states = {node: state for node, (state, _) in trace.states.items()}

    # THEN
    assert answer.last and counts == marked
    assert states == {"node-1": "ended", "node-2": "ended"}
    assert not cluster.get(traces.JOBS)["items"]


# --- as kubectl-trace's own tests have it -------------------------------------------------------


def test_a_node_is_traced_in_the_background_and_its_answer_kept(cluster):
    # GIVEN / WHEN a bare name, as kubectl-trace has it
    done = run(cluster, "node-1", "-e", COUNT, "-d")

    # THEN
    assert done.returncode == 0, done.stderr
    head, name, tail = done.stderr.splitlines()[0].split()
    assert (head, tail) == ("trace", "created")
    wait(lambda: listed(cluster)[0]["status"] == "Completed", PATIENCE)
    (told,) = listed(cluster)
    assert (told["target"], told["nodes"], told["reported"]) == ("node-1", ["node-1"], ["node-1"])
    # AND by id or name, as often as one likes, also from a file
    for word in (name, f"podscope-trace-{name}"):
        got = cluster.podscope_here("get", word, "-n", SPACE, "-o", "json")
        assert got.returncode == 0, got.stderr
        assert json.loads(got.stdout.splitlines()[1])["entries"] == [{"key": [], "value": 1}]
    logs = cluster.podscope_here("log", name, "-n", SPACE, "--timestamps")
    assert logs.stdout.splitlines()[0].endswith("Z node-1: hello")
    assert logs.stdout.splitlines()[-1] == "@: 1"
    attached = cluster.podscope("attach", name, "-n", SPACE)
    assert "1 of 1 nodes reported; nothing lost" in attached.stdout
    # AND the Job has one condition, that it is complete, and no token
    (job,) = cluster.get(traces.JOBS)["items"]
    ended = [c["type"] for c in job["status"]["conditions"] if c["type"] in ("Complete", "Failed")]
    assert ended == ["Complete"]
    # AND it goes when it is deleted
    gone = cluster.podscope_here("delete", name, "-n", SPACE)
    assert gone.stdout == f"trace {name} deleted\n"
    assert cluster.podscope_here("get", "-n", SPACE).stdout == "No resources found.\n"


def test_a_program_that_bpftrace_refuses_fails_once_and_says_why(cluster):
    # GIVEN / WHEN
    done = run(cluster, "--all-nodes", "-e", "tracepoint:no:such_point { @ = count(); }")

    # THEN
    assert done.returncode == 1
    assert "node-1, node-2: bpftrace: " in done.stderr
    assert "no:such_point" in done.stderr
    assert "0 of 2 nodes reported" in done.stdout
    wait(lambda: listed(cluster)[0]["status"] == "Failed", PATIENCE)
    for job in cluster.get(traces.JOBS)["items"]:
        assert job["status"]["failed"] == 1
        assert job["status"].get("succeeded", 0) == 0
    # AND its logs tell it, too
    name = listed(cluster)[0]["name"]
    logs = cluster.podscope_here("logs", name, "-n", SPACE)
    assert logs.returncode == 1
    assert "no:such_point" in logs.stderr


def test_answers_go_to_a_file_of_a_directory(cluster, tmp_path):
    # GIVEN / WHEN
    pod = next(iter(pods(cluster, "web")))
    done = run(cluster, f"pod/{pod}", "main", "-e", COUNT, "--output", f"{tmp_path}/new/")

    # THEN
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "new").iterdir()
    assert "hello" in file.read_text()
    assert str(file) in done.stderr
    # AND what the cluster keeps can be kept, too
    name = listed(cluster)[0]["name"]
    kept = tmp_path / "kept.trace"
    kept.write_text(cluster.podscope_here("get", name, "-n", SPACE, "-o", "snapshots").stdout)
    assert "@: 1" in cluster.podscope("get", str(kept)).stdout


def test_the_container_s_process_stands_in_for_its_name(cluster):
    # GIVEN a function of a program inside of a container
    pod = next(iter(pods(cluster, "web")))
    program = (
        "uprobe:/proc/$container_pid/exe:_Py_Mangle, software:cs:1 { @ = count(); } "
        'interval:s:1 { printf("tick\\n"); }'
    )

    # WHEN / THEN
    refused = run(cluster, f"pod/{pod}", "-e", program)
    assert refused.returncode == 2
    assert "choose it with -c, of main, side" in refused.stderr
    with Tracing(cluster, f"pod/{pod}", "-c", "main", "-e", program, speakers=1) as tracing:
        mark(cluster, pod, 100)
        tracing.end()
    assert tracing.maps()["@"][()] > 0


def test_a_tool_of_bcc_gets_the_process_that_is_chosen(cluster):
    # GIVEN
    pod = next(iter(pods(cluster, "web")))
    tool = ("--tracer", "bcc", "--program", "tplist", "--args=-p", "--args=$target_pid")

    # WHEN
    done = run(
        cluster, f"pod/{pod}", "main", *tool, "--process-selector", "pid=1,exe=python", "-o", "json"
    )

    # THEN the probes that are compiled into its program are listed
    assert done.returncode == 0, (done.stderr, done.stdout)
    assert summary(done)["bpftrace"] == "bcc tplist"
    assert " python:audit\\n" in done.stdout


# --- faults -------------------------------------------------------------------------------------


def test_a_client_that_is_killed_attaches_again_and_has_missed_nothing(cluster):
    # GIVEN
    web = list(pods(cluster, "web"))
    program = marking('@ = count(); printf("mark\\n");')
    with Tracing(cluster, "deploy/web", "-e", program) as tracing:
        mark(cluster, web[0], 5)
        # WHEN
        tracing.kill()
    mark(cluster, web[1], 6)
    name = listed(cluster)[0]["name"]
    assert listed(cluster)[0]["status"] == "Running"
    with Tracing(cluster, name, command="attach") as again:
        mark(cluster, web[2], 7)
        told = again.end()

    # THEN
    assert again.maps()["@"] == {(): 18}
    assert sum(one.get("text") == "mark\n" for one in again.lines) == 18
    assert traces.lost(told) == {}
    assert again.code == 0


def test_a_node_whose_pod_is_killed_is_told_and_the_others_stay(cluster):
    # GIVEN
    web = pods(cluster, "web")
    with Tracing(cluster, "deploy/web", "-e", marking()) as tracing:
        for pod in web:
            mark(cluster, pod, 10)
        # WHEN
        found = workloads.pods(cluster, "app.kubernetes.io/component=trace", SPACE)
        killed = next(one for one in found if one["spec"]["nodeName"] == "node-1")
        path = f"{traces.PODS}/{killed['metadata']['name']}"
        body = json.dumps({"gracePeriodSeconds": 0}).encode()
        cluster.connection.send("DELETE", path, {}, body)
        wait(lambda: path not in cluster)
        told = tracing.end()

    # THEN
    why = f"{told['failed'].get('node-1', '')} {' '.join(told['notes'])}"
    assert "was ended from outside" in why or "is gone" in why or "Backoff" in why, told
    assert "node-2" in told["reported"]
    assert 20 <= tracing.maps()["@"][()] <= 40


def test_a_bpftrace_that_crashes_is_told_and_the_other_node_s_answer_stays(cluster):
    # GIVEN a trace whose two bpftrace are processes of this machine
    web = pods(cluster, "web")
    with Tracing(cluster, "deploy/web", "-e", marking()) as tracing:
        for pod in web:
            mark(cluster, pod, 10)
        found = bpftraces()
        if len(found) != 2:
            pytest.skip("needs nodes on this machine, to kill a process of theirs")

        # WHEN one ends without a word
        os.kill(int(found[0]), signal.SIGKILL)
        tracing.wait(lambda: len(bpftraces()) == 1)
        told = tracing.end()

    # THEN
    assert tracing.code == 1
    ((node, why),) = told["failed"].items()
    assert "ended by signal 9" in why
    assert [node, *told["reported"]] in (["node-1", "node-2"], ["node-2", "node-1"])
    assert 20 <= tracing.maps()["@"][()] <= 40


def test_a_trace_goes_on_while_the_api_server_is_away(cluster):
    # GIVEN
    place = os.environ.get("PODSCOPE_API_SERVER_PID_FILE", "")
    if not place:
        pytest.skip("needs an API server that may be stopped: set PODSCOPE_API_SERVER_PID_FILE")
    web = list(pods(cluster, "web"))
    program = marking("@ = count();") + ' interval:ms:500 { printf("half\\n"); }'
    with Tracing(cluster, "deploy/web", "-e", program) as tracing:
        mark(cluster, web[0], 8)
        # WHEN
        command = api_server.stop(Path(place))
        try:
            time.sleep(AWAY_SECONDS)
        finally:
            api_server.start(Path(place), command)
        wait(lambda: api_server.reachable(cluster), PATIENCE)
        mark(cluster, web[1], 9)
        told = tracing.end()

    # THEN nothing is missing, and nothing there twice
    assert tracing.code == 0, (told, tracing.errors)
    assert tracing.maps()["@"] == {(): 17}
    for node in ("node-1", "node-2"):
        halves = sum(one.get("text") == "half\n" and one["node"] == node for one in tracing.lines)
        assert halves >= AWAY_SECONDS, halves
    assert traces.lost(told) == {}


def test_a_trace_ends_at_its_deadline(cluster):
    # GIVEN / WHEN
    done = run(
        cluster, "deploy/web", "-e", marking(), "--deadline", "3", "-o", "json",
        "--deadline-grace-period", "20",
    )  # fmt: skip

    # THEN
    assert done.returncode == 0, done.stderr
    assert summary(done)["reported"] == ["node-1", "node-2"]


def test_a_map_that_is_full_is_told(cluster, monkeypatch):
    # GIVEN
    monkeypatch.setenv("BPFTRACE_MAP_KEYS_MAX", "8")
    program = "BEGIN { unroll(20) { $i = $i + 1; @[$i] = count(); } exit(); }"
    program = program.replace("BEGIN {", "BEGIN { $i = 0;")

    # WHEN
    done = run(cluster, "node/node-1", "-e", program, "-o", "json")

    # THEN
    assert done.returncode == 0, done.stderr
    assert any("@ is full with 8 entries" in note for note in summary(done)["notes"])


def test_a_probe_that_is_on_one_node_alone_leaves_that_node_s_answer(cluster):
    # GIVEN a file that only one of two pods has
    for name, node, command in (
        ("has", "node-1", "cp /bin/bash /tmp/it;"),
        ("lacks", "node-2", ""),
    ):
        container = workloads.container("it", ["sh", "-c", f"{command} exec sleep 1000"])
        path, body = workloads.pod(name, container, namespace=SPACE, nodeName=node)
        body["metadata"]["labels"] = {"app": "pair"}
        create(cluster, (path, body))
    wait(lambda: len(pods(cluster, "pair")) == 2, PATIENCE)
    program = "uprobe:/proc/$container_pid/root/tmp/it:readline { @ = count(); }"

    # WHEN
    done = run(
        cluster, "-l", "app=pair", "-e", f"{program} interval:s:1 {{ @n = count(); exit(); }}",
        "-o", "json",
    )  # fmt: skip
    for name in ("has", "lacks"):
        delete(cluster, f"{traces.PODS}/{name}")

    # THEN
    assert done.returncode == 1
    told = summary(done)
    assert told["reported"] == ["node-1"]
    assert "/tmp/it" in told["failed"]["node-2"]


def test_a_namespace_that_refuses_privileged_pods_says_so(cluster):
    # GIVEN
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}}
    patch(cluster, f"api/v1/namespaces/{SPACE}", level)

    # WHEN
    try:
        done = run(cluster, "node-1", "-e", COUNT)
    finally:
        level["metadata"]["labels"] = dict.fromkeys(level["metadata"]["labels"])
        patch(cluster, f"api/v1/namespaces/{SPACE}", level)

    # THEN
    assert done.returncode == 1
    assert 'violates PodSecurity "baseline' in done.stderr
    assert listed(cluster) == []


# --- bad input ----------------------------------------------------------------------------------


BAD = [
    (("deploy/none", "-e", COUNT), "there is no deployment 'none'"),
    (("web", "-e", COUNT), "there is no node 'web'; there is deployment/web: name it so"),
    (("deploy/web", "-c", "none", "-e", COUNT), "-c none: no such container runs"),
    (("-l", "app=none", "-e", COUNT), "it has no running pods"),
    (("deploy/web", "-e", ""), "the program is empty"),
    (("deploy/web", "-e", COUNT, "-f", "x"), "-e and -f: give one of them"),
    (("deploy/web", "-f", "/no/such/file"), "cannot be read"),
    (("deploy/web", "-e", "BEGIN {"), "program"),
    (("node-1", "-e", COUNT, "--by", "pod"), "--by pod: only of pods"),
    (("deploy/web", "-e", COUNT, "--process-selector", "pid=1"), "--process-selector"),
    (("deploy/web", "-e", COUNT, "--patch", "x"), "--patch and --patch-type: give both"),
    (("deploy/web", "node/node-1", "-e", COUNT), "give nodes and pods to different traces"),
    (("deploy/web", "-e", COUNT, "--metric", "x"), "--metric: where to?"),
    (("deploy/web", "-e", COUNT, "--config", "/no/such"), "cannot read the configuration"),
]


def test_bad_input_is_one_line_and_makes_nothing(cluster, capsys):
    for words, told in BAD:
        # GIVEN / WHEN
        code = main(["run", *words, "-n", SPACE, "--kubeconfig", cluster.kubeconfig])

        # THEN
        said = capsys.readouterr().err
        assert code == 2, (words, said)
        assert told in said
        assert len(said.splitlines()) == 1, said
    assert not cluster.get(traces.JOBS)["items"]


# --- changes and rights -------------------------------------------------------------------------


def test_a_patch_changes_the_jobs(cluster, tmp_path):
    # GIVEN
    file = tmp_path / "patch.yaml"
    change = {"containers": [{"name": "trace", "env": [{"name": "X", "value": "y"}]}]}
    file.write_text(yaml.safe_dump({"spec": {"template": {"spec": change}}}))

    # WHEN
    done = run(
        cluster, "node-1", "-e", COUNT, "-d", "--patch", str(file), "--patch-type", "strategic"
    )

    # THEN
    assert done.returncode == 0, done.stderr
    (job,) = cluster.get(traces.JOBS)["items"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    named = {one["name"]: one["value"] for one in container["env"]}
    assert (named["X"], named["NODE_NAME"]) == ("y", "node-1")
    assert container["args"][0] == "run"


RIGHTS = [
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "list", "delete"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]},
]


def kubeconfig_of(cluster, name: str, rules: list[dict], place: Path) -> str:
    """A kubeconfig for a service account with these rights alone."""
    about = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": SPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    create(
        cluster,
        (
            f"api/v1/namespaces/{SPACE}/serviceaccounts",
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}},
        ),
        (f"{RBAC}/namespaces/{SPACE}/roles", {**about, "kind": "Role", "rules": rules}),
        (
            f"{RBAC}/namespaces/{SPACE}/rolebindings",
            {**about, "kind": "RoleBinding", "subjects": [subject], "roleRef": role},
        ),
    )
    path = f"api/v1/namespaces/{SPACE}/serviceaccounts/{name}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = cluster.connection.send("POST", path, {}, json.dumps(body).encode())
    content = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    content["users"][0]["user"] = {"token": json.loads(answer)["status"]["token"]}
    file = place / f"{name}.kubeconfig"
    file.write_text(yaml.safe_dump(content))
    return str(file)


def test_the_documented_rights_are_enough_and_one_fewer_is_named(cluster, tmp_path):
    # GIVEN
    whole = kubeconfig_of(cluster, "tracer", RIGHTS, tmp_path)
    viewer = kubeconfig_of(cluster, "viewer", RIGHTS[1:], tmp_path)
    able = type(cluster)(whole, cluster.image, cluster.connection)
    unable = type(cluster)(viewer, cluster.image, cluster.connection)

    # WHEN / THEN
    with Tracing(able, "deploy/web", "-e", marking()) as tracing:
        mark(cluster, next(iter(pods(cluster, "web"))), 4)
        tracing.end()
    assert tracing.code == 0, tracing.errors
    assert tracing.maps()["@"] == {(): 4}
    name = listed(able)[0]["name"]
    assert able.podscope("get", name, "-n", SPACE).returncode == 0
    refused = run(unable, "deploy/web", "-e", COUNT)
    assert refused.returncode == 1
    assert "no permission: 'create' on 'jobs.batch' in namespace" in refused.stderr
    done = able.podscope("delete", name, "-n", SPACE)
    assert done.returncode == 0, done.stderr
    assert os.path.exists(whole)
