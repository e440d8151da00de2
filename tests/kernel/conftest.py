# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that need root and a kernel with BPF."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[1]))

from conversations.observed import Observer

settings.register_profile(
    "kernel",
    max_examples=int(os.environ.get("PODSCOPE_EXAMPLES", "150")),
    deadline=None,
    derandomize=os.environ.get("PODSCOPE_RANDOM") is None,
    database=None,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
settings.load_profile("kernel")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root the tests of this directory are skipped, and say so."""
    if os.geteuid() == 0:
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs root: run `sudo make test-kernel`"))


@pytest.fixture(scope="session")
def own_cgroup() -> Iterator[str]:
    """A cgroup for the tests' own sockets, so that other programs on the host don't disturb."""
    from podscope.kernel.probes import find_cgroup2

    root = Path(find_cgroup2())
    for left in root.glob("podscope-test-*"):  # by runs that were killed
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            with suppress(OSError):
                left.rmdir()
    own = root / f"podscope-test-{os.getpid()}"
    with open("/proc/self/cgroup", encoding="utf-8") as lines:
        before = next(line.rstrip().partition("::")[2] for line in lines if line.startswith("0::"))
    own.mkdir()
    try:
        (own / "cgroup.procs").write_text(str(os.getpid()))
        yield str(own)
    finally:
        # Children that a test has left would keep the directory busy.
        for pid in (own / "cgroup.procs").read_text().split():
            (root / before.lstrip("/") / "cgroup.procs").write_text(pid)
        own.rmdir()


@pytest.fixture(scope="module")
def module_watch(own_cgroup: str) -> Iterator[Observer]:
    """One watch for a module's tests; each test has a port of its own."""
    from podscope.pipeline import watch as open_watch
    from podscope.sources.http import RequestLog

    # One process plays all tests of a module, so it has more routes and series than a program has.
    with open_watch(
        kinds=("http", "request"),
        interval=1.0,
        routes=True,
        log=RequestLog(all=True),
        cgroup=own_cgroup,
        max_series=50_000,
        routes_per_workload=10_000,
    ) as opened:
        yield Observer(opened)


@pytest.fixture
def watch(module_watch: Observer) -> Observer:
    """The module's watch; nothing of earlier tests is in it."""
    module_watch.begin()
    return module_watch


@pytest.fixture
def exact(watch: Observer) -> Iterator[Observer]:
    """The watch, for tests in which nothing may be lost."""
    before = watch.lost()
    yield watch
    watch.read()
    after = watch.lost()
    gone = {reason: n - before.get(reason, 0) for reason, n in after.items()}
    assert {reason: n for reason, n in gone.items() if n} == {}, "something was lost"
