"""A model with the surface of `MultiTaskModel` in a few lines, its experts shared by ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from mmtrain.engines.optim import OptimizerConfig
from mmtrain.layers.experts import ExpertShare, mark_experts

TASKS = ("red", "blue")
ADAM = OptimizerConfig(learning_rate=1e-2, clip_norm=0.5, weight_decay=0.01, warmup_steps=0)
SGD = ADAM.model_copy(update={"name": "sgd"})
LION = ADAM.model_copy(update={"name": f"{Path(__file__).with_name('lion.py')}:lion"})
MOMENTA = {"red": 0.0, "blue": 0.5}
STALE = SGD.model_copy(update={"apply_stale_momentum": True})


class Gather(torch.autograd.Function):
    """Rows of all ranks of a group; backward adds what the ranks ask of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, rows.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        size, rank = len(grad) // dist.get_world_size(ctx.group), dist.get_rank(ctx.group)
        return grad[rank * size : (rank + 1) * size], None


class Spread(torch.autograd.Function):
    """Sum over a group of what each rank computed for all rows; this rank's rows of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = rows.clone()
        dist.all_reduce(total, group=group)
        size, rank = len(rows) // dist.get_world_size(group), dist.get_rank(group)
        return total[rank * size : (rank + 1) * size]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        parts = [torch.empty_like(grads[0]) for _ in range(dist.get_world_size(ctx.group))]
        dist.all_gather(parts, grads[0].contiguous(), group=ctx.group)
        return torch.cat(parts), None


@dataclass(frozen=True, slots=True)
class Mixed:
    rows: Tensor


class ToyExperts(nn.Module):
    """Every row goes through every expert, weighted by a soft gate."""

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, num_experts)
        self.w_in = nn.Parameter(torch.randn(num_experts, width, width) * 0.3)
        mark_experts(self.w_in, ExpertShare(num_experts, first=0))
        self.first_expert, self.group = 0, None

    def shard_experts(self, group: Any) -> None:
        local = len(self.w_in) // dist.get_world_size(group)
        self.first_expert, self.group = local * dist.get_rank(group), group
        own = self.w_in.detach()[self.first_expert : self.first_expert + local].clone()
        share = ExpertShare(len(self.w_in), first=self.first_expert)
        self.w_in = nn.Parameter(own)
        mark_experts(self.w_in, share)

    def forward(self, rows: Tensor) -> "Mixed":
        weights = self.gate(rows).softmax(dim=-1)
        if self.group is not None:
            rows, weights = Gather.apply(rows, self.group), Gather.apply(weights, self.group)
        total = torch.zeros_like(rows)
        for index, expert in enumerate(self.w_in.unbind(0)):
            gate = weights[:, self.first_expert + index, None]
            total = total + gate * torch.tanh(rows @ expert)
        return Mixed(total if self.group is None else Spread.apply(total, self.group))


@dataclass(frozen=True, slots=True)
class ToyOutputs:
    logits: Tensor


class ToyModel(nn.Module):
    def __init__(self, *, width: int = 6, num_experts: int = 4, num_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Linear(3, width)
        self.moe = ToyExperts(width, num_experts)
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({task: nn.Linear(width, num_classes) for task in TASKS})
        self.register_buffer("seen", torch.zeros(3))

    def parameter_owner(self, name: str) -> str:
        if name.startswith("heads."):
            return f"task/{name.split('.')[1]}"
        if name == "moe.w_in":
            return "experts/moe"
        return "modality/toy" if name.startswith("stem.") else "body/all"

    def owners(self, task: str) -> frozenset[str]:
        return frozenset({f"task/{task}", "experts/moe", "modality/toy", "body/all"})

    def forward(self, *, task: str, inputs: Tensor, **_: Any) -> ToyOutputs:
        rows = self.stem(inputs)
        return ToyOutputs(self.heads[task](self.norm(rows + self.moe(rows).rows)))


def toy_model(seed: int = 0) -> ToyModel:
    torch.manual_seed(seed)
    return ToyModel()


def global_batch(step: int, micro: int) -> tuple[Tensor, Tensor]:
    """12 examples, the same for any number of ranks: 1, 2, 3 and 4 of them share it."""
    generator = torch.Generator().manual_seed(1000 * step + micro)
    inputs = torch.randn(12, 3, generator=generator)
    return inputs, torch.randint(0, 5, (12,), generator=generator)


def task_of(step: int) -> str:
    return TASKS[(step // 2) % 2]


def train(
    engine: Any,
    *,
    first: int,
    last: int,
    micros: int = 1,
    momenta: Mapping[str, float] | None = None,
) -> list[tuple[float, float]]:
    """Steps [first, last). Returns the step's loss over all ranks, and the gradient norm.

    `momenta` are those of the steps on a task that has its own.
    """
    trace = []
    for step in range(first, last):
        task, loss_of_step = task_of(step), torch.zeros(())
        for micro in range(micros):
            inputs, labels = global_batch(step, micro)
            rank, ranks = engine.rank, engine.world_size
            inputs, labels = inputs[rank::ranks], labels[rank::ranks]
            logits = engine.forward(task=task, inputs=inputs).logits
            total = functional.cross_entropy(logits.float(), labels, reduction="sum")
            share = total / (12 * micros)
            engine.backward(share)
            loss_of_step += share.detach()
        if engine.world_size > 1:
            dist.all_reduce(loss_of_step)
        rates = dict.fromkeys(engine.model.owners(task), 0.01)
        stats = engine.step(rates, learning_rates=rates, momentum=(momenta or {}).get(task))
        trace.append((float(loss_of_step), stats.gradient_norm))
    return trace
