"""A PolyViT of three modalities, small enough for a test, whose heads are not zero."""

from typing import Any

import torch
from torch import Tensor

from mmtrain.modalities import audio_patches, elements, image_patches, text_tokens, video_tubelets
from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec, build_model

SHAPES = {"image_patches": (8, 12, 1), "video_tubelets": (4, 8, 8, 1), "audio_patches": (12, 8)}


def spec(name: str, net: str, num_outputs: int, head: str = "linear", **fields: Any) -> TaskSpec:
    return TaskSpec(name=name, input_net=net, output_net=head, num_outputs=num_outputs, **fields)


TASKS = (
    spec("digit", "image_patches", 10),
    spec("mask", "image_patches", 3, "elements"),
    spec("motion", "video_tubelets", 8),
    spec("word", "audio_patches", 10, drop_layer=0.5),
    spec("language", "text_tokens", 3),
)


def tiny_config(*, sequence: str = "clip", **body: Any) -> ModelConfig:
    patch = (4, 4)
    sizes = {"model_dim": 16, "num_layers": 4, "num_heads": 2, "mlp_dim": 24, "expert_dim": 12}
    return ModelConfig.model_validate(
        {
            "family": "polyvit",
            "body": {**sizes, "num_experts": 4, **body},
            "nets": {
                "image_patches": image_patches.Config(height=8, width=12, channels=1, patch=patch),
                "video_tubelets": video_tubelets.Config.model_validate(
                    {
                        "num_frames": 4, "height": 8, "width": 8, "channels": 1,
                        "patch": (2, *patch), "sequence": sequence,
                    }
                ),
                "audio_patches": audio_patches.Config(
                    num_frames=12, num_bins=8, channels=1, patch=patch
                ),
                "text_tokens": text_tokens.Config(max_tokens=9),
                "elements": elements.Config(patch=patch),
            },
            "vocab_size": 30,
        }
    )  # fmt: skip


def tiny_polyvit(
    tasks: tuple[TaskSpec, ...] = TASKS, *, sequence: str = "clip", **body: Any
) -> MultiTaskModel:
    model = build_model(tiny_config(sequence=sequence, **body), tasks, seed=0)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


def example(task: str, *, batch: int = 2) -> dict[str, Tensor]:
    """Keyword arguments of `MultiTaskModel.encode`."""
    net = next(spec.input_net for spec in TASKS if spec.name == task)
    generator = torch.Generator().manual_seed(1)
    if net == "text_tokens":
        lengths = torch.tensor([7, 4] * batch)[:batch]
        tokens = torch.randint(2, 30, (batch, 7), generator=generator)
        return {
            "inputs": tokens.masked_fill(torch.arange(7) >= lengths[:, None], 0),
            "input_lengths": lengths,
        }
    inputs = torch.rand((batch, *SHAPES[net]), generator=generator) * 255
    return {"inputs": inputs, "input_lengths": torch.full((batch,), inputs.shape[1])}
