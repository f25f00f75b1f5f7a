"""Mixture of experts with a noisy top-k gate, after arXiv:1701.06538. No row is ever dropped.

Rows are sorted by expert, so that each expert sees one contiguous block. The noise comes from
torch's default generator: who restores that generator's state draws the same noise again.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mmtrain.layers.conv import EPSILON
from mmtrain.layers.exchange import plan_exchange
from mmtrain.layers.experts import Experts
from mmtrain.layers.units import Slice, UnitGate, UnitGroup
from pipelines.errors import MMTrainError

MIN_NOISE = 0.01  # keeps the noise alive; tensor2tensor v1.0.3

GateNoise = Literal["learned", "none"]
Residual = Literal["add_and_norm", "none"]


class ExpertShardError(MMTrainError):
    """Experts do not divide over the ranks as asked."""


@dataclass(frozen=True, slots=True)
class Balance:
    """How evenly one layer used its experts, on this rank's micro-batch alone.

    Args:
        layer: name of the layer.
        loss: weighted importance and load loss, a scalar; ranks average, they do not pool rows.
        counts_E: rows sent to each expert, int64, detached.
    """

    layer: str
    loss: Tensor
    counts_E: Tensor


@dataclass(frozen=True, slots=True)
class Routed:
    """Rows after the layer, and how they were routed."""

    values_BLD: Tensor
    balance: Balance


@dataclass(frozen=True, slots=True)
class Gates:
    """For each row the k experts and their weights, which sum to 1; load_E has a gradient.

    Under a mask, k and E count the experts that are on.

    Args:
        experts_NK: numbers among all experts.
        weights_NK: their weights.
        load_E: rows that each expert expects.
        missed: where masks have gradients: experts and weights that a row would have were none
            off. In place of an expert that is on stands the number of experts.
    """

    experts_NK: Tensor
    weights_NK: Tensor
    load_E: Tensor
    missed: tuple[Tensor, Tensor] | None = None


def squared_variation(values_E: Tensor) -> Tensor:
    """CV^2 = var(v) / (mean(v)^2 + 1e-10), var of the population; 0 for equal values.

    arXiv:1701.06538, Eq. 7 and 11.
    """
    return values_E.var(correction=0) / (values_E.mean().square() + 1e-10)


def expected_load(
    clean_NE: Tensor, *, noisy_NE: Tensor, deviation_NE: Tensor, top_NK: Tensor
) -> Tensor:
    """Rows that each expert expects if the noise were drawn again, (E,), with a gradient.

        Load_i = sum_x Phi((clean_i - threshold_i) / deviation_i)     arXiv:1701.06538, Eq. 8 to 10

    The threshold is the k-th largest noisy value among the others. `top_NK` holds the k+1 largest.
    """
    inside_NE = noisy_NE > top_NK[:, -1:]
    threshold_NE = torch.where(inside_NE, top_NK[:, -1:], top_NK[:, -2:-1])
    return torch.special.ndtr((clean_NE - threshold_NE) / deviation_NE).sum(0)


class NoisyTopKGate(nn.Module):
    """Chooses k of E experts for each row: softmax over the k largest of clean + noise.

        noisy = x W_g + eps * (softplus(x W_n) + 0.01),   eps ~ N(0, 1)

    arXiv:1701.06538, Eq. 3 to 5.

    Both weights start at zero: all experts alike. No noise in eval mode.
    """

    def __init__(self, dim: int, *, num_experts: int, k: int, noise: GateNoise) -> None:
        super().__init__()
        self.clean = nn.Linear(dim, num_experts, bias=False)
        self.noise = nn.Linear(dim, num_experts, bias=False) if noise == "learned" else None
        self.k = min(k, num_experts)
        for layer in (self.clean, self.noise):
            if layer is not None:
                nn.init.zeros_(layer.weight)

    def forward(self, rows_ND: Tensor, mask_E: Tensor | None = None) -> Gates:
        """The experts of each row; with a mask, of those alone whose entry is not 0."""
        clean_NE = self.clean(rows_ND).float()
        noisy_NE, deviation_NE = clean_NE, None
        if self.noise is not None and self.training:
            deviation_NE = F.softplus(self.noise(rows_ND).float()) + MIN_NOISE
            noisy_NE = clean_NE + torch.randn_like(clean_NE) * deviation_NE
        if mask_E is None:
            return _choose(clean_NE, noisy_NE, deviation_NE, k=self.k)
        on_E = mask_E.detach().nonzero().squeeze(1)
        deviation_NE = None if deviation_NE is None else deviation_NE[:, on_E]
        gates = _choose(clean_NE[:, on_E], noisy_NE[:, on_E], deviation_NE, k=self.k)
        experts_NK = on_E[gates.experts_NK]
        learns = mask_E.requires_grad and torch.is_grad_enabled()
        missed = _missed(noisy_NE, mask_E, k=self.k) if learns else None
        return Gates(experts_NK, gates.weights_NK, gates.load_E, missed)


def _choose(clean_NE: Tensor, noisy_NE: Tensor, deviation_NE: Tensor | None, *, k: int) -> Gates:
    """The k largest of each row; `deviation_NE` None: there is no noise."""
    num_experts = clean_NE.shape[1]
    k = min(k, num_experts)
    if deviation_NE is None:
        top = clean_NE.topk(k, dim=1)
        counts_E = torch.bincount(top.indices.flatten(), minlength=num_experts)
        return Gates(top.indices, top.values.softmax(1), counts_E.to(clean_NE.dtype))
    top = noisy_NE.topk(min(k + 1, num_experts), dim=1)
    weights_NK = top.values[:, :k].softmax(1)
    if k == num_experts:
        load_E = clean_NE.new_full((num_experts,), float(clean_NE.shape[0]))
    else:
        load_E = expected_load(
            clean_NE, noisy_NE=noisy_NE, deviation_NE=deviation_NE, top_NK=top.values
        )
    return Gates(top.indices[:, :k], weights_NK, load_E)


def _missed(noisy_NE: Tensor, mask_E: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    top = noisy_NE.detach().topk(k, dim=1)
    is_on_NK = mask_E.detach()[top.indices] != 0
    return top.indices.masked_fill(is_on_NK, len(mask_E)), top.values.softmax(1)


class MoE(nn.Module):
    """LN(x + MoE(x)) over the positions that are real; padding is not routed.

    MoE(x) = sum over the k experts of gate_i * Expert_i(x)          arXiv:1701.06538, Eq. 1
    loss = weight * (CV^2(Importance) + CV^2(Load)),   Importance_i = sum_x gate_i(x)

    With `residual="none"` it is MoE(x) alone, zero at padding: the block around it adds and norms.
    An expert whose mask is 0 is not chosen, and k is at most the number of those that are on.
    """

    def __init__(
        self,
        dim: int,
        *,
        name: str,
        num_experts: int,
        k: int,
        hidden_dim: int,
        loss_weight: float,
        noise: GateNoise = "learned",
        residual: Residual = "add_and_norm",
    ) -> None:
        super().__init__()
        self.name, self.loss_weight = name, loss_weight
        self.gate = NoisyTopKGate(dim, num_experts=num_experts, k=k, noise=noise)
        self.experts = Experts(dim, hidden_dim, num_experts=num_experts)
        self.norm = nn.LayerNorm(dim, eps=EPSILON) if residual == "add_and_norm" else None
        self.num_experts = num_experts
        self.expert_gate = UnitGate(axis=0)
        self.group: dist.ProcessGroup | None = None

    def shard_experts(self, group: dist.ProcessGroup | None) -> None:
        """Divides the experts over the ranks of `group`: each keeps a contiguous slice. Once only.

        Raises:
            ExpertShardError: the number of experts is not a multiple of the group's size.
        """
        size = 1 if group is None else dist.get_world_size(group)
        if self.num_experts % size:
            raise ExpertShardError(
                f"{self.num_experts} experts of {self.name} do not divide over {size} ranks; "
                f"use {-(-self.num_experts // size) * size} experts"
            )
        if group is None or size == 1:
            return
        assert self.group is None, "experts are divided already"
        self.group = group
        self.experts.shard(rank=dist.get_rank(group), size=size)

    def forward(self, x_BLD: Tensor, mask_BL1: Tensor) -> Routed:
        flat_PD = x_BLD.flatten(0, 1)
        real_N = mask_BL1.flatten().nonzero().squeeze(1)
        rows_ND = flat_PD.index_select(0, real_N)
        gates = self.gate(rows_ND, self.expert_gate.mask)
        counts_E = torch.bincount(gates.experts_NK.flatten(), minlength=self.num_experts)
        mixed_PD = torch.zeros_like(flat_PD)
        mixed_PD = self._mix(
            mixed_PD, rows_ND=rows_ND, real_N=real_N, gates=gates, counts_E=counts_E
        )
        values_BLD = mixed_PD.view_as(x_BLD)
        if self.norm is not None:
            values_BLD = self.norm(x_BLD + values_BLD)
        return Routed(values_BLD, Balance(self.name, self._loss(gates), counts_E.detach()))

    def _mix(
        self, mixed_PD: Tensor, *, rows_ND: Tensor, real_N: Tensor, gates: Gates, counts_E: Tensor
    ) -> Tensor:
        """Adds to each real position the weighted outputs of its experts.

        Under a mask that learns, also those of experts that are off, times their masks of 0: a
        mask's gradient is what its expert would have added.
        """
        experts_NK, weights_NK, mask_E = gates.experts_NK, gates.weights_NK, self.expert_gate.mask
        if gates.missed is not None:
            experts_NK = torch.cat([experts_NK, gates.missed[0]], dim=1)
            weights_NK = torch.cat([weights_NK, gates.missed[1]], dim=1)
            counts_E = torch.bincount(experts_NK.flatten(), minlength=self.num_experts)
            counts_E = counts_E[: self.num_experts]
        counts = counts_E.tolist()
        by_expert = experts_NK.flatten().argsort(stable=True)[: sum(counts)]
        row_of = by_expert // experts_NK.shape[1]
        sorted_ND = rows_ND.index_select(0, row_of)
        if self.group is None:
            out_ND = self.experts(sorted_ND, counts)
        else:
            exchange = plan_exchange(counts_E, group=self.group)
            out_ND = exchange.from_experts(
                self.experts(exchange.to_experts(sorted_ND), exchange.counts)
            )
        weights_N = weights_NK.flatten().index_select(0, by_expert)
        if mask_E is not None:
            weights_N = weights_N * mask_E[experts_NK.flatten().index_select(0, by_expert)]
        out_ND = out_ND * weights_N[:, None].to(out_ND.dtype)
        return mixed_PD.index_add(0, real_N.index_select(0, row_of), out_ND)

    def own_units(self) -> tuple[UnitGroup, ...]:
        """Whole experts, each with its columns of the gate; `Experts` has its hidden units."""
        weights = ["experts.w_in", "experts.w_out", "gate.clean.weight"]
        weights += ["gate.noise.weight"] if self.gate.noise is not None else []
        slices = tuple(Slice(name, axis=0) for name in weights)
        return (UnitGroup("experts", "expert", self.num_experts, ("expert_gate",), slices),)

    def _loss(self, gates: Gates) -> Tensor:
        importance_E = gates.load_E.new_zeros(self.num_experts).index_add(
            0, gates.experts_NK.flatten(), gates.weights_NK.flatten()
        )
        if self.expert_gate.mask is not None:
            importance_E = importance_E.index_select(0, self.expert_gate.mask.nonzero().squeeze(1))
        return self.loss_weight * (
            squared_variation(importance_E) + squared_variation(gates.load_E)
        )
