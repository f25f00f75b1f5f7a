"""Optimization: learning rates, parameter groups by owner, and an AdamW that leaves idle owners be.

A step trains one task, or a few; the parameters of the others must not move. Adam moves what has a
zero gradient (by its momentum), so a group that took no part is not stepped at all: its weights and
moments stay bit for bit what they were. Learning rates are pure functions of (step, task).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class OptimizerConfig(BaseModel):
    """AdamW and its learning rate. The defaults train the quickstart's model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(
        default=2e-3, gt=0, description="Largest learning rate of the run."
    )
    schedule: Literal["constant", "linear", "cosine", "exponential"] = Field(
        default="linear",
        description="How the rate falls after the warm-up; each is a function below.",
    )
    warmup_steps: int = Field(default=100, ge=0, description="Steps in which the rate rises.")
    decay_start: float = Field(
        default=0.6, ge=0, le=1, description="Share of the run's steps after which the rate falls."
    )
    decay_factor: float = Field(
        default=0.9999955,
        gt=0,
        le=1,
        description="Of 'exponential': the rate's factor at each step.",
    )
    task_scale: dict[str, float] = Field(
        default={},
        description="Multiplies the rate at a task's steps; 1 for a task that is not named.",
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="Decay of the two moments.")
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


def learning_rate(
    config: OptimizerConfig, *, step: int, num_steps: int, task: str | None = None
) -> float:
    """The learning rate of a step (from 0) of a run of `num_steps`, for a task.

    Args:
        config: which schedule, and its numbers.
        step: the optimizer step about to be taken.
        num_steps: steps of the whole run.
        task: scales the rate by `config.task_scale`.
    """
    rate = config.learning_rate * config.task_scale.get(task or "", 1.0)
    if config.schedule == "exponential":
        return rate * exponential_factor(config, step=step, num_steps=num_steps)
    if step < config.warmup_steps:
        return rate * (step + 1) / config.warmup_steps
    fall = {"constant": constant_factor, "linear": linear_factor, "cosine": cosine_factor}
    return rate * fall[config.schedule](_decayed_share(config, step=step, num_steps=num_steps))


def constant_factor(share: float) -> float:
    """1, whatever share of the decay has passed."""
    return 1.0


def linear_factor(share: float) -> float:
    """From 1 down to 0 in a straight line."""
    return 1.0 - share


def cosine_factor(share: float) -> float:
    """(1 + cos(pi s)) / 2        Loshchilov and Hutter, arXiv:1608.03983, Eq. 5"""
    return (1.0 + math.cos(math.pi * share)) / 2


def exponential_factor(config: OptimizerConfig, *, step: int, num_steps: int) -> float:
    """Exponential warm-up, then constant, then a slow exponential fall, as tensor2tensor's.

    0.01^((W - step) / W) for step < W; then 1; then c^(step - s0) from step s0 on
    """
    if step < config.warmup_steps:
        return 0.01 ** ((config.warmup_steps - step) / config.warmup_steps)
    start = max(config.warmup_steps, round(config.decay_start * num_steps))
    return config.decay_factor ** max(0, step - start)


def _decayed_share(config: OptimizerConfig, *, step: int, num_steps: int) -> float:
    """How much of the decay has passed at a step: 0 at its start, 1 at the end of the run."""
    start = max(config.warmup_steps, round(config.decay_start * num_steps))
    if step <= start:
        return 0.0
    return min(1.0, (step - start) / max(1, num_steps - start))


def owner_rates(
    config: OptimizerConfig,
    *,
    step: int,
    num_steps: int,
    owners: Mapping[str, Iterable[str]],
) -> dict[str, float]:
    """Learning rate of each owner that takes part in a step, for `Engine.step`.

    An owner that several of the step's tasks train gets the mean of their rates.

    Args:
        config: the schedule.
        step: the optimizer step about to be taken.
        num_steps: steps of the whole run.
        owners: for each task of the step, the owners that it trains: `model.owners(task)`.
    """
    rates: dict[str, list[float]] = {}
    for task in sorted(owners):
        rate = learning_rate(config, step=step, num_steps=num_steps, task=task)
        for owner in owners[task]:
            rates.setdefault(owner, []).append(rate)
    return {owner: sum(rates[owner]) / len(rates[owner]) for owner in sorted(rates)}


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    owner_of: Callable[[str], str],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Trainable parameters in one group for each owner; two if some of them are to decay.

    Each group has "owner" beside the optimizer's own settings. Biases and norms never decay.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            decays = weight_decay > 0 and parameter.ndim > 1
            groups.setdefault((owner_of(name), decays), []).append(parameter)
    return [
        {"params": groups[key], "owner": key[0], "weight_decay": weight_decay if key[1] else 0.0}
        for key in sorted(groups)
    ]


class OwnerAdamW(torch.optim.AdamW):
    """AdamW over owners' groups that steps those that take part and no others.

    Inside DeepSpeed's ZeRO the groups hold flat partitions, and `step` is called once for each
    group or part of one; the marks that `take_part` leaves on the groups hold for all of them.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], *, config: OptimizerConfig) -> None:
        super().__init__(
            groups,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=0.0,  # the groups say which of them decay
            fused=True,
        )
        for group in self.param_groups:
            group["active"] = False

    def take_part(self, learning_rates: Mapping[str, float]) -> None:
        """Marks the groups of the owners named as taking part in the next step, at these rates."""
        for group in self.param_groups:
            group["active"] = group["owner"] in learning_rates
            group["lr"] = learning_rates.get(group["owner"], group["lr"])

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
                self.state[tensor]["exp_avg"] = torch.zeros_like(tensor)
                self.state[tensor]["exp_avg_sq"] = torch.zeros_like(tensor)
