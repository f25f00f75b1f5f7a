"""Clipping by the global norm of all gradients, and a step that is left out if it is not finite."""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmtrain.engines.optim import OptimizerConfig, OwnerAdamW, OwnerOptimizer, OwnerSGD


@torch.no_grad()
def clip_gradients(optimizer: torch.optim.Optimizer, *, max_norm: float) -> float:
    """Scales all gradients so that their global norm is at most `max_norm`; 0: only measures it.

    In groups that take part, a parameter without a gradient gets a zero one: the group steps whole.

        g <- g * min(1, c / (|g| + 1e-6))        Pascanu et al., arXiv:1211.5063, Algorithm 1

    Returns:
        The norm before, over all gradients.
    """
    stepped = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None and group["active"]:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                stepped.append(parameter)
    norm = nn.utils.get_total_norm([parameter.grad for parameter in stepped])
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(stepped, max_norm, norm)
    return float(norm)


@torch.no_grad()
def norm_over_ranks(gradients: Iterable[Tensor]) -> Tensor:
    """Global norm of gradients of which each rank holds a part and no two ranks the same one."""
    square = nn.utils.get_total_norm([gradient.float() for gradient in gradients]).square()
    if dist.get_world_size() > 1:
        dist.all_reduce(square)
    return square.sqrt()


def measure_norm_once(zero: Any) -> None:
    """Has the global norm measured over all groups in one go and with one all-reduce.

    DeepSpeed measures it tensor by tensor and reduces it group by group: with a group for each
    owner that was half of what ZeRO costs on a small model.
    """

    def measure() -> Tensor:
        groups = zero.averaged_gradients  # a dict in the order of first use: a resumed run differs
        return norm_over_ranks(gradient for number in sorted(groups) for gradient in groups[number])

    zero.scaled_global_norm = measure  # ZeRO 1 and 2
    zero._get_norm_groups = lambda: [measure()]  # ZeRO 3


class _Clipped(OwnerOptimizer):
    """For ZeRO 0, where DeepSpeed would not measure the norm: clips when it steps."""

    def __init__(self, groups: list[dict[str, Any]], *, config: OptimizerConfig) -> None:
        super().__init__(groups, config=config)  # type: ignore[call-arg]  # the next base's
        self._max_norm = config.clip_norm
        self.gradient_norm = 0.0

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures here
        """One step, unless a gradient is not finite."""
        self.gradient_norm = clip_gradients(self, max_norm=self._max_norm)
        if isfinite(self.gradient_norm):
            super().step()


class ClippedAdamW(_Clipped, OwnerAdamW):  # type: ignore[override]  # no closures here
    """AdamW that clips."""


class ClippedSGD(_Clipped, OwnerSGD):  # type: ignore[override]  # no closures here
    """SGD that clips."""


CLIPPED: Mapping[str, type[ClippedAdamW] | type[ClippedSGD]] = {
    "adamw": ClippedAdamW,
    "sgd": ClippedSGD,
}
