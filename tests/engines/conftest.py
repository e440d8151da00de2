# SPDX-License-Identifier: Apache-2.0
"""Real servers for the tests of sinks, started where their programs are.

Environment variables say where: INFLUXD, PROMETHEUS and VICTORIA_METRICS a program (else the PATH
is searched), ELASTICSEARCH_HOME and OPENSEARCH_HOME a directory that was unpacked. Without one, its
tests are skipped and say so. All listen on 127.0.0.1 at free ports, and end with the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

SECONDS = 90


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    url: str

    def ask(
        self,
        path: str,
        body: object = None,
        *,
        method: str = "",
        **query: str,
    ) -> Any:
        """The JSON that it answers; what is not JSON as text. Errors of HTTP too."""
        address = f"{self.url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        raw = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            address,
            data=raw,
            headers={"Content-Type": "application/json"},
            method=method or ("GET" if raw is None else "POST"),
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            text = error.read().decode()
        try:
            return json.loads(text)
        except ValueError:
            return text

    def ask_raw(self, path: str, body: bytes) -> Any:
        """The JSON that is answered to lines of JSON."""
        headers = {"Content-Type": "application/x-ndjson"}
        request = urllib.request.Request(f"{self.url}{path}", data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.loads(answer.read())


def free_port() -> int:
    """A port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


def program(variable: str, name: str) -> str:
    """Where a server's program is, or the test is skipped."""
    found = os.environ.get(variable) or shutil.which(name)
    if not found:
        pytest.skip(f"no {name}: set {variable} to its path to test with the real server")
    return found


@contextlib.contextmanager
def running(
    command: list[str], log: Path, url: str, ready: str, **options: Any
) -> Iterator[Server]:
    """A server from its start, when ``ready`` answers 2xx, to its end."""
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, **options
        )
    try:
        due = time.monotonic() + SECONDS
        while not answers(url + ready):
            ended = process.poll() is not None
            assert not ended and time.monotonic() < due, log.read_text(errors="replace")[-3000:]
            time.sleep(0.1)
        yield Server(url)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    """Whether a page answers 2xx now."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session")
def influxdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """InfluxDB 1."""
    influxd = program("INFLUXD", "influxd")
    with influxdb_server(influxd, tmp_path_factory.mktemp("influxdb")) as server:
        yield server


@pytest.fixture(scope="session")
def influxdb_flux(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """InfluxDB 1.8, which knows Flux."""
    influxd = program("INFLUXD_FLUX", "influxd-flux")
    home = tmp_path_factory.mktemp("influxdb-flux")
    with influxdb_server(influxd, home, "flux-enabled = true\n") as server:
        yield server


@contextlib.contextmanager
def influxdb_server(influxd: str, home: Path, http: str = "") -> Iterator[Server]:
    """InfluxDB 1, with more settings of its section ``http``."""
    port = free_port()
    (home / "config").write_text(
        f'reporting-disabled = true\nbind-address = "127.0.0.1:{free_port()}"\n'
        f'[meta]\n  dir = "{home}/meta"\n[data]\n  dir = "{home}/data"\n  wal-dir = "{home}/wal"\n'
        f'[http]\n  bind-address = "127.0.0.1:{port}"\n  log-enabled = false\n' + http
    )
    command = [influxd, "-config", str(home / "config")]
    with running(command, home / "log", f"http://127.0.0.1:{port}", "/ping") as server:
        yield server


def unpacked(variable: str, name: str) -> Path:
    """Where a server was unpacked, or the test is skipped."""
    found = os.environ.get(variable)
    if not found:
        pytest.skip(
            f"no {name}: set {variable} to the directory of its distribution to test with the "
            "real server"
        )
    return Path(found)


@contextlib.contextmanager
def elastic(home: Path, work: Path, program: str, prefix: str, more: str) -> Iterator[Server]:
    """Elasticsearch or OpenSearch with one node; neither runs as root."""
    port = free_port()
    shutil.copytree(home / "config", work / "config")
    (work / "config" / f"{program}.yml").write_text(
        f"network.host: 127.0.0.1\nhttp.port: {port}\ntransport.port: {free_port()}\n"
        f"discovery.type: single-node\npath.data: {work}/data\npath.logs: {work}/logs\n{more}"
    )
    for name in ("logs", "tmp"):
        (work / name).mkdir()
    options = work / "config" / "jvm.options"
    options.write_text(options.read_text().replace("logs/gc.log", f"{work}/logs/gc.log"))
    user: list[str] = []
    if os.geteuid() == 0:
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        for path in (work, *work.rglob("*")):
            os.chown(path, 65534, 65534)
    java = Path(os.path.realpath(shutil.which("java") or "/usr/bin/java")).parents[1]
    environment = os.environ | {
        f"{prefix}_PATH_CONF": str(work / "config"),
        f"{prefix}_JAVA_HOME": str(java),
        f"{prefix}_JAVA_OPTS": "-Xms512m -Xmx512m -Djava.security.manager=allow",
        # Nothing is left in /tmp.
        f"{prefix}_TMPDIR": str(work / "tmp"),
        "CLI_JAVA_OPTS": f"-Djava.io.tmpdir={work}/tmp",
        "HOME": str(work),
    }
    command = [*user, str(home / "bin" / program)]
    url = f"http://127.0.0.1:{port}"
    with running(command, work / "out", url, "/_cluster/health", env=environment) as server:
        yield server


@pytest.fixture(scope="session")
def elasticsearch() -> Iterator[Server]:
    """Elasticsearch 8."""
    home = unpacked("ELASTICSEARCH_HOME", "Elasticsearch")
    more = "xpack.security.enabled: false\nxpack.ml.enabled: false\n"
    with (
        tempfile.TemporaryDirectory() as work,
        elastic(home, Path(work), "elasticsearch", "ES", more) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def opensearch() -> Iterator[Server]:
    """OpenSearch 2."""
    home = unpacked("OPENSEARCH_HOME", "OpenSearch")
    with (
        tempfile.TemporaryDirectory() as work,
        elastic(home, Path(work), "opensearch", "OPENSEARCH", "") as server,
    ):
        yield server


@contextlib.contextmanager
def prometheus_server(home: Path, config: str) -> Iterator[Server]:
    """Prometheus 3, which takes remote writes and OTLP, and scrapes what the configuration says."""
    prometheus = program("PROMETHEUS", "prometheus")
    port = free_port()
    (home / "config").write_text(config)
    command = [
        prometheus,
        f"--config.file={home}/config",
        f"--storage.tsdb.path={home}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--web.enable-remote-write-receiver",
        "--web.enable-otlp-receiver",
        "--enable-feature=native-histograms,exemplar-storage,otlp-deltatocumulative",
    ]
    with running(command, home / "log", f"http://127.0.0.1:{port}", "/-/ready") as server:
        yield server


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Prometheus 3."""
    with prometheus_server(tmp_path_factory.mktemp("prometheus"), "global: {}\n") as server:
        yield server


@contextlib.contextmanager
def victoria_server(home: Path, *flags: str) -> Iterator[Server]:
    """VictoriaMetrics."""
    victoria = program("VICTORIA_METRICS", "victoria-metrics")
    port = free_port()
    command = [
        victoria,
        f"-httpListenAddr=127.0.0.1:{port}",
        f"-storageDataPath={home}/data",
        "-search.latencyOffset=1s",
        *flags,
    ]
    with running(command, home / "log", f"http://127.0.0.1:{port}", "/health") as server:
        yield server


@pytest.fixture(scope="session")
def victoria_metrics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """VictoriaMetrics."""
    with victoria_server(tmp_path_factory.mktemp("victoria")) as server:
        yield server
