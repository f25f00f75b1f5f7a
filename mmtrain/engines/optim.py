"""Optimizers: parameter groups by owner, AdamW and SGD that leave idle owners be.

A step trains one task, or a few; the parameters of the others must not move. Momentum moves what
has a zero gradient, so a group that took no part is not stepped at all: its weights and moments
stay bit for bit what they were. Learning rates are in `rates.py`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, overload

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmtrain.models.model import MASKS


class OptimizerConfig(BaseModel):
    """The optimizer and its learning rate. The defaults train the quickstart's model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["adamw", "sgd"] = Field(default="adamw", description="A class of optim.py.")
    learning_rate: float = Field(
        default=2e-3, gt=0, description="Largest learning rate of tasks that name none."
    )
    schedule: Literal["constant", "linear", "cosine", "exponential", "warm_cosine"] = Field(
        default="linear",
        description="How the rate falls after the warm-up; each is a function of rates.py.",
    )
    warmup_steps: int = Field(
        default=100, ge=0, description="Steps in which the rate rises, where no task names its own."
    )
    decay_start: float = Field(
        default=0.6, ge=0, le=1, description="Share of the run's steps after which the rate falls."
    )
    decay_factor: float = Field(
        default=0.9999955,
        gt=0,
        le=1,
        description="Of 'exponential': the rate's factor at each step.",
    )
    accumulated_rate: Literal["weighted", "single"] = Field(
        default="weighted",
        description="Of a step of several tasks: each task's gradient times its own learning rate, "
        "or all times learning_rate.",
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="Decay of the two moments.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of 'sgd'.")
    apply_stale_momentum: bool = Field(
        default=False,
        description="Step owners that took no part too, with zero gradients, as JAX code does.",
    )
    eps: float = Field(default=1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description="Decoupled decay (AdamW) of parameters with more than one axis.",
    )
    weight_decay_loss: float = Field(
        default=0.0,
        ge=0,
        description="Weight of losses.weight_decay_loss in the loss; 0: left out.",
    )
    clip_norm: float = Field(
        default=2.0, ge=0, description="Largest global gradient norm; 0: no clipping."
    )


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    owner_of: Callable[[str], str],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Trainable parameters in one group for each owner; two if some of them are to decay.

    Each group has "owner" beside the optimizer's own settings. Biases, norms and masks never decay.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            owner = owner_of(name)
            decays = weight_decay > 0 and parameter.ndim > 1 and owner != MASKS
            groups.setdefault((owner, decays), []).append(parameter)
    return [
        {"params": groups[key], "owner": key[0], "weight_decay": weight_decay if key[1] else 0.0}
        for key in sorted(groups)
    ]


class OwnerOptimizer(torch.optim.Optimizer):
    """What makes an optimizer of torch one of owners; to be named before that optimizer as a base.

    Inside DeepSpeed's ZeRO the groups hold flat partitions, and `step` is called once for each
    group or part of one; the marks that `take_part` leaves on the groups hold for all of them.
    """

    moments: ClassVar[tuple[str, ...]]  # names of the states beside "step"
    steps_idle: bool

    def mark_idle(self, *, config: OptimizerConfig) -> None:
        """Before the first `take_part` nobody does."""
        self.steps_idle = config.apply_stale_momentum
        for group in self.param_groups:
            group["active"] = False

    def take_part(
        self,
        learning_rates: Mapping[str, float],
        betas: tuple[float, float] | None = None,
        momentum: float | None = None,
    ) -> None:
        """Marks the groups of the owners named as taking part in the next step, at these rates.

        With `apply_stale_momentum` the others do too, at the mean of the rates. `betas` and
        `momentum` are those of this step; None: the config's.
        """
        idle_rate = sum(learning_rates.values()) / max(1, len(learning_rates))
        for group in self.param_groups:
            named = group["owner"] in learning_rates
            group["active"] = named or self.steps_idle
            if group["active"]:
                group["lr"] = learning_rates.get(group["owner"], idle_rate)
            if "betas" in group:
                group["betas"] = betas or self.defaults["betas"]
            if "momentum" in group:
                kept = self.defaults["momentum"] if momentum is None else momentum
                # of 0 torch would pass over the buffers, and a later step start from old ones
                group["momentum"], group["forgets"] = kept or 1.0, kept == 0

    def active_rates(self) -> dict[str, float]:
        """Learning rates of the owners that take part."""
        return {group["owner"]: group["lr"] for group in self.param_groups if group["active"]}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of the groups that take part; the others are not looked at."""
        everyone = self.param_groups
        self.param_groups = [group for group in everyone if group["active"]]
        try:
            return super().step(closure) if closure else super().step()
        finally:
            self.param_groups = everyone

    @torch.no_grad()
    def create_states(self, tensors: Iterable[Tensor]) -> None:
        """Zero moments for tensors that have none, so that they are there before the first step."""
        for tensor in tensors:
            if not self.state[tensor]:
                self.state[tensor]["step"] = torch.zeros((), device=tensor.device)
                for name in self.moments:
                    self.state[tensor][name] = torch.zeros_like(tensor)


class OwnerAdamW(OwnerOptimizer, torch.optim.AdamW):
    """AdamW over owners' groups that steps those that take part and no others."""

    moments = ("exp_avg", "exp_avg_sq")

    def __init__(self, groups: Sequence[dict[str, Any]], *, config: OptimizerConfig) -> None:
        super().__init__(
            groups,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=0.0,  # the groups say which of them decay
            fused=True,
        )
        self.mark_idle(config=config)


class OwnerSGD(OwnerOptimizer, torch.optim.SGD):
    """SGD with momentum over owners' groups that steps those that take part and no others.

    m <- mu m + g;  w <- w - lr m          the rate multiplies what is left of older steps too

    mu is the step's own, as its task has it. Decay adds weight_decay * w to g. Polyak's heavy ball
    as in PolyViT's code (arXiv:2111.12993).
    """

    moments = ("momentum_buffer",)

    def __init__(self, groups: Sequence[dict[str, Any]], *, config: OptimizerConfig) -> None:
        super().__init__(
            groups,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=0.0,  # the groups say which of them decay
            fused=True,
        )
        self.mark_idle(config=config)

    def _init_group(  # type: ignore[override]  # torch's own, by place
        self, group: dict[str, Any], *lists: list[Tensor]
    ) -> bool:
        """Counts the steps of what is about to be stepped; torch's own does not."""
        self.create_states(tensor for tensor in group["params"] if tensor.grad is not None)
        for tensor in group["params"]:
            if tensor.grad is not None:
                self.state[tensor]["step"] += 1
                if group["forgets"]:
                    self.state[tensor]["momentum_buffer"].zero_()
        return super()._init_group(group, *lists)  # type: ignore[misc]  # torch's, untyped


OPTIMIZERS: Mapping[str, type[OwnerAdamW] | type[OwnerSGD]] = {
    "adamw": OwnerAdamW,
    "sgd": OwnerSGD,
}
