"""Memory of a rank for weights, gradients, the optimizer's states and communication, by ZeRO stage.

What is split over N ranks by stage is that of Rajbhandari et al., arXiv:1910.02054, Sec. 5; the
buffers are those that DeepSpeed makes with the settings of `engines/zero_config.py`. A step has
three moments at which most may be alive: in backward, when gradients are added over ranks, and when
the optimizer steps. The largest counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pydantic import computed_field
from pydantic.dataclasses import dataclass as json_dataclass

from mmtrain.engines import EngineConfig
from mmtrain.engines.zero_config import MAX_BUCKET
from mmtrain.planning.footprint import Footprint

# DeepSpeed 0.19.8's defaults, in elements (runtime/zero/config.py, runtime/config.py). When they
# change, tests/benchmarks/bench_plan.py shows planned memory off the measured one.
FP32 = 4
ALL_REDUCE_BUCKET = 500_000_000  # gradients reduced at once at ZeRO 0
PERSISTENT = 100_000  # parameters below this stay whole at ZeRO 3
MAX_LIVE = 1_000_000_000  # of the others, so many may stay gathered

SHARES = ("weights", "masters", "moments", "gradients", "buckets", "activations")


@dataclass(frozen=True, slots=True)
class Parameter:
    """What memory needs to know of a parameter of the whole model."""

    name: str
    owner: str
    numel: int
    is_expert: bool
    is_trained: bool
    decays: bool


@json_dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank at the moment of a step at which they are most.

    Args:
        weights: those that forward and backward use.
        masters: fp32 weights that the optimizer steps, where they are others.
        moments: the optimizer's states.
        gradients: accumulated, or of this rank's partition.
        buckets: buffers of communication.
        activations: what autograd keeps, inputs and workspace, at that moment.
        host: of the above, what is on the CPU beside a GPU (offloading), not in the total.
        moment: "backward", "reduction" or "step".
        task: the tasks of the step that needs most.
    """

    weights: int = 0
    masters: int = 0
    moments: int = 0
    gradients: int = 0
    buckets: int = 0
    activations: int = 0
    host: int = 0
    moment: str = "backward"
    task: str = ""

    @computed_field
    @property
    def total(self) -> int:
        """Bytes at once."""
        return sum(getattr(self, share) for share in SHARES)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Elements on the rank that holds most, by how they are kept.

    Args:
        held: parameters of the model as this rank holds it, experts divided.
        trained: of them, those that are trained.
        partition: this rank's part of the optimizer's states.
        largest_group: partition of the largest group of the optimizer.
        straddling: trained parameters of which any part lies in this rank's partition, whole.
    """

    held: int
    trained: int
    partition: int
    largest_group: int
    straddling: int


@dataclass(frozen=True)
class ZeroRank:
    """A rank of a run, as an engine divides the model over the ranks.

    Args:
        parameters: of the whole model.
        engine: its config.
        world_size: ranks.
        num_moments: states of the optimizer for each parameter.
        use_gpu: whether the ranks have GPUs.
    """

    parameters: Sequence[Parameter]
    engine: EngineConfig
    world_size: int
    num_moments: int = 2
    use_gpu: bool = False

    @cached_property
    def width(self) -> int:
        """Bytes of an element in forward and backward."""
        return 2 if self.engine.precision == "bf16" else FP32

    @cached_property
    def numel(self) -> dict[str, int]:
        """Elements of each parameter that a rank holds before ZeRO, by name."""
        share = self.engine.ep_size
        return {p.name: p.numel // share if p.is_expert else p.numel for p in self.parameters}

    @cached_property
    def sizes(self) -> Sizes:
        """Elements on the rank that holds most. Partitions are even: DeepSpeed aligns to two."""
        groups: dict[tuple[str, bool], list[Parameter]] = {}  # of the optimizer
        for parameter in self.parameters:
            if parameter.is_trained:
                groups.setdefault((parameter.owner, parameter.decays), []).append(parameter)
        partitions, straddling = [0], [0] * self.world_size
        for group in groups.values():
            ranks = self.world_size // (self.engine.ep_size if group[0].is_expert else 1)
            numels = [self.numel[parameter.name] for parameter in group]
            partition = -(-sum(numels) // (2 * ranks)) * 2
            partitions.append(partition)
            start = 0
            for numel in numels:
                for rank in range(start // partition, -(-(start + numel) // partition)):
                    straddling[rank] += numel
                start += numel
        return Sizes(
            held=sum(self.numel.values()),
            trained=sum(self.numel[p.name] for p in self.parameters if p.is_trained),
            partition=sum(partitions),
            largest_group=max(partitions),
            straddling=max(straddling),
        )

    def reached(self, footprint: Footprint) -> int:
        """Elements of the parameters that get a gradient in a step."""
        return sum(self.numel[name] for name in footprint.trained)

    def memory(self, footprints: Sequence[Footprint]) -> RankMemory:
        """The most that the rank needs at any moment of any step.

        Args:
            footprints: of the steps there are, as the engine keeps gradients (`keeps_gradients`).
        """
        moments = [
            replace(memory, task=", ".join(footprint.batches))
            for footprint in footprints
            for memory in self._moments(footprint)
        ]
        most = max(moments, key=lambda memory: memory.total)
        if not (self.engine.offload_optimizer and self.use_gpu):
            return most  # without a GPU what is offloaded is in the same memory
        host = most.masters + most.moments + FP32 * self.sizes.partition
        return replace(most, masters=0, moments=0, host=host)

    @cached_property
    def _base(self) -> RankMemory:
        """What is there all the time."""
        is_split = self.engine.name == "deepspeed" and self.engine.zero_stage > 0
        stepped = self.sizes.partition if is_split else self.sizes.trained
        return RankMemory(
            weights=self.width * self.sizes.held,
            masters=FP32 * stepped if is_split or self.width < FP32 else 0,
            moments=self.num_moments * FP32 * stepped,
        )

    def _moments(self, found: Footprint) -> list[RankMemory]:
        if self.engine.name == "torch":
            return self._plain(found)
        if self.engine.zero_stage == 0:
            return self._replicated(found)
        return self._whole_split(found) if self.engine.zero_stage == 3 else self._split(found)

    def _backward(self, found: Footprint, *, gradients: int, buckets: int = 0) -> RankMemory:
        peak = found.peak if keeps_gradients(self.engine) else found.activations
        shown = min(gradients, peak)
        return replace(self._base, gradients=shown, buckets=buckets, activations=peak - shown)

    def _plain(self, found: Footprint) -> list[RankMemory]:
        """One process: gradients come in backward and stay until the step, then in fp32."""
        owners = {p.owner for p in self.parameters if p.name in found.trained}
        stepped = sum(
            self.numel[p.name] for p in self.parameters if p.is_trained and p.owner in owners
        )
        reached = self.reached(found)
        kept = FP32 * reached if self.engine.accumulation > 1 else 0
        gradients = FP32 * stepped + (self.width * reached if self.width < FP32 else 0)
        return [
            self._backward(found, gradients=kept),
            replace(self._base, gradients=gradients, moment="step"),
        ]

    def _replicated(self, found: Footprint) -> list[RankMemory]:
        """ZeRO 0: every parameter gets a gradient, and they are added in one flat copy."""
        trained = self.sizes.trained
        flat = FP32 * min(trained, ALL_REDUCE_BUCKET)
        return [
            self._backward(found, gradients=found.peak - found.activations),
            replace(self._base, gradients=FP32 * trained, buckets=flat, moment="reduction"),
        ]

    def _split(self, found: Footprint) -> list[RankMemory]:
        """ZeRO 1 and 2: a bucket all through backward, a flat copy of it when it is reduced."""
        sizes, reached = self.sizes, self.reached(found)
        bucket = min(sizes.held, MAX_BUCKET)
        flat = self.width * min(reached, bucket)
        if self.engine.zero_stage == 2 and self.width < FP32:  # sums are fp32
            owned, widest = FP32 * min(sizes.partition, reached), 0
            during = flat + owned
        else:  # what the step does not reach gets zeros in place of gradients
            share = 1 - reached / max(1, sizes.trained)
            owned = self.width * sizes.straddling + int(self.width * sizes.straddling * share)
            widest = FP32 * sizes.largest_group
            during = max(flat, owned)
        base = replace(self._base, buckets=self.width * bucket)
        grown = found.peak - found.activations
        return [
            self._backward(found, gradients=grown, buckets=base.buckets),
            replace(base, gradients=during, moment="reduction"),
            replace(self._base, gradients=owned + widest, moment="step"),
        ]

    def _whole_split(self, found: Footprint) -> list[RankMemory]:
        """ZeRO 3: weights in parts; small ones and, up to a bound, gathered ones stay whole."""
        sizes = self.sizes
        small = sum(numel for numel in self.numel.values() if numel < PERSISTENT)
        large = sum(self.numel[name] for name in found.trained if self.numel[name] >= PERSISTENT)
        parts = sizes.partition + sizes.held - sizes.trained
        bucket = min(sizes.held, MAX_BUCKET)
        base = replace(
            self._base,
            weights=self.width * (parts + small + min(large, MAX_LIVE)),
            gradients=FP32 * (sizes.partition + sizes.largest_group),
            buckets=self.width * bucket,
        )
        flat = self.width * min(self.reached(found), bucket) * (1 if self.use_gpu else 2)
        return [
            replace(base, activations=found.activations),
            replace(base, buckets=base.buckets + flat, moment="reduction"),
            replace(base, moment="step"),
        ]


def keeps_gradients(engine: EngineConfig) -> bool:
    """Whether whole gradients stay until the end of a step."""
    return engine.name == "torch" or engine.zero_stage < 2
