"""Sweeps as data: what a space may hold, and what is refused before anything starts."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from mmtrain.recipe import Recipe, load_recipe
from mmtrain.run.task_steps import task_steps
from mmtrain.tuning.alone import alone_recipe, alone_sweep, joint_recipe
from mmtrain.tuning.sweep import (
    Choice,
    LogUniform,
    SweepConfig,
    SweepError,
    Uniform,
    Whole,
    apply_values,
    base_recipe,
    check_sweep,
    check_sweep_resources,
    load_sweep,
    measured_steps,
    sweep_functions,
)
from pipelines.errors import UnknownNameError
from pipelines.names import OwnCodeError
from tests.mmtrain.example_sweep import record


@pytest.fixture(scope="module")
def debug() -> Recipe:
    return load_recipe("debug")


def sweep_of(**space: object) -> SweepConfig:
    named = {name.replace("__", "."): value for name, value in space.items()}
    return SweepConfig.model_validate({"name": "x", "space": named, "scheduler": "none"})


def test_field_that_does_not_exist_is_refused_with_the_nearest(debug):
    sweep = sweep_of(optimizer__learning_rat=LogUniform(low=1e-4, high=1e-2))
    with pytest.raises(UnknownNameError, match=r"nearest: optimizer\.learning_rate"):
        check_sweep(sweep, debug)


def test_task_that_does_not_exist_is_refused_with_the_nearest(debug):
    sweep = sweep_of(tasks__parsin__learning_rate=LogUniform(low=1e-4, high=1e-2))
    with pytest.raises(UnknownNameError, match=r"nearest: tasks\.parsing\.learning_rate"):
        check_sweep(sweep, debug)


@pytest.mark.parametrize(
    ("field", "distribution", "told"),
    [
        ("num_steps", Uniform(low=1, high=8), "integer"),
        ("optimizer.learning_rate", Uniform(low=-1, high=1), "greater than 0"),
        ("model.body.model_dim", Choice(values=(16, "wide")), "'wide'"),
        ("optimizer.learning_rate.much", Uniform(low=0, high=1), "no fields to set"),
        ("pruning.gamma", Uniform(low=0, high=1), "no fields to set"),
    ],
)
def test_field_that_does_not_take_a_value_of_its_distribution_is_refused(
    debug, field, distribution, told
):
    sweep = SweepConfig(name="x", space={field: distribution}, scheduler="none")
    with pytest.raises(SweepError, match=told):
        check_sweep(sweep, debug)


def test_whole_numbers_and_choices_fit_fields_of_their_kind(debug):
    check_sweep(
        sweep_of(num_steps=Whole(low=1, high=8), optimizer__name=Choice(values=("adamw", "sgd"))),
        debug,
    )


@pytest.mark.parametrize(
    "space",
    [
        {},
        {"a": {"kind": "uniform", "low": 1, "high": 1}},
        {"a": {"kind": "loguniform", "low": 0, "high": 1}},
        {"a": {"kind": "logint", "low": 0, "high": 3}},
        {"a": {"kind": "int", "low": 0.5, "high": 3}},
        {"a": {"kind": "choice", "values": []}},
        {"a": {"kind": "gauss", "low": 0, "high": 1}},
        {"a": {"kind": "uniform", "low": 0, "high": "nan"}},
    ],
)
def test_distribution_that_cannot_be_drawn_is_refused(space):
    with pytest.raises(ValidationError):
        SweepConfig.model_validate({"name": "x", "space": space})


@pytest.mark.parametrize(
    "fields",
    [
        {"objectives": ("score", "parameters")},
        {"objectives": ("parameters",)},
        {"objectives": ("score", "score"), "scheduler": "none"},
        {"weights": {"a": 0.0}},
        {"weights": {"a": -1.0}},
        {"scheduler": "hyperband"},
        {"trials": 3},
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields):
    with pytest.raises(ValidationError):
        SweepConfig.model_validate(
            {"name": "x", "space": {"a": {"kind": "choice", "values": [1]}}, **fields}
        )


def test_objective_of_masks_needs_a_recipe_with_masks(debug):
    sweep = sweep_of(num_steps=Whole(low=1, high=8)).with_(objectives=("kept_flops",))
    with pytest.raises(SweepError, match="san_resnet"):
        check_sweep(sweep, debug)


def test_weight_of_a_task_that_is_not_there_is_refused(debug):
    with pytest.raises(UnknownNameError, match="nearest: parsing"):
        check_sweep(
            sweep_of(num_steps=Whole(low=1, high=8)).with_(weights={"parsings": 2.0}), debug
        )


def test_rungs_need_runs_of_one_length(debug):
    sweep = SweepConfig(name="x", space={"num_steps": Whole(low=10, high=20)})
    with pytest.raises(SweepError, match="scheduler to 'none'"):
        check_sweep(sweep, debug)


def test_only_learning_rates_change_while_a_trial_trains(debug):
    sweep = SweepConfig(
        name="x", space={"model.body.model_dim": Choice(values=(16, 32))}, scheduler="pbt"
    )
    with pytest.raises(SweepError, match="learning rates alone"):
        check_sweep(sweep, debug)


def test_json_file_says_the_same_as_the_sweep_it_was_written_from(debug, tmp_path):
    sweep = load_sweep("learning_rate", debug)
    path = tmp_path / "mine.json"
    path.write_text(sweep.model_dump_json())
    assert load_sweep(str(path), debug) == sweep


def test_function_of_a_file_is_a_sweep(debug, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from mmtrain.tuning.sweep import SweepConfig, Whole\n"
        "def short(recipe):\n"
        "    '''Steps.'''\n"
        "    return SweepConfig(name=recipe.name, space={'num_steps': Whole(low=1, high=9)})\n"
        "def wrong(recipe):\n"
        "    return 3\n"
    )
    assert load_sweep(f"{path}:short", debug).name == "debug"
    with pytest.raises(SweepError, match="must return a SweepConfig"):
        load_sweep(f"{path}:wrong", debug)
    with pytest.raises(UnknownNameError, match="nearest: short"):
        load_sweep(f"{path}:shor", debug)


@pytest.mark.parametrize("name", ["missing.json", "missing.py:sweep"])
def test_sweep_file_that_is_not_there_is_refused(debug, name):
    with pytest.raises((SweepError, OwnCodeError), match="missing"):
        load_sweep(name, debug)


def test_json_that_is_no_sweep_is_refused_in_one_line(debug, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{"name": "x"')
    with pytest.raises(SweepError) as caught:
        load_sweep(str(path), debug)
    assert "\n" not in str(caught.value)


def test_unknown_sweep_is_answered_with_the_nearest(debug):
    with pytest.raises(UnknownNameError, match="nearest: learning_rate"):
        load_sweep("learning_rates", debug)


@pytest.mark.parametrize("recipe", ["debug", "quickstart", "polyvit_tiny", "san_resnet"])
@pytest.mark.parametrize("name", sorted(sweep_functions()))
def test_shipped_sweep_fits_the_recipe_or_says_why_not(name, recipe):
    chosen = load_recipe(recipe)
    needs_masks = name == "gamma" and chosen.pruning is None
    if needs_masks or (name == "mixture_rate" and len(chosen.tasks) < 2):
        with pytest.raises(SweepError, match=recipe):
            load_sweep(name, chosen)
        return
    sweep = load_sweep(name, chosen)
    check_sweep(sweep, base_recipe(chosen, sweep))


def test_masks_are_searched_by_score_operations_and_latency():
    sweep = load_sweep("gamma", load_recipe("san_resnet"))
    assert sweep.objectives == ("subset_score", "kept_flops", "latency_ms")
    assert set(sweep.space) == {"pruning.gamma", "pruning.sigma", "pruning.beta"}


def test_mixture_sweep_starts_from_the_shares_that_the_recipe_has(debug):
    sweep = load_sweep("mixture_rate", debug)
    recipe = base_recipe(debug, sweep)
    assert recipe.schedule.name == "weighted"
    assert recipe.schedule.rates == {"image_classification": 10.0, "parsing": 10.0}
    assert task_steps(recipe) == task_steps(debug)


def test_values_change_the_recipe_typed(debug):
    changed = apply_values(debug, {"optimizer.learning_rate": 0.5, "num_steps": 7})
    assert (changed.optimizer.learning_rate, changed.num_steps) == (0.5, 7)


def test_run_as_long_as_its_tasks_stays_so():
    recipe = load_recipe("polyvit_tiny").only(["digit", "digit_box"])
    assert recipe.num_steps == 1000
    assert apply_values(recipe, {"tasks.digit.num_steps": 20}).num_steps == 520


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [("asha", (11, 33, 100)), ("pbt", (33, 66, 100)), ("none", (100,))],
)
def test_trials_are_measured_at_rungs(scheduler, expected):
    sweep = SweepConfig.model_validate(
        {
            "name": "x",
            "space": {"optimizer.learning_rate": {"kind": "uniform", "low": 1, "high": 2}},
            "scheduler": scheduler,
        }
    )
    assert measured_steps(100, sweep=sweep) == expected
    assert measured_steps(1, sweep=sweep) == (1,)


def test_trials_that_do_not_fit_are_refused_with_the_numbers(debug):
    two = debug.with_(num_workers=2)
    check_sweep_resources({"CPU": 8}, concurrent=2, recipe=two)
    with pytest.raises(
        SweepError, match=r"need 12 logical CPUs, the cluster has 8; use --conc.* 2"
    ):
        check_sweep_resources({"CPU": 8}, concurrent=3, recipe=two)
    with pytest.raises(SweepError, match="has 3; use fewer workers"):
        check_sweep_resources({"CPU": 3}, concurrent=1, recipe=two)
    with pytest.raises(SweepError, match="need 4 GPUs, the cluster has 1"):
        check_sweep_resources({"CPU": 99, "GPU": 1}, concurrent=2, recipe=two.with_(use_gpu=True))


def test_population_runs_at_once(debug):
    sweep = load_sweep("learning_rate_pbt", debug)
    assert sweep.with_(num_trials=6, concurrent=2).at_once == 6
    assert sweep.with_(num_trials=6, concurrent=2, scheduler="asha").at_once == 2
    assert sweep.with_(num_trials=1, concurrent=2, scheduler="asha").at_once == 1


# ---- tasks alone


def test_task_alone_has_its_own_fields_and_its_steps_of_the_joint_run(debug):
    part = alone_sweep(load_sweep("learning_rate", debug), "parsing")
    assert set(part.space) == {"tasks.parsing.learning_rate"}
    alone = alone_recipe(debug, "parsing")
    assert (list(alone.tasks), alone.num_steps) == (["parsing"], 10)


def test_field_of_all_tasks_cannot_be_tuned_for_each(debug):
    with pytest.raises(SweepError, match="all tasks share it"):
        alone_sweep(load_sweep("model_size", debug), "parsing")


def test_task_without_a_field_of_its_own_is_refused(debug):
    sweep = sweep_of(tasks__parsing__learning_rate=LogUniform(low=1e-4, high=1e-2))
    with pytest.raises(SweepError, match=r"tasks\.image_classification\.FIELD"):
        alone_sweep(sweep, "image_classification")


def test_joint_recipe_has_each_tasks_own_values(debug):
    fields = {name: f"tasks.{name}.learning_rate" for name in debug.tasks}
    best = {
        name: record(0).model_copy(update={"values": {field: rate}})
        for (name, field), rate in zip(fields.items(), (0.25, 0.5), strict=True)
    }
    joint = joint_recipe(debug, best)
    rates = {name: task.learning_rate for name, task in joint.tasks.items()}
    assert rates == {"image_classification": 0.25, "parsing": 0.5}
    assert joint.num_steps == debug.num_steps


def test_sweep_survives_json(debug, tmp_path: Path):
    sweep = load_sweep("model_size", debug)
    assert SweepConfig.model_validate(json.loads(sweep.model_dump_json())) == sweep
