"""Plans of recipes: parameters, what is refused, batches, steps, disk and resources."""

import json
from itertools import product

import pytest
from typer.testing import CliRunner

from mmtrain.cli import app
from mmtrain.engines import EngineConfig, EngineError, check_combination
from mmtrain.models.model import build_model
from mmtrain.planning.amounts import AmountError, parse_bytes, parse_resources
from mmtrain.planning.estimate import plan_run, resources_of
from mmtrain.planning.footprint import meta_model, planned_specs
from mmtrain.planning.longest import LongestBatch, longest_batches, zeros
from mmtrain.planning.refusals import combinations, why_refused
from mmtrain.recipe import load_recipe, override
from mmtrain.run.model import fitted
from tests.benchmarks.bench_plan import CASES, measured_bytes, planned_bytes
from tests.mmtrain.example_kinds import TASKS
from tests.mmtrain.planning.example_recipe import NOWHERE, small

# ---- parameters


def test_parameters_of_a_small_transformer_are_those_of_the_closed_form():
    plan = plan_run(small(), data_dir=NOWHERE)
    d, wide, patch, positions, classes = 32, 64, 8 * 8, 17, 10
    block = 4 * (d * d + d) + 2 * (2 * d) + d * wide + wide + wide * d + d
    stem = d * patch + d + d + positions * d
    assert plan.parameters["body/blocks"] == 2 * block
    assert plan.parameters["modality/image_patches"] == stem
    assert plan.parameters["task/digit"] == d * classes + classes
    assert plan.parameters["body/norm"] == 2 * d


@pytest.mark.parametrize("name", ["debug", "san_resnet", "polyvit_digit_mask"])
def test_parameters_of_shipped_recipes_are_the_model_s(name):
    recipe = load_recipe(name)
    model, _ = meta_model(recipe)
    planned = sum(held.numel() for held in model.parameters())
    real = build_model(fitted(recipe), planned_specs(recipe), seed=0)
    masks = sum(held.numel() for held in model.masks.parameters()) if recipe.pruning else 0  # type: ignore[union-attr]
    assert planned == sum(held.numel() for held in real.parameters()) + masks


def test_published_polyvit_has_the_parameters_of_vit_base_and_its_stems():
    recipe = load_recipe("polyvit_b_9task")
    model, _ = meta_model(recipe)
    blocks = sum(held.numel() for n, held in model.named_parameters() if "body.blocks" in n)
    assert blocks == 12 * 7_087_872  # a block of ViT-B


# ---- refusals


@pytest.mark.parametrize("name", ["polyvit_digit", "debug"])
def test_refusals_are_those_of_check_combination_over_the_whole_grid(name):
    recipe = load_recipe(name)
    experts = [4, 4] if name == "debug" else []
    found = list(combinations(recipe, num_experts=experts, batches=[], workers=[1, 2, 4]))
    assert len({(c.engine, c.zero_stage, c.precision, c.ep_size, c.workers) for c in found}) == len(
        found
    )
    assert {(c.engine, c.zero_stage, c.precision) for c in found} == set(
        product(("deepspeed", "torch"), range(4), ("fp32", "bf16"))
    )
    for one in found:
        config = EngineConfig(
            name=one.engine, zero_stage=one.zero_stage, precision=one.precision,  # type: ignore[arg-type]
            ep_size=one.ep_size,
        )  # fmt: skip
        try:
            check_combination(config, world_size=one.workers, num_experts=experts)
            expected = None
        except EngineError as error:
            expected = str(error)
        assert one.refused == expected


def test_masks_and_decay_in_the_loss_are_refused_with_zero_3():
    pruned = override(load_recipe("san_resnet"), ["engine.zero_stage=3"])
    assert "engine.zero_stage=2" in str(why_refused(pruned, num_experts=[]))
    decaying = override(small(), ["engine.zero_stage=3", "optimizer.weight_decay_loss=1.0"])
    assert "weight_decay_loss" in str(why_refused(decaying, num_experts=[]))


def test_a_batch_that_does_not_divide_is_refused():
    batches = [LongestBatch("digit", 32, (32, 32, 1), (1,))]
    recipe = small("num_workers=5")
    assert "does not divide over 5" in str(why_refused(recipe, num_experts=[], batches=batches))


# ---- the plan


def test_longest_arrays_of_every_kind_of_feature():
    shapes = {name: task.targets.longest_shape for name, task in TASKS.items()}
    for name, task in TASKS.items():
        assert len(task.inputs.longest_shape) == task.inputs.rank
        assert len(shapes[name]) == task.targets.rank


def test_zeros_are_as_the_stream_gives_them():
    task = load_recipe("polyvit_tiny").tasks["digit"]
    batch = zeros(longest_batches(task, None)[0], task, size=3)
    assert batch.inputs.shape == (3, 32, 32, 1)
    assert batch.inputs.dtype.name == "uint8"
    assert batch.targets.shape == (3, 1)


def test_steps_of_tasks_sum_to_the_run_s():
    plan = plan_run(load_recipe("polyvit_tiny").only(["digit", "digit_box"]), data_dir=NOWHERE)
    assert sum(task.steps for task in plan.tasks.values()) == plan.num_steps
    assert all(task.examples is None for task in plan.tasks.values())
    assert any("not built" in line for line in plan.assumed)


def test_plan_without_corpora_says_that_a_schedule_by_their_sizes_lacks_them():
    recipe = override(load_recipe("polyvit_tiny"), ["schedule.name=proportional"])
    plan = plan_run(recipe.only(["digit", "digit_box"]), data_dir=NOWHERE)
    assert [task.steps for task in plan.tasks.values()] == [500, 500]
    assert any("schedule 'proportional': corpora as if equally" in line for line in plan.assumed)


def test_checkpoint_has_weights_and_moments_of_what_is_trained():
    plan = plan_run(small(), data_dir=NOWHERE)  # SGD: one moment
    assert plan.checkpoint == 4 * 2 * sum(plan.parameters.values())


def test_resources_are_workers_readers_and_a_driver():
    recipe = small("num_workers=4", "stream.num_cpus=0.5")
    assert resources_of(recipe)["CPU"] == 4 + 2 + 1
    plan = plan_run(recipe, data_dir=NOWHERE, cluster={"CPU": 5})
    assert "need 6 logical CPUs, the cluster has 5" in str(plan.lacking)


def test_fewest_gpus_that_fit_are_found():
    recipe = small("use_gpu=true", "num_workers=1")
    whole = plan_run(recipe, data_dir=NOWHERE).layouts[0].memory
    assert whole is not None
    plan = plan_run(recipe, data_dir=NOWHERE, gpu_bytes=0.5 * whole.total)
    assert plan.smallest is not None
    assert plan.smallest > 1
    fitting = plan.layouts[-1].memory
    assert fitting is not None
    assert fitting.total <= 0.9 * 0.5 * whole.total


@pytest.mark.parametrize(
    "name",
    ["polyvit_b_9task", "multimodel_image_classification", "multimodel_speech_recognition"],
)
def test_large_shipped_recipes_are_planned_without_their_memory(name):
    plan = plan_run(load_recipe(name), data_dir=NOWHERE)
    memory = plan.layouts[0].memory
    assert memory is not None
    assert memory.total > 10**8
    assert json.loads(json.dumps(plan.to_dict()))["layouts"][0]["memory"]["total"] == memory.total


def test_the_command_prints_tables_and_json(tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(small().model_dump_json())
    table = CliRunner().invoke(app, ["plan", str(recipe), "--gpus", "4"])
    assert table.exit_code == 0, table.output
    assert "memory of a rank" in table.output
    told = CliRunner().invoke(app, ["plan", str(recipe), "--gpus", "4", "--json"])
    assert [one["workers"] for one in json.loads(told.output)["layouts"]] == [2, 4]


def test_a_wrong_amount_is_refused_with_an_example():
    assert parse_bytes("80GB") == 80e9
    assert parse_bytes("1.5 GiB") == 1.5 * 2**30
    assert parse_resources("CPU=64, GPU=8") == {"CPU": 64, "GPU": 8}
    for wrong in ("", "GB", "-1GB", "80 parsecs", "0GB"):
        with pytest.raises(AmountError, match="80GB"):
            parse_bytes(wrong)
    with pytest.raises(AmountError, match="CPU=64,GPU=8"):
        parse_resources("CPU")


def test_planned_memory_is_what_steps_of_the_real_engine_take():
    recipe = CASES["polyvit_torch_recomputing"].load()
    assert planned_bytes(recipe) == pytest.approx(measured_bytes(recipe), rel=0.01)
