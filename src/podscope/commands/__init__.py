# SPDX-License-Identifier: Apache-2.0
"""The commands of the ``podscope`` program: one module each, imported only when chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import NamedTuple
from typing import Protocol

if TYPE_CHECKING:
    import argparse


class Command(NamedTuple):
    """A line of ``podscope --help``, and where the command's code is."""

    name: str
    help: str
    module: str


class CommandModule(Protocol):
    """What a module of this package gives."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's flags."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code. Raises PodscopeError."""


# As kubectl-trace has them.
ALIASES = {"log": "logs"}

COMMANDS = (
    Command("up", "watch this machine: live table and Prometheus metrics", "podscope.commands.up"),
    Command("http", "rate, errors and duration by workload, live", "podscope.commands.http"),
    Command("requests", "the request log, one line a request", "podscope.commands.requests"),
    Command("events", "what goes wrong below HTTP, one line an event", "podscope.commands.events"),
    Command("listen", "every listener: queues, limits and drops", "podscope.commands.listen"),
    Command("tcp", "connections: sums, or single events", "podscope.commands.tcp"),
    Command("dns", "DNS lookups by owner, name and response", "podscope.commands.dns"),
    Command("run", "a bpftrace program on a host, or in a cluster", "podscope.commands.run"),
    Command("get", "traces of a cluster or of files, each as one", "podscope.commands.get"),
    Command("attach", "a trace of a cluster, live", "podscope.commands.attach"),
    Command("logs", "what a trace of a cluster has printed", "podscope.commands.logs"),
    Command("delete", "traces of a cluster", "podscope.commands.delete"),
    Command(
        "scripts", "the bpftrace programs that come with podscope", "podscope.commands.scripts"
    ),
    Command("agent", "watch this node of a Kubernetes cluster", "podscope.commands.agent"),
    Command("install", "run the agent on every node of a cluster", "podscope.commands.install"),
    Command("status", "which nodes have an agent that is ready", "podscope.commands.status"),
    Command("uninstall", "remove the agents from a cluster", "podscope.commands.uninstall"),
    Command("sinks", "prepare the servers that rows go to", "podscope.commands.sinks"),
    Command(
        "dashboards", "write dashboards for Grafana and others", "podscope.commands.dashboards"
    ),
    Command(
        "doctor", "what this kernel, these rights and this host allow", "podscope.commands.doctor"
    ),
    Command("version", "versions of podscope, Python and the kernel", "podscope.commands.version"),
)
