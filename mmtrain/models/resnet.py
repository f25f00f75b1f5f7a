"""A residual network for small pictures, of 3x3 convolutions with batch norm.

He et al., arXiv:1512.03385, Sec. 4.2: one convolution, then stages of residual blocks, of which
each later stage halves the picture. What heads read first is the mean over positions, in the
place of a class token; the positions follow.

Every filter may be switched off and cut out. What blocks of a stage add up is one group of units:
the stage's first projection (or the first convolution) and the last convolution of each block.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.norm import GridNorm
from mmtrain.layers.patches import known
from mmtrain.layers.strided import GridFilters
from mmtrain.layers.units import ScaleSite, Slice, UnitGate, UnitGroup
from pipelines.errors import MMTrainError

NETS = {
    "image": "image_pixels",
    "label": "linear",
    "multilabel": "linear",
    "labels": "linear",
    "numbers": "linear",
}

Shortcuts = Literal["residual", "none"]


class BodyError(MMTrainError):
    """Settings of a body that do not go together, or an input that it cannot take."""


class Config(BaseModel):
    """Settings of the body. The usual depths are 8, 14, 20, 32, 44, 56 and 110."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    TAKEN: ClassVar = ("channels",)

    channels: int | None = Field(
        default=None, ge=1, description="Of the pictures; null: as the tasks' inputs have."
    )
    depth: int = Field(
        default=8,
        ge=4,
        description="Layers with weights: 2, and 2 for each block; stages have equally many.",
    )
    widths: tuple[int, ...] = Field(
        default=(16, 32, 64), min_length=1, description="Filters of each stage."
    )
    shortcuts: Shortcuts = Field(
        default="residual", description="Blocks add to what they get, or are plain layers."
    )
    norm_momentum: float = Field(
        default=0.1, gt=0, le=1, description="Share of a batch in the running statistics."
    )
    units: dict[str, int] = Field(
        default={}, description="Units of a group that has fewer than all."
    )

    @property
    def model_dim(self) -> int:
        """Channels of what heads read."""
        return self.count(output_group(self))

    def full_sizes(self) -> dict[str, int]:
        """Units of every group before any is cut out, in the order of the layers."""
        sizes = {} if self.shortcuts == "residual" else {"stem": self.widths[0]}
        for stage, block in places(self):
            sizes.setdefault(stream_group(self, stage, block), self.widths[stage])
            sizes[f"stage{stage}.block{block}"] = self.widths[stage]
        return sizes

    def count(self, group: str) -> int:
        """Units that a group has."""
        return self.units.get(group, self.full_sizes()[group])


def places(config: Config) -> list[tuple[int, int]]:
    """(stage, block) of all blocks in order, both from 0.

    Raises:
        BodyError: the stages cannot have equally many blocks.
    """
    layers, stages = config.depth - 2, len(config.widths)
    blocks, rest = divmod(layers, 2 * stages)
    if rest or not blocks:
        near = 2 + 2 * stages * max(1, round(layers / (2 * stages)))
        raise BodyError(
            f"depth {config.depth} does not divide into {stages} stages of blocks of two layers "
            f"after the first and the last; use {near}"
        )
    return [(stage, block) for stage in range(len(config.widths)) for block in range(blocks)]


def stream_group(config: Config, stage: int, block: int) -> str:
    """The group of what a block hands on: that of its stage, or without shortcuts its own."""
    return f"stage{stage}" if config.shortcuts == "residual" else f"stage{stage}.block{block}.out"


def output_group(config: Config) -> str:
    """The group of what the last block hands on."""
    return stream_group(config, *places(config)[-1])


class ConvNorm(nn.Module):
    """BN(Conv(x)) of a grid (B, C, Y, X); no bias, the norm shifts."""

    def __init__(
        self, dim: int, out_dim: int, *, kernel: int, stride: int, momentum: float
    ) -> None:
        super().__init__()
        steps, padding = (stride, stride), (kernel // 2, kernel // 2)
        self.conv = GridFilters(dim, out_dim, (kernel, kernel), stride=steps, padding=padding)
        self.norm = GridNorm(out_dim, momentum=momentum)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return self.norm(self.conv(x_BCYX))


def _filters(path: str) -> tuple[Slice, ...]:
    """Where the output channels of the `ConvNorm` at `path` lie."""
    vectors = ("weight", "bias", "running_mean", "running_var")
    of_norm = tuple(Slice(f"{path}.norm.{name}", axis=0) for name in vectors)
    return (Slice(f"{path}.conv.weight", axis=0), *of_norm)


def _inputs(path: str) -> tuple[Slice, ...]:
    """Where the input channels of the `ConvNorm` at `path` lie."""
    return (Slice(f"{path}.conv.weight", axis=1),)


class Block(nn.Module):
    """Two convolutions and a shortcut.

        h = m_inner * relu(BN(Conv(s * x)));   y = m_stream * relu(shortcut(x) + BN(Conv(s' * h)))

    The shortcut is x where size and group stay, else BN(Conv_1x1(s'' * x)); masks m of units and
    scales s are 1 unless they are set.
    """

    def __init__(
        self, dim: int, inner_dim: int, out_dim: int, *, stride: int, projects: bool, config: Config
    ) -> None:
        super().__init__()
        momentum = config.norm_momentum
        self.scale1, self.scale2 = UnitGate(axis=1), UnitGate(axis=1)
        self.conv1 = ConvNorm(dim, inner_dim, kernel=3, stride=stride, momentum=momentum)
        self.inner_gate = UnitGate(axis=1)
        self.conv2 = ConvNorm(inner_dim, out_dim, kernel=3, stride=1, momentum=momentum)
        self.gate = UnitGate(axis=1)
        self.is_residual = config.shortcuts == "residual"
        self.project = self.project_scale = None
        if projects:
            self.project_scale = UnitGate(axis=1)
            self.project = ConvNorm(dim, out_dim, kernel=1, stride=stride, momentum=momentum)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        # masks stand behind the ReLU: a unit that is off keeps a gradient, and can come back
        h_BCYX = self.inner_gate(self.conv1(self.scale1(x_BCYX)).relu())
        y_BCYX = self.conv2(self.scale2(h_BCYX))
        if self.is_residual:
            y_BCYX = y_BCYX + self._shortcut(x_BCYX)
        return self.gate(y_BCYX.relu())

    def _shortcut(self, x_BCYX: Tensor) -> Tensor:
        if self.project is None or self.project_scale is None:
            return x_BCYX
        return self.project(self.project_scale(x_BCYX))


class Body(nn.Module):
    """The convolutions, and the mean over positions that a head reads.

    Raises:
        BodyError: a depth that the stages do not share evenly; counts of unknown groups, or more
            than there are; when called, an input that is no grid of the body's channels.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        _check_units(config)
        self.config = config
        self.output_group = output_group(config)
        self._groups = _groups_of_blocks(config)
        dim = config.count(self._groups[0][0])
        (channels,) = known(config.channels)
        self.stem = ConvNorm(channels, dim, kernel=3, stride=1, momentum=config.norm_momentum)
        self.stem_gate = UnitGate(axis=1)
        self.blocks = nn.ModuleList()
        for (stage, block), (source, inner, stream) in zip(
            places(config), self._groups, strict=True
        ):
            starts_stage = stage > 0 and block == 0
            self.blocks.append(
                Block(
                    *(config.count(group) for group in (source, inner, stream)),
                    stride=2 if starts_stage else 1,
                    projects=starts_stage and config.shortcuts == "residual",
                    config=config,
                )
            )

    def parts(self, reads: Literal["encoded", "decoded"]) -> tuple[str, ...]:
        """Children that a head depends on: all."""
        return ("stem", "stem_gate", "blocks")

    def encode(self, inputs: Encoded) -> Encoded:
        """(B, Y * X, C) to (B, 1 + Y' * X', D): the mean over positions, then the positions."""
        channels = inputs.values_BSD.shape[-1]
        if inputs.grid is None or channels != self.config.channels:
            raise BodyError(
                f"the body takes grids of {self.config.channels} channels, not "
                f"{'a sequence' if inputs.grid is None else 'a grid'} of {channels}; "
                "set model.body.channels to the pictures', and take images alone"
            )
        x_BYXC = inputs.values_BSD.unflatten(1, inputs.grid).to(self.stem.conv.weight.dtype)
        x_BCYX = self.stem_gate(self.stem(x_BYXC.permute(0, 3, 1, 2)).relu())
        for block in self.blocks:
            x_BCYX = block(x_BCYX)
        values_BSD = x_BCYX.flatten(2).transpose(1, 2)
        values_BSD = torch.cat([values_BSD.mean(1, keepdim=True), values_BSD], dim=1)
        mask_BS = values_BSD.new_ones(values_BSD.shape[:2]).bool()
        grid = (x_BCYX.shape[2], x_BCYX.shape[3])
        return replace(inputs, values_BSD=values_BSD, mask_BS=mask_BS, grid=grid, padding="none")

    def prunable_units(self) -> tuple[UnitGroup, ...]:
        """Filters: those of a stage's stream together, the inner ones of each block by itself."""
        gates: dict[str, list[str]] = {}
        slices: dict[str, list[Slice]] = {}
        for group, gate, held in self._members():
            gates.setdefault(group, []).extend(gate)
            slices.setdefault(group, []).extend(held)
        return tuple(
            UnitGroup(
                name, "filter", self.config.count(name), tuple(gates[name]), tuple(slices[name])
            )
            for name in self.config.full_sizes()
        )

    def _members(self) -> Iterator[tuple[str, tuple[str, ...], tuple[Slice, ...]]]:
        """Group, gates and slices of each layer, layer by layer."""
        yield self._groups[0][0], ("stem_gate",), _filters("stem")
        for number, (source, inner, stream) in enumerate(self._groups):
            path = f"blocks.{number}"
            yield source, (), _inputs(f"{path}.conv1")
            yield inner, (f"{path}.inner_gate",), _filters(f"{path}.conv1")
            yield inner, (), _inputs(f"{path}.conv2")
            yield stream, (f"{path}.gate",), _filters(f"{path}.conv2")
            if self.blocks.get_submodule(str(number)).project is not None:
                yield source, (), _inputs(f"{path}.project")
                yield stream, (), _filters(f"{path}.project")

    def scale_sites(self) -> tuple[ScaleSite, ...]:
        """The inputs of all convolutions but the first, which sees the picture."""
        sites = []
        for number, (source, inner, _) in enumerate(self._groups):
            path = f"blocks.{number}"
            sites += [
                ScaleSite(f"{path}.scale1", source, f"{path}.conv1.conv.weight"),
                ScaleSite(f"{path}.scale2", inner, f"{path}.conv2.conv.weight"),
            ]
            if self.blocks.get_submodule(str(number)).project is not None:
                weight = f"{path}.project.conv.weight"
                sites.append(ScaleSite(f"{path}.project_scale", source, weight))
        return tuple(sites)


def _groups_of_blocks(config: Config) -> list[tuple[str, str, str]]:
    """Of each block: the groups of what it gets, of its inner filters and of what it hands on."""
    groups = []
    source = "stage0" if config.shortcuts == "residual" else "stem"
    for stage, block in places(config):
        stream = stream_group(config, stage, block)
        groups.append((source, f"stage{stage}.block{block}", stream))
        source = stream
    return groups


def _check_units(config: Config) -> None:
    sizes = config.full_sizes()
    for group, count in config.units.items():
        if group not in sizes:
            raise BodyError(f"units names group {group!r}; there are {', '.join(sizes)}")
        if not 1 <= count <= sizes[group]:
            raise BodyError(f"units[{group!r}] is {count}; the group has 1 to {sizes[group]}")
