# SPDX-License-Identifier: Apache-2.0
"""The servers that ``podscope install --with`` makes: what refers to what, by form."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from object_store import ObjectStore
from object_store import object_store

from podscope import settings
from podscope.__main__ import main
from podscope.config import Config
from podscope.deploy import manifests
from podscope.deploy import stack
from podscope.deploy.installation import Installation
from podscope.errors import PodscopeError
from podscope.errors import UsageError

DATABASES = stack.NAMES[:-1]
ALL = ",".join(stack.NAMES)


def made(servers: str, namespace: str = "watch", **more: Any) -> list[dict[str, Any]]:
    """All objects of an installation."""
    return [*manifests.objects(namespace, servers=servers, **more)]


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> dict[str, dict[str, Any]]:
    """Objects of some kinds, by name."""
    return {one["metadata"]["name"]: one for one in objects if one["kind"] in kinds}


def pods(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Specs of pods."""
    for one in of_kind(objects, "StatefulSet", "Deployment", "DaemonSet").values():
        yield one["spec"]["template"]["spec"]


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    """A place for objects."""
    with object_store() as opened:
        yield opened


def choices() -> list[str]:
    """Each server alone, each with Grafana, and all."""
    return [*DATABASES, *(f"{name},grafana" for name in DATABASES), ALL]


@pytest.mark.parametrize("servers", choices())
def test_whatever_a_pod_refers_to_is_there(servers):
    # GIVEN / WHEN
    objects = made(servers)
    claims = of_kind(objects, "PersistentVolumeClaim")
    configs, secrets = of_kind(objects, "ConfigMap"), of_kind(objects, "Secret")
    accounts = of_kind(objects, "ServiceAccount")

    # THEN
    for pod in pods(objects):
        names = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == names
        assert pod.get("serviceAccountName", "podscope-agent") in accounts
        for volume in [*pod["volumes"], *projected(pod)]:
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in claims
            if config := volume.get("configMap"):
                keys = {item["key"] for item in config.get("items", ())}
                assert keys <= set(configs[config["name"]]["data"])
            if (secret := volume.get("secret")) and not secret.get("optional"):
                keys = {item["key"] for item in secret["items"]}
                assert keys <= set(secrets[secret["name"]]["data"])
        for variable in container.get("env", ()):
            key = variable.get("valueFrom", {}).get("secretKeyRef")
            assert key is None or key["key"] in secrets[key["name"]]["data"]


def projected(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Parts of projected volumes."""
    return [part for one in pod["volumes"] for part in one.get("projected", {}).get("sources", ())]


@pytest.mark.parametrize("servers", choices())
def test_every_object_is_in_the_namespace_and_bears_the_label_by_which_it_is_removed(servers):
    for one in made(servers):
        about = one["metadata"]
        assert about["labels"].items() >= manifests.MANAGED.items()
        cluster_wide = ("Namespace", "ClusterRole", "ClusterRoleBinding")
        assert one["kind"] in cluster_wide or about["namespace"] == "watch"


@pytest.mark.parametrize("servers", choices())
def test_services_lead_to_the_pods_and_urls_to_the_services(servers):
    # GIVEN
    objects = made(servers)
    services = of_kind(objects, "Service")
    text = json.dumps(objects)

    # WHEN
    urls = set(re.findall(r"http://(podscope-[a-z]+):(\d+)", text))

    # THEN
    known = {(name, str(one["spec"]["ports"][0]["port"])) for name, one in services.items()}
    assert urls <= known
    for name, one in of_kind(objects, "StatefulSet", "Deployment").items():
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert services[name]["spec"]["selector"].items() <= labels.items()
        assert one["spec"]["selector"]["matchLabels"] == labels


def test_servers_run_without_rights_and_agents_get_no_key_but_their_own():
    # GIVEN
    objects = made(ALL)

    # WHEN / THEN
    for one in of_kind(objects, "StatefulSet", "Deployment").values():
        pod = one["spec"]["template"]["spec"]
        rights = pod["containers"][0]["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"] and not rights["allowPrivilegeEscalation"]
        assert rights["capabilities"] == {"drop": ["ALL"]}
        account = pod.get("serviceAccountName", "")
        assert pod["automountServiceAccountToken"] == (account == "podscope-prometheus")
    (agent,) = (one["spec"]["template"]["spec"] for one in of_kind(objects, "DaemonSet").values())
    keys = [part["secret"] for part in projected(agent)]
    assert {item["key"] for one in keys for item in one.get("items", ())} == {
        "influxdb-token",
        "elasticsearch-password",
    }
    assert {"name": "podscope-sinks", "optional": True} in keys


def test_passwords_are_long_differ_each_time_and_are_in_the_secret_alone():
    # GIVEN / WHEN
    one, other = (of_kind(made(ALL), "Secret")[stack.SECRET]["data"] for _ in range(2))

    # THEN
    words = {base64.b64decode(text).decode() for text in (*one.values(), *other.values())}
    assert len(words) == 2 * len(one) and min(map(len, words)) >= 32
    objects = [each for each in made(ALL) if each["kind"] != "Secret"]
    assert "password:" not in yaml.safe_dump(
        [each for each in objects if each["kind"] == "StatefulSet"]
    )


@pytest.mark.parametrize("servers", choices())
def test_the_configuration_of_the_agents_is_a_right_one_and_keeps_what_the_user_set(
    servers, tmp_path
):
    # GIVEN
    file = tmp_path / "mine.yaml"
    file.write_text("interval: 7s\nsinks: [{type: files, path: '-'}]\n")

    # WHEN
    config_map = of_kind(made(servers, config=str(file)), "ConfigMap")["podscope-agent"]
    told = settings.decoded(
        settings.from_yaml(config_map["data"][manifests.CONFIG], "config.yaml"), Config
    )

    # THEN
    types = [one.settings.type for one in told.sinks]
    assert types == ["files", *(name for name in ("influxdb", "elasticsearch") if name in servers)]
    assert told.interval == 7


@pytest.mark.parametrize("name", DATABASES)
def test_grafana_has_the_data_source_of_each_of_its_dashboards(name):
    # GIVEN
    configs = of_kind(made(f"{name},grafana"), "ConfigMap")
    provisioning = configs["podscope-grafana"]["data"]
    sources = yaml.safe_load(provisioning["datasources.yaml"])["datasources"]
    known = {(one["type"], one["uid"]) for one in sources}

    # WHEN
    boards = [
        json.loads(text)
        for key, one in configs.items()
        if key.startswith("podscope-dashboards-")
        for text in one["data"].values()
    ]

    # THEN
    assert len(boards) >= 4
    for board in boards:
        first = board["templating"]["list"][0]
        assert (first["query"], first["current"]["value"]) in known
    assert all(sum(map(len, one["data"].values())) < 1 << 20 for one in configs.values())
    (provider,) = yaml.safe_load(provisioning["dashboards.yaml"])["providers"]
    grafana = of_kind(made(f"{name},grafana"), "Deployment")["podscope-grafana"]
    mounts = grafana["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert provider["options"]["path"] in {mount["mountPath"] for mount in mounts}


def test_prometheus_asks_the_agents_of_its_namespace_for_their_metrics(tmp_path):
    # GIVEN
    file = tmp_path / "mine.yaml"
    file.write_text("cluster: production\n")

    # WHEN
    objects = made("prometheus", config=str(file))
    text = of_kind(objects, "ConfigMap")["podscope-prometheus"]["data"]["prometheus.yml"]
    (job,) = yaml.safe_load(text)["scrape_configs"]

    # THEN
    assert job["kubernetes_sd_configs"][0]["namespaces"] == {"names": ["watch"]}
    keep = [one["regex"] for one in job["relabel_configs"] if one.get("action") == "keep"]
    agent = of_kind(objects, "DaemonSet")["podscope-agent"]["spec"]["template"]
    labels = agent["metadata"]["labels"]
    told = f"{labels['app.kubernetes.io/name']};{labels['app.kubernetes.io/component']}"
    assert keep == [told, agent["spec"]["containers"][0]["ports"][0]["name"]]
    assert {"target_label": "k8s_cluster_name", "replacement": "production"} in (
        job["relabel_configs"]
    )


@pytest.mark.parametrize(
    ("servers", "told"),
    [
        ("mysql", "--with: no such server: 'mysql'; choose from prometheus, influxdb"),
        ("grafana", "--with: grafana alone has nothing to show: add one of prometheus"),
    ],
)
def test_a_wrong_choice_is_refused_in_one_line(servers, told):
    with pytest.raises(UsageError) as caught:
        made(servers)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_dry_run_prints_the_servers_too(capsys):
    # GIVEN / WHEN
    code = main(["install", "--dry-run", "--with", "prometheus,grafana"])

    # THEN
    told = capsys.readouterr().out.splitlines()
    assert code == 0
    assert {"statefulset/podscope-prometheus", "deployment/podscope-grafana"} <= {*told}
    assert told[-2].startswith("deployment/") or told[-1] == "daemonset/podscope-agent"


# --- making and removing ----------------------------------------------------------------------


def apply(server: ObjectStore, servers: str) -> list[str]:
    """What is told of each object."""
    with Installation(server.api, "watch") as installation:
        return [*installation.apply(made(servers))]


def remove(server: ObjectStore, **more: bool) -> list[str]:
    """What is told of each object."""
    with Installation(server.api, "watch") as installation:
        return [*installation.remove(5, **more)]


def test_installed_once_more_passwords_and_volumes_stay_and_new_ones_come(store):
    # GIVEN
    apply(store, "influxdb")
    before = dict(store.one("Secret", stack.SECRET)["data"])

    # WHEN
    told = apply(store, "influxdb,grafana")

    # THEN
    after = store.one("Secret", stack.SECRET)["data"]
    assert after.items() >= before.items() and "grafana-password" in after
    assert "persistentvolumeclaim/podscope-influxdb is there already" in told
    assert "persistentvolumeclaim/podscope-grafana applied" in told


def test_uninstall_leaves_data_and_purge_takes_them_too(store):
    # GIVEN
    apply(store, ALL)

    # WHEN
    told = remove(store)
    left = {(kind, name) for kind, name in store.names() if kind != "Namespace"}
    purged = remove(store, purge=True)

    # THEN
    claims = {("PersistentVolumeClaim", f"podscope-{name}") for name in stack.NAMES}
    assert left == claims | {("Secret", stack.SECRET)}
    assert f"secret/{stack.SECRET} stays, as data do; --purge removes it" in told
    assert "namespace/watch removed" in purged and store.names() == []


def test_data_that_are_left_are_told_of(store):
    # GIVEN
    apply(store, "prometheus")
    remove(store)

    # WHEN
    with pytest.raises(PodscopeError) as caught:
        remove(store)

    # THEN
    assert "'podscope uninstall --purge' removes them" in str(caught.value)


def test_an_installation_without_servers_leaves_nothing(store):
    # GIVEN
    apply(store, "")

    # WHEN
    remove(store)

    # THEN
    assert store.names() == []


@pytest.mark.parametrize(("ready", "told"), [(1, ""), (0, "statefulset/podscope-influxdb")])
def test_servers_are_waited_for(store, ready, told):
    # GIVEN
    apply(store, "influxdb")
    status = {"observedGeneration": 1, "updatedReplicas": 1, "readyReplicas": ready}
    store.one("StatefulSet", "podscope-influxdb")["status"] = status

    # WHEN
    with Installation(store.api, "watch") as installation:
        missing = installation.stack_wait(made("influxdb"), 0.01)

    # THEN
    assert missing == told
