"""Mixture schedules: which tasks train at a step.

A schedule is a pure function of (seed, step): all ranks agree without a collective, and a resumed
run needs the step and nothing else. Each function below lays out a run, as an array of task numbers
with one row a step, or as segments of such (`order.py`).

Names and counts follow PolyViT (arXiv:2111.12993, Sec. 3.3): U_j is the number of mini-batches of
task j, U their sum over T tasks; every schedule trains U mini-batches. Rates may change on the way
(`mixture`), also by what was learned so far (`adaptive`): then what was decided is in the config.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipelines.adaptive import AdaptiveConfig
from pipelines.errors import PlanError, UnknownNameError
from pipelines.mixture import even_order, shares, tempered
from pipelines.order import Order, SegmentedOrder, WholeOrder
from pipelines.scheduled import ScheduledTask
from pipelines.shuffle import keyed_order
from pipelines.step_counts import not_shared, split_steps
from pipelines.task import Task


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
        order: numbers of the tasks, step by step.
    """

    recipe: tuple[str, tuple[ScheduledTask, ...], int, int]
    tasks: tuple[str, ...]
    rates: Mapping[str, float]
    order: Order

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.order.num_steps

    def tasks_at(self, step: int) -> tuple[str, ...]:
        """Tasks of one step, a mini-batch of each.

        Raises:
            PlanError: the run has no such step.
        """
        if not 0 <= step < self.num_steps:
            raise PlanError(
                f"no step {step} in a schedule of {self.num_steps} steps; raise num_steps"
            )
        return tuple(self.tasks[number] for number in self.order.row(step))

    def counts_before(self, step: int) -> dict[str, int]:
        """Mini-batches of each task in steps 0 .. step-1."""
        if not 0 <= step <= self.num_steps:
            raise PlanError(f"no step {step} in a schedule of {self.num_steps} steps")
        counts = self.order.counts_before(step).tolist()
        return dict(zip(self.tasks, counts, strict=True))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles what it was built from; the order is laid out again where it is needed."""
        return _build, self.recipe


def build_schedule(
    config: ScheduleConfig, *, tasks: Sequence[ScheduledTask], num_steps: int, seed: int
) -> Schedule:
    """Lays out a run of `num_steps` optimizer steps; one process lays it out once.

    Args:
        config: which schedule, and its numbers.
        tasks: of the run, in order; a task to which the config gives no rate has its own steps.
        num_steps: optimizer steps of the run.
        seed: of random orders.

    Raises:
        UnknownNameError: there is no such schedule, or a rate is for no task of the run.
        PlanError: the steps cannot be shared out.
    """
    if config.name not in SCHEDULES:
        raise UnknownNameError("schedule", config.name, tuple(SCHEDULES))
    names = tuple(task.name for task in tasks)
    for task in [*config.rates, *(task for rates in config.rates_at.values() for task in rates)]:
        if task not in names:
            raise UnknownNameError("task of the schedule", task, names)
    if config.rates_at and config.name not in ("mixture", "adaptive"):
        raise PlanError(
            f"schedule.rates_at changes rates on the way, schedule {config.name!r} has fixed ones; "
            "set schedule.name=mixture"
        )
    if config.rates and config.name == "proportional":
        raise PlanError(
            f"schedule.rates gives {config.rates}, schedule 'proportional' goes by the sizes of "
            "the corpora; set schedule.rates={}, or schedule.name=weighted"
        )
    return _build(config.model_dump_json(), tuple(tasks), num_steps, seed)


@functools.lru_cache(maxsize=4)
def _build(
    config_json: str, tasks: tuple[ScheduledTask, ...], num_steps: int, seed: int
) -> Schedule:
    config = ScheduleConfig.model_validate_json(config_json)
    names = tuple(task.name for task in tasks)
    rates = {task.name: config.rates.get(task.name, task.num_steps or 1.0) for task in tasks}
    config = config.model_copy(update={"rates": tempered(rates, temperature=config.temperature)})
    order = SCHEDULES[config.name](config, tasks=tasks, num_steps=num_steps, seed=seed)
    if isinstance(order, np.ndarray):
        order = WholeOrder(order, num_tasks=len(tasks))
    return Schedule((config_json, tasks, num_steps, seed), names, config.rates, order)


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
        raise PlanError(not_shared(total, unit=num_tasks, tasks=[task.name for task in chosen]))
    return total // num_tasks


def alternating(config: ScheduleConfig, *, num_steps: int, seed: int, **_: object) -> np.ndarray:
    """1, 2, .., T, 1, 2, ..: U/T of each; the first tasks take the remainder."""
    equal = dict.fromkeys(config.rates, 1.0)
    split_steps(num_steps, rates=equal, remainder=config.remainder)  # refuses what cannot be
    return (np.arange(num_steps) % len(equal)).astype(np.int16)[:, None]


def uniform(config: ScheduleConfig, *, num_steps: int, seed: int, **_: object) -> np.ndarray:
    """A random order of U/T mini-batches of each; the first tasks take the remainder."""
    return _shuffled(alternating(config, num_steps=num_steps, seed=seed), seed)


def weighted(config: ScheduleConfig, *, num_steps: int, seed: int, **_: object) -> np.ndarray:
    """A random order of U_j mini-batches of each task j."""
    steps = split_steps(num_steps, rates=config.rates, remainder=config.remainder)
    return _in_random_order(steps, config, seed)


def proportional(
    config: ScheduleConfig, *, tasks: Sequence[ScheduledTask], num_steps: int, seed: int
) -> np.ndarray:
    """A random order in which each task's share of the mini-batches is its corpus's of examples.

        U_j / U = e_j / sum_i e_i, of e^(1/T) with a temperature T

    with e_j training examples of task j. WO2023059737A1, claim 10; T5 (arXiv:1910.10683,
    Sec. 3.5.2) mixes so, without a limit.
    """
    unknown = [task.name for task in tasks if not task.num_examples]
    if unknown:
        raise PlanError(
            f"schedule 'proportional' goes by the sizes of the training corpora, and those of "
            f"{unknown} are not known: build them (mmtrain build), or set schedule.name=weighted"
        )
    sizes = {task.name: float(task.num_examples or 0) for task in tasks}
    rates = tempered(sizes, temperature=config.temperature)
    return weighted(config.model_copy(update={"rates": rates}), num_steps=num_steps, seed=seed)


def equal_modalities(
    config: ScheduleConfig, *, tasks: Sequence[ScheduledTask], num_steps: int, seed: int
) -> np.ndarray:
    """A random order of U/M mini-batches of each modality, shared by rates among its tasks.

    WO2023059737A1, claim 8; with a large temperature also claim 9: as many of each task of a
    modality. What does not divide goes to the first modalities.
    """
    modalities = {task.modality: 1.0 for task in tasks}
    totals = split_steps(num_steps, rates=modalities, remainder=config.remainder)
    steps: dict[str, int] = {}
    for modality, total in totals.items():
        rates = {t.name: config.rates[t.name] for t in tasks if t.modality == modality}
        try:
            steps |= split_steps(total, rates=rates, remainder=config.remainder)
        except PlanError as error:
            raise PlanError(
                f"modality {modality} has {total} of {num_steps} steps: {error}"
            ) from None
    return _in_random_order(steps, config, seed)


def task_by_task(config: ScheduleConfig, *, num_steps: int, seed: int, **_: object) -> np.ndarray:
    """All U_j mini-batches of one task, then all of the next, tasks in a random order."""
    split = split_steps(num_steps, rates=config.rates, remainder=config.remainder)
    steps = np.array(list(split.values()))
    order = keyed_order(len(steps), key=(seed, "task_by_task"))
    return np.repeat(_numbers(config)[order], steps[order])[:, None]


def accumulating(config: ScheduleConfig, *, num_steps: int, seed: int, **_: object) -> np.ndarray:
    """Every step sums the gradients of one mini-batch of every task.

    For the U mini-batches of the other schedules ask for U/T steps.
    """
    return np.broadcast_to(_numbers(config), (num_steps, len(config.rates)))


def mixture(config: ScheduleConfig, *, num_steps: int, seed: int, **_: object) -> np.ndarray:
    """Rates that change on the way, in the order that keeps to them within one mini-batch."""
    rates = config.rates
    given = config.rates_at or {0: rates}
    heated = {
        step: rates | tempered(point, temperature=config.temperature if config.rates_at else 1.0)
        for step, point in given.items()
    }
    share = shares(heated, tasks=tuple(rates), num_steps=num_steps, between=config.between)
    return even_order(share)[:, None]


def adaptive(config: ScheduleConfig, *, num_steps: int, seed: int, **_: object) -> SegmentedOrder:
    """Rates decided every so many steps from the tasks' losses; each as even as `mixture`.

    A decision is whole mini-batches of the steps until the next, so what is laid out up to a
    decision does not depend on it. The last decision stands for the rest of the run.
    """
    every = config.adaptive.decide_every
    if wrong := [step for step in config.rates_at if step % every]:
        raise PlanError(f"decisions at steps {wrong}, schedule.adaptive.decide_every is {every}")
    points = {0: split_steps(every, rates=config.rates)} | config.rates_at
    starts = sorted(points)
    counts = [[round(points[start][task]) for task in config.rates] for start in starts]
    return SegmentedOrder(np.array(starts), np.array(counts), num_steps=num_steps)


def _numbers(config: ScheduleConfig) -> np.ndarray:
    return np.arange(len(config.rates), dtype=np.int16)


def _in_random_order(steps: Mapping[str, int], config: ScheduleConfig, seed: int) -> np.ndarray:
    """So many mini-batches of each task, in an order that the seed decides."""
    counts = [steps[task] for task in config.rates]
    return _shuffled(np.repeat(_numbers(config), counts)[:, None], seed)


def _shuffled(order: np.ndarray, seed: int) -> np.ndarray:
    return order[keyed_order(len(order), key=(seed, "schedule"))]


SCHEDULES = {
    function.__name__: function
    for function in (
        alternating,
        uniform,
        weighted,
        proportional,
        equal_modalities,
        task_by_task,
        accumulating,
        mixture,
        adaptive,
    )
}
