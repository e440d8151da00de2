# SPDX-License-Identifier: Apache-2.0
"""A small stack beside the agents: somewhere for rows to go, and Grafana to look at them.

One server of each, with a volume of its own and a password that nobody chose. For a cluster that
has no such servers; where there are some, sinks lead to them.
"""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from podscope import __version__
from podscope.dashboards import files
from podscope.errors import UsageError

Object = dict[str, Any]

NAMES = ("prometheus", "influxdb", "elasticsearch", "grafana")
SECRET = "podscope-stack"
# Where agents have the Secret's keys that are for them.
SECRETS_PATH = "/var/run/secrets/podscope"
# Lasts longer than the agents: uninstall leaves it, unless it is told to purge.
DATA = "podscope.dev/data"
IMAGES = {
    "prometheus": "docker.io/prom/prometheus:v3.5.0",
    "influxdb": "docker.io/library/influxdb:2.7",
    "elasticsearch": "docker.elastic.co/elasticsearch/elasticsearch:8.19.4",
    "grafana": "docker.io/grafana/grafana:11.6.4",
}
PORTS = {"prometheus": 9090, "influxdb": 8086, "elasticsearch": 9200, "grafana": 3000}
RETENTION = "168h"
_SIZES = {"prometheus": "8Gi", "influxdb": "8Gi", "elasticsearch": "10Gi", "grafana": "1Gi"}
_MEMORY = {"prometheus": "1Gi", "influxdb": "1Gi", "elasticsearch": "2Gi", "grafana": "512Mi"}
# By the image: who its program is, and where its data are.
_USERS = {"prometheus": 65534, "influxdb": 1000, "elasticsearch": 1000, "grafana": 472}
_DATA_PATHS = {
    "prometheus": "/prometheus",
    "influxdb": "/var/lib/influxdb2",
    "elasticsearch": "/usr/share/elasticsearch/data",
    "grafana": "/var/lib/grafana",
}
# Keys of the Secret, by server; those of agents among them.
KEYS = {
    "prometheus": (),
    "influxdb": ("influxdb-password", "influxdb-token"),
    "elasticsearch": ("elasticsearch-password",),
    "grafana": ("grafana-password",),
}
AGENT_KEYS = {"influxdb": "influxdb-token", "elasticsearch": "elasticsearch-password"}
ORGANISATION = BUCKET = "podscope"


@dataclass(frozen=True)
class Stack:
    """Which servers, and where."""

    names: tuple[str, ...]
    namespace: str
    cluster: str = ""

    def __contains__(self, name: str) -> bool:
        return name in self.names


def chosen(text: str, namespace: str, cluster: str) -> Stack:
    """The servers of a list with commas. Raises UsageError: no such one, or no use of it."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--with: no such server: {name!r}; choose from {', '.join(NAMES)}")
    if names == ("grafana",):
        others = ", ".join(NAMES[:-1])
        raise UsageError(f"--with: grafana alone has nothing to show: add one of {others}")
    return Stack(names, namespace, cluster)


def sinks(stack: Stack) -> list[Object]:
    """The sinks of the agents. Prometheus needs none: it asks the agents itself."""
    made: list[Object] = []
    if "influxdb" in stack:
        token = {"file": f"{SECRETS_PATH}/{AGENT_KEYS['influxdb']}"}
        made.append({"type": "influxdb", "url": _url("influxdb"), "org": ORGANISATION})
        made[-1] |= {"bucket": BUCKET, "token": token}
    if "elasticsearch" in stack:
        password = {"file": f"{SECRETS_PATH}/{AGENT_KEYS['elasticsearch']}"}
        made.append({"type": "elasticsearch", "url": _url("elasticsearch"), "username": "elastic"})
        made[-1] |= {"password": password, "retention": RETENTION}
    return made


def mount(stack: Stack, pod: Object) -> None:
    """Gives the pod of an agent its keys, beside the user's own."""
    keys = [key for name, key in AGENT_KEYS.items() if name in stack]
    if not keys:
        return
    volume = next(one for one in pod["volumes"] if one["name"] == "secrets")
    own = volume.pop("secret")
    items = [{"key": key, "path": key} for key in keys]
    sources = [
        {"secret": {"name": own["secretName"], "optional": True}},
        {"secret": {"name": SECRET, "items": items}},
    ]
    volume["projected"] = {"sources": sources}


def objects(stack: Stack) -> tuple[Object, ...]:
    """All objects of the stack, in the order of their making."""
    made = [*_rights(stack)] if "prometheus" in stack else []
    made += [one for name in stack.names for one in _configs(name, stack)]
    keys = [key for name in stack.names for key in KEYS[name]]
    if keys:
        made.append(_secret(stack, keys))
    made += [_claim(name, stack) for name in stack.names]
    made += [_service(name, stack) for name in stack.names]
    made += [_workload(name, stack) for name in stack.names]
    return tuple(made)


def _url(name: str) -> str:
    return f"http://podscope-{name}:{PORTS[name]}"


def _about(name: str, stack: Stack, component: str, *, data: bool = False) -> Object:
    labels = {
        **_selector(component),
        "app.kubernetes.io/managed-by": "podscope",
        "app.kubernetes.io/version": __version__,
    }
    labels |= {DATA: "true"} if data else {}
    return {"name": name, "namespace": stack.namespace, "labels": labels}


def _selector(component: str) -> Object:
    return {"app.kubernetes.io/name": "podscope", "app.kubernetes.io/component": component}


def _rights(stack: Stack) -> Iterator[Object]:
    """Prometheus looks for the agents' pods, and for nothing else."""
    name, group = "podscope-prometheus", "rbac.authorization.k8s.io"

    def about() -> Object:
        return _about(name, stack, "prometheus")

    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about()}
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    yield {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": about(), "rules": [rule]}
    yield {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": about(),
        "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": stack.namespace}],
    }


def _configs(name: str, stack: Stack) -> Iterator[Object]:
    if name == "prometheus":
        text = msgspec.yaml.encode(_scraping(stack)).decode()
        yield _config("podscope-prometheus", stack, name, {"prometheus.yml": text})
    if name == "grafana":
        yield _config("podscope-grafana", stack, name, dict(_provisioning(stack)))
        for source in _shown(stack):
            yield _config(f"podscope-dashboards-{source}", stack, name, _dashboards(source))


def _config(name: str, stack: Stack, component: str, data: Mapping[str, str]) -> Object:
    metadata = _about(name, stack, component)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}


def _scraping(stack: Stack) -> Object:
    """The agents of this namespace; ``instance`` is their node."""
    label = "__meta_kubernetes_pod_label_app_kubernetes_io"
    relabel: list[Object] = [
        {"source_labels": [f"{label}_name", f"{label}_component"], "regex": "podscope;agent"},
        {"source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": "metrics"},
    ]
    relabel = [one | {"action": "keep"} for one in relabel]
    relabel.append(
        {"source_labels": ["__meta_kubernetes_pod_node_name"], "target_label": "instance"}
    )
    if stack.cluster:
        relabel.append({"target_label": "k8s_cluster_name", "replacement": stack.cluster})
    found = {"role": "pod", "namespaces": {"names": [stack.namespace]}}
    job = {
        "job_name": "podscope",
        "scrape_interval": "15s",
        "kubernetes_sd_configs": [found],
        "relabel_configs": relabel,
    }
    return {"scrape_configs": [job]}


def _shown(stack: Stack) -> tuple[str, ...]:
    """Data sources of Grafana, by the names that dashboards have for them."""
    languages = {"influxdb": ("flux", "influxql")}
    servers = [name for name in stack.names if name != "grafana"]
    return tuple(one for name in servers for one in languages.get(name, (name,)))


def _provisioning(stack: Stack) -> Iterator[tuple[str, str]]:
    sources = [_DATA_SOURCES[name]() for name in _shown(stack)]
    told = {"apiVersion": 1, "datasources": sources, "prune": True}
    yield "datasources.yaml", msgspec.yaml.encode(told).decode()
    provider = {
        "name": "podscope",
        "folder": "podscope",
        "type": "file",
        "allowUiUpdates": False,
        "options": {"path": "/var/lib/podscope-dashboards"},
    }
    yield (
        "dashboards.yaml",
        msgspec.yaml.encode({"apiVersion": 1, "providers": [provider]}).decode(),
    )


def _prometheus_source() -> Object:
    # The interval of scrapes: $__rate_interval is made of it.
    return _source("prometheus", "prometheus", {"timeInterval": "15s"})


def _flux_source() -> Object:
    options = {"version": "Flux", "organization": ORGANISATION, "defaultBucket": BUCKET}
    made = _source("flux", "influxdb", options)
    return made | {"secureJsonData": {"token": "$INFLUXDB_TOKEN"}}


def _influxql_source() -> Object:
    # The database is the bucket, by the API of version 1, which takes a token as well.
    options = {"version": "InfluxQL", "dbName": BUCKET, "httpHeaderName1": "Authorization"}
    made = _source("influxql", "influxdb", options)
    return made | {"secureJsonData": {"httpHeaderValue1": "Token $INFLUXDB_TOKEN"}}


def _elasticsearch_source() -> Object:
    options = {"index": "podscope-*", "timeField": "@timestamp", "timeInterval": "10s"}
    made = _source("elasticsearch", "elasticsearch", options)
    return made | {
        "basicAuth": True,
        "basicAuthUser": "elastic",
        "secureJsonData": {"basicAuthPassword": "$ELASTICSEARCH_PASSWORD"},
    }


_DATA_SOURCES: Mapping[str, Callable[[], Object]] = {
    "prometheus": _prometheus_source,
    "flux": _flux_source,
    "influxql": _influxql_source,
    "elasticsearch": _elasticsearch_source,
}


def _source(name: str, plugin: str, options: Object) -> Object:
    server = "influxdb" if plugin == "influxdb" else name
    return {
        "name": f"podscope {name}",
        "uid": f"podscope-{name}",
        "type": plugin,
        "access": "proxy",
        "url": _url(server),
        "jsonData": options,
    }


def _dashboards(source: str) -> dict[str, str]:
    """Those of one data source, each with its own as the first choice."""
    before = f"grafana/dashboards/{source}/"
    found = {}
    for path, text in files.files("grafana").items():
        if path.startswith(before):
            made = msgspec.json.decode(text)
            first = made["templating"]["list"][0]
            name = f"podscope {source}"
            first["current"] = {"selected": True, "text": name, "value": f"podscope-{source}"}
            key = f"{source}-{path.removeprefix(before)}"
            found[key] = msgspec.json.encode(made).decode()
    return found


def _secret(stack: Stack, keys: Sequence[str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _about(SECRET, stack, "stack", data=True),
        "type": "Opaque",
        "data": {key: b64encode(secrets.token_urlsafe(24).encode()).decode() for key in keys},
    }


def _claim(name: str, stack: Stack) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _about(f"podscope-{name}", stack, name, data=True),
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": _SIZES[name]}},
        },
    }


def _service(name: str, stack: Stack) -> Object:
    port = {"name": "http", "port": PORTS[name], "targetPort": "http"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _about(f"podscope-{name}", stack, name),
        "spec": {"selector": _selector(name), "ports": [port]},
    }


def _workload(name: str, stack: Stack) -> Object:
    """Databases are StatefulSets: never two at once. Grafana is a Deployment that is replaced."""
    spec: Object = {
        "replicas": 1,
        "selector": {"matchLabels": _selector(name)},
        "template": {
            "metadata": {"labels": _selector(name)},
            "spec": _pod(name, stack),
        },
    }
    metadata = _about(f"podscope-{name}", stack, name)
    if name == "grafana":
        spec["strategy"] = {"type": "Recreate"}
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
    spec["serviceName"] = f"podscope-{name}"
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec}


def _pod(name: str, stack: Stack) -> Object:
    user = _USERS[name]
    configs = _volumes(name, stack)
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": f"podscope-{name}"}}
    mounts: list[Object] = [{"name": "data", "mountPath": _DATA_PATHS[name]}]
    mounts += [{"name": one["name"], "mountPath": path, "readOnly": True} for one, path in configs]
    container: Object = {
        "name": name,
        "image": IMAGES[name],
        "imagePullPolicy": "IfNotPresent",
        "env": _environment(name, stack),
        "ports": [{"name": "http", "containerPort": PORTS[name]}],
        "readinessProbe": _PROBES[name] | {"periodSeconds": 5, "timeoutSeconds": 5},
        "resources": {
            "requests": {"cpu": "50m", "memory": "256Mi"},
            "limits": {"memory": _MEMORY[name]},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    if name == "prometheus":
        container["args"] = [
            "--config.file=/etc/prometheus/prometheus.yml",
            f"--storage.tsdb.path={_DATA_PATHS[name]}",
            f"--storage.tsdb.retention.time={RETENTION}",
        ]
    pod: Object = {
        # Only Prometheus asks the API server.
        "automountServiceAccountToken": name == "prometheus",
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "fsGroup": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [claim, *(one for one, _ in configs)],
    }
    return pod | ({"serviceAccountName": "podscope-prometheus"} if name == "prometheus" else {})


def _volumes(name: str, stack: Stack) -> list[tuple[Object, str]]:
    """Volumes of ConfigMaps, and where they are mounted."""
    if name == "prometheus":
        return [
            ({"name": "config", "configMap": {"name": "podscope-prometheus"}}, "/etc/prometheus")
        ]
    if name != "grafana":
        return []
    found = []
    for what in ("datasources", "dashboards"):
        items = [{"key": f"{what}.yaml", "path": "podscope.yaml"}]
        volume = {"name": what, "configMap": {"name": "podscope-grafana", "items": items}}
        found.append((volume, f"/etc/grafana/provisioning/{what}"))
    sources = [{"configMap": {"name": f"podscope-dashboards-{one}"}} for one in _shown(stack)]
    boards = {"name": "boards", "projected": {"sources": sources}}
    return [*found, (boards, "/var/lib/podscope-dashboards")]


def _environment(name: str, stack: Stack) -> list[Object]:
    if name == "influxdb":
        return [
            _variable("DOCKER_INFLUXDB_INIT_MODE", "setup"),
            _variable("DOCKER_INFLUXDB_INIT_USERNAME", "admin"),
            _from_secret("DOCKER_INFLUXDB_INIT_PASSWORD", "influxdb-password"),
            _from_secret("DOCKER_INFLUXDB_INIT_ADMIN_TOKEN", "influxdb-token"),
            _variable("DOCKER_INFLUXDB_INIT_ORG", ORGANISATION),
            _variable("DOCKER_INFLUXDB_INIT_BUCKET", BUCKET),
            _variable("DOCKER_INFLUXDB_INIT_RETENTION", RETENTION),
            _variable("INFLUXD_REPORTING_DISABLED", "true"),
        ]
    if name == "elasticsearch":
        return [
            _variable("discovery.type", "single-node"),
            # Inside the cluster only; agents and Grafana have a password.
            _variable("xpack.security.enabled", "true"),
            _variable("xpack.security.http.ssl.enabled", "false"),
            # Needs no vm.max_map_count of the node.
            _variable("node.store.allow_mmap", "false"),
            _variable("ES_JAVA_OPTS", "-Xms1g -Xmx1g"),
            _from_secret("ELASTIC_PASSWORD", "elasticsearch-password"),
        ]
    if name == "grafana":
        made = [
            _from_secret("GF_SECURITY_ADMIN_PASSWORD", "grafana-password"),
            _variable("GF_ANALYTICS_REPORTING_ENABLED", "false"),
            _variable("GF_ANALYTICS_CHECK_FOR_UPDATES", "false"),
        ]
        for server, key in AGENT_KEYS.items():
            if server in stack:
                made.append(_from_secret(key.upper().replace("-", "_"), key))
        return made
    return []


def _variable(name: str, value: str) -> Object:
    return {"name": name, "value": value}


def _from_secret(name: str, key: str) -> Object:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": key}}}


def _answers(path: str) -> Object:
    return {"httpGet": {"path": path, "port": "http"}}


_PROBES: Mapping[str, Object] = {
    "prometheus": _answers("/-/ready"),
    "influxdb": _answers("/health"),
    # Its pages ask for the password.
    "elasticsearch": {"tcpSocket": {"port": "http"}},
    "grafana": _answers("/api/health"),
}
