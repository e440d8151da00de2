# SPDX-License-Identifier: Apache-2.0
"""``podscope install --with`` in a real cluster: what its API server says of all objects.

The servers' images need not be there: nothing is waited for.
"""

from __future__ import annotations

import json

import pytest

from podscope.deploy import manifests
from podscope.deploy import stack
from podscope.deploy.installation import APPLY
from podscope.deploy.installation import FIELD_MANAGER
from podscope.deploy.installation import _path

NAMESPACE = "podscope"
ALL = ",".join(stack.NAMES)
SECRET = f"api/v1/namespaces/{NAMESPACE}/secrets/{stack.SECRET}"
CLAIMS = f"api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"


@pytest.fixture
def removed(cluster, not_installed):
    """Whatever a test leaves behind."""
    yield
    cluster.podscope("uninstall", "--purge")


@pytest.mark.usefixtures("not_installed", "own_namespace")
def test_the_api_server_would_take_every_object_as_it_is(cluster):
    # GIVEN
    objects = manifests.objects(NAMESPACE, servers=ALL)
    query = {"fieldManager": FIELD_MANAGER, "dryRun": "All", "fieldValidation": "Strict"}

    # WHEN / THEN it raises KubernetesError at the first that is refused, or has unknown fields
    for one in objects:
        body = json.dumps(one).encode()
        cluster.connection.send("PATCH", _path(one), query, body, content_type=APPLY)


@pytest.mark.usefixtures("removed")
def test_data_outlive_an_uninstall_and_a_purge_leaves_nothing(cluster):
    # GIVEN
    before = cluster.objects()
    arguments = ("--image", cluster.image, "--with", ALL, "--wait", "0s")
    installed = cluster.podscope("install", *arguments)
    passwords = cluster.get(SECRET)["data"]

    # WHEN
    uninstalled = cluster.podscope("uninstall")
    kept = cluster.get(SECRET)["data"]
    claims = [one["metadata"]["name"] for one in cluster.get(CLAIMS)["items"]]
    again = cluster.podscope("install", *arguments)
    known = cluster.get(SECRET)["data"]
    purged = cluster.podscope("uninstall", "--purge")

    # THEN
    for done in (installed, uninstalled, again, purged):
        assert done.returncode == 0, done.stderr
    assert passwords == kept == known
    assert sorted(claims) == sorted(f"podscope-{name}" for name in stack.NAMES)
    assert f"secret/{stack.SECRET} stays, as data do; --purge removes it" in uninstalled.stdout
    assert cluster.objects() == before


@pytest.mark.usefixtures("removed")
def test_servers_that_cannot_start_are_told_with_their_name(cluster):
    # GIVEN a cluster that does not have the images, or has no volumes to give
    installed = cluster.podscope(
        "install", "--image", cluster.image, "--with", "influxdb", "--wait", "60s"
    )

    # WHEN / THEN
    if installed.returncode == 0:
        pytest.skip("this cluster can run the servers")
    (line,) = installed.stderr.splitlines()
    assert "podscope-influxdb is not ready after 60s" in line or "nodes have no ready" in line
