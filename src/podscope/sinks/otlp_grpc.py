# SPDX-License-Identifier: Apache-2.0
"""OTLP over gRPC. https://opentelemetry.io/docs/specs/otlp/#otlpgrpc"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from podscope import __version__
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.sinks import protobuf
from podscope.sinks.http_client import Missing
from podscope.sinks.http_client import ServerSettings
from podscope.sinks.http_client import TlsSettings
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import TooLarge
from podscope.sinks.plugin import Unavailable

_PACKAGE = "/opentelemetry.proto.collector"
METHODS = {
    "metrics": f"{_PACKAGE}.metrics.v1.MetricsService/Export",
    "logs": f"{_PACKAGE}.logs.v1.LogsService/Export",
    "traces": f"{_PACKAGE}.trace.v1.TraceService/Export",
}
# Codes after which the same may be sent again, as the specification lists them; and those of
# credentials, which may be put right.
_PASSING = frozenset(
    {
        "CANCELLED",
        "DEADLINE_EXCEEDED",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
    }
)
# There is a server, and none of OpenTelemetry, or not for this signal.
_NOT_THERE = frozenset({"UNIMPLEMENTED", "NOT_FOUND"})
_MOST_SAID = 300
_MOST_MESSAGE = 64 << 20


class GrpcClient:
    """Sends requests to one server.

    Args:
        settings: where it is, and how it is to be spoken to.
        headers: metadata of each request.
        authorization: that field, empty if there is none; read for each request.

    Raises:
        PodscopeError: no library, a URL that has a path, or files of TLS that cannot be read.
    """

    def __init__(
        self,
        settings: ServerSettings,
        headers: Mapping[str, str],
        authorization: Callable[[], str],
    ) -> None:
        self._grpc = _library()
        self._settings = settings
        self._headers = [(name.lower(), value) for name, value in headers.items()]
        self._authorization = authorization
        parts = urlsplit(settings.url)
        if parts.path.strip("/"):
            raise UsageError(f"url: {settings.url}: with protocol grpc it has no path")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
        self._channel = self._opened(f"{host}:{port}", secure=parts.scheme == "https")

    def _opened(self, target: str, *, secure: bool) -> Any:
        grpc = self._grpc
        options = [
            ("grpc.primary_user_agent", f"podscope/{__version__}"),
            ("grpc.max_receive_message_length", _MOST_MESSAGE),
            # Sinks wait by themselves, and longer: a server that is back is tried at once.
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if not secure:
            return grpc.insecure_channel(target, options=options)
        credentials = grpc.ssl_channel_credentials(**_tls(self._settings.tls))
        return grpc.secure_channel(target, credentials, options=options)

    def export(self, signal: str, body: bytes) -> bytes:
        """One request, and the message of its answer.

        Args:
            signal: metrics, logs or traces.
            body: the message of the request.

        Raises:
            Unavailable, TooLarge, Refused: the server did not take it.
        """
        grpc = self._grpc
        try:
            told = self._authorization()
        except PodscopeError as error:
            raise Unavailable(str(error)) from None
        metadata = [*self._headers, *([("authorization", told)] if told else [])]
        compression = grpc.Compression.Gzip if self._settings.compress else None
        call = self._channel.unary_unary(METHODS[signal])
        try:
            answer: bytes = call(
                body,
                timeout=float(self._settings.timeout),
                metadata=metadata,
                compression=compression,
            )
        except grpc.RpcError as error:
            raise self._not_taken(error) from None
        return answer

    def _not_taken(self, error: Any) -> Exception:
        code = error.code().name
        said = " ".join(str(error.details() or "").split())[:_MOST_SAID]
        line = f"{self._settings.url}: {code}" + (f": {said}" if said else "")
        after = _retry_delay(error.trailing_metadata() or ())
        if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            line += "; check the user, password or token"
        if code in _NOT_THERE:
            return Missing(f"{line}; nothing takes rows there yet: check url")
        if code in _PASSING or (code == "RESOURCE_EXHAUSTED" and after is not None):
            return Unavailable(line, after or 0.0)
        # Without a time to wait, it is the size of the message that it cannot take.
        return TooLarge(line) if code == "RESOURCE_EXHAUSTED" else Refused(line)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()


def _library() -> Any:
    try:
        import grpc
    except ImportError:
        raise UsageError("protocol grpc needs grpc: pip install 'podscope[otlp-grpc]'") from None
    return grpc


def _tls(settings: TlsSettings) -> dict[str, bytes | None]:
    if not settings.verify:
        raise UsageError(
            "tls.verify: a certificate is always checked with protocol grpc: set tls.ca"
        )
    return {
        "root_certificates": _file(settings.ca),
        "private_key": _file(settings.key),
        "certificate_chain": _file(settings.cert),
    }


def _file(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise PodscopeError(f"tls: cannot read {path}: {error.strerror}") from None


def _retry_delay(metadata: Any) -> float | None:
    """Seconds of google.rpc.RetryInfo in the details of a status; None: there is none."""
    raw = dict(metadata).get("grpc-status-details-bin", b"")
    try:
        # Status {details = 3}, Any {type_url = 1; value = 2}, RetryInfo {retry_delay = 1},
        # Duration {seconds = 1; nanos = 2}.
        for number, detail in protobuf.fields(raw):
            told = dict(protobuf.fields(detail)) if number == 3 else {}
            if told.get(1, b"").endswith(b"google.rpc.RetryInfo"):
                delay = dict(protobuf.fields(dict(protobuf.fields(told[2]))[1]))
                return float(delay.get(1, 0) + delay.get(2, 0) / 1e9)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return None
