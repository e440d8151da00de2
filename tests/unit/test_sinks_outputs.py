# SPDX-License-Identifier: Apache-2.0
"""Sinks of a configuration: found, checked, changed while they run, and shown."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import records
import sink_rows
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as text_families
from sink_rows import Recorder

from podscope import settings
from podscope.config import Config
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.sinks import prometheus
from podscope.sinks.delivery import REASONS
from podscope.sinks.http_client import ServerSettings
from podscope.sinks.outputs import METRICS
from podscope.sinks.outputs import Outputs
from podscope.sinks.plugin import Choice
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.plugin import Unavailable

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guide" / "sinks.md").read_text()
REFERENCE = (ROOT / "docs" / "reference" / "sinks.md").read_text()
KINDS = ("http", "request")


def read(text: str) -> Config:
    """A configuration."""
    return settings.decoded(settings.from_yaml(text, "x.yaml"), Config)


def choice(name: str, sink: object = None, **more: object) -> Choice:
    """A sink of a test under a name."""
    made = SinkSettings(type="recorder", name=name, **more)
    return Choice(lambda _: sink if sink is not None else Recorder(), made)


def outputs(*choices: Choice, told: list[str] | None = None) -> Outputs:
    """Sinks that have a second at the end."""
    tell = [].append if told is None else told.append
    return Outputs(choices, sink_rows.RESOURCE, KINDS, grace=1.0, tell=tell)


# --- settings ---------------------------------------------------------------------------------


def test_sinks_have_the_settings_of_their_type():
    # GIVEN / WHEN
    made = read(
        "sinks:\n- type: files\n  path: /tmp/x\n  rotate-size: 5MiB\n  kinds: [http]\n"
        "  queue: {memory: 1MiB}\n"
    )

    # THEN
    (one,) = made.sinks
    assert (one.settings.rotate_size, one.settings.kinds) == (5 << 20, ("http",))
    assert one.settings.queue.memory == 1 << 20
    assert one.settings.title == "files"
    assert one == read("sinks: [{type: files, path: /tmp/x, rotate-size: 5120KiB, kinds: [http], "
                       "queue: {memory: 1MiB}}]\n").sinks[0]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sinks: {}\n", "x.yaml:1: sinks: it must be a list, and not keys with values"),
        ("sinks:\n- files\n", "x.yaml:2: sinks[0]: it must be the keys of a sink, as {type: "),
        ("sinks:\n- path: x\n", "x.yaml:2: sinks[0]: type is missing: choose from "),
        (
            "sinks:\n- type: filez\n",
            "x.yaml:2: sinks[0]: no sink of type 'filez' (did you mean 'files'?): choose from ",
        ),
        (
            "sinks:\n- type: files\n  path: /x\n  pat: 1\n",
            "x.yaml:4: sinks[0]: unknown key 'pat'",
        ),
        (
            "sinks:\n- type: files\n  queue:\n    memory: a\n",
            "x.yaml:4: sinks[0].queue.memory: not a size: 'a'; write it as ",
        ),
        (
            "sinks:\n- type: files\n  queue:\n    disk: 1MiB\n",
            "x.yaml:3: sinks[0].queue: disk and path are set together: a size, and a directory",
        ),
        (
            "sinks:\n- type: files\n  by: [workload, color]\n",
            "x.yaml:3: sinks[0].by[1]: no such field: 'color'; choose from ",
        ),
        (
            "sinks:\n- type: files\n  every: 1ms\n",
            "x.yaml:3: sinks[0].every: 1ms is too short; the least is 100ms",
        ),
        (
            "sinks:\n- type: files\n  format: xml\n",
            "x.yaml:3: sinks[0].format: no such choice: 'xml'; choose from json, csv, parquet",
        ),
        (
            "sinks:\n- {type: otlp, url: 'http://a', signals: [logs, x]}\n",
            "x.yaml:2: sinks[0].signals[1]: no such choice: 'x'; choose from metrics, logs, traces",
        ),
    ],
)
def test_a_wrong_sink_is_told_with_its_place(text, said):
    # GIVEN / WHEN
    with pytest.raises(UsageError) as caught:
        read(text)

    # THEN
    assert str(caught.value).startswith(said)


def test_a_library_that_is_missing_is_named_with_the_extra_that_has_it(monkeypatch):
    # GIVEN a machine where the extra is not installed
    monkeypatch.setitem(sys.modules, "httpx", None)
    for name in [name for name in sys.modules if name.startswith("podscope.sinks.")]:
        if name.endswith(("http_client", "influxdb")):
            monkeypatch.delitem(sys.modules, name)

    # WHEN
    with pytest.raises(UsageError) as caught:
        read("sinks: [{type: influxdb, url: 'http://a', org: a, bucket: b}]\n")

    # THEN
    said = "x.yaml:1: sinks[0]: the sink influxdb needs httpx: pip install 'podscope[sinks]'"
    assert str(caught.value) == said


def test_a_secret_is_never_written_in_settings_nor_shown(tmp_path, monkeypatch):
    # GIVEN
    class Server(msgspec.Struct, forbid_unknown_fields=True):
        password: settings.Secret

    def password(text: str) -> settings.Secret:
        layer = settings.from_yaml(f"password: {text}\n", "x.yaml")
        return settings.decoded(layer, Server).password

    (tmp_path / "key").write_text("hunter2\n")
    monkeypatch.setenv("A_KEY", "hunter3")

    # WHEN / THEN
    for wrong in ("hunter2", "[hunter2]", "{text: hunter2}", "{file: }"):
        with pytest.raises(UsageError) as caught:
            password(wrong)
        assert "hunter2" not in str(caught.value)
        assert "x.yaml:1: password: a secret is not written here" in str(caught.value)
    of_file = password(f"{{file: {tmp_path}/key}}")
    assert of_file.text() == "hunter2"
    assert password("{env: A_KEY}").text() == "hunter3"
    assert "hunter" not in repr(of_file)
    with pytest.raises(PodscopeError, match="cannot read the secret /no/such: No such file"):
        password("{file: /no/such}").text()
    with pytest.raises(PodscopeError, match="the variable NO_KEY, a secret, is not set"):
        password("{env: NO_KEY}").text()


@pytest.mark.parametrize(
    "url", ["localhost:9200", "ftp://a", "http://", "http://a:b", "http://a?b=c"]
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError, match="not a URL"):
        settings.Url.read(url)


def test_a_password_in_a_url_is_refused_and_not_shown():
    with pytest.raises(ValueError, match="^no user or password belongs into a URL") as caught:
        settings.Url.read("http://me:hunter2@host")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("elasticsearch", "api-key"),
        ("opensearch", "api-key"),
        ("otlp", "token"),
        ("prometheus", "token"),
    ],
)
def test_credentials_that_would_be_left_out_are_refused(kind, key):
    both = {"username": "me", key: {"env": "A"}}
    with pytest.raises(ValueError, match=f"{key} is in place of username and password"):
        Choice.read({"type": kind, "url": "http://a", **both})
    with pytest.raises(ValueError, match="password: username is missing"):
        Choice.read({"type": kind, "url": "http://a", "password": {"env": "A"}})


def test_two_sinks_of_one_name_or_an_unknown_kind_are_refused():
    with pytest.raises(UsageError, match="two are called 'a': give one another name"):
        outputs(choice("a"), choice("a"))
    with pytest.raises(UsageError, match="a: kinds: there will be no rows of kind 'htpp': choose"):
        outputs(choice("a", kinds=("htpp",)))


# --- running ----------------------------------------------------------------------------------


def test_every_sink_gets_every_row_though_one_is_down():
    # GIVEN
    down, up = Recorder(*[Unavailable("down")] * 100), Recorder()
    told: list[str] = []
    made = outputs(choice("down", down), choice("up", up), told=told)

    # WHEN
    with made:
        batches = [*made.follow([records.request_batch(3), records.request_batch(2)])]

    # THEN
    assert [len(batch) for batch in batches] == [3, 2]
    assert up.count == 5
    assert [*made.summary()] == [
        "sink down: 0 rows sent; lost: ended 5",
        "sink up: 5 rows sent; nothing lost",
    ]
    assert told == ["sink down: down"]


def test_a_change_of_sinks_leaves_those_alone_that_stay_the_same():
    # GIVEN
    same, gone, fresh = Recorder(), Recorder(), Recorder()
    with outputs(choice("same", same), choice("gone", gone)) as made:
        made.put(records.request_batch(1))

        # WHEN
        made.take([choice("same", Recorder()), choice("fresh", fresh)])
        made.put(records.request_batch(1))

        # THEN the one that went has sent what it had
        assert gone.count == 1 and gone.closed.is_set()
        assert not same.closed.is_set()
    assert (same.count, fresh.count) == (2, 1)


def test_a_change_that_cannot_be_leaves_all_as_it_was():
    # GIVEN
    def broken(_):
        raise PodscopeError("no such directory")

    kept = Recorder()
    with outputs(choice("kept", kept)) as made:
        # WHEN
        with pytest.raises(PodscopeError, match="sink other: no such directory"):
            made.take([Choice(broken, SinkSettings(type="recorder", name="other"))])
        made.put(records.request_batch(1))
    # THEN
    assert kept.count == 1


def test_metrics_of_sinks_are_valid_in_both_forms():
    # GIVEN
    totals = prometheus.Totals()
    with outputs(choice('a"b', Recorder()), choice("c", Recorder())) as made:
        totals.expose_also(made.expose)
        made.put(records.request_batch(3))
        made.take([choice("c", Recorder())])

        # WHEN
        opened = b"".join(totals.expose(openmetrics=True)).decode()
        plain = b"".join(totals.expose(openmetrics=False)).decode()

    # THEN
    families = {one.name: one for one in text_string_to_metric_families(opened)}
    assert {name: families[name].type for name, _, _ in METRICS} == {
        name: kind for name, kind, _ in METRICS
    }
    dropped = families["podscope_sink_dropped_rows"].samples
    assert {one.labels["reason"] for one in dropped} == set(REASONS)
    assert "podscope_sink_sent_rows" in {one.name for one in text_families(plain)}


# --- a sink of another package ----------------------------------------------------------------


def code_blocks(language: str) -> list[str]:
    """The guide's examples in a language."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.S)


def test_the_sink_of_the_guide_works_when_its_package_is_installed(tmp_path):
    # GIVEN the guide's two files, installed as a package of their own
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "podscope_statsd").mkdir(parents=True)
    (source / "podscope_statsd" / "__init__.py").write_text(code_blocks("python")[0])
    (source / "pyproject.toml").write_text(code_blocks("toml")[0])
    assert len(code_blocks("python")[0].splitlines()) <= 30
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([*pip, *options, str(source)], check=True)

    # WHEN a process that sees it gives it rows
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], 'tests/unit']; import records\n"
        "from podscope import settings\n"
        "from podscope.config import Config\n"
        "from podscope.sinks.outputs import Outputs\n"
        "text = 'sinks: [{type: statsd, port: %s}]' % sys.argv[2]\n"
        "made = settings.decoded(settings.from_yaml(text, 'x'), Config)\n"
        "with Outputs(made.sinks, {}, ('http',), grace=5, tell=print) as outputs:\n"
        "    outputs.put(records.shop_batch())\n"
        "print(*outputs.summary())\n"
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(sink_rows.SECONDS)
        port = str(server.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", code, str(target), port],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        got = server.recv(1 << 16).decode()

    # THEN
    assert done.stdout == "sink statsd: 5 rows sent; nothing lost\n", done.stderr
    assert sorted(got.splitlines())[-1] == "http.requests.shop:3|c"


# --- documents --------------------------------------------------------------------------------


def section(title: str) -> dict[str, str]:
    """Keys and defaults in the table of a section of the reference."""
    parts = re.split(r"^## (.+)$", REFERENCE, flags=re.M)
    text = parts[parts.index(title) + 1]
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]*?) \|", text, re.M))


def shown(default: object) -> str:
    """A default as the reference writes it."""
    if default is msgspec.NODEFAULT:
        return "required"
    if default in ("", (), None):
        return ""
    if isinstance(default, tuple):
        return ", ".join(f"`{one}`" for one in default)
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def table(struct: type[msgspec.Struct], above: str = "") -> dict[str, str]:
    """Keys and defaults of settings, with those inside of others."""
    found = {}
    for one in msgspec.structs.fields(struct):
        kind = getattr(one.type, "__origin__", one.type)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            found |= table(kind, f"{above}{one.encode_name}.")
        else:
            found[above + one.encode_name] = shown(one.default)
    return found


def sinks() -> dict[str, type[msgspec.Struct]]:
    """Settings of each sink of podscope, by type."""
    from importlib.metadata import entry_points

    points = entry_points(group="podscope.sinks")
    return {one.name: one.load().Settings for one in points if one.value.startswith("podscope.")}


def test_reference_has_the_settings_that_all_sinks_have():
    assert section("All sinks") == table(SinkSettings)


def test_reference_has_the_settings_of_sinks_that_speak_http():
    # GIVEN
    common = table(SinkSettings)

    # WHEN
    own = {key: text for key, text in table(ServerSettings).items() if key not in common}

    # THEN
    assert section("Sinks that speak HTTP") == own


@pytest.mark.parametrize("name", sorted(sinks()))
def test_reference_has_the_settings_of_each_sink(name):
    # GIVEN
    speaks_http = issubclass(sinks()[name], ServerSettings)
    common = table(ServerSettings if speaks_http else SinkSettings)

    # WHEN
    own = {key: text for key, text in table(sinks()[name]).items() if common.get(key) != text}
    own |= {"url": "required"} if "url" in section(name) else {}

    # THEN
    assert section(name) == own


def test_reference_has_every_reason_of_a_drop():
    assert {*section("Rows that are dropped")} == set(REASONS)


def test_reference_of_metrics_has_those_of_sinks():
    # GIVEN
    metrics = (ROOT / "docs" / "reference" / "metrics.md").read_text()

    # WHEN
    documented = re.findall(r"^\| `(podscope_sink_\w+)` \| (\w+) ", metrics, re.M)

    # THEN
    assert documented == [(name, kind) for name, kind, _ in METRICS]


def test_a_process_that_ends_has_sent_what_it_had(tmp_path):
    # GIVEN
    files = read(f"sinks: [{{type: files, path: {tmp_path}, every: 1h}}]\n").sinks
    made = outputs(*files)

    # WHEN
    with made:
        made.put(records.request_batch(3))

    # THEN
    assert len((tmp_path / "request.jsonl").read_text().splitlines()) == 3


def test_lines_of_several_sinks_are_whole():
    # GIVEN
    program = """
from threading import Thread
from podscope.commands import configured
lines = ["x" * n for n in (5, 50, 500)]
threads = [Thread(target=lambda: [*map(configured.tell, lines * 60)]) for _ in range(8)]
[one.start() for one in threads]
[one.join() for one in threads]
"""

    # WHEN
    ended = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=True
    )

    # THEN
    told = ended.stderr.splitlines()
    assert len(told) == 3 * 60 * 8
    assert set(told) == {f"podscope: {'x' * n}" for n in (5, 50, 500)}
