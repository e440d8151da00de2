# SPDX-License-Identifier: Apache-2.0
"""A small Kubernetes API server on loopback: lists in pages, watches, and does wrong on demand."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from dataclasses import field
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from urllib.parse import parse_qsl
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    """What a client asked for. ``kind`` is list, page (a later one), watch or get."""

    kind: str
    path: str
    query: dict[str, str]
    authorization: str


@dataclass(frozen=True)
class Refuse:
    """The next request of a kind is answered with a Status."""

    on: str
    status: int
    reason: str = ""
    retry_after: str = ""
    causes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ErrorEvent:
    """The next watch is answered with 200, and an ERROR event."""

    status: int
    reason: str = ""
    retry_after: int = 0
    on: str = "watch"


@dataclass(frozen=True)
class Cut:
    """The next watch is broken off in the middle of its next event's line."""

    on: str = "watch"


@dataclass(frozen=True)
class Twice:
    """The next watch sends every event two times."""

    on: str = "watch"


@dataclass(frozen=True)
class Short:
    """The next watch ends, as it should, before it has sent anything."""

    on: str = "watch"


@dataclass(frozen=True)
class Silent:
    """The next request of a kind gets no byte of a body, and its connection stays open."""

    on: str


@dataclass(frozen=True)
class Slow:
    """The next request of a kind gets its body in small pieces with pauses."""

    on: str
    pieces: int = 5
    pause: float = 0.01


Fault = Refuse | ErrorEvent | Cut | Twice | Short | Silent | Slow


@dataclass
class Collection:
    """Objects of one sort as JSON by uid, and what happened: version, type, JSON."""

    objects: dict[str, bytes] = field(default_factory=dict)
    log: list[tuple[int, str, bytes]] = field(default_factory=list)
    oldest: int = 0


class FakeApiServer:
    """Serves from ``with`` to its end, on a port that it keeps while it is down."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.token = ""
        self.expired_as_event = True
        self.changed = threading.Condition()
        self.open: set[socket.socket] = set()
        self.watch_number = 0
        self.running = False
        self._collections: dict[str, Collection] = {}
        self._version = 1000
        self._port = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def __enter__(self) -> FakeApiServer:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.down()

    def up(self) -> None:
        """Listens, on the same port as before."""
        self._server = _Server(("127.0.0.1", self._port), self)
        self._port = self._server.server_address[1]
        if self._tls:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        self.running = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True
        )
        self._thread.start()

    def down(self) -> None:
        """Goes away, with all connections."""
        with self.changed:
            self.running = False
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.break_connections()

    def break_connections(self) -> None:
        """Shuts every connection down."""
        for one in list(self.open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def end_watches(self) -> None:
        """Ends every watch that is open, as the server does when its time is over."""
        with self.changed:
            self.watch_number += 1
            self.changed.notify_all()

    # --- what is in the cluster -------------------------------------------------------------

    def collection(self, path: str) -> Collection:
        return self._collections.setdefault(path, Collection())

    def put(self, path: str, thing: dict) -> int:
        """Makes or changes an object. Returns its version."""
        uid = thing["metadata"]["uid"]
        with self.changed:
            kind = "MODIFIED" if uid in self.collection(path).objects else "ADDED"
            return self._happened(path, kind, thing)

    def delete(self, path: str, uid: str) -> int:
        with self.changed:
            thing = json.loads(self.collection(path).objects[uid])
            return self._happened(path, "DELETED", thing)

    def bookmark(self, path: str) -> int:
        """Tells watches a newer version, with the nulls that the real one has."""
        with self.changed:
            return self._happened(path, "BOOKMARK", {"metadata": {}, "spec": {"containers": None}})

    def _happened(self, path: str, kind: str, thing: dict) -> int:
        self._version += 1
        metadata = {**thing["metadata"], "resourceVersion": str(self._version)}
        body = json.dumps({**thing, "metadata": metadata}).encode()
        objects = self.collection(path).objects
        if kind == "DELETED":
            del objects[metadata["uid"]]
        elif kind != "BOOKMARK":
            objects[metadata["uid"]] = body
        self.collection(path).log.append((self._version, kind, body))
        self.changed.notify_all()
        return self._version

    def replay(self, path: str, events: list[tuple[str, bytes]]) -> None:
        """Tells watches of events at once; their bodies are sent as they are."""
        with self.changed:
            for kind, body in events:
                self._version += 1
                self.collection(path).log.append((self._version, kind, body))
            self.changed.notify_all()

    def restore(self, path: str, version: int, *things: dict) -> None:
        """Goes back to a version, with these objects and no others."""
        with self.changed:
            self._collections[path] = Collection()
            self._version = version - len(things)
            for thing in things:
                self._happened(path, "ADDED", thing)

    def forget(self, path: str) -> None:
        """Versions before this one are too old from now on: watches from them get 410."""
        with self.changed:
            self._version += 1
            self.collection(path).log.clear()
            self.collection(path).oldest = self._version

    @property
    def version(self) -> int:
        return self._version

    # --- what clients did -------------------------------------------------------------------

    def asked(self, kind: str = "") -> list[Request]:
        """Requests so far."""
        return [one for one in list(self.requests) if kind in ("", one.kind)]

    def fault(self, kind: str) -> Fault | None:
        """The next fault for a request of this kind, which is then used up."""
        with self.changed:
            for one in self.faults:
                if one.on in (kind, "any"):
                    self.faults.remove(one)
                    return one
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], fake: FakeApiServer) -> None:
        self.fake = fake
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.fake = self.server.fake
        self.fake.open.add(self.connection)

    def finish(self) -> None:
        self.fake.open.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        path = parts.path.strip("/")
        # lightkube writes it one way, kubectl the other.
        kind = "watch" if query.get("watch") in ("1", "true") else "list"
        kind = "page" if "continue" in query else kind
        kind = kind if path in self.fake._collections else "get"
        authorization = self.headers.get("Authorization", "")
        self.fake.requests.append(Request(kind, path, query, authorization))
        fault = self.fake.fault(kind)
        if isinstance(fault, Refuse):
            self._refuse(fault)
        elif self.fake.token and authorization != f"Bearer {self.fake.token}":
            self._refuse(Refuse(kind, 401, "Unauthorized"))
        elif kind == "watch":
            self._watch(path, query, fault)
        elif kind == "get":
            self._one(path)
        else:
            self._list(path, query, fault)

    def _refuse(self, fault: Refuse) -> None:
        details = {"causes": [{"reason": reason} for reason in fault.causes]}
        body = json.dumps(status_of(fault.status, fault.reason, details)).encode()
        self._answer(fault.status, body, fault.retry_after)

    def _answer(self, status: int, body: bytes, retry_after: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(body)

    def _one(self, path: str) -> None:
        """An object by its name: the last part of the path."""
        head, _, name = path.rpartition("/")
        group, _, rest = head.partition("/namespaces/")
        namespace, _, plural = rest.partition("/")
        for body in list(self.fake.collection(f"{group}/{plural}").objects.values()):
            metadata = json.loads(body)["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, name):
                self._answer(200, body)
                return
        self._refuse(Refuse("get", 404, "NotFound"))

    def _list(self, path: str, query: dict[str, str], fault: Fault | None) -> None:
        if isinstance(fault, Silent):
            self._hang()
            return
        with self.fake.changed:
            version = str(self.fake.version)
            found = [b for b in self.fake.collection(path).objects.values() if selected(b, query)]
        offset = 0
        if "continue" in query:
            version, _, start = query["continue"].partition(":")
            offset = int(start)
        limit = int(query.get("limit", "0")) or len(found)
        more = f"{version}:{offset + limit}" if offset + limit < len(found) else ""
        metadata = json.dumps({"resourceVersion": version, "continue": more}).encode()
        items = b",".join(found[offset : offset + limit])
        body = b'{"kind":"List","metadata":%b,"items":[%b]}\n' % (metadata, items)
        if isinstance(fault, Slow):
            self._answer_slowly(body, fault)
            return
        self._answer(200, body)

    def _answer_slowly(self, body: bytes, fault: Slow) -> None:
        self._chunked()
        step = len(body) // fault.pieces + 1
        for start in range(0, len(body), step):
            time.sleep(fault.pause)
            self._chunk(body[start : start + step])
        self.wfile.write(b"0\r\n\r\n")

    def _watch(self, path: str, query: dict[str, str], fault: Fault | None) -> None:
        collection = self.fake.collection(path)
        since = int(query["resourceVersion"] or 0)
        if since < collection.oldest:
            if not self.fake.expired_as_event:
                self._refuse(Refuse("watch", 410, "Expired"))
                return
            fault = ErrorEvent(410, "Expired")
        self._chunked()
        if isinstance(fault, Silent):
            self._hang()
        elif isinstance(fault, ErrorEvent):
            details = {"retryAfterSeconds": fault.retry_after}
            error = json.dumps(status_of(fault.status, fault.reason, details)).encode()
            self._chunk(line("ERROR", error))
            self.wfile.write(b"0\r\n\r\n")
        elif isinstance(fault, Short):
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._send_events(collection, since, query, fault)

    def _send_events(
        self, collection: Collection, since: int, query: dict[str, str], fault: Fault | None
    ) -> None:
        fake = self.fake
        number = fake.watch_number
        ends = time.monotonic() + int(query.get("timeoutSeconds", "600"))
        while fake.running and number == fake.watch_number and time.monotonic() < ends:
            with fake.changed:
                if since >= fake.version or not collection.log or collection.log[-1][0] <= since:
                    fake.changed.wait(0.5)
                new = [one for one in collection.log if one[0] > since]
            since = new[-1][0] if new else since
            lines = [
                line(kind, body)
                for _, kind, body in new
                if kind == "BOOKMARK" or selected(body, query)
            ]
            if isinstance(fault, Cut) and lines:
                self._chunk(lines[0][: len(lines[0]) // 2])
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            times = 2 if isinstance(fault, Twice) else 1
            self._chunks([one for one in lines for _ in range(times)])
        self.wfile.write(b"0\r\n\r\n")

    def _hang(self) -> None:
        with self.fake.changed:
            while self.fake.running and self.connection in self.fake.open and not self._gone():
                self.fake.changed.wait(0.05)
        self.close_connection = True

    def _gone(self) -> bool:
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _chunked(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self._chunks([data])

    def _chunks(self, pieces: list[bytes]) -> None:
        """Each event is a chunk of its own, as the real server sends them."""
        self.wfile.write(b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces))


def line(kind: str, body: bytes) -> bytes:
    """One event of a watch."""
    return b'{"type":"%b","object":%b}\n' % (kind.encode(), body)


def status_of(code: int, reason: str, details: dict) -> dict:
    """metav1.Status."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": f"scripted {reason}",
        "details": details,
    }


def selected(body: bytes, query: dict[str, str]) -> bool:
    """Whether an object is of the node, and has the labels, that were asked for."""
    fields, labels = query.get("fieldSelector", ""), query.get("labelSelector", "")
    if not fields and not labels:
        return True
    node, has = facts(body)
    wanted = [pair.partition("=")[::2] for pair in labels.split(",") if pair]
    asked, _, name = fields.rpartition("=")
    here = not fields or (name != node if asked.endswith("!") else name == node)
    return here and all(has.get(k) == v for k, v in wanted)


@functools.lru_cache(maxsize=20_000)
def facts(body: bytes) -> tuple[str, dict[str, str]]:
    """An object's node and labels. Remembered: a real server does not parse for each request."""
    thing = json.loads(body)
    return thing.get("spec", {}).get("nodeName", ""), thing["metadata"].get("labels", {})
