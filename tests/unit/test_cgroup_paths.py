# SPDX-License-Identifier: Apache-2.0
"""Paths of cgroups by id, on made-up directories and made-up events."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from podscope.errors import PodscopeError
from podscope.identity import cgroup_paths
from podscope.identity.cgroup_paths import KEPT_SECONDS
from podscope.identity.cgroup_paths import MAX_GONE
from podscope.identity.cgroup_paths import MAX_MISSING
from podscope.identity.cgroup_paths import MAX_UNSEEN
from podscope.identity.cgroup_paths import PATH_BYTES
from podscope.identity.cgroup_paths import PATH_CUT
from podscope.identity.cgroup_paths import REMOVED
from podscope.identity.cgroup_paths import WALK_SECONDS
from podscope.identity.cgroup_paths import CgroupPaths

MADE = 1
EVENT = np.dtype(
    [("id", "u8"), ("parent", "u8"), ("level", "u4"), ("kind", "u2"), ("path_len", "u2"),
     ("path", "S512")]
)  # fmt: skip
NEW = 1 << 40  # ids that no directory of the tree has


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def event(kind: int, cgroup_id: int, parent: int, path: str | bytes) -> np.ndarray:
    """One row, as the kernel makes it: the last bytes of a path that is too long."""
    raw = os.fsencode(path)
    length = min(len(raw), PATH_CUT)
    kept = raw[:length][-PATH_BYTES:]
    # What was in the ring before stands behind the end.
    stale = b"\0/of/an/older/record"[: 512 - len(kept)]
    return np.array([(cgroup_id, parent, 0, kind, length, kept + stale)], EVENT)


def events(*rows: np.ndarray) -> np.ndarray:
    return np.concatenate(rows)


def number(path: Path) -> int:
    return path.stat().st_ino


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree, with the files that every cgroup has."""
    root = tmp_path / "unified"
    for name in ("system.slice/ssh.service", "kubepods/burstable"):
        (root / name).mkdir(parents=True)
    (root / "cgroup.procs").touch()
    (root / "system.slice" / "cgroup.procs").touch()
    return root


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with every walk."""
    made: list[str] = []
    walk = cgroup_paths._directories

    def counted(root):
        made.append(root)
        return walk(root)

    monkeypatch.setattr(cgroup_paths, "_directories", counted)
    return made


def test_walk_at_the_start_knows_what_is_there(tree, clock):
    # GIVEN / WHEN
    paths = CgroupPaths(str(tree), clock)

    # THEN
    assert paths.path(number(tree)) == "/"
    assert paths.path(number(tree / "system.slice")) == "/system.slice"
    assert paths.path(number(tree / "system.slice/ssh.service")) == "/system.slice/ssh.service"
    assert paths.path(number(tree / "kubepods/burstable")) == "/kubepods/burstable"
    assert paths.path(number(tree / "cgroup.procs")) == ""
    assert paths.path(0) == ""
    assert paths.held() == 5


def test_missing_root_is_an_error_of_one_line(tmp_path):
    # WHEN
    with pytest.raises(PodscopeError) as refusal:
        CgroupPaths(str(tmp_path / "none"))

    # THEN
    assert "none: No such file or directory: name the directory where" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_cgroup_that_lives_between_two_reads_is_known_afterwards(tree, clock):
    # GIVEN
    paths = CgroupPaths(str(tree), clock)
    parent = number(tree / "kubepods/burstable")

    # WHEN it comes, gets a child, and both go
    whole = "/kubepods/burstable/pod1"
    paths.take(
        events(
            event(MADE, NEW, parent, whole),
            event(MADE, NEW + 1, NEW, f"{whole}/web"),
            event(REMOVED, NEW + 1, NEW, f"{whole}/web"),
            event(REMOVED, NEW, parent, whole),
        )
    )

    # THEN
    assert paths.path(NEW) == whole
    assert paths.path(NEW + 1) == f"{whole}/web"


def test_cgroup_that_is_gone_is_kept_for_a_while_and_then_forgotten(tree, clock):
    # GIVEN
    paths = CgroupPaths(str(tree), clock)
    before = paths.held()
    paths.take(events(event(MADE, NEW, number(tree), "/a"), event(REMOVED, NEW, 0, "/a")))

    # WHEN / THEN
    clock.now += KEPT_SECONDS
    assert paths.path(NEW) == "/a"
    clock.now += 1
    assert paths.path(NEW) == ""
    paths.take(np.empty(0, EVENT))
    assert paths.held() == before


def test_cgroup_that_lives_on_is_never_forgotten(tree, clock):
    # GIVEN
    paths = CgroupPaths(str(tree), clock)
    paths.take(event(MADE, NEW, number(tree), "/a"))

    # WHEN
    clock.now += 100 * KEPT_SECONDS
    paths.take(np.empty(0, EVENT))

    # THEN
    assert paths.path(NEW) == "/a"
    assert paths.path(number(tree / "system.slice")) == "/system.slice"


def test_events_of_what_the_walk_has_seen_change_nothing(tree, clock):
    # GIVEN a directory made between the start of the events and the walk
    paths = CgroupPaths(str(tree), clock)
    seen = number(tree / "system.slice")
    before = paths.held()

    # WHEN
    paths.take(event(MADE, seen, number(tree), "/system.slice"))

    # THEN
    assert paths.path(seen) == "/system.slice"
    assert paths.held() == before


def test_paths_are_relative_to_a_mount_that_is_not_the_machines_root(tree, clock):
    # GIVEN the tree of a node that is a container
    paths = CgroupPaths(str(tree), clock)
    node = "/docker/4f797c539e6c"

    # WHEN
    paths.take(
        events(
            event(MADE, NEW, number(tree), f"{node}/a"),
            event(MADE, NEW + 1, NEW, f"{node}/a/b"),
            event(MADE, NEW + 2, number(tree / "kubepods"), f"{node}/kubepods/c"),
            # of the machine, and of a node of nearly the same name
            event(MADE, NEW + 3, NEW + 100, "/system.slice/cron.service"),
            event(MADE, NEW + 4, NEW + 101, f"{node}0/a"),
        )
    )

    # THEN
    assert paths.path(NEW) == "/a"
    assert paths.path(NEW + 1) == "/a/b"
    assert paths.path(NEW + 2) == "/kubepods/c"
    assert paths.path(NEW + 3) == ""
    assert paths.path(NEW + 4) == ""


@pytest.mark.parametrize("above", ["", "/docker/4f797c539e6c"])
def test_child_of_a_parent_whose_event_was_lost_is_known_by_its_whole_path(tree, clock, above):
    # GIVEN one event that tells where the mount is
    paths = CgroupPaths(str(tree), clock)
    paths.take(event(MADE, NEW, number(tree), f"{above}/first"))

    # WHEN
    paths.take(event(MADE, NEW + 2, NEW + 1, f"{above}/lost/child"))

    # THEN
    assert paths.path(NEW + 2) == "/lost/child"


def test_removal_tells_the_path_where_the_making_was_lost(tree, clock):
    # GIVEN
    paths = CgroupPaths(str(tree), clock)

    # WHEN
    paths.take(event(REMOVED, NEW, number(tree / "kubepods"), "/kubepods/short"))

    # THEN
    assert paths.path(NEW) == "/kubepods/short"


def test_path_too_long_for_the_event_is_put_together_from_the_parents(tree, clock):
    # GIVEN
    paths = CgroupPaths(str(tree), clock)
    names = [letter * 250 for letter in "abc"]

    # WHEN
    for level in range(3):
        parent = NEW + level - 1 if level else number(tree)
        paths.take(event(MADE, NEW + level, parent, "/" + "/".join(names[: level + 1])))

    # THEN
    assert paths.path(NEW + 2) == "/" + "/".join(names)


def test_path_that_the_kernel_itself_has_cut_is_left_to_the_walk(tree, clock):
    # GIVEN
    paths = CgroupPaths(str(tree), clock)

    # WHEN the name at the end is cut, or missing
    paths.take(event(MADE, NEW, number(tree), "/" + "x" * 2000))

    # THEN
    assert paths.path(NEW) == ""


def test_names_that_are_no_text_are_the_same_from_events_and_walks(tree, clock):
    # GIVEN
    name = b"caf\xe9 \xc3\xa9"
    os.mkdir(os.fsencode(tree) + b"/" + name)

    # WHEN
    walked = CgroupPaths(str(tree), clock)
    told = CgroupPaths(str(tree), clock)
    told.take(event(MADE, NEW, number(tree), b"/" + name))

    # THEN
    assert told.path(NEW) == walked.path(number(tree / os.fsdecode(name))) != ""


def test_unknown_id_starts_a_walk_but_not_more_than_one_in_a_while(tree, clock, walks):
    # GIVEN directories of which no event came
    paths = CgroupPaths(str(tree), clock)
    (tree / "late").mkdir()
    late = number(tree / "late")

    # WHEN it is too early for a walk, and then it is time
    early = paths.path(late)
    clock.now += WALK_SECONDS
    found = paths.path(late)
    (tree / "later").mkdir()
    too_early = paths.path(number(tree / "later"))

    # THEN
    assert (early, found, too_early) == ("", "/late", "")
    assert len(walks) == 2


def test_id_that_a_walk_has_missed_starts_no_other(tree, clock, walks):
    # GIVEN
    paths = CgroupPaths(str(tree), clock)
    clock.now += WALK_SECONDS
    assert paths.path(NEW) == ""

    # WHEN
    for _ in range(10):
        clock.now += WALK_SECONDS
        assert paths.path(NEW) == ""

    # THEN it is known as soon as an event tells it
    assert len(walks) == 2
    paths.take(event(MADE, NEW, number(tree), "/a"))
    assert paths.path(NEW) == "/a"


def test_what_a_walk_does_not_find_any_more_is_kept_for_a_while(tree, clock):
    # GIVEN a removal of which no event came
    paths = CgroupPaths(str(tree), clock)
    gone = number(tree / "kubepods/burstable")
    (tree / "kubepods/burstable").rmdir()

    # WHEN
    clock.now += WALK_SECONDS
    paths.path(NEW)

    # THEN
    assert paths.path(gone) == "/kubepods/burstable"
    clock.now += KEPT_SECONDS + 1
    assert paths.path(gone) == ""


def test_nothing_grows_without_bound(tree, clock):
    # GIVEN
    paths = CgroupPaths(str(tree), clock)
    root = number(tree)
    there = paths.held()

    # WHEN many come and go, many come whose removal is lost, and many ids are unknown
    for first in range(NEW, NEW + 4 * MAX_GONE, 64):
        clock.now += WALK_SECONDS
        ids = range(first, first + 64)
        paths.take(events(*(event(MADE, i, root, f"/{i}") for i in ids)))
        paths.take(events(*(event(REMOVED, i, root, f"/{i}") for i in ids)))
        lost = range(2 * first, 2 * first + 64)
        paths.take(events(*(event(MADE, i, root, f"/{i}") for i in lost)))
        assert paths.held() <= there + MAX_UNSEEN + 64 + MAX_GONE
    for cgroup_id in range(3 * NEW, 3 * NEW + MAX_MISSING + 100):
        clock.now += WALK_SECONDS
        assert paths.path(cgroup_id) == ""

    # THEN
    assert len(paths._missing) <= MAX_MISSING
    assert paths.path(number(tree / "system.slice")) == "/system.slice"


def test_the_latest_to_go_are_kept_when_there_are_too_many(tree, clock):
    # GIVEN
    paths = CgroupPaths(str(tree), clock)
    ids = range(NEW, NEW + MAX_GONE + 10)

    # WHEN
    paths.take(events(*(event(REMOVED, i, number(tree), f"/{i}") for i in ids)))

    # THEN
    assert paths.path(NEW) == ""
    assert paths.path(NEW + 9) == ""
    assert paths.path(NEW + 10) == f"/{NEW + 10}"
    assert paths.path(ids[-1]) == f"/{ids[-1]}"


def test_tree_that_changes_under_the_walk_is_no_error(tree, clock, monkeypatch):
    # GIVEN directories that go as soon as their names are read
    real = os.scandir

    def vanishing(path):
        if str(path).endswith("kubepods"):
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", vanishing)

    # WHEN
    paths = CgroupPaths(str(tree), clock)

    # THEN
    assert paths.path(number(tree / "kubepods")) == "/kubepods"
    assert paths.path(number(tree / "system.slice/ssh.service")) == "/system.slice/ssh.service"
