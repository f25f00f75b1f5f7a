"""The linear head: a task's scores from one vector of the encoded input, the class token's.

It serves every target with a fixed number of scores: classes, several labels, numbers.
"""

import itertools
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.patches import lecun_normal_
from mmtrain.layers.units import Slice

Input = None

Pool = Literal["class_token", "mean", "max", "sum"]


class Config(BaseModel):
    """Settings of the linear head."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: Pool = Field(
        default="class_token",
        description="The first position, or the mean, maximum or sum of the real ones after it.",
    )
    hidden_dims: tuple[int, ...] = Field(
        default=(), description="Widths of layers with ReLU before the last."
    )
    init: Literal["zeros", "lecun_normal"] = Field(
        default="zeros", description="Weights of the last layer at the start; its bias is zero."
    )


def pool(encoded: Encoded, kind: Pool) -> Tensor:
    """(B, D) from (B, 1 + S, D)."""
    if kind == "class_token":
        return encoded.values_BSD[:, 0]
    values_BSD = encoded.values_BSD[:, 1:]
    mask_BS1 = encoded.mask_BS[:, 1:].unsqueeze(-1)
    if kind == "max":
        lowest = torch.finfo(values_BSD.dtype).min
        return values_BSD.masked_fill(~mask_BS1, lowest).amax(1)
    sum_BD = (values_BSD * mask_BS1).sum(1)
    return sum_BD if kind == "sum" else sum_BD / mask_BS1.sum(1).clamp(min=1)


class Output(nn.Module):
    """(B, 1 + S, D) encoded to logits (B, V)."""

    reads: ClassVar[Literal["encoded", "decoded"]] = "encoded"

    def __init__(
        self,
        config: Config,
        *,
        model_dim: int,
        vocab_size: int,
        num_outputs: int | None,
        dims: Literal[1, 2],
    ) -> None:
        super().__init__()
        assert num_outputs is not None, "a linear head needs its number of scores"
        self.pool: Pool = config.pool
        widths = (model_dim, *config.hidden_dims)
        layers = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
        self.hidden = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
        self.project = nn.Linear(widths[-1], num_outputs)
        for layer in (*layers, self.project):
            lecun_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        if config.init == "zeros":
            nn.init.zeros_(self.project.weight)

    def forward(self, encoded: Encoded) -> Tensor:
        return self.project(self.hidden(pool(encoded, self.pool)))

    def input_slices(self) -> tuple[Slice, ...]:
        """Where the channels that it reads lie in its weights."""
        return (Slice("hidden.0.weight" if len(self.hidden) else "project.weight", axis=1),)

    def output_slices(self) -> tuple[Slice, ...]:
        """Where its scores lie in its weights."""
        return (Slice("project.weight", axis=0), Slice("project.bias", axis=0))
