"""The plan: which rows of which shards make rank r's part of step s. Arithmetic, nothing read.

A task's examples lie in length buckets (one, unless it has a token budget). The rows of a bucket
are an endless concatenation of epochs; epoch e is a permutation keyed by (seed, task, bucket, e):
row groups permuted, then rows shuffled inside windows of row groups. Batch j of the bucket is its
rows [j*b, (j+1)*b). Buckets take turns in cycles that follow their sizes. So the n-th global batch
of a task is a function of n, the state of a run is one n a task, and neither the number of ranks
nor accumulation changes which examples it holds.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from pipelines.errors import PlanError
from pipelines.schedule import Schedule, ScheduleConfig, build_schedule
from pipelines.shards import Manifest
from pipelines.shuffle import keyed_order
from pipelines.task import Task

LONGEST_CYCLE = 4096  # batches: the turns of the buckets follow their sizes to one in so many


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

    def batches(self, step: int) -> Sequence[PlannedBatch]:
        """This rank's micro-batches of one step, in order."""
        ...


def bucket_batch_sizes(task: Task, *, bounds: Sequence[int]) -> tuple[int, ...]:
    """Examples of a global batch of each bucket.

        b_k = batch_size, or max(multiple, floor(batch_tokens / (2 bound_k) / multiple) * multiple)

    so that inputs and targets, padding included, keep within `batch_tokens` wherever `multiple`
    examples of the bucket's longest do.

    Raises:
        PlanError: neither or both of batch_size and batch_tokens are given.
    """
    if (task.batch_size is None) == (task.batch_tokens is None):
        raise PlanError(f"task {task.name}: give one of batch_size and batch_tokens")
    if task.batch_size is not None:
        return (task.batch_size,) * len(bounds)
    assert task.batch_tokens is not None
    multiple = task.batch_multiple
    budgets = (task.batch_tokens // (2 * bound) // multiple * multiple for bound in bounds)
    return tuple(max(multiple, budget) for budget in budgets)


class TaskOrder:
    """The endless sequence of global batches of one task.

    Args:
        manifest: the opened split.
        seed: key of the order.
        shuffle_window: row groups whose rows are shuffled together.
    """

    def __init__(self, manifest: Manifest, *, seed: int, shuffle_window: int) -> None:
        buckets = manifest.group_buckets
        sizes = bucket_batch_sizes(manifest.task, bounds=manifest.bucket_bounds)
        used = [number for number in range(len(sizes)) if (buckets == number).any()]
        self._task, self._seed = manifest.task.name, seed
        self.batch_sizes = tuple(sizes[number] for number in used)
        self._buckets = [
            BucketOrder(
                manifest.group_starts,
                groups=np.flatnonzero(buckets == number),
                key=(seed, self._task, number),
                window=shuffle_window,
            )
            for number in used
        ]
        turns = [b.num_rows / size for b, size in zip(self._buckets, self.batch_sizes, strict=True)]
        scale = min(1.0, LONGEST_CYCLE / sum(turns))
        self._turns = [max(1, round(count * scale)) for count in turns]
        self._cycle = functools.lru_cache(maxsize=4)(self._cycle_order)

    def rows(self, ordinal: int) -> np.ndarray:
        """Row numbers of the n-th global batch, (b,) int64."""
        bucket, begin, end = self._place(ordinal)
        return self._buckets[bucket].rows(begin, end)

    def epochs(self, ordinal: int) -> np.ndarray:
        """Epoch in which each row of the n-th global batch is read, (b,) int64."""
        bucket, begin, end = self._place(ordinal)
        return np.arange(begin, end) // self._buckets[bucket].num_rows

    def _place(self, ordinal: int) -> tuple[int, int, int]:
        """Bucket of the n-th global batch, and its span in the bucket's endless sequence."""
        cycle, turn = divmod(ordinal, sum(self._turns))
        order, earlier = self._cycle(cycle)
        bucket = int(order[turn])
        batch = cycle * self._turns[bucket] + int(earlier[turn])
        size = self.batch_sizes[bucket]
        return bucket, batch * size, (batch + 1) * size

    def _cycle_order(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """Bucket of each turn of a cycle, and how many turns the bucket had before it there."""
        order = np.repeat(np.arange(len(self._turns)), self._turns)
        order = order[keyed_order(len(order), key=(self._seed, self._task, "turns", cycle))]
        earlier = np.empty_like(order)
        for bucket, count in enumerate(self._turns):
            earlier[order == bucket] = np.arange(count)
        return order, earlier


class BucketOrder:
    """The endless sequence of rows of one bucket: epochs, each a keyed permutation.

    Args:
        starts: (groups + 1,) first row of each row group of the split.
        groups: row groups of this bucket.
        key: of the permutations.
        window: row groups whose rows are shuffled together.
    """

    def __init__(
        self, starts: np.ndarray, *, groups: np.ndarray, key: tuple[int | str, ...], window: int
    ) -> None:
        self._starts, self._groups, self._key, self._size = starts, groups, key, window
        self.num_rows = int((starts[groups + 1] - starts[groups]).sum())
        self._epoch = functools.lru_cache(maxsize=2)(self._epoch_groups)
        self._window = functools.lru_cache(maxsize=4)(self._window_rows)

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Row numbers at positions begin .. end-1 of the concatenated epochs."""
        parts = []
        while begin < end:
            epoch, position = divmod(begin, self.num_rows)
            ends = self._epoch(epoch)[1]
            window = int(np.searchsorted(ends, position, side="right"))
            first = int(ends[window - 1]) if window else 0
            part = self._window(epoch, window)[position - first : position - first + end - begin]
            parts.append(part)
            begin += len(part)
        return np.concatenate(parts)

    def _epoch_groups(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Row groups in the order of an epoch, and the position at which each window ends."""
        groups = self._groups[keyed_order(len(self._groups), key=(*self._key, epoch))]
        ends = np.cumsum(self._starts[groups + 1] - self._starts[groups])
        return groups, np.append(ends[self._size - 1 : -1 : self._size], ends[-1])

    def _window_rows(self, epoch: int, window: int) -> np.ndarray:
        """Row numbers of one window of an epoch, shuffled."""
        groups = self._epoch(epoch)[0][window * self._size : (window + 1) * self._size]
        spans = zip(self._starts[groups].tolist(), self._starts[groups + 1].tolist(), strict=True)
        rows = np.concatenate([np.arange(first, last) for first, last in spans])
        return rows[keyed_order(len(rows), key=(*self._key, epoch, "window", window))]


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
        counted = self._schedule.counts_before(self.start_step)
        cursors = counted if self.start_cursors is None else self.start_cursors
        offsets = {task: cursors.get(task, 0) - counted[task] for task in self.manifests}
        object.__setattr__(self, "_orders", orders)
        object.__setattr__(self, "_offsets", offsets)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the arguments; a rank's reader works the orders out again."""
        names = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        return type(self), tuple(getattr(self, name) for name in names)

    @property
    def _schedule(self) -> Schedule:
        return build_schedule(
            self.schedule,
            tasks=tuple(self.manifests),
            num_steps=self.num_steps,
            seed=self.seed,
            own_steps={name: opened.task.num_steps for name, opened in self.manifests.items()},
        )

    def rates(self) -> dict[str, float]:
        """Rate of each task where the schedule is not changed on the way."""
        return dict(self._schedule.rates)

    def cursors(self, step: int) -> dict[str, int]:
        """Global batches of each task taken before a step: with the step, the state of a run."""
        counts = self._schedule.counts_before(step)
        return {task: count + self._offsets[task] for task, count in counts.items()}

    def micro_batches(self, step: int) -> int:
        """Micro-batches of a step, of all its tasks."""
        return len(self._schedule.tasks_at(step)) * self.accumulation

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
