"""From the command line: train, take a task out, go on training it, probe a frozen body."""

import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from typer.testing import CliRunner

from mmtrain import checkpoint
from mmtrain.bundle import load_bundle
from mmtrain.cli import app
from mmtrain.predict.predictor import Predictor
from mmtrain.recipe import Recipe, load_recipe, override
from mmtrain.registry.register import register
from mmtrain.train import build_corpora

pytestmark = pytest.mark.usefixtures("ray_cluster")


def two_tasks(name: str) -> Recipe:
    """Scans of digits as two tasks that share all but their heads, for 4 short steps."""
    recipe = load_recipe(name).only(["digit"])
    digit = recipe.tasks["digit"].model_copy(update={"batch_size": 8, "num_steps": 2})
    scan = digit.model_copy(update={"name": "scan"})
    small = ["num_workers=1", 'engine={"name": "torch"}', "save_every=2", "log_every=1",
             "validate_every=0", "model.body.model_dim=32", "model.body.num_layers=2",
             "model.body.mlp_dim=32"]  # fmt: skip
    recipe = recipe.with_(tasks={"digit": digit, "scan": scan}, num_steps=4)
    return override(recipe, small)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, ray_cluster) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    build_corpora(two_tasks("polyvit_tiny"), data_dir=folder)
    return folder


def mmtrain(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    recipe = folder / "recipe.json"
    recipe.write_text(two_tasks("polyvit_tiny").model_dump_json())
    mmtrain("train", recipe, "--out", folder / "whole", "--data", data_dir)
    return folder / "whole"


def test_a_task_is_taken_out_registered_and_trained_on(run, data_dir, tmp_path):
    uri = f"sqlite:///{run / 'mlruns.db'}"
    register(run / "bundle", name="whole", tracking_uri=uri)
    small = tmp_path / "small"
    told = mmtrain("extract", run, "--task", "scan", "--out", small, "--register", "scan", "--json")
    assert json.loads(told)["version"] == "models:/scan/1"
    lineage = load_bundle(small / "bundle").card.lineage
    assert lineage.parent is not None
    assert lineage.parent.version == "models:/whole/1"
    whole, part = Predictor.load(run), Predictor.load(small)
    pictures = sorted((data_dir / "raw" / "digits" / "test").rglob("*.png"))[:3]
    assert part.predict("scan", pictures) == whole.predict("scan", pictures)

    told = mmtrain("train", "--init-from", small, "--out", tmp_path / "tuned", "--data", data_dir)
    assert "starts from" in told
    assert "fresh: nothing" in told
    tuned = load_bundle(tmp_path / "tuned" / "bundle")
    assert list(tuned.card.tasks) == ["scan"]
    assert tuned.card.lineage.init_from == str(small / "bundle")
    moved = [name for name, value in part.bundle.state.items()
             if not torch.equal(tuned.state[name], value)]  # fmt: skip
    assert "heads.scan.project.weight" in moved
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'tuned' / 'mlruns.db'}")
    tags = client.get_run(tuned.card.lineage.run_id).data.tags
    assert tags["init_from"] == str(small / "bundle")


def test_a_probe_moves_its_head_and_not_a_bit_of_the_body_and_resumes_exactly(
    run, data_dir, tmp_path
):
    recipe = tmp_path / "probe.json"
    recipe.write_text(two_tasks("linear_probe").model_dump_json())
    start = ["train", recipe, "--init-from", run, "--data", data_dir]
    mmtrain(*start, "--task", "scan", "--set", "num_steps=4", "--out", tmp_path / "probe")
    whole, probe = load_bundle(run / "bundle"), load_bundle(tmp_path / "probe" / "bundle")
    for name, value in probe.state.items():
        assert torch.equal(whole.state[name], value) != name.startswith("heads."), name

    newest = checkpoint.latest(tmp_path / "probe" / "checkpoints")
    assert newest is not None
    straight = {state.name: dict(state.tensors) for state in checkpoint.states(newest)}
    (Path(newest.uri.removeprefix("file://")) / "manifest.json").unlink()
    mmtrain("train", "--resume", "--out", tmp_path / "probe", "--data", data_dir)
    again = checkpoint.latest(tmp_path / "probe" / "checkpoints")
    assert again is not None
    for state in checkpoint.states(again):
        for key, value in state.tensors.items():
            assert torch.equal(straight[state.name][key], value), (state.name, key)


def test_training_goes_on_without_mlflow_and_loses_nothing(data_dir, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(two_tasks("polyvit_tiny").model_dump_json())
    away, nowhere = tmp_path / "away", "http://127.0.0.1:9"
    mmtrain("train", recipe, "--out", away, "--data", data_dir, "--tracking", nowhere)
    assert load_bundle(away / "bundle").card.lineage.step == 4
    store = f"sqlite:///{tmp_path / 'later.db'}"
    client = MlflowClient(store)
    client.create_experiment("mmtrain", (tmp_path / "artifacts").as_uri())
    mmtrain("models", "register", away, "--name", "away", "--tracking", store)
    version = client.get_model_version_by_alias("away", "candidate")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["num_steps"] == "4"
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"digit", "scan"}
    steps = {
        point.step
        for task in ("digit", "scan")
        for point in client.get_metric_history(version.run_id, f"train/{task}/loss")
    }
    assert steps == {1, 2, 3, 4}
    assert "recipe.json" in {file.path for file in client.list_artifacts(version.run_id)}
