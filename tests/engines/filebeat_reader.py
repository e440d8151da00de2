# SPDX-License-Identifier: Apache-2.0
"""What Filebeat does with a configuration of podscope's: autodiscover, container logs, bulks.

It knows what these configurations use: conditions on labels, the filestream input with the parser
``container``, and the settings ``index`` and ``pipeline`` of inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Object = dict[str, Any]
CONTAINER = "${data.kubernetes.container.id}"


@dataclass(frozen=True)
class Pod:
    """A pod with one container, as autodiscover is told of it."""

    name: str
    labels: dict[str, str]
    container_id: str
    node: str = "node-1"

    @property
    def metadata(self) -> Object:
        """What Filebeat adds to events; dots in labels are underscores (``labels.dedot``)."""
        labels = {key.replace(".", "_"): value for key, value in self.labels.items()}
        pod = {"name": self.name, "uid": f"uid-{self.name}"}
        return {"namespace": "podscope", "pod": pod, "node": {"name": self.node}, "labels": labels}


def bulks(config: Object, pods: list[Pod], root: Path) -> Iterator[tuple[str, str, bytes]]:
    """Pipeline, index and body of what is sent of each pod's logs, which are below ``root``."""
    (provider,) = config["filebeat.autodiscover"]["providers"]
    for pod in pods:
        for template in provider["templates"]:
            if not holds(template["condition"], pod):
                continue
            for one in template["config"]:
                told = [*events(one, pod, root)]
                if told:
                    yield one["pipeline"], one["index"], body(told)


def holds(condition: Object, pod: Pod) -> bool:
    """Whether a condition does."""
    ((word, told),) = condition.items()
    if word == "equals":
        ((field, value),) = told.items()
        return pod.metadata["labels"].get(field.removeprefix("kubernetes.labels.")) == value
    return {"and": all, "or": any}[word](holds(one, pod) for one in told)


def events(config: Object, pod: Pod, root: Path) -> Iterator[Object]:
    """What the input makes of the lines of a pod's logs."""
    assert config["type"] == "filestream" and CONTAINER in config["id"]
    (parser,) = config["parsers"]
    for pattern in config["paths"]:
        for file in sorted(root.glob(pattern.replace(CONTAINER, pod.container_id).lstrip("/"))):
            path = f"/{file.relative_to(root)}"
            for offset, stream, time, text in container_lines(file.read_bytes()):
                if stream == parser["container"]["stream"]:
                    yield {
                        "@timestamp": time,
                        "message": text,
                        "stream": stream,
                        "log": {"offset": offset, "file": {"path": path}},
                        "container": {"id": pod.container_id, "runtime": "containerd"},
                        "kubernetes": pod.metadata,
                        "host": {"name": "filebeat-abcde"},
                        "agent": {"type": "filebeat", "version": "8.19.0"},
                        "ecs": {"version": "8.0.0"},
                        "input": {"type": "filestream"},
                    }


def container_lines(raw: bytes) -> Iterator[tuple[int, str, str, str]]:
    """Lines of a log of the CRI: where one begins, its stream, time and text; parts are joined."""
    offset, parts, begin = 0, "", 0
    for line in raw.splitlines(keepends=True):
        time, stream, tag, text = line.decode().rstrip("\n").split(" ", 3)
        begin = begin if parts else offset
        parts += text
        offset += len(line)
        if tag == "F":
            yield begin, stream, time, parts
            parts = ""


def body(told: list[Object]) -> bytes:
    """A bulk of events, which are created."""
    lines = [part for one in told for part in ({"create": {}}, one)]
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()
