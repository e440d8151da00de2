# SPDX-License-Identifier: Apache-2.0
"""A copy of one sort of Kubernetes objects that follows the API server.

It lists once and then watches, with the semantics of client-go's Reflector: it goes on from the
last version that it has seen, and lists again only when the server has forgotten that version.
What was deleted meanwhile is found by comparing, and told. While the server is away the copy stays
as it was.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Generic
from typing import TypeVar

import msgspec

from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_client import Connection
from podscope.identity.kubernetes_client import KubernetesError
from podscope.identity.kubernetes_client import refusal
from podscope.identity.kubernetes_objects import EndpointSlice
from podscope.identity.kubernetes_objects import KubernetesObject
from podscope.identity.kubernetes_objects import Namespace
from podscope.identity.kubernetes_objects import Node
from podscope.identity.kubernetes_objects import Page
from podscope.identity.kubernetes_objects import PeerPod
from podscope.identity.kubernetes_objects import Pod
from podscope.identity.kubernetes_objects import Service
from podscope.identity.kubernetes_objects import Status
from podscope.identity.kubernetes_objects import WatchEvent

T = TypeVar("T", bound=KubernetesObject)
# Old and new state of one object: None before it was there, and after it has gone.
Change = Callable[[T | None, T | None], None]
# "Any version that you have": answered from the API server's memory, and not by etcd.
ANY_VERSION = "0"
GONE = 410
TOO_MANY = 429


@dataclass(frozen=True)
class Resource(Generic[T]):
    """A sort of objects: its API group and version as in URLs, its plural, and its structure."""

    api: str
    plural: str
    structure: type[T]

    def path(self, namespace: str = "") -> str:
        """Without host; an empty namespace for those of all, and for what has none."""
        return f"{self.api}/namespaces/{namespace}/{self.plural}".replace("/namespaces//", "/")


PODS = Resource("api/v1", "pods", Pod)
PEER_PODS = Resource("api/v1", "pods", PeerPod)
SERVICES = Resource("api/v1", "services", Service)
NAMESPACES = Resource("api/v1", "namespaces", Namespace)
NODES = Resource("api/v1", "nodes", Node)
ENDPOINT_SLICES = Resource("apis/discovery.k8s.io/v1", "endpointslices", EndpointSlice)


@dataclass(frozen=True)
class Timing:
    """Seconds.

    Attributes:
        backoff: least and most between a failure and the next try.
        watch: least and most that one watch lasts; random, so that agents do not come together.
        short_watch: one that ends earlier is followed by a pause, as after a failure.
        list_silence: without a byte of a page, then the connection counts as dead.
        watch_slack: how much longer than it was to last a watch may be silent. It can't be less:
            where etcd does not tell its progress, nothing comes for sorts that do not change. A
            host that is gone is noticed in a minute, by TCP's keep-alive.
        sign_of_life: after a watch that lasted so long without an event or bookmark it is asked
            whether the server has our version at all (see `Reflector`).
        connect: for a connection to come about.
    """

    backoff: tuple[float, float] = (0.8, 30.0)
    watch: tuple[int, int] = (300, 600)
    short_watch: float = 1.0
    list_silence: float = 65.0
    watch_slack: float = 30.0
    sign_of_life: float = 120.0
    connect: float = 10.0

    def pause(self, failures: int, retry_after: float = 0.0) -> float:
        """How long to wait after so many failures in a row, at random between half and all of it.

        A server that says when to come is never asked earlier.
        """
        least, most = self.backoff
        longest = min(most, least * 2.0 ** min(failures, 30))
        drawn = random.uniform(max(least, longest / 2), longest)
        return max(drawn, retry_after + random.uniform(0, least) if retry_after else 0.0)


@dataclass(frozen=True)
class State:
    """How well the copy follows.

    Attributes:
        synced: the list is whole and the last request did not fail.
        since: Unix time from which on ``synced`` has had its value.
        last_error: one line; it stays when all is well again. Empty if nothing ever failed.
        restarts: failures after which the reflector began again.
        resource_version: up to which version of the server the copy is.
        refused: the last request failed for lack of rights: it will go on so.
    """

    synced: bool
    since: float
    last_error: str
    restarts: int
    resource_version: str
    refused: bool = False


class _Expired(Exception):
    """The server has forgotten the version that was asked for."""


class _EndedEarly(Exception):
    """A watch that ended so soon that asking again at once would be a storm."""


class Reflector(Generic[T]):
    """Follows the objects of one sort in a thread of its own, from ``start`` to ``close``.

    A server whose data was restored from a backup accepts a version from its future and is silent
    until it gets there. client-go waits with it; here a silent watch is followed by a question.

    Args:
        server: where to ask.
        resource: what to ask for.
        namespace: only objects of this one; empty for all.
        field_selector: as ``spec.nodeName=node-1``.
        label_selector: as ``app=web``.

    Attributes:
        synced: set for good when the first list is whole.
    """

    def __init__(
        self,
        server: ApiServer,
        resource: Resource[T],
        *,
        namespace: str = "",
        field_selector: str = "",
        label_selector: str = "",
        page_size: int = 500,
        timing: Timing | None = None,
    ) -> None:
        self.synced = threading.Event()
        self._timing = timing or Timing()
        self._connection = Connection(server, self._timing.connect)
        self._path = resource.path(namespace)
        selectors = {"fieldSelector": field_selector, "labelSelector": label_selector}
        self._selectors = {name: value for name, value in selectors.items() if value}
        self._page_size = page_size
        self._page = msgspec.json.Decoder(Page[resource.structure])  # type: ignore[name-defined]
        self._event = msgspec.json.Decoder(WatchEvent)
        self._object = msgspec.json.Decoder(resource.structure)
        self._objects: dict[str, T] = {}
        self._callbacks: tuple[Change[T], ...] = ()
        # Held while callbacks run, which may read the store.
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._list_version = ANY_VERSION
        self._version = ""
        self._heard = False
        self._was_silent = False
        self._failures = 0
        self._restarts = 0
        self._last_error = ""
        self._refused = False
        self._contact = (False, time.time())
        self._thread = threading.Thread(
            target=self._run, name=f"podscope-{resource.plural}", daemon=True
        )

    @property
    def store(self) -> dict[str, T]:
        """All objects by uid, as they are now."""
        with self._lock:
            return dict(self._objects)

    @property
    def state(self) -> State:
        """How well the copy follows."""
        synced, since = self._contact
        return State(synced, since, self._last_error, self._restarts, self._version, self._refused)

    def on_change(self, callback: Change[T]) -> None:
        """Calls ``callback(old, new)`` for every object that is there, and for every change.

        It is called by the reflector's thread, one change at a time, and must not wait.
        """
        with self._lock:
            self._callbacks = (*self._callbacks, callback)
            for found in self._objects.values():
                callback(None, found)

    def start(self) -> Reflector[T]:
        """Begins. Call it once."""
        if not self._stop.is_set():
            self._thread.start()
        return self

    def close(self) -> None:
        """Ends at once, also in the middle of a request."""
        self._stop.set()
        self._connection.close()
        if self._thread.ident is None:
            self._connection.release()
        # A connection that is coming about can't be cut: the thread ends when it has, alone.
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def __enter__(self) -> Reflector[T]:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            self._stop.wait(self._turn())
        self._connection.release()

    def _turn(self) -> float:
        """One list or watch. Returns the seconds to wait before the next one."""
        try:
            if self._version:
                self._watch()
            else:
                self._list()
            return 0.0
        except _EndedEarly:
            self._failures += 1
            return self._timing.pause(self._failures)
        except _Expired as error:
            self._version = ""
            # A server whose memory lags would give back what it has just refused: ask etcd.
            self._list_version = ""
            return self._failed(str(error))
        except KubernetesError as error:
            self._refused = error.status in (401, 403)
            return self._failed(str(error), error.retry_after)
        # A thread that ended without a word would leave a copy that nobody knows to be old.
        except Exception as error:
            return self._failed(f"{type(error).__name__}: {error}")

    def _failed(self, error: str, retry_after: float = 0.0) -> float:
        if self._stop.is_set():
            return 0.0
        self._failures += 1
        self._restarts += 1
        self._last_error = error
        self._in_contact(False)
        return self._timing.pause(self._failures, retry_after)

    def _in_contact(self, value: bool) -> None:
        self._refused &= not value
        if self._contact[0] != value:
            self._contact = (value, time.time())

    # --- list -------------------------------------------------------------------------------

    def _list(self) -> None:
        seen: set[str] = set()
        try:
            version = self._pages(seen)
        except _Expired:
            if not seen:
                raise
            # The token of a later page is too old: one list in one piece has no tokens.
            seen.clear()
            version = self._take(self._get({"resourceVersion": self._list_version}), seen)[0]
        with self._lock:
            gone = [uid for uid in self._objects if uid not in seen]
        for uid in gone:
            self._remove(uid)
        self._version = version
        self._list_version = ""
        self._was_silent = False
        self._in_contact(True)
        self.synced.set()

    def _pages(self, seen: set[str]) -> str:
        """Takes page after page. Returns the version of the list."""
        query: dict[str, str | int] = {"resourceVersion": self._list_version}
        while True:
            version, token = self._take(self._get({"limit": self._page_size, **query}), seen)
            if not token:
                return version
            # With a token no version may be named: the token knows it.
            query = {"continue": token}

    def _get(self, query: Mapping[str, str | int]) -> bytearray:
        asked = {name: value for name, value in {**self._selectors, **query}.items() if value != ""}
        try:
            return self._connection.get(self._path, asked, self._timing.list_silence)
        except KubernetesError as error:
            _raise_if_expired(error)
            raise

    def _take(self, body: bytearray, seen: set[str]) -> tuple[str, str]:
        """Puts a page's objects into the store. Returns its version and the next page's token."""
        page = self._page.decode(body)
        for found in page.items or ():
            seen.add(found.metadata.uid)
            self._put(found)
        return page.metadata.resource_version, page.metadata.continue_

    # --- watch ------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._was_silent:
            self._raise_if_ahead()
        seconds = random.randint(*self._timing.watch)
        query: dict[str, str | int] = {
            **self._selectors,
            "watch": 1,
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": seconds,
        }
        began = time.monotonic()
        self._heard = False
        try:
            silence = seconds + self._timing.watch_slack
            with self._connection.stream(self._path, query, silence) as pieces:
                self._in_contact(True)
                for line in _lines(pieces):
                    self._take_event(line)
        except KubernetesError as error:
            _raise_if_expired(error)
            raise
        finally:
            lasted = time.monotonic() - began
            if lasted >= self._timing.short_watch:
                self._failures = 0
            self._was_silent = not self._heard and lasted >= self._timing.sign_of_life
        if lasted < self._timing.short_watch:
            raise _EndedEarly

    def _raise_if_ahead(self) -> None:
        # Versions are numbers that grow (KEP-5504 says so; they always were).
        there = self._page.decode(self._get({"limit": 1})).metadata.resource_version
        if int(there) < int(self._version):
            raise _Expired(f"the server is at version {there}, and was at {self._version} before")

    def _take_event(self, line: bytes) -> None:
        event = self._event.decode(line)
        if event.type == "ERROR":
            status = msgspec.json.decode(event.object, type=Status)
            raise refusal(status, "watch", status.code)
        found = self._object.decode(event.object)
        if event.type == "DELETED":
            self._remove(found.metadata.uid)
        elif event.type in ("ADDED", "MODIFIED"):
            self._put(found)
        self._version = found.metadata.resource_version
        self._heard = True
        self._failures = 0

    # --- the store --------------------------------------------------------------------------

    def _put(self, new: T) -> None:
        uid = new.metadata.uid
        with self._lock:
            old = self._objects.get(uid)
            if old is not None and old.metadata.resource_version == new.metadata.resource_version:
                return
            self._objects[uid] = new
            self._tell(old, new)

    def _remove(self, uid: str) -> None:
        with self._lock:
            old = self._objects.pop(uid, None)
            if old is not None:
                self._tell(old, None)

    def _tell(self, old: T | None, new: T | None) -> None:
        for callback in self._callbacks:
            try:
                callback(old, new)
            # One listener's mistake must not keep the change from the others, or end the thread.
            except Exception as error:
                self._last_error = f"a listener failed: {type(error).__name__}: {error}"


def _raise_if_expired(error: KubernetesError) -> None:
    # 410 is Expired or Gone. A version from the future is one of a server whose data was restored.
    if error.status == GONE or error.reason == "Expired" or error.too_new:
        raise _Expired(str(error)) from None


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines. What a cut connection leaves of the last one is dropped."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from filter(None, whole)
