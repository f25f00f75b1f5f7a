"""Sweeps of what each task has of its own: learning rate, warm-up, batch, share of the mixture."""

import json

from mmtrain.recipe import Recipe
from mmtrain.run.task_steps import task_steps
from mmtrain.tuning.sweep import Choice, LogUniform, SweepConfig, SweepError, Whole
from pipelines.task import Task

_WARMUP_PART = 4  # a warm-up is at most one in so many of a task's steps


def learning_rate(recipe: Recipe) -> SweepConfig:
    """Each task's learning rate, from a fifth of what it is to five times."""
    return SweepConfig(name="learning_rate", space=_learning_rates(recipe))


def learning_rate_pbt(recipe: Recipe) -> SweepConfig:
    """The same while training: worse trials take over better ones' weights, rates changed."""
    return SweepConfig(
        name="learning_rate_pbt",
        space=_learning_rates(recipe),
        scheduler="pbt",
        num_trials=4,
        rungs=4,
    )


def _learning_rates(recipe: Recipe) -> dict[str, LogUniform]:
    bases = {
        name: task.learning_rate or recipe.optimizer.learning_rate
        for name, task in recipe.tasks.items()
    }
    return {
        f"tasks.{name}.learning_rate": LogUniform(low=base / 5, high=base * 5)
        for name, base in bases.items()
    }


def warmup(recipe: Recipe) -> SweepConfig:
    """Each task's share of the warm-up, up to a quarter of its steps."""
    return SweepConfig(
        name="warmup",
        space={
            f"tasks.{name}.warmup_steps": Whole(low=0, high=max(1, steps // _WARMUP_PART))
            for name, steps in task_steps(recipe).items()
        },
    )


def batch_size(recipe: Recipe) -> SweepConfig:
    """Each task's batch, half of what it is, the same, or twice."""
    return SweepConfig(
        name="batch_size",
        space=dict(_batches(name, task, recipe) for name, task in recipe.tasks.items()),
    )


def _batches(name: str, task: Task, recipe: Recipe) -> tuple[str, Choice]:
    if task.batch_size is None:
        tokens = task.batch_tokens or 0
        return f"tasks.{name}.batch_tokens", Choice(values=(tokens // 2, tokens, tokens * 2))
    least = recipe.num_workers * recipe.engine.accumulation  # all ranks take the same part
    sizes = {max(least, task.batch_size // 2 // least * least), task.batch_size}
    return f"tasks.{name}.batch_size", Choice(values=(*sorted(sizes), task.batch_size * 2))


def mixture_rate(recipe: Recipe) -> SweepConfig:
    """Each task's share of the steps, from a quarter of what it is to four times."""
    if len(recipe.tasks) < 2:
        raise SweepError(f"recipe {recipe.name} has one task; a mixture needs two or more")
    rates = {name: float(steps) for name, steps in task_steps(recipe).items()}
    settings = [f"schedule.rates={json.dumps(rates)}"]
    if recipe.schedule.kind.shares_by != "rates":
        settings.append("schedule.name=weighted")
    return SweepConfig(
        name="mixture_rate",
        settings=tuple(settings),
        space={
            f"schedule.rates.{name}": LogUniform(low=rate / 4, high=rate * 4)
            for name, rate in rates.items()
        },
    )
