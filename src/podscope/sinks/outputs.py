# SPDX-License-Identifier: Apache-2.0
"""All sinks together: each gets every batch, and none waits for another."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Self

from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.sinks.delivery import Counts
from podscope.sinks.delivery import Delivery
from podscope.sinks.plugin import Choice
from podscope.sinks.plugin import Sink

if TYPE_CHECKING:
    from podscope.batch import Batch

# Name, type, whether it is counted by reason of the drop, and what it means.
METRICS = (
    ("podscope_sink_sent_rows", "counter", "Rows that a sink has delivered."),
    ("podscope_sink_dropped_rows", "counter", "Rows that a sink has not delivered, by reason."),
    ("podscope_sink_retries", "counter", "Times that a sink had to wait and send again."),
    ("podscope_sink_queued_rows", "gauge", "Rows that wait to be sent."),
    ("podscope_sink_queue_memory_bytes", "gauge", "Rows that wait, in memory."),
    ("podscope_sink_queue_disk_bytes", "gauge", "Rows that wait, on disk."),
)


class Outputs:
    """The sinks of a configuration. Use it in a ``with``.

    Args:
        choices: the sinks and their settings.
        resource: what all rows have in common, as ``host.name``.
        kinds: kinds of rows that there may be.
        grace: seconds that sinks have at the end to send what is left.
        tell: gets a line when a sink begins to fail, and when it works again.

    Raises:
        PodscopeError: two sinks of one name, an unknown kind, or a sink that cannot work so.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        resource: Mapping[str, str],
        kinds: Sequence[str],
        *,
        grace: float,
        tell: Callable[[str], None],
    ) -> None:
        self._resource = dict(resource)
        # Losses are rows wherever something can be lost.
        self._kinds = (*kinds, "lost")
        self._grace = grace
        self._tell = tell
        self._all: dict[str, Delivery] = {}
        self._gone: list[Delivery] = []
        self._check(choices)
        self._open(choices, self._made(choices))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(self._all.values())

    def put(self, batch: Batch) -> None:
        """Gives a batch to every sink; waits for none."""
        for one in list(self._all.values()):
            one.put(batch)

    def follow(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, each given to every sink."""
        for batch in batches:
            self.put(batch)
            yield batch

    def take(self, choices: Sequence[Choice]) -> None:
        """Changes to other sinks; those whose settings stay the same go on undisturbed.

        Raises:
            PodscopeError: as for the class. Where a sink cannot be made, those from before go on;
                where its queue on disk cannot be had, it alone is missing.
        """
        self._check(choices)
        now = {name: one.settings for name, one in self._all.items()}
        fresh = [one for one in choices if now.get(one.settings.title) != one.settings]
        made = self._made(fresh)
        stay = {one.settings.title for one in choices} - {one.settings.title for one in fresh}
        before = [one for name, one in self._all.items() if name not in stay]
        # A queue on disk belongs to one at a time: the old ones end first.
        self._all = {name: one for name, one in self._all.items() if name in stay}
        self._close(before)
        self._gone += before
        self._open(fresh, made)

    def expose(self, *, openmetrics: bool) -> bytes:
        """Metrics of the sinks, as text 0.0.4 or OpenMetrics 1.0; empty if there are none."""
        states = {name: one.state() for name, one in self._all.items()}
        if not states:
            return b""
        parts = []
        for name, kind, text in METRICS:
            family = f"{name}_total" if kind == "counter" else name
            head = (name, name) if openmetrics else (family, family)
            parts.append(f"# HELP {head[0]} {text}\n# TYPE {head[1]} {kind}\n")
            parts += [f"{family}{{{labels}}} {value}\n" for labels, value in _samples(name, states)]
        return "".join(parts).encode()

    def summary(self) -> Iterator[str]:
        """A line for each sink, for the end."""
        for one in (*self._gone, *self._all.values()):
            lost = one.lost_text or "nothing lost"
            yield f"sink {one.settings.title}: {one.counts.sent} rows sent; {lost}"

    def _check(self, choices: Sequence[Choice]) -> None:
        titles = [choice.settings.title for choice in choices]
        for title in titles:
            if titles.count(title) > 1:
                raise UsageError(f"sinks: two are called {title!r}: give one another name")
        for choice in choices:
            for kind in choice.settings.kinds:
                if kind not in self._kinds:
                    raise UsageError(
                        f"sinks: {choice.settings.title}: kinds: there will be no rows of kind "
                        f"{kind!r}: choose from {', '.join(self._kinds)}, or set requests or events"
                    )

    def _made(self, choices: Sequence[Choice]) -> list[Sink]:
        made: list[Sink] = []
        for choice in choices:
            try:
                made.append(choice.sink(choice.settings))
            except PodscopeError as error:
                for one in made:
                    one.close()
                raise type(error)(f"sink {choice.settings.title}: {error}") from None
        return made

    def _open(self, choices: Sequence[Choice], made: Sequence[Sink]) -> None:
        failed: PodscopeError | None = None
        for choice, sink in zip(choices, made, strict=True):
            title = choice.settings.title
            try:
                self._all[title] = Delivery(sink, choice.settings, self._resource, self._tell)
            except PodscopeError as error:
                sink.close()
                failed = type(error)(f"sink {title}: {error}")
        if failed is not None:
            raise failed

    def _close(self, some: Iterable[Delivery]) -> None:
        deliveries = list(some)
        for one in deliveries:
            one.stop(self._grace)
        for one in deliveries:
            one.join()


def _samples(name: str, states: Mapping[str, Counts]) -> Iterator[tuple[str, int]]:
    for sink, counts in states.items():
        label = f'sink="{_escaped(sink)}"'
        if name == "podscope_sink_dropped_rows":
            for reason, count in counts.dropped.items():
                yield f'{label},reason="{reason}"', count
        else:
            yield label, _VALUES[name](counts)


_VALUES: Mapping[str, Callable[[Counts], int]] = {
    "podscope_sink_sent_rows": lambda counts: counts.sent,
    "podscope_sink_retries": lambda counts: counts.retries,
    "podscope_sink_queued_rows": lambda counts: counts.queued,
    "podscope_sink_queue_memory_bytes": lambda counts: counts.queued_bytes,
    "podscope_sink_queue_disk_bytes": lambda counts: counts.disk_bytes,
}


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
