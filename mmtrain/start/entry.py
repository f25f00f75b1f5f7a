"""What a recipe's run starts from: the one place of this room that knows a recipe."""

import logging
from pathlib import Path

from mmtrain.models.model import MASKS, MultiTaskModel
from mmtrain.recipe import Recipe
from mmtrain.start.initialize import Start, freeze, frozen_owners, load_start, plan_start
from mmtrain.start.source import read_source
from mmtrain.start.vit import InitError
from pipelines.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


def with_fixed_source(recipe: Recipe, *, registry: str | None) -> Recipe:
    """The recipe with a source whose name means the same everywhere and later on.

    A path becomes absolute, an alias of a registered model the version that it points to now.
    """
    if recipe.init_from is None:
        return recipe
    if not recipe.init_from.startswith("models:/"):
        return recipe.with_(init_from=str(Path(recipe.init_from).absolute()))
    from mmtrain.store.models import fixed_uri  # imports MLflow: seconds

    return recipe.with_(init_from=fixed_uri(recipe.init_from, tracking_uri=registry))


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
        if recipe.frozen or _trains_masks_alone(recipe):
            keeps = f"frozen={list(recipe.frozen)}" if recipe.frozen else "pruning.train=masks"
            raise InitError(
                f"{keeps} would keep weights as they were drawn; "
                "give the trained ones by --init-from"
            )
        return None
    source = read_source(recipe.init_from, tracking_uri=tracking_uri, only_shapes=only_shapes)
    try:
        return plan_start(
            model,
            source,
            targets={name: task.targets for name, task in recipe.tasks.items()},
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
    if _trains_masks_alone(recipe):
        for name, parameter in model.named_parameters():
            if model.parameter_owner(name) != MASKS:
                parameter.requires_grad_(False)


def _trains_masks_alone(recipe: Recipe) -> bool:
    return recipe.pruning is not None and recipe.pruning.train == "masks"
