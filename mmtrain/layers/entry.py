"""Entry flow: raw values of a grid to positions of width D, by convolutions that halve its axes."""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.grid import (
    ConvRes,
    Entry,
    GridConv,
    Pair,
    row_mask,
    standardise,
    stride_lengths,
)
from mmtrain.layers.units import (
    ScaleSite,
    UnitCounts,
    UnitGroup,
    check_units,
    sites_within,
    units_within,
)


class Stage(BaseModel):
    """One convolution or one residual block of an entry flow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int | None = Field(default=None, ge=1, description="Channels, at most D; null: D.")
    kernel: Pair = Field(
        default=(3, 3), description="Along rows (or time) and columns (or frequency)."
    )
    stride: Pair = Field(default=(1, 1), description="Along the same axes.")


class EntryFlow(nn.Module):
    """Ordinary convolutions, then residual blocks; the last stage's width must be D.

    Each example is standardised over what is real of it. A ReLU comes before every convolution but
    the first. Which shortcuts start with one: "first" or "all_but_last" (tensor2tensor v1.0.3: the
    former for images, the latter for sounds). `units` says how many channels blocks have left.
    """

    def __init__(
        self,
        channels: int,
        *,
        stems: tuple[Stage, ...],
        blocks: tuple[Stage, ...],
        model_dim: int,
        relu_shortcuts: Literal["first", "all_but_last"],
        units: UnitCounts,
    ) -> None:
        super().__init__()
        dim = channels
        self.stems, self.blocks = nn.ModuleList(), nn.ModuleList()
        for stage in stems:
            width = min(stage.width or model_dim, model_dim)
            entry: Entry = "relu" if self.stems else "linear"
            self.stems.append(
                GridConv(dim, width, kernel=stage.kernel, stride=stage.stride, entry=entry)
            )
            dim = width
        for place, stage in enumerate(blocks):
            width = min(stage.width or model_dim, model_dim)
            relu = place == 0 if relu_shortcuts == "first" else place < len(blocks) - 1
            shortcut: Entry = "relu" if relu else "linear"
            self.blocks.append(
                ConvRes(
                    dim,
                    width,
                    kernel=stage.kernel,
                    stride=stage.stride,
                    shortcut=shortcut,
                    units=units.below(f"blocks.{place}"),
                )
            )
            dim = width
        self.strides = [stage.stride[0] for stage in (*stems, *blocks)]

    def forward(self, x_BYXC: Tensor, lengths_B: Tensor | None) -> Encoded:
        """(B, Y, X, C) to positions, row by row. `lengths_B` None: every row is real."""
        x_BYXC = standardise(x_BYXC.float(), lengths_B)
        for layer, stride in zip((*self.stems, *self.blocks), self.strides, strict=True):
            x_BYXC = layer(x_BYXC, lengths_B)
            lengths_B = None if lengths_B is None else stride_lengths(lengths_B, stride)
        rows, columns = x_BYXC.shape[1:3]
        mask_BY = x_BYXC.new_ones(x_BYXC.shape[:2], dtype=torch.bool)
        if lengths_B is not None:
            mask_BY = row_mask(lengths_B, rows)
        return Encoded(
            x_BYXC.flatten(1, 2), mask_BY.repeat_interleave(columns, dim=1), (rows, columns)
        )


class EntryNet(nn.Module):
    """The input net of a modality that is an entry flow; its channels can be cut out.

    Args:
        config: with `stems`, `blocks` and `units`, which says how many channels blocks have left.
        channels: of the raw values.
        model_dim: D, the width of positions.
        relu_shortcuts: as of `EntryFlow`.
    """

    def __init__(
        self,
        config: Any,  # Any: a pydantic model of each net's own, with the fields named above
        *,
        channels: int,
        model_dim: int,
        relu_shortcuts: Literal["first", "all_but_last"],
    ) -> None:
        super().__init__()
        self.flow = EntryFlow(
            channels,
            stems=config.stems,
            blocks=config.blocks,
            model_dim=model_dim,
            relu_shortcuts=relu_shortcuts,
            units=UnitCounts(config.units).below("flow"),
        )
        check_units(config.units, self)

    def prunable_units(self) -> tuple[UnitGroup, ...]:
        """Channels of the separable convolutions."""
        return units_within(self)

    def scale_sites(self) -> tuple[ScaleSite, ...]:
        """Where those channels can be scaled."""
        return sites_within(self)
