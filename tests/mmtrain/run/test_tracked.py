"""How a run and a sweep's trial stand in MLflow after their end, in a real SQLite store."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mmtrain.process.errors import RunFailedError, RunInterruptedError
from mmtrain.recipe import load_recipe
from mmtrain.run.tracked import tracked
from mmtrain.store.config import TrackingConfig
from mmtrain.store.journal import Journal
from mmtrain.store.tracking import Tracker
from mmtrain.tuning.run import _close_trials
from mmtrain.tuning.trial import TrialPlan, tell_trial
from mmtrain.tuning.trials import trial_folder
from pipelines.errors import CorpusError
from pipelines.shards import vocabulary_path
from tests.mmtrain.example_corpus import (
    RAW,
    TASKS,
    build_example_corpora,
    example_vocabulary,
    write_split,
)
from tests.mmtrain.example_sweep import example_sweep, record


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlruns.db'}"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    vocabulary = example_vocabulary()
    vocabulary.save(vocabulary_path(folder, digest=vocabulary.digest))
    build_example_corpora(folder, vocabulary=vocabulary)
    for name, splits in RAW.items():
        rows, task = splits["train"], TASKS[name]
        write_split(folder, task, split="validation", rows=rows, vocabulary=vocabulary)
    return folder


class Run:
    """A run in a folder that is begun again and again, and what MLflow says of it."""

    def __init__(self, out: Path, *, data_dir: Path, store: str) -> None:
        self._out, self._data_dir = out, data_dir
        self._config = TrackingConfig(uri=store, interval_s=0.05)
        self._client = MlflowClient(tracking_uri=store)
        self.ids: set[str | None] = set()

    @contextmanager
    def training(self) -> Iterator[None]:
        recipe = load_recipe("debug").with_(tasks=TASKS)
        with tracked(recipe, self._config, out=self._out, data_dir=self._data_dir) as run_id:
            self.ids.add(run_id)
            assert self.status == "RUNNING"
            yield

    @property
    def status(self) -> str:
        (run_id,) = self.ids
        return self._client.get_run(run_id or "").info.status


@pytest.fixture
def run(tmp_path: Path, data_dir: Path, store: str) -> Run:
    return Run(tmp_path, data_dir=data_dir, store=store)


def test_a_run_that_reaches_its_end_is_finished(run: Run):
    with run.training():
        pass
    assert run.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RunFailedError("lost"), "FAILED"),
        (ZeroDivisionError(), "FAILED"),
        (RunInterruptedError("interrupted"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(1), "KILLED"),
    ],
)
def test_a_run_that_does_not_runs_again_when_it_is_resumed_and_then_ends(
    run: Run, error: BaseException, status: str
):
    with pytest.raises(type(error)), run.training():
        raise error
    assert run.status == status
    with run.training():  # RUNNING inside
        pass
    assert run.status == "FINISHED"


def test_a_start_that_fails_ends_the_run_and_frees_the_journal(
    tmp_path: Path, run: Run, store: str
):
    recipe, config = load_recipe("debug").with_(tasks=TASKS), TrackingConfig(uri=store)
    with pytest.raises(CorpusError), tracked(recipe, config, out=tmp_path, data_dir=tmp_path):
        pass
    journal = Journal.open(tmp_path / "tracking", resume=True, wait_s=0)
    run.ids.add(journal.mark.run_id)
    journal.close()
    assert run.status == "FAILED"


def test_an_end_that_mlflow_was_not_told_does_not_end_the_resumed_run(
    tmp_path: Path, run: Run, store: str
):
    with run.training():
        pass
    away = TrackingConfig(uri="http://127.0.0.1:9", interval_s=0.05)
    tracker = Tracker.open(away, out=tmp_path, name="away", resume=True)
    tracker.close(status="KILLED")  # stays in the journal
    with run.training():  # RUNNING inside: what came later counts
        pass
    assert run.status == "FINISHED"


@pytest.mark.parametrize(
    ("state", "status"),
    [("running", "KILLED"), ("stopped", "KILLED"), ("failed", "FAILED"), ("lost", "FAILED")],
)
def test_a_trial_that_could_not_end_its_run_is_ended(
    tmp_path: Path, store: str, state: str, status: str
):
    tracking = TrackingConfig(uri=store, parent_run_id="0")
    recipe = load_recipe("debug").model_dump_json()
    plan = TrialPlan(example_sweep(), recipe, tmp_path, tmp_path / "none", tracking)
    trial = record(0, state=state)
    tell_trial(plan, trial, status=None)
    out = trial_folder(plan.out, 0)
    with Tracker.open(plan.tracking_of(0), out=out, name="", resume=True) as tracker:
        run_id = tracker.run_id or ""
    _close_trials(plan, [trial])
    assert MlflowClient(tracking_uri=store).get_run(run_id).info.status == status


def test_a_trial_that_never_began_makes_no_run(tmp_path: Path, store: str):
    tracking = TrackingConfig(uri=store, parent_run_id="0")
    plan = TrialPlan(example_sweep(), "", tmp_path, tmp_path / "none", tracking)
    _close_trials(plan, [record(0, state="running")])
    assert not trial_folder(plan.out, 0).exists()
