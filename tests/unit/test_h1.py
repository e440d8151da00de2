# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.x parser of the kernel programs, on the host, under ASan and UBSan."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from decimal import localcontext
from pathlib import Path

import h1
import h1_leniency
import h1_messages
import h1_oracles
import pytest
from h1_messages import Answer
from h1_oracles import PARTIAL
from h1_oracles import REFUSED
from h1_oracles import Outcome
from hypothesis import HealthCheck
from hypothesis import Phase
from hypothesis import assume
from hypothesis import event
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from conversations.routes import route


def examples(count: int) -> int:
    """So many, or times H1_TIMES for a longer run."""
    return count * int(os.environ.get("H1_TIMES", "1"))


bounded = settings(
    max_examples=examples(250),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="session")
def programs() -> Path:
    """The directory of the host's programs, built."""
    return h1.build()


@pytest.fixture(scope="session")
def parser(programs: Path) -> Iterator[h1.Parser]:
    """The parser, under the sanitizers."""
    with h1.Parser(programs) as running:
        yield running


# --- messages that are known ----------------------------------------------------------------


def test_a_request_is_read_with_its_texts(parser: h1.Parser) -> None:
    # GIVEN
    stream = h1_messages.REQUESTS["texts"]

    # WHEN
    reading = parser.requests(stream)

    # THEN
    (message,) = reading.messages
    assert (message.kind, message.method, message.version) == ("request", 1, 11)
    assert message.target == b"/users/42?a=%20"
    assert (message.host, message.agent) == (b"shop.example:8080", b"a b/1")
    assert message.trace == b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert (message.head, message.end, message.body) == (len(stream), len(stream), 0)
    assert reading.state == "START"


def test_a_text_is_cut_and_its_whole_length_kept(parser: h1.Parser) -> None:
    # GIVEN a target of 301 bytes, a Host of 90, a method of 37
    long_texts = h1_messages.REQUESTS["long_target"] + h1_messages.REQUESTS["long_method"]

    # WHEN
    first, second = parser.requests(long_texts).messages

    # THEN
    assert (first.target, first.target_len) == (b"/" + b"s" * 191, 301)
    assert (first.host, first.host_len) == (b"h" * 64, 90)
    assert (second.name, second.name_len, second.method) == (b"ABCDEFGHIJKLMNOP", 37, 0)


def test_content_is_counted_without_its_framing(parser: h1.Parser) -> None:
    # WHEN
    counted = parser.requests(h1_messages.REQUESTS["length"]).messages
    chunked = parser.requests(h1_messages.REQUESTS["chunked"]).messages
    both = parser.requests(h1_messages.REQUESTS["codings"]).messages

    # THEN
    assert [m.body for m in (*counted, *chunked, *both)] == [11, 15, 1]
    assert both[0].framing == h1.CHUNKED | h1.HAS_LENGTH


@pytest.mark.parametrize(
    ("name", "kinds", "bodies", "state"),
    [
        ("length", ["answer"], [5], "START"),
        ("no_reason", ["answer"], [0], "START"),
        ("close", ["open"], [23], "BODY_CLOSE"),
        ("other_coding", ["open"], [6], "BODY_CLOSE"),
        ("chunked", ["answer"], [20], "START"),
        ("head", ["answer", "answer"], [0, 5], "START"),
        ("statuses", ["answer", "answer", "answer"], [0, 0, 1], "START"),
        ("interim", ["interim", "interim", "answer", "open"], [0, 0, 2, 4], "BODY_CLOSE"),
        ("switch", ["tunnel"], [0], "OPAQUE"),
        ("granted", ["tunnel"], [0], "OPAQUE"),
        ("not_granted", ["answer"], [1], "START"),
    ],
)
def test_an_answer_ends_where_its_framing_says(
    parser: h1.Parser, name: str, kinds: list[str], bodies: list[int], state: str
) -> None:
    # GIVEN
    methods, stream = h1_messages.ANSWERS[name]

    # WHEN
    reading = parser.answers(stream, methods.split())

    # THEN
    assert [m.kind for m in reading.messages] == kinds
    assert [m.body for m in reading.messages] == bodies
    assert reading.state == state


@pytest.mark.parametrize(
    ("stream", "at"),
    [
        (b"\x16\x03\x01", 1),
        (b"PRI * HTTP/2.0\r\n", 12),
        (b"GET /\r\n", 6),
        (b"GET  / HTTP/1.1\r\n", 5),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n", 55),
        (b"POST / HTTP/1.1\r\nContent-Length : 5\r\n", 32),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 44),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n gzip", 46),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX", 56),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\n", 49),
    ],
)
def test_broken_framing_is_refused_at_the_byte_that_breaks_it(
    parser: h1.Parser, stream: bytes, at: int
) -> None:
    # WHEN
    reading = parser.requests(stream + b"GET / HTTP/1.1\r\n\r\n")

    # THEN
    assert (reading.is_bad, reading.at, reading.messages) == (True, at, ())


def test_what_follows_upgrade_waits_for_the_answer(parser: h1.Parser) -> None:
    # GIVEN a request with Upgrade, and one behind it
    stream = h1_messages.REQUESTS["upgrade"]

    # WHEN
    waiting, refused = parser.requests(stream), parser.requests(stream, flags="tr")

    # THEN
    assert (len(waiting.messages), waiting.state) == (1, "WAIT")
    assert [m.target for m in refused.messages] == [b"/chat", b"/next"]


def test_a_target_may_be_longer_than_its_counter(parser: h1.Parser) -> None:
    # WHEN
    reading = parser.requests(b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n")

    # THEN
    assert reading.messages[0].target_len == 0xFFFF
    assert reading.state == "START"


@pytest.mark.parametrize("name", [b"ContentMLength", b"Content_Length", b"Contentmlength"])
def test_only_the_whole_name_is_the_name(parser: h1.Parser, name: bytes) -> None:
    # GIVEN a letter that shares its place in the table of names with the dash
    stream = b"POST / HTTP/1.1\r\n%b: 5\r\nTransfermEncoding: chunked\r\n\r\n" % name

    # WHEN / THEN
    assert [m.framing for m in parser.requests(stream).messages] == [0]


# --- every split ----------------------------------------------------------------------------


def splits(stream: bytes) -> Iterator[tuple[int, ...]]:
    """Segments: cut in two anywhere, and all of one size."""
    yield from ((cut, 0) for cut in range(1, len(stream)))
    yield from ((size,) for size in (1, 2, 3, 7, 8, 9, 31, 33, 511, 512, 513))


@pytest.mark.parametrize("flags", ["t", "tr", "r"])
@pytest.mark.parametrize("name", h1_messages.REQUESTS)
def test_requests_read_the_same_however_they_are_split(
    parser: h1.Parser, name: str, flags: str
) -> None:
    # GIVEN
    stream = h1_messages.REQUESTS[name]
    whole = parser.requests(stream, flags=flags)

    # WHEN / THEN
    assert not whole.is_bad
    for sizes in splits(stream):
        assert parser.requests(stream, sizes, flags=flags) == whole, sizes


@pytest.mark.parametrize("name", h1_messages.ANSWERS)
def test_answers_read_the_same_however_they_are_split(parser: h1.Parser, name: str) -> None:
    # GIVEN
    methods, stream = h1_messages.ANSWERS[name]
    whole = parser.answers(stream, methods.split())

    # WHEN / THEN
    assert not whole.is_bad
    for sizes in splits(stream):
        assert parser.answers(stream, methods.split(), sizes) == whole, sizes


SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=6)


@bounded
@given(requests=st.lists(h1_messages.requests(), max_size=3).map(b"".join), sizes=SIZES)
def test_near_valid_requests_read_the_same_however_they_are_split(
    parser: h1.Parser, requests: bytes, sizes: list[int]
) -> None:
    assert parser.requests(requests, sizes) == parser.requests(requests)


@bounded
@given(answers=st.lists(h1_messages.answers(), max_size=3), sizes=SIZES)
def test_near_valid_answers_read_the_same_however_they_are_split(
    parser: h1.Parser, answers: list[Answer], sizes: list[int]
) -> None:
    # GIVEN
    stream, methods = b"".join(a.stream for a in answers), [a.method for a in answers]

    # WHEN / THEN
    assert parser.answers(stream, methods, sizes) == parser.answers(stream, methods)


# --- the short way --------------------------------------------------------------------------


def same_messages(short: h1.Reading, whole: h1.Reading) -> None:
    assert replace(short, shortcuts=0) == whole


@pytest.mark.parametrize("name", h1_messages.REQUESTS)
def test_the_short_way_reads_the_same_requests(parser: h1.Parser, name: str) -> None:
    # GIVEN
    stream = h1_messages.REQUESTS[name]
    whole = parser.requests(stream, flags="-")

    # WHEN / THEN
    for sizes in [(), *splits(stream)]:
        same_messages(parser.requests(stream, sizes, flags="f"), whole)


@pytest.mark.parametrize("name", h1_messages.ANSWERS)
def test_the_short_way_reads_the_same_answers(parser: h1.Parser, name: str) -> None:
    # GIVEN
    methods, stream = h1_messages.ANSWERS[name]
    whole = parser.answers(stream, methods.split())

    # WHEN / THEN
    for sizes in [(), *splits(stream)]:
        same_messages(parser.answers(stream, methods.split(), sizes, flags="f"), whole)


AWKWARD_LINES = {
    "fold_on_length": b"Content-Length: 5\r\n\t6\r\n",
    "fold_on_coding": b"Transfer-Encoding: chunked\r\n gzip\r\n",
    "fold": b"A: b\r\n Content-Length: 5\r\n",
    "two_lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "same_lengths": b"Content-Length: 5\r\ncontent-length: 5\r\n",
    "two_codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
    "both": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "no_colon": b"Content-Length\r\n",
    "space_before_colon": b"Transfer-Encoding : chunked\r\n",
    "longer_name": b"Content-Lengths: 5\r\nTransfer-Encodings: chunked\r\n",
    "short_lines": b"A\nB\nC\nContent-Length: 5\n",
    "shortest_lines": b"A\nB\nC\nD\nE\r\n",
    "empty_line_of_lf": b"A: b\n\n",
    "empty_line_after_lf": b"A: b\n\r\n",
    "bare_cr": b"\rA: b\r\n",
    "crs": b"A: b\r\r\n",
    "leading_zeros": b"Content-Length: 0000000000000005\r\n",
    "long_length": b"Content-Length: 123456789012345\r\n",
    "longer_length": b"Content-Length: 1234567890123456\r\n",
    "length_and_space": b"Content-Length: 5 \r\n",
    "length_and_lf": b"Content-Length: 5\n",
    "length_and_cr": b"Content-Length: 5\rX\r\n",
    "no_length": b"Content-Length: \r\n",
    "coding_and_space": b"Transfer-Encoding: chunked \r\n",
    "coding_and_lf": b"Transfer-Encoding: chunked\n",
    "coding_and_cr": b"Transfer-Encoding: chunked\rX\r\n",
    "upgrade": b"uPGRADE: x\r\n",
    "upgrades": b"Upgrades: x\r\n",
    "not_upgrade": b"Upgrade : x\r\n",
    "nul": b"\x00Content-Length: 5\r\n",
}


@pytest.mark.parametrize("name", AWKWARD_LINES)
def test_the_short_way_reads_the_same_awkward_lines(parser: h1.Parser, name: str) -> None:
    # GIVEN the lines at each place of a word, first and last in the head
    lines = AWKWARD_LINES[name]
    for shift in range(9):
        more = b"X: " + b"y" * shift + b"\r\n"
        for fields in (more + lines + b"\r\n", lines + more + b"\r\n"):
            tail = fields + b"5\r\nhello\r\n0\r\n\r\n"
            request, answer = b"POST /a HTTP/1.1\r\n" + tail, b"HTTP/1.1 200 OK\r\n" + tail

            # WHEN / THEN
            same_messages(parser.requests(request, flags="f"), parser.requests(request, flags="-"))
            same_messages(parser.answers(answer, flags="f"), parser.answers(answer))


START_LINES = [
    "GET / HTTP/1.1",
    "GET  / HTTP/1.1",
    "GET /  HTTP/1.1",
    "GET / HTTP/1.1 ",
    "GET /HTTP/1.1",
    "GET  HTTP/1.1",
    "GET / HTTP/1.2",
    "GET / HTTP/2.0",
    "get / HTTP/1.1",
    "GETS / HTTP/1.1",
    "POST/ HTTP/1.1",
    "POSTS / HTTP/1.1",
    "HEADX / HTTP/1.1",
    "PATCHY / HTTP/1.1",
    "PATCH / HTTP/1.0",
    "DELETES / HTTP/1.1",
    "DELETE / HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "GET /a b HTTP/1.1",
    "GET /\x01 HTTP/1.1",
    "GET /\x7f HTTP/1.1",
    "GET /ÿ\x80 HTTP/1.1",
    "GET / \x7f HTTP/1.1",
    "GET /1234567\x7f HTTP/1.1",
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200",
    "HTTP/1.1 200 ",
    "HTTP/1.1 2000",
    "HTTP/1.1 20",
    "HTTP/1.1 600 A",
    "HTTP/1.1 099 A",
    "HTTP/1.1 2a0 A",
    "HTTP/1.1  200 A",
    "HTTP/1.2 200 A",
    "HTTP/1.1\t200 A",
    "HTTP/1.1 200\tA",
    "HTTP/1.1 200\rA",
    "HTTP/1.0 304 A",
]


@pytest.mark.parametrize("line", START_LINES)
@pytest.mark.parametrize("end", ["\r\n", "\n", "\r\r\n"])
def test_the_short_way_reads_the_same_start_lines(parser: h1.Parser, line: str, end: str) -> None:
    # GIVEN
    stream = (line + end + "Content-Length: 1\r\n\r\nx").encode("latin-1")

    # WHEN / THEN
    same_messages(parser.requests(stream, flags="f"), parser.requests(stream, flags="-"))
    same_messages(parser.answers(stream, flags="f"), parser.answers(stream))


def test_the_short_way_reads_the_same_targets_of_every_length(parser: h1.Parser) -> None:
    # GIVEN a byte that no target may have, at the end, in the middle, nowhere
    for length in range(210):
        for end in (b"", b"\x7f", b"\x00", b"\xff"):
            stream = b"GET /" + b"x" * length + end + b" HTTP/1.1\r\n\r\n"

            # WHEN / THEN
            same_messages(parser.requests(stream, flags="f"), parser.requests(stream, flags="-"))


@bounded
@given(h1_messages.requests(), h1_messages.requests())
def test_the_short_way_reads_the_same_near_valid_requests(
    parser: h1.Parser, first: bytes, second: bytes
) -> None:
    # WHEN
    short = parser.requests(first + second, flags="f")

    # THEN
    same_messages(short, parser.requests(first + second, flags="-"))
    event(f"taken {short.shortcuts}")


@bounded
@given(h1_messages.answers(), h1_messages.answers())
def test_the_short_way_reads_the_same_near_valid_answers(
    parser: h1.Parser, first: Answer, second: Answer
) -> None:
    # GIVEN
    stream, methods = first.stream + second.stream, [first.method, second.method]

    # WHEN
    short = parser.answers(stream, methods, flags="f")

    # THEN
    same_messages(short, parser.answers(stream, methods))
    event(f"taken {short.shortcuts}")


@pytest.mark.parametrize("target", [b"/", b"/seven", b"/a?b=c", b"/" + b"x" * 191])
@pytest.mark.parametrize("method", b"GET HEAD POST PUT DELETE PATCH".split())
def test_plain_requests_take_the_short_way(parser: h1.Parser, method: bytes, target: bytes) -> None:
    # GIVEN
    head = b"%b %b HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\n" % (method, target)
    stream = head + b"\r\n" + head + b"Content-Length: 3\r\nAccept: */*\r\n\r\nabc"

    # WHEN / THEN
    assert parser.requests(stream, flags="f").shortcuts == 2


@pytest.mark.parametrize("line", [b"Content-Length: 3", b"content-length:3", b"A: b"])
@pytest.mark.parametrize("more", range(12))
def test_plain_answers_take_the_short_way(parser: h1.Parser, line: bytes, more: int) -> None:
    # GIVEN lines that begin at each place of a word
    stream = b"HTTP/1.1 200 OK\r\nX: %b\r\n%b\r\n\r\nabc" % (b"y" * more, line)

    # WHEN / THEN
    assert parser.answers(stream, flags="f").shortcuts == 1


# --- other parsers --------------------------------------------------------------------------


def outcome(reading: h1.Reading) -> Outcome:
    """The parser's first message in the oracles' words."""
    if not reading.messages:
        return Outcome(REFUSED if reading.is_bad else PARTIAL)
    m = reading.messages[0]
    to_the_close = m.kind == "open" and reading.state == h1.TO_THE_CLOSE
    if m.kind == "open" and not to_the_close:
        return Outcome(REFUSED if reading.is_bad else PARTIAL)
    return Outcome(
        "answer" if to_the_close else m.kind,
        version=m.version,
        body=m.body,
        end=m.end,
        status=m.status,
        name=m.name,
        target=m.target,
        to_the_close=to_the_close,
    )


def cut(other: Outcome) -> Outcome:
    """Texts as long as the parser keeps them; the reason is nobody else's."""
    return replace(other, name=other.name[:16], target=other.target[:192], why="")


def test_requests_are_those_that_h11_reads(parser: h1.Parser) -> None:
    """Equal where h11 takes them; else equal when written strictly, by named rules."""
    seen: set[str] = set()

    @settings(bounded, max_examples=examples(800))
    @given(h1_messages.requests())
    def check(raw: bytes) -> None:
        seen.update(compare_request(parser, raw))

    check()
    assert seen <= set(h1_leniency.LENIENCIES)
    assert len(seen) > 5, "messages that are nearly valid have become too valid"


def test_answers_are_those_that_h11_reads(parser: h1.Parser) -> None:
    """Equal where h11 takes them; else equal when written strictly, by named rules."""
    seen: set[str] = set()

    @settings(bounded, max_examples=examples(800))
    @given(h1_messages.answers())
    def check(answer: Answer) -> None:
        seen.update(compare_answer(parser, answer))

    check()
    assert seen <= set(h1_leniency.LENIENCIES)
    assert len(seen) > 5, "messages that are nearly valid have become too valid"


def compare_request(parser: h1.Parser, raw: bytes) -> set[str]:
    return compare(parser.requests(raw), raw, h1_oracles.h11_request)


def compare_answer(parser: h1.Parser, answer: Answer) -> set[str]:
    reading = parser.answers(answer.stream, [answer.method])
    return compare(reading, answer.stream, lambda s: h1_oracles.h11_answer(s, answer.method))


def compare(reading: h1.Reading, raw: bytes, h11: Callable[[bytes], Outcome]) -> set[str]:
    """Asserts that h11 reads the same; returns the names of the leniencies at work."""
    ours, theirs = outcome(reading), h11(raw)
    if ours.kind == REFUSED:
        assert theirs.kind in (REFUSED, PARTIAL) or h1_leniency.allowed_refusals(raw), raw
        return set()
    if not reading.messages:
        assert not h1_leniency.has_whole_head(raw), raw
        return set()
    first = reading.messages[0]
    end = raw_end = len(raw) if ours.kind == PARTIAL or ours.to_the_close else ours.end
    strict = h1_leniency.strictly(
        raw[:end],
        first.head,
        answers=first.status > 0,
        connect=first.method == h1.METHODS.index("CONNECT"),
    )
    if not strict.names or (
        theirs.kind not in (REFUSED, PARTIAL) and "content of CONNECT" not in strict.names
    ):
        assert cut(theirs) == ours, raw
    if strict.names:
        again = h11(strict.stream)
        assert cut(again) == rewritten(ours, strict.stream, raw_end), (raw, strict, again.why)
    return strict.names


def rewritten(ours: Outcome, strict: bytes, raw_end: int) -> Outcome:
    """Our reading of a raw message as it must be of the one written strictly."""
    target = bytes(b if b < 0x80 else ord("x") for b in ours.target)
    return replace(ours, target=target, end=len(strict) if ours.end == raw_end else ours.end)


@pytest.mark.parametrize("name", h1_leniency.LENIENCIES)
def test_a_leniency_is_one(parser: h1.Parser, name: str) -> None:
    # GIVEN
    raw = h1_leniency.LENIENCIES[name].example
    answers = raw.startswith(b"HTTP")

    # WHEN
    names = compare_answer(parser, Answer("GET", raw)) if answers else compare_request(parser, raw)
    theirs = h1_oracles.h11_answer(raw, "GET") if answers else h1_oracles.h11_request(raw)
    ours = outcome(parser.answers(raw) if answers else parser.requests(raw))

    # THEN
    assert names == {name}
    assert ours.kind in ("request", "answer")
    assert cut(theirs) != ours


@pytest.mark.parametrize("name", h1_leniency.STRICTNESS)
def test_a_strictness_is_one(parser: h1.Parser, name: str) -> None:
    # GIVEN
    raw = h1_leniency.STRICTNESS[name].example
    answers = raw.startswith(b"HTTP")

    # WHEN
    theirs = h1_oracles.h11_answer(raw, "GET") if answers else h1_oracles.h11_request(raw)
    ours = outcome(parser.answers(raw) if answers else parser.requests(raw))

    # THEN
    assert h1_leniency.allowed_refusals(raw) == [name]
    assert ours.kind == REFUSED and theirs.kind != REFUSED


LLHTTP = pytest.mark.skipif(
    importlib.util.find_spec("llhttp") is None,
    reason="no Python package llhttp: the parser of Node.js is not compared",
)


@LLHTTP
@settings(bounded, max_examples=examples(500))
@given(h1_messages.requests())
def test_requests_that_llhttp_reads_are_read_the_same(parser: h1.Parser, raw: bytes) -> None:
    # WHEN
    ours, theirs = outcome(parser.requests(raw)), h1_oracles.llhttp_request(raw)

    # THEN
    event(theirs.kind)
    same_as_llhttp(ours, theirs, raw)


@LLHTTP
@settings(bounded, max_examples=examples(500))
@given(h1_messages.answers().filter(lambda a: a.method not in ("HEAD", "CONNECT")))
def test_answers_that_llhttp_reads_are_read_the_same(parser: h1.Parser, answer: Answer) -> None:
    # GIVEN llhttp knows the coding only if it is written plainly
    assume(not re.search(rb"(?i)\ntransfer-encoding:[^\n]*(,|chunked[ \t]*\t)", answer.stream))

    # WHEN
    ours = outcome(parser.answers(answer.stream, [answer.method]))
    theirs = h1_oracles.llhttp_answer(answer.stream)

    # THEN
    event(theirs.kind)
    same_as_llhttp(ours, theirs, answer.stream)


def same_as_llhttp(ours: Outcome, theirs: Outcome, raw: bytes) -> None:
    rules = {**h1_leniency.STRICTNESS, **h1_leniency.LLHTTP_ONLY}
    if theirs.kind == REFUSED:
        return
    if ours.kind == REFUSED:
        assert h1_leniency.allowed_refusals(raw, rules), raw
        return
    assert cut(theirs) == ours, raw


@LLHTTP
@pytest.mark.parametrize("name", h1_leniency.LLHTTP_ONLY)
def test_only_llhttp_takes_it(parser: h1.Parser, name: str) -> None:
    # GIVEN
    raw = h1_leniency.LLHTTP_ONLY[name].example
    answers = raw.startswith(b"HTTP")

    # WHEN
    theirs = h1_oracles.llhttp_answer(raw) if answers else h1_oracles.llhttp_request(raw)
    ours = outcome(parser.answers(raw) if answers else parser.requests(raw))

    # THEN
    assert h1_leniency.allowed_refusals(raw, h1_leniency.LLHTTP_ONLY) == [name]
    assert ours.kind == REFUSED and theirs.kind != REFUSED


# --- any bytes ------------------------------------------------------------------------------


def test_a_short_run_of_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    # GIVEN the messages above as seeds
    if not any(map(shutil.which, ("clang-19", "clang-20", "clang-21", "clang"))):
        pytest.skip("no clang: libFuzzer is not run")
    fuzzer = h1.build("host-fuzzer") / "h1_fuzz"
    h1_messages.write_seeds(tmp_path / "corpus", h1.METHODS)
    limits = ["-runs=20000", "-seed=1", "-max_len=1200", "-print_final_stats=1"]
    words = f"-dict={h1.ROOT / 'tests/host/h1.dict'}"

    # WHEN
    done = subprocess.run(
        [fuzzer, *limits, words, f"-artifact_prefix={tmp_path}/", tmp_path / "corpus"],
        capture_output=True,
        text=True,
        check=False,
    )

    # THEN
    assert done.returncode == 0, done.stderr[-4000:]
    assert "stat::number_of_executed_units: 20000" in done.stderr


# --- histograms -----------------------------------------------------------------------------

BUCKETS = 256
ADVISED_MS = (5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000)


def is_below_limit(ns: int, bucket: int) -> bool:
    """Is the time at most 2^((bucket - 159) / 8) s? In whole numbers, to the eighth power."""
    if bucket == BUCKETS - 1:
        return True
    return int(ns**8 << 159) <= 10**72 << bucket


def test_times_around_every_limit_are_in_their_buckets(programs: Path) -> None:
    # GIVEN each limit, in whole nanoseconds, and its neighbours
    with localcontext(prec=60):
        limits = [int(10**9 * Decimal(2) ** (Decimal(i - 159) / 8)) for i in range(BUCKETS)]
    edges = [ms * 1_000_000 for ms in ADVISED_MS] + limits + [1 << power for power in range(64)]
    times = sorted({t + d for t in edges for d in (-1, 0, 1)} | {0, (1 << 64) - 1})

    # WHEN
    found = h1.buckets(programs, times)

    # THEN
    for ns, (bucket, _) in zip(times, found, strict=True):
        assert is_below_limit(ns, bucket), ns
        assert not bucket or not is_below_limit(ns, bucket - 1), ns
    bounds = [bound for _, bound in found]
    assert bounds == [bisect_left(ADVISED_MS, Decimal(ns) / 1_000_000) for ns in times]
    assert {bucket for bucket, _ in found} == set(range(BUCKETS))


# --- routes ---------------------------------------------------------------------------------

SEGMENTS = st.one_of(
    st.sampled_from(
        b"users v1 42 0 deadbeef deadbee7 DEADBEE7F 1234567 a1b2c3d4e5f6g7h8 x1y2z3 "
        b"abcdefghijklmnopq 6ba7b810-9dad-11d1-80b4-00c04fd430c8 %C3%A9 1-2 12.5 x=1 * -- "
        b"6ba7b8109dad-11d1-80b4-00c04fd430c8a 0x1f 123e4567-e89b-12d3-a456-42661417400g".split()
    ),
    st.text("0123456789abcdefghXYZ-_.~%", max_size=40).map(str.encode),
    st.just(b""),
    st.just(b"\xc3\xa9"),
)
PATHS = st.lists(SEGMENTS, min_size=1, max_size=9).map(lambda parts: b"/" + b"/".join(parts))
QUERIES = st.sampled_from([b"", b"?", b"?a=b/1", b"?/1?2"])
TARGETS = st.one_of(
    st.tuples(PATHS, QUERIES).map(b"".join),
    st.tuples(
        st.sampled_from([b"http://h", b"https://h:8080", b"ws://[::1]:1"]),
        st.one_of(st.just(b""), PATHS),
        QUERIES,
    ).map(b"".join),
    st.just(b"*"),
)
PATH_MAX = 192


# Not shrunk: the target that differs is named.
@settings(bounded, max_examples=examples(25), phases=[Phase.generate])
@given(st.lists(TARGETS, min_size=20, max_size=50))
def test_routes_are_those_of_the_rule(programs: Path, targets: list[bytes]) -> None:
    # WHEN
    found = h1.routes(programs, targets)

    # THEN a target counts as far as it is kept
    for target, (text, route_hash, _) in zip(targets, found, strict=True):
        assert text.decode("utf-8", "backslashreplace") == route(target[:PATH_MAX]), target
        assert route_hash == fnv1a(text)


def fnv1a(text: bytes) -> int:
    """FNV-1a of 64 bits."""
    value = 0xCBF29CE484222325
    for byte in text:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value


def test_the_hash_of_a_path_as_sent_ends_at_its_query(programs: Path) -> None:
    # GIVEN paths of each length, and each with two queries
    paths = [b"/" + b"p" * n for n in range(PATH_MAX - 6)]
    targets = [path + query for path in paths for query in (b"?a=1", b"?b")]

    # WHEN
    raw = [raw_hash for _, _, raw_hash in h1.routes(programs, targets)]

    # THEN
    assert raw[::2] == raw[1::2]
    assert len(set(raw)) == len(paths)
