"""The attention block: the target is mixed by convolutions, looks at itself, then at a source."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mmtrain.layers.conv import ConvStep, Padding, Place
from mmtrain.layers.memory import Memory
from mmtrain.layers.units import WHOLE, Slice, UnitChoice, UnitCounts, UnitGate, UnitGroup

OutputMap = Literal["linear", "none"]


@dataclass(frozen=True, slots=True)
class AttentionSource:
    """What a block attends to.

    Args:
        values_BMD: the positions attended to.
        bias: added to the scores, broadcast to (B, H, L, M): very negative where not to look.
        growth: "fixed": all there before the first target position, as the encoded input is;
            "with_target": one position of it comes with each of the target's.
    """

    values_BMD: Tensor
    bias: Tensor
    growth: Literal["fixed", "with_target"]


def dot_product(
    query_BLD: Tensor,
    *,
    key_BMD: Tensor,
    value_BMD: Tensor,
    bias: Tensor,
    num_heads: int,
    drop_prob: float = 0.0,
) -> Tensor:
    """softmax(Q_h K_h^T / sqrt(K) + bias) V_h for each head, heads joined.

    Vaswani et al., arXiv:1706.03762, Eq. 1; the channels are cut into heads, nothing is projected.
    """

    def heads(values: Tensor) -> Tensor:
        return values.unflatten(-1, (num_heads, -1)).transpose(1, 2)

    attended_BHLK = F.scaled_dot_product_attention(
        heads(query_BLD), heads(key_BMD), heads(value_BMD), attn_mask=bias, dropout_p=drop_prob
    )
    return attended_BHLK.transpose(1, 2).flatten(-2)


class AttentionBlock(nn.Module):
    """The target attends to itself, then to a source; (B, L, D) like the target.

        z = ConvStep_5,d=4(ConvStep_5(target + timing));   q = DotProd(z, z, z)
        Attention = DotProd(q, source W_K, source W_V) W_O    MultiModel, arXiv:1706.05137, Sec. 2.2

    W_O is left out with `output_map="none"`, as in the paper's figure; heads then are no units.

    Args:
        dim: D.
        num_heads: before any was cut; they divide D.
        padding: of the convolutions.
        drop_prob: dropout of the softmax.
        output_map: whether there is W_O.
        units: how many are left of "heads", and of the convolutions' channels.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        padding: Padding,
        drop_prob: float = 0.0,
        output_map: OutputMap = "linear",
        units: UnitCounts = WHOLE,
    ) -> None:
        super().__init__()
        self.step1 = ConvStep(dim, dim, kernel=5, padding=padding, units=units.below("step1"))
        self.step2 = ConvStep(
            dim, dim, kernel=5, padding=padding, dilation=4, units=units.below("step2")
        )
        has_map, self.head_dim = output_map == "linear", dim // num_heads
        self.num_heads = units.count("heads", of=num_heads) if has_map else num_heads
        inner_dim = self.num_heads * self.head_dim
        self.choice = UnitChoice(self.num_heads, of=num_heads, width=self.head_dim)
        self.key = nn.Linear(dim, inner_dim, bias=False)
        self.value = nn.Linear(dim, inner_dim, bias=False)
        self.head_gate = UnitGate(width=self.head_dim)
        self.output = nn.Linear(inner_dim, dim, bias=False) if has_map else nn.Identity()
        self.drop_prob = drop_prob
        for layer in (self.key, self.value, self.output):
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)

    def forward(self, target_BLD: Tensor, *, source: AttentionSource, place: Place) -> Tensor:
        mixed_BLD = self.step2(self.step1(target_BLD + place.timing_BLD, place), place)
        mixed_BLD = self.choice(mixed_BLD)
        seen_BMD = mixed_BLD
        if place.memory is not None:
            seen_BMD = place.memory.append(self, "mixed", mixed_BLD)
        query_BLD = self._attend(mixed_BLD, seen_BMD, seen_BMD, place.bias)
        key_BMD, value_BMD = self._project(source, place.memory)
        attended_BLD = self._attend(query_BLD, key_BMD, value_BMD, source.bias)
        return self.output(self.head_gate(attended_BLD))

    def own_units(self) -> tuple[UnitGroup, ...]:
        """The heads: a head's query is its own part of the mixed target and nothing else's."""
        if isinstance(self.output, nn.Identity):
            return ()
        width = self.head_dim
        slices = (
            Slice("key.weight", axis=0, width=width),
            Slice("value.weight", axis=0, width=width),
            Slice("output.weight", axis=1, width=width),
        )
        gates, numbers = ("head_gate",), ("choice.numbers",)
        return (UnitGroup("heads", "head", self.num_heads, gates, slices, numbers),)

    def _attend(
        self, query_BLD: Tensor, key_BMD: Tensor, value_BMD: Tensor, bias: Tensor
    ) -> Tensor:
        return dot_product(
            query_BLD,
            key_BMD=key_BMD,
            value_BMD=value_BMD,
            bias=bias,
            num_heads=self.num_heads,
            drop_prob=self.drop_prob if self.training else 0.0,
        )

    def _project(self, source: AttentionSource, memory: Memory | None) -> tuple[Tensor, Tensor]:
        values_BMD = source.values_BMD
        if memory is None:
            return self.key(values_BMD), self.value(values_BMD)
        if source.growth == "fixed":
            return (
                memory.once(self, "keys", lambda: self.key(values_BMD)),
                memory.once(self, "values", lambda: self.value(values_BMD)),
            )
        return (
            memory.append(self, "keys", self.key(values_BMD)),
            memory.append(self, "values", self.value(values_BMD)),
        )
