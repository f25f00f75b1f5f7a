"""The MultiModel body: an encoder, a mixer of input and output, and a causal decoder.

Kaiser et al., "One Model To Learn Them All", arXiv:1706.05137. Convolutions do most of the work,
attention reads the input, experts add width in the middle of the encoder and of the decoder.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmtrain.layers.attention import AttentionBlock, AttentionSource, OutputMap
from mmtrain.layers.conv import ConvBlock, ConvStep, Padding, Place, Residual
from mmtrain.layers.encoded import Encoded
from mmtrain.layers.memory import Memory
from mmtrain.layers.moe import GateNoise, MoE
from mmtrain.layers.positions import joined_place, left_padded, padding_bias, target_place
from mmtrain.layers.timing import timing_signal
from mmtrain.layers.units import (
    ScaleSite,
    UnitCounts,
    UnitGroup,
    check_units,
    sites_within,
    units_within,
)
from pipelines.errors import MMTrainError


class BodyError(MMTrainError):
    """Settings of a body that do not go together."""


class Config(BaseModel):
    """Settings of the MultiModel body. `paper()` has the sizes of the eight-task model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_dim: int = Field(default=96, ge=2, description="D, channels of every position.")
    num_heads: int = Field(default=8, ge=1, description="Attention heads; they divide model_dim.")
    encoder_conv_blocks: int = Field(default=3, ge=0, description="Blocks before its experts.")
    encoder_attention_blocks: int = Field(default=3, ge=0, description="Blocks after them.")
    mixer_blocks: int = Field(default=2, ge=0, description="Blocks of the mixer.")
    decoder_blocks: int = Field(
        default=4, ge=0, description="Blocks of the decoder; experts midway."
    )
    dilation: int = Field(
        default=8, ge=1, description="Of a block's last convolution, in positions."
    )
    residual: Residual = Field(
        default="stack_input", description="Where a block's second skip starts."
    )
    drop_prob: float = Field(default=0.1, ge=0, lt=1, description="Dropout of a block; paper 0.4.")
    attention_drop_prob: float = Field(default=0.0, ge=0, lt=1, description="Dropout of attention.")
    attention: Literal["all", "decoder", "none"] = Field(
        default="all", description="Where attention is: everywhere, not in the encoder, nowhere."
    )
    attention_output: OutputMap = Field(
        default="linear", description="Map after the heads are joined."
    )
    join: Literal["time", "none"] = Field(
        default="time",
        description="The decoder runs over input and target in line, or target alone.",
    )
    experts: Literal["both", "encoder", "decoder", "none"] = Field(
        default="both", description="Which parts have a layer of experts."
    )
    num_experts: int = Field(default=8, ge=1, description="Experts of each such layer.")
    active_experts: int = Field(
        default=4, ge=1, description="Experts of a position, k; at most all."
    )
    expert_dim: int = Field(default=96, ge=1, description="Hidden width of an expert.")
    gate_noise: GateNoise = Field(default="learned", description="Noise of the gate in training.")
    balance_weight: float = Field(default=0.01, ge=0, description="Of importance and load losses.")
    units: dict[str, int] = Field(
        default={},
        description="Units of a group that has fewer than all, e.g. 'encoder.moe.experts'.",
    )

    @classmethod
    def paper(cls) -> "Config":
        """The paper's eight-task model: D 1024, 240 experts of which 4 are active, no W_O."""
        return cls(
            model_dim=1024, num_experts=240, expert_dim=1024, drop_prob=0.4, attention_output="none"
        )


def _conv_block(config: Config, padding: Padding, units: UnitCounts) -> ConvBlock:
    return ConvBlock(
        config.model_dim,
        padding=padding,
        dilation=config.dilation,
        drop_prob=config.drop_prob,
        residual=config.residual,
        units=units,
    )


def _attention(config: Config, padding: Padding, units: UnitCounts) -> AttentionBlock:
    return AttentionBlock(
        config.model_dim,
        num_heads=config.num_heads,
        padding=padding,
        drop_prob=config.attention_drop_prob,
        output_map=config.attention_output,
        units=units,
    )


def _moe(config: Config, part: Literal["encoder", "decoder"], units: UnitCounts) -> MoE | None:
    if config.experts not in ("both", part):
        return None
    return MoE(
        config.model_dim,
        name=part,
        num_experts=units.count("experts", of=config.num_experts),
        k=config.active_experts,
        hidden_dim=units.below("experts").count("hidden", of=config.expert_dim),
        loss_weight=config.balance_weight,
        noise=config.gate_noise,
    )


class AttendingBlock(nn.Module):
    """A conv block, then attention from its output: c = ConvBlock(u); c + Attention(c, source)."""

    def __init__(
        self, config: Config, *, padding: Padding, attends: bool, units: UnitCounts
    ) -> None:
        super().__init__()
        self.conv = _conv_block(config, padding, units.below("conv"))
        self.attention = None
        if attends:
            self.attention = _attention(config, padding, units.below("attention"))

    def forward(self, u_BLD: Tensor, *, source: AttentionSource | None, place: Place) -> Tensor:
        """`source` None: the block's own input, of which a target sees no later position."""
        c_BLD = self.conv(u_BLD, place)
        if self.attention is None:
            return c_BLD
        source = source or AttentionSource(u_BLD, place.bias, "with_target")
        return c_BLD + self.attention(c_BLD, source=source, place=place)


def _causal_blocks(
    config: Config, count: int, *, attends: bool, units: UnitCounts
) -> nn.ModuleList:
    return nn.ModuleList(
        AttendingBlock(config, padding="left", attends=attends, units=units.below(str(number)))
        for number in range(count)
    )


class Encoder(nn.Module):
    """Conv blocks, experts, attending blocks; padding is zero at the end. Sec. 2.3 of the paper."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        attends = config.attention == "all"
        units = UnitCounts(config.units).below("encoder")
        self.conv_blocks = nn.ModuleList(
            _conv_block(config, "same", units.below(f"conv_blocks.{number}"))
            for number in range(config.encoder_conv_blocks)
        )
        self.moe = _moe(config, "encoder", units.below("moe"))
        self.attending_blocks = nn.ModuleList(
            AttendingBlock(
                config,
                padding="same",
                attends=attends,
                units=units.below(f"attending_blocks.{number}"),
            )
            for number in range(config.encoder_attention_blocks)
        )

    def forward(self, inputs: Encoded) -> Encoded:
        h_BSD = inputs.values_BSD
        mask_BS1 = inputs.mask_BS.unsqueeze(-1).to(h_BSD.dtype)
        timing_SD = timing_signal(h_BSD.shape[1], depth=h_BSD.shape[2], like=h_BSD)
        bias = padding_bias(inputs.mask_BS, dtype=h_BSD.dtype)
        place = Place(mask_BS1, timing_SD, bias)
        h_BSD = h_BSD + timing_SD
        for block in self.conv_blocks:
            h_BSD = block(h_BSD, place)
        balance = ()
        if self.moe is not None:
            routed = self.moe(h_BSD, mask_BS1)
            h_BSD, balance = routed.values_BLD, (routed.balance,)
        for block in self.attending_blocks:
            h_BSD = block(h_BSD, source=None, place=place)
        return Encoded(h_BSD * mask_BS1, inputs.mask_BS, inputs.grid, inputs.balance + balance)


class Mixer(nn.Module):
    """Shifted targets look at the encoded input, then are mixed. Sec. 2.3 of the paper."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        attends, dim = config.attention != "none", config.model_dim
        units = UnitCounts(config.units).below("mixer")
        self.attention = None
        if attends:
            self.attention = _attention(config, "left", units.below("attention"))
        joined_dim = 2 * dim if attends else dim
        self.join = ConvStep(joined_dim, dim, kernel=3, padding="left", units=units.below("join"))
        self.blocks = _causal_blocks(
            config, config.mixer_blocks, attends=attends, units=units.below("blocks")
        )

    def forward(self, shifted_BTD: Tensor, *, source: AttentionSource, place: Place) -> Tensor:
        u_BTD = shifted_BTD
        if self.attention is not None:
            a_BTD = self.attention(shifted_BTD, source=source, place=place)
            u_BTD = torch.cat([a_BTD, shifted_BTD], dim=-1)
        u_BTD = self.join(u_BTD, place)
        for block in self.blocks:
            u_BTD = block(u_BTD, source=None, place=place)
        return u_BTD


class Decoder(nn.Module):
    """Causal blocks that all read the encoded input; experts after half of them. Sec. 2.3."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, attends = config.model_dim, config.attention != "none"
        units = UnitCounts(config.units).below("decoder")
        self.step1 = ConvStep(dim, dim, kernel=3, padding="left", units=units.below("step1"))
        self.step2 = ConvStep(dim, dim, kernel=3, padding="left", units=units.below("step2"))
        self.blocks = _causal_blocks(
            config, config.decoder_blocks, attends=attends, units=units.below("blocks")
        )
        self.moe = _moe(config, "decoder", units.below("moe"))

    def forward(self, u_BLD: Tensor, *, source: AttentionSource, place: Place) -> Encoded:
        u_BLD = self.step2(self.step1(u_BLD, place), place)
        mask_BL, balance = place.mask_BL1.squeeze(-1) > 0, ()
        middle = len(self.blocks) // 2
        for number, block in enumerate(self.blocks):
            if number == middle and self.moe is not None:
                routed = self.moe(u_BLD, place.mask_BL1)
                u_BLD, balance = routed.values_BLD, (routed.balance,)
            u_BLD = block(u_BLD, source=source, place=place)
        return Encoded(u_BLD, mask_BL, balance=balance)


class Body(nn.Module):
    """Encoder, mixer and decoder.

    Raises:
        BodyError: heads that do not divide the width; no way from the input to the target.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.model_dim % config.num_heads:
            raise BodyError(
                f"num_heads {config.num_heads} does not divide model_dim {config.model_dim}"
            )
        if config.attention == "none" and config.join == "none":
            raise BodyError(
                "attention 'none' with join 'none' lets a target see nothing of its input; "
                "use join 'time'"
            )
        self.config = config
        self.encoder = Encoder(config)
        self.mixer = Mixer(config)
        self.decoder = Decoder(config)
        check_units(config.units, self)

    def parts(self, reads: Literal["encoded", "decoded"]) -> tuple[str, ...]:
        """Children that a head reading "encoded" or "decoded" positions depends on."""
        return ("encoder",) if reads == "encoded" else ("encoder", "mixer", "decoder")

    def encode(self, inputs: Encoded) -> Encoded:
        """(B, S, D) to (B, S, D), zero at padding."""
        return self.encoder(inputs)

    def decode(self, shifted: Encoded, encoded: Encoded) -> Encoded:
        """Shifted targets (B, T, D) to decoded ones; position t sees the slots up to t alone."""
        source = self._source(encoded)
        place = target_place(shifted, first=0)
        mixed_BTD = self.mixer(shifted.values_BSD, source=source, place=place)
        if self.config.join == "none":
            return self.decoder(mixed_BTD, source=source, place=place)
        prefix = left_padded(encoded)
        joined = Encoded(
            torch.cat([prefix.values_BSD, mixed_BTD], dim=1),
            torch.cat([prefix.mask_BS, shifted.mask_BS], dim=1),
        )
        place = joined_place(joined, joined.mask_BS)
        decoded = self.decoder(joined.values_BSD, source=source, place=place)
        length = prefix.values_BSD.shape[1]
        return Encoded(decoded.values_BSD[:, length:], shifted.mask_BS, balance=decoded.balance)

    def prunable_units(self) -> tuple[UnitGroup, ...]:
        """Channels of separable convolutions, attention heads, experts, their hidden units."""
        return units_within(self)

    def scale_sites(self) -> tuple[ScaleSite, ...]:
        """Where channels of separable convolutions can be scaled."""
        return sites_within(self)

    def remember(self, encoded: Encoded) -> Memory:
        """A memory to decode with, position by position, holding what comes before the first."""
        memory = Memory()
        if self.config.join == "time":
            prefix = left_padded(encoded)
            place = joined_place(prefix, prefix.mask_BS, memory=memory)
            memory.append(self, "mask", prefix.mask_BS)
            self.decoder(prefix.values_BSD, source=self._source(encoded), place=place)
        return memory

    def resume(self, shifted: Encoded, encoded: Encoded, *, memory: Memory) -> Encoded:
        """`decode` for one more position, (B, 1, D)."""
        source = self._source(encoded)
        position = memory.length(self, "targets")
        memory.append(self, "targets", shifted.mask_BS)
        place = target_place(shifted, first=position, memory=memory)
        mixed_B1D = self.mixer(shifted.values_BSD, source=source, place=place)
        if self.config.join == "time":
            mask_BM = memory.append(self, "mask", shifted.mask_BS)
            place = joined_place(shifted, mask_BM, memory=memory)
        return self.decoder(mixed_B1D, source=source, place=place)

    def _source(self, encoded: Encoded) -> AttentionSource:
        values_BSD = encoded.values_BSD
        bias = padding_bias(encoded.mask_BS, dtype=values_BSD.dtype)
        return AttentionSource(values_BSD, bias, "fixed")
