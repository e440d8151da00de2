# SPDX-License-Identifier: Apache-2.0
"""What sort of address a peer has."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podscope.schema import PEERS
from podscope.sources.peer_classes import peer_classes


def classes(*texts: str) -> list[str]:
    raw = b"".join(
        ipaddress.IPv6Address(f"::ffff:{text}" if "." in text else text).packed for text in texts
    )
    return [PEERS[code] for code in peer_classes(np.frombuffer(raw, "u1").reshape(-1, 16))]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.255", "loopback"),
        ("::1", "loopback"),
        ("10.1.2.3", "private"),
        ("172.16.0.1", "private"),
        ("172.32.0.1", "public"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("100.128.0.1", "public"),
        ("198.18.0.1", "private"),
        ("198.20.0.1", "public"),
        ("169.254.1.1", "private"),
        ("8.8.8.8", "public"),
        ("fd00::1", "private"),
        ("fe80::1", "private"),
        ("2001:db8::1", "public"),
        ("::", ""),
        ("0.0.0.0", "public"),
    ],
)
def test_addresses_are_of_the_sort_that_the_rfcs_say(text, word):
    assert classes(text) == [word]


@given(st.lists(st.ip_addresses(v=4)))
def test_many_addresses_at_once_are_as_one_by_one(addresses):
    texts = [str(one) for one in addresses]
    assert classes(*texts) == [word for text in texts for word in classes(text)]
