# SPDX-License-Identifier: Apache-2.0
"""The programs that come with podscope: files of this package, with what they say of themselves.

The first comment lines of a script are its description:

    // help: what it shows, in a line
    // columns: names for the parts of the tuples that it prints, with commas
    // arguments: what $1 and on are
    // without: what is missing from it, and why
    // cgroup: whose an event is, an expression in place of the cgroup of the program that runs

The last is for probes that run in another program than the one they are about, as those of packets:
there the socket says whose it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from podscope.errors import UsageError

# Comments further down may say what they like.
_HEAD = re.compile(r"(?:(?:#!|//)[^\n]*\n|\s*\n)*")
_FIELD = re.compile(r"^// (help|columns|arguments|without|cgroup): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Script:
    """A shipped program, and what its head says."""

    name: str
    text: str
    help: str
    columns: tuple[str, ...] = ()
    arguments: str = ""
    without: str = ""
    cgroup: str = ""


def names() -> tuple[str, ...]:
    """Of all shipped scripts, sorted."""
    files = resources.files("podscope.trace").joinpath("scripts").iterdir()
    return tuple(sorted(one.name.removesuffix(".bt") for one in files if one.name.endswith(".bt")))


def load(name: str) -> Script:
    """A shipped script.

    Raises:
        UsageError: there is none of this name.
    """
    known = names()
    plain = name.removesuffix(".bt")
    if plain not in known:
        raise UsageError(
            f"there is no script {name!r}; 'podscope scripts' lists them, -e takes a program, "
            "-f a file"
        )
    place = resources.files("podscope.trace").joinpath("scripts", f"{plain}.bt")
    return read(plain, place.read_text("utf-8"))


def read(name: str, text: str) -> Script:
    """A script from its text: a user's own may have a head, too."""
    head = _HEAD.match(text)
    told = dict(_FIELD.findall(head[0] if head else ""))
    columns = tuple(one.strip() for one in told.get("columns", "").split(",") if one.strip())
    return Script(
        name,
        text,
        told.get("help", ""),
        columns,
        told.get("arguments", ""),
        told.get("without", ""),
        told.get("cgroup", ""),
    )


def row(values: Sequence[Any], columns: Sequence[str]) -> list[Any]:
    """A printed tuple as a row: a ``time`` as a number of seconds (versions differ), and an IPv4
    address written as one of IPv6 (RFC 4291, 2.5.5.2) as what it is."""
    return [_cell(value, name) for value, name in zip(values, columns, strict=True)]


def _cell(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    if name == "time" and value.isdigit():
        return int(value)
    return value.removeprefix("::ffff:") if name in ("saddr", "daddr") and "." in value else value
