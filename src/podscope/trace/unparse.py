# SPDX-License-Identifier: Apache-2.0
"""A tree of a bpftrace program to text that means the same."""

from __future__ import annotations

from podscope.trace import syntax

_INDENT = "    "
# From loosest to tightest; all group to the left (src/parser.yy of bpftrace).
_LEVELS = (
    ("||",),
    ("&&",),
    ("|",),
    ("^",),
    ("&",),
    ("==", "!="),
    ("<=", ">=", "<", ">"),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
)
_LEVEL = {operator: level for level, row in enumerate(_LEVELS, 1) for operator in row}
_TERNARY, _UNARY, _POSTFIX = 0, len(_LEVELS) + 1, len(_LEVELS) + 2


def unparse(program: syntax.Program) -> str:
    """The program's text: ``parse`` makes the same tree of it. Comments are not in the tree."""
    parts = list(program.definitions)
    if program.config is not None:
        parts += ["config = {", *(f"{_INDENT}{_setting(one)};" for one in program.config), "}"]
    parts += [_item(one) for one in program.items]
    return "\n".join(parts) + "\n"


def expression(node: syntax.Expression) -> str:
    """The text of an expression, with the parentheses that it needs and no other."""
    return _text(node, _TERNARY)


def _setting(setting: syntax.Setting) -> str:
    return f"{setting.name} = {expression(setting.value)}"


def _item(item: syntax.Item) -> str:
    if isinstance(item, syntax.Probe):
        head = ",\n".join(item.points)
        # Blanks keep the slash from the operators and paths beside it.
        held = "" if item.predicate is None else f"\n/ {expression(item.predicate)} /"
        return f"{head}{held}\n{_block(item.body, '')}"
    if isinstance(item, syntax.Function):
        parameters = ", ".join(f"{name} : {_type(kind)}" for name, kind in item.parameters)
        return f"fn {item.name}({parameters}) : {_type(item.result)} {_block(item.body, '')}"
    if isinstance(item, syntax.Macro):
        return f"macro {item.name}({', '.join(item.parameters)}) {_block(item.body, '')}"
    return f"let {item.map} = {item.kind}({item.size});"


def _block(block: syntax.Block, indent: str) -> str:
    if not block.statements:
        return "{}"
    inner = indent + _INDENT
    lines = [f"{inner}{_statement(one, inner)}" for one in block.statements]
    return "\n".join(["{", *lines, f"{indent}}}"])


def _statement(node: syntax.Statement, indent: str) -> str:
    if isinstance(node, syntax.Evaluate):
        return f"{expression(node.expression)};"
    if isinstance(node, syntax.Assign):
        return f"{expression(node.target)} {node.operator} {expression(node.value)};"
    if isinstance(node, syntax.Declare):
        kind = "" if node.type is None else f" : {_type(node.type)}"
        value = "" if node.value is None else f" = {expression(node.value)}"
        return f"let {node.name}{kind}{value};"
    if isinstance(node, syntax.Jump):
        value = "" if node.value is None else f" {expression(node.value)}"
        return f"{node.keyword}{value};"
    if isinstance(node, syntax.If):
        return _if(node, indent)
    if isinstance(node, syntax.While):
        return f"while ({expression(node.condition)}) {_block(node.body, indent)}"
    if isinstance(node, syntax.Unroll):
        return f"unroll ({expression(node.times)}) {_block(node.body, indent)}"
    if isinstance(node, syntax.For):
        return f"for ({node.variable} : {_over(node.over)}) {_block(node.body, indent)}"
    return _block(node, indent)


def _if(node: syntax.If, indent: str) -> str:
    text = f"if ({expression(node.condition)}) {_block(node.then, indent)}"
    if node.otherwise is None:
        return text
    inner = node.otherwise.statements
    if len(inner) == 1 and isinstance(inner[0], syntax.If):
        return f"{text} else {_if(inner[0], indent)}"
    return f"{text} else {_block(node.otherwise, indent)}"


def _over(node: syntax.Expression | syntax.Range) -> str:
    if isinstance(node, syntax.Range):
        return f"{expression(node.first)}..{expression(node.end)}"
    return expression(node)


def _type(node: syntax.Type) -> str:
    tag = f"{node.tag} " if node.tag else ""
    stars = f" {'*' * node.stars}" if node.stars else ""
    return f"{tag}{node.name}{stars}{'' if node.length is None else f'[{node.length}]'}"


def _text(node: syntax.Expression, least: int) -> str:
    """The text; in parentheses where it binds less than ``least``."""
    text, level = _with_level(node)
    return f"({text})" if level < least else text


def _with_level(node: syntax.Expression) -> tuple[str, int]:
    if isinstance(node, syntax.Ternary):
        # bpftrace 0.17 groups nested ones to the left, later ones to the right: leave no doubt.
        parts = [_text(one, 1) for one in (node.condition, node.then, node.otherwise)]
        return f"{parts[0]} ? {parts[1]} : {parts[2]}", _TERNARY
    if isinstance(node, syntax.Binary):
        level = _LEVEL[node.operator]
        left, right = _text(node.left, level), _text(node.right, level + 1)
        return f"{left} {node.operator} {right}", level
    if isinstance(node, syntax.Unary):
        return f"{node.operator}{_operand(node.operand)}", _UNARY
    if isinstance(node, syntax.Cast):
        return f"({_type(node.type)}){_operand(node.operand)}", _UNARY
    if isinstance(node, syntax.Step):
        return f"{expression(node.operand)}{node.operator}", _POSTFIX
    if isinstance(node, syntax.Field):
        return f"{_text(node.operand, _POSTFIX)}{node.operator}{node.name}", _POSTFIX
    if isinstance(node, syntax.Index):
        return f"{_text(node.operand, _POSTFIX)}[{expression(node.index)}]", _POSTFIX
    return _primary(node), _POSTFIX


def _operand(node: syntax.Expression) -> str:
    """What a sign or a cast stands before: two signs in a row could be read as one."""
    return _text(node, _POSTFIX if isinstance(node, syntax.Unary) else _UNARY)


def _primary(node: syntax.Expression) -> str:
    if isinstance(node, syntax.Integer | syntax.String | syntax.Positional):
        return node.text
    if isinstance(node, syntax.Map):
        return f"{node.name}[{_list(node.keys)}]" if node.keys else node.name
    if isinstance(node, syntax.Call):
        return f"{node.name}({_list(node.arguments)})"
    if isinstance(node, syntax.Tuple):
        return f"({_list(node.items)}{',' if len(node.items) == 1 else ''})"
    if isinstance(node, syntax.SizeOf):
        return f"sizeof({_what(node.what)})"
    if isinstance(node, syntax.OffsetOf):
        return f"offsetof({_what(node.what)}, {'.'.join(node.path)})"
    assert isinstance(node, syntax.Name | syntax.Variable)
    return node.name


def _what(node: syntax.Type | syntax.Expression) -> str:
    return _type(node) if isinstance(node, syntax.Type) else expression(node)


def _list(nodes: tuple[syntax.Expression, ...]) -> str:
    return ", ".join(expression(one) for one in nodes)
