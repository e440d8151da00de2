# SPDX-License-Identifier: Apache-2.0
"""Fields: what each member of the C records is called outside, its unit, and how to read it.

``bpf/http/http.h`` declares the records; this table gives each member its OpenTelemetry name.
JSON keys, CSV and DataFrame columns, and Prometheus labels all come from here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from podscope.batch import Batch
    from podscope.batch import Identity

Array = npt.NDArray[Any]

# Texts of the enums in bpf/http/http.h, by code; a test compares them with the header.
SIDES = ("", "server", "client")
METHODS = (
    "_OTHER",
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "QUERY",
)
ERRORS = ("", "closed", "reset")
PEERS = ("", "loopback", "private", "public")
SERVER = SIDES.index("server")
CLIENT = SIDES.index("client")

ROUTE_NONE = 0
ROUTE_OTHER = 1

# JSON objects; all other dots are part of OpenTelemetry's flat names.
_OBJECTS = ("duration", "time_to_first_byte")

# What rows can be grouped by, in the order of the output.
DIMENSIONS = (
    "service",
    "workload",
    "namespace",
    "pod",
    "container",
    "node",
    "executable",
    "pid",
    "side",
    "port",
    "method",
    "route",
    "status",
    "version",
    "peer",
    "address",
)


# All that says something else of each row. A pod may be behind several Services, so a row may
# be in several groups by service: sums over them count it more than once.
PLAIN = tuple(name for name in DIMENSIONS if name not in ("service", "address"))
# Without what only a cluster has: there a peer is an address.
_OF_CLUSTER = ("namespace", "pod", "container", "node", "peer")
ON_HOST = (*(name for name in PLAIN if name not in _OF_CLUSTER), "address")
# Kinds of owners of pods, as in ``Identity.kind``.
OWNERS = ("deployment", "statefulset", "daemonset", "replicaset", "cronjob", "job")
# Dimensions that are read from the identities, and when two identities are the same for them.
OF_IDENTITY: dict[str, Callable[[Identity], tuple[str, ...]]] = {
    "service": lambda one: (one.namespace, one.name, _service_port(one)),
    "workload": lambda one: (
        one.kind,
        one.name,
        one.namespace,
        "" if one.namespace else one.container_id,
    ),
    "namespace": lambda one: (one.namespace,),
    "pod": lambda one: (one.namespace, one.pod, one.pod_uid),
    "container": lambda one: (one.container, one.container_id if one.pod else ""),
    "node": lambda one: (one.node,),
    "executable": lambda one: (one.executable,),
    # Of who is at the other end.
    "peer": lambda one: (one.kind, one.name, one.namespace),
    "address": lambda one: (one.kind, one.name, one.namespace, one.pod, one.pod_uid, one.node),
}
# What a group by a dimension also says of itself: all of it has the same.
IMPLIED = {
    "service": ("namespace",),
    "pod": ("workload", "namespace", "node"),
    # A peer without a name is told by its address.
    "peer": ("address",),
}
# A peer of these kinds has no name of its own.
NAMELESS = ("external", "unknown")


def _service_port(service: Identity) -> str:
    """The port of the identity of a Service, as text; empty if it has none."""
    told = service.kind == "service" and service.services
    return str(told[0].published[0]) if told else ""


def with_implied(by: Sequence[str]) -> set[str]:
    """Dimensions, and those that they imply."""
    return {*by, *(other for name in by for other in IMPLIED.get(name, ()))}


@dataclass(frozen=True)
class View:
    """Records to read fields from, one entry a record.

    Attributes:
        records: structured array with the members of ``struct http_series_key`` or
            ``struct http_request``, shape (n,); zero where a member says nothing.
        values: ``count``, ``sum_ns`` ...: arrays of shape (n,), by name.
        whose: for each of ``OF_IDENTITY`` an index into ``identities``, shape (n,); -1: none.
        identities: what the indexes point to.
        routes: text of the route hashes.
        time: time of each record, Unix nanoseconds, shape (n,).
        interval: length of the interval in seconds; 0 for single requests.
    """

    records: Array
    values: Mapping[str, Array] | Array
    whose: Mapping[str, npt.NDArray[np.int64]]
    identities: tuple[Identity, ...]
    routes: Mapping[int, str]
    time: npt.NDArray[np.int64]
    interval: float = 0.0

    @cached_property
    def targets(self) -> tuple[Array, Array, npt.NDArray[np.int64]]:
        """Paths, queries and lengths in bytes of request targets as far as they were kept.

        Several fields need them, and to take texts apart costs more than all else of a request.
        """
        items = byte_strings(self.records["path"])
        parts = [
            (text if text[:1] == "/" else origin_form(text)).partition("?")
            for text in decoded(items)
        ]
        paths = [path or None for path, _, _ in parts]
        queries = [query if mark else None for _, mark, query in parts]
        lengths = np.fromiter(map(len, items), np.int64, len(items))
        return _objects(paths), _objects(queries), lengths

    @cached_property
    def peers(self) -> Array:
        """Addresses of the other ends, as text."""
        return addresses(self.records["peer"])


@dataclass(frozen=True)
class Field:
    """One column of the output.

    Attributes:
        name: OpenTelemetry name: JSON key and column name.
        source: member(s) of the C record, or of the identity.
        type: ``text``, ``int``, ``float`` or ``time``.
        unit: UCUM; empty for attributes.
        dimension: what ``--by`` calls it; empty if rows are not grouped by it.
        label: whether it is a Prometheus label (dots become underscores).
        blank: zero means that it does not apply; the field is then left out of the output.
        read: gives the column, shape (n,); text columns hold None where there is none.
        text: what it means.
    """

    name: str
    source: str
    type: str
    unit: str
    dimension: str
    label: bool
    blank: bool
    read: Callable[[View], Array]
    text: str

    @property
    def path(self) -> tuple[str, ...]:
        """Where it is in a JSON object: ``duration.p50`` is a member of ``duration``."""
        parent, dot, member = self.name.partition(".")
        return (parent, member) if dot and parent in _OBJECTS else (self.name,)

    @property
    def label_name(self) -> str:
        """Its name as a Prometheus label."""
        return self.name.replace(".", "_")


def error_mask(records: Array) -> npt.NDArray[np.bool_]:
    """Which records are errors: shape (n,).

    Servers: 5xx; clients: 4xx and 5xx; both: no whole answer. This is OpenTelemetry's rule for
    the span status of HTTP (semantic conventions 1.23 and later).
    """
    status = records["status"]
    from_status = (status >= 500) | ((status >= 400) & (records["side"] == CLIENT))
    return np.asarray(from_status | (status == 0) | (records["error"] != 0), dtype=np.bool_)


def addresses(raw: Array) -> Array:
    """Text of IPv6 or v4-mapped addresses.

    Args:
        raw: shape (n, 16), dtype u1.

    Returns:
        Shape (n,), dtype object; None for sixteen zeros.
    """
    whole = np.ascontiguousarray(raw).view("V16").reshape(-1)
    kinds, inverse = np.unique(whole, return_inverse=True)
    return _picked([_address(item) for item in kinds.tolist()], inverse)


def _address(raw: bytes) -> str | None:
    if not any(raw):
        return None
    address = ipaddress.IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def _objects(texts: Sequence[object]) -> Array:
    """An object array of one dimension, whatever the items are."""
    column = np.empty(len(texts), dtype=object)
    column[:] = texts
    return column


def _same(text: str | None, count: int) -> Array:
    """A column of the same text, which is in memory once: its stride is zero, as sinks look for."""
    return np.broadcast_to(_objects([text]), count)


def _picked(texts: Sequence[str | None], places: Array) -> Array:
    """The text at each place."""
    if len(places) and (len({*texts}) == 1 or (places == places[0]).all()):
        return _same(texts[int(places[0])], len(places))
    return _objects(texts)[places]


def _words(words: Sequence[str], codes: Array) -> Array:
    """Texts of enum codes; None where the word is empty or the code unknown."""
    return _picked([word or None for word in words] + [None], np.minimum(codes, len(words)))


def _method(view: View) -> Array:
    # Codes that this table does not know are OpenTelemetry's _OTHER, as unknown methods are.
    codes = view.records["method"]
    return _words(METHODS, np.where(codes < len(METHODS), codes, 0))


def _side(view: View) -> Array:
    return _words(SIDES, view.records["side"])


def _status(view: View) -> Array:
    return view.records["status"].astype(np.int64)


def _error_type(view: View) -> Array:
    records = view.records
    column = _words(ERRORS, records["error"])
    status = records["status"]
    named = error_mask(records) & (records["error"] == 0) & (status != 0)
    if named.any():
        column = column.copy()
        codes, inverse = np.unique(status[named], return_inverse=True)
        column[named] = _objects([str(code) for code in codes.tolist()])[inverse]
    return column


def _route(view: View) -> Array:
    hashes, inverse = np.unique(view.records["route"], return_inverse=True)
    return _picked([_route_text(view.routes, code) for code in hashes.tolist()], inverse)


def _route_text(routes: Mapping[int, str], code: int) -> str | None:
    if code == ROUTE_NONE:
        return None
    if code == ROUTE_OTHER:
        return "_OTHER"
    # The text comes once, by ring; if it was lost, series still stay apart.
    return routes.get(code) or f"#{code:016x}"


def _peer_address(view: View) -> Array:
    return view.peers


def _peer_class(view: View) -> Array:
    return _words(PEERS, view.records["peer_class"])


def _version(view: View) -> Array:
    # enum http_version: 10 is 1.0, 11 is 1.1.
    codes, inverse = np.unique(view.records["version"], return_inverse=True)
    texts = [f"{code // 10}.{code % 10}" if code else None for code in codes.tolist()]
    return _picked(texts, inverse)


def _protocol(view: View) -> Array:
    return _same("http", len(view.records))


def _time(view: View) -> Array:
    return view.time.astype("datetime64[ns]")


def _interval(view: View) -> Array:
    return np.full(len(view.records), view.interval)


def _of(dimension: str, text: Callable[[Identity], str]) -> Callable[[View], Array]:
    return lambda view: _of_identity(view.identities, view.whose[dimension], text)


def _of_workload(text: Callable[[Identity], str]) -> Callable[[View], Array]:
    return _of("workload", text)


def _owner(kind: str) -> Callable[[View], Array]:
    return _of_workload(lambda identity: identity.name if identity.kind == kind else "")


def _container_id(view: View) -> Array:
    """A pod's container is one of several of its workload; another container is the workload."""
    column = _of("container", lambda one: one.container_id if one.pod else "")(view)
    alone = _of_workload(lambda one: "" if one.pod else one.container_id)(view)
    return np.where(alone == np.array(None), column, alone)


def _of_identity(
    identities: tuple[Identity, ...], index: Array, text: Callable[[Identity], str]
) -> Array:
    texts = [text(identity) or None for identity in identities]
    if len(index) and index.min() < 0:
        texts.append(None)  # the last entry serves index -1
    return _picked(texts, index)


def _pid(view: View) -> Array:
    return view.records["pid"].astype(np.int64)


def _port(view: View) -> Array:
    return view.records["port"].astype(np.int64)


def _count(name: str) -> Callable[[View], Array]:
    return lambda view: np.asarray(view.values[name]).astype(np.int64)


def _seconds(name: str) -> Callable[[View], Array]:
    return lambda view: np.asarray(view.values[name]) / 1e9


def _time_to_first_byte(view: View) -> Array:
    return np.where(view.records["status"] == 0, np.nan, view.records["ttfb_ns"] / 1e9)


def where_known(known: npt.NDArray[np.bool_], column: Array) -> Array:
    """The texts where they are known."""
    return column if known.all() else np.where(known, column, np.array(None))


def _server_address(view: View) -> Array:
    """The server as the client knows it: only the client's side knows its address."""
    return where_known(view.records["side"] == CLIENT, view.peers)


def byte_strings(raw: Array) -> list[bytes]:
    """Texts of a member of records, shape (n,), without the zeros at their ends."""
    held = np.ascontiguousarray(raw)
    if (held == held[:1]).all():
        one: list[bytes] = held[:1].tolist()
        return one * len(held)
    used = np.flatnonzero(held.view("u1").reshape(len(held), -1).any(axis=0))
    # NumPy looks for each end from behind: members are wide, and most texts short.
    width = int(used[-1]) + 1 if len(used) else 1
    items: list[bytes] = held.astype(f"S{width}").tolist()
    return items


def decoded(items: Sequence[bytes]) -> list[str]:
    """The texts; bytes that are not UTF-8 stay visible."""
    try:
        texts = b"\0".join(items).decode().split("\0")
    except UnicodeDecodeError:
        texts = []
    if len(texts) == len(items):
        return texts
    return [item.decode("utf-8", "backslashreplace") for item in items]


def _texts(raw: Array, of: Callable[[str], str | None]) -> Array:
    """What is made of each text; of what comes again, once."""
    items = byte_strings(raw)
    kinds = [*set(items)]
    made = dict(zip(kinds, map(of, decoded(kinds)), strict=True))
    if len(kinds) == 1:
        return _same(made[kinds[0]], len(items))
    return _objects([*map(made.__getitem__, items)])


def origin_form(target: str) -> str:
    """Path and query of a request target (RFC 9112, section 3.2), without a server before them."""
    if not target[:8].lower().startswith(("http://", "https://")):
        return target
    rest = target.split("://", 1)[1]
    cut = min((rest.find(mark) for mark in "/?" if mark in rest), default=len(rest))
    # An empty path is the same as "/" (RFC 9110, section 4.2.3).
    return rest[cut:] if rest[cut:].startswith("/") else f"/{rest[cut:]}"


def split_target(target: str) -> tuple[str | None, str | None]:
    """Path and query of a request target, None where there is none."""
    path, mark, query = origin_form(target).partition("?")
    return path or None, query if mark else None


def split_host(host: str) -> str | None:
    """The host of a Host field (RFC 9110, section 7.2), without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0] or None
    return host.partition(":")[0] or None


def _path(view: View) -> Array:
    return view.targets[0]


def _query(view: View) -> Array:
    return view.targets[1]


def _cut_target(view: View) -> Array:
    """Length of the target as sent, where the text was cut; else zero."""
    length = view.records["path_len"].astype(np.int64)
    return np.where(length > view.targets[2], length, 0)


def _original_method(view: View) -> Array:
    unnamed = np.flatnonzero(view.records["method"] == 0)
    if not len(unnamed):
        return _same(None, len(view.records))
    column = _objects([None] * len(view.records))
    column[unnamed] = _texts(view.records["method_text"][unnamed], lambda text: text or None)
    return column


def _host(view: View) -> Array:
    column = _texts(view.records["host"], split_host)
    unnamed = np.asarray(column == np.array(None), dtype=np.bool_)
    return np.where(unnamed, _server_address(view), column) if unnamed.any() else column


def _agent(view: View) -> Array:
    return _texts(view.records["agent"], lambda text: text or None)


def _request_server_port(view: View) -> Array:
    records = view.records
    port = np.where(records["side"] == SERVER, records["local_port"], records["peer_port"])
    return port.astype(np.int64)


def _client_address(view: View) -> Array:
    return where_known(view.records["side"] == SERVER, view.peers)


def _client_port(view: View) -> Array:
    records = view.records
    return np.where(records["side"] == SERVER, records["peer_port"], 0).astype(np.int64)


def _peer_port(view: View) -> Array:
    return view.records["peer_port"].astype(np.int64)


def _hex(name: str) -> Callable[[View], Array]:
    def read(view: View) -> Array:
        raw = np.ascontiguousarray(view.records[name])
        column = _objects(raw.tobytes().hex(",", raw.shape[1]).split(",")[: len(raw)])
        none = ~raw.view("<u8").any(axis=1)
        if none.any():
            column[none] = None
        return column

    return read


def _attribute(
    name: str,
    source: str,
    dimension: str,
    read: Callable[[View], Array],
    text: str,
    *,
    kind: str = "text",
    label: bool = True,
) -> Field:
    blank = kind == "int"
    return Field(name, source, kind, "", dimension, label, blank, read, text)


def _value(
    name: str, source: str, measure: tuple[str, str], read: Callable[[View], Array], text: str
) -> Field:
    kind, unit = measure
    return Field(name, source, kind, unit, "", False, False, read, text)


TIME = _value("time", "time_ns", ("time", "ns"), _time, "end of the interval, RFC 3339, UTC")
START = _value("time", "time_ns", ("time", "ns"), _time, "first byte of the request, RFC 3339, UTC")
INTERVAL = _value("interval", "", ("float", "s"), _interval, "length of the interval")

# Whose it is and what it was: the same for both kinds.
_WORKLOAD = (
    _attribute(
        "service.name",
        "identity.name",
        "workload",
        _of_workload(lambda identity: identity.name),
        "name of the workload: owner of the pod, container, systemd unit or executable",
    ),
    _attribute(
        "podscope.workload.kind",
        "identity.kind",
        "workload",
        _of_workload(lambda identity: identity.kind),
        "container, unit or process; in a cluster the owner's kind: deployment, statefulset, "
        "daemonset, replicaset, job, cronjob, or pod",
        label=False,
    ),
    _attribute(
        "container.id",
        "identity.container_id",
        "workload",
        _container_id,
        "id of the container",
    ),
    _attribute(
        "podscope.systemd.unit",
        "identity.name",
        "workload",
        _of_workload(lambda identity: identity.name if identity.kind == "unit" else ""),
        "systemd unit",
        label=False,
    ),
    _attribute(
        "k8s.namespace.name",
        "identity.namespace",
        "namespace",
        _of("namespace", lambda identity: identity.namespace),
        "namespace of the pod",
    ),
    *(
        _attribute(
            f"k8s.{kind}.name",
            "identity.name",
            "owner",
            _owner(kind),
            f"{kind} that owns the pod",
        )
        for kind in OWNERS
    ),
    _attribute(
        "k8s.pod.name",
        "identity.pod",
        "pod",
        _of("pod", lambda identity: identity.pod),
        "name of the pod",
    ),
    _attribute(
        "k8s.pod.uid",
        "identity.pod_uid",
        "pod",
        _of("pod", lambda identity: identity.pod_uid),
        "uid of the pod",
        label=False,
    ),
    _attribute(
        "k8s.container.name",
        "identity.container",
        "container",
        _of("container", lambda identity: identity.container),
        "name of the container in its pod",
    ),
    _attribute(
        "k8s.node.name",
        "identity.node",
        "node",
        _of("node", lambda identity: identity.node),
        "node that the pod is on",
    ),
    _attribute(
        "process.executable.name",
        "identity.executable",
        "executable",
        _of("executable", lambda identity: identity.executable),
        "base name of the executable that owns the socket",
    ),
    _attribute(
        "process.pid",
        "pid",
        "pid",
        _pid,
        "process that owns the socket",
        kind="int",
        label=False,
    ),
)
_SIDE = _attribute(
    "side", "side", "side", _side, "server (requests arrive) or client (they leave)", label=False
)
_METHOD = _attribute(
    "http.request.method",
    "method",
    "method",
    _method,
    "method, _OTHER if it is none of RFC 9110's, PATCH or QUERY",
)
_ROUTE = _attribute(
    "http.route", "route", "route", _route, "path with ids as *; _OTHER beyond the cap"
)
_STATUS = (
    _attribute(
        "http.response.status_code",
        "status",
        "status",
        _status,
        "status; absent if no answer came",
        kind="int",
    ),
    _attribute(
        "error.type",
        "error, status, side",
        "status",
        _error_type,
        "closed or reset if no whole answer came; else 5xx, and 4xx on the client side",
    ),
)
_PROTOCOL = (
    _attribute("network.protocol.name", "", "version", _protocol, "http", label=False),
    _attribute(
        "network.protocol.version", "version", "version", _version, "version of the request"
    ),
)
_PEER = (
    _attribute(
        "service.peer.name",
        "peer",
        "peer",
        _of("peer", lambda identity: identity.name),
        "in a cluster, who is at the other end: the owner of the pod, the Service as the client "
        "calls it, or the node",
        label=False,
    ),
    _attribute(
        "service.peer.namespace",
        "peer",
        "peer",
        _of("peer", lambda identity: identity.namespace),
        "its namespace",
        label=False,
    ),
    _attribute(
        "podscope.peer.kind",
        "peer",
        "peer",
        _of("peer", lambda identity: identity.kind),
        "service, node, external, or the kind of the pod's owner as in podscope.workload.kind",
        label=False,
    ),
    _attribute(
        "podscope.peer.pod.name",
        "peer",
        "peer pod",
        _of("address", lambda identity: identity.pod),
        "the pod at the other end",
        label=False,
    ),
    _attribute(
        "podscope.peer.node.name",
        "peer",
        "peer pod",
        _of("address", lambda identity: identity.node),
        "the node it is on",
        label=False,
    ),
    _attribute(
        "network.peer.address",
        "peer",
        "address",
        _peer_address,
        "address of the other end",
        label=False,
    ),
    _attribute(
        "podscope.peer",
        "peer_class",
        "address",
        _peer_class,
        "loopback, private (RFC 1918, RFC 6598, RFC 2544, RFC 4193, link-local) or public",
        label=False,
    ),
)

HTTP: tuple[Field, ...] = (
    TIME,
    INTERVAL,
    _attribute(
        "k8s.service.name",
        "identity.services",
        "service",
        _of("service", lambda identity: identity.name),
        "Service whose endpoint answered, on the server side; only with --by service",
        label=False,
    ),
    _attribute(
        "podscope.service.port",
        "identity.services",
        "service",
        _of("service", _service_port),
        "port of the Service; only with --by service,port",
        label=False,
    ),
    *_WORKLOAD,
    _SIDE,
    _attribute(
        "server.port", "port", "port", _port, "port of the server, on both sides", kind="int"
    ),
    _METHOD,
    _ROUTE,
    *_STATUS,
    *_PROTOCOL,
    _attribute(
        "server.address",
        "peer",
        "address",
        _server_address,
        "address of the server, on the client side",
        label=False,
    ),
    *_PEER,
    _value("count", "count", ("int", "{request}"), _count("count"), "exchanges that ended"),
    _value("duration.sum", "sum_ns", ("float", "s"), _seconds("sum_ns"), "sum of durations"),
    _value("duration.p50", "buckets", ("float", "s"), _seconds("p50_ns"), "median"),
    _value("duration.p90", "buckets", ("float", "s"), _seconds("p90_ns"), "90th percentile"),
    _value("duration.p99", "buckets", ("float", "s"), _seconds("p99_ns"), "99th percentile"),
    _value("duration.max", "max_ns", ("float", "s"), _seconds("max_ns"), "longest duration, exact"),
    _value(
        "time_to_first_byte.sum",
        "ttfb_sum_ns",
        ("float", "s"),
        _seconds("ttfb_sum_ns"),
        "sum of times from the first byte of the request to the first byte of the answer",
    ),
    _value(
        "time_to_first_byte.count",
        "status, count",
        ("int", "{request}"),
        _count("answered"),
        "exchanges of which an answer began: those in the sum",
    ),
    _value(
        "http.request.body.size",
        "request_bytes",
        ("int", "By"),
        _count("request_bytes"),
        "sum of request bodies",
    ),
    _value(
        "http.response.body.size",
        "response_bytes",
        ("int", "By"),
        _count("response_bytes"),
        "sum of response bodies",
    ),
)

REQUEST: tuple[Field, ...] = (
    START,
    _SIDE,
    *_WORKLOAD,
    _METHOD,
    _attribute(
        "http.request.method_original",
        "method_text",
        "",
        _original_method,
        "method as sent, where http.request.method is _OTHER",
    ),
    _attribute("server.address", "host", "", _host, "Host field without the port"),
    _attribute(
        "server.port",
        "local_port, peer_port",
        "",
        _request_server_port,
        "port of the server",
        kind="int",
    ),
    _attribute("url.path", "path", "", _path, "path as sent"),
    _attribute("url.query", "path", "", _query, "query as sent, without ?"),
    _attribute(
        "podscope.target.size",
        "path_len",
        "",
        _cut_target,
        "length of the request target where its text was cut",
        kind="int",
    ),
    _ROUTE,
    *_STATUS,
    *_PROTOCOL,
    _value(
        "duration",
        "duration_ns",
        ("float", "s"),
        _seconds("duration_ns"),
        "first byte of the request to last byte of the answer",
    ),
    _value(
        "time_to_first_byte",
        "ttfb_ns",
        ("float", "s"),
        _time_to_first_byte,
        "first byte of the request to first byte of the answer; absent if none came",
    ),
    _value(
        "http.request.body.size",
        "request_bytes",
        ("int", "By"),
        _count("request_bytes"),
        "body of the request",
    ),
    _value(
        "http.response.body.size",
        "response_bytes",
        ("int", "By"),
        _count("response_bytes"),
        "body of the answer",
    ),
    _attribute("client.address", "peer", "", _client_address, "the client, on the server side"),
    _attribute("client.port", "peer_port", "", _client_port, "its port", kind="int"),
    *_PEER,
    _attribute("network.peer.port", "peer_port", "", _peer_port, "port of the peer", kind="int"),
    _attribute("user_agent.original", "agent", "", _agent, "User-Agent field"),
    _attribute("trace_id", "trace_id", "", _hex("trace_id"), "W3C trace id, hex"),
    _attribute("span_id", "span_id", "", _hex("span_id"), "W3C parent span id, hex"),
)


def told(fields: Sequence[Field], by: Sequence[str]) -> tuple[Field, ...]:
    """Those of ``fields`` that records grouped by some dimensions have.

    A group of workloads also says its executable and process where it has only one, and in a
    cluster what kind of owner it is, and which pods its peers are.
    """
    known = {"", *with_implied(by)}
    if {"workload", "namespace"} <= known:
        known.add("owner")
    if {"peer", "address"} <= known:
        known.add("peer pod")
    if "workload" in by:
        known |= {"executable", "pid"}
    return tuple(field for field in fields if field.dimension in known)


def read(fields: Sequence[Field], view: View, by: Sequence[str] = PLAIN) -> dict[str, Array]:
    """Columns of those ``fields`` that are ``told``, by name."""
    return {field.name: field.read(view) for field in told(fields, by)}


def peers_of(batch: Batch) -> dict[str, npt.NDArray[np.int64]]:
    """For a `View`: who is at the other end of each row."""
    nobody = np.full(len(batch), -1, dtype=np.int64)
    peers = nobody if batch.peers is None else batch.peers.astype(np.int64)
    return {"peer": peers, "address": peers}


def request_view(batch: Batch) -> View:
    """The records of a batch of kind ``request``, to read fields from."""
    index = batch.identity.astype(np.int64)
    time = batch.rows["time_ns"].astype(np.int64) + batch.clock_offset_ns
    return View(
        records=batch.rows,
        values=batch.rows,
        whose=dict.fromkeys(OF_IDENTITY, index) | peers_of(batch),
        identities=batch.identities,
        routes=batch.routes,
        time=time,
    )


def columns(batch: Batch) -> dict[str, Array]:
    """Every field of a batch as one array, named as in the JSON output.

    Shapes are (n,). Texts are objects with None where there is none, times ``datetime64[ns]`` in
    UTC, durations float seconds, sizes and codes integers (0: does not apply).
    """
    by = PLAIN if any(one.namespace or one.pod_uid for one in batch.identities) else ON_HOST
    if batch.kind == "request":
        return read(REQUEST, request_view(batch), by)
    from podscope import red

    return read(HTTP, red.rows_view(batch), by)
