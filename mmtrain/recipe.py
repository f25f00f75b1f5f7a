"""A recipe is all of one run: the configs of its components in one tree, plain data.

A run is a function that returns a `Recipe` (in `mmtrain/recipes/`, or in a file of the user's:
`my_runs.py:my_run`). `--set model.body.depth=4` changes any field, typed; the resolved recipe is
saved as JSON with every run, and that file is a recipe again.
"""

import hashlib
import importlib
import json
import pkgutil
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError

from mmtrain import recipes
from mmtrain.engines import EngineConfig
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.layers.inflation import Inflation
from mmtrain.masks.config import PruningConfig
from mmtrain.models.model import ModelConfig
from pipelines.errors import MMTrainError, UnknownNameError, first_problem
from pipelines.layout import BuildConfig
from pipelines.names import load_object
from pipelines.schedule import ScheduleConfig, run_steps
from pipelines.stream import StreamConfig
from pipelines.task import Task


class RecipeError(MMTrainError):
    """A recipe, or a change asked of one, cannot be used."""


class Recipe(BaseModel):
    """Everything that decides what a run computes. Same recipe, corpora and code: same run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Names the run in MLflow and the registered model.")
    tasks: dict[str, SerializeAsAny[Task]] = Field(min_length=1, description="Tasks by name.")
    model: SerializeAsAny[ModelConfig]
    build: BuildConfig = BuildConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    stream: StreamConfig = StreamConfig()
    optimizer: OptimizerConfig
    engine: EngineConfig
    seed: int = Field(
        default=0, ge=0, description="Of weights, order of examples, dropout and noise."
    )
    init_from: str | None = Field(
        default=None,
        description="Weights to start from: a ViT checkpoint (see mmtrain/start/vit_files.py), or "
        "a run, bundle or models:/NAME@ALIAS; None: all drawn.",
    )
    inflation: Inflation = Field(
        default="central_frame",
        description="How a picture's patch kernel becomes a video's: mmtrain/layers/inflation.py.",
    )
    init_heads: Literal["same_tasks", "fresh"] = Field(
        default="same_tasks",
        description="Heads of tasks that the source has with the same targets: taken over or not.",
    )
    frozen: tuple[str, ...] = Field(
        default=(),
        description="Owners of parameters that stay as they start, as patterns: 'body/*', "
        "'modality/image_patches', 'task/*'. Dropout stays on where the recipe sets it.",
    )
    balancing: Literal["none", "uncertainty", "pcgrad"] = Field(
        default="none",
        description="Of losses, beside loss_weight: learned variances, or gradients of the tasks "
        "of a step without conflicts: mmtrain/losses/balancing.py, mmtrain/step/gradients.py.",
    )
    pruning: PruningConfig | None = Field(
        default=None,
        description="Subtasks that the trained model can be cut down to, and how their masks are "
        "learned; None: no masks.",
    )
    num_steps: int = Field(ge=1, description="Optimizer steps of the run.")
    num_workers: int = Field(default=1, ge=1, description="Training processes, each a rank.")
    use_gpu: bool = Field(default=False, description="One GPU for each worker.")
    log_every: int = Field(default=20, ge=1, description="Steps between points of the series.")
    validate_every: int = Field(default=0, ge=0, description="Steps between validations; 0: none.")
    validation_batches: int = Field(default=2, ge=1, description="Batches a task at a validation.")
    monitor_every: int = Field(
        default=0,
        ge=0,
        description="Steps of a task between samples of its gradient on the body; 0: none.",
    )
    save_every: int = Field(default=500, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(default=2, ge=1, description="Newest checkpoints that are kept.")
    max_failures: int = Field(default=3, ge=0, description="Restarts after a lost worker.")
    check_ranks: bool = Field(
        default=False,
        description="Debug: compare task and step over ranks, note examples in examples.jsonl.",
    )

    def with_(self, **fields: Any) -> "Recipe":
        """The same recipe with other top-level fields, checked again."""
        return Recipe.model_validate({**dict(self), **fields})

    def only(self, tasks: Sequence[str] | None) -> "Recipe":
        """The same recipe with only these tasks and subtasks of them; with none named, itself.

        A run that is as long as its tasks' own runs together stays so.
        """
        for task in tasks or ():
            if task not in self.tasks:
                raise UnknownNameError("task of the recipe", task, tuple(self.tasks))
        if not tasks:
            return self
        kept = {name: task for name, task in self.tasks.items() if name in tasks}
        schedule = self.schedule.only(kept)
        num_steps = self.num_steps
        if self.has_own_steps():
            num_steps = run_steps(kept.values(), config=schedule)
        pruning = self.pruning.only(kept) if self.pruning else None
        return self.with_(tasks=kept, schedule=schedule, num_steps=num_steps, pruning=pruning)

    def has_own_steps(self) -> bool:
        """Whether the run is as long as its tasks' own runs together."""
        tasks = self.tasks.values()
        return all(task.num_steps is not None for task in tasks) and (
            self.num_steps == run_steps(tasks, config=self.schedule)
        )

    def digest(self) -> str:
        """SHA-256 of the JSON form, 16 hex digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with `settings` of the form "dotted.field=value" carried out, typed.

    Values are read as JSON where they parse as such, else as text.

    Raises:
        RecipeError: not of that form, or the value does not fit the field.
        UnknownNameError: no such field; names the nearest.
    """
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting!r}: write it as dotted.field=value")
        path = dotted.strip().split(".")
        try:
            recipe = _set(recipe, path, _parse(text), full=path)
        except ValidationError as error:
            raise RecipeError(f"--set {setting}: {first_problem(error)}") from None
    return recipe


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _set(value: Any, path: Sequence[str], new: Any, *, full: Sequence[str]) -> Any:
    """`value` (a model or a dict of them) with the field at `path` replaced, each level checked."""
    head, *rest = path
    if not isinstance(value, BaseModel | Mapping):
        raise RecipeError(f"--set {'.'.join(full)}: there are no fields to set at {head!r}")
    inside = dict(value)
    if head not in inside:
        above = full[: len(full) - len(path)]
        known = tuple(".".join([*above, name, *rest]) for name in inside)
        raise UnknownNameError("recipe field", ".".join(full), known)
    inside[head] = _set(inside[head], rest, new, full=full) if rest else new
    return inside if isinstance(value, Mapping) else type(value).model_validate(inside)


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """The recipe of that name, of `FILE.py:FUNCTION`, or of a JSON file, with `settings` applied.

    Raises:
        RecipeError: the file cannot be read or does not hold a recipe.
        OwnCodeError: the user's file is missing or does not run.
        UnknownNameError: no such recipe; names the nearest.
    """
    if name.endswith(".json"):
        return override(_from_json(Path(name)), settings)
    function = load_object(name, kind="recipe", shipped=recipe_functions(), of=types.FunctionType)
    recipe = function()
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{name} returned {type(recipe).__name__}; it must return a Recipe")
    return override(recipe, settings)


def _from_json(path: Path) -> Recipe:
    try:
        return Recipe.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from None
    except ValidationError as error:
        raise RecipeError(f"recipe {path}: {first_problem(error)}") from None


def recipe_functions() -> dict[str, types.FunctionType]:
    """All shipped recipes by name: the public functions of the modules of `mmtrain/recipes`."""
    found: dict[str, types.FunctionType] = {}
    for module in pkgutil.iter_modules(recipes.__path__):
        found |= functions_of(importlib.import_module(f"{recipes.__name__}.{module.name}"))
    return found


def functions_of(module: types.ModuleType) -> dict[str, types.FunctionType]:
    """The public functions that a module itself defines, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
