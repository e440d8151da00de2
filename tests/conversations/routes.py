# SPDX-License-Identifier: Apache-2.0
"""The route rule, for expectations: written from the issue's words, not from the engine."""

from __future__ import annotations

import re
import string

ROUTE_MAX = 128
HEX_DIGITS = frozenset(string.hexdigits.encode())
DIGITS = frozenset(string.digits.encode())
LETTERS = frozenset(string.ascii_letters.encode())
UUID = re.compile(rb"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")


def is_id(segment: bytes) -> bool:
    """Does a path segment look like an id?"""
    if not segment:
        return False
    if DIGITS.issuperset(segment) or UUID.match(segment):
        return True
    if len(segment) >= 8 and HEX_DIGITS.issuperset(segment) and DIGITS.intersection(segment):
        return True
    return len(segment) >= 16 and bool(
        DIGITS.intersection(segment) and LETTERS.intersection(segment)
    )


def route(target: bytes) -> str:
    """Route of a request target in origin-form, absolute-form or asterisk-form."""
    if target == b"*":
        return "*"
    path = target
    if not target.startswith(b"/"):
        _, _, rest = target.partition(b"://")
        slash = re.search(rb"[/?]", rest)
        path = rest[slash.start() :] if slash else b""
    path = path.partition(b"?")[0] or b"/"
    text = b"/".join(b"*" if is_id(segment) else segment for segment in path.split(b"/"))
    return text[:ROUTE_MAX].decode("utf-8", "backslashreplace")
