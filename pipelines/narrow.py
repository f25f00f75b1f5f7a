"""Narrowing: from a built split, one with some of its classes, as if the rest had never been there.

An example of one class stays where its class does; an example of several classes stays, and tells
of those that are left. A narrowed split is a split like any other.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipelines.errors import CorpusError
from pipelines.modalities import Feature
from pipelines.seal import write_manifest
from pipelines.shards import (
    Example,
    Manifest,
    ShardReader,
    contents_digest,
    open_manifest,
    shard_folder,
)
from pipelines.writer import ShardWriter


def narrowed_feature(feature: Feature, *, classes: Sequence[int]) -> Feature:
    """A target with only these of its classes, under new ids 0, 1, ...

    Args:
        feature: a label, or several at once.
        classes: ids that stay, in their new order.

    Raises:
        CorpusError: the feature has no classes to leave out.
    """
    if not feature.is_divisible:
        raise CorpusError(f"{feature.modality} targets have no classes to leave out")
    names = tuple(_classes(feature)[number] for number in classes)
    return feature.model_copy(update={"classes": names})


def narrow_split(manifest: Manifest, *, classes: Sequence[int], data_dir: Path) -> Manifest:
    """Writes the examples of a split that these classes leave, as a split below `data_dir`.

    Args:
        manifest: the split, opened.
        classes: ids that stay, in their new order.
        data_dir: another data folder than the split's; what it has of the split is replaced.

    Raises:
        CorpusError: the split has no example of these classes.
    """
    task = manifest.task
    feature = narrowed_feature(task.targets, classes=classes)
    folder = shard_folder(data_dir, task=task.name, split=manifest.split)
    shutil.rmtree(folder, ignore_errors=True)
    rows = max(count for shard in manifest.shards for count in shard.group_rows)
    writer = ShardWriter(
        folder / "shard-00000.parquet", bounds=task.bucket_bounds, row_group_rows=rows
    )
    for origin, example in _examples(manifest):
        target = task.targets.narrowed(example.targets, classes=classes)
        if target is not None:
            writer.write(Example(example.inputs, target), origin=origin)
    shard, counts = writer.close(), writer.counts
    if shard is None:
        raise CorpusError(f"{manifest.folder} has no example of {_shown(feature)}")
    narrowed = manifest.model_copy(
        update={
            "task": task.model_copy(update={"targets": feature}),
            "num_examples": counts.rows,
            "shards": (shard,),
            "digest": contents_digest([shard]),
            "fingerprint": f"{manifest.fingerprint} of {_shown(feature)}",
            "quarantined": {},
        }
    )
    write_manifest(folder, narrowed)
    return open_manifest(folder)


def _examples(manifest: Manifest) -> Iterator[tuple[str, Example]]:
    """Origin and arrays of each example, as they are stored, a row group at a time."""
    stored = manifest.with_inputs(manifest.task.inputs.as_asked())
    reader, name, row = ShardReader([stored]), manifest.task.name, 0
    for shard in manifest.shards:
        with pq.ParquetFile(manifest.folder / shard.file) as file:
            for number, count in enumerate(shard.group_rows):
                origins = file.read_row_group(number, columns=["origin"])["origin"].to_pylist()
                examples = reader.read(name, rows=np.arange(row, row + count))
                yield from zip(origins, examples, strict=True)
                row += count


def _classes(feature: Feature) -> tuple[str, ...]:
    return getattr(feature, "classes", ())


def _shown(feature: Feature) -> str:
    return f"classes {', '.join(_classes(feature))}"
