# SPDX-License-Identifier: Apache-2.0
"""Where the API server is, who we are to it, and one HTTP connection to it.

A kubeconfig is read in kubeconfig.py.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any
from typing import Protocol
from typing import TypeVar
from typing import cast
from urllib.parse import urlsplit

import httpx
import msgspec

from podscope import __version__
from podscope.errors import PodscopeError
from podscope.identity.kubernetes_objects import Status

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
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
    """The API server of the pod that we are in. Raises PodscopeError outside of pods.

    By the files and variables that every pod has (kubernetes.io/docs, "Accessing the API from
    within a Pod").
    """
    try:
        host = os.environ["KUBERNETES_SERVICE_HOST"]
        port = os.environ["KUBERNETES_SERVICE_PORT"]
        (Path(account) / "token").read_text()
        tls = ssl.create_default_context(cafile=str(Path(account) / "ca.crt"))
        namespace = (Path(account) / "namespace").read_text().strip()
    except (OSError, KeyError) as error:
        raise PodscopeError(one_line(f"no service account of a pod: {error}")) from None
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    token = TokenFile(str(Path(account) / "token"))
    return ApiServer(url, token, tls, proxy=proxy_of(url, os.environ), namespace=namespace)


def find_server(kubeconfig: str = "", context: str = "") -> ApiServer:
    """The pod's API server if we are in one and nothing else was asked for, or a kubeconfig's."""
    if kubeconfig or context or not os.environ.get("KUBERNETES_SERVICE_HOST"):
        # Only here: what it needs takes megabytes, which an agent in a pod can do without.
        from podscope.identity.kubeconfig import from_kubeconfig

        return from_kubeconfig(kubeconfig, context)
    return in_cluster()


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
            raise KubernetesError(one_line(f"{self._server.url}: {words}")) from None

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
            raise KubernetesError(one_line(f"{self._server.url}: {words}")) from None

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
        one_line(f"{where} {status.reason}: {status.message}"),
        code,
        status.reason,
        retry_after or status.details.retry_after_seconds,
        any(cause.reason == "ResourceVersionTooLarge" for cause in status.details.causes),
    )


def _seconds(retry_after: str) -> float:
    """Seconds of a Retry-After field; the API server never sends a date."""
    return float(retry_after) if retry_after.isdecimal() and retry_after.isascii() else 0.0


def one_line(text: str) -> str:
    """The text without line breaks, for an error."""
    return " ".join(text.split())
