# SPDX-License-Identifier: Apache-2.0
"""What sort of address a peer has, for rows whose kernel program does not say it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from podscope.schema import PEERS

_LOOPBACK, _PRIVATE, _PUBLIC = (PEERS.index(word) for word in ("loopback", "private", "public"))
_MAPPED = np.frombuffer(bytes(10) + b"\xff\xff", np.uint8)
# RFC 1918, RFC 6598, RFC 2544 and link-local (RFC 3927): first address and length of the prefix.
_PRIVATE_4 = (
    (0x0A000000, 8),
    (0xAC100000, 12),
    (0xC0A80000, 16),
    (0x64400000, 10),
    (0xC6120000, 15),
    (0xA9FE0000, 16),
)


def peer_classes(addresses: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Codes of ``PEERS``, as ``peer_class()`` in bpf/http.bpf.c gives them; 0 for no address.

    Args:
        addresses: IPv6 or v4-mapped, shape (n, 16).

    Returns:
        Shape (n,).
    """
    found = np.full(len(addresses), _PUBLIC, np.uint8)
    mapped = (addresses[:, :12] == _MAPPED).all(axis=1)
    four = np.ascontiguousarray(addresses[:, 12:]).view(">u4").reshape(-1)
    private = np.zeros(len(addresses), np.bool_)
    for first, length in _PRIVATE_4:
        private |= four >> (32 - length) == first >> (32 - length)
    found[mapped & private] = _PRIVATE
    found[mapped & (four >> 24 == 127)] = _LOOPBACK
    # RFC 4193 and link-local (RFC 4291)
    local = (addresses[:, 0] & 0xFE) == 0xFC
    local |= (addresses[:, 0] == 0xFE) & (addresses[:, 1] & 0xC0 == 0x80)
    found[~mapped & local] = _PRIVATE
    zeros = ~addresses[:, :12].any(axis=1)
    found[zeros & (four == 1)] = _LOOPBACK
    found[zeros & (four == 0)] = 0
    return found
