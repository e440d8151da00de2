# SPDX-License-Identifier: Apache-2.0
"""Following a trace of a cluster: many speakers, some silent, broken off or late, one answer."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from contextlib import contextmanager

from podscope.errors import PodscopeError
from podscope.identity.kubernetes_client import KubernetesError
from podscope.trace import reports
from podscope.trace.decode import MapData
from podscope.trace.decode import Text
from podscope.trace.following import Following
from podscope.trace.following import Seen
from podscope.trace.kept import Kept
from podscope.trace.kept import KeptJob
from podscope.trace.maps import MapShape
from podscope.trace.session import Answer
from podscope.trace.tables import table

SHAPE = MapShape("@", "count")
PATIENCE = 60.0


class Told:
    """Of a trace beside its answers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.lost: dict[str, int] = {}
        self.full: dict[str, int] = {}


def said(node: str, count: int, *texts: str, last: bool = True, whose: str = "") -> bytes:
    """What a node writes: its lines one by one, and its map."""
    out = io.StringIO()
    writer = reports.Writer(out, reports.About(node, program="p"), {"@": SHAPE})
    for text in texts:
        writer.answer(Answer((Text(text, whose),), {}, 1), Told())
    maps = {"@": table(MapData("@", "map", ((None, count),)), SHAPE, (0, 17))}
    writer.answer(Answer((), maps, 2, last), Told())
    return out.getvalue().encode()


class Place:
    """Where parts are that say what a test lets them say.

    Args:
        seen: by the part's name what is to be seen of it, one look after the other.
        says: by its name what it says, one stream after the other; an exception breaks it off.
    """

    def __init__(self, seen: dict[str, list[Seen]], says: dict[str, list[list]]) -> None:
        self._seen = seen
        self._says = says
        self.stopped: list[str] = []
        self.dropped: list[str] = []
        self.refuse: Exception | None = None
        self.on_stop: Callable[[str], None] = lambda speaker: None

    def look(self, kept, jobs):
        found = {}
        for job in jobs:
            looks = self._seen[job.name]
            found[job.name] = looks.pop(0) if len(looks) > 1 else looks[0]
        return found

    @contextmanager
    def stream(self, kept, speaker):
        pieces = self._says[speaker].pop(0)

        def each():
            for piece in pieces:
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, threading.Event):
                    assert piece.wait(PATIENCE)
                    continue
                yield piece

        yield each()

    def stop(self, kept, speaker):
        if self.refuse is not None:
            raise self.refuse
        self.stopped.append(speaker)
        self.on_stop(speaker)

    def drop(self, kept, job):
        self.dropped.append(job.name)

    def close(self):
        pass


def kept(*names: str) -> Kept:
    found = tuple(KeptJob(name, f"node-{name}", "Running", "", "2026", "") for name in names)
    return Kept("podscope-trace-1", "shop", "deploy/web", "p", False, found)


def followed(place: Place, *names: str, **more) -> tuple[list[Answer], Following]:
    with Following(place, kept(*names), interval=0.05, **more) as following:
        return list(following), following


def texts(answers: list[Answer]) -> list[tuple[str, str]]:
    return [(line.node, line.text) for answer in answers for line in answer.lines]


def test_all_nodes_are_one_answer_and_the_last_one_says_so():
    # GIVEN
    here = {name: [Seen(f"pod-{name}")] for name in "ab"}
    place = Place(here, {f"pod-{n}": [[said(n, c)]] for n, c in (("a", 3), ("b", 4))})

    # WHEN
    answers, following = followed(place, "a", "b")

    # THEN
    assert answers[-1].last
    assert answers[-1].maps["@"].to_dict() == {(): 7}
    assert following.gathered().whole()
    assert following.states() == {"node-a": ("ended", ""), "node-b": ("ended", "")}


def test_lines_come_whole_though_they_were_printed_in_pieces():
    # GIVEN
    log = said("a", 1, "one ", "two\nthr", "ee\n", "rest")
    place = Place({"a": [Seen("pod-a")]}, {"pod-a": [[log]]})

    # WHEN
    answers, _ = followed(place, "a")

    # THEN
    assert texts(answers) == [("node-a", "one two\n"), ("node-a", "three\n"), ("node-a", "rest\n")]


def test_a_stream_that_breaks_off_is_read_again_and_nothing_is_twice():
    # GIVEN a log whose first reading ends in the middle of a line
    log = said("a", 5, "one\n", "two\n")
    middle = len(log) // 2
    broken = [log[:middle], PodscopeError("connection lost")]
    place = Place({"a": [Seen("pod-a")]}, {"pod-a": [broken, [log]]})

    # WHEN
    answers, following = followed(place, "a")

    # THEN
    assert texts(answers) == [("node-a", "one\n"), ("node-a", "two\n")]
    assert answers[-1].maps["@"].to_dict() == {(): 5}
    assert following.gathered().whole()


def test_what_never_begins_is_told_with_its_reason_and_the_others_are_counted():
    # GIVEN
    looks = {"a": [Seen("pod-a")], "b": [Seen(), Seen(why="ErrImageNeverPull: x", final=True)]}
    place = Place(looks, {"pod-a": [[said("a", 2)]]})

    # WHEN
    answers, following = followed(place, "a", "b")

    # THEN
    assert answers[-1].maps["@"].to_dict() == {(): 2}
    assert following.states()["node-b"] == ("failed", "ErrImageNeverPull: x")
    assert not following.gathered().whole()


def test_a_node_that_says_why_it_failed_has_failed():
    # GIVEN
    out = io.StringIO()
    reports.Writer(out, reports.About("a"), {}).failed("bpftrace: no such probe")
    place = Place({"a": [Seen("pod-a", final=True)]}, {"pod-a": [[out.getvalue().encode()]]})

    # WHEN
    _, following = followed(place, "a")

    # THEN
    assert following.states()["node-a"] == ("failed", "bpftrace: no such probe")


def test_a_node_that_ends_without_its_last_values_keeps_those_before():
    # GIVEN
    log = said("a", 6, last=False) + b"podscope: something is wrong\n"
    place = Place({"a": [Seen("pod-a", why="OOMKilled", final=True)]}, {"pod-a": [[log]]})

    # WHEN
    answers, following = followed(place, "a")

    # THEN
    assert answers[-1].maps["@"].to_dict() == {(): 6}
    assert following.states()["node-a"] == ("failed", "OOMKilled")
    assert following.gathered().notes() == ["node-a: OOMKilled"]


def test_stop_reaches_those_that_run_and_takes_away_those_that_have_not_begun():
    # GIVEN a speaker that ends when it is told to, and one that is still to begin
    end = threading.Event()
    early, whole = said("a", 1, "hello\n", last=False), said("a", 9, "hello\n")
    looks = {"a": [Seen("pod-a")], "b": [Seen(why="ImagePullBackOff: y")]}
    place = Place(looks, {"pod-a": [[early, end, whole]]})
    place.on_stop = lambda speaker: end.set()

    # WHEN
    answers = []
    with Following(place, kept("a", "b"), interval=0.05) as following:
        for answer in following:
            answers.append(answer)
            if texts(answers) and not following.is_ending:
                following.stop()

    # THEN
    assert place.stopped == ["pod-a"]
    assert place.dropped == ["b"]
    assert texts(answers) == [("node-a", "hello\n")]
    assert answers[-1].maps["@"].to_dict() == {(): 9}
    assert following.states()["node-b"] == ("failed", "ImagePullBackOff: y")


def test_without_the_right_to_stop_it_ends_at_once_and_says_what_to_do():
    # GIVEN
    never = threading.Event()
    log = said("a", 1, "hello\n", last=False)
    place = Place({"a": [Seen("pod-a")]}, {"pod-a": [[log, never]]})
    place.refuse = KubernetesError("no permission: 'create'", 403)

    # WHEN
    with Following(place, kept("a"), interval=0.05, grace=PATIENCE) as following:
        for answer in following:
            if answer.lines:
                following.stop()
        never.set()

    # THEN
    state, why = following.states()["node-a"]
    assert state == "failed"
    assert "no permission: 'create'" in why
    assert "'podscope delete' ends it" in why


def test_one_who_leaves_gets_a_last_answer_and_stops_nothing():
    # GIVEN
    never = threading.Event()
    log = said("a", 4, "hello\n", last=False)
    place = Place({"a": [Seen("pod-a")]}, {"pod-a": [[log, never]]})

    # WHEN
    with Following(place, kept("a"), interval=0.05) as following:
        answers = []
        for answer in following:
            answers.append(answer)
            if answer.maps:
                following.leave()
        never.set()

    # THEN
    assert answers[-1].last
    assert answers[-1].maps["@"].to_dict() == {(): 4}
    assert place.stopped == []


def test_a_place_that_does_not_answer_for_a_while_is_asked_again():
    # GIVEN
    place = Place({"a": [Seen("pod-a")]}, {"pod-a": [[said("a", 2)]]})
    looked = place.look
    failing = [KubernetesError("connection refused"), KubernetesError("connection refused")]

    def look(*asked):
        if failing:
            raise failing.pop()
        return looked(*asked)

    place.look = look

    # WHEN
    answers, following = followed(place, "a")

    # THEN
    assert answers[-1].maps["@"].to_dict() == {(): 2}
    assert following.away == ""


def test_a_part_that_joins_later_is_in_and_its_node_is_one_node():
    # GIVEN
    go = threading.Event()
    looks = {"a": [Seen("pod-a")], "b": [Seen("pod-b")]}
    says = {"pod-a": [[said("a", 1, "x\n", last=False), go, said("a", 1, "x\n")]],
            "pod-b": [[said("a", 10)]]}  # fmt: skip
    place = Place(looks, says)
    later = KeptJob("b", "node-a", "Running", "", "2026", "a")

    # WHEN
    answers = []
    with Following(place, kept("a"), interval=0.05, by_node=True) as following:
        for answer in following:
            answers.append(answer)
            if answer.lines:
                following.join(later)
                following.join(later)
                go.set()

    # THEN
    assert answers[-1].maps["@"].to_dict() == {("node-a",): 11}
    assert following.states() == {"node-a": ("ended", "")}


def test_one_that_does_not_listen_yet_is_told_again_to_end():
    # GIVEN
    end = threading.Event()
    log, whole = said("a", 1, "hello\n", last=False), said("a", 2, "hello\n")
    place = Place({"a": [Seen("pod-a")]}, {"pod-a": [[log, end, whole]]})
    stop = place.stop
    failing = [PodscopeError("connection refused"), OSError("connection reset")]

    def refusing(*asked):
        if failing:
            raise failing.pop()
        stop(*asked)

    place.stop = refusing
    place.on_stop = lambda speaker: end.set()

    # WHEN
    with Following(place, kept("a"), interval=0.05) as following:
        for answer in following:
            if answer.lines:
                following.stop()

    # THEN
    assert place.stopped == ["pod-a"]
    assert following.states() == {"node-a": ("ended", "")}


def test_a_node_that_is_gone_ends_as_failed_with_what_it_told_and_the_others_go_on():
    # GIVEN
    gone = "node node-a does not answer"
    waits = [Seen("pod-a"), Seen("pod-a", gone), Seen("pod-a", gone), Seen("pod-a", gone, True)]
    refused = KubernetesError("dial tcp: i/o timeout")
    place = Place(
        {"a": waits, "b": [Seen("pod-b")]},
        {
            "pod-a": [[said("a", 3, "one\n", last=False), refused], *([[refused]] * 9)],
            "pod-b": [[said("b", 4)]],
        },
    )

    # WHEN
    answers, following = followed(place, "a", "b")

    # THEN
    assert answers[-1].last
    assert answers[-1].maps["@"].to_dict() == {(): 7}
    assert texts(answers) == [("node-a", "one\n")]
    assert following.states()["node-a"][0] == "failed"
    assert gone in following.states()["node-a"][1]
    assert following.states()["node-b"] == ("ended", "")


def test_the_first_maps_of_each_node_are_shown_at_once_however_long_the_interval():
    # GIVEN
    more = {name: threading.Event() for name in "ab"}
    says = {
        f"pod-{name}": [[said(name, 1, last=False), more[name], said(name, 5)]] for name in "ab"
    }
    place = Place({name: [Seen(f"pod-{name}")] for name in "ab"}, says)
    sums = []

    # WHEN
    with Following(place, kept("a", "b"), interval=3600.0) as following:
        for answer in following:
            sums += [answer.maps["@"].to_dict()[()]] if answer.maps else []
            if sums[-1:] == [2]:
                for one in more.values():
                    one.set()

    # THEN
    assert sums[-2:] == [2, 10]
