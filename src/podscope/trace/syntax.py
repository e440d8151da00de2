# SPDX-License-Identifier: Apache-2.0
"""A bpftrace program as a tree: what ``parse`` gives and ``unparse`` writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from typing import TypeAlias
from typing import TypeVar


@dataclass(frozen=True)
class Integer:
    """A number as it was written: ``0x1f``, ``1e6``, ``1_000``."""

    text: str


@dataclass(frozen=True)
class String:
    """A text with its quotes and escapes, as it was written."""

    text: str


@dataclass(frozen=True)
class Name:
    """A builtin, a constant, or an argument such as ``monotonic``."""

    name: str


@dataclass(frozen=True)
class Variable:
    """``$x``; the name has the sign."""

    name: str


@dataclass(frozen=True)
class Positional:
    """``$1``, ``$#``."""

    text: str


@dataclass(frozen=True)
class Map:
    """``@``, ``@x``, ``@x[a, b]``; no keys are ``()``."""

    name: str
    keys: tuple[Expression, ...] = ()


@dataclass(frozen=True)
class Call:
    """``count()``, ``hist(args.ret)``."""

    name: str
    arguments: tuple[Expression, ...] = ()


@dataclass(frozen=True)
class Tuple:
    """``(a, b)``."""

    items: tuple[Expression, ...]


@dataclass(frozen=True)
class Unary:
    """``!a``, ``-a``, ``~a``, ``*a``, ``&a``, and ``++@a`` and ``--@a``."""

    operator: str
    operand: Expression


@dataclass(frozen=True)
class Step:
    """``@a++``, ``$a--``."""

    operand: Map | Variable
    operator: str


@dataclass(frozen=True)
class Binary:
    """``a + b``."""

    left: Expression
    operator: str
    right: Expression


@dataclass(frozen=True)
class Ternary:
    """``a ? b : c``."""

    condition: Expression
    then: Expression
    otherwise: Expression


@dataclass(frozen=True)
class Type:
    """``struct sock *``, ``uint64``, ``uint8[4]``.

    Attributes:
        tag: ``struct``, ``union``, ``enum`` or nothing.
        stars: how many pointers.
        length: of an array: digits, or nothing for ``[]``; None: no array.
    """

    name: str
    tag: str = ""
    stars: int = 0
    length: str | None = None


@dataclass(frozen=True)
class Cast:
    """``(uint64)a``."""

    type: Type
    operand: Expression


@dataclass(frozen=True)
class Field:
    """``a.b``, ``a->b``, ``a.0``; the operator is ``.`` or ``->``."""

    operand: Expression
    operator: str
    name: str


@dataclass(frozen=True)
class Index:
    """``a[b]``."""

    operand: Expression
    index: Expression


@dataclass(frozen=True)
class SizeOf:
    """``sizeof(struct sock)``, ``sizeof(*$a)``."""

    what: Type | Expression


@dataclass(frozen=True)
class OffsetOf:
    """``offsetof(struct sock, __sk_common.skc_dport)``."""

    what: Type | Expression
    path: tuple[str, ...]


Expression: TypeAlias = (
    Integer
    | String
    | Name
    | Variable
    | Positional
    | Map
    | Call
    | Tuple
    | Unary
    | Step
    | Binary
    | Ternary
    | Cast
    | Field
    | Index
    | SizeOf
    | OffsetOf
)


@dataclass(frozen=True)
class Evaluate:
    """An expression as a statement."""

    expression: Expression


@dataclass(frozen=True)
class Assign:
    """``@x = count()``, ``$x += 1``; the operator is ``=``, ``+=`` and so on."""

    target: Map | Variable
    operator: str
    value: Expression


@dataclass(frozen=True)
class Declare:
    """``let $x``, ``let $x: uint64 = 1``."""

    name: str
    type: Type | None = None
    value: Expression | None = None


@dataclass(frozen=True)
class Jump:
    """``break``, ``continue``, ``return``, ``return 1``."""

    keyword: str
    value: Expression | None = None


@dataclass(frozen=True)
class Block:
    """``{ ... }``."""

    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class If:
    """``if (a) { ... } else { ... }``; ``else if`` is a block of one ``If``."""

    condition: Expression
    then: Block
    otherwise: Block | None = None


@dataclass(frozen=True)
class While:
    """``while (a) { ... }``."""

    condition: Expression
    body: Block


@dataclass(frozen=True)
class Unroll:
    """``unroll (5) { ... }``."""

    times: Expression
    body: Block


@dataclass(frozen=True)
class Range:
    """``0..10``, of a ``for``."""

    first: Expression
    end: Expression


@dataclass(frozen=True)
class For:
    """``for ($kv : @map) { ... }``."""

    variable: str
    over: Expression | Range
    body: Block


Statement: TypeAlias = Evaluate | Assign | Declare | Jump | Block | If | While | Unroll | For


@dataclass(frozen=True)
class Probe:
    """Attach points as written, but for blanks around colons; what is to hold; what to do."""

    points: tuple[str, ...]
    predicate: Expression | None
    body: Block


@dataclass(frozen=True)
class Function:
    """``fn f($a : uint64): void { ... }``; parameters are name and type."""

    name: str
    parameters: tuple[tuple[str, Type], ...]
    result: Type
    body: Block


@dataclass(frozen=True)
class Macro:
    """``macro m($a, @b) { ... }``."""

    name: str
    parameters: tuple[str, ...]
    body: Block


@dataclass(frozen=True)
class MapDeclaration:
    """``let @x = lruhash(100);``."""

    map: str
    kind: str
    size: str


@dataclass(frozen=True)
class Setting:
    """``name = value`` of the config block."""

    name: str
    value: Expression


Item: TypeAlias = Probe | Function | Macro | MapDeclaration


@dataclass(frozen=True)
class Program:
    """A whole program.

    Attributes:
        definitions: C, as text: lines of the preprocessor and types.
        config: the config block; None if there is none.
        items: probes, and what may stand among them, in their order.
    """

    definitions: tuple[str, ...]
    config: tuple[Setting, ...] | None
    items: tuple[Item, ...]

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The probes among the items."""
        return tuple(item for item in self.items if isinstance(item, Probe))


Node = TypeVar("Node")


def walk(node: object) -> Iterator[Any]:
    """The node and all that is below it, parents first."""
    if isinstance(node, tuple):
        for one in node:
            yield from walk(one)
    elif dataclasses.is_dataclass(node):
        yield node
        for field in dataclasses.fields(node):
            yield from walk(getattr(node, field.name))


def changed(node: Node, change: Callable[[Any], Any]) -> Node:
    """The tree with each node replaced by what ``change`` makes of it, children first."""
    if isinstance(node, tuple):
        return tuple(changed(one, change) for one in node)  # type: ignore[return-value]
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return node
    below = {
        field.name: changed(getattr(node, field.name), change) for field in dataclasses.fields(node)
    }
    made: Node = change(dataclasses.replace(node, **below))
    return made
