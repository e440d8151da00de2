# SPDX-License-Identifier: Apache-2.0
"""No right is there for comfort: with one fewer the agent does not work, and says which."""

from __future__ import annotations

import base64
import copy
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from workloads import SPACE
from workloads import create
from workloads import delete
from workloads import made
from workloads import wait

from podscope.identity.kubeconfig import from_kubeconfig
from podscope.identity.kubernetes import Cluster as Names
from podscope.identity.kubernetes import Jobs
from podscope.identity.kubernetes import follow
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import Fixed
from podscope.identity.kubernetes_client import KubernetesError

pytestmark = pytest.mark.usefixtures("installed")

BASE = Path(__file__).resolve().parents[2] / "deploy" / "base"
RULES = yaml.safe_load((BASE / "cluster-role.yaml").read_text())["rules"]
RIGHTS = [
    (rule["apiGroups"][0], resource, verb)
    for rule in RULES
    for resource in rule["resources"]
    for verb in rule["verbs"]
]
LISTED = [right for right in RIGHTS if right[2] != "get"]
RBAC = "apis/rbac.authorization.k8s.io/v1"
SECONDS = 20.0


def without(missing: tuple[str, str, str] | None) -> list[dict]:
    """The agent's rules, but for one right."""
    return [
        {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
        for group, resource, verb in RIGHTS
        if (group, resource, verb) != missing
    ]


def user(cluster, name: str, rules: list[dict], namespace: str = "") -> ApiServer:
    """The API server for a service account with these rights alone."""
    kind = "Role" if namespace else "ClusterRole"
    place = f"{RBAC}/namespaces/{namespace}/" if namespace else f"{RBAC}/"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
    version = "rbac.authorization.k8s.io/v1"
    about = {"apiVersion": version, "metadata": {"name": name}}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": SPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
    create(
        cluster,
        (f"api/v1/namespaces/{SPACE}/serviceaccounts", account),
        (f"{place}{kind.lower()}s", {**about, "kind": kind, "rules": rules}),
        (
            f"{place}{kind.lower()}bindings",
            {**about, "kind": f"{kind}Binding", "subjects": [subject], "roleRef": role},
        ),
    )
    path = f"api/v1/namespaces/{SPACE}/serviceaccounts/{name}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = cluster.connection.send("POST", path, {}, json.dumps(body).encode())
    token = json.loads(answer)["status"]["token"]
    return replaced_user(cluster, token)


def replaced_user(cluster, token: str) -> ApiServer:
    """The cluster as it is, for another user."""
    content = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    authority = base64.b64decode(content["clusters"][0]["cluster"]["certificate-authority-data"])
    tls = ssl.create_default_context(cadata=authority.decode())
    return ApiServer(from_kubeconfig(cluster.kubeconfig).url, Fixed(f"Bearer {token}"), tls)


@pytest.fixture
def forgotten(cluster) -> Iterator[None]:
    """Roles that a test made go with it."""
    yield
    for kind in ("clusterroles", "clusterrolebindings"):
        for item in cluster.get(f"{RBAC}/{kind}")["items"]:
            if item["metadata"]["name"].startswith("podscope-test-"):
                delete(cluster, f"{RBAC}/{kind}/{item['metadata']['name']}")


@pytest.mark.usefixtures("forgotten")
def test_each_right_of_the_agents_role_is_needed(cluster):
    # GIVEN users with all rights of an agent, and with one fewer each
    servers = {
        missing: user(cluster, f"podscope-test-{number}", without(missing))
        for number, missing in enumerate((None, *LISTED))
    }

    # WHEN each follows the cluster as an agent does
    followers = {
        missing: follow(Names(), server, node="node-1") for missing, server in servers.items()
    }
    try:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and not all(
            any(one.state.refused for one in found.all)
            for missing, found in followers.items()
            if missing
        ):
            time.sleep(0.2)

        # THEN the first one is well, and each other one says what is missing
        assert followers[None].wait(SECONDS)
        assert not any(one.state.refused for one in followers[None].all)
        for (_, resource, verb), found in list(followers.items())[1:]:
            said = [one.state.last_error for one in found.all if one.state.refused]
            assert said, f"{verb} on {resource} is there for nothing"
            assert all(resource in text and verb in text for text in said), said
    finally:
        for found in followers.values():
            found.close()


@pytest.mark.usefixtures("forgotten")
def test_a_jobs_owner_is_asked_for_with_a_right_of_its_own(cluster):
    # GIVEN
    server = user(cluster, "podscope-test-jobs", without(("batch", "jobs", "get")))

    # WHEN / THEN
    with pytest.raises(KubernetesError, match="jobs"):
        Jobs(server).find(SPACE, "nope")


@pytest.mark.parametrize("capability", ["BPF", "PERFMON", "NET_ADMIN"])
def test_each_capability_is_needed(cluster, capability):
    # GIVEN the agent's pod without one of its capabilities
    daemon_set = cluster.get("apis/apps/v1/namespaces/podscope/daemonsets/podscope-agent")
    spec = copy.deepcopy(daemon_set["spec"]["template"]["spec"])
    (agent,) = spec["containers"]
    agent["securityContext"]["capabilities"]["add"].remove(capability)
    spec["restartPolicy"] = "Never"
    name = f"podscope-test-without-{capability.lower().replace('_', '-')}"

    # WHEN
    place = "api/v1/namespaces/podscope/pods"
    create(cluster, (place, made("v1", "Pod", name, spec)))
    path = f"{place}/{name}"
    try:
        wait(lambda: cluster.get(path)["status"]["phase"] in ("Failed", "Running"))
        wait(lambda: "terminated" in cluster.get(path)["status"]["containerStatuses"][0]["state"])
        status = cluster.get(path)["status"]
    finally:
        delete(cluster, path)

    # THEN it ends with one line
    ended = status["containerStatuses"][0]["state"]["terminated"]
    assert ended["exitCode"] == 1
    assert len(ended["message"].strip().splitlines()) == 1
    assert ended["message"].startswith("podscope: ")


CORE_LIST = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([], "no permission: 'list' on 'pods' in namespace 'podscope' is missing"),
        ([CORE_LIST], "no permission: 'get' and 'create' on 'pods/portforward'"),
    ],
)
def test_a_user_without_rights_is_told_which_is_missing(cluster, tmp_path, rules, said):
    # GIVEN
    name = f"podscope-test-user-{len(rules)}"
    server = user(cluster, name, rules)
    content = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    token = server.credentials.authorization().removeprefix("Bearer ")
    content["users"][0]["user"] = {"token": token}
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(yaml.safe_dump(content))

    # WHEN
    other = copy.copy(cluster)
    object.__setattr__(other, "kubeconfig", str(kubeconfig))
    done = other.podscope("http", "-n", SPACE, "--duration", "4s", "-o", "json")

    # THEN
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
