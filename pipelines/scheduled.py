"""What a schedule may know of a run's tasks: plain numbers, the same on all ranks and on resume."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.task import Task


@dataclass(frozen=True, slots=True)
class ScheduledTask:
    """What a schedule may go by.

    Args:
        name: the task's.
        num_steps: U_j, of its own run; None: not given.
        modality: of its inputs.
        num_examples: of its training split; None: not known, for it is not built.
    """

    name: str
    num_steps: int | None = None
    modality: str = ""
    num_examples: int | None = None


def scheduled(
    tasks: Mapping[str, Task], *, num_examples: Mapping[str, int]
) -> tuple[ScheduledTask, ...]:
    """What a schedule may go by, of a run's tasks in order.

    Args:
        tasks: by name.
        num_examples: of the training splits that are built.
    """
    return tuple(
        ScheduledTask(name, task.num_steps, task.inputs.modality, num_examples.get(name))
        for name, task in tasks.items()
    )
