"""Losses of tasks, mixup, and balancing between tasks.

Each loss returns a sum with its count, never a mean: ranks and micro-batches add both, then
divide once.

What a loss counts is known before the forward pass (`Loss.count_targets`), for a rank's share of a
step is divided by the count over all ranks. A `Loss` of a user's own file is used as one of these:

    @cross_entropy.variant(of=("label",))
    def focal(logits, targets):
        p_N = logits.softmax(-1).gather(1, targets.reshape(-1, 1).long())
        return -((1 - p_N) ** 2 * p_N.log()).sum()
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmtrain.layers.experts import expert_share
from mmtrain.models.config import Scores, TaskSpec
from pipelines.errors import MMTrainError
from pipelines.names import load_object
from pipelines.task import Task

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
        loss: without label smoothing.
        correct: how far the targets were hit, 0..1 each; nan where a target is no class.
        count: valid targets, as the loss counts them.
    """

    loss: Tensor
    correct: Tensor
    count: Tensor


def count_examples(targets: Tensor | np.ndarray, *, is_sequence: bool) -> int:
    """Examples, of whatever targets."""
    return targets.shape[0]


def count_classes(targets: Tensor | np.ndarray, *, is_sequence: bool) -> Any:
    """Class ids, all valid; of sequences the tokens that are not padding."""
    return (targets != PADDING).sum() if is_sequence else math.prod(targets.shape)


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss with all that depends on which one it is; called, it gives a `LossSum`.

    Args:
        function: (logits, targets) to the sum over valid targets. It is given `label_smoothing`
            too if it `smooths`, and `groups`, scores of each part, where targets have parts.
        of: modalities of targets that it takes, beside those whose own loss it is.
        count: (targets, is_sequence=) to the number of valid targets.
        hits: as `function`, to how far targets were hit, 0..1 each, summed; None: no classes.
        scores: what a head's scores are under it.
        likelihood: the loss that is -ln p(target) of these scores, in nats; None: itself, where
            the scores have probabilities.
        by_class: as `function`, to the loss of each class, (B, V), which it sums; tasks with such
            a loss can be divided into classes. None: it is not made of classes.
        smooths: whether label smoothing applies.
        mixes: whether the loss of examples blended by mixup is the losses' blend.
        variance_factor: of its part of a loss over a learned variance; 1/2 of squares.
    """

    function: Callable[..., Tensor]
    of: tuple[str, ...] = ()
    count: Callable[..., Any] = count_examples
    hits: Callable[..., Tensor] | None = None
    scores: Scores = "values"
    likelihood: "Loss | None" = None
    by_class: Callable[..., Tensor] | None = None
    smooths: bool = False
    mixes: bool = True
    variance_factor: float = 1.0

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        label_smoothing: float = 0.0,
        groups: tuple[int, ...] = (),
    ) -> LossSum:
        """The loss of a batch, of logits as the head gives them and targets as collated.

        Args:
            logits: (B, T, V) of tokens, (B, V) of classes, (B, Y, X, V) of masks.
            targets: as its function takes them.
            label_smoothing: probability that the wrong labels share; 0 where none can be.
            groups: of several labels at once, scores of each.
        """
        settings: dict[str, Any] = {"label_smoothing": label_smoothing} if self.smooths else {}
        total = self.function(logits, targets, **settings, **_parts(groups))
        count = self.count(targets, is_sequence=logits.ndim == 3)
        return LossSum(total, torch.as_tensor(count, device=logits.device))

    def variant(self, **changes: Any) -> "Callable[[Callable[..., Tensor]], Loss]":
        """Makes a function a loss of the same scores, counted and hit as here; see the module."""
        measured = (self.likelihood or self) if self.scores != "values" else None
        own = {"of": (), "smooths": False, "by_class": None, "likelihood": measured, **changes}
        return lambda function: replace(self, function=function, **own)

    def count_targets(self, targets: Tensor | np.ndarray, *, is_sequence: bool) -> int:
        """Valid targets of a batch, known before the forward pass.

        Args:
            targets: as they are collated.
            is_sequence: they are tokens, padded with 0.
        """
        return int(self.count(targets, is_sequence=is_sequence))

    @torch.no_grad()
    def measure(
        self, logits: Tensor, targets: Tensor, *, groups: tuple[int, ...] = ()
    ) -> TargetSums:
        """The sums that log-perplexity and shares of hits are made of; arguments as of a call."""
        loss = self(logits, targets, groups=groups)
        if self.hits is None:
            return TargetSums(loss.total, logits.new_full((), torch.nan), loss.count)
        hits = self.hits(logits, targets, **_parts(groups))
        return TargetSums(loss.total, hits, loss.count)


@functools.cache
def load_loss(name: str) -> Loss:
    """The loss of a name, or of `FILE.py:NAME`.

    Raises:
        UnknownNameError: there is no such loss; tells the nearest.
        OwnCodeError: the user's file is gone or fails, or it is no `Loss`.
    """
    return load_object(name, kind="loss", shipped=_SHIPPED, of=Loss)


def scores_of(spec: TaskSpec) -> Scores:
    """What the scores of a task's head are; bundles from before `scores` say it by the loss."""
    return spec.scores or load_loss(spec.loss).scores


def check_loss(task: Task) -> None:
    """Refuses a loss that does not fit a task, before anything is computed.

    Raises:
        UnknownNameError: there is no such loss.
        LossError: it does not fit the targets, names those that do; or it has no label smoothing
            or mixup, which the task asks for.
    """
    name, own, modality = task.loss or task.targets.loss, task.targets.loss, task.targets.modality
    loss = load_loss(name)
    if name != own and modality not in loss.of:
        fitting = [own, *(key for key, each in _SHIPPED.items() if modality in each.of)]
        known = " or ".join(map(repr, dict.fromkeys(fitting)))
        raise LossError(
            f"task {task.name}: loss {name!r} does not take {modality} targets; set loss to {known}"
        )
    for field, works in (("label_smoothing", loss.smooths), ("mixup", loss.mixes)):
        if getattr(task, field) and not works:
            raise LossError(f"task {task.name}: loss {name!r} has no {field}; set {field}=0")


def _most_likely(logits: Tensor, targets: Tensor) -> Tensor:
    """The largest score is on the target."""
    logits_NV, targets_N, valid_N = _rows(logits, targets)
    return ((logits_NV.argmax(dim=-1) == targets_N) & valid_N).sum()


@partial(Loss, count=count_classes, hits=_most_likely, scores="softmax", smooths=True)
def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
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
    return torch.where(valid_N, loss_N, 0.0).sum()


def sigmoid_losses(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """What `sigmoid_cross_entropy` sums, of its arguments: (B, V)."""
    logits_BV, targets_BV = logits.float(), _multi_hot(targets, like=logits)
    if label_smoothing:
        targets_BV = targets_BV * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    loss_BV = functional.binary_cross_entropy_with_logits(logits_BV, targets_BV, reduction="none")
    if label_smoothing:
        loss_BV = loss_BV - torch.special.entr(targets_BV) - torch.special.entr(1 - targets_BV)
    return loss_BV


def _rightly_said(logits: Tensor, targets: Tensor) -> Tensor:
    """Of several classes at once, the share that is rightly said to be there or not."""
    if targets.shape != logits.shape:
        return _most_likely(logits, targets)
    return ((logits > 0) == (targets > 0.5)).float().mean(-1).sum()


@partial(
    Loss,
    of=("label",),
    hits=_rightly_said,
    scores="sigmoid",
    by_class=sigmoid_losses,
    smooths=True,
)
def sigmoid_cross_entropy(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each class by itself, summed over classes; counts examples.

        q = (1 - s) t + s / V
        sum over examples and classes of  H(q, sigmoid(x)) - H(q)
        the sigmoid loss of Dehghani et al., arXiv:2110.11403 (Scenic), less its least value

    Args:
        logits: (B, V).
        targets: (B, V) with 1 (or a share) where a class is there; or (B, 1) or (B,) class ids.
        label_smoothing: s.
    """
    return sigmoid_losses(logits, targets, label_smoothing=label_smoothing).sum()


def _every_part(logits: Tensor, targets: Tensor, *, groups: Sequence[int]) -> Tensor:
    """The largest score of every part is on its target."""
    best_BK = torch.stack([x.argmax(-1) for x in logits.split(list(groups), dim=-1)], dim=-1)
    return (best_BK == targets).all(-1).sum()


@partial(Loss, hits=_every_part, scores="softmax", smooths=True)
def grouped_cross_entropy(
    logits: Tensor, targets: Tensor, *, groups: Sequence[int], label_smoothing: float = 0.0
) -> Tensor:
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
    return torch.stack(totals).mean()


@partial(Loss, variance_factor=0.5)
def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Squared differences summed over the values of an example; counts examples.

    Args:
        logits: (B, K), values as they are stored, 0..1.
        targets: (B, K).
    """
    return (logits.float() - targets.float()).square().sum()


_SHIPPED = {
    "cross_entropy": cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
    "grouped_cross_entropy": grouped_cross_entropy,
    "squared_error": squared_error,
}


def weight_decay_loss(parameters: Iterable[nn.Parameter], *, weight: float) -> Tensor:
    """Decay by the mean square of each matrix, so that a large one counts no more than a small.

    weight * sum over parameters with more than one axis of mean(w^2) / 2

    Each expert of a stack is a matrix of its own. A rank that holds some of them takes these for
    all, so that the mean over ranks is the sum over all experts, however they are shared.
    """
    decays = []
    for parameter in parameters:
        if parameter.ndim > 1:
            share = expert_share(parameter)
            count = share.num_experts if share else 1
            decays.append(count * parameter.float().square().mean() / 2)
    return weight * torch.stack(decays).sum()


def _parts(groups: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {"groups": groups} if groups else {}


def _multi_hot(targets: Tensor, *, like: Tensor) -> Tensor:
    """Targets as a share of each class, float (B, V): they are so, or ids of one class each."""
    if targets.shape == like.shape:
        return targets.float()
    return functional.one_hot(targets.reshape(-1).long(), like.shape[-1]).float()


def _rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One row for each target: logits (N, V), targets (N,) int64, valid (N,) bool."""
    targets_N = targets.reshape(-1).long()
    logits_NV = logits.reshape(-1, logits.shape[-1])
    valid_N = targets_N != PADDING if logits.ndim == 3 else torch.ones_like(targets_N).bool()
    return logits_NV, targets_N, valid_N


def _entropy(probability: float) -> float:
    return -probability * math.log(probability) if probability > 0 else 0.0
