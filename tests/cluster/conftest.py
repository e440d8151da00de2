# SPDX-License-Identifier: Apache-2.0
"""A real cluster, named by the environment.

PODSCOPE_KUBECONFIG names its kubeconfig, PODSCOPE_IMAGE the agent's image. If its nodes do not have
the image yet, PODSCOPE_LOAD is a command that puts an archive into them, as
'kind load image-archive': it gets the path of dist/podscope-image.tar, which `make image` writes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import workloads

from podscope.__main__ import main
from podscope.identity.kubeconfig import from_kubeconfig
from podscope.identity.kubernetes_client import Connection
from podscope.identity.kubernetes_client import KubernetesError

ARCHIVE = Path(__file__).resolve().parents[2] / "dist" / "podscope-image.tar"
NAMESPACE = "podscope"
IMAGE = "docker.io/library/podscope:dev"
SECONDS = 30.0
# Change by themselves, whoever is in the cluster.
RESTLESS = ("events", "leases", "endpoints", "endpointslices")


@dataclass(frozen=True)
class Cluster:
    """A cluster to install into."""

    kubeconfig: str
    image: str
    connection: Connection

    def podscope(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the program against this cluster."""
        command = [sys.executable, "-m", "podscope", *arguments, "--kubeconfig", self.kubeconfig]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    def podscope_here(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The same in this process, which takes no second to start."""
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = main([*arguments, "--kubeconfig", self.kubeconfig])
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), errors.getvalue())

    def get(self, path: str) -> Any:
        """What the API has at a path."""
        return json.loads(self.connection.get(path, {}, SECONDS))

    def __contains__(self, path: str) -> bool:
        """Whether the API has an object at a path."""
        try:
            self.get(path)
        except KubernetesError as error:
            if error.status != 404:
                raise
            return False
        return True

    def objects(self) -> dict[tuple[str, str, str], Any]:
        """All objects of all resources, by resource, namespace and name, without their state."""
        found = {}
        for path, resource in self._resources():
            for item in self.get(path)["items"] or ():
                about = item["metadata"]
                key = (resource, about.get("namespace", ""), about["name"])
                found[key] = _lasting(item)
        return found

    def _resources(self) -> Iterator[tuple[str, str]]:
        groups = [g["preferredVersion"]["groupVersion"] for g in self.get("apis")["groups"]]
        for path in ("api/v1", *(f"apis/{group}" for group in groups)):
            for one in self.get(path)["resources"]:
                name = one["name"]
                if "list" in one["verbs"] and "create" in one["verbs"] and name not in RESTLESS:
                    yield f"{path}/{name}", f"{path}/{name}"


def _lasting(item: dict[str, Any]) -> dict[str, Any]:
    """What no controller changes: neither state nor versions."""
    kept = {key: value for key, value in item.items() if key not in ("status", "metadata")}
    about = item["metadata"]
    return {**kept, "uid": about["uid"], "labels": about.get("labels")}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster that PODSCOPE_KUBECONFIG names, with the image in its nodes."""
    kubeconfig = os.environ.get("PODSCOPE_KUBECONFIG", "")
    if not kubeconfig:
        pytest.skip("needs a cluster: set PODSCOPE_KUBECONFIG to the path of its kubeconfig")
    load = os.environ.get("PODSCOPE_LOAD", "")
    if load:
        assert ARCHIVE.exists(), f"{ARCHIVE} is not there: run 'make image'"
        subprocess.run([*shlex.split(load), str(ARCHIVE)], check=True)
    connection = Connection(from_kubeconfig(kubeconfig))
    yield Cluster(kubeconfig, os.environ.get("PODSCOPE_IMAGE", IMAGE), connection)
    connection.release()


@pytest.fixture
def own_namespace(cluster: Cluster) -> Iterator[None]:
    """A namespace that podscope did not make."""
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    about = {"name": NAMESPACE, "labels": labels}
    body = json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": about}).encode()
    cluster.connection.send("POST", "api/v1/namespaces", {}, body)
    yield
    cluster.connection.send("DELETE", f"api/v1/namespaces/{NAMESPACE}", {}, b"{}")
    while f"api/v1/namespaces/{NAMESPACE}" in cluster:
        time.sleep(0.2)


@pytest.fixture
def not_installed(cluster: Cluster) -> None:
    """Leaves alone a cluster that somebody uses podscope in."""
    binding = "apis/rbac.authorization.k8s.io/v1/clusterrolebindings/podscope-agent"
    if binding in cluster or f"api/v1/namespaces/{NAMESPACE}" in cluster:
        pytest.skip("podscope is installed in this cluster: run 'podscope uninstall' first")


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> Iterator[None]:
    """Agents on all nodes, and a namespace with nginx on two nodes behind a Service."""
    if "api/v1/namespaces/podscope" in cluster:
        pytest.skip("podscope is installed in this cluster: run 'podscope uninstall' first")
    done = cluster.podscope("install", "--image", cluster.image)
    assert done.returncode == 0, done.stderr
    namespace = workloads.made("v1", "Namespace", workloads.SPACE, {})
    web = workloads.container("nginx", workloads.nginx(8080))
    workloads.create(
        cluster,
        ("api/v1/namespaces", namespace),
        workloads.deployment("web", 2, web),
        workloads.service("web", "web", 80, 8080),
    )
    workloads.wait(lambda: len(workloads.running(cluster, "app=web")) == 2)
    yield
    # Both take a while: the workloads go while the agents do.
    space = f"api/v1/namespaces/{workloads.SPACE}"
    cluster.connection.send("DELETE", space, {}, b"{}")
    cluster.podscope("uninstall")
    workloads.wait(lambda: space not in cluster)
