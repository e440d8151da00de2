# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server in a thread, for /metrics and health checks."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING
from typing import cast
from urllib.parse import parse_qs

from podscope import __version__
from podscope.errors import PodscopeError

if TYPE_CHECKING:
    from types import TracebackType

_IDLE_SECONDS = 30.0


@dataclass(frozen=True)
class Answer:
    """What a page gives: a status, a content type, and a body in one or many pieces."""

    status: int
    content_type: str
    body: bytes | Iterable[bytes]


@dataclass(frozen=True)
class Request:
    """What a page is asked with: the fields, names in lower case, and the query's values."""

    fields: Mapping[str, str]
    query: Mapping[str, list[str]]


Page = Callable[[Request], Answer]


def text(status: int, body: str) -> Answer:
    """A page of plain text."""
    return Answer(status, "text/plain; charset=utf-8", body.encode())


class HttpServer:
    """Serves pages by path, from ``with`` to its end.

    Args:
        address: host and port; port 0 takes a free one, an empty host all addresses.
        pages: by path.

    Raises:
        PodscopeError: the address cannot be listened on.
    """

    def __init__(self, address: tuple[str, int], pages: Mapping[str, Page]) -> None:
        host, port = address
        try:
            self._server = _Server(host, port, dict(pages))
        except (OSError, UnicodeError) as error:
            raise PodscopeError(_why_not(host, port, error)) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="podscope-http", daemon=True
        )

    @property
    def address(self) -> str:
        """``127.0.0.1:9435``: what it listens on."""
        host, port = self._server.server_address[:2]
        return _shown(str(host), int(port))

    def __enter__(self) -> HttpServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _why_not(host: str, port: int, error: OSError | UnicodeError) -> str:
    where = f"cannot listen on {_shown(host, port)}"
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.EADDRINUSE:
        other = _shown(host, port % 65535 + 1)
        return f"{where}: the port is in use; choose another, as --listen {other}"
    if code == errno.EACCES:
        return f"{where}: ports below 1024 need root; choose another, as --listen 127.0.0.1:9435"
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return (
            f"{where}: the name does not resolve; write an address of this host, "
            "as --listen 127.0.0.1:9435"
        )
    if code == errno.EADDRNOTAVAIL:
        return f"{where}: this host has no such address; see 'ip address'"
    return f"{where}: {error}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Threads wait for clients that keep connections open: the end does not wait for them.
    block_on_close = False

    def __init__(self, host: str, port: int, pages: dict[str, Page]) -> None:
        self.pages = pages
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, address = found[0]
        self.address_family = family
        super().__init__(cast("tuple[str, int]", address), _Handler)

    def server_bind(self) -> None:
        # The method of HTTPServer asks DNS for the host's name; nothing here needs it.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = f"podscope/{__version__}"
    sys_version = ""
    timeout = _IDLE_SECONDS
    # What the base class refuses by itself: plain text as well.
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_POST(self) -> None:
        self._answer(with_body=True)

    # All other methods of RFC 9110 and PATCH (RFC 5789).
    do_PUT = do_DELETE = do_CONNECT = do_OPTIONS = do_TRACE = do_PATCH = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the terminal belongs to the table."""

    def _answer(self, *, with_body: bool) -> None:
        pages = cast("_Server", self.server).pages
        path, _, query = self.path.partition("?")
        page = pages.get(path, _not_found)
        if page is not _not_found and self.command not in ("GET", "HEAD"):
            page = _not_allowed
        # Body bytes that nobody reads would be taken for the next request.
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True
        fields = {name.lower(): value for name, value in self.headers.items()}
        answer = page(Request(fields, parse_qs(query, keep_blank_values=True)))
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("X-Content-Type-Options", "nosniff")
        if page is _not_allowed:
            self.send_header("Allow", "GET, HEAD")
        if isinstance(answer.body, bytes):
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if with_body:
                self.wfile.write(answer.body)
            return
        chunked = self.request_version == "HTTP/1.1"
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.close_connection = True
        self.end_headers()
        if with_body:
            self._write_pieces(answer.body, chunked=chunked)

    def _write_pieces(self, pieces: Iterable[bytes], *, chunked: bool) -> None:
        for piece in filter(None, pieces):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")


def _not_found(_: Request) -> Answer:
    return text(404, "no such page; there are /metrics, /healthz and /readyz\n")


def _not_allowed(_: Request) -> Answer:
    return text(405, "pages are read with GET or HEAD\n")
