# SPDX-License-Identifier: Apache-2.0
"""bpftrace's language: what is read, and that what is printed means the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from podscope.trace import syntax
from podscope.trace.parse import ProgramError
from podscope.trace.parse import parse
from podscope.trace.syntax import Assign
from podscope.trace.syntax import Binary
from podscope.trace.syntax import Block
from podscope.trace.syntax import Call
from podscope.trace.syntax import Cast
from podscope.trace.syntax import Evaluate
from podscope.trace.syntax import Field
from podscope.trace.syntax import Index
from podscope.trace.syntax import Integer
from podscope.trace.syntax import Map
from podscope.trace.syntax import Name
from podscope.trace.syntax import Step
from podscope.trace.syntax import String
from podscope.trace.syntax import Ternary
from podscope.trace.syntax import Tuple
from podscope.trace.syntax import Type
from podscope.trace.syntax import Unary
from podscope.trace.syntax import Variable
from podscope.trace.unparse import expression
from podscope.trace.unparse import unparse

TOOLS = sorted(Path("/usr/sbin").glob("*.bt"))
SHIPPED = sorted((Path(syntax.__file__).parent / "scripts").glob("*.bt"))


def only_expression(text: str) -> syntax.Expression:
    """The tree of one expression."""
    (probe,) = parse(f"BEGIN {{ {text} }}").probes
    (statement,) = probe.body.statements
    assert isinstance(statement, Evaluate)
    return statement.expression


def only_predicate(text: str) -> syntax.Expression | None:
    """The tree of a predicate."""
    (probe,) = parse(f"kprobe:f {text} {{ exit() }}").probes
    return probe.predicate


A, B, C = Name("A"), Name("B"), Name("C")
X, PID = Variable("$x"), Name("pid")
ONE, TWO = Integer("1"), Integer("2")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("A + B * C", Binary(A, "+", Binary(B, "*", C))),
        ("A - B - C", Binary(Binary(A, "-", B), "-", C)),
        ("A == B & C", Binary(Binary(A, "==", B), "&", C)),
        ("A << B + C", Binary(A, "<<", Binary(B, "+", C))),
        ("A >> 1 > B", Binary(Binary(A, ">>", ONE), ">", B)),
        ("A || B && C", Binary(A, "||", Binary(B, "&&", C))),
        ("A ? B : C ? 1 : 2", Ternary(A, B, Ternary(C, ONE, TWO))),
        ("!A == B", Binary(Unary("!", A), "==", B)),
        ("*$x.a", Unary("*", Field(X, ".", "a"))),
        ("(uint8)$x.a", Cast(Type("uint8"), Field(X, ".", "a"))),
        ("(struct s **)arg0", Cast(Type("s", "struct", 2), Name("arg0"))),
        ("(s *)arg0", Cast(Type("s", "", 1), Name("arg0"))),
        ("(uint8[4])$x", Cast(Type("uint8", "", 0, "4"), X)),
        ("(int32[])$x", Cast(Type("int32", "", 0, ""), X)),
        ("(A) - 1", Cast(Type("A"), Unary("-", ONE))),
        ("(A) * $x", Cast(Type("A"), Unary("*", X))),
        ("(pid) - 1", Binary(PID, "-", ONE)),
        ("(pid) * $x", Binary(PID, "*", X)),
        ("(A * B)", Binary(A, "*", B)),
        ("(A)", A),
        ("(1, $x, (2, 1))", Tuple((ONE, X, Tuple((TWO, ONE))))),
        ("$x.1", Field(X, ".", "1")),
        ("args.continue", Field(Name("args"), ".", "continue")),
        ("args->if", Field(Name("args"), "->", "if")),
        ("@[pid, comm]", Map("@", (PID, Name("comm")))),
        ("@a[1][2]", Index(Map("@a", (ONE,)), TWO)),
        ("@a++", Step(Map("@a"), "++")),
        ("--$x", Unary("--", X)),
        ("nsecs(monotonic)", Call("nsecs", (Name("monotonic"),))),
        ("sizeof(struct s)", syntax.SizeOf(Type("s", "struct"))),
        ("sizeof(s **)", syntax.SizeOf(Type("s", "", 2))),
        ("sizeof(A * 1)", syntax.SizeOf(Binary(A, "*", ONE))),
        ("sizeof(*$x)", syntax.SizeOf(Unary("*", X))),
        ("offsetof(struct s, a.b)", syntax.OffsetOf(Type("s", "struct"), ("a", "b"))),
        ("str($1)", Call("str", (syntax.Positional("$1"),))),
        (r'"a\"b/{\n"', String(r'"a\"b/{\n"')),
        ("1e6", Integer("1e6")),
        ("1_000_000", Integer("1_000_000")),
        ("0xFFul", Integer("0xFFul")),
        ("10ms", Integer("10ms")),
    ],
)
def test_expression_is_read_as_bpftrace_reads_it(text, tree):
    assert only_expression(text) == tree


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("/pid/", PID),
        ("/pid / 2 == 1/", Binary(Binary(PID, "/", TWO), "==", ONE)),
        ("/ pid / 2 / 1 /", Binary(Binary(PID, "/", TWO), "/", ONE)),
        ("/pid == 1/ // note {\n", Binary(PID, "==", ONE)),
        ("/pid/ /* {note} */", PID),
        ('/comm == "a / {"/', Binary(Name("comm"), "==", String('"a / {"'))),
        ("", None),
    ],
)
def test_slash_before_the_block_ends_the_predicate_and_others_divide(text, tree):
    assert only_predicate(text) == tree


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("BEGIN", ("BEGIN",)),
        ("interval:s:1", ("interval:s:1",)),
        ("tracepoint:syscalls:sys_enter_*", ("tracepoint:syscalls:sys_enter_*",)),
        ("kprobe:f,kretprobe : f", ("kprobe:f", "kretprobe:f")),
        ("kprobe:f+4", ("kprobe:f+4",)),
        ("uprobe:/bin/bash:readline", ("uprobe:/bin/bash:readline",)),
        ("uprobe:./a-b.so.1:f", ("uprobe:./a-b.so.1:f",)),
        ('uprobe:/x:"a b(int, c)"', ('uprobe:/x:"a b(int, c)"',)),
        ('uprobe:/x:cpp:"a::b : c"', ('uprobe:/x:cpp:"a::b : c"',)),
        ("usdt:/x:libc:memory_*", ("usdt:/x:libc:memory_*",)),
        ("uprobe:$1:f", ("uprobe:$1:f",)),
        ("watchpoint:0x1000:8:rw", ("watchpoint:0x1000:8:rw",)),
        ("u:/proc/$container_pid/exe:f", ("u:/proc/$container_pid/exe:f",)),
        ("profile:hz:99 , END", ("profile:hz:99", "END")),
        ("kprobe:nvme_[ab]*", ("kprobe:nvme_[ab]*",)),
        ("fentry:vmlinux:f", ("fentry:vmlinux:f",)),
        ("rawtracepoint:sched_switch", ("rawtracepoint:sched_switch",)),
        ("iter:task", ("iter:task",)),
        ("self:signal:SIGUSR1", ("self:signal:SIGUSR1",)),
    ],
)
def test_attach_points_are_read(text, points):
    (probe,) = parse(f"{text} /1/ {{ exit() }}").probes
    assert probe.points == points


PROGRAM = r"""#!/usr/bin/env bpftrace
/* a note with a } */
#include <linux/sched.h>
#define LONG \
  3
struct foo { int a; union { int b; char c[4]; } u; /* } */ };
enum which { X, Y }
config = { max_map_keys = 10; stack_mode = perf }
let @m = lruhash(100);
fn twice($a : uint64, $b : struct foo *): uint64 { return $a * 2; }
macro note($a, @b) { @b[$a] = 1; }
BEGIN, kprobe:f
{
    if (pid) { return } else if ($x) { @a++; } else { };
    while ($x < 5) { $x += 1; if ($x == 3) { continue } break; }
    unroll (3) { ; } unroll ($1) { $y = 1 }
    for ($kv : @a) { print($kv.0); }
    for ($i : 0..10) { }
    let $q; let $r : uint8[4] = 1; let $s = 2;
    { $inner = 1 }
    @b[1] <<= 3; @b[1] -= 1;
    exit()
}
"""


def test_every_part_of_a_program_is_kept():
    # GIVEN / WHEN
    program = parse(PROGRAM)

    # THEN
    assert program.definitions == (
        "#include <linux/sched.h>",
        "#define LONG \\\n  3",
        "struct foo { int a; union { int b; char c[4]; } u; /* } */ };",
        "enum which { X, Y };",
    )
    assert program.config == (
        syntax.Setting("max_map_keys", Integer("10")),
        syntax.Setting("stack_mode", Name("perf")),
    )
    declared, function, macro, probe = program.items
    assert declared == syntax.MapDeclaration("@m", "lruhash", "100")
    assert isinstance(function, syntax.Function) and function.result == Type("uint64")
    assert isinstance(macro, syntax.Macro) and macro.parameters == ("$a", "@b")
    assert isinstance(probe, syntax.Probe)
    kinds = [type(one).__name__ for one in probe.body.statements]
    assert kinds == [
        *("If", "While", "Unroll", "Unroll", "For", "For"),
        *("Declare", "Declare", "Declare", "Block", "Assign", "Assign", "Evaluate"),
    ]
    assert parse(unparse(program)) == program


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the program is empty"),
        (" \n", "the program is empty"),
        ("BEGIN { @a = ; }", "line 1, column 14: not expected here: ';'"),
        ("BEGIN {\n  exit( }\n", "line 2, column 9: not expected here: '}'"),
        ("BEGIN { exit();", "the program ends too early: a '}' or a block is missing"),
        ("BEGIN", "the program ends too early: a '}' or a block is missing"),
        ("kprobe:f /pid == 1 { }", "line 1, column 20: not expected here: '{'"),
        ('BEGIN { printf("x) }', "line 1, column 16: not expected here: '\"x)'"),
    ],
)
def test_text_that_is_no_program_is_refused_with_its_place(text, told):
    with pytest.raises(ProgramError) as refused:
        parse(text)
    assert str(refused.value) == told


@pytest.mark.parametrize("path", [*TOOLS, *SHIPPED], ids=lambda path: path.name)
def test_script_printed_and_read_again_is_the_same(path):
    program = parse(path.read_text())
    assert program.probes
    assert parse(unparse(program)) == program


def test_bpftraces_own_tools_were_there():
    if not TOOLS:
        pytest.skip("the package bpftrace is not installed: apt install bpftrace")
    assert len(TOOLS) > 30


names = st.sampled_from(["a", "pid", "comm", "BAR", "retval", "skc_family"])
variables = st.builds(Variable, st.sampled_from(["$x", "$sk"]))
types = st.builds(
    Type,
    st.sampled_from(["uint64", "sock", "int8"]),
    st.sampled_from(["", "struct", "union"]),
    st.integers(0, 2),
    st.sampled_from([None, "", "4"]),
)
leaves = st.one_of(
    st.builds(Integer, st.sampled_from(["0", "17", "0xff", "1e6", "5ms"])),
    st.builds(String, st.sampled_from(['""', '"a b"', r'"\"\n/{"', '"%s }"'])),
    st.builds(Name, names),
    st.builds(syntax.Positional, st.sampled_from(["$1", "$#"])),
    st.builds(Map, st.sampled_from(["@", "@x"])),
    variables,
)
BINARY = ["||", "&&", "|", "^", "&", "==", "!=", "<", ">", "<=", ">=", "<<", ">>", *"+-*/%"]


def larger(inner: st.SearchStrategy) -> st.SearchStrategy:
    """Expressions of such expressions."""
    some = st.lists(inner, min_size=1, max_size=3).map(tuple)
    maps = st.builds(Map, st.sampled_from(["@", "@x"]), some)
    return st.one_of(
        st.builds(Binary, inner, st.sampled_from(BINARY), inner),
        st.builds(Ternary, inner, inner, inner),
        st.builds(Unary, st.sampled_from("!~-*&"), inner),
        st.builds(Unary, st.sampled_from(["++", "--"]), maps | variables),
        st.builds(Step, maps | variables, st.sampled_from(["++", "--"])),
        st.builds(Cast, types, inner),
        st.builds(Field, inner, st.sampled_from([".", "->"]), st.sampled_from(["a", "if"])),
        st.builds(Field, inner, st.just("."), st.sampled_from(["0", "12"])),
        st.builds(Index, inner.filter(lambda node: not isinstance(node, Map)), inner),
        st.builds(Call, st.sampled_from(["hist", "str"]), some),
        st.builds(Tuple, some),
        st.builds(syntax.SizeOf, inner),
        st.builds(syntax.OffsetOf, inner, st.just(("a", "b"))),
        maps,
    )


expressions = st.recursive(leaves, larger, max_leaves=8)
targets = variables | st.builds(Map, st.just("@m"), st.lists(leaves, max_size=2).map(tuple))
simple = st.one_of(
    st.builds(Evaluate, expressions),
    st.builds(Assign, targets, st.sampled_from(["=", "+=", "<<=", "/="]), expressions),
    st.builds(syntax.Declare, st.just("$d"), st.none() | types, st.none() | leaves),
    st.builds(syntax.Jump, st.just("return"), st.none() | expressions),
    st.builds(syntax.Jump, st.sampled_from(["break", "continue"])),
)


def compound(inner: st.SearchStrategy) -> st.SearchStrategy:
    """Statements of such statements."""
    blocks = st.lists(inner, max_size=3).map(tuple).map(Block)
    return st.one_of(
        st.builds(syntax.If, leaves, blocks, st.none() | blocks),
        st.builds(syntax.While, leaves, blocks),
        st.builds(syntax.Unroll, leaves, blocks),
        st.builds(syntax.For, st.just("$kv"), st.builds(Map, st.just("@m")), blocks),
        blocks,
    )


statements = st.recursive(simple, compound, max_leaves=4)
POINTS = ["BEGIN", "kprobe:f", 'uprobe:/a/b:"c d"', "interval:s:1", "tracepoint:a:b_*"]
probes = st.builds(
    syntax.Probe,
    st.lists(st.sampled_from(POINTS), min_size=1, max_size=3).map(tuple),
    st.none() | expressions,
    st.lists(statements, max_size=4).map(tuple).map(Block),
)


@given(expressions)
@settings(deadline=None)
def test_expression_printed_and_read_again_is_the_same(tree):
    assert only_expression(expression(tree)) == tree


@given(st.lists(probes, min_size=1, max_size=2))
@settings(deadline=None, max_examples=50)
def test_program_printed_and_read_again_is_the_same(made):
    program = syntax.Program((), None, tuple(made))
    assert parse(unparse(program)) == program


def refusal(text: str) -> str:
    """Why the text is no program; empty if it is one."""
    try:
        parse(text)
    except ProgramError as refused:
        return str(refused)
    return ""


@given(st.text(alphabet='{}()/;@$"abc 1=:,#\n*', max_size=40))
@settings(deadline=None)
def test_any_text_is_a_program_or_refused_in_one_line(text):
    assert "\n" not in refusal(text)


def dumped(text: str) -> str:
    """The tree that bpftrace itself makes of a program."""
    done = subprocess.run(
        ["bpftrace", "-d", "-e", text], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout if done.returncode == 0 else ""


ORDINARY = [
    "BEGIN { @a = 1 + 2 * 3 - 4 / (5 - 6) % 7; @b = (1 << 3) + 2; @c = 1 << 3 + 2; }",
    "BEGIN { @a = !(1 == 2) || 3 > 2 && 4 & 5 ^ 6 | 7; @b = ~5; @c = -(-3); }",
    "BEGIN { $x = (uint8)pid + 1; @a = (uint8)(pid + 1); @b = pid == 1 ? 2 : (tid ? 3 : 4); }",
    'BEGIN / pid / 2 == 1 || comm != "a" / { printf("%d\\n", pid); if (pid) { exit() } }',
    "interval:s:1, BEGIN { unroll (3) { @x++; } $i = 0; while ($i < 5) { $i++; } }",
    "BEGIN { @[pid, comm] = count(); @h = hist(cpu); delete(@[1, comm]); print(@h); }",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_bpftrace_makes_the_same_tree_of_the_printed_program(text):
    # GIVEN
    if shutil.which("bpftrace") is None:
        pytest.skip("bpftrace is not installed: apt install bpftrace")
    before = dumped(text)
    if not before:
        pytest.skip("bpftrace could not dump its tree: it needs root")

    # WHEN / THEN
    assert dumped(unparse(parse(text))) == before
