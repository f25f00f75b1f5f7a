import json
from itertools import product
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mmtrain.cli import app
from mmtrain.engines import EngineConfig, EngineError, check_combination
from mmtrain.models.model import TaskSpec, build_model
from mmtrain.planning.amounts import AmountError, parse_bytes, parse_resources
from mmtrain.planning.estimate import plan_run, resources_of
from mmtrain.planning.footprint import Footprint, StepTracer, meta_model
from mmtrain.planning.longest import LongestBatch, longest_batches, zeros
from mmtrain.planning.refusals import combinations, why_refused
from mmtrain.planning.traffic import step_traffic
from mmtrain.planning.zero_memory import Parameter, rank_memory, sizes_of
from mmtrain.recipe import Recipe, load_recipe, override
from mmtrain.run.model import fitted, task_specs
from tests.mmtrain.example_kinds import TASKS

NOWHERE = Path("/nowhere")


class AnyCommand:
    def command_id(self, command: str) -> int:
        return 2


def small(*settings: str) -> Recipe:
    """One task of pictures by a transformer of two blocks of width 32."""
    recipe = load_recipe("polyvit_tiny").only(["digit"])
    sizes = ["model.body.model_dim=32", "model.body.num_layers=2", "model.body.mlp_dim=64"]
    return override(recipe, [*sizes, *settings])


def specs_of(recipe: Recipe) -> list[TaskSpec]:
    return task_specs(recipe, AnyCommand())  # type: ignore[arg-type]


def dense(numel: int, name: str = "w", *, owner: str = "body/blocks") -> Parameter:
    return Parameter(name, owner, numel, is_expert=False, is_trained=True, decays=False)


def footprint(*, trained: tuple[str, ...], activations: int = 0, peak: int = 0) -> Footprint:
    return Footprint(("task",), activations, peak, frozenset(trained), exchanged=0)


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
    model, _ = meta_model(recipe, specs_of(recipe))
    planned = sum(held.numel() for held in model.parameters())
    real = build_model(fitted(recipe), specs_of(recipe), seed=0)
    masks = sum(held.numel() for held in model.masks.parameters()) if recipe.pruning else 0  # type: ignore[union-attr]
    assert planned == sum(held.numel() for held in real.parameters()) + masks


def test_published_polyvit_has_the_parameters_of_vit_base_and_its_stems():
    recipe = load_recipe("polyvit_b_9task")
    model, _ = meta_model(recipe, specs_of(recipe))
    blocks = sum(held.numel() for n, held in model.named_parameters() if "body.blocks" in n)
    assert blocks == 12 * 7_087_872  # a block of ViT-B


# ---- ZeRO: what is split over N ranks


@pytest.mark.parametrize(
    ("stage", "weights", "masters", "moments"),
    [(0, 4, 0, 8), (1, 4, 1, 2), (2, 4, 1, 2)],
)
def test_states_are_split_over_four_ranks_by_stage(stage, weights, masters, moments):
    numel = 1000
    found = rank_memory(
        [dense(numel)],
        [footprint(trained=("w",))],
        engine=EngineConfig(zero_stage=stage),
        world_size=4,
        num_moments=2,
        use_gpu=True,
    )
    assert (found.weights, found.masters, found.moments) == (
        weights * numel, masters * numel, moments * numel,
    )  # fmt: skip


def test_bf16_has_half_the_weights_and_fp32_masters_in_parts():
    found = rank_memory(
        [dense(1000)],
        [footprint(trained=("w",))],
        engine=EngineConfig(zero_stage=1, precision="bf16"),
        world_size=2,
        num_moments=1,
        use_gpu=True,
    )
    assert (found.weights, found.masters, found.moments) == (2000, 2000, 2000)


def test_zero_3_keeps_parts_and_what_is_gathered():
    big = 4_000_000
    found = rank_memory(
        [dense(big), dense(40_000, "small", owner="body/norm")],
        [footprint(trained=("w", "small"), activations=10**9)],
        engine=EngineConfig(zero_stage=3),
        world_size=4,
        num_moments=2,
        use_gpu=True,
    )
    share = (big + 40_000) // 4
    assert found.weights == 4 * (share + big + 40_000)
    assert (found.masters, found.moments) == (4 * share, 8 * share)


def test_partitions_of_all_ranks_hold_every_element():
    parameters = [dense(numel, f"w{numel}") for numel in (7, 130, 1000)]
    for world_size in (1, 2, 3, 8):
        found = sizes_of(parameters, engine=EngineConfig(zero_stage=1), world_size=world_size)
        assert found.partition * world_size >= 1137
        assert found.partition * world_size < 1137 + 2 * world_size + 2
    assert sizes_of(parameters, engine=EngineConfig(), world_size=1).straddling == 1137


def test_experts_are_divided_over_ep_size_and_their_states_over_the_rest():
    expert = Parameter("e", "experts/moe", 8000, is_expert=True, is_trained=True, decays=False)
    found = sizes_of(
        [dense(1000), expert], engine=EngineConfig(zero_stage=2, ep_size=4), world_size=8
    )
    assert found.held == 1000 + 2000
    assert found.partition == 1000 // 8 + 1 + 2000 // 2  # an even part of the dense ones


def test_offloading_moves_the_states_to_the_host():
    arguments = {"world_size": 2, "num_moments": 2, "use_gpu": True}
    here, there = (
        rank_memory(
            [dense(1000)],
            [footprint(trained=("w",))],
            engine=EngineConfig(zero_stage=1, offload_optimizer=offloads),
            **arguments,  # type: ignore[arg-type]
        )
        for offloads in (False, True)
    )
    assert (there.masters, there.moments) == (0, 0)
    assert there.host == here.masters + here.moments + 4 * 500
    assert there.weights == here.weights


# ---- traffic


def test_traffic_by_stage_in_closed_form():
    found = footprint(trained=("w",))
    sent = {
        stage: step_traffic(
            [dense(1_000_000)], found, engine=EngineConfig(zero_stage=stage), world_size=4
        )
        for stage in (0, 1, 2, 3)
    }
    million = 4_000_000
    assert sent[0].to_dict() | {"total": 0} == {
        "all_reduce": million, "reduce_scatter": 0, "all_gather": 0, "all_to_all": 0, "total": 0
    }  # fmt: skip
    for stage in (1, 2):
        assert (sent[stage].all_reduce, sent[stage].all_gather) == (million, million)
    assert (sent[3].reduce_scatter, sent[3].all_gather) == (million, million)


def test_one_rank_sends_nothing():
    sent = step_traffic([dense(10)], footprint(trained=("w",)), engine=EngineConfig(), world_size=1)
    assert sent.total == 0


def test_rows_to_experts_travel_there_and_back_with_their_gradients():
    recipe = override(
        load_recipe("debug"), ['engine={"name": "deepspeed", "zero_stage": 1, "ep_size": 2}']
    )
    tracer = StepTracer(recipe, specs_of(recipe))
    batch = LongestBatch("image_classification", size=4, inputs=(32, 32, 1), targets=(1,))
    found = tracer.trace([batch], world_size=2, keeps_gradients=True)
    experts, rows = 1, 2 * 16  # layers of experts that pictures pass; positions of two pictures
    assert found.exchanged % (4 * 2 * 32 * 4) == 0  # ways x active experts x width x fp32
    assert found.exchanged >= experts * rows * 4 * 2 * 32 * 4 // 16


# ---- activations


def test_traced_activations_of_a_linear_layer_are_its_inputs_and_outputs():
    recipe = small("engine.name=torch", "engine.zero_stage=0", "num_workers=1")
    batch = longest_batches(recipe.tasks["digit"], None)[0]
    tracer = StepTracer(recipe, specs_of(recipe))
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
        StepTracer(recipe, specs_of(recipe)).trace(
            longest_batches(recipe.tasks["digit"], None), world_size=1, keeps_gradients=False
        )
        for recipe in (small(*settings), small(*settings, "engine.activation_checkpointing=true"))
    )
    assert again.activations < 0.6 * kept.activations
    assert again.trained == kept.trained


def test_bf16_activations_are_about_half():
    settings = ("num_workers=1",)
    wide, narrow = (
        StepTracer(recipe, specs_of(recipe)).trace(
            longest_batches(recipe.tasks["digit"], None), world_size=1, keeps_gradients=False
        )
        for recipe in (small(*settings), small(*settings, "engine.precision=bf16"))
    )
    assert 0.4 < narrow.activations / wide.activations < 0.85


def test_a_step_trains_the_task_s_owners_and_no_others():
    recipe = load_recipe("san_polyvit")
    tracer = StepTracer(recipe, specs_of(recipe))
    batch = longest_batches(recipe.tasks["digit"], None)[0]
    found = tracer.trace([batch], world_size=2, keeps_gradients=True)
    assert any(name.startswith("heads.digit") for name in found.trained)
    assert not any("spoken_digit" in name for name in found.trained)


def test_a_traced_model_leaves_nothing_behind_that_has_no_data():
    recipe = load_recipe("debug")
    plan_run(recipe.only(["parsing"]), data_dir=NOWHERE)
    model = build_model(fitted(recipe), specs_of(recipe), seed=0)
    ids = torch.ones(1, 4, dtype=torch.int64)
    out = model(task="parsing", inputs=ids, input_lengths=torch.tensor([4]), targets=ids)
    assert out.logits.isfinite().all()


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
