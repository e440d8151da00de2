# SPDX-License-Identifier: Apache-2.0
"""OOM kills: what the kernel's stack and the names of cgroups say."""

from __future__ import annotations

import pytest

from podscope.kernel import symbols
from podscope.sources import oom

# Outermost last, as the kernel gives them; of Linux 6.18 and 5.10.
STACKS = {
    "memcg": ["mark_oom_victim", "oom_kill_process", "out_of_memory", "mem_cgroup_out_of_memory",
              "try_charge_memcg", "charge_memcg"],
    "global": ["mark_oom_victim", "oom_kill_process", "out_of_memory", "__alloc_pages_slowpath",
               "__alloc_pages_nodemask"],
    "sysrq": ["mark_oom_victim", "oom_kill_process", "out_of_memory", "moom_callback",
              "process_one_work"],
    "": ["", ""],
}  # fmt: skip


@pytest.mark.parametrize("scope", STACKS, ids=lambda scope: scope or "unknown")
def test_scope_is_told_by_who_called_the_killer(scope):
    assert oom.scope(STACKS[scope]) == scope


@pytest.mark.parametrize(
    ("names", "path"),
    [
        ([b"", b"", b""], "/"),
        ([b"b", b"a", b"", b""], "/a/b"),
        ([b"c", b"b", b"a"], "/a/b/c"),
        ([b"\xff", b""], "/\\xff"),
    ],
)
def test_path_is_put_together_from_the_innermost_name_up(names, path):
    assert oom.path_of(names) == path


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("out_of_memory+0x1a2/0x5f0", "out_of_memory"),
        ("mem_cgroup_out_of_memory.part.0+0x12/0x30", "mem_cgroup_out_of_memory"),
        ("work+0x1/0x2 [module]", "work"),
        ("0xffffffff81234567", ""),
        ("0x0", ""),
        ("", ""),
    ],
)
def test_a_function_is_named_without_what_follows_it(line, name):
    assert symbols.function(line) == name
