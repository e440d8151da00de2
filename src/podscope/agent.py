# SPDX-License-Identifier: Apache-2.0
"""What runs on each node of a cluster: rows with the names of pods, for whoever listens."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import replace
from typing import Self

import numpy as np
import numpy.typing as npt

from podscope import wire
from podscope.batch import Batch
from podscope.batch import Identity
from podscope.identity.cgroup_paths import CgroupPaths
from podscope.identity.host import HostIdentities
from podscope.identity.kubernetes import Cluster
from podscope.identity.kubernetes import Jobs
from podscope.identity.kubernetes import follow
from podscope.identity.kubernetes_client import ApiServer
from podscope.identity.pods import PodIdentities
from podscope.kernel.probes import find_cgroup2
from podscope.pipeline import Watch
from podscope.sources.cgroups import CgroupSource
from podscope.sources.http import HttpOptions
from podscope.sources.http import HttpSource

# Batches that a listener may be behind before it loses some.
QUEUE = 30
# A listener hears this often at least.
SILENCE_SECONDS = 10.0
# Rows of a pod that the API server has not told of wait so long for its name.
NAME_SECONDS = 30.0


class NodeIdentities:
    """Names of what runs on a node: follows its cgroups and the API server. Close it at the end.

    Args:
        server: the API server.
        node: this node's name.
        source: the programs whose rows are to be named.

    Raises:
        PodscopeError: no cgroup v2, or no rights.
    """

    def __init__(self, server: ApiServer, node: str, source: HttpSource) -> None:
        root = find_cgroup2()
        # Events before the walk: what is made meanwhile is in both.
        self._cgroups = CgroupSource()
        self._paths = CgroupPaths(root)
        self._jobs = Jobs(server)
        self._cluster = Cluster(self._jobs.find)
        self._followers = follow(self._cluster, server, node=node)
        host = HostIdentities(root, source.executable)
        self._pods = PodIdentities(
            self._paths, self._cluster, node, source.executable, host.identity
        )

    def resolve(
        self,
        cgroup_ids: npt.NDArray[np.uint64],
        pids: npt.NDArray[np.uint32],
        owners: npt.NDArray[np.uint32],
    ) -> tuple[npt.NDArray[np.uint32], tuple[Identity, ...]]:
        """For each row the position of its identity, shape (n,), and the identities."""
        self._paths.take(self._cgroups.read())
        return self._pods.resolve(cgroup_ids, pids, owners)

    def ignored(self) -> frozenset[int]:
        """Cgroups that are not to be watched."""
        return self._pods.ignored()

    def watched(self, batch: Batch) -> Batch:
        """The batch without what is not to be watched: a new pod may have spoken already."""
        asked = [not self._pods.ignores(identity) for identity in batch.identities]
        return _rows(batch, np.array([*asked, True])[batch.identity])

    def wait(self, seconds: float) -> bool:
        """Whether the cluster's objects were known before the time was over."""
        return self._followers.wait(seconds)

    @property
    def synced(self) -> bool:
        """Whether the first lists of the cluster's objects have come."""
        return all(one.synced.is_set() for one in self._followers.all)

    @property
    def states(self) -> dict[str, str]:
        """What is wrong with each list of objects now; empty where nothing is."""
        return {
            name: getattr(self._followers, name).state.last_error
            for name in ("pods", "services", "slices", "namespaces", "nodes")
        }

    def close(self) -> None:
        """Ends all that it follows."""
        self._followers.close()
        self._jobs.close()
        self._cgroups.close()


class Named:
    """Batches whose rows have names: those of pods not told of yet wait for the next batch.

    A row is never given a wrong name; after NAME_SECONDS it goes on with the pod's uid alone.
    """

    def __init__(self, identities: NodeIdentities) -> None:
        self._identities = identities
        self._held: list[Batch] = []

    def follow(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same rows, in other batches."""
        for batch in batches:
            yield self._with_held(batch)

    def _with_held(self, batch: Batch) -> Batch:
        due = batch.time_ns - round(NAME_SECONDS * 1e9)
        ready, waiting = [], []
        for held in [*map(self._named, self._held), batch]:
            if held.time_ns < due:
                ready.append(held)
                continue
            nameless = np.array([_waits(one) for one in held.identities] + [False])[held.identity]
            ready.append(_rows(held, ~nameless))
            waiting.append(_rows(held, nameless))
        self._held = [held for held in waiting if len(held)]
        whole = wire.together(ready)
        return replace(whole, time_ns=batch.time_ns, interval=batch.interval, lost=batch.lost)

    def _named(self, held: Batch) -> Batch:
        keys = held.rows["key"]
        index, identities = self._identities.resolve(keys["cgroup_id"], keys["pid"], keys["owner"])
        return replace(held, identity=index, identities=identities)


def _waits(identity: Identity) -> bool:
    return (bool(identity.pod_uid) and not identity.pod) or identity.kind == "unknown"


def _rows(batch: Batch, mask: npt.NDArray[np.bool_]) -> Batch:
    return replace(batch, rows=batch.rows[mask], identity=batch.identity[mask])


class Streams:
    """Sends batches to all who listen, each at its own pace."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: set[queue.Queue[Batch]] = set()

    def publish(self, batch: Batch) -> None:
        """Gives a batch to everyone; who is too far behind loses it, and is told by the reason."""
        with self._lock:
            listeners = list(self._listeners)
        for one in listeners:
            try:
                one.put_nowait(batch)
            except queue.Full:
                self._skip(one, batch)

    def _skip(self, listener: queue.Queue[Batch], batch: Batch) -> None:
        """Makes room by dropping the oldest, whose exchanges count as lost."""
        try:
            oldest = listener.get_nowait()
        except queue.Empty:
            return
        lost = {"slow_reader": int(oldest.rows["count"].sum())}
        for reason, count in (*oldest.lost.items(), *batch.lost.items()):
            lost[reason] = lost.get(reason, 0) + count
        listener.put_nowait(replace(batch, lost=lost))

    def listen(self) -> Iterator[bytes]:
        """Frames of the batches that are published from now on."""
        mine: queue.Queue[Batch] = queue.Queue(QUEUE)
        with self._lock:
            self._listeners.add(mine)
        try:
            while True:
                yield wire.packed(mine.get())
        finally:
            with self._lock:
                self._listeners.discard(mine)


class Agent:
    """A watch of this node, with names. Use it in a ``with``, and iterate over it.

    Args:
        server: the API server.
        node: this node's name.
        interval: seconds between two batches.

    Raises:
        PodscopeError: no rights, or a host that cannot run the programs.
    """

    def __init__(self, server: ApiServer, node: str, interval: float = 1.0) -> None:
        source = HttpSource(HttpOptions(peers=False))
        try:
            self.identities = NodeIdentities(server, node, source)
        except BaseException:
            source.close()
            raise
        self._source = source
        self._watch = Watch(source, ("http",), interval, self.identities)
        self.lost = self._watch.lost
        self.cost = self._watch.cost
        self.stop = self._watch.stop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
        for batch in Named(self.identities).follow(self._watch):
            self._source.ignore(self.identities.ignored())
            yield self.identities.watched(batch)
