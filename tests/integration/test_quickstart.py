"""The whole way as a user goes it: build, train, evaluate, report, register, predict."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mmtrain.commands.quickstart import run_quickstart
from mmtrain.evaluate.results import read_results
from tests.waiting import BUSY_S

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_cluster) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    with (folder / "shown.txt").open("w") as shown:
        run_quickstart(
            "debug",
            settings=["num_steps=60"],
            data_dir=folder / "corpora",
            out=folder / "run",
            resume=False,
            console=Console(file=shown, width=120),
        )
    return folder


def run_mmtrain(*arguments: str, folder: Path) -> str:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/run/mlruns.db"}
    ended = subprocess.run(
        [sys.executable, "-m", "mmtrain", *arguments],
        capture_output=True,
        text=True,
        timeout=BUSY_S,
        env={**environment, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        cwd=folder,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_quickstart_prints_a_table_and_samples_of_every_task(folder):
    shown = (folder / "shown.txt").read_text()
    for part in ("image_classification", "parsing", "report", "models:/debug@candidate"):
        assert part in shown
    assert "Traceback" not in shown


def test_results_hold_each_task_with_metric_value_baseline_steps_and_seconds(folder):
    results = read_results(folder / "run" / "results.json")
    assert set(results.tasks) == {"image_classification", "parsing"}
    for task in results.tasks.values():
        assert task.steps == 30
        assert task.seconds > 0
        assert task.splits[0].num_examples == 300
    raw = json.loads((folder / "run" / "results.json").read_text())
    assert {"metric", "value", "baseline", "steps", "seconds"} <= set(raw["tasks"]["parsing"])


def test_report_is_one_file_without_outside_assets(folder):
    page = (folder / "run" / "report.html").read_text()
    assert "parsing" in page
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_registered_model_predicts_the_same_in_a_fresh_process(folder):
    asked = ("--task", "parsing", "--json", "the cat sees a dog")
    by_folder = run_mmtrain("predict", "run", *asked, folder=folder)
    by_registry = run_mmtrain("predict", "models:/debug@candidate", *asked, folder=folder)
    assert json.loads(by_folder) == json.loads(by_registry)


def test_image_file_is_classified_from_the_command_line(folder):
    image = sorted((folder / "corpora/raw/digits/test").glob("*/*.png"))[0]
    shown = run_mmtrain(
        "predict", "run", "--task", "image_classification", "--json", str(image), folder=folder
    )
    scores = json.loads(shown)["scores"]
    assert len(scores) == 5
    assert sum(scores.values()) <= 1.0001


def test_evaluation_of_the_run_equals_its_results(folder):
    shown = run_mmtrain(
        "evaluate", "run", "--data", "corpora", "--task", "image_classification", "--json",
        folder=folder,
    )  # fmt: skip
    again = json.loads(shown)["tasks"]["image_classification"]["splits"][0]["scores"]
    results = json.loads((folder / "run" / "results.json").read_text())
    assert again == results["tasks"]["image_classification"]["splits"][0]["scores"]


def test_mlflow_holds_series_parameters_figures_and_corpora(folder):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/run/mlruns.db")
    version = client.get_model_version_by_alias("debug", "candidate")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["num_steps"] == "60"
    losses = client.get_metric_history(version.run_id, "train/parsing/loss")
    assert [point.step for point in losses] == list(range(5, 61, 5))
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {
        "image_classification",
        "parsing",
    }
    artifacts = {file.path for file in client.list_artifacts(version.run_id)}
    assert {"recipe.json", "report.html", "results.json", "figures"} <= artifacts
