"""Which parameters stay frozen, and what cannot be."""

import pytest
import torch

from mmtrain.recipe import load_recipe
from mmtrain.run.model import recipe_model
from mmtrain.start.entry import plan_recipe_start
from mmtrain.start.initialize import freeze
from mmtrain.start.vit import InitError
from pipelines.errors import UnknownNameError
from tests.mmtrain.example_polyvit import SIDES, small_polyvit


def test_frozen_owners_do_not_train_and_all_others_do():
    model = small_polyvit(num_adapter_blocks=1)
    freeze(model, ["body/*", "modality/image_patches"])
    trains = {model.parameter_owner(n) for n, p in model.named_parameters() if p.requires_grad}
    kept = {model.parameter_owner(n) for n, p in model.named_parameters() if not p.requires_grad}
    assert kept == {"body/blocks", "body/norm", "modality/image_patches"}
    assert trains == {
        "modality/video_tubelets", "modality/audio_patches", *(f"task/{task}" for task in SIDES)
    }  # fmt: skip


def test_a_pattern_that_names_no_owner_is_answered_with_the_owners():
    with pytest.raises(UnknownNameError, match=r"no owner of parameters 'bdy/\*'; nearest: body/"):
        freeze(small_polyvit(), ["bdy/*"])


def test_a_task_with_nothing_left_to_train_is_refused():
    with pytest.raises(InitError, match="leaves task shape nothing to train"):
        freeze(small_polyvit(), ["body/*", "modality/*", "task/shape"])


def test_weights_as_drawn_are_not_frozen():
    recipe = load_recipe("linear_probe")
    with torch.device("meta"):
        model = recipe_model(recipe, None)
    with pytest.raises(InitError, match="--init-from"):
        plan_recipe_start(recipe, model, vocabulary=None)
