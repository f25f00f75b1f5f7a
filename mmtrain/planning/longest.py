"""The largest arrays that a task's features allow, and batches of them, all zeros.

It stands here and not on the features: their code is part of what says whether a built corpus is
stale. A modality that is not in the table brings a function `longest_shape(feature)` in its module.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines import modalities
from pipelines.batch import Batch
from pipelines.errors import MMTrainError
from pipelines.modalities import Feature
from pipelines.shards import Manifest
from pipelines.task import Task
from pipelines.task_order import bucket_batch_sizes

Shape = tuple[int, ...]


class ShapeError(MMTrainError):
    """Nobody says how large an array of a modality can be."""


def _audio_shape(feature: Any) -> Shape:
    num_samples = int(feature.max_s * feature.sample_rate_hz)
    if feature.representation == "waveform":
        return (num_samples,)
    return (feature.num_frames or 1 + num_samples // feature.hop_length, feature.num_bins)


SHAPES: Mapping[str, Callable[[Any], Shape]] = {  # features by modality: each has its own fields
    "text": lambda feature: (feature.max_tokens,),
    "tree": lambda feature: (feature.max_tokens,),
    "image": lambda feature: (feature.height, feature.width, feature.channels),
    "video": lambda feature: (
        feature.num_frames, feature.height, feature.width, feature.channels,
    ),
    "audio": _audio_shape,
    "label": lambda feature: (1,),
    "multilabel": lambda feature: (len(feature.classes),),
    "labels": lambda feature: (len(feature.parts),),
    "numbers": lambda feature: (len(feature.names),),
    "mask": lambda feature: (feature.height, feature.width),
}  # fmt: skip


def longest_shape(feature: Feature) -> Shape:
    """Shape of the largest array that a feature stores; axis 0 is the one that may be shorter.

    Raises:
        ShapeError: the modality is a user's and does not say.
    """
    if feature.modality in SHAPES:
        return SHAPES[feature.modality](feature)
    own = getattr(modalities.load(feature.modality), "longest_shape", None)
    if own is None:
        raise ShapeError(
            f"modality {feature.modality!r} does not say how large its arrays are; give its module "
            "a function longest_shape(feature) -> tuple of ints"
        )
    return own(feature)


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
    inputs, targets = longest_shape(task.inputs), longest_shape(task.targets)
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
