# SPDX-License-Identifier: Apache-2.0
"""What is changed in a program before it runs: confined, averages, snapshots, process ids."""

from __future__ import annotations

import pytest

from podscope.errors import UsageError
from podscope.trace import maps
from podscope.trace import rewrite
from podscope.trace import syntax
from podscope.trace.parse import parse
from podscope.trace.unparse import expression
from podscope.trace.unparse import unparse


def predicates(program: syntax.Program) -> dict[str, str]:
    """The text of each attach point's predicate."""
    return {
        point: "" if probe.predicate is None else expression(probe.predicate)
        for probe in program.probes
        for point in probe.points
    }


def squeezed(program: syntax.Program) -> str:
    return " ".join(unparse(program).split())


def test_every_probe_but_clocks_and_bpftraces_own_is_confined():
    # GIVEN
    program = parse(
        "BEGIN { @a = 1; } END { clear(@a); } interval:s:1 { exit(); } i:ms:5 { exit(); }"
        "tracepoint:a:b /pid == 1 || tid == 2/ { @ = count(); } profile:hz:99 { @ = count(); }"
        "kprobe:f, uprobe:/x:g { @ = count(); } software:faults:1 { @ = count(); }"
    )

    # WHEN
    confined = rewrite.confined_to_cgroups(program, {7, 5})

    # THEN
    inside = "@podscope_cgroups[cgroup]"
    assert predicates(confined) == {
        "BEGIN": "",
        "END": "",
        "interval:s:1": "",
        "i:ms:5": "",
        "tracepoint:a:b": f"{inside} && (pid == 1 || tid == 2)",
        "profile:hz:99": inside,
        "kprobe:f": inside,
        "uprobe:/x:g": inside,
        "software:faults:1": inside,
    }
    begin = next(probe for probe in confined.probes if probe.points == ("BEGIN",))
    assert [expression(one.target) for one in begin.body.statements] == [
        "@podscope_cgroups[(uint64)5]",
        "@podscope_cgroups[(uint64)7]",
        "@a",
    ]


def test_a_probe_with_free_and_confined_points_becomes_two():
    # GIVEN / WHEN
    confined = rewrite.confined_to_processes(
        parse("interval:s:1, kprobe:f /tid/ { @ = count(); }"), (42, 43)
    )

    # THEN
    assert predicates(confined) == {
        "interval:s:1": "tid",
        "kprobe:f": "(pid == 42 || pid == 43) && tid",
    }


def test_a_begin_with_a_predicate_still_learns_the_cgroups():
    # GIVEN / WHEN
    confined = rewrite.confined_to_cgroups(parse("BEGIN, kprobe:f /pid/ { @ = count(); }"), {5})

    # THEN
    assert squeezed(confined).startswith(
        "BEGIN { @podscope_cgroups[(uint64)5] = (uint64)1; if (pid) { @ = count(); } } kprobe:f"
    )


def test_walks_over_the_kernels_lists_are_named():
    program = parse("iter:task { @ = count(); } kprobe:f { @ = count(); }")
    assert rewrite.unconfinable(program) == ("iter:task",)


def test_names_of_podscope_are_refused():
    with pytest.raises(UsageError, match="@podscope_x: maps with this beginning"):
        rewrite.check_names(parse("BEGIN { @podscope_x = 1; }"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kprobe:f { @a = avg(arg0); } END { print(@a); clear(@a); }", {"@a"}),
        ("kprobe:f { @a[comm] = avg(arg0); @b = avg(1); }", {"@a", "@b"}),
        ("kprobe:f { @a = avg(arg0); if (@a > 5) { exit(); } }", set()),
        ("kprobe:f { @a = avg(arg0); @b = @a; }", set()),
        ("kprobe:f { @a = stats(arg0); }", set()),
    ],
)
def test_averages_that_nothing_reads_can_become_stats(text, expected):
    assert maps.averages(parse(text)) == expected


def test_an_average_becomes_stats_and_others_stay():
    # GIVEN / WHEN
    made = rewrite.with_stats(parse("kprobe:f { @a = avg(arg0); @b = avg(1); }"), {"@a"})

    # THEN
    assert squeezed(made) == "kprobe:f { @a = stats(arg0); @b = avg(1); }"


def test_container_pid_is_put_in_everywhere():
    # GIVEN
    program = parse(
        "uprobe:/proc/$container_pid/exe:f /pid == $container_pid/"
        '{ cat("/proc/$container_pid/maps"); $container_pids = 1; }'
    )

    # WHEN
    made = rewrite.with_container_pid(program, 77)

    # THEN
    assert rewrite.uses_container_pid(program)
    assert not rewrite.uses_container_pid(made)
    assert squeezed(made) == (
        'uprobe:/proc/77/exe:f / pid == 77 / { cat("/proc/77/maps"); $container_pids = 1; }'
    )


def test_snapshots_print_aggregations_and_leave_out_what_is_only_remembered():
    # GIVEN
    program = parse(
        "kprobe:f { @start[tid] = nsecs; @n++; }"
        "kretprobe:f /@start[tid]/ { @h = hist(nsecs - @start[tid]); delete(@start[tid]); }"
        "END { clear(@start); }"
    )

    # WHEN
    made = rewrite.with_snapshots(program, maps.shapes(program).values(), "T", 500)

    # THEN
    text = squeezed(made)
    assert text.endswith(
        'interval:ms:500 { printf("T begin\\n"); print(@n); print(@h); printf("T end\\n"); }'
    )
    assert 'END { printf("T last\\n"); clear(@start); }' in text


def test_long_intervals_have_snapshots_in_the_first_second_alone_before():
    # GIVEN
    program = parse("kprobe:f { @n++; }")

    # WHEN
    made = squeezed(rewrite.with_snapshots(program, maps.shapes(program).values(), "T", 5000))

    # THEN
    body = '{ printf("T begin\\n"); print(@n); printf("T end\\n"); }'
    assert f"interval:ms:5000 {body}" in made
    assert f"interval:ms:200 / elapsed < 900000000 / {body}" in made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@a = count()", ("count", ())),
        ("@a[pid, comm, kstack] = sum(1)", ("sum", ("number", "text", "stack"))),
        ("@a[(tid, str(arg0))] = hist(1)", ("hist", ("number", "text"))),
        ("@a[args.fd, args] = lhist(1, 0, 9, 1)", ("lhist", ("unknown", "unknown"))),
        ("@a[pid + 1, arg0] = min(1)", ("min", ("number", "number"))),
        ("@a++", ("value", ())),
        ("@a[1] += 5", ("value", ("number",))),
        ("@a = count(); @a = sum(1)", ("value", ())),
        ("@a[pid] = count(); @a[comm] = count()", ("count", ("unknown",))),
    ],
)
def test_kind_and_key_of_a_map_are_read_from_the_program(text, expected):
    shape = maps.shapes(parse(f"kprobe:f {{ {text} }}"))["@a"]
    assert (shape.kind, shape.key) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('BEGIN { printf("x"); } kprobe:f { @ = count(); } END { time("x"); }', False),
        ("interval:s:1 { print(@); } kprobe:f { @ = count(); }", False),
        ('kprobe:f { printf("x"); }', True),
        ("kprobe:f { print((1, comm)); }", True),
        ('interval:s:1 { time("%H"); }', True),
    ],
)
def test_programs_that_write_lines_are_told_from_those_that_only_count(text, expected):
    assert rewrite.speaks(parse(text)) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('kprobe:f { printf("x"); if (pid) { time("%H"); } print((1, 2)); print(@a); }', 3),
        ('kprobe:f { @ = count(); }', 0),
        ('kprobe:f { pid ? printf("x") : 0; }', None),
        ('kprobe:f { printf("x"); cat("/proc/loadavg"); }', None),
        ('kprobe:f { join(args->argv); }', None),
    ],
)  # fmt: skip
def test_lines_are_counted_where_each_is_a_statement(text, expected):
    # GIVEN
    program = parse(text)

    # WHEN
    counted = unparse(rewrite.with_counted_lines(program)).count("@podscope_lines = count()")

    # THEN
    assert rewrite.can_count_lines(program) is (expected is not None)
    assert expected is None or counted == expected
