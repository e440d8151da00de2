# SPDX-License-Identifier: Apache-2.0
"""Where the API server is, who we are to it, and one HTTP connection to it.

What a kubeconfig means is lightkube's to say; what it leaves out is added here: more than one file
in KUBECONFIG, ``proxy-url``, ``tls-server-name``, exec plugins of API version v1, and connections
whose other end has gone.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from datetime import UTC
from datetime import datetime
from pathlib import Path
from typing import Any
from typing import Protocol
from typing import TypeVar
from typing import cast
from urllib.parse import urlsplit

import httpx
import msgspec
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import User
from lightkube.config.models import UserExec
from lightkube.core.exceptions import ConfigError

from podscope import __version__
from podscope.errors import PodscopeError
from podscope.identity.kubernetes_objects import Status

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
EXEC_SECONDS = 60.0
TOKEN_MARGIN = 60.0
ANSWER_SECONDS = 30.0
# A peer that is gone without a word is noticed after 30 + 3 * 10 seconds.
KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000),
]
T = TypeVar("T")


class KubernetesError(PodscopeError):
    """The API server refused, or could not be reached.

    Attributes:
        status: HTTP status, or the code of an ERROR event; 0 if there was no answer.
        reason: the API's word for it: ``Expired``, ``Forbidden``, ...
        retry_after: seconds that the server asks to wait; 0 if it does not.
        too_new: the version asked for is newer than what the server has.
    """

    def __init__(
        self,
        message: str,
        status: int = 0,
        reason: str = "",
        retry_after: float = 0.0,
        too_new: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.too_new = too_new


class Credentials(Protocol):
    """Who we are. Used from several threads."""

    def authorization(self) -> str:
        """The value of the Authorization field; empty if there is none."""

    def refused(self) -> None:
        """The server said 401: what is remembered is worth nothing."""


@dataclass(frozen=True)
class Fixed:
    """A token or password of the kubeconfig, or none where certificates do."""

    value: str = ""

    def authorization(self) -> str:
        return self.value

    def refused(self) -> None:
        """There is no other."""


@dataclass(frozen=True)
class TokenFile:
    """A token in a file that is replaced from time to time: read for every request."""

    path: str

    def authorization(self) -> str:
        try:
            return f"Bearer {Path(self.path).read_text().strip()}"
        except OSError as error:
            raise KubernetesError(f"{self.path}: no token: {error.strerror}") from None

    def refused(self) -> None:
        """Nothing is remembered."""


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
            raise KubernetesError(_one_line(f"{plugin.command}: {error}{hint}")) from None
        if ended.returncode:
            words = ended.stderr.decode(errors="replace")[-300:]
            raise KubernetesError(_one_line(f"{plugin.command}: ended with an error: {words}"))
        try:
            return msgspec.json.decode(ended.stdout, type=_ExecCredential).status
        except msgspec.MsgspecError as error:
            raise KubernetesError(f"{plugin.command}: printed no credential: {error}") from None


@dataclass(frozen=True)
class ApiServer:
    """Where the API server is, and how to talk to it.

    Attributes:
        url: with scheme, and with a path if there is one.
        tls: certificates to trust, and the client's own; None for the system's.
        tls_name: name in the server's certificate, if it is not the host's.
        proxy: URL of an HTTP proxy; empty for none.
        namespace: where the context is.
    """

    url: str
    credentials: Credentials = field(default_factory=Fixed)
    tls: ssl.SSLContext | None = None
    tls_name: str = ""
    proxy: str = ""
    namespace: str = "default"


def in_cluster(account: str = SERVICE_ACCOUNT) -> ApiServer:
    """The API server of the pod that we are in. Raises PodscopeError outside of pods."""
    try:
        config = KubeConfig.from_service_account(account).get()
    except (ConfigError, KeyError) as error:
        raise PodscopeError(_one_line(f"no service account of a pod: {error}")) from None
    assert config is not None
    return _server(config, {})


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
        raise PodscopeError(_one_line(f"{where}: not a usable kubeconfig: {error}")) from None
    assert config is not None
    cluster = next(one for one in merged["clusters"] if one["name"] == config.context.cluster)
    return _server(config, cluster["cluster"])


def find_server(kubeconfig: str = "", context: str = "") -> ApiServer:
    """The pod's API server if we are in one and nothing else was asked for, or a kubeconfig's."""
    if kubeconfig or context or not os.environ.get("KUBERNETES_SERVICE_HOST"):
        return from_kubeconfig(kubeconfig, context)
    return in_cluster()


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
        raise PodscopeError(_one_line(f"{file}: not a kubeconfig: {error}")) from None
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
        raise PodscopeError(_one_line(f"certificates of {url} cannot be used: {error}")) from None
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


def proxy_of(url: str, environment: Mapping[str, str]) -> str:
    """The proxy that the environment names for a URL; empty for none.

    NO_PROXY is read as Go reads it, networks included: pods often have one for the cluster.
    """
    parts = urlsplit(url)
    value = _either_case(environment, f"{parts.scheme}_proxy")
    if not value or _goes_direct(parts.hostname or "", _either_case(environment, "no_proxy")):
        return ""
    return value if "://" in value else f"http://{value}"


def _either_case(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name.upper()) or environment.get(name) or ""


def _goes_direct(host: str, exceptions: str) -> bool:
    names = [name.strip().lower() for name in exceptions.split(",") if name.strip()]
    address = _address(host)
    if host == "localhost" or (address and address.is_loopback):
        return True
    return any(name == "*" or _is_in(host, address, name) for name in names)


def _is_in(
    host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, name: str
) -> bool:
    if address:
        with contextlib.suppress(ValueError):
            return address in ipaddress.ip_network(name.strip("[]"), strict=False)
        return False
    host = host.lower().rstrip(".")
    inside = "." + name.removeprefix("*").lstrip(".")
    return host.endswith(inside) or (not name.startswith((".", "*")) and host == name)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class Connection:
    """One connection to the API server, kept open between requests.

    Requests are for one thread; ``close`` may be called from any, and ends a request at once.
    """

    def __init__(self, server: ApiServer, connect_seconds: float = 10.0) -> None:
        self._server = server
        self._connect_seconds = connect_seconds
        self._socket: socket.socket | None = None
        self._closed = False
        transport = httpx.HTTPTransport(
            verify=server.tls or server.url.startswith("https:"),
            proxy=server.proxy or None,
            limits=httpx.Limits(max_connections=1),
            socket_options=KEEPALIVE,
        )
        self._client = httpx.Client(transport=transport, trust_env=False)

    @contextlib.contextmanager
    def stream(
        self, path: str, query: Mapping[str, str | int], silence: float
    ) -> Iterator[Iterator[bytes]]:
        """The pieces of an answer as they come.

        Args:
            silence: seconds without a byte after which the connection counts as dead.

        Raises:
            KubernetesError: no connection, it broke, or the answer is not 200.
        """
        if self._closed:
            raise KubernetesError(f"{self._server.url}: the connection was closed here")
        try:
            with self._client.stream(
                "GET",
                f"{self._server.url}/{path}",
                params=dict(query),
                headers=self._headers(),
                timeout=httpx.Timeout(self._connect_seconds, read=silence),
                extensions=self._extensions(),
            ) as answer:
                if answer.status_code != 200:
                    raise self._refusal(answer)
                yield answer.iter_bytes()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            words = str(error) or type(error).__name__
            raise KubernetesError(_one_line(f"{self._server.url}: {words}")) from None

    def get(self, path: str, query: Mapping[str, str | int], silence: float) -> bytearray:
        """The whole body of an answer. Raises KubernetesError."""
        body = bytearray()
        with self.stream(path, query, silence) as pieces:
            for piece in pieces:
                body += piece
        return body

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int],
        body: bytes,
        *,
        content_type: str = "application/json",
    ) -> bytes:
        """The answer to a request that changes something. Raises KubernetesError."""
        try:
            answer = self._client.request(
                method,
                f"{self._server.url}/{path}",
                params=dict(query),
                content=body,
                headers={**self._headers(), "Content-Type": content_type},
                timeout=httpx.Timeout(self._connect_seconds, read=ANSWER_SECONDS),
                extensions=self._extensions(),
            )
            if not answer.is_success:
                raise self._refusal(answer)
            return answer.content
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            words = str(error) or type(error).__name__
            raise KubernetesError(_one_line(f"{self._server.url}: {words}")) from None

    def close(self) -> None:
        """Ends the request that is under way, whatever it waits for, and all later ones."""
        self._closed = True
        self._cut()

    def release(self) -> None:
        """Frees the connection: for the thread that made the requests, at its end."""
        self._client.close()

    def _cut(self) -> None:
        taken = self._socket
        if taken is None:
            return
        # The plain socket's method: ssl's own one takes the TLS state from the reading thread.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(taken, socket.SHUT_RDWR)

    def _trace(self, event: str, facts: Mapping[str, Any]) -> None:
        """httpcore tells of new connections: the only way to know a socket before its answer."""
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        stream = facts["return_value"]
        self._socket = cast("socket.socket | None", stream.get_extra_info("socket"))
        if self._closed:
            self._cut()

    def _headers(self) -> dict[str, str]:
        headers = {
            "Accept": "application/json",
            # Lists would be compressed: CPU that is worth more than the bytes inside a cluster.
            "Accept-Encoding": "identity",
            "User-Agent": f"podscope/{__version__}",
        }
        authorization = self._server.credentials.authorization()
        return {**headers, "Authorization": authorization} if authorization else headers

    def _extensions(self) -> dict[str, Any]:
        if not self._server.tls_name:
            return {"trace": self._trace}
        return {"trace": self._trace, "sni_hostname": self._server.tls_name}

    def _refusal(self, answer: httpx.Response) -> KubernetesError:
        if answer.status_code == 401:
            self._server.credentials.refused()
        body = answer.read()
        try:
            status = msgspec.json.decode(body, type=Status)
        except msgspec.MsgspecError:
            status = Status(message=body[:200].decode(errors="replace"))
        asked = _seconds(answer.headers.get("Retry-After", ""))
        return refusal(
            status, f"{self._server.url}: {answer.status_code}", answer.status_code, asked
        )


def refusal(status: Status, where: str, code: int, retry_after: float = 0.0) -> KubernetesError:
    """What a Status of the API server means, as an exception to be raised."""
    return KubernetesError(
        _one_line(f"{where} {status.reason}: {status.message}"),
        code,
        status.reason,
        retry_after or status.details.retry_after_seconds,
        any(cause.reason == "ResourceVersionTooLarge" for cause in status.details.causes),
    )


def _seconds(retry_after: str) -> float:
    """Seconds of a Retry-After field; the API server never sends a date."""
    return float(retry_after) if retry_after.isdecimal() and retry_after.isascii() else 0.0


def _unix_time(text: str) -> float:
    """Of RFC 3339. A time that cannot be read is one that has passed."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def _one_line(text: str) -> str:
    return " ".join(text.split())
