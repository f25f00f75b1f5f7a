"""A model of a few tasks, small enough for a test, whose gates are not zero."""

from typing import Any

import torch
from torch import Tensor

from mmtrain.modalities import image
from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec, build_model
from mmtrain.models.multimodel import Config

VOCABULARY = 30
EN_DE, EN_FR, CAPTION, SPEECH = 2, 3, 4, 5  # command tokens

TASKS = (
    TaskSpec(name="en_de", input_net="text", output_net="text", command_id=EN_DE),
    TaskSpec(name="en_fr", input_net="text", output_net="text", command_id=EN_FR),
    TaskSpec(name="caption", input_net="image", output_net="text", command_id=CAPTION),
    TaskSpec(name="digits", input_net="image", output_net="label", num_outputs=10),
    TaskSpec(name="topic", input_net="text", output_net="label", num_outputs=4),
    TaskSpec(name="speech", input_net="spectral", output_net="text", command_id=SPEECH),
    TaskSpec(name="sound", input_net="waveform", output_net="label", num_outputs=3),
)


def tiny_model(*, seed: int = 0, nets: dict[str, Any] | None = None, **body: Any) -> MultiTaskModel:
    sizes = {"model_dim": 16, "num_heads": 4, "num_experts": 4, "active_experts": 2}
    config = ModelConfig(
        body=Config(**{**sizes, "expert_dim": 8, "drop_prob": 0.0, **body}),
        nets={"image": image.Config(channels=1), **(nets or {})},
        vocab_size=VOCABULARY,
    )
    model = build_model(config, TASKS, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if ".gate." in name:
            weight.data.normal_(generator=generator)
    return model


def token_rows(*lengths: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random tokens that end in 1, padded with 0, and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros((len(lengths), max(lengths)), dtype=torch.long)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(6, VOCABULARY, (length,), generator=generator)
        row[length - 1] = 1
    return tokens, torch.tensor(lengths)


def example_inputs(net: str, *, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if net == "text":
        return token_rows(*([7, 5, 6, 7][:batch]))
    shape = {"image": (16, 24, 1), "spectral": (40, 16), "waveform": (1600,)}[net]
    inputs = torch.randn((batch, *shape), generator=generator)
    return inputs, torch.full((batch,), shape[0])
