# SPDX-License-Identifier: Apache-2.0
"""Fields of DNS lookups: members of the records in bpf/dns/dns.h."""

from __future__ import annotations

import numpy as np

from podscope import schema
from podscope.schema import Array
from podscope.schema import Field
from podscope.schema import View
from podscope.schema_events import END
from podscope.schema_events import INTERVAL
from podscope.schema_events import PEER
from podscope.schema_events import TIME
from podscope.schema_events import WORKLOAD
from podscope.schema_events import address
from podscope.schema_events import attribute
from podscope.schema_events import known_seconds
from podscope.schema_events import number
from podscope.schema_events import percentiles
from podscope.schema_events import process
from podscope.schema_events import seconds
from podscope.schema_events import text
from podscope.schema_events import texts
from podscope.schema_events import value
from podscope.schema_events import word

# IANA's registry of DNS parameters: what is seen most; others are TYPE123 (RFC 3597, section 5).
TYPES = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    15: "MX",
    16: "TXT",
    28: "AAAA",
    33: "SRV",
    35: "NAPTR",
    43: "DS",
    48: "DNSKEY",
    64: "SVCB",
    65: "HTTPS",
    252: "AXFR",
    255: "ANY",
}
CODES = (
    "NOERROR",
    "FORMERR",
    "SERVFAIL",
    "NXDOMAIN",
    "NOTIMP",
    "REFUSED",
    "YXDOMAIN",
    "YXRRSET",
    "NXRRSET",
    "NOTAUTH",
    "NOTZONE",
)
NO_ANSWER = 0xFF
TIMEOUT = "timeout"


def code_text(code: int) -> str:
    """A response code by its name; empty where no response came."""
    if code == NO_ANSWER:
        return ""
    return CODES[code] if code < len(CODES) else f"RCODE{code}"


def _type(view: View) -> Array:
    """Empty where the name was too long for what follows it to be read."""
    kinds = view.records["type"].tolist()
    return texts([TYPES.get(kind, f"TYPE{kind}") if kind else "" for kind in kinds])


def _code(view: View) -> Array:
    return texts([code_text(code) for code in view.records["code"].tolist()])


def _error(view: View) -> Array:
    codes = view.records["code"].tolist()
    return texts(
        [TIMEOUT if code == NO_ANSWER else code_text(code) if code else "" for code in codes]
    )


def _server(view: View) -> Array:
    column = schema.addresses(view.records["peer"])
    return schema.where_known(view.records["side"] == schema.CLIENT, column)


def _name(view: View) -> Array:
    """The root's name is empty: it is written as a dot."""
    column = text("text")(view)
    column[column == np.array(None)] = "."
    return column


_KEY = (
    attribute("side", "side", word("side", schema.SIDES), "client (asks) or server (is asked)"),
    attribute(
        "dns.question.name",
        "name",
        _name,
        "name asked for, in small letters, the first 126 bytes; _OTHER beyond the cap",
    ),
    attribute("podscope.dns.question.type", "type", _type, "type asked for, as A or AAAA"),
    attribute(
        "podscope.dns.response_code",
        "code",
        _code,
        "as NOERROR or NXDOMAIN; absent if no response came",
    ),
    attribute(
        "error.type",
        "code",
        _error,
        "the response code if it is not NOERROR; timeout if no response came within 5 s",
    ),
    attribute("server.address", "peer", _server, "the server, on the client side"),
    attribute(
        "network.transport",
        "tcp",
        lambda view: np.where(view.records["tcp"] != 0, "tcp", "udp").astype(object),
        "udp or tcp",
    ),
    *PEER,
)

DNS: tuple[Field, ...] = (
    END,
    INTERVAL,
    *WORKLOAD,
    *process("the process that asks or is asked"),
    *_KEY,
    value("count", "count", ("int", "{lookup}"), number("count"), "lookups that ended"),
    value(
        "duration.sum",
        "sum_ns",
        ("float", "s"),
        seconds("sum_ns"),
        "sum of times from the query to its response",
    ),
    *percentiles("duration", "those times", "max_ns"),
    value(
        "duration.max",
        "max_ns",
        ("float", "s"),
        known_seconds("max_ns"),
        "the longest; like the percentiles absent where no response came",
    ),
)

DNS_LOOKUP: tuple[Field, ...] = (
    TIME,
    *WORKLOAD,
    *process("the process that asks or is asked"),
    *_KEY,
    attribute("network.peer.address", "peer", address("peer"), "address of the other end"),
    attribute("network.peer.port", "peer_port", number("peer_port"), "its port", type="int"),
    value(
        "duration",
        "duration_ns",
        ("float", "s"),
        known_seconds("duration_ns"),
        "time from the query to its response; absent if none came",
    ),
    value(
        "podscope.dns.repeats",
        "repeats",
        ("int", "{query}"),
        number("repeats"),
        "how often the same query came again meanwhile",
    ),
)
