"""PolyViT: one vision transformer for pictures, clips and sounds (and texts).

Likhosherstov et al., arXiv:2111.12993. Each modality's net makes tokens with a class token first;
its first `num_adapter_blocks` blocks and its last `num_adapter_blocks_after` may be the modality's
own; the blocks between them and the last norm are shared. With a single modality it is a plain
vision transformer.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.moe import GateNoise, MoE
from mmtrain.layers.transformer import Gelu, TransformerBlock
from mmtrain.layers.units import UnitCounts, UnitGroup, check_units, units_within
from mmtrain.modalities import audio_patches, image_patches, video_tubelets
from pipelines.errors import MMTrainError

NETS = {
    "image": "image_patches",
    "video": "video_tubelets",
    "spectral": "audio_patches",
    "text": "text_tokens",
    "label": "linear",
    "multilabel": "linear",
    "labels": "linear",
    "numbers": "linear",
    "mask": "elements",
}


def released_nets() -> dict[str, BaseModel]:
    """Configs of the input nets with the released sizes, for `ModelConfig.nets`.

    Pictures of 384 x 384, clips of 32 frames of 224 x 224, 800 frames of 128 bins; 577, 1569 and
    401 positions with the class token.
    """
    return {
        "image_patches": image_patches.Config(height=384, width=384, channels=3),
        "video_tubelets": video_tubelets.Config(num_frames=32, height=224, width=224, channels=3),
        "audio_patches": audio_patches.Config(num_frames=800, num_bins=128),
    }


class BodyError(MMTrainError):
    """Settings of a body that do not go together."""


class Config(BaseModel):
    """Settings of the body. `tiny`, `small`, `base` and `large` have the usual sizes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_dim: int = Field(default=96, ge=2, description="D, width of every position.")
    num_layers: int = Field(
        default=4, ge=1, description="Blocks that an input passes, its modality's own included."
    )
    num_adapter_blocks: int = Field(
        default=0, ge=0, description="Of them, the first ones, which each modality has for itself."
    )
    num_adapter_blocks_after: int = Field(
        default=0, ge=0, description="Of them, the last ones, which each modality has for itself."
    )
    num_heads: int = Field(default=4, ge=1, description="Attention heads; they divide model_dim.")
    mlp_dim: int = Field(default=384, ge=1, description="Hidden width of a block's wide layer.")
    drop_prob: float = Field(default=0.0, ge=0, lt=1, description="Dropout of a block's branches.")
    attention_drop_prob: float = Field(default=0.0, ge=0, lt=1, description="Dropout of attention.")
    layer_norm_eps: float = Field(
        default=1e-6, gt=0, description="Of the norms; Hugging Face's ViT has 1e-12."
    )
    gelu: Gelu = Field(
        default="tanh", description="The tanh approximation, or erf, as Hugging Face's ViT has it."
    )
    drop_ramp: Literal["whole", "restart"] = Field(
        default="whole",
        description="Stochastic depth rises over all blocks, or within a modality's first blocks "
        "once by itself and over the others as if nothing were there, as released code does.",
    )
    experts: Literal["none", "every_second"] = Field(
        default="none", description="Whether every second block has experts, of the shared ones."
    )
    num_experts: int = Field(default=8, ge=1, description="Experts of each such block.")
    active_experts: int = Field(
        default=2, ge=1, description="Experts of a position, k; at most all."
    )
    expert_dim: int = Field(default=384, ge=1, description="Hidden width of an expert.")
    balance_weight: float = Field(
        default=0.01, ge=0, description="Weight of the experts' balancing loss."
    )
    gate_noise: GateNoise = Field(
        default="learned", description="Noise on the gate's scores in training."
    )
    units: dict[str, int] = Field(
        default={},
        description="Units of a group that has fewer than all, e.g. 'blocks.0.attention.heads'; "
        "of a modality's own block behind 'adapters.<net>.'.",
    )

    @classmethod
    def tiny(cls, **fields: Any) -> "Config":
        """ViT-Ti: 12 blocks of width 192. `fields` changes others of the settings."""
        return cls(**_sizes(192, 12, 3) | fields)

    @classmethod
    def small(cls, **fields: Any) -> "Config":
        """ViT-S: 12 blocks of width 384."""
        return cls(**_sizes(384, 12, 6) | fields)

    @classmethod
    def base(cls, **fields: Any) -> "Config":
        """ViT-B: 12 blocks of width 768."""
        return cls(**_sizes(768, 12, 12) | fields)

    @classmethod
    def large(cls, **fields: Any) -> "Config":
        """ViT-L: 24 blocks of width 1024."""
        return cls(**_sizes(1024, 24, 16) | fields)


def _sizes(dim: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    wide = 4 * dim
    sizes = {"model_dim": dim, "num_layers": num_layers, "num_heads": num_heads}
    return {**sizes, "mlp_dim": wide, "expert_dim": wide}


def depth_of(config: Config, place: int) -> float:
    """Share of the task's stochastic depth that the block at `place`, from 0, has.

        l / (L - 1) for block l of L, adapters counted in        arXiv:1603.09382, Sec. 3

    With `drop_ramp="restart"`, l / (L_adapt - 1) for an adapter before the shared blocks.
    """
    last = config.num_layers - 1
    if config.drop_ramp == "restart" and place < config.num_adapter_blocks:
        last = config.num_adapter_blocks - 1
    return place / last if last else 0.0


def shared_places(config: Config) -> range:
    """Places, from 0, of the shared blocks among all that an input passes.

    Raises:
        BodyError: a modality has more blocks for itself than there are.
    """
    before, after = config.num_adapter_blocks, config.num_adapter_blocks_after
    if before + after > config.num_layers:
        raise BodyError(
            f"num_adapter_blocks {before} and num_adapter_blocks_after {after} are more than "
            f"num_layers {config.num_layers}; together use 0 to {config.num_layers}"
        )
    return range(before, config.num_layers - after)


def build_blocks(config: Config, places: range, *, path: str) -> nn.ModuleList:
    """The blocks at these places; their units are those of "<path>.<number>" in the config."""
    units = UnitCounts(config.units)
    return nn.ModuleList(
        build_block(config, place, units=units.below(f"{path}.{number}"))
        for number, place in enumerate(places)
    )


def build_block(config: Config, place: int, *, units: UnitCounts) -> TransformerBlock:
    """The block at `place`, from 0, of all that an input passes."""
    is_shared = place in shared_places(config)
    has_experts = config.experts == "every_second" and is_shared and place % 2 == 1
    return TransformerBlock(
        config.model_dim,
        num_heads=config.num_heads,
        hidden_dim=config.mlp_dim,
        eps=config.layer_norm_eps,
        gelu=config.gelu,
        drop_prob=config.drop_prob,
        attention_drop_prob=config.attention_drop_prob,
        depth=depth_of(config, place),
        moe=_experts(config, place, units.below("moe")) if has_experts else None,
        units=units,
    )


def _experts(config: Config, place: int, units: UnitCounts) -> MoE:
    """Experts in place of the wide layer, after V-MoE, arXiv:2106.05974, Sec. 2.2."""
    return MoE(
        config.model_dim,
        name=f"block{place}",
        num_experts=units.count("experts", of=config.num_experts),
        k=config.active_experts,
        hidden_dim=units.below("experts").count("hidden", of=config.expert_dim),
        loss_weight=config.balance_weight,
        noise=config.gate_noise,
        residual="none",
    )


def run_blocks(blocks: Iterable[nn.Module], inputs: Encoded) -> Encoded:
    """The positions after some blocks."""
    values_BSD, balance = inputs.values_BSD, inputs.balance
    mask_BL = None if inputs.padding == "none" else inputs.mask_BS
    for block in blocks:
        outputs = block(values_BSD, mask_BL=mask_BL, drop_layer=inputs.drop_layer)
        values_BSD = outputs.values_BLD
        balance += outputs.balance
    return replace(inputs, values_BSD=values_BSD, balance=balance)


class Adapter(nn.Module):
    """The first and the last blocks, of one modality alone."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        shared = shared_places(config)
        self.blocks = build_blocks(config, range(shared.start), path="blocks")
        self.blocks_after = build_blocks(
            config, range(shared.stop, config.num_layers), path="blocks_after"
        )
        check_units(config.units, self)

    def forward(self, inputs: Encoded, body: "Body") -> Encoded:
        """What the body makes of the positions between its own blocks and its last norm."""
        return body.encode(run_blocks(self.blocks, inputs), after=self.blocks_after)

    def prunable_units(self) -> tuple[UnitGroup, ...]:
        """Heads and hidden units of each block."""
        return units_within(self)


def build_adapter(config: Config) -> Adapter | None:
    """A modality's own blocks; None when all blocks are shared."""
    return Adapter(config) if len(shared_places(config)) < config.num_layers else None


def vit_blocks(config: Config, net: str) -> list[str]:
    """Names of the blocks that an input of a modality net passes, as a plain ViT's are in order."""
    paths = {
        f"adapters.{net}.blocks": config.num_adapter_blocks,
        "body.blocks": len(shared_places(config)),
        f"adapters.{net}.blocks_after": config.num_adapter_blocks_after,
    }
    return [f"{path}.{number}" for path, count in paths.items() for number in range(count)]


class Body(nn.Module):
    """The shared blocks and the last norm.

    Raises:
        BodyError: heads that do not divide the width; more blocks of a modality than blocks.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.model_dim % config.num_heads:
            raise BodyError(
                f"num_heads {config.num_heads} does not divide model_dim {config.model_dim}"
            )
        self.blocks = build_blocks(config, shared_places(config), path="blocks")
        self.norm = nn.LayerNorm(config.model_dim, eps=config.layer_norm_eps)
        own = {name: n for name, n in config.units.items() if not name.startswith("adapters.")}
        check_units(own, self)

    def prunable_units(self) -> tuple[UnitGroup, ...]:
        """Heads, hidden units and experts of each block."""
        return units_within(self)

    def parts(self, reads: Literal["encoded", "decoded"]) -> tuple[str, ...]:
        """Children that a head depends on: all."""
        return ("blocks", "norm")

    def encode(self, inputs: Encoded, *, after: Iterable[nn.Module] = ()) -> Encoded:
        """(B, S, D) to (B, S, D), zero at padding; frames of one example become their mean.

        Args:
            inputs: the positions.
            after: blocks of the inputs' modality that come between the shared ones and the norm.
        """
        encoded = run_blocks((*self.blocks, *after), inputs)
        values_BSD, mask_BS = self.norm(encoded.values_BSD), encoded.mask_BS
        if encoded.frames > 1:
            values_BSD = values_BSD.unflatten(0, (-1, encoded.frames)).mean(1)
            mask_BS = mask_BS[:: encoded.frames]
        if encoded.padding != "none":
            values_BSD = values_BSD * mask_BS.unsqueeze(-1)
        return replace(encoded, values_BSD=values_BSD, mask_BS=mask_BS, frames=1)
