# SPDX-License-Identifier: Apache-2.0
"""Batches as data frames and as Arrow tables: their types, and what is said without the library."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import records

from podscope import schema

ARROW = {"text": "string", "int": "int64", "float": "double", "time": "timestamp[ns, tz=UTC]"}
PANDAS = {"text": "string", "int": "int64", "float": "float64", "time": "datetime64[ns, UTC]"}
BATCHES = {
    "rows": records.shop_batch,
    "no rows": lambda: records.http_batch(records.http_rows(0), []),
    "pods": records.cluster_batch,
    "requests": records.request_batch,
    "no requests": lambda: records.request_batch(0),
    "a client's": lambda: records.request_batch(2, side=2, host=b"", agent=b"", status=0),
}
each_batch = pytest.mark.parametrize("make", BATCHES.values(), ids=BATCHES.keys())


def fields_of(batch):
    """The fields of the batch's columns, by name."""
    fields = schema.REQUEST if batch.kind == "request" else schema.HTTP
    told = schema.columns(batch)
    return {one.name: one for one in fields if one.name in told}


@each_batch
def test_arrow_columns_have_the_types_of_their_fields_whatever_is_in_them(make):
    # GIVEN
    pytest.importorskip("pyarrow")
    batch = make()

    # WHEN
    table = batch.to_arrow()

    # THEN
    expected = {name: ARROW[one.type] for name, one in fields_of(batch).items()}
    assert {one.name: str(one.type) for one in table.schema} == expected
    assert table.num_rows == len(batch)


@each_batch
def test_data_frames_have_the_types_of_their_fields_whatever_is_in_them(make):
    # GIVEN
    pytest.importorskip("pandas")
    batch = make()

    # WHEN
    frame = batch.to_pandas()

    # THEN
    expected = {
        name: "Int64" if one.blank and one.type == "int" else PANDAS[one.type]
        for name, one in fields_of(batch).items()
    }
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == expected
    assert len(frame) == len(batch)


def test_arrow_tables_of_different_batches_go_together():
    # GIVEN a batch with routes and errors, one with neither, and an empty one
    pyarrow = pytest.importorskip("pyarrow")
    whole = records.shop_batch()
    plain = records.http_batch(whole.rows[:1].copy(), [0])
    plain.rows["key"]["route"] = 0
    empty = records.http_batch(records.http_rows(0), [])

    # WHEN
    table = pyarrow.concat_tables([one.to_arrow() for one in (whole, plain, empty)])

    # THEN
    assert table.num_rows == 6
    assert table.column("http.route").to_pylist() == [
        "/items/*", "_OTHER", "/items/*", "/pay", None, None,
    ]  # fmt: skip


def test_numbers_that_do_not_apply_are_null():
    # GIVEN an exchange without an answer, seen by the client
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    batch = records.request_batch(1, side=2, status=0, error=1, peer_port=80)

    # WHEN
    told, row = batch.to_arrow().to_pylist()[0], batch.to_pandas().iloc[0]

    # THEN
    absent = ("http.response.status_code", "client.port", "podscope.target.size")
    assert [told[name] for name in absent] == [None] * 3
    assert [row[name] for name in absent] == [pandas.NA] * 3
    assert told["server.port"] == row["server.port"] == 80
    assert told["http.request.body.size"] == row["http.request.body.size"] == 0
    assert schema.columns(batch)["http.response.status_code"].tolist() == [0]


def test_times_are_in_utc_to_the_nanosecond():
    # GIVEN
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    batch = records.shop_batch()

    # WHEN
    in_arrow, in_pandas = batch.to_arrow().column("time")[0], batch.to_pandas()["time"][0]

    # THEN
    assert in_arrow.value == in_pandas.value == records.TIME_NS
    assert in_pandas == pandas.Timestamp(np.datetime64(records.TIME_NS, "ns"), tz="UTC")


WITHOUT = """
import sys
sys.path.insert(0, "tests/unit")
sys.modules[sys.argv[1]] = None
import records
from podscope.errors import PodscopeError
try:
    getattr(records.shop_batch(), sys.argv[2])()
except ImportError as error:
    assert isinstance(error, PodscopeError)
    print(error)
"""


@pytest.mark.parametrize(
    ("library", "method", "extra"),
    [("pandas", "to_pandas", "pandas"), ("pyarrow", "to_arrow", "arrow")],
)
def test_without_the_library_the_error_says_how_to_get_it(library, method, extra):
    # GIVEN / WHEN
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, library, method],
        capture_output=True,
        text=True,
        cwd=records.HEADER.parents[2],
        check=False,
    )

    # THEN
    wanted = f"Batch.{method}() needs {library}: pip install 'podscope[{extra}]'\n"
    assert (done.stdout, done.stderr, done.returncode) == (wanted, "", 0)
