"""Experts: many small feed-forward nets, each over its own contiguous rows.

All experts run in one autograd function that writes every product where it belongs. Slicing a
parameter of shape (E, ...) for each expert would make autograd build E gradients of that shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.layers.units import Slice, UnitGate, UnitGroup


@dataclass(frozen=True, slots=True)
class ExpertShare:
    """Which experts a stack of them, a parameter (E, ...), holds.

    Args:
        num_experts: of the layer, over all ranks.
        first: global id of the stack's row 0; the others follow.
    """

    num_experts: int
    first: int


def mark_experts(parameter: nn.Parameter, share: ExpertShare) -> None:
    """Writes on a parameter that its axis 0 runs over experts, and over which."""
    vars(parameter)["expert_share"] = share


def expert_share(parameter: Tensor) -> ExpertShare | None:
    """Which experts a parameter holds; None: it is no stack of experts."""
    return getattr(parameter, "expert_share", None)


def is_expert(parameter: Tensor) -> bool:
    """Whether a parameter is a stack of experts (E, ...)."""
    return expert_share(parameter) is not None


def copy_share(parameter: Tensor, *, to: nn.Parameter) -> None:
    """Marks a parameter that takes another's place as that one is marked, if it is."""
    if share := expert_share(parameter):
        mark_experts(to, share)


class _ExpertRows(torch.autograd.Function):
    """y_e = relu(x_e W_in[e]) W_out[e] over rows sorted by expert; `counts` rows each."""

    @staticmethod
    def forward(
        ctx: Any, rows_ND: Tensor, w_in_EDF: Tensor, w_out_EFD: Tensor, counts: Sequence[int]
    ) -> Tensor:
        hidden_NF = rows_ND.new_empty((rows_ND.shape[0], w_in_EDF.shape[2]))
        out_ND = torch.empty_like(rows_ND)
        for expert, rows in _slices(counts):
            torch.mm(rows_ND[rows], w_in_EDF[expert], out=hidden_NF[rows]).relu_()
            torch.mm(hidden_NF[rows], w_out_EFD[expert], out=out_ND[rows])
        ctx.save_for_backward(rows_ND, w_in_EDF, w_out_EFD, hidden_NF)
        ctx.counts = counts
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows_ND, w_in_EDF, w_out_EFD, hidden_NF = ctx.saved_tensors
        grad_ND = grad_outputs[0].contiguous()
        grad_rows_ND, grad_hidden_NF = torch.empty_like(rows_ND), torch.empty_like(hidden_NF)
        grad_in_EDF, grad_out_EFD = torch.empty_like(w_in_EDF), torch.empty_like(w_out_EFD)
        for expert, rows in _slices(ctx.counts):
            hidden_RF, grad_RD, grad_RF = hidden_NF[rows], grad_ND[rows], grad_hidden_NF[rows]
            torch.mm(grad_RD, w_out_EFD[expert].t(), out=grad_RF)
            torch.ops.aten.threshold_backward.grad_input(grad_RF, hidden_RF, 0, grad_input=grad_RF)
            torch.mm(hidden_RF.t(), grad_RD, out=grad_out_EFD[expert])
            torch.mm(rows_ND[rows].t(), grad_RF, out=grad_in_EDF[expert])
            torch.mm(grad_RF, w_in_EDF[expert].t(), out=grad_rows_ND[rows])
        for expert, count in enumerate(ctx.counts):
            if count == 0:
                grad_in_EDF[expert].zero_()
                grad_out_EFD[expert].zero_()
        return grad_rows_ND, grad_in_EDF, grad_out_EFD, None


def _slices(counts: Sequence[int]) -> list[tuple[int, slice]]:
    """Each expert that has rows, and which they are."""
    found, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            found.append((expert, slice(start, start + count)))
        start += count
    return found


class Experts(nn.Module):
    """`num_experts` nets W_out relu(W_in x), without biases, some or all of them on this rank.

    Their parameters have an `ExpertShare`, which is all that an engine or a checkpoint must know of
    them. Hidden unit f of all experts is one prunable unit, so that experts stay alike in size.
    """

    def __init__(self, dim: int, hidden_dim: int, *, num_experts: int) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        self.w_out = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        for weight in (*self.w_in.data, *self.w_out.data):
            nn.init.orthogonal_(weight)
        for stack in (self.w_in, self.w_out):
            mark_experts(stack, ExpertShare(num_experts, first=0))
        self.hidden_gate = UnitGate(axis=1)

    def forward(self, rows_ND: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows sorted by expert, `counts` of them for each expert held here."""
        w_out_EFD = self.hidden_gate(self.w_out)  # (h * m) W = h (m * W)
        out: Any = _ExpertRows.apply(rows_ND.to(self.w_in.dtype), self.w_in, w_out_EFD, counts)
        return out

    def own_units(self) -> tuple[UnitGroup, ...]:
        """The hidden units."""
        slices = (Slice("w_in", axis=2), Slice("w_out", axis=1))
        return (UnitGroup("hidden", "hidden", self.w_in.shape[2], ("hidden_gate",), slices),)

    def shard(self, *, rank: int, size: int) -> None:
        """Keeps this rank's contiguous slice of the experts, the `rank`-th of `size`."""
        for name in ("w_in", "w_out"):
            full = getattr(self, name)
            held = full.shape[0] // size
            part = nn.Parameter(full.data[rank * held : (rank + 1) * held].clone())
            mark_experts(part, ExpertShare(full.shape[0], first=rank * held))
            setattr(self, name, part)
