# SPDX-License-Identifier: Apache-2.0
"""Groups, merges and quantiles, against plain Python arithmetic."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import records
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from podscope import red
from podscope import schema
from podscope import wire
from podscope.batch import Identity

WIDTH = 2 ** (1 / 8)
PEER = [0] * 10 + [255, 255, 10, 0, 0]
# The same container seen by two processes, two of one name, and two of one process name.
IDENTITIES = (
    Identity("container", "shop", "python3", 1, "aa"),
    Identity("container", "shop", "gunicorn", 2, "aa"),
    Identity("container", "shop", "python3", 3, "bb"),
    Identity("process", "curl", "curl", 4),
    Identity("process", "curl", "curl", 5),
    # Pods of one owner on two nodes, the same names in another namespace, and a name again.
    replace(records.WEB_A, services=()),
    replace(records.WEB_B, services=()),
    replace(records.WEB_A, services=(), namespace="other", pod_uid="u-o"),
    replace(records.WEB_A, services=(), pod_uid="u-again", container="log"),
    Identity("external", ""),
)

durations = st.integers(min_value=0, max_value=20_000 * 10**9)


@st.composite
def batches(draw, most=12):
    """Rows over few keys, so that they meet; with true histograms of random durations."""
    n = draw(st.integers(min_value=0, max_value=most))
    rows = records.http_rows(n)
    identity = draw(st.lists(st.sampled_from(range(len(IDENTITIES))), min_size=n, max_size=n))
    for row, who in zip(rows, identity, strict=True):
        key = row["key"]
        key["pid"] = who + 1
        key["route"] = draw(st.sampled_from([0, 1, 7]))
        key["port"] = draw(st.sampled_from([80, 443, 65535]))
        key["status"] = draw(st.sampled_from([0, 200, 404, 503]))
        key["side"] = draw(st.sampled_from([1, 2]))
        key["method"] = draw(st.sampled_from([0, 1, 10]))
        key["version"] = draw(st.sampled_from([10, 11]))
        key["error"] = draw(st.sampled_from([0, 1, 2]))
        key["peer"] = [*PEER, draw(st.sampled_from([1, 2]))]
        key["peer_class"] = 2
        records.fill(row, draw(st.lists(durations, min_size=1, max_size=5)))
        row["request_bytes"] = draw(st.integers(0, 2**40))
        row["response_bytes"] = draw(st.integers(0, 2**40))
    places = st.integers(min_value=-1, max_value=len(IDENTITIES) - 1)
    peers = draw(st.none() | st.lists(places, min_size=n, max_size=n))
    told = None if peers is None else np.array(peers, dtype=np.int32)
    return records.http_batch(rows, identity, IDENTITIES, routes={7: "/a/*"}, peers=told)


fields = st.lists(st.sampled_from(schema.DIMENSIONS), unique=True).map(tuple)


def said(groups):
    """Groups as a dictionary: what they are -> what they count. Order does not matter."""
    attributes = [field for field in schema.HTTP if field.dimension]
    labels = schema.read(attributes, groups.labels(), groups.by)
    keys = zip(*(column.tolist() for column in labels.values()), strict=True)
    names = list(keys) if labels else [()] * len(groups)
    errors = groups.errors.tolist()
    values = [
        (
            *(int(getattr(groups, name)[i]) for name in ("count", "sum_ns", "ttfb_sum_ns")),
            *(int(getattr(groups, name)[i]) for name in ("request_bytes", "response_bytes")),
            int(groups.max_ns[i]),
            errors[i],
            tuple(groups.le[i].tolist()),
            tuple(groups.buckets[i].tolist()),
        )
        for i in range(len(groups))
    ]
    told = defaultdict(list)
    for name, value in zip(names, values, strict=True):
        told[name].append(value)
    return {name: sorted(value) for name, value in told.items()}


def reference(batch, by):
    """The same sums by a dictionary and a loop."""
    sums: dict[tuple, list[int]] = {}
    peers = [-1] * len(batch) if batch.peers is None else batch.peers.tolist()
    for row, who, other in zip(batch.rows, batch.identity, peers, strict=True):
        key, owner = row["key"], batch.identities[who]
        peer = batch.identities[other] if other >= 0 else None
        address = (bytes(key["peer"]), int(key["peer_class"]))
        name = peer and (peer.kind, peer.name, peer.namespace)
        named = peer is not None and peer.kind != "external" and "address" not in by
        parts = {
            "service": "",
            "workload": (
                (owner.kind, owner.name, owner.namespace)
                if owner.pod
                else (owner.kind, owner.name, owner.container_id)
            ),
            "namespace": owner.namespace,
            "pod": (owner.namespace, owner.pod, owner.pod_uid),
            "container": (owner.container, owner.container_id if owner.pod else ""),
            "node": owner.node,
            "executable": owner.executable,
            "pid": int(key["pid"]),
            "side": int(key["side"]),
            "port": int(key["port"]),
            "method": int(key["method"]),
            "route": int(key["route"]),
            "status": (int(key["status"]), int(key["error"])),
            "version": int(key["version"]),
            "peer": (name, address[1] if named else address),
            "address": (name, peer and (peer.pod, peer.pod_uid, peer.node), address),
        }
        server = key["side"] == 1
        failed = key["status"] == 0 or key["error"] or key["status"] >= (500 if server else 400)
        one = sums.setdefault(tuple(parts[name] for name in by), [0, 0, 0, 0])
        one[0] += int(row["count"])
        one[1] += int(row["sum_ns"])
        one[2] = max(one[2], int(row["max_ns"]))
        one[3] += int(row["count"]) if failed else 0
    return sorted(sums.values())


@given(batch=batches(), by=fields)
@settings(max_examples=150, deadline=None)
def test_groups_are_those_of_a_plain_loop(batch, by):
    # GIVEN rows and dimensions
    # WHEN
    groups = red.group(batch, by)

    # THEN
    columns = (groups.count, groups.sum_ns, groups.max_ns, groups.errors)
    assert sorted([int(v) for v in row] for row in zip(*columns, strict=True)) == reference(
        batch, by
    )


@given(batch=batches(), by=fields)
@settings(max_examples=100, deadline=None)
def test_grouping_keeps_every_sum_and_every_bucket(batch, by):
    # GIVEN / WHEN
    groups = red.group(batch, by)

    # THEN
    for name in ("count", "sum_ns", "ttfb_sum_ns", "request_bytes", "response_bytes"):
        assert getattr(groups, name).sum() == batch.rows[name].sum()
    assert groups.le.sum(axis=0).tolist() == batch.rows["le"].sum(axis=0).tolist()
    whole = batch.rows["buckets"].sum(axis=0, dtype=np.uint64)
    assert groups.buckets.sum(axis=0).tolist() == whole.tolist()
    assert groups.max_ns.max(initial=0) == batch.rows["max_ns"].max(initial=0)


@given(left=batches(), right=batches(), by=fields)
@settings(max_examples=75, deadline=None)
def test_merge_is_commutative(left, right, by):
    # GIVEN
    a, b = red.group(left, by), red.group(right, by)

    # WHEN / THEN
    assert said(red.merge(a, b)) == said(red.merge(b, a))


@given(parts=st.tuples(batches(6), batches(6), batches(6)), by=fields)
@settings(max_examples=75, deadline=None)
def test_merge_is_associative_and_equals_grouping_at_once(parts, by):
    # GIVEN
    a, b, c = (red.group(part, by) for part in parts)
    whole = red.group(wire.together(parts), by)

    # WHEN
    first = red.merge(red.merge(a, b), c)
    second = red.merge(a, red.merge(b, c))

    # THEN
    assert said(first) == said(second) == said(whole)


@given(batch=batches(), by=fields)
@settings(max_examples=50, deadline=None)
def test_merge_with_nothing_changes_nothing(batch, by):
    # GIVEN
    groups = red.group(batch, by)
    nothing = red.group(batch.where(np.zeros(len(batch), dtype=np.bool_)), by)

    # WHEN / THEN
    assert said(red.merge(groups, nothing)) == said(groups) == said(red.merge(nothing, groups))


def test_merge_of_different_dimensions_is_refused():
    # GIVEN
    batch = records.shop_batch()

    # WHEN / THEN
    with pytest.raises(ValueError, match="cannot merge"):
        red.merge(red.group(batch, ("port",)), red.group(batch, ("side",)))


def test_unknown_dimension_is_refused():
    with pytest.raises(ValueError, match="colour"):
        red.group(records.shop_batch(), ("port", "colour"))


def test_sums_beyond_32_bits_stay_exact():
    # GIVEN two rows whose bucket counts fill the record's 32 bits
    rows = records.http_rows(2)
    rows["key"]["port"] = 80
    rows["buckets"][:, 9] = 2**32 - 1

    # WHEN
    groups = red.group(records.http_batch(rows, [0, 0]), ("port",))

    # THEN
    assert groups.buckets[0, 9] == 2**33 - 2


def counts_by(batch, *by):
    """Exchanges by the texts of some attributes."""
    groups = red.group(batch, by)
    told = schema.read(schema.HTTP, groups.view(0, 1.0), groups.by)
    names = [name for name in told if name.startswith("k8s.") or name == "service.name"]
    rows = zip(*(told[name].tolist() for name in names), told["count"].tolist(), strict=True)
    return {tuple(filter(None, row[:-1])): row[-1] for row in rows}


def test_pods_of_one_owner_are_one_workload_and_those_of_another_namespace_are_not():
    assert counts_by(records.cluster_batch(), "workload", "namespace") == {
        ("web", "shop", "web"): 55,
        ("web", "lab"): 5,
    }


def test_a_pod_says_its_owner_namespace_and_node():
    assert counts_by(records.cluster_batch(), "pod") == {
        ("web", "shop", "web", "web-1-a", "u-a", "node-1"): 40,
        ("web", "shop", "web", "web-1-b", "u-b", "node-2"): 15,
        ("web", "lab", "web", "u-c", "node-2"): 5,
    }


def test_a_pod_behind_two_services_is_credited_to_each_once():
    # GIVEN pods that serve ports 80 and 8080; Service web leads to 80 alone, all to any
    batch = records.cluster_batch()

    # WHEN
    found = counts_by(batch, "service")

    # THEN what clients did, and what no Service leads to, has none
    assert found == {("web", "shop"): 40, ("all", "shop"): 15, (): 5}
    assert counts_by(batch, "service", "node") == {
        ("web", "shop", "node-1"): 40,
        ("all", "shop", "node-2"): 15,
        ("node-2",): 5,
    }


def test_one_process_of_a_workload_is_named_and_several_are_not():
    # GIVEN nginx with two processes, shop with one
    batch = records.shop_batch()

    # WHEN
    groups = red.group(batch, ("workload",))
    columns = schema.read(schema.HTTP, groups.view(0, 1.0), groups.by)

    # THEN
    names = columns["service.name"].tolist()
    assert dict(zip(names, columns["process.pid"].tolist(), strict=True)) == {
        "nginx.service": 0,
        "shop": 200,
        "curl": 300,
    }


def test_dimensions_that_are_not_grouped_by_are_blank():
    # GIVEN / WHEN
    groups = red.group(records.shop_batch(), ("port",))

    # THEN
    assert groups.keys["status"].any() == False  # noqa: E712
    assert all((places == -1).all() for places in groups.whose.values())
    assert set(groups.keys["port"].tolist()) == {80, 8080}


@given(sample=st.lists(durations, min_size=1, max_size=80), q=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_quantile_is_in_the_bucket_of_the_true_one_and_not_above_the_maximum(sample, q):
    # GIVEN durations in a histogram
    rows = records.http_rows(1)
    records.fill(rows[0], sample)
    true = sorted(sample)[max(math.ceil(q * len(sample) - 1e-9), 1) - 1] / 1e9

    # WHEN
    found = float(red.quantile(rows["buckets"], rows["max_ns"], q)[0])

    # THEN
    assert found <= max(sample) / 1e9
    lowest, highest = 2 ** (-159 / 8), 2 ** (95 / 8)
    if true <= lowest:
        assert 0 <= found <= lowest
    elif true <= highest:
        assert true / WIDTH * (1 - 1e-9) <= found <= true * WIDTH * (1 + 1e-9)
    else:
        assert found >= highest * (1 - 1e-9)


@given(sample=st.lists(durations, min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_quantiles_grow_with_q_and_end_at_the_exact_maximum(sample):
    # GIVEN
    rows = records.http_rows(1)
    records.fill(rows[0], sample)

    # WHEN
    found = red.quantiles(rows["buckets"], rows["max_ns"], (0, 0.25, 0.5, 0.9, 0.99, 1))[0]

    # THEN
    assert (np.diff(found) >= 0).all()
    assert found[-1] == pytest.approx(max(sample) / 1e9)


def test_quantile_of_an_empty_histogram_is_not_a_number():
    # GIVEN / WHEN
    rows = records.http_rows(1)

    # THEN
    assert np.isnan(red.quantile(rows["buckets"], rows["max_ns"], 0.5)).all()


def test_quantiles_of_many_rows_are_those_of_each_alone():
    # GIVEN more rows than one block holds
    rows = records.http_rows(2500)
    rows["buckets"][np.arange(2500), np.arange(2500) % 256] = 5
    rows["max_ns"] = 10**13

    # WHEN
    all_at_once = red.quantiles(rows["buckets"], rows["max_ns"], (0.5,))
    alone = [
        red.quantile(rows["buckets"][[i]], rows["max_ns"][[i]], 0.5)[0] for i in (0, 1500, 2499)
    ]

    # THEN
    assert all_at_once[[0, 1500, 2499], 0].tolist() == alone


@pytest.mark.parametrize(
    ("side", "status", "error", "failed"),
    [
        ("server", 200, 0, False),
        ("server", 404, 0, False),
        ("server", 500, 0, True),
        ("server", 0, 1, True),
        ("server", 200, 2, True),
        ("client", 399, 0, False),
        ("client", 404, 0, True),
        ("client", 503, 0, True),
        ("client", 0, 0, True),
    ],
)
def test_what_is_an_error_depends_on_the_side(side, status, error, failed):
    # GIVEN
    rows = records.http_rows(1)
    rows["key"]["side"] = schema.SIDES.index(side)
    rows["key"]["status"] = status
    rows["key"]["error"] = error
    rows["count"] = 4

    # WHEN
    groups = red.group(records.http_batch(rows, [0]), ())

    # THEN
    assert groups.errors.tolist() == [4 if failed else 0]
    assert groups.error_share().tolist() == [1.0 if failed else 0.0]


def test_groups_of_very_many_rows_are_added_up_exactly():
    # GIVEN more rows than are added up at once, in few groups of unequal size
    rows = records.http_rows(5000)
    rows["key"]["status"] = np.where(np.arange(5000) < 4000, 200, 500)
    rows["key"]["port"] = np.arange(5000) // 4990
    rows["count"] = rows["buckets"][:, 3] = rows["le"][:, 1] = 2

    # WHEN
    groups = red.group(records.http_batch(rows, np.zeros(5000)), ("port", "status"))

    # THEN
    assert sorted(groups.count.tolist()) == [20, 1980, 8000]
    assert groups.buckets[:, 3].tolist() == groups.count.tolist()
    assert int(groups.buckets.sum()) == 10_000
