"""Recalibration: batch norms get the statistics of the network that is left.

While masks are learned, running statistics mix those of all subtasks, so a network that was cut
takes its own: mean and variance of some batches without labels, WO2021251960A1. Each batch counts
the same, so their order makes no difference but for rounding. In all else the model is as in
evaluation, and what it had before has no part in the result.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmtrain.cut.examples import TaskInputs
from mmtrain.models.model import MultiTaskModel
from pipelines.errors import MMTrainError


class RecalibrationError(MMTrainError):
    """There is no data to take statistics of."""


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Batch norms that have running statistics, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


@torch.no_grad()
def recalibrate(model: MultiTaskModel, batches: Sequence[TaskInputs]) -> None:
    """Replaces the statistics of all batch norms, in place; a model without any stays as it is.

        mean = 1/n sum_i mean_i;    var = 1/n sum_i var_i       over n batches

    Args:
        model: left in the mode that it was in; it may stand within `gated`.
        batches: of at least two positions each.

    Raises:
        RecalibrationError: there is no batch; the statistics are as they were.
    """
    norms = batch_norms(model)
    if norms and not batches:
        raise RecalibrationError(
            f"no data to recalibrate {len(norms)} batch norms on; "
            "build the corpora of the subset's tasks, or leave recalibration out"
        )
    if norms:
        with _cumulative(model, tuple(norms.values())):
            for batch in batches:
                model.encode(batch.task, inputs=batch.inputs, input_lengths=batch.input_lengths)


@contextmanager
def _cumulative(model: nn.Module, norms: Sequence[_BatchNorm]) -> Generator[None]:
    """Norms start anew and average what they see; the rest of the model evaluates."""
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # torch's word for the cumulative mean
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
