"""Engines: who holds the parameters and takes the optimizer's step. One protocol, two sides.

`torch.py` is plain PyTorch on one process and the reference; `deepspeed.py` shards over many.
Parameters come in groups by owner, as `model.parameter_owner(name)` says: "body/<part>",
"modality/<net>", "task/<name>", "experts/<part>". A group that took no part in a step is skipped whole: its weights and
moments stay bit for bit what they were.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one optimizer step did. `gradient_norm` is the global norm before clipping."""

    gradient_norm: float
    learning_rates: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ParameterState:
    """One full parameter and what its optimizer keeps, whatever the sharding: fp32, on the CPU.

    Experts come one at a time, by global id: name "body.encoder_moe.experts.w_in[3]".
    `tensors` has "weight" and the optimizer's states ("exp_avg", "exp_avg_sq").
    """

    name: str
    tensors: Mapping[str, Tensor]
    step: int


class Engine(Protocol):
    """What the train loop asks of an engine."""

    rank: int
    world_size: int
    model: nn.Module

    def forward(self, *args: object, **kwargs: object) -> object:
        """The model's forward through whatever wraps it."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds this micro-batch's gradients. `loss` is this rank's share: shares of all ranks and micro-batches sum to the step's loss."""
        ...

    def step(self, *, learning_rates: Mapping[str, float]) -> StepStats:
        """One optimizer step over the groups named; groups not named took no part and keep still."""
        ...

    def parameter_states(self) -> Iterator[ParameterState]:
        """All ranks call this together; each rank is handed the states that are its part to write, a partition of all."""
        ...

    def load_parameter_states(self, states: Iterator[ParameterState]) -> None:
        """All ranks call this together, each with an iterator over ALL states, in any order."""
        ...
