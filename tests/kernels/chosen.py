# SPDX-License-Identifier: Apache-2.0
"""Which tests run on other kernels, and for how long at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """Arguments of pytest, and seconds until a machine is given up."""

    pytest: tuple[str, ...]
    seconds: float


# `-k` looks at names of files too: no word that is looked for below may be part of these.
EXACT = tuple(
    f"tests/kernel/test_http_{name}.py"
    for name in ("exact", "framing", "heads", "pipelining", "opaque", "sockets", "log")
)
LOST = "tests/kernel/test_http_lost.py"
ENDS = "tests/kernel/test_http_ends.py"
OWNERS = "tests/kernel/test_open_sockets.py"
EVENTS = tuple(f"tests/kernel/test_{name}.py" for name in ("oom", "listen", "tcp", "dns"))
BINDINGS = ("maps", "objects", "rings")

# Without hardware help a test takes 10 to 50 times as long. These say little about a kernel.
TOO_SLOW = (
    "ends_after_any_byte", "split_at_every_byte", "thousand", "same_time", "random_bytes",
    "64_requests_in_flight", "joined_inside_a_body", "writers_on_all_cpus",
    "another_thread_writes", "object_without_btf",
    # They start the whole program.
    "the_command",
)  # fmt: skip

FULL = Choice(
    pytest=(
        *EXACT, LOST, ENDS, OWNERS, *EVENTS,
        *(f"tests/kernel/test_{name}.py" for name in BINDINGS),
        "-k", "not (" + " or ".join(TOO_SLOW) + ")",
    ),
    seconds=1500,
)  # fmt: skip
SHORT = Choice(
    pytest=(
        *EXACT, ENDS, OWNERS, *EVENTS,
        "-k", "any_conversation or framing_is_followed_exactly or tunnel or segments_of_a_few "
        "or each_known or attributed or handshake or http_ends or open_sockets "
        # Of the events, what kernels could give in other ways, and that it is exact.
        "or gone_at_once or whole_is_a_row or full_accept_queue or before_the_start_are_told "
        "or states_are_complete or retransmits_are or storm or over_reads or without_reasons "
        "or told_by_both_ends or lookup_over_tcp",
    ),
    seconds=900,
)  # fmt: skip
