"""Optimizers: parameter groups by owner, and rules that step them; idle owners are left be.

A step trains one task, or a few; the parameters of the others must not move. Momentum moves what
has a zero gradient, so a group that took no part is not stepped at all: its weights and moments
stay bit for bit what they were. Learning rates are in `rates.py`. A rule of a user's own file is
made as those here, and named `my_optimizers.py:lion`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.optim.sgd import sgd as sgd_step

from mmtrain.models.model import MASKS
from pipelines.names import Name, load_object


class OptimizerConfig(BaseModel):
    """The optimizer and its learning rate. The defaults train the quickstart's model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(
        default="adamw", description="'adamw', 'sgd', or an `UpdateRule` of your own, FILE.py:NAME."
    )
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

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if ":" not in name:  # a user's own is looked for where it is used: a run's JSON outlives it
            load_rule(name)
        return name


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


@dataclass(frozen=True, slots=True)
class GroupStep:
    """One owner's part of an optimizer step, which an `UpdateRule` carries out in place.

    Args:
        weights: tensors to step: whole parameters, or under ZeRO 1 to 3 flat parts of them.
        gradients: of each weight, of its shape.
        states: what the rule keeps of each weight, by name.
        steps: of each weight, the steps that it took part in, this one included; 0-d tensors.
        learning_rate: of this step.
        weight_decay: of these weights; 0: they do not decay.
        betas: decay of two moments at this step.
        momentum: share of older gradients that is kept at this step.
        eps: as `OptimizerConfig.eps`.
    """

    weights: list[Tensor]
    gradients: list[Tensor]
    states: Mapping[str, list[Tensor]]
    steps: list[Tensor]
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    momentum: float
    eps: float


@dataclass(frozen=True, slots=True)
class UpdateRule:
    """An optimizer: what it keeps of each weight, and how it steps weights.

    Args:
        update: carries out a step.
        states: names of the tensors that it keeps of each weight, of its shape, zero at first.
            Checkpoints hold them by these names.
        decay: which of the decays a task may set for its own steps; None: neither.
        undoes_scale: a loss times a constant makes the same step, as of Adam.
        elementwise: no element's step depends on other elements, so that parts can be stepped.
    """

    update: Callable[[GroupStep], None]
    states: tuple[str, ...]
    decay: Literal["betas", "momentum"] | None = None
    undoes_scale: bool = False
    elementwise: bool = True


@partial(UpdateRule, states=("exp_avg", "exp_avg_sq"), decay="betas", undoes_scale=True)
def adamw(step: GroupStep) -> None:
    """AdamW        Loshchilov and Hutter, arXiv:1711.05101, Algorithm 2"""
    # torch 2.13: the kernel alone, for torch.optim.adamw.adamw counts the steps itself. If its
    # signature changes, call that with steps less 1; test_engines.py has a bare torch loop.
    torch._fused_adamw_(  # type: ignore[reportPrivateImportUsage]  # exported, stubs miss it
        step.weights,
        step.gradients,
        step.states["exp_avg"],
        step.states["exp_avg_sq"],
        [],
        step.steps,
        lr=step.learning_rate,
        beta1=step.betas[0],
        beta2=step.betas[1],
        weight_decay=step.weight_decay,
        eps=step.eps,
        amsgrad=False,
        maximize=False,
    )


@partial(UpdateRule, states=("momentum_buffer",), decay="momentum")
def sgd(step: GroupStep) -> None:
    """SGD with momentum: Polyak's heavy ball as in PolyViT's code (arXiv:2111.12993).

    m <- mu m + g;  w <- w - lr m          the rate multiplies what is left of older steps too

    mu is the step's own, as its task has it. Decay adds weight_decay * w to g.
    """
    buffers: list[Tensor | None] = [*step.states["momentum_buffer"]]
    if step.momentum == 0:  # torch would pass over the buffers, and a later step use old ones
        for buffer in step.states["momentum_buffer"]:
            buffer.zero_()
    sgd_step(
        step.weights,
        step.gradients,
        buffers,
        foreach=False,
        fused=True,
        weight_decay=step.weight_decay,
        momentum=step.momentum or 1.0,
        lr=step.learning_rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )


SHIPPED = {"adamw": adamw, "sgd": sgd}


def load_rule(name: str) -> UpdateRule:
    """The optimizer of a name, or of `FILE.py:NAME`.

    Raises:
        UnknownNameError: there is none; tells the nearest.
        OwnCodeError: the user's file is gone or fails, or it is no `UpdateRule`.
    """
    return load_object(name, kind="optimizer", shipped=SHIPPED, of=UpdateRule)


class OwnerOptimizer(torch.optim.Optimizer):
    """Steps the groups of owners that take part by their rule, and looks at no others.

    Inside DeepSpeed's ZeRO the groups hold flat partitions, and `step` is called once for each
    group or part of one; the marks that `take_part` leaves on the groups hold for all of them.

    Args:
        groups: as of `parameter_groups`.
        config: names the rule, and has its settings.
    """

    def __init__(self, groups: list[dict[str, Any]], *, config: OptimizerConfig) -> None:
        super().__init__(groups, {"active": False, "lr": 0.0})
        self.rule, self._config = load_rule(config.name), config
        self._betas, self._momentum = config.betas, config.momentum

    def take_part(
        self,
        active_owners: Collection[str],
        learning_rates: Mapping[str, float],
        betas: tuple[float, float] | None = None,
        momentum: float | None = None,
    ) -> None:
        """Marks the groups of active owners as taking part in the next step, at their rates.

        With `apply_stale_momentum` the others do too, at the mean of the rates. `betas` and
        `momentum` are those of this step; None: the config's.
        """
        rates = [learning_rates[owner] for owner in sorted(active_owners)]
        idle_rate = sum(rates) / max(1, len(rates))
        for group in self.param_groups:
            is_active = group["owner"] in active_owners
            group["active"] = is_active or self._config.apply_stale_momentum
            group["lr"] = learning_rates[group["owner"]] if is_active else idle_rate
        self._betas = betas or self._config.betas
        self._momentum = self._config.momentum if momentum is None else momentum

    def active_rates(self) -> dict[str, float]:
        """Learning rates of the owners that take part."""
        return {group["owner"]: group["lr"] for group in self.param_groups if group["active"]}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures here
        """One step of the groups that take part; the others are not looked at."""
        for group in self.param_groups:
            weights = [tensor for tensor in group["params"] if tensor.grad is not None]
            if not (group["active"] and weights):
                continue
            self.create_states(weights)
            kept = [self.state[tensor] for tensor in weights]
            steps = [state["step"] for state in kept]
            for count in steps:
                count += 1
            self.rule.update(
                GroupStep(
                    weights=weights,
                    gradients=[tensor.grad for tensor in weights],
                    states={name: [state[name] for state in kept] for name in self.rule.states},
                    steps=steps,
                    learning_rate=group["lr"],
                    weight_decay=group["weight_decay"],
                    betas=self._betas,
                    momentum=self._momentum,
                    eps=self._config.eps,
                )
            )

    @torch.no_grad()
    def create_states(self, tensors: Iterable[Tensor]) -> None:
        """Zero states for tensors that have none, so that they are there before the first step."""
        for tensor in tensors:
            if not self.state[tensor]:
                self.state[tensor]["step"] = torch.zeros((), device=tensor.device)
                for name in self.rule.states:
                    self.state[tensor][name] = torch.zeros_like(tensor)
