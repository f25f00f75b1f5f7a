"""Layout: where the splits of raw corpora lie, and how a build cuts them."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipelines import readers
from pipelines.readers import Piece
from pipelines.task import Source, Task


class ShardLayout(BaseModel):
    """How a split is cut into shards and row groups."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row_group_rows: int = Field(default=128, ge=1, le=512, description="Rows read together.")
    rows_per_shard: int = Field(
        default=4096, ge=1, description="Raw rows of a shard where each is a line."
    )
    files_per_shard: int = Field(
        default=512, ge=1, description="Raw rows of a shard where each is a file to decode."
    )


class BuildConfig(BaseModel):
    """How raw corpora become shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, description="Of the corpora that are made here.")
    vocabulary_size: int = Field(default=1500, ge=1, description="Token ids in all, at most.")
    texts_per_task: int = Field(
        default=100_000, ge=1, description="Training rows of a task that the vocabulary sees."
    )
    max_bad_share: float = Field(
        default=0.01, ge=0, le=1, description="Share of bad records over which a build fails."
    )
    layout: ShardLayout = ShardLayout()


def split_root(source: Source, *, split: str, data_dir: Path) -> str:
    """A split's folder as fsspec opens it."""
    base = source.uri if "://" in source.uri else str(data_dir / source.uri)
    return f"{base}/{split}"


def split_pieces(task: Task, *, root: str, layout: ShardLayout) -> list[Piece]:
    """The pieces of a split's source, a shard each."""
    has_files = not readers.format_of(task.source).by_line or "files" in task.source.options
    rows = layout.files_per_shard if has_files else layout.rows_per_shard
    return readers.pieces(task.source, root=root, rows_a_piece=rows)
