"""Rows to the ranks that hold their experts, and back: an uneven all-to-all with a gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _AllToAll(torch.autograd.Function):
    """all_to_all_single with uneven splits; the gradient travels the other way."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_ND: Tensor,
        sent: Sequence[int],
        received: Sequence[int],
        group: dist.ProcessGroup,
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        out = rows_ND.new_empty((sum(received), *rows_ND.shape[1:]))
        dist.all_to_all_single(out, rows_ND.contiguous(), list(received), list(sent), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        back: Any = _AllToAll.apply(grad_outputs[0], ctx.received, ctx.sent, ctx.group)
        return back, None, None, None


@dataclass(frozen=True, slots=True)
class Exchange:
    """One batch of rows on its way to the experts' ranks and back.

    Args:
        group: the ranks among which the experts are divided, in order.
        sent: rows that this rank sends to each.
        received: rows that come from each.
        order_N: received rows in the order of this rank's experts.
        counts: rows for each expert held here.
    """

    group: dist.ProcessGroup
    sent: tuple[int, ...]
    received: tuple[int, ...]
    order_N: Tensor
    counts: tuple[int, ...]

    def to_experts(self, rows_ND: Tensor) -> Tensor:
        """Rows sorted by global expert to rows sorted by the experts held here."""
        rows: Any = _AllToAll.apply(rows_ND, self.sent, self.received, self.group)
        return rows.index_select(0, self.order_N)

    def from_experts(self, rows_ND: Tensor) -> Tensor:
        """The way back: each rank's rows in the order in which it sent them."""
        rows = rows_ND.index_select(0, self.order_N.argsort())
        out: Any = _AllToAll.apply(rows, self.received, self.sent, self.group)
        return out


def plan_exchange(counts_E: Tensor, *, group: dist.ProcessGroup) -> Exchange:
    """Learns from the other ranks how many rows come for each expert held here; all call it."""
    size = dist.get_world_size(group)
    sent_RE = counts_E.view(size, -1)
    received_RE = torch.empty_like(sent_RE)
    dist.all_to_all_single(received_RE, sent_RE.contiguous(), group=group)
    held = received_RE.shape[1]
    expert_of_row = torch.arange(held, device=counts_E.device).repeat(size)
    return Exchange(
        group=group,
        sent=tuple(sent_RE.sum(1).tolist()),
        received=tuple(received_RE.sum(1).tolist()),
        order_N=expert_of_row.repeat_interleave(received_RE.flatten()).argsort(stable=True),
        counts=tuple(received_RE.sum(0).tolist()),
    )
