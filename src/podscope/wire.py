# SPDX-License-Identifier: Apache-2.0
"""Batches as bytes, for the way from an agent to whoever asks, and batches put together.

A frame is its length and that of its head (two numbers of four bytes, the greater one first), the
head as JSON, and the arrays of the batch, compressed with zlib. The head says how the rows are
laid out, so that a client of another version notices.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from podscope.batch import Batch
from podscope.batch import Identity
from podscope.batch import Service
from podscope.errors import PodscopeError

_LENGTHS = struct.Struct("!II")
# More than the most series of a node in one interval take, uncompressed.
MOST_BYTES = 256 << 20
# Rows are mostly zeros: more effort saves little.
_LEVEL = 1


class WireError(PodscopeError):
    """Bytes that are no frame of this version."""


def packed(batch: Batch) -> bytes:
    """A batch as one frame; identities that no row points to are left out."""
    nobody = np.full(len(batch), -1, np.int32)
    both = np.stack([batch.identity, nobody if batch.peers is None else batch.peers])
    used, index = np.unique(both, return_inverse=True)
    # Without an entry for -1, which stays what it is.
    nameless = int(len(used) and used[0] == -1)
    index = index.reshape(both.shape) - nameless
    head = {
        "kind": batch.kind,
        "count": len(batch),
        "dtype": np.lib.format.dtype_to_descr(batch.rows.dtype),
        "time_ns": batch.time_ns,
        "interval": batch.interval,
        "clock_offset_ns": batch.clock_offset_ns,
        "identities": [_told(batch.identities[place]) for place in used[nameless:].tolist()],
        "peers": batch.peers is not None,
        "routes": [[number, text] for number, text in batch.routes.items()],
        "lost": {reason: count for reason, count in batch.lost.items() if count},
    }
    told = json.dumps(head, separators=(",", ":")).encode()
    arrays = zlib.compress(batch.rows.tobytes() + index.astype("<i4").tobytes(), _LEVEL)
    return _LENGTHS.pack(len(told) + len(arrays), len(told)) + told + arrays


def frames(read: Callable[[int], bytes]) -> Iterator[Batch]:
    """The batches of a stream, until it ends between two frames.

    Args:
        read: gives so many bytes, fewer only at the end of the stream.

    Raises:
        WireError: the stream ends inside a frame, or is of another version.
    """
    while lengths := read(_LENGTHS.size):
        if len(lengths) < _LENGTHS.size:
            raise WireError("the agent's answer ends inside a frame")
        whole, head = _LENGTHS.unpack(lengths)
        if not head <= whole <= MOST_BYTES:
            raise WireError("the agent's answer is no stream of podscope's rows")
        frame = read(whole)
        if len(frame) < whole:
            raise WireError("the agent's answer ends inside a frame")
        yield unpacked(frame[:head], frame[head:])


def unpacked(told: bytes, arrays: bytes) -> Batch:
    """The batch of one frame; raises WireError if it is none of this version."""
    try:
        head = json.loads(told)
        dtype = np.lib.format.descr_to_dtype(_with_tuples(head["dtype"]))
        count = int(head["count"])
        raw = _decompressed(arrays)
        rows = np.frombuffer(raw, dtype, count)
        index, peers = np.frombuffer(raw, "<i4", 2 * count, rows.nbytes).reshape(2, count)
        identities = tuple(_identity(one) for one in head["identities"])
        if count and not (index.min() >= 0 and max(index.max(), peers.max()) < len(identities)):
            raise ValueError("a row of nobody")
        return Batch(
            kind=str(head["kind"]),
            rows=rows,
            identity=index.astype(np.uint32),
            identities=identities,
            peers=peers.astype(np.int32) if head["peers"] else None,
            time_ns=int(head["time_ns"]),
            interval=float(head["interval"]),
            clock_offset_ns=int(head["clock_offset_ns"]),
            routes={int(number): str(text) for number, text in head["routes"]},
            lost={str(reason): int(number) for reason, number in head["lost"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise WireError(f"the agent's answer cannot be read ({error})") from None


def _decompressed(arrays: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    raw = unpacker.decompress(arrays, MOST_BYTES)
    if not unpacker.eof:
        raise ValueError("too long, or cut")
    return raw


def _told(identity: Identity) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(identity).items() if value}


def _identity(told: dict[str, Any]) -> Identity:
    services = tuple(
        Service(str(one["name"]), tuple(map(int, one["ports"])), tuple(map(int, one["published"])))
        for one in told.get("services", ())
    )
    return Identity(**{"kind": "", "name": "", **told, "services": services})


def _with_tuples(descr: Any) -> Any:
    """What JSON made lists of, as NumPy wrote it: fields and shapes are tuples."""
    if isinstance(descr, str):
        return descr
    return [
        (name, _with_tuples(kind), *(tuple(shape) for shape in more)) for name, kind, *more in descr
    ]


def together(batches: Sequence[Batch]) -> Batch:
    """One batch of several of one kind: of many nodes, or of intervals that follow each other.

    Its interval is the longest of any, its time the latest. Rows stay as they are: ``red.group``
    adds up what belongs together.

    Raises:
        WireError: their rows are not laid out alike.
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    if any(batch.rows.dtype != first.rows.dtype or batch.kind != first.kind for batch in batches):
        raise WireError("agents of different versions: their rows cannot be added up")
    starts = np.cumsum([0, *(len(batch.identities) for batch in batches)])
    indexes = [batch.identity + start for batch, start in zip(batches, starts, strict=False)]
    peers = [_shifted(batch, int(start)) for batch, start in zip(batches, starts, strict=False)]
    lost: dict[str, int] = {}
    for batch in batches:
        for reason, count in batch.lost.items():
            lost[reason] = lost.get(reason, 0) + count
    return Batch(
        kind=first.kind,
        rows=np.concatenate([_on_one_clock(batch, first.clock_offset_ns) for batch in batches]),
        identity=np.concatenate(indexes).astype(np.uint32),
        identities=tuple(identity for batch in batches for identity in batch.identities),
        time_ns=max(batch.time_ns for batch in batches),
        interval=max(batch.interval for batch in batches),
        clock_offset_ns=first.clock_offset_ns,
        routes={number: text for batch in batches for number, text in batch.routes.items()},
        lost=lost,
        peers=None if all(batch.peers is None for batch in batches) else np.concatenate(peers),
        fields=first.fields,
    )


def _on_one_clock(batch: Batch, offset_ns: int) -> npt.NDArray[np.void]:
    """Its rows, with times that this offset makes Unix times: each node has a clock of its own."""
    apart = batch.clock_offset_ns - offset_ns
    if not apart or "time_ns" not in (batch.rows.dtype.names or ()):
        return batch.rows
    rows = batch.rows.copy()
    rows["time_ns"] = (rows["time_ns"].astype(np.int64) + apart).astype(np.uint64)
    return rows


def _shifted(batch: Batch, start: int) -> npt.NDArray[np.int32]:
    """Who is at the other end, of identities that begin at ``start``."""
    if batch.peers is None:
        return np.full(len(batch), -1, np.int32)
    return np.where(batch.peers < 0, -1, batch.peers + start).astype(np.int32)
