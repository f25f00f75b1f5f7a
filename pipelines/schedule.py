"""Mixture schedules: which tasks train at a step.

A schedule is a pure function of (seed, step): all ranks agree without a collective, and a resumed
run needs the step and nothing else. Each function below lays out the whole run once, as an array
of task numbers with one row a step (two bytes an entry, so 10 million steps are 20 MB).

Names and counts follow PolyViT (arXiv:2111.12993, Sec. 3.3): U_j is the number of mini-batches of
task j, U their sum over T tasks; every schedule trains U mini-batches. Rates may change on the way
(`mixture`), also by what was learned so far (`adaptive`): then what was decided is in the config.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipelines.adaptive import AdaptiveConfig
from pipelines.errors import PlanError, UnknownNameError
from pipelines.mixture import even_order, shares, tempered
from pipelines.shuffle import keyed_order
from pipelines.task import Task

COUNT_EVERY = 4096  # steps between stored counts: a count costs one pass over at most so many steps


class ScheduleConfig(BaseModel):
    """Which tasks train, how often and in which order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="weighted", description="Function of pipelines/schedule.py.")
    rates: dict[str, float] = Field(
        default={}, description="U_j up to a factor, by task; not given: its num_steps, else 1."
    )
    temperature: float = Field(
        default=1.0, gt=0, description="T: rates become rate^(1/T); large: all equal."
    )
    remainder: Literal["share", "refuse"] = Field(
        default="share",
        description="Of steps that do not divide: one more to the largest remainders, or an error.",
    )
    rates_at: dict[int, dict[str, float]] = Field(
        default={},
        description="Of 'mixture': rates by step; a task not named keeps its own. Of 'adaptive': "
        "what was decided.",
    )
    between: Literal["stepwise", "linear", "exponential"] = Field(
        default="stepwise", description="Of 'mixture': the way from given rates to the next."
    )
    adaptive: AdaptiveConfig = AdaptiveConfig()

    @field_validator("rates")
    @classmethod
    def _rates_are_positive(cls, rates: dict[str, float]) -> dict[str, float]:
        wrong = {task: rate for task, rate in rates.items() if not 0 < rate < float("inf")}
        if wrong:
            raise ValueError(f"rates must be positive and finite, not {wrong}; leave the task out")
        return rates

    @field_validator("rates_at")
    @classmethod
    def _rates_at_are_positive(
        cls, rates_at: dict[int, dict[str, float]]
    ) -> dict[int, dict[str, float]]:
        for rates in rates_at.values():
            cls._rates_are_positive(rates)
        return rates_at

    def only(self, tasks: Iterable[str]) -> "ScheduleConfig":
        """The same without the rates of other tasks."""
        kept = set(tasks)
        points = {step: _only(rates, kept) for step, rates in self.rates_at.items()}
        return self.model_copy(update={"rates": _only(self.rates, kept), "rates_at": points})


def _only(rates: Mapping[str, float], tasks: set[str]) -> dict[str, float]:
    return {task: rate for task, rate in rates.items() if task in tasks}


@dataclass(frozen=True)
class Schedule:
    """The tasks of every step of a run.

    Args:
        recipe: arguments of `build_schedule`; all that is pickled.
        tasks: names.
        rates: of the tasks, where they do not change on the way.
        order: (steps, tasks a step) int16, numbers of tasks.
        counts: (blocks + 1, tasks) int64, batches of each task before step `COUNT_EVERY * block`.
    """

    recipe: tuple[str, tuple[tuple[str, int | None], ...], int, int]
    tasks: tuple[str, ...]
    rates: Mapping[str, float]
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
    config: ScheduleConfig,
    *,
    tasks: Sequence[str],
    num_steps: int,
    seed: int,
    own_steps: Mapping[str, int | None] | None = None,
) -> Schedule:
    """Lays out a run of `num_steps` optimizer steps; one process lays it out once.

    Args:
        config: which schedule, and its numbers.
        tasks: of the run, in order.
        num_steps: optimizer steps of the run.
        seed: of random orders.
        own_steps: `Task.num_steps`, the rates of tasks to which the config gives none.

    Raises:
        UnknownNameError: there is no such schedule, or a rate is for no task of the run.
        PlanError: the steps cannot be shared out.
    """
    if config.name not in SCHEDULES:
        raise UnknownNameError("schedule", config.name, tuple(SCHEDULES))
    for task in [*config.rates, *(task for rates in config.rates_at.values() for task in rates)]:
        if task not in tasks:
            raise UnknownNameError("task of the schedule", task, tuple(tasks))
    if config.rates_at and config.name not in ("mixture", "adaptive"):
        raise PlanError(
            f"schedule.rates_at changes rates on the way, schedule {config.name!r} has fixed ones; "
            "set schedule.name=mixture"
        )
    owned = tuple((task, (own_steps or {}).get(task)) for task in tasks)
    return _build(config.model_dump_json(), owned, num_steps, seed)


@functools.lru_cache(maxsize=4)
def _build(
    config_json: str, owned: tuple[tuple[str, int | None], ...], num_steps: int, seed: int
) -> Schedule:
    config = ScheduleConfig.model_validate_json(config_json)
    tasks = tuple(task for task, _ in owned)
    rates = {task: config.rates.get(task, own or 1.0) for task, own in owned}
    config = config.model_copy(update={"rates": tempered(rates, temperature=config.temperature)})
    order = SCHEDULES[config.name](config, num_steps=num_steps, seed=seed)
    num_blocks = len(order) // COUNT_EVERY
    counts = np.zeros((num_blocks + 1, len(tasks)), np.int64)
    for block in range(num_blocks):
        rows = order[block * COUNT_EVERY : (block + 1) * COUNT_EVERY]
        counts[block + 1] = counts[block] + np.bincount(rows.ravel(), minlength=len(tasks))
    return Schedule((config_json, owned, num_steps, seed), tasks, config.rates, order, counts)


def run_steps(tasks: Iterable[Task], *, config: ScheduleConfig) -> int:
    """Steps of a run in which all tasks together get the mini-batches of their own runs.

        U = sum_j U_j, of 'accumulating' U / T, whole steps

    Raises:
        PlanError: a task has no num_steps, or U does not divide and is not to be shared.
    """
    chosen = list(tasks)
    unknown = [task.name for task in chosen if task.num_steps is None]
    if unknown:
        raise PlanError(f"tasks {unknown} have no num_steps; give them, or the recipe's num_steps")
    total, num_tasks = sum(task.num_steps or 0 for task in chosen), len(chosen)
    if config.name != "accumulating":
        return total
    if total % num_tasks and config.remainder == "refuse":
        raise PlanError(_not_shared(total, unit=num_tasks, tasks=[task.name for task in chosen]))
    return total // num_tasks


def split_steps(
    total: int, *, rates: Mapping[str, float], remainder: str = "share"
) -> dict[str, int]:
    """U_j: `total` shared out by rates, exactly: floors, then one more to the largest remainders.

    Ties go to the task named first.

    Raises:
        PlanError: a task would get no step at all, or there is a remainder and `remainder` is
            "refuse".
    """
    whole = sum(rates.values())
    parts = {task: total * (rate / whole) for task, rate in rates.items()}
    steps = {task: int(share + 1e-9) for task, share in parts.items()}
    if remainder == "refuse" and any(abs(steps[task] - parts[task]) > 1e-6 for task in rates):
        raise PlanError(_not_shared(total, unit=_whole_unit(rates), tasks=list(rates)))
    by_remainder = sorted(rates, key=lambda task: steps[task] - parts[task])
    for task in by_remainder[: total - sum(steps.values())]:
        steps[task] += 1
    empty = [task for task, count in steps.items() if count == 0]
    if empty:
        raise PlanError(f"no mini-batch for {empty} in {total}; raise num_steps or their rates")
    return steps


def _whole_unit(rates: Mapping[str, float]) -> int | None:
    """The least number of steps that whole rates share without a remainder."""
    if any(rate != int(rate) for rate in rates.values()):
        return None
    whole = [int(rate) for rate in rates.values()]
    return sum(whole) // gcd(*whole)


def _not_shared(total: int, *, unit: int | None, tasks: Sequence[str]) -> str:
    near = "set schedule.remainder=share"
    if unit is not None:
        lower = total // unit * unit
        near = f"use {' or '.join(str(n) for n in (lower, lower + unit) if n)}, or {near}"
    return f"{total} steps cannot be shared out among {list(tasks)} without a remainder; {near}"


def alternating(config: ScheduleConfig, *, num_steps: int, seed: int) -> np.ndarray:
    """1, 2, .., T, 1, 2, ..: U/T of each; the first tasks take the remainder."""
    equal = dict.fromkeys(config.rates, 1.0)
    split_steps(num_steps, rates=equal, remainder=config.remainder)  # refuses what cannot be
    return (np.arange(num_steps) % len(equal)).astype(np.int16)[:, None]


def uniform(config: ScheduleConfig, *, num_steps: int, seed: int) -> np.ndarray:
    """A random order of U/T mini-batches of each; the first tasks take the remainder."""
    return _shuffled(alternating(config, num_steps=num_steps, seed=seed), seed)


def weighted(config: ScheduleConfig, *, num_steps: int, seed: int) -> np.ndarray:
    """A random order of U_j mini-batches of each task j."""
    steps = split_steps(num_steps, rates=config.rates, remainder=config.remainder)
    return _shuffled(np.repeat(_numbers(config), list(steps.values()))[:, None], seed)


def task_by_task(config: ScheduleConfig, *, num_steps: int, seed: int) -> np.ndarray:
    """All U_j mini-batches of one task, then all of the next, tasks in a random order."""
    split = split_steps(num_steps, rates=config.rates, remainder=config.remainder)
    steps = np.array(list(split.values()))
    order = keyed_order(len(steps), key=(seed, "task_by_task"))
    return np.repeat(_numbers(config)[order], steps[order])[:, None]


def accumulating(config: ScheduleConfig, *, num_steps: int, seed: int) -> np.ndarray:
    """Every step sums the gradients of one mini-batch of every task.

    For the U mini-batches of the other schedules ask for U/T steps.
    """
    return np.broadcast_to(_numbers(config), (num_steps, len(config.rates)))


def mixture(config: ScheduleConfig, *, num_steps: int, seed: int) -> np.ndarray:
    """Rates that change on the way, in the order that keeps to them within one mini-batch."""
    rates = config.rates
    given = config.rates_at or {0: rates}
    heated = {
        step: rates | tempered(point, temperature=config.temperature if config.rates_at else 1.0)
        for step, point in given.items()
    }
    share = shares(heated, tasks=tuple(rates), num_steps=num_steps, between=config.between)
    return even_order(share)[:, None]


def adaptive(config: ScheduleConfig, *, num_steps: int, seed: int) -> np.ndarray:
    """Rates decided every so many steps from the tasks' losses; each as even as `mixture`.

    A decision is whole mini-batches of the steps until the next, so what is laid out up to a
    decision does not depend on it. The last decision stands for the rest of the run.
    """
    every = config.adaptive.decide_every
    if wrong := [step for step in config.rates_at if step % every]:
        raise PlanError(f"decisions at steps {wrong}, schedule.adaptive.decide_every is {every}")
    first = split_steps(every, rates=config.rates)
    points = {0: first} | {step: config.rates_at[step] for step in sorted(config.rates_at)}
    starts = [*points, max(num_steps, *points)]
    parts = []
    for start, end in pairwise(starts):
        order = _even_segment(tuple(points[start][task] for task in config.rates))
        parts.append(np.tile(order, -(-(end - start) // every))[: end - start])
    return np.concatenate(parts)[:num_steps, None]


@functools.lru_cache(maxsize=64)
def _even_segment(counts: tuple[float, ...]) -> np.ndarray:
    """So many mini-batches of each task, evenly spread."""
    total = round(sum(counts))
    return even_order(np.repeat(np.array(counts)[:, None] / total, total, axis=1))


def _numbers(config: ScheduleConfig) -> np.ndarray:
    return np.arange(len(config.rates), dtype=np.int16)


def _shuffled(order: np.ndarray, seed: int) -> np.ndarray:
    return order[keyed_order(len(order), key=(seed, "schedule"))]


SCHEDULES = {
    function.__name__: function
    for function in (
        alternating,
        uniform,
        weighted,
        task_by_task,
        accumulating,
        mixture,
        adaptive,
    )
}
