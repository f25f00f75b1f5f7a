"""A trained model of ours, as a source of weights for another: what goes over by its name."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtrain.bundle import Card
from mmtrain.masks.attach import add_masks, masks_of
from mmtrain.models.model import MASKS, ModelConfig, MultiTaskModel, build_model
from mmtrain.start.vit import InitError
from pipelines.modalities import Feature
from pipelines.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Trained:
    """A model of ours: its card, weights and vocabulary."""

    card: Card
    state: Mapping[str, Tensor]
    vocabulary: Vocabulary | None

    def meta_model(self) -> MultiTaskModel:
        """The model without weights, on the meta device."""
        specs = [task.spec for task in self.card.tasks.values()]
        with torch.device("meta"):
            model = build_model(self.card.model, specs, seed=0)
            if self.card.pruning:
                add_masks(model, self.card.pruning, seed=0)
            return model


def same_names(
    model: MultiTaskModel,
    source: Trained,
    *,
    targets: Mapping[str, Feature],
    vocabulary: Vocabulary | None,
) -> dict[str, Tensor]:
    """Tensors of the source that the model has by the same name and shape and for the same use."""
    known = {name: task.targets for name, task in source.card.tasks.items()}
    new_tasks = {name for name, feature in targets.items() if known.get(name) != feature}
    tables = tables_at_odds(model, source, vocabulary=vocabulary)
    masks = masks_of(model)
    pruning = source.card.pruning
    has_same_subtasks = (
        masks is not None
        and pruning is not None
        and ([*masks.config.subtasks.items()] == [*pruning.subtasks.items()])
    )

    def is_for_another_use(name: str) -> bool:
        return (
            name in tables
            or (name.startswith("heads.") and name.split(".")[1] in new_tasks)
            or (name.startswith(f"{MASKS}.") and not has_same_subtasks)
        )

    return {
        name: source.state[name]
        for name, value in model.state_dict().items()
        if name in source.state
        and source.state[name].shape == value.shape
        and not is_for_another_use(name)
    }


def tables_at_odds(
    model: MultiTaskModel, source: Trained, *, vocabulary: Vocabulary | None
) -> set[str]:
    """Parameters with an axis of tokens, or of classes, that are others in the model."""
    config = source.card.model
    tables: set[str] = set()
    if vocabulary != source.vocabulary:
        tables = _token_tables(source)
    for net in model.stems:
        classes = (getattr(one.nets.get(net), "classes", None) for one in (model.config, config))
        if len(set(classes)) > 1:
            tables |= {name for name in source.state if name.startswith(f"stems.{net}.")}
    return tables


def _token_tables(source: Trained) -> set[str]:
    """Parameters with an axis of the vocabulary: those that another vocabulary size changes."""
    card = source.card
    model = card.model.model_copy(update={"vocab_size": (card.model.vocab_size or 0) + 1})
    other = Trained(card.model_copy(update={"model": model}), {}, None).meta_model().state_dict()
    return {name for name, value in other.items() if value.shape != source.state[name].shape}


def check_shapes(
    model: MultiTaskModel,
    source: Trained,
    held: Mapping[str, Tensor],
    *,
    vocabulary: Vocabulary | None,
) -> None:
    """Refuses a stem or a part of the body that is on both sides and not the same on both.

    Raises:
        InitError: names the first parameter at odds, and both sides.
    """
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in source.state.items()}
    shared = {_part(name) for name in theirs} & {_part(name) for name in ours}
    tables = tables_at_odds(model, source, vocabulary=vocabulary)
    for name in sorted((ours.keys() | theirs.keys()) - tables - held.keys()):
        is_whole = name.startswith(("body.", "stems.", "adapters.")) and _part(name) in shared
        if is_whole and ours.get(name) != theirs.get(name):
            raise InitError(
                f"{name} is {_shown(theirs.get(name))} in the weights and "
                f"{_shown(ours.get(name))} in the recipe's model. The weights have "
                f"{_settings(source.card.model)}; the recipe {_settings(model.config)}. Give the "
                "recipe the settings of the weights"
            )


def _settings(config: ModelConfig) -> str:
    return f"model.body ({config.body}) and model.nets {dict(config.nets)}"


def _part(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _shown(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else f"of shape {shape}"
