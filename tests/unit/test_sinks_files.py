# SPDX-License-Identifier: Apache-2.0
"""Rows in files and on stdout: whole lines, rotation, retention."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import sink_rows

from podscope.errors import PodscopeError
from podscope.settings import Duration
from podscope.settings import Size
from podscope.sinks.files import Files
from podscope.sinks.files import FilesSettings
from podscope.sinks.plugin import Unavailable


def sink(tmp_path: Path, **settings: object) -> Files:
    """The sink, writing to a directory of the test."""
    return Files(FilesSettings(type="files", path=str(tmp_path), **settings))


def lines(path: Path) -> list[dict[str, object]]:
    """Objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("make", [sink_rows.http_rows, sink_rows.request_rows])
def test_json_has_every_field_that_applies_with_what_all_rows_have_in_common(tmp_path, make):
    # GIVEN
    rows = make()
    one = sink(tmp_path)

    # WHEN
    one.send(rows)
    one.close()

    # THEN
    told = lines(tmp_path / f"{rows.kind}.jsonl")
    assert len(told) == len(rows)
    for place, line in enumerate(told):
        assert (line["kind"], line["host.name"]) == (rows.kind, "node-1")
        for field in rows.fields:
            value = line
            for key in field.path:
                value = value.get(key) if value is not None else None
            if rows.absent(field)[place]:
                assert value is None
            elif field.type != "time":
                assert value == pytest.approx(rows.columns[field.name][place], abs=1e-9)


def test_csv_has_its_header_once_in_each_file(tmp_path):
    # GIVEN
    one = sink(tmp_path, format="csv")
    one.send(sink_rows.request_rows(2))
    one.close()

    # WHEN it goes on after a restart
    again = sink(tmp_path, format="csv")
    again.send(sink_rows.request_rows(3))
    again.close()

    # THEN
    with open(tmp_path / "request.csv", encoding="utf-8", newline="") as file:
        told = [*csv.DictReader(file)]
    assert len(told) == 5
    assert {row["url.path"] for row in told} == {"/items/17"}


def test_csv_with_other_columns_begins_another_file(tmp_path):
    # GIVEN a file of another version
    (tmp_path / "request.csv").write_text("time,what\n1,2\n")
    one = sink(tmp_path, format="csv")

    # WHEN
    one.send(sink_rows.request_rows(2))
    one.close()

    # THEN
    (old,) = tmp_path.glob("request-*.csv")
    assert old.read_text() == "time,what\n1,2\n"
    assert len((tmp_path / "request.csv").read_text().splitlines()) == 3


def test_parquet_has_types_and_nulls(tmp_path):
    # GIVEN
    rows = sink_rows.http_rows()
    one = sink(tmp_path, format="parquet")

    # WHEN
    one.send(rows)

    # THEN
    (file,) = tmp_path.iterdir()
    table = pyarrow.parquet.read_table(file)
    assert table.column("count").to_pylist() == rows.columns["count"].tolist()
    assert table.column("server.address").null_count == 4
    assert str(table.schema.field("time").type) == "timestamp[ns, tz=UTC]"
    assert set(table.column("host.name").to_pylist()) == {"node-1"}


def test_a_file_that_is_large_enough_is_done(tmp_path):
    # GIVEN
    one = sink(tmp_path, rotate_size=Size(2000))

    # WHEN
    for _ in range(10):
        one.send(sink_rows.request_rows(1))
    one.close()

    # THEN no row is in two files, and none is missing
    done = [*tmp_path.glob("request-*.jsonl")]
    assert len(done) >= 2
    assert sum(len(lines(path)) for path in tmp_path.iterdir()) == 10


def test_a_file_that_is_old_enough_is_done(tmp_path):
    # GIVEN
    one = sink(tmp_path, rotate_every=Duration(1))
    one.send(sink_rows.request_rows(1))
    one._open["request"].began -= 2

    # WHEN
    one.send(sink_rows.request_rows(2))
    one.close()

    # THEN
    (done,) = tmp_path.glob("request-*.jsonl")
    assert (len(lines(done)), len(lines(tmp_path / "request.jsonl"))) == (1, 2)


def test_files_that_are_done_are_compressed(tmp_path):
    # GIVEN
    one = sink(tmp_path, rotate_size=Size(1), compress="gzip")

    # WHEN
    one.send(sink_rows.request_rows(3))

    # THEN
    (done,) = tmp_path.iterdir()
    assert done.name.endswith(".jsonl.gz")
    assert len(gzip.decompress(done.read_bytes()).splitlines()) == 3


def test_the_oldest_files_go_when_all_are_too_large(tmp_path):
    # GIVEN
    one = sink(tmp_path, rotate_size=Size(1), keep=Size(5000))

    # WHEN
    for _ in range(20):
        one.send(sink_rows.request_rows(1))

    # THEN
    kept = [*tmp_path.glob("request-*.jsonl")]
    assert 1 <= len(kept) < 20
    assert sum(path.stat().st_size for path in kept) <= 5000


def test_files_of_others_are_left_alone(tmp_path):
    # GIVEN
    (tmp_path / "notes.txt").write_text("x" * 9000)
    one = sink(tmp_path, rotate_size=Size(1), keep=Size(10))

    # WHEN
    one.send(sink_rows.request_rows(1))

    # THEN
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_line_that_a_killed_process_left_half_is_cut_off(tmp_path):
    # GIVEN
    file = tmp_path / "request.jsonl"
    file.write_text('{"whole":1}\n{"ha')
    one = sink(tmp_path)

    # WHEN
    one.send(sink_rows.request_rows(1))
    one.close()

    # THEN
    assert [*lines(file)[0]] == ["whole"]
    assert len(lines(file)) == 2


def test_a_full_disk_leaves_no_torn_line_and_goes_on_when_there_is_room(tmp_path):
    # GIVEN files that may have 3000 bytes (RLIMIT_FSIZE: the write is cut, the next one fails)
    one = sink(tmp_path)
    one.send(sink_rows.request_rows(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))

    # WHEN
    try:
        with pytest.raises(Unavailable, match=r"cannot write to .*: File too large"):
            one.send(sink_rows.request_rows(9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    # THEN
    assert len(lines(tmp_path / "request.jsonl")) == 1
    one.send(sink_rows.request_rows(9))
    assert len(lines(tmp_path / "request.jsonl")) == 10


def test_a_file_that_was_moved_away_is_made_anew(tmp_path):
    # GIVEN
    one = sink(tmp_path)
    one.send(sink_rows.request_rows(1))
    (tmp_path / "request.jsonl").rename(tmp_path / "taken")

    # WHEN
    one.send(sink_rows.request_rows(2))

    # THEN
    assert len(lines(tmp_path / "request.jsonl")) == 2


def test_stdout_gets_whole_lines_through_a_full_pipe():
    # GIVEN more than a pipe holds, and a pipe that does not block
    code = (
        "import os, sys; sys.path.insert(0, 'tests/unit'); import sink_rows\n"
        "from podscope.sinks.files import Files, FilesSettings\n"
        "os.set_blocking(1, False)\n"
        "Files(FilesSettings(type='files')).send(sink_rows.request_rows(2000))\n"
    )

    # WHEN
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )

    # THEN
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in io.BytesIO(done.stdout)]
    assert len(told) == 2000


def test_a_directory_that_cannot_be_is_refused_at_the_start(tmp_path):
    # GIVEN
    file = tmp_path / "file"
    file.write_text("")

    # WHEN / THEN
    with pytest.raises(PodscopeError, match=f"cannot write to {file / 'in'}: Not a directory"):
        sink(file / "in")


def test_parquet_on_stdout_is_refused():
    with pytest.raises(ValueError, match="parquet is for files"):
        FilesSettings(type="files", format="parquet")


def test_half_written_files_are_removed_at_the_start(tmp_path):
    # GIVEN
    (tmp_path / "http-1.parquet.tmp").write_bytes(b"PAR1")

    # WHEN
    sink(tmp_path, format="parquet").close()

    # THEN
    assert os.listdir(tmp_path) == []
