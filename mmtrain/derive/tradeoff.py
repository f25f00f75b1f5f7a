"""The trade-off of a model with masks: for unions of its subtasks, quality over cost of the network
that is cut down to them.

A look at the end of a run, on part of the validation split: the share of targets hit, the true
tokens before each one given. `mmtrain prune` measures one network in full.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmtrain.bundle import load_bundle
from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.pruner import Pruner
from mmtrain.cut.recalibrate import recalibrate
from mmtrain.cut.subset import Subset
from mmtrain.derive.comparison import cost_of, task_inputs
from mmtrain.losses import TargetSums, load_loss
from mmtrain.models.model import MultiTaskModel
from mmtrain.predict.predictor import Predictor
from pipelines.shards import Example, ShardReader, open_manifest, shard_folder
from pipelines.task import Split

TRADEOFF = "tradeoff.json"  # in a run's folder
LIMIT = 256  # examples of a task
_BATCH = 32
_NUM_RECALIBRATION = 8  # batches


@dataclass(frozen=True, slots=True)
class TradeoffPoint:
    """One union of subtasks.

    Args:
        subtasks: basis subtasks of the union.
        units: share of all units that it keeps.
        operations: of the cut network over those of the whole on the same inputs.
        score: share of targets that the cut network hits, mean over tasks.
        whole_score: the same of the whole network, with as many scores to choose from.
    """

    subtasks: tuple[str, ...]
    units: float
    operations: float
    score: float
    whole_score: float

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)


def measure_tradeoff(
    bundle: Path, *, data_dir: Path, limit: int = LIMIT
) -> dict[str, TradeoffPoint]:
    """Cuts a trained model down to each basis subtask and to growing unions, and measures them.

    Args:
        bundle: of a model with masks.
        data_dir: folder of its corpora.
        limit: examples of a task.

    Returns:
        Points by name of the union, the smaller unions first.

    Raises:
        NoMasksError: the model was trained without masks.
        CorpusError: a corpus is not built.
    """
    predictor = Predictor(load_bundle(bundle))
    pruner = Pruner(predictor.bundle, model=predictor.model)
    held: dict[Split, dict[str, list[Example]]] = {
        split: {
            task: read_drawn(data_dir, task=task, split=split, limit=limit)
            for task in predictor.tasks
        }
        for split in ("train", "validation")
    }
    points = {}
    for union in growing_unions(pruner.bank.subtasks):
        subset = pruner.subset(union)
        name = "all" if len(union) == len(pruner.bank.subtasks) else " + ".join(union)
        points[name] = _point(predictor, pruner, subset, held=held)
    return points


def growing_unions(subtasks: Sequence[str]) -> list[tuple[str, ...]]:
    """Each subtask alone, then the first two, the first three, and so on to all of them."""
    alone = [(name,) for name in subtasks]
    return alone + [tuple(subtasks[:size]) for size in range(2, len(subtasks) + 1)]


def read_drawn(data_dir: Path, *, task: str, split: Split, limit: int) -> list[Example]:
    """Examples of a split by a fixed seed: corpora are sorted, and statistics of batches of one
    class are another network's.
    """
    manifest = open_manifest(shard_folder(data_dir, task=task, split=split))
    rows = np.random.default_rng(0).permutation(manifest.num_examples)[:limit]
    return ShardReader([manifest]).read(task, rows=rows)


def _point(
    predictor: Predictor,
    pruner: Pruner,
    subset: Subset,
    *,
    held: Mapping[Split, Mapping[str, Sequence[Example]]],
) -> TradeoffPoint:
    small = pruner.cut(subset).to(predictor.device)
    unlabelled = [
        task_inputs(predictor, task, held["train"][task][start : start + _BATCH])
        for start in range(0, _NUM_RECALIBRATION * _BATCH, _BATCH)
        for task in subset.tasks
        if held["train"][task][start:]
    ]
    recalibrate(small, unlabelled, num_batches=len(unlabelled))
    costs = [task_inputs(predictor, task, held["train"][task][:1]) for task in subset.tasks]
    cut_cost, whole_cost = cost_of(small, costs), cost_of(predictor.model, costs)
    scores = np.array(
        [_hits(predictor, small, subset, task, held["validation"][task]) for task in subset.tasks]
    )
    score, whole_score = np.nanmean(scores, axis=0).tolist()
    return TradeoffPoint(
        subset.subtasks,
        units=pruner.masks(subset).kept_share(),
        operations=cut_cost.flops / whole_cost.flops,
        score=score,
        whole_score=whole_score,
    )


def _hits(
    predictor: Predictor,
    small: MultiTaskModel,
    subset: Subset,
    task: str,
    examples: Sequence[Example],
) -> tuple[float, float]:
    """Share of a task's targets that the cut network hits, and the whole; nan: it has no hits.

    Both choose among the subset's classes, on the examples that have one of them.
    """
    classes = subset.classes.get(task)
    if classes is not None:
        examples = [example for example in examples if _within(example.targets, classes)]
    hits, count = np.zeros(2), 0
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        inputs = task_inputs(predictor, task, batch)
        known = predictor.task(task)
        targets, _ = predictor.to_batch(known.targets, [example.targets for example in batch])
        targets = targets if classes is None else _narrowed(targets, classes)
        own = _target_sums(small, inputs, targets, classes=None)
        whole = _target_sums(predictor.model, inputs, targets, classes=classes)
        hits += (float(own.correct), float(whole.correct))
        count += int(own.count)
    share = hits / max(1, count)
    return float(share[0]), float(share[1])


@torch.inference_mode()
def _target_sums(
    model: MultiTaskModel, inputs: TaskInputs, targets: Tensor, *, classes: Sequence[int] | None
) -> TargetSums:
    """Of a model's answers; `classes` are those of its scores that count."""
    spec = model.task(inputs.task)
    outputs = model(
        task=inputs.task,
        inputs=inputs.inputs,
        input_lengths=inputs.input_lengths,
        targets=inputs.targets,
    )
    logits = outputs.logits if classes is None else outputs.logits[:, list(classes)]
    return load_loss(spec.loss).measure(logits, targets, groups=spec.output_groups)


def _is_one_class(targets: np.ndarray | Tensor) -> bool:
    return targets.shape[-1] == 1


def _within(target: np.ndarray, classes: Sequence[int]) -> bool:
    """Whether an example has one of the classes: its own, or of several at once any."""
    if _is_one_class(target):
        return int(target[0]) in classes
    return bool(target[list(classes)].any())


def _narrowed(targets: Tensor, classes: Sequence[int]) -> Tensor:
    """Targets (B, V) of these classes alone, or class ids (B,) counted anew."""
    if not _is_one_class(targets):
        return targets[:, list(classes)]
    places = {number: place for place, number in enumerate(classes)}
    numbers = [places[number] for number in targets.flatten().tolist()]
    return torch.tensor(numbers, device=targets.device)
