"""Passes: how often a micro-batch goes through the model, and with which masks.

A model without masks takes it once. One with masks takes it once for each union of subtasks that
is drawn for the step, and learns from the weighted mean. The loop puts a pass's masks on the
model's gates (`with passes.masked(...)`) until its gradients are there: what is computed again in
the backward pass is masked too.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmtrain.engines import EngineConfig
from mmtrain.layers.units import gated
from mmtrain.masks.attach import add_masks
from mmtrain.masks.banks import MaskBank, MaskError, SubtaskMasks
from mmtrain.masks.config import PruningConfig
from mmtrain.masks.kept import KeptPoint, kept_point
from mmtrain.masks.objective import utility_price
from mmtrain.masks.sampling import Draw, draw_unions
from mmtrain.masks.subtasks import Subtasks, resolve_subtasks
from mmtrain.models.model import MASKS, MultiTaskModel
from pipelines.batch import Batch
from pipelines.task import Task


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of a micro-batch through the model.

    Args:
        masks: of a union of basis subtasks; None: the pass is without masks.
        share: weight of the pass's loss in the micro-batch's.
        part: 1 / passes of the micro-batch.
        classes: ids of the task's classes that are in the union; None: nobody divides the task.
        beta: weight in the loss of such a class, others weighing 1.
        price: of the union's units, once for the step; None: without masks.
        keeps_statistics: whether batch norms leave their running statistics as they are.
    """

    masks: SubtaskMasks | None = None
    share: float = 1.0
    part: float = 1.0
    classes: tuple[int, ...] | None = None
    beta: float = 1.0
    price: Tensor | None = None
    keeps_statistics: bool = False

    @property
    def subtasks(self) -> tuple[str, ...]:
        """Basis subtasks of the union; empty: the pass is without masks."""
        return self.masks.subtasks if self.masks else ()


@dataclass(frozen=True, slots=True)
class Passes:
    """The passes of a run's micro-batches.

    Args:
        model: takes them.
        masks: the model's; None: it has none, each micro-batch passes once.
        subtasks: what the masks' subtasks stand for.
        seed: of the unions drawn.
        scales: factor of an owner's learning rate.
    """

    model: MultiTaskModel
    masks: MaskBank | None
    subtasks: Subtasks
    seed: int
    scales: Mapping[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def build(
        cls,
        config: PruningConfig | None,
        model: MultiTaskModel,
        *,
        tasks: Mapping[str, Task],
        seed: int,
    ) -> Self:
        """Gives the model its masks, drawn from `seed`; without a config it has none."""
        if config is None:
            return cls(model, None, Subtasks({}, {}), seed)
        masks = add_masks(model, config, seed=seed)
        scales = {MASKS: config.learning_rate_scale}
        return cls(model, masks, subtasks_of(config, tasks), seed, scales)

    def each(self, micros: Iterable[Batch]) -> Iterator[tuple[Batch, Pass]]:
        """Micro-batches, each with all of its passes."""
        for micro in micros:
            for drawn in self.of_task(micro.task, step=micro.step):
                yield micro, drawn

    def of_task(self, task: str, *, step: int) -> Iterator[Pass]:
        """The passes of a micro-batch of a task; the masks of one are made when it is reached.

        Running statistics of batch norms are those of all subtasks together, where that union
        takes part at every step; else a mixture over unions.
        """
        draws = self.draws(task, step=step)
        if self.masks is None or not draws:
            yield Pass()  # nobody divides the model for this task
            return
        has_whole = any(self._is_whole(draw) for draw in draws)
        for draw in draws:
            masks = self.masks.masks(draw.subtasks)
            yield Pass(
                masks,
                share=draw.share,
                part=1 / len(draws),
                classes=self.subtasks.classes(draw.subtasks, task=task),
                beta=self.masks.config.beta,
                price=utility_price(self.masks, masks, step=step),
                keeps_statistics=has_whole and not self._is_whole(draw),
            )

    def draws(self, task: str, *, step: int) -> tuple[Draw, ...]:
        """The unions of a task's passes at a step: the same on all ranks. None without masks."""
        if self.masks is None:
            return ()
        within = self.subtasks.containing(task)
        return draw_unions(self.masks.config, seed=self.seed, step=step, within=within)

    @contextmanager
    def masked(self, drawn: Pass) -> Generator[None]:
        """Within, the model's gates have the masks of a pass; afterwards what they had before."""
        gates = drawn.masks.gates if drawn.masks else {}
        with gated(self.model, gates), still_norms(self.model, stills=drawn.keeps_statistics):
            yield

    @contextmanager
    def whole(self) -> Generator[None]:
        """Within, the model has the masks of all subtasks together."""
        gates = self.masks.masks(self.masks.subtasks).gates if self.masks else {}
        with gated(self.model, {path: mask.detach() for path, mask in gates.items()}):
            yield

    def kept(self) -> KeptPoint | None:
        """What each subtask keeps now; None without masks."""
        return kept_point(self.masks) if self.masks else None

    def _is_whole(self, draw: Draw) -> bool:
        return len(draw.subtasks) == len(self.subtasks.parts)


@contextmanager
def still_norms(model: nn.Module, *, stills: bool) -> Generator[None]:
    """Within, batch norms leave their running statistics as they are, if `stills`."""
    norms = [norm for norm in model.modules() if stills and isinstance(norm, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def subtasks_of(config: PruningConfig, tasks: Mapping[str, Task]) -> Subtasks:
    """What the config's subtasks stand for, of a run's tasks; raises as `resolve_subtasks` does."""
    return resolve_subtasks(
        config,
        targets={name: task.targets for name, task in tasks.items()},
        losses={name: task.loss or task.targets.loss for name, task in tasks.items()},
    )


def check_pruning(
    config: PruningConfig | None, *, tasks: Mapping[str, Task], engine: EngineConfig
) -> None:
    """Refuses, before any process starts, masks that cannot be learned; without a config nothing.

    Raises:
        UnknownNameError: a subtask names a task or class that is not there.
        MaskError: names the fields at odds and what works.
    """
    if config is None:
        return
    if engine.name == "deepspeed" and engine.zero_stage == 3:
        raise MaskError(
            "masks are read whole before a pass, engine.zero_stage=3 holds parts of them; "
            "set engine.zero_stage=2, or pruning=null"
        )
    subtasks = subtasks_of(config, tasks)
    idle = [task for task in tasks if not subtasks.containing(task)]
    if idle and config.train == "masks":
        raise MaskError(
            f"pruning.train=masks leaves {', '.join(idle)} nothing to train, for no subtask "
            "has it; add it to one, drop it with --task, or set pruning.train=all"
        )
