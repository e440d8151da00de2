# SPDX-License-Identifier: Apache-2.0
"""What the sources below HTTP cost a short connection on this host: one JSON object on stdout.

Connections are made and closed one after the other on 127.0.0.1, with one byte each way. The
figures are explained in docs/reference/benchmarks.md. Needs root.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import closing
from contextlib import nullcontext
from contextlib import suppress
from typing import Any

import rivals
import variants
from http_engine import lines
from http_engine import positive
from http_engine import spread

from podscope.errors import PodscopeError
from podscope.kernel.objects import BpfObject
from podscope.kernel.probes import find_cgroup2
from podscope.sources.dns import DnsSource
from podscope.sources.listen import ListenSource
from podscope.sources.loading import cgroup_directory
from podscope.sources.oom import OomSource
from podscope.sources.tcp import TcpOptions
from podscope.sources.tcp import TcpSource

ENDS = 2
PAIR_CONNECTIONS = 2000
WARM_UP = 300


class Yardstick:
    """``connections.bpf.o``, attached."""

    def __init__(self, with_entry: int) -> None:
        path = variants.OBJECTS / "connections.bpf.o"
        if not path.exists():
            raise PodscopeError(f"{path} is missing: run make bench-objects")
        self._object = BpfObject(path)
        try:
            self._object.set_constants(with_entry=with_entry)
            self._object.load()
            self._object.attach("state")
            with cgroup_directory(find_cgroup2()) as directory:
                self._object.attach_cgroup("ends", directory)
        except BaseException:
            self._object.close()
            raise

    def close(self) -> None:
        """Detaches the programs."""
        self._object.close()


VARIANTS: dict[str, Callable[[], Any]] = {
    "noop": lambda: Yardstick(0),
    "floor": lambda: Yardstick(1),
    "tcp": lambda: TcpSource(TcpOptions(), ("tcp",)),
    "tcp_life": lambda: TcpSource(TcpOptions(events=("life",)), ("tcp", "tcp_event")),
    "listen": ListenSource,
    "dns": DnsSource,
}


class Always:
    """All that an agent has on beside HTTP."""

    def __init__(self) -> None:
        self._open = ExitStack()
        for make in (OomSource, ListenSource, VARIANTS["tcp"], DnsSource):
            self._open.enter_context(closing(make()))

    def close(self) -> None:
        """Detaches the programs."""
        self._open.close()


# What becomes of rate and CPU is measured of these.
RATED: dict[str, Callable[[], Any]] = {
    **{name: VARIANTS[name] for name in ("noop", "floor", "tcp")},
    "always": Always,
}


def main() -> int:
    """Prints the JSON object; 1 if it could not be measured."""
    parser = argparse.ArgumentParser(prog="bench/events", description=__doc__)
    parser.add_argument("--rounds", type=positive, default=5, help="of all variants (5)")
    parser.add_argument("--connections", type=positive, default=3000, help="of each run (3000)")
    parser.add_argument("--pairs", type=positive, default=12, help="for rate and CPU (12)")
    args = parser.parse_args()
    try:
        print(lines(measure(args.rounds, args.connections) | rated(args.pairs)))
    except (PodscopeError, OSError) as error:
        print(f"events: {error}", file=sys.stderr)
        return 1
    return 0


def measure(rounds: int, connections: int) -> dict[str, Any]:
    """Kernel time of each variant and each rival, medians; why where there is none."""
    ns: dict[str, list[float]] = {name: [] for name in VARIANTS}
    refused: dict[str, str] = {}
    for number in range(rounds):
        print(f"events: round {number + 1} of {rounds}", file=sys.stderr)
        with variants.run_times():
            for name, make in VARIANTS.items():
                ns[name].append(kernel_ns(make, connections) / connections / ENDS)
            for name in [one for one in rivals.NAMES if one not in refused]:
                try:
                    spent = rival_ns(name, connections) / connections / ENDS
                    ns.setdefault(name, []).append(spent)
                except PodscopeError as error:
                    refused[name] = str(error)
    middle = {name: statistics.median(values) for name, values in ns.items()}
    own = {name: value - middle["noop"] for name, value in middle.items()}
    return {
        **{f"{name}_ns": round(value) for name, value in middle.items()},
        "ratio_tcp": round(middle["tcp"] / middle["floor"], 2),
        "ratio_tcp_less_noop": round(own["tcp"] / own["floor"], 2),
        "kernel": {name: spread(values) for name, values in ns.items()},
        "refused": refused,
    }


def rated(pairs: int) -> dict[str, Any]:
    """What each takes of the rate of connections, and adds to their CPU, per cent; medians.

    Pairs are measured within a few seconds and take turns, so that what else the machine does meets
    all of them.
    """
    rates: dict[str, list[float]] = {name: [] for name in RATED}
    more: dict[str, list[float]] = {name: [] for name in RATED}
    for number in range(pairs):
        print(f"events: pair {number + 1} of {pairs}", file=sys.stderr)
        for name, make in RATED.items():
            rate, cpu = pair(make)
            rates[name].append(100 * (1 - rate))
            more[name].append(100 * (cpu - 1))
    return {
        **{
            f"{name}_throughput_loss_pct": round(statistics.median(rates[name]), 1)
            for name in RATED
        },
        **{f"{name}_cpu_pct": round(statistics.median(more[name]), 1) for name in RATED},
        "throughput": {name: quartiles(values) for name, values in rates.items()},
        "cpu": {name: quartiles(values) for name, values in more.items()},
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, and of how many."""
    first, median, third = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    named = {"median": median, "first_quartile": first, "third_quartile": third}
    return {name: round(value, 2) for name, value in named.items()} | {"n": len(values)}


def kernel_ns(make: Callable[[], Any], connections: int) -> int:
    """Time in the programs of a variant while connections come and go."""
    with closing(make()) as variant:
        programs = descriptors(variant._object)
        before, _ = variants.run_time(programs)
        storm(connections)
        return variants.run_time(programs)[0] - before


def rival_ns(name: str, connections: int) -> int:
    """The same of a rival. Raises PodscopeError: it does not run here."""
    with closing(rivals.Rival(name)) as rival:
        before = rival.kernel_ns()
        storm(connections)
        return rival.kernel_ns() - before


def descriptors(program: BpfObject) -> list[int]:
    """Descriptors of the programs that are loaded."""
    found = []
    for name in program.programs():
        with suppress(PodscopeError):  # it is left out
            found.append(program.program_fd(name))
    return found


def pair(make: Callable[[], Any]) -> tuple[float, float]:
    """Rate of connections with a variant over that without, and CPU of one likewise."""
    rates = {True: 0.0, False: 0.0}
    cpu = {True: 0.0, False: 0.0}
    for watched in (False, True, True, False):
        with closing(make()) if watched else nullcontext():
            storm(WARM_UP)
            begun = time.process_time()
            rates[watched] += storm(PAIR_CONNECTIONS)
            cpu[watched] += time.process_time() - begun
    return rates[True] / rates[False], cpu[True] / cpu[False]


def storm(connections: int) -> float:
    """Makes and closes connections one after the other; how many a second."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        server = threading.Thread(target=serve, args=(listener, connections))
        server.start()
        begun = time.monotonic()
        for _ in range(connections):
            with socket.create_connection(listener.getsockname()) as client:
                client.send(b"x")
                client.recv(1)
        server.join()
        return connections / (time.monotonic() - begun)


def serve(listener: socket.socket, connections: int) -> None:
    """Takes a byte of each connection, gives one back, and closes it."""
    for _ in range(connections):
        with listener.accept()[0] as end:
            end.recv(1)
            end.send(b"y")


if __name__ == "__main__":
    sys.exit(main())
