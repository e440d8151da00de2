# SPDX-License-Identifier: Apache-2.0
"""What podscope says about the connections to a port, in the words of ``truth``."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import Any

from .model import Conversation
from .truth import HOST_MAX
from .truth import PATH_MAX
from .truth import Key
from .truth import Outcome
from .truth import Sums
from .truth import outcomes
from .truth import tally

# The codes of bpf/http/http.h, written a second time on purpose: this is the other witness.
SIDES = {1: "server", 2: "client"}
METHODS = (
    "_OTHER", "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    "QUERY",
)  # fmt: skip
VERSIONS = {0: "", 10: "1.0", 11: "1.1"}  # 0: the series that take what found no free one
ERRORS = ("", "closed", "reset")
PATIENCE = 1.0


@dataclass(frozen=True)
class Record:
    """One line of the request log."""

    side: str
    client_port: int
    outcome: Outcome
    target_length: int
    host_length: int
    start_ns: int
    first_ns: int
    end_ns: int
    pid: int


@dataclass
class Seen:
    """All that was said about one server port so far."""

    sums: dict[str, dict[Key, Sums]] = field(default_factory=lambda: {"server": {}, "client": {}})
    records: list[Record] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)
    counted: int = 0
    in_bounds: int = 0
    in_buckets: int = 0

    def count(self) -> int:
        return sum(one.count for side in self.sums.values() for one in side.values())


class Observer:
    """Reads a running watch and keeps what it says, by server port."""

    def __init__(self, watch: Any) -> None:
        self.watch = watch
        self._seen: dict[int, Seen] = defaultdict(Seen)

    def begin(self) -> None:
        """Drops what was counted so far."""
        self.read()
        self._seen.clear()

    def lost(self) -> dict[str, int]:
        """What could not be counted so far, by reason; reasons with nothing are left out."""
        return {reason: count for reason, count in self.watch.lost().items() if count}

    def forget(self, port: int) -> None:
        """Lets go of what was said about a port: the next listener may get the same one."""
        self._seen.pop(port, None)

    def overflow(self) -> int:
        """Exchanges in the series that take what found no free one; they have no port."""
        return self._seen[0].count()

    def read(self) -> None:
        """Takes what has been counted since the last read."""
        for batch in self.watch.read():
            if batch.kind == "http":
                for row in batch.rows:
                    self._take_row(row, batch.routes)
            elif batch.kind == "request":
                for row in batch.rows:
                    self._take_record(row, batch.routes)

    def seen(self, port: int, rows: int, records: int = 0) -> Seen:
        """What was said about ``port``, once there are so many rows (or time is up), and after.

        Args:
            rows: exchanges that must be there, both sides together.
            records: lines of the request log that must be there, both sides together.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            self.read()
            seen = self._seen[port]
            if seen.count() >= rows and len(seen.records) >= records:
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        self.read()  # what comes too many, comes now
        assert seen.in_bounds == seen.counted, "the classic bounds do not add up to the count"
        assert seen.in_buckets == seen.counted, "the exponential buckets do not add up"
        return seen

    def _take_row(self, row: Any, routes: dict[int, str]) -> None:
        key = row["key"]
        count = int(row["count"])
        seen = self._seen[int(key["port"])]
        # A read may fall between two counters of one exchange, so they are compared at the end.
        seen.counted += count
        seen.in_bounds += int(row["le"].sum())
        seen.in_buckets += int(row["buckets"].sum())
        side = SIDES[int(key["side"])]
        series = (
            METHODS[int(key["method"])],
            int(key["status"]),
            VERSIONS[int(key["version"])],
            _route(key, routes),
            ERRORS[int(key["error"])],
        )
        one = Sums(count, int(row["request_bytes"]), int(row["response_bytes"]))
        seen.sums[side][series] = seen.sums[side].get(series, Sums()) + one
        seen.pids.add(int(key["pid"]))

    def _take_record(self, row: Any, routes: dict[int, str]) -> None:
        side = SIDES[int(row["side"])]
        local, peer = int(row["local_port"]), int(row["peer_port"])
        port, client_port = (local, peer) if side == "server" else (peer, local)
        start = int(row["time_ns"])
        outcome = Outcome(
            method=METHODS[int(row["method"])],
            status=int(row["status"]),
            version=VERSIONS[int(row["version"])],
            route=_route(row, routes),
            error=ERRORS[int(row["error"])],
            request_bytes=int(row["request_bytes"]),
            answer_bytes=int(row["response_bytes"]),
            target=bytes(row["path"])[: int(row["path_len"])],
            host=bytes(row["host"])[: int(row["host_len"])],
        )
        self._seen[port].records.append(
            Record(
                side=side,
                client_port=client_port,
                outcome=outcome,
                target_length=int(row["path_len"]),
                host_length=int(row["host_len"]),
                start_ns=start,
                first_ns=start + int(row["ttfb_ns"]),
                end_ns=start + int(row["duration_ns"]),
                pid=int(row["pid"]),
            )
        )


def _route(key: Any, routes: dict[int, str]) -> str:
    if METHODS[int(key["method"])] == "CONNECT":
        return "?"  # the rule says nothing about its target
    number = int(key["route"])
    return "_OTHER" if number == 1 else routes.get(number, f"no text for {number:#x}")


def known(outcome: Outcome) -> Outcome:
    """An outcome as a record can hold it: texts are cut, CONNECT's route is not compared."""
    return Outcome(
        method=outcome.method,
        status=outcome.status,
        version=outcome.version,
        route="?" if outcome.route is None else outcome.route,
        error=outcome.error,
        request_bytes=outcome.request_bytes,
        answer_bytes=outcome.answer_bytes,
        target=outcome.target[:PATH_MAX],
        host=outcome.host[:HOST_MAX],
    )


def assert_counted(observer: Observer, port: int, conversations: Iterable[Conversation]) -> None:
    """Rows of both sides equal the truth: count and bytes by method, status, version, route."""
    truth = [outcome for talk in conversations for outcome in outcomes(talk)]
    expected = tally(truth)
    seen = observer.seen(port, 2 * len(truth))
    for side in ("server", "client"):
        assert seen.sums[side] == expected, f"rows of the {side} side"


def assert_logged(
    observer: Observer,
    port: int,
    conversations: Sequence[Conversation],
    client_ports: Sequence[int],
    began_ns: int = 0,
) -> None:
    """The log has one record an exchange and side, in order, with its texts, sizes and times."""
    truth = [outcomes(talk) for talk in conversations]
    wanted = 2 * sum(map(len, truth))
    seen = observer.seen(port, wanted, wanted)
    now = time.monotonic_ns()
    for side in ("server", "client"):
        for client_port, expected in zip(client_ports, truth, strict=True):
            records = [
                record
                for record in seen.records
                if record.side == side and record.client_port == client_port
            ]
            assert [record.outcome for record in records] == [
                known(outcome) for outcome in expected
            ], f"log of the {side} side"
            for record, outcome in zip(records, expected, strict=True):
                assert record.target_length == len(outcome.target)
                assert record.host_length == len(outcome.host)
                assert began_ns <= record.start_ns <= record.first_ns or outcome.status == 0
                assert began_ns <= record.start_ns <= record.end_ns <= now
                assert record.first_ns <= record.end_ns
    assert len(seen.records) == wanted, "records of connections that were not made"


def assert_exact(
    observer: Observer,
    port: int,
    conversations: Sequence[Conversation],
    client_ports: Sequence[int],
    began_ns: int = 0,
) -> None:
    """Rows and log equal the truth on both sides; all that was said of the port is then used up."""
    try:
        assert_counted(observer, port, conversations)
        assert_logged(observer, port, conversations, client_ports, began_ns)
    finally:
        observer.forget(port)
