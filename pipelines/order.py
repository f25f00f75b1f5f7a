"""Orders of a run: the numbers of the tasks of each step, and how often each task came before one.

Both are asked for by the step. An order is laid out once (two bytes an entry, so 10 million steps
are 20 MB), or in segments of which one is laid out when a step of it is asked for.
"""

import functools
from typing import Protocol

import numpy as np

from pipelines.mixture import even_order

COUNT_EVERY = 4096  # steps between stored counts: a count costs one pass over at most so many steps


class Order(Protocol):
    """Which tasks, by number, train at a step."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        ...

    def row(self, step: int) -> np.ndarray:
        """(tasks a step,) int16, of one step."""
        ...

    def counts_before(self, step: int) -> np.ndarray:
        """(tasks,) int64, mini-batches of each task in steps 0 .. step-1."""
        ...


class WholeOrder:
    """An order that is one array.

    Args:
        rows: (steps, tasks a step) int16.
        num_tasks: of the run.
    """

    def __init__(self, rows: np.ndarray, *, num_tasks: int) -> None:
        self.rows, self._num_tasks = rows, num_tasks
        num_blocks = len(rows) // COUNT_EVERY
        self._counts = np.zeros((num_blocks + 1, num_tasks), np.int64)
        for block in range(num_blocks):
            self._counts[block + 1] = self._counts[block] + self._counted(
                block * COUNT_EVERY, (block + 1) * COUNT_EVERY
            )

    @property
    def num_steps(self) -> int:
        return len(self.rows)

    def row(self, step: int) -> np.ndarray:
        return self.rows[step]

    def counts_before(self, step: int) -> np.ndarray:
        block = step // COUNT_EVERY
        return self._counts[block] + self._counted(block * COUNT_EVERY, step)

    def _counted(self, begin: int, end: int) -> np.ndarray:
        return np.bincount(self.rows[begin:end].ravel(), minlength=self._num_tasks)


class SegmentedOrder:
    """An order that repeats a segment from each of some steps on, up to the next of them.

    Args:
        starts: (points,) those steps, ascending, the first 0.
        counts: (points, tasks) mini-batches of each task in a segment, evenly spread over it.
        num_steps: of the run.
    """

    def __init__(self, starts: np.ndarray, counts: np.ndarray, *, num_steps: int) -> None:
        self.num_steps = num_steps
        self._starts, self._counts, self._lengths = starts, counts, counts.sum(axis=1)
        whole, rests = np.divmod(np.diff(starts), self._lengths[:-1])
        parts = counts[:-1] * whole[:, None]
        for point in np.flatnonzero(rests):  # only where the length of segments was changed
            parts[point] += self._segment(int(point)).counts_before(int(rests[point]))
        self._before = np.concatenate([np.zeros_like(counts[:1]), np.cumsum(parts, axis=0)])

    def row(self, step: int) -> np.ndarray:
        point, _, rest = self._place(step)
        return self._segment(point).row(rest)

    def counts_before(self, step: int) -> np.ndarray:
        point, whole, rest = self._place(step)
        counts = self._before[point] + whole * self._counts[point]
        return counts + self._segment(point).counts_before(rest) if rest else counts

    def _place(self, step: int) -> tuple[int, int, int]:
        """The point from which a step's segment holds, whole segments since, and steps of it."""
        point = int(np.searchsorted(self._starts, step, side="right")) - 1
        return (point, *divmod(step - int(self._starts[point]), int(self._lengths[point])))

    def _segment(self, point: int) -> WholeOrder:
        return _even_segment(tuple(self._counts[point].tolist()))


@functools.lru_cache(maxsize=64)
def _even_segment(counts: tuple[int, ...]) -> WholeOrder:
    total = sum(counts)
    shares = np.repeat(np.array(counts)[:, None] / total, total, axis=1)
    return WholeOrder(even_order(shares)[:, None], num_tasks=len(counts))
