# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces and what lies between them: a veth pair, or a wire with weather.

The wire is two TUN devices and a thread that carries their packets: it loses, doubles, holds
back and damages them by a seeded rule, on any kernel with TUN, also where netem is missing.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import re
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from typing import TypeVar

from .peers import Family
from .peers import Pair
from .peers import connect
from .peers import listen

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 0x01, 0x02, 0x04
VNET_HEADER = 10
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

V4 = Family("v4", (socket.AF_INET, "10.77.0.2"), (socket.AF_INET, "10.77.0.2"))
V6 = Family("v6", (socket.AF_INET6, "fd77::2"), (socket.AF_INET6, "fd77::2"))


def missing_tools(*tools: str) -> str:
    """Why the tests of links can't run, or an empty string."""
    packages = {"ip": "iproute2", "tc": "iproute2", "ethtool": "ethtool"}
    absent = [tool for tool in tools if shutil.which(tool) is None]
    if not absent:
        return ""
    return f"{absent[0]} is not installed: apt install {packages[absent[0]]}"


def command(*words: str) -> None:
    """Runs a command; its error text is in the exception."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")


def inside(namespace: str, function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function in a network namespace, in a thread of its own."""
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with open(f"/run/netns/{namespace}") as handle:
                if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {namespace}")
            results.append(function(*arguments))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


@dataclass(frozen=True)
class Link:
    """Client and server live in a namespace each, at these device names."""

    client: str
    server: str
    device: str

    def listen(self, family: Family = V4) -> socket.socket:
        """A listener on the server's side."""
        return inside(self.server, listen, family)

    def connect(self, listener: socket.socket, family: Family = V4) -> Pair:
        """A connection from the client's side."""
        return connect(listener, family, partial(inside, self.client, socket.socket))

    def each(self, *words: str) -> None:
        """Runs a command in both namespaces; ``{}`` stands for the device."""
        for namespace in (self.client, self.server):
            line = [word.replace("{}", self.device) for word in words]
            command("ip", "netns", "exec", namespace, *line)


def _remove_left() -> None:
    """Removes namespaces of test runs that were killed."""
    for path in Path("/run/netns").glob("ps*x*"):
        found = re.fullmatch(r"ps(\d+)x\d+[cs]", path.name)
        if found and not Path("/proc", found[1]).exists():
            with suppress(RuntimeError):
                command("ip", "netns", "del", path.name)


@contextmanager
def _namespaces() -> Iterator[Link]:
    _remove_left()
    mark = f"ps{os.getpid()}x{random.SystemRandom().randrange(10**6)}"
    link = Link(f"{mark}c", f"{mark}s", "w0")
    with ExitStack() as stack:
        for name in (link.client, link.server):
            command("ip", "netns", "add", name)
            stack.callback(command, "ip", "netns", "del", name)
            command("ip", "-n", name, "link", "set", "lo", "up")
        yield link


def _addresses(link: Link, mtu: int) -> None:
    for name, host in ((link.client, 1), (link.server, 2)):
        ip = partial(command, "ip", "-n", name)
        ip("link", "set", link.device, "mtu", str(mtu), "up")
        ip("addr", "add", f"10.77.0.{host}/24", "dev", link.device)
        ip("-6", "addr", "add", f"fd77::{host}/64", "dev", link.device, "nodad")
        # A lost segment is sent again soon, so that tests with loss are short.
        ip("route", "replace", "10.77.0.0/24", "dev", link.device, "rto_min", "20ms")
        ip("-6", "route", "replace", "fd77::/64", "dev", link.device, "rto_min", "20ms")


@contextmanager
def veth(mtu: int = 1500) -> Iterator[Link]:
    """Two namespaces with a veth pair between them."""
    with _namespaces() as link:
        command(
            "ip", "link", "add", link.device, "netns", link.client, "type", "veth",
            "peer", "name", link.device, "netns", link.server,
        )  # fmt: skip
        _addresses(link, mtu)
        yield link


@dataclass(frozen=True)
class Packet:
    """A packet on the wire. ``number`` counts those with the same direction and port pair."""

    data: bytes
    to_server: bool
    flags: int
    payload: int
    sequence: int
    number: int
    at: int  # where the payload begins in ``data``

    def again(self, data: bytes) -> Packet:
        return Packet(
            data, self.to_server, self.flags, self.payload, self.sequence, self.number, self.at
        )


# What becomes of a packet: what goes on, each after so many seconds.
Rule = Callable[[Packet], list[tuple[float, bytes]]]


def pass_on(packet: Packet) -> list[tuple[float, bytes]]:
    """Fair weather."""
    return [(0.0, packet.data)]


@dataclass(frozen=True)
class Weather:
    """Shares of packets that are lost, doubled, held back; and the delay of all, in seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    seed: int = 1

    def rule(self) -> Rule:
        """A rule with its own sequence of chances; it spares SYN, whose timer is a second."""
        chance = random.Random(self.seed)

        def decide(packet: Packet) -> list[tuple[float, bytes]]:
            lost, doubled, held = (chance.random() for _ in range(3))
            if packet.flags & SYN:
                return [(self.delay, packet.data)]
            if lost < self.loss:
                return []
            late = self.delay + (0.003 if held < self.reorder else 0.0)
            out = [(late, packet.data)]
            if doubled < self.duplicate:
                out.append((late + 0.002 * chance.random(), packet.data))
            return out

        return decide


class Wire:
    """Carries packets between two TUN devices until it is closed."""

    def __init__(self, client: int, server: int, header: int) -> None:
        self.rule: Rule = pass_on
        self.errors: list[BaseException] = []
        self._ends = {client: server, server: client}
        self._client = client
        self._header = header
        self._numbers: dict[tuple[bytes, bool], int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._guarded, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        for end in self._ends:
            os.close(end)

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.errors.append(error)

    def _run(self) -> None:
        poll = select.poll()
        for end in self._ends:
            poll.register(end, select.POLLIN)
        waiting: list[tuple[float, int, int, bytes]] = []
        order = 0
        while not self._stop.is_set():
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, end, data = heapq.heappop(waiting)
                self._put(end, data)
            pause = min(waiting[0][0] - now, 0.05) if waiting else 0.05
            for end, _ in poll.poll(max(0, pause * 1000)):
                data = os.read(end, 1 << 17)
                other = self._ends[end]
                for delay, out in self._decide(end, data):
                    if delay <= 0 and not waiting:
                        self._put(other, out)
                        continue
                    order += 1
                    heapq.heappush(waiting, (time.monotonic() + delay, order, other, out))

    def _decide(self, end: int, data: bytes) -> list[tuple[float, bytes]]:
        packet = self._parse(data, end == self._client)
        return self.rule(packet) if packet else [(0.0, data)]

    def _put(self, end: int, data: bytes) -> None:
        try:
            os.write(end, data)
        except OSError:
            # The device refuses (its queue is full, or it goes down): the packet is lost.
            return

    def _parse(self, data: bytes, to_server: bool) -> Packet | None:
        at = self._header
        version = data[at] >> 4
        if version == 4 and data[at + 9] == socket.IPPROTO_TCP:
            tcp = at + (data[at] & 15) * 4
        elif version == 6 and data[at + 6] == socket.IPPROTO_TCP:
            tcp = at + 40
        else:
            return None
        payload = tcp + (data[tcp + 12] >> 4) * 4
        ports = data[tcp : tcp + 4]
        number = self._numbers[ports, to_server] = self._numbers.get((ports, to_server), -1) + 1
        return Packet(
            data=data,
            to_server=to_server,
            flags=data[tcp + 13],
            payload=len(data) - payload,
            sequence=struct.unpack_from("!I", data, tcp + 4)[0],
            number=number,
            at=payload,
        )


def _tun(device: str, offload: bool) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    flags = IFF_TUN | IFF_NO_PI | (IFF_VNET_HDR if offload else 0)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
    if offload:
        fcntl.ioctl(end, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
        fcntl.ioctl(end, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    os.set_blocking(end, False)
    return end


@contextmanager
def wire(mtu: int = 1500, *, offload: bool = False) -> Iterator[tuple[Link, Wire]]:
    """Two namespaces with a wire between them.

    Args:
        offload: packets of up to 64 KB travel whole, as with segmentation offload.
    """
    with _namespaces() as link:
        ends = [inside(name, _tun, link.device, offload) for name in (link.client, link.server)]
        line = Wire(*ends, header=VNET_HEADER if offload else 0)
        try:
            _addresses(link, mtu)
            yield link, line
        finally:
            line.close()
        assert not line.errors, line.errors


def has_netem(link: Link) -> bool:
    """Does this kernel have netem? A module is loaded by tc where there is one."""
    try:
        link.each("tc", "qdisc", "add", "dev", "{}", "root", "netem", "delay", "1ms")
        link.each("tc", "qdisc", "del", "dev", "{}", "root")
    except RuntimeError:
        return False
    return True
