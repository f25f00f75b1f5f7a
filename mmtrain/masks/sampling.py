"""Which unions of subtasks train at a step: a pure function of (seed, step).

All 2^n - 1 unions have a term in the objective; a step takes a few. All ranks agree on them
without a collective, and a resumed run needs the step and nothing else.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain, combinations
from math import comb

import numpy as np

from mmtrain.masks.config import PruningConfig
from pipelines.shuffle import keyed_generator


@dataclass(frozen=True, slots=True)
class Draw:
    """One masked pass of a step.

    Args:
        subtasks: basis subtasks of the union, in the config's order.
        share: weight of the pass's loss in the step's; of equal weights, they sum to 1.
    """

    subtasks: tuple[str, ...]
    share: float


def draw_unions(
    config: PruningConfig, *, seed: int, step: int, within: Collection[str] | None = None
) -> tuple[Draw, ...]:
    """The unions that train at a step.

    Args:
        config: the subtasks and the law.
        seed: the run's.
        step: optimizer steps done.
        within: basis subtasks that the step's task is in; only unions with one of them are drawn.
            None: all of them. Empty: no union has the task, nothing is drawn.
    """
    law = _Law(config, within)
    if not law.eligible:
        return ()
    if config.law == "exact":
        unions = list(law.unions())
        return tuple(Draw(law.names(union), 1 / len(unions)) for union in unions)
    rng = keyed_generator(seed, "subtasks", step)
    kinds = _kinds(config)
    drawn = [law.draw(kind, rng) for kind in kinds]
    return tuple(Draw(law.names(union), law.weight(union) / len(kinds)) for union in drawn)


def _kinds(config: PruningConfig) -> tuple[str, ...]:
    """Laws of the passes of a step."""
    if config.num_samples == 1:
        return (config.law,)
    third = ("basis_only",) if config.num_samples > 2 else ()
    drawn = (config.law,) * (config.num_samples - 1 - len(third))
    return ("whole", *drawn, *third)


class _Law:
    """Laws over unions (bool of each basis subtask) that hold an eligible basis subtask."""

    def __init__(self, config: PruningConfig, within: Collection[str] | None) -> None:
        self.config = config
        self.subtasks = tuple(config.subtasks)
        self.is_eligible = np.array([within is None or name in within for name in self.subtasks])

    @property
    def eligible(self) -> int:
        return int(self.is_eligible.sum())

    def names(self, union: np.ndarray) -> tuple[str, ...]:
        return tuple(name for name, is_in in zip(self.subtasks, union, strict=True) if is_in)

    def unions(self) -> Iterator[np.ndarray]:
        numbers = range(len(self.subtasks))
        sizes = (combinations(numbers, size) for size in range(1, len(self.subtasks) + 1))
        for members in chain.from_iterable(sizes):
            union = np.isin(numbers, members)
            if (union & self.is_eligible).any():
                yield union

    def draw(self, kind: str, rng: np.random.Generator) -> np.ndarray:
        """One union. The stratified law draws the size first, then a union of that size."""
        size = int(rng.integers(1, len(self.subtasks) + 1))
        while True:
            union = self._propose(kind, size, rng)
            if (union & self.is_eligible).any():
                return union

    def _propose(self, kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
        count = len(self.subtasks)
        if kind == "whole":
            return np.ones(count, dtype=bool)
        if kind == "uniform":
            return rng.integers(0, 2, size=count).astype(bool)
        return rng.permutation(count) < (1 if kind == "basis_only" else size)

    def weight(self, union: np.ndarray) -> float:
        """What a drawn union's loss is multiplied by, before the mean over passes.

        w(T) = 1 / (|S| q(T)), q the mean of the passes' laws: the balance heuristic of Veach and
        Guibas, SIGGRAPH 1995, Eq. 14.
        """
        if self.config.weighting == "equal":
            return 1.0
        kinds = _kinds(self.config)
        mean = sum(self.probability(kind, union) for kind in kinds) / len(kinds)
        return 1 / (self._num_unions() * mean)

    def probability(self, kind: str, union: np.ndarray) -> float:
        """That a pass of this law draws this union."""
        count, size = len(self.subtasks), int(union.sum())
        if kind == "whole":
            return float(size == count)
        if kind == "uniform":
            return 1 / self._num_unions()
        if kind == "basis_only":
            return float(size == 1) / self.eligible
        return 1 / (count * (comb(count, size) - comb(count - self.eligible, size)))

    def _num_unions(self) -> int:
        count = len(self.subtasks)
        return 2**count - 2 ** (count - self.eligible)
