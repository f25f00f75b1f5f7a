"""Sums of a run by task, added up on every rank and reduced over ranks when a point is logged.

Between points nothing leaves the device: one collective a point, none a step.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mmtrain.progress import RunProgress, TaskProgress
from mmtrain.ranks import sum_over_ranks

_SUMS = ("loss", "targets", "auxiliary", "examples", "micro_batches")


@dataclass(frozen=True, slots=True)
class TaskPoint:
    """One task between two points: mean loss a target, mean balancing loss, examples."""

    loss: float
    auxiliary: float
    examples: int
    steps: int


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

    def add(
        self,
        task: str,
        *,
        loss: Tensor,
        targets: Tensor,
        auxiliary: Tensor,
        examples: int,
        routing: Mapping[str, Tensor],
    ) -> None:
        """Adds one micro-batch of this rank."""
        counted = torch.tensor([examples, 1], dtype=torch.float64).to(self._device)
        measured = torch.stack([loss.detach(), targets.to(loss), auxiliary.detach().to(loss)])
        self._sums[self._row[task]] += torch.cat([measured.double(), counted])
        for layer, counts in routing.items():
            by_task = self._routing.setdefault(
                layer, counts.new_zeros(len(self.tasks), len(counts), dtype=torch.int64)
            )
            by_task[self._row[task]] += counts

    def point(self) -> tuple[dict[str, TaskPoint], float]:
        """Means of each task that took part since the last point, and the seconds between."""
        sums = sum_over_ranks(self._sums).tolist()
        self._sums.zero_()
        world = dist.get_world_size() if dist.is_initialized() else 1
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        points = {
            task: TaskPoint(
                loss=loss / max(1.0, targets),
                auxiliary=auxiliary / micro_batches,
                examples=round(examples),
                steps=round(micro_batches / world),
            )
            for task, (loss, targets, auxiliary, examples, micro_batches) in zip(
                self.tasks, sums, strict=True
            )
            if micro_batches
        }
        return points, seconds

    def routing(self) -> dict[str, list[list[int]]]:
        """Rows sent to each expert by task since the run began on these ranks, (task, E) by layer."""
        return {
            layer: sum_over_ranks(counts.clone()).tolist()
            for layer, counts in sorted(self._routing.items())
        }


def run_progress(
    points: Mapping[str, TaskPoint],
    *,
    seconds: float,
    step: int,
    num_steps: int,
    first_step: int,
    elapsed_s: float,
    counts: Mapping[str, int],
) -> RunProgress:
    """The values that the display draws, from a point of the series."""
    done = max(1, step - first_step)
    return RunProgress(
        step=step,
        num_steps=num_steps,
        elapsed_s=elapsed_s,
        remaining_s=elapsed_s / done * (num_steps - step),
        tasks={
            task: TaskProgress(
                steps=counts.get(task, 0), loss=point.loss, examples_per_s=point.examples / seconds
            )
            for task, point in points.items()
        },
    )
