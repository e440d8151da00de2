# SPDX-License-Identifier: Apache-2.0
"""Descriptors of other processes: pidfd_getfd(2), since Linux 5.6."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_PIDFD_GETFD = 438  # one number for all architectures (Documentation/process/adding-syscalls.rst)


@contextmanager
def process(pid: int) -> Iterator[int]:
    """A pidfd of a process. Raises OSError: it has ended (ESRCH), or the rights are missing."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def taken(pidfd: int, number: int) -> int:
    """A descriptor of one's own for what is open as ``number`` in the process of a pidfd.

    Raises:
        OSError: it is closed by now (EBADF), the process has ended (ESRCH), the rights to trace
            it are missing (EPERM), or the kernel cannot do it (ENOSYS).
    """
    return _checked(
        _libc().syscall(
            ctypes.c_long(_PIDFD_GETFD), ctypes.c_int(pidfd), ctypes.c_int(number), ctypes.c_uint(0)
        )
    )


def option(descriptor: int, name: int) -> int:
    """A socket's option of level SOL_SOCKET. Raises OSError: it is no socket (ENOTSOCK)."""
    value = ctypes.c_int()
    size = ctypes.c_uint(ctypes.sizeof(value))
    _checked(
        _libc().getsockopt(
            descriptor, socket.SOL_SOCKET, name, ctypes.byref(value), ctypes.byref(size)
        )
    )
    return value.value


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library
