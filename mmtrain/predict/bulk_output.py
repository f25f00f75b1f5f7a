"""The output of batch prediction: a folder of parts, each committed by a rename, and what they are.

    _manifest.json       model, input, tasks: what is predicted here; written first
    _parts.jsonl         a line for each part that is committed: its rows, errors, size, digest
    part-00000.parquet   answers of the part's rows, in order; or part-00000.jsonl
    _COMPLETED           totals; written last

A part that is not in `_parts.jsonl` with its size does not exist: a call that was killed goes on
with what is missing. Readers of Parquet folders pass over names that begin with "_".
"""

import json
import logging
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from mmtrain.predict.answers import Prediction
from pipelines.errors import BadExampleError, MMTrainError, first_problem
from pipelines.files import read_retried, write_whole
from pipelines.ownership import sole_owner

logger = logging.getLogger(__name__)

MANIFEST, PARTS, COMPLETED, LOCK = "_manifest.json", "_parts.jsonl", "_COMPLETED", "_lock"
OutputFormat = Literal["parquet", "jsonl"]
SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "origin": pa.string(),
        "input": pa.string(),
        "task": pa.string(),
        "text": pa.string(),
        "log_prob": pa.float64(),
        "scores": pa.map_(pa.string(), pa.float64()),
        "tree": pa.string(),
        "labels": pa.list_(pa.string()),
        "values": pa.map_(pa.string(), pa.float64()),
        "mask": pa.binary(),
        "error": pa.string(),
    }
)


class BatchOutputError(MMTrainError):
    """The output folder holds something else."""


class Request(BaseModel):
    """What a folder's parts are the answers of; a folder holds those of one request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    model: str
    input: str
    column: str
    tasks: tuple[str, ...]
    beam_size: int
    rows_a_part: int
    format: OutputFormat
    model_uri: str
    input_uri: str


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """One line of output: a row's answer of one task, or why there is none."""

    row: int
    origin: str
    shown: str | None
    task: str
    answer: Prediction | BadExampleError

    @property
    def error(self) -> str | None:
        """Why there is no answer; None: there is one."""
        return str(self.answer) if isinstance(self.answer, BadExampleError) else None

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        place = {"row": self.row, "origin": self.origin, "input": self.shown, "task": self.task}
        if isinstance(self.answer, Prediction):
            return {**place, **self.answer.to_dict(), "error": None}
        return {**place, **Prediction("", None).to_dict(), "text": None, "error": self.error}

    def to_arrow(self) -> dict[str, object]:
        """As Parquet holds it."""
        mask = self.answer.mask if isinstance(self.answer, Prediction) else None
        return {**self.to_dict(), "mask": mask}


class PartReport(BaseModel):
    """A committed part. `num_failed` are rows without an answer; `failures` counts by reason."""

    model_config = ConfigDict(frozen=True)

    file: str
    number: int
    first_row: int
    num_rows: int
    num_failed: int
    num_bytes: int
    failures: dict[str, int]


class PartWriter:
    """Writes a part beside its place; `commit` renames it. A context manager."""

    def __init__(self, folder: Path, *, name: str, format: OutputFormat) -> None:
        self.name = f"{name}.{format}"
        self._place = folder / self.name
        self._path = folder / f".{self.name}.{os.getpid()}"
        self._parquet = pq.ParquetWriter(self._path, SCHEMA) if format == "parquet" else None
        self._lines = self._path.open("w", encoding="utf-8") if format == "jsonl" else None

    def write(self, answers: Sequence[RowAnswer]) -> None:
        """Adds answers."""
        if self._parquet:
            rows = [answer.to_arrow() for answer in answers]
            self._parquet.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
        elif self._lines:
            self._lines.writelines(json.dumps(answer.to_dict()) + "\n" for answer in answers)

    def commit(self) -> int:
        """Puts the part in its place; its size in bytes."""
        self._close()
        self._path.replace(self._place)
        return self._place.stat().st_size

    def _close(self) -> None:
        if self._parquet:
            self._parquet.close()
        elif self._lines:
            self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._path.unlink(missing_ok=True)


@contextmanager
def open_output(folder: Path, request: Request) -> Generator[dict[int, PartReport]]:
    """Claims the folder for a request; yields the parts that are committed already.

    Raises:
        BatchOutputError: the folder holds other things or another request's.
        FolderInUseError: another process writes it.
    """
    with sole_owner(folder, option="--output", name=LOCK):
        _claim(folder, request)
        for left in folder.glob(".part-*"):
            left.unlink(missing_ok=True)  # of a call that was killed
        yield _committed(folder)


def record(folder: Path, report: PartReport) -> None:
    """Notes a committed part."""
    with (folder / PARTS).open("a", encoding="utf-8") as file:
        file.write(report.model_dump_json() + "\n")


def _claim(folder: Path, request: Request) -> None:
    for left in folder.glob(f".{MANIFEST}.*"):
        left.unlink(missing_ok=True)  # of a call that was killed
    path = folder / MANIFEST
    if path.is_file():
        _check_same(path, request)
        return
    others = [file.name for file in folder.iterdir() if file.name != LOCK]
    if others:
        (folder / LOCK).unlink()
        raise BatchOutputError(f"{folder} holds other files ({others[0]}); give another --output")
    write_whole(path, request.model_dump_json(indent=1) + "\n")


def _check_same(path: Path, request: Request) -> None:
    try:
        held = Request.model_validate_json(read_retried(path.read_bytes, path=path))
    except ValidationError as error:
        raise BatchOutputError(
            f"{path} is damaged: {first_problem(error)}; remove {path.parent}, or give another "
            "--output"
        ) from None
    names = {"model": "model_uri", "input": "input_uri"}
    for field in Request.model_fields.keys() - names.values():
        before, now = getattr(held, field), getattr(request, field)
        if before != now:
            shown = names.get(field, field)
            raise BatchOutputError(
                f"{path.parent} holds predictions of another {field}: {getattr(held, shown)} "
                f"({before!s:.12}), not {getattr(request, shown)} ({now!s:.12}); give another "
                "--output, or remove it"
            )


def _committed(folder: Path) -> dict[int, PartReport]:
    """Parts that are noted and lie there whole; notes are cut off where one is torn or damaged.

    The parts that lose theirs are answered again.
    """
    path = folder / PARTS
    lines = read_retried(path.read_bytes, path=path) if path.is_file() else b""
    committed, end = dict[int, PartReport](), 0
    for line in lines.splitlines(keepends=True):
        try:
            report = PartReport.model_validate_json(line if line.endswith(b"\n") else b"")
        except ValidationError:
            logger.warning("%s is cut off at byte %d: a crash left no note there", path, end)
            os.truncate(path, end)
            break
        end += len(line)
        part = folder / report.file
        if part.is_file() and part.stat().st_size == report.num_bytes:
            committed[report.number] = report
    return committed
