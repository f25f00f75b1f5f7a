"""What a run starts from: `--init-from` weights, and which of them stay frozen.

A source is a trained vision transformer on disk, or a model of ours: a run, a bundle or a
registered version. What fits is loaded, what is new is left as drawn, and a shape that is at odds
with the recipe's ends the run before it starts, both sides named.

A model of ours gives all parameters of the same names; stems, blocks and positions of a family of
transformer blocks are fitted to other modalities and sizes (`vit_weights.py`). A task's head is
taken over only if the source has the task, with the same targets.
"""

import fnmatch
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from mmtrain.layers.inflation import Inflation
from mmtrain.masks.attach import masks_of
from mmtrain.models.model import MASKS, MultiTaskModel
from mmtrain.recipe import Recipe
from mmtrain.start.source import read_source
from mmtrain.start.trained import Trained, check_shapes, same_names
from mmtrain.start.vit import InitError, Vit
from mmtrain.start.vit_weights import differences, from_vits, to_vits, vit_blocks_of
from pipelines.errors import UnknownNameError
from pipelines.modalities import Feature
from pipelines.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """What a model starts from. `str` says it in a line.

    Args:
        state: weights to load, by parameter name.
        fresh: owners of parameters that are left as drawn, with how many tensors.
        loaded: owners of those that are loaded, likewise.
        warnings: settings in which the model computes otherwise than the source did.
    """

    state: Mapping[str, Tensor]
    loaded: Mapping[str, int]
    fresh: Mapping[str, int]
    warnings: Sequence[str] = field(default=())

    def __str__(self) -> str:
        return f"loaded {_counts(self.loaded)}; fresh: {_counts(self.fresh) or 'nothing'}"


def plan_start(
    model: MultiTaskModel,
    source: Vit | Trained,
    *,
    targets: Mapping[str, Feature],
    vocabulary: Vocabulary | None,
    inflation: Inflation,
    heads: Literal["same_tasks", "fresh"] = "same_tasks",
) -> Start:
    """What of a source goes where in a model; nothing is changed.

    Args:
        model: the recipe's model, whose weights are not read; may be on the meta device.
        source: the weights.
        targets: feature of each task's targets.
        vocabulary: the run's; tables of tokens are taken over only between equal ones.
        inflation: how a picture's kernel becomes a video's.
        heads: whether a task's head is taken over from a source that has the task.

    Raises:
        InitError: the source is of another family or of other sizes; both sides are named.
    """
    if isinstance(source, Vit):
        if vit_blocks_of(model.config.family) is None:
            raise InitError(
                f"the weights are a vision transformer's, the recipe's model is of family "
                f"{model.config.family!r}; use a recipe of family 'polyvit'"
            )
        vits = {"image": source}
        return _start(model, from_vits(model, vits, inflation=inflation), differences(model, vits))
    ours, its = model.config.family, source.card.model.family
    if ours != its:
        raise InitError(
            f"the weights are of family {its!r}, the recipe's model is of family {ours!r}; "
            "start from a model of the same family"
        )
    held, notes = same_names(model, source, targets=targets, vocabulary=vocabulary), []
    if source.card.pruning and not masks_of(model):
        notes = [
            "the source's masks are left out, with which it was trained; go on from a cut model "
            "(mmtrain prune), or keep pruning in the recipe"
        ]
    if heads == "fresh":
        held = {name: value for name, value in held.items() if not _is_task_head(model, name)}
    if vit_blocks_of(ours) is not None:
        vits = to_vits(source.meta_model(), source.state)
        held |= from_vits(model, vits, inflation=inflation)
        notes = [*notes, *differences(model, vits)]
    else:
        check_shapes(model, source, held, vocabulary=vocabulary)
    return _start(model, held, notes)


def plan_recipe_start(
    recipe: Recipe,
    model: MultiTaskModel,
    *,
    vocabulary: Vocabulary | None,
    tracking_uri: str | None = None,
    only_shapes: bool = False,
) -> Start | None:
    """What a recipe's model starts from; None: it starts as drawn.

    Raises:
        InitError: the source does not fit, or weights are to be frozen as they were drawn.
        UnknownNameError: `frozen` names no owner.
    """
    frozen_owners(model, recipe.frozen)
    if recipe.init_from is None:
        for said in _keeps(recipe):
            raise InitError(
                f"{said} would keep weights as they were drawn; "
                "give the trained ones by --init-from"
            )
        return None
    source = read_source(recipe.init_from, tracking_uri=tracking_uri, only_shapes=only_shapes)
    targets = {name: task.targets for name, task in recipe.tasks.items()}
    try:
        return plan_start(
            model,
            source,
            targets=targets,
            vocabulary=vocabulary,
            inflation=recipe.inflation,
            heads=recipe.init_heads,
        )
    except InitError as error:
        raise InitError(f"--init-from {recipe.init_from}: {error}") from None


def tell_start(recipe: Recipe, start: Start) -> str:
    """What is loaded and what is left fresh, in a line; settings that differ are warned about."""
    for warning in start.warnings:
        logger.warning("%s: %s", recipe.init_from, warning)
    line = f"starts from {recipe.init_from}: {start}"
    logger.info("%s", line)
    return line


def start_model(
    model: MultiTaskModel,
    recipe: Recipe,
    vocabulary: Vocabulary | None,
    *,
    registry: str | None,
    resumes: bool,
) -> None:
    """Loads what the recipe says, unless a checkpoint follows, and freezes what it says.

    Args:
        model: the recipe's model, with the weights that were drawn.
        recipe: says what to start from and what to freeze.
        vocabulary: the run's.
        registry: MLflow's URI, for `models:/`; None: as MLflow is set up.
        resumes: a checkpoint is loaded next.
    """
    if recipe.init_from and not resumes:
        start = plan_recipe_start(recipe, model, vocabulary=vocabulary, tracking_uri=registry)
        assert start is not None
        load_start(model, start)
    freeze(model, recipe.frozen)
    if recipe.pruning and recipe.pruning.train == "masks":
        owner_of = model.parameter_owner
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and owner_of(name) == MASKS)


def _keeps(recipe: Recipe) -> Iterator[str]:
    """Settings of a recipe that keep weights as they start."""
    if recipe.frozen:
        yield f"frozen={list(recipe.frozen)}"
    if recipe.pruning and recipe.pruning.train == "masks":
        yield "pruning.train=masks"


def _is_task_head(model: MultiTaskModel, name: str) -> bool:
    return name.startswith("heads.") and name.split(".")[1] in model.tasks


def load_start(model: MultiTaskModel, start: Start) -> None:
    """Copies the weights into the model."""
    model.load_state_dict(dict(start.state), strict=False)


def frozen_owners(model: MultiTaskModel, patterns: Sequence[str]) -> frozenset[str]:
    """Owners of parameters that the patterns name, as `fnmatch` reads them.

    Raises:
        UnknownNameError: a pattern names no owner; lists the owners.
        InitError: a task would train nothing.
    """
    owners = tuple(
        dict.fromkeys(model.parameter_owner(name) for name, _ in model.named_parameters())
    )
    frozen: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(owners, pattern)
        if not found:
            raise UnknownNameError("owner of parameters", pattern, owners)
        frozen |= set(found)
    for task in model.tasks:
        if model.owners(task) <= frozen:
            raise InitError(
                f"frozen={list(patterns)} leaves task {task} nothing to train; leave its head "
                f"out: {', '.join(sorted(model.owners(task)))}"
            )
    return frozenset(frozen)


def freeze(model: MultiTaskModel, patterns: Sequence[str]) -> None:
    """Parameters of the owners that the patterns name stay as they are; dropout stays on."""
    owners = frozen_owners(model, patterns)
    for name, parameter in model.named_parameters():
        if model.parameter_owner(name) in owners:
            parameter.requires_grad_(False)


def _start(model: MultiTaskModel, state: Mapping[str, Tensor], notes: Sequence[str]) -> Start:
    loaded: Counter[str] = Counter()
    fresh: Counter[str] = Counter()
    for name, _ in model.named_parameters():
        (loaded if name in state else fresh)[model.parameter_owner(name)] += 1
    return Start(state, loaded, fresh, tuple(notes))


def _counts(owners: Mapping[str, int]) -> str:
    """Owners with their numbers of tensors, the body's parts as one."""
    grouped: Counter[str] = Counter()
    for owner, count in owners.items():
        grouped[owner.partition("/")[0] if owner.startswith("body/") else owner] += count
    return ", ".join(f"{owner} ({count} tensors)" for owner, count in sorted(grouped.items()))
