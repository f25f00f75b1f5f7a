"""Mixup: examples blended with those of the reversed batch, and their losses likewise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtrain.losses import LossSum
from pipelines.errors import MMTrainError
from pipelines.shuffle import keyed_generator
from pipelines.task import Task


class MixupError(MMTrainError):
    """A task's examples cannot be blended."""


@dataclass(frozen=True, slots=True)
class Mix:
    """A batch as the model takes it, and the share that examples keep of themselves; 1: whole."""

    tensors: Mapping[str, Tensor]
    kept: float = 1.0


def check_mixup(task: Task) -> None:
    """Refuses mixup of what is not made of numbers that can be blended.

    Raises:
        MixupError: token ids, or targets that are decoded token by token.
    """
    if task.mixup == 0:
        return
    if task.inputs.dtype == "int32":
        raise MixupError(
            f"task {task.name}: mixup={task.mixup:g} blends numbers, {task.inputs.modality} inputs "
            "are ids; set mixup=0 (it is for image, video and audio)"
        )
    if task.targets.num_outputs is None:
        raise MixupError(
            f"task {task.name}: mixup={task.mixup:g} blends losses of whole answers, "
            f"{task.targets.modality} targets are decoded token by token; set mixup=0"
        )


def mix_inputs(tensors: Mapping[str, Tensor], *, alpha: float, key: tuple[int, int, str]) -> Mix:
    """The batch blended with itself in reverse; as it is where alpha is 0.

        x <- l x + (1 - l) x reversed,   l ~ Beta(alpha, alpha), one for the batch
        Zhang et al., arXiv:1710.09412, Eq. 1; reversed as in PolyViT's code

    A rank reverses its own part. Positions are real where either example has them.

    Args:
        tensors: arguments of the model.
        alpha: of the distribution of l.
        key: seed, step and task, from which l is drawn: the same on all ranks.
    """
    if alpha == 0:
        return Mix(tensors)
    kept = kept_share(alpha, key=key)
    inputs, lengths_B = tensors["inputs"].float(), tensors["input_lengths"]
    mixed = {
        "inputs": torch.lerp(inputs.flip(0), inputs, kept),
        "input_lengths": torch.maximum(lengths_B, lengths_B.flip(0)),
    }
    return Mix({**tensors, **mixed}, kept)


def kept_share(alpha: float, *, key: tuple[int, int, str]) -> float:
    """Draws the share from Beta(alpha, alpha) by its key."""
    return float(keyed_generator(*key, "mixup").beta(alpha, alpha))


def mixed_loss(loss_of: Callable[[Tensor], LossSum], mix: Mix) -> LossSum:
    """Loss against both examples' targets, by their shares; for cross-entropy as of mixed labels.

    Args:
        loss_of: the loss of the batch's scores against targets.
        mix: the batch.
    """
    own = loss_of(mix.tensors["targets"])
    if mix.kept == 1.0:
        return own
    other = loss_of(mix.tensors["targets"].flip(0))
    return LossSum(torch.lerp(other.total, own.total, mix.kept), own.count)
