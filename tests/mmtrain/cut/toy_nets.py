"""A small residual network with gates, and masks for it: 4 classes, 4 basis subtasks."""

from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.layers.units import ScaleSite, Slice, UnitGate, UnitGroup
from mmtrain.masks.banks import MaskBank
from mmtrain.masks.config import PruningConfig
from mmtrain.masks.generator import build_masks

STREAM, INNER, CLASSES = 6, 5, 4


class ToyNet(nn.Module):
    """Images (B, 2, Y, X) to scores (B, 4): a convolution, then one residual block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, STREAM, 3, padding=1)
        self.inner = nn.Conv2d(STREAM, INNER, 3, padding=1)
        self.outer = nn.Conv2d(INNER, STREAM, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in (STREAM, INNER, STREAM))
        self.stem_gate, self.inner_gate, self.block_gate = (UnitGate(axis=1) for _ in range(3))
        self.inner_scale, self.outer_scale = UnitGate(axis=1), UnitGate(axis=1)
        self.head = nn.Linear(STREAM, CLASSES)
        self.seen: dict[str, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem_gate(self.norms[0](self.stem(images)).relu())
        inner = self.inner_gate(self.norms[1](self.inner(self.inner_scale(stem))).relu())
        outer = self.norms[2](self.outer(self.outer_scale(inner)))
        block = self.block_gate((stem + outer).relu())
        self.seen = {"stem": stem, "inner": inner, "block": block}
        return self.head(block.mean(dim=(2, 3)))


GROUPS = (
    UnitGroup(
        "stream", "filter", STREAM, ("stem_gate", "block_gate"), (Slice("stem.weight", axis=0),)
    ),
    UnitGroup("inner", "filter", INNER, ("inner_gate",), (Slice("inner.weight", axis=0),)),
)
SITES = (
    ScaleSite("inner_scale", "stream", "inner.weight"),
    ScaleSite("outer_scale", "inner", "outer.weight"),
)
SUBTASKS = ("a", "b", "c", "d")


def toy_config(**settings: Any) -> PruningConfig:
    subtasks = {name: (f"shape:{number}",) for number, name in enumerate(SUBTASKS)}
    return PruningConfig(**{"subtasks": subtasks, **settings})


def toy_bank(seed: int = 0, **settings: Any) -> MaskBank:
    return build_masks(toy_config(**settings), groups=GROUPS, sites=SITES, seed=seed)


def toy_images(num_images: int = 8) -> Tensor:
    return torch.randn(num_images, 2, 6, 6, generator=torch.Generator().manual_seed(1))
