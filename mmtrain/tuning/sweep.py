"""A sweep is data: dotted recipe fields with distributions, and how their trials are compared.

A sweep is a function of a recipe that returns a `SweepConfig` (in the folder `sweeps`, or in a file
of the user's: `my_sweeps.py:my_sweep`), or a JSON file of one. Each field is tried on the recipe
before anything starts; `tune.py` runs the trials.
"""

import importlib
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from mmtrain.recipe import Recipe, RecipeError, functions_of, override
from mmtrain.tuning import sweeps
from pipelines.errors import MMTrainError, UnknownNameError, first_problem
from pipelines.names import load_object
from pipelines.schedule import run_steps

Values = Mapping[str, JsonValue]  # by dotted recipe field

Objective = Literal["score", "subset_score", "kept_flops", "latency_ms", "parameters"]
OF_MASKS: tuple[Objective, ...] = ("subset_score", "kept_flops")
LARGER_IS_BETTER: tuple[Objective, ...] = ("score", "subset_score")

Bound = TypeVar("Bound", int, float)


class SweepError(MMTrainError):
    """A sweep cannot be run as it was asked for."""


class _Range(BaseModel, Generic[Bound]):
    model_config = ConfigDict(frozen=True, extra="forbid")

    low: Bound
    high: Bound

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        return self


class Uniform(_Range[float]):
    """A real number, all alike between two."""

    kind: Literal["uniform"] = "uniform"
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)


class LogUniform(_Range[float]):
    """A real number, its logarithm all alike between two."""

    kind: Literal["loguniform"] = "loguniform"
    low: float = Field(gt=0, allow_inf_nan=False)
    high: float = Field(gt=0, allow_inf_nan=False)


class Whole(_Range[int]):
    """A whole number, both ends included; of "logint" its logarithm all alike."""

    kind: Literal["int", "logint"] = "int"

    @model_validator(mode="after")
    def _has_logarithm(self) -> Self:
        if self.kind == "logint" and self.low < 1:
            raise ValueError(f"low {self.low} of a logint must be at least 1")
        return self


class Choice(BaseModel):
    """One of the values, as JSON holds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["choice"] = "choice"
    values: tuple[JsonValue, ...] = Field(min_length=1)


Distribution = Annotated[Uniform | LogUniform | Whole | Choice, Field(discriminator="kind")]


def probes(distribution: Distribution) -> tuple[JsonValue, ...]:
    """Values that tell whether a field takes all others of the distribution too."""
    if isinstance(distribution, Choice):
        return distribution.values
    low, high = distribution.low, distribution.high
    if isinstance(distribution, Whole):
        return low, high
    return low, low + 0.317 * (high - low), high  # a share where no whole number lies by chance


class SweepConfig(BaseModel):
    """What is searched, how, and by which measure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="Names the sweep in MLflow.")
    space: Mapping[str, Distribution] = Field(
        min_length=1, description="Distributions by dotted recipe field."
    )
    settings: tuple[str, ...] = Field(
        default=(), description="Changes to the recipe before the space's, 'field=value'."
    )
    objectives: tuple[Objective, ...] = Field(
        default=("score",), min_length=1, description="What is made large or small at once."
    )
    combine: Literal["mean", "minimum"] = Field(
        default="mean", description="Of the tasks' scores: their weighted mean, or the smallest."
    )
    weights: dict[str, float] = Field(
        default={}, description="Of tasks in the mean; a task not named weighs 1."
    )
    references: dict[str, float] = Field(
        default={},
        description="A task's metric in its own single-task run: score 1. Not named: the metric's "
        "best value.",
    )
    searcher: Literal["optuna", "random"] = Field(
        default="optuna", description="Optuna's TPE, or draws that heed nothing."
    )
    scheduler: Literal["asha", "pbt", "none"] = Field(
        default="asha",
        description="Which trials go on: the better ones of each rung; all, the worse ones taking "
        "over weights and values of better ones; all.",
    )
    num_trials: int = Field(default=8, ge=1, description="Trials of the sweep.")
    concurrent: int = Field(
        default=2, ge=1, description="Trials at once; of 'pbt' all are, or none could take over."
    )
    num_steps: int | None = Field(
        default=None, ge=1, description="Steps of a trial; None: the recipe's."
    )
    rungs: int = Field(default=3, ge=1, description="Measurements of a trial, the last at its end.")
    reduction: int = Field(default=3, ge=2, description="Of 'asha': one in so many goes on.")
    examples: int = Field(
        default=128, ge=1, description="Validation examples of a task that a score is measured on."
    )
    seed: int = Field(default=0, ge=0, description="Of the search; trials have the recipe's.")
    max_failures: int = Field(default=1, ge=0, description="Restarts of a trial that was lost.")
    timeout_s: float = Field(
        default=86_400.0, gt=0, description="Longest time of a trial's process, seconds."
    )

    @model_validator(mode="after")
    def _scheduler_fits(self) -> Self:
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives name one twice: {', '.join(self.objectives)}")
        if self.objectives != ("score",) and self.scheduler != "none":
            raise ValueError(
                f"scheduler {self.scheduler!r} compares scores alone, and on the way; objectives "
                f"are {', '.join(self.objectives)}: set scheduler to 'none'"
            )
        wrong = [name for name, weight in self.weights.items() if not 0 <= weight < float("inf")]
        if wrong or (self.weights and not any(self.weights.values())):
            raise ValueError(f"weights must be at least 0 and not all 0, not {self.weights}")
        return self

    @property
    def at_once(self) -> int:
        """Trials that run at the same time."""
        return self.num_trials if self.scheduler == "pbt" else min(self.concurrent, self.num_trials)

    def with_(self, **fields: Any) -> "SweepConfig":
        """The same sweep with other fields, checked again; None leaves a field as it is."""
        given = {name: value for name, value in fields.items() if value is not None}
        return SweepConfig.model_validate({**dict(self), **given})


def load_sweep(name: str, recipe: Recipe) -> SweepConfig:
    """The sweep of that name, of `file.py:function`, or of a JSON file, for a recipe.

    Raises:
        SweepError: the file cannot be read or does not hold a sweep.
        OwnCodeError: the user's file is missing or does not run.
        UnknownNameError: no such sweep; names the nearest.
    """
    try:
        if name.endswith(".json"):
            return SweepConfig.model_validate_json(Path(name).read_text(encoding="utf-8"))
        function = load_object(name, kind="sweep", shipped=sweep_functions(), of=FunctionType)
        sweep = function(recipe)
    except OSError as error:
        raise SweepError(f"cannot read sweep {name}: {error.strerror}") from None
    except (TypeError, ValidationError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise SweepError(f"sweep {name}: {problem}") from error
    if not isinstance(sweep, SweepConfig):
        raise SweepError(f"{name} returned {type(sweep).__name__}; it must return a SweepConfig")
    return sweep


def sweep_functions() -> dict[str, FunctionType]:
    """All shipped sweeps by name: the public functions of the modules of `sweeps`."""
    found: dict[str, FunctionType] = {}
    for module in pkgutil.iter_modules(sweeps.__path__):
        found |= functions_of(importlib.import_module(f"{sweeps.__name__}.{module.name}"))
    return found


def base_recipe(recipe: Recipe, sweep: SweepConfig) -> Recipe:
    """The recipe that trials change: the sweep's settings and steps in it."""
    changed = override(recipe, sweep.settings)
    return changed.with_(num_steps=sweep.num_steps) if sweep.num_steps else changed


def apply_values(recipe: Recipe, values: Values) -> Recipe:
    """The recipe with the values of a trial; a run as long as its tasks' own runs stays so.

    Raises:
        RecipeError: a value does not fit its field.
        UnknownNameError: there is no such field.
    """
    changed = override(recipe, [f"{field}={json.dumps(value)}" for field, value in values.items()])
    if recipe.has_own_steps() and "num_steps" not in values:
        steps = run_steps(changed.tasks.values(), config=changed.schedule)
        return changed.with_(num_steps=steps)
    return changed


def check_sweep(sweep: SweepConfig, recipe: Recipe) -> None:
    """Tries every field of the space on the recipe, at its ends and between, and all names.

    Raises:
        UnknownNameError: no such recipe field, or no such task; names the nearest.
        SweepError: a field does not take the values of its distribution, or the recipe has no
            masks and an objective is of them.
    """
    for task in (*sweep.weights, *sweep.references):
        if task not in recipe.tasks:
            raise UnknownNameError("task of the recipe", task, tuple(recipe.tasks))
    of_masks = [name for name in sweep.objectives if name in OF_MASKS]
    if of_masks and recipe.pruning is None:
        raise SweepError(
            f"{', '.join(of_masks)}: of networks cut by masks, and recipe {recipe.name} has none; "
            "use a recipe with `pruning`, e.g. san_resnet, or other objectives"
        )
    for field, distribution in sweep.space.items():
        _check_scheduled(field, sweep=sweep)
        for value in probes(distribution):
            _try_value(recipe, field, value, kind=distribution.kind)


def _check_scheduled(field: str, *, sweep: SweepConfig) -> None:
    """Rungs are steps of one length of run, and only a learning rate can change on the way."""
    if sweep.scheduler != "none" and field.endswith("num_steps"):
        raise SweepError(
            f"scheduler {sweep.scheduler!r} compares trials at the same steps, {field} changes "
            "how many there are; set scheduler to 'none'"
        )
    if sweep.scheduler == "pbt" and not field.endswith("learning_rate"):
        raise SweepError(
            f"scheduler 'pbt' changes values while a trial trains, which {field} does not allow; "
            "search learning rates alone, or set scheduler to 'asha'"
        )


def _try_value(recipe: Recipe, field: str, value: JsonValue, *, kind: str) -> None:
    setting = f"{field}={json.dumps(value)}"
    try:
        override(recipe, [setting])
    except RecipeError as error:
        problem = str(error).removeprefix("--set ").removeprefix(f"{setting}: ")
        raise SweepError(
            f"field {field} of the space does not take {value!r} of its {kind}: {problem}"
        ) from None


def measured_steps(num_steps: int, *, sweep: SweepConfig) -> tuple[int, ...]:
    """Steps after which a trial is measured, ascending; the last is its end.

    Of 'asha' U / r^k, k = rungs - 1 .. 0        successive halving, arXiv:1810.05934, Alg. 2
    Of 'pbt' equal parts; without a scheduler the end alone.
    """
    if sweep.scheduler == "none":
        return (num_steps,)
    if sweep.scheduler == "asha":
        steps = {num_steps // sweep.reduction**rung for rung in range(sweep.rungs)}
    else:
        steps = {num_steps * (rung + 1) // sweep.rungs for rung in range(sweep.rungs)}
    return tuple(sorted({max(1, step) for step in steps}))


def check_sweep_resources(
    available: Mapping[str, float], *, concurrent: int, recipe: Recipe
) -> None:
    """Trials at once, their workers and these workers' data tasks must fit together.

    Args:
        available: the cluster's resources, as Ray names them ("CPU", "GPU").
        concurrent: trials at once.
        recipe: of a trial.

    Raises:
        SweepError: they do not fit; gives the numbers.
    """
    gpus = recipe.num_workers if recipe.use_gpu else 0
    needs = {"logical CPU": sweep_cpus(recipe, concurrent=1), "GPU": gpus}
    for unit, of_one in needs.items():
        has, needed = available.get(unit.split()[-1], 0), of_one * concurrent
        if needed > has:
            fits = int(has // of_one)
            change = "use_gpu=false" if unit == "GPU" else "stream.num_cpus=X"
            raise SweepError(
                f"{concurrent} trials at once of {recipe.num_workers} workers with "
                f"{recipe.stream.num_cpus:g} CPUs of data each need {needed:g} {unit}s, the "
                f"cluster has {has:g}; use {f'--concurrent {fits}' if fits else 'fewer workers'}, "
                f"--set {change}, or add machines"
            )


def sweep_cpus(recipe: Recipe, *, concurrent: int) -> float:
    """Logical CPUs of so many trials at once: a worker's own and those of its readers."""
    data = recipe.stream.num_cpus * recipe.stream.num_readers
    return concurrent * recipe.num_workers * (1 + data)
