# SPDX-License-Identifier: Apache-2.0
"""Batches for tests, with the dtypes of the real records (no root needed)."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

import podscope
from podscope.batch import Batch
from podscope.batch import Identity
from podscope.batch import Service
from podscope.kernel import btf

HEADER = Path(__file__).parents[2] / "bpf" / "http" / "http.h"
OBJECT = Path(podscope.__file__).parent / "_bpf" / "http.bpf.o"
TIME_NS = 1_790_000_000_123_456_789

NGINX = Identity("unit", "nginx.service", "nginx", 100, "", "/system.slice/nginx.service")
SHOP = Identity("container", "shop", "python3", 200, "4f6d" * 16, "/docker/4f6d")
CURL = Identity("process", "curl", "curl", 300)
# Two pods of a deployment behind a Service, the second also behind another one, and a bare pod.
WEB_A = Identity(
    "deployment", "web", "nginx", 11, "a" * 64, namespace="shop", pod="web-1-a", pod_uid="u-a",
    container="nginx", node="node-1", services=(Service("web", (80,)),),
)  # fmt: skip
WEB_B = Identity(
    "deployment", "web", "nginx", 12, "b" * 64, namespace="shop", pod="web-1-b", pod_uid="u-b",
    container="nginx", node="node-2", services=(Service("web", (80,)), Service("all")),
)  # fmt: skip
BARE = Identity(
    "pod", "web", "curl", 13, "c" * 64, namespace="lab", pod="web", pod_uid="u-c",
    container="curl", node="node-2",
)  # fmt: skip


@functools.cache
def types() -> btf.Btf:
    """BTF of the records: of the built object, or of the header compiled alone."""
    if OBJECT.exists():
        return btf.read_elf(OBJECT)
    return _compiled()


def _compiled() -> btf.Btf:
    clang = os.environ.get("CLANG") or shutil.which("clang-19") or shutil.which("clang")
    if clang is None:
        pytest.skip("no clang and no compiled http.bpf.o: run 'make build'")
    structs = ("http_row", "http_request", "process")
    enums = ("http_side", "http_method", "http_version", "http_error", "http_peer", "http_lost")
    source = f'#include <linux/types.h>\n#include "{HEADER}"\n'
    source += "".join(f"struct {name} a_{name};\n" for name in structs)
    source += "".join(f"enum {name} a_{name};\n" for name in enums)
    with tempfile.TemporaryDirectory() as directory:
        built = Path(directory) / "records.o"
        include = (f"-I/usr/include/{platform.machine()}-linux-gnu", f"-I{HEADER.parents[1]}")
        subprocess.run(
            [clang, "-g", "-O2", "-target", "bpf", *include, "-x", "c", "-c", "-", "-o", built],
            input=source.encode(),
            check=True,
        )
        return btf.read_elf(built)


def http_rows(n: int) -> np.ndarray:
    """``n`` zeroed rows of ``struct http_row``."""
    return np.zeros(n, dtype=types().dtype("http_row"))


def requests(n: int) -> np.ndarray:
    """``n`` zeroed rows of ``struct http_request``."""
    return np.zeros(n, dtype=types().dtype("http_request"))


def bucket_of(ns: int) -> int:
    """The bucket that holds a duration, by the definition: (2^(k/8), 2^((k+1)/8)] seconds."""
    edges = 2.0 ** ((np.arange(257) - 160) / 8)
    return int(np.clip(np.searchsorted(edges, ns / 1e9, side="left") - 1, 0, 255))


def fill(row: np.void, durations_ns: list[int]) -> None:
    """Give a row the histograms, sums and maximum of these durations."""
    bounds = [.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10]  # fmt: skip
    for ns in durations_ns:
        row["le"][int(np.searchsorted(bounds, ns / 1e9, side="left"))] += 1
        row["buckets"][bucket_of(ns)] += 1
    row["count"] = len(durations_ns)
    row["sum_ns"] = sum(durations_ns)
    row["max_ns"] = max(durations_ns, default=0)


def http_batch(
    rows: np.ndarray,
    identity: list[int] | np.ndarray,
    identities: tuple[Identity, ...] = (NGINX, SHOP, CURL),
    **more: object,
) -> Batch:
    """A batch of kind ``http`` over one second."""
    index = np.asarray(identity, dtype=np.uint32)
    return Batch("http", rows, index, identities, TIME_NS, 1.0, **more)


def shop_batch() -> Batch:
    """Five rows: nginx and shop as servers, curl as a client; 60 exchanges."""
    rows = http_rows(5)
    key = rows["key"]
    key["cgroup_id"] = [1, 1, 2, 2, 3]
    key["pid"] = [100, 101, 200, 200, 300]
    key["port"] = [80, 80, 8080, 8080, 80]
    key["side"] = [1, 1, 1, 1, 2]
    key["method"] = [1, 1, 1, 3, 1]
    key["status"] = [200, 404, 200, 500, 404]
    key["version"] = [11, 11, 11, 11, 10]
    key["route"] = [7, 1, 7, 9, 0]
    key["peer"][4] = [0] * 10 + [255, 255, 192, 0, 2, 7]
    key["peer_class"] = [1, 1, 1, 1, 3]
    for row, count, ms in zip(rows, (30, 10, 12, 3, 5), (1, 2, 30, 700, 40), strict=True):
        fill(row, [ms * 1_000_000] * count)
    rows["request_bytes"] = [0, 0, 0, 300, 0]
    rows["response_bytes"] = [3000, 100, 1200, 30, 50]
    rows["ttfb_sum_ns"] = rows["sum_ns"] // 2
    return http_batch(rows, [0, 0, 1, 1, 2], routes={7: "/items/*", 9: "/pay"})


def cluster_batch() -> Batch:
    """The rows of ``shop_batch``, of pods: two of web as servers, a bare one as a client."""
    whole = shop_batch()
    return http_batch(whole.rows, whole.identity, (WEB_A, WEB_B, BARE), routes=whole.routes)


def request_batch(n: int = 1, **members: object) -> Batch:
    """``n`` equal exchanges: curl's GET to nginx, seen by nginx, unless ``members`` say more."""
    rows = requests(n)
    told = {
        "time_ns": 5_000_000_000,
        "duration_ns": 2_500_000,
        "ttfb_ns": 2_000_000,
        "response_bytes": 612,
        "local_port": 80,
        "peer_port": 40000,
        "pid": 100,
        "status": 200,
        "side": 1,
        "method": 1,
        "version": 11,
        "peer_class": 1,
        "peer": [0] * 10 + [255, 255, 127, 0, 0, 1],
        "path": b"/items/17?full=1",
        "path_len": 16,
        "host": b"shop.example:8080",
        "agent": b"curl/8",
        "method_text": b"GET",
        "trace_id": list(range(1, 17)),
        "span_id": list(range(1, 9)),
    } | members
    for name, value in told.items():
        rows[name] = value
    index = np.zeros(n, dtype=np.uint32)
    offset = TIME_NS - 5_000_000_000
    return Batch("request", rows, index, (NGINX,), TIME_NS, 1.0, clock_offset_ns=offset)
