# SPDX-License-Identifier: Apache-2.0
"""Which CPUs there are, as the kernel writes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podscope.kernel.cpus import cpu_list


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0\n", [0]), ("0-3\n", [0, 1, 2, 3]), ("0-1,4,6-7\n", [0, 1, 4, 6, 7]), ("\n", [])],
)
def test_ranges_of_cpus_are_read(text, cpus):
    assert cpu_list(text) == cpus


@given(st.sets(st.integers(0, 300)))
def test_any_set_of_cpus_is_read(cpus):
    assert cpu_list(",".join(map(str, sorted(cpus)))) == sorted(cpus)
