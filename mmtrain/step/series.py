"""Sums of a run by task, added up on every rank and reduced over ranks when a point is logged.

Between points nothing leaves the device: one collective a point, none a step.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtrain.engines.ranks import sum_over_ranks
from mmtrain.step.objective import MicroLoss

_SUMS = ("loss", "targets", "auxiliary", "examples", "micro_batches")


@dataclass(frozen=True, slots=True)
class TaskPoint:
    """One task between two points: mean loss a target, mean balancing loss, examples."""

    loss: float
    auxiliary: float
    examples: int


@dataclass(frozen=True, slots=True)
class Point:
    """All tasks that took part between two points.

    Args:
        tasks: each task's means.
        seconds: between the points.
        routing: rows sent to each expert by task, (task, E) by layer, since the process began;
            tasks in the order of the run.
    """

    tasks: Mapping[str, TaskPoint]
    seconds: float
    routing: Mapping[str, list[list[int]]]


class Series:
    """Adds up losses and routing of micro-batches; `point` reduces and forgets.

    Args:
        tasks: names in the order in which all ranks keep their rows.
        device: where the sums are kept.
    """

    def __init__(self, tasks: Sequence[str], *, device: torch.device) -> None:
        self.tasks = tuple(tasks)
        self._device = device
        self._row = {task: row for row, task in enumerate(self.tasks)}
        self._sums = torch.zeros(len(self.tasks), len(_SUMS), dtype=torch.float64, device=device)
        self._routing: dict[str, Tensor] = {}
        self._since = time.monotonic()

    def add(self, task: str, micro_loss: MicroLoss, *, examples: float) -> None:
        """Adds one micro-batch of this rank, or a pass of it with its part of the examples."""
        loss, outputs = micro_loss.loss, micro_loss.outputs
        counted = torch.tensor([examples, 1], dtype=torch.float64).to(self._device)
        sums = [loss.total.detach(), loss.count, outputs.auxiliary_loss.detach()]
        measured = torch.stack([value.double() for value in sums])
        self._sums[self._row[task]] += torch.cat([measured, counted])
        for layer, counts in outputs.routing.items():
            by_task = self._routing.setdefault(
                layer, counts.new_zeros(len(self.tasks), len(counts), dtype=torch.int64)
            )
            by_task[self._row[task]] += counts

    def point(self) -> Point:
        """Means since the last point over all ranks. All ranks call this together."""
        sums = sum_over_ranks(self._sums).tolist()
        self._sums.zero_()
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        tasks = {
            task: TaskPoint(
                loss=loss / max(1.0, targets),
                auxiliary=auxiliary / micro_batches,
                examples=round(examples),
            )
            for task, (loss, targets, auxiliary, examples, micro_batches) in zip(
                self.tasks, sums, strict=True
            )
            if micro_batches
        }
        return Point(tasks, seconds, self._reduced_routing())

    def _reduced_routing(self) -> dict[str, list[list[int]]]:
        return {
            layer: sum_over_ranks(counts.clone()).tolist()
            for layer, counts in sorted(self._routing.items())
        }
