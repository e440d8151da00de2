# SPDX-License-Identifier: Apache-2.0
"""Cgroups made and removed on the running kernel: every one is told, and known afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from podscope.errors import PodscopeError
from podscope.identity.cgroup_layouts import container_of
from podscope.identity.cgroup_paths import PATH_BYTES
from podscope.identity.cgroup_paths import PATH_CUT
from podscope.identity.cgroup_paths import REMOVED
from podscope.identity.cgroup_paths import WALK_SECONDS
from podscope.identity.cgroup_paths import CgroupPaths
from podscope.kernel.probes import find_cgroup2
from podscope.sources.cgroups import CgroupSource


def remove(top: Path) -> None:
    """A cgroup and all below it, the deepest first."""
    for directory, _, _ in os.walk(top, topdown=False):
        with suppress(FileNotFoundError):
            os.rmdir(directory)


@pytest.fixture
def top() -> Iterator[Path]:
    """A cgroup for a test's own."""
    made = Path(find_cgroup2(), f"podscope-test-cgroups-{os.getpid()}")
    made.mkdir()
    yield made
    remove(made)


@pytest.fixture
def source() -> Iterator[CgroupSource]:
    with CgroupSource() as opened:
        yield opened


def below(path: Path) -> str:
    """Path below the mount."""
    return str(path).removeprefix(find_cgroup2())


def rows_of(source: CgroupSource, *ids: int) -> np.ndarray:
    """What came of these: other programs on this machine make cgroups too."""
    rows = source.read()
    return rows[np.isin(rows["id"], ids)]


def test_records_and_the_readers_numbers_are_the_same(source):
    # GIVEN / WHEN
    dtype = source.row_dtype

    # THEN
    assert source.kinds == {"CGROUP_MADE": 1, "CGROUP_REMOVED": REMOVED}
    assert dtype["path"].itemsize == PATH_BYTES + 1
    assert 2 * PATH_BYTES == PATH_CUT
    assert dtype.itemsize == 536


def test_events_have_the_directorys_number_its_parents_and_the_path(source, top):
    # GIVEN
    child = top / "child"

    # WHEN
    child.mkdir()
    number = child.stat().st_ino
    child.rmdir()
    rows = rows_of(source, number)

    # THEN
    kinds = source.kinds
    assert rows["kind"].tolist() == [kinds["CGROUP_MADE"], kinds["CGROUP_REMOVED"]]
    assert rows["id"].tolist() == [number, number]
    assert rows["parent"].tolist() == [top.stat().st_ino] * 2
    assert rows["level"][0] == rows["level"][1] >= 2
    for length, path in zip(rows["path_len"].tolist(), rows["path"].tolist(), strict=True):
        assert path[:length].decode().endswith(below(child))


def test_cgroup_that_lives_5_ms_is_known_afterwards(source, top):
    # GIVEN
    paths = CgroupPaths(find_cgroup2())
    pod = top / "kubepods/burstable/pod2d5133c0-65f3-40b2-b375-c04866d418e1"
    container = pod / ("4f79" * 16)

    # WHEN
    container.mkdir(parents=True)
    number = container.stat().st_ino
    time.sleep(0.005)
    remove(top / "kubepods")
    paths.take(source.read())

    # THEN
    assert not container.exists()
    assert paths.path(number) == below(container)
    found = container_of(paths.path(number))
    assert found is not None
    assert (found.pod_uid, found.container_id) == (pod.name[3:], container.name)
    assert source.lost() == 0


def test_of_200_made_at_once_none_is_lost(source, top):
    # GIVEN
    paths = CgroupPaths(find_cgroup2())
    made = [top / f"many-{index}" for index in range(200)]

    # WHEN
    for path in made:
        path.mkdir()
    numbers = [path.stat().st_ino for path in made]
    for path in made:
        path.rmdir()
    rows = source.read()
    paths.take(rows)

    # THEN
    own = rows[np.isin(rows["id"], numbers)]
    assert own["kind"].tolist() == [1] * 200 + [REMOVED] * 200
    assert own["id"].tolist() == numbers * 2
    assert [paths.path(number) for number in numbers] == [below(path) for path in made]
    assert source.lost() == 0


def test_cgroups_that_were_there_before_are_known_by_the_walk(top):
    # GIVEN
    (top / "old").mkdir()

    # WHEN
    paths = CgroupPaths(find_cgroup2())

    # THEN
    assert paths.path((top / "old").stat().st_ino) == below(top / "old")
    assert paths.path(Path(find_cgroup2()).stat().st_ino) == "/"


def test_walk_gives_every_directory_its_number(top):
    # GIVEN
    root = find_cgroup2()
    for name in ("a/b/c", "a/d", "e"):
        (top / name).mkdir(parents=True)

    # WHEN
    paths = CgroupPaths(root)

    # THEN
    for directory, _, _ in os.walk(top):
        assert paths.path(os.stat(directory).st_ino) == directory.removeprefix(root)


def test_reader_that_sees_a_part_of_the_tree_gets_paths_of_that_part(source, top):
    # GIVEN a node whose root is a cgroup of the machine
    node = top / "node"
    node.mkdir()
    paths = CgroupPaths(str(node))

    # WHEN
    (node / "pod").mkdir()
    (node / "pod" / "web").mkdir()
    (top / "other").mkdir()
    numbers = [(top / name).stat().st_ino for name in ("node/pod", "node/pod/web", "other")]
    paths.take(source.read())

    # THEN
    assert [paths.path(number) for number in numbers] == ["/pod", "/pod/web", ""]


def test_path_longer_than_a_record_is_whole(source, top):
    # GIVEN
    paths = CgroupPaths(find_cgroup2())
    deep = top / ("a" * 240) / ("b" * 240) / ("c" * 240)

    # WHEN
    deep.mkdir(parents=True)
    number = deep.stat().st_ino
    remove(top / ("a" * 240))
    rows = source.read()
    paths.take(rows)

    # THEN
    own = rows[rows["id"] == number]
    assert own["path_len"].tolist()[0] >= len(below(deep))
    assert own["path"].tolist()[0].decode().endswith(f"/{'c' * 240}")
    assert len(own["path"].tolist()[0]) == PATH_BYTES
    assert paths.path(number) == below(deep)


@pytest.mark.parametrize("extra", [-2, -1, 0, 1, 2])
def test_lengths_around_the_records_end_are_exact(source, top, extra):
    # GIVEN a path of so many bytes more than a record holds
    root = find_cgroup2()
    (top / "probe").mkdir()
    above = int(rows_of(source, (top / "probe").stat().st_ino)["path_len"][0]) - len("/probe")
    left = PATH_BYTES + extra - above - 2
    path = top / ("x" * 200) / ("y" * (left - 200))
    paths = CgroupPaths(root)

    # WHEN
    path.mkdir(parents=True)
    rows = rows_of(source, path.stat().st_ino)
    paths.take(rows)

    # THEN
    assert rows["path_len"].tolist() == [PATH_BYTES + extra]
    assert len(rows["path"][0].split(b"\0")[0]) == min(PATH_BYTES, PATH_BYTES + extra)
    assert rows["path"][0].split(b"\0")[0].endswith(path.name.encode())


def test_path_longer_than_the_kernels_own_limit_is_found_by_the_walk(source, top):
    # GIVEN
    now = [0.0]
    paths = CgroupPaths(find_cgroup2(), lambda: now[0])
    deep = top.joinpath(*(letter * 250 for letter in "abcde"))

    # WHEN
    deep.mkdir(parents=True)
    number = deep.stat().st_ino
    rows = rows_of(source, number)
    paths.take(rows)
    before = paths.path(number)
    now[0] += WALK_SECONDS

    # THEN
    assert rows["path_len"].tolist() == [PATH_CUT]
    assert before == ""
    assert paths.path(number) == below(deep)


def test_full_ring_is_counted_and_the_walk_finds_what_is_there(top):
    # GIVEN a ring for seven records
    now = [0.0]
    with CgroupSource(ring_bytes=4096) as source:
        paths = CgroupPaths(find_cgroup2(), lambda: now[0])

        # WHEN
        for index in range(20):
            (top / f"x{index}").mkdir()
        rows = source.read()
        paths.take(rows)

        # THEN
        assert len(rows) == 7
        assert source.lost() >= 13
        last = (top / "x19").stat().st_ino
        assert paths.path(last) == ""
        now[0] += WALK_SECONDS
        assert paths.path(last) == below(top / "x19")


def version_1() -> Path | None:
    """A mount of a hierarchy of version 1, on hybrid hosts."""
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        mounts = [line.split() for line in lines]
    found = {Path(mount[4]).name: Path(mount[4]) for mount in mounts if "cgroup" in mount}
    return found.get("pids") or found.get("freezer") or next(iter(found.values()), None)


def test_hierarchies_of_version_1_are_not_heard(source, top):
    # GIVEN
    other = version_1()
    if other is None:
        pytest.skip("no cgroup v1 here: that its events are passed over was not tried")
    child = other / f"{top.name}-v1"

    # WHEN
    child.mkdir()
    child.rmdir()
    (top / "after").mkdir()
    rows = source.read()

    # THEN
    names = [path.split(b"\0")[0].rpartition(b"/")[2] for path in rows["path"].tolist()]
    assert b"after" in names
    assert child.name.encode() not in names


def test_closed_source_hears_no_more_and_may_be_closed_again(top):
    # GIVEN
    source = CgroupSource()

    # WHEN
    source.close()
    source.close()

    # THEN
    with pytest.raises(PodscopeError, match="cgroups: the object is closed"):
        source.lost()
