"""Learning rates: pure functions of (step, task).

Each task trains at the rate of its own single-task run, all on one clock: the warm-up is as long
as the tasks' warm-ups together, and the fall ends with the run.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

from mmtrain.engines.optim import OptimizerConfig, load_rule
from pipelines.errors import MMTrainError
from pipelines.task import Task


class Decays(TypedDict):
    """What optimizers keep of older gradients at a step; None: as they are set."""

    betas: tuple[float, float] | None
    momentum: float | None


@dataclass(frozen=True, slots=True)
class StepRates:
    """What an optimizer step is to know of its tasks.

    Args:
        learning_rates: of each owner that takes part.
        loss_scales: factor of each task's loss; 1 where the step has one task.
        decays: Adam's betas and SGD's momentum at this step.
    """

    learning_rates: Mapping[str, float]
    loss_scales: Mapping[str, float]
    decays: Decays


class RateError(MMTrainError):
    """A task names what the run's optimizer does not have."""


def check_decays(config: OptimizerConfig, task: Task) -> None:
    """A task names decays of the run's optimizer alone.

    Raises:
        RateError: such as betas for SGD, or momentum for Adam.
    """
    own = load_rule(config.name).decay
    for field, other in (("betas", "adamw"), ("momentum", "sgd")):
        value = getattr(task, field)
        if value is not None and field != own:
            raise RateError(
                f"task {task.name}: optimizer.name={config.name} has {own or 'no decays'}, not "
                f"{field} {value}; leave {field} out, or set optimizer.name={other}"
            )


def on_one_clock(
    config: OptimizerConfig, tasks: Iterable[Task], *, tasks_per_step: int = 1
) -> OptimizerConfig:
    """The config with the warm-up of the whole run: the sum of those that tasks name.

    A group of tasks that share one warm-up names it at one of them and 0 at the others. Where no
    task names any, the config's own stands. A step of several tasks counts as so many.
    """
    named = [task.warmup_steps for task in tasks if task.warmup_steps is not None]
    if not named:
        return config
    return config.model_copy(update={"warmup_steps": round(sum(named) / tasks_per_step)})


def learning_rate(
    config: OptimizerConfig, *, step: int, num_steps: int, base: float | None = None
) -> float:
    """The learning rate of a step (from 0) of a run of `num_steps`.

    Args:
        config: which schedule, and its numbers.
        step: the optimizer step about to be taken.
        num_steps: steps of the whole run.
        base: the largest rate; None: the config's.
    """
    rate = config.learning_rate if base is None else base
    if config.schedule == "exponential":
        return rate * exponential_factor(config, step=step, num_steps=num_steps)
    if config.schedule == "warm_cosine":
        return rate * warm_cosine_factor(config, step=step, num_steps=num_steps)
    if step < config.warmup_steps:
        return rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return rate
    share = _decayed_share(config, step=step, num_steps=num_steps)
    return rate * (1.0 - share if config.schedule == "linear" else cosine_factor(share))


def cosine_factor(share: float) -> float:
    """(1 + cos(pi s)) / 2        Loshchilov and Hutter, arXiv:1608.03983, Eq. 5"""
    return (1.0 + math.cos(math.pi * share)) / 2


def exponential_factor(config: OptimizerConfig, *, step: int, num_steps: int) -> float:
    """Exponential warm-up, then constant, then a slow exponential fall, as tensor2tensor's.

    0.01^((W - step) / W) for step < W; then 1; then c^(step - s0) from step s0 on
    """
    if step < config.warmup_steps:
        return 0.01 ** ((config.warmup_steps - step) / config.warmup_steps)
    start = max(config.warmup_steps, round(config.decay_start * num_steps))
    return config.decay_factor ** max(0, step - start)


def warm_cosine_factor(config: OptimizerConfig, *, step: int, num_steps: int) -> float:
    """Warm-up and fall on one clock, s = step + 1 of U steps, the warm-up W of them.

    min(1, s / W) * (1 + cos(pi s / U)) / 2        PolyViT, arXiv:2111.12993, and its code
    """
    clock = step + 1
    warm = min(1.0, clock / config.warmup_steps) if config.warmup_steps else 1.0
    return warm * cosine_factor(clock / num_steps)


def _decayed_share(config: OptimizerConfig, *, step: int, num_steps: int) -> float:
    """How much of the decay has passed at a step: 0 at its start, 1 at the end of the run."""
    start = max(config.warmup_steps, round(config.decay_start * num_steps))
    if step <= start:
        return 0.0
    return min(1.0, (step - start) / max(1, num_steps - start))


def step_rates(
    config: OptimizerConfig,
    *,
    step: int,
    num_steps: int,
    tasks: Mapping[str, Task],
    owners: Mapping[str, Iterable[str]],
    scales: Mapping[str, float] | None = None,
) -> StepRates:
    """The rates of a step. Of several tasks, each counts with its own rate c_j:

        w <- w - warm * cos * sum_j c_j g_j

    that is, at the mean rate the loss of task j times c_j / mean c. Adam, which undoes a factor of
    the loss, steps an owner at the mean rate of the step's tasks that train it.

    Args:
        config: as `on_one_clock` gives it.
        step: the optimizer step about to be taken.
        num_steps: steps of the whole run.
        tasks: of the step, by name.
        owners: for each task of the step, the owners that it trains: `model.owners(task)`.
        scales: factor of the rate of an owner that has one.
    """
    undoes_scale = load_rule(config.name).undoes_scale
    single = len(tasks) > 1 and config.accumulated_rate == "single"
    bases = {
        name: config.learning_rate if single else task.learning_rate or config.learning_rate
        for name, task in sorted(tasks.items())
    }
    rates: dict[str, list[float]] = {}
    for task, base in bases.items():
        trained = {owner for name in bases for owner in owners[name]}
        rate = learning_rate(config, step=step, num_steps=num_steps, base=base)
        for owner in owners[task] if undoes_scale else trained:
            rates.setdefault(owner, []).append(rate)
    means = {owner: sum(rates[owner]) / len(rates[owner]) for owner in sorted(rates)}
    for owner in means.keys() & (scales or {}).keys():
        means[owner] *= (scales or {})[owner]
    return StepRates(
        learning_rates=means,
        loss_scales=_loss_scales(bases),
        decays=Decays(betas=_mean_betas(config, tasks), momentum=_mean_momentum(config, tasks)),
    )


def _loss_scales(bases: Mapping[str, float]) -> dict[str, float]:
    if len(set(bases.values())) == 1:
        return dict.fromkeys(bases, 1.0)  # to the bit
    mean = sum(bases.values()) / len(bases)
    return {task: base / mean for task, base in bases.items()}


def _mean_betas(config: OptimizerConfig, tasks: Mapping[str, Task]) -> tuple[float, float] | None:
    """Mean of the betas of a step's tasks; None where none names any."""
    if all(task.betas is None for task in tasks.values()):
        return None
    first, second = zip(*(task.betas or config.betas for task in tasks.values()), strict=True)
    return sum(first) / len(tasks), sum(second) / len(tasks)


def _mean_momentum(config: OptimizerConfig, tasks: Mapping[str, Task]) -> float | None:
    """Mean of the momenta of a step's tasks; None where none names any."""
    named = [task.momentum for task in tasks.values()]
    if all(momentum is None for momentum in named):
        return None
    momenta = [config.momentum if momentum is None else momentum for momentum in named]
    return sum(momenta) / len(momenta)
