# SPDX-License-Identifier: Apache-2.0
"""What options such as ``--port`` and ``--slower`` mean, and which rows they keep."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
import numpy.typing as npt

from podscope.errors import UsageError
from podscope.schema import DIMENSIONS
from podscope.schema import SERVER
from podscope.schema import SIDES
from podscope.schema import split_target

if TYPE_CHECKING:
    from podscope.batch import Batch

Ranges = tuple[tuple[int, int], ...]

_UNITS_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9,
             "h": 3600 * 10**9, "d": 86400 * 10**9}  # fmt: skip
_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ns|us|µs|ms|s|m|h|d)")
# Timers and the kernel's 64-bit nanoseconds take more; nobody asks for more.
_MOST_DAYS = 36500
# What the kernel programs keep of a path's glob (log_path in bpf/http.bpf.c), bytes.
KERNEL_GLOB_BYTES = 64


def duration_ns(text: str, option: str, *, least_ns: int = 1) -> int:
    """Nanoseconds of ``200ms``, ``1s``, ``1m30s``.

    Raises:
        UsageError: not a duration, shorter than ``least_ns``, or longer than a hundred years.
    """
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise UsageError(f"{option}: not a duration: {text!r}; write it as 200ms, 1s or 1m30s")
    total = sum(round(float(number) * _UNITS_NS[unit]) for number, unit in parts)
    if total < least_ns:
        raise UsageError(f"{option}: {text} is too short; the least is {_plain(least_ns)}")
    if total > _MOST_DAYS * _UNITS_NS["d"]:
        raise UsageError(f"{option}: {text} is too long; the most is {_MOST_DAYS}d")
    return total


def _plain(ns: int) -> str:
    for unit in ("s", "ms", "us"):
        if ns % _UNITS_NS[unit] == 0:
            return f"{ns // _UNITS_NS[unit]}{unit}"
    return f"{ns}ns"


def one_in(text: str, option: str) -> int:
    """N of ``1/N``: which share of requests to log.

    Raises:
        UsageError: not such a share.
    """
    found = re.fullmatch(r"1/([0-9]{1,9})", text)
    if found is None or int(found[1]) == 0:
        raise UsageError(f"{option}: not a share: {text!r}; write it as 1/100")
    return int(found[1])


def ports(text: str, option: str) -> Ranges:
    """Port ranges of ``80,8000-8100``: (first, last) pairs.

    Raises:
        UsageError: not a list of ports.
    """
    return tuple(_port_range(part, option) for part in text.split(","))


def _port_range(part: str, option: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*([0-9]{1,5})(?:-([0-9]{1,5}))?\s*", part)
    first = int(found[1]) if found else 0
    last = int(found[2] or first) if found else 0
    if not 0 < first <= last <= 65535:
        raise UsageError(f"{option}: not a port: {part!r}; write ports as 80,8000-8100")
    return first, last


def statuses(text: str, option: str) -> Ranges:
    """Status ranges of ``5xx``, ``404`` or ``4xx,500``; ``none`` (no answer came) is 0.

    Raises:
        UsageError: not a list of statuses.
    """
    return tuple(_status_range(part.strip().lower(), option) for part in text.split(","))


def _status_range(part: str, option: str) -> tuple[int, int]:
    if part == "none":
        return 0, 0
    if re.fullmatch(r"[1-9]xx", part):
        first = int(part[0]) * 100
        return first, first + 99
    if re.fullmatch(r"[1-9][0-9][0-9]", part):
        return int(part), int(part)
    raise UsageError(
        f"{option}: not a status: {part!r}; write statuses as 5xx, 404 or 4xx,500 "
        "(none: no answer came)"
    )


def side(text: str | None, option: str) -> str | None:
    """``server``, ``client`` or None for both.

    Raises:
        UsageError: another word.
    """
    if text is None or text in ("server", "client"):
        return text
    raise UsageError(f"{option}: not a side: {text!r}; write server or client, as {option} server")


def glob(text: str | None, option: str, example: str) -> str | None:
    """A glob as given, or None; where the example is a path, a glob of paths.

    Raises:
        UsageError: one that nothing matches: empty, or of paths that begin without a slash.
    """
    if text == "":
        raise UsageError(f"{option}: empty; write it as {option} {example!r}")
    if text and example.startswith("/") and text[0] not in "/*?[":
        raise UsageError(
            f"{option}: {text!r} matches no path, paths begin with a slash; write it as "
            f"{option} {'/' + text!r} or {'*' + text!r}"
        )
    return text


def kernel_glob(pattern: str) -> str:
    """A glob that the kernel programs understand and that matches all that ``pattern`` matches.

    They know ``*`` and ``?`` (one byte), and keep ``KERNEL_GLOB_BYTES`` bytes. What follows a set
    in brackets, a ``?`` that could stand for a character of several bytes, or the last byte kept
    becomes ``*``; ``Filter`` decides the rest.
    """
    cut = min((pattern.find(mark) for mark in "[?" if mark in pattern), default=len(pattern))
    short = pattern[:cut] + "*" if cut < len(pattern) else pattern
    if len(short.encode()) <= KERNEL_GLOB_BYTES:
        return short
    return short.encode()[: KERNEL_GLOB_BYTES - 1].decode("utf-8", "ignore") + "*"


def dimensions(text: str, option: str) -> tuple[str, ...]:
    """Dimensions to group by, in the order asked for.

    Raises:
        UsageError: an unknown one.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in DIMENSIONS:
            raise UsageError(
                f"{option}: no such field: {name!r}; choose from {','.join(DIMENSIONS)}, "
                f"as {option} workload,route"
            )
    return names


def address(text: str, option: str) -> tuple[str, int]:
    """Host and port of ``127.0.0.1:9435``, ``[::1]:9435`` or ``:9435`` (all addresses).

    Raises:
        UsageError: not an address.
    """
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*):([0-9]{1,5})", text)
    if found is None or int(found[2]) > 65535:
        raise UsageError(f"{option}: not an address: {text!r}; write it as 127.0.0.1:9435")
    return found[1].strip("[]"), int(found[2])


@dataclass(frozen=True)
class Filter:
    """Which rows to keep; None keeps all.

    Attributes:
        side: ``server`` or ``client``.
        ports: ranges of the server's port.
        statuses: ranges; (0, 0) is no answer.
        workload: glob over the workload's name.
        path: glob over the path without the query; only for batches of kind ``request``.
    """

    side: str | None = None
    ports: Ranges | None = None
    statuses: Ranges | None = None
    workload: str | None = None
    path: str | None = None

    def apply(self, batch: Batch) -> Batch:
        """The batch with only the rows that pass; the same object if nothing is filtered."""
        if self == Filter():
            return batch
        keep = self.mask(batch)
        if keep.all():
            return batch
        return batch.where(keep)

    def mask(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Which rows pass, shape (n,)."""
        request = batch.kind == "request"
        keys = batch.rows if request else batch.rows["key"]
        keep = np.ones(len(batch), dtype=np.bool_)
        if self.side is not None:
            keep &= keys["side"] == SIDES.index(self.side)
        if self.ports is not None:
            keep &= _within(_server_port(keys) if request else keys["port"], self.ports)
        if self.statuses is not None:
            keep &= _within(keys["status"], self.statuses)
        if self.workload is not None and len(batch):
            matches = _glob(self.workload)
            wanted = [bool(matches(identity.name)) for identity in batch.identities]
            keep &= np.array([*wanted, False])[batch.identity]
        if self.path is not None and request:
            keep &= _path_mask(batch.rows["path"], self.path)
        return keep


def _server_port(requests: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.where(requests["side"] == SERVER, requests["local_port"], requests["peer_port"])


def _within(values: npt.NDArray[Any], ranges: Ranges) -> npt.NDArray[np.bool_]:
    inside = np.zeros(len(values), dtype=np.bool_)
    for first, last in ranges:
        inside |= (values >= first) & (values <= last)
    return inside


def _glob(pattern: str) -> Any:
    return re.compile(fnmatch.translate(pattern)).match


def _path_mask(targets: npt.NDArray[Any], pattern: str) -> npt.NDArray[np.bool_]:
    matches = _glob(pattern)
    texts = (target.decode("utf-8", "backslashreplace") for target in targets.tolist())
    return np.array([bool(matches(split_target(text)[0] or "")) for text in texts], dtype=np.bool_)
