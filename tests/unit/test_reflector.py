# SPDX-License-Identifier: Apache-2.0
"""The reflector against a real HTTP server that does everything wrong that API servers do."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace

import certifi
import pytest
from fake_api_server import Cut
from fake_api_server import ErrorEvent
from fake_api_server import FakeApiServer
from fake_api_server import Refuse
from fake_api_server import Short
from fake_api_server import Silent
from fake_api_server import Slow
from fake_api_server import Twice
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from podscope.errors import PodscopeError
from podscope.identity import kubernetes_client
from podscope.identity.kubeconfig import ExecPlugin
from podscope.identity.kubeconfig import from_kubeconfig
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.kubernetes_client import TokenFile
from podscope.identity.reflector import PODS
from podscope.identity.reflector import Reflector
from podscope.identity.reflector import Timing

PATH = "api/v1/pods"
FAST = Timing(backoff=(0.001, 0.01), short_watch=0.0, list_silence=20.0)
BRIEF = replace(FAST, short_watch=1.0, list_silence=0.05, watch=(0, 0), watch_slack=0.05)
LONG = 20.0


def pod(name, uid="", node="node-1", **labels):
    """A pod as JSON."""
    metadata = {"name": name, "namespace": "shop", "uid": uid or f"uid-{name}", "labels": labels}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": {"phase": "Running"}}


def eventually(condition):
    """Waits until it holds; fails if it never does."""
    ends = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < ends, "it never came to be"
        time.sleep(0.002)


class Changes:
    """What a reflector told: + added, ~ changed, - deleted."""

    def __init__(self):
        self.told = []

    def __call__(self, old, new):
        sign = "-" if new is None else "+" if old is None else "~"
        self.told.append(sign + (new or old).metadata.name)


@pytest.fixture
def server():
    with FakeApiServer() as fake:
        fake.collection(PATH)
        yield fake


@pytest.fixture
def follow(server):
    """Starts reflectors of pods, and ends them."""
    started = []

    def begin(wait=True, credentials=None, **options):
        api = ApiServer(server.url)
        api = replace(api, credentials=credentials) if credentials else api
        reflector = Reflector(api, PODS, **{"timing": FAST, **options})
        reflector.changes = Changes()
        reflector.on_change(reflector.changes)
        started.append(reflector.start())
        if wait:
            assert reflector.synced.wait(LONG)
        return reflector

    yield begin
    for one in started:
        one.close()
        assert not one._thread.is_alive()


def names(reflector):
    return sorted(one.metadata.name for one in reflector.store.values())


def same_as(server, reflector):
    """Whether the copy has the server's objects in the server's versions."""
    wanted = dict(server.collection(PATH).objects)
    store = reflector.store
    return store.keys() == wanted.keys() and all(
        f'"resourceVersion": "{one.metadata.resource_version}"'.encode() in wanted[uid]
        for uid, one in store.items()
    )


def test_lists_in_pages_and_then_watches_from_the_lists_version(server, follow):
    # GIVEN
    for number in range(7):
        server.put(PATH, pod(f"p{number}"))

    # WHEN
    reflector = follow(page_size=3)
    eventually(lambda: server.asked("watch"))

    # THEN
    first, *later = [one.query for one in server.asked() if one.kind != "watch"]
    assert first == {"limit": "3", "resourceVersion": "0"}
    assert [set(one) for one in later] == [{"limit", "continue"}] * 2
    watch = server.asked("watch")[0].query
    assert watch["allowWatchBookmarks"] == "true"
    assert watch["resourceVersion"] == str(server.version)
    assert 300 <= int(watch["timeoutSeconds"]) <= 600
    assert names(reflector) == [f"p{number}" for number in range(7)]
    assert same_as(server, reflector)


def test_events_change_the_store_and_are_told_in_order(server, follow):
    # GIVEN
    server.put(PATH, pod("a"))
    reflector = follow()

    # WHEN
    server.put(PATH, pod("b"))
    server.put(PATH, pod("a", app="web"))
    last = server.delete(PATH, "uid-b")

    # THEN
    eventually(lambda: reflector.state.resource_version == str(last))
    assert reflector.changes.told == ["+a", "+b", "~a", "-b"]
    assert reflector.store["uid-a"].metadata.labels == {"app": "web"}
    assert reflector.state.synced and not reflector.state.last_error


def test_late_listener_is_told_what_is_there(server, follow):
    # GIVEN
    server.put(PATH, pod("a"))
    reflector = follow()

    # WHEN
    late = Changes()
    reflector.on_change(late)
    server.put(PATH, pod("b"))

    # THEN
    eventually(lambda: late.told == ["+a", "+b"])


def test_listener_that_fails_keeps_nothing_from_others(server, follow):
    # GIVEN
    reflector = follow()

    def fails(old, new):
        raise LookupError("mine")

    late = Changes()
    reflector.on_change(fails)
    reflector.on_change(late)

    # WHEN
    server.put(PATH, pod("a"))

    # THEN
    eventually(lambda: late.told == ["+a"])
    assert "LookupError: mine" in reflector.state.last_error


def test_clean_end_goes_on_from_the_last_version_and_is_no_failure(server, follow):
    # GIVEN
    server.put(PATH, pod("a"))
    reflector = follow()
    last = server.put(PATH, pod("b"))
    eventually(lambda: len(reflector.store) == 2)

    # WHEN
    server.end_watches()
    eventually(lambda: len(server.asked("watch")) == 2)
    server.put(PATH, pod("c"))

    # THEN
    eventually(lambda: len(reflector.store) == 3)
    assert server.asked("watch")[1].query["resourceVersion"] == str(last)
    assert len(server.asked("list")) == 1
    assert reflector.changes.told == ["+a", "+b", "+c"]
    assert reflector.state.restarts == 0 and reflector.state.synced


def test_bookmark_moves_the_version_on(server, follow):
    # GIVEN
    reflector = follow()

    # WHEN
    version = server.bookmark(PATH)
    eventually(lambda: reflector.state.resource_version == str(version))
    server.end_watches()

    # THEN
    eventually(lambda: len(server.asked("watch")) == 2)
    assert server.asked("watch")[1].query["resourceVersion"] == str(version)
    assert not reflector.state.last_error and not reflector.store


def test_cut_in_mid_line_goes_on_without_loss_or_repetition(server, follow):
    # GIVEN
    server.faults.append(Cut())
    server.put(PATH, pod("a"))
    reflector = follow()

    # WHEN
    server.put(PATH, pod("b"))
    server.put(PATH, pod("c"))

    # THEN
    eventually(lambda: same_as(server, reflector))
    assert reflector.changes.told == ["+a", "+b", "+c"]
    assert len(server.asked("list")) == 1
    assert reflector.state.restarts == 1


def test_duplicate_events_are_told_once(server, follow):
    # GIVEN
    server.faults.append(Twice())
    reflector = follow()

    # WHEN
    server.put(PATH, pod("a"))
    server.delete(PATH, "uid-a")
    server.put(PATH, pod("b"))

    # THEN
    eventually(lambda: "+b" in reflector.changes.told)
    server.put(PATH, pod("c"))
    eventually(lambda: same_as(server, reflector))
    assert reflector.changes.told == ["+a", "-a", "+b", "+c"]


@pytest.mark.parametrize("as_event", [True, False])
def test_expired_version_lists_again_at_the_newest_and_tells_deletes(server, follow, as_event):
    # GIVEN
    server.expired_as_event = as_event
    for name in "abc":
        server.put(PATH, pod(name))
    reflector = follow(page_size=2)
    eventually(lambda: server.asked("watch"))

    # WHEN things happen that no watch will ever tell
    server.down()
    server.delete(PATH, "uid-b")
    server.put(PATH, pod("c", app="new"))
    server.put(PATH, pod("d"))
    server.forget(PATH)
    server.up()

    # THEN
    eventually(lambda: same_as(server, reflector) and reflector.state.synced)
    assert sorted(reflector.changes.told[3:]) == ["+d", "-b", "~c"]
    assert "resourceVersion" not in server.asked("list")[-1].query
    assert "Expired" in reflector.state.last_error


def test_deleted_and_made_again_under_the_same_name_is_another_object(server, follow):
    # GIVEN
    server.put(PATH, pod("a", "first"))
    reflector = follow()
    eventually(lambda: server.asked("watch"))

    # WHEN
    server.down()
    server.delete(PATH, "first")
    server.put(PATH, pod("a", "second"))
    server.forget(PATH)
    server.up()

    # THEN
    eventually(lambda: same_as(server, reflector))
    assert sorted(reflector.changes.told) == ["+a", "+a", "-a"]


def test_version_from_the_future_lists_again(server, follow):
    # GIVEN a server whose data was restored from a backup
    server.faults.append(Refuse("watch", 504, "Timeout", causes=("ResourceVersionTooLarge",)))

    # WHEN
    follow()

    # THEN
    eventually(lambda: len(server.asked("list")) == 2)
    assert "resourceVersion" not in server.asked("list")[1].query


@pytest.mark.parametrize("restored", [True, False])
def test_silent_watch_is_followed_by_a_look_at_the_servers_version(server, follow, restored):
    # GIVEN
    server.put(PATH, pod("a"))
    server.faults.append(Silent("watch"))
    reflector = follow(wait=False, timing=replace(FAST, sign_of_life=0.0))
    eventually(lambda: server.asked("watch"))

    # WHEN the server's data may be restored from a backup
    if restored:
        server.restore(PATH, 500, pod("b"))
    server.break_connections()
    eventually(lambda: len(server.asked("watch")) == 2)

    # THEN
    looked, *more = [one.query for one in server.asked("list")[1:]]
    assert looked == {"limit": "1"}
    assert more == ([{"limit": "500"}] if restored else [])
    assert ("the server is at version 500" in reflector.state.last_error) == restored
    eventually(lambda: same_as(server, reflector))


def test_expired_token_of_a_later_page_makes_one_full_list(server, follow):
    # GIVEN
    for number in range(7):
        server.put(PATH, pod(f"p{number}"))
    server.faults.append(Refuse("page", 410, "Expired"))

    # WHEN
    reflector = follow(page_size=3)

    # THEN
    assert same_as(server, reflector)
    paged, full = server.asked("list")
    assert paged.query["limit"] == "3"
    assert full.query == {"resourceVersion": "0"}
    assert len(reflector.changes.told) == 7


def test_slow_pages_are_waited_for(server, follow):
    # GIVEN
    for number in range(5):
        server.put(PATH, pod(f"p{number}"))
    server.faults += [Slow("list"), Slow("page")]

    # WHEN
    reflector = follow(page_size=3)

    # THEN
    assert same_as(server, reflector)
    assert reflector.state.restarts == 0


@pytest.mark.parametrize("kind", ["list", "watch"])
def test_silent_connection_is_noticed(server, follow, kind):
    # GIVEN
    server.put(PATH, pod("a"))
    server.faults.append(Silent(kind))

    # WHEN
    reflector = follow(timing=BRIEF)

    # THEN
    eventually(lambda: len(server.asked(kind)) >= 2)
    eventually(lambda: "timed out" in reflector.state.last_error)
    assert names(reflector) == ["a"]


@pytest.mark.parametrize(
    "fault",
    [
        Refuse("watch", 429, "TooManyRequests", retry_after="0"),
        Refuse("watch", 500, "InternalError"),
        Refuse("watch", 403, "Forbidden"),
        ErrorEvent(429, "TooManyRequests"),
        ErrorEvent(500, "InternalError"),
    ],
)
def test_refused_watch_goes_on_from_its_version(server, follow, fault):
    # GIVEN
    server.faults.append(fault)
    server.put(PATH, pod("a"))

    # WHEN
    reflector = follow()
    eventually(lambda: len(server.asked("watch")) == 2)

    # THEN
    assert len(server.asked("list")) == 1
    one, two = server.asked("watch")
    assert one.query["resourceVersion"] == two.query["resourceVersion"]
    assert fault.reason in reflector.state.last_error
    assert "\n" not in reflector.state.last_error
    eventually(lambda: reflector.state.synced)


@pytest.mark.parametrize("fault", [Refuse("list", 429, "TooManyRequests", "37"),
                                   ErrorEvent(429, "TooManyRequests", 37)])  # fmt: skip
def test_server_that_says_when_to_come_is_believed(server, follow, monkeypatch, fault):
    # GIVEN
    asked = []
    monkeypatch.setattr(
        Timing, "pause", lambda self, failures, retry_after=0.0: asked.append(retry_after) or 0.0
    )
    server.faults.append(fault)

    # WHEN
    follow()

    # THEN
    eventually(lambda: asked == [37.0])


@given(failures=st.integers(0, 10_000), retry_after=st.sampled_from([0.0, 1.0, 90.0]))
def test_pause_is_between_its_bounds_and_never_earlier_than_told(failures, retry_after):
    # GIVEN / WHEN
    pause = Timing().pause(failures, retry_after)

    # THEN
    assert 0.8 <= pause <= max(30.0, retry_after + 0.8)
    assert pause >= retry_after


def test_pause_grows_and_is_drawn_at_random():
    # GIVEN / WHEN
    first = {Timing().pause(1) for _ in range(20)}
    tenth = {Timing().pause(10) for _ in range(20)}

    # THEN
    assert len(first) > 1 and len(tenth) > 1
    assert max(first) <= 1.6 and min(tenth) >= 15.0


def test_watch_that_ends_too_soon_is_followed_by_a_pause(server, follow, monkeypatch):
    # GIVEN
    failures = []
    monkeypatch.setattr(
        Timing, "pause", lambda self, count, retry_after=0.0: failures.append(count) or 0.0
    )
    server.faults += [Short(), Short(), Short()]

    # WHEN
    reflector = follow(timing=replace(FAST, short_watch=LONG))

    # THEN
    eventually(lambda: len(server.asked("watch")) == 4)
    assert failures == [1, 2, 3]
    assert reflector.state.synced and reflector.state.restarts == 0


def test_server_that_is_away_leaves_the_store_and_the_state_says_so(server, follow):
    # GIVEN
    server.put(PATH, pod("a"))
    reflector = follow()
    eventually(lambda: server.asked("watch"))
    before = reflector.state

    # WHEN
    server.down()
    eventually(lambda: reflector.state.restarts >= 3)
    away = reflector.state
    kept = names(reflector)
    server.up()
    server.put(PATH, pod("b"))

    # THEN
    assert kept == ["a"]
    assert before.synced and not away.synced
    assert away.since >= before.since
    assert server.url in away.last_error and "\n" not in away.last_error
    eventually(lambda: names(reflector) == ["a", "b"])
    eventually(lambda: reflector.state.synced)
    assert reflector.state.last_error
    assert len(server.asked("list")) == 1
    assert reflector.synced.is_set()


def test_not_synced_before_the_first_list_is_whole(server, follow):
    # GIVEN
    server.put(PATH, pod("a"))
    server.put(PATH, pod("b"))
    server.faults += [Refuse("page", 500, "InternalError"), Refuse("list", 500, "InternalError")]

    # WHEN
    reflector = follow(wait=False, page_size=1, timing=replace(FAST, backoff=(0.2, 0.2)))
    eventually(lambda: reflector.state.restarts == 1)

    # THEN
    assert not reflector.synced.is_set() and not reflector.state.synced
    assert reflector.synced.wait(LONG)
    assert same_as(server, reflector)
    assert server.asked("list")[-1].query["resourceVersion"] == "0"


def test_selectors_are_sent_with_lists_and_watches(server, follow):
    # GIVEN
    server.put(PATH, pod("a", app="web"))
    server.put(PATH, pod("b", node="node-2", app="web"))
    server.put(PATH, pod("c", app="db"))

    # WHEN
    reflector = follow(field_selector="spec.nodeName=node-1", label_selector="app=web")
    server.put(PATH, pod("d", node="node-2", app="web"))
    server.put(PATH, pod("e", app="web"))

    # THEN
    eventually(lambda: names(reflector) == ["a", "e"])
    for request in (server.asked("list")[0], server.asked("watch")[0]):
        assert request.query["fieldSelector"] == "spec.nodeName=node-1"
        assert request.query["labelSelector"] == "app=web"


def test_one_namespace_is_in_the_path(server):
    # GIVEN / WHEN / THEN
    assert PODS.path("shop") == "api/v1/namespaces/shop/pods"
    assert PODS.path() == PATH


def test_rotated_token_is_read_again(server, follow, tmp_path):
    # GIVEN
    file = tmp_path / "token"
    file.write_text("old\n")
    server.token = "old"
    server.put(PATH, pod("a"))
    reflector = follow(credentials=TokenFile(str(file)))
    eventually(lambda: server.asked("watch"))

    # WHEN the old token is refused before the new one is in the file
    server.token = "new"

    def refused() -> bool:
        server.end_watches()  # again: one may have begun just before
        return "401 Unauthorized" in reflector.state.last_error

    eventually(refused)
    file.write_text("new\n")
    server.put(PATH, pod("b"))

    # THEN
    eventually(lambda: names(reflector) == ["a", "b"])
    assert server.asked()[-1].authorization == "Bearer new"
    assert len(server.asked("list")) == 1


def test_missing_token_file_is_said(server, follow, tmp_path):
    # GIVEN / WHEN
    reflector = follow(wait=False, credentials=TokenFile(str(tmp_path / "none")))

    # THEN
    eventually(lambda: reflector.state.last_error.endswith("no token: No such file or directory"))
    assert not server.asked()


def exec_plugin(tmp_path, version="v1", body=""):
    """A plugin that prints a new token each time, and what it was told."""
    program = tmp_path / "plugin.py"
    program.write_text(body or (
        "import json, os, pathlib\n"
        "asked = json.loads(os.environ['KUBERNETES_EXEC_INFO'])\n"
        "count = pathlib.Path(os.environ['COUNT'])\n"
        "number = len(count.read_text()) if count.exists() else 0\n"
        "count.write_text('x' * (number + 1))\n"
        "status = {'token': f't{number}'}\n"
        "print(json.dumps({'apiVersion': asked['apiVersion'], 'status': status}))\n"
    ))  # fmt: skip
    return {
        "name": "me",
        "user": {
            "exec": {
                "apiVersion": f"client.authentication.k8s.io/{version}",
                "command": sys.executable,
                "args": [str(program)],
                "env": [{"name": "COUNT", "value": str(tmp_path / "count")}],
                "interactiveMode": "Never",
            }
        },
    }


def kubeconfig(file, server, users, **cluster):
    """Writes one, in JSON, which is YAML."""
    content = {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "me", "namespace": "shop"}},
            {"name": "nobody", "context": {"cluster": "c"}},
        ],
        "users": users,
    }
    file.write_text(json.dumps(content))
    return str(file)


def test_exec_plugin_is_asked_again_after_401(server, tmp_path):
    # GIVEN
    file = kubeconfig(tmp_path / "config", server.url, [exec_plugin(tmp_path)])
    api = from_kubeconfig(file)
    server.token = "t1"

    # WHEN
    with Reflector(api, PODS, timing=FAST) as reflector:
        # THEN
        assert reflector.synced.wait(LONG)
        assert isinstance(api.credentials, ExecPlugin)
        assert [one.authorization for one in server.asked("list")] == ["Bearer t0", "Bearer t1"]


def test_exec_plugin_that_fails_is_one_line(tmp_path):
    # GIVEN
    users = [exec_plugin(tmp_path, "v1beta1", "import sys\nsys.exit('no\\nlogin')")]
    api = from_kubeconfig(kubeconfig(tmp_path / "config", "http://127.0.0.1:1", users))

    # WHEN / THEN
    with pytest.raises(KubernetesError, match=r"ended with an error: no login$"):
        api.credentials.authorization()


def test_kubeconfig_gives_context_token_proxy_and_name(tmp_path):
    # GIVEN
    (tmp_path / "token").write_text("secret")
    file = kubeconfig(
        tmp_path / "config",
        "https://192.0.2.1:6443/",
        [{"name": "me", "user": {"tokenFile": "token"}}],
        **{"proxy-url": "http://192.0.2.9:3128", "tls-server-name": "api", "x": 1},
    )

    # WHEN
    api = from_kubeconfig(file)
    nobody = from_kubeconfig(file, "nobody")

    # THEN
    assert (api.url, api.namespace) == ("https://192.0.2.1:6443", "shop")
    assert (api.proxy, api.tls_name) == ("http://192.0.2.9:3128", "api")
    assert api.credentials.authorization() == "Bearer secret"
    assert nobody.credentials.authorization() == ""


def test_several_kubeconfigs_are_merged_and_the_first_wins(tmp_path, monkeypatch):
    # GIVEN
    one = kubeconfig(tmp_path / "1", "http://one", [{"name": "me", "user": {"token": "1"}}])
    two = kubeconfig(tmp_path / "2", "http://two", [{"name": "me", "user": {"token": "2"}}])
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'none'}:{one}:{two}")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    # WHEN
    api = kubernetes_client.find_server()

    # THEN
    assert (api.url, api.credentials.authorization()) == ("http://one", "Bearer 1")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{: :",
        "clusters: [{}]",
        "clusters: []",
        "current-context: x",
        "clusters: [{name: a, cluster: {server: 5}}]\ncurrent-context: x",
        "contexts: [{name: x, context: {cluster: c}}]\ncurrent-context: x",
        "contexts: 5",
    ],
)
def test_bad_kubeconfig_is_one_line(tmp_path, content):
    # GIVEN
    file = tmp_path / "config"
    file.write_text(content)

    # WHEN / THEN
    with pytest.raises(PodscopeError) as caught:
        from_kubeconfig(str(file))
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_kubeconfig_and_service_account_are_one_line(tmp_path):
    # GIVEN
    missing = str(tmp_path / "none")

    # WHEN / THEN
    with pytest.raises(PodscopeError, match="none: No such file"):
        from_kubeconfig(missing)
    with pytest.raises(PodscopeError, match="no service account of a pod"):
        kubernetes_client.in_cluster(missing)


def test_the_api_server_of_a_pod_is_in_its_files_and_variables(tmp_path, monkeypatch):
    # GIVEN
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "namespace").write_text("podscope\n")
    shutil.copy(certifi.where(), tmp_path / "ca.crt")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")

    # WHEN
    api = kubernetes_client.in_cluster(str(tmp_path))

    # THEN the token is read anew each time
    assert (api.url, api.namespace) == ("https://[fd00::1]:443", "podscope")
    assert api.tls is not None
    assert api.credentials.authorization() == "Bearer first"
    (tmp_path / "token").write_text("second")
    assert api.credentials.authorization() == "Bearer second"


@pytest.mark.parametrize(
    ("url", "no_proxy", "used"),
    [
        ("https://10.1.2.3:443", "", True),
        ("https://10.1.2.3:443", "10.0.0.0/8", False),
        ("https://10.1.2.3:443", "192.168.0.0/16,.cluster.local", True),
        ("https://[fd00::1]:443", "fd00::/16", False),
        ("https://api.example.com", "example.com", False),
        ("https://api.example.com", ".example.com", False),
        ("https://example.com", ".example.com", True),
        ("https://notexample.com", "example.com", True),
        ("https://anything", "*", False),
        ("https://127.0.0.1", "", False),
        ("http://api.example.com", "", False),
    ],
)
def test_proxy_of_the_environment_and_its_exceptions(url, no_proxy, used):
    # GIVEN
    environment = {"HTTPS_PROXY": "proxy:3128", "no_proxy": no_proxy}

    # WHEN / THEN
    assert bool(kubernetes_client.proxy_of(url, environment)) == used


@pytest.mark.parametrize("fault", [None, Silent("list"), Silent("watch")])
def test_close_ends_at_once_whatever_it_waits_for(server, follow, fault):
    # GIVEN
    server.faults += [fault] if fault else []
    reflector = follow(wait=False)
    kind = fault.on if fault else "watch"
    eventually(lambda: server.asked(kind))

    # WHEN
    reflector.close()

    # THEN
    assert not reflector._thread.is_alive()
    assert not reflector.state.last_error


def test_close_ends_a_pause(server, follow):
    # GIVEN
    server.down()
    reflector = follow(wait=False, timing=replace(FAST, backoff=(1000.0, 1000.0)))
    eventually(lambda: reflector.state.restarts)

    # WHEN
    reflector.close()

    # THEN
    assert not reflector._thread.is_alive()
    server.up()


def test_reflector_that_never_began_can_be_closed(server):
    Reflector(ApiServer(server.url), PODS).close()


def test_answer_that_is_not_kubernetes_is_said(server, follow):
    # GIVEN a web page in place of the API
    server.collection(PATH).objects["uid"] = b"<html>"

    # WHEN
    reflector = follow(wait=False)

    # THEN
    eventually(lambda: "JSON is malformed" in reflector.state.last_error)
    assert not reflector.synced.is_set()
    assert reflector._thread.is_alive()


FAULTS = st.sampled_from([
    Cut(), Twice(), Short(), ErrorEvent(410, "Expired"), ErrorEvent(500), Slow("list", 3, 0.0),
    Refuse("watch", 410, "Gone"), Refuse("page", 410, "Expired"), Refuse("any", 503),
    Refuse("list", 410, "Expired"), Refuse("any", 429, "TooManyRequests"),
])  # fmt: skip
STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abcdefg")),
    st.tuples(st.just("delete"), st.sampled_from("abcdefg")),
    st.tuples(st.just("do"), st.sampled_from(["end", "break", "forget", "bookmark", "bounce"])),
    st.tuples(st.just("fault"), FAULTS),
)


@given(steps=st.lists(STEPS, max_size=25))
@settings(deadline=None, max_examples=40)
def test_whatever_goes_wrong_the_copy_becomes_the_same(steps):
    # GIVEN
    with FakeApiServer() as server:
        server.collection(PATH)
        told = {}

        def remember(old, new):
            # Every change begins where the one before it ended.
            uid = (new or old).metadata.uid
            assert told.get(uid) == (old.metadata.resource_version if old else None)
            told[uid] = new.metadata.resource_version if new else None

        reflector = Reflector(ApiServer(server.url), PODS, page_size=2, timing=FAST)
        reflector.on_change(remember)
        with reflector:
            # WHEN
            for step, value in steps:
                take(server, step, value)
            server.faults.clear()

            # THEN
            eventually(lambda: same_as(server, reflector))
            told = {uid: version for uid, version in told.items() if version}
            store = reflector.store
            assert told == {uid: one.metadata.resource_version for uid, one in store.items()}
            assert "AssertionError" not in reflector.state.last_error


def take(server, step, value):
    """One step of a story."""
    uid = f"uid-{value}"
    if step == "put":
        server.put(PATH, pod(value))
    elif step == "delete" and uid in server.collection(PATH).objects:
        server.delete(PATH, uid)
    elif step == "fault":
        server.faults.append(value)
    elif value == "end":
        server.end_watches()
    elif value == "break":
        server.break_connections()
    elif value == "forget":
        server.forget(PATH)
        server.break_connections()
    elif value == "bookmark":
        server.bookmark(PATH)
    elif value == "bounce":
        server.down()
        server.up()
