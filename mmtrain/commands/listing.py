"""What there is: names with a line each, for `mmtrain list`."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any


def _first_line(value: Any) -> str:
    return (inspect.getdoc(value) or "").partition("\n")[0]


def _modules(package: ModuleType) -> dict[str, str]:
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return {
        name: _first_line(importlib.import_module(f"{package.__name__}.{name}")) for name in names
    }


def recipes() -> dict[str, str]:
    """Recipes that `mmtrain train` takes by name."""
    from mmtrain.recipe import recipe_functions

    return {name: _first_line(function) for name, function in recipe_functions().items()}


def tasks() -> dict[str, str]:
    """Shipped tasks: what goes in, what comes out."""
    from pipelines.tasks import load_task, task_names

    return {name: _describe(load_task(name)) for name in task_names()}


def _describe(task: Any) -> str:
    return f"{task.inputs.modality} to {task.targets.modality}, measured by {task.metrics[0]}"


def schedules() -> dict[str, str]:
    """Schedules that `--set schedule.name=...` takes."""
    from pipelines.schedule import SCHEDULES

    return {name: _first_line(function) for name, function in SCHEDULES.items()}


def modalities() -> dict[str, str]:
    """Modalities that a task's inputs and targets may have."""
    from pipelines import modalities

    return _modules(modalities)


def augmentations() -> dict[str, str]:
    """Random changes of training examples that a task may ask for, with their settings."""
    from pipelines.augment import AUGMENTATIONS

    return {
        name: f"{_first_line(kind)} Settings: {', '.join(kind.model_fields)}."
        for name, kind in AUGMENTATIONS.items()
    }


def models() -> dict[str, str]:
    """Model families."""
    from mmtrain.models.config import families, load_family

    return {name: _first_line(load_family(name)) for name in families()}


def sweeps() -> dict[str, str]:
    """Sweeps that `mmtrain tune --sweep` takes by name."""
    from mmtrain.tuning.sweep import sweep_functions

    return {name: _first_line(function) for name, function in sweep_functions().items()}


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "recipes": recipes,
    "tasks": tasks,
    "schedules": schedules,
    "modalities": modalities,
    "augmentations": augmentations,
    "models": models,
    "sweeps": sweeps,
}
