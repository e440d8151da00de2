# SPDX-License-Identifier: Apache-2.0
"""A connection to a port of a pod, through the API server and with the user's own rights.

The streams are those of ``kubectl port-forward`` over a WebSocket (subprotocol
``v4.channel.k8s.io``): each message begins with the number of its channel. Channel 0 is the port's
data, channel 1 its errors; the first message of each holds the port's number
(k8s.io/kubelet/pkg/cri/streaming/portforward/websocket.go).
"""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from urllib.parse import quote
from urllib.parse import urlencode
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.exceptions import WebSocketException
from websockets.frames import Frame
from websockets.frames import Opcode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from podscope import __version__
from podscope.identity.kubernetes_client import KEEPALIVE
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import KubernetesError

PROTOCOL = Subprotocol("v4.channel.k8s.io")
DATA, ERRORS = 0, 1
_PIECE = 64 * 1024
_PROXY_PORT = 3128


class PortForward:
    """One connection to a port of a pod; ``socket`` is its near end. Use it in a ``with``.

    One thread does all of it: a TLS connection is not for two at a time.

    Raises:
        KubernetesError: no such pod, no right to ``get`` and ``create`` on
            ``pods/portforward``, or no answer.
    """

    def __init__(
        self, server: ApiServer, namespace: str, pod: str, port: int, seconds: float = 10.0
    ) -> None:
        where = f"pod {namespace}/{pod}, port {port}"
        path = f"api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/portforward"
        url = f"{server.url}/{path}?{urlencode({'ports': port})}".replace("http", "ws", 1)
        try:
            self._remote = _connected(server, seconds)
        except (OSError, http.client.HTTPException) as error:
            raise KubernetesError(f"{where}: {_words(error)}") from None
        try:
            self._protocol = _agreed(self._remote, url, server.credentials.authorization())
        except BaseException as error:
            self._remote.close()
            if isinstance(error, (OSError, WebSocketException)):
                raise _refusal(error, where) from None
            raise
        self._remote.settimeout(None)
        self.socket, self._far = socket.socketpair()
        self.error = ""
        self._begun: set[int] = set()
        self._message = bytearray()
        self._thread = threading.Thread(target=self._run, name="podscope-forward", daemon=True)
        self._thread.start()

    def __enter__(self) -> PortForward:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends both directions at once. A second call does nothing."""
        for end in (self.socket, self._far, self._remote):
            with contextlib.suppress(OSError):
                # The plain socket's method: ssl's own one is for the thread that reads.
                socket.socket.shutdown(end, socket.SHUT_RDWR)
        self._thread.join()
        for end in (self.socket, self._far, self._remote):
            end.close()

    def _run(self) -> None:
        try:
            self._pass_on()
        except (WebSocketException, OSError) as error:
            self.error = self.error or _words(error)
        with contextlib.suppress(OSError):
            self._far.shutdown(socket.SHUT_RDWR)

    def _pass_on(self) -> None:
        """Both directions, until one of them ends."""
        for frame in self._protocol.events_received():  # came with the handshake's answer
            self._take(frame)
        while self._protocol.state is State.OPEN and not self.error:
            from_pod, from_here = self._ready()
            if from_pod:
                self._receive()
            if from_here:
                piece = self._far.recv(_PIECE)
                if not piece:
                    return
                self._protocol.send_binary(bytes((DATA,)) + piece)
            _send(self._remote, self._protocol)

    def _ready(self) -> tuple[bool, bool]:
        """Whether there is something from the pod, and from here; waits until there is."""
        if isinstance(self._remote, ssl.SSLSocket) and self._remote.pending():
            return True, False
        found, _, _ = select.select([self._remote, self._far], [], [])
        return self._remote in found, self._far in found

    def _receive(self) -> None:
        came = self._remote.recv(_PIECE)
        if not came:
            self._protocol.receive_eof()
            raise ConnectionResetError("the API server closed the connection")
        self._protocol.receive_data(came)
        for frame in self._protocol.events_received():
            self._take(frame)

    def _take(self, frame: object) -> None:
        """A part of a message; the last one completes it."""
        if not isinstance(frame, Frame) or frame.opcode not in (
            Opcode.BINARY,
            Opcode.TEXT,
            Opcode.CONT,
        ):
            return
        self._message += frame.data
        if not frame.fin or not self._message:
            return
        channel, content = self._message[0], bytes(self._message[1:])
        self._message.clear()
        if channel not in self._begun:
            self._begun.add(channel)
            content = content[2:]  # the port's number
        if channel == DATA and content:
            self._far.sendall(content)
        elif channel == ERRORS and content:
            self.error = " ".join(content.decode(errors="replace").split())


def _connected(server: ApiServer, seconds: float) -> socket.socket:
    """A connection to the API server, by its proxy if it has one, in TLS if it speaks that."""
    there = urlsplit(server.url)
    host, secure = there.hostname or "", there.scheme == "https"
    port = there.port or (443 if secure else 80)
    if server.proxy:
        proxy = urlsplit(server.proxy)
        connection = http.client.HTTPConnection(
            proxy.hostname or "", proxy.port or _PROXY_PORT, timeout=seconds
        )
        connection.set_tunnel(host, port)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=seconds)
    connection.connect()
    found: socket.socket = connection.sock
    for option in KEEPALIVE:
        found.setsockopt(*option)
    if not secure:
        return found
    tls = server.tls or ssl.create_default_context()
    return tls.wrap_socket(found, server_hostname=server.tls_name or host)


def _agreed(remote: socket.socket, url: str, authorization: str) -> ClientProtocol:
    """The WebSocket of a connection, after its handshake."""
    protocol = ClientProtocol(parse_uri(url), subprotocols=[PROTOCOL], max_size=None)
    request = protocol.connect()
    request.headers["User-Agent"] = f"podscope/{__version__}"
    if authorization:
        request.headers["Authorization"] = authorization
    protocol.send_request(request)
    _send(remote, protocol)
    while protocol.state is State.CONNECTING and protocol.handshake_exc is None:
        came = remote.recv(_PIECE)
        if came:
            protocol.receive_data(came)
        else:
            protocol.receive_eof()
    if protocol.handshake_exc is not None:
        raise protocol.handshake_exc
    return protocol


def _send(remote: socket.socket, protocol: ClientProtocol) -> None:
    for piece in _pieces(protocol):
        remote.sendall(piece)


def _pieces(protocol: ClientProtocol) -> Iterator[bytes]:
    return filter(None, protocol.data_to_send())


def _refusal(error: OSError | WebSocketException, where: str) -> KubernetesError:
    if not isinstance(error, InvalidStatus):
        return KubernetesError(f"{where}: {_words(error)}")
    code = error.response.status_code
    told = {
        # 'get' before Kubernetes 1.35, 'create' from then on: its feature gate
        # AuthorizePodWebsocketUpgradeCreatePermission.
        http.client.FORBIDDEN: "no permission: 'get' and 'create' on 'pods/portforward' are needed",
        http.client.UNAUTHORIZED: "the API server does not know these credentials (401)",
        http.client.NOT_FOUND: "there is no such pod",
    }
    return KubernetesError(f"{where}: {told.get(code, f'the API server answered {code}')}", code)


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
