# SPDX-License-Identifier: Apache-2.0
"""The objects of an installation: packaged files, with what the user set."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from podscope import __version__
from podscope.config import Config
from podscope.config import read_file
from podscope.deploy import stack
from podscope.errors import UsageError
from podscope.settings import Layer
from podscope.settings import Secret
from podscope.settings import Setting
from podscope.settings import Size
from podscope.settings import decoded
from podscope.settings import from_yaml
from podscope.settings import settings_of

DIRECTORY = Path(__file__).parent
NAMESPACE = "podscope"
# In the order of their making; removed in the opposite one.
FILES = (
    "namespace.yaml",
    "service-account.yaml",
    "cluster-role.yaml",
    "cluster-role-binding.yaml",
    "config-map.yaml",
    "daemon-set.yaml",
)
CONFIG = "config.yaml"
# The manifest says them, or the agent finds them: no setting of a configuration in a cluster.
FIXED = ("listen", "node", "kubeconfig", "context")
NAME_LABEL = "app.kubernetes.io/name"
MANAGED_LABEL = "app.kubernetes.io/managed-by"
VERSION_LABEL = "app.kubernetes.io/version"
MANAGED = {MANAGED_LABEL: "podscope"}
# Of agents that run traces.
TRACES = {"podscope.dev/traces": "true"}
TRACES_MEMORY = "1536Mi"
# Where a pod has its queues on disk.
QUEUES = "/var/lib/podscope"
# Rows that a server never takes, beside each queue: sinks.delivery says it.
REFUSED = 16 << 20
PULL_POLICIES = ("Always", "IfNotPresent", "Never")

Object = dict[str, Any]

_DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_DNS_NAME = rf"{_DNS_LABEL}(\.{_DNS_LABEL})*"
_QUANTITY = r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?"
_SIZE = r"[0-9]+(Mi|Gi|Ti)"
# Of a directory for podscope alone, on a node.
_PLACE = r"(/[A-Za-z0-9_][-A-Za-z0-9_.]*){2,}"
_LABEL_KEY = rf"({_DNS_NAME}/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
_LABEL_VALUE = r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
_CAPABILITIES = r"[A-Z][A-Z_]*(,[A-Z][A-Z_]*)*"


def objects(
    namespace: str = NAMESPACE,
    image: str = "",
    settings: Sequence[str] = (),
    config: str = "",
    *,
    servers: str = "",
) -> tuple[Object, ...]:
    """All objects, in the order in which they are to be made.

    Args:
        namespace: where the agents are to be.
        image: of the agents; empty for the manifest's.
        settings: ``key=value``, of the keys in SETTINGS and of those of the configuration.
        config: file with the configuration of the agents; empty for the manifest's.
        servers: names of servers that are to be made too, with commas, as of `stack.chosen`.

    Raises:
        UsageError: no such key, or a value that cannot be.
    """
    if not re.fullmatch(_DNS_LABEL, namespace):
        raise UsageError(
            f"--namespace: not a name: {namespace!r}; write it in small letters, digits and '-'"
        )
    made = tuple(_read(name) for name in FILES)
    for one in made:
        _label(one["metadata"])
        _place(one, namespace)
    template = made[-1]["spec"]["template"]
    _label(template["metadata"])
    if image:
        template["spec"]["containers"][0]["image"] = image
    texts = _configured(made[-2], config, settings)
    whole = decoded(from_yaml(made[-2]["data"][CONFIG], config or CONFIG), Config)
    if whole.traces:
        _let_trace(template)
    for text in texts:
        _set(template["spec"], text)
    if "hostPath" in _queue(template["spec"]):
        _one_agent_at_a_time(made[-1], texts)
    _check_queues(whole, _queue(template["spec"]))
    _check_secrets(whole)
    if not servers:
        return made
    chosen = stack.chosen(servers, namespace, whole.cluster)
    _send_to(made[-2], stack.sinks(chosen))
    stack.mount(chosen, template["spec"])
    return (*made[:-1], *stack.objects(chosen), made[-1])


def _send_to(config_map: Object, sinks: Sequence[Object]) -> None:
    """Adds sinks to the configuration, and the errors of the request log if it says nothing."""
    if not sinks:
        return
    values = dict(from_yaml(config_map["data"][CONFIG], CONFIG).values)
    values.setdefault("requests", "errors")
    values["sinks"] = [*(values.get("sinks") or ()), *sinks]
    config_map["data"][CONFIG] = msgspec.yaml.encode(values).decode()


def _one_agent_at_a_time(daemon_set: Object, settings: Sequence[str]) -> None:
    """Ends a node's agent before the next one starts: a queue on disk has one owner.

    Raises:
        UsageError: a size is set for queues in the pod.
    """
    if any(text.startswith("queue.size=") for text in settings):
        raise UsageError(
            "--set: queue.size is for queues in the pod: with queue.hostPath, queue.disk of each "
            "sink is the limit"
        )
    daemon_set["spec"]["updateStrategy"]["rollingUpdate"] = {"maxSurge": 0, "maxUnavailable": 1}


def _check_secrets(config: Config) -> None:
    """Raises UsageError for secrets of sinks in variables, which a pod has not."""
    for choice in config.sinks:
        for name, value in msgspec.structs.asdict(choice.settings).items():
            if isinstance(value, Secret) and value.variable:
                key, file = name.replace("_", "-"), f"{stack.SECRETS_PATH}/{value.variable}"
                raise UsageError(
                    f"sinks: {choice.settings.title}: {key}: a pod has no variable "
                    f"{value.variable}: write {{file: {file}}}, and make it a key of the Secret "
                    "podscope-sinks"
                )


def _check_queues(config: Config, volume: Object) -> None:
    """Raises UsageError for queues on disk that a pod has no room for."""
    queues = [one.settings.queue for one in config.sinks if one.settings.queue.disk]
    for queue in queues:
        if not Path(queue.path).is_relative_to(QUEUES) or queue.path == QUEUES:
            raise UsageError(
                f"sinks: queue.path: {queue.path}: in a pod only {QUEUES} can be written: "
                f"write {QUEUES}/NAME"
            )
    if "emptyDir" not in volume:
        return
    quantity = volume["emptyDir"]["sizeLimit"]
    most = sum(queue.disk + REFUSED for queue in queues)
    if most > Size.read(f"{quantity}B"):
        raise UsageError(
            f"sinks: queue.disk: with refused rows, all may take {Size(most)}, and a pod that "
            f"takes more than {quantity} is evicted: add --set queue.size={most // 2**30 + 1}Gi"
        )


def _let_trace(template: Object) -> None:
    """What agents need that run traces: the kernel's list of tracepoints, and memory."""
    template["metadata"]["labels"] |= TRACES
    agent = _agent(template["spec"])
    agent["resources"]["limits"]["memory"] = TRACES_MEMORY
    place = "/sys/kernel/tracing"
    agent["volumeMounts"].append({"name": "tracing", "mountPath": place, "readOnly": True})
    template["spec"]["volumes"].append({"name": "tracing", "hostPath": {"path": place}})


def config_settings() -> tuple[Setting, ...]:
    """Settings of the configuration that ``--set`` knows."""
    return tuple(one for one in settings_of(Config) if one.name not in FIXED)


def _configured(config_map: Object, file: str, settings: Sequence[str]) -> list[str]:
    """Puts the configuration into its ConfigMap; gives back the settings that are not its own."""
    if file:
        decoded(read_file(file), Config)
        config_map["data"][CONFIG] = Path(file).read_text(encoding="utf-8")
    known = {one.name: one for one in config_settings()}
    layer, others = Layer(), []
    for text in settings:
        key, equals, value = text.partition("=")
        if equals and key in known:
            layer = known[key].layer(value, f"--set {key}").over(layer)
        else:
            others.append(text)
    if layer.values:
        below = from_yaml(config_map["data"][CONFIG], file or CONFIG)
        whole = layer.over(below)
        decoded(whole, Config)
        config_map["data"][CONFIG] = msgspec.yaml.encode(whole.values).decode()
    return others


def as_yaml(documents: Sequence[Object]) -> str:
    """The objects as documents of one text."""
    return "---\n".join(msgspec.yaml.encode(one).decode() for one in documents)


def title(one: Object) -> str:
    """``daemonset/podscope-agent``."""
    return f"{one['kind'].lower()}/{one['metadata']['name']}"


def _read(name: str) -> Object:
    return msgspec.yaml.decode((DIRECTORY / name).read_bytes(), type=dict[str, Any])


def _label(metadata: Object) -> None:
    metadata["labels"] |= {**MANAGED, VERSION_LABEL: __version__}


def _place(one: Object, namespace: str) -> None:
    if one["kind"] == "Namespace":
        one["metadata"]["name"] = namespace
    for holder in (one["metadata"], *one.get("subjects", ())):
        if "namespace" in holder:
            holder["namespace"] = namespace


def _set(pod: Object, text: str) -> None:
    key, equals, value = text.partition("=")
    # The key of a label may have dots and slashes.
    group = "nodeSelector.KEY" if key.startswith("nodeSelector.") else key
    if not equals or group not in SETTINGS:
        names = (*SETTINGS, *(one.name for one in config_settings()))
        raise UsageError(
            f"--set: no such setting: {text!r}; write it as key=value, with a key of "
            f"{', '.join(names)}"
        )
    form, example, put = SETTINGS[group]
    if not re.fullmatch(form, value):
        raise UsageError(f"--set: not a value for {key}: {value!r}; write it as {key}={example}")
    put(pod, key, value)


def _agent(pod: Object) -> Object:
    found: Object = pod["containers"][0]
    return found


def _set_pull_policy(pod: Object, _: str, value: str) -> None:
    _agent(pod)["imagePullPolicy"] = value


def _set_pull_secret(pod: Object, _: str, value: str) -> None:
    pod["imagePullSecrets"] = [{"name": value}]


def _set_priority(pod: Object, _: str, value: str) -> None:
    pod["priorityClassName"] = value


def _set_resource(pod: Object, key: str, value: str) -> None:
    _, bound, resource = key.split(".")
    _agent(pod)["resources"].setdefault(bound, {})[resource] = value


def _set_node_selector(pod: Object, key: str, value: str) -> None:
    label = key.removeprefix("nodeSelector.")
    if not re.fullmatch(_LABEL_KEY, label):
        raise UsageError(f"--set: not the key of a label: {label!r}; write nodeSelector.pool=web")
    pod["nodeSelector"][label] = value


def _add_capabilities(pod: Object, _: str, value: str) -> None:
    added = _agent(pod)["securityContext"]["capabilities"]["add"]
    added += [name for name in value.split(",") if name not in added]


def _queue(pod: Object) -> Object:
    found: Object
    (found,) = (one for one in pod["volumes"] if one["name"] == "queue")
    return found


def _set_queue_size(pod: Object, _: str, value: str) -> None:
    _queue(pod)["emptyDir"] = {"sizeLimit": value}


def _set_queue_place(pod: Object, _: str, value: str) -> None:
    volume = _queue(pod)
    volume.pop("emptyDir", None)
    volume["hostPath"] = {"path": value, "type": "DirectoryOrCreate"}


# By key: what a value looks like, an example, and where it goes.
SETTINGS: dict[str, tuple[str, str, Callable[[Object, str, str], None]]] = {
    "imagePullPolicy": ("|".join(PULL_POLICIES), "IfNotPresent", _set_pull_policy),
    "imagePullSecret": (_DNS_NAME, "my-registry", _set_pull_secret),
    "priorityClassName": (_DNS_NAME, "system-node-critical", _set_priority),
    "resources.requests.cpu": (_QUANTITY, "100m", _set_resource),
    "resources.requests.memory": (_QUANTITY, "256Mi", _set_resource),
    "resources.limits.cpu": (_QUANTITY, "1", _set_resource),
    "resources.limits.memory": (_QUANTITY, "1Gi", _set_resource),
    "nodeSelector.KEY": (_LABEL_VALUE, "web", _set_node_selector),
    "queue.size": (_SIZE, "4Gi", _set_queue_size),
    "queue.hostPath": (_PLACE, "/var/lib/podscope", _set_queue_place),
    "capabilities.add": (_CAPABILITIES, "SYS_PTRACE", _add_capabilities),
}
