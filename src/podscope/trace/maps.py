# SPDX-License-Identifier: Apache-2.0
"""What the maps of a program hold, as far as its text tells: bpftrace's output does not."""

from __future__ import annotations

from dataclasses import dataclass

from podscope.trace import syntax
from podscope.trace.unparse import expression

# Functions that make a map an aggregation; what each map holds then.
AGGREGATIONS = ("count", "sum", "avg", "min", "max", "stats", "hist", "lhist", "tseries")
VALUE = "value"

_TEXT = frozenset({"comm", "probe", "func", "username"})
_STACKS = frozenset({"kstack", "ustack", "stack"})
_NUMBERS = frozenset(
    {"pid", "tid", "uid", "gid", "cpu", "cgroup", "nsecs", "elapsed", "rand", "retval", "curtask"}
)
_TEXT_CALLS = frozenset(
    {"str", "ksym", "usym", "ntop", "kstr", "buf", "strftime", "macaddr", "cgroup_path", "path",
     "strerror", "join"}
)  # fmt: skip
_NUMBER_CALLS = frozenset({"cgroupid", "kaddr", "uaddr", "reg", "bswap", "nsecs", "strncmp", "len"})


@dataclass(frozen=True)
class MapShape:
    """A map as its program uses it.

    Attributes:
        name: with the ``@``.
        kind: one of ``AGGREGATIONS``, or ``value`` for one that is set to values.
        key: for each part of a key ``number``, ``text``, ``stack`` or ``unknown``.
        scratch: whether the program deletes keys: it remembers something there, for a while.
        titles: the parts of a key as the program has them.
    """

    name: str
    kind: str
    key: tuple[str, ...] = ()
    scratch: bool = False
    titles: tuple[str, ...] = ()


def shapes(program: syntax.Program) -> dict[str, MapShape]:
    """The maps of a program by name, in the order in which they are set first."""
    found: dict[str, MapShape] = {}
    scratch = {name for node in syntax.walk(program) if (name := _deleted(node))}
    for node in syntax.walk(program):
        told = _set_by(node)
        if told is None:
            continue
        target, kind = told
        before = found.get(target.name)
        if before is not None and before.kind != kind:
            kind = VALUE
        key = tuple(_type(one) for one in _parts(target))
        titles = tuple(expression(one) for one in _parts(target))
        if before is not None:
            key, titles = _agreed(before.key, key), before.titles
        found[target.name] = MapShape(target.name, kind, key, target.name in scratch, titles)
    return found


def averages(program: syntax.Program) -> frozenset[str]:
    """Maps that ``avg()`` sets and that no expression reads: only those can become ``stats``."""
    used: dict[str, int] = {}
    for node in syntax.walk(program):
        if isinstance(node, syntax.Map):
            used[node.name] = used.get(node.name, 0) + 1
    for node in syntax.walk(program):
        for name in _not_reading(node):
            used[name] = used.get(name, 0) - 1
    kinds = shapes(program)
    return frozenset(
        name for name, one in kinds.items() if one.kind == "avg" and used.get(name, 0) == 0
    )


def _set_by(node: object) -> tuple[syntax.Map, str] | None:
    if isinstance(node, syntax.Assign) and isinstance(node.target, syntax.Map):
        value = node.value
        if node.operator == "=" and isinstance(value, syntax.Call) and value.name in AGGREGATIONS:
            return node.target, value.name
        return node.target, VALUE
    if isinstance(node, syntax.Step) and isinstance(node.operand, syntax.Map):
        return node.operand, VALUE
    if isinstance(node, syntax.Unary) and node.operator in ("++", "--"):
        return (node.operand, VALUE) if isinstance(node.operand, syntax.Map) else None
    return None


def _deleted(node: object) -> str:
    if isinstance(node, syntax.Call) and node.name == "delete" and node.arguments:
        first = node.arguments[0]
        return first.name if isinstance(first, syntax.Map) else ""
    return ""


def _not_reading(node: object) -> list[str]:
    """Maps that a node names itself without reading what is in them."""
    if isinstance(node, syntax.Assign) and isinstance(node.target, syntax.Map):
        return [node.target.name] if node.operator == "=" else []
    if isinstance(node, syntax.Call) and node.name in ("print", "clear", "zero", "delete", "len"):
        return [one.name for one in node.arguments[:1] if isinstance(one, syntax.Map)]
    return []


def _parts(target: syntax.Map) -> tuple[syntax.Expression, ...]:
    """The parts of a key: a tuple is one of as many."""
    if len(target.keys) == 1 and isinstance(target.keys[0], syntax.Tuple):
        return target.keys[0].items
    return target.keys


def _agreed(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    if len(one) != len(other):
        return one
    return tuple(a if a == b else "unknown" for a, b in zip(one, other, strict=True))


def _type(node: syntax.Expression) -> str:
    if isinstance(node, syntax.Name):
        if node.name in _TEXT:
            return "text"
        if node.name in _STACKS:
            return "stack"
        return "number" if node.name in _NUMBERS or _is_argument(node.name) else "unknown"
    if isinstance(node, syntax.Call):
        if node.name in _TEXT_CALLS:
            return "text"
        if node.name in _STACKS:
            return "stack"
        return "number" if node.name in _NUMBER_CALLS else "unknown"
    if isinstance(node, syntax.String):
        return "text"
    if isinstance(node, syntax.Integer | syntax.Binary | syntax.SizeOf | syntax.OffsetOf):
        return "number"
    return "unknown"


def _is_argument(name: str) -> bool:
    """``arg0``, not ``args``: that is a struct."""
    return name[:3] == "arg" and name[3:].isdigit()
