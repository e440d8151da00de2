# SPDX-License-Identifier: Apache-2.0
"""What the words of the filters mean, and which rows pass."""

from __future__ import annotations

import numpy as np
import pytest
import records
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from podscope import filters
from podscope.errors import UsageError
from podscope.filters import Filter


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("200ms", 200_000_000),
        ("1s", 10**9),
        ("1m30s", 90 * 10**9),
        ("1.5s", 1_500_000_000),
        ("250us", 250_000),
        ("250µs", 250_000),
        ("7ns", 7),
        ("1h1m1s", 3661 * 10**9),
        ("2d", 2 * 86400 * 10**9),
    ],
)
def test_durations_are_read(text, ns):
    assert filters.duration_ns(text, "--slower") == ns


@pytest.mark.parametrize("text", ["", "5", "s", "1 s", "-1s", "1x", "1s5", "1..5s", "1e3s", "0s",
                                  "٣s", "36501d", "999999999999999d"])  # fmt: skip
def test_bad_duration_names_the_option(text):
    with pytest.raises(UsageError, match="^--slower: ") as caught:
        filters.duration_ns(text, "--slower")
    assert "\n" not in str(caught.value)


def test_duration_below_the_least_says_the_least():
    with pytest.raises(UsageError, match="--interval: 5ms is too short; the least is 100ms"):
        filters.duration_ns("5ms", "--interval", least_ns=100_000_000)


@given(text=st.text(max_size=12))
@settings(deadline=None)
def test_any_text_is_a_duration_or_a_usage_error(text):
    # GIVEN / WHEN
    try:
        told = filters.duration_ns(text, "--slower")
    except UsageError:
        return

    # THEN
    assert told > 0


def test_share_is_read():
    assert filters.one_in("1/100", "--sample") == 100


@pytest.mark.parametrize("text", ["", "100", "1/0", "2/100", "1/-5", "1/x", "1/100 ", "1/٣"])
def test_bad_share_gives_an_example(text):
    with pytest.raises(UsageError, match="--sample: .*1/100"):
        filters.one_in(text, "--sample")


def test_ports_are_ranges():
    assert filters.ports("80,8000-8100", "--port") == ((80, 80), (8000, 8100))


@pytest.mark.parametrize("text", ["", "0", "65536", "80-", "90-80", "http", "80;90", "80,,90", "٣"])
def test_bad_ports_give_an_example(text):
    with pytest.raises(UsageError, match="--port: .*80,8000-8100"):
        filters.ports(text, "--port")


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("5xx", ((500, 599),)),
        ("404", ((404, 404),)),
        ("4xx,500", ((400, 499), (500, 500))),
        ("4XX", ((400, 499),)),
        ("none", ((0, 0),)),
    ],
)
def test_statuses_are_ranges(text, ranges):
    assert filters.statuses(text, "--status") == ranges


@pytest.mark.parametrize("text", ["", "0xx", "50x", "99", "1000", "ok", "5xx,", "٤04"])
def test_bad_statuses_give_an_example(text):
    with pytest.raises(UsageError, match="--status: .*5xx, 404"):
        filters.statuses(text, "--status")


def test_side_is_one_of_two_words():
    assert filters.side("server", "--side") == "server"
    assert filters.side(None, "--side") is None
    with pytest.raises(UsageError, match="--side: .*server or client"):
        filters.side("both", "--side")


def matches_in_the_kernel(pattern: bytes, path: bytes) -> bool:
    """What glob_step() in bpf/http/log.h does: ``*`` and ``?``, byte by byte."""
    if not pattern:
        return not path
    if pattern[:1] == b"*":
        return any(matches_in_the_kernel(pattern[1:], path[at:]) for at in range(len(path) + 1))
    one = bool(path) and pattern[:1] in (b"?", path[:1])
    return one and matches_in_the_kernel(pattern[1:], path[1:])


@given(
    pattern=st.text(alphabet="/a*?[]!é-", max_size=8),
    path=st.text(alphabet="/a]é-", max_size=6),
)
@settings(deadline=None)
def test_kernel_passes_every_path_that_the_glob_matches(pattern, path):
    # GIVEN
    batch = records.request_batch(1, path=path.encode(), path_len=len(path.encode()))

    # WHEN
    wanted = bool(Filter(path=pattern).mask(batch)[0])

    # THEN
    if wanted and path:
        assert matches_in_the_kernel(filters.kernel_glob(pattern).encode(), path.encode())


@pytest.mark.parametrize(
    ("pattern", "short"),
    [
        ("/api/*", "/api/*"),
        ("/v[12]/x", "/v*"),
        ("/a?c", "/a*"),
        ("/" + "x" * 63, "/" + "x" * 63),
        ("/" + "x" * 64, "/" + "x" * 62 + "*"),
        ("/" + "é" * 32, "/" + "é" * 31 + "*"),
    ],
)
def test_kernel_keeps_as_much_of_a_glob_as_it_can(pattern, short):
    # GIVEN / WHEN
    told = filters.kernel_glob(pattern)

    # THEN
    assert told == short
    assert len(told.encode()) <= filters.KERNEL_GLOB_BYTES


def test_empty_glob_is_refused_with_an_example():
    assert filters.glob("/a*", "--path", "/api/*") == "/a*"
    assert filters.glob(None, "--path", "/api/*") is None
    with pytest.raises(UsageError, match=r"--path: empty; write it as --path '/api/\*'"):
        filters.glob("", "--path", "/api/*")


@pytest.mark.parametrize("text", ["st/404", "api", "http://shop/a", "!x"])
def test_glob_that_no_path_matches_is_refused_with_two_that_some_do(text):
    with pytest.raises(UsageError) as caught:
        filters.glob(text, "--path", "/api/*")
    said = f"--path: {text!r} matches no path, paths begin with a slash; "
    assert str(caught.value) == said + f"write it as --path '/{text}' or '*{text}'"


@pytest.mark.parametrize("text", ["/api", "*404", "?api", "[/]x", "*"])
def test_glob_that_a_path_may_match_is_taken(text):
    assert filters.glob(text, "--path", "/api/*") == text


def test_glob_of_names_needs_no_slash():
    assert filters.glob("shop", "--workload", "nginx*") == "shop"


def test_fields_to_group_by_keep_their_order_and_lose_repeats():
    assert filters.dimensions("route,workload,route", "--by") == ("route", "workload")


@pytest.mark.parametrize("text", ["", "colour", "route,,port"])
def test_unknown_field_lists_the_known_ones(text):
    with pytest.raises(UsageError, match="--by: .*choose from service,workload,"):
        filters.dimensions(text, "--by")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9435", ("127.0.0.1", 9435)),
        ("[::1]:80", ("::1", 80)),
        (":9435", ("", 9435)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses_are_read(text, expected):
    assert filters.address(text, "--listen") == expected


@pytest.mark.parametrize("text", ["", "9435", "127.0.0.1", "::1:80", "a:70000", "a:b", "[::1]"])
def test_bad_address_gives_an_example(text):
    with pytest.raises(UsageError, match=r"--listen: .*127\.0\.0\.1:9435"):
        filters.address(text, "--listen")


def counts(batch):
    """Counts of the rows that are left: each row of the sample has another."""
    return batch.rows["count"].tolist()


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Filter(), [30, 10, 12, 3, 5]),
        (Filter(side="client"), [5]),
        (Filter(ports=((80, 80),)), [30, 10, 5]),
        (Filter(ports=((1, 79), (8000, 8100))), [12, 3]),
        (Filter(statuses=((500, 599),)), [3]),
        (Filter(statuses=((404, 404), (500, 500))), [10, 3, 5]),
        (Filter(workload="nginx*"), [30, 10]),
        (Filter(workload="NGINX*"), []),
        (Filter(workload="[sc]*"), [12, 3, 5]),
        (Filter(side="server", statuses=((400, 499),)), [10]),
    ],
)
def test_only_matching_rows_are_kept(keep, expected):
    # GIVEN
    batch = records.shop_batch()

    # WHEN
    kept = keep.apply(batch)

    # THEN
    assert counts(kept) == expected
    assert len(kept.identity) == len(expected)


def test_identities_stay_with_their_rows():
    # GIVEN / WHEN
    kept = Filter(workload="curl").apply(records.shop_batch())

    # THEN
    assert [kept.identities[i].name for i in kept.identity] == ["curl"]


def test_request_paths_match_without_their_query():
    # GIVEN
    batch = records.request_batch(3)
    batch.rows["path"] = [b"/api/a?x=/no", b"/no?x=/api/a", b"http://h/api/b"]

    # WHEN
    kept = Filter(path="/api/*").apply(batch)

    # THEN
    assert kept.rows["path"].tolist() == [b"/api/a?x=/no", b"http://h/api/b"]


def test_port_of_a_request_is_the_servers_on_both_sides():
    # GIVEN a server on port 80 and a client of port 80
    batch = records.request_batch(2)
    batch.rows["side"] = [1, 2]
    batch.rows["local_port"] = [80, 40000]
    batch.rows["peer_port"] = [40000, 80]

    # WHEN / THEN
    assert len(Filter(ports=((80, 80),)).apply(batch)) == 2
    assert len(Filter(ports=((40000, 40000),)).apply(batch)) == 0


def test_filter_of_an_empty_batch_is_empty():
    # GIVEN
    batch = records.http_batch(records.http_rows(0), np.zeros(0), ())

    # WHEN / THEN
    assert len(Filter(workload="x", statuses=((0, 0),)).apply(batch)) == 0
