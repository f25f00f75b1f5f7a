"""Losses. Each returns a sum with its count, never a mean: ranks and micro-batches add both, then
divide once.

What a loss counts is known before the forward pass (`target_count`), for a rank's share of a step
is divided by the count over all ranks.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.errors import MMTrainError, UnknownNameError
from pipelines.modalities import Feature

PADDING = 0


class LossError(MMTrainError):
    """A loss that cannot be taken of a task's targets."""


@dataclass(frozen=True, slots=True)
class LossSum:
    """Loss summed over valid targets; ranks add totals and counts, then divide once."""

    total: Tensor
    count: Tensor


@dataclass(frozen=True, slots=True)
class TargetSums:
    """Sums over valid targets for the metrics; scalars without a graph.

    Args:
        loss: without label smoothing; of what has probabilities, -ln p(target) in nats.
        correct: how far the targets were hit, 0..1 each; nan where a target is no class.
        count: valid targets, as `target_count` counts them.
    """

    loss: Tensor
    correct: Tensor
    count: Tensor


def task_loss(
    name: str,
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    groups: tuple[int, ...] = (),
) -> LossSum:
    """The loss of a task, by the name in its `TaskSpec.loss`.

    Args:
        name: function of this module.
        logits: as the task's head gives them.
        targets: as the task's targets are collated.
        label_smoothing: probability shared by the wrong labels; nothing where there are none.
        groups: of several labels at once, scores of each.

    Raises:
        UnknownNameError: there is no such loss.
    """
    _check_known(name)
    if name == "grouped_cross_entropy":
        return grouped_cross_entropy(
            logits, targets, groups=groups, label_smoothing=label_smoothing
        )
    return _LOSSES[name](logits, targets, label_smoothing=label_smoothing)


def check_loss(name: str, feature: Feature, *, task: str) -> None:
    """Refuses a loss that does not fit a task's targets, before anything is computed.

    A target's own loss fits it; one class of several may be learned by `sigmoid_cross_entropy`
    too. Several classes at once have no other loss than that one.

    Raises:
        UnknownNameError: there is no such loss.
        LossError: it does not fit; names those that do.
    """
    _check_known(name)
    fitting = (feature.loss,)
    if feature.modality == "label":
        fitting += ("sigmoid_cross_entropy",)
    if name not in fitting:
        raise LossError(
            f"task {task}: loss {name!r} does not take {feature.modality} targets; "
            f"set loss to {' or '.join(map(repr, fitting))}"
        )


def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> LossSum:
    """Cross-entropy with smoothed labels, less its least value: a perfect model scores 0.

        q = 1 - s on the label, s / (V - 1) on each other one
        sum over valid targets of  H(q, p) - H(q)
        Szegedy et al., arXiv:1512.00567, Sec. 7, with the wrong labels sharing s alone

    Args:
        logits: (B, T, V) for sequences, (B, V) for classes, (B, Y, X, V) for masks.
        targets: (B, T) token ids, 0 where there is none; or (B, 1), (B,) or (B, Y, X) class ids,
            all valid.
        label_smoothing: s, the probability that the wrong labels share.
    """
    logits_NV, targets_N, valid_N = _rows(logits, targets)
    num_labels = logits_NV.shape[-1]
    log_p_NV = functional.log_softmax(logits_NV.float(), dim=-1)
    picked_N = log_p_NV.gather(1, targets_N[:, None]).squeeze(1)
    if label_smoothing == 0.0 or num_labels == 1:
        loss_N = -picked_N
    else:
        share = label_smoothing / (num_labels - 1)
        rest_N = log_p_NV.sum(dim=-1) - picked_N
        entropy = _entropy(1 - label_smoothing) + (num_labels - 1) * _entropy(share)
        loss_N = -(1 - label_smoothing) * picked_N - share * rest_N - entropy
    return LossSum(total=torch.where(valid_N, loss_N, 0.0).sum(), count=valid_N.sum())


def sigmoid_cross_entropy(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0
) -> LossSum:
    """Cross-entropy of each class by itself, summed over classes; counts examples.

        q = (1 - s) t + s / V
        sum over examples and classes of  H(q, sigmoid(x)) - H(q)
        the sigmoid loss of Dehghani et al., arXiv:2110.11403 (Scenic), less its least value

    Args:
        logits: (B, V).
        targets: (B, V) with 1 (or a share) where a class is there; or (B, 1) or (B,) class ids.
        label_smoothing: s.
    """
    losses_BV = sigmoid_losses(logits, targets, label_smoothing=label_smoothing)
    return LossSum(total=losses_BV.sum(), count=_count_rows(logits))


def sigmoid_losses(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """What `sigmoid_cross_entropy` sums, of its arguments: (B, V)."""
    logits_BV, targets_BV = logits.float(), _multi_hot(targets, like=logits)
    if label_smoothing:
        targets_BV = targets_BV * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    loss_BV = functional.binary_cross_entropy_with_logits(logits_BV, targets_BV, reduction="none")
    if label_smoothing:
        loss_BV = loss_BV - torch.special.entr(targets_BV) - torch.special.entr(1 - targets_BV)
    return loss_BV


def grouped_cross_entropy(
    logits: Tensor, targets: Tensor, *, groups: Sequence[int], label_smoothing: float = 0.0
) -> LossSum:
    """Cross-entropy of several labels at once: the mean over parts; counts examples.

    Args:
        logits: (B, V), the parts' scores one after another.
        targets: (B, K) class ids, counted from 0 in each part.
        groups: scores of each of the K parts; they sum to V.
        label_smoothing: as of `cross_entropy`, in each part.
    """
    assert sum(groups) == logits.shape[-1], "parts do not cover the scores"
    parts = zip(logits.split(list(groups), dim=-1), targets.unbind(-1), strict=True)
    totals = [cross_entropy(x, y, label_smoothing=label_smoothing).total for x, y in parts]
    return LossSum(total=torch.stack(totals).mean(), count=_count_rows(logits))


def squared_error(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> LossSum:
    """Squared differences summed over the values of an example; counts examples.

    Args:
        logits: (B, K), values as they are stored, 0..1.
        targets: (B, K).
        label_smoothing: not used; values have no wrong labels.
    """
    error_BK = logits.float() - targets.float()
    return LossSum(total=error_BK.square().sum(), count=_count_rows(logits))


_LOSSES: dict[str, Callable[..., LossSum]] = {
    loss.__name__: loss
    for loss in (cross_entropy, sigmoid_cross_entropy, grouped_cross_entropy, squared_error)
}


@torch.no_grad()
def target_sums(
    name: str, logits: Tensor, targets: Tensor, *, groups: tuple[int, ...] = ()
) -> TargetSums:
    """The sums that log-perplexity and shares of hits are made of; shapes as the loss takes them.

    A hit is the largest logit on the target, of every part for several labels; of several classes
    at once, the share of classes that are rightly said to be there or not.
    """
    loss = task_loss(name, logits, targets, groups=groups)
    return TargetSums(loss.total, _hits(name, logits, targets, groups=groups), loss.count)


def _hits(name: str, logits: Tensor, targets: Tensor, *, groups: tuple[int, ...]) -> Tensor:
    if name == "squared_error":
        return logits.new_full((), torch.nan)
    if name == "grouped_cross_entropy":
        best_BK = torch.stack([x.argmax(-1) for x in logits.split(list(groups), dim=-1)], dim=-1)
        return (best_BK == targets).all(-1).sum()
    if name == "sigmoid_cross_entropy" and targets.shape == logits.shape:
        return ((logits > 0) == (targets > 0.5)).float().mean(-1).sum()
    logits_NV, targets_N, valid_N = _rows(logits, targets)
    return ((logits_NV.argmax(dim=-1) == targets_N) & valid_N).sum()


def target_count(name: str, targets: Tensor | np.ndarray, *, is_sequence: bool) -> int:
    """Valid targets of a batch: what the loss counts, known before the forward pass.

    Args:
        name: the loss.
        targets: as they are collated.
        is_sequence: they are tokens, padded with 0.
    """
    if name != "cross_entropy":
        return targets.shape[0]
    return int((targets != PADDING).sum()) if is_sequence else math.prod(targets.shape)


def weight_decay_loss(parameters: Iterable[nn.Parameter], *, weight: float) -> Tensor:
    """Decay by the mean square of each matrix, so that a large one counts no more than a small.

    weight * sum over parameters with more than one axis of mean(w^2) / 2

    Each expert of a stack is a matrix of its own. A rank that holds some of them takes these for
    all, so that the mean over ranks is the sum over all experts, however they are shared.
    """
    decays = [
        getattr(parameter, "num_experts", 1) * parameter.float().square().mean() / 2
        for parameter in parameters
        if parameter.ndim > 1
    ]
    return weight * torch.stack(decays).sum()


def _check_known(name: str) -> None:
    if name not in _LOSSES:
        raise UnknownNameError("loss", name, tuple(_LOSSES))


def _multi_hot(targets: Tensor, *, like: Tensor) -> Tensor:
    """Targets as a share of each class, float (B, V): they are so, or ids of one class each."""
    if targets.shape == like.shape:
        return targets.float()
    return functional.one_hot(targets.reshape(-1).long(), like.shape[-1]).float()


def _count_rows(logits: Tensor) -> Tensor:
    return torch.tensor(logits.shape[0], device=logits.device)


def _rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One row for each target: logits (N, V), targets (N,) int64, valid (N,) bool."""
    targets_N = targets.reshape(-1).long()
    logits_NV = logits.reshape(-1, logits.shape[-1])
    valid_N = targets_N != PADDING if logits.ndim == 3 else torch.ones_like(targets_N).bool()
    return logits_NV, targets_N, valid_N


def _entropy(probability: float) -> float:
    return -probability * math.log(probability) if probability > 0 else 0.0
