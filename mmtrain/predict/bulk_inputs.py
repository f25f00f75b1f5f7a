"""Inputs of batch prediction: data of any size as parts, and the rows of a part. No Ray, no model.

    folder or glob of files    a row a file: a picture, a sound, a clip, a text
    *.jsonl *.tsv *.csv        a row a line or record; the column holds a text, or a path of a file
    *.parquet                  likewise, or the column holds a file's bytes
    *.txt                      a row a line
    folder of a built split    a row an example, encoded already

A part is a range of rows with the place where they start, so that any process reads it alone, in
bounded memory. Rows come in a fixed order: files by path, records as they stand; empty lines count
for none. A row that cannot be read keeps its place and says why: the readers of pyarrow, and with
them Ray Data's, give up a whole file for one bad record and say no record's place.
"""

import csv
import glob
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmtrain.predict.values import Value
from pipelines.errors import BadExampleError, MMTrainError, UnknownNameError
from pipelines.shards import COMPLETED, MANIFEST, Manifest, ShardReader, open_manifest

InputKind = Literal["files", "jsonl", "tsv", "csv", "txt", "parquet", "split"]

TABLES: dict[str, InputKind] = {
    ".jsonl": "jsonl", ".tsv": "tsv", ".csv": "csv", ".parquet": "parquet"
}  # fmt: skip
DEFAULT_COLUMN = "input"
_WITH_HEADER = ("tsv", "csv")
_MAX_RECORD_BYTES = 2**26

_Read = tuple[str, str | None, Value]  # origin, what is shown, value; see `Row`


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
    kind: InputKind
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
    """One input.

    Args:
        number: of the row in the data, from 0.
        origin: where it stands, for a person: file, line or row.
        shown: the input as the output repeats it; None: bytes or an array.
        value: text, path, a file's bytes or an encoded array; an error: why there is none.
    """

    number: int
    origin: str
    shown: str | None
    value: Value


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
    if column and kind not in TABLES.values():
        raise BatchInputError(f"--column {column} is of tables; {uri} is read as {kind}")
    column = column or DEFAULT_COLUMN
    for file in files if kind in ("tsv", "csv", "parquet") else ():
        if column not in (names := _columns(kind, file)):
            raise UnknownNameError(f"column of {file}", column, names)
    return InputData(uri, kind, files, column, _digest(files))


def parts(data: InputData, *, rows_a_part: int) -> Iterator[Part]:
    """The parts of the data, in order; tables are read through once to find where they start."""
    first_row = 0
    for number, (num_rows, files, offset, line) in enumerate(_places(data, rows_a_part)):
        yield Part(number, first_row, num_rows, files, offset, line)
        first_row += num_rows


def _places(data: InputData, size: int) -> Iterator[tuple[int, tuple[str, ...], int, int]]:
    """Rows, files, offset and line of each part of at most `size` rows."""
    if data.manifest is not None:
        for count, offset in _ranges(data.manifest.num_examples, size):
            yield count, data.files, offset, 0
    elif data.kind == "files":
        for count, offset in _ranges(len(data.files), size):
            yield count, data.files[offset : offset + count], 0, 0
    elif data.kind == "parquet":
        for file in data.files:
            metadata = pq.read_metadata(file)
            for group in range(metadata.num_row_groups):
                for count, offset in _ranges(metadata.row_group(group).num_rows, size):
                    yield count, (file,), offset, group
    else:
        for file in data.files:
            records = _records(file, kind=data.kind)
            if data.kind in _WITH_HEADER:
                next(records, None)
            for first in records:
                count = 1 + sum(1 for _ in islice(records, size - 1))
                yield count, (file,), first.offset, first.line


def _ranges(total: int, size: int) -> list[tuple[int, int]]:
    """Length and start of each range of at most `size` of `total` rows."""
    return [(min(size, total - start), start) for start in range(0, total, size)]


def read_rows(data: InputData, part: Part) -> Iterator[Row]:
    """The rows of a part, in order, one after another."""
    if data.manifest is not None:
        rows = _split_rows(data.manifest, part)
    elif data.kind == "files":
        rows = ((file, file, Path(file)) for file in part.files)
    elif data.kind == "parquet":
        rows = _parquet_rows(data, part)
    else:
        rows = _record_rows(data, part)
    for number, (origin, shown, value) in enumerate(rows, start=part.first_row):
        yield Row(number, origin, shown, value)


# ---- what there is


def _find(uri: str) -> list[Path]:
    path = Path(uri)
    if path.is_file():
        return [path]
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(uri, recursive=True))
    hidden = (".", "_")
    return sorted(file for file in found if file.is_file() and not file.name.startswith(hidden))


def _kind(files: tuple[str, ...], *, single: bool) -> InputKind:
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


def _columns(kind: InputKind, file: str) -> tuple[str, ...]:
    """Names of the columns of a table that has such, from its schema or header."""
    if kind == "parquet":
        try:
            return tuple(pq.read_schema(file).names)
        except (pa.ArrowInvalid, OSError) as error:
            raise BatchInputError(f"{file} is not read as Parquet: {error}") from None
    return next((record.cells for record in _records(file, kind=kind)), ())


# ---- records of a file of lines


@dataclass(frozen=True, slots=True)
class _Record:
    offset: int
    line: int
    cells: tuple[str, ...]  # undecodable bytes as surrogates


class _Lines:
    """Lines of a file as text, bounded, with the byte and the number of the next one."""

    def __init__(self, stream: BinaryIO, *, line: int) -> None:
        self._stream, self.line = stream, line
        self.offset = stream.tell()

    def __iter__(self) -> Iterator[str]:
        while contents := self._stream.readline(_MAX_RECORD_BYTES + 1):
            if len(contents) > _MAX_RECORD_BYTES:
                where = f"{self._stream.name}:{self.line}"
                raise BatchInputError(f"{where}: a line of more than {_MAX_RECORD_BYTES:,} bytes")
            text = contents.decode("utf-8", "surrogateescape")
            text = text.removeprefix("\ufeff") if self.offset == 0 else text
            self.offset, self.line = self.offset + len(contents), self.line + 1
            yield text


def _records(file: str, *, kind: InputKind, offset: int = 0, line: int = 1) -> Iterator[_Record]:
    """Records from a byte on, which is the start of a line of that number; blank ones are none."""
    with Path(file).open("rb") as stream:
        stream.seek(offset)
        lines = _Lines(stream, line=line)
        csv.field_size_limit(_MAX_RECORD_BYTES)
        rows = csv.reader(lines) if kind == "csv" else (_split(text, kind=kind) for text in lines)
        try:
            for cells in rows:
                if cells:
                    yield _Record(offset, line, tuple(cells))
                offset, line = lines.offset, lines.line
        except csv.Error as error:
            raise BatchInputError(f"{file}:{line}: not CSV: {error}") from None


def _split(text: str, *, kind: InputKind) -> list[str]:
    text = text.rstrip("\r\n")
    return (text.split("\t") if kind == "tsv" else [text]) if text.strip() else []


def _record_rows(data: InputData, part: Part) -> Iterator[_Read]:
    (file,) = part.files
    names = _columns(data.kind, file) if data.kind in _WITH_HEADER else ()
    records = _records(file, kind=data.kind, offset=part.offset, line=part.line)
    for record in islice(records, part.num_rows):
        origin = f"{file}:{record.line}"
        try:
            value = _cell(record, data=data, names=names)
            value.encode("utf-8")
        except UnicodeEncodeError:
            yield origin, None, BadExampleError("not UTF-8")
        except ValueError as error:
            yield origin, None, BadExampleError(str(error))
        else:
            yield origin, value, value


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


# ---- rows of other kinds


def _parquet_rows(data: InputData, part: Part) -> Iterator[_Read]:
    (file,) = part.files
    with pq.ParquetFile(file) as table:
        batches = table.iter_batches(64, row_groups=[part.line], columns=[data.column])
        cells = islice(_cells(batches, skip=part.offset), part.num_rows)
        for row, cell in enumerate(cells, start=part.offset):
            value = cell.as_py()
            if not isinstance(value, str | bytes):
                value = BadExampleError(f"{type(value).__name__}, no text or bytes")
            yield f"{file}:{part.line}:{row}", value if isinstance(value, str) else None, value


def _cells(batches: Iterable[pa.RecordBatch], *, skip: int) -> Iterator[pa.Scalar]:
    """The cells of the one column; batches that lie before the first are passed over whole."""
    for batch in batches:
        yield from batch.column(0).slice(min(skip, len(batch)))
        skip = max(0, skip - len(batch))


def _split_rows(manifest: Manifest, part: Part) -> Iterator[_Read]:
    stored = manifest.with_inputs(manifest.task.inputs.as_asked())  # each task finishes its own
    reader, name = ShardReader([stored], cache_bytes=2**26), manifest.task.name
    for number in range(part.first_row, part.first_row + part.num_rows):
        (example,) = reader.read(name, rows=np.array([number]))
        yield f"{name}:{number}", None, example.inputs
