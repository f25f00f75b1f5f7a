"""The order of a task's examples: what its n-th global batch holds, as a function of n.

A task's examples lie in length buckets (one, unless it has a token budget). The rows of a bucket
are an endless concatenation of epochs; epoch e is a permutation keyed by (seed, task, bucket, e):
row groups permuted, then rows shuffled inside windows of row groups. Batch j of the bucket is its
rows [j*b, (j+1)*b). Buckets take turns in cycles that follow their sizes.
"""

import functools
from collections.abc import Sequence

import numpy as np

from pipelines.errors import PlanError
from pipelines.shards import Manifest
from pipelines.shuffle import keyed_order
from pipelines.task import Task

LONGEST_CYCLE = 4096  # batches: the turns of the buckets follow their sizes to one in so many


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
