"""A real sweep on the session's cluster: cut off, taken up, its best recipe repeated to the bit."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray
from mlflow import MlflowClient
from torch import equal

from mmtrain.bundle import load_bundle
from mmtrain.process.errors import RunFailedError
from mmtrain.recipe import Recipe, load_recipe
from mmtrain.train import build_corpora, train
from mmtrain.tuning.run import run_sweep
from mmtrain.tuning.sweep import LogUniform, SweepConfig, SweepError
from mmtrain.tuning.trials import read_records
from pipelines.errors import UnknownNameError
from tests.waiting import BUSY_S

pytestmark = pytest.mark.usefixtures("ray_cluster")

FIELD = "tasks.image_classification.learning_rate"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """One task, a few steps."""
    return load_recipe("debug", ["num_steps=6", "log_every=2", "save_every=3"]).only(
        ["image_classification"]
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, ray_cluster, recipe) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    build_corpora(recipe, data_dir=folder)
    return folder


def sweep_of(**fields: object) -> SweepConfig:
    given = {
        "name": "rates",
        "space": {FIELD: LogUniform(low=1e-3, high=1e-2)},
        "scheduler": "none",
        "num_trials": 3,
        "examples": 32,
        "timeout_s": float(BUSY_S),
    }
    return SweepConfig.model_validate({**given, **fields})


def interrupt_when_one_has_ended(out: Path) -> None:
    """What Ctrl-C does, as soon as a trial is over; gives up after `BUSY_S`."""
    deadline = time.monotonic() + BUSY_S
    while time.monotonic() < deadline:
        if any(record.has_ended for record in read_records(out)):
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.1)


@pytest.fixture(scope="module")
def swept(recipe, data_dir, tmp_path_factory) -> tuple[Path, list[int]]:
    """A sweep that was interrupted and taken up; and the trials over at the interruption."""
    out = tmp_path_factory.mktemp("sweep")
    interrupter = threading.Thread(target=interrupt_when_one_has_ended, args=(out,))
    interrupter.start()
    with pytest.raises(RunFailedError, match=r"interrupted; \d of 3 trials are over.*--resume"):
        run_sweep(recipe, sweep_of(), out=out, data_dir=data_dir)
    interrupter.join()
    before = {r.number: r for r in read_records(out) if r.has_ended}
    assert 1 <= len(before) < 3
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlruns.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    by_name = {run.info.run_name: run.info.status for run in runs}
    assert by_name.pop("rates") == "KILLED"
    assert {by_name.pop(f"trial {number}") for number in before} == {"FINISHED"}
    assert set(by_name.values()) <= {"KILLED"}
    written = {n: (out / f"trials/{n:03d}/trial.json").stat().st_mtime_ns for n in before}
    run_sweep(recipe, sweep_of(), out=out, data_dir=data_dir, resume=True)
    after = {n: (out / f"trials/{n:03d}/trial.json").stat().st_mtime_ns for n in before}
    assert written == after
    return out, list(before)


def test_sweep_that_goes_on_ends_with_all_trials_once(swept, recipe):
    out, _ = swept
    records = read_records(out)
    assert [record.number for record in records] == [0, 1, 2]
    assert {record.state for record in records} == {"finished"}
    assert len({record.values[FIELD] for record in records}) == 3
    assert all(record.step == recipe.num_steps for record in records)


def test_trials_are_runs_under_the_sweeps(swept):
    out, _ = swept
    results = json.loads((out / "sweep_results.json").read_text())
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlruns.db'}")
    parent = client.get_run(results["run_id"])
    assert parent.info.status == "FINISHED"
    for trial in results["trials"]:
        run = client.get_run(trial["run_id"])
        assert run.data.tags["mlflow.parentRunId"] == results["run_id"]
        assert run.info.run_name == f"trial {trial['number']}"
        assert run.info.status == "FINISHED"
        assert run.data.metrics["score"] == pytest.approx(trial["objectives"]["score"])
    artifacts = {file.path for file in client.list_artifacts(results["run_id"])}
    assert {"best.json", "report.html", "sweep.json", "figures"} <= artifacts


def test_best_recipe_repeats_the_best_trial_to_the_bit(swept, data_dir, tmp_path):
    out, _ = swept
    results = json.loads((out / "sweep_results.json").read_text())
    best = results["trials"][results["best"]]
    assert best["objectives"]["score"] == max(
        trial["objectives"]["score"] for trial in results["trials"]
    )
    recipe = load_recipe(str(out / "best.json"))
    assert recipe.tasks["image_classification"].learning_rate == best["values"][FIELD]
    train(recipe, out=tmp_path / "run", data_dir=data_dir)
    theirs = load_bundle(out / f"trials/{results['best']:03d}/bundle").state
    for name, tensor in load_bundle(tmp_path / "run/bundle").state.items():
        assert equal(tensor, theirs[name]), name


def test_folder_of_a_sweep_is_refused_without_resume_and_to_another_sweep(swept, recipe, data_dir):
    out, _ = swept
    with pytest.raises(SweepError, match="sweep of 3 trials; go on with --resume"):
        run_sweep(recipe, sweep_of(), out=out, data_dir=data_dir)
    with pytest.raises(SweepError, match="with seed 0, this one has 1"):
        run_sweep(recipe, sweep_of(seed=1), out=out, data_dir=data_dir, resume=True)
    with pytest.raises(SweepError, match="another recipe"):
        run_sweep(recipe.with_(num_steps=7), sweep_of(), out=out, data_dir=data_dir, resume=True)


def test_what_cannot_run_is_refused_before_anything_starts(recipe, data_dir, tmp_path):
    out = tmp_path / "sweep"
    with pytest.raises(SweepError, match="need 8 logical CPUs, the cluster has 6"):
        run_sweep(recipe, sweep_of(concurrent=4, num_trials=4), out=out, data_dir=data_dir)
    assert read_records(out) == []
    wrong = sweep_of(space={"optimizer.rate": LogUniform(low=1e-3, high=1e-2)})
    with pytest.raises(UnknownNameError, match="optimizer"):
        run_sweep(recipe, wrong, out=tmp_path / "other", data_dir=data_dir)
    assert not (tmp_path / "other").exists()


def test_trial_that_loses_its_loss_fails_alone_and_is_not_repeated(recipe, data_dir, tmp_path):
    wild = {FIELD: {"kind": "choice", "values": [1e-3, 1e30]}}
    sweep = sweep_of(space=wild, num_trials=2, searcher="random")  # its first two draws differ
    outcome = run_sweep(recipe, sweep, out=tmp_path, data_dir=data_dir)
    by_rate = {record.values[FIELD]: record for record in outcome.trials}
    assert by_rate[1e30].state == "failed"
    assert "gradient norm" in by_rate[1e30].message
    assert by_rate[1e-3].state == "finished"
    assert outcome.best_trial.values == {FIELD: 1e-3}


def test_cluster_outlives_the_sweeps():
    assert ray.is_initialized()
