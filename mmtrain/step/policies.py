"""Decisions of the train loop: pure functions of facts; `train.py` carries them out."""

import math
from collections.abc import Sequence

from pipelines.errors import MMTrainError


class NonFiniteLossError(MMTrainError):
    """Loss or gradient stopped being a number; the weights are those of the step before."""

    def __init__(
        self, task: str, step: int, example_ids: Sequence[int], gradient_norm: float
    ) -> None:
        super().__init__(task, step, tuple(example_ids), gradient_norm)
        self.task, self.step, self.example_ids = task, step, tuple(example_ids)
        self.gradient_norm = gradient_norm

    def __str__(self) -> str:
        ids = ", ".join(str(number) for number in self.example_ids[:64])
        return (
            f"step {self.step}, task {self.task}: gradient norm is {self.gradient_norm}; "
            f"examples {ids}. The last good checkpoint stands; look at these examples, or lower "
            "the learning rate, and go on with --resume"
        )


def is_due(step: int, *, every: int, last: int) -> bool:
    """Whether something done each `every` steps (0: only at the end) is due after `step` steps."""
    return step == last or (every > 0 and step % every == 0)


def is_healthy(gradient_norm: float) -> bool:
    """Whether a step's gradient was finite, so that the optimizer took it."""
    return math.isfinite(gradient_norm)
