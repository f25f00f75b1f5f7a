"""The trade-off of a model with masks: for unions of its subtasks, quality over cost of the network
that is cut down to them.

A look at the end of a run, on part of the validation split: the share of targets hit, the true
tokens before each one given. `mmtrain prune` measures one network in full.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmtrain.cut.pruner import Pruner
from mmtrain.cut.recalibrate import recalibrate
from mmtrain.cut.subset import Subset
from mmtrain.derive.measurement import cost_of, hit_share, latencies, task_inputs
from mmtrain.models.model import MultiTaskModel
from mmtrain.predict.predictor import Predictor
from pipelines.modalities import Feature
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


class Cuts:
    """Networks cut out of a model with masks, each measured on the same drawn examples.

    Args:
        predictor: the model.
        data_dir: folder of its corpora.
        limit: examples of a task.

    Raises:
        NoMasksError: the model was trained without masks.
        CorpusError: a corpus is not built.
    """

    def __init__(self, predictor: Predictor, *, data_dir: Path, limit: int = LIMIT) -> None:
        self._whole = predictor
        self._pruner = Pruner(predictor.bundle, model=predictor.model)
        self._train, self._validation = (
            {
                task: read_drawn(data_dir, task=task, split=split, limit=limit)
                for task in predictor.tasks
            }
            for split in ("train", "validation")
        )

    @property
    def subtasks(self) -> tuple[str, ...]:
        """The model's basis subtasks."""
        return self._pruner.bank.subtasks

    def tradeoff(self) -> dict[str, TradeoffPoint]:
        """Points of each basis subtask and of growing unions, by name, the smaller unions first."""
        return {
            "all" if len(union) == len(self.subtasks) else " + ".join(union): self.point(union)
            for union in growing_unions(self.subtasks)
        }

    def point(self, union: Sequence[str]) -> TradeoffPoint:
        """The network of a union, recalibrated, beside the whole one."""
        subset = self._pruner.subset(union)
        small = self._pruner.cut(subset)
        starts = range(0, _NUM_RECALIBRATION * _BATCH, _BATCH)
        batches = [
            task_inputs(self._whole, task, examples)
            for start in starts
            for task in subset.tasks
            if (examples := self._train[task][start : start + _BATCH])
        ]
        recalibrate(small, batches)
        costs = [task_inputs(self._whole, task, self._train[task][:1]) for task in subset.tasks]
        whole = self._pruner.uncut(subset, masks=self._pruner.whole_masks())
        return TradeoffPoint(
            subset.subtasks,
            units=self._pruner.masks(subset).kept_share(),
            operations=cost_of(small, costs).flops / cost_of(self._whole.model, costs).flops,
            score=self._score(small, subset),
            whole_score=self._score(whole, subset),
        )

    def latency_ms(self, union: Sequence[str]) -> float:
        """Median time of a pass of one example of each task, summed over tasks."""
        subset = self._pruner.subset(union)
        batches = [task_inputs(self._whole, t, self._validation[t][:1]) for t in subset.tasks]
        return latencies({"cut": self._pruner.cut(subset)}, batches)["cut"]

    def _score(self, model: MultiTaskModel, subset: Subset) -> float:
        """Share of targets that a network of the subset's scores hits, mean over tasks that have
        such a share, on the examples that have one of the subset's classes.
        """
        part = self._pruner.part(model, subset=subset)
        predictor = Predictor(part, model=model, device=self._pruner.device)
        shares: list[float] = []
        for task in subset.tasks:
            examples = self._validation[task]
            if task in subset.classes:
                feature = self._whole.task(task).targets
                examples = _narrowed(examples, feature, classes=subset.classes[task])
            shares.append(hit_share(predictor, task, examples, batch_size=_BATCH))
        return float(np.nanmean(shares))


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


def _narrowed(
    examples: Sequence[Example], feature: Feature, *, classes: Sequence[int]
) -> list[Example]:
    """The examples that have one of the classes, telling of these alone."""
    targets = [feature.narrowed(e.targets, classes=classes) for e in examples]
    return [
        Example(example.inputs, target)
        for example, target in zip(examples, targets, strict=True)
        if target is not None and (feature.modality == "label" or target.any())
    ]
