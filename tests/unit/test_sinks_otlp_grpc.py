# SPDX-License-Identifier: Apache-2.0
"""OTLP over gRPC: a server that decodes with the official classes, and what its codes do."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import pytest
import sink_rows
from certificates import self_signed
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from podscope.errors import UsageError
from podscope.settings import Secret
from podscope.settings import Url
from podscope.sinks import protobuf
from podscope.sinks.http_client import TlsSettings
from podscope.sinks.otlp import Otlp
from podscope.sinks.otlp import OtlpSettings
from podscope.sinks.plugin import Partly
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import TooLarge
from podscope.sinks.plugin import Unavailable

grpc = pytest.importorskip("grpc", reason="no grpcio: pip install 'podscope[otlp-grpc]'")

REQUESTS = {
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": (
        metrics_service_pb2.ExportMetricsServiceRequest
    ),
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export": (
        logs_service_pb2.ExportLogsServiceRequest
    ),
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": (
        trace_service_pb2.ExportTraceServiceRequest
    ),
}


@dataclass
class Stub:
    """What the server is to answer first: a code, its text and metadata; and what it got."""

    url: str = ""
    errors: list[tuple[Any, str, tuple[tuple[str, bytes], ...]]] = field(default_factory=list)
    answer: bytes = b""
    got: list[Any] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def server(credentials: Any = None) -> Iterator[Stub]:
    """A server on a free port; with credentials it speaks TLS."""
    stub = Stub()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            kind = REQUESTS.get(details.method)
            if kind is None:
                return None
            stub.metadata.append(dict(details.invocation_metadata))
            return grpc.unary_unary_rpc_method_handler(take, request_deserializer=kind.FromString)

    def take(request: Any, context: Any) -> bytes:
        if stub.errors:
            code, text, metadata = stub.errors.pop(0)
            context.set_trailing_metadata(metadata)
            context.abort(code, text)
        stub.got.append(request)
        return stub.answer

    made = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    place = "127.0.0.1:0"
    if credentials is None:
        stub.url = f"http://127.0.0.1:{made.add_insecure_port(place)}"
    else:
        stub.url = f"https://127.0.0.1:{made.add_secure_port(place, credentials)}"
    made.start()
    try:
        yield stub
    finally:
        made.stop(None).wait()


@pytest.fixture
def stub():
    with server() as made:
        yield made


def sink(url: str, **more: Any) -> Otlp:
    return Otlp(OtlpSettings(type="otlp", url=Url(url), protocol="grpc", **more))


def test_metrics_logs_and_traces_arrive(stub, monkeypatch):
    # GIVEN
    monkeypatch.setenv("A_TOKEN", "abc")
    made = sink(
        stub.url,
        signals=("metrics", "logs", "traces"),
        token=Secret(variable="A_TOKEN"),
        headers=(("X-Scope-OrgID", "me"),),
    )

    # WHEN
    made.send(sink_rows.http_rows())
    made.send(sink_rows.request_rows(3))
    made.close()

    # THEN
    metrics, logs, traces = stub.got
    assert len(metrics.resource_metrics) == 3
    assert len(logs.resource_logs[0].scope_logs[0].log_records) == 3
    assert len(traces.resource_spans[0].scope_spans[0].spans) == 3
    for told in stub.metadata:
        assert told["authorization"] == "Bearer abc" and told["x-scope-orgid"] == "me"
        assert told["user-agent"].startswith("podscope/")


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        ("UNAVAILABLE", Unavailable),
        ("DEADLINE_EXCEEDED", Unavailable),
        ("UNAUTHENTICATED", Unavailable),
        ("RESOURCE_EXHAUSTED", TooLarge),
        ("INVALID_ARGUMENT", Refused),
        ("INTERNAL", Refused),
    ],
)
def test_codes_say_whether_rows_are_sent_again(stub, code, raised):
    # GIVEN
    stub.errors = [(grpc.StatusCode[code], "it is so", ())]
    made = sink(stub.url)

    # WHEN
    with pytest.raises(raised, match=f"{code}: it is so"):
        made.send(sink_rows.request_rows())

    # THEN
    made.send(sink_rows.request_rows())
    assert len(stub.got) == 1
    made.close()


def test_a_signal_that_the_server_lacks_is_refused_where_it_takes_another(stub):
    # GIVEN a server that has no logs, and later one that has nothing
    lacks = (grpc.StatusCode.UNIMPLEMENTED, "unknown service", ())
    stub.errors = [lacks]
    made = sink(stub.url, signals=("metrics", "logs"))

    # WHEN / THEN
    with pytest.raises(Refused, match="unknown service.*leave logs out of signals"):
        made.send(sink_rows.request_rows())
    stub.errors = [lacks, lacks]
    with pytest.raises(Unavailable, match="unknown service.*check url$"):
        made.send(sink_rows.request_rows())
    made.close()


def test_a_server_that_says_how_long_to_wait_is_heard(stub):
    # GIVEN a Status with a RetryInfo of 2.5 seconds
    delay = protobuf.number(1, 2) + protobuf.number(2, 500_000_000)
    info = protobuf.text(1, "type.googleapis.com/google.rpc.RetryInfo") + protobuf.of_length(
        2, protobuf.of_length(1, delay)
    )
    status = protobuf.number(1, 8) + protobuf.text(2, "busy") + protobuf.of_length(3, info)
    stub.errors = [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", (("grpc-status-details-bin", status),))
    ]
    made = sink(stub.url)

    # WHEN
    with pytest.raises(Unavailable) as caught:
        made.send(sink_rows.request_rows())

    # THEN
    assert caught.value.after == 2.5
    made.close()


def test_a_server_that_is_not_there_is_waited_for():
    # GIVEN / WHEN
    made = sink("http://127.0.0.1:1")

    # THEN
    with pytest.raises(Unavailable, match="UNAVAILABLE"):
        made.send(sink_rows.request_rows())
    made.close()


def test_what_is_rejected_of_a_success_is_counted_and_told(stub):
    # GIVEN
    answer = logs_service_pb2.ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records = 2
    answer.partial_success.error_message = "too old"
    stub.answer = answer.SerializeToString()
    made = sink(stub.url)

    # WHEN
    with pytest.raises(Partly, match="too old") as caught:
        made.send(sink_rows.request_rows(5))

    # THEN
    assert caught.value.unnamed == 2 and caught.value.again is None
    made.close()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"url": Url("http://a:4317/v1")}, "has no path"),
        ({"url": Url("https://a:4317"), "tls": TlsSettings(verify=False)}, "always checked"),
    ],
)
def test_settings_that_grpc_cannot_follow_are_refused_at_once(more, said):
    with pytest.raises(UsageError, match=said):
        Otlp(OtlpSettings(**({"type": "otlp", "protocol": "grpc"} | more)))


def test_a_certificate_is_checked_against_the_file_that_is_named(tmp_path):
    # GIVEN a server with a certificate of its own
    cert, key = self_signed(tmp_path)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    with server(credentials) as stub:
        trusting = sink(stub.url, tls=TlsSettings(ca=str(cert)))
        other = sink(stub.url)

        # WHEN
        trusting.send(sink_rows.request_rows())
        with pytest.raises(Unavailable):
            other.send(sink_rows.request_rows())

        # THEN
        assert len(stub.got) == 1
        trusting.close()
        other.close()
