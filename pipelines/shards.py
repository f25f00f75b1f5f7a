"""Shards: a split of a task as Parquet files with fixed row groups, and the manifest over them.

A row group is the unit of random access. An example is its row number in the split, counted
through the shards in the manifest's order, so no id is stored. `COMPLETED` is written last:
a folder without it does not exist.
"""

import functools
import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import CorpusError, first_problem
from pipelines.files import FileReadError, read_retried
from pipelines.modalities import Feature
from pipelines.task import Split, Task

MANIFEST, COMPLETED, QUARANTINE = "manifest.json", "COMPLETED", "quarantine.jsonl"
REMEDY = "run `python -m pipelines build`"
SCHEMA = pa.schema(
    {
        "origin": pa.string(),
        "input": pa.binary(),
        "input_shape": pa.list_(pa.int32()),
        "target": pa.binary(),
        "target_shape": pa.list_(pa.int32()),
    }
)


class Shard(BaseModel):
    """One Parquet file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(pattern=r"^shard-\d+\.parquet$")
    num_bytes: int = Field(ge=1)
    digest: str = Field(description="SHA-256 of the file.")
    footer_digest: str = Field(description="Of its footer, which no page checksum covers.")
    group_rows: tuple[int, ...] = Field(description="Rows of each row group.")
    group_buckets: tuple[int, ...] = Field(description="Length bucket of each row group's rows.")

    @property
    def num_rows(self) -> int:
        """Examples of the shard."""
        return sum(self.group_rows)


class Manifest(BaseModel):
    """What a built split holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task
    split: Split
    num_examples: int
    bucket_bounds: tuple[int, ...] = Field(
        description="Longest example of each bucket, in positions of the longer side."
    )
    shards: tuple[Shard, ...]
    digest: str = Field(description="Identity of the contents: of the shards' digests in order.")
    fingerprint: str = Field(description="What it was built from: source, features, code.")
    vocabulary_digest: str | None
    quarantined: dict[str, int] = Field(description="Bad records left out, by reason.")
    stats: dict[str, float]
    folder: Path = Field(default=Path(), exclude=True, description="Where it was opened.")

    @property
    def num_quarantined(self) -> int:
        """Bad records left out."""
        return sum(self.quarantined.values())

    def with_inputs(self, inputs: Feature) -> "Manifest":
        """The split with its inputs read as those of another feature, stored in the same way."""
        return self.model_copy(update={"task": self.task.model_copy(update={"inputs": inputs})})

    @functools.cached_property
    def group_starts(self) -> np.ndarray:
        """(groups + 1,) int64: row number at which each row group of the split starts."""
        rows = [count for shard in self.shards for count in shard.group_rows]
        return np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)

    @functools.cached_property
    def group_buckets(self) -> np.ndarray:
        """(groups,) bucket of each row group."""
        return np.array([bucket for shard in self.shards for bucket in shard.group_buckets])

    @functools.cached_property
    def first_groups(self) -> np.ndarray:
        """(shards,) number in the split of each shard's first row group."""
        counts = [len(shard.group_rows) for shard in self.shards]
        return np.cumsum([0, *counts[:-1]])

    def group_place(self, number: int) -> tuple[Shard, int]:
        """Shard of a row group of the split, and the group's number within it."""
        place = int(np.searchsorted(self.first_groups, number, side="right")) - 1
        return self.shards[place], number - int(self.first_groups[place])


def shard_folder(data_dir: Path, *, task: str, split: str) -> Path:
    """Where a split of a task lies once built."""
    return data_dir / "shards" / task / split


def vocabulary_path(data_dir: Path, *, digest: str) -> Path:
    """Where a joint vocabulary lies; runs that share no text tasks may each have their own."""
    return data_dir / "vocabularies" / f"{digest}.json"


def contents_digest(shards: Sequence[Shard]) -> str:
    """Identity of a split's contents."""
    return hashlib.sha256("".join(shard.digest for shard in shards).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        FileReadError: it cannot be read.
    """

    def read() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return read_retried(read, path=path)


def footer_digest(path: Path) -> str:
    """SHA-256 of a Parquet file's footer: its metadata, their length (4 bytes) and the mark."""
    with path.open("rb") as file:
        whole = file.seek(0, os.SEEK_END)
        file.seek(-min(8, whole), os.SEEK_END)
        size = min(int.from_bytes(file.read(4), "little") + 8, whole)
        file.seek(-size, os.SEEK_END)
        return hashlib.sha256(file.read()).hexdigest()


def open_manifest(folder: Path) -> Manifest:
    """Opens a built split; checks that every shard is there with the size it was built with.

    Contents are checked page by page as they are read (`ShardReader`), or all by `verify`.

    Raises:
        CorpusError: not built, half-built, or changed since; each with the remedy.
        FileReadError: a file is there and cannot be read.
    """
    sealed = _text(folder / COMPLETED)
    if sealed is None and not folder.is_dir():
        raise CorpusError(f"{folder} is not built; {REMEDY}")
    if sealed is None:
        raise CorpusError(f"{folder} is half-built: it has no {COMPLETED}; {REMEDY}")
    try:
        manifest = Manifest.model_validate_json(_text(folder / MANIFEST) or "")
    except ValidationError as error:
        raise CorpusError(
            f"{folder / MANIFEST} is damaged: {first_problem(error)}; {REMEDY}"
        ) from error
    if not sealed.strip() == manifest.digest == contents_digest(manifest.shards):
        raise CorpusError(f"{folder / MANIFEST} changed since it was built; {REMEDY}")
    for shard in manifest.shards:
        path = folder / shard.file
        size = _size(path)
        if size != shard.num_bytes:
            was = "is missing" if size is None else f"has {size} bytes, built {shard.num_bytes}"
            raise CorpusError(f"{path} {was}; {REMEDY}")
    return manifest.model_copy(update={"folder": folder})


def _text(path: Path) -> str | None:
    """What a file holds; None: there is none."""
    try:
        return read_retried(path.read_bytes, path=path).decode(errors="replace")
    except FileNotFoundError:
        return None


def _size(path: Path) -> int | None:
    """Bytes of a file; None: there is none."""
    try:
        found = read_retried(path.stat, path=path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise FileReadError(str(path), "it is no file")
    return found.st_size


def open_task(task: Task, *, split: Split, data_dir: Path) -> Manifest:
    """Opens a task's built split for a run; how it is batched and weighed is the run's to say.

    Raises:
        CorpusError: not built, changed, or built from another source or with other features.
    """
    manifest = open_manifest(shard_folder(data_dir, task=task.name, split=split))
    for field in ("source", "inputs", "targets", "bucket_bounds"):
        built, asked = getattr(manifest.task, field), getattr(task, field)
        if isinstance(asked, Feature):
            built, asked = built.as_asked(), asked.as_asked()
        if built != asked:
            raise CorpusError(
                f"{manifest.folder} was built with {field} {built}, the task says {asked}; {REMEDY}"
            )
    return manifest.model_copy(update={"task": task}).with_inputs(manifest.task.inputs)


def verify(manifest: Manifest) -> None:
    """Reads every shard whole and compares its digest.

    Raises:
        CorpusError: a shard changed, named.
    """
    for shard in manifest.shards:
        if file_digest(manifest.folder / shard.file) != shard.digest:
            raise _changed(manifest.folder / shard.file, "its digest is another")


def _changed(path: Path, why: str) -> CorpusError:
    return CorpusError(
        f"{path} changed since it was built ({why}); delete {path.parent} and {REMEDY}"
    )


@dataclass(frozen=True, slots=True)
class Example:
    """One built example; arrays that are views of their row group are read-only."""

    inputs: np.ndarray
    targets: np.ndarray


class ShardReader:
    """Random access to the examples of several splits, under one bound of memory.

    Args:
        manifests: opened splits.
        cache_bytes: decoded row groups kept, in bytes; the last used stays whatever its size.
        open_files: files kept open.
    """

    def __init__(
        self, manifests: Iterable[Manifest], *, cache_bytes: int = 2**28, open_files: int = 64
    ) -> None:
        self._manifests = {manifest.task.name: manifest for manifest in manifests}
        self._cache_bytes, self._open_files = cache_bytes, open_files
        self._files: OrderedDict[Path, pq.ParquetFile] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], _Group] = OrderedDict()
        self._held_bytes = 0

    def read(self, task: str, *, rows: np.ndarray) -> list[Example]:
        """Examples of a task by row number, in the order asked.

        Raises:
            CorpusError: a shard is gone or its contents changed.
            FileReadError: it cannot be read; the corpus is not known to be at fault.
        """
        starts = self._manifests[task].group_starts
        groups = np.searchsorted(starts, rows, side="right") - 1
        offsets = rows - starts[groups]
        return [
            self._group(task, number).example(offset)
            for number, offset in zip(groups.tolist(), offsets.tolist(), strict=True)
        ]

    def _group(self, task: str, number: int) -> "_Group":
        key = (task, number)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        group = self._groups[key] = self._load(self._manifests[task], number)
        self._held_bytes += group.num_bytes
        while self._held_bytes > self._cache_bytes and len(self._groups) > 1:
            self._held_bytes -= self._groups.popitem(last=False)[1].num_bytes
        return group

    def _load(self, manifest: Manifest, number: int) -> "_Group":
        shard, index = manifest.group_place(number)
        path = manifest.folder / shard.file

        def read() -> pa.Table:
            try:
                return self._file(path, shard).read_row_group(
                    index,
                    columns=SCHEMA.names[1:],
                    use_threads=False,  # small: threads cost more
                )
            except OSError:
                self._files.pop(path, None)  # the next try opens it anew
                raise

        try:
            table = read_retried(read, path=path)
        except FileNotFoundError as error:
            raise CorpusError(f"{path} is missing; {REMEDY}") from error
        except (OSError, pa.ArrowInvalid) as error:  # the library's word on the contents
            raise _changed(path, str(error)) from error
        return _Group(table, manifest)

    def _file(self, path: Path, shard: Shard) -> pq.ParquetFile:
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        if footer_digest(path) != shard.footer_digest:
            raise _changed(path, "its footer is another")
        file = self._files[path] = pq.ParquetFile(path, page_checksum_verification=True)
        if len(self._files) > self._open_files:
            self._files.popitem(last=False)[1].close()
        return file


class _Group:
    """A decoded row group: two flat arrays, and where each example lies in them."""

    def __init__(self, table: pa.Table, manifest: Manifest) -> None:
        self._inputs = _Column(table, "input", feature=manifest.task.inputs)
        self._targets = _Column(table, "target", feature=manifest.task.targets)
        self.num_bytes = self._inputs.values.nbytes + self._targets.values.nbytes

    def example(self, row: int) -> Example:
        return Example(self._inputs.array(row), self._targets.array(row))


class _Column:
    def __init__(self, table: pa.Table, name: str, *, feature: Feature) -> None:
        cells = table[name].combine_chunks()
        ends = np.frombuffer(cells.buffers()[1], np.int32)[cells.offset :][: len(cells) + 1]
        kind = np.dtype(feature.dtype).newbyteorder("<")
        flat = np.frombuffer(cells.buffers()[2] or b"", np.uint8)[ends[0] : ends[-1]]
        self.values = flat.view(kind)
        self._ends = ((ends - ends[0]) // kind.itemsize).tolist()
        sides = table[f"{name}_shape"].combine_chunks().flatten().to_numpy()
        self._shapes = sides.reshape(-1, feature.rank).tolist()
        self._feature = feature

    def array(self, row: int) -> np.ndarray:
        flat = self.values[self._ends[row] : self._ends[row + 1]]
        return self._feature.finish(flat.reshape(self._shapes[row]))
