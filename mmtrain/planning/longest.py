"""The largest arrays that a task's features allow, and batches of them, all zeros."""

from dataclasses import dataclass

import numpy as np

from pipelines.batch import Batch
from pipelines.shards import Manifest
from pipelines.task import Task
from pipelines.task_order import bucket_batch_sizes

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LongestBatch:
    """The longest global batch of a length bucket of a task.

    Args:
        task: its name.
        size: examples over all ranks and micro-batches.
        inputs: shape of an input.
        targets: shape of a target.
    """

    task: str
    size: int
    inputs: Shape
    targets: Shape


def longest_batches(task: Task, manifest: Manifest | None) -> list[LongestBatch]:
    """The longest batch of each length bucket, by what was built or by what features allow."""
    inputs, targets = task.inputs.longest_shape, task.targets.longest_shape
    if manifest is not None:
        inputs = (int(manifest.stats["longest_input"]), *inputs[1:])
        targets = (int(manifest.stats["longest_target"]), *targets[1:])
        bounds = manifest.bucket_bounds
    else:
        longest = max(inputs[0], targets[0])
        bounds = (*(bound for bound in task.bucket_bounds if bound < longest), longest)
    sizes = bucket_batch_sizes(task, bounds=bounds)
    return [
        LongestBatch(
            task=task.name,
            size=size,
            inputs=(min(bound, inputs[0]), *inputs[1:]),
            targets=(min(bound, targets[0]), *targets[1:]),
        )
        for bound, size in zip(bounds, sizes, strict=True)
    ]


def zeros(batch: LongestBatch, task: Task, *, size: int) -> Batch:
    """`size` examples of the batch's shapes. Zeros take no memory until somebody writes them."""
    inputs = np.zeros((size, *batch.inputs), task.inputs.dtype)
    targets = np.zeros((size, *batch.targets), task.targets.dtype)
    return Batch(
        step=0,
        micro=0,
        task=task.name,
        inputs=inputs,
        input_lengths=np.full(size, batch.inputs[0], np.int32),
        targets=targets,
        target_lengths=np.full(size, batch.targets[0], np.int32),
        example_ids=np.arange(size),
    )
