"""Real runs on a local Ray cluster: two gloo workers, experts over both, DeepSpeed ZeRO."""

import io
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray
from mlflow import MlflowClient
from rich.console import Console
from torch import Tensor, equal
from torch.testing import assert_close

from mmtrain import checkpoint
from mmtrain.process.errors import RunFailedError
from mmtrain.recipe import Recipe, RecipeError, load_recipe, override
from mmtrain.run.preflight import PreflightError
from mmtrain.train import build_corpora, train
from pipelines.errors import CorpusError, PlanError
from tests.waiting import BUSY_S

pytestmark = pytest.mark.usefixtures("ray_cluster")

STEPS, SAVED = 12, 6


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, ray_cluster) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    build_corpora(load_recipe("debug"), data_dir=folder)
    return folder


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """Two workers share the experts; nothing random, so that other numbers of workers agree."""
    return override(
        load_recipe("debug"),
        [
            'engine={"name": "deepspeed", "zero_stage": 2, "ep_size": 2}',
            "num_workers=2",
            f"num_steps={STEPS}",
            f"save_every={SAVED}",
            "keep_checkpoints=9",
            "log_every=1",
            "check_ranks=true",
            "model.body.drop_prob=0",
            'model.body.gate_noise="none"',
            "model.body.balance_weight=0",
        ],
    )


@pytest.fixture(scope="module")
def straight(recipe, data_dir, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    train(recipe, out=out, data_dir=data_dir)
    return out


def states(out: Path) -> dict[str, dict[str, Tensor]]:
    ref = checkpoint.latest(out / "checkpoints")
    assert ref is not None
    assert ref.step == STEPS
    return {state.name: dict(state.tensors) for state in checkpoint.states(ref)}


def examples(out: Path) -> dict[int, list[int]]:
    lines = (out / "examples.jsonl").read_text().splitlines()
    return {line["step"]: line["examples"] for line in map(json.loads, lines)}


def resumable_copy(straight: Path, out: Path) -> Path:
    """The straight run as it was when half of it was saved."""
    shutil.copytree(straight, out, ignore=shutil.ignore_patterns("bundle", "ray", "examples.jsonl"))
    shutil.rmtree(out / "checkpoints" / f"step-{STEPS:09d}")
    return out


def test_straight_run_leaves_checkpoints_bundle_recipe_and_series(straight, recipe):
    assert {path.name for path in (straight / "checkpoints").iterdir()} == {
        f"step-{SAVED:09d}",
        f"step-{STEPS:09d}",
    }
    assert Recipe.model_validate_json((straight / "recipe.json").read_text()) == recipe
    assert (straight / "bundle" / "bundle.json").exists()
    steps = [json.loads(x)["step"] for x in (straight / "series.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    assert mlflow_status(straight) == "FINISHED"


def mlflow_status(out: Path) -> str:
    """Of the one run that the folder's store holds."""
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlruns.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    return run.info.status


def interrupt_when_saved(out: Path) -> None:
    """What Ctrl-C does, as soon as a checkpoint is there; gives up after two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and checkpoint.latest(out / "checkpoints") is None:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_run_is_killed_in_mlflow_and_finished_when_it_was_resumed(
    recipe, data_dir, tmp_path
):
    long = recipe.with_(num_steps=2000, save_every=SAVED)
    interrupter = threading.Thread(target=interrupt_when_saved, args=(tmp_path,))
    interrupter.start()
    with pytest.raises(RunFailedError, match="interrupted"):
        train(long, out=tmp_path, data_dir=data_dir)
    interrupter.join()
    assert mlflow_status(tmp_path) == "KILLED"
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert saved is not None
    short = recipe.with_(num_steps=saved.step + SAVED)
    train(short, out=tmp_path, data_dir=data_dir, resume=True)
    assert mlflow_status(tmp_path) == "FINISHED"


def command_of(process: psutil.Process) -> str:
    """Its command line; nothing of one that ended since it was listed."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # gone, or a zombie: Ray's idle processes come and go
        return ""


def kill_a_worker(series: Path, *, after_step: int, killed: list[int]) -> None:
    """Kills one training process as soon as the series has a step; gives up after `BUSY_S`."""
    deadline = time.monotonic() + BUSY_S
    while time.monotonic() < deadline:
        lines = series.read_text().splitlines() if series.exists() else []
        if len(lines) >= after_step:
            workers = [
                process
                for process in psutil.Process().children(recursive=True)
                if "RayTrainWorker" in command_of(process)
            ]
            workers[-1].send_signal(signal.SIGKILL)
            killed.append(len(series.read_text().splitlines()))
            return
        time.sleep(0.005)


def test_run_whose_worker_is_killed_goes_on_and_equals_the_straight_run_to_the_bit(
    straight, recipe, data_dir, tmp_path
):
    killed: list[int] = []
    killer = threading.Thread(
        target=kill_a_worker,
        args=(tmp_path / "series.jsonl",),
        kwargs={"after_step": SAVED + 2, "killed": killed},
    )
    killer.start()
    train(recipe, out=tmp_path, data_dir=data_dir)
    killer.join()
    assert killed
    assert SAVED < killed[0] < STEPS
    expected, resumed = states(straight), states(tmp_path)
    assert expected.keys() == resumed.keys()
    for name, tensors in expected.items():
        for key, tensor in tensors.items():
            assert equal(tensor, resumed[name][key]), (name, key)
    assert examples(tmp_path) == examples(straight)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_run_resumed_on_other_workers_reads_the_same_examples_and_agrees(
    straight, recipe, data_dir, tmp_path, num_workers
):
    out = resumable_copy(straight, tmp_path / "run")
    other = override(recipe, [f"num_workers={num_workers}", "engine.ep_size=1"])
    console = Console(file=io.StringIO())
    train(other, out=out, data_dir=data_dir, resume=True, console=console)
    changes = f"changed since step {SAVED}: engine.ep_size 2 -> 1, num_workers 2 -> {num_workers}"
    assert changes in console.file.getvalue()
    seen = examples(out)
    assert seen == {step: ids for step, ids in examples(straight).items() if step >= SAVED}
    for name, tensors in states(straight).items():
        assert_close(states(out)[name]["weight"], tensors["weight"], atol=1e-4, rtol=0)


def test_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    straight, recipe, data_dir, tmp_path, caplog
):
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    newest = out / "checkpoints" / f"step-{STEPS:09d}"
    damaged = sorted(newest.glob("weights-*"))[0]
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    ref = checkpoint.latest(out / "checkpoints")
    assert ref is not None
    assert ref.step == SAVED
    assert damaged.name in caplog.text


def test_lost_loss_stops_the_run_with_task_step_and_examples_and_keeps_the_checkpoint(
    data_dir, tmp_path
):
    wild = override(
        load_recipe("debug"),
        ["optimizer.learning_rate=1e30", "optimizer.warmup_steps=0", "save_every=1", "num_steps=9"],
    )
    with pytest.raises(RunFailedError, match=r"step \d, task .*examples \d+, \d+"):
        train(wild, out=tmp_path, data_dir=data_dir)
    assert mlflow_status(tmp_path) == "FAILED"
    ref = checkpoint.latest(tmp_path / "checkpoints")
    assert ref is not None
    for state in checkpoint.states(ref):
        assert state.tensors["weight"].isfinite().all()


def test_run_folder_in_use_is_refused_without_resume(straight, recipe, data_dir):
    with pytest.raises(RecipeError, match="--resume"):
        train(recipe, out=straight, data_dir=data_dir)


def test_recipe_of_another_model_than_the_checkpoints_is_refused(straight, recipe, data_dir):
    other = override(recipe, ["model.body.model_dim=16"])
    with pytest.raises(RecipeError, match=r"another model\.body\.model_dim: 32, the"):
        train(other, out=straight, data_dir=data_dir, resume=True)


def test_more_workers_than_the_cluster_holds_are_refused_with_the_numbers(
    recipe, data_dir, tmp_path
):
    with pytest.raises(PreflightError, match="need 8 logical CPUs, the cluster has 6"):
        train(recipe.with_(num_workers=4), out=tmp_path / "run", data_dir=data_dir)


def test_batch_that_does_not_divide_over_the_workers_is_refused(recipe, data_dir, tmp_path):
    other = override(recipe, ["tasks.image_classification.batch_size=7"])
    with pytest.raises(PlanError, match="7 examples does not divide over 2 ranks"):
        train(other, out=tmp_path / "run", data_dir=data_dir)
    assert not (tmp_path / "run").exists()


def test_corpus_that_changed_since_it_was_built_is_refused(recipe, data_dir, tmp_path):
    copied = tmp_path / "corpora"
    shutil.copytree(data_dir, copied)
    shard = sorted((copied / "shards/parsing/train").glob("*.parquet"))[0]
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(CorpusError, match=shard.name):
        train(recipe, out=tmp_path / "run", data_dir=copied)
    assert not (tmp_path / "run").exists()


def test_cluster_outlives_the_runs():
    assert ray.is_initialized()
