"""Mixture schedules: which tasks train at a step.

A schedule is a pure function of (seed, step): all ranks agree without a collective, and a resumed
run needs the step and nothing else. A schedule is a function that lays out a run, as an array of
task numbers with one row a step, or as segments of such (`order.py`), in a `ScheduleKind` that says
what others must know of it; a user's own is named `my_schedules.py:PAIRS`.

Names and counts follow PolyViT (arXiv:2111.12993, Sec. 3.3): U_j is the number of mini-batches of
task j, U their sum over T tasks; every schedule trains U mini-batches. Rates may change on the way
(`mixture`), also by what was learned so far (`adaptive`): then what was decided is in the config.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.adaptive import AdaptiveConfig
from pipelines.errors import PlanError, UnknownNameError
from pipelines.mixture import even_order, shares, tempered
from pipelines.names import Name, load_object
from pipelines.order import Order, SegmentedOrder, WholeOrder
from pipelines.scheduled import ScheduledTask
from pipelines.shuffle import keyed_order
from pipelines.step_counts import not_shared, split_steps
from pipelines.task import Task


class ScheduleConfig(BaseModel):
    """Which tasks train, how often and in which order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(default="weighted", description="Of pipelines/schedule.py, or my.py:MINE.")
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

    @model_validator(mode="after")
    def _rates_are_positive(self) -> Self:
        for rates in (self.rates, *self.rates_at.values()):
            wrong = {task: rate for task, rate in rates.items() if not 0 < rate < float("inf")}
            if wrong:
                raise ValueError(
                    f"rates must be positive and finite, not {wrong}; leave the task out"
                )
        return self

    @property
    def kind(self) -> "ScheduleKind":
        """The schedule of that name, and what it goes by.

        Raises:
            UnknownNameError: there is no such schedule.
            OwnCodeError: the user's file is gone, does not run, or names something else.
        """
        return load_object(self.name, kind="schedule", shipped=SCHEDULES, of=ScheduleKind)

    def only(self, tasks: Iterable[str]) -> "ScheduleConfig":
        """The same without the rates of other tasks."""
        named = set(tasks)

        def kept(rates: Mapping[str, float]) -> dict[str, float]:
            return {task: rate for task, rate in rates.items() if task in named}

        points = {step: kept(rates) for step, rates in self.rates_at.items()}
        return self.model_copy(update={"rates": kept(self.rates), "rates_at": points})


@dataclass(frozen=True, slots=True)
class ScheduleKind:
    """A function that lays out a run, and what others must know of it.

    Args:
        lay_out: (config, *, tasks, num_steps, seed) to task numbers, int16 (steps, tasks a step),
            or to an `Order`; `config.rates` are those of all tasks.
        tasks_a_step: tasks whose gradients a step sums.
        shares_by: what decides a task's share of the mini-batches: `rates`, the sizes of the
            training corpora, or the function alone.
        rates_at: whether `rates_at` is refused, given, or decided on the way from losses.
    """

    lay_out: Callable[..., np.ndarray | Order]
    tasks_a_step: int | Literal["all"] = 1
    shares_by: Literal["rates", "sizes", "rule"] = "rule"
    rates_at: Literal["refused", "given", "decided"] = "refused"

    def together(self, num_tasks: int) -> int:
        """Tasks of one step in a run of so many."""
        return num_tasks if self.tasks_a_step == "all" else self.tasks_a_step


@dataclass(frozen=True)
class Schedule:
    """The tasks of every step of a run.

    Args:
        arguments: of `_build`; all that is pickled.
        tasks: names.
        rates: of the tasks, where they do not change on the way.
        order: numbers of the tasks, step by step.
    """

    arguments: tuple[str, tuple[ScheduledTask, ...], int, int]
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
        return _build, self.arguments


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
    kind = config.kind
    names = tuple(task.name for task in tasks)
    for task in [*config.rates, *(task for rates in config.rates_at.values() for task in rates)]:
        if task not in names:
            raise UnknownNameError("task of the schedule", task, names)
    if config.rates_at and kind.rates_at == "refused":
        raise PlanError(
            f"schedule.rates_at changes rates on the way, schedule {config.name!r} has fixed ones; "
            "set schedule.name=mixture"
        )
    if config.rates and kind.shares_by == "sizes":
        raise PlanError(
            f"schedule.rates gives {config.rates}, schedule {config.name!r} goes by the sizes of "
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
    order = config.kind.lay_out(config, tasks=tasks, num_steps=num_steps, seed=seed)
    if isinstance(order, np.ndarray):
        order = WholeOrder(order, num_tasks=len(tasks))
    return Schedule((config_json, tasks, num_steps, seed), names, config.rates, order)


def run_steps(tasks: Iterable[Task], *, config: ScheduleConfig) -> int:
    """Steps of a run in which all tasks together get the mini-batches of their own runs.

        U = sum_j U_j, of a schedule with n tasks a step U / n, whole steps

    Raises:
        PlanError: a task has no num_steps, or U does not divide and is not to be shared.
    """
    chosen = list(tasks)
    unknown = [task.name for task in chosen if task.num_steps is None]
    if unknown:
        raise PlanError(f"tasks {unknown} have no num_steps; give them, or the recipe's num_steps")
    total, together = sum(task.num_steps or 0 for task in chosen), config.kind.together(len(chosen))
    if total % together and config.remainder == "refuse":
        raise PlanError(not_shared(total, unit=together, tasks=[task.name for task in chosen]))
    return total // together


def alternating(config: ScheduleConfig, *, num_steps: int, **_: object) -> np.ndarray:
    """1, 2, .., T, 1, 2, ..: U/T of each; the first tasks take the remainder."""
    equal = dict.fromkeys(config.rates, 1.0)
    split_steps(num_steps, rates=equal, remainder=config.remainder)  # refuses what cannot be
    return (np.arange(num_steps) % len(equal)).astype(np.int16)[:, None]


def uniform(config: ScheduleConfig, *, num_steps: int, seed: int, **_: object) -> np.ndarray:
    """A random order of U/T mini-batches of each; the first tasks take the remainder."""
    return _shuffled(alternating(config, num_steps=num_steps), seed)


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
    steps = split_steps(num_steps, rates=rates, remainder=config.remainder)
    return _in_random_order(steps, config, seed)


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
    return np.repeat(np.arange(len(config.rates), dtype=np.int16)[order], steps[order])[:, None]


def accumulating(config: ScheduleConfig, *, num_steps: int, seed: int, **_: object) -> np.ndarray:
    """Every step sums the gradients of one mini-batch of every task.

    For the U mini-batches of the other schedules ask for U/T steps.
    """
    return np.broadcast_to(
        np.arange(len(config.rates), dtype=np.int16), (num_steps, len(config.rates))
    )


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


def _in_random_order(steps: Mapping[str, int], config: ScheduleConfig, seed: int) -> np.ndarray:
    """So many mini-batches of each task, in an order that the seed decides."""
    numbers = np.arange(len(config.rates), dtype=np.int16)
    return _shuffled(np.repeat(numbers, [steps[task] for task in config.rates])[:, None], seed)


def _shuffled(order: np.ndarray, seed: int) -> np.ndarray:
    return order[keyed_order(len(order), key=(seed, "schedule"))]


SCHEDULES = {
    "alternating": ScheduleKind(alternating),
    "uniform": ScheduleKind(uniform),
    "weighted": ScheduleKind(weighted, shares_by="rates"),
    "proportional": ScheduleKind(proportional, shares_by="sizes"),
    "equal_modalities": ScheduleKind(equal_modalities),
    "task_by_task": ScheduleKind(task_by_task, shares_by="rates"),
    "accumulating": ScheduleKind(accumulating, tasks_a_step="all"),
    "mixture": ScheduleKind(mixture, shares_by="rates", rates_at="given"),
    "adaptive": ScheduleKind(adaptive, rates_at="decided"),
}
