# SPDX-License-Identifier: Apache-2.0
"""The pages of the agent, over real sockets."""

from __future__ import annotations

import http.client
import socket
import threading

import pytest
import records

from podscope.commands.up import pages
from podscope.errors import PodscopeError
from podscope.sinks import prometheus
from podscope.sinks.http_server import HttpServer

REFUSED = {"tcp": PodscopeError("this kernel has no such hook")}


@pytest.fixture
def agent():
    """A server of the agent's pages on a free port, with the event of its first interval."""
    totals = prometheus.Totals()
    totals.add(records.shop_batch())
    ready = threading.Event()
    with HttpServer(("127.0.0.1", 0), pages(totals, ready, REFUSED)) as server:
        yield server, ready


def get(server, path, method="GET", version=11, **fields):
    """Status, fields and body of one request."""
    host, _, port = server.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection._http_vsn = version
    connection._http_vsn_str = f"HTTP/1.{version - 10}"
    connection.request(method, path, headers=fields)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


@pytest.mark.parametrize("version", [10, 11])
def test_metrics_are_text_unless_openmetrics_is_asked_for(agent, version):
    # GIVEN
    server, _ = agent

    # WHEN
    plain = get(server, "/metrics", version=version)
    modern = get(server, "/metrics", version=version, Accept="application/openmetrics-text")

    # THEN
    assert plain[1]["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert modern[1]["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert b"http_server_request_duration_seconds_bucket{" in plain[2]
    assert b"# EOF" not in plain[2]
    assert modern[2].endswith(b"# EOF\n")


def test_agent_is_ready_after_its_first_interval(agent):
    # GIVEN
    server, ready = agent
    before = get(server, "/readyz")[0]

    # WHEN
    ready.set()

    # THEN it says what it is without
    assert before == 503
    code, _, body = get(server, "/readyz")
    assert (code, body) == (200, b"ready\nwithout tcp: this kernel has no such hook\n")
    assert get(server, "/healthz")[2] == b"ok\n"


def test_unknown_page_names_those_that_are_there(agent):
    # GIVEN / WHEN
    status, _, body = get(agent[0], "/")

    # THEN
    assert status == 404
    assert b"/metrics" in body


def test_head_has_no_body_and_the_connection_goes_on(agent):
    # GIVEN
    host, _, port = agent[0].address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)

    # WHEN
    connection.request("HEAD", "/healthz")
    first = connection.getresponse()
    empty = first.read()
    connection.request("GET", "/metrics?name[]=x")
    second = connection.getresponse()
    body = second.read()
    connection.close()

    # THEN
    assert (first.status, first.getheader("Content-Length"), empty) == (200, "3", b"")
    assert second.status == 200 and body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_methods_that_do_not_read_are_not_allowed(agent, method):
    # GIVEN / WHEN
    status, fields, body = get(agent[0], "/metrics", method=method)

    # THEN
    assert (status, fields["Allow"]) == (405, "GET, HEAD")
    assert fields["Content-Type"] == "text/plain; charset=utf-8"
    assert body == b"pages are read with GET or HEAD\n"


def test_page_that_is_not_there_is_not_found_by_any_method(agent):
    # GIVEN / WHEN
    status, fields, _ = get(agent[0], "/", method="POST")

    # THEN
    assert status == 404
    assert "Allow" not in fields


def test_unknown_methods_are_refused_in_plain_text(agent):
    # GIVEN / WHEN
    status, fields, body = get(agent[0], "/metrics", method="BREW")

    # THEN
    assert status == 501
    assert fields["Content-Type"] == "text/plain; charset=utf-8"
    assert body == b"501 Unsupported method ('BREW')\n"


def test_port_in_use_is_one_line_that_says_what_to_do():
    # GIVEN
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        # WHEN / THEN
        with pytest.raises(PodscopeError) as caught:
            HttpServer(("127.0.0.1", port), {})
    assert str(caught.value).startswith(f"cannot listen on 127.0.0.1:{port}: the port is in use")
    assert "--listen" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_address_that_is_not_here_is_one_line():
    with pytest.raises(PodscopeError, match="this host has no such address"):
        HttpServer(("192.0.2.1", 0), {})


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300])
def test_name_that_does_not_resolve_is_one_line_that_says_so(host):
    with pytest.raises(PodscopeError) as caught:
        HttpServer((host, 9435), {})
    assert str(caught.value) == (
        f"cannot listen on {host}:9435: the name does not resolve; "
        "write an address of this host, as --listen 127.0.0.1:9435"
    )


def test_client_that_sends_nothing_does_not_hold_up_others_or_the_end(agent):
    # GIVEN a connection that stays silent
    host, _, port = agent[0].address.rpartition(":")
    with socket.create_connection((host, int(port))):
        # WHEN / THEN
        assert get(agent[0], "/healthz")[0] == 200


def test_port_is_free_again_after_the_end():
    # GIVEN
    with HttpServer(("127.0.0.1", 0), {}) as server:
        port = int(server.address.rpartition(":")[2])

    # WHEN / THEN
    with HttpServer(("127.0.0.1", port), {}) as again:
        assert again.address == f"127.0.0.1:{port}"


def test_ipv6_addresses_are_shown_in_brackets():
    if not socket.has_ipv6:
        pytest.skip("this host has no IPv6")
    with HttpServer(("::1", 0), {}) as server:
        assert server.address.startswith("[::1]:")
