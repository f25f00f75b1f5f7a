"""Sounds of several tones at once, as raw files and as splits that are built without Ray."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipelines import build as build_module
from pipelines.build import build_splits, plan_split
from pipelines.layout import BuildConfig, ShardLayout
from pipelines.modalities.audio import AudioFeature, to_wav
from pipelines.modalities.multilabel import MultiLabelFeature
from pipelines.shards import Manifest, open_manifest
from pipelines.task import Augmentation, Source, Split, Task
from pipelines.writer import write_unit

TONES_HZ = {"low": 300, "middle": 1_000, "high": 3_000}
RATE_HZ = 8_000
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TONES = Task(
    name="tones",
    source=Source(
        uri="raw/tones",
        format="jsonl",
        options={"input": "file", "target": "labels", "files": "file"},
    ),
    inputs=AudioFeature(
        representation="log_mel",
        sample_rate_hz=RATE_HZ,
        num_bins=16,
        num_frames=32,
        standard="corpus",
    ),
    targets=MultiLabelFeature(classes=tuple(TONES_HZ)),
    metrics=("mean_average_precision", "f1"),
    baseline="label_frequency",
    batch_size=8,
    augment=(Augmentation(name="spec_augment", settings={"max_bins": 2, "max_frames": 3}),),
    mixup=0.3,
)


def chord(labels: list[str], *, rng: np.random.Generator) -> bytes:
    """A WAV file of a third to half a second; with no labels noise alone."""
    time_L = np.arange(rng.integers(RATE_HZ // 3, RATE_HZ // 2)) / RATE_HZ
    tones = (0.2 * np.sin(2 * np.pi * TONES_HZ[label] * time_L) for label in labels)
    return to_wav(sum(tones) + rng.normal(0, 0.01, size=len(time_L)), rate_hz=RATE_HZ)


def write_tones(data_dir: Path, *, sizes: Mapping[Split, int], seed: int = 0) -> None:
    """`<split>/clips.jsonl` and its WAV files; each tone is in half of the clips."""
    for split, size in sizes.items():
        rng = np.random.default_rng((seed, SPLITS.index(split)))
        folder = data_dir / "raw" / "tones" / split
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(size):
            labels = [tone for tone in TONES_HZ if rng.random() < 0.5]
            (folder / f"{number}.wav").write_bytes(chord(labels, rng=rng))
            lines.append(json.dumps({"file": f"{number}.wav", "labels": labels}))
        (folder / "clips.jsonl").write_text("\n".join(lines) + "\n")


def build_here(
    task: Task, *, data_dir: Path, files_per_shard: int = 4, order: int = 1
) -> dict[Split, Manifest]:
    """All splits of a task without text, its units written one after another; -1: last first."""
    layout = ShardLayout(row_group_rows=4, files_per_shard=files_per_shard)
    config, run_units = BuildConfig(layout=layout), build_module.run_units
    jobs = [
        plan_split(task, split, data_dir=data_dir, vocabulary=None, config=config)
        for split in task.source.splits
    ]
    build_module.run_units = lambda units: map(write_unit, list(units)[::order])
    try:
        build_splits(jobs, data_dir=data_dir, config=config, progress=None)
    finally:
        build_module.run_units = run_units
    return {job.split: open_manifest(job.folder) for job in jobs}
