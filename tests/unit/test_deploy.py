# SPDX-License-Identifier: Apache-2.0
"""The manifests of ``podscope install``, and what ``podscope status`` makes of objects."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import yaml

from podscope import settings
from podscope.__main__ import main
from podscope.config import Config
from podscope.config import Interval
from podscope.deploy import manifests
from podscope.deploy import states
from podscope.errors import UsageError
from podscope.identity.refusals import permission

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "deploy" / "base"
KINDS = [
    "Namespace",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "DaemonSet",
]


def agent(*settings, **others):
    """The pod's spec and its only container."""
    made = manifests.objects(settings=settings, **others)
    pod = made[-1]["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


# --- manifests --------------------------------------------------------------------------------


def test_packaged_manifests_are_those_of_deploy_base():
    # GIVEN / WHEN
    packaged = {path.name: path.read_text() for path in manifests.DIRECTORY.glob("*.yaml")}

    # THEN
    assert packaged == {path.name: path.read_text() for path in BASE.iterdir()}
    assert yaml.safe_load(packaged["kustomization.yaml"])["resources"] == list(manifests.FILES)


def test_agent_has_the_least_rights():
    # GIVEN / WHEN
    pod, container = agent()
    role = manifests.objects()[KINDS.index("ClusterRole")]

    # THEN
    rights = container["securityContext"]
    assert rights["capabilities"] == {"drop": ["ALL"], "add": ["BPF", "PERFMON", "NET_ADMIN"]}
    assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
    assert not rights["privileged"]
    written = [one["name"] for one in container["volumeMounts"] if not one.get("readOnly")]
    assert written == ["queue"]
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} <= {"get", "list", "watch"}
    named = {resource for rule in role["rules"] for resource in rule["resources"]}
    assert named == {"pods", "services", "namespaces", "nodes", "endpointslices", "jobs"}
    assert pod["serviceAccountName"] == "podscope-agent"


def test_dry_run_prints_all_objects_as_yaml(capsys):
    # GIVEN / WHEN
    code = main(["install", "--dry-run", "-o", "yaml", "--image", "example.com/podscope:1"])

    # THEN
    made = list(yaml.safe_load_all(capsys.readouterr().out))
    assert code == 0
    assert [one["kind"] for one in made] == KINDS
    assert made == list(manifests.objects(image="example.com/podscope:1"))


def test_every_object_bears_the_label_by_which_it_is_removed():
    for one in manifests.objects():
        assert one["metadata"]["labels"].items() >= manifests.MANAGED.items()


def test_namespace_is_changed_wherever_it_is_named():
    # GIVEN / WHEN
    made = manifests.objects("watch")

    # THEN
    text = manifests.as_yaml(made)
    assert "namespace: podscope" not in text
    by_kind = {one["kind"]: one for one in made}
    assert by_kind["Namespace"]["metadata"]["name"] == "watch"
    assert by_kind["ClusterRoleBinding"]["subjects"][0]["namespace"] == "watch"
    assert by_kind["DaemonSet"]["metadata"]["namespace"] == "watch"


def test_settings_go_where_they_belong():
    # GIVEN / WHEN
    pod, container = agent(
        "imagePullPolicy=Never",
        "imagePullSecret=mine",
        "priorityClassName=system-node-critical",
        "resources.limits.cpu=1.5",
        "resources.requests.memory=256Mi",
        "nodeSelector.example.com/pool=web",
        "capabilities.add=SYS_PTRACE,BPF",
    )

    # THEN
    assert container["imagePullPolicy"] == "Never"
    assert pod["imagePullSecrets"] == [{"name": "mine"}]
    assert pod["priorityClassName"] == "system-node-critical"
    assert container["resources"]["limits"]["cpu"] == "1.5"
    assert container["resources"]["requests"]["memory"] == "256Mi"
    assert pod["nodeSelector"]["example.com/pool"] == "web"
    added = container["securityContext"]["capabilities"]["add"]
    assert added == ["BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE"]


def test_queues_on_disk_have_room_in_a_pod_or_are_refused(tmp_path):
    # GIVEN
    file = tmp_path / "podscope.yaml"

    def made(disk: str, path: str, *settings: str) -> str:
        queue = f"{{disk: {disk}, path: {path}}}"
        file.write_text(f"sinks: [{{type: files, path: '-', queue: {queue}}}]\n")
        pod = manifests.objects(settings=settings, config=str(file))[-1]["spec"]["template"]["spec"]
        (found,) = (one for one in pod["volumes"] if one["name"] == "queue")
        return str(found["emptyDir"]["sizeLimit"])

    # WHEN / THEN
    assert made("1GiB", "/var/lib/podscope/a") == "2Gi"
    assert made("3GiB", "/var/lib/podscope/a", "queue.size=4Gi") == "4Gi"
    with pytest.raises(UsageError, match=r"add --set queue\.size=3Gi"):
        made("2GiB", "/var/lib/podscope/a")
    with pytest.raises(UsageError, match="only /var/lib/podscope can be written"):
        made("1GiB", "/data")


def test_queues_on_disk_may_outlive_the_pod_on_its_node(tmp_path):
    # GIVEN
    file = tmp_path / "podscope.yaml"
    queue = "{disk: 8GiB, path: /var/lib/podscope/a}"
    file.write_text(f"sinks: [{{type: files, path: '-', queue: {queue}}}]\n")

    # WHEN
    settings = ["queue.hostPath=/var/lib/queues"]
    made = manifests.objects(settings=settings, config=str(file))[-1]["spec"]

    # THEN
    pod = made["template"]["spec"]
    (found,) = (one for one in pod["volumes"] if one["name"] == "queue")
    assert found == {
        "name": "queue",
        "hostPath": {"path": "/var/lib/queues", "type": "DirectoryOrCreate"},
    }
    # A queue on disk has one owner: no agent may start while the one before it runs.
    assert made["updateStrategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize("place", ["queues", "/", "/var", "/var/../etc", "/var//x", "/a b/c"])
def test_queues_on_a_node_have_a_directory_of_their_own(place):
    with pytest.raises(UsageError, match=r"write it as queue\.hostPath=/var/lib/podscope"):
        manifests.objects(settings=[f"queue.hostPath={place}"])


@pytest.mark.parametrize("order", [1, -1])
def test_queues_on_a_node_have_no_size_of_the_pods(order):
    settings = ["queue.size=4Gi", "queue.hostPath=/var/lib/podscope"][::order]
    with pytest.raises(UsageError, match=r"queue\.disk of each sink is the limit"):
        manifests.objects(settings=settings)


def test_secrets_in_variables_that_a_pod_has_not_are_told(tmp_path):
    # GIVEN
    file = tmp_path / "podscope.yaml"
    file.write_text(
        "sinks:\n- {type: elasticsearch, url: http://a, name: logs, api-key: {env: KEY}}\n"
    )

    # WHEN / THEN
    told = r"sinks: logs: api-key: .*write \{file: /var/run/secrets/podscope/KEY\}"
    with pytest.raises(UsageError, match=told):
        manifests.objects(config=str(file))


def configured(*settings: str, config: str = "") -> str:
    """The configuration in the ConfigMap."""
    made = manifests.objects(settings=settings, config=config)
    return made[KINDS.index("ConfigMap")]["data"][manifests.CONFIG]


def test_agent_reads_the_configuration_of_the_configmap():
    # GIVEN / WHEN
    pod, container = agent()
    mount = next(one for one in container["volumeMounts"] if one["name"] == "config")

    # THEN the directory is mounted: a single file would not change with the ConfigMap
    assert f"{mount['mountPath']}/{manifests.CONFIG}" in container["args"]
    assert "subPath" not in mount
    assert {"name": "config", "configMap": {"name": "podscope-agent"}} in pod["volumes"]
    assert load_config(configured()) == Config()


def load_config(text: str) -> Config:
    return settings.decoded(settings.from_yaml(text, "config.yaml"), Config)


def test_a_setting_of_the_configuration_goes_into_the_configmap():
    assert load_config(configured("interval=5s")) == Config(interval=Interval(5))


def test_a_configuration_file_is_taken_as_it_is_and_set_goes_before_it(tmp_path):
    # GIVEN
    file = tmp_path / "mine.yaml"
    file.write_text("# mine\ninterval: 7s\nnode: x\n")

    # WHEN / THEN
    assert configured(config=str(file)) == file.read_text()
    told = load_config(configured("interval=9s", config=str(file)))
    assert (told.interval, told.node) == (9, "x")


def test_a_wrong_configuration_file_is_refused_before_anything_is_made(tmp_path, capsys):
    # GIVEN
    file = tmp_path / "mine.yaml"
    file.write_text("interval: 7s\nnodes: x\n")

    # WHEN
    code = main(["install", "--dry-run", "--config", str(file)])

    # THEN
    assert code == 2
    told = capsys.readouterr()
    assert told.err == f"podscope: {file}:2: unknown key 'nodes' (did you mean 'node'?)\n"
    assert told.out == ""


@pytest.mark.parametrize("key", list(manifests.SETTINGS))
def test_example_of_a_setting_is_taken(key):
    # GIVEN
    example = manifests.SETTINGS[key][1]

    # WHEN / THEN
    agent(f"{key.replace('KEY', 'pool')}={example}")


@pytest.mark.parametrize("key", list(manifests.SETTINGS))
def test_setting_is_in_the_reference(key):
    assert f"| `{key}` |" in (ROOT / "docs/reference/cli.md").read_text()


@pytest.mark.parametrize(
    "setting",
    [
        "imagePullPolicy",
        "imagepullpolicy=Never",
        "imagePullPolicy=Sometimes",
        "interval=1ms",
        "interval=soon",
        "node=x",
        "resources.limits.cpu=many",
        "resources.limits.disk=1Gi",
        "nodeSelector.=web",
        "nodeSelector.pool=a b",
        "capabilities.add=sys_admin",
        "=",
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(setting):
    # GIVEN / WHEN
    with pytest.raises(UsageError) as caught:
        agent(setting)

    # THEN
    assert str(caught.value).startswith("--set")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "Podscope", "a.b", "-a", "a" * 64])
def test_a_namespace_that_cannot_be_is_refused(name):
    with pytest.raises(UsageError, match="--namespace: not a name"):
        manifests.objects(name)


def test_yaml_is_for_dry_runs_only(capsys):
    # GIVEN / WHEN
    code = main(["install", "-o", "yaml"])

    # THEN
    assert code == 2
    assert capsys.readouterr().err == "podscope: -o yaml: only together with --dry-run\n"


# --- states -----------------------------------------------------------------------------------


def node(name, ready="True", **labels):
    """A node as the API has it."""
    status = {"conditions": [{"type": "Ready", "status": ready}]}
    return convert({"metadata": {"name": name, "labels": labels}, "status": status}, states.Node)


def pod(name, on, ready="True", container=None, **others):
    """A pod of a node as the API has it."""
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": ready}]
    status = {
        "conditions": conditions,
        "containerStatuses": [{"image": "i:1", **(container or {})}],
    }
    about = {"name": name, "labels": {manifests.VERSION_LABEL: "1.2"}, **others}
    return convert({"metadata": about, "spec": {"nodeName": on}, "status": status}, states.Pod)


def daemon_set(desired, current, selector=None, observed=1):
    """A DaemonSet as the API has it."""
    counts = {"desiredNumberScheduled": desired, "currentNumberScheduled": current}
    template = {"spec": {"nodeSelector": selector or {}}}
    content = {
        "metadata": {"generation": 1},
        "spec": {"template": template},
        "status": {"observedGeneration": observed, **counts},
    }
    return convert(content, states.DaemonSet)


def convert(content, kind):
    """By way of JSON, as it comes."""
    return msgspec.json.decode(msgspec.json.encode(content), type=kind)


def test_a_ready_agent_is_told_with_version_and_image():
    # GIVEN / WHEN
    told = states.node_states(daemon_set(1, 1), [node("a")], [pod("p", "a")])

    # THEN
    assert told == (states.NodeState("a", "ready", "1.2", "i:1", ""),)


@pytest.mark.parametrize(
    ("container", "why"),
    [
        (
            {"state": {"waiting": {"reason": "ErrImagePull", "message": "no\nsuch image"}}},
            "ErrImagePull: no such image",
        ),
        (
            {
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                "lastState": {"terminated": {"exitCode": 1, "message": "podscope: no cgroup\n"}},
            },
            "CrashLoopBackOff: podscope: no cgroup",
        ),
        (
            {
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
            },
            "CrashLoopBackOff: OOMKilled, exit code 137",
        ),
        (
            {"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}},
            "OOMKilled: exit code 137",
        ),
        ({"state": {"running": {}}}, "it has not become ready yet: see 'kubectl logs p'"),
    ],
    ids=["image", "crash", "memory", "ended", "running"],
)
def test_an_agent_that_is_not_ready_is_told_with_its_reason(container, why):
    # GIVEN
    one = pod("p", "a", "False", container)

    # WHEN
    told = states.node_states(daemon_set(1, 1), [node("a")], [one])

    # THEN
    assert [(state.agent, state.why) for state in told] == [("not ready", why)]


def test_a_pod_that_found_no_place_counts_for_the_node_it_was_made_for():
    # GIVEN
    fields = [{"key": "metadata.name", "operator": "In", "values": ["a"]}]
    required = {"nodeSelectorTerms": [{"matchFields": fields}]}
    key = "requiredDuringSchedulingIgnoredDuringExecution"
    content = {
        "metadata": {"name": "p"},
        "spec": {"affinity": {"nodeAffinity": {key: required}}},
        "status": {
            "conditions": [{"type": "PodScheduled", "status": "False", "message": "no memory"}]
        },
    }

    # WHEN
    told = states.node_states(daemon_set(1, 1), [node("a")], [convert(content, states.Pod)])

    # THEN
    assert [(state.agent, state.why) for state in told] == [("not ready", "no memory")]


def test_of_two_pods_the_one_that_stays_counts():
    # GIVEN
    gone = pod("old", "a", "True", deletionTimestamp="2026-01-01T00:00:00Z")
    here = pod("new", "a")

    # WHEN / THEN
    for pods in ([gone, here], [here, gone]):
        assert states.node_states(daemon_set(1, 1), [node("a")], pods)[0].agent == "ready"


def test_nodes_without_a_pod_are_missing_or_not_chosen():
    # GIVEN
    nodes = [node("a", pool="web"), node("b", pool="data"), node("c", pool="web")]
    chosen = daemon_set(2, 1, {"pool": "web"})

    # WHEN
    told = states.node_states(chosen, nodes, [pod("p", "a")], "quota is used up")

    # THEN
    assert [(state.agent, state.why) for state in told] == [
        ("ready", ""),
        ("not chosen", ""),
        ("not ready", "quota is used up"),
    ]


def test_nothing_is_ready_before_the_controller_has_seen_the_daemon_set():
    # GIVEN
    new = daemon_set(0, 0, observed=0)

    # WHEN
    told = states.node_states(new, [node("a")], [])

    # THEN
    assert not new.done
    assert [(state.agent, state.why) for state in told] == [("not ready", "there is no pod yet")]


def test_an_agent_on_a_node_that_is_away_is_not_ready():
    # GIVEN / WHEN
    told = states.node_states(daemon_set(1, 1), [node("a", "Unknown")], [pod("p", "a")])

    # THEN
    assert told[0].why == "the node is not ready"


# --- refusals ---------------------------------------------------------------------------------


def test_a_missing_right_is_named():
    # GIVEN the words of the API server
    words = (
        'daemonsets.apps "podscope-agent" is forbidden: User "jo" cannot patch resource '
        '"daemonsets" in API group "apps" in the namespace "podscope"'
    )

    # WHEN
    line = permission(words)

    # THEN
    told = "no permission: 'patch' on 'daemonsets.apps' in namespace 'podscope' is missing"
    assert line.startswith(told)


def test_other_refusals_keep_the_words_of_the_api_server():
    assert permission("quota is used up") == "no permission: quota is used up"


def test_agents_that_run_traces_get_the_list_of_tracepoints_and_memory():
    # GIVEN
    plain = manifests.objects()[-1]["spec"]["template"]

    # WHEN
    made = manifests.objects(settings=["traces=true", "resources.limits.memory=2Gi"])
    template = made[-1]["spec"]["template"]

    # THEN
    assert "traces: true" in made[-2]["data"]["config.yaml"]
    assert template["metadata"]["labels"]["podscope.dev/traces"] == "true"
    agent, before = template["spec"]["containers"][0], plain["spec"]["containers"][0]
    assert agent["resources"]["limits"]["memory"] == "2Gi"
    assert agent["securityContext"] == before["securityContext"]
    added = [one for one in agent["volumeMounts"] if one not in before["volumeMounts"]]
    assert added == [
        {"name": "tracing", "mountPath": "/sys/kernel/tracing", "readOnly": True},
    ]
    assert "podscope.dev/traces" not in plain["metadata"]["labels"]
