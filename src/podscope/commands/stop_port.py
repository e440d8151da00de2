# SPDX-License-Identifier: Apache-2.0
"""Ends this process as Ctrl-C does, when somebody connects to a port of its loopback address."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import suppress
from typing import Self

from podscope.errors import PodscopeError

HOST = "127.0.0.1"


class StopPort:
    """A thread that listens. Use it in a ``with``.

    Raises:
        PodscopeError: the port is in use.
    """

    def __init__(self, port: int) -> None:
        try:
            self._listener = socket.create_server((HOST, port), reuse_port=False)
        except (OSError, OverflowError) as error:
            raise PodscopeError(f"--stop-port {port}: cannot be listened on: {error}") from None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            os.kill(os.getpid(), signal.SIGINT)
            with connection, suppress(OSError):
                connection.sendall(b"ok\n")
