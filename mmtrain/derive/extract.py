"""Extraction: from a model of many tasks, a smaller one of the same class with some of them.

The smaller model is what its tasks build: their stems and adapters, their heads, and the parts of
the body that those read. Its weights are the whole model's, so its answers are too, to the last
bit. It lies as a run does: `bundle`, and `recipe.json` where the whole model's recipe was found,
narrowed to the tasks; `mmtrain train --init-from` goes on from there.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pydantic import ValidationError

from mmtrain.bundle import Bundle, BundleTask, Lineage, Parent, save_bundle
from mmtrain.files import BUNDLE, CHECKPOINTS, RECIPE
from mmtrain.models.fitting import filled
from mmtrain.models.model import ModelConfig, MultiTaskModel, build_model
from mmtrain.predict.open import open_model as open_trained
from mmtrain.recipe import Recipe
from pipelines import modalities
from pipelines.errors import MMTrainError, UnknownNameError
from pipelines.files import write_whole

if TYPE_CHECKING:
    from mmtrain.store.models import ModelVersion

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ExtractError(MMTrainError):
    """An extraction that cannot be done, or would overwrite something."""


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


@dataclass(frozen=True, slots=True)
class Extracted:
    """An extracted model: its folder, tasks, and parameters beside the whole model's."""

    out: Path
    bundle: Path
    tasks: tuple[str, ...]
    num_parameters: int
    parent_parameters: int
    recipe: Path | None

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return {
            "out": str(self.out),
            "bundle": str(self.bundle),
            "tasks": list(self.tasks),
            "num_parameters": self.num_parameters,
            "parent_parameters": self.parent_parameters,
            "recipe": str(self.recipe) if self.recipe else None,
        }


def extract(
    opened: Opened,
    *,
    out: Path,
    tasks: Sequence[str] = (),
    inputs: Sequence[str] = (),
    force: bool = False,
) -> Extracted:
    """Writes the smaller model of some tasks to `out`.

    Args:
        opened: the whole model.
        out: folder to write; new or empty, unless forced.
        tasks: tasks to keep.
        inputs: in place of tasks: modalities of which all tasks are kept, e.g. "video".
        force: replace an extracted model that is there.

    Raises:
        ExtractError: neither tasks nor modalities, or both; or `out` holds something; or the model
            was trained with masks.
        UnknownNameError: the model has no such task or modality.
    """
    card = opened.bundle.card
    if card.pruning:
        raise ExtractError(
            f"{opened.uri} was trained with masks of {', '.join(card.pruning.subtasks)}; take out "
            f"what some of them need: mmtrain prune {opened.uri} --subtasks ... --out {out}"
        )
    kept = choose_tasks(card.tasks, tasks=tasks, inputs=inputs)
    check_folder(out, force=force, source=opened.uri)
    smaller = smaller_model(opened.bundle, tasks=tuple(kept))
    state = {name: opened.bundle.state[name] for name in smaller.state_dict()}
    out.mkdir(parents=True, exist_ok=True)
    recipe = save_recipe(opened.recipe.only(tuple(kept)) if opened.recipe else None, out=out)
    bundle = save_bundle(
        out / BUNDLE,
        model=smaller.config,
        tasks=kept,
        state=state,
        vocabulary=opened.bundle.vocabulary if needs_vocabulary(kept) else None,
        lineage=part_lineage(opened, kept=tuple(kept)),
    )
    count = sum(tensor.numel() for tensor in state.values())
    logger.info("extracted %s of %s: %d parameters in %s", ", ".join(kept), opened.uri, count, out)
    return Extracted(out, bundle, tuple(kept), count, card.num_parameters, recipe)


def choose_tasks(
    known: Mapping[str, BundleTask], *, tasks: Sequence[str], inputs: Sequence[str]
) -> dict[str, BundleTask]:
    """The tasks named, or all of the modalities named, in the model's order.

    Raises:
        ExtractError: neither is named, or both are.
        UnknownNameError: the model has no such task or modality; names the nearest.
    """
    has = tuple(dict.fromkeys(task.inputs.modality for task in known.values()))
    if bool(tasks) == bool(inputs):
        raise ExtractError(
            "say what to keep: --modality or --task, one of the two; "
            f"the model has modalities {', '.join(has)} and tasks {', '.join(known)}"
        )
    for task in tasks:
        if task not in known:
            raise UnknownNameError("task of the model", task, tuple(known))
    for modality in inputs:
        if modality not in has:
            raise UnknownNameError("modality of the model", modality, has)
    return {
        name: task
        for name, task in known.items()
        if name in tasks or task.inputs.modality in inputs
    }


def smaller_model(bundle: Bundle, *, tasks: Sequence[str]) -> MultiTaskModel:
    """The model that only these tasks of a bundle build: without weights, on the meta device."""
    specs = [bundle.card.tasks[name].spec for name in tasks]
    nets = {net for spec in specs for net in (spec.input_net, spec.output_net)}
    config = bundle.card.model
    held = {name: settings for name, settings in config.nets.items() if name in nets}
    narrowed = ModelConfig.model_validate(
        {**{name: getattr(config, name) for name in ModelConfig.model_fields}, "nets": held}
    )
    with torch.device("meta"):
        return build_model(narrowed, specs, seed=0)


def needs_vocabulary(tasks: Mapping[str, BundleTask]) -> bool:
    """Whether a task takes or gives text."""
    features = [feature for task in tasks.values() for feature in (task.inputs, task.targets)]
    return any(modalities.is_text(feature.modality) for feature in features)


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


def extract_and_register(
    opened: Opened, *, name: str, registry: str | None, **what: Any
) -> tuple[Extracted, "ModelVersion"]:
    """`extract`, then the smaller model as a version of `name`, with its parent's as lineage.

    Args:
        opened: the whole model.
        name: the registered model to be.
        registry: MLflow's URI; None: the one beside the whole model, or as MLflow is set up.
        what: arguments of `extract`.

    Raises:
        ExtractError: no registry is known; or as `extract` says.
        RegistryError: MLflow cannot be reached or refuses.
    """
    from mmtrain.registry.register import register as register_bundle  # imports MLflow: seconds

    uri = choose_registry(opened, registry)
    extracted = extract(with_version(opened, registry=uri), **what)
    made = register_bundle(extracted.bundle, name=name, tracking_uri=uri)
    return extracted, made


def choose_registry(opened: Opened, registry: str | None) -> str:
    """MLflow's URI: as given, or beside the whole model, or as MLflow is set up.

    Raises:
        ExtractError: none is known.
    """
    uri = registry or opened.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        raise ExtractError("which registry? give --tracking, e.g. sqlite:///runs/mine/mlruns.db")
    return uri


def with_version(opened: Opened, *, registry: str) -> Opened:
    """The same model with its version, where it is found to be registered."""
    from mmtrain.store import models as model_registry  # imports MLflow: seconds

    version = opened.version or model_registry.find_registered(
        opened.bundle.digest, tracking_uri=registry
    )
    return replace(opened, version=version)


def tuning_recipe(uri: str, *, tracking_uri: str | None = None) -> Recipe:
    """The recipe that goes on training a model: its run's, with its tasks alone.

    Raises:
        ExtractError: the recipe of the model's run is not found.
    """
    opened = open_model(uri, tracking_uri=tracking_uri)
    if opened.recipe is None:
        raise ExtractError(
            f"{uri} does not come with its run's {RECIPE}; name a recipe: "
            f"mmtrain train RECIPE --init-from {uri}"
        )
    recipe = opened.recipe.only(tuple(opened.bundle.card.tasks))
    return recipe.with_(name=f"{recipe.name}_tuned", init_from=opened.uri)


def _recipe_of(bundle: Bundle, text: str | None) -> Recipe | None:
    """The recipe in JSON if it is one of the bundle's tasks and model, else None."""
    try:
        recipe = Recipe.model_validate_json(text) if text else None
    except ValidationError as error:
        logger.warning("the run's %s is not read: %s", RECIPE, error.errors()[0]["msg"])
        return None
    if recipe is None or not set(bundle.card.tasks) <= set(recipe.tasks):
        return None
    fits = filled(recipe.model, recipe.tasks).body == bundle.card.model.body
    return recipe if fits else None


def check_folder(out: Path, *, force: bool, source: str) -> None:
    """Refuses a folder that holds a run, or anything else unless forced.

    Raises:
        ExtractError: says which, and the way out.
    """
    if (out / CHECKPOINTS).exists() or (out / BUNDLE).resolve() == Path(source):
        raise ExtractError(f"{out} is a run's folder; give another --out")
    if out.exists() and any(out.iterdir()) and not force:
        raise ExtractError(f"{out} is not empty; give another --out, or --force to replace it")


def save_recipe(recipe: Recipe | None, *, out: Path) -> Path | None:
    """Writes the recipe that a smaller model goes on training with; None: removes an older one."""
    path = out / RECIPE
    if recipe is None:
        path.unlink(missing_ok=True)  # of a model that this one replaces
        return None
    write_whole(path, recipe.model_dump_json(indent=1) + "\n")
    return path


def part_lineage(opened: Opened, *, kept: tuple[str, ...]) -> Lineage:
    """The whole model's lineage, of the kept tasks, with the whole model as parent."""
    whole = opened.bundle.card.lineage
    parent = Parent(
        digest=opened.bundle.digest,
        version=opened.version,
        tasks=tuple(opened.bundle.card.tasks),
    )

    def narrowed(values: Mapping[str, T]) -> dict[str, T]:
        return {name: value for name, value in values.items() if name in kept}

    return whole.model_copy(
        update={
            "parent": parent,
            "corpora": narrowed(whole.corpora),
            "task_steps": narrowed(whole.task_steps),
            "task_seconds": narrowed(whole.task_seconds),
        }
    )
