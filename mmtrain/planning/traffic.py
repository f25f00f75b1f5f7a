"""What ranks send each other in a step, by kind of collective: payload bytes that a rank hands in.

Rings move about twice an all-reduce's payload and once that of the others (Rajbhandari et al.,
arXiv:1910.02054, Sec. 7).
"""

from pydantic import computed_field
from pydantic.dataclasses import dataclass

from mmtrain.planning.footprint import Footprint
from mmtrain.planning.zero_memory import FP32, MAX_LIVE, PERSISTENT, ZeroRank


@dataclass(frozen=True)
class Traffic:
    """Bytes of one rank in one step."""

    all_reduce: int = 0
    reduce_scatter: int = 0
    all_gather: int = 0
    all_to_all: int = 0

    @computed_field
    @property
    def total(self) -> int:
        """Bytes of all collectives."""
        return self.all_reduce + self.reduce_scatter + self.all_gather + self.all_to_all


def step_traffic(rank: ZeroRank, footprint: Footprint) -> Traffic:
    """Payloads of the step that has this footprint. One rank sends nothing.

    At ZeRO 0 every parameter is summed; at 1 and 2 those that the step trains, and all weights are
    handed round afterwards; at 3 gradients are scattered, and weights gathered for forward, and
    again for backward where they do not all stay.
    """
    if rank.world_size == 1:
        return Traffic()
    engine, width, trained = rank.engine, rank.width, rank.sizes.trained
    reached = width * rank.reached(footprint)
    if engine.zero_stage == 0:
        return Traffic(all_reduce=FP32 * trained)
    if engine.zero_stage < 3:
        often = engine.accumulation if engine.zero_stage == 2 else 1
        leaving = footprint.exchanged * (engine.ep_size - 1) // engine.ep_size
        return Traffic(all_reduce=often * reached, all_gather=width * trained, all_to_all=leaving)
    used = [rank.numel[name] for name in footprint.trained]
    large = sum(numel for numel in used if numel >= PERSISTENT)
    passes = 1 if large <= MAX_LIVE else 2 * engine.accumulation
    return Traffic(
        reduce_scatter=engine.accumulation * reached,
        all_gather=width * (passes * large + sum(used) - large),
    )
