# SPDX-License-Identifier: Apache-2.0
"""What Grafana's data source Elasticsearch and Kibana ask a server for."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]
INTERVAL_MS = 10_000
TIME = "@timestamp"


def body(query: str, begin_ms: int, end_ms: int) -> Object:
    """A search of a range of time, without documents."""
    time_range = {"gte": begin_ms, "lte": end_ms, "format": "epoch_millis"}
    return {
        "size": 0,
        "query": {
            "bool": {
                "filter": [
                    {"range": {TIME: time_range}},
                    {"query_string": {"analyze_wildcard": True, "query": query}},
                ]
            }
        },
    }


def of_target(target: Object, query: str, begin_ms: int, end_ms: int) -> Object:
    """The search of a query of a panel (pkg/tsdb/elasticsearch/data_query.go in Grafana)."""
    made = body(query, begin_ms, end_ms)
    if not target["bucketAggs"]:
        (raw,) = target["metrics"]
        made |= {"size": int(raw["settings"]["size"]), "sort": {TIME: {"order": "desc"}}}
        return made
    at = made
    for one in target["bucketAggs"]:
        agg = _bucket(one, begin_ms, end_ms)
        at["aggs"] = {one["id"]: agg}
        at = agg
    at["aggs"] = {
        one["id"]: _metric(one, target["metrics"])
        for one in target["metrics"]
        if one["type"] != "count"
    }
    return made


def _bucket(one: Object, begin_ms: int, end_ms: int) -> Object:
    settings = one["settings"]
    if one["type"] == "date_histogram":
        return {
            "date_histogram": {
                "field": one["field"],
                "fixed_interval": f"{INTERVAL_MS}ms",
                "min_doc_count": int(settings["min_doc_count"]),
                "extended_bounds": {"min": begin_ms, "max": end_ms},
                "format": "epoch_millis",
            }
        }
    missing = {"missing": settings["missing"]} if "missing" in settings else {}
    return {
        "terms": {
            "field": one["field"],
            "size": int(settings["size"]),
            "min_doc_count": int(settings["min_doc_count"]),
            "order": {settings["orderBy"]: settings["order"]},
            **missing,
        }
    }


def _metric(one: Object, others: list[Object]) -> Object:
    settings = dict(one.get("settings", {}))
    if "script" in settings:
        settings["script"] = settings["script"].replace("$__interval_ms", str(INTERVAL_MS))
    if one["type"] != "bucket_script":
        return {one["type"]: {"field": one["field"], **settings}}
    counts = {other["id"] for other in others if other["type"] == "count"}
    paths = {
        each["name"]: "_count" if each["pipelineAgg"] in counts else each["pipelineAgg"]
        for each in one["pipelineVariables"]
    }
    return {"bucket_script": {"buckets_path": paths, **settings}}


def leaves(answer: Object, agg_ids: list[str]) -> list[Object]:
    """The innermost buckets, with the keys that lead to them."""
    found = [(answer["aggregations"], ())]
    for agg_id in agg_ids:
        found = [
            (bucket, (*keys, bucket["key"]))
            for at, keys in found
            for bucket in at[agg_id]["buckets"]
        ]
    return [{**bucket, "keys": keys} for bucket, keys in found]


def numbers(bucket: Object, metric: Object) -> list[float]:
    """What a metric is in a bucket."""
    if metric["type"] == "count":
        return [bucket["doc_count"]]
    told = bucket.get(metric["id"], {})
    return [
        number for number in told.get("values", told).values() if isinstance(number, float | int)
    ]


def of_visual(state: Object, query: str, begin_ms: int, end_ms: int) -> Object:
    """The search of a visualization by aggregations (src/plugins/data/common/search/aggs)."""
    made = body(query, begin_ms, end_ms)
    metrics = [one for one in state["aggs"] if one["schema"] == "metric"]
    at = made
    for one in state["aggs"]:
        if one["schema"] == "metric":
            continue
        params = one["params"]
        if one["type"] == "date_histogram":
            agg: Object = {
                "date_histogram": {
                    "field": params["field"],
                    "fixed_interval": f"{INTERVAL_MS}ms",
                    "min_doc_count": params["min_doc_count"],
                }
            }
        else:
            order = params["orderBy"]
            counts = any(one["id"] == order and one["type"] == "count" for one in metrics)
            by = "_count" if counts else order
            terms = {"field": params["field"], "size": params["size"]}
            agg = {"terms": terms | {"order": {by: params["order"]}}}
            agg["aggs"] = _kibana_metrics(metrics)
        at.setdefault("aggs", {})[one["id"]] = agg
        at = agg
    at.setdefault("aggs", {}).update(_kibana_metrics(metrics))
    return made


def _kibana_metrics(metrics: list[Object]) -> Object:
    return {
        one["id"]: {
            one["type"]: {
                key: one["params"][key] for key in ("field", "percents") if key in one["params"]
            }
        }
        for one in metrics
        if one["type"] != "count"
    }
