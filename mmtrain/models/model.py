"""The model of many tasks: head(body(stem(inputs))), for every family.

`MultiTaskModel` owns stems (one for each input net), a body and heads (one for each output net, or
for each task where a net has a fixed set of classes), and the only `forward`; `config.py` says
what makes a family.

Every parameter has one owner, and a step on a task trains whole owners: `owners(task)`.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from mmtrain import modalities
from mmtrain.layers.encoded import Encoded
from mmtrain.layers.experts import copy_share, is_expert
from mmtrain.layers.units import ScaleSite, UnitGroup, below, join_groups, join_sites
from mmtrain.models.config import ModelConfig, TaskSpec, load_family
from pipelines.errors import MMTrainError, UnknownNameError

__all__ = ["Encoded", "ModelConfig", "MultiTaskModel", "Outputs", "TaskSpec", "build_model"]

# Parameters above which weights are not drawn only to be replaced: orthogonal ones take minutes at
# 10^9. Below, torch's meta device would be the slower way: its first use imports for 1.8 s.
_LARGE = 50_000_000
LOG_VARIANCES = "log_variances"  # child that loss balancing adds: a parameter "of_<task>" for each
MASKS = "masks"  # child that pruning adds: the masks of subtasks; it knows which tasks train them


class ModelError(MMTrainError):
    """Tasks or settings that do not make a model."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a forward pass hands to the loss.

    Args:
        logits: (B, T, V) for sequences, (B, V) for classes.
        auxiliary_loss: the experts' balancing losses, already weighted: a mean-like scalar of this
            rank's micro-batch.
        routing: rows sent to each expert, (E,) int64 by layer name; detached.
    """

    logits: Tensor
    auxiliary_loss: Tensor
    routing: Mapping[str, Tensor] = field(default_factory=dict)


class MultiTaskModel(nn.Module):
    """One model of all tasks. Built by `build_model`."""

    def __init__(self, config: ModelConfig, tasks: Iterable[TaskSpec]) -> None:
        super().__init__()
        self.config = config
        self.tasks = {task.name: task for task in tasks}
        self.stems, self.adapters, self.heads = (nn.ModuleDict() for _ in range(3))
        family = load_family(config.family)
        build_adapter = getattr(family, "build_adapter", lambda _: None)
        for task in self.tasks.values():
            if task.stem not in self.stems:
                self.stems[task.stem] = self._build_stem(task)
                if adapter := build_adapter(units_of_adapter(config.body, task.stem)):
                    self.adapters[task.stem] = adapter
            if head_name(task) not in self.heads:
                self.heads[head_name(task)] = self._build_head(task)
        self.body: Any = family.Body(config.body)
        self._leave_out_unread_parts()

    def _leave_out_unread_parts(self) -> None:
        """The body keeps what some head reads: without sequences to decode, no decoder."""
        reads = {cast(Any, head).reads for head in self.heads.values()}
        kept = {part for read in reads for part in self.body.parts(read)}
        for name, _ in list(self.body.named_children()):
            if name not in kept:
                setattr(self.body, name, None)

    def _build_stem(self, task: TaskSpec) -> nn.Module:
        build = modalities.load(task.input_net).Input
        if build is None:
            raise ModelError(f"task {task.name}: net {task.input_net!r} takes no inputs")
        return build(self._net_config(task.input_net), **self._sizes())

    def _build_head(self, task: TaskSpec) -> nn.Module:
        if not hasattr(load_family(self.config.family).Body, "decode") and task.num_outputs is None:
            raise ModelError(
                f"task {task.name}: family {self.config.family!r} decodes no sequences; use a "
                "target with a fixed number of scores, or family 'multimodel'"
            )
        build = modalities.load(task.output_net).Output
        if build is None:
            raise ModelError(f"task {task.name}: net {task.output_net!r} makes no outputs")
        config = self._net_config(task.output_net)
        head = build(
            modalities.with_init(config, task.head_init, task=task.name),
            **self._sizes(),
            num_outputs=task.num_outputs,
            dims=modalities.load(task.input_net).Input.dims,
        )
        if head.reads == "decoded" and task.num_outputs is None and task.command_id is None:
            raise ModelError(f"task {task.name}: a sequence is decoded from a command; name one")
        return head

    def _net_config(self, net: str) -> BaseModel:
        return self.config.nets.get(net) or modalities.load(net).Config()

    def _sizes(self) -> dict[str, int]:
        model_dim = cast(Any, self.config.body).model_dim
        return {"model_dim": model_dim, "vocab_size": self.config.vocab_size or 0}

    def forward(
        self,
        *,
        task: str,
        inputs: Tensor,
        input_lengths: Tensor,
        targets: Tensor | None,
        target_lengths: Tensor | None = None,
    ) -> Outputs:
        """One micro-batch of one task.

        Args:
            task: name of the task.
            inputs: (B, S, ...) as the task's input net takes them.
            input_lengths: (B,) real positions of axis 1.
            targets: (B, T) token ids padded with 0 and ended by 1; for classes not read.
            target_lengths: (B,); None: every id that is not 0 is real.
        """
        encoded = self.encode(task, inputs=inputs, input_lengths=input_lengths)
        return self.answer(task, encoded, targets=targets, target_lengths=target_lengths)

    def answer(
        self,
        task: str,
        encoded: Encoded,
        *,
        targets: Tensor | None = None,
        target_lengths: Tensor | None = None,
    ) -> Outputs:
        """What the task's head makes of what `encode` left, of this task or one with its inputs."""
        spec = self.task(task)
        head: Any = self.heads[head_name(spec)]
        balance = encoded.balance
        if head.reads == "decoded":
            if targets is None:
                values_BSD = encoded.values_BSD
                targets = values_BSD.new_zeros((values_BSD.shape[0], 1)).long()
            shifted = head.start(targets, command_id=spec.command_id, lengths_B=target_lengths)
            encoded = self.body.decode(shifted, encoded)
            balance += encoded.balance
        logits = head(encoded)
        losses = [layer.loss for layer in balance]
        return Outputs(
            logits=logits,
            auxiliary_loss=torch.stack(losses).sum() if losses else logits.new_zeros(()),
            routing={layer.layer: layer.counts_E for layer in balance},
        )

    def encode(self, task: str, *, inputs: Tensor, input_lengths: Tensor) -> Encoded:
        """The input of a task as the body's encoder leaves it."""
        spec = self.task(task)
        encoded = self.stems[spec.stem](inputs, input_lengths)
        encoded = replace(encoded, drop_layer=spec.drop_layer)
        if spec.stem in self.adapters:
            return self.adapters[spec.stem](encoded, self.body)
        return self.body.encode(encoded)

    def head(self, task: str) -> Any:
        """The head of a task."""
        return self.heads[head_name(self.task(task))]

    def task(self, name: str) -> TaskSpec:
        """What the model knows of a task.

        Raises:
            UnknownNameError: the model has no such task.
        """
        if name not in self.tasks:
            raise UnknownNameError("task of the model", name, tuple(self.tasks))
        return self.tasks[name]

    def prunable_units(self) -> tuple[UnitGroup, ...]:
        """Groups of units that may be switched off or cut out: "body.<group>",
        "stems.<net>.<group>", "adapters.<net>.<group>", by paths of this model.

        Raises:
            UnitsError: the body's width can be cut, and a head cannot follow.
        """
        width = f"body.{getattr(self.body, 'output_group', None)}"
        return join_groups(self._parts(), read=width, readers=below("heads", self.heads))

    def scale_sites(self) -> tuple[ScaleSite, ...]:
        """Convolutions whose input channels a scaling mask can multiply, by paths of this model."""
        return join_sites(self._parts())

    def _parts(self) -> dict[str, nn.Module]:
        """Stems, adapters and the body by path, in the order in which an input passes them."""
        nets = below("stems", self.stems) | below("adapters", self.adapters)
        return {**nets, "body": self.body}

    def parameter_owner(self, name: str) -> str:
        """Who owns the parameter of that name; all parameters of an owner train in the same steps.

        "body/<part>", "experts/<part>", "modality/<net>" for a stem and its adapter,
        "modality/<net>_output" for a head that tasks share, "task/<task>" for a head of one task,
        "masks" for those of subtasks.
        """
        kind, child = name.split(".")[:2]
        if kind in ("stems", "adapters"):
            return f"modality/{child}"
        if kind == MASKS:
            return MASKS
        if kind == LOG_VARIANCES:
            return f"task/{child.removeprefix('of_')}"
        if kind == "heads":
            return f"task/{child}" if child in self.tasks else f"modality/{child}_output"
        return f"{'experts' if is_expert(self.get_parameter(name)) else 'body'}/{child}"

    def children_of(self, task: str) -> frozenset[str]:
        """Paths of the nets, the head and the parts of the body that a task's input passes."""
        spec = self.task(task)
        own = {f"stems.{spec.stem}", f"adapters.{spec.stem}", f"heads.{head_name(spec)}"}
        return frozenset(own | {f"body.{part}" for part in self.body.parts(self.head(task).reads)})

    def owners(self, task: str) -> frozenset[str]:
        """Owners whose parameters a step on that task trains, all of them and no others."""
        used = {*self.children_of(task), f"{LOG_VARIANCES}.of_{task}"}
        owners = {
            self.parameter_owner(name)
            for name, _ in self.named_parameters()
            if ".".join(name.split(".")[:2]) in used
        }
        masks: Any = getattr(self, MASKS, None)
        return frozenset(owners | {MASKS} if masks and task in masks.tasks else owners)

    def trained_by(self, task: str) -> list[nn.Parameter]:
        """Parameters of the model itself that a step on that task trains."""
        owners = self.owners(task) - {MASKS}
        named = self.named_parameters()
        return [parameter for name, parameter in named if self.parameter_owner(name) in owners]


def units_of_adapter(body: BaseModel, net: str) -> BaseModel:
    """The body's config with the `units` of one net's adapter, by the adapter's own names.

    The body's config holds them as "adapters.<net>.<group>".
    """
    prefix = f"adapters.{net}."
    units = getattr(body, "units", {})
    own = {name.removeprefix(prefix): n for name, n in units.items() if name.startswith(prefix)}
    return body.model_copy(update={"units": own}) if units else body


def head_name(task: TaskSpec) -> str:
    """Key of a task's head: its own where classes are fixed, else the one its net shares."""
    return modalities.child_name(task.output_net) if task.num_outputs is None else task.name


def build_model(config: ModelConfig, tasks: Iterable[TaskSpec], seed: int) -> MultiTaskModel:
    """The model with weights drawn from `seed`; torch's own generator is left as it was.

    Raises:
        ModelError: a task's nets cannot do what it asks.
        UnknownNameError: no such family or net.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MultiTaskModel(config, tasks)


def model_with(
    config: ModelConfig, tasks: Iterable[TaskSpec], state: Mapping[str, Tensor]
) -> MultiTaskModel:
    """The model with these weights and buffers, whose memory it may share, in evaluation mode.

    Raises:
        RuntimeError: they are another model's.
    """
    size = sum(tensor.numel() for tensor in state.values())
    with torch.device("meta") if size > _LARGE else nullcontext():
        model = build_model(config, tasks, seed=0)
    drawn = dict(model.named_parameters())
    model.load_state_dict(dict(state), assign=True)
    for name, weight in model.named_parameters():
        copy_share(drawn[name], to=weight)  # assigned weights are new parameters
    return model.eval()
