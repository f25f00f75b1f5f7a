"""Engines: who holds the parameters and takes the optimizer's step. One protocol, two sides.

`torch.py` is plain PyTorch on one process and the reference; `deepspeed.py` shards over many.
Parameters come in groups by owner, as `model.parameter_owner(name)` says: "body/<part>",
"modality/<net>", "task/<name>", "experts/<part>". A group that took no part in a step is skipped
whole: its weights and moments stay bit for bit what they were.
"""

import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch import device as Device  # `torch` itself is the name of a module of this package

from mmtrain.engines.optim import OptimizerConfig, load_rule
from pipelines.errors import MMTrainError


class EngineError(MMTrainError):
    """An engine cannot do what its config asks, or take the parameters that it was given."""


class EngineConfig(BaseModel):
    """Which engine trains, and how it spreads the work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["deepspeed", "torch"] = Field(
        default="deepspeed", description="Module of mmtrain/engines; 'torch' runs on one worker."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=0,
        description="DeepSpeed ZeRO: 0 copies all on each rank; 1 shards the optimizer's states, "
        "2 the gradients too, 3 the weights too.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Of weights in forward and backward; the optimizer keeps fp32."
    )
    ep_size: int = Field(default=1, ge=1, description="Ranks that share one copy of the experts.")
    accumulation: int = Field(
        default=1, ge=1, description="Micro-batches that one global batch is cut in."
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="Compute blocks again in backward in place of keeping activations.",
    )
    offload_optimizer: bool = Field(
        default=False, description="Keep the optimizer's states and step on the CPU (GPU training)."
    )


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one optimizer step did.

    Args:
        gradient_norm: global norm over all gradients before clipping. When it is not finite, no
            weight or moment was changed and the gradients are gone.
        learning_rates: of the owners that took part.
    """

    gradient_norm: float
    learning_rates: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ParameterState:
    """One full parameter and what its optimizer keeps, whatever the sharding: fp32, on the CPU.

    Experts come one at a time, by global id: name "body.encoder_moe.experts.w_in[3]".
    `tensors` has "weight" and the optimizer's states by name, as its `UpdateRule` says; a frozen
    parameter and a buffer have "weight" alone. `step` counts the optimizer steps that it took part
    in.
    """

    name: str
    tensors: Mapping[str, Tensor]
    step: int


class Engine(Protocol):
    """What the train loop asks of an engine."""

    rank: int
    world_size: int
    model: nn.Module
    device: Device

    def forward(self, **inputs: Any) -> Any:
        """The model's forward through whatever wraps it."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds this micro-batch's gradients.

        `loss` is this rank's share: shares of all ranks and micro-batches sum to the step's loss.
        """
        ...

    def step(
        self,
        active_owners: Collection[str],
        *,
        learning_rates: Mapping[str, float],
        betas: tuple[float, float] | None = None,
        momentum: float | None = None,
    ) -> StepStats:
        """One optimizer step over the active owners; the others took no part and keep still.

        All gradients since the last step count towards the norm and are dropped afterwards.

        Args:
            active_owners: those that the step's tasks train; ones that the model has not, or that
                are frozen, count for nothing.
            learning_rates: of each active owner.
            betas: decay of the moments of a rule that has two, at this step; None: the config's.
            momentum: of a rule that has one, likewise.
        """
        ...

    def parameter_states(self) -> Iterator[ParameterState]:
        """All ranks call this together and exhaust it; each is handed its part of all states."""
        ...

    def load_parameter_states(self, states: Iterator[ParameterState]) -> None:
        """All ranks call this together, each with an iterator over ALL states, in any order.

        Raises:
            EngineError: a state is missing, unknown or of another shape; it says which.
        """
        ...

    def model_state(self) -> dict[str, Tensor]:
        """All ranks call this together. Full weights (fp32, CPU) by name, on rank 0; else empty."""
        ...


def check_combination(
    config: EngineConfig, *, world_size: int, num_experts: Sequence[int] = ()
) -> None:
    """Refuses, before any process starts, what an engine cannot do or would do wrong.

    Args:
        config: the engine's config.
        world_size: training processes.
        num_experts: experts of each MoE layer of the model.

    Raises:
        EngineError: names the fields at odds and the values that work.
    """
    if config.name == "torch":
        _check_torch(config, world_size=world_size)
    else:
        _check_deepspeed(config)
    _check_experts(config, world_size=world_size, num_experts=num_experts)


def _check_torch(config: EngineConfig, *, world_size: int) -> None:
    if world_size > 1:
        raise EngineError(
            f"engine 'torch' runs on one worker, not {world_size}; set engine.name=deepspeed"
        )
    for field, value, plain in (
        ("zero_stage", config.zero_stage, 0),
        ("ep_size", config.ep_size, 1),
        ("offload_optimizer", config.offload_optimizer, False),
    ):
        if value != plain:
            raise EngineError(
                f"engine 'torch' does not shard: engine.{field}={value}; "
                f"set engine.name=deepspeed, or engine.{field}={plain}"
            )


def _check_deepspeed(config: EngineConfig) -> None:
    if config.zero_stage == 0 and config.precision == "bf16":
        raise EngineError(
            "engine.precision=bf16 keeps fp32 weights in ZeRO's partitions, engine.zero_stage=0 "
            "has none; set engine.zero_stage=1 (the same on one worker)"
        )
    if config.zero_stage == 0 and config.offload_optimizer:
        raise EngineError(
            "engine.offload_optimizer needs ZeRO's partitions, engine.zero_stage=0 has none; "
            "set engine.zero_stage=1, 2 or 3"
        )


def _check_experts(config: EngineConfig, *, world_size: int, num_experts: Sequence[int]) -> None:
    if config.ep_size == 1:
        return
    if config.zero_stage not in (1, 2):
        raise EngineError(
            f"engine.ep_size={config.ep_size} with engine.zero_stage={config.zero_stage}: experts "
            f"are sharded under ZeRO 1 and 2 alone; set engine.zero_stage=2 or engine.ep_size=1"
        )
    if world_size % config.ep_size:
        raise EngineError(
            f"{world_size} workers cannot be cut into groups of engine.ep_size={config.ep_size}; "
            f"use one of {divisors(world_size)}"
        )
    if not num_experts:
        raise EngineError(f"engine.ep_size={config.ep_size}, but the model has no experts; use 1")
    for count in num_experts:
        if count % config.ep_size:
            raise EngineError(
                f"{count} experts do not divide over engine.ep_size={config.ep_size} ranks; "
                f"use one of {divisors(count)} or another number of experts"
            )


def check_optimizer(config: EngineConfig, *, optimizer: OptimizerConfig) -> None:
    """Refuses an optimizer that the engine cannot run.

    Raises:
        EngineError: ZeRO would hand it parts of parameters, which it cannot step.
        UnknownNameError: there is no such optimizer.
        OwnCodeError: the user's file of it is gone or fails.
    """
    if config.zero_stage and not load_rule(optimizer.name).elementwise:
        raise EngineError(
            f"optimizer.name={optimizer.name} steps whole parameters, engine.zero_stage="
            f"{config.zero_stage} has flat parts of them; set engine.zero_stage=0"
        )


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]


def build_engine(
    config: EngineConfig,
    *,
    model: nn.Module,
    optimizer: OptimizerConfig,
    device: Device | None = None,
) -> Engine:
    """The engine that `config` names, with `model` moved to `device` and taken over.

    All ranks call this together with the same weights. The model needs `parameter_owner(name)`;
    its stacks of experts are marked, see layers/experts.py, and their layer has
    `shard_experts(group)`.

    Args:
        config: which engine.
        model: the model; its parameters are replaced or sharded in place.
        optimizer: config of the optimizer and of clipping.
        device: where to train; None: the CPU.

    Raises:
        EngineError: `check_combination` or `check_optimizer` refuses the config.
    """
    check_optimizer(config, optimizer=optimizer)
    module = importlib.import_module(f"{__name__}.{config.name}")
    return module.build(config, model=model, optimizer=optimizer, device=device or Device("cpu"))
