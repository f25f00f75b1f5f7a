"""Entries of a layout-free checkpoint, and the pieces of them that a rank holds.

An entry is a parameter, one expert of a stack of experts, or a buffer. However parameters are
sharded, a rank holds of each a contiguous piece of its elements in row-major order (perhaps none),
and the pieces of all ranks are a partition. Reading adds the ranks' pieces up in a zeroed buffer,
as integers so that not a bit changes; writing copies what overlaps.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmtrain.engines import EngineError, ParameterState
from mmtrain.layers.experts import is_expert


@dataclass(frozen=True, slots=True)
class Piece:
    """What a rank holds of a parameter: flat views of its elements from `start` on.

    `start` counts in the parameter of all ranks, of the full stack for experts. The views are the
    engine's own fp32 memory: writing to them writes the parameter.
    """

    start: int
    tensors: Mapping[str, Tensor]

    @property
    def end(self) -> int:
        return self.start + self.tensors["weight"].numel()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: elements [start, start + prod(shape)) of a parameter of the whole model."""

    name: str
    parameter: str
    shape: tuple[int, ...]
    start: int

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def end(self) -> int:
        return self.start + self.numel


def entries(model: nn.Module) -> list[Entry]:
    """Entries of all parameters of a model, each expert of a stack apart; before it is sharded."""
    found = []
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if is_expert(parameter):
            size = prod(shape[1:])
            found += [
                Entry(f"{name}[{expert}]", name, shape[1:], expert * size)
                for expert in range(shape[0])
            ]
        else:
            found.append(Entry(name, name, shape, 0))
    return found


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that belong to the model's state, by name."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in model.state_dict().items() if name not in parameters}


@torch.no_grad()
def averaged_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The model's buffers on the CPU, running statistics as their mean over the ranks.

    Ranks call together; each rank's own statistics, of its part of the batches, stay as they are.
    Counters agree on all ranks.
    """
    averaged = {}
    for name, value in persistent_buffers(model).items():
        mean = value.clone()
        if mean.is_floating_point() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        averaged[name] = mean.cpu()
    return averaged


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Running statistics become their mean over the ranks, which call together."""
    means = averaged_buffers(model)
    for name, value in persistent_buffers(model).items():
        value.copy_(means[name])


def parameter_of(entry_name: str) -> str:
    """Name of the parameter that an entry is (an expert) of."""
    return re.sub(r"\[\d+\]$", "", entry_name)


def writers(sizes: Sequence[int], *, world_size: int) -> list[int]:
    """Which rank writes each entry: each goes to the rank with the fewest elements so far."""
    load = [0] * world_size
    chosen = []
    for size in sizes:
        rank = load.index(min(load))
        load[rank] += size
        chosen.append(rank)
    return chosen


@torch.no_grad()
def read_entry(
    entry: Entry, piece: Piece | None, *, keys: Sequence[str], writer: int
) -> dict[str, Tensor] | None:
    """The entry in full on rank `writer` (fp32, CPU), None on the others; ranks call together."""
    held = _overlap(entry, piece)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        assert held is not None
        return {
            key: held[1][key].detach().float().reshape(entry.shape).cpu().clone() for key in keys
        }
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    bits = torch.zeros(len(keys), entry.numel, dtype=torch.int32, device=device)
    if held is not None:
        offset, tensors = held
        for row, key in zip(bits, keys, strict=True):
            row[offset : offset + tensors[key].numel()] = tensors[key].float().view(torch.int32)
    dist.reduce(bits, dst=writer)
    if dist.get_rank() != writer:
        return None
    return {
        key: row.view(torch.float32).reshape(entry.shape).cpu()
        for key, row in zip(keys, bits, strict=True)
    }


def write_entry(entry: Entry, piece: Piece | None, *, state: ParameterState) -> None:
    """Copies this rank's part of a state into its piece.

    Raises:
        EngineError: the state is of another shape, or lacks one of the piece's tensors.
    """
    for key, value in state.tensors.items():
        if tuple(value.shape) != entry.shape:
            raise EngineError(
                f"{entry.name}: {key} of shape {tuple(value.shape)} in the checkpoint, "
                f"{entry.shape} in the model; use the recipe that the checkpoint was made with"
            )
    held = _overlap(entry, piece)
    if held is None:
        return
    offset, tensors = held
    for key, target in tensors.items():
        if key not in state.tensors:
            raise EngineError(f"{entry.name}: the checkpoint has no {key}; was it frozen there?")
        source = state.tensors[key].reshape(-1)[offset : offset + target.numel()]
        target.copy_(source)


def _overlap(entry: Entry, piece: Piece | None) -> tuple[int, dict[str, Tensor]] | None:
    """Elements that a piece and an entry share: where in the entry they start, and the views."""
    if piece is None:
        return None
    start, end = max(entry.start, piece.start), min(entry.end, piece.end)
    if start >= end:
        return None
    first = start - piece.start
    views = {key: view[first : first + end - start] for key, view in piece.tensors.items()}
    return start - entry.start, views


def match_states(
    states: Iterator[ParameterState], *, expected: Sequence[str]
) -> Iterator[ParameterState]:
    """The states, checked to be those expected.

    Raises:
        EngineError: one is unknown or comes twice, or, at the end, some did not come.
    """
    missing = dict.fromkeys(expected)
    for state in states:
        if state.name not in missing:
            raise EngineError(
                f"the checkpoint holds {state.name!r}, which the model has not (or has once); "
                f"use the recipe that the checkpoint was made with"
            )
        del missing[state.name]
        yield state
    if missing:
        names = list(missing)
        raise EngineError(
            f"the checkpoint lacks {len(names)} of the model's parameters, {names[0]!r} first; "
            f"use the recipe that the checkpoint was made with"
        )
