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

SPLITTABLE = ("label", "multilabel")  # modalities of targets with a score for each class


@dataclass(frozen=True, slots=True)
class Subtasks:
    """What the basis subtasks of a model stand for.

    Args:
        parts: by subtask and task, the ids of the classes that are in it; None: the whole task.
        num_classes: of each task that some subtask has classes of.
    """

    parts: Mapping[str, Mapping[str, tuple[int, ...] | None]]
    num_classes: Mapping[str, int]

    def containing(self, task: str) -> tuple[str, ...]:
        """Basis subtasks that have the task, or classes of it."""
        return tuple(name for name, tasks in self.parts.items() if task in tasks)

    def tasks(self, subtasks: Iterable[str]) -> tuple[str, ...]:
        """Tasks of a union, in the order of declaration."""
        named = set(subtasks)
        found = (task for name in self.parts if name in named for task in self.parts[name])
        return tuple(dict.fromkeys(found))

    def classes(self, subtasks: Iterable[str], *, task: str) -> tuple[int, ...] | None:
        """Ids of a task's classes in a union, ascending; None: no subtask divides the task."""
        if task not in self.num_classes:
            return None
        found = [self.parts[name][task] for name in subtasks if task in self.parts[name]]
        if None in found:
            return tuple(range(self.num_classes[task]))
        return tuple(sorted({number for ids in found for number in ids or ()}))


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
    subtasks = Subtasks(parts, {task: len(_class_names(targets[task])) for task in sorted(divided)})
    if config.overlap == "refuse":
        _check_apart(subtasks, targets)
    if config.uncovered == "refuse":
        _check_covered(subtasks, targets)
    return subtasks


def _parts(
    entries: Iterable[str], *, targets: Mapping[str, Feature], losses: Mapping[str, str]
) -> dict[str, tuple[int, ...] | None]:
    parts: dict[str, tuple[int, ...] | None] = {}
    for entry in entries:
        task, colon, class_name = entry.partition(":")
        if task not in targets:
            raise UnknownNameError("task", task, tuple(targets))
        if not colon:
            parts[task] = None
            continue
        _check_divisible(task, targets[task], loss=losses[task])
        number = _class_id(class_name, task=task, names=_class_names(targets[task]))
        parts[task] = tuple(sorted({*(parts.get(task) or ()), number}))
    return parts


def _check_divisible(task: str, feature: Feature, *, loss: str) -> None:
    if feature.modality not in SPLITTABLE:
        raise MaskError(
            f"task {task} has {feature.modality} targets, which have no classes to divide; name "
            f"the whole task {task!r} in a subtask"
        )
    if load_loss(loss).by_class is None:
        raise MaskError(
            f"task {task} is divided into classes, so each class needs a score of its own; set "
            f"tasks.{task}.loss to 'sigmoid_cross_entropy' in place of {loss!r}"
        )


def _class_names(feature: Feature) -> tuple[str, ...]:
    return getattr(feature, "classes", ())


def _class_id(name: str, *, task: str, names: tuple[str, ...]) -> int:
    """A class by its name, else by its number."""
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise UnknownNameError(f"class of task {task}", name, names)


def _units(parts: Mapping[str, tuple[int, ...] | None], subtasks: Subtasks) -> set[tuple[str, int]]:
    """Tasks and classes of a subtask, one by one; a task that nobody divides is one."""
    return {
        (task, number)
        for task, ids in parts.items()
        for number in (range(subtasks.num_classes.get(task, 1)) if ids is None else ids)
    }


def _check_apart(subtasks: Subtasks, targets: Mapping[str, Feature]) -> None:
    seen: dict[tuple[str, int], str] = {}
    for name, parts in subtasks.parts.items():
        for unit in sorted(_units(parts, subtasks)):
            if unit in seen:
                raise MaskError(
                    f"subtasks {seen[unit]} and {name} both have {_shown(unit, subtasks, targets)};"
                    " take it out of one, or set pruning.overlap=allow"
                )
            seen[unit] = name


def _check_covered(subtasks: Subtasks, targets: Mapping[str, Feature]) -> None:
    there = _units(dict.fromkeys(targets), subtasks)
    covered = {unit for parts in subtasks.parts.values() for unit in _units(parts, subtasks)}
    if missing := sorted(there - covered):
        names = ", ".join(_shown(unit, subtasks, targets) for unit in missing)
        raise MaskError(
            f"no subtask has {names}; add it to a subtask, or set pruning.uncovered=allow"
        )


def _shown(unit: tuple[str, int], subtasks: Subtasks, targets: Mapping[str, Feature]) -> str:
    task, number = unit
    if task not in subtasks.num_classes:
        return f"task {task}"
    return f"class {task}:{_class_names(targets[task])[number]}"
