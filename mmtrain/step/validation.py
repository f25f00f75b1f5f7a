"""Validation during training: loss and share of hits, true tokens given, on all ranks in lock-step.

Experts are spread over the ranks, so every rank runs the same number of batches; the whole test of
a model, decoding included, is `evaluate.py` on the trained bundle, in one process.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch

from mmtrain.engines import Engine
from mmtrain.engines.ranks import sum_over_ranks, to_tensors
from mmtrain.losses import load_loss
from mmtrain.models.model import MultiTaskModel
from pipelines.batch import Batch


@dataclass(frozen=True, slots=True)
class ValidationPoint:
    """One task: loss a target without smoothing, and the share of targets that were hit.

    Nats where a target has a probability; `accuracy` is None where it is no class.
    """

    loss: float
    accuracy: float | None


@torch.no_grad()
def validate(
    engine: Engine, batches: Iterable[Batch], *, device: torch.device
) -> Mapping[str, ValidationPoint]:
    """Measures the batches, by task; the model is left in training mode.

    Args:
        engine: whose model is measured.
        batches: this rank's slices; every rank has as many, of the same tasks in the same order.
        device: where the model is.
    """
    tasks = cast(MultiTaskModel, engine.model).tasks
    engine.model.eval()
    sums: dict[str, torch.Tensor] = {}
    for batch in batches:
        tensors = to_tensors(batch, device)
        outputs = engine.forward(task=batch.task, **tensors)
        task = tasks[batch.task]
        counted = load_loss(task.loss).measure(
            outputs.logits, tensors["targets"], groups=task.output_groups
        )
        row = torch.stack([counted.loss.double(), counted.correct.double(), counted.count.double()])
        sums[batch.task] = sums.get(batch.task, torch.zeros_like(row)) + row
    engine.model.train()
    points = {}
    for task, row in sums.items():
        loss, correct, count = sum_over_ranks(row).tolist()
        accuracy = None if math.isnan(correct) else correct / count
        points[task] = ValidationPoint(loss=loss / count, accuracy=accuracy)
    return points
