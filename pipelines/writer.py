"""Writing shards: one unit of a split, from a piece of its source to one Parquet file.

    read | encode | validate | write

Rows go to the row group of their length bucket; memory holds one open row group a bucket. A bad row
is set aside with its reason; nothing is dropped in silence.
"""

import bisect
import errno
import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import modalities, readers
from pipelines.errors import BadExampleError, BuildError
from pipelines.files import FileReadError, os_reason
from pipelines.modalities import Feature
from pipelines.moments import Moments
from pipelines.readers import Piece, RawRow, RawValue
from pipelines.shards import SCHEMA, Example, Shard, file_digest, footer_digest
from pipelines.task import Split, Task
from pipelines.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of a split's source, and where its shard goes."""

    task: Task
    split: Split
    number: int
    piece: Piece
    folder: Path
    vocabulary: Path | None
    row_group_rows: int


@dataclass(frozen=True, slots=True)
class UnitReport:
    """What came of a unit.

    Args:
        unit: which.
        shard: None where no row was good.
        counts: statistics of its rows.
        bad: (origin, reason) of each row set aside.
        failure: why the unit could not be written, where it could not.
    """

    unit: Unit
    shard: Shard | None = None
    counts: "Counts | None" = None
    bad: tuple[tuple[str, str], ...] = ()
    failure: str | None = None


@dataclass(slots=True)
class Counts:
    """Sums over rows; add two with `+`."""

    rows: int = 0
    input_positions: int = 0
    target_positions: int = 0
    longest_input: int = 0
    longest_target: int = 0
    moments: Moments = field(default_factory=Moments)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.rows + other.rows,
            self.input_positions + other.input_positions,
            self.target_positions + other.target_positions,
            max(self.longest_input, other.longest_input),
            max(self.longest_target, other.longest_target),
            self.moments + other.moments,
        )


def write_unit(unit: Unit) -> UnitReport:
    """Writes a unit's shard; what stops it comes back in the report, to be told once."""
    try:
        return _write(unit)
    except OSError as error:
        return UnitReport(unit, failure=disk_failure(error, unit.folder))
    except (BuildError, FileReadError) as error:
        return UnitReport(unit, failure=str(error))


def _write(unit: Unit) -> UnitReport:
    vocabulary, bad = load_vocabulary(unit.vocabulary) if unit.vocabulary else None, []
    shard = ShardWriter(
        unit.folder / f"shard-{unit.number:05d}.parquet",
        bounds=unit.task.bucket_bounds,
        row_group_rows=unit.row_group_rows,
    )
    for row in readers.rows(unit.piece):
        try:
            example = encode(row, task=unit.task, vocabulary=vocabulary)
            validate(example, task=unit.task)
        except BadExampleError as error:
            bad.append((row.origin, str(error)))
        else:
            shard.write(example, origin=row.origin)
            if unit.split == "train" and unit.task.inputs.is_measured:
                shard.counts.moments += Moments.of(example.inputs)
    return UnitReport(unit, shard.close(), shard.counts, tuple(bad))


def encode(row: RawRow, *, task: Task, vocabulary: Vocabulary | None) -> Example:
    """A raw row as arrays.

    Raises:
        BadExampleError: it could not be read, or its modality refuses a value.
    """
    if row.problem is not None:
        raise BadExampleError(row.problem)
    return Example(
        inputs=_encode(row.input, task.inputs, vocabulary),
        targets=_encode(row.target, task.targets, vocabulary),
    )


def _encode(value: RawValue, feature: Feature, vocabulary: Vocabulary | None) -> np.ndarray:
    encode = modalities.load(feature.modality).encode
    return encode(value, feature=feature.as_asked(), vocabulary=vocabulary)


def validate(example: Example, *, task: Task) -> None:
    """An example is what its features say.

    Raises:
        BadExampleError: an array is of another dtype or rank, empty, or not finite.
    """
    for side, feature, array in (
        ("input", task.inputs, example.inputs),
        ("target", task.targets, example.targets),
    ):
        if array.dtype != np.dtype(feature.dtype) or array.ndim != feature.rank:
            raise BadExampleError(
                f"{side} is {array.dtype} of rank {array.ndim}; "
                f"its feature says {feature.dtype} of rank {feature.rank}"
            )
        if array.size == 0:
            raise BadExampleError(f"{side} is empty")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadExampleError(f"{side} holds values that are not finite")


@dataclass
class ShardWriter:
    """One Parquet file whose row groups hold rows of one length bucket each.

    Args:
        path: of the file; it is there once the first row group is full.
        bounds: upper bounds of the buckets, in positions of the longer side; what is longer goes
            to a bucket of its own. None: one bucket.
        row_group_rows: rows of a full row group.
    """

    path: Path
    bounds: tuple[int, ...]
    row_group_rows: int
    counts: Counts = field(default_factory=Counts)
    _open: dict[int, list[dict[str, object]]] = field(default_factory=dict)
    _group_rows: list[int] = field(default_factory=list)
    _group_buckets: list[int] = field(default_factory=list)
    _file: pq.ParquetWriter | None = None

    def write(self, example: Example, *, origin: str) -> None:
        """Adds a row."""
        num_inputs, num_targets = len(example.inputs), len(example.targets)
        self.counts += Counts(1, num_inputs, num_targets, num_inputs, num_targets)
        bucket = bisect.bisect_left(self.bounds, max(num_inputs, num_targets)) if self.bounds else 0
        rows = self._open.setdefault(bucket, [])
        rows.append(
            {"origin": origin} | _cell("input", example.inputs) | _cell("target", example.targets)
        )
        if len(rows) == self.row_group_rows:
            self._flush(bucket)

    def close(self) -> Shard | None:
        """Writes the row groups that are not full and ends the file; None: it has no row."""
        for bucket in sorted(self._open):
            self._flush(bucket)
        if self._file is None:
            return None
        self._file.close()
        return Shard(
            file=self.path.name,
            num_bytes=self.path.stat().st_size,
            digest=file_digest(self.path),
            footer_digest=footer_digest(self.path),
            group_rows=tuple(self._group_rows),
            group_buckets=tuple(self._group_buckets),
        )

    def _flush(self, bucket: int) -> None:
        rows = self._open.pop(bucket)
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pq.ParquetWriter(
                self.path,
                SCHEMA,
                compression="lz4",
                use_dictionary=False,  # every row is another; and its pages would not be checked
                write_statistics=False,
                write_page_checksum=True,
            )
        self._file.write_table(pa.Table.from_pylist(rows, SCHEMA), row_group_size=len(rows))
        self._group_rows.append(len(rows))
        self._group_buckets.append(bucket)


def _cell(name: str, array: np.ndarray) -> dict[str, object]:
    """An array as its bytes, little-endian, and its shape."""
    flat = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return {name: flat.tobytes(), f"{name}_shape": list(array.shape)}


@functools.lru_cache(maxsize=1)
def load_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary, read once in a process."""
    return Vocabulary.load(path)


def disk_failure(error: OSError, folder: Path) -> str:
    """What a failed write means for the user; a library's word without a number is raised."""
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk of {folder}; free some, or choose another data folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT):
        return f"{folder} cannot be written: {error.strerror}; choose another data folder"
    if error.errno is None:
        raise error
    return f"{error.filename or folder}: {os_reason(error)}; see to the disk or mount, then go on"
