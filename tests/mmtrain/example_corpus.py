"""Three small tasks with built splits, for tests of what needs a model and shards but no Ray."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines import modalities
from pipelines.modalities import Feature
from pipelines.modalities.image import ImageFeature, to_png
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.text import TextFeature
from pipelines.modalities.tree import TreeFeature
from pipelines.shards import (
    COMPLETED,
    MANIFEST,
    Example,
    Manifest,
    contents_digest,
    shard_folder,
)
from pipelines.task import Source, Split, Task
from pipelines.vocabulary import Vocabulary
from pipelines.writer import ShardWriter

CLASSES = ("dark", "light")
SENTENCES = ("the dog slept", "a cat saw the dog", "the cat slept")
TREES = (
    "(S (NP (DT the) (NN dog)) (VP (VBD slept)))",
    "(S (NP (DT a) (NN cat)) (VP (VBD saw) (NP (DT the) (NN dog))))",
    "(S (NP (DT the) (NN cat)) (VP (VBD slept)))",
)
NAMES = (("Germany", "Deutschland"), ("Peru", "Peru"), ("France", "Frankreich"), ("Mali", "Mali"))

TASKS = {
    "shades": Task(
        name="shades",
        source=Source(uri="raw/shades", format="image_folder"),
        inputs=ImageFeature(height=16, width=16, channels=1),
        targets=LabelFeature(classes=CLASSES),
        metrics=("accuracy", "top5_accuracy", "log_perplexity"),
        baseline="majority_class",
        batch_size=2,
    ),
    "trees": Task(
        name="trees",
        source=Source(uri="raw/trees", format="brackets"),
        inputs=TextFeature(max_tokens=32),
        targets=TreeFeature(max_tokens=32),
        command="to_tree",
        metrics=("bracket_f1", "exact", "token_accuracy", "log_perplexity"),
        baseline="right_branching_tree",
        batch_size=2,
    ),
    "names": Task(
        name="names",
        source=Source(
            uri="raw/names", format="tsv", splits=("train", "validation", "test", "test_hard")
        ),
        inputs=TextFeature(max_tokens=16),
        targets=TextFeature(max_tokens=16),
        command="to_german",
        metrics=("bleu", "chrf", "exact", "token_accuracy", "log_perplexity"),
        baseline="copy_source",
        batch_size=2,
    ),
}


def shade(level: int) -> bytes:
    """A PNG file of one grey level."""
    return to_png(np.full((16, 16), level, dtype=np.uint8))


RAW: dict[str, dict[Split, list[tuple[object, object]]]] = {
    "shades": {
        "train": [(shade(10), "dark"), (shade(200), "light"), (shade(30), "dark")],
        "test": [(shade(20), "dark"), (shade(220), "light")],
    },
    "trees": {
        "train": list(zip(SENTENCES[:2], TREES[:2], strict=True)),
        "test": [(SENTENCES[2], TREES[2])],
    },
    "names": {
        "train": list(NAMES[:2]),
        "test": list(NAMES[1:3]),
        "test_hard": list(NAMES[3:]),
    },
}


def example_vocabulary() -> Vocabulary:
    texts = [*SENTENCES, *(name for pair in NAMES for name in pair), "(S (NP DT NN ) (VP VBD ) )"]
    return Vocabulary.train(texts, size=320, commands=("to_tree", "to_german"))


def build_example_corpora(data_dir: Path, *, vocabulary: Vocabulary) -> None:
    """Writes the shards of all tasks as `build` would, one row group a split."""
    for name, splits in RAW.items():
        for split, rows in splits.items():
            write_split(data_dir, TASKS[name], split=split, rows=rows, vocabulary=vocabulary)


def write_split(
    data_dir: Path,
    task: Task,
    *,
    split: Split,
    rows: Sequence[tuple[object, object]],
    vocabulary: Vocabulary | None,
) -> None:
    """Writes one split's shards, raw values encoded by the task's features."""
    folder = shard_folder(data_dir, task=task.name, split=split)
    folder.mkdir(parents=True)
    writer = ShardWriter(folder / "shard-00000.parquet", bounds=(), row_group_rows=64)
    for number, (value, target) in enumerate(rows):
        inputs = _encode(value, feature=task.inputs, vocabulary=vocabulary)
        targets = _encode(target, feature=task.targets, vocabulary=vocabulary)
        writer.write(Example(inputs, targets), origin=f"{task.name}:{number}")
    shard = writer.close()
    assert shard is not None
    manifest = Manifest(
        task=task,
        split=split,
        num_examples=len(rows),
        bucket_bounds=(64,),
        shards=(shard,),
        digest=contents_digest([shard]),
        fingerprint="example",
        vocabulary_digest=vocabulary.digest if vocabulary else None,
        quarantined={},
        stats={},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    (folder / COMPLETED).write_text(manifest.digest)


def _encode(value: object, *, feature: Feature, vocabulary: Vocabulary | None) -> np.ndarray:
    encode = modalities.load(feature.modality).encode
    return encode(value, feature=feature, vocabulary=vocabulary)
