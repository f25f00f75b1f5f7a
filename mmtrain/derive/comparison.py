"""Comparison of a cut model with the whole one and with masks alone: quality, cost, latency.

All three answer the same examples with the same choice of scores, so that they differ in nothing
but units. The whole model has the masks of all subtasks, as it was trained; masks alone have the
subset's, and cut nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.pruner import Pruner
from mmtrain.cut.recalibrate import recalibrate
from mmtrain.cut.subset import Subset
from mmtrain.derive.measurement import cost_of, latencies, scores, task_inputs
from mmtrain.evaluate.measure import read_examples
from mmtrain.masks.banks import SubtaskMasks
from mmtrain.models.model import MultiTaskModel
from mmtrain.predict.predictor import Predictor
from pipelines.shards import Manifest

BATCH_SIZES = (1, 32)  # that latency is measured at


@dataclass(frozen=True, slots=True)
class ComparedNetwork:
    """One of the networks that are compared.

    Args:
        name: "whole", "masks alone" or "cut".
        scores: by task, its metrics' values on the subset.
        parameters: weights.
        flops: of one forward pass for one example of each task; a text's tokens are given.
        bytes: of weights and buffers.
        latency_ms: median time of such a pass, by examples in a batch; over tasks the sum.
    """

    name: str
    scores: Mapping[str, Mapping[str, float]]
    parameters: int
    flops: float
    bytes: int
    latency_ms: Mapping[int, float]


def compare(
    pruner: Pruner,
    subset: Subset,
    *,
    model: MultiTaskModel,
    masks: SubtaskMasks,
    batches: Sequence[TaskInputs],
    manifests: Mapping[str, Manifest],
    limit: int | None = None,
) -> tuple[ComparedNetwork, ...]:
    """The whole model, masks alone, and the cut model.

    Args:
        pruner: of the whole model.
        subset: what was cut.
        model: the cut model, recalibrated on `batches`.
        masks: what it was cut by.
        batches: the other two are recalibrated on them too; none: they are not.
        manifests: of each task the split to measure on, with the subset's classes alone.
        limit: examples of a split at most; None: all.
    """
    whole = pruner.uncut(subset, masks=pruner.whole_masks())
    masked = pruner.uncut(subset, masks=masks)
    if batches:
        recalibrate(whole, batches)
        recalibrate(masked, batches)
    networks = {"whole": whole, "masks alone": masked, "cut": model}
    predictors = {
        name: Predictor(pruner.part(one, subset=subset), model=one, device=pruner.device)
        for name, one in networks.items()
    }
    examples = {task: list(read_examples(m, limit=limit)) for task, m in manifests.items()}
    sized = {
        size: [task_inputs(predictors["cut"], name, some[:size]) for name, some in examples.items()]
        for size in BATCH_SIZES
    }
    without_masks = pruner.uncut(subset)  # gates multiply nothing: as fast as a model gets whole
    times = {
        size: latencies({**networks, "whole": without_masks}, some) for size, some in sized.items()
    }
    whole_cost = cost_of(pruner.model, sized[max(BATCH_SIZES)])  # masks alone save nothing
    cut_cost = cost_of(model, sized[max(BATCH_SIZES)])
    return tuple(
        ComparedNetwork(
            name=name,
            scores={
                task: scores(predictor, manifest, examples=examples[task])
                for task, manifest in manifests.items()
            },
            **asdict(cut_cost if name == "cut" else whole_cost),
            latency_ms={size: of_size[name] for size, of_size in times.items()},
        )
        for name, predictor in predictors.items()
    )
