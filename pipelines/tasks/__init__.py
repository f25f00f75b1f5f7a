"""Shipped tasks: each module here is a family and defines TASKS, a tuple of `Task`.

A name is found by import, never in a registry, so that it is found in every process. A task of
one's own is named by its file and variable: "my_tasks.py:MY_TASK".
"""

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

from pipelines.errors import MMTrainError, UnknownNameError
from pipelines.task import Task


class TaskFileError(MMTrainError):
    """A user's own file of tasks cannot be used."""


def shipped_tasks() -> dict[str, Task]:
    """All shipped tasks by name, in the order of their families."""
    families = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{family}") for family in families]
    return {task.name: task for module in modules for task in module.TASKS}


def task_names() -> tuple[str, ...]:
    """Names of all shipped tasks."""
    return tuple(shipped_tasks())


def load_task(name: str) -> Task:
    """The task of a name, or of "path/to/my_tasks.py:MY_TASK".

    Raises:
        UnknownNameError: no such task, or no such variable in the file.
        TaskFileError: the file is missing or fails, or the variable is not a `Task`.
    """
    path, colon, variable = name.rpartition(":")
    if colon:
        return _task_of_file(Path(path), variable=variable)
    tasks = shipped_tasks()
    if name not in tasks:
        raise UnknownNameError("task", name, tuple(tasks))
    return tasks[name]


def _task_of_file(path: Path, *, variable: str) -> Task:
    module = _import_file(path)
    tasks = {key: value for key, value in vars(module).items() if isinstance(value, Task)}
    if variable not in vars(module):
        raise UnknownNameError(f"task in {path}", variable, tuple(tasks))
    if variable not in tasks:
        kind = type(vars(module)[variable]).__name__
        raise TaskFileError(f"{path}:{variable} is a {kind}; make it a pipelines.task.Task")
    return tasks[variable]


def _import_file(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        raise TaskFileError(f"no Python file {path}; write path/to/my_tasks.py:MY_TASK")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises is the user's to mend
        raise TaskFileError(f"{path} fails: {type(error).__name__}: {error}") from error
    return module
