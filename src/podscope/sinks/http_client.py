# SPDX-License-Identifier: Apache-2.0
"""How sinks speak to servers by HTTP: one connection, TLS, credentials, and what statuses mean."""

from __future__ import annotations

import email.utils
import ssl
import time
import zlib
from base64 import b64encode
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Annotated

import httpx
import msgspec
from msgspec import Meta

from podscope import __version__
from podscope.errors import PodscopeError
from podscope.settings import Duration
from podscope.settings import Secret
from podscope.settings import Url
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.plugin import TooLarge
from podscope.sinks.plugin import Unavailable

# 408, 425, 429 and 5xx but 501 and 505 may go away by themselves (RFC 9110, section 15; RFC 6585).
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
# They speak of where rows are sent, and not of the rows (RFC 9110, 15.5.5, 15.5.6 and 15.6.2).
_NOT_THERE = frozenset({404, 405, 501})
_MOST_SAID = 300


class Missing(Unavailable):
    """What the rows are for is not there: a server behind its proxy, a database, a receiver."""


class TlsSettings(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """How a server's certificate is checked, and which one is shown to it."""

    ca: Annotated[str, Meta(description="file with the certificates to trust")] = ""
    cert: Annotated[str, Meta(description="file with the own certificate")] = ""
    key: Annotated[str, Meta(description="file with its key")] = ""
    verify: Annotated[bool, Meta(description="check the server's certificate")] = True


class ServerSettings(SinkSettings, frozen=True, kw_only=True):
    """What all sinks that speak HTTP have."""

    url: Annotated[Url, Meta(description="of the server")]
    username: Annotated[str, Meta(description="for basic authentication")] = ""
    password: Annotated[Secret | None, Meta(description="for basic authentication")] = None
    timeout: Annotated[Duration, Meta(description="longest wait for an answer")] = Duration(10)
    compress: Annotated[bool, Meta(description="send bodies with gzip")] = True
    tls: TlsSettings = TlsSettings()

    def __post_init__(self) -> None:
        check_credentials(self)


class Client:
    """Sends requests to one server.

    Args:
        settings: where it is, and how it is to be spoken to.
        authorization: the field ``Authorization`` in place of basic authentication; read for each
            request, since secrets change.

    Raises:
        PodscopeError: files of TLS that cannot be read.
    """

    def __init__(
        self, settings: ServerSettings, authorization: Callable[[], str] | None = None
    ) -> None:
        self._settings = settings
        self._authorization = authorization
        self._client = httpx.Client(
            verify=_tls(settings.tls),
            timeout=float(settings.timeout),
            headers={"User-Agent": f"podscope/{__version__}"},
            follow_redirects=False,
        )

    def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        encoding: str = "gzip",
    ) -> httpx.Response:
        """One request, and its answer whatever its status, but those that will pass.

        Args:
            method: as ``POST``.
            path: behind the server's URL.
            body: it is compressed, if the settings and ``encoding`` allow it.
            headers: more fields.
            query: of the URL.
            encoding: ``gzip``, or empty for a body that is sent as it is.

        Raises:
            Unavailable: no answer, or one that says that it is for now.
            Missing: 404, 405 or 501.
            TooLarge: 413.
        """
        told = dict(headers or {})
        if body and encoding and self._settings.compress:
            body = _gzipped(body)
            told["Content-Encoding"] = encoding
        try:
            told |= self._credentials()
            answer = self._client.request(
                method, f"{self._settings.url}{path}", content=body, headers=told, params=query
            )
        except PodscopeError as error:
            raise Unavailable(str(error)) from None
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise Unavailable(f"{self._settings.url}: {said}") from None
        if answer.status_code == 413:
            raise TooLarge(self.said(answer))
        if answer.status_code in (401, 403):
            # Rows wait: the secret may be put right meanwhile.
            raise Unavailable(f"{self.said(answer)}; check the user, password or key")
        if answer.status_code in _NOT_THERE:
            raise Missing(f"{self.said(answer)}; nothing takes rows there yet: check url")
        if answer.is_redirect:
            # Not followed, since it gets the credentials; rows wait until the URL is put right.
            where = answer.headers.get("Location", "").partition("?")[0]
            raise Unavailable(f"{self.said(answer)}; it is at {where}: set url")
        if answer.status_code in PASSING:
            raise Unavailable(self.said(answer), _retry_after(answer))
        return answer

    def said(self, answer: httpx.Response) -> str:
        """``http://host:9200: 400 Bad Request: no such index``: an answer in one line."""
        # A page for people says no more than its status.
        is_page = "html" in answer.headers.get("Content-Type", "")
        text = "" if is_page else " ".join(answer.text.split())[:_MOST_SAID]
        line = f"{self._settings.url}: {answer.status_code} {answer.reason_phrase}"
        return f"{line}: {text}" if text else line

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _credentials(self) -> dict[str, str]:
        told = self._authorization() if self._authorization is not None else basic(self._settings)
        return {"Authorization": told} if told else {}


def basic(settings: ServerSettings) -> str:
    """The field ``Authorization`` of a user and password (RFC 7617); empty without a user.

    Raises:
        PodscopeError: the password is not there.
    """
    if not settings.username:
        return ""
    password = settings.password.text() if settings.password else ""
    return f"Basic {b64encode(f'{settings.username}:{password}'.encode()).decode()}"


def check_credentials(
    settings: ServerSettings, key: str = "", secret: Secret | None = None
) -> None:
    """Raises ValueError for credentials that would be left out without a word.

    Args:
        settings: with a user and a password, or without.
        key: what may be in their place.
        secret: its value; None: it is not set.
    """
    if settings.password is not None and not settings.username:
        raise ValueError("password: username is missing")
    if secret is not None and settings.username:
        raise ValueError(f"{key} is in place of username and password: set one of them")


def check_headers(headers: Sequence[tuple[str, str]]) -> None:
    """Raises ValueError for a field that would hold a credential: settings are read by many."""
    for name, _ in headers:
        if name.lower() in ("authorization", "proxy-authorization", "cookie"):
            raise ValueError(f"headers: {name} is a secret: set token, or username and password")


def _gzipped(body: bytes) -> bytes:
    # Level 1: rows are much alike, and more effort costs more than it saves.
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(body) + packer.flush()


def _tls(settings: TlsSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
        if settings.cert:
            context.load_cert_chain(settings.cert, settings.key or None)
    except ssl.SSLError as error:
        raise PodscopeError(f"tls: not a certificate or key: {error.reason}") from None
    except OSError as error:
        raise PodscopeError(
            f"tls: cannot read {settings.ca or settings.cert}: {error.strerror}"
        ) from None
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _retry_after(answer: httpx.Response) -> float:
    """Seconds of Retry-After, a number or a date (RFC 9110, section 10.2.3); 0 without it."""
    text = answer.headers.get("Retry-After", "")
    if text.isdigit():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return 0.0
