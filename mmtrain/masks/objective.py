"""What a masked pass adds to the loss: the loss within its subtask, and the price of its units.

J = mean over unions T of  L_T(W, M_T) + gamma ||U_T||_1 / N        WO2021251960A1
"""

from collections.abc import Collection

import torch
from torch import Tensor

from mmtrain.losses import Loss, LossSum, sigmoid_cross_entropy
from mmtrain.masks.banks import MaskBank, SubtaskMasks


def subtask_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    classes: Collection[int],
    beta: float,
    label_smoothing: float = 0.0,
    loss: Loss = sigmoid_cross_entropy,
) -> LossSum:
    """The loss of each class by itself, classes of the subtask weighing beta; counts examples.

        L_T = (beta sum_(c in T) CE_c + sum_(c not in T) CE_c) / (alpha |C|)
        alpha = (|C| + (beta - 1) |T|) / |C|                            WO2021251960A1

    It is a weighted mean over classes: with all of them in T, or beta = 1, the plain mean.

    Args:
        logits: (B, V).
        targets: (B, V) with 1 where a class is there; or (B, 1) or (B,) class ids.
        classes: T, ids.
        beta: weight of a class of T.
        label_smoothing: as of the loss.
        loss: of the task, made of classes.
    """
    assert loss.by_class is not None, "checked where subtasks are resolved"
    settings = {"label_smoothing": label_smoothing} if loss.smooths else {}
    losses_BV = loss.by_class(logits, targets, **settings)
    weights_V = class_weights(classes, num_classes=logits.shape[-1], beta=beta).to(logits.device)
    count = torch.tensor(logits.shape[0], device=logits.device)
    return LossSum(total=losses_BV.sum(dim=0) @ weights_V, count=count)


def class_weights(classes: Collection[int], *, num_classes: int, beta: float) -> Tensor:
    """Weight of each class in the loss of a subtask, float (V,); they sum to 1."""
    weights_V = torch.ones(num_classes)
    weights_V[sorted(classes)] = beta
    return weights_V / weights_V.sum()


def utility_price(bank: MaskBank, masks: SubtaskMasks, *, step: int) -> Tensor:
    """Price gamma times the mean utility of units: of the union, or summed over its basis subtasks.

    The mean over N units makes gamma / N the price of each.

    Args:
        bank: where the masks come from.
        masks: of the union.
        step: optimizer steps done; in the warm-up the price is 0.
    """
    config = bank.config
    if config.l1 == "union":
        utility = masks.utility.mean()
    else:
        alone = [bank.masks([subtask]).utility.mean() for subtask in masks.subtasks]
        utility = torch.stack(alone).sum()
    return (0.0 if step < config.warmup_steps else config.gamma) * utility
