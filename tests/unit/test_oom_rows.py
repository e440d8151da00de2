# SPDX-License-Identifier: Apache-2.0
"""OOM kills: what the kernel's stack and the names of cgroups say."""

from __future__ import annotations

import pytest

from podscope.kernel.symbols import Symbols
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


def test_a_function_is_known_by_any_address_in_it(tmp_path):
    # GIVEN
    file = tmp_path / "kallsyms"
    file.write_text(
        "0000000000002000 T second.isra.0\n"
        "0000000000001000 t first\n"
        "0000000000001800 d data\n"
        "0000000000003000 t third\t[module]\n"
    )

    # WHEN
    symbols = Symbols(file)

    # THEN
    found = symbols.functions([0xFFF, 0x1000, 0x1FFF, 0x2001, 0x3001])
    assert found == ["", "first", "first", "second", "third"]


def test_without_the_right_to_see_addresses_nothing_is_found(tmp_path):
    # GIVEN
    file = tmp_path / "kallsyms"
    file.write_text("0000000000000000 T out_of_memory\n")

    # WHEN / THEN
    assert Symbols(file).function(0x1000) == ""
    assert Symbols(tmp_path / "none").function(0x1000) == ""
