"""Comparison of a cut model with the whole one and with masks alone: quality, cost, latency.

All three answer the same examples with the same choice of scores, so that they differ in nothing
but units. The whole model has the masks of all subtasks, as it was trained; masks alone have the
subset's, and cut nothing.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.flops import Cost, count
from mmtrain.cut.pruner import Pruner
from mmtrain.cut.recalibrate import recalibrate
from mmtrain.cut.subset import Subset
from mmtrain.evaluate.measure import EvaluationConfig, measure, read_examples
from mmtrain.evaluate.metrics import load_metric
from mmtrain.masks.banks import SubtaskMasks
from mmtrain.models.model import MultiTaskModel
from mmtrain.predict.predictor import Predictor
from pipelines.shards import Example, Manifest

BATCH_SIZES = (1, 32)  # that latency is measured at
_REPEATS = 15


@dataclass(frozen=True, slots=True)
class Measured:
    """One of the models that are compared.

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

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)


def compare(
    pruner: Pruner,
    subset: Subset,
    *,
    model: MultiTaskModel,
    masks: SubtaskMasks,
    batches: Sequence[TaskInputs],
    manifests: Mapping[str, Manifest],
    limit: int | None = None,
) -> tuple[Measured, ...]:
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
    for other in (whole, masked):
        recalibrate_on(other, batches)
    models = {"whole": whole, "masks alone": masked, "cut": model}
    predictors = {
        name: Predictor(pruner.part(one, subset=subset), model=one, device=pruner.device)
        for name, one in models.items()
    }
    examples = {task: list(read_examples(m, limit=limit)) for task, m in manifests.items()}
    costs = _costs(pruner, predictors, examples=examples)
    times = _times(pruner, predictors, examples=examples, subset=subset)
    return tuple(
        Measured(
            name=name,
            scores={
                task: scores(predictor, manifest, examples=examples[task])
                for task, manifest in manifests.items()
            },
            parameters=costs[name].parameters,
            flops=costs[name].flops,
            bytes=costs[name].bytes,
            latency_ms=times[name],
        )
        for name, predictor in predictors.items()
    )


def recalibrate_on(model: MultiTaskModel, batches: Sequence[TaskInputs]) -> None:
    """Batch norms take the statistics of these batches; with none they stay as they are."""
    if batches:
        recalibrate(model, batches, num_batches=len(batches))


def _costs(
    pruner: Pruner,
    predictors: Mapping[str, Predictor],
    *,
    examples: Mapping[str, Sequence[Example]],
) -> dict[str, Cost]:
    """Of one example of each task; masks alone save nothing."""
    largest = max(BATCH_SIZES)
    batches = _batches(predictors["cut"], examples, batch_size=largest)
    whole = cost_of(pruner.model, batches)
    return {"whole": whole, "masks alone": whole, "cut": cost_of(predictors["cut"].model, batches)}


def _times(
    pruner: Pruner,
    predictors: Mapping[str, Predictor],
    *,
    examples: Mapping[str, Sequence[Example]],
    subset: Subset,
) -> dict[str, dict[int, float]]:
    """Milliseconds by model and batch size; the whole model without any mask at its gates."""
    models = {name: predictor.model for name, predictor in predictors.items()}
    models["whole"] = pruner.uncut(subset)
    times: dict[str, dict[int, float]] = {name: {} for name in models}
    for size in BATCH_SIZES:
        found = latencies(models, _batches(predictors["cut"], examples, batch_size=size))
        for name, milliseconds in found.items():
            times[name][size] = milliseconds
    return times


def _batches(
    predictor: Predictor, examples: Mapping[str, Sequence[Example]], *, batch_size: int
) -> list[TaskInputs]:
    return [task_inputs(predictor, task, some[:batch_size]) for task, some in examples.items()]


def task_inputs(predictor: Predictor, task: str, examples: Sequence[Example]) -> TaskInputs:
    """A batch of a task as the model takes it; of decoded targets the true tokens too."""
    known = predictor.task(task)
    inputs, lengths = predictor.to_batch(known.inputs, [example.inputs for example in examples])
    targets = None
    if known.spec.num_outputs is None:
        targets, _ = predictor.to_batch(known.targets, [example.targets for example in examples])
    return TaskInputs(task, inputs, lengths, targets)


def scores(
    predictor: Predictor, manifest: Manifest, *, examples: Sequence[Example]
) -> dict[str, float]:
    """All metrics of a task on examples of a split, by name; the task's own first."""
    _, facts = measure(predictor, manifest.task, examples=examples, config=EvaluationConfig())
    metrics = [load_metric(name) for name in manifest.task.metrics]
    return {metric.name: float(metric(facts)) for metric in metrics}


def cost_of(model: MultiTaskModel, batches: Sequence[TaskInputs]) -> Cost:
    """Parameters, bytes, and operations for one example of each task."""
    total = count(model, batches)
    flops = sum(count(model, [batch]).flops / len(batch.inputs) for batch in batches)
    return Cost(total.parameters, round(flops), total.bytes)


@torch.inference_mode()
def latencies(
    models: Mapping[str, MultiTaskModel], batches: Sequence[TaskInputs]
) -> dict[str, float]:
    """Median milliseconds of a forward pass of each model, models taking turns; summed over tasks.

    The first round warms up.
    """
    medians = dict.fromkeys(models, 0.0)
    for batch in batches:
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(_REPEATS + 1):
            for name, model in models.items():
                times[name].append(_forward_ms(model, batch))
        for name, seen in times.items():
            medians[name] += statistics.median(seen[1:])
    return medians


def _forward_ms(model: MultiTaskModel, batch: TaskInputs) -> float:
    _wait(batch)
    began = time.perf_counter()
    model(
        task=batch.task,
        inputs=batch.inputs,
        input_lengths=batch.input_lengths,
        targets=batch.targets,
    )
    _wait(batch)
    return (time.perf_counter() - began) * 1e3


def _wait(batch: TaskInputs) -> None:
    """Until the device is done with all that it was given."""
    if batch.inputs.is_cuda:
        torch.cuda.synchronize(batch.inputs.device)
