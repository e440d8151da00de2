# SPDX-License-Identifier: Apache-2.0
"""The configuration of ``podscope agent`` and ``podscope up``, and how changes are taken up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import Literal
from typing import Self

import msgspec
from msgspec import Meta

from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.settings import Address
from podscope.settings import Duration
from podscope.settings import Layer
from podscope.settings import Names
from podscope.settings import Share
from podscope.settings import decoded
from podscope.settings import from_yaml
from podscope.settings import settings_of
from podscope.sinks.plugin import Choice

# What a ConfigMap can hold.
MOST_BYTES = 1 << 20
# A file is looked at so often.
LOOK_SECONDS = 1.0
_LIVE = {"live": True}
# Kinds of rows beside HTTP that cost little enough to be watched all the time.
EVENTS = ("oom", "listen", "tcp", "dns")


class Interval(Duration):
    """Time between two batches."""

    LEAST_NS: ClassVar[int] = 100 * 10**6


class Since(Duration):
    """A time that may be none at all."""

    LEAST_NS: ClassVar[int] = 0


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """The settings; ``docs/reference/config.md`` has the same table."""

    listen: Annotated[Address, Meta(description="where /metrics, /healthz and /readyz are")] = (
        Address("127.0.0.1:9435")
    )
    interval: Annotated[Interval, Meta(description="time between updates", extra=_LIVE)] = Interval(
        1
    )
    node: Annotated[str, Meta(description="this node's name; agent only")] = ""
    kubeconfig: Annotated[str, Meta(description="kubeconfig of the cluster; agent only")] = ""
    context: Annotated[str, Meta(description="context of the kubeconfig; agent only")] = ""
    cluster: Annotated[str, Meta(description="k8s.cluster.name of all rows that sinks get")] = ""
    requests: Annotated[
        Literal["none", "errors", "all"], Meta(description="which requests sinks get")
    ] = "none"
    requests_slower: Annotated[
        Since, Meta(description="with requests: those that take longer, too; 0s: not asked for")
    ] = Since(0)
    requests_sample: Annotated[Share, Meta(description="of requests: one in so many")] = Share(1)
    events: Annotated[
        Names, Meta(description="kinds of rows beside HTTP; [] or none: none of them")
    ] = Names(EVENTS)
    traces: Annotated[
        bool, Meta(description="run the traces that podscope run asks for; agent only")
    ] = False
    grace: Annotated[
        Duration, Meta(description="how long sinks may send what is left at the end")
    ] = Duration(5)
    sinks: Annotated[
        tuple[Choice, ...], Meta(description="where rows go beside /metrics", extra=_LIVE)
    ] = ()


def load(file: str, environment: Mapping[str, str], flags: Mapping[str, str]) -> Config:
    """The configuration: flags before variables of the environment before the file.

    Args:
        file: path of the YAML file; empty for none.
        environment: variables such as ``PODSCOPE_INTERVAL``; empty ones do not count.
        flags: values of flags, by name such as ``--interval``.

    Raises:
        UsageError: a mistake in any of them, with its place.
    """
    layer = read_file(file) if file else Layer()
    for one in settings_of(Config):
        if environment.get(one.variable):
            layer = one.layer(environment[one.variable], one.variable).over(layer)
        if one.flag in flags:
            layer = one.layer(flags[one.flag], one.flag).over(layer)
    return decoded(layer, Config)


def read_file(file: str) -> Layer:
    """The settings of a file, as written. Raises UsageError: it cannot be read, or is no YAML."""
    try:
        with open(file, "rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise UsageError(f"{file}: it is larger than {MOST_BYTES >> 10} KiB")
        return from_yaml(raw.decode(), file)
    except OSError as error:
        raise UsageError(f"{file}: cannot read the configuration: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UsageError(f"{file}:{line}: it is not UTF-8") from None


def names(live: bool) -> tuple[str, ...]:
    """Keys whose changes are taken up while podscope runs, or the others."""
    found = []
    for one in msgspec.structs.fields(Config):
        metas = [meta for meta in getattr(one.type, "__metadata__", ()) if isinstance(meta, Meta)]
        if any((meta.extra or {}).get("live") for meta in metas) == live:
            found.append(one.encode_name)
    return tuple(found)


class Follower:
    """Takes up changes of the file, in a thread, from ``with`` to its end.

    What a change is, is asked of the file's contents, so that a file that is written in place,
    renamed over, or behind a symbolic link that now leads elsewhere (as kubelet does with a
    ConfigMap) are all the same. A change is taken up when two looks have seen it.

    Args:
        file: path of the file; empty: nothing is followed.
        now: the configuration that is in force.
        load: reads it again; raises PodscopeError.
        take: gets the configuration with the changes that are safe. Raises PodscopeError if it
            cannot be so, and leaves everything as it was.
        tell: gets one line for each change.
        seconds: the file is looked at so often.
    """

    def __init__(
        self,
        file: str,
        now: Config,
        load: Callable[[], Config],
        take: Callable[[Config], None],
        *,
        tell: Callable[[str], None],
        seconds: float = LOOK_SECONDS,
    ) -> None:
        self._file = file
        self._now = now
        self._seen = now
        self._load = load
        self._take = take
        self._tell = tell
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="podscope-config", daemon=True)
        self._mark: Any = _mark(file)

    def __enter__(self) -> Self:
        if self._file:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        before = self._mark
        while not self._stopped.wait(self._seconds):
            mark = _mark(self._file)
            # Seen twice: what is being written in place is empty, or half there, for a moment.
            if mark != self._mark and mark == before:
                self._mark = mark
                self._changed()
            before = mark

    def _changed(self) -> None:
        try:
            wanted = self._load()
            live = _different(self._now, wanted, names(live=True))
            # Told once, and not again when something else changes.
            news = _different(self._seen, wanted, names(live=False))
            later = _different(self._now, wanted, news)
            if live:
                after = _with(self._now, wanted, live)
                self._take(after)
                self._now = after
            self._seen = wanted
        except PodscopeError as error:
            self._tell(f"{error}; the settings from before stay")
            return
        told = [f"taken up: {', '.join(live)}"] * bool(live)
        told += [f"needs a restart: {', '.join(later)}"] * bool(later)
        if told:
            self._tell(f"{self._file}: {'; '.join(told)}")


def _mark(file: str) -> Any:
    """What is different when the file is; None while it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return stream.read(MOST_BYTES + 1)
    except OSError:
        return None


def _attribute(name: str) -> str:
    return name.replace("-", "_")


def _different(one: Config, other: Config, of: Sequence[str]) -> list[str]:
    pairs = [(name, _attribute(name)) for name in of]
    return [name for name, at in pairs if getattr(one, at) != getattr(other, at)]


def _with(base: Config, other: Config, of: Sequence[str]) -> Config:
    taken: dict[str, Any] = {_attribute(name): getattr(other, _attribute(name)) for name in of}
    return msgspec.structs.replace(base, **taken)
