# SPDX-License-Identifier: Apache-2.0
"""Rows in a real InfluxDB 1, read back by InfluxQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import records
import sink_rows

from podscope import schema_listen
from podscope import schema_oom
from podscope.settings import Url
from podscope.sinks import line_protocol
from podscope.sinks import rows
from podscope.sinks.influxdb import Influxdb
from podscope.sinks.influxdb import InfluxdbSettings
from podscope.sinks.influxdb_compat import BY_SERVICE
from podscope.sinks.plugin import Refused
from podscope.sinks.plugin import TooLarge
from podscope.sinks.plugin import Unavailable
from podscope.sinks.rows import Rows


@pytest.fixture
def database(request, influxdb) -> str:
    """A database of the test's own, which is not there yet."""
    return f"test{abs(hash(request.node.name))}"


@pytest.fixture
def sink(influxdb, database) -> Iterator[Influxdb]:
    """The sink, to the server."""
    made = Influxdb(settings(influxdb, database))
    yield made
    made.close()


def settings(influxdb: Any, database: str, **more: object) -> InfluxdbSettings:
    """Settings for version 1."""
    return InfluxdbSettings(
        type="influxdb", url=Url(influxdb.url), version=1, database=database, **more
    )


def select(influxdb: Any, database: str, query: str) -> list[dict[str, Any]]:
    """Rows that a query gives, times in nanoseconds."""
    told = influxdb.ask("/query", db=database, q=query, epoch="ns")
    (result,) = told["results"]
    assert "error" not in result, result
    return [
        dict(zip(series["columns"], row, strict=True)) | series.get("tags", {})
        for series in result.get("series", ())
        for row in series["values"]
    ]


@pytest.mark.parametrize(
    "make",
    sink_rows.KINDS,
    ids=lambda make: make.__name__,
)
def test_every_value_of_every_kind_arrives_with_its_type_and_time(sink, influxdb, database, make):
    # GIVEN
    some = make()

    # WHEN
    sink.send(some)

    # THEN
    found = select(influxdb, database, f'select * from "podscope_{some.kind}"')
    assert len(found) == len(some)
    fields, columns = some.with_resource()
    for place in range(len(some)):
        wanted = {
            one.name: columns[one.name][place]
            for one in fields
            if one.name != "time" and not (one.name in some.columns and some.absent(one)[place])
        }
        (match,) = [one for one in found if is_row(one, wanted, fields)][:1] or [None]
        assert match is not None, (wanted, found)
        ns = int(columns["time"][place].astype("M8[ns]").astype(np.int64))
        assert 0 <= match["time"] - ns < len(some)


def is_row(found: dict[str, Any], wanted: dict[str, Any], fields: Any) -> bool:
    """Whether a point is the row: tags as texts, fields by their type, and no others."""
    types = {one.name: one for one in fields}
    for name, value in wanted.items():
        got = found.get(name)
        if line_protocol.is_tag(types[name]):
            fits = got == str(value)
        elif types[name].type == "float":
            fits = isinstance(got, (int, float)) and got == pytest.approx(value, abs=1e-9)
        elif types[name].type == "time":
            fits = got == int(value.astype(np.int64))
        else:
            fits = got == value and isinstance(got, str) == (types[name].type == "text")
        if not fits:
            return False
    extra = {name for name, value in found.items() if value is not None} - set(wanted) - {"time"}
    return all(name.startswith("duration.le_") for name in extra)


def test_rows_wait_for_a_retention_policy(influxdb, database):
    # GIVEN
    made = Influxdb(settings(influxdb, database, retention_policy="long"))
    some = sink_rows.request_rows(2)

    # WHEN
    with pytest.raises(Unavailable, match="retention policy not found: long"):
        made.send(some)
    policy = f'CREATE RETENTION POLICY "long" ON "{database}" DURATION INF REPLICATION 1'
    influxdb.ask("/query", method="POST", q=policy)
    made.send(some)
    made.close()

    # THEN
    assert len(select(influxdb, database, 'SELECT * FROM "long"."podscope_request"')) == 2


def test_histograms_add_up_in_the_database(sink, influxdb, database):
    # GIVEN
    some = sink_rows.http_rows()

    # WHEN
    sink.send(some)

    # THEN
    query = 'select sum("duration.le_0.05") as a, sum("duration.le_inf") as b from podscope_http'
    (found,) = select(influxdb, database, query)
    below = int(some.le[:, :4].sum())
    assert (found["a"], found["b"]) == (below, int(some.columns["count"].sum()))


def test_rows_of_the_same_nanosecond_stay_apart_and_sent_again_are_no_others(
    sink, influxdb, database
):
    # GIVEN a hundred requests that differ in nothing
    some = sink_rows.request_rows(100)

    # WHEN
    sink.send(some)
    sink.send(some)

    # THEN
    (found,) = select(influxdb, database, 'select count("duration") from podscope_request')
    assert found["count"] == 100


def test_rows_of_the_same_nanosecond_in_two_deliveries_stay_apart(sink, influxdb, database):
    # GIVEN / WHEN
    sink.send(sink_rows.request_rows(3))
    sink.send(sink_rows.request_rows(4))

    # THEN
    (found,) = select(influxdb, database, 'select count("duration") from podscope_request')
    assert found["count"] == 7


def test_rows_that_the_server_refuses_are_told_from_the_good_ones(sink, influxdb, database):
    # GIVEN a field that has another type already
    sink.send(sink_rows.request_rows(1))
    now = records.TIME_NS
    bad = f'podscope_request,side=server duration="x" {now}\n'.encode()
    more = f'podscope_request,side=server duration="x" {now + 1}\n'.encode()
    good = f"podscope_request,side=server duration=1 {now + 2}\n".encode()

    # WHEN / THEN
    with pytest.raises(TooLarge, match="field type conflict"):
        sink._write(bad + good, 2)
    with pytest.raises(Refused, match="field type conflict"):
        sink._write(bad, 1)
    with pytest.raises(Refused, match="dropped=2"):
        sink._write(bad + more, 2)
    sink._write(good, 1)


@pytest.mark.parametrize(
    "text", ["a b", "a,b=c", "a\\", "a\\,b", "\\ ", 'say "hi"', "line\nbreak", "é世界", "=", '"']
)
def test_any_text_arrives_as_tag_and_as_field(sink, influxdb, database, text):
    # GIVEN
    some = sink_rows.request_rows(1)
    columns = dict(some.columns) | {
        name: np.array([text], dtype=object) for name in ("service.name", "user_agent.original")
    }

    # WHEN
    sink.send(replace(some, columns=columns))

    # THEN
    (found,) = select(influxdb, database, "select * from podscope_request")
    assert found["user_agent.original"] == text
    # What cannot be written in a tag is a slash, and what would end the line is escaped.
    written = {"a\\": "a/", "a\\,b": "a/,b", "\\ ": "/ ", "line\nbreak": "line\\nbreak"}
    assert found["service.name"] == written.get(text, text)


# --- the measurements of others ---------------------------------------------------------------


def by_service(batch: Any) -> Rows:
    """A batch as the sink gets it for these."""
    sink = Influxdb(
        InfluxdbSettings(type="influxdb", url=Url("http://a"), version=1, compat=("owlk8s",))
    )
    also = sink.also_by
    sink.close()
    found = rows.of_batches([batch], resource=sink_rows.RESOURCE, also_by=also)
    return next(one for one in found if one.kind == BY_SERVICE)


def test_dashboards_of_owlk8s_find_their_series(influxdb, database):
    # GIVEN
    sink = Influxdb(settings(influxdb, database, compat=("owlk8s",)))

    # WHEN two intervals come
    first = by_service(records.cluster_batch())
    sink.send(first)
    sink.send(replace(by_service(records.cluster_batch()), time_ns=first.time_ns + 10**9))

    # THEN
    rate = (
        'select non_negative_derivative(first("requests"), 1s) as rate from "INT_svcmetrics" '
        f"where namespace =~ /shop/ and owner =~ /web/ and time >= {first.time_ns - 10**9} and "
        f"time <= {first.time_ns + 2 * 10**9} group by time(1s), podname, service fill(none)"
    )
    found = select(influxdb, database, rate)
    assert {(one["podname"], one["service"], one["rate"]) for one in found} == {
        ("web-1-a", "web", 40),
        ("web-1-b", "all", 15),
    }
    errors = select(influxdb, database, 'select last("err4") as a, last("err5") as b, '
                    'last("duration") as c from "INT_svcmetrics" group by podname')  # fmt: skip
    told = {one["podname"]: (one["a"], one["b"], one["c"]) for one in errors}
    assert told == {"web-1-a": (20, 0, 1250), "web-1-b": (0, 6, 164000)}
    sink.close()


def test_dashboards_of_kubebpfbox_find_their_series(influxdb, database):
    # GIVEN
    sink = Influxdb(settings(influxdb, database, compat=("kubebpfbox",)))

    # WHEN
    sink.send(by_service(records.cluster_batch()))
    requests = replace(records.request_batch(2), identities=(records.WEB_A,))
    (some,) = rows.of_batches([requests])
    sink.send(some)

    # THEN
    found = select(influxdb, database, 'select * from "red" where nodename =~ /.*/')
    names = ("servicename", "qps", "errrate", "duration")
    assert {one["podname"]: tuple(one[name] for name in names) for one in found} == {
        "web-1-a": ("web", 40, 0, 1.25),
        "web-1-b": ("all", 15, 20, 164),
    }
    query = "select * from traffic where url =~ /.*/ and flow = '0'"
    traffic = select(influxdb, database, query)
    told = [(one["podname"], one["method"], one["code"], one["dstport"]) for one in traffic]
    assert told == [("web-1-a", "GET", "200", "80")] * 2
    assert [one["duration"] for one in traffic] == [2.5, 2.5]
    sink.close()


def of_fields(kind: str, fields: Any, count: int, **told: object) -> Rows:
    """Rows of a kind in which nothing applies but what is told: `a__b` for a.b."""
    blank = {"text": None, "int": 0, "float": np.nan, "time": np.datetime64(0, "ns")}
    types = {"int": np.int64, "float": np.float64, "time": "M8[ns]"}
    given = {name.replace("__", "."): value for name, value in told.items()}
    columns = {
        one.name: np.full(count, given.get(one.name, blank[one.type]), types.get(one.type, object))
        for one in fields
    }
    assert given.keys() <= columns.keys()
    columns["time"][:] = np.datetime64(records.TIME_NS, "ns")
    return Rows(kind, tuple(fields), columns, records.TIME_NS)


def test_kills_and_full_queues_are_measurements_of_kubebpfbox(influxdb, database):
    # GIVEN two kills at once, a listener that is nearly full, and one that is not
    sink = Influxdb(settings(influxdb, database, compat=("kubebpfbox",)))
    kills = of_fields(
        "oom", schema_oom.OOM, 2, podscope__process__comm="stress", process__pid=7,
        podscope__oom__limit=8 << 20, podscope__oom__trigger__pid=8,
        podscope__oom__trigger__comm="sh", k8s__pod__name="web-1-a",
    )  # fmt: skip
    queues = of_fields(
        "listen", schema_listen.LISTEN, 2, podscope__listen__limit=128, process__pid=9,
        podscope__listen__accept_queue=120, process__executable__name="nginx",
        k8s__pod__name="web-1-b",
    )  # fmt: skip
    queues.columns["podscope.listen.event"][1] = "accept_queue"

    # WHEN
    sink.send(kills)
    sink.send(queues)

    # THEN
    found = select(influxdb, database, "select * from oomkill")
    told = [(one["podname"], one["comm"], one["triggercomm"], one["pages"]) for one in found]
    assert told == [("web-1-a", "stress", "sh", 2048)] * 2
    assert {(one["pid"], one["triggerpid"], one["message"]) for one in found} == {
        (7, 8, "Out of memory")
    }
    (one,) = select(influxdb, database, "select * from tcpsynbl")
    assert (one["podname"], one["comm"], one["pid"]) == ("web-1-b", "nginx", 9)
    assert (one["maxackbacklog"], one["ackbacklog"]) == (128, 120)
    sink.close()
