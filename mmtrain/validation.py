"""Validation during training: teacher-forced loss and token accuracy, on all ranks in lock-step.

Experts are spread over the ranks, so every rank runs the same number of batches; the whole test of
a model, decoding included, is `evaluate.py` on the trained bundle, in one process.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from mmtrain import losses
from mmtrain.engines import Engine
from mmtrain.ranks import sum_over_ranks, to_tensors
from pipelines.batch import Batch


@dataclass(frozen=True, slots=True)
class ValidationPoint:
    """One task: nats a target without smoothing, and the share of targets that rank first."""

    log_loss: float
    token_accuracy: float


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
    engine.model.eval()
    sums: dict[str, torch.Tensor] = {}
    for batch in batches:
        tensors = to_tensors(batch, device)
        outputs = engine.forward(task=batch.task, **tensors)
        counted = losses.token_sums(outputs.logits, tensors["targets"])
        row = torch.stack([counted.nll.double(), counted.correct.double(), counted.count.double()])
        sums[batch.task] = sums.get(batch.task, torch.zeros_like(row)) + row
    engine.model.train()
    points = {}
    for task, row in sums.items():
        nll, correct, count = sum_over_ranks(row).tolist()
        points[task] = ValidationPoint(log_loss=nll / count, token_accuracy=correct / count)
    return points
