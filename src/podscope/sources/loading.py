# SPDX-License-Identifier: Apache-2.0
"""Which build of a source's programs a kernel takes, and where it is attached."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager

from podscope.errors import PodscopeError
from podscope.kernel.maps import HashMap
from podscope.kernel.objects import BpfObject
from podscope.kernel.objects import LoadError


def load_newest(name: str, prepare: Callable[[BpfObject], None]) -> BpfObject:
    """The newest build that this kernel takes, loaded.

    ``NAME_v2`` does without atomic instructions that return a value (Linux commit 5ffa25502b5a,
    in 5.12), and without an iterator over open files.

    Args:
        name: of the object.
        prepare: sets constants and sizes of maps before the load.

    Raises:
        LoadError: the kernel takes neither.
    """
    try:
        return _load(name, prepare)
    except LoadError as newest:
        if newest.code in (errno.EPERM, errno.EMFILE):  # the other would need as much
            raise
        try:
            return _load(f"{name}_v2", prepare)
        except LoadError:
            raise newest from None  # what the newer one lacks says more


def _load(name: str, prepare: Callable[[BpfObject], None]) -> BpfObject:
    program = BpfObject.open(name)
    try:
        prepare(program)
        return program.load()
    except BaseException:
        program.close()
        raise


@contextmanager
def cgroup_directory(path: str) -> Iterator[int]:
    """Descriptor of a cgroup's directory, for programs to be attached to.

    Raises:
        PodscopeError: there is none.
    """
    try:
        cgroup = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise PodscopeError(
            f"cgroup {path}: {error.strerror}: name a directory below the cgroup v2 mount"
        ) from None
    try:
        yield cgroup
    finally:
        os.close(cgroup)


def executable_of(owners: HashMap, owner: int) -> str:
    """Base name of an owner's executable, from the map ``owners`` of bpf/common/owner.h."""
    found = owners.lookup(owner)
    if found is None:
        return ""
    return bytes(found["executable"]).rstrip(b"\0").decode("utf-8", "backslashreplace")
