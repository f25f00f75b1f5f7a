"""Clipping by the global norm of all gradients, and a step that is left out if it is not finite."""

from math import isfinite
from typing import Any

import torch
from torch import nn

from mmtrain.engines.optim import OptimizerConfig, OwnerOptimizer


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


class ClippedOptimizer(OwnerOptimizer):
    """For ZeRO 0, where DeepSpeed would not measure the norm: clips when it steps."""

    def __init__(self, groups: list[dict[str, Any]], *, config: OptimizerConfig) -> None:
        super().__init__(groups, config=config)
        self._max_norm = config.clip_norm
        self.gradient_norm = 0.0

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures here
        """One step, unless a gradient is not finite."""
        self.gradient_norm = clip_gradients(self, max_norm=self._max_norm)
        if isfinite(self.gradient_norm):
            super().step()
