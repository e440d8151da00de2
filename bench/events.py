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
from contextlib import closing
from contextlib import suppress
from typing import Any

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
from podscope.sources.tcp import TcpOptions
from podscope.sources.tcp import TcpSource

ENDS = 2


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
RATED = ("noop", "floor", "tcp")


def main() -> int:
    """Prints the JSON object; 1 if it could not be measured."""
    parser = argparse.ArgumentParser(prog="bench/events", description=__doc__)
    parser.add_argument("--rounds", type=positive, default=5, help="of all variants (5)")
    parser.add_argument("--connections", type=positive, default=3000, help="of each run (3000)")
    args = parser.parse_args()
    try:
        print(lines(measure(args.rounds, args.connections)))
    except (PodscopeError, OSError) as error:
        print(f"events: {error}", file=sys.stderr)
        return 1
    return 0


def measure(rounds: int, connections: int) -> dict[str, Any]:
    """Kernel time of each variant, and what each takes of the rate; medians."""
    ns: dict[str, list[float]] = {name: [] for name in VARIANTS}
    losses: dict[str, list[float]] = {name: [] for name in RATED}
    for number in range(rounds):
        print(f"events: round {number + 1} of {rounds}", file=sys.stderr)
        with variants.run_times():
            for name, make in VARIANTS.items():
                ns[name].append(kernel_ns(make, connections) / connections / ENDS)
        for name in RATED:
            losses[name].append(loss(VARIANTS[name], connections))
    middle = {name: statistics.median(values) for name, values in ns.items()}
    own = {name: value - middle["noop"] for name, value in middle.items()}
    return {
        **{f"{name}_ns": round(value) for name, value in middle.items()},
        "ratio_tcp": round(middle["tcp"] / middle["floor"], 2),
        "ratio_tcp_less_noop": round(own["tcp"] / own["floor"], 2),
        **{
            f"{name}_throughput_loss_pct": round(statistics.median(values), 1)
            for name, values in losses.items()
        },
        "kernel": {name: spread(values) for name, values in ns.items()},
        "throughput": {name: spread(values) for name, values in losses.items()},
    }


def kernel_ns(make: Callable[[], Any], connections: int) -> int:
    """Time in the programs of a variant while connections come and go."""
    with closing(make()) as variant:
        programs = descriptors(variant._object)
        before, _ = variants.run_time(programs)
        storm(connections)
        return variants.run_time(programs)[0] - before


def descriptors(program: BpfObject) -> list[int]:
    """Descriptors of the programs that are loaded."""
    found = []
    for name in program.programs():
        with suppress(PodscopeError):  # it is left out
            found.append(program.program_fd(name))
    return found


def loss(make: Callable[[], Any], connections: int) -> float:
    """How much lower the rate is with a variant, per cent; each is measured twice."""
    rates: dict[bool, float] = {True: 0.0, False: 0.0}
    for watched in (False, True, True, False):
        if not watched:
            rates[watched] += storm(connections)
            continue
        with closing(make()):
            rates[watched] += storm(connections)
    return 100 * (1 - rates[True] / rates[False])


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
