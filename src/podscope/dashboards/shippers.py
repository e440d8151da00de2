# SPDX-License-Identifier: Apache-2.0
"""Rows that travel as container logs: what Filebeat looks for, and what a server makes of them.

All names come from one place: the label of a pod is that of a pipeline, and the pipeline knows the
data stream and the types. https://www.elastic.co/docs/reference/beats/filebeat
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

from podscope.dashboards.panels import Object
from podscope.schema import Field
from podscope.schema_metrics import SUMS
from podscope.sinks import elastic_templates as templates
from podscope.sinks.elastic_templates import Asset
from podscope.trace import jobs
from podscope.trace import scripts
from podscope.trace.jobs import ROWS_LABEL

# elastic-kube-trace's label of pods, whose value is the name of a script.
OLDER_LABEL = "bpfpipe"
AGENT_PIPELINE = "podscope-rows"
UNREAD = "unread"
_AGENT = {"app.kubernetes.io/name": "podscope", "app.kubernetes.io/component": "agent"}
_LONG, _WORD, _ADDRESS, _SECONDS = "long", "keyword", "ip", "double"
# Columns of the scripts: what they are called in documents, the type, and by what to multiply.
COLUMNS: Mapping[str, tuple[str, str, float]] = {
    "time": ("@timestamp", "date_nanos", 1000),
    "pid": ("process.pid", _LONG, 1),
    "tid": ("process.thread.id", _LONG, 1),
    "program": ("process.name", _WORD, 0),
    "cpu": ("podscope.cpu", _LONG, 1),
    # Numbers of 64 bits, of which none is negative.
    "cgroup": ("podscope.cgroup.id", _WORD, 0),
    "socket": ("podscope.socket", _WORD, 0),
    "saddr": ("network.local.address", _ADDRESS, 0),
    "sport": ("network.local.port", _LONG, 1),
    "daddr": ("network.peer.address", _ADDRESS, 0),
    "dport": ("network.peer.port", _LONG, 1),
    "qlen": ("podscope.listen.accept_queue", _LONG, 1),
    "ack_backlog": ("podscope.listen.accept_queue", _LONG, 1),
    "qmax": ("podscope.listen.limit", _LONG, 1),
    "tx_bytes": ("podscope.tcp.sent", _LONG, 1),
    "rx_bytes": ("podscope.tcp.received", _LONG, 1),
    "duration_us": (templates.EVENT_DURATION, _LONG, 1000),
    "took_us": (templates.EVENT_DURATION, _LONG, 1000),
    "lived_ms": (templates.EVENT_DURATION, _LONG, 1_000_000),
    "oldstate": ("podscope.tcp.state.old", _WORD, 0),
    "newstate": ("network.connection.state", _WORD, 0),
    "state": ("network.connection.state", _WORD, 0),
    "cwnd": ("podscope.tcp.cwnd", _LONG, 1),
    "snd_cwnd": ("podscope.tcp.cwnd", _LONG, 1),
    "snd_ssthresh": ("podscope.tcp.ssthresh", _LONG, 1),
    "sndbuf": ("podscope.tcp.send_buffer.size", _LONG, 1),
    "wmem_queued": ("podscope.tcp.send_buffer.used", _LONG, 1),
    "srtt_us": ("podscope.tcp.srtt", _SECONDS, 1e-6),
    "fd": ("podscope.trace.fd", _LONG, 1),
    "error": ("podscope.trace.error", _LONG, 1),
    "signal": ("podscope.trace.signal", _LONG, 1),
    "target_pid": ("podscope.trace.target.pid", _LONG, 1),
    "target": ("podscope.trace.target.name", _WORD, 0),
    "file": ("file.path", _WORD, 0),
    "name": ("dns.question.name", _WORD, 0),
    "line": ("podscope.trace.line", _WORD, 0),
    "text": ("podscope.trace.text", _WORD, 0),
    "value": ("podscope.trace.value", _WORD, 0),
    "call": ("podscope.trace.call", _WORD, 0),
}
_UNSIGNED = r'"(cgroup|socket)": (\d+)'
# What Filebeat says of itself and of the pod that it reads, which is not the one that rows are of.
_OF_SHIPPER = ("host", "agent", "ecs", "input", "kubernetes", "container", "message", "stream")
_ID = (
    "String place = ctx.container != null ? ctx.container.id : ctx.log.file.path; "
    "String at = place + '-' + ctx.log.offset + '-' + row.time; "
    "ctx['_id'] = at.length() > 500 ? at.substring(at.length() - 500) : at; "
)
_TIDY = "for (def one : params.shipper) { ctx.remove(one); } "
_AGENT_ROWS = (
    "def row = ctx.remove('row'); def kind = row.remove('kind'); "
    "def known = params.kinds[kind]; "
    "if (known == null) { throw new IllegalArgumentException('no rows of podscope: ' + kind); } "
    + _ID
    + _TIDY
    + "for (def entry : row.entrySet()) { "
    "def name = entry.getKey(); def value = entry.getValue(); "
    "def to = known.names.getOrDefault(name, name); "
    f"if (to == '{templates.EVENT_DURATION}') {{ value = Math.round(value * 1000000000.0); }} "
    "ctx[to] = value; } "
    "ctx['event.dataset'] = 'podscope.' + kind; ctx['event.kind'] = known.event; "
    "ctx['_index'] = known.stream; "
)
_SCRIPT_ROWS = (
    "def row = ctx.remove('row'); "
    "if (row.remove('kind') != 'row') { ctx['_index'] = params.unread; return; } "
    + _ID
    + "if (ctx.kubernetes != null && ctx.kubernetes.node != null) "
    "{ ctx['k8s.node.name'] = ctx.kubernetes.node.name; } "
    + _TIDY
    + "for (def entry : row.entrySet()) { "
    "def known = params.columns[entry.getKey()]; def value = entry.getValue(); "
    "if (known == null || value == null) { continue; } "
    "if (known.scale == 0) { value = value.toString(); } "
    "else if (known.type == 'double') { value = value * known.scale; } "
    "else { value = Math.round(value * (double) known.scale); } "
    "ctx[known.to] = value; } "
    "ctx['event.dataset'] = params.dataset; ctx['event.kind'] = 'event'; "
    "ctx['_index'] = params.stream; "
)


def script_stream(name: str, dataset: str = "default") -> str:
    """The data stream of a script's rows."""
    return f"podscope-trace-{name}-{dataset}"


def script_pipeline(name: str) -> str:
    """The pipeline of a script's rows."""
    return f"podscope-trace-{name}"


def row_scripts() -> tuple[scripts.Script, ...]:
    """The scripts that print rows with columns."""
    loaded = map(scripts.load, scripts.names())
    return tuple(one for one in loaded if "time" in one.columns)


def agent_pipeline(kinds: Mapping[str, Sequence[Field]], dataset: str = "default") -> Asset:
    """The pipeline of the rows that agents write to stdout, of all kinds."""
    known = {
        kind: {
            "stream": templates.stream(kind, dataset),
            "event": "metric" if kind in templates.SUMS | SUMS else "event",
            "names": {old: new for old, new in templates.names(fields).items() if old != new},
        }
        for kind, fields in kinds.items()
    }
    params = {"kinds": known, "shipper": _OF_SHIPPER}
    return _pipeline(
        AGENT_PIPELINE, "Rows of podscope's agents, by Filebeat.", _AGENT_ROWS, params, dataset
    )


def trace_pipeline(script: scripts.Script, dataset: str = "default") -> Asset:
    """The pipeline of the rows of one script."""
    columns = {
        name: {"to": COLUMNS[name][0], "type": COLUMNS[name][1], "scale": COLUMNS[name][2]}
        for name in script.columns
    }
    params = {
        "columns": columns,
        "shipper": _OF_SHIPPER,
        "dataset": f"podscope.trace.{script.name}",
        "stream": script_stream(script.name, dataset),
        "unread": templates.stream(UNREAD, dataset),
    }
    text = f"Rows of the script {script.name}, by Filebeat."
    return _pipeline(script_pipeline(script.name), text, _SCRIPT_ROWS, params, dataset)


def _pipeline(name: str, text: str, script: str, params: Object, dataset: str) -> Asset:
    processors = [
        # Banners and messages are no rows.
        {"drop": {"if": "ctx.message == null || !ctx.message.startsWith('{')"}},
        # Pipelines know no numbers of 64 bits without a sign.
        {"gsub": {"field": "message", "pattern": _UNSIGNED, "replacement": '"$1": "$2"'}},
        {"json": {"field": "message", "target_field": "row"}},
        {"script": {"lang": "painless", "source": script, "params": params}},
    ]
    unread = [
        {"set": {"field": "error.message", "value": "{{{_ingest.on_failure_message}}}"}},
        {"set": {"field": "_index", "value": templates.stream(UNREAD, dataset)}},
        {"remove": {"field": ["row"], "ignore_missing": True}},
    ]
    body = {
        "description": text,
        "version": templates.VERSION,
        "processors": processors,
        "on_failure": unread,
    }
    return Asset(f"/_ingest/pipeline/{name}", body)


def trace_templates(script: scripts.Script, *, ilm: bool) -> tuple[Asset, Asset]:
    """The templates of a script's rows; ``ilm``: Elasticsearch deletes them by their age."""
    properties: Object = {
        "event.dataset": {"type": "keyword"},
        "event.kind": {"type": "keyword"},
        "k8s.node.name": {"type": "keyword"},
    }
    for column in script.columns:
        name, kind, _ = COLUMNS[column]
        more = {"ignore_above": 1024} if kind == _WORD else {}
        properties[name] = {"type": kind, **more}
    name = f"podscope-trace-{script.name}"
    mappings = {"date_detection": False, "properties": properties}
    settings = {"index.lifecycle.name": "podscope"} if ilm else {}
    component = {
        "template": {"settings": settings, "mappings": mappings},
        "version": templates.VERSION,
    }
    index = {
        "index_patterns": [script_stream(script.name, "*")],
        "data_stream": {},
        "composed_of": [name],
        "priority": 200,
        "version": templates.VERSION,
    }
    return (
        Asset(f"/_component_template/{name}", component),
        Asset(f"/_index_template/{name}", index),
    )


def assets(
    kinds: Mapping[str, Sequence[Field]], dataset: str = "default", *, ilm: bool = True
) -> list[Asset]:
    """All that a server needs for these rows beside the templates of their kinds.

    Args:
        kinds: fields of all kinds of rows.
        dataset: end of the data streams' names.
        ilm: the server has Elasticsearch's lifecycle management, with podscope's policy.
    """
    can = templates.Abilities(lifecycle=ilm, histograms=False)
    made = [*templates.templates(UNREAD, (), opensearch=False, can=can)]
    made.append(agent_pipeline(kinds, dataset))
    for script in row_scripts():
        made += [*trace_templates(script, ilm=ilm), trace_pipeline(script, dataset)]
    return made


def filebeat(dataset: str = "default") -> Object:
    """A configuration of Filebeat that finds podscope's pods by their labels."""
    agents = {"and": [_has(label, value) for label, value in _AGENT.items()]}
    found = [_template(agents, AGENT_PIPELINE, dataset)]
    for script in row_scripts():
        labels = {"or": [_has(label, script.name) for label in (ROWS_LABEL, OLDER_LABEL)]}
        found.append(_template(labels, script_pipeline(script.name), dataset))
    provider = {"type": "kubernetes", "node": "${NODE_NAME}", "templates": found}
    return {
        "filebeat.autodiscover": {"providers": [provider]},
        # Templates and retention are podscope's own.
        "setup.template.enabled": False,
        "setup.ilm.enabled": False,
        "output.elasticsearch": {
            "hosts": ["${ELASTICSEARCH_URL}"],
            "username": "${ELASTICSEARCH_USERNAME:}",
            "password": "${ELASTICSEARCH_PASSWORD:}",
        },
    }


def example_job() -> Object:
    """A Job whose log has the rows of a script; of the node NODE."""
    script = scripts.load("tcplife")
    request = jobs.Request(
        name="podscope-trace-tcplife", program=script.text, rows=script.name, deadline=60
    )
    return jobs.job(request, jobs.Part("NODE"))


def _has(label: str, value: str) -> Object:
    """A condition on a label, whose dots Filebeat writes as underscores."""
    return {"equals": {f"kubernetes.labels.{label.replace('.', '_')}": value}}


def _template(condition: Object, pipeline: str, dataset: str) -> Object:
    container = "${data.kubernetes.container.id}"
    config = {
        "type": "filestream",
        "id": f"podscope-{container}",
        "paths": [f"/var/log/containers/*{container}.log"],
        "prospector.scanner.symlinks": True,
        # Messages go to stderr.
        "parsers": [{"container": {"stream": "stdout", "format": "auto"}}],
        "pipeline": pipeline,
        # The pipeline chooses the data stream: this one gets what cannot be read.
        "index": templates.stream(UNREAD, dataset),
    }
    return {"condition": condition, "config": [config]}
