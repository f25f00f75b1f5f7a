"""Who a training process is among the others, its device, and its randomness."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.batch import Batch


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def current(cls, *, use_gpu: bool) -> "Ranks":
        """As torch.distributed says; a lone process is rank 0 of 1."""
        device = (
            torch.device("cuda", torch.cuda.current_device()) if use_gpu else torch.device("cpu")
        )
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(0, 1, device)


def keyed_seed(*key: int) -> int:
    """A 63-bit seed from integers: the same key gives the same seed on every machine."""
    text = ":".join(str(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_step(seed: int, step: int, rank: int) -> None:
    """Keys dropout and gate noise of a step; a resumed run draws the same, nothing is restored."""
    torch.manual_seed(keyed_seed(seed, step, rank))


def to_tensors(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The arrays of a batch as the model's arguments, on `device`; ids become int64."""

    def tensor(array: np.ndarray) -> Tensor:
        if not array.flags.writeable:  # the stream's arrays are views of Arrow buffers
            array = array.copy()
        values = torch.from_numpy(array).to(device, non_blocking=True)
        return values.long() if values.dtype == torch.int32 else values

    return {
        "inputs": tensor(batch.inputs),
        "input_lengths": tensor(batch.input_lengths),
        "targets": tensor(batch.targets),
        "target_lengths": tensor(batch.target_lengths),
    }


def sum_over_ranks(values: Tensor) -> Tensor:
    """`values` added over all ranks, in place; itself where there is one rank."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def check_same_batches(batches: Sequence[Batch], ranks: Ranks) -> None:
    """Debug: raises on every rank if one is at another step or task, before a collective hangs."""
    said = [(batch.step, batch.micro, batch.task) for batch in batches]
    digest = int.from_bytes(hashlib.sha256(repr(said).encode()).digest()[:7], "big")
    extremes = torch.tensor([digest, -digest], dtype=torch.int64, device=ranks.device)
    if ranks.world_size > 1:
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    assert extremes[0] == -extremes[1], (
        f"rank {ranks.rank} trains {said}, other ranks something else"
    )


def gather_ids(batches: Sequence[Batch], ranks: Ranks) -> list[int]:
    """Example ids of a step over all ranks: micro-batch by micro-batch, ranks in order."""
    mine = [batch.example_ids.tolist() for batch in batches]
    parts = [mine]
    if ranks.world_size > 1:
        parts = [mine] * ranks.world_size
        dist.all_gather_object(parts, mine)
    return [number for micro in zip(*parts, strict=True) for ids in micro for number in ids]
