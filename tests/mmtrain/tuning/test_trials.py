"""Records of trials, and what Optuna and Ray Tune are given of them by a sweep that goes on."""

import itertools
import json
from pathlib import Path

import numpy as np
import optuna
import pytest
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining
from ray.tune.search.variant_generator import generate_variants

from mmtrain.recipe import load_recipe
from mmtrain.store.config import TrackingConfig
from mmtrain.tuning.study import (
    build_sampler,
    build_study,
    draw_values,
    importances,
    is_pruned,
    knee,
    optuna_space,
    pareto_front,
)
from mmtrain.tuning.sweep import LogUniform, SweepConfig, SweepError, Uniform, Whole
from mmtrain.tuning.trial import TrialPlan
from mmtrain.tuning.trials import (
    RungPoint,
    TrialRecord,
    read_record,
    read_records,
    trial_folder,
    write_record,
)
from mmtrain.tuning.tune import NUMBER, SweepSearch, build_scheduler, population
from tests.mmtrain.example_sweep import RATE, SIZE, example_sweep, record

TWO = ("score", "parameters")


def sweep_of(*objectives: str) -> SweepConfig:
    return example_sweep(objectives=objectives, scheduler="none")


def test_record_is_read_as_it_was_written(tmp_path):
    for number in (2, 0):
        write_record(record(number), out=tmp_path)
    assert read_records(tmp_path) == [record(0), record(2)]
    assert read_record(tmp_path, 1) is None


def test_sweep_that_an_earlier_version_began_is_read(tmp_path):
    values = {RATE: 0.002, SIZE: 16}
    measure = {"metric": "accuracy", "value": 50.0, "baseline": 10.0, "reference": 90.0}
    written = {
        "number": 3, "values": values, "state": "stopped", "step": 3, "num_steps": 9,
        "points": [{"step": 3, "score": 0.5, "values": values}], "tasks": {"digit": measure},
        "objectives": {"score": 0.5}, "seconds": 1.5, "run_id": "a1b2", "message": "",
    }  # fmt: skip
    trial_folder(tmp_path, 3).mkdir(parents=True)
    (tmp_path / "trials/003/trial.json").write_text(json.dumps(written, indent=1))
    (one,) = read_records(tmp_path)
    assert json.loads(one.model_dump_json()) == written
    assert (one.score, one.tasks["digit"].score) == (0.5, 0.5)
    again = SweepSearch(plan_of(example_sweep(), tmp_path), [one.with_(state="lost")])
    assert again.suggest("t") == {**values, NUMBER: 3}
    space = {
        "a": {"kind": "loguniform", "low": 0.0001, "high": 0.01}, "b": {"kind": "int", "low": 1,
        "high": 3}, "c": {"kind": "choice", "values": [[1, 2], "x", None]},
        "d": {"kind": "uniform", "low": 0.0, "high": 1.0},
    }  # fmt: skip
    sweep = {**SweepConfig(name="x", space=space).model_dump(mode="json"), "space": space}
    assert json.loads(SweepConfig.model_validate(sweep).model_dump_json()) == sweep


def test_record_of_another_kind_is_refused_by_name(tmp_path):
    write_record(record(0), out=tmp_path)
    (trial_folder(tmp_path, 0) / "trial.json").write_text("{}")
    with pytest.raises(SweepError, match=r"000/trial\.json"):
        read_records(tmp_path)


def test_best_is_the_largest_score_of_what_has_finished():
    trials = [record(1), record(2), record(9, state="stopped"), record(8, state="failed")]
    assert [one.number for one in pareto_front(trials, sweep=sweep_of("score"))] == [2]
    assert pareto_front(trials[2:], sweep=sweep_of("score")) == []


def test_best_of_a_cost_is_the_smallest():
    trials = [record(n, parameters=p) for n, p in enumerate((30.0, 10.0, 20.0))]
    assert [one.number for one in pareto_front(trials, sweep=sweep_of("parameters"))] == [1]


def test_front_holds_what_no_other_beats():
    rng = np.random.default_rng(0)
    trials = [
        record(n, score=float(s), parameters=float(p))
        for n, (s, p) in enumerate(rng.integers(0, 6, (40, 2)))
    ]
    sweep = sweep_of(*TWO).with_(space={RATE: Uniform(low=0.0, high=1.0)})
    numbers = {one.number for one in pareto_front(trials, sweep=sweep)}
    beaten = {
        a.number
        for a, b in itertools.product(trials, trials)
        if (
            b.objectives["score"] >= a.objectives["score"]
            and b.objectives["parameters"] <= a.objectives["parameters"]
            and b.objectives != a.objectives
        )
    }
    assert numbers == set(range(40)) - beaten
    assert numbers


def test_knee_is_nearest_to_the_best_of_each_objective():
    points = [(0.0, 0.0), (0.8, 100.0), (1.0, 1000.0)]
    front = [record(n, score=s, parameters=p) for n, (s, p) in enumerate(points)]
    assert pareto_front(front, sweep=sweep_of(*TWO)) == front
    assert knee(front, objectives=TWO).number == 1
    assert knee(front[:1], objectives=TWO).number == 0


# ---- what a sweep that goes on knows


def test_study_holds_what_has_ended_and_nothing_else():
    trials = [record(0), record(1, state="stopped"), record(2, state="failed")]
    trials += [record(3, state="running"), record(4, state="lost")]
    study = build_study(example_sweep(), trials)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert study.best_value == 0.0
    assert study.trials[1].intermediate_values == {3: 0.1}
    assert study.trials[1].params == {RATE: 0.002, SIZE: "16"}


def test_study_of_several_objectives_holds_their_values():
    study = build_study(sweep_of(*TWO), [record(0, parameters=7.0), record(1, state="failed")])
    assert study.trials[0].values == [0.0, 7.0]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL"]


def plan_of(sweep: SweepConfig, out: Path) -> TrialPlan:
    recipe = load_recipe("debug").with_(num_steps=9)
    return TrialPlan(sweep, recipe.model_dump_json(), out, out, TrackingConfig())


def test_search_takes_up_what_was_cut_off_then_draws_new_numbers(tmp_path):
    trials = [record(0), record(1, state="running"), record(3, state="lost")]
    search = SweepSearch(plan_of(example_sweep(), tmp_path), trials)
    drawn = [search.suggest(f"t{place}") for place in range(5)]
    assert [one[NUMBER] for one in drawn] == [1, 3, 4, 5, 6]
    assert [(one[RATE], one[SIZE]) for one in drawn[:2]] == [(0.002, 16), (0.004, 16)]
    assert len({one[RATE] for one in drawn}) == 5
    assert all(1e-4 <= one[RATE] <= 1e-2 and one[SIZE] in (16, 32) for one in drawn)
    written = read_records(tmp_path)
    assert [one.number for one in written] == [1, 3, 4, 5, 6]
    assert {(one.state, one.step) for one in written[2:]} == {("running", 0)}
    assert written[1] == trials[2].with_(state="running")


def test_population_is_what_was_cut_off_and_new_draws(tmp_path):
    search = SweepSearch(plan_of(example_sweep(), tmp_path), [record(1, state="running")])
    space = population(search, size=3)
    members = [spec["config"] for _, spec in generate_variants({"config": space})]
    written = read_records(tmp_path)
    assert members == [{**one.values, NUMBER: one.number} for one in written]
    assert [one.number for one in written] == [1, 2, 3]
    assert len({one.values[RATE] for one in written}) == 3


def test_search_heeds_what_has_ended_since_it_began(tmp_path):
    sweep = SweepConfig(name="x", space={RATE: Uniform(low=0.0, high=1.0)}, scheduler="none",
                        num_trials=30)  # fmt: skip
    search = SweepSearch(plan_of(sweep, tmp_path), [])
    for number in range(30):
        rate = search.suggest("t")[RATE]
        score = 1 - abs(rate - 0.7)
        write_record(record(number, score=score).with_(values={RATE: rate}), out=tmp_path)
    rates = [one.values[RATE] for one in read_records(tmp_path)]
    assert np.mean([abs(rate - 0.7) < 0.1 for rate in rates[15:]]) > 0.5  # of chance 0.2


@pytest.mark.parametrize("scheduler", ["none", "pbt"])
def test_sampler_that_goes_on_draws_other_values_than_at_first(scheduler):
    sweep = SweepConfig(name="x", space={RATE: LogUniform(low=1e-4, high=1e-2)},
                        searcher="random", scheduler=scheduler)  # fmt: skip

    def first(num_known: int) -> object:
        return draw_values(sweep, [], sampler=build_sampler(sweep, num_known=num_known))[RATE]

    assert first(0) == first(0)
    assert first(0) != first(3)


def test_distributions_are_optunas():
    space = {"a": Whole(low=1, high=3), "b": Whole(kind="logint", low=1, high=64),
             "c": Uniform(low=2, high=3), "d": LogUniform(low=0.5, high=2)}  # fmt: skip
    distributions = optuna.distributions
    assert optuna_space(SweepConfig(name="x", space=space)) == {
        "a": distributions.IntDistribution(1, 3),
        "b": distributions.IntDistribution(1, 64, log=True),
        "c": distributions.FloatDistribution(2, 3),
        "d": distributions.FloatDistribution(0.5, 2, log=True),
    }


# ---- which trials go on


def on_rungs(number: int, *scores: float) -> TrialRecord:
    """A trial of 27 steps that was measured after 3, 9 ... steps."""
    points = [RungPoint(step=3 ** (1 + place), score=s) for place, s in enumerate(scores)]
    return record(number).with_(num_steps=27, step=points[-1].step, points=tuple(points))


def test_trial_goes_on_if_it_is_among_the_best_third_of_its_rung():
    sweep = example_sweep(reduction=3)
    scores = [0.1, 0.2, 0.3, 0.4, 0.5]
    others = [on_rungs(number, score) for number, score in enumerate(scores)]
    assert not is_pruned(sweep, on_rungs(9, 0.45), others)  # second of six
    assert is_pruned(sweep, on_rungs(9, 0.35), others)  # third
    assert not is_pruned(sweep, on_rungs(9, 0.1), [])
    assert is_pruned(sweep, on_rungs(9, 0.1), others[1:2])  # of fewer than three the best


def test_trial_is_compared_at_the_rung_that_it_has_reached():
    sweep = example_sweep(reduction=3)
    others = [on_rungs(0, 0.9), on_rungs(1, 0.5, 0.6), on_rungs(2, 0.1)]
    assert not is_pruned(sweep, on_rungs(9, 0.5, 0.7), others)
    assert is_pruned(sweep, on_rungs(9, 0.5, 0.5), others)


@pytest.mark.parametrize("scheduler", ["none", "pbt"])
def test_no_other_scheduler_stops_trials(scheduler):
    sweep = SweepConfig(
        name="x", space={RATE: LogUniform(low=1e-4, high=1e-2)}, scheduler=scheduler
    )
    assert not is_pruned(sweep, on_rungs(9, 0.1), [on_rungs(0, 0.9)])


def test_population_is_compared_at_each_measurement_and_draws_within_its_range():
    space = {RATE: Uniform(low=0.1, high=0.2)}
    sweep = example_sweep(space=space, scheduler="pbt", rungs=4)
    scheduler = build_scheduler(sweep, num_steps=20)
    assert isinstance(scheduler, PopulationBasedTraining)
    assert scheduler._perturbation_interval == 5
    drawn = [scheduler._hyperparam_mutations[RATE]() for _ in range(20)]
    assert len(set(drawn)) == 20
    assert all(0.1 <= rate <= 0.2 for rate in drawn)
    assert scheduler._custom_explore_fn({RATE: 0.3}) == {RATE: 0.2}
    assert isinstance(build_scheduler(example_sweep(), num_steps=20), FIFOScheduler)


def test_what_mattered_is_told_of_enough_trials():
    sweep = example_sweep()
    few = [record(n) for n in range(3)]
    assert importances(few, sweep=sweep) == {}
    assert importances([record(n, score=1.0) for n in range(8)], sweep=sweep) == {}
    many = [record(n, size=16 if n % 2 else 32) for n in range(9)]
    shares = importances(many, sweep=sweep)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares[RATE] > shares[SIZE]
