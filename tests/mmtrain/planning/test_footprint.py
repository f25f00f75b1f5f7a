"""What a traced step holds, and what it leaves behind."""

import pytest
import torch

from mmtrain.models.model import build_model
from mmtrain.planning.estimate import plan_run
from mmtrain.planning.footprint import StepTracer, planned_specs
from mmtrain.planning.longest import LongestBatch, longest_batches
from mmtrain.recipe import load_recipe, override
from mmtrain.run.model import fitted
from tests.mmtrain.planning.example_recipe import NOWHERE, small


def test_traced_activations_of_a_linear_layer_are_its_inputs_and_outputs():
    recipe = small("engine.name=torch", "engine.zero_stage=0", "num_workers=1")
    batch = longest_batches(recipe.tasks["digit"], None)[0]
    tracer = StepTracer(recipe)
    one, two, four = (
        tracer.trace(
            [LongestBatch("digit", size, batch.inputs, batch.targets)],
            world_size=1,
            keeps_gradients=False,
        ).activations
        for size in (8, 16, 32)
    )
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)  # straight in the batch


def test_recomputing_keeps_less():
    settings = ("engine.name=torch", "engine.zero_stage=0", "num_workers=1")
    settings += ("model.body.num_layers=6",)
    kept, again = (
        StepTracer(recipe).trace(
            longest_batches(recipe.tasks["digit"], None), world_size=1, keeps_gradients=False
        )
        for recipe in (small(*settings), small(*settings, "engine.activation_checkpointing=true"))
    )
    assert again.activations < 0.6 * kept.activations
    assert again.trained == kept.trained


def test_bf16_activations_are_about_half():
    settings = ("num_workers=1",)
    wide, narrow = (
        StepTracer(recipe).trace(
            longest_batches(recipe.tasks["digit"], None), world_size=1, keeps_gradients=False
        )
        for recipe in (small(*settings), small(*settings, "engine.precision=bf16"))
    )
    assert 0.4 < narrow.activations / wide.activations < 0.85


def test_a_step_trains_the_task_s_owners_and_no_others():
    recipe = load_recipe("san_polyvit")
    tracer = StepTracer(recipe)
    batch = longest_batches(recipe.tasks["digit"], None)[0]
    found = tracer.trace([batch], world_size=2, keeps_gradients=True)
    assert any(name.startswith("heads.digit") for name in found.trained)
    assert not any("spoken_digit" in name for name in found.trained)


def test_a_traced_model_leaves_nothing_behind_that_has_no_data():
    recipe = load_recipe("debug")
    plan_run(recipe.only(["parsing"]), data_dir=NOWHERE)
    model = build_model(fitted(recipe), planned_specs(recipe), seed=0)
    ids = torch.ones(1, 4, dtype=torch.int64)
    out = model(task="parsing", inputs=ids, input_lengths=torch.tensor([4]), targets=ids)
    assert out.logits.isfinite().all()


def test_rows_to_experts_travel_there_and_back_with_their_gradients():
    recipe = override(
        load_recipe("debug"), ['engine={"name": "deepspeed", "zero_stage": 1, "ep_size": 2}']
    )
    tracer = StepTracer(recipe)
    batch = LongestBatch("image_classification", size=4, inputs=(32, 32, 1), targets=(1,))
    found = tracer.trace([batch], world_size=2, keeps_gradients=True)
    experts, rows = 1, 2 * 16  # layers of experts that pictures pass; positions of two pictures
    assert found.exchanged % (4 * 2 * 32 * 4) == 0  # ways x active experts x width x fp32
    assert found.exchanged >= experts * rows * 4 * 2 * 32 * 4 // 16
