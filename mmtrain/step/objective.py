"""The objective: what a micro-batch adds to the loss of its step, as a rank's share of a sum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mmtrain.engines import Engine
from mmtrain.engines.ranks import Ranks, sum_over_ranks, to_tensors
from mmtrain.losses import Loss, LossSum, load_loss, weight_decay_loss
from mmtrain.losses.balancing import uncertain_loss
from mmtrain.losses.mixup import mix_inputs, mixed_loss
from mmtrain.masks.objective import subtask_loss
from mmtrain.models.model import MultiTaskModel, Outputs
from mmtrain.step.passes import Pass
from mmtrain.step.rates import StepRates
from pipelines.batch import Batch
from pipelines.task import Task


@dataclass(frozen=True, slots=True)
class MicroLoss:
    """What a pass of a micro-batch gave.

    Args:
        share: this rank's share of the step's loss; shares of ranks, micro-batches and passes sum
            to it.
        loss: the task's loss alone, summed over targets; of several passes, each has its part.
        outputs: of the model.
    """

    share: Tensor
    loss: LossSum
    outputs: Outputs


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a step, as the sum over ranks, micro-batches and passes of their shares.

        L = sum over tasks of  scale * (weight * sum of loss / targets + L_moe + L_decay)

    The last two are means over ranks and micro-batches; MultiModel, arXiv:1706.05137, and its code.
    With masks it is a weighted mean over passes, each with the price of its units beside the last.

    Args:
        tasks: the run's, by name.
        ranks: this one among all that train.
        seed: of mixup's draws.
        accumulation: micro-batches of a rank in a step of one task.
        weight_decay: factor of L_decay; 0: there is none.
        balancing: as in the recipe; "uncertainty" weighs tasks by variances that the model learns.
    """

    tasks: Mapping[str, Task]
    ranks: Ranks
    seed: int
    accumulation: int
    weight_decay: float
    balancing: str

    def count_targets(self, micros: Sequence[Batch]) -> dict[str, Tensor]:
        """Targets of a step by task, over all ranks and micro-batches: one collective a step."""
        counts = dict.fromkeys((micro.task for micro in micros), 0)
        for micro in micros:
            task = self.tasks[micro.task]
            counts[micro.task] += _loss_of(task).count_targets(
                micro.targets, is_sequence=task.targets.num_outputs is None
            )
        summed = sum_over_ranks(torch.tensor(list(counts.values()), device=self.ranks.device))
        return dict(zip(counts, summed.clamp(min=1), strict=True))

    def micro_loss(
        self,
        engine: Engine,
        micro: Batch,
        *,
        num_targets: Mapping[str, Tensor],
        rates: StepRates,
        masked: Pass,
    ) -> MicroLoss:
        """A micro-batch through the model and its task's loss.

        Args:
            engine: whose model computes.
            micro: this rank's micro-batch.
            num_targets: of the step by task, over all micro-batches and ranks.
            rates: of the step; they have the scale.
            masked: the pass, for which the model has its masks.
        """
        task, tensors = self.tasks[micro.task], to_tensors(micro, self.ranks.device)
        mix = mix_inputs(tensors, alpha=task.mixup, key=(self.seed, micro.step, micro.task))
        outputs = engine.forward(task=micro.task, **mix.tensors)
        loss = mixed_loss(lambda targets: _loss(task, outputs.logits, targets, masked=masked), mix)
        model = cast(MultiTaskModel, engine.model)
        beside = outputs.auxiliary_loss
        if masked.price is not None:
            beside = beside + masked.price
        if self.weight_decay:
            trained = model.trained_by(micro.task)
            beside = beside + weight_decay_loss(trained, weight=self.weight_decay)
        num_parts = self.accumulation * self.ranks.world_size
        own = task.loss_weight * loss.total / num_targets[micro.task]
        if self.balancing == "uncertainty":
            own = uncertain_loss(own, model=model, task=micro.task, parts=num_parts)
        share = masked.share * rates.loss_scales[micro.task] * (own + beside / num_parts)
        return MicroLoss(share, _part(loss, masked.part), outputs)


def _loss(task: Task, logits: Tensor, targets: Tensor, *, masked: Pass) -> LossSum:
    """The task's loss, or where its classes are divided, that within the pass's classes."""
    loss, smoothing = _loss_of(task), task.label_smoothing
    if masked.classes is not None:
        return subtask_loss(
            logits,
            targets,
            classes=masked.classes,
            beta=masked.beta,
            label_smoothing=smoothing,
            loss=loss,
        )
    groups = task.targets.output_groups
    return loss(logits, targets, label_smoothing=smoothing, groups=groups)


def _loss_of(task: Task) -> Loss:
    return load_loss(task.loss or task.targets.loss)


def _part(loss: LossSum, part: float) -> LossSum:
    return loss if part == 1 else LossSum(loss.total * part, loss.count * part)
