# SPDX-License-Identifier: Apache-2.0
"""Text of a bpftrace program to its tree."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

from lark import Lark
from lark import Token
from lark import Transformer
from lark import UnexpectedCharacters
from lark import UnexpectedEOF
from lark import UnexpectedInput
from lark import UnexpectedToken

from podscope.errors import UsageError
from podscope.trace import syntax

# Blanks around the colons of an attach point, outside of quotes.
_POINT = re.compile(r'("(?:\\.|[^"\\])*")|\s*:\s*')


class ProgramError(UsageError):
    """A text that is no bpftrace program. The message has line and column."""


def parse(text: str) -> syntax.Program:
    """The tree of a program, as bpftrace 0.17 to 0.23 would read it.

    A nested ternary groups to the right, as the manual says (0.17 does otherwise).

    Raises:
        ProgramError: it is not one.
    """
    if not text.strip():
        raise ProgramError("the program is empty")
    # The first line of a script names who is to run it.
    body = re.sub(r"\A#![^\n]*", "", text)
    try:
        tree = _grammar().parse(body)
    except UnexpectedInput as error:
        raise ProgramError(_told(error, text)) from None
    program: syntax.Program = _Build().transform(tree)
    return program


def parse_expression(text: str) -> syntax.Expression:
    """The tree of an expression alone. Raises ProgramError."""
    (probe,) = parse(f"BEGIN {{ {text}; }}").probes
    statements = probe.body.statements
    if len(statements) != 1 or not isinstance(statements[0], syntax.Evaluate):
        raise ProgramError(f"not an expression: {text!r}")
    return statements[0].expression


@cache
def _grammar() -> Lark:
    rules = resources.files("podscope.trace").joinpath("grammar.lark").read_text("utf-8")
    return Lark(rules, parser="lalr", lexer="contextual", start="program", maybe_placeholders=False)


def _told(error: UnexpectedInput, text: str) -> str:
    """One line: where, and what stands there."""
    if isinstance(error, UnexpectedEOF) or (
        isinstance(error, UnexpectedToken) and error.token.type == "$END"
    ):
        return "the program ends too early: a '}' or a block is missing"
    line = text.splitlines()[error.line - 1] if error.line > 0 else ""
    if isinstance(error, UnexpectedCharacters | UnexpectedToken):
        found = line[error.column - 1 :].split(maxsplit=1)
        near = found[0] if found else "the end of the line"
        return f"line {error.line}, column {error.column}: not expected here: {near[:40]!r}"
    return f"line {error.line}, column {error.column}: cannot be read"


def _point(text: str) -> str:
    return _POINT.sub(lambda found: found[1] or ":", text)


class _Build(Transformer[Token, Any]):
    """What each rule of the grammar makes. Methods have the names of rules."""

    def program(self, items: list[Any]) -> syntax.Program:
        definitions = tuple(str(one).strip() for one in items if isinstance(one, str))
        config = next((one for one in items if isinstance(one, tuple)), None)
        rest = tuple(one for one in items if not isinstance(one, str | tuple))
        return syntax.Program(definitions, config, rest)

    def c_type(self, items: list[Any]) -> str:
        return " ".join(str(one) for one in items) + ";"

    def c_body(self, items: list[Any]) -> str:
        return "".join(str(one) for one in items)

    def config(self, items: list[Any]) -> tuple[syntax.Setting, ...]:
        return tuple(one for one in items if isinstance(one, syntax.Setting))

    def setting(self, items: list[Any]) -> syntax.Setting:
        return syntax.Setting(str(items[0]), items[1])

    def probe(self, items: list[Any]) -> syntax.Probe:
        points = tuple(_point(one) for one in items if isinstance(one, Token))
        held = [one[0] for one in items if isinstance(one, list)]
        return syntax.Probe(points, held[0] if held else None, items[-1])

    def predicate(self, items: list[Any]) -> list[Any]:
        return [items[1]]

    def function(self, items: list[Any]) -> syntax.Function:
        name, *parameters, result, body = items
        return syntax.Function(str(name), tuple(parameters), result, body)

    def parameter(self, items: list[Any]) -> tuple[str, syntax.Type]:
        return str(items[0]), items[1]

    def macro(self, items: list[Any]) -> syntax.Macro:
        name, *parameters, body = items
        return syntax.Macro(str(name), tuple(str(one) for one in parameters), body)

    def map_declaration(self, items: list[Any]) -> syntax.MapDeclaration:
        return syntax.MapDeclaration(*(str(one) for one in items))

    def block(self, items: list[Any]) -> syntax.Block:
        return syntax.Block(tuple(_statement(one) for one in items if not isinstance(one, Token)))

    def assignment(self, items: list[Any]) -> syntax.Assign:
        return syntax.Assign(items[0], str(items[1]), items[2])

    def declaration(self, items: list[Any]) -> syntax.Declare:
        types = [one for one in items[1:] if isinstance(one, syntax.Type)]
        values = [one for one in items[1:] if not isinstance(one, syntax.Type)]
        return syntax.Declare(
            str(items[0]), types[0] if types else None, values[0] if values else None
        )

    def jump(self, items: list[Any]) -> syntax.Jump:
        return syntax.Jump(str(items[0]), items[1] if len(items) > 1 else None)

    def if_(self, items: list[Any]) -> syntax.If:
        otherwise = items[2] if len(items) > 2 else None
        if isinstance(otherwise, syntax.If):
            otherwise = syntax.Block((otherwise,))
        return syntax.If(items[0], items[1], otherwise)

    def while_(self, items: list[Any]) -> syntax.While:
        return syntax.While(*items)

    def unroll(self, items: list[Any]) -> syntax.Unroll:
        return syntax.Unroll(*items)

    def for_(self, items: list[Any]) -> syntax.For:
        return syntax.For(items[0].name, items[1], items[2])

    def range_(self, items: list[Any]) -> syntax.Range:
        return syntax.Range(*items)

    def ternary(self, items: list[Any]) -> syntax.Ternary:
        return syntax.Ternary(*items)

    def binary(self, items: list[Any]) -> syntax.Binary:
        return syntax.Binary(items[0], str(items[1]), items[2])

    def cast(self, items: list[Any]) -> syntax.Cast:
        return syntax.Cast(items[1], items[2])

    def unary(self, items: list[Any]) -> syntax.Unary:
        return syntax.Unary(str(items[0]), items[1])

    def step(self, items: list[Any]) -> syntax.Step:
        return syntax.Step(items[0], str(items[1]))

    def field(self, items: list[Any]) -> syntax.Field:
        return syntax.Field(items[0], str(items[1]), str(items[2]))

    def index(self, items: list[Any]) -> syntax.Index:
        return syntax.Index(*items)

    def name(self, items: list[Any]) -> syntax.Name:
        return syntax.Name(str(items[0]))

    def integer(self, items: list[Any]) -> syntax.Integer:
        return syntax.Integer(str(items[0]))

    def string(self, items: list[Any]) -> syntax.String:
        return syntax.String(str(items[0]))

    def positional(self, items: list[Any]) -> syntax.Positional:
        return syntax.Positional(str(items[0]))

    def tuple_(self, items: list[Any]) -> syntax.Tuple:
        return syntax.Tuple(tuple(items))

    def call(self, items: list[Any]) -> syntax.Call:
        return syntax.Call(str(items[0]), tuple(items[1:]))

    def size_of(self, items: list[Any]) -> syntax.SizeOf:
        return syntax.SizeOf(items[0])

    def offset_of(self, items: list[Any]) -> syntax.OffsetOf:
        fields = tuple(str(one) for one in items[1:] if one.type == "FIELD")
        return syntax.OffsetOf(items[0], fields)

    def variable(self, items: list[Any]) -> syntax.Variable:
        return syntax.Variable(str(items[0]))

    def map_(self, items: list[Any]) -> syntax.Map:
        return syntax.Map(str(items[0]), tuple(items[1:]))

    def type_(self, items: list[Any]) -> syntax.Type:
        tag = str(items[0]) if items[0].type == "STRUCT" else ""
        name = next(str(one) for one in items if one.type == "NAME")
        stars = sum(one.count("*") for one in items if one.type in ("STAR", "STARS"))
        arrays = [one for one in items if one.type == "LENGTH"]
        return syntax.Type(name, tag, stars, str(arrays[0])[1:-1].strip() if arrays else None)

    type_argument = type_


def _statement(node: Any) -> syntax.Statement:
    kinds = syntax.Statement.__args__
    return node if isinstance(node, kinds) else syntax.Evaluate(node)
