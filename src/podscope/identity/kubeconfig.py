# SPDX-License-Identifier: Apache-2.0
"""The API server that a kubeconfig names.

What a kubeconfig means is lightkube's to say; what it leaves out is added here: more than one file
in KUBECONFIG, ``proxy-url``, ``tls-server-name``, and exec plugins of API version v1.
"""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Mapping
from datetime import UTC
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import User
from lightkube.config.models import UserExec
from lightkube.core.exceptions import ConfigError

from podscope.errors import PodscopeError
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import Credentials
from podscope.identity.kubernetes_client import Fixed
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.kubernetes_client import TokenFile
from podscope.identity.kubernetes_client import one_line
from podscope.identity.kubernetes_client import proxy_of

EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
EXEC_SECONDS = 60.0
TOKEN_MARGIN = 60.0


def from_kubeconfig(path: str = "", context: str = "") -> ApiServer:
    """The API server of a kubeconfig.

    Args:
        path: a file, or several with ``:`` between them, merged as kubectl does; empty for
            KUBECONFIG, or else ``~/.kube/config``.
        context: empty for the current one.

    Raises:
        PodscopeError: a file cannot be read or has no such context.
    """
    where = path or os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = [Path(name).expanduser() for name in where.split(os.pathsep) if name]
    merged = _merged([file for file in files if len(files) == 1 or file.exists()])
    known = [str(one["name"]) for one in merged["contexts"]]
    if context and context not in known:
        raise PodscopeError(
            f"{where}: no context {context!r}: choose one of {', '.join(known) or 'another file'}"
        )
    try:
        config = KubeConfig.from_dict(merged).get(context or None)
    except (ConfigError, KeyError, TypeError, AttributeError, msgspec.MsgspecError) as error:
        raise PodscopeError(one_line(f"{where}: not a usable kubeconfig: {error}")) from None
    assert config is not None
    cluster = next(one for one in merged["clusters"] if one["name"] == config.context.cluster)
    return _server(config, cluster["cluster"])


# Paths in a kubeconfig are relative to its file.
_PATHS = {
    "clusters": ("cluster", ("certificate-authority",)),
    "users": ("user", ("client-certificate", "client-key", "tokenFile")),
    "contexts": ("context", ()),
}


def _merged(files: list[Path]) -> dict[str, Any]:
    """Of things with the same name the first file's one is taken, as kubectl does."""
    merged: dict[str, Any] = {"clusters": [], "users": [], "contexts": [], "current-context": None}
    for file in files:
        content = _yaml(file)
        for section, (inner, paths) in _PATHS.items():
            known = {one["name"] for one in merged[section]}
            for one in content.get(section) or ():
                if one["name"] not in known:
                    merged[section].append(_absolute(one, inner, paths, file.parent))
        merged["current-context"] = merged["current-context"] or content.get("current-context")
    return merged


def _yaml(file: Path) -> dict[str, Any]:
    try:
        content = msgspec.yaml.decode(file.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise PodscopeError(f"{file}: {error.strerror}; name another kubeconfig") from None
    except msgspec.MsgspecError as error:
        raise PodscopeError(one_line(f"{file}: not a kubeconfig: {error}")) from None
    sections = [content.get(section) or [] for section in _PATHS]
    if not all(isinstance(one, list) for one in sections):
        raise PodscopeError(f"{file}: not a kubeconfig: a section is not a list")
    if not all(isinstance(one, dict) and "name" in one for all_ in sections for one in all_):
        raise PodscopeError(f"{file}: not a kubeconfig: an entry has no name")
    return content


def _absolute(
    one: dict[str, Any], inner: str, paths: tuple[str, ...], directory: Path
) -> dict[str, Any]:
    content = dict(one.get(inner) or {})
    for key in paths:
        if content.get(key):
            content[key] = str(directory / content[key])
    plugin = content.get("exec")
    if isinstance(plugin, dict) and "/" in str(plugin.get("command")):
        content["exec"] = {**plugin, "command": str(directory / plugin["command"])}
    return {"name": one["name"], inner: content}


def _server(config: SingleConfig, cluster: Mapping[str, Any]) -> ApiServer:
    user = config.user or User()
    url = config.cluster.server.rstrip("/")
    try:
        tls = verify_cluster(config.cluster, user, config.abs_file)
    except (OSError, ValueError, ConfigError) as error:
        raise PodscopeError(one_line(f"certificates of {url} cannot be used: {error}")) from None
    return ApiServer(
        url,
        _credentials(user),
        tls,
        str(cluster.get("tls-server-name") or ""),
        str(cluster.get("proxy-url") or "") or proxy_of(url, os.environ),
        config.namespace,
    )


def _credentials(user: User) -> Credentials:
    if user.token_file:
        return TokenFile(user.token_file)
    if user.token:
        return Fixed(f"Bearer {user.token}")
    if user.exec:
        if user.exec.apiVersion not in EXEC_VERSIONS:
            raise PodscopeError(
                f"{user.exec.command}: version {user.exec.apiVersion} of plugins is not known; "
                f"known are {', '.join(EXEC_VERSIONS)}"
            )
        return ExecPlugin(user.exec)
    if user.username and user.password:
        pair = f"{user.username}:{user.password}".encode()
        return Fixed(f"Basic {base64.b64encode(pair).decode()}")
    if user.auth_provider:
        raise PodscopeError("auth-provider of the kubeconfig is not supported; use an exec plugin")
    return Fixed()


class _ExecStatus(msgspec.Struct):
    token: str = ""
    expiration: str = msgspec.field(name="expirationTimestamp", default="")
    certificate: str = msgspec.field(name="clientCertificateData", default="")


class _ExecCredential(msgspec.Struct):
    status: _ExecStatus = msgspec.field(default_factory=_ExecStatus)


class ExecPlugin:
    """A program that prints a token, which is kept until it expires or is refused."""

    def __init__(self, plugin: UserExec) -> None:
        self._plugin = plugin
        self._lock = threading.Lock()
        self._token = ""
        self._ends = 0.0

    def authorization(self) -> str:
        with self._lock:
            if not self._token or (self._ends and datetime.now(UTC).timestamp() > self._ends):
                self._renew()
            return f"Bearer {self._token}"

    def refused(self) -> None:
        with self._lock:
            self._token = ""

    def _renew(self) -> None:
        status = self._run()
        if not status.token:
            raise KubernetesError(
                f"{self._plugin.command}: gave no token; client certificates of plugins are not "
                "supported: use a token"
            )
        self._token = status.token
        self._ends = _unix_time(status.expiration) - TOKEN_MARGIN if status.expiration else 0.0

    def _run(self) -> _ExecStatus:
        plugin = self._plugin
        about = {
            "apiVersion": plugin.apiVersion,
            "kind": "ExecCredential",
            "spec": {"interactive": False},
        }
        environment = {
            **os.environ,
            **{pair.name: pair.value for pair in plugin.env or ()},
            "KUBERNETES_EXEC_INFO": msgspec.json.encode(about).decode(),
        }
        try:
            ended = subprocess.run(
                [plugin.command, *(plugin.args or ())],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=EXEC_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            hint = f"; {plugin.installHint.strip()}" if plugin.installHint else ""
            raise KubernetesError(one_line(f"{plugin.command}: {error}{hint}")) from None
        if ended.returncode:
            words = ended.stderr.decode(errors="replace")[-300:]
            raise KubernetesError(one_line(f"{plugin.command}: ended with an error: {words}"))
        try:
            return msgspec.json.decode(ended.stdout, type=_ExecCredential).status
        except msgspec.MsgspecError as error:
            raise KubernetesError(f"{plugin.command}: printed no credential: {error}") from None


def _unix_time(text: str) -> float:
    """Of RFC 3339. A time that cannot be read is one that has passed."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
