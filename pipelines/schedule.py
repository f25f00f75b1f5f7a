"""Mixture schedules: which tasks train at a step.

A schedule is a pure function of (seed, step): all ranks agree without a collective, and a resumed
run needs the step and nothing else. Each function below lays out the whole run once, as an array
of task numbers with one row a step (two bytes an entry, so 10 million steps are 20 MB).

Names and counts follow PolyViT (arXiv:2111.12993, Sec. 3.3): U_j is the number of mini-batches of
task j, U their sum over T tasks; every schedule trains U mini-batches.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipelines.errors import PlanError, UnknownNameError
from pipelines.shuffle import keyed_order

COUNT_EVERY = 4096  # steps between stored counts: a count costs one pass over at most so many steps


class ScheduleConfig(BaseModel):
    """Which tasks train, how often and in which order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="weighted", description="Function of pipelines/schedule.py.")
    rates: dict[str, float] = Field(
        default={}, description="U_j up to a factor, by task; 1 where not given."
    )

    @field_validator("rates")
    @classmethod
    def _rates_are_positive(cls, rates: dict[str, float]) -> dict[str, float]:
        wrong = {task: rate for task, rate in rates.items() if not 0 < rate < float("inf")}
        if wrong:
            raise ValueError(f"rates must be positive and finite, not {wrong}; leave the task out")
        return rates


@dataclass(frozen=True)
class Schedule:
    """The tasks of every step of a run.

    Args:
        recipe: arguments of `build_schedule`; all that is pickled.
        tasks: names.
        order: (steps, tasks a step) int16, numbers of tasks.
        counts: (blocks + 1, tasks) int64, batches of each task before step `COUNT_EVERY * block`.
    """

    recipe: tuple[str, tuple[str, ...], int, int]
    tasks: tuple[str, ...]
    order: np.ndarray
    counts: np.ndarray

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return len(self.order)

    def tasks_at(self, step: int) -> tuple[str, ...]:
        """Tasks of one step, a mini-batch of each.

        Raises:
            PlanError: the run has no such step.
        """
        if not 0 <= step < self.num_steps:
            raise PlanError(
                f"no step {step} in a schedule of {self.num_steps} steps; raise num_steps"
            )
        return tuple(self.tasks[number] for number in self.order[step])

    def counts_before(self, step: int) -> dict[str, int]:
        """Mini-batches of each task in steps 0 .. step-1."""
        if not 0 <= step <= self.num_steps:
            raise PlanError(f"no step {step} in a schedule of {self.num_steps} steps")
        block = step // COUNT_EVERY
        rest = self.order[block * COUNT_EVERY : step]
        counts = self.counts[block] + np.bincount(rest.ravel(), minlength=len(self.tasks))
        return {task: int(count) for task, count in zip(self.tasks, counts, strict=True)}

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles what it was built from; the order is laid out again where it is needed."""
        return _build, self.recipe


def build_schedule(
    config: ScheduleConfig, *, tasks: Sequence[str], num_steps: int, seed: int
) -> Schedule:
    """Lays out a run of `num_steps` optimizer steps; one process lays it out once.

    Raises:
        UnknownNameError: there is no such schedule, or a rate is for no task of the run.
        PlanError: a task would get no mini-batch.
    """
    if config.name not in SCHEDULES:
        raise UnknownNameError("schedule", config.name, tuple(SCHEDULES))
    for task in config.rates:
        if task not in tasks:
            raise UnknownNameError("task of the schedule", task, tuple(tasks))
    return _build(config.model_dump_json(), tuple(tasks), num_steps, seed)


@functools.lru_cache(maxsize=4)
def _build(config_json: str, tasks: tuple[str, ...], num_steps: int, seed: int) -> Schedule:
    config = ScheduleConfig.model_validate_json(config_json)
    rates = {task: config.rates.get(task, 1.0) for task in tasks}
    order = SCHEDULES[config.name](rates, num_steps=num_steps, seed=seed)
    num_blocks = len(order) // COUNT_EVERY
    counts = np.zeros((num_blocks + 1, len(tasks)), np.int64)
    for block in range(num_blocks):
        rows = order[block * COUNT_EVERY : (block + 1) * COUNT_EVERY]
        counts[block + 1] = counts[block] + np.bincount(rows.ravel(), minlength=len(tasks))
    return Schedule((config_json, tasks, num_steps, seed), tasks, order, counts)


def split_steps(total: int, *, rates: Mapping[str, float]) -> dict[str, int]:
    """U_j: `total` shared out by rates, exactly: floors, then one more to the largest remainders.

    Ties go to the task named first.

    Raises:
        PlanError: a task would get no step at all.
    """
    whole = sum(rates.values())
    shares = {task: total * (rate / whole) for task, rate in rates.items()}
    steps = {task: int(share + 1e-9) for task, share in shares.items()}
    by_remainder = sorted(rates, key=lambda task: steps[task] - shares[task])
    for task in by_remainder[: total - sum(steps.values())]:
        steps[task] += 1
    empty = [task for task, count in steps.items() if count == 0]
    if empty:
        raise PlanError(f"no mini-batch for {empty} in {total}; raise num_steps or their rates")
    return steps


def alternating(rates: Mapping[str, float], *, num_steps: int, seed: int) -> np.ndarray:
    """1, 2, .., T, 1, 2, ..: U/T of each; the first tasks take the remainder."""
    return (np.arange(num_steps) % len(rates)).astype(np.int16)[:, None]


def uniform(rates: Mapping[str, float], *, num_steps: int, seed: int) -> np.ndarray:
    """A random order of U/T mini-batches of each; the first tasks take the remainder."""
    return _shuffled(alternating(rates, num_steps=num_steps, seed=seed), seed)


def weighted(rates: Mapping[str, float], *, num_steps: int, seed: int) -> np.ndarray:
    """A random order of U_j mini-batches of each task j."""
    steps = list(split_steps(num_steps, rates=rates).values())
    return _shuffled(np.repeat(_numbers(rates), steps)[:, None], seed)


def task_by_task(rates: Mapping[str, float], *, num_steps: int, seed: int) -> np.ndarray:
    """All U_j mini-batches of one task, then all of the next, tasks in a random order."""
    steps = np.array(list(split_steps(num_steps, rates=rates).values()))
    order = keyed_order(len(rates), key=(seed, "task_by_task"))
    return np.repeat(_numbers(rates)[order], steps[order])[:, None]


def accumulating(rates: Mapping[str, float], *, num_steps: int, seed: int) -> np.ndarray:
    """Every step sums the gradients of one mini-batch of every task.

    For the U mini-batches of the other schedules ask for U/T steps.
    """
    return np.broadcast_to(_numbers(rates), (num_steps, len(rates)))


def _numbers(rates: Mapping[str, float]) -> np.ndarray:
    return np.arange(len(rates), dtype=np.int16)


def _shuffled(order: np.ndarray, seed: int) -> np.ndarray:
    return order[keyed_order(len(order), key=(seed, "schedule"))]


SCHEDULES = {
    function.__name__: function
    for function in (alternating, uniform, weighted, task_by_task, accumulating)
}
