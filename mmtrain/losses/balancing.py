"""Loss balancing by what tasks are uncertain of: each task's loss over a variance that is learned.

Kendall, Gal and Cipolla, arXiv:1705.07115, Eq. 7 and 10. The logarithms of the variances are
parameters owned by their tasks: a checkpoint holds them, a trained model has no use for them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmtrain.losses import load_loss
from mmtrain.models.model import LOG_VARIANCES, MultiTaskModel


def add_log_variances(model: MultiTaskModel) -> None:
    """Gives the model a log-variance for each task, at first 0: the losses as they are."""
    zeros = {f"of_{task}": nn.Parameter(torch.zeros(1)) for task in model.tasks}
    model.add_module(LOG_VARIANCES, nn.ParameterDict(zeros))


def uncertain_loss(loss: Tensor, *, model: MultiTaskModel, task: str, parts: int) -> Tensor:
    """A task's share of a step's loss, weighed by its variance v = exp(s).

        L / v + (ln v) / 2,  of a squared error L / (2 v) + (ln v) / 2

    Args:
        loss: this rank's share of L.
        model: as `add_log_variances` left it.
        task: whose loss it is.
        parts: shares that make up the step's loss of the task.
    """
    log_variance = getattr(model, LOG_VARIANCES)[f"of_{task}"].float().squeeze()
    factor = load_loss(model.task(task).loss).variance_factor
    return factor * torch.exp(-log_variance) * loss + log_variance / (2 * parts)


def without_log_variances(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a trained model, to be kept or handed on."""
    prefix = f"{LOG_VARIANCES}."
    return {name: value for name, value in weights.items() if not name.startswith(prefix)}
