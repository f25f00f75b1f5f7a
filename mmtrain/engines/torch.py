"""The plain engine: one process, no sharding. The reference that the other one is tested against.

With bf16 the model's parameters are bf16 and the optimizer steps fp32 masters, which are copied
back after each step, as DeepSpeed does it; operations run under autocast.
"""

from collections.abc import Collection, Iterator, Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.engines import EngineConfig, ParameterState, StepStats, check_combination
from mmtrain.engines.clipping import clip_gradients
from mmtrain.engines.optim import OptimizerConfig, OwnerOptimizer, parameter_groups
from mmtrain.engines.pieces import (
    Piece,
    entries,
    match_states,
    parameter_of,
    persistent_buffers,
    read_entry,
    write_entry,
)
from mmtrain.engines.recompute import recompute_blocks


def build(
    config: EngineConfig, *, model: nn.Module, optimizer: OptimizerConfig, device: torch.device
) -> "TorchEngine":
    """See `mmtrain.engines.build_engine`."""
    check_combination(config, world_size=1)
    return TorchEngine(config, model=model, optimizer=optimizer, device=device)


class TorchEngine:
    """See `mmtrain.engines.Engine`."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        model: nn.Module,
        optimizer: OptimizerConfig,
        device: torch.device,
    ) -> None:
        self.rank, self.world_size, self.device = 0, 1, device
        self.model = model.to(device)
        self._low_precision = config.precision == "bf16"
        self._clip_norm = optimizer.clip_norm
        self._entries = entries(model)
        if config.activation_checkpointing:
            recompute_blocks(model)
        self._masters = {
            name: self._master(parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        groups = parameter_groups(
            self._masters.items(),
            owner_of=model.parameter_owner,  # type: ignore[operator]  # Module.__getattr__
            weight_decay=optimizer.weight_decay,
        )
        self._optimizer = OwnerOptimizer(groups, config=optimizer)
        self._optimizer.create_states(self._masters.values())

    def _master(self, parameter: nn.Parameter) -> nn.Parameter:
        """What the optimizer steps: the parameter, or an fp32 copy when that becomes bf16."""
        if not self._low_precision:
            return parameter
        master = nn.Parameter(parameter.detach().float().clone())
        parameter.data = parameter.data.bfloat16()
        return master

    def forward(self, **inputs: Any) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._low_precision):
            return self.model(**inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        if self._low_precision:  # each micro-batch adds in fp32
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None:
                    master = self._masters[name]
                    gradient = parameter.grad.float()
                    master.grad = gradient if master.grad is None else master.grad + gradient
                    parameter.grad = None

    def step(
        self,
        active_owners: Collection[str],
        *,
        learning_rates: Mapping[str, float],
        betas: tuple[float, float] | None = None,
        momentum: float | None = None,
    ) -> StepStats:
        self._optimizer.take_part(active_owners, learning_rates, betas, momentum)
        norm = clip_gradients(self._optimizer, max_norm=self._clip_norm)
        if isfinite(norm):
            self._optimizer.step()
            self._update_working_weights()
        self._optimizer.zero_grad()
        return StepStats(norm, self._optimizer.active_rates())

    @torch.no_grad()
    def _update_working_weights(self) -> None:
        if self._low_precision:
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(self._masters[name])

    def parameter_states(self) -> Iterator[ParameterState]:
        for entry in self._entries:
            piece = self._piece(entry.parameter)
            tensors = read_entry(entry, piece, keys=tuple(piece.tensors), writer=0)
            assert tensors is not None
            yield ParameterState(entry.name, tensors, self._steps(entry.parameter))
        for name, buffer in persistent_buffers(self.model).items():
            yield ParameterState(name, {"weight": buffer.cpu().clone()}, 0)

    @torch.no_grad()
    def load_parameter_states(self, states: Iterator[ParameterState]) -> None:
        by_name = {entry.name: entry for entry in self._entries}
        buffers = persistent_buffers(self.model)
        for state in match_states(states, expected=[*by_name, *buffers]):
            if state.name in buffers:
                buffers[state.name].copy_(state.tensors["weight"])
                continue
            name = parameter_of(state.name)
            write_entry(by_name[state.name], self._piece(name), state=state)
            if name in self._masters:
                self._optimizer.state[self._masters[name]]["step"].fill_(state.step)
        self._update_working_weights()

    def model_state(self) -> dict[str, Tensor]:
        weights = {
            name: self._weight(name).detach().float().cpu().clone()
            for name, _ in self.model.named_parameters()
        }
        buffers = {
            name: value.cpu().clone() for name, value in persistent_buffers(self.model).items()
        }
        return weights | buffers

    def _weight(self, name: str) -> Tensor:
        return self._masters[name] if name in self._masters else self.model.get_parameter(name)

    def _piece(self, name: str) -> Piece:
        weight = self._weight(name)
        tensors = {"weight": weight.detach().view(-1)}
        if name in self._masters:
            state = self._optimizer.state[weight]
            tensors |= {key: state[key].view(-1) for key in self._optimizer.rule.states}
        return Piece(0, tensors)

    def _steps(self, name: str) -> int:
        if name not in self._masters:
            return 0
        return int(self._optimizer.state[self._masters[name]]["step"])
