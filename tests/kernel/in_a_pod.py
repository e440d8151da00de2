# SPDX-License-Identifier: Apache-2.0
"""A program with no more rights than an agent has in a pod, asked line by line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Programs and maps, and in /proc no process but its own. Before Linux 5.11 it takes another right
# to have memory, which podscope would ask for itself.
COMMAND = (
    "sh", "-c", 'ulimit -l unlimited 2>/dev/null; exec "$@"', "-",
    "unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
    "setpriv", "--inh-caps=-all", "--bounding-set=-all,+cap_38,+cap_39,+net_admin",
)  # fmt: skip


@contextmanager
def in_a_pod(program: str, *arguments: str) -> Iterator[Callable[[str], Any]]:
    """Python code; what is yielded writes a line to it and gives the JSON that it answers.

    It has to answer one empty line first, when it is ready.
    """
    with subprocess.Popen(
        [*COMMAND, sys.executable, "-W", "ignore", "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask(line: str) -> Any:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, "the program in the pod has ended"
            return json.loads(answer)

        try:
            assert process.stdout.readline() == "\n", "the program in the pod has not begun"
            yield ask
        finally:
            process.stdin.close()
            process.wait(30)
