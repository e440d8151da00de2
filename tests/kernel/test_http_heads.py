# SPDX-License-Identifier: Apache-2.0
"""Methods, targets and heads of any length."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conversations.compare import check
from conversations.messages import NO_BODY
from conversations.messages import Body
from conversations.messages import conversation
from conversations.messages import exchange
from conversations.observed import Observer


def test_each_known_method_has_its_name_and_all_others_are_other(exact: Observer) -> None:
    # GIVEN each method, its lower case, and tokens that begin or end like one
    known = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"QUERY")
    strange = [method.lower() for method in known]
    strange += [method + b"X" for method in known] + [method[:-1] for method in known]
    strange += [b"X" + method for method in known]
    strange += [b"HTTP", b"!#$%&'*+-.^_`|~", b"X" * 40, b"PROPFIND", b"CONNECTS", b"1", b"P"]
    talk = conversation(
        *(
            exchange(method, answer_body=NO_BODY if method == b"HEAD" else None)
            for method in (*known, *strange)
        )
    )

    # WHEN / THEN
    check(exact, [talk, replace(talk, depth=64)])


@pytest.mark.parametrize("method", [b"HTTP", b"!#$%", b"PROPFIND", b"X" * 40, b"get", b"1"])
def test_a_connection_may_begin_with_an_unknown_method(exact: Observer, method: bytes) -> None:
    # GIVEN / WHEN / THEN
    check(exact, [conversation(exchange(method, b"/a"), exchange())])


@pytest.mark.parametrize(
    "target",
    [
        b"*",
        b"http://example.test/a/b?c",
        b"http://example.test",
        b"http://example.test?q=/1/2",
        b"https://user@[2001:db8::1]:8443/users/77",
        b"/",
        b"//a//b",
        b"/?",
        b"/a?b?c/d/1",
        b"/users/42/orders/550e8400-e29b-41d4-a716-446655440000",
        b"/a%2Fb/%20;c=d",
        b"/" + b"a" * 126,
        b"/" + b"a" * 127,
        b"/" + b"b" * 128,
        b"/" + b"c/" * 70,
        b"/" + b"long-segment/" * 13 + b"?query",
        b"/q?" + b"x" * 5000,
        b"/" + b"y" * 191,
        b"/" + b"y" * 192,
        b"/" + b"y" * 8000,
        b"/\xe4\xf6",
    ],
)
def test_targets_give_their_route_and_are_logged_as_sent(exact: Observer, target: bytes) -> None:
    # GIVEN two requests with this target / WHEN / THEN
    method = b"OPTIONS" if target == b"*" else b"GET"
    check(exact, [conversation(exchange(method, target), exchange(method, target))])


@pytest.mark.parametrize(
    "lines",
    [
        (b"X-Big: " + b"v" * 65_000,),
        tuple(b"X-%d: %s" % (n, b"v" * 20) for n in range(2_200)),
        tuple(b"C%d: Content-Length: 5" % n for n in range(2_500)),
        (b"Content-" + b"x" * 60_000 + b": 1",),
    ],
    ids=["one line", "many lines", "many lines that begin with C", "a long name"],
)
@pytest.mark.parametrize("cut", [None, 1000])
def test_heads_of_64_kilobytes(exact: Observer, lines: tuple[bytes, ...], cut: int | None) -> None:
    # GIVEN heads of 64 KB on both sides, with the framing at the very end
    talk = conversation(
        exchange(
            b"PUT",
            request_lines=lines,
            request_body=Body(b"abc", "length"),
            answer_lines=lines,
            answer_body=Body(b"defg", "length"),
        ),
        exchange(),
    )
    if cut:
        talk = replace(
            talk,
            cuts_up=frozenset(range(cut, len(talk.up), cut)),
            cuts_down=frozenset(range(cut, len(talk.down), cut)),
        )

    # WHEN / THEN
    check(exact, [talk])
