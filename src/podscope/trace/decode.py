# SPDX-License-Identifier: Apache-2.0
"""bpftrace's JSON lines, with what is wrong in them put right or said.

The output is that of ``bpftrace -f json`` (src/output.cpp of bpftrace), versions 0.17 to 0.27. Its
faults, by version, as seen by running them:

- bytes that are no ASCII are written as ``\\uffffffc3`` where ``char`` is signed (all versions);
- keys are escaped twice (0.22, 0.23);
- ``strftime`` in a value has no quotes (before 0.22);
- all blanks of a key are dropped (from 0.24): that cannot be put right;
- keys that differ can be written the same way: a reader of JSON would keep the last one;
- integers above 2**53 are strings (from 0.24).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import TypeAlias

Version: TypeAlias = tuple[int, int]

KEYS_ESCAPED_TWICE = ((0, 22), (0, 24))
KEYS_WITHOUT_BLANKS = (0, 24)

# How most lines begin, where a program prints many.
_LINE = b'{"type": "printf", "data": '

# An odd number of backslashes: an even one is backslashes that are meant.
_SIGNED_BYTE = re.compile(r"(?<!\\)((?:\\\\)*)\\uffffff([89a-f][0-9a-f])")
# A member of an object whose value is neither a number, a word, nor opened by a bracket or quote.
_BARE = re.compile(r'("(?:\\.|[^"\\])*": ?+)(?!-?\d+[,}\]]|true|false|null|["\[{])([^",}\]]+)')


class Members(list[tuple[str, Any]]):
    """Names and values of a JSON object in which a name is there twice."""


@dataclass(frozen=True)
class Attached:
    """All probes are in place."""

    probes: int


@dataclass(frozen=True)
class Text:
    """What ``printf``, ``time``, ``cat``, ``join`` or ``system`` wrote.

    Attributes:
        whose: the pod in which, where that is known.
        node: where, in a cluster.
        time_ns: when it came, as Unix time; 0: not known.
    """

    text: str
    whose: str = ""
    node: str = ""
    time_ns: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Value:
    """What ``print`` of no map wrote: a number, a text, a tuple as a list; the others as of
    `Text`."""

    value: Any
    whose: str = ""
    node: str = ""
    time_ns: int = field(default=0, compare=False)


@dataclass(frozen=True)
class MapData:
    """A map as it stood.

    Attributes:
        name: with the ``@``.
        form: ``map``, ``hist``, ``stats`` or ``tseries``: what bpftrace calls it.
        entries: keys as bpftrace wrote them, None for a map without; and values.
    """

    name: str
    form: str
    entries: tuple[tuple[str | None, Any], ...]


@dataclass(frozen=True)
class Lost:
    """Events that did not fit the buffer since the last such line."""

    events: int


@dataclass(frozen=True)
class HelperError:
    """The kernel refused something that a probe asked for while it ran."""

    helper: str
    code: int


@dataclass(frozen=True)
class Broken:
    """A line that could not be read."""

    line: str


Event: TypeAlias = Attached | Text | Value | MapData | Lost | HelperError | Broken


def decode(line: bytes, version: Version) -> Event | None:
    """What a line of bpftrace's output says; None for an empty one, and for one to pass over."""
    if not line.strip():
        return None
    if line.startswith(_LINE) and (said := _said(line)) is not None:
        return Text(said)
    text = with_bytes(line.decode("utf-8", "surrogateescape"))
    told = _loaded(text)
    if told is None:
        return Broken(readable(text.rstrip("\n")))
    try:
        return _event(str(told["type"]), told, version)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return Broken(readable(text.rstrip("\n")))


def _said(line: bytes) -> str | None:
    """The text of a line of ``printf``, in a fifth of the time; None: look at it with care."""
    try:
        said = json.loads(line[len(_LINE) :].rstrip().removesuffix(b"}"))
    except ValueError:
        return None
    return said if isinstance(said, str) and said.isascii() and b"uffffff" not in line else None


def with_bytes(text: str) -> str:
    """``\\uffffffc3`` as the escape of a byte that PEP 383 has for it: ``\\udcc3``."""
    if "\\uffffff" not in text:
        return text
    return _SIGNED_BYTE.sub(r"\1\\udc\2", text)


def readable(text: str) -> str:
    """Text with the bytes in it read as UTF-8; those that are none as ``\\xc3``."""
    if text.isascii():
        return text
    raw = text.encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")


def _loaded(text: str) -> dict[str, Any] | None:
    told = _parsed(text)
    if told is None:
        told = _parsed(_BARE.sub(_quoted, text))
    return told if isinstance(told, dict) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, strict=False)
    except ValueError:
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Members:
    made = dict(pairs)
    return made if len(made) == len(pairs) else Members(pairs)


def _quoted(found: re.Match[str]) -> str:
    return found[1] + json.dumps(found[2])


def _event(kind: str, fields: dict[str, Any], version: Version) -> Event | None:
    if kind == "attached_probes":
        return Attached(int(dict(fields["data"])["probes"]))
    if kind == "lost_events":
        return Lost(int(dict(fields["data"])["events"]))
    if kind in ("printf", "time", "cat", "join", "syscall", "errorf", "warnf"):
        end = "\n" if kind == "join" else ""
        return Text(_clean(fields.get("data", fields.get("msg"))) + end)
    if kind == "value":
        return Value(plain(fields["data"]))
    if kind in ("map", "hist", "stats", "tseries"):
        ((name, data),) = fields["data"].items()
        return MapData(readable(name), kind, _entries(data, kind, version))
    if kind in ("helper_error", "runtime_error"):
        return HelperError(str(fields.get("helper", "")), int(fields.get("retcode", 0)))
    return None


def _entries(data: Any, form: str, version: Version) -> tuple[tuple[str | None, Any], ...]:
    if not isinstance(data, dict | Members) or (form == "stats" and _is_stats(data)):
        return ((None, _value(data, form)),)
    pairs = data.items() if isinstance(data, dict) else data
    return tuple((key_text(key, version), _value(value, form)) for key, value in pairs)


def _is_stats(data: dict[str, Any] | Members) -> bool:
    return (
        isinstance(data, dict)
        and list(data) == ["count", "average", "total"]
        and not any(isinstance(number, dict | Members) for number in data.values())
    )


def key_text(key: str, version: Version) -> str:
    """A key as the program had it, as far as bpftrace told."""
    first, after = KEYS_ESCAPED_TWICE
    if first <= version < after:
        try:
            key = json.loads(f'"{with_bytes(key)}"', strict=False)
        except ValueError:
            return readable(key)
    return readable(key)


def _value(data: Any, form: str) -> Any:
    """Statistics as a dict, buckets as a list of dicts, other things plain."""
    if form == "hist" and isinstance(data, list) and all(isinstance(one, dict) for one in data):
        return data  # numbers by name: nothing to put right
    return plain(data)


def plain(data: Any) -> Any:
    """A JSON value without ``Members``: objects as dicts, texts readable."""
    if isinstance(data, dict | Members):
        pairs = data.items() if isinstance(data, dict) else data
        return {readable(name): plain(value) for name, value in pairs}
    if isinstance(data, list):
        return [plain(one) for one in data]
    return readable(data) if isinstance(data, str) else data


def _clean(data: Any) -> str:
    return readable(data) if isinstance(data, str) else json.dumps(plain(data))
