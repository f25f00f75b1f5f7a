"""From losses to gradients: straight through the engine, or without the tasks' conflicts.

PCGrad (Yu et al., arXiv:2001.06782) takes from the gradient of a task what points against that of
another. Only the sum over ranks has a direction, so gradients of the body are summed first, then
projected, and handed to the engine as those of a linear loss, sum(g * w): any engine's hooks see
an ordinary backward pass.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from mmtrain.engines import Engine, EngineConfig
from mmtrain.engines.ranks import sum_over_ranks
from pipelines.errors import MMTrainError
from pipelines.schedule import ScheduleConfig
from pipelines.shuffle import keyed_order


class BalancingError(MMTrainError):
    """The balancing asked for cannot be done with the engine or the schedule."""


class Gradients(Protocol):
    """Takes the shares of a step's loss; after `finish` the engine has the step's gradients."""

    def add(self, task: str, share: Tensor) -> None:
        """A micro-batch's share of the loss."""
        ...

    def finish(self, step: int) -> None:
        """All micro-batches of the step were added. All ranks call this together."""
        ...


def build_gradients(balancing: str, *, engine: Engine, seed: int) -> Gradients:
    """By `Recipe.balancing`."""
    if balancing == "pcgrad":
        return ProjectedGradients(engine, seed=seed)
    return PlainGradients(engine)


def check_balancing(balancing: str, *, engine: EngineConfig, schedule: ScheduleConfig) -> None:
    """Refuses, before any process starts, a balancing that cannot be.

    Raises:
        BalancingError: names the fields at odds and what works.
    """
    if balancing == "none":
        return
    if engine.name == "deepspeed" and engine.zero_stage == 3:
        raise BalancingError(
            f"balancing={balancing} reads whole parameters, engine.zero_stage=3 holds parts of "
            "them; set engine.zero_stage=2, or balancing=none"
        )
    if balancing != "pcgrad":
        return
    if engine.ep_size > 1:
        raise BalancingError(
            f"balancing=pcgrad sums gradients over all ranks, engine.ep_size={engine.ep_size} "
            "gives ranks different experts; set engine.ep_size=1, or balancing=none"
        )
    if schedule.kind.tasks_a_step == 1:
        raise BalancingError(
            "balancing=pcgrad compares the tasks of one step, schedule "
            f"{schedule.name!r} has one task a step; set schedule.name=accumulating, or "
            "balancing=none"
        )


class PlainGradients:
    """Each share goes back through the model at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, task: str, share: Tensor) -> None:
        self._engine.backward(share)

    def finish(self, step: int) -> None:
        """Nothing is left to do."""


class ProjectedGradients:
    """PCGrad on what all tasks share; what is a modality's or a task's own is summed as ever.

    Keeps a gradient of the body for each task of the step.

    Args:
        engine: whose parameters, whole on every rank.
        seed: of the orders in which tasks are compared.

    Raises:
        BalancingError: nothing that tasks share is trained.
    """

    def __init__(self, engine: Engine, *, seed: int) -> None:
        self._engine, self._seed = engine, seed
        owner_of = engine.model.parameter_owner
        named = [(n, p) for n, p in engine.model.named_parameters() if p.requires_grad]
        self._parameters = [parameter for _, parameter in named]
        self._is_shared = [is_shared(owner_of(name)) for name, _ in named]  # type: ignore[operator]
        if not any(self._is_shared):
            raise BalancingError(
                "balancing=pcgrad compares gradients of the body, which is frozen; "
                "set balancing=none, or train the body"
            )
        self._by_task: dict[str, list[Tensor | None]] = {}

    def add(self, task: str, share: Tensor) -> None:
        found = torch.autograd.grad(share, self._parameters, allow_unused=True)
        held = self._by_task.get(task, [None] * len(found))
        self._by_task[task] = [added(old, new) for old, new in zip(held, found, strict=True)]

    def finish(self, step: int) -> None:
        tasks = sorted(self._by_task)
        orders = {
            number: keyed_order(len(tasks), key=(self._seed, "pcgrad", step, task)).tolist()
            for number, task in enumerate(tasks)
        }
        shared = self._selected(is_shared=True)
        rows_TD = torch.stack([self._flat(self._by_task[task], shared) for task in tasks])
        whole_D = projected_sum(sum_over_ranks(rows_TD), orders=orders) / self._engine.world_size
        sizes = [parameter.numel() for parameter in shared]
        terms = [
            (parameter.flatten() * part.to(parameter.dtype)).sum()
            for parameter, part in zip(shared, whole_D.split(sizes), strict=True)
        ]
        for task in tasks:
            pairs = zip(self._parameters, self._by_task[task], self._is_shared, strict=True)
            terms += [
                (parameter * gradient).sum()
                for parameter, gradient, common in pairs
                if gradient is not None and not common
            ]
        self._by_task = {}
        self._engine.backward(torch.stack([term.float() for term in terms]).sum())

    def _selected(self, *, is_shared: bool) -> list[nn.Parameter]:
        pairs = zip(self._parameters, self._is_shared, strict=True)
        return [parameter for parameter, common in pairs if common == is_shared]

    def _flat(self, gradients: Sequence[Tensor | None], shared: Sequence[nn.Parameter]) -> Tensor:
        """One task's gradient of all that is shared, (D,) fp32; zero where it has none."""
        mine = [g for g, common in zip(gradients, self._is_shared, strict=True) if common]
        return torch.cat(
            [
                (torch.zeros_like(parameter) if gradient is None else gradient).flatten().float()
                for parameter, gradient in zip(shared, mine, strict=True)
            ]
        )


def is_shared(owner: str) -> bool:
    """Whether an owner's parameters are every task's: the body with its experts."""
    return owner.split("/")[0] in ("body", "experts")


def added(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """The sum of two gradients, of which either may not be there."""
    if old is None or new is None:
        return new if old is None else old
    return old + new


def projected_sum(rows_TD: Tensor, *, orders: Mapping[int, Sequence[int]]) -> Tensor:
    """Sum of the tasks' gradients without conflicts, (D,).

        for each i, for j in a random order:  if g_i' . g_j < 0:
            g_i' <- g_i' - (g_i' . g_j) / |g_j|^2  g_j          arXiv:2001.06782, Algorithm 1

    All g_i' are combinations of the rows, so inner products of rows are all that is needed.

    Args:
        rows_TD: gradient of each task.
        orders: for each task, in which order it meets the others; itself is passed over.
    """
    inner = (rows_TD @ rows_TD.T).double().tolist()
    num_tasks = len(inner)
    total = [0.0] * num_tasks
    for i in range(num_tasks):
        weights = [float(k == i) for k in range(num_tasks)]
        for j in orders[i]:
            product = sum(weight * inner[k][j] for k, weight in enumerate(weights))
            if j != i and product < 0:
                weights[j] -= product / inner[j][j]
        total = [old + weight for old, weight in zip(total, weights, strict=True)]
    return rows_TD.new_tensor(total) @ rows_TD
