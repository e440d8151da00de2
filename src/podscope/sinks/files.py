# SPDX-License-Identifier: Apache-2.0
"""Rows as files: JSON lines, CSV or Parquet, rotated; or as lines on stdout for log shippers."""

from __future__ import annotations

import gzip
import os
import select
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import Literal

from msgspec import Meta

from podscope import render
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.settings import Duration
from podscope.settings import Size
from podscope.sinks.plugin import Every
from podscope.sinks.plugin import SinkSettings
from podscope.sinks.plugin import Unavailable
from podscope.sinks.rows import Rows

STDOUT = "-"
SUFFIXES = {"json": ".jsonl", "csv": ".csv", "parquet": ".parquet"}
# Parquet compresses columns by themselves: the more rows in a file, the better.
PARQUET_ROWS = 100_000


class FilesSettings(SinkSettings, frozen=True, kw_only=True):
    """Settings of the sink ``files``."""

    path: Annotated[str, Meta(description="directory, or `-` for stdout")] = STDOUT
    format: Annotated[
        Literal["json", "csv", "parquet"], Meta(description="`json` is one object a line")
    ] = "json"
    every: Annotated[Every, Meta(description="time between two deliveries")] = Every(1)
    rotate_size: Annotated[Size, Meta(description="a file that is larger is done")] = Size(
        100 << 20
    )
    rotate_every: Annotated[Duration, Meta(description="a file that is older is done")] = Duration(
        3600
    )
    compress: Annotated[Literal["none", "gzip"], Meta(description="files that are done")] = "none"
    keep: Annotated[Size, Meta(description="all files together; the oldest go")] = Size(1 << 30)

    def __post_init__(self) -> None:
        if self.path == STDOUT and self.format == "parquet":
            raise ValueError("format: parquet is for files; set path to a directory")


class Files:
    """Writes rows to files of one directory, or to stdout.

    A line is never torn: what a full disk or a killed process left of one is taken away before the
    next is written.
    """

    Settings: ClassVar[type[SinkSettings]] = FilesSettings

    def __init__(self, settings: FilesSettings) -> None:
        self._settings = settings
        self._open: dict[str, _File] = {}
        self.most_rows = PARQUET_ROWS if settings.format == "parquet" else 5000
        if settings.path == STDOUT:
            return
        if settings.format == "parquet":
            _arrow()
        try:
            os.makedirs(settings.path, exist_ok=True)
        except OSError as error:
            raise PodscopeError(f"cannot write to {settings.path}: {error.strerror}") from None
        if not os.access(settings.path, os.W_OK | os.X_OK):
            raise PodscopeError(f"cannot write to {settings.path}: permission denied")
        for torn in Path(settings.path).glob("*.tmp"):
            torn.unlink(missing_ok=True)

    def send(self, rows: Rows) -> None:
        """Writes the rows. Raises Unavailable: the disk is full, or nobody reads stdout."""
        try:
            if self._settings.path == STDOUT:
                self._to_stdout(rows)
            elif self._settings.format == "parquet":
                self._parquet(rows)
            else:
                self._lines(rows)
        except OSError as error:
            raise Unavailable(f"cannot write to {self._where()}: {error.strerror}") from None

    def close(self) -> None:
        """Closes the files; they are gone on with at the next start."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _where(self) -> str:
        return "stdout" if self._settings.path == STDOUT else self._settings.path

    def _to_stdout(self, rows: Rows) -> None:
        sys.stdout.flush()
        _write_all(sys.stdout.fileno(), self._text(rows).encode())

    def _text(self, rows: Rows) -> str:
        fields, columns = rows.with_resource()
        if self._settings.format == "csv":
            return render.csv_lines(fields, columns)
        return render.json_lines(rows.kind, fields, columns)

    def _lines(self, rows: Rows) -> None:
        fields, _ = rows.with_resource()
        head = render.csv_header(fields) if self._settings.format == "csv" else ""
        file = self._file(rows.kind, head)
        file.append(self._text(rows).encode())
        if file.size >= self._settings.rotate_size:
            self._rotate(rows.kind)

    def _file(self, kind: str, head: str) -> _File:
        """The file that is written to now."""
        path = Path(self._settings.path) / f"{kind}{SUFFIXES[self._settings.format]}"
        file = self._open.get(kind)
        if file is not None and not file.is_there():
            # Somebody else has moved it away.
            file.close()
            file = None
        if file is None:
            file = self._open[kind] = _File(path)
        old = time.time() - file.began >= self._settings.rotate_every
        if file.size and (old or not file.begins_with(head)):
            self._rotate(kind)
            file = self._open[kind] = _File(path)
        if not file.size:
            file.append(head.encode())
        return file

    def _rotate(self, kind: str) -> None:
        file = self._open.pop(kind)
        file.close()
        done = file.path.with_name(f"{kind}-{_stamp()}{file.path.suffix}")
        file.path.rename(done)
        if self._settings.compress == "gzip":
            torn = done.with_name(done.name + ".gz.tmp")
            with open(done, "rb") as plain, gzip.open(torn, "wb", compresslevel=6) as packed:
                shutil.copyfileobj(plain, packed, 1 << 20)
            torn.rename(done.with_name(done.name + ".gz"))
            done.unlink()
        self._tidy()

    def _parquet(self, rows: Rows) -> None:
        pyarrow, parquet = _arrow()
        fields, columns = rows.with_resource()
        types = {
            "text": pyarrow.string(),
            "int": pyarrow.int64(),
            "float": pyarrow.float64(),
            "time": pyarrow.timestamp("ns", tz="UTC"),
        }
        table = pyarrow.table(
            {
                one.name: pyarrow.array(
                    columns[one.name],
                    types[one.type],
                    mask=rows.absent(one) if one.name in rows.columns else None,
                )
                for one in fields
            }
        )
        path = Path(self._settings.path) / f"{rows.kind}-{_stamp()}.parquet"
        torn = path.with_name(path.name + ".tmp")
        parquet.write_table(table, torn, compression="zstd")
        torn.rename(path)
        self._tidy()

    def _tidy(self) -> None:
        """Removes the oldest files that are done, while all together are too large."""
        done = []
        for path in Path(self._settings.path).iterdir():
            if path.suffix in (*SUFFIXES.values(), ".gz") and "-" in path.name:
                about = path.stat()
                done.append((about.st_mtime_ns, about.st_size, path))
        total = sum(size for _, size, _ in done)
        for _, size, path in sorted(done):
            if total <= self._settings.keep:
                return
            path.unlink(missing_ok=True)
            total -= size


class _File:
    """A file of lines that is appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self.size = self._without_torn_line()
        about = os.fstat(self._number)
        self._inode = (about.st_dev, about.st_ino)
        # Of a file from before, the last write is all that is known.
        self.began = about.st_mtime if self.size else time.time()

    def _without_torn_line(self) -> int:
        """Cuts off what follows the last line's end; gives the size then."""
        size = os.fstat(self._number).st_size
        end = size
        while end > 0:
            start = max(end - (1 << 16), 0)
            found = os.pread(self._number, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._number, end)
        return end

    def is_there(self) -> bool:
        """Whether its name still leads to it."""
        try:
            about = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (about.st_dev, about.st_ino) == self._inode

    def begins_with(self, head: str) -> bool:
        """Whether its first line is this one; an empty head is every file's."""
        return os.pread(self._number, len(head.encode()), 0) == head.encode()

    def append(self, lines: bytes) -> None:
        """Writes whole lines, or nothing. Raises OSError."""
        try:
            _write_all(self._number, lines)
        except OSError:
            os.ftruncate(self._number, self.size)
            raise
        self.size += len(lines)

    def close(self) -> None:
        """Closes it."""
        os.close(self._number)


def _write_all(number: int, raw: bytes) -> None:
    left = memoryview(raw)
    while left:
        try:
            left = left[os.write(number, left) :]
        except BlockingIOError:
            select.select((), (number,), ())


def _stamp() -> str:
    """A time that sorts as a text, to the microsecond."""
    now = time.time_ns()
    return (
        time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 10**9)) + f".{now // 1000 % 10**6:06d}Z"
    )


def _arrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(
            f"format: parquet needs {error.name}: pip install 'podscope[arrow]'"
        ) from None
