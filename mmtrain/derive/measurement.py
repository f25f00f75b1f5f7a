"""How a network is measured, whole, masked or cut: its quality, what it costs, how long it takes.

`comparison.py` measures one cut in full, `tradeoff.py` looks at many unions.
"""

import statistics
import time
from collections.abc import Mapping, Sequence

import torch

from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.flops import Cost, count
from mmtrain.evaluate.measure import EvaluationConfig, measure, teacher_forced
from mmtrain.evaluate.metrics import load_metric
from mmtrain.models.model import MultiTaskModel
from mmtrain.predict.predictor import Predictor
from pipelines.shards import Example, Manifest

_REPEATS = 15


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
    return {name: float(load_metric(name)(facts)) for name in manifest.task.metrics}


def hit_share(
    predictor: Predictor, task: str, examples: Sequence[Example], *, batch_size: int = 32
) -> float:
    """Share of a task's targets that are hit, each given the true tokens before it.

    Returns:
        0 to 1; nan for targets that are numbers, which are not hit.
    """
    known = predictor.task(task)
    if known.targets.modality == "label" and known.spec.num_outputs == 1:
        return float(bool(examples))  # losses would read (B, 1) class ids as one bit a class
    hits, num_targets = 0.0, 0
    for start in range(0, len(examples), batch_size):
        sums = teacher_forced(predictor, task=task, examples=examples[start : start + batch_size])
        hits += float(sums.correct)
        num_targets += int(sums.count)
    return hits / max(1, num_targets)


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
        for name, of_model in times.items():
            medians[name] += statistics.median(of_model[1:])
    return medians


def _forward_ms(model: MultiTaskModel, batch: TaskInputs) -> float:
    _wait(batch)
    began = time.perf_counter()
    batch.forward(model)
    _wait(batch)
    return (time.perf_counter() - began) * 1e3


def _wait(batch: TaskInputs) -> None:
    """Until the device is done with all that it was given."""
    if batch.inputs.is_cuda:
        torch.cuda.synchronize(batch.inputs.device)
