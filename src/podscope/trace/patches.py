# SPDX-License-Identifier: Apache-2.0
"""Changes that a user wants in the Jobs of a trace: JSON Patch, merge patch, strategic merge."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from podscope.errors import UsageError
from podscope.trace.jobs import Object

# What tells the items of a list apart, by the list's name (the patchMergeKey of a Job's fields in
# k8s.io/api); of several the first that an item has. Other lists are replaced.
_KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort",),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey",),
    "ownerReferences": ("uid",),
}


def load(path: str, kind: str) -> Callable[[Object], Object]:
    """What a patch does to an object.

    Args:
        path: a file in YAML or JSON.
        kind: ``json`` (RFC 6902), ``merge`` (RFC 7396) or ``strategic``, as kubectl has it.

    Raises:
        UsageError: the file cannot be read, or is no such patch.
    """
    try:
        told = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = error.strerror if isinstance(error, OSError) else "neither YAML nor JSON"
        raise UsageError(f"--patch {path}: cannot be read: {said}") from None
    if kind == "json" and isinstance(told, list):
        return lambda made: _json_patched(made, told, path)
    if kind == "json" or not isinstance(told, dict):
        wanted = "a list of operations" if kind == "json" else "an object"
        raise UsageError(f"--patch {path}: a patch of type {kind} is {wanted}")
    strategic = kind == "strategic"
    return lambda made: _merged(copy.deepcopy(made), told, strategic=strategic)


def _json_patched(made: Object, told: list[Any], path: str) -> Object:
    import jsonpatch

    try:
        patched: Object = jsonpatch.JsonPatch(told).apply(made)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError) as error:
        raise UsageError(f"--patch {path}: does not fit a Job: {error}") from None
    return patched


def _merged(old: Any, new: Any, *, strategic: bool) -> Any:
    """MergePatch of RFC 7396; with ``strategic``, lists with keys are merged item by item."""
    if not isinstance(new, dict):
        return new
    made: dict[str, Any] = old if isinstance(old, dict) else {}
    for name, value in new.items():
        if value is None:
            made.pop(name, None)
        elif strategic and isinstance(value, list) and isinstance(made.get(name), list):
            made[name] = _merged_list(name, made[name], value)
        else:
            made[name] = _merged(made.get(name), value, strategic=strategic)
    return made


def _merged_list(name: str, old: list[Any], new: list[Any]) -> list[Any]:
    key = next(
        (one for one in _KEYS.get(name, ()) if all(isinstance(i, dict) and one in i for i in new)),
        "",
    )
    if not key:
        return new
    made = list(old)
    for item in new:
        place = next((n for n, one in enumerate(made) if one.get(key) == item[key]), len(made))
        if item.get("$patch") == "delete":
            del made[place : place + 1]
        else:
            made[place : place + 1] = [
                _merged(made[place] if place < len(made) else {}, item, strategic=True)
            ]
    return made
