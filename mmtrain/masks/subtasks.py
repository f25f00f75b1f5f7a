"""Basis subtasks as declared, checked against the tasks there are.

A subtask is whole tasks, or classes of one task; a union of subtasks has the tasks and classes of
its members, each once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mmtrain.losses import load_loss
from mmtrain.masks.banks import MaskError
from mmtrain.masks.config import PruningConfig
from pipelines.errors import UnknownNameError
from pipelines.modalities import Feature

Part = Mapping[str, tuple[int, ...] | None]  # ids of the classes of each task; None: all of it


@dataclass(frozen=True, slots=True)
class Subtasks:
    """What the basis subtasks of a model stand for.

    Args:
        parts: by subtask, the tasks and classes that are in it.
        num_classes: of each task that some subtask has classes of.
    """

    parts: Mapping[str, Part]
    num_classes: Mapping[str, int]

    def containing(self, task: str) -> tuple[str, ...]:
        """Basis subtasks that have the task, or classes of it."""
        return tuple(name for name, tasks in self.parts.items() if task in tasks)

    def tasks(self, subtasks: Iterable[str]) -> tuple[str, ...]:
        """Tasks of a union, in the order of declaration."""
        named = set(subtasks)
        tasks = (task for name in self.parts if name in named for task in self.parts[name])
        return tuple(dict.fromkeys(tasks))

    def classes(self, subtasks: Iterable[str], *, task: str) -> tuple[int, ...] | None:
        """Ids of a task's classes in a union, ascending; None: no subtask divides the task."""
        if task not in self.num_classes:
            return None
        members = [self.parts[name] for name in subtasks]
        return tuple(sorted({i for part in members if task in part for i in self._ids(task, part)}))

    def _ids(self, task: str, part: Part) -> Iterable[int]:
        """Ids of a task's classes in a subtask; a task that nobody divides counts as one class."""
        ids = part[task]
        return range(self.num_classes.get(task, 1)) if ids is None else ids

    def units(self, part: Part) -> set[tuple[str, int]]:
        """Tasks and ids of their classes that are in a subtask, one by one."""
        return {(task, number) for task in part for number in self._ids(task, part)}


def resolve_subtasks(
    config: PruningConfig, *, targets: Mapping[str, Feature], losses: Mapping[str, str]
) -> Subtasks:
    """The tasks and classes that the config's subtasks name.

    Args:
        config: the subtasks.
        targets: what the targets of each task hold.
        losses: name of each task's loss.

    Raises:
        UnknownNameError: there is no such task or class.
        MaskError: a task cannot be divided into classes; or subtasks overlap, or leave a task or
            a class out, where the config refuses that.
    """
    parts = {
        name: _parts(entries, targets=targets, losses=losses)
        for name, entries in config.subtasks.items()
    }
    divided = {task for tasks in parts.values() for task, ids in tasks.items() if ids is not None}
    subtasks = Subtasks(parts, {task: len(class_names(targets[task])) for task in sorted(divided)})
    if config.overlap == "refuse":
        _check_apart(subtasks, targets)
    if config.uncovered == "refuse":
        _check_covered(subtasks, targets)
    return subtasks


def _parts(
    entries: Iterable[str], *, targets: Mapping[str, Feature], losses: Mapping[str, str]
) -> Part:
    parts: dict[str, tuple[int, ...] | None] = {}
    for entry in entries:
        task, colon, class_name = entry.partition(":")
        if task not in targets:
            raise UnknownNameError("task", task, tuple(targets))
        if not colon:
            parts[task] = None
            continue
        _check_divisible(task, targets[task], loss=losses[task])
        number = class_id(class_name, task=task, names=class_names(targets[task]))
        parts[task] = tuple(sorted({*(parts.get(task) or ()), number}))
    return parts


def _check_divisible(task: str, feature: Feature, *, loss: str) -> None:
    if not feature.is_divisible:
        raise MaskError(
            f"task {task} has {feature.modality} targets, which have no classes to divide; name "
            f"the whole task {task!r} in a subtask"
        )
    if load_loss(loss).by_class is None:
        raise MaskError(
            f"task {task} is divided into classes, so each class needs a score of its own; set "
            f"tasks.{task}.loss to 'sigmoid_cross_entropy' in place of {loss!r}"
        )


def class_names(feature: Feature) -> tuple[str, ...]:
    """Names of the classes of a target; of one without classes none."""
    return getattr(feature, "classes", ())


def class_id(name: str, *, task: str, names: tuple[str, ...]) -> int:
    """A class by its name, else by its number.

    Raises:
        UnknownNameError: the task has no such class.
    """
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise UnknownNameError(f"class of task {task}", name, names)


def _check_apart(subtasks: Subtasks, targets: Mapping[str, Feature]) -> None:
    first: dict[tuple[str, int], str] = {}
    for name, part in subtasks.parts.items():
        for unit in sorted(subtasks.units(part)):
            if first.setdefault(unit, name) != name:
                raise MaskError(
                    f"subtasks {first[unit]} and {name} both have {_shown(unit, subtasks, targets)}"
                    "; take it out of one, or set pruning.overlap=allow"
                )


def _check_covered(subtasks: Subtasks, targets: Mapping[str, Feature]) -> None:
    covered = {unit for part in subtasks.parts.values() for unit in subtasks.units(part)}
    if missing := sorted(subtasks.units(dict.fromkeys(targets)) - covered):
        names = ", ".join(_shown(unit, subtasks, targets) for unit in missing)
        raise MaskError(
            f"no subtask has {names}; add it to a subtask, or set pruning.uncovered=allow"
        )


def _shown(unit: tuple[str, int], subtasks: Subtasks, targets: Mapping[str, Feature]) -> str:
    task, number = unit
    if task not in subtasks.num_classes:
        return f"task {task}"
    return f"class {task}:{class_names(targets[task])[number]}"
