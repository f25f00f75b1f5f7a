"""Inputs of batch prediction: data of any size as parts, and the rows of a part. No Ray, no model.

    folder or glob of files    a row a file: a picture, a sound, a clip, a text
    *.jsonl *.tsv *.csv        a row a line or record; the column holds a text, or a path of a file
    *.parquet                  likewise, or the column holds a file's bytes
    *.txt                      a row a line
    folder of a built split    a row an example, encoded already

A part is a range of rows with the place where they start, so that any process reads it alone, in
bounded memory. Rows come in a fixed order: files by path, records as they stand; empty lines count
for none. A row that cannot be read keeps its place and says why.
"""

import codecs
import csv
import glob
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import MMTrainError, UnknownNameError
from pipelines.shards import COMPLETED, MANIFEST, Manifest, ShardReader, open_manifest

Kind = Literal["files", "jsonl", "tsv", "csv", "txt", "parquet", "split"]

TABLES: dict[str, Kind] = {
    ".jsonl": "jsonl", ".tsv": "tsv", ".csv": "csv", ".parquet": "parquet"
}  # fmt: skip
DEFAULT_COLUMN = "input"
_MAX_RECORD_BYTES = 2**26


class BatchInputError(MMTrainError):
    """The data cannot be read as inputs; says which and how it can."""


@dataclass(frozen=True, slots=True)
class InputData:
    """Data that is predicted from.

    Args:
        uri: as it was given.
        kind: how it is read.
        files: absolute paths, sorted; of a built split, its folder.
        column: that holds the inputs, of tables.
        digest: changes when a file does: of paths, sizes and times.
        manifest: of a built split.
    """

    uri: str
    kind: Kind
    files: tuple[str, ...]
    column: str
    digest: str
    manifest: Manifest | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Rows [first_row, first_row + num_rows), all of one file or whole files.

    Args:
        number: of the part, from 0.
        first_row: number of its first row in the data.
        num_rows: rows that it holds.
        files: paths: the table, or a file for each row.
        offset: byte at which its first record starts; of Parquet, its first row in the group.
        line: number of that record's line; of Parquet, the row group.
    """

    number: int
    first_row: int
    num_rows: int
    files: tuple[str, ...] = ()
    offset: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One input. `value` is what `encode` takes, or an encoded array; None: see `problem`."""

    number: int
    origin: str
    shown: str | None = None
    value: str | bytes | Path | np.ndarray | None = field(default=None, compare=False)
    problem: str | None = None


def open_input(uri: str, *, column: str | None = None) -> InputData:
    """Finds what a folder, file or pattern holds.

    Raises:
        BatchInputError: there is nothing, or files of different kinds of tables.
        UnknownNameError: a table has no such column.
        CorpusError: a built split is damaged.
    """
    path = Path(uri)
    if (path / COMPLETED).is_file() and (path / MANIFEST).is_file():
        manifest = open_manifest(path.absolute())
        return InputData(uri, "split", (str(path.absolute()),), "", manifest.digest, manifest)
    files = tuple(str(file.absolute()) for file in _find(uri))
    if not files:
        raise BatchInputError(f"no files at {uri}; give a folder, a file or a pattern")
    kind = _kind(files, single=path.is_file())
    data = InputData(uri, kind, files, column or DEFAULT_COLUMN, _digest(files))
    if kind in TABLES.values():
        _check_column(data)
    elif column:
        raise BatchInputError(f"--column {column} is of tables; {uri} is read as {kind}")
    return data


def parts(data: InputData, *, rows_a_part: int) -> Iterator[Part]:
    """The parts of the data, in order; tables are read through once to find where they start."""
    if data.manifest is not None:
        yield from _ranges(data.manifest.num_examples, rows_a_part, files=data.files)
    elif data.kind == "files":
        for number, start in enumerate(range(0, len(data.files), rows_a_part)):
            files = data.files[start : start + rows_a_part]
            yield Part(number, start, len(files), files)
    else:
        yield from _table_parts(data, rows_a_part)


def read_rows(data: InputData, part: Part) -> Iterator[Row]:
    """The rows of a part, in order, one after another."""
    if data.manifest is not None:
        yield from _split_rows(data.manifest, part)
    elif data.kind == "files":
        for number, file in enumerate(part.files, start=part.first_row):
            yield Row(number, file, file, Path(file))
    elif data.kind == "parquet":
        yield from _parquet_rows(data, part)
    else:
        yield from _record_rows(data, part)


# ---- what there is


def _find(uri: str) -> list[Path]:
    path = Path(uri)
    if path.is_file():
        return [path]
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(uri, recursive=True))
    hidden = (".", "_")
    return sorted(file for file in found if file.is_file() and not file.name.startswith(hidden))


def _kind(files: tuple[str, ...], *, single: bool) -> Kind:
    suffixes = {Path(file).suffix.lower() for file in files}
    tables = suffixes & set(TABLES)
    if tables and len(suffixes) > 1:
        raise BatchInputError(
            f"files of several kinds: {', '.join(sorted(suffixes))}; give those of one, as in "
            "'data/*.jsonl'"
        )
    if tables:
        return TABLES[tables.pop()]
    return "txt" if single and suffixes == {".txt"} else "files"


def _digest(files: tuple[str, ...]) -> str:
    facts = [(file, Path(file).stat()) for file in files]
    held = [[file, stat.st_size, stat.st_mtime_ns] for file, stat in facts]
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()


def _check_column(data: InputData) -> None:
    for file in data.files if data.kind != "jsonl" else ():
        names = _columns(data.kind, file)
        if data.column not in names:
            raise UnknownNameError(f"column of {file}", data.column, names)


def _columns(kind: Kind, file: str) -> tuple[str, ...]:
    if kind == "parquet":
        try:
            return tuple(pq.read_schema(file).names)
        except (pa.ArrowInvalid, OSError) as error:
            raise BatchInputError(f"{file} is not read as Parquet: {error}") from None
    with Path(file).open("rb") as stream:
        return next((record.cells for record in _records(stream, kind=kind, file=file)), ())


# ---- parts of tables


def _ranges(total: int, size: int, *, files: tuple[str, ...]) -> Iterator[Part]:
    for number, start in enumerate(range(0, total, size)):
        yield Part(number, start, min(size, total - start), files)


def _table_parts(data: InputData, size: int) -> Iterator[Part]:
    number = row = 0
    for file in data.files:
        found = _parquet_places(file, size) if data.kind == "parquet" else _places(data, file, size)
        for count, offset, line in found:
            yield Part(number, row, count, (file,), offset, line)
            number, row = number + 1, row + count


def _parquet_places(file: str, size: int) -> Iterator[tuple[int, int, int]]:
    metadata = pq.read_metadata(file)
    for group in range(metadata.num_row_groups):
        total = metadata.row_group(group).num_rows
        for start in range(0, total, size):
            yield min(size, total - start), start, group


def _places(data: InputData, file: str, size: int) -> Iterator[tuple[int, int, int]]:
    """(records, offset, line) of each range of `size` records of a file."""
    count, start = 0, (0, 0)
    with Path(file).open("rb") as stream:
        records = _records(stream, kind=data.kind, file=file)
        if data.kind in ("tsv", "csv"):
            next(records, None)
        for record in records:
            if count == size:
                yield count, *start
                count = 0
            if count == 0:
                start = (record.offset, record.line)
            count += 1
    if count:
        yield count, *start


# ---- records of a file of lines


@dataclass(frozen=True, slots=True)
class _Record:
    offset: int
    line: int
    cells: tuple[str, ...]  # undecodable bytes as surrogates


class _Lines:
    """Lines of a file as text, bounded, with how far it was read."""

    def __init__(self, stream: BinaryIO, *, line: int, file: str) -> None:
        self._stream, self._file = stream, file
        self.offset, self.line = stream.tell(), line

    def __iter__(self) -> Iterator[str]:
        while text := self._stream.readline(_MAX_RECORD_BYTES + 1):
            if len(text) > _MAX_RECORD_BYTES:
                raise BatchInputError(
                    f"{self._file}:{self.line}: a line of more than {_MAX_RECORD_BYTES:,} bytes"
                )
            mark = codecs.BOM_UTF8 if self.offset == 0 else b""
            self.offset, self.line = self.offset + len(text), self.line + 1
            yield text.removeprefix(mark).decode("utf-8", "surrogateescape")


def _records(stream: BinaryIO, *, kind: Kind, file: str, line: int = 1) -> Iterator[_Record]:
    """Records from where the stream stands, which is the start of a line of that number."""
    lines = _Lines(stream, line=line, file=file)
    start = (lines.offset, line)
    if kind == "csv":
        csv.field_size_limit(_MAX_RECORD_BYTES)
        try:
            for cells in csv.reader(lines):
                if cells:
                    yield _Record(*start, tuple(cells))
                start = (lines.offset, lines.line)
        except csv.Error as error:
            raise BatchInputError(f"{file}:{start[1]}: not CSV: {error}") from None
        return
    for text in lines:
        text = text.rstrip("\r\n")
        if text.strip():
            yield _Record(*start, tuple(text.split("\t")) if kind == "tsv" else (text,))
        start = (lines.offset, lines.line)


def _record_rows(data: InputData, part: Part) -> Iterator[Row]:
    (file,) = part.files
    names = _columns(data.kind, file) if data.kind in ("tsv", "csv") else ()
    with Path(file).open("rb") as stream:
        stream.seek(part.offset)
        records = _records(stream, kind=data.kind, file=file, line=part.line)
        for number, record in zip(
            range(part.first_row, part.first_row + part.num_rows), records, strict=False
        ):
            origin = f"{file}:{record.line}"
            try:
                value = _cell(record, data=data, names=names)
                value.encode("utf-8")
            except UnicodeEncodeError:
                yield Row(number, origin, problem="not UTF-8")
            except ValueError as error:
                yield Row(number, origin, problem=str(error))
            else:
                yield Row(number, origin, value, value)


def _cell(record: _Record, *, data: InputData, names: tuple[str, ...]) -> str:
    """The input of a record.

    Raises:
        ValueError: says why there is none.
    """
    if data.kind == "txt":
        return record.cells[0]
    if data.kind == "jsonl":
        held = json.loads(record.cells[0])  # its error is a ValueError
        value = held.get(data.column) if isinstance(held, dict) else None
        if not isinstance(value, str):
            raise ValueError(f"no text in {data.column!r}")
        return value
    if len(record.cells) != len(names):
        raise ValueError(f"{len(record.cells)} columns, the header has {len(names)}")
    return record.cells[names.index(data.column)]


def _parquet_rows(data: InputData, part: Part) -> Iterator[Row]:
    (file,) = part.files
    number, skip, left = part.first_row, part.offset, part.num_rows
    with pq.ParquetFile(file) as table:
        batches = table.iter_batches(64, row_groups=[part.line], columns=[data.column])
        for batch in batches:
            for value in batch.column(0).slice(min(skip, len(batch))).to_pylist():
                if left == 0:
                    return
                origin = f"{file}:{part.line}:{part.offset + number - part.first_row}"
                if isinstance(value, str | bytes):
                    yield Row(number, origin, value if isinstance(value, str) else None, value)
                else:
                    yield Row(number, origin, problem=f"{type(value).__name__}, no text or bytes")
                number, left = number + 1, left - 1
            skip = max(0, skip - len(batch))


def _split_rows(manifest: Manifest, part: Part) -> Iterator[Row]:
    stored = manifest.with_inputs(manifest.task.inputs.as_asked())  # each task finishes its own
    reader, name = ShardReader([stored], cache_bytes=2**26), manifest.task.name
    for number in range(part.first_row, part.first_row + part.num_rows):
        (example,) = reader.read(name, rows=np.array([number]))
        yield Row(number, f"{name}:{number}", None, example.inputs)
