"""The transformer block of a vision transformer: norm first, then attention, then a wide layer.

Dosovitskiy et al., arXiv:2010.11929, Eq. 2 and 3. A block is told at each call how often it is to
be left out (stochastic depth), since tasks that share it differ in that.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtrain.layers.moe import Balance, MoE
from mmtrain.layers.units import WHOLE, Slice, UnitCounts, UnitGate, UnitGroup

Gelu = Literal["tanh", "erf"]


@dataclass(frozen=True, slots=True)
class BlockOutputs:
    """Positions after a block, and how its experts were used, if it has any."""

    values_BLD: Tensor
    balance: tuple[Balance, ...] = ()


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(K)) V for each head, between linear maps with biases.

    Vaswani et al., arXiv:1706.03762, Sec. 3.2.

    Args:
        dim: D.
        num_heads: before any was cut; they divide D into K channels each.
        drop_prob: dropout of the softmax.
        units: how many are left of the group "heads".
    """

    def __init__(
        self, dim: int, *, num_heads: int, drop_prob: float, units: UnitCounts = WHOLE
    ) -> None:
        super().__init__()
        self.head_dim, self.drop_prob = dim // num_heads, drop_prob
        self.num_heads = units.count("heads", of=num_heads)
        inner_dim = self.num_heads * self.head_dim
        self.query, self.key, self.value = (nn.Linear(dim, inner_dim) for _ in range(3))
        self.head_gate = UnitGate(width=self.head_dim)
        self.out = nn.Linear(inner_dim, dim)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
        """`mask_BL` is True where a position may be looked at; None: everywhere."""
        attended_BHLK = F.scaled_dot_product_attention(
            self._heads(self.query(x_BLD)),
            self._heads(self.key(x_BLD)),
            self._heads(self.value(x_BLD)),
            attn_mask=None if mask_BL is None else mask_BL[:, None, None, :],
            dropout_p=self.drop_prob if self.training else 0.0,
        )
        return self.out(self.head_gate(attended_BHLK.transpose(1, 2).flatten(-2)))

    def _heads(self, values_BLD: Tensor) -> Tensor:
        return values_BLD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def own_units(self) -> tuple[UnitGroup, ...]:
        """The heads."""
        width = self.head_dim
        made = (
            Slice(f"{layer}.{kind}", axis=0, width=width)
            for layer in ("query", "key", "value")
            for kind in ("weight", "bias")
        )
        slices = (*made, Slice("out.weight", axis=1, width=width))
        return (UnitGroup("heads", "head", self.num_heads, ("head_gate",), slices),)


class Mlp(nn.Module):
    """W_out dropout(gelu(W_in x)), with biases; `units` says what is left of "hidden"."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        gelu: Gelu,
        drop_prob: float,
        units: UnitCounts = WHOLE,
    ) -> None:
        super().__init__()
        hidden_dim = units.count("hidden", of=hidden_dim)
        self.w_in, self.w_out = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        self.hidden_gate = UnitGate()
        self.approximate = "tanh" if gelu == "tanh" else "none"
        self.dropout = nn.Dropout(drop_prob)
        for layer in (self.w_in, self.w_out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x_BLD: Tensor) -> Tensor:
        hidden_BLF = self.hidden_gate(F.gelu(self.w_in(x_BLD), approximate=self.approximate))
        return self.w_out(self.dropout(hidden_BLF))

    def own_units(self) -> tuple[UnitGroup, ...]:
        """The hidden units."""
        slices = (
            Slice("w_in.weight", axis=0),
            Slice("w_in.bias", axis=0),
            Slice("w_out.weight", axis=1),
        )
        return (UnitGroup("hidden", "hidden", self.w_in.out_features, ("hidden_gate",), slices),)


class TransformerBlock(nn.Module):
    """z' = z + keep_a drop(Attention(LN(z)));  z'' = z' + keep_b drop(Mlp(LN(z'))).

    keep_a and keep_b are 1 in eval mode, and in training 0 for each example with the probability
    `drop_layer * depth`, without rescaling. `moe` takes the place of the wide layer.

    Args:
        dim: D.
        num_heads: they divide D.
        hidden_dim: width of the wide layer.
        eps: of the layer norms.
        gelu: by its tanh approximation or exactly.
        drop_prob: dropout of both branches and of the wide layer's hidden values.
        attention_drop_prob: dropout of attention's weights.
        depth: place of the block in the whole net, 0 for the first and 1 for the last.
        moe: experts that add nothing and norm nothing by themselves.
        units: how many are left of "attention.heads" and "mlp.hidden".
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        hidden_dim: int,
        eps: float = 1e-6,
        gelu: Gelu = "tanh",
        drop_prob: float = 0.0,
        attention_drop_prob: float = 0.0,
        depth: float = 0.0,
        moe: MoE | None = None,
        units: UnitCounts = WHOLE,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attention = SelfAttention(
            dim,
            num_heads=num_heads,
            drop_prob=attention_drop_prob,
            units=units.below("attention"),
        )
        self.mlp = None
        if moe is None:
            self.mlp = Mlp(
                dim, hidden_dim, gelu=gelu, drop_prob=drop_prob, units=units.below("mlp")
            )
        self.moe, self.depth = moe, depth
        self.dropout = nn.Dropout(drop_prob)

    def forward(
        self, z_BLD: Tensor, *, mask_BL: Tensor | None, drop_layer: float = 0.0
    ) -> BlockOutputs:
        """`mask_BL` True for real positions, None: all; `drop_layer` of the net's last block."""
        z_BLD = self._add(z_BLD, self.attention(self.norm1(z_BLD), mask_BL), drop_layer)
        if self.mlp is not None:
            return BlockOutputs(self._add(z_BLD, self.mlp(self.norm2(z_BLD)), drop_layer))
        assert self.moe is not None
        if mask_BL is None:
            mask_BL = z_BLD.new_ones(z_BLD.shape[:2], dtype=torch.bool)
        routed = self.moe(self.norm2(z_BLD), mask_BL.unsqueeze(-1))
        return BlockOutputs(self._add(z_BLD, routed.values_BLD, drop_layer), (routed.balance,))

    def _add(self, z_BLD: Tensor, branch_BLD: Tensor, drop_layer: float) -> Tensor:
        branch_BLD = self.dropout(branch_BLD)
        drop_prob = drop_layer * self.depth
        if drop_prob == 0 or not self.training:
            return z_BLD + branch_BLD
        keep_B11 = z_BLD.new_empty((z_BLD.shape[0], 1, 1)).bernoulli_(1 - drop_prob)
        return z_BLD + keep_B11 * branch_BLD
