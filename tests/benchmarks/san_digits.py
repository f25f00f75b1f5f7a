"""The digits' test split and the unions of their subtasks, for the study of cut networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.pruner import Pruner
from mmtrain.cut.slicing import cut
from mmtrain.cut.subset import Subset
from mmtrain.evaluate.measure import read_examples
from mmtrain.masks.banks import SubtaskMasks
from mmtrain.models.model import MultiTaskModel
from mmtrain.predict.predictor import Predictor
from pipelines.shards import open_manifest, shard_folder
from tests.benchmarks.static_pruning import PlainResnet

DIGITS = "small_digits"


def unions(subtasks: Sequence[str]) -> list[tuple[str, ...]]:
    """The unions of each size that follow one another around the circle; of all, one."""
    count = len(subtasks)
    found = [
        tuple(subtasks[(start + step) % count] for step in range(size))
        for size in range(1, count)
        for start in range(count)
    ]
    return [*found, tuple(subtasks)]


@dataclass(frozen=True, slots=True)
class Pictures:
    """A test split of pictures of one class each."""

    inputs: TaskInputs
    labels_B: torch.Tensor

    @classmethod
    def read(cls, reader: Predictor, *, data: Path) -> "Pictures":
        """All of the test split of the digits."""
        manifest = open_manifest(shard_folder(data, task=DIGITS, split="test"))
        examples = list(read_examples(manifest, limit=None))
        arrays = [example.inputs for example in examples]
        inputs = TaskInputs(DIGITS, *reader.to_batch(reader.task(DIGITS).inputs, arrays))
        return cls(inputs, torch.tensor([int(example.targets[0]) for example in examples]))

    def accuracy(self, logits_BV: torch.Tensor, classes: Sequence[int]) -> float:
        """Percent of the examples of these classes that get the largest of their scores.

        `logits_BV` are of all examples, for these classes or for all.
        """
        if logits_BV.shape[1] > len(classes):
            logits_BV = logits_BV[:, list(classes)]
        rows = torch.isin(self.labels_B, torch.tensor(list(classes)))
        said = torch.tensor(list(classes))[logits_BV[rows].argmax(1)]
        return 100 * float((said == self.labels_B[rows]).float().mean())

    @torch.inference_mode()
    def logits(self, model: MultiTaskModel) -> torch.Tensor:
        """(B, V) of all examples."""
        return self.inputs.forward(model).logits


def cut_by_chance(
    pruner: Pruner, subset: Subset, masks: SubtaskMasks, *, seed: int
) -> MultiTaskModel:
    """The network with as many units of each group as the masks keep, drawn by chance."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: kept[torch.randperm(len(kept), generator=generator)]
        for name, kept in masks.kept.items()
    }
    scale = {gate: values.detach() for gate, values in masks.scale.items()}
    return cut(pruner.model, drawn, scale=scale, tasks=subset.tasks, outputs=subset.classes)


@torch.inference_mode()
def plain_logits(net: PlainResnet, pictures: Pictures) -> torch.Tensor:
    """(B, V) of all examples."""
    net.eval()
    return net(pictures.inputs.inputs)
