"""Recalibration: batch norms get the statistics of the network that is left.

While masks are learned, running statistics mix those of all subtasks, so a network that was cut
takes its own: mean and variance of some batches without labels, WO2021251960A1. Each batch counts
the same, so their order makes no difference but for rounding. In all else the model is as in
evaluation, and what it had before has no part in the result.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice

import torch
from torch import Tensor, nn
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
def recalibrate(model: MultiTaskModel, batches: Iterable[TaskInputs], *, num_batches: int) -> int:
    """Replaces the statistics of all batch norms, in place; the model may stand within `gated`.

        mean = 1/n sum_i mean_i;    var = 1/n sum_i var_i       over n batches

    Args:
        model: left in the mode that it was in.
        batches: of at least two positions each; no more are taken than needed.
        num_batches: n.

    Returns:
        Batches taken: `num_batches`, or all there are if fewer; 0 for a model without batch norms,
        which takes none.

    Raises:
        RecalibrationError: no batch came; the statistics are as they were.
    """
    norms = batch_norms(model)
    if not norms:
        return 0
    coming = islice(batches, num_batches)
    first = next(coming, None)
    if first is None:
        raise RecalibrationError(
            f"no data to recalibrate {len(norms)} batch norms on; "
            "build the corpora of the subset's tasks, or leave recalibration out"
        )
    taken = 0
    with _cumulative(model, tuple(norms.values())):
        for batch in chain([first], coming):
            model.encode(batch.task, inputs=batch.inputs, input_lengths=batch.input_lengths)
            taken += 1
    return taken


@contextmanager
def _cumulative(model: nn.Module, norms: Sequence[_BatchNorm]) -> Iterator[None]:
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


class Recalibrator:
    """Recalibrates each subset once, and remembers its statistics.

    Args:
        read: batches for the tasks of a model; called when a subset is new.
        num_batches: batches that statistics are taken of.
    """

    def __init__(
        self, read: Callable[[MultiTaskModel], Iterable[TaskInputs]], *, num_batches: int
    ) -> None:
        self._read, self._num_batches = read, num_batches
        self._known: dict[Hashable, dict[str, dict[str, Tensor]]] = {}

    def apply(self, model: MultiTaskModel, *, subset: Hashable) -> None:
        """Gives a model the statistics of a subset.

        Args:
            model: cut to the subset; changed in place.
            subset: what the model was cut to: whatever differs when its units do.

        Raises:
            RecalibrationError: the subset is new, and there is no data for it.
        """
        norms = batch_norms(model)
        if subset in self._known:
            for path, statistics in self._known[subset].items():
                norms[path].load_state_dict(statistics, strict=False)
            return
        recalibrate(model, self._read(model), num_batches=self._num_batches)
        self._known[subset] = {
            path: {name: value.clone() for name, value in norm.named_buffers()}
            for path, norm in norms.items()
        }
