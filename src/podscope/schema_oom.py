# SPDX-License-Identifier: Apache-2.0
"""Fields of kills by the OOM killer: members of ``struct oom_kill`` in bpf/oom/oom.h."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from podscope.schema import Array
from podscope.schema import Field
from podscope.schema import View
from podscope.schema_events import TIME
from podscope.schema_events import WORKLOAD
from podscope.schema_events import attribute
from podscope.schema_events import number
from podscope.schema_events import process
from podscope.schema_events import text
from podscope.schema_events import value
from podscope.schema_events import word

# What ran out of memory, by code; told by the kernel's stack (podscope.sources.oom).
SCOPES = ("", "memcg", "global", "sysrq")
UNLIMITED = 2**64 - 1


def _limit(name: str) -> Callable[[View], Array]:
    """A size that is left out where the memory cgroups have no limit."""

    def read(view: View) -> Array:
        records = view.records
        return np.where(records["limit"] == UNLIMITED, 0, records[name]).astype(np.int64)

    return read


def _resident(view: View) -> Array:
    anon, file, shmem = (view.records[name] for name in ("anon", "file", "shmem"))
    return np.asarray(anon + file + shmem).astype(np.int64)


def _since(name: str) -> Callable[[View], Array]:
    """Seconds since a moment of CLOCK_BOOTTIME; NaN where it is 0."""

    def read(view: View) -> Array:
        begun = view.records[name]
        lived = (view.records["boot_ns"] - begun) / 1e9
        return np.where(begun == 0, np.nan, lived)

    return read


_BYTES = ("int", "By")

OOM: tuple[Field, ...] = (
    TIME,
    *WORKLOAD,
    *process("the process that was killed"),
    attribute("podscope.process.comm", "comm", text("comm"), "its name of 15 bytes at most"),
    attribute("process.user.id", "uid", number("uid"), "its user; absent for root", type="int"),
    attribute(
        "podscope.oom.scope",
        "stack",
        word("scope", SCOPES),
        "what ran out: memcg (a cgroup reached its limit), global (the machine), or sysrq (asked "
        "for); absent if the kernel's stack did not say",
        label=True,
    ),
    attribute("podscope.oom.cgroup", "names", text("cgroup"), "path of the memory cgroup"),
    attribute(
        "podscope.oom.limit",
        "limit",
        _limit("limit"),
        "limit in bytes of the memory cgroup with the least room: the victim's or one above it; "
        "absent where none has a limit",
        type="int",
    ),
    attribute("podscope.oom.usage", "usage", _limit("usage"), "what it used, bytes", type="int"),
    value(
        "process.memory.usage",
        "anon, file, shmem",
        _BYTES,
        _resident,
        "resident memory of the process: the sum of the next three",
    ),
    value("podscope.process.memory.anon", "anon", _BYTES, number("anon"), "anonymous memory"),
    value("podscope.process.memory.file", "file", _BYTES, number("file"), "pages of files"),
    value("podscope.process.memory.shmem", "shmem", _BYTES, number("shmem"), "shared memory"),
    value("process.memory.virtual", "virtual", _BYTES, number("virtual"), "address space"),
    value(
        "podscope.process.memory.page_tables",
        "page_tables",
        _BYTES,
        number("page_tables"),
        "page tables",
    ),
    value("podscope.oom.score_adj", "score_adj", ("int", ""), number("score_adj"), "oom_score_adj"),
    value(
        "process.uptime", "start_ns", ("float", "s"), _since("start_ns"), "how long it had lived"
    ),
    value(
        "container.uptime",
        "container_start_ns",
        ("float", "s"),
        _since("container_start_ns"),
        "how long the first process of its pid namespace had lived, so the container; absent "
        "outside of containers",
    ),
    attribute(
        "podscope.oom.trigger.pid",
        "trigger_pid",
        number("trigger_pid"),
        "process that asked for memory when there was none",
        type="int",
    ),
    attribute("podscope.oom.trigger.comm", "trigger_comm", text("trigger_comm"), "its name"),
)
