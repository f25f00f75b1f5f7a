"""Subsets: what a user asks a smaller model for, as basis subtasks, tasks and classes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmtrain.masks.subtasks import Subtasks, class_id, class_names
from pipelines.errors import MMTrainError, UnknownNameError
from pipelines.modalities import Feature


class SubsetError(MMTrainError):
    """Subtasks or classes that make no subset."""


@dataclass(frozen=True, slots=True)
class Subset:
    """What a smaller model is for.

    Args:
        subtasks: basis subtasks whose masks are united.
        tasks: tasks that it answers.
        classes: ids of the classes that stay, ascending, of tasks that subtasks divide.
        names: the same classes by name, where not all of the subtasks' own are asked for.
    """

    subtasks: tuple[str, ...]
    tasks: tuple[str, ...]
    classes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    names: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """What tells this subset from others of the same model."""
        return (self.subtasks, self.tasks, self.names)

    @property
    def alias(self) -> str:
        """What a registry may call it: letters, digits, "_" and "-"."""
        parts = ["subset", "_".join(self.subtasks)]
        parts += ["classes", "_".join(self.names)] if self.names else []
        return re.sub(r"[^A-Za-z0-9_-]", "-", "-".join(parts))

    def __str__(self) -> str:
        subtasks = ", ".join(self.subtasks)
        return f"{subtasks} (classes {', '.join(self.names)})" if self.names else subtasks


def choose_subset(
    subtasks: Subtasks,
    *,
    targets: Mapping[str, Feature],
    names: Sequence[str],
    classes: Sequence[str] = (),
) -> Subset:
    """The subset of these subtasks and classes.

    Args:
        subtasks: of the trained model.
        targets: what the targets of each task hold.
        names: basis subtasks; none: those that the classes are in.
        classes: of the one task that subtasks divide, by name or number, or as "task:class"; none:
            all that the subtasks have.

    Raises:
        UnknownNameError: there is no such subtask or class.
        SubsetError: nothing is named, or a class is not in the subtasks.
    """
    for name in names:
        if name not in subtasks.parts:
            raise UnknownNameError("subtask of the model", name, tuple(subtasks.parts))
    if not names and not classes:
        raise SubsetError(
            f"the subset is empty; name subtasks of {', '.join(subtasks.parts)} (--subtasks a,b)"
        )
    wanted = [_find_class(subtasks, targets=targets, text=text) for text in classes]
    members = tuple(names) or tuple(_subtask_with(subtasks, *found) for found in wanted)
    chosen = tuple(name for name in subtasks.parts if name in members)  # in the model's order
    tasks = subtasks.tasks(chosen)
    of_tasks = {task: subtasks.classes(chosen, task=task) for task in tasks}
    own = {task: ids for task, ids in of_tasks.items() if ids is not None}
    for task, number in wanted:
        if number not in own.get(task, ()):
            raise SubsetError(
                f"class {class_names(targets[task])[number]!r} of {task} is in none of "
                f"{', '.join(chosen)}; it is in {_subtask_with(subtasks, task, number)}"
            )
    left = {task: tuple(sorted({n for t, n in wanted if t == task})) or own[task] for task in own}
    if left == own:
        return Subset(chosen, tasks, own)
    shown = tuple(class_names(targets[task])[n] for task, ids in left.items() for n in ids)
    return Subset(chosen, tasks, left, shown)


def _find_class(
    subtasks: Subtasks, *, targets: Mapping[str, Feature], text: str
) -> tuple[str, int]:
    """Task and id of a class, given as "class", or where that says too little "task:class"."""
    divided = tuple(subtasks.num_classes)
    if not divided:
        raise SubsetError(
            f"class {text!r}: the model's subtasks are whole tasks, which have no classes to "
            "choose from; leave --classes out"
        )
    first, *others = divided
    task, colon, name = text.rpartition(":")
    if colon and task not in divided:
        raise UnknownNameError("task with classes to choose from", task, divided)
    if not colon and others:
        raise SubsetError(
            f"class {text!r}: of which task? write {first}:{text}; "
            f"classes can be chosen of {', '.join(divided)}"
        )
    task = task or first
    return task, class_id(name, task=task, names=class_names(targets[task]))


def _subtask_with(subtasks: Subtasks, task: str, number: int) -> str:
    """The first basis subtask that has a class."""
    for name, parts in subtasks.parts.items():
        if task in parts and ((ids := parts[task]) is None or number in ids):
            return name
    raise SubsetError(f"class {number} of {task} is in no subtask, so no masks keep it")
