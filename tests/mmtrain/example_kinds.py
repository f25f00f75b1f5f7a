"""A small untrained PolyViT on a task of each kind of target, with built splits."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from mmtrain.bundle import Lineage, bundle_task, save_bundle
from mmtrain.modalities import elements, image_patches, linear, video_tubelets
from mmtrain.models import polyvit
from mmtrain.models.config import net_of
from mmtrain.models.model import ModelConfig, TaskSpec, build_model
from pipelines.modalities import Feature
from pipelines.modalities.image import ImageFeature, to_png
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.labels import LabelsFeature
from pipelines.modalities.mask import MaskFeature
from pipelines.modalities.multilabel import MultiLabelFeature
from pipelines.modalities.numbers import BOX, NumbersFeature
from pipelines.modalities.video import VideoFeature
from pipelines.modalities.video import decode as to_video
from pipelines.task import Source, Split, Task
from tests.mmtrain.example_corpus import write_split

SIDE = 16
PICTURE = ImageFeature(height=SIDE, width=SIDE, channels=1)
CLIP = VideoFeature(height=SIDE, width=SIDE, channels=1, num_frames=4, min_frames=2)


def task(
    name: str,
    targets: Feature,
    *,
    metrics: tuple[str, ...],
    baseline: str,
    inputs: Feature = PICTURE,
    loss: str | None = None,
) -> Task:
    return Task(
        name=name,
        source=Source(uri=f"raw/{name}", format="jsonl", splits=("train", "test")),
        inputs=inputs,
        targets=targets,
        metrics=metrics,
        baseline=baseline,
        batch_size=2,
        loss=loss,
        drop_layer=0.3,
    )


TASKS = {
    entry.name: entry
    for entry in (
        task(
            "shade",
            LabelFeature(classes=("dark", "light")),
            metrics=("precision_at_1", "accuracy", "log_perplexity"),
            baseline="majority_class",
            loss="sigmoid_cross_entropy",
        ),
        task(
            "things",
            MultiLabelFeature(classes=("cat", "dog", "owl")),
            metrics=("mean_average_precision", "f1", "precision_at_1", "log_perplexity"),
            baseline="label_frequency",
        ),
        task(
            "action",
            LabelsFeature(parts={"verb": ("cut", "pour"), "noun": ("egg", "oil", "salt")}),
            metrics=("part_accuracy", "exact", "log_perplexity"),
            baseline="majority_class",
        ),
        task(
            "place",
            NumbersFeature(names=BOX, low=0.0, high=SIDE),
            metrics=("box_iou", "mean_squared_error"),
            baseline="mean_value",
        ),
        task(
            "ground",
            MaskFeature(height=SIDE, width=SIDE, classes=("sky", "sea", "sand")),
            metrics=("mean_iou", "element_accuracy", "log_perplexity"),
            baseline="majority_element",
        ),
        task(
            "motion",
            LabelFeature(classes=("left", "right")),
            metrics=("accuracy", "log_perplexity"),
            baseline="majority_class",
            inputs=CLIP,
        ),
    )
}
NUM_EXAMPLES: dict[Split, int] = {"train": 5, "test": 4}


def picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return to_png(rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8))


def clip(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (4, SIDE, SIDE, 1), dtype=np.uint8)
    return to_video(frames, feature=CLIP, vocabulary=None)


def mask(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return to_png(rng.integers(0, 3, (SIDE, SIDE), dtype=np.uint8))


def row(name: str, seed: int) -> tuple[bytes, object]:
    """A raw example."""
    answers: dict[str, object] = {
        "shade": ("dark", "light", "dark")[seed % 3],
        "things": (["cat"], ["dog", "owl"], [], ["cat", "dog"])[seed % 4],
        "action": {"verb": ("cut", "pour")[seed % 2], "noun": ("egg", "salt", "oil")[seed % 3]},
        "place": {"left": seed % 4, "top": 2, "right": 9, "bottom": 10 + seed % 3},
        "ground": mask(seed),
        "motion": ("left", "right")[seed % 2],
    }
    return (clip(seed) if name == "motion" else picture(seed)), answers[name]


def build_corpora(data_dir: Path) -> None:
    for name, entry in TASKS.items():
        for split, count in NUM_EXAMPLES.items():
            first = 0 if split == "train" else 100
            rows = [row(name, seed) for seed in range(first, first + count)]
            write_split(data_dir, entry, split=split, rows=rows, vocabulary=None)


@cache
def specs() -> dict[str, TaskSpec]:
    return {
        name: TaskSpec(
            name=name,
            input_net=net_of("polyvit", entry.inputs),
            output_net=net_of("polyvit", entry.targets),
            num_outputs=entry.targets.num_outputs,
            output_groups=entry.targets.output_groups,
            loss=entry.loss or entry.targets.loss,
            drop_layer=entry.drop_layer,
        )
        for name, entry in TASKS.items()
    }


def bundle(folder: Path) -> Path:
    config = ModelConfig(
        family="polyvit",
        body=polyvit.Config(model_dim=16, num_layers=2, num_heads=2, mlp_dim=24),
        nets={
            "image_patches": image_patches.Config(
                height=SIDE, width=SIDE, channels=1, patch=(8, 8)
            ),
            "video_tubelets": video_tubelets.Config(
                num_frames=4, height=SIDE, width=SIDE, channels=1, patch=(2, 8, 8)
            ),
            "linear": linear.Config(init="lecun_normal"),
            "elements": elements.Config(init="lecun_normal", patch=(8, 8)),
        },
        vocab_size=4,
    )
    model = build_model(config, specs().values(), seed=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.sin(torch.arange(parameter.numel())).view(parameter.shape)
    return save_bundle(
        folder,
        model=config,
        tasks={name: bundle_task(entry, spec=specs()[name]) for name, entry in TASKS.items()},
        state=model.state_dict(),
        vocabulary=None,
        lineage=Lineage(
            recipe="kinds",
            recipe_digest="0123456789abcdef",
            code_version="0.1.0+abc",
            corpora=dict.fromkeys(TASKS, "c0ffee"),
            step=3,
        ),
    )
