# SPDX-License-Identifier: Apache-2.0
"""What runs on each node of a cluster: rows with the names of pods, for whoever listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Protocol
from typing import Self

import numpy as np
import numpy.typing as npt

from podscope import wire
from podscope.batch import Batch
from podscope.batch import Identity
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.identity.cgroup_paths import CgroupPaths
from podscope.identity.host import HostIdentities
from podscope.identity.kubernetes import Cluster
from podscope.identity.kubernetes import Jobs
from podscope.identity.kubernetes import follow
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.kubernetes_objects import KubernetesObject
from podscope.identity.kubernetes_objects import Pod
from podscope.identity.peers import Peers
from podscope.identity.pods import PodIdentities
from podscope.kernel.probes import find_cgroup2
from podscope.pipeline import KINDS
from podscope.pipeline import Identities
from podscope.pipeline import Watch
from podscope.pipeline import open_feeds
from podscope.scope import Has
from podscope.sources.cgroups import CgroupSource
from podscope.sources.http import HttpOptions
from podscope.sources.http import HttpSource
from podscope.sources.http import check_rights
from podscope.sources.source import Source
from podscope.streams import Asked
from podscope.streams import Streams

# Rows of a pod that the API server has not told of wait so long for its name.
NAME_SECONDS = 30.0
FIRST_SECONDS = 0.2
# Where nothing has changed, their names are asked for again after this time.
AGAIN_SECONDS = 4.0


class Known:
    """What the API server tells of a node's pods and of their peers. Close it at the end."""

    def __init__(self, server: ApiServer, node: str) -> None:
        self.node = node
        self._jobs = Jobs(server)
        self.cluster = Cluster(self._jobs.find)
        self.followers = follow(self.cluster, server, node=node)

    def close(self) -> None:
        """Ends all that it follows."""
        self.followers.close()
        self._jobs.close()


class NodeIdentities:
    """Names of what runs on a node: follows its cgroups and the API server. Close it at the end.

    Args:
        known: what the API server tells; closed with this.
        source: the programs whose rows are to be named.

    Raises:
        PodscopeError: no cgroup v2, or no rights.
    """

    def __init__(self, known: Known, source: HttpSource) -> None:
        root, node = find_cgroup2(), known.node
        # Sources of their own ask from threads of their own.
        self.lock = threading.Lock()
        self._root, self._name = root, node
        # Events before the walk: what is made meanwhile is in both.
        self._cgroups = CgroupSource()
        self._paths = CgroupPaths(root)
        self._known = known
        self._cluster, self._followers = known.cluster, known.followers
        # Called, from other threads, when something asks to be left alone, or no more.
        self.on_ignore: Callable[[], None] = lambda: None
        for one in (self._followers.pods, self._followers.namespaces, self._followers.nodes):
            one.on_change(self._ignore_changed)
        host = HostIdentities(root, source.executable)
        self._pods = PodIdentities(
            self._paths, self._cluster, node, source.executable, host.identity
        )
        self._peers = Peers(self._cluster, node)
        # With what was known of pods and cgroups, and what is not to be watched by that.
        self._ignored: tuple[tuple[int, int], frozenset[int]] = ((-1, -1), frozenset())

    def resolve(
        self,
        cgroup_ids: npt.NDArray[np.uint64],
        pids: npt.NDArray[np.uint32],
        owners: npt.NDArray[np.uint32],
    ) -> tuple[npt.NDArray[np.uint32], tuple[Identity, ...]]:
        """For each row the position of its identity, shape (n,), and the identities."""
        with self.lock:
            self._paths.take(self._cgroups.read())
            return self._pods.resolve(cgroup_ids, pids, owners)

    @property
    def version(self) -> object:
        """Another value when more may be known."""
        cluster = self._cluster
        return cluster.version, cluster.addresses_version, self._paths.changes

    def of_source(self, source: Source) -> PodIdentities:
        """Names for the rows of another source; hold the lock while they are asked for."""
        host = HostIdentities(self._root, source.executable, source.cgroup_path)
        return PodIdentities(
            self._paths, self._cluster, self._name, source.executable, host.identity
        )

    def _ignore_changed(self, old: KubernetesObject | None, new: KubernetesObject | None) -> None:
        before = old is not None and old.metadata.annotations.say_ignore
        after = new is not None and new.metadata.annotations.say_ignore
        if before != after:
            self.on_ignore()

    def ignored(self) -> frozenset[int]:
        """Cgroups that are not to be watched."""
        with self.lock:
            now = (self._cluster.version, self._paths.changes)
            if now != self._ignored[0]:
                self._ignored = (now, self._pods.ignored())
            return self._ignored[1]

    def watched(self, batch: Batch) -> Batch:
        """The batch without what is not to be watched: a new pod may have spoken already."""
        asked = [not self._pods.ignores(identity) for identity in batch.identities]
        return batch.where(np.array([*asked, True])[batch.identity])

    def with_peers(self, batch: Batch) -> Batch:
        """The batch with who is at the other end of each row."""
        return self._peers.told(batch)

    def new_peers(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Which rows' peers nobody knows, but the cluster may tell of soon; shape (n,)."""
        return self._peers.awaited(batch)

    @property
    def addresses_version(self) -> int:
        """Another number when ``peer_addresses`` may have changed."""
        return self._cluster.addresses_version

    def peer_addresses(self) -> frozenset[bytes]:
        """Every address that has a name."""
        return self._cluster.addresses()

    def outside(self, scopes: Sequence[Has]) -> frozenset[int]:
        """Cgroups that are in none of some scopes, for sure."""
        with self.lock:
            return self._pods.outside(lambda one, pod: any(has(one, pod) for has in scopes))

    def pod(self, uid: str) -> Pod | None:
        """A pod by its uid."""
        return self._cluster.pod(uid)

    def wait(self, seconds: float) -> bool:
        """Whether the cluster's objects were known before the time was over."""
        return self._followers.wait(seconds)

    @property
    def synced(self) -> bool:
        """Whether the first lists of the cluster's objects have come, and changes may come."""
        return all(one.synced.is_set() and not one.state.refused for one in self._followers.all)

    @property
    def states(self) -> dict[str, str]:
        """What is wrong with each list of objects now; empty where nothing is."""
        names = ("pods", "services", "slices", "namespaces", "nodes", "peer_pods")
        states = {name: getattr(self._followers, name).state for name in names}
        return {name: "" if one.synced else one.last_error for name, one in states.items()}

    def close(self) -> None:
        """Ends all that it follows."""
        self._known.close()
        self._cgroups.close()


class OfSource:
    """The same names, for the rows of one source. Used from one thread."""

    def __init__(self, node: NodeIdentities, source: Source) -> None:
        self._node = node
        self._pods = node.of_source(source)

    def resolve(
        self,
        cgroup_ids: npt.NDArray[np.uint64],
        pids: npt.NDArray[np.uint32],
        owners: npt.NDArray[np.uint32],
    ) -> tuple[npt.NDArray[np.uint32], tuple[Identity, ...]]:
        """For each row the position of its identity, shape (n,), and the identities."""
        with self._node.lock:
            return self._pods.resolve(cgroup_ids, pids, owners)

    @property
    def version(self) -> object:
        """As of `NodeIdentities`."""
        return self._node.version

    def new_peers(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """As of `NodeIdentities`."""
        return self._node.new_peers(batch)


class Names(Identities, Protocol):
    """Names for the rows of one source, some of which come late."""

    @property
    def version(self) -> object:
        """Another value when more may be known."""

    def new_peers(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Which rows' peers nobody knows, but the cluster may tell of soon; shape (n,)."""


class Named:
    """Batches whose rows have names: those of pods not told of yet wait for a later batch.

    A row is never given a wrong name; after NAME_SECONDS it goes on with the pod's uid alone.
    """

    def __init__(self, identities: Names) -> None:
        self._identities = identities
        self._held: dict[str, list[Batch]] = {}
        # By kind: with what knowledge, and when, names were asked for last.
        self._asked: dict[str, tuple[object, int]] = {}

    def taken(self, batch: Batch) -> Iterator[Batch]:
        """What `take` gives, and requests that have got their names meanwhile."""
        yield self.take(batch)
        # Requests come when there are some: those that wait are looked at each interval too.
        if batch.kind == "http" and (ready := self._ready("request", batch.time_ns)):
            yield wire.together(ready)

    def rest(self) -> Iterator[Batch]:
        """At the end: rows that still wait, with what is known now, if only the pod's uid."""
        held, self._held = self._held, {}
        for batches in held.values():
            yield replace(wire.together([self._named(one) for one in batches]), lost={})

    def take(self, batch: Batch) -> Batch:
        """Rows of the batch that have names, and of those before that have got theirs."""
        whole = wire.together([*self._ready(batch.kind, batch.time_ns), *self._split(batch)])
        lost, interval = batch.lost, batch.interval
        return replace(whole, time_ns=batch.time_ns, interval=interval, lost=lost)

    def _ready(self, kind: str, now_ns: int) -> list[Batch]:
        """Rows that waited, and need no more."""
        due = now_ns - round(NAME_SECONDS * 1e9)
        news = self._has_news(kind, now_ns)
        ready: list[Batch] = []
        for held in self._held.pop(kind, ()):
            if held.time_ns < due:
                ready.append(self._named(held))
            elif news:
                ready += self._split(self._named(held))
            else:
                self._held.setdefault(kind, []).append(held)
        return [batch for batch in ready if len(batch)]

    def _has_news(self, kind: str, now_ns: int) -> bool:
        """Whether to ask again for names: something has changed, or some time has passed."""
        version, at_ns = self._asked.get(kind, (None, 0))
        now = self._identities.version
        if now == version and now_ns - at_ns < AGAIN_SECONDS * 1e9:
            return False
        self._asked[kind] = (now, now_ns)
        return True

    def _split(self, batch: Batch) -> list[Batch]:
        """The rows that have names; the others wait."""
        nameless = np.array([_waits(one) for one in batch.identities] + [False])[batch.identity]
        nameless |= self._identities.new_peers(batch)
        if not nameless.any():
            return [batch]
        self._held.setdefault(batch.kind, []).append(batch.where(nameless))
        return [batch.where(~nameless)]

    def _named(self, held: Batch) -> Batch:
        keys = held.keys
        index, identities = self._identities.resolve(keys["cgroup_id"], keys["pid"], keys["owner"])
        return replace(held, identity=index, identities=identities)


def with_names(batches: Iterable[Batch], names: Mapping[str, Named]) -> Iterator[Batch]:
    """The same rows, in other batches; what still waits at the end comes then.

    Args:
        names: by kind of rows.
    """
    for batch in batches:
        yield from names[batch.kind].taken(batch)
    for named in dict.fromkeys(names.values()):
        yield from named.rest()


def _waits(identity: Identity) -> bool:
    """Whether the API server will tell more: of a new pod, or of one of its containers."""
    if not identity.pod_uid:
        return identity.kind == "unknown"
    return not identity.pod or (bool(identity.container_id) and not identity.container)


class Agent:
    """A watch of this node, with names. Use it in a ``with``, and iterate over it.

    Args:
        server: the API server.
        node: this node's name.
        streams: who listens; gets every batch.
        interval: seconds between two batches of a kind that is counted.
        kinds: of other sources, whose rows come all the time, after the first of HTTP.
        tell: called with ``refused`` when the other sources have started.

    Attributes:
        refused: why a source of these does not run, by name; the others go on.
        is_whole: whether the other sources have started.

    Raises:
        PodscopeError: no rights, or a host that cannot run the programs.
    """

    def __init__(
        self,
        server: ApiServer,
        node: str,
        streams: Streams,
        interval: float = 1.0,
        kinds: Sequence[str] = (),
        *,
        tell: Callable[[Mapping[str, PodscopeError]], None] = lambda _: None,
    ) -> None:
        check_rights()
        # What takes long first: the API server answers while the kernel looks at the programs.
        known = Known(server, node)
        try:
            source = HttpSource(HttpOptions(known_peers=True, log_later=True))
        except BaseException:
            known.close()
            raise
        try:
            self.identities = NodeIdentities(known, source)
        except BaseException:
            known.close()
            source.close()
            raise
        self._source = source
        self._kinds = tuple(kinds)
        self._tell = tell
        self.is_whole = False
        self._names = dict.fromkeys(KINDS, Named(self.identities))
        self._watch = Watch(source, KINDS, interval, self.identities)
        self.refused = self._watch.refused
        self._others: set[Watch] = set()
        self._streams = streams
        self._log_lock = threading.Lock()
        self._ignore_lock = threading.Lock()
        self._addresses_version = -1
        self.lost = self._watch.lost
        self.cost = self._watch.cost
        self.sources = self._watch.sources
        self.stop = self._watch.stop

    def __enter__(self) -> Self:
        self._streams.find_pod = self.identities.pod
        self.identities.on_ignore = self._ignore
        self._streams.on_change = self._log_changed
        self._streams.watch_events = self.events
        return self

    def __exit__(self, *_: object) -> None:
        self.identities.on_ignore = lambda: None
        self._streams.on_change = lambda: None
        for watch in list(self._others):
            watch.stop()
        self._streams.close()
        self._watch.close()
        self.identities.close()

    @property
    def interval(self) -> float:
        """Seconds between two batches; a change holds from the next batch on."""
        return self._watch.interval

    @interval.setter
    def interval(self, seconds: float) -> None:
        self._watch.interval = seconds

    def __iter__(self) -> Iterator[Batch]:
        for batch in with_names(chain(self._first(), self._rest()), self._names):
            if batch.kind == "http":
                self._ignore()
                self._know_peers()
                self._narrow_log()
            told = self.identities.with_peers(self.identities.watched(batch))
            self._streams.publish(told, self._no_requests(told) if told.kind == "http" else None)
            yield told

    def events(self, asked: Asked) -> Iterator[Batch]:
        """Rows of other sources, whose programs run from the first batch to the last.

        Raises:
            UsageError: there is no such kind, or option.
            PodscopeError: this node can run none of the sources.
        """
        names: dict[str, Named] = {}
        feeds, refused = open_feeds(asked.kinds, asked.sources, identities=self._naming(names))
        if not feeds:
            raise next(iter(refused.values()), UsageError(f"no source gives {asked.kinds}"))
        with Watch(None, asked.kinds, asked.interval, feeds=feeds) as watch:
            self._others.add(watch)
            try:
                for batch in with_names(watch, names):
                    yield self.identities.with_peers(self.identities.watched(batch))
            finally:
                self._others.discard(watch)

    def _naming(self, names: dict[str, Named]) -> Callable[[Source], OfSource]:
        """Names for the rows of each source that is started, which it adds by kind."""

        def named(source: Source) -> OfSource:
            found = OfSource(self.identities, source)
            names.update(dict.fromkeys(source.fields, Named(found)))
            return found

        return named

    def _first(self) -> Iterator[Batch]:
        """A look soon after the start: nobody wants to wait for a whole interval."""
        time.sleep(FIRST_SECONDS)
        yield from self._watch.read()

    def _rest(self) -> Iterator[Batch]:
        """All that comes then, of other sources too: HTTP's rows do not wait for their start."""
        self._watch.also(self._kinds, identities=self._naming(self._names))
        self.is_whole = True
        self._tell(self.refused)
        yield from self._watch

    def _ignore(self) -> None:
        with self._ignore_lock:
            self._source.ignore(self.identities.ignored())

    def _know_peers(self) -> None:
        """Tells the kernel of addresses that have names, where that has changed."""
        version = self.identities.addresses_version
        if version != self._addresses_version:
            self._source.know_peers(self.identities.peer_addresses())
            self._addresses_version = version

    def _no_requests(self, batch: Batch) -> Batch:
        rows = np.zeros(0, self._source.request_dtype)
        nobody = np.zeros(0, np.uint32)
        return Batch("request", rows, nobody, (), batch.time_ns, 0.0, lost=batch.lost)

    def _log_changed(self) -> None:
        """Somebody came or went: at once all that is asked for, of every pod."""
        with self._log_lock:
            log, _ = self._streams.wanted_log()
            self._source.set_log(log)

    def _narrow_log(self) -> None:
        """Leaves out pods that nobody asked for; those of which nothing is known stay in."""
        with self._log_lock:
            log, scopes = self._streams.wanted_log()
            but = frozenset() if log is None else self.identities.outside(scopes)
            self._source.set_log(log, but)
