"""A split of digit strings, built without Ray: row i is a string of `lengths[i]` digits, copied."""

from pathlib import Path

from pipelines.build import plan_split, split_units
from pipelines.layout import BuildConfig, ShardLayout
from pipelines.modalities.text import TextFeature
from pipelines.seal import finish_split
from pipelines.shards import Manifest, open_manifest, vocabulary_path
from pipelines.task import Source, Task
from pipelines.vocabulary import Vocabulary
from pipelines.writer import write_unit


def toy_task(name: str = "copy", **fields: object) -> Task:
    settings: dict[str, object] = {"batch_size": 6} | fields
    return Task(
        name=name,
        source=Source(
            uri=f"raw/{name}",
            format="tsv",
            splits=("train",),
            options={"input": "source", "target": "copy"},
        ),
        inputs=TextFeature(max_tokens=64),
        targets=TextFeature(max_tokens=64),
        command="to_copy",
        metrics=("exact",),
        baseline="copy_source",
        **settings,  # type: ignore[arg-type]  # fields of several types
    )


def write_raw(data_dir: Path, *, name: str = "copy", lengths: list[int]) -> Path:
    """Row i is the digits of i, repeated to its length."""
    folder = data_dir / "raw" / name / "train"
    folder.mkdir(parents=True, exist_ok=True)
    texts = [(str(i) * length)[:length] for i, length in enumerate(lengths)]
    lines = ["source\tcopy", *(f"{text}\t{text}" for text in texts)]
    (folder / "part.tsv").write_text("\n".join(lines) + "\n")
    return folder / "part.tsv"


def toy_config(**layout: int) -> BuildConfig:
    sizes = {"row_group_rows": 4, "rows_per_shard": 16} | layout
    return BuildConfig(vocabulary_size=300, layout=ShardLayout(**sizes))


def build_toy(
    data_dir: Path,
    *,
    name: str = "copy",
    lengths: list[int],
    layout: dict[str, int] | None = None,
    **fields: object,
) -> Manifest:
    """The built train split of a toy task."""
    write_raw(data_dir, name=name, lengths=lengths)
    vocabulary = Vocabulary.train(["0 1 2"], size=300, commands=["to_copy"])
    vocabulary.save(vocabulary_path(data_dir, digest=vocabulary.digest))
    config, task = toy_config(**(layout or {})), toy_task(name, **fields)
    job = plan_split(task, "train", data_dir=data_dir, vocabulary=vocabulary, config=config)
    units = split_units(job, data_dir=data_dir, config=config)
    failures = finish_split(job, [write_unit(unit) for unit in units], max_bad_share=0.01)
    assert failures == []
    return open_manifest(job.folder)
