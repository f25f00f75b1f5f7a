"""Passes: how often a micro-batch goes through the model, and with which masks.

A model without masks takes it once. One with masks takes it once for each union of subtasks that
is drawn for the step, and learns from the weighted mean. The gates have the masks while a pass is
open, which is until its gradients are there: what is computed again in backward is masked too.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmtrain.engines import EngineConfig
from mmtrain.layers.units import gated
from mmtrain.masks.attach import add_masks
from mmtrain.masks.banks import MaskBank, MaskError
from mmtrain.masks.kept import KeptPoint, kept_point
from mmtrain.masks.objective import utility_price
from mmtrain.masks.sampling import Draw, draw_unions
from mmtrain.masks.subtasks import Subtasks, resolve_subtasks
from mmtrain.models.model import MASKS, MultiTaskModel
from mmtrain.recipe import Recipe
from pipelines.batch import Batch


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of a micro-batch through the model.

    Args:
        subtasks: basis subtasks of the union whose masks the model has; empty: it has none.
        share: weight of the pass's loss in the micro-batch's.
        part: 1 / passes of the micro-batch.
        classes: ids of the task's classes that are in the union; None: nobody divides the task.
        beta: weight in the loss of such a class, others weighing 1.
        price: of the union's units, once for the step; None: without masks.
    """

    subtasks: tuple[str, ...] = ()
    share: float = 1.0
    part: float = 1.0
    classes: tuple[int, ...] | None = None
    beta: float = 1.0
    price: Tensor | None = None


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
    scales: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def build(cls, recipe: Recipe, model: MultiTaskModel) -> Self:
        """As a recipe asks for them; the model is given its masks."""
        config = recipe.pruning
        if config is None:
            return cls(model, None, Subtasks({}, {}), recipe.seed)
        masks = add_masks(model, config, seed=recipe.seed)
        scales = {MASKS: config.learning_rate_scale}
        return cls(model, masks, subtasks_of(recipe), recipe.seed, scales)

    def each(self, micros: Iterable[Batch]) -> Iterator[tuple[Batch, Pass]]:
        """Micro-batches, each with all of its passes."""
        for micro in micros:
            for masked in self.of_task(micro.task, step=micro.step):
                yield micro, masked

    def of_task(self, task: str, *, step: int) -> Iterator[Pass]:
        """The passes of a micro-batch of a task; while one is looked at, the model has its masks.

        Running statistics of batch norms are those of all subtasks together, where that union
        takes part at every step; else a mixture over unions.
        """
        draws = self.draws(task, step=step)
        if self.masks is None or not draws:
            yield Pass()  # nobody divides the model for this task
            return
        has_whole = any(self._is_whole(draw) for draw in draws)
        for draw in draws:
            worn = self.masks.masks(draw.subtasks)
            stills = has_whole and not self._is_whole(draw)
            with gated(self.model, worn.gates), still_norms(self.model, stills=stills):
                yield Pass(
                    subtasks=draw.subtasks,
                    share=draw.share,
                    part=1 / len(draws),
                    classes=self.subtasks.classes(draw.subtasks, task=task),
                    beta=self.masks.config.beta,
                    price=utility_price(self.masks, worn, step=step),
                )

    def draws(self, task: str, *, step: int) -> tuple[Draw, ...]:
        """The unions of a task's passes at a step: the same on all ranks. None without masks."""
        if self.masks is None:
            return ()
        within = self.subtasks.containing(task)
        return draw_unions(self.masks.config, seed=self.seed, step=step, within=within)

    @contextmanager
    def whole(self) -> Iterator[None]:
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
def still_norms(model: nn.Module, *, stills: bool) -> Iterator[None]:
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


def subtasks_of(recipe: Recipe) -> Subtasks:
    """What the subtasks of a recipe with masks stand for.

    Raises:
        UnknownNameError: a subtask names a task or class that is not there.
        MaskError: subtasks that the tasks or the config do not allow.
    """
    assert recipe.pruning is not None, "asked of a recipe with masks"
    return resolve_subtasks(
        recipe.pruning,
        targets={name: task.targets for name, task in recipe.tasks.items()},
        losses={name: task.loss or task.targets.loss for name, task in recipe.tasks.items()},
    )


def check_pruning(recipe: Recipe) -> None:
    """Refuses, before any process starts, masks that cannot be learned; without masks nothing.

    Raises:
        UnknownNameError: a subtask names a task or class that is not there.
        MaskError: names the fields at odds and what works.
    """
    if recipe.pruning is None:
        return
    _check_engine(recipe.engine)
    subtasks = subtasks_of(recipe)
    if recipe.pruning.train == "masks":
        idle = [task for task in recipe.tasks if not subtasks.containing(task)]
        if idle:
            raise MaskError(
                f"pruning.train=masks leaves {', '.join(idle)} nothing to train, for no subtask "
                "has it; add it to one, drop it with --task, or set pruning.train=all"
            )


def _check_engine(engine: EngineConfig) -> None:
    if engine.name == "deepspeed" and engine.zero_stage == 3:
        raise MaskError(
            "masks are read whole before a pass, engine.zero_stage=3 holds parts of them; "
            "set engine.zero_stage=2, or pruning=null"
        )
