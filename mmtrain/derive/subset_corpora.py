"""What a subset of a model's subtasks is measured and recalibrated on, read from built corpora."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np

from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.subset import Subset
from mmtrain.derive.measurement import task_inputs
from mmtrain.evaluate.evaluate import as_trained
from mmtrain.predict.predictor import Predictor
from pipelines.narrow import narrow_split
from pipelines.shards import Manifest, ShardReader, open_manifest, shard_folder
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
        self._narrowed = {
            task: ids
            for task, ids in subset.classes.items()
            if len(ids) < (whole.task(task).spec.num_outputs or 0)
        }

    def split(self, task: str, *, split: Split) -> Manifest:
        """A split of a task, with all of its classes.

        Raises:
            CorpusError: it is not built, or is another than the model's.
        """
        manifest = open_manifest(shard_folder(self._data_dir, task=task, split=split))
        return as_trained(self._whole, manifest)

    def first(self) -> list[TaskInputs]:
        """The first example of each task's test split."""
        manifests = {task: self.split(task, split="test") for task in self._subset.tasks}
        return [
            task_inputs(
                self._whole, task, ShardReader([manifest]).read(task, rows=np.arange(1))
            )
            for task, manifest in manifests.items()
        ]  # fmt: skip

    def test(self, data_dir: Path) -> dict[str, Manifest]:
        """Each task's test split in a data folder, read as the whole model reads it."""
        folders = {
            task: shard_folder(data_dir, task=task, split="test") for task in self._subset.tasks
        }
        return {
            task: open_manifest(folder).with_inputs(self._whole.task(task).inputs)
            for task, folder in folders.items()
        }

    def unlabelled(self, *, num_batches: int) -> list[TaskInputs]:
        """Batches of training inputs, shared evenly over tasks: rows drawn by a fixed seed, of all
        classes, as in training.
        """
        tasks = self._subset.tasks
        turns = Counter(tasks[number % len(tasks)] for number in range(num_batches))
        batches: list[TaskInputs] = []
        for task, turn in turns.items():
            manifest = self.split(task, split="train")
            feature, reader = self._whole.task(task).inputs, ShardReader([manifest])
            size = min(manifest.num_examples, turn * _RECALIBRATION_ROWS)
            rows = np.random.default_rng(0).choice(manifest.num_examples, size=size, replace=False)
            for part in np.array_split(rows, -(-size // _RECALIBRATION_ROWS)):
                arrays = [example.inputs for example in reader.read(task, rows=np.sort(part))]
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
        if not self._narrowed:
            return None
        for task in self._subset.tasks:
            for split in self.split(task, split="train").task.source.splits:
                manifest = self.split(task, split=split)
                if task in self._narrowed:
                    narrow_split(manifest, classes=self._narrowed[task], data_dir=out)
                else:
                    copy = shard_folder(out, task=task, split=split)
                    shutil.copytree(manifest.folder, copy)
        if (vocabularies := self._data_dir / "vocabularies").is_dir():
            shutil.copytree(vocabularies, out / vocabularies.name)
        return out
