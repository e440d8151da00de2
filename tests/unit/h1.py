# SPDX-License-Identifier: Apache-2.0
"""The engine's pure parts as programs of the host: build them, talk to them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "build" / "host"
METHODS = ("", "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
# enum h1_flag
HAS_LENGTH = 1
CHUNKED = 2
OTHER_CODING = 4
HAS_UPGRADE = 8
# States in which the head is behind and the message has not ended.
TO_THE_CLOSE = "BODY_CLOSE"


@dataclass(frozen=True)
class Message:
    """One message as the parser reads it; offsets count from the stream's start.

    ``kind`` is request, answer, interim (1xx), tunnel (101, or CONNECT granted)
    or open (its head has ended, its content has not). Texts are cut as in the
    records of bpf/http/http.h; the lengths are of the whole.
    """

    kind: str
    version: int
    framing: int
    length: int
    body: int
    head: int
    end: int
    status: int = 0
    method: int = 0
    name: bytes = b""
    name_len: int = 0
    target: bytes = b""
    target_len: int = 0
    host: bytes = b""
    host_len: int = 0
    agent: bytes = b""
    agent_len: int = 0
    trace: bytes = b""
    trace_len: int = 0


@dataclass(frozen=True)
class Reading:
    """What a stream holds: its messages, and how the parser stands at its end."""

    messages: tuple[Message, ...]
    state: str
    at: int
    shortcuts: int = 0

    @property
    def is_bad(self) -> bool:
        """Has the parser refused the stream, behind byte ``at``?"""
        return self.state == "BAD"


def build(target: str = "host-programs") -> Path:
    """Builds what is not up to date; returns the directory of the programs."""
    command = ["make", "-s", "-f", "tests/host/build.mk", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return PROGRAMS


class Parser:
    """tests/host/h1_harness.c at work. A sanitizer's finding is an AssertionError."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [directory / "h1_harness"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> Parser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def requests(self, stream: bytes, sizes: Sequence[int] = (), *, flags: str = "t") -> Reading:
        """Reads requests, in segments of these sizes; the last repeats, 0 is the rest.

        Args:
            flags: ``t`` keeps texts, ``r`` goes on after CONNECT and Upgrade, ``f`` tries
                the short way of head.h (without ``t``).
        """
        return self._read("requests", flags, (), sizes, stream)

    def answers(
        self,
        stream: bytes,
        methods: Sequence[str] = (),
        sizes: Sequence[int] = (),
        *,
        flags: str = "-",
    ) -> Reading:
        """Reads answers to requests with these methods; those that are not told are GET."""
        known = [METHODS.index(m) if m in METHODS else 0 for m in methods]
        return self._read("answers", flags, known, sizes, stream)

    def _read(
        self, kind: str, flags: str, methods: Sequence[int], sizes: Sequence[int], stream: bytes
    ) -> Reading:
        pipes = self._process
        assert pipes.stdin and pipes.stdout and pipes.stderr
        lists = " ".join(",".join(map(str, numbers)) or "-" for numbers in (methods, sizes))
        messages = []
        try:
            pipes.stdin.write(f"{kind} {flags or '-'} {lists} {len(stream)}\n".encode() + stream)
            pipes.stdin.flush()
        except BrokenPipeError:
            raise AssertionError(pipes.stderr.read().decode()) from None
        while True:
            line = pipes.stdout.readline().decode()
            if not line:
                raise AssertionError(f"{stream!r} {sizes}\n{pipes.stderr.read().decode()}")
            fields = dict(pair.split("=", 1) for pair in line.split())
            if "state" in fields:
                break
            messages.append(_message(fields))
        return Reading(
            tuple(messages), fields["state"], int(fields["at"]), int(fields["shortcuts"])
        )


TEXTS = ("name", "target", "host", "agent", "trace")


def _message(fields: dict[str, str]) -> Message:
    texts = {name: bytes.fromhex(fields.pop(name)) for name in TEXTS if name in fields}
    kind = fields.pop("kind")
    return Message(kind=kind, **{k: int(v) for k, v in fields.items()}, **texts)  # type: ignore[arg-type]


def buckets(directory: Path, times_ns: Sequence[int]) -> list[tuple[int, int]]:
    """Bucket and advised bound of each time, by bpf/common/bounds.h."""
    text = "".join(f"{t}\n" for t in times_ns)
    out = _run(directory / "bounds_harness", text.encode()).decode()
    return [(int(a), int(b)) for a, b in (line.split() for line in out.splitlines())]


def routes(directory: Path, targets: Sequence[bytes]) -> list[tuple[bytes, int, int]]:
    """Route, its hash, and the hash of the path as sent, by bpf/http/route.h."""
    out = _run(directory / "route_harness", b"".join(b"%d\n%b" % (len(t), t) for t in targets))
    found = []
    while out:
        line, _, out = out.partition(b"\n")
        length, route_hash, raw_hash = (
            int(n, base) for n, base in zip(line.split(), (10, 16, 16), strict=True)
        )
        found.append((out[:length], route_hash, raw_hash))
        out = out[length:]
    return found


def _run(program: Path, standard_input: bytes) -> bytes:
    done = subprocess.run([program], input=standard_input, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
