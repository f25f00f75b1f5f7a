"""Moments: mean and deviation of a corpus, measured in the pass that writes its shards.

Sums are whole numbers: values count in steps of 2^-12, so that neither the order of the examples
nor how they are shared over processes changes a bit of what comes out.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

STEPS = 4096  # of one unit; a log-mel energy is off by 2^-13 at most, and by 0 in the mean


@dataclass(frozen=True, slots=True)
class Moments:
    """Number of values, their sum in steps and that of their squares; add two with `+`."""

    count: int = 0
    total: int = 0
    squares: int = 0

    @classmethod
    def of(cls, array: np.ndarray) -> "Moments":
        """Those of an array of finite values below 2^17, of at most 2^22 of such a size."""
        steps = np.rint(array.astype(np.float64) * STEPS).astype(np.int64)
        return cls(steps.size, int(steps.sum()), int((steps * steps).sum()))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    def standard(self) -> tuple[float, float]:
        """Mean and deviation (of the whole, not of a sample), each rounded once.

        m = T / n,   d = sqrt(n S - T^2) / n        in integers up to the division
        """
        spread = self.count * self.squares - self.total**2
        return (
            self.total / (self.count * STEPS),
            sqrt(spread / (self.count * STEPS) ** 2),
        )
