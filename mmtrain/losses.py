"""Losses. Each returns a sum with its count, never a mean: ranks and micro-batches add both, then
divide once.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.errors import UnknownNameError

PADDING = 0


@dataclass(frozen=True, slots=True)
class LossSum:
    """Loss summed over valid targets; ranks add totals and counts, then divide once."""

    total: Tensor
    count: Tensor


@dataclass(frozen=True, slots=True)
class TokenSums:
    """Sums over valid targets for the metrics; scalars without a graph.

    Args:
        nll: -ln p(target), nats, without label smoothing.
        correct: targets that have the largest logit.
        count: valid targets.
    """

    nll: Tensor
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
        label_smoothing: probability shared by the wrong labels.
        groups: of several labels at once, scores of each.

    Raises:
        UnknownNameError: there is no such loss.
    """
    known = {loss.__name__: loss for loss in (cross_entropy,)}
    if name not in known:
        raise UnknownNameError("loss", name, tuple(known))
    return known[name](logits, targets, label_smoothing=label_smoothing)


def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> LossSum:
    """Cross-entropy with smoothed labels, less its least value: a perfect model scores 0.

        q = 1 - s on the label, s / (V - 1) on each other one
        sum over valid targets of  H(q, p) - H(q)
        Szegedy et al., arXiv:1512.00567, Sec. 7, with the wrong labels sharing s alone

    Args:
        logits: (B, T, V) for sequences, (B, V) for classes.
        targets: (B, T) token ids, 0 where there is none; or (B, 1) or (B,) class ids, all valid.
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


@torch.no_grad()
def token_sums(logits: Tensor, targets: Tensor) -> TokenSums:
    """The sums that log-perplexity and token accuracy are made of; shapes as `cross_entropy`."""
    logits_NV, targets_N, valid_N = _rows(logits, targets)
    nll_N = functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")
    hit_N = (logits_NV.argmax(dim=-1) == targets_N) & valid_N
    nll = torch.where(valid_N, nll_N, 0.0).sum()
    return TokenSums(nll=nll, correct=hit_N.sum(), count=valid_N.sum())


def target_count(targets: Tensor, *, is_sequence: bool) -> int:
    """Valid targets of a batch: what `cross_entropy` counts, known before the forward pass."""
    return int((targets != PADDING).sum()) if is_sequence else targets.shape[0]


def weight_decay_loss(parameters: Iterable[nn.Parameter], *, weight: float) -> Tensor:
    """Decay by the mean square of each matrix, so that a large one counts no more than a small.

    weight * sum over parameters with more than one axis of mean(w^2) / 2
    """
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    return weight * torch.stack([matrix.float().square().mean() / 2 for matrix in matrices]).sum()


def _rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One row for each target: logits (N, V), targets (N,) int64, valid (N,) bool."""
    targets_N = targets.reshape(-1).long()
    logits_NV = logits.reshape(-1, logits.shape[-1])
    valid_N = targets_N != PADDING if logits.ndim == 3 else torch.ones_like(targets_N).bool()
    return logits_NV, targets_N, valid_N


def _entropy(probability: float) -> float:
    return -probability * math.log(probability) if probability > 0 else 0.0
