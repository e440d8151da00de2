# SPDX-License-Identifier: Apache-2.0
"""As much of an API server as keeps objects: server-side apply, get, list by label, delete."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl
from urllib.parse import urlsplit

from podscope.identity.kubernetes_client import ApiServer

Object = dict[str, Any]


class ObjectStore:
    """The objects, by path."""

    def __init__(self) -> None:
        self._objects: dict[str, Object] = {}
        self.api = ApiServer("")

    def names(self) -> list[tuple[str, str]]:
        """Kind and name of each object."""
        return [(one["kind"], one["metadata"]["name"]) for one in self._objects.values()]

    def one(self, kind: str, name: str) -> Object:
        """An object."""
        return next(
            one
            for one in self._objects.values()
            if (one["kind"], one["metadata"]["name"]) == (kind, name)
        )

    def answer(self, method: str, url: str, body: bytes) -> tuple[int, Object]:
        """Status and object, or list, of a request."""
        parts = urlsplit(url)
        path, query = parts.path.strip("/"), dict(parse_qsl(parts.query))
        if method == "PATCH":
            self._objects[path] = json.loads(body)
            return 200, self._objects[path]
        if method == "DELETE":
            return 200, self._objects.pop(path, {})
        if path in self._objects:
            return 200, self._objects[path]
        if "labelSelector" in query:
            key, _, value = query["labelSelector"].partition("=")
            items = [
                one
                for where, one in self._objects.items()
                if where.rpartition("/")[0] == path and one["metadata"]["labels"].get(key) == value
            ]
            return 200, {"items": items}
        return 404, {"kind": "Status", "message": "not found", "code": 404}


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A store that listens on loopback."""
    store = ObjectStore()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, told = store.answer(self.command, self.path, body)
            raw = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_PATCH = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    store.api = ApiServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
