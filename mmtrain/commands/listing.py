"""What there is: names with a line each, for `mmtrain list`."""

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.table import Table

from mmtrain.commands.options import AsJson, console
from pipelines.errors import UnknownNameError


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

    return {name: _first_line(kind.lay_out) for name, kind in SCHEDULES.items()}


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


def list_names(
    kind: Annotated[
        str,
        typer.Argument(help="recipes, tasks, schedules, modalities, augmentations, models"),
    ],
    as_json: AsJson = False,
) -> None:
    """List what there is of a kind, a line each."""
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, tuple(KINDS))
    rows = KINDS[kind]()
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    for name, line in rows.items():
        table.add_row(f"[cyan]{name}[/cyan]", line)
    console.print(table)
