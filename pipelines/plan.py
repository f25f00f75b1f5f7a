"""The plan: which rows of which shards make rank r's part of step s. Arithmetic, nothing read.

The schedule says which tasks train at a step, `task_order.py` what the n-th global batch of a task
holds. So the state of a run is one n a task, and neither the number of ranks nor accumulation
changes which examples a step sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from pipelines.errors import PlanError
from pipelines.schedule import Schedule, ScheduleConfig, build_schedule
from pipelines.scheduled import scheduled
from pipelines.shards import Manifest
from pipelines.task_order import TaskOrder


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A rank's part of one micro-batch, still to be read.

    Args:
        step: optimizer step.
        micro: place among the step's micro-batches.
        task: task's name.
        ordinal: n, which global batch of the task it is cut from.
        rows: (B,) int64 row numbers in the task's split; they are the example ids.
        epochs: (B,) int64, how often each row was read before, where its examples are augmented;
            None: they are read as they were built.
    """

    step: int
    micro: int
    task: str
    ordinal: int
    rows: np.ndarray
    epochs: np.ndarray | None = None


class BatchPlan(Protocol):
    """What a stream asks of a plan: of training or of evaluation."""

    @property
    def manifests(self) -> Mapping[str, Manifest]:
        """Opened splits by task."""
        ...

    @property
    def rank(self) -> int:
        """Whose part this is."""
        ...

    @property
    def seed(self) -> int:
        """Key of all that is random."""
        ...

    @property
    def num_steps(self) -> int:
        """Steps there are."""
        ...

    def micro_tasks(self, step: int) -> Sequence[str]:
        """Task of each micro-batch of one step, in order."""
        ...

    def batches(self, step: int) -> Sequence[PlannedBatch]:
        """This rank's micro-batches of one step, in order."""
        ...


@dataclass(frozen=True)
class Plan:
    """Which rows every step of a run reads, for one rank.

    Args:
        manifests: opened training splits, by task, in the order of the run's tasks.
        schedule: which tasks train at a step.
        num_steps: optimizer steps of the run.
        seed: key of all orders.
        world_size: ranks; every global batch is cut into as many equal parts.
        rank: whose part this is.
        shuffle_window: row groups whose rows are shuffled together.
        accumulation: micro-batches that a global batch is cut into.
        start_step: step at which `start_cursors` hold; a run that goes on states both.
        start_cursors: global batches of each task taken before `start_step`; none: as the
            schedule counts them.
        examples: whether the tasks' augmentations change the examples or they stay as built.

    Raises:
        PlanError: a batch does not divide over the ranks, or the splits do not fit together.
    """

    manifests: Mapping[str, Manifest]
    schedule: ScheduleConfig
    num_steps: int
    seed: int = 0
    world_size: int = 1
    rank: int = 0
    shuffle_window: int = 16
    accumulation: int = 1
    start_step: int = 0
    start_cursors: Mapping[str, int] | None = None
    examples: Literal["built", "augmented"] = "built"
    _schedule: Schedule = field(init=False, repr=False, compare=False)
    _offsets: dict[str, int] = field(init=False, repr=False)
    _orders: dict[str, TaskOrder] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        one_vocabulary(self.manifests)
        orders = {
            task: TaskOrder(manifest, seed=self.seed, shuffle_window=self.shuffle_window)
            for task, manifest in self.manifests.items()
        }
        for task, order in orders.items():
            check_divides(
                task, order.batch_sizes, world_size=self.world_size, accumulation=self.accumulation
            )
        schedule = build_schedule(
            self.schedule,
            tasks=scheduled(
                {name: manifest.task for name, manifest in self.manifests.items()},
                num_examples={name: m.num_examples for name, m in self.manifests.items()},
            ),
            num_steps=self.num_steps,
            seed=self.seed,
        )
        counted = schedule.counts_before(self.start_step)
        cursors = counted if self.start_cursors is None else self.start_cursors
        offsets = {task: cursors.get(task, 0) - counted[task] for task in self.manifests}
        object.__setattr__(self, "_schedule", schedule)
        object.__setattr__(self, "_orders", orders)
        object.__setattr__(self, "_offsets", offsets)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the arguments; a rank's reader works the orders out again."""
        names = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        return type(self), tuple(getattr(self, name) for name in names)

    def rates(self) -> dict[str, float]:
        """Rate of each task where the schedule is not changed on the way."""
        return dict(self._schedule.rates)

    def cursors(self, step: int) -> dict[str, int]:
        """Global batches of each task taken before a step: with the step, the state of a run."""
        counts = self._schedule.counts_before(step)
        return {task: count + self._offsets[task] for task, count in counts.items()}

    def micro_tasks(self, step: int) -> tuple[str, ...]:
        """Task of each micro-batch of a step: task by task, each `accumulation` times."""
        tasks = self._schedule.tasks_at(step)
        return tuple(task for task in tasks for _ in range(self.accumulation))

    def global_rows(self, task: str, ordinal: int) -> np.ndarray:
        """Row numbers of the n-th global batch of a task, over all ranks and micro-batches."""
        return self._orders[task].rows(ordinal)

    def batches(self, step: int) -> tuple[PlannedBatch, ...]:
        """This rank's micro-batches of one step: task by task, each cut `accumulation` times."""
        cursors, planned = self.cursors(step), []
        for task in self._schedule.tasks_at(step):
            ordinal, order = cursors[task], self._orders[task]
            rows = order.rows(ordinal)
            epochs = order.epochs(ordinal) if self.examples == "augmented" else None
            for micro in range(self.accumulation):
                mine = self._part(rows, micro)
                read = None if epochs is None else self._part(epochs, micro)
                planned.append(PlannedBatch(step, len(planned), task, ordinal, mine, read))
            cursors[task] += 1
        return tuple(planned)

    def _part(self, values: np.ndarray, micro: int) -> np.ndarray:
        """This rank's part of a micro-batch, of what a global batch has for each example."""
        return np.split(np.split(values, self.accumulation)[micro], self.world_size)[self.rank]


@dataclass(frozen=True)
class SequentialPlan:
    """Each row of one split once, in order, for evaluation: step i is rows [i*b, (i+1)*b).

    The last batch is smaller. Ranks share a batch as evenly as can be; a rank for which nothing is
    left gets a batch of no rows, so that all ranks take the same number of steps.
    """

    manifest: Manifest
    batch_size: int
    world_size: int = 1
    rank: int = 0

    @property
    def seed(self) -> int:
        """Nothing here is random."""
        return 0

    @property
    def manifests(self) -> dict[str, Manifest]:
        """The split, by its task."""
        return {self.manifest.task.name: self.manifest}

    @property
    def num_steps(self) -> int:
        """Batches that hold every row once."""
        return -(-self.manifest.num_examples // self.batch_size)

    def micro_tasks(self, step: int) -> tuple[str, ...]:
        """The task: a step is one micro-batch."""
        return (self.manifest.task.name,)

    def batches(self, step: int) -> tuple[PlannedBatch, ...]:
        """This rank's part of batch `step`."""
        begin = step * self.batch_size
        count = min(self.batch_size, self.manifest.num_examples - begin)
        first, last = (count * part // self.world_size for part in (self.rank, self.rank + 1))
        rows = np.arange(begin + first, begin + last)
        return (PlannedBatch(step, 0, self.manifest.task.name, step, rows),)


def check_divides(task: str, sizes: Sequence[int], *, world_size: int, accumulation: int) -> None:
    """Every rank gets as many examples of a micro-batch.

    Raises:
        PlanError: a batch size does not divide; names the nearest that do.
    """
    parts = world_size * accumulation
    for size in sizes:
        if size % parts:
            near = sorted({size // parts * parts, -(-size // parts) * parts} - {0})
            raise PlanError(
                f"task {task}: a batch of {size} examples does not divide over {world_size} ranks "
                f"times {accumulation} micro-batches; nearest: {' or '.join(map(str, near))} "
                "(batch_size, or batch_multiple where there is a token budget)"
            )


def one_vocabulary(manifests: Mapping[str, Manifest]) -> str | None:
    """Digest of the vocabulary that all tasks with text were built with; None: none has text.

    Raises:
        PlanError: tasks were built with different vocabularies.
    """
    tasks: dict[str, str] = {}
    for task, manifest in manifests.items():
        if manifest.vocabulary_digest is not None:
            tasks.setdefault(manifest.vocabulary_digest, task)
    if len(tasks) > 1:
        raise PlanError(
            f"tasks {sorted(tasks.values())} were built with different vocabularies "
            f"{sorted(tasks)}; build all tasks of the run in one `python -m pipelines build`"
        )
    return next(iter(tasks), None)
