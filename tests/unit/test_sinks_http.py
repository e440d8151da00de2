# SPDX-License-Identifier: Apache-2.0
"""How sinks speak HTTP: what statuses mean, credentials, TLS, and that nothing secret is told."""

from __future__ import annotations

import base64
import email.utils
import socket
import ssl
import threading
import time

import pytest
import records
import sink_rows
from certificates import self_signed
from stub_server import stub_server

from podscope.errors import PodscopeError
from podscope.settings import Duration
from podscope.settings import Secret
from podscope.settings import Url
from podscope.sinks import rows
from podscope.sinks.http_client import Client
from podscope.sinks.http_client import ServerSettings
from podscope.sinks.http_client import TlsSettings
from podscope.sinks.influxdb import Influxdb
from podscope.sinks.influxdb import InfluxdbSettings
from podscope.sinks.plugin import TooLarge
from podscope.sinks.plugin import Unavailable


@pytest.fixture
def stub():
    with stub_server() as made:
        yield made


def client(url: str, **more: object) -> Client:
    return Client(ServerSettings(type="x", url=Url(url), **more))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_unavailable(stub, status):
    # GIVEN
    stub.answers = [(status, {"Retry-After": "7"}, b"busy\nnow")]

    # WHEN
    with pytest.raises(Unavailable) as caught:
        client(stub.url).send("POST", "/a", b"x")

    # THEN
    assert caught.value.after == 7
    assert str(caught.value).startswith(f"{stub.url}: {status} ")
    assert str(caught.value).endswith(": busy now")


def test_a_date_in_retry_after_is_understood(stub):
    # GIVEN
    then = email.utils.formatdate(time.time() + 100, usegmt=True)
    stub.answers = [(429, {"Retry-After": then}, b""), (429, {"Retry-After": "soon"}, b"")]

    # WHEN
    waits = []
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            client(stub.url).send("POST", "/a", b"x")
        waits.append(caught.value.after)

    # THEN
    assert 90 < waits[0] <= 101 and waits[1] == 0


def test_too_large_and_wrong_credentials_are_told(stub):
    # GIVEN
    stub.answers = [(413, {}, b""), (401, {}, b"no")]

    # WHEN / THEN
    with pytest.raises(TooLarge):
        client(stub.url).send("POST", "/a", b"x")
    with pytest.raises(Unavailable, match="401 Unauthorized: no; check the user, password or key"):
        client(stub.url).send("POST", "/a", b"x")


def test_rows_wait_for_a_url_that_has_moved_and_are_not_sent_there(stub):
    # GIVEN
    stub.answers = [(308, {"Location": "https://elsewhere/write?token=x"}, b"")]

    # WHEN
    with pytest.raises(Unavailable) as caught:
        client(stub.url).send("POST", "/x", b"rows")

    # THEN
    assert "308 Permanent Redirect; it is at https://elsewhere/write: set url" in str(caught.value)
    assert len(stub.requests) == 1


@pytest.mark.parametrize("status", [404, 405, 501])
def test_what_is_missing_may_come_and_is_told_with_what_to_check(stub, status):
    # GIVEN
    stub.answers = [(status, {}, b"bucket not found")]

    # WHEN / THEN
    with pytest.raises(
        Unavailable, match=f"{status} .*bucket not found; nothing takes .*check url"
    ):
        client(stub.url).send("POST", "/x", b"rows")


def test_a_page_for_people_is_left_out_of_the_line(stub):
    # GIVEN
    stub.answers = [(404, {"Content-Type": "text/html;charset=utf-8"}, b"<html>no</html>")]

    # WHEN
    with pytest.raises(Unavailable) as caught:
        client(stub.url).send("POST", "/x", b"rows")

    # THEN
    assert str(caught.value).endswith("404 Not Found; nothing takes rows there yet: check url")


def test_bodies_are_compressed_unless_told_otherwise(stub):
    # GIVEN / WHEN
    client(stub.url).send("POST", "/a", b"x" * 1000)
    client(stub.url, compress=False).send("POST", "/a", b"y" * 1000)

    # THEN
    told = [(one.headers.get("content-encoding"), one.body) for one in stub.requests]
    assert told == [("gzip", b"x" * 1000), (None, b"y" * 1000)]
    assert int(stub.requests[0].headers["content-length"]) < 100


def test_a_password_that_changes_is_taken_up_and_is_in_no_error(stub, tmp_path):
    # GIVEN
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    one = client(stub.url, username="me", password=Secret(file=str(file)))

    # WHEN
    one.send("POST", "/a")
    file.write_text("hunter3\n")
    one.send("POST", "/a")
    file.unlink()
    with pytest.raises(Unavailable) as caught:
        one.send("POST", "/a")

    # THEN
    sent = [base64.b64decode(r.headers["authorization"][6:]) for r in stub.requests]
    assert sent == [b"me:hunter2", b"me:hunter3"]
    assert str(caught.value) == f"cannot read the secret {file}: No such file or directory"


def test_nobody_there_or_nobody_that_answers_is_unavailable():
    # GIVEN
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        # WHEN / THEN
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port}: timed out"):
            client(f"http://127.0.0.1:{port}", timeout=Duration(0.1)).send("POST", "/a")
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}: .*Connection refused"):
        client(f"http://127.0.0.1:{port}").send("POST", "/a")


def test_a_certificate_that_is_not_trusted_is_refused_unless_it_is_named(tmp_path):
    # GIVEN a server with a certificate of its own
    cert, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=serve_tls, args=(listener, context, 3), daemon=True)
        thread.start()

        # WHEN / THEN
        with pytest.raises(Unavailable, match="certificate verify failed"):
            client(url).send("POST", "/a")
        assert client(url, tls=TlsSettings(ca=str(cert))).send("POST", "/a").status_code == 204
        assert client(url, tls=TlsSettings(verify=False)).send("POST", "/a").status_code == 204
        thread.join()


def serve_tls(listener: socket.socket, context: ssl.SSLContext, times: int) -> None:
    """Answers 204 to so many connections."""
    for _ in range(times):
        plain, _ = listener.accept()
        try:
            with context.wrap_socket(plain, server_side=True) as connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        except OSError:
            plain.close()


def test_a_certificate_file_that_is_none_is_refused_at_the_start(tmp_path):
    # GIVEN
    file = tmp_path / "ca"
    file.write_text("not a certificate")

    # WHEN / THEN
    with pytest.raises(PodscopeError, match="^tls: not a certificate or key: "):
        client("https://a", tls=TlsSettings(ca=str(file)))
    with pytest.raises(PodscopeError, match="^tls: cannot read /no/such: No such file"):
        client("https://a", tls=TlsSettings(ca="/no/such"))


# --- InfluxDB's API of version 2, by its published form -----------------------------------------


def test_version_2_gets_lines_with_org_bucket_and_token(stub, monkeypatch):
    # GIVEN
    monkeypatch.setenv("TOKEN", "abc")
    settings = InfluxdbSettings(
        type="influxdb", url=Url(stub.url), org="o", bucket="b", token=Secret(variable="TOKEN")
    )
    sink = Influxdb(settings)

    # WHEN
    sink.send(sink_rows.http_rows())

    # THEN
    (request,) = stub.requests
    assert (request.method, request.path) == ("POST", "/api/v2/write")
    assert request.query == {"org": "o", "bucket": "b", "precision": "ns"}
    assert request.headers["authorization"] == "Token abc"
    lines = request.body.decode().splitlines()
    assert len(lines) == 5
    assert all(line.startswith("podscope_http,") and line[-19:].isdigit() for line in lines)


def test_the_same_rows_sent_again_are_the_same_bytes(stub):
    # GIVEN a server that is busy once
    stub.answers = [(503, {}, b"")]
    sink = Influxdb(
        InfluxdbSettings(
            type="influxdb", url=Url(stub.url), org="o", bucket="b", compat=("owlk8s",)
        )
    )
    rows = sink_rows.request_rows(5)

    # WHEN
    with pytest.raises(Unavailable):
        sink.send(rows)
    sink.send(rows)

    # THEN
    assert stub.requests[0].body == stub.requests[1].body
    times = [line.rsplit(b" ", 1)[1] for line in stub.requests[0].body.splitlines()]
    assert len(set(times)) == 5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "org and bucket are missing"),
        ({"version": 1, "token": Secret(variable="A")}, "token"),
        ({"org": "o", "bucket": "b", "username": "me"}, "username is for version 1"),
    ],
)
def test_settings_of_the_wrong_version_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        InfluxdbSettings(type="influxdb", url=Url("http://a"), **settings)


def test_parts_of_a_delivery_are_the_lines_that_its_whole_was(stub):
    # GIVEN a server that finds the whole too large, and rows that come from a disk then
    stub.answers = [(413, {}, b"")]
    sink = Influxdb(InfluxdbSettings(type="influxdb", url=Url(stub.url), org="o", bucket="b"))
    some = sink_rows.request_rows(5)
    with pytest.raises(TooLarge):
        sink.send(some)

    # WHEN
    for part in rows.unpacked(rows.packed(some)).pieces(3):
        sink.send(part)

    # THEN points keep the times that they were given
    whole, *parts = (request.body for request in stub.requests)
    assert b"".join(parts) == whole and len(parts) == 2


def test_counters_of_owlk8s_do_not_count_twice_what_is_sent_in_parts(stub):
    # GIVEN
    settings = InfluxdbSettings(
        type="influxdb", url=Url(stub.url), org="o", bucket="b", compat=("owlk8s",)
    )
    sink = Influxdb(settings)
    ((name, by),) = ((n, by) for n, by in sink.also_by.items() if n != rows.SERVICE)
    made = [*rows.of_batches([records.cluster_batch()], also_by={name: by})]
    (some,) = [one for one in made if one.kind == name]
    stub.answers = [(413, {}, b"")]
    with pytest.raises(TooLarge):
        sink.send(some)

    # WHEN
    for part in some.pieces(2):
        sink.send(part)

    # THEN
    whole, *parts = (request.body for request in stub.requests)
    assert b"".join(parts) == whole and b"INT_svcmetrics" in whole
