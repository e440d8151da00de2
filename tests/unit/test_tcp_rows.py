# SPDX-License-Identifier: Apache-2.0
"""TCP's events: words of the codes, and what is asked of the kernel."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from podscope import schema_events
from podscope import schema_tcp
from podscope.batch import Batch
from podscope.batch import Identity
from podscope.commands.events import _tcp_details
from podscope.commands.events import _tcp_events
from podscope.kernel import btf
from podscope.kernel.kernel_types import kernel_enum
from podscope.sources import tcp
from podscope.sources.records import members

ROOT = Path(__file__).parents[2]
OBJECT = ROOT / "src" / "podscope" / "_bpf" / "tcp.bpf.o"
CONNECT, RETRANSMIT, DROP = (schema_tcp.WHAT.index(w) for w in ("connect", "retransmit", "drop"))


def events(*rows: dict[str, object]) -> Batch:
    """A batch of events with the members given."""
    if not OBJECT.exists():
        pytest.skip("tcp.bpf.o is not compiled: run `make bpf`")
    record = btf.read_elf(OBJECT).dtype("tcp_event")
    more = ("reason_text", f"S{tcp.REASON_BYTES}")
    dtype = np.dtype([*members(record), ("peer_class", "u1"), more])
    made = np.zeros(len(rows), dtype)
    for row, values in zip(made, rows, strict=True):
        for name, value in values.items():
            row[name] = value
    return Batch(
        kind="tcp_event",
        rows=made,
        identity=np.zeros(len(rows), np.uint32),
        identities=(Identity("process", "curl", "curl", 7),),
        time_ns=0,
        interval=0.0,
        fields=schema_tcp.TCP_EVENT,
    )


def test_words_are_those_of_the_header():
    # GIVEN
    header = (ROOT / "bpf" / "tcp" / "tcp.h").read_text()
    enum = re.search(r"enum tcp_what \{(.*?)\};", header, re.S)
    assert enum is not None

    # WHEN
    names = [name.lower() for name in re.findall(r"^\tTCP_(\w+)(?: = 1)?,", enum[1], re.M)]

    # THEN
    assert names == list(tcp.EVENTS)


def test_what_is_wanted_is_one_bit_an_event():
    assert tcp._wanted(()) == 0
    assert tcp._wanted(("connect", "life")) == 1 << 1 | 1 << 3
    assert tcp._wanted(("failed",)) == 1 << 10


def test_a_number_that_an_event_has_not_is_left_out():
    # GIVEN
    batch = events({"what": CONNECT}, {"what": RETRANSMIT, "retransmits": 3})

    # WHEN
    columns = schema_events.columns(batch)

    # THEN
    assert np.isnan(columns["podscope.tcp.retransmits"][0])
    assert columns["podscope.tcp.retransmits"][1] == 3
    assert np.isnan(columns["podscope.tcp.cwnd"]).all()


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ({"error": 111, "state": 7}, "ECONNREFUSED"),
        ({"error": 0, "state": 7}, "closed"),
        ({"error": 0, "state": 1}, None),
    ],
)
def test_a_connect_that_failed_has_an_error(members, error):
    columns = schema_events.columns(events({"what": CONNECT, **members}))
    assert columns["error.type"].tolist() == [error]


def test_flags_of_a_packet_are_words():
    columns = schema_events.columns(events({"what": DROP, "flags": 0x12}))
    assert columns["podscope.tcp.flags"].tolist() == ["SYN|ACK"]


def test_events_are_told_in_words():
    # GIVEN
    local = bytes(10) + b"\xff\xff\x7f\0\0\1"
    ends = {"local": np.frombuffer(local, "u1"), "peer": np.frombuffer(local, "u1")}
    batch = events(
        {"what": CONNECT, "error": 111, "duration_ns": 80_000, "peer_port": 80, **ends},
        {"what": RETRANSMIT, "retransmits": 2, "state": 1, **ends},
    )

    # WHEN
    columns = schema_events.columns(batch)

    # THEN
    assert _tcp_events(columns) == ["connect failed", "retransmit"]
    assert _tcp_details(columns) == [
        "127.0.0.1:0 to 127.0.0.1:80, ECONNREFUSED after 80µs",
        "127.0.0.1:0 to 127.0.0.1:0, ESTABLISHED: 2 segments sent again",
    ]


def test_reasons_of_drops_have_the_kernels_names():
    # GIVEN
    names = kernel_enum("skb_drop_reason")
    if not names:
        pytest.skip("this kernel has no reasons of drops, or no BTF")

    # WHEN
    code = next(code for code, name in names.items() if name.endswith("_NO_SOCKET"))

    # THEN
    assert tcp.reason(code) == "NO_SOCKET"
    assert tcp.reason(1 << 20) == str(1 << 20)
    assert kernel_enum("no_such_enum") == {}
