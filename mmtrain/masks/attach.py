"""Masks as a child of the model that they are of.

So whatever keeps the model's state keeps its masks too: engines, checkpoints, bundles. A model
that answers has the masks of all its subtasks at its gates, for so it was trained.
"""

from collections.abc import Iterable, Mapping
from typing import cast

from torch import Tensor

from mmtrain.layers.units import put_on
from mmtrain.masks.banks import MaskBank
from mmtrain.masks.config import PruningConfig
from mmtrain.masks.generator import build_masks
from mmtrain.models.model import MASKS, ModelConfig, MultiTaskModel, TaskSpec, model_with

_PREFIX = f"{MASKS}."


def add_masks(model: MultiTaskModel, config: PruningConfig, *, seed: int) -> MaskBank:
    """Gives the model masks of its units, drawn from `seed`.

    Raises:
        MaskError: the model has no units.
        UnitsError: its parts cannot be cut together.
    """
    groups, sites = model.prunable_units(), model.scale_sites()
    bank = build_masks(config, groups=groups, sites=sites, seed=seed)
    model.add_module(MASKS, bank)
    return bank


def masks_of(model: MultiTaskModel) -> MaskBank | None:
    """The masks that the model was given; None: it has none."""
    return cast(MaskBank | None, getattr(model, MASKS, None))


def put_on_masks(model: MultiTaskModel) -> None:
    """The model's gates get the masks of all subtasks together, to stay; without masks nothing.

    Args:
        model: on the device where it will stay.
    """
    bank = masks_of(model)
    if bank is not None:
        gates = bank.masks(bank.subtasks).gates
        put_on(model, {path: mask.detach() for path, mask in gates.items()})


def without_masks(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the model itself."""
    return {name: value for name, value in weights.items() if not name.startswith(_PREFIX)}


def masked_model_with(
    config: ModelConfig,
    tasks: Iterable[TaskSpec],
    state: Mapping[str, Tensor],
    *,
    pruning: PruningConfig | None,
) -> MultiTaskModel:
    """The model with these weights, buffers and masks, in evaluation mode; no gate has a mask yet.

    Args:
        config: of the model.
        tasks: of the model.
        state: by name, as the model's `state_dict` names them.
        pruning: of the masks in `state`; None: there are none.

    Raises:
        RuntimeError: they are another model's.
    """
    model = model_with(config, tasks, without_masks(state) if pruning else state)
    if pruning is not None:
        masks = {n.removeprefix(_PREFIX): v for n, v in state.items() if n.startswith(_PREFIX)}
        add_masks(model, pruning, seed=0).load_state_dict(masks)
    return model.eval()
