"""Records of trials: the best, the front and its knee; what a sweep that goes on knows."""

import itertools

import numpy as np
import optuna
import pytest
from ray.tune.schedulers import ASHAScheduler

from mmtrain.tuning.study import (
    STUDY,
    build_sampler,
    draw,
    from_optuna,
    importances,
    optuna_distribution,
    population,
    study_storage,
    to_optuna,
)
from mmtrain.tuning.sweep import SweepError, Uniform, Whole
from mmtrain.tuning.trials import (
    best_trial,
    knee,
    pareto_front,
    read_record,
    read_records,
    trial_folder,
    write_record,
)
from mmtrain.tuning.tune import NUMBER, STEP, build_scheduler, build_search
from tests.mmtrain.example_sweep import RATE, SIZE, example_sweep, record

TWO = ("score", "parameters")


def test_record_is_read_as_it_was_written(tmp_path):
    for number in (2, 0):
        write_record(record(number), out=tmp_path)
    assert read_records(tmp_path) == [record(0), record(2)]
    assert read_record(tmp_path, 1) is None


def test_record_of_another_kind_is_refused_by_name(tmp_path):
    write_record(record(0), out=tmp_path)
    (trial_folder(tmp_path, 0) / "trial.json").write_text("{}")
    with pytest.raises(SweepError, match=r"000/trial\.json"):
        read_records(tmp_path)


def test_best_is_the_largest_score_of_what_has_finished():
    trials = [record(1), record(2), record(9, state="stopped"), record(8, state="failed")]
    found = best_trial(trials, objectives=("score",))
    assert found is not None
    assert found.number == 2
    assert best_trial(trials[2:], objectives=("score",)) is None


def test_best_of_a_cost_is_the_smallest():
    trials = [record(n, parameters=p) for n, p in enumerate((30.0, 10.0, 20.0))]
    found = best_trial(trials, objectives=("parameters",))
    assert found is not None
    assert found.number == 1


def test_front_holds_what_no_other_beats():
    rng = np.random.default_rng(0)
    trials = [
        record(n, score=float(s), parameters=float(p))
        for n, (s, p) in enumerate(rng.integers(0, 6, (40, 2)))
    ]
    found = {one.number for one in pareto_front(trials, objectives=TWO)}
    beaten = {
        a.number
        for a, b in itertools.product(trials, trials)
        if (
            b.objectives["score"] >= a.objectives["score"]
            and b.objectives["parameters"] <= a.objectives["parameters"]
            and b.objectives != a.objectives
        )
    }
    assert found == set(range(40)) - beaten
    assert found


def test_knee_is_nearest_to_the_best_of_each_objective():
    points = [(0.0, 0.0), (0.8, 100.0), (1.0, 1000.0)]
    front = [record(n, score=s, parameters=p) for n, (s, p) in enumerate(points)]
    assert pareto_front(front, objectives=TWO) == front
    assert knee(front, objectives=TWO).number == 1
    assert knee(front[:1], objectives=TWO).number == 0


# ---- what a sweep that goes on knows


def test_values_go_to_optuna_and_back():
    sweep = example_sweep()
    values = {RATE: 0.001, SIZE: 32}
    assert from_optuna(to_optuna(values, space=sweep.space), space=sweep.space) == values


def test_study_holds_what_has_ended_and_nothing_else():
    trials = [record(0), record(1, state="stopped"), record(2, state="failed")]
    trials += [record(3, state="running"), record(4, state="lost")]
    sweep = example_sweep()
    study = optuna.load_study(study_name=STUDY, storage=study_storage(sweep, trials))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert study.best_value == 0.0
    assert study.trials[1].intermediate_values == {3: 0.1}


def test_study_of_several_objectives_holds_their_values():
    sweep = example_sweep(objectives=TWO, scheduler="none")
    trials = [record(0, parameters=7.0), record(1, state="failed")]
    study = optuna.load_study(study_name=STUDY, storage=study_storage(sweep, trials))
    assert study.trials[0].values == [0.0, 7.0]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL"]


def test_search_takes_up_what_was_cut_off_then_draws_new_numbers():
    trials = [record(0), record(1, state="running"), record(2, state="lost")]
    search, _, todo = build_search(example_sweep(num_trials=6), trials)
    assert todo == 5
    drawn = [search.suggest(f"t{place}") for place in range(todo)]
    assert [one[NUMBER] for one in drawn] == [1, 2, 3, 4, 5]
    assert [drawn[0][RATE], drawn[1][RATE]] == [0.002, 0.003]
    assert len({one[RATE] for one in drawn}) == 5


def test_sweep_whose_trials_have_all_ended_runs_none():
    trials = [record(n, state=s) for n, s in enumerate(("finished", "stopped", "failed"))]
    assert build_search(example_sweep(num_trials=3), trials)[2] == 0


def test_sampler_that_goes_on_draws_other_values_than_at_first():
    sweep = example_sweep(searcher="random")
    space = {name: optuna_distribution(one) for name, one in sweep.space.items()}

    def first(num_known: int) -> float:
        study = optuna.create_study(sampler=build_sampler(sweep, num_known=num_known))
        return study.ask(fixed_distributions=space).params[RATE]

    assert first(0) == first(0)
    assert first(0) != first(3)


def test_trials_of_before_stand_in_the_rungs():
    trials = [record(n, state="stopped") for n in range(3)]
    scheduler = build_scheduler(example_sweep(), num_steps=27, records=trials)
    assert isinstance(scheduler, ASHAScheduler)
    (bracket,) = scheduler._brackets
    rungs = dict(bracket._rungs)
    assert sorted(rungs) == [3, 9, 27]
    assert sorted(rungs[3].values()) == [0.0, 0.1, 0.2]


def test_population_goes_on_with_its_members_and_draws_the_rest():
    sweep = example_sweep(num_trials=4)
    cut_off = [record(1, state="running")]
    members = population(sweep, cut_off, taken=[record(0), *cut_off], todo=3)
    assert list(members) == [1, 2, 3]
    assert members[1][RATE] == 0.002
    assert all(1e-4 <= values[RATE] <= 1e-2 and values[SIZE] in (16, 32) for values in
               members.values())  # fmt: skip
    assert members == population(sweep, cut_off, taken=[record(0), *cut_off], todo=3)


def test_draws_stay_in_their_range():
    rng = np.random.default_rng(0)
    assert {draw(Whole(low=1, high=3), rng=rng) for _ in range(50)} == {1, 2, 3}
    assert all(2 <= draw(Uniform(low=2, high=3), rng=rng) <= 3 for _ in range(50))


def test_pbt_trials_are_named_by_number():
    search, space, todo = build_search(
        example_sweep(space={RATE: Uniform(low=0.1, high=0.2)}, scheduler="pbt", num_trials=3), []
    )
    assert todo == 3
    assert set(space) == {RATE, NUMBER}
    assert search is not None
    assert STEP == "step"


def test_what_mattered_is_told_of_enough_trials():
    sweep = example_sweep()
    few = [record(n) for n in range(3)]
    assert importances(few, sweep=sweep, objective="score") == {}
    assert (
        importances([record(n, score=1.0) for n in range(8)], sweep=sweep, objective="score") == {}
    )
    many = [record(n, size=16 if n % 2 else 32) for n in range(9)]
    shares = importances(many, sweep=sweep, objective="score")
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares[RATE] > shares[SIZE]
