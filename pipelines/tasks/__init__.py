"""Shipped tasks: each module here is a family and defines TASKS, a tuple of `Task`.

A name is found by import, never in a registry, so that it is found in every process. A task of
one's own is named by its file and variable: "my_tasks.py:MY_TASK".
"""

import importlib
import pkgutil

from pipelines.names import load_object
from pipelines.task import Task


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
        OwnCodeError: the file is missing or fails, or the variable is not a `Task`.
    """
    return load_object(name, kind="task", shipped=shipped_tasks(), of=Task)
