"""A residual network small enough for a test, whose weights and statistics are none at rest."""

from typing import Any

import torch
from torch import Tensor

from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec, build_model
from mmtrain.models.resnet import Config

TASKS = (
    TaskSpec(name="digit", input_net="image_pixels", output_net="linear", num_outputs=10),
    TaskSpec(name="parity", input_net="image_pixels", output_net="linear", num_outputs=2),
)


def tiny_resnet(tasks: tuple[TaskSpec, ...] = TASKS, **body: Any) -> MultiTaskModel:
    """In evaluation mode."""
    config = ModelConfig(
        family="resnet", body=Config(**{"channels": 1, "widths": (6, 8, 10), **body})
    )
    model = build_model(config, tasks, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
        for name, value in model.named_buffers():
            if "running" in name:
                value += 0.3 * torch.rand(value.shape, generator=generator)
    return model.eval()


def pictures(*, batch: int = 4, side: int = 8, channels: int = 1, seed: int = 1) -> dict[str, Any]:
    """Keyword arguments of `MultiTaskModel.encode`, and of `forward` beside the targets."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, side, side, channels)
    inputs = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return {"inputs": inputs, "input_lengths": torch.full((batch,), side)}


@torch.no_grad()
def logits(model: MultiTaskModel, task: str = "digit", **shape: Any) -> Tensor:
    return model(task=task, targets=None, **pictures(**shape)).logits


def closed_form_parameters(config: Config, *, scores: tuple[int, ...]) -> int:
    """Weights, layer by layer, from the counts of units alone."""
    total = 0
    for kernel, dim, out_dim, _ in layers(config, side=1):
        total += kernel * kernel * dim * out_dim + 2 * out_dim
    return total + sum(config.model_dim * count + count for count in scores)


def closed_form_flops(config: Config, *, side: int, batch: int, scores: int) -> int:
    """Two for each multiplication with an addition, of one forward pass of one task."""
    total = 0
    for kernel, dim, out_dim, rows in layers(config, side=side):
        total += 2 * kernel * kernel * dim * out_dim * rows * rows
    return batch * (total + 2 * config.model_dim * scores)


def layers(config: Config, *, side: int) -> list[tuple[int, int, int, int]]:
    """(kernel, channels in, channels out, rows out) of every convolution."""
    is_residual = config.shortcuts == "residual"
    dim = config.count("stage0" if is_residual else "stem")
    found = [(3, config.channels, dim, side)]
    for stage in range(len(config.widths)):
        for block in range((config.depth - 2) // (2 * len(config.widths))):
            inner = config.count(f"stage{stage}.block{block}")
            out = config.count(f"stage{stage}" if is_residual else f"stage{stage}.block{block}.out")
            starts = stage > 0 and block == 0
            side = (side + 1) // 2 if starts else side
            found += [(3, dim, inner, side), (3, inner, out, side)]
            if starts and is_residual:
                found.append((1, dim, out, side))
            dim = out
    return found


def random_masks(
    model: MultiTaskModel, *, seed: int, share: float
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Units to keep by group, scales by site, and both by gate."""
    generator = torch.Generator().manual_seed(seed)
    kept, gates = {}, {}
    for group in model.prunable_units():
        mask = torch.rand(group.size, generator=generator) < share
        mask[int(torch.randint(group.size, (), generator=generator))] = True
        kept[group.name] = mask
        gates |= dict.fromkeys(group.gates, mask.float())
    scale = {
        site.gate: torch.randn(len(kept[site.group]), generator=generator)
        for site in model.scale_sites()
    }
    return kept, scale, {**gates, **scale}
