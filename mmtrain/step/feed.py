"""The feed: a rank's micro-batches step by step, along a plan that an adaptive schedule extends.

Under an adaptive schedule the run is cut where rates are decided: each segment is a stream of its
own, of which nothing is read before its rates are known.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mmtrain.checkpoint import Progress
from mmtrain.engines.ranks import sum_over_ranks
from pipelines.adaptive import Mixing
from pipelines.batch import Batch
from pipelines.errors import StreamError
from pipelines.plan import Plan
from pipelines.stream import StreamConfig, stream


class Feed:
    """What a rank trains on.

    Args:
        plan: the rank's part of every step.
        config: how batches reach the rank.
        mixing: what an adaptive schedule knew when the run was saved, a `Mixing` as JSON; else
            empty.
    """

    def __init__(self, plan: Plan, *, config: StreamConfig, mixing: Mapping[str, Any]) -> None:
        self.plan, self._config = plan, config
        is_decided = plan.schedule.kind.rates_at == "decided"
        self._adaptive = plan.schedule.adaptive if is_decided else None
        self._mixing = Mixing.model_validate(mixing)
        self._totals: dict[str, Tensor] = {}
        self._batches: Iterator[Batch] | None = None

    def micros(self, step: int) -> list[Batch]:
        """The micro-batches of a step; steps are asked for in order.

        Raises:
            StreamError: they do not come, or not all, or others; names rank and step.
        """
        if self._is_due(step) and step not in self._mixing.decisions:
            self._decide(step)
        if self._batches is None:
            num_steps = self._end(step) - step
            self._batches = stream(
                self.plan, start_step=step, num_steps=num_steps, config=self._config
            )
        tasks = self.plan.micro_tasks(step)
        micros = list(islice(self._batches, len(tasks)))
        if [(micro.step, micro.task) for micro in micros] != [(step, task) for task in tasks]:
            came = [(micro.step, micro.task) for micro in micros]
            raise StreamError(
                f"rank {self.plan.rank}: step {step} has micro-batches of {list(tasks)}, of "
                f"(step, task) {came} came; go on with --resume"
            )
        return micros

    def ordinal(self, micro: Batch) -> int:
        """How many global batches of a micro-batch's task came before its step."""
        return self.plan.cursors(micro.step)[micro.task]

    def learned(self, task: str, loss: Tensor) -> None:
        """Adds a micro-batch's loss on this rank, where rates follow losses."""
        if self._adaptive is not None:
            total = loss.detach().double()
            self._totals[task] = self._totals[task] + total if task in self._totals else total

    def end_step(self, num_targets: Mapping[str, Tensor]) -> None:
        """The step's losses over all ranks, where rates follow losses. All ranks call together."""
        if self._adaptive is not None:
            tasks = list(self._totals)
            totals = sum_over_ranks(torch.stack([self._totals[task] for task in tasks])).tolist()
            means = {
                task: total / int(num_targets[task])
                for task, total in zip(tasks, totals, strict=True)
            }
            self._mixing = self._mixing.with_losses(means)
            self._totals = {}

    def progress(self, done: int, *, recipe_json: str, run_id: str) -> Progress:
        """What a run needs to go on after `done` steps."""
        mixing = self._mixing.model_dump(mode="json") if self._adaptive else {}
        corpora = {task: manifest.digest for task, manifest in self.plan.manifests.items()}
        return Progress(
            step=done,
            cursors=self.plan.cursors(done),
            recipe_json=recipe_json,
            run_id=run_id,
            mixing=mixing,
            corpora=corpora,
        )

    def _is_due(self, step: int) -> bool:
        return self._adaptive is not None and step > 0 and step % self._adaptive.decide_every == 0

    def _end(self, step: int) -> int:
        """Where the segment that holds a step ends."""
        if self._adaptive is None:
            return self.plan.num_steps
        every = self._adaptive.decide_every
        return min(self.plan.num_steps, (step // every + 1) * every)

    def _decide(self, step: int) -> None:
        assert self._adaptive is not None
        rates = self.plan.rates()
        self._mixing = self._mixing.decided(step, rates=rates, config=self._adaptive)
        decisions = {at: dict(counts) for at, counts in self._mixing.decisions.items()}
        schedule = self.plan.schedule.model_copy(update={"rates_at": decisions})
        self.plan = replace(self.plan, schedule=schedule)
        self._batches = None
