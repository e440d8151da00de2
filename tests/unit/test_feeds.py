# SPDX-License-Identifier: Apache-2.0
"""Sources beside HTTP: how they are found, and what a watch makes of their rows."""

from __future__ import annotations

import numpy as np
import pytest

import podscope
from podscope import schema_events
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.pipeline import Feed
from podscope.pipeline import Watch
from podscope.pipeline import _tell
from podscope.pipeline import open_feeds
from podscope.sources import source as sources

ROW = np.dtype([("cgroup_id", "u8"), ("pid", "u4"), ("owner", "u4"), ("size", "u8")])
EVENT = np.dtype([("time_ns", "u8"), *ROW.descr])
# More than any process id (PID_MAX_LIMIT).
GONE = 1 << 23
SIZE = schema_events.value("size", "size", ("int", "By"), schema_events.number("size"), "a size")


class Counter:
    """A source of two kinds: ``sums`` each interval, ``hits`` one by one."""

    fields = {"sums": (schema_events.END, SIZE), "hits": (schema_events.TIME, SIZE)}
    events = frozenset({"hits"})

    def __init__(self, options: int | None = None, kinds=()) -> None:
        self.size = options or 1
        self.gone = 0
        self.closed = False
        self.asked: list[str] = []

    def read(self):
        self.asked.append("sums")
        self.gone += 2
        return {"sums": np.array([(0, 0, 1, self.size)], ROW)}

    def read_events(self):
        self.asked.append("hits")
        times = (5, 7) if self.asked.count("hits") == 1 else ()
        return {"hits": np.array([(when, 0, GONE, 2, self.size) for when in times], EVENT)}

    def ring_use(self):
        return 0.0

    def lost(self):
        return {"full": self.gone}

    def executable(self, owner):
        return f"program-{owner}"

    def cgroup_path(self, owner):
        return "/docker/" + "a" * 64 if owner == 2 else ""

    def close(self):
        self.closed = True


class Refusing(Counter):
    """A source that this kernel cannot run."""

    def __init__(self, options=None, kinds=()):
        raise PodscopeError("hooks are missing: use a newer kernel")


class Names:
    """Every row is of the same process."""

    def resolve(self, cgroup_ids, pids, owners):
        return np.zeros(len(pids), np.uint32), (podscope.batch.Identity("process", "cat"),)


def test_the_sources_of_this_package_are_found_with_their_fields():
    # GIVEN / WHEN
    names = sources.names()

    # THEN
    assert "oom" in names
    for kind in sources.kinds():
        fields = [field.name for field in sources.fields_of(kind)]
        assert len(set(fields)) == len(fields) > 3
    assert sources.fields_of("nothing") == ()


def test_an_unknown_source_is_refused_with_those_that_there_are():
    with pytest.raises(UsageError, match="no source 'x': choose from .*oom"):
        sources.find("x")


def test_a_source_of_another_package_is_found_and_a_broken_one_is_told(tmp_path, monkeypatch):
    # GIVEN two packages that bring sources, one of which cannot be imported
    (tmp_path / "weather.py").write_text(
        "class Weather:\n    fields = {'rain': ()}\n    events = frozenset()\n"
    )
    info = tmp_path / "weather-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: weather\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[podscope.sources]\nweather = weather:Weather\nbroken = no_such_package:Source\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    # WHEN
    with pytest.warns(RuntimeWarning, match="without broken: source broken .* cannot be imported"):
        found = sources.sources_of(("rain",))

    # THEN
    assert list(found) == ["weather"]
    assert {"weather", "oom"} <= set(sources.names())
    with pytest.raises(PodscopeError, match="ModuleNotFoundError: No module named 'no_such_pack"):
        sources.find("broken")


def test_options_for_an_unknown_source_are_refused():
    with pytest.raises(
        UsageError, match="sources: 'x': there is no such source; choose from .*oom"
    ):
        podscope.watch(kinds=("oom",), sources={"x": None})


def test_a_watch_without_http_gives_events_and_sums_with_their_fields_and_losses():
    # GIVEN
    counter = Counter(3)
    feed = Feed("counter", counter, ("sums", "hits"), Names())

    # WHEN
    with Watch(None, ("sums", "hits"), 1.0, feeds=(feed,)) as watch:
        batches = {batch.kind: batch for batch in watch.read()}
        lost = watch.lost()

    # THEN
    assert set(batches) == {"sums", "hits"}
    assert schema_events.columns(batches["sums"])["size"].tolist() == [3]
    assert batches["sums"].interval > 0
    assert batches["sums"].lost == {"counter_full": 2}
    assert lost == {"counter_full": 2}
    assert batches["hits"].fields == Counter.fields["hits"]
    assert counter.closed


def test_an_event_has_the_time_of_the_kernel_and_a_sum_that_of_its_interval():
    # GIVEN
    feed = Feed("counter", Counter(), ("sums", "hits"), Names())

    # WHEN
    batches = {batch.kind: batch for batch in feed.interval()}

    # THEN
    hits, sums = batches["hits"], batches["sums"]
    times = schema_events.columns(hits)["time"].astype("int64") - hits.clock_offset_ns
    assert times.tolist() == [5, 7]
    assert schema_events.columns(sums)["time"].astype("int64").tolist() == [sums.time_ns]


def test_kinds_that_are_not_wanted_are_not_read():
    # GIVEN
    counter = Counter()

    # WHEN
    kinds = [batch.kind for batch in Feed("counter", counter, ("hits",), Names()).interval()]

    # THEN
    assert kinds == ["hits"]
    assert counter.asked == ["hits"]


def test_a_batch_of_a_source_is_an_arrow_table():
    # GIVEN
    pytest.importorskip("pyarrow")
    (batch,) = Feed("counter", Counter(), ("hits",), Names()).interval()

    # WHEN
    table = batch.to_arrow()

    # THEN
    assert table.column_names == ["time", "size"]
    assert table["size"].to_pylist() == [1, 1]


def test_a_source_that_cannot_run_is_told_and_the_others_go_on():
    # GIVEN
    classes = {"refusing": Refusing, "counter": Counter}

    # WHEN
    feeds, refused = open_feeds(("sums", "hits"), {"counter": 9}, classes)

    # THEN
    assert [feed.name for feed in feeds] == ["counter"]
    assert feeds[0].source.size == 9
    with pytest.warns(RuntimeWarning, match="without refusing: hooks are missing: use a newer"):
        _tell(refused, nothing=False)


def test_where_no_source_can_run_the_watch_says_why():
    # GIVEN
    feeds, refused = open_feeds(("hits",), {}, {"refusing": Refusing})

    # WHEN / THEN
    assert feeds == []
    with pytest.raises(PodscopeError, match="hooks are missing"):
        _tell(refused, nothing=True)


def test_where_an_option_cannot_be_nothing_goes_on_running():
    # GIVEN a source that runs, and one whose options are wrong
    made = []

    class Running(Counter):
        def __init__(self, options=None, kinds=()):
            super().__init__(options)
            made.append(self)

    class Wrong(Counter):
        def __init__(self, options=None, kinds=()):
            raise UsageError("size: 'x': it must be a number")

    # WHEN / THEN
    with pytest.raises(UsageError, match="it must be a number"):
        open_feeds(("hits",), {}, {"running": Running, "wrong": Wrong})
    assert [one.closed for one in made] == [True]


def test_names_of_rows_may_be_others_than_this_hosts():
    # GIVEN / WHEN
    (feed,), _ = open_feeds(("hits",), {}, {"counter": Counter}, lambda _: Names())
    (batch,) = feed.events()

    # THEN
    assert [one.name for one in batch.identities] == ["cat"]


def test_who_ended_is_known_by_the_path_that_the_kernel_told():
    # GIVEN owners that are not in /proc
    feed = Feed("counter", Counter(), ("sums", "hits"))

    # WHEN
    batches = {batch.kind: batch for batch in feed.interval()}

    # THEN
    (container,) = batches["hits"].identities
    assert (container.kind, container.container_id) == ("container", "a" * 64)
    assert container.executable == "program-2"


class Failing(Counter):
    """A source that can no more be read after the first time."""

    def read(self):
        if "sums" in self.asked:
            raise PodscopeError("the map is gone")
        return super().read()


def test_a_source_that_fails_ends_alone():
    # GIVEN two sources of a running watch
    failing, other = Failing(), Counter(options=5)
    feeds = [Feed("failing", failing, ("sums",), Names()), Feed("other", other, ("sums",), Names())]
    with Watch(None, ("sums",), 1.0, feeds=feeds) as watch:
        first = watch.read()

        # WHEN
        with pytest.warns(RuntimeWarning, match="without failing: it has failed: the map is gone"):
            second = watch.read()
        third = watch.read()

    # THEN
    sizes = [[int(batch.rows["size"][0]) for batch in some] for some in (first, second, third)]
    assert sizes == [[1, 5], [5], [5]]
    assert failing.closed
    assert [*watch.refused] == ["failing"]
    assert watch.sources() == {"failing": False, "other": True}


def test_the_only_source_of_a_watch_that_fails_is_an_error():
    with Watch(None, ("sums",), 1.0, feeds=[Feed("failing", Failing(), ("sums",), Names())]) as one:
        one.read()
        with pytest.raises(PodscopeError, match="the map is gone"):
            one.read()
