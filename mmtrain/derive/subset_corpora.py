"""What a subset of a model's subtasks is measured and recalibrated on, read from built corpora."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np

from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.subset import Subset
from mmtrain.evaluate.evaluate import as_trained
from mmtrain.predict.predictor import Predictor
from pipelines.narrow import narrow_split
from pipelines.shards import Example, Manifest, ShardReader, open_manifest, shard_folder
from pipelines.task import Split

_RECALIBRATION_ROWS = 64  # examples of a batch


class SubsetCorpora:
    """The corpora of a subset's tasks, checked against the whole model.

    Args:
        whole: the whole model.
        subset: of its subtasks.
        data_dir: folder of the corpora that it was trained on; read when something is asked for.
    """

    def __init__(self, whole: Predictor, *, subset: Subset, data_dir: Path) -> None:
        self._whole, self._subset, self._data_dir = whole, subset, data_dir

    @property
    def narrowed(self) -> tuple[str, ...]:
        """Tasks of which the subset leaves some classes out."""
        return tuple(
            task
            for task, ids in self._subset.classes.items()
            if len(ids) < (self._whole.task(task).spec.num_outputs or 0)
        )

    def split(self, task: str, *, split: Split) -> Manifest:
        """A split of a task, with all of its classes.

        Raises:
            CorpusError: it is not built, or is another than the model's.
        """
        manifest = open_manifest(shard_folder(self._data_dir, task=task, split=split))
        return as_trained(self._whole, manifest)

    def first(self, *, num_examples: int) -> dict[str, list[Example]]:
        """The first examples of each task's test split."""
        found = {}
        for task in self._subset.tasks:
            manifest = self.split(task, split="test")
            rows = np.arange(min(num_examples, manifest.num_examples))
            found[task] = ShardReader([manifest]).read(task, rows=rows)
        return found

    def unlabelled(self, *, num_batches: int) -> list[TaskInputs]:
        """Batches of training inputs, shared evenly over tasks: rows drawn by a fixed seed, of all
        classes, as in training.
        """
        tasks = self._subset.tasks
        turns = Counter(tasks[number % len(tasks)] for number in range(num_batches))
        batches: list[TaskInputs] = []
        for task, count in turns.items():
            feature = self._whole.task(task).inputs
            for examples in self._drawn(task, num_batches=count):
                arrays = [example.inputs for example in examples]
                batches.append(TaskInputs(task, *self._whole.to_batch(feature, arrays)))
        return batches

    def narrow(self, out: Path) -> Path | None:
        """Writes the examples of the classes that stay, with whatever else the subset's tasks need.

        Args:
            out: data folder to be; what it holds goes.

        Returns:
            `out`; None: no class is left out.

        Raises:
            CorpusError: a split is not built, or has no example of the classes.
        """
        shutil.rmtree(out, ignore_errors=True)
        if not self.narrowed:
            return None
        for task in self._subset.tasks:
            for split in self.split(task, split="train").task.source.splits:
                manifest = self.split(task, split=split)
                if task in self.narrowed:
                    narrow_split(manifest, classes=self._subset.classes[task], data_dir=out)
                else:
                    copy = shard_folder(out, task=task, split=split)
                    shutil.copytree(manifest.folder, copy)
        if (vocabularies := self._data_dir / "vocabularies").is_dir():
            shutil.copytree(vocabularies, out / vocabularies.name)
        return out

    def _drawn(self, task: str, *, num_batches: int) -> list[list[Example]]:
        manifest = self.split(task, split="train")
        count = min(manifest.num_examples, num_batches * _RECALIBRATION_ROWS)
        rows = np.random.default_rng(0).choice(manifest.num_examples, size=count, replace=False)
        reader = ShardReader([manifest])
        parts = np.array_split(rows, -(-count // _RECALIBRATION_ROWS))
        return [reader.read(task, rows=np.sort(part)) for part in parts]
