"""What ranks send each other in a step, by kind of collective: payload bytes that a rank hands in.

Rings move about twice an all-reduce's payload and once that of the others (Rajbhandari et al.,
arXiv:1910.02054, Sec. 7).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mmtrain.engines import EngineConfig
from mmtrain.planning.footprint import Footprint
from mmtrain.planning.zero_memory import (
    FP32,
    MAX_LIVE,
    PERSISTENT,
    Parameter,
    local_numel,
    sizes_of,
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one rank in one step."""

    all_reduce: int = 0
    reduce_scatter: int = 0
    all_gather: int = 0
    all_to_all: int = 0

    @property
    def total(self) -> int:
        """Of all kinds."""
        return self.all_reduce + self.reduce_scatter + self.all_gather + self.all_to_all

    def to_dict(self) -> dict[str, int]:
        """As JSON holds it."""
        return {**asdict(self), "total": self.total}


def step_traffic(
    parameters: Sequence[Parameter],
    found: Footprint,
    *,
    engine: EngineConfig,
    world_size: int,
) -> Traffic:
    """Of the step whose footprint it is. One rank sends nothing.

    At ZeRO 0 every parameter is summed; at 1 and 2 those that the step trains, and all weights are
    handed round afterwards; at 3 gradients are scattered, and weights gathered for forward, and
    again for backward where they do not all stay.
    """
    if world_size == 1:
        return Traffic()
    width = 2 if engine.precision == "bf16" else FP32
    numel = {held.name: local_numel(held, ep_size=engine.ep_size) for held in parameters}
    reached = width * sum(numel[name] for name in found.trained)
    sizes = sizes_of(parameters, engine=engine, world_size=world_size)
    leaving = found.exchanged * (engine.ep_size - 1) // engine.ep_size
    if engine.zero_stage == 0:
        return Traffic(all_reduce=FP32 * sizes.trained)
    if engine.zero_stage < 3:
        often = engine.accumulation if engine.zero_stage == 2 else 1
        return Traffic(
            all_reduce=often * reached, all_gather=width * sizes.trained, all_to_all=leaving
        )
    used = [numel[name] for name in found.trained]
    large, small = sum(n for n in used if n >= PERSISTENT), sum(n for n in used if n < PERSISTENT)
    passes = 1 if large <= MAX_LIVE else 2 * engine.accumulation
    return Traffic(
        reduce_scatter=engine.accumulation * reached,
        all_gather=width * (passes * large + small),
    )
