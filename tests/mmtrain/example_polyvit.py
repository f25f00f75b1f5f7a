"""A small PolyViT of five tasks in three modalities, with random weights everywhere."""

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from mmtrain.bundle import BundleTask, Lineage, save_bundle
from mmtrain.modalities import audio_patches, image_patches, video_tubelets
from mmtrain.models import polyvit
from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec, build_model
from pipelines.modalities import Feature
from pipelines.modalities.audio import AudioFeature
from pipelines.modalities.image import ImageFeature
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.video import VideoFeature

IMAGE: Feature = ImageFeature(height=16, width=16, channels=3)
VIDEO: Feature = VideoFeature(height=16, width=16, channels=3, num_frames=8)
AUDIO: Feature = AudioFeature(representation="log_mel", num_frames=32, num_bins=16)
SIDES: dict[str, tuple[Feature, str, int]] = {  # task -> input, its net, number of classes
    "shape": (IMAGE, "image_patches", 3),
    "colour": (IMAGE, "image_patches", 5),
    "motion": (VIDEO, "video_tubelets", 4),
    "word": (AUDIO, "audio_patches", 6),
    "voice": (AUDIO, "audio_patches", 2),
}
LINEAGE = Lineage(
    recipe="small_polyvit",
    recipe_digest="0123456789abcdef",
    code_version="0.1.0+abc",
    corpora=dict.fromkeys(SIDES, "c0ffee"),
    step=7,
    task_steps=dict.fromkeys(SIDES, 2),
)


def nets(**others: BaseModel) -> dict[str, BaseModel]:
    return {
        "image_patches": image_patches.Config(height=16, width=16, patch=(8, 8), channels=3),
        "video_tubelets": video_tubelets.Config(
            num_frames=8, height=16, width=16, patch=(4, 8, 8), channels=3
        ),
        "audio_patches": audio_patches.Config(num_frames=32, num_bins=16, patch=(8, 8)),
        **others,
    }


def specs(*tasks: str) -> list[TaskSpec]:
    return [
        TaskSpec(name=name, input_net=net, output_net="linear", num_outputs=size)
        for name, (_, net, size) in SIDES.items()
        if name in (tasks or SIDES)
    ]


def targets(*tasks: str) -> dict[str, Feature]:
    return {
        name: LabelFeature(classes=tuple(f"{name}{number}" for number in range(size)))
        for name, (_, _, size) in SIDES.items()
        if name in (tasks or SIDES)
    }


def bundle_tasks() -> dict[str, BundleTask]:
    return {
        spec.name: BundleTask(
            spec=spec,
            inputs=SIDES[spec.name][0],
            targets=targets()[spec.name],
            max_target_length=1,
        )
        for spec in specs()
    }


def small_config(*, held: dict[str, BaseModel] | None = None, **body: Any) -> ModelConfig:
    sizes = {"model_dim": 16, "num_layers": 3, "num_heads": 2, "mlp_dim": 24}
    return ModelConfig(
        family="polyvit",
        body=polyvit.Config(**{**sizes, **body}),
        nets=held or nets(),
        vocab_size=4,
    )


def small_polyvit(
    *tasks: str, seed: int = 0, held: dict[str, BaseModel] | None = None, **body: Any
) -> MultiTaskModel:
    """In eval mode; no weight is zero or one, so that no part can be left out unseen."""
    model = build_model(small_config(held=held, **body), specs(*tasks), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


def inputs_of(task: str, *, batch: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """What `encode` takes, and `forward` beside the targets."""
    generator = torch.Generator().manual_seed(seed)
    feature = SIDES[task][0]
    if feature is AUDIO:
        values = torch.randn((batch, 32, 16), generator=generator)
    else:
        shape = (16, 16, 3) if feature is IMAGE else (8, 16, 16, 3)
        values = torch.randint(0, 256, (batch, *shape), generator=generator, dtype=torch.uint8)
    return {"inputs": values, "input_lengths": torch.full((batch,), values.shape[1])}


def logits(model: MultiTaskModel, task: str) -> Tensor:
    with torch.inference_mode():
        return model(task=task, targets=None, **inputs_of(task)).logits


def save_polyvit(folder: Path, *, seed: int = 0, **body: Any) -> MultiTaskModel:
    """Writes the bundle of `small_polyvit`, which is returned."""
    model = small_polyvit(seed=seed, **body)
    save_bundle(
        folder,
        model=model.config,
        tasks=bundle_tasks(),
        state=model.state_dict(),
        vocabulary=None,
        lineage=LINEAGE,
    )
    return model
