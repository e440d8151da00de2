# SPDX-License-Identifier: Apache-2.0
"""A connection to a port of a pod, through the API server and with the user's own rights.

The streams are those of ``kubectl port-forward`` over a WebSocket (subprotocol
``v4.channel.k8s.io``): each message begins with the number of its channel. Channel 0 is the port's
data, channel 1 its errors; the first message of each holds the port's number
(k8s.io/kubelet/pkg/cri/streaming/portforward/websocket.go).
"""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import quote
from urllib.parse import urlencode

from websockets.exceptions import InvalidHandshake
from websockets.exceptions import InvalidStatus
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from podscope import __version__
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import KubernetesError

PROTOCOL = Subprotocol("v4.channel.k8s.io")
DATA, ERRORS = b"\0", b"\1"
_PIECE = 64 * 1024


class PortForward:
    """One connection to a port of a pod; ``socket`` is its near end. Use it in a ``with``.

    Raises:
        KubernetesError: no such pod, no right to ``create pods/portforward``, or no answer.
    """

    def __init__(
        self, server: ApiServer, namespace: str, pod: str, port: int, seconds: float = 10.0
    ) -> None:
        self._where = f"pod {namespace}/{pod}, port {port}"
        path = f"api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/portforward"
        url = f"{server.url}/{path}?{urlencode({'ports': port})}".replace("http", "ws", 1)
        self._remote = _connected(server, url, seconds, self._where)
        self.socket, self._far = socket.socketpair()
        self.error = ""
        self._threads = [
            threading.Thread(target=work, name=f"podscope-forward-{work.__name__}", daemon=True)
            for work in (self._take, self._give)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> PortForward:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends both directions at once."""
        for end in (self.socket, self._far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(WebSocketException, OSError):
            self._remote.close()
        for thread in self._threads:
            thread.join()
        self.socket.close()
        self._far.close()

    def _take(self) -> None:
        """From the pod."""
        begun = set()
        try:
            for message in self._remote:
                raw = message.encode() if isinstance(message, str) else message
                channel, content = raw[:1], raw[1:]
                if channel not in begun:
                    begun.add(channel)
                    content = content[2:]  # the port's number
                if channel == DATA and content:
                    self._far.sendall(content)
                elif channel == ERRORS and content:
                    self.error = " ".join(content.decode(errors="replace").split())
                    break
        except (WebSocketException, OSError) as error:
            self.error = self.error or str(error)
        with contextlib.suppress(OSError):
            self._far.shutdown(socket.SHUT_WR)

    def _give(self) -> None:
        """To the pod."""
        with contextlib.suppress(WebSocketException, OSError):
            while piece := self._far.recv(_PIECE):
                self._remote.send(DATA + piece)


def _connected(server: ApiServer, url: str, seconds: float, where: str) -> ClientConnection:
    authorization = server.credentials.authorization()
    try:
        found = connect(
            url,
            ssl=server.tls,
            server_hostname=server.tls_name or None,
            subprotocols=[PROTOCOL],
            additional_headers={"Authorization": authorization} if authorization else None,
            user_agent_header=f"podscope/{__version__}",
            compression=None,
            proxy=server.proxy or None,
            open_timeout=seconds,
            close_timeout=1,
            max_size=None,
        )
        assert isinstance(found, ClientConnection)
        return found
    except InvalidStatus as error:
        raise KubernetesError(f"{where}: {_refused(error)}", error.response.status_code) from None
    except (InvalidHandshake, OSError, TimeoutError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise KubernetesError(f"{where}: {words}") from None


def _refused(error: InvalidStatus) -> str:
    code = error.response.status_code
    if code == 403:
        return "no permission: 'create' on 'pods/portforward' is missing"
    if code == 401:
        return "the API server does not know these credentials (401)"
    if code == 404:
        return "there is no such pod"
    return f"the API server answered {code}"
