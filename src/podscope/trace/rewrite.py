# SPDX-License-Identifier: Apache-2.0
"""What podscope changes in a program before it runs: always in its tree, never in its text."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from podscope.errors import UsageError
from podscope.trace import syntax
from podscope.trace.maps import AGGREGATIONS
from podscope.trace.maps import VALUE
from podscope.trace.maps import MapShape

# Which of the kernel's cgroups a confined program sees: kept up to date from outside.
CGROUPS = "@podscope_cgroups"
# How many lines a program has written: bpftrace does not tell of all that were lost.
LINES = "@podscope_lines"
# First snapshots, and until when after the start there are any between intervals.
_EARLY_MS, _EARLY_END_MS = 200, 900
_RESERVED = "@podscope_"
# Probes that no program of the target runs: they are bpftrace's own, or a clock's.
_UNCONFINED = frozenset({"BEGIN", "END", "begin", "end", "interval", "i", "self", "test", "bench"})
# One statement of BEGIN each; the verifier has a limit for a program.
MOST_IN_BEGIN = 200


def check_names(program: syntax.Program) -> None:
    """Raises UsageError where a program uses a name that podscope needs for itself."""
    for node in syntax.walk(program):
        if isinstance(node, syntax.Map) and node.name.startswith(_RESERVED):
            raise UsageError(f"{node.name}: maps with this beginning are podscope's own; rename it")


def unconfinable(program: syntax.Program) -> tuple[str, ...]:
    """Attach points that run in no program of a target, but walk the kernel's own lists."""
    return tuple(
        point
        for probe in program.probes
        for point in probe.points
        if _provider(point) in ("iter", "it")
    )


def confined_to_cgroups(
    program: syntax.Program, ids: Iterable[int], whose: syntax.Expression | None = None
) -> syntax.Program:
    """The program with a predicate on every probe: the current task's cgroup is one of these.

    The test is a look-up in a map of the program, so that what joins the target later can be
    added while it runs. ``cgroup`` is ``bpf_get_current_cgroup_id()``, the inode of the cgroup's
    directory in the hierarchy of version 2: that of the leaf, so ids of all leaves are needed.

    Args:
        program: what to confine.
        ids: of the target's cgroups as they are now.
        whose: what gives the id in its place, where events are another's than the current task's.
    """
    predicate = syntax.Map(CGROUPS, (whose or syntax.Name("cgroup"),))
    made = _confined(program, predicate)
    first = sorted(ids)[:MOST_IN_BEGIN]
    # There at once: the map would else not exist where no id is known yet. Newer versions would
    # make it of smaller integers.
    known: list[syntax.Statement] = [
        syntax.Assign(syntax.Map(CGROUPS, (_whole(one),)), "=", _whole(1)) for one in first or [0]
    ]
    return _with_first(made, "BEGIN", known)


def confined_to_processes(program: syntax.Program, pids: Sequence[int]) -> syntax.Program:
    """The program with a predicate on every probe: the current task is of one of these."""
    tests = [syntax.Binary(syntax.Name("pid"), "==", syntax.Integer(str(pid))) for pid in pids]
    wanted: syntax.Expression = tests[0]
    for one in tests[1:]:
        wanted = syntax.Binary(wanted, "||", one)
    return _confined(program, wanted)


def can_be_owned(program: syntax.Program, name: str) -> bool:
    """Whether a map's keys can get one more part: it is only added to, printed and emptied, and
    added to by probes alone that run in programs of the target."""
    used = sum(isinstance(one, syntax.Map) and one.name == name for one in syntax.walk(program))
    for probe in program.probes:
        bound = not any(_provider(point) in _UNCONFINED for point in probe.points)
        for node in syntax.walk(probe):
            if _adds_to(node, name):
                used -= 1 if bound else 0
            elif isinstance(node, syntax.Call) and node.name in ("print", "clear", "zero"):
                used -= node.arguments[:1] == (syntax.Map(name),)
    return used == 0


def _adds_to(node: object, name: str) -> bool:
    return (
        isinstance(node, syntax.Assign)
        and isinstance(node.target, syntax.Map)
        and node.target.name == name
        and node.operator == "="
        and isinstance(node.value, syntax.Call)
        and node.value.name in AGGREGATIONS
    )


def with_owners(
    program: syntax.Program, maps: Iterable[str], tag: str, whose: syntax.Expression | None = None
) -> syntax.Program:
    """The program with the cgroup of each event: in front of the lines that it writes, and as the
    first part of the keys of some maps.

    Args:
        program: what is confined already: probes of programs and others do not stand together.
        maps: see `can_be_owned`.
        tag: what marks the cgroup in lines; without ``%`` and quotes.
        whose: as of `confined_to_cgroups`.
    """
    wanted = frozenset(maps)
    owner = whose or syntax.Name("cgroup")

    def change(node: Any) -> Any:
        if isinstance(node, syntax.Assign) and isinstance(node.target, syntax.Map):
            target = node.target
            if target.name not in wanted or not _adds_to(node, target.name):
                return node
            keys = target.keys
            if len(keys) == 1 and isinstance(keys[0], syntax.Tuple):
                keys = keys[0].items
            return replace(node, target=syntax.Map(target.name, (owner, *keys)))
        if isinstance(node, syntax.Evaluate) and _writes_a_line(node):
            return _with_owner(node, owner, tag)
        return node

    items: list[syntax.Item] = []
    for item in program.items:
        is_bound = isinstance(item, syntax.Probe) and not any(
            _provider(point) in _UNCONFINED for point in item.points
        )
        items.append(syntax.changed(item, change) if is_bound else item)
    return replace(program, items=tuple(items))


def _with_owner(line: syntax.Evaluate, owner: syntax.Expression, tag: str) -> syntax.Statement:
    call = line.expression
    assert isinstance(call, syntax.Call)
    if not call.arguments:
        return line
    first = call.arguments[0]
    if call.name == "printf" and isinstance(first, syntax.String):
        text = syntax.String(f'"{tag}%llu:{first.text[1:]}')
        return replace(line, expression=replace(call, arguments=(text, owner, *call.arguments[1:])))
    if call.name == "print" and len(call.arguments) == 1:
        items = first.items if isinstance(first, syntax.Tuple) else (first,)
        tagged = syntax.Tuple((_whole(value_tag(tag)), owner, *items))
        return replace(line, expression=replace(call, arguments=(tagged,)))
    return line


def value_tag(tag: str) -> int:
    """What marks the cgroup in a printed value: a number that JSON holds whole, 46 bits."""
    return 1 << 45 | zlib.crc32(tag.encode())


def with_stats(program: syntax.Program, names: Iterable[str]) -> syntax.Program:
    """The program with ``stats()`` for ``avg()`` in these maps.

    bpftrace prints an average without its count, cut to an integer: averages of two nodes could
    not be made one. Count and total can.
    """
    wanted = frozenset(names)

    def change(node: Any) -> Any:
        if not isinstance(node, syntax.Assign) or not isinstance(node.target, syntax.Map):
            return node
        value = node.value
        if node.target.name in wanted and isinstance(value, syntax.Call) and value.name == "avg":
            return replace(node, value=replace(value, name="stats"))
        return node

    return syntax.changed(program, change)


def uses_container_pid(program: syntax.Program) -> bool:
    """Whether ``$container_pid`` is in it anywhere."""
    return any(
        (isinstance(node, syntax.Variable) and node.name == "$container_pid")
        or (isinstance(node, syntax.String) and "$container_pid" in node.text)
        or (isinstance(node, syntax.Probe) and any("$container_pid" in p for p in node.points))
        for node in syntax.walk(program)
    )


def with_container_pid(program: syntax.Program, pid: int) -> syntax.Program:
    """The program with the process id in place of each ``$container_pid``: also in attach points
    and strings, as kubectl-trace has it."""

    def change(node: Any) -> Any:
        if isinstance(node, syntax.Variable) and node.name == "$container_pid":
            return syntax.Integer(str(pid))
        if isinstance(node, syntax.String):
            return syntax.String(node.text.replace("$container_pid", str(pid)))
        if isinstance(node, syntax.Probe):
            points = tuple(one.replace("$container_pid", str(pid)) for one in node.points)
            return replace(node, points=points)
        return node

    return syntax.changed(program, change)


def with_snapshots(
    program: syntax.Program, maps: Iterable[MapShape], token: str, interval_ms: int
) -> syntax.Program:
    """The program with a probe that prints its maps at intervals, between two marks.

    Maps are printed as they stand and never cleared: what comes between a print and a clear would
    be in neither. A mark at the end tells that what follows are the last values. Until then two
    kinds of maps are left out: those in which a program only remembers something, and those with
    stacks of user space, whose names bpftrace would look up anew each time. Where intervals are
    long, there are some in the first second too: who waits sees something.
    """
    shown = [
        one
        for one in maps
        if not (one.scratch and one.kind == VALUE)
        and not any(title.startswith("ustack") for title in one.titles)
    ]
    prints = [_call("print", syntax.Map(one.name)) for one in shown]
    body = syntax.Block((_mark(token, "begin"), *prints, _mark(token, "end")))
    clocks = [syntax.Probe((f"interval:ms:{interval_ms}",), None, body)]
    if interval_ms > _EARLY_END_MS:
        young = syntax.Binary(
            syntax.Name("elapsed"), "<", syntax.Integer(str(_EARLY_END_MS * 10**6))
        )
        clocks.append(syntax.Probe((f"interval:ms:{_EARLY_MS}",), young, body))
    made = _with_first(program, "END", [_mark(token, "last")])
    return replace(made, items=(*made.items, *clocks))


def with_counted_lines(program: syntax.Program) -> syntax.Program:
    """The program with a count of the lines that it writes.

    The kernel tells of lost records when the next one finds room (perf_output_begin in
    kernel/events/ring_buffer.c), so that the last ones lost are never told. This count is exact.
    """
    counted = syntax.Assign(syntax.Map(LINES), "=", syntax.Call("count"))

    def change(node: Any) -> Any:
        if not isinstance(node, syntax.Block):
            return node
        made: list[syntax.Statement] = []
        for one in node.statements:
            made += [counted, one] if _writes_a_line(one) else [one]
        return syntax.Block(tuple(made))

    return syntax.changed(program, change)


def can_count_lines(program: syntax.Program) -> bool:
    """Whether all lines are written by statements of their own, one each. ``cat`` writes as many as
    a file has, ``join`` none where a process has no arguments."""
    calls = sum(isinstance(one, syntax.Call) and _is_line(one) for one in syntax.walk(program))
    statements = sum(_writes_a_line(one) for one in syntax.walk(program))
    others = any(
        isinstance(one, syntax.Call) and one.name in ("cat", "system", "join")
        for one in syntax.walk(program)
    )
    return calls == statements and not others


def _writes_a_line(node: object) -> bool:
    return (
        isinstance(node, syntax.Evaluate)
        and isinstance(node.expression, syntax.Call)
        and _is_line(node.expression)
    )


def _is_line(call: syntax.Call) -> bool:
    if call.name == "print":
        return not _prints_map(call)
    return call.name in ("printf", "time", "errorf", "warnf")


def speaks(program: syntax.Program) -> bool:
    """Whether it writes lines while it runs, and not only at its beginning and end."""
    writers = {"printf", "time", "cat", "join", "system", "errorf", "warnf"}
    return any(
        isinstance(node, syntax.Call)
        and (node.name in writers or (node.name == "print" and not _prints_map(node)))
        for probe in program.probes
        if not all(point in ("BEGIN", "END", "begin", "end") for point in probe.points)
        for node in syntax.walk(probe)
    )


def _prints_map(call: syntax.Call) -> bool:
    """Whether a whole map, or one entry of it, which some versions print as a map, too."""
    return bool(call.arguments) and isinstance(call.arguments[0], syntax.Map)


def _confined(program: syntax.Program, wanted: syntax.Expression) -> syntax.Program:
    items: list[syntax.Item] = []
    for item in program.items:
        items += _confined_probe(item, wanted) if isinstance(item, syntax.Probe) else [item]
    return replace(program, items=tuple(items))


def _confined_probe(probe: syntax.Probe, wanted: syntax.Expression) -> list[syntax.Probe]:
    free = tuple(point for point in probe.points if _provider(point) in _UNCONFINED)
    bound = tuple(point for point in probe.points if _provider(point) not in _UNCONFINED)
    made = []
    if free:
        made.append(replace(probe, points=free))
    if bound:
        asked = probe.predicate
        both = wanted if asked is None else syntax.Binary(wanted, "&&", asked)
        made.append(replace(probe, points=bound, predicate=both))
    return made


def _provider(point: str) -> str:
    return point.partition(":")[0]


def _with_first(
    program: syntax.Program, point: str, statements: list[syntax.Statement]
) -> syntax.Program:
    """The statements at the beginning of the probe BEGIN or END: there may be only one of each."""
    items: list[syntax.Item] = []
    found = False
    for item in program.items:
        if not isinstance(item, syntax.Probe) or not _has(item, point):
            items.append(item)
            continue
        rest = tuple(one for one in item.points if not _is(one, point))
        body = item.body.statements
        if item.predicate is not None:
            body = (syntax.If(item.predicate, item.body),)
        items.append(syntax.Probe((point,), None, syntax.Block((*statements, *body))))
        if rest:
            items.append(replace(item, points=rest))
        found = True
    if not found:
        items.insert(0, syntax.Probe((point,), None, syntax.Block(tuple(statements))))
    return replace(program, items=tuple(items))


def _has(probe: syntax.Probe, point: str) -> bool:
    return any(_is(one, point) for one in probe.points)


def _is(point: str, wanted: str) -> bool:
    return point.upper() == wanted


def _whole(number: int) -> syntax.Expression:
    """A number of 64 bits."""
    return syntax.Cast(syntax.Type("uint64"), syntax.Integer(str(number)))


def _call(name: str, *arguments: syntax.Expression) -> syntax.Statement:
    return syntax.Evaluate(syntax.Call(name, arguments))


def _mark(token: str, what: str) -> syntax.Statement:
    return _call("printf", syntax.String(f'"{token} {what}\\n"'))
