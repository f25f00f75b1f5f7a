"""One smaller network for all subtasks: the whole one pruned by the size of its weights.

`torch-pruning` finds which channels of a residual network go together and leaves out those of the
smallest norm, over all layers. It is the peer of masks that are learned for each subtask.
"""

import copy
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.flops import counting
from mmtrain.models.model import MultiTaskModel

SIDE = 16


class PlainResnet(nn.Module):
    """The residual network of a trained model as pixels (B, Y, X, C) to scores (B, V)."""

    def __init__(self, model: MultiTaskModel, task: str) -> None:
        super().__init__()
        spec: Any = model.task(task)
        self.stem: Any = model.stems[spec.input_net]
        self.first: nn.Module = model.body.stem
        self.blocks: nn.ModuleList = model.body.blocks
        self.project: Any = model.heads[task].project  # type: ignore[union-attr]

    def forward(self, pixels_BYXC: Tensor) -> Tensor:
        lengths_B = torch.full(pixels_BYXC.shape[:1], pixels_BYXC.shape[1])
        encoded = self.stem(pixels_BYXC, lengths_B)
        x_BYXC = encoded.values_BSD.unflatten(1, encoded.grid)
        x_BCYX = self.first(x_BYXC.permute(0, 3, 1, 2)).relu()
        for block in self.blocks:
            x_BCYX = block(x_BCYX)
        return self.project(x_BCYX.mean((2, 3)))


def pruned_by_magnitude(model: MultiTaskModel, task: str, *, share: float) -> PlainResnet:
    """The network with the channels of the smallest norm left out, at most `share` of operations.

    Group norms over all layers together, torch-pruning's usual choice; bisection over the ratio.
    """
    whole = operations(PlainResnet(model, task))
    few, many = 0.0, 1.0
    for _ in range(8):
        middle = (few + many) / 2
        if operations(_pruned(model, task, ratio=middle)) / whole <= share:
            many = middle
        else:
            few = middle
    return _pruned(model, task, ratio=many)


def _pruned(model: MultiTaskModel, task: str, *, ratio: float) -> PlainResnet:
    net = PlainResnet(copy.deepcopy(model), task).eval()
    pruner = torch_pruning.pruner.BasePruner(
        net,
        torch.zeros(1, SIDE, SIDE, 1),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        max_pruning_ratio=0.95,
        ignored_layers=[net.project],
    )
    pruner.step()
    return net


@torch.no_grad()
def operations(net: PlainResnet) -> int:
    """Of one picture."""
    net.eval()
    with counting() as counter:
        net(torch.zeros(1, SIDE, SIDE, 1))
    return counter.get_total_flops()


@torch.no_grad()
def recalibrate_plain(net: PlainResnet, batches: list[TaskInputs]) -> None:
    """Batch norms take the mean statistics of these batches."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative mean
    net.train()
    for batch in batches:
        net(batch.inputs)
    net.eval()
