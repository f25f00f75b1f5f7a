"""Memory of a rank for weights, gradients, the optimizer's states and communication, by ZeRO stage.

What is split over N ranks by stage is that of Rajbhandari et al., arXiv:1910.02054, Sec. 5; the
buffers are those that DeepSpeed makes with the settings of `engines/zero_config.py`. A step has
three moments at which most may be alive: in backward, when gradients are added over ranks, and when
the optimizer steps. The largest counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from mmtrain.engines import EngineConfig
from mmtrain.engines.zero_config import MAX_BUCKET
from mmtrain.planning.footprint import Footprint

FP32 = 4
ALL_REDUCE_BUCKET = 500_000_000  # elements; DeepSpeed's own at ZeRO 0
PERSISTENT = 100_000  # elements; parameters below stay whole at ZeRO 3: DeepSpeed's default
MAX_LIVE = 1_000_000_000  # elements; of the others, so many may stay gathered: likewise


@dataclass(frozen=True, slots=True)
class Parameter:
    """What memory needs to know of a parameter of the whole model."""

    name: str
    owner: str
    numel: int
    is_expert: bool
    is_trained: bool
    decays: bool


@dataclass(frozen=True, slots=True)
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

    @property
    def total(self) -> int:
        """Bytes at once."""
        return (
            self.weights
            + self.masters
            + self.moments
            + self.gradients
            + self.buckets
            + self.activations
        )

    def to_dict(self) -> dict[str, int | str]:
        """As JSON holds it."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Elements on a rank, by how they are kept.

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


def local_numel(parameter: Parameter, *, ep_size: int) -> int:
    """Elements that a rank holds before ZeRO."""
    return parameter.numel // ep_size if parameter.is_expert else parameter.numel


def groups_of(parameters: Sequence[Parameter]) -> list[list[Parameter]]:
    """Trained parameters by group of the optimizer."""
    groups: dict[tuple[str, bool], list[Parameter]] = {}
    for parameter in parameters:
        if parameter.is_trained:
            groups.setdefault((parameter.owner, parameter.decays), []).append(parameter)
    return [groups[key] for key in sorted(groups)]


def sizes_of(parameters: Sequence[Parameter], *, engine: EngineConfig, world_size: int) -> Sizes:
    """Elements on the rank that holds most."""
    ep_size = engine.ep_size
    groups = groups_of(parameters)
    partitions, straddling = [], [0] * world_size
    for group in groups:
        ranks = world_size // ep_size if group[0].is_expert else world_size
        numels = [local_numel(held, ep_size=ep_size) for held in group]
        alignment = 2 * ranks
        partition = -(-sum(numels) // alignment) * 2
        partitions.append(partition)
        for rank in range(ranks):
            first, last = rank * partition, (rank + 1) * partition
            straddling[rank] += _overlapping(numels, first=first, last=last)
    return Sizes(
        held=sum(local_numel(held, ep_size=ep_size) for held in parameters),
        trained=sum(local_numel(held, ep_size=ep_size) for held in parameters if held.is_trained),
        partition=sum(partitions),
        largest_group=max(partitions, default=0),
        straddling=max(straddling),
    )


def _overlapping(numels: Sequence[int], *, first: int, last: int) -> int:
    """Elements of those that have any between two places, counted whole."""
    total, start = 0, 0
    for numel in numels:
        if start < last and start + numel > first:
            total += numel
        start += numel
    return total


def rank_memory(
    parameters: Sequence[Parameter],
    footprints: Sequence[Footprint],
    *,
    engine: EngineConfig,
    world_size: int,
    num_moments: int,
    use_gpu: bool,
) -> RankMemory:
    """The most that a rank needs at any moment of any step.

    Args:
        parameters: of the whole model.
        footprints: of the steps there are, as the engine keeps gradients (`keeps_gradients`).
        engine: its config.
        world_size: ranks.
        num_moments: states of the optimizer for each parameter.
        use_gpu: whether the ranks have GPUs.
    """
    kept = _Kept(parameters, engine, world_size, num_moments, use_gpu)
    moments = [
        replace(memory, task=", ".join(found.batches))
        for found in footprints
        for memory in kept.moments(found)
    ]
    most = max(moments, key=lambda memory: memory.total)
    return kept.offloaded(most) if engine.offload_optimizer else most


def keeps_gradients(engine: EngineConfig) -> bool:
    """Whether whole gradients stay until the end of a step."""
    return engine.name == "torch" or engine.zero_stage < 2


class _Kept:
    """What a rank keeps through a step, and what comes on top at each moment."""

    def __init__(
        self,
        parameters: Sequence[Parameter],
        engine: EngineConfig,
        world_size: int,
        num_moments: int,
        use_gpu: bool,
    ) -> None:
        self.engine, self.use_gpu = engine, use_gpu
        self.width = 2 if engine.precision == "bf16" else FP32
        self.numel: Mapping[str, int] = {
            held.name: local_numel(held, ep_size=engine.ep_size) for held in parameters
        }
        self.parameters = parameters
        self.sizes = sizes_of(parameters, engine=engine, world_size=world_size)
        self.bucket = min(self.sizes.held, MAX_BUCKET)
        is_split = engine.name == "deepspeed" and engine.zero_stage > 0
        stepped = self.sizes.partition if is_split else self.sizes.trained
        has_masters = is_split or self.width < FP32
        self.base = RankMemory(
            weights=self.width * self.sizes.held,
            masters=FP32 * stepped if has_masters else 0,
            moments=num_moments * FP32 * stepped,
        )

    def moments(self, found: Footprint) -> list[RankMemory]:
        """The moments of a step."""
        reached = sum(self.numel[name] for name in found.trained)
        if self.engine.name == "torch":
            return self._plain(found, reached)
        if self.engine.zero_stage == 0:
            return self._replicated(found, reached)
        if self.engine.zero_stage == 3:
            return self._whole_split(found, reached)
        return self._states_split(found, reached)

    def _plain(self, found: Footprint, reached: int) -> list[RankMemory]:
        """One process: gradients come in backward and stay until the step, then in fp32."""
        owners = {held.owner for held in self.parameters if held.name in found.trained}
        stepped = sum(
            self.numel[held.name]
            for held in self.parameters
            if held.is_trained and held.owner in owners
        )
        kept = self.width * reached if self.engine.accumulation > 1 else 0
        step = replace(self.base, gradients=FP32 * stepped, moment="step")
        if self.width < FP32:
            kept = (FP32 * reached) if self.engine.accumulation > 1 else 0
            step = replace(step, gradients=FP32 * stepped + self.width * reached)
        return [self._backward(found, gradients=min(kept, found.peak)), step]

    def _backward(self, found: Footprint, *, gradients: int, buckets: int = 0) -> RankMemory:
        peak = found.peak if keeps_gradients(self.engine) else found.activations
        shown = min(gradients, peak)
        return replace(self.base, gradients=shown, buckets=buckets, activations=peak - shown)

    def _replicated(self, found: Footprint, reached: int) -> list[RankMemory]:
        """ZeRO 0: every parameter gets a gradient, and they are added in one flat copy."""
        gradients = FP32 * self.sizes.trained
        flat = FP32 * min(self.sizes.trained, ALL_REDUCE_BUCKET)
        return [
            self._backward(found, gradients=max(0, found.peak - found.activations)),
            replace(self.base, gradients=gradients, buckets=flat, moment="reduction"),
        ]

    def _states_split(self, found: Footprint, reached: int) -> list[RankMemory]:
        """ZeRO 1 and 2: a bucket all through backward, a flat copy of it when it is reduced."""
        bucket, flat = self.width * self.bucket, self.width * min(reached, self.bucket)
        share = 1 - reached / max(1, self.sizes.trained)  # gets zeros in place of gradients
        filled = int(self.width * self.sizes.straddling * share)
        sums_fp32 = self.engine.zero_stage == 2 and self.width < FP32
        owned = (
            FP32 * min(self.sizes.partition, reached)
            if sums_fp32
            else self.width * self.sizes.straddling + filled
        )
        during = flat + owned if sums_fp32 else max(flat, owned)
        widest = 0 if sums_fp32 else FP32 * self.sizes.largest_group
        grown = max(0, found.peak - found.activations)
        return [
            self._backward(found, gradients=grown, buckets=bucket),
            replace(self.base, gradients=during, buckets=bucket, moment="reduction"),
            replace(self.base, gradients=owned + widest, moment="step"),
        ]

    def _whole_split(self, found: Footprint, reached: int) -> list[RankMemory]:
        """ZeRO 3: weights in parts; small ones and, up to a bound, gathered ones stay whole."""
        small = sum(numel for numel in self.numel.values() if numel < PERSISTENT)
        large = sum(self.numel[name] for name in found.trained if self.numel[name] >= PERSISTENT)
        frozen = self.sizes.held - self.sizes.trained
        parts = self.sizes.partition + frozen
        gathered = small + min(large, MAX_LIVE)
        base = replace(
            self.base,
            weights=self.width * (parts + gathered),
            gradients=FP32 * (self.sizes.partition + self.sizes.largest_group),
            buckets=self.width * self.bucket,
        )
        flat = self.width * min(reached, self.bucket) * (1 if self.use_gpu else 2)
        return [
            replace(base, activations=found.activations),
            replace(base, buckets=base.buckets + flat, moment="reduction"),
            replace(base, moment="step"),
        ]

    def offloaded(self, memory: RankMemory) -> RankMemory:
        """The optimizer's states on the CPU. Without a GPU they are in the same memory."""
        if not self.use_gpu:
            return replace(memory, host=0)
        host = memory.masters + memory.moments + FP32 * self.sizes.partition
        return replace(memory, masters=0, moments=0, host=host)
