# SPDX-License-Identifier: Apache-2.0
"""Rate, errors, duration: exact groups of rows, exact merges, quantiles. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from podscope.batch import Identity
from podscope.batch import Service
from podscope.schema import DIMENSIONS
from podscope.schema import IMPLIED
from podscope.schema import NAMELESS
from podscope.schema import OF_IDENTITY
from podscope.schema import SERVER
from podscope.schema import Array
from podscope.schema import View
from podscope.schema import error_mask
from podscope.schema import peers_of

if TYPE_CHECKING:
    from podscope.batch import Batch

# The 14 classic bounds that the HTTP semantic conventions advise, seconds.
CLASSIC_BOUNDS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
SCALE = 3
OFFSET = -160
BUCKETS = 256
QUANTILES = (0.5, 0.9, 0.99)

_SUMS = ("count", "sum_ns", "ttfb_sum_ns", "request_bytes", "response_bytes")
# Members of struct http_series_key that say what a dimension says, in bits of one word.
_PACKED = (
    ("port", (("port", 0),)),
    ("status", (("status", 16), ("error", 32))),
    ("side", (("side", 40),)),
    ("method", (("method", 48),)),
    ("version", (("version", 56),)),
)
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Groups:
    """Rows added up by some dimensions.

    Attributes:
        by: names of the dimensions, of ``schema.DIMENSIONS``.
        keys: ``struct http_series_key``, shape (n,); members of other dimensions are zero.
        whose: for each of ``schema.OF_IDENTITY`` an index into ``identities``, shape (n,); -1 if
            not grouped by it, and for the executable also if a group has several.
        identities: what the indexes point to.
        routes: text of the route hashes.
        count, errors, answered: exchanges, of them errors, and those of which an answer began;
            shape (n,), u8.
        sum_ns, ttfb_sum_ns, max_ns: nanoseconds, shape (n,), u8.
        request_bytes, response_bytes: bodies, shape (n,), u8.
        le: counts at the classic bounds, not cumulative, shape (n, 15), u8.
        buckets: exponential histogram of scale 3, shape (n, 256), u4 or u8 as the sums need;
            (n, 0) if not asked for.
    """

    by: tuple[str, ...]
    keys: Array
    whose: dict[str, npt.NDArray[np.int64]]
    identities: tuple[Identity, ...]
    routes: dict[int, str]
    count: npt.NDArray[np.uint64]
    errors: npt.NDArray[np.uint64]
    answered: npt.NDArray[np.uint64]
    sum_ns: npt.NDArray[np.uint64]
    ttfb_sum_ns: npt.NDArray[np.uint64]
    max_ns: npt.NDArray[np.uint64]
    request_bytes: npt.NDArray[np.uint64]
    response_bytes: npt.NDArray[np.uint64]
    le: npt.NDArray[np.uint64]
    buckets: Array

    def __len__(self) -> int:
        return len(self.count)

    def take(self, index: Array) -> Groups:
        """The groups at ``index`` (positions or a mask), in that order."""
        arrays = ("keys", "errors", "answered", "max_ns", "le", "buckets", *_SUMS)
        taken = {name: getattr(self, name)[index] for name in arrays}
        whose = {name: places[index] for name, places in self.whose.items()}
        return replace(self, whose=whose, **taken)

    def view(self, time_ns: int, interval: float) -> View:
        """For ``schema.read``: these groups at ``time_ns``, every field."""
        values = {name: getattr(self, name) for name in ("max_ns", "answered", *_SUMS)}
        values |= _quantile_values(self.buckets, self.max_ns)
        return self._view(values, time_ns, interval)

    def labels(self) -> View:
        """For ``schema.read``: what these groups are, without their values."""
        return self._view({}, 0, 0.0)

    def _view(self, values: dict[str, Array], time_ns: int, interval: float) -> View:
        return View(
            records=self.keys,
            values=values,
            whose=self.whose,
            identities=self.identities,
            routes=self.routes,
            time=np.full(len(self), time_ns, dtype=np.int64),
            interval=interval,
        )

    def quantile(self, q: float) -> npt.NDArray[np.float64]:
        """Seconds, shape (n,); see ``quantile``."""
        return quantile(self.buckets, self.max_ns, q)

    def error_share(self) -> npt.NDArray[np.float64]:
        """Errors over exchanges, 0 to 1, shape (n,)."""
        return np.asarray(self.errors / np.maximum(self.count, 1), dtype=np.float64)


def group(batch: Batch, by: Sequence[str], *, buckets: bool = True) -> Groups:
    """Add up the rows of a batch of kind ``http`` by some dimensions.

    Args:
        batch: rows of ``struct http_row``.
        by: names out of ``schema.DIMENSIONS``; none gives one group of everything.
        buckets: whether to add up the exponential histograms (a kilobyte a row).

    Returns:
        One group for each distinct key; none for an empty batch.
    """
    return _add_up(_single(batch, by, buckets=buckets)[1])


def each(batch: Batch, by: Sequence[str]) -> tuple[npt.NDArray[np.intp], Groups]:
    """The rows of a batch of kind ``http`` as `group` tells them, but without adding any up.

    Returns:
        For each group the position of its row, shape (m,), which are several by ``service``, and
        the groups, without exponential histograms.
    """
    place, single = _single(batch, by, buckets=False)
    every = np.arange(len(single))
    return place, _reduced(single, every, every)


def _single(
    batch: Batch, by: Sequence[str], *, buckets: bool
) -> tuple[npt.NDArray[np.intp], Groups]:
    """A group for each row, with all dimensions, and where its row is."""
    rows, index = batch.rows, batch.identity.astype(np.int64)
    identities, whose = batch.identities, dict.fromkeys(OF_IDENTITY, index) | peers_of(batch)
    place = np.arange(len(rows))
    if "service" in by:
        place, identities, service = _services(batch, with_port="port" in by)
        rows = rows[place]
        whose = {name: places[place] for name, places in whose.items()} | {"service": service}
    keys = rows["key"]
    if "peer" in by and "address" not in by:
        keys = _without_named_addresses(keys, identities, whose["peer"])
    return place, Groups(
        by=_checked(by),
        keys=keys,
        whose=whose,
        identities=identities,
        routes=dict(batch.routes),
        errors=np.where(error_mask(keys), rows["count"], 0),
        answered=_answered(rows),
        max_ns=rows["max_ns"],
        le=rows["le"],
        buckets=rows["buckets"] if buckets else rows["buckets"][:, :0],
        **{name: rows[name] for name in _SUMS},
    )


def _without_named_addresses(
    keys: Array, identities: tuple[Identity, ...], peers: npt.NDArray[np.int64]
) -> Array:
    """Keys in which an address stands only where there is no better name for the peer."""
    named = np.array([one.kind not in NAMELESS for one in identities] + [False])[peers]
    if not named.any():
        return keys
    found = keys.copy()
    found["peer"][named] = 0
    return found


def _services(
    batch: Batch, *, with_port: bool
) -> tuple[npt.NDArray[np.intp], tuple[Identity, ...], npt.NDArray[np.int64]]:
    """Each row once for each Service that it came through, once where there is none.

    Only what a server answered on a port that the Service leads to is the Service's.

    Args:
        with_port: tell the ports of a Service apart.

    Returns:
        Positions of the rows, shape (m,), the identities with those of Services behind them, and
        for each of the positions its Service's identity or -1, shape (m,).
    """
    keys = batch.rows["key"]
    of_servers = (keys["side"] == SERVER).tolist()
    known: dict[tuple[str, str, int], int] = {}
    places: list[int] = []
    found: list[int] = []
    rows = zip(batch.identity.tolist(), keys["port"].tolist(), of_servers, strict=True)
    for place, (index, port, of_server) in enumerate(rows):
        identity = batch.identities[index]
        names = [
            (identity.namespace, service.name, service.port_of(port) if with_port else 0)
            for service in identity.services
            if of_server and service.leads_to(port)
        ]
        numbers = [known.setdefault(name, len(known)) for name in names] or [-1]
        places += [place] * len(numbers)
        found += numbers
    added = tuple(_service(*name) for name in known)
    service = np.array(found, dtype=np.int64)
    service[service >= 0] += len(batch.identities)
    return np.array(places, dtype=np.intp), batch.identities + added, service


def _service(namespace: str, name: str, port: int) -> Identity:
    itself = (Service(name, published=(port,)),) if port else ()
    return Identity("service", name, namespace=namespace, services=itself)


def _answered(rows: Array) -> npt.NDArray[np.uint64]:
    """Exchanges of which an answer began: without one there is no time to its first byte."""
    return np.where(rows["key"]["status"] != 0, rows["count"], np.uint64(0))


def merge(left: Groups, right: Groups) -> Groups:
    """Add two sets of groups by the same dimensions: exact, associative, commutative.

    Raises:
        ValueError: the dimensions differ.
    """
    if left.by != right.by:
        raise ValueError(f"cannot merge groups by {left.by} with groups by {right.by}")
    shift = len(left.identities)
    both = {
        name: np.concatenate([getattr(left, name), getattr(right, name)])
        for name in ("keys", "errors", "answered", "max_ns", "le", "buckets", *_SUMS)
    }
    return _add_up(
        Groups(
            by=left.by,
            whose={
                name: _shifted(left.whose[name], right.whose[name], shift) for name in left.whose
            },
            identities=left.identities + right.identities,
            routes=left.routes | right.routes,
            **both,
        )
    )


def _shifted(left: Array, right: Array, shift: int) -> npt.NDArray[np.int64]:
    return np.concatenate([left, np.where(right < 0, right, right + shift)])


def _checked(by: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in by if name not in DIMENSIONS]
    if unknown:
        raise ValueError(f"no such dimension: {', '.join(unknown)}")
    return tuple(name for name in DIMENSIONS if name in by)


def _add_up(one: Groups) -> Groups:
    """Reduce entries with the same key to one."""
    if len(one) == 0:
        return _reduced(one, np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp))
    codes = {
        name: _same(one.identities, one.whose[name], name)
        for name in {*one.by, "executable"} & OF_IDENTITY.keys()
    }
    columns = _key_columns(one, [codes[name] for name in one.by if name in codes])
    order = np.lexsort(columns) if columns else np.arange(len(one))
    fresh = np.zeros(len(one), dtype=np.bool_)
    fresh[0] = True
    for column in columns:
        ordered = column[order]
        fresh[1:] |= ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(fresh)
    return _reduced(one, order, starts, codes["executable"])


def _same(identities: tuple[Identity, ...], index: Array, name: str) -> npt.NDArray[np.int64]:
    """Numbers that are equal where the identities are, for a dimension; -1 stays."""
    part = OF_IDENTITY[name]
    seen: dict[tuple[str, ...], int] = {}
    codes = [seen.setdefault(part(identity), len(seen)) for identity in identities]
    return np.array([*codes, -1], dtype=np.int64)[index]


def _key_columns(one: Groups, owners: list[Array]) -> list[Array]:
    keys = one.keys
    columns: list[Array] = []
    packed = np.zeros(len(one), dtype=np.uint64)
    for name, members in _PACKED:
        if name in one.by:
            for member, shift in members:
                packed |= keys[member].astype(np.uint64) << np.uint64(shift)
    if any(name in one.by for name, _ in _PACKED):
        columns.append(packed)
    columns += owners
    if "pid" in one.by:
        columns.append(keys["pid"])
    if "route" in one.by:
        columns.append(keys["route"])
    if "peer" in one.by or "address" in one.by:
        halves = np.ascontiguousarray(keys["peer"]).view(np.uint64)
        columns += [halves[:, 0], halves[:, 1], keys["peer_class"]]
    return columns


def _reduced(one: Groups, order: Array, starts: Array, executables: Array | None = None) -> Groups:
    """Sums over each run of ``order`` that begins at ``starts``; other dimensions blanked."""
    first = order[starts]
    keys = np.zeros(len(first), dtype=one.keys.dtype)
    kept = [member for name, members in _PACKED if name in one.by for member, _ in members]
    kept += ["pid"] * ("pid" in one.by) + ["route"] * ("route" in one.by)
    kept += ["peer", "peer_class"] * ("peer" in one.by or "address" in one.by)
    for member in kept:
        keys[member] = one.keys[member][first]
    nobody = np.full(len(first), -1, dtype=np.int64)
    whose = {name: places[first] for name, places in one.whose.items() if name in one.by}
    whose = _with_implied(one, first) | whose
    whose = dict.fromkeys(OF_IDENTITY, nobody) | whose
    if "workload" in one.by and executables is not None:
        # A workload of one process also says which.
        if "executable" not in one.by:
            alone = _alone(executables, order, starts)
            whose["executable"] = np.where(alone, one.whose["executable"][first], -1)
        if "pid" not in one.by:
            pids = one.keys["pid"]
            keys["pid"] = np.where(_alone(pids, order, starts), pids[first], 0)
    return replace(
        one,
        keys=keys,
        whose=whose,
        errors=_sums(one.errors, order, starts),
        answered=_sums(one.answered, order, starts),
        max_ns=_largest(one.max_ns, order, starts),
        le=_sums(one.le, order, starts),
        buckets=_bucket_sums(one.buckets, order, starts),
        count=_sums(one.count, order, starts),
        sum_ns=_sums(one.sum_ns, order, starts),
        ttfb_sum_ns=_sums(one.ttfb_sum_ns, order, starts),
        request_bytes=_sums(one.request_bytes, order, starts),
        response_bytes=_sums(one.response_bytes, order, starts),
    )


def _with_implied(one: Groups, first: Array) -> dict[str, npt.NDArray[np.int64]]:
    """Indexes for what groups also say of themselves; see ``schema.IMPLIED``."""
    found = {}
    if "service" in one.by:
        found["namespace"] = one.whose["service"][first]
    if "pod" in one.by:
        has_pod = np.array([bool(identity.pod) for identity in one.identities] + [False])
        for name in IMPLIED["pod"]:
            places = one.whose[name][first]
            found[name] = np.where(has_pod[one.whose["pod"][first]], places, -1)
    return found


def _alone(codes: Array, order: Array, starts: Array) -> Array:
    """Whether all entries of a run have the same code."""
    ordered = codes[order]
    return np.asarray(np.minimum.reduceat(ordered, starts) == np.maximum.reduceat(ordered, starts))


def _sums(values: Array, order: Array, starts: Array) -> npt.NDArray[np.uint64]:
    if len(starts) == 0 or 0 in values.shape:
        return np.zeros((len(starts), *values.shape[1:]), dtype=np.uint64)
    if len(starts) == len(order):
        return np.asarray(values[order], dtype=np.uint64)
    return np.asarray(np.add.reduceat(values[order], starts, axis=0, dtype=np.uint64))


def _bucket_sums(values: Array, order: Array, starts: Array) -> Array:
    """The sums of ``_sums`` in little memory: a row is a kilobyte."""
    small = int(values.sum(dtype=np.uint64)) < 2**32
    sums = np.zeros((len(starts), values.shape[1]), dtype=np.uint32 if small else np.uint64)
    if 0 in sums.shape:
        return sums
    # Blocks of rows, and not of groups: other threads wait as long as one of them takes.
    for begin in range(0, len(order), _ROWS_AT_ONCE):
        end = min(begin + _ROWS_AT_ONCE, len(order))
        first = int(np.searchsorted(starts, begin, side="right")) - 1
        last = int(np.searchsorted(starts, end, side="left"))
        cuts = np.maximum(starts[first:last], begin) - begin
        sums[first:last] += np.add.reduceat(
            values[order[begin:end]], cuts, axis=0, dtype=sums.dtype
        )
    return sums


def _largest(values: Array, order: Array, starts: Array) -> npt.NDArray[np.uint64]:
    if len(starts) == 0:
        return np.zeros(0, dtype=np.uint64)
    return np.asarray(np.maximum.reduceat(values[order], starts), dtype=np.uint64)


def quantile(buckets: Array, max_ns: Array, q: float) -> npt.NDArray[np.float64]:
    """Quantile of each histogram; see ``quantiles``."""
    return quantiles(buckets, max_ns, (q,))[:, 0]


def quantiles(buckets: Array, max_ns: Array, qs: Sequence[float]) -> npt.NDArray[np.float64]:
    """Quantiles of exponential histograms: the observation of rank ceil(q n), by its bucket.

    Inside a bucket observations are taken as spread evenly over the logarithm, as Prometheus
    does for native histograms. The answer is in the bucket of the true one, so it is wrong by at
    most 2^(1/8) - 1 = 9.1 %, and never above the exact maximum.

    Args:
        buckets: counts, shape (n, 256); bucket i covers (2^((i-160)/8), 2^((i-159)/8)] seconds,
            the first one also everything below, the last one everything above.
        max_ns: exact maximum, shape (n,).
        qs: each from 0 to 1.

    Returns:
        Seconds, shape (n, len(qs)); NaN where a histogram is empty.
    """
    edges = np.exp2((np.arange(BUCKETS + 1) + OFFSET) / (1 << SCALE))
    answer = np.empty((len(buckets), len(qs)))
    # Blocks keep the cumulative sums small: 2 kB a row.
    for start in range(0, len(buckets), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        answer[block] = _block_quantiles(buckets[block], max_ns[block] / 1e9, qs, edges)
    return answer


def _block_quantiles(
    buckets: Array, maximum: Array, qs: Sequence[float], edges: Array
) -> npt.NDArray[np.float64]:
    cumulative = np.cumsum(buckets, axis=1, dtype=np.int64)
    total = cumulative[:, -1]
    row = np.arange(len(buckets))
    answer = np.empty((len(buckets), len(qs)))
    for column, q in enumerate(qs):
        # The small subtrahend: 0.07 * 100 is 7.000000000000001 in floating point.
        rank = np.clip(np.ceil(q * total - 1e-9), 1, None).astype(np.int64)
        bucket = np.minimum((cumulative < rank[:, None]).sum(axis=1), BUCKETS - 1)
        inside = buckets[row, bucket].astype(np.int64)
        share = (rank - cumulative[row, bucket] + inside) / np.maximum(inside, 1)
        upper = np.where(bucket == BUCKETS - 1, maximum, np.minimum(edges[bucket + 1], maximum))
        lower = np.minimum(edges[bucket], upper)
        # The first bucket has no lower edge to take a logarithm of.
        value = np.where(
            bucket == 0,
            upper * share,
            lower * (upper / np.where(lower > 0, lower, 1)) ** share,
        )
        answer[:, column] = np.where(total > 0, np.minimum(value, maximum), np.nan)
    return answer


def rows_view(batch: Batch) -> View:
    """For ``schema.read``: each row of a batch of kind ``http`` by itself."""
    rows = batch.rows
    index = batch.identity.astype(np.int64)
    values = {name: rows[name] for name in ("max_ns", *_SUMS)}
    return View(
        records=rows["key"],
        values=values
        | {"answered": _answered(rows)}
        | _quantile_values(rows["buckets"], rows["max_ns"]),
        whose=dict.fromkeys(OF_IDENTITY, index) | peers_of(batch),
        identities=batch.identities,
        routes=batch.routes,
        time=np.full(len(rows), batch.time_ns, dtype=np.int64),
        interval=batch.interval,
    )


def _quantile_values(buckets: Array, max_ns: Array) -> dict[str, Array]:
    if buckets.shape[1] == 0:
        return {}
    found = quantiles(buckets, max_ns, QUANTILES) * 1e9
    return {f"p{round(q * 100)}_ns": found[:, i] for i, q in enumerate(QUANTILES)}
