# SPDX-License-Identifier: Apache-2.0
"""What a trace on one host is confined to: units, containers, pods, processes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from podscope.errors import UsageError
from podscope.identity.cgroup_layouts import container_of

FORMS = "unit/nginx.service, container/ID, pod/UID or pid/N"
_ON_HOST = ("unit", "container", "pid")
# As Kubernetes makes them, and the kubelet for static pods: a pod of this host.
_UID = re.compile(r"pod/([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})")
_SUFFIXES = (".service", ".scope", ".slice")
# Of a container's id: fewer are too likely to be another's.
_LEAST_DIGITS = 4


@dataclass(frozen=True)
class HostTarget:
    """A part of this host.

    Attributes:
        text: as the user named it.
        directories: cgroups of version 2, with all that is below them; empty for processes.
        pids: of processes; empty for a target of cgroups.
        missing: why parts of it were not found, where that is no error.
        is_whole: whether nothing is expected to join it: it is made of containers.
    """

    text: str
    directories: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    is_whole: bool = False

    def cgroups(self) -> dict[int, str]:
        """Ids of all cgroups of the target as it is now, with their directories.

        The id of a cgroup is the inode of its directory (kernfs_get_inode in fs/kernfs/inode.c).
        """
        found = {}
        for top in self.directories:
            for directory in _below(top):
                with suppress(OSError):
                    found[os.stat(directory).st_ino] = directory
        return found

    def first_pid(self) -> int:
        """A process of the target, that with the least number: its first one.

        Raises:
            UsageError: none runs.
        """
        pids = [*self.all_pids()]
        if not pids:
            raise UsageError(f"{self.text}: no process runs there, $container_pid has no value")
        return min(pids)

    def all_pids(self) -> Iterator[int]:
        """Processes of the target, as they are now."""
        yield from self.pids
        for directory in self.cgroups().values():
            yield from _processes(directory)


def find(text: str, root: str) -> HostTarget:
    """The target that a user names.

    Args:
        text: as ``unit/nginx.service``, ``container/4f1c``, ``pid/300``.
        root: where cgroup v2 is mounted.

    Raises:
        UsageError: it is no target, there is none of that name, or more than one.
    """
    kind, slash, name = text.partition("/")
    if slash and name and kind == "pid":
        return _process(text, name)
    if slash and name and kind in ("unit", "service"):
        return _unit(text, name, root)
    if slash and name and kind == "pod":
        return _pod(text, name, root)
    if slash and name and kind == "container":
        return _container(text, name, root)
    raise UsageError(f"TARGET: not a target on this host: {text!r}; write it as {FORMS}")


def is_on_host(word: str) -> bool:
    """Whether a target is of this host, and not of a cluster."""
    return word.partition("/")[0] in _ON_HOST or _UID.fullmatch(word) is not None


def find_all(texts: Sequence[str], root: str) -> HostTarget:
    """Several targets as one.

    Raises:
        UsageError: as ``find``; or processes and cgroups are mixed, which are told apart in
            different ways.
    """
    return together([find(text, root) for text in texts])


def find_some(names: Mapping[str, str], root: str) -> dict[str, HostTarget]:
    """Targets by what each is called; those that are gone have no directories, and say so.

    Args:
        names: of targets, by their text.
        root: where cgroup v2 is mounted.

    Raises:
        UsageError: none is there.
    """
    found: dict[str, HostTarget] = {}
    gone: dict[str, UsageError] = {}
    for text, name in names.items():
        try:
            one = find(text, root)
        except UsageError as error:
            gone[name] = error
            continue
        found[name] = together([found[name], one]) if name in found else one
    if not found:
        raise next(iter(gone.values()))
    return found | {
        name: HostTarget(name, missing=(f"{name}: {error}",))
        for name, error in gone.items()
        if name not in found
    }


def together(found: Sequence[HostTarget]) -> HostTarget:
    """Several targets as one; raises UsageError where they do not go together."""
    directories = tuple(dict.fromkeys(one for target in found for one in target.directories))
    pids = tuple(dict.fromkeys(pid for target in found for pid in target.pids))
    text = " ".join(one.text for one in found)
    if pids and directories:
        raise UsageError(f"TARGET: {text}: processes and others do not go together")
    missing = tuple(why for one in found for why in one.missing)
    is_whole = all(one.is_whole for one in found if one.directories)
    return HostTarget(text, directories, pids, missing, is_whole)


def _process(text: str, name: str) -> HostTarget:
    if not name.isascii() or not name.isdigit() or int(name) == 0:
        raise UsageError(f"TARGET: {text}: not a process id; write it as pid/300")
    if not os.path.isdir(f"/proc/{int(name)}"):
        raise UsageError(f"TARGET: {text}: there is no process {name}")
    return HostTarget(text, pids=(int(name),))


def _unit(text: str, name: str, root: str) -> HostTarget:
    full = name if name.endswith(_SUFFIXES) else f"{name}.service"
    found = [one for one in _below(root) if os.path.basename(one) == full]
    if not found:
        raise UsageError(f"TARGET: {text}: no unit {full!r} runs on this host")
    return HostTarget(text, tuple(found))


def _pod(text: str, uid: str, root: str) -> HostTarget:
    """A pod's own cgroup, so that containers which start later are in it."""
    found = [one for one in _below(root) if _pod_uid(one.removeprefix(root)) == uid]
    if not found:
        raise UsageError(f"TARGET: {text}: no pod with this UID has a cgroup on this host")
    least = min(one.count("/") for one in found)
    return HostTarget(text, tuple(one for one in found if one.count("/") == least))


def _pod_uid(path: str) -> str:
    told = container_of(path)
    return "" if told is None else told.pod_uid


def _container(text: str, name: str, root: str) -> HostTarget:
    if len(name) < _LEAST_DIGITS:
        raise UsageError(f"TARGET: {text}: give {_LEAST_DIGITS} digits of the id or more")
    found: dict[str, list[str]] = {}
    for directory in _below(root):
        told = container_of(directory.removeprefix(root))
        if told is not None and told.container_id.startswith(name):
            found.setdefault(told.container_id, []).append(directory)
    if not found:
        raise UsageError(
            f"TARGET: {text}: no container with this id has a cgroup of version 2 on this host"
        )
    if len(found) > 1:
        some = ", ".join(one[:12] for one in sorted(found)[:5])
        raise UsageError(f"TARGET: {text}: more than one container: {some}; give more of the id")
    ((_, directories),) = found.items()
    return HostTarget(text, (min(directories, key=len),), is_whole=True)


def _below(top: str) -> Iterator[str]:
    for directory, _, _ in os.walk(top):
        yield directory


def _processes(directory: str) -> list[int]:
    try:
        return [int(line) for line in Path(directory, "cgroup.procs").read_text().split()]
    except OSError:
        return []
