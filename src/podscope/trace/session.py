# SPDX-License-Identifier: Apache-2.0
"""A bpftrace program on this host, from its text to its last answer."""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Self
from typing import TypeAlias

from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.kernel.probes import find_cgroup2
from podscope.trace import decode
from podscope.trace import rewrite
from podscope.trace import syntax
from podscope.trace.bpftrace import KEYS_SETTINGS
from podscope.trace.bpftrace import Bpftrace
from podscope.trace.bpftrace import Child
from podscope.trace.bpftrace import find
from podscope.trace.host_targets import HostTarget
from podscope.trace.host_targets import find_all
from podscope.trace.host_targets import find_some
from podscope.trace.host_targets import together
from podscope.trace.limits import MEMORY_BYTES
from podscope.trace.limits import Limits
from podscope.trace.limits import are_above as limits_above
from podscope.trace.limits import tidy
from podscope.trace.maps import MapShape
from podscope.trace.maps import averages
from podscope.trace.maps import shapes
from podscope.trace.members import Members
from podscope.trace.owners import Owners
from podscope.trace.parse import ProgramError
from podscope.trace.parse import parse
from podscope.trace.parse import parse_expression
from podscope.trace.scripts import read
from podscope.trace.tables import HISTOGRAMS
from podscope.trace.tables import MERGED
from podscope.trace.tables import STATISTICS
from podscope.trace.tables import MapTable
from podscope.trace.tables import blanks_are_lost
from podscope.trace.tables import renamed
from podscope.trace.tables import table
from podscope.trace.unparse import unparse

INTERVAL_SECONDS = 1.0
DEADLINE_SECONDS = 3600.0
GRACE_SECONDS = 30.0
_DEFAULT_KEYS = 4096
_NO_ROOM = -7  # E2BIG

Line: TypeAlias = decode.Text | decode.Value | MapTable


@dataclass(frozen=True)
class Prepared:
    """A program as it is run.

    Attributes:
        text: what bpftrace gets.
        shapes: its maps; empty where the text could not be read.
        token: what marks podscope's own lines.
        speaks: whether it writes lines while it runs.
        counts_lines: whether it counts them.
        notes: what a user should know, a line each.
        tag: what stands before the cgroup of lines, where that is told.
        owners: whose cgroups are.
        owned: maps that are kept apart by owner.
    """

    text: str
    shapes: Mapping[str, MapShape] = field(default_factory=dict)
    token: str = ""
    speaks: bool = True
    counts_lines: bool = False
    notes: tuple[str, ...] = ()
    tag: str = ""
    owners: Owners | None = None
    owned: frozenset[str] = frozenset()

    def told_shapes(self) -> dict[str, MapShape]:
        """Shapes of the maps as answers have them: with the owner, where they are kept apart."""
        return {
            name: replace(one, titles=("pod", *one.titles)) if name in self.owned else one
            for name, one in self.shapes.items()
        }


@dataclass(frozen=True)
class Answer:
    """What a program has said: since the answer before, and until now.

    Attributes:
        lines: texts, values and maps that the program itself printed since the last answer.
        maps: its maps as they stand, by name.
        time_ns: Unix time in nanoseconds.
        last: whether the program has ended.
    """

    lines: tuple[Line, ...]
    maps: Mapping[str, MapTable]
    time_ns: int
    last: bool = False


def on_host(targets: Sequence[str]) -> HostTarget | None:
    """What targets mean on this host; None: all of it. Raises UsageError."""
    return find_all(targets, find_cgroup2()) if targets else None


def named_on_host(names: Mapping[str, str]) -> tuple[HostTarget, Owners]:
    """Targets by their text, with what each is called. Those that have gone are passed over.

    Raises:
        UsageError: none is there.
    """
    found = find_some(names, find_cgroup2())
    return together(list(found.values())), Owners({n: one.cgroups for n, one in found.items()})


def prepare(
    text: str,
    target: HostTarget | None,
    *,
    confine: bool = True,
    interval: float = INTERVAL_SECONDS,
    owners: Owners | None = None,
    by_owner: bool = False,
) -> Prepared:
    """What bpftrace is to run.

    Args:
        text: the program.
        target: what it is for; None: the whole host.
        confine: let it see the target alone; else the target only gives ``$container_pid``.
        interval: seconds between two answers.
        owners: whose the parts of the target are, to be told of lines.
        by_owner: keep maps apart by these.

    Raises:
        UsageError: it is no program, or cannot be confined.
    """
    try:
        program = parse(text)
    except ProgramError as error:
        if (target is not None and confine) or not text.strip():
            raise
        note = f"{error}; the program runs as it is, and its maps are shown at its end only"
        return Prepared(text, notes=(note,))
    rewrite.check_names(program)
    speaks = rewrite.speaks(program)
    if rewrite.uses_container_pid(program):
        if target is None:
            raise UsageError("$container_pid: only a target has one; name it, as pid/300")
        program = rewrite.with_container_pid(program, target.first_pid())
    known = shapes(program)
    counts_lines = rewrite.can_count_lines(program)
    if counts_lines:
        program = rewrite.with_counted_lines(program)
    program = rewrite.with_stats(program, averages(program))
    token = f"podscope-{os.urandom(6).hex()}"
    program = rewrite.with_snapshots(program, known.values(), token, round(interval * 1000))
    if target is None or not confine:
        return Prepared(unparse(program), known, token, speaks, counts_lines)
    whose = read("", text).cgroup
    program = _confined(program, target, whose)
    prepared = Prepared("", known, token, speaks, counts_lines, notes=target.missing)
    if owners is not None:
        prepared = _owned(prepared, program, owners, by_owner=by_owner)
        if prepared.tag:
            expression = parse_expression(whose) if whose else None
            apart = () if owners.only else prepared.owned
            program = rewrite.with_owners(program, apart, prepared.tag, expression)
    return replace(prepared, text=unparse(program))


def _owned(
    prepared: Prepared, program: syntax.Program, owners: Owners, *, by_owner: bool
) -> Prepared:
    """What is told of owners: that of lines where there are several, and what is kept apart."""
    known = prepared.shapes
    wanted = [
        name
        for name, one in known.items()
        if by_owner and one.kind in MERGED and (owners.only or rewrite.can_be_owned(program, name))
    ]
    left = sorted(known.keys() - set(wanted)) if by_owner else []
    notes = tuple(
        f"{name}: cannot be kept apart by pod" for name in left if not known[name].scratch
    )
    if owners.only:
        return replace(
            prepared, owners=owners, owned=frozenset(wanted), notes=(*prepared.notes, *notes)
        )
    # The cgroup is one more part of the key.
    shapes = {
        name: replace(one, key=("number", *one.key)) if name in wanted else one
        for name, one in known.items()
    }
    return replace(
        prepared,
        shapes=shapes,
        owners=owners,
        owned=frozenset(wanted),
        tag=f"{prepared.token[-12:]}@",
        notes=(*prepared.notes, *notes),
    )


def _confined(program: syntax.Program, target: HostTarget, whose: str) -> syntax.Program:
    if walks := rewrite.unconfinable(program):
        raise UsageError(f"{walks[0]}: walks the whole host, and cannot be confined to a target")
    if target.pids and whose:
        raise UsageError(f"{target.text}: its events run in other programs; a unit or a container")
    if target.pids:
        return rewrite.confined_to_processes(program, target.pids)
    expression = parse_expression(whose) if whose else None
    return rewrite.confined_to_cgroups(program, target.cgroups(), expression)


@dataclass(frozen=True)
class Terms:
    """How a program is run, on a host or in a cluster.

    Attributes:
        interval: seconds between two answers.
        deadline: seconds after which it is ended.
        arguments: ``$1`` and on.
        confine: let the program see the target alone; else it only gives ``$container_pid``.
        unsafe: allow ``system()`` and its like.
    """

    interval: float = INTERVAL_SECONDS
    deadline: float = DEADLINE_SECONDS
    arguments: tuple[str, ...] = ()
    confine: bool = True
    unsafe: bool = False


def begin(program: str, targets: Sequence[str], terms: Terms) -> Trace:
    """Runs a program on this host: see ``podscope.tracing.trace``.

    Raises:
        UsageError: no program, or no such target.
        PodscopeError: bpftrace is not there.
    """
    found = on_host(targets)
    prepared = prepare(program, found, confine=terms.confine, interval=terms.interval)
    return Trace(
        prepared,
        found if terms.confine else None,
        deadline=terms.deadline,
        arguments=terms.arguments,
        unsafe=terms.unsafe,
    )


class Trace:
    """A running program. Iterating over it gives its answers; use it in a ``with``.

    Args:
        prepared: what to run.
        target: what it was confined to.
        deadline: seconds after which it is ended, as by ``stop``.
        grace: seconds that it then has to print its maps.
        arguments: ``$1`` and on.
        unsafe: allow ``system()`` and its like.

    Raises:
        PodscopeError: bpftrace is not there or did not start.
    """

    def __init__(
        self,
        prepared: Prepared,
        target: HostTarget | None = None,
        *,
        deadline: float = DEADLINE_SECONDS,
        grace: float = GRACE_SECONDS,
        arguments: Sequence[str] = (),
        unsafe: bool = False,
    ) -> None:
        self.prepared = prepared
        self.bpftrace: Bpftrace = find()
        self._target = target
        self._grace = grace
        self._limits = Limits(tidy(os.urandom(3).hex()))
        try:
            self._child = Child(
                self.bpftrace,
                prepared.text,
                arguments=arguments,
                unsafe=unsafe,
                limits=self._limits,
            )
        except BaseException:
            self._limits.close()
            raise
        self._members: Members | None = None
        self._end = time.monotonic() + deadline
        self._stopped: float | None = None
        self._gave_up = False
        self._output = _Output(prepared, self.bpftrace.version)
        self.notes: list[str] = [*prepared.notes]
        if not self._limits.limited and not limits_above():
            self.notes.append("bpftrace runs without limits of CPU and memory on this host")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Answer]:
        """Answers as they come; the last one has ``last``.

        Raises:
            PodscopeError: bpftrace refused the program, or ended in an error.
        """
        while (chunk := self._next()) is not None:
            yield from self._output.feed(chunk)
            self._look_at_clock()
            self._follow_target()
        code = self._child.wait()
        self._leave_target()
        complaints = self._child.complaints()
        # Told to end before it had begun, it has no handler yet.
        early = self._stopped is not None and code == -signal.SIGINT
        if code != 0 and not early:
            raise PodscopeError(f"bpftrace: {self._why(code, complaints)}")
        self.notes += complaints
        if not self._output.ended and not early:
            self.notes.append("bpftrace ended without its last values; those shown are older")
        last = self._output.end()
        if self._output.without_blanks:
            self.notes.append("this version of bpftrace drops the blanks in keys of maps")
        yield last

    @property
    def speaks(self) -> bool:
        """Whether it writes lines while it runs."""
        return self.prepared.speaks or not self.prepared.shapes

    @property
    def version(self) -> str:
        """Of bpftrace."""
        return ".".join(map(str, self.bpftrace.version))

    def told_shapes(self) -> dict[str, MapShape]:
        """Of its maps, as answers have them."""
        return self.prepared.told_shapes()

    @property
    def lost(self) -> dict[str, int]:
        """What is missing from the answers so far, by reason."""
        refused = 0 if self._members is None else self._members.refused
        return self._output.lost | ({"cgroups": refused} if refused else {})

    @property
    def full(self) -> dict[str, int]:
        """Maps that had no room for another key, with how many entries they have."""
        return self._output.full

    def stop(self) -> None:
        """Let the program print its maps and end. A second call ends it at once."""
        if self._stopped is not None:
            self._child.kill()
            return
        self._stopped = time.monotonic()
        self._child.stop()

    def close(self) -> None:
        """End everything."""
        self._leave_target()
        self._child.close()
        self._limits.close()

    def _why(self, code: int, complaints: Sequence[str]) -> str:
        """What made it end in an error."""
        if self._gave_up:
            return f"did not print its maps within {self._grace:g} s of grace, and was killed"
        if self._limits.ran_out():
            return f"needed more than {MEMORY_BYTES >> 20} MiB of memory, and was killed"
        if code < 0:
            return f"ended by signal {-code}"
        return "; ".join(complaints[-3:]) or f"ended with code {code}"

    def _next(self) -> bytes | None:
        """The next piece of output; None at its end. Ends the program when its time is up."""
        while True:
            try:
                return self._child.chunks.get(timeout=0.1)
            except queue.Empty:
                self._look_at_clock()
                self._follow_target()

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if self._stopped is None and now >= self._end:
            self.stop()
        elif self._stopped is not None and now >= self._stopped + self._grace:
            self._gave_up = True
            self._child.kill()

    def _follow_target(self) -> None:
        """Begin to tell the program of what joins its target, once its map is there."""
        if self._members is not None or not self._output.attached:
            return
        if self._target is None or not self._target.directories:
            return
        try:
            self._members = Members(self._child.pid, self._target.cgroups)
        except PodscopeError as error:
            # It says that it attaches before all is made; once a probe has run, all is there.
            if self._output.begun:
                if not self._target.is_whole:
                    self.notes.append(f"{error}: what joins the target later is not seen")
                self._target = None

    def _leave_target(self) -> None:
        if self._members is not None:
            members, self._members = self._members, None
            members.close()


class _Output:
    """Makes answers of bpftrace's lines."""

    def __init__(self, prepared: Prepared, version: decode.Version) -> None:
        self._shapes = prepared.shapes
        self._marks = {
            f"{prepared.token} {what}\n": what
            for what in ("begin", "end", "last")
            if prepared.token
        }
        self._version = version
        self._tag = prepared.tag
        self._value_tag = rewrite.value_tag(prepared.tag)
        self._owners = prepared.owners
        self._owned = prepared.owned
        self._rest = b""
        self._inside = ""
        self._lines: list[Line] = []
        self._snapshot: dict[str, MapTable] = {}
        self._entries: dict[str, int] = {}
        self._most_keys = _most_keys(prepared.text)
        self._counts_lines = prepared.counts_lines
        self._written = 0
        self._came = 0
        self.attached = False
        self.begun = False
        self.without_blanks = False
        self.ended = not prepared.token  # without marks it cannot be told
        self.lost: dict[str, int] = {}
        self.full: dict[str, int] = {}

    def feed(self, chunk: bytes) -> Iterator[Answer]:
        """Answers that this piece of output completes."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            event = decode.decode(line, self._version)
            if event is not None:
                yield from self._take(event)
        # Lines are shown as they come; maps have their interval.
        if self._lines and not self._inside:
            yield self._answer(self._snapshot)

    def end(self) -> Answer:
        """The last answer."""
        if event := decode.decode(self._rest, self._version):
            for _ in self._take(event):
                pass
        maps = self._snapshot
        for one in maps.values():
            self._look_for_losses(one)
        if not self.ended:
            self._lose("last_values", 1)
        elif self._counts_lines:
            # Exact, where what bpftrace told until here is not all, and has podscope's marks in it.
            self.lost.pop("events", None)
            self._lose("lines", self._written - self._came)
        return self._answer(maps, last=True)

    def _take(self, event: decode.Event) -> Iterator[Answer]:
        if isinstance(event, decode.Text):
            mark = self._marks.get(event.text)
            if mark is None:
                self._lines.append(self._with_owner(event))
                self._came += 1
                return
            yield from self._pass(mark)
        elif isinstance(event, decode.Value):
            self._lines.append(self._value_with_owner(event))
            self._came += 1
        elif isinstance(event, decode.MapData):
            self._take_map(event)
        elif isinstance(event, decode.Attached):
            self.attached = True
        elif isinstance(event, decode.Lost):
            self._lose("events", event.events)
        elif isinstance(event, decode.HelperError):
            full = event.helper.endswith("map_update_elem") and event.code == _NO_ROOM
            self._lose("map_full" if full else "helper_errors", 1)
        else:
            self._lose("broken_lines", 1)

    def _with_owner(self, line: decode.Text) -> decode.Text:
        if self._owners is None:
            return line
        if not self._tag or not line.text.startswith(self._tag):
            return replace(line, whose=self._owners.only)
        number, _, text = line.text.removeprefix(self._tag).partition(":")
        return decode.Text(text, self._owners.name(int(number)))

    def _value_with_owner(self, line: decode.Value) -> decode.Value:
        if self._owners is None:
            return line
        told = line.value
        if not self._tag or not isinstance(told, list) or told[:1] != [self._value_tag]:
            return replace(line, whose=self._owners.only)
        _, cgroup, *parts = told
        return decode.Value(parts if len(parts) > 1 else parts[0], self._owners.name(int(cgroup)))

    def _pass(self, mark: str) -> Iterator[Answer]:
        if mark == "begin":
            self.begun = True
            self._inside = mark
            self._snapshot = {}
        elif mark == "end":
            self._inside = ""
            for one in self._snapshot.values():
                self._look_for_losses(one)
            yield self._answer(self._snapshot)
        else:
            self.ended = True
            self._inside = mark
            self._snapshot = {}

    def _take_map(self, event: decode.MapData) -> None:
        if event.name == rewrite.CGROUPS:
            return
        if event.name == rewrite.LINES:
            self._written = int(event.entries[0][1])
            return
        try:
            made = table(event, self._shapes.get(event.name), self._version)
        except (KeyError, TypeError, ValueError):
            self._lose("broken_lines", 1)
            return
        self._entries[event.name] = entries(made)
        if event.name in self._owned and self._owners is not None:
            made = self._apart(made, self._owners)
        if self._inside or not self._marks:
            self._snapshot[event.name] = made
        else:
            self._lines.append(made)

    def _apart(self, made: MapTable, owners: Owners) -> MapTable:
        if self._tag:
            return renamed(made, lambda cgroup: owners.name(int(cgroup)))
        return replace(made, keys=tuple((owners.only, *key) for key in made.keys))

    def _answer(self, maps: Mapping[str, MapTable], *, last: bool = False) -> Answer:
        lines, self._lines = tuple(self._lines), []
        return Answer(lines, dict(maps), time.time_ns(), last)

    def _lose(self, reason: str, count: int) -> None:
        if count == 0:
            return
        self.lost[reason] = self.lost.get(reason, 0) + count

    def _look_for_losses(self, one: MapTable) -> None:
        """What a snapshot itself shows: these do not add up from one to the next."""
        if one.keys and self._entries[one.name] >= self._most_keys and one.keys != ((),):
            self.full[one.name] = self._entries[one.name]
        if one.same_keys:
            self.lost["same_keys"] = max(self.lost.get("same_keys", 0), one.same_keys)
        if one.unsplit:
            self.lost["unsplit_keys"] = max(self.lost.get("unsplit_keys", 0), one.unsplit)
        shape = self._shapes.get(one.name)
        if shape is not None and len(one) and blanks_are_lost(shape, self._version):
            self.without_blanks = True


def entries(one: MapTable) -> int:
    """Entries of the kernel's map: a histogram has one for each bucket, statistics have two."""
    if one.kind in HISTOGRAMS:
        return int((one.values > 0).sum())
    return len(one) * (2 if one.kind in STATISTICS else 1)


def _most_keys(text: str) -> int:
    for name in KEYS_SETTINGS:
        if (told := os.environ.get(name, "")).isdigit():
            return int(told)
    try:
        config = parse(text).config or ()
    except ProgramError:
        return _DEFAULT_KEYS
    for setting in config:
        if setting.name.lower() in ("max_map_keys", "bpftrace_max_map_keys"):
            return int(getattr(setting.value, "text", "0")) or _DEFAULT_KEYS
    return _DEFAULT_KEYS
