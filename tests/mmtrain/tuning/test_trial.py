"""What a trial does without a cluster: taking over from a better one, and failing."""

from pathlib import Path

import pytest

from mmtrain.recipe import load_recipe
from mmtrain.run.job import Job
from mmtrain.store.config import TrackingConfig
from mmtrain.tuning import trial
from mmtrain.tuning.trial import TrialPlan, run_segments, take_over
from mmtrain.tuning.trials import RungPoint, read_record, trial_folder, write_record
from tests.mmtrain.example_sweep import RATE, SIZE, example_sweep, record


@pytest.fixture
def plan(tmp_path: Path) -> TrialPlan:
    recipe = load_recipe("debug").model_dump_json()
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlruns.db'}", parent_run_id="0")
    return TrialPlan(example_sweep(), recipe, tmp_path, tmp_path / "none", tracking)


def save(plan: TrialPlan, number: int, *names: str) -> None:
    for name in names:
        folder = trial_folder(plan.out, number) / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(f"{number} {name}")


def test_trial_takes_over_the_newest_save_of_a_step_and_keeps_its_own_values(plan):
    save(plan, 0, "step-000000003", "step-000000006", "step-000000006-1", "step-000000009")
    save(plan, 1, "step-000000006", "step-000000012")
    points = tuple(RungPoint(step=step, score=step / 10) for step in (3, 6, 9))
    donor = record(0, state="running").model_copy(update={"points": points, "step": 9})
    behind = record(1, state="running")
    taken = take_over(plan, behind, donor=donor, step=6)
    assert taken.step == 6
    assert taken.points == points[:2]
    assert taken.values == behind.values
    assert read_record(plan.out, 1) == taken
    (only,) = (trial_folder(plan.out, 1) / "checkpoints").iterdir()
    assert only.name == "step-000000006-1"
    assert (only / "manifest.json").read_text() == "0 step-000000006-1"


def test_trial_whose_recipe_cannot_be_trained_fails_with_the_reason(plan):
    write_record(record(0, state="running"), out=plan.out)
    never = list(run_segments(plan, record(0, state="running"), train=lambda job, recipe: None))
    assert never == []
    failed = read_record(plan.out, 0)
    assert failed is not None
    assert failed.state == "failed"
    assert "is not built" in failed.message


def test_trial_whose_values_do_not_go_together_fails_with_the_reason(plan):
    values = {RATE: -1.0, SIZE: 16}
    assert (
        list(run_segments(plan, record(0).with_(values=values), train=lambda job, recipe: None))
        == []
    )
    failed = read_record(plan.out, 0)
    assert failed is not None
    assert failed.state == "failed"
    assert "greater than 0" in failed.message


def test_trial_of_asha_stops_at_a_rung_where_others_are_better(plan, monkeypatch):
    def measured(plan, record, *, at_end):
        point = RungPoint(step=record.step, score=0.3)
        return record.with_(points=(*record.points, point), objectives={"score": 0.3})

    monkeypatch.setattr(
        trial, "start_trial", lambda *_, **__: Job("", plan.out, plan.out, plan.tracking, "a")
    )
    monkeypatch.setattr(trial, "measure_trial", measured)
    monkeypatch.setattr(trial, "tell_trial", lambda *_, **__: "a")
    others = [record(n).with_(points=(RungPoint(step=2, score=0.2), RungPoint(step=6, score=0.9)))
              for n in range(1, 4)]  # fmt: skip
    for one in others:
        write_record(one, out=plan.out)
    trained = []
    begun = record(0, state="running").with_(step=0, points=())
    seen = list(run_segments(plan, begun, train=lambda part, _: trained.append(part.until)))
    assert trained == [2, 6]  # of 20 steps: 20 // 9, 20 // 3
    assert [one.state for one in seen] == ["running", "stopped"]
    assert read_record(plan.out, 0) == seen[-1]


def test_recipe_of_a_trial_has_its_values(plan):
    recipe = plan.recipe_of({RATE: 0.5, SIZE: 64})
    assert (recipe.optimizer.learning_rate, recipe.model.body.model_dim) == (0.5, 64)
    assert plan.tracking_of(7).run_name == "trial 7"
    assert plan.tracking_of(7).parent_run_id == "0"
