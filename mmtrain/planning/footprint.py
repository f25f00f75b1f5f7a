"""What a training step holds in memory, traced on tensors without data.

The model, its loss and the backward pass are the run's own; every tensor that is made is weighed
while it lives. So what autograd keeps, what is computed again and what is gone by then is known and
not guessed. What depends on data is taken evenly: every position is real, every expert gets as many
rows as the others.
"""

import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mmtrain.engines.ranks import Ranks
from mmtrain.engines.recompute import recompute_blocks
from mmtrain.layers.experts import Experts, expert_share, is_expert
from mmtrain.layers.moe import MoE
from mmtrain.layers.timing import forget_tables
from mmtrain.losses.balancing import add_log_variances
from mmtrain.models.model import MultiTaskModel, TaskSpec, build_model
from mmtrain.planning.longest import LongestBatch, zeros
from mmtrain.recipe import Recipe
from mmtrain.run.components import build_objective, run_optimizer
from mmtrain.run.model import fitted, task_specs
from mmtrain.start.initialize import frozen_owners
from mmtrain.step.passes import Passes
from mmtrain.step.rates import step_rates
from pipelines.batch import Batch
from pipelines.vocabulary import Vocabulary

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one step needs beside weights and the optimizer's states, in bytes.

    Args:
        batches: the micro-batches' tasks and sizes.
        activations: most that is alive at once of activations, inputs and workspace, with
            gradients that are accumulated left out.
        peak: most that is alive at once, gradients included.
        trained: names of the parameters that got a gradient.
        exchanged: of rows that go to other ranks' experts and back, on one rank.
    """

    batches: tuple[str, ...]
    activations: int
    peak: int
    trained: frozenset[str]
    exchanged: int


class _Weigher(TorchDispatchMode):
    """Weighs the storages that operations make, until they are freed.

    Data that decides shapes is made up: see the module. `MemTracker` of torch 2.13's
    `distributed._tools` finds the same bytes in 4 to 10 times as long, for it goes through all
    modules at every operation, and it refuses a model that is called twice in a step.

    Args:
        model: its parameters and buffers are not weighed, views of them neither.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.activations = self.peak = 0
        held = (*model.parameters(), *model.buffers())
        self._alive = {tensor.untyped_storage()._cdata: 0 for tensor in held}
        self._gradients: set[int] = set()
        self._now = self._now_gradients = 0
        self.rows: int | None = None  # routed rows of the expert layer that is at work

    def add(self, tensor: Tensor) -> None:
        """Weighs the memory of a tensor, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._free, key)
        self.peak = max(self.peak, self._now)
        self.activations = max(self.activations, self._now - self._now_gradients)

    def add_gradient(self, tensor: Tensor) -> None:
        """From now on its memory counts as a gradient."""
        key = tensor.untyped_storage()._cdata
        if key not in self._gradients and key in self._alive:
            self._gradients.add(key)
            self._now_gradients += self._alive[key]

    def _free(self, key: int) -> None:
        size = self._alive.pop(key)
        self._now -= size
        if key in self._gradients:
            self._gradients.remove(key)
            self._now_gradients -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return 1.0
        if func is aten.bincount.default:
            return self._even_counts(args[0].numel(), kwargs.get("minlength", args[-1]))
        if func is aten.nonzero.default:
            out = args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
        elif _is_real((args, kwargs)):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        else:
            out = func(*args, **kwargs)
        for tensor in tree_iter(out):
            if isinstance(tensor, FakeTensor):
                self.add(tensor)
        return out

    def _even_counts(self, rows: int, num_experts: int) -> Tensor:
        if self.rows is None:
            self.rows = rows
        with unset_fake_temporarily():
            counts_E = torch.full((num_experts,), self.rows // num_experts)
            counts_E[: self.rows % num_experts] += 1
        return counts_E


def _is_real(arguments: Any) -> bool:
    """Whether an operation works on made-up counts alone."""
    tensors = [value for value in tree_iter(arguments) if isinstance(value, Tensor)]
    return bool(tensors) and all(
        tensor.dtype == torch.int64 and not isinstance(tensor, FakeTensor) and tensor.ndim == 1
        for tensor in tensors
    )


class _ForwardOnly:
    """The side of an engine that a loss needs."""

    def __init__(self, model: nn.Module, *, low_precision: bool) -> None:
        self.model, self._low_precision = model, low_precision

    def forward(self, **inputs: Any) -> Any:
        """As the engines do it."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._low_precision):
            return self.model(**inputs)


def planned_specs(recipe: Recipe) -> list[TaskSpec]:
    """What the model must know of each task. Ids of commands are made up: they change no size."""
    commands = {task.command: None for task in recipe.tasks.values() if task.command}
    return task_specs(recipe, Vocabulary(text="", commands=tuple(commands)))


def meta_model(recipe: Recipe) -> tuple[MultiTaskModel, Passes]:
    """The recipe's model as training sees it, with masks and frozen owners, without memory."""
    with torch.device("meta"):
        model = build_model(fitted(recipe), planned_specs(recipe), seed=recipe.seed)
        passes = Passes.build(recipe.pruning, model, tasks=recipe.tasks, seed=recipe.seed)
        if recipe.balancing == "uncertainty":
            add_log_variances(model)
    frozen = frozen_owners(model, recipe.frozen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(model.parameter_owner(name) not in frozen)
    return model, passes


class StepTracer:
    """Traces steps of a recipe.

    Args:
        recipe: what is trained; its engine's precision, experts and recomputation count.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._model, self._passes = meta_model(recipe)
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._held = [layer for layer in self._model.modules() if isinstance(layer, MoE)]
        self._exchanged = 0
        low_precision = recipe.engine.precision == "bf16"
        with self._fake:
            _make_fake(self._model, low_precision=low_precision, ep_size=recipe.engine.ep_size)
        self._names = {id(held): name for name, held in self._model.named_parameters()}
        for layer in self._held:
            layer.experts.forward = self._shared_by_ranks(layer.experts)  # type: ignore[method-assign]
        if recipe.engine.activation_checkpointing:
            recompute_blocks(self._model)
        self._engine: Any = _ForwardOnly(self._model, low_precision=low_precision)

    def _shared_by_ranks(self, experts: Experts) -> Any:
        """As many rows come from other ranks as leave; one expert takes all in the same memory."""
        forward, held = experts.forward, experts.w_in.shape[0]
        share = expert_share(experts.w_in)
        is_divided = share is not None and held < share.num_experts

        def run(rows_ND: Tensor, counts: Sequence[int]) -> Tensor:
            if is_divided:  # there and back, and their gradients; computed again, once more
                ways = 2 if torch._C._current_graph_task_id() >= 0 else 4
                self._exchanged += ways * rows_ND.nbytes
            return forward(rows_ND, [sum(counts), *[0] * (held - 1)])

        return run

    def trace(
        self, batches: Sequence[LongestBatch], *, world_size: int, keeps_gradients: bool
    ) -> Footprint:
        """One step of these batches, in order.

        Args:
            batches: a global batch of each task of the step.
            world_size: ranks that share each.
            keeps_gradients: whether gradients stay until all ranks' are added, or leave one by one.
        """
        weigher = _Weigher(self._model)
        self._exchanged, tasks = 0, self._recipe.tasks
        ranks = Ranks(rank=0, world_size=world_size, device=torch.device("cpu"))
        trained: set[str] = set()
        with self._fake, self._watched(weigher, trained, keeps_gradients=keeps_gradients), weigher:
            for batch in batches:
                parts = self._recipe.engine.accumulation
                micro = zeros(batch, tasks[batch.task], size=-(-batch.size // (world_size * parts)))
                for _ in range(min(parts, 2)):  # from the second on, gradients are there
                    self._pass(micro, ranks)
                weigher.peak += micro.inputs.nbytes + micro.targets.nbytes
                weigher.activations += micro.inputs.nbytes + micro.targets.nbytes
        for parameter in self._model.parameters():
            parameter.grad = None
        return Footprint(
            batches=tuple(batch.task for batch in batches),
            activations=weigher.activations,
            peak=weigher.peak,
            trained=frozenset(trained),
            exchanged=self._exchanged * self._recipe.engine.accumulation,
        )

    def _pass(self, micro: Batch, ranks: Ranks) -> None:
        recipe, task = self._recipe, micro.task
        rates = step_rates(
            run_optimizer(recipe),
            step=0,
            num_steps=recipe.num_steps,
            tasks={task: recipe.tasks[task]},
            owners={task: self._model.owners(task)},
            scales=self._passes.scales,
        )
        count: Mapping[str, Tensor] = {task: torch.ones(())}
        objective = build_objective(recipe, ranks)
        for drawn in self._passes.of_task(task, step=0):
            with self._passes.masked(drawn):
                micro_loss = objective.micro_loss(
                    self._engine, micro, num_targets=count, rates=rates, masked=drawn
                )
                micro_loss.share.backward()

    @contextmanager
    def _watched(
        self, weigher: _Weigher, trained: set[str], *, keeps_gradients: bool
    ) -> Generator[None]:
        """Within, gradients are noted as they come, and dropped if they do not stay."""

        def note(parameter: Tensor) -> None:
            trained.add(self._names[id(parameter)])
            if keeps_gradients:
                assert parameter.grad is not None
                weigher.add_gradient(parameter.grad)
            else:
                parameter.grad = None

        def begin(*_: object) -> None:
            weigher.rows = None

        handles = [layer.register_forward_pre_hook(begin) for layer in self._held]
        handles += [
            parameter.register_post_accumulate_grad_hook(note)
            for parameter in self._model.parameters()
            if parameter.requires_grad
        ]
        try:
            yield
        finally:
            forget_tables()
            for handle in handles:
                handle.remove()


def _make_fake(model: nn.Module, *, low_precision: bool, ep_size: int) -> None:
    """Replaces parameters and buffers without data by ones that operations can be traced on."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            shape = list(parameter.shape)
            if is_expert(parameter):
                shape[0] //= ep_size
            dtype = torch.bfloat16 if low_precision else parameter.dtype
            fake = nn.Parameter(torch.empty(shape, dtype=dtype), parameter.requires_grad)
            vars(fake).update(vars(parameter))
            setattr(module, name, fake)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
