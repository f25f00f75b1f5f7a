"""The sharding engine: DeepSpeed ZeRO 0 to 3 over any number of ranks, experts over some of them.

DeepSpeed averages gradients over ranks; the loss is multiplied by their number beforehand, so that
gradients are those of the summed loss whatever the sharding. `step` is the boundary between
optimizer steps, however many micro-batches came before it.

DeepSpeed finds layers of experts by their class. Ours do not import it; an empty module of that
class stands beside the model and tells it that experts are there.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmtrain.engines import EngineConfig, ParameterState, StepStats, check_combination
from mmtrain.engines.clipping import ClippedOptimizer
from mmtrain.engines.open_outputs import open_outputs
from mmtrain.engines.optim import OptimizerConfig, OwnerOptimizer, parameter_groups
from mmtrain.engines.pieces import (
    Entry,
    Piece,
    averaged_buffers,
    entries,
    match_states,
    parameter_of,
    persistent_buffers,
    read_entry,
    write_entry,
    writers,
)
from mmtrain.engines.recompute import recompute_blocks
from mmtrain.engines.wrapped import Wrapped
from mmtrain.engines.zero import ZeroInternals
from mmtrain.engines.zero_config import zero_config
from mmtrain.layers.experts import is_expert
from mmtrain.process.environment import set_for_good
from mmtrain.process.logs import hush


def build(
    config: EngineConfig, *, model: nn.Module, optimizer: OptimizerConfig, device: torch.device
) -> "DeepSpeedEngine":
    """See `mmtrain.engines.build_engine`. Opens a process group of one where none is open."""
    _start_process_group(device)
    stacks = [parameter.shape[0] for parameter in model.parameters() if is_expert(parameter)]
    check_combination(config, world_size=dist.get_world_size(), num_experts=stacks)
    return DeepSpeedEngine(config, model=model, optimizer=optimizer, device=device)


class DeepSpeedEngine:
    """See `mmtrain.engines.Engine`."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        model: nn.Module,
        optimizer: OptimizerConfig,
        device: torch.device,
    ) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.model, self.device = model.to(device), device
        self._entries = entries(model)
        if config.activation_checkpointing:
            recompute_blocks(model)
        self._expert_group = shard_experts(model, ep_size=config.ep_size)
        self._parameters = dict(model.named_parameters())
        self._ep_size, self._low_precision = config.ep_size, config.precision == "bf16"
        self._stage = config.zero_stage
        self._frozen = self._frozen_weights() if self._low_precision else {}
        kind = OwnerOptimizer if self._stage else ClippedOptimizer
        self._optimizer = kind(self._groups(optimizer), config=optimizer)
        self._engine = self._initialize(config, optimizer=optimizer)
        self._zero: ZeroInternals | None = None
        if self._stage:
            self._zero = ZeroInternals(
                self._engine.optimizer,
                stage=self._stage,
                optimizer=self._optimizer,
                offloads=config.offload_optimizer,
            )
        self._optimizer.create_states(part for parts in self._stepped().values() for part in parts)
        if self._zero:
            self._zero.link_states()

    def _frozen_weights(self) -> dict[str, Tensor]:
        """Frozen fp32 weights, on the CPU of the ranks that hand them out: the model's become bf16,
        and without an optimizer there are no others.
        """
        return {
            name: parameter.detach().float().cpu().clone().view(-1)
            for name, parameter in self._parameters.items()
            if not parameter.requires_grad and self._is_first_copy(parameter)
        }

    def _is_first_copy(self, parameter: nn.Parameter) -> bool:
        """Whether no lower rank holds the same elements of an unsharded parameter."""
        return self.rank < (self._ep_size if is_expert(parameter) else 1)

    def _groups(self, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
        groups = parameter_groups(
            self._parameters.items(),
            owner_of=self.model.parameter_owner,  # type: ignore[operator]  # Module.__getattr__
            weight_decay=optimizer.weight_decay,
        )
        if self._expert_group is not None:
            for group in groups:
                if any(is_expert(parameter) for parameter in group["params"]):
                    group |= {"moe": True, "name": self._expert_group}
        return groups

    def _trains_sharded_experts(self) -> bool:
        """Frozen experts are in no group of the optimizer, where DeepSpeed would look for them."""
        trained = (parameter for parameter in self._parameters.values() if parameter.requires_grad)
        return self._expert_group is not None and any(is_expert(held) for held in trained)

    def _initialize(self, config: EngineConfig, *, optimizer: OptimizerConfig) -> Any:
        import deepspeed

        wrapped = Wrapped(
            self.model,
            device=self.device,
            low_precision=self._low_precision,
            mark=_experts_mark() if self._trains_sharded_experts() else None,
        )
        size = sum(parameter.numel() for parameter in self._parameters.values())
        engine, *_ = deepspeed.initialize(
            model=wrapped,
            optimizer=self._optimizer,  # type: ignore[arg-type]  # its own Optimizer union is wider
            config=zero_config(config, optimizer=optimizer, size=size),
            dist_init_required=False,
        )
        if self._stage == 3:
            open_outputs(wrapped)
        return engine

    def _stepped(self) -> dict[str, list[Tensor]]:
        """What the optimizer steps on this rank, by owner: parameters, or flat partitions."""
        if self._zero:
            return self._zero.stepped()
        found: dict[str, list[Tensor]] = {}
        for group in self._optimizer.param_groups:
            found.setdefault(group["owner"], []).extend(group["params"])
        return found

    def forward(self, **inputs: Any) -> Any:
        return self._engine(**inputs)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(
        self,
        active_owners: Collection[str],
        *,
        learning_rates: Mapping[str, float],
        betas: tuple[float, float] | None = None,
        momentum: float | None = None,
    ) -> StepStats:
        self._optimizer.take_part(active_owners, learning_rates, betas, momentum)
        self._engine.step()
        if isinstance(self._optimizer, ClippedOptimizer):
            norm = self._optimizer.gradient_norm
        else:
            assert self._zero is not None
            self._zero.drop_stale_gradients()
            norm = self._zero.gradient_norm()
        return StepStats(norm, self._optimizer.active_rates())

    def parameter_states(self) -> Iterator[ParameterState]:
        steps = {
            owner: int(self._optimizer.state[tensors[0]]["step"])
            for owner, tensors in self._stepped().items()
        }
        ranks = writers([entry.numel for entry in self._entries], world_size=self.world_size)
        for entry, writer in zip(self._entries, ranks, strict=True):
            trained = self._parameters[entry.parameter].requires_grad
            keys = ("weight", *self._optimizer.rule.states) if trained else ("weight",)
            piece = self._piece(entry, to_read=True)
            tensors = read_entry(entry, piece, keys=keys, writer=writer)
            if tensors is not None:
                count = steps[self._owner(entry)] if trained else 0
                yield ParameterState(entry.name, tensors, count)
        for name, buffer in averaged_buffers(self.model).items():
            if self.rank == 0:
                yield ParameterState(name, {"weight": buffer}, 0)

    @torch.no_grad()
    def load_parameter_states(self, states: Iterator[ParameterState]) -> None:
        by_name = {entry.name: entry for entry in self._entries}
        buffers = persistent_buffers(self.model)
        stepped = self._stepped()
        for state in match_states(states, expected=[*by_name, *buffers]):
            if state.name in buffers:
                buffers[state.name].copy_(state.tensors["weight"])
                continue
            entry = by_name[state.name]
            write_entry(entry, self._piece(entry, to_read=False), state=state)
            if entry.parameter in self._frozen:
                write_entry(entry, self._piece(entry, to_read=True), state=state)
            if self._parameters[parameter_of(state.name)].requires_grad:
                for tensor in stepped[self._owner(entry)]:
                    self._optimizer.state[tensor]["step"].fill_(state.step)
        if self._zero:
            self._zero.update_working_weights()

    def model_state(self) -> dict[str, Tensor]:
        buffers = averaged_buffers(self.model)
        weights: dict[str, list[Tensor]] = {}
        for entry in self._entries:
            piece = self._piece(entry, to_read=True)
            tensors = read_entry(entry, piece, keys=("weight",), writer=0)
            if tensors is not None:
                weights.setdefault(entry.parameter, []).append(tensors["weight"])
        if self.rank != 0:
            return {}
        full = {
            name: torch.stack(parts) if is_expert(self._parameters[name]) else parts[0]
            for name, parts in weights.items()
        }
        return full | buffers

    def _owner(self, entry: Entry) -> str:
        return self.model.parameter_owner(entry.parameter)  # type: ignore[operator]

    def _piece(self, entry: Entry, *, to_read: bool) -> Piece | None:
        """This rank's piece of the entry's parameter.

        To read, the pieces of all ranks must be a partition: of copies, rank 0's alone counts.
        """
        parameter = self._parameters[entry.parameter]
        start = self._start(parameter)
        if to_read and self._low_precision and not parameter.requires_grad:
            kept = self._frozen.get(entry.parameter)  # the fp32 weights
            return None if kept is None else Piece(start, {"weight": kept})
        if self._zero and (self._stage == 3 or parameter.requires_grad):
            return self._zero.piece(parameter, start=start)
        if to_read and not self._is_first_copy(parameter):
            return None
        tensors = {"weight": parameter.detach().view(-1)}
        if parameter.requires_grad:
            kept = self._optimizer.state[parameter]
            tensors |= {key: kept[key].view(-1) for key in self._optimizer.rule.states}
        return Piece(start, tensors)

    def _start(self, parameter: nn.Parameter) -> int:
        """Where this rank's elements begin, of all experts' if they are sharded."""
        if self._expert_group is None or not is_expert(parameter):
            return 0
        return dist.get_rank(_expert_parallel_group(self._expert_group)) * parameter.numel()


def shard_experts(model: nn.Module, *, ep_size: int) -> str | None:
    """Leaves each rank its share of the experts. Returns the name of DeepSpeed's group, if any."""
    if ep_size == 1:
        return None  # experts are then parameters like all others
    from deepspeed.utils import groups

    name = f"ep_size_{ep_size}"
    if name not in groups._get_expert_parallel_group_dict():
        groups._create_expert_and_data_parallel(ep_size)
    for module in model.modules():
        if hasattr(module, "shard_experts"):
            frozen = [key for key, held in module.named_parameters() if not held.requires_grad]
            module.shard_experts(_expert_parallel_group(name))  # type: ignore[operator]
            for key in frozen:  # the shards are new parameters
                module.get_parameter(key).requires_grad_(False)
    for parameter in model.parameters():
        if is_expert(parameter):
            vars(parameter).update(allreduce=False, group_name=name)  # DeepSpeed's marks
    return name


def _expert_parallel_group(name: str) -> Any:
    from deepspeed.utils import groups

    return groups._get_expert_parallel_group(name)


def _experts_mark() -> nn.Module:
    """An empty module that DeepSpeed takes for its own layer of experts."""
    from deepspeed.moe.layer import MoE

    class ExpertsMark(MoE):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.num_experts = 0

        def set_deepspeed_parallelism(self, *_: object, **__: object) -> None:
            """The groups are there already."""

    return ExpertsMark()


def _start_process_group(device: torch.device) -> None:
    """Makes DeepSpeed use the process group that is open, or one of this process alone."""
    accelerator = {"DS_ACCELERATOR": "cpu"} if device.type == "cpu" else {}
    set_for_good({**accelerator, "LOCAL_RANK": str(device.index or 0)})
    import deepspeed

    hush("DeepSpeed")  # it warns of what is meant to be so
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a compiler is needed
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = dist.HashStore()  # type: ignore[attr-defined]  # exported, the stubs miss it
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(
        dist_backend=dist.get_backend(), auto_mpi_discovery=False, dist_init_required=False
    )
