"""The batch that a rank trains on: arrays of one task, padded, and what of them is real."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Batch:
    """This rank's part of one micro-batch of one task.

    Args:
        step: optimizer step that it belongs to, from 0.
        micro: place among the step's micro-batches, from 0.
        task: task's name.
        inputs: (B, longest, ...) padded along axis 1; dtype and rank by the task's feature.
        input_lengths: (B,) int32, positions of axis 1 that are real.
        targets: (B, longest) int32 token ids padded with 0, or (B, 1) int32 class ids.
        target_lengths: (B,) int32.
        example_ids: (B,) int64, row numbers in the task's split; stable over builds of one digest.
    """

    step: int
    micro: int
    task: str
    inputs: np.ndarray
    input_lengths: np.ndarray
    targets: np.ndarray
    target_lengths: np.ndarray
    example_ids: np.ndarray
