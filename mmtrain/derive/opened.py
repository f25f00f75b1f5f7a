"""A trained model opened by any of its names, with its run's recipe and registry where found."""

import logging
import os
from dataclasses import dataclass, replace

from pydantic import ValidationError

from mmtrain.bundle import Bundle
from mmtrain.files import RECIPE
from mmtrain.models.fitting import filled
from mmtrain.predict.open import open_model as open_trained
from mmtrain.recipe import Recipe
from pipelines.errors import MMTrainError

logger = logging.getLogger(__name__)


class DeriveError(MMTrainError):
    """A model that cannot be made out of another, or would overwrite something."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A trained model with where it came from.

    Args:
        bundle: the model.
        uri: a folder, or models:/NAME/VERSION.
        version: models:/NAME/VERSION, if it is known to be registered.
        recipe: the run's recipe, where it was found.
        tracking_uri: the run's own MLflow, where it was found beside the bundle.
    """

    bundle: Bundle
    uri: str
    version: str | None
    recipe: Recipe | None
    tracking_uri: str | None

    def registry(self, named: str | None) -> str:
        """MLflow's URI: the one named, or the one beside the model, or as MLflow is set up.

        Raises:
            DeriveError: none is known.
        """
        uri = named or self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            raise DeriveError("which registry? give --tracking, e.g. sqlite:///runs/mine/mlruns.db")
        return uri

    def with_version(self, registry: str) -> "Opened":
        """The same model with its version in a registry, where it is registered there."""
        from mmtrain.store.models import find_registered  # imports MLflow: seconds

        version = self.version or find_registered(self.bundle.digest, tracking_uri=registry)
        return replace(self, version=version)


def open_model(uri: str, *, tracking_uri: str | None = None) -> Opened:
    """A trained model with the recipe of its run, where that is found.

    Args:
        uri: run folder, bundle folder, or models:/NAME@ALIAS.
        tracking_uri: the registry, for `models:/`; None: as MLflow is set up.

    Raises:
        BundleError: there is no such bundle, or it changed.
        RegistryError: there is no such version.
    """
    model = open_trained(uri, tracking_uri=tracking_uri)
    recipe = _recipe_of(model.bundle, model.read_recipe_json())
    return Opened(model.bundle, model.uri, model.version, recipe, model.tracking_uri)


def tuning_recipe(uri: str, *, tracking_uri: str | None = None) -> Recipe:
    """The recipe that goes on training a model: its run's, with its tasks alone.

    Raises:
        DeriveError: the recipe of the model's run is not found.
    """
    opened = open_model(uri, tracking_uri=tracking_uri)
    if opened.recipe is None:
        raise DeriveError(
            f"{uri} does not come with its run's {RECIPE}; name a recipe: "
            f"mmtrain train RECIPE --init-from {uri}"
        )
    recipe = opened.recipe.only(tuple(opened.bundle.card.tasks))
    return recipe.with_(name=f"{recipe.name}_tuned", init_from=opened.uri)


def _recipe_of(bundle: Bundle, recipe_json: str | None) -> Recipe | None:
    """The recipe if it is one of the bundle's tasks and model, else None."""
    try:
        recipe = Recipe.model_validate_json(recipe_json) if recipe_json else None
    except ValidationError as error:
        logger.warning("the run's %s is not read: %s", RECIPE, error.errors()[0]["msg"])
        return None
    if recipe is None or not set(bundle.card.tasks) <= set(recipe.tasks):
        return None
    fits = filled(recipe.model, recipe.tasks).body == bundle.card.model.body
    return recipe if fits else None
