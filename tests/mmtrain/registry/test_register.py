"""The registry against a real SQLite store; the pyfunc in a process of its own."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mmtrain.bundle import BundleError, load_bundle
from mmtrain.predict.predictor import Predictor
from mmtrain.registry.register import record, register
from mmtrain.store.config import TrackingConfig
from mmtrain.store.models import ModelVersion, RegistryError, find_parts
from mmtrain.store.pyfunc_example import input_example
from mmtrain.store.tracking import Tracker
from mmtrain.store.versions import find_version
from tests.mmtrain.example_bundle import LINEAGE, example_bundle
from tests.mmtrain.example_corpus import SENTENCES, shade
from tests.waiting import BUSY_S, SOON_S

SCRIPT = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/tiny@candidate")
answers = model.predict(pd.DataFrame(json.loads(sys.argv[2])))
import mmtrain
loaded = {name.split(".")[0] for name in sys.modules} & {"ray", "deepspeed"}
print(json.dumps([answers.to_dict("records"), mmtrain.__file__, sorted(loaded)]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_bundle(tmp_path_factory.mktemp("registry") / "bundle")


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    return f"sqlite:///{folder.parent / 'mlruns.db'}"


METRICS = {"test/names/bleu": 12.5, "baseline/names/bleu": 2.5}


@pytest.fixture(scope="module")
def version(folder: Path, uri: str) -> ModelVersion:
    return register(folder, name="tiny", tracking_uri=uri, metrics=METRICS)


def test_a_version_has_its_alias_and_lineage(version: ModelVersion, uri: str, folder: Path):
    assert version.uri == "models:/tiny@candidate"
    found = find_version("tiny@candidate", tracking_uri=uri)
    assert found.lineage == {
        "bundle_digest": load_bundle(folder).digest,
        "recipe": LINEAGE.recipe,
        "recipe_digest": LINEAGE.recipe_digest,
        "code_version": LINEAGE.code_version,
        "step": "7",
        "tasks": "shades,trees,names",
        "corpus.names": "c0ffee",
    }
    run_id = MlflowClient(tracking_uri=uri).get_model_version("tiny", "1").run_id
    assert run_id


def test_its_files_are_a_logged_model_of_the_run_with_what_was_measured(
    version: ModelVersion, uri: str, folder: Path
):
    client = MlflowClient(tracking_uri=uri)
    found = client.get_model_version("tiny", version.version)
    model = client.get_logged_model(version.model_id or "")
    assert model.status == "READY"
    assert model.source_run_id == found.run_id
    assert model.params["num_parameters"] == str(load_bundle(folder).card.num_parameters)
    assert {metric.key: metric.value for metric in model.metrics or []} == METRICS
    assert {metric.step for metric in model.metrics or []} == {7}
    run = client.get_run(found.run_id or "")
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert found.current_stage == "None"
    assert list(Path(found.source.removeprefix("file://")).rglob("*.pkl")) == []


def test_metrics_that_the_run_has_already_are_not_there_twice(
    tmp_path: Path, uri: str, folder: Path
):
    config = TrackingConfig(uri=uri, interval_s=0.05)
    with Tracker.open(config, out=tmp_path, name="measured") as tracker:
        tracker.log_metrics(METRICS, step=7)
        assert tracker.flush(timeout_s=BUSY_S)
        register(folder, name="told", tracking_uri=uri, run_id=tracker.run_id, metrics=METRICS)
    client = MlflowClient(tracking_uri=uri)
    points = client.get_metric_history(tracker.run_id or "", "test/names/bleu")
    assert [(point.step, point.value) for point in points] == [(7, 12.5)]


def test_what_is_measured_later_is_recorded_with_the_version(uri: str, folder: Path):
    made = register(folder, name="late", tracking_uri=uri)
    record(made.uri, {"test/names/bleu": 50.0}, tracking_uri=uri)
    client = MlflowClient(tracking_uri=uri)
    found = client.get_model_version("late", made.version)
    model = client.get_logged_model(made.model_id or "")
    assert {metric.key: metric.value for metric in model.metrics or []} == {"test/names/bleu": 50.0}
    run = client.get_run((model.metrics or [])[0].run_id or "")
    assert run.data.tags["mlflow.parentRunId"] == found.run_id


def test_a_bundle_of_a_run_of_another_store_is_registered_with_a_run_of_its_own(
    tmp_path: Path, uri: str, folder: Path
):
    made = register(folder, name="moved", tracking_uri=uri, run_id="0" * 32)
    found = MlflowClient(tracking_uri=uri).get_model_version("moved", made.version)
    assert found.run_id != "0" * 32


@pytest.mark.parametrize("name", ["../up", "a/b", "..", "", "a:b", "-x", "x\n", "a" * 200])
def test_a_name_that_reads_as_a_path_is_refused(folder: Path, uri: str, name: str):
    with pytest.raises(RegistryError, match="cannot name a model"):
        register(folder, name=name, tracking_uri=uri)


def test_a_damaged_bundle_is_not_registered(tmp_path: Path, folder: Path, uri: str):
    copy = shutil.copytree(folder, tmp_path / "bundle")
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(BundleError, match="changed since it was written"):
        register(copy, name="damaged", tracking_uri=uri)


def test_a_fresh_process_predicts_the_same(version: ModelVersion, uri: str, folder: Path):
    picture = base64.b64encode(shade(30)).decode()
    rows = [("names", "Peru"), ("shades", picture), ("trees", SENTENCES[0]), ("names", "Germany")]
    table = {"task": [task for task, _ in rows], "input": [value for _, value in rows]}
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, uri, json.dumps(table)],
        env=environment,
        cwd=folder.parent,  # not the source tree: the sources come with the version
        capture_output=True,
        text=True,
        timeout=BUSY_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answers, source, frameworks = json.loads(result.stdout.splitlines()[-1])
    here = Predictor.load(folder)
    names = here.predict("names", ["Peru", "Germany"])
    expected = [
        names[0],
        here.predict("shades", [shade(30)])[0],
        here.predict("trees", [SENTENCES[0]])[0],
        names[1],
    ]
    assert [answer["text"] for answer in answers] == [answer.text for answer in expected]
    assert [answer["log_prob"] for answer in answers] == pytest.approx(
        [answer.log_prob for answer in expected], abs=1e-4
    )
    assert json.loads(answers[1]["scores"]) == pytest.approx(dict(expected[1].scores))
    assert "mlartifacts" in source or "tmp" in source, "the version's own sources are loaded"
    assert frameworks == []


def test_the_input_example_has_an_answer_for_each_task(
    version: ModelVersion, uri: str, folder: Path
):
    example = input_example(load_bundle(folder))
    assert list(example["task"]) == ["shades", "trees", "names"]
    client = MlflowClient(tracking_uri=uri)
    source = client.get_model_version_download_uri("tiny", version.version)
    saved = json.loads((Path(source.removeprefix("file://")) / "input_example.json").read_text())
    assert saved["data"] == example.to_numpy().tolist()


def test_a_uri_that_names_no_version_is_refused():
    with pytest.raises(RegistryError, match="NAME@ALIAS"):
        Predictor.load("models:/tiny", tracking_uri="sqlite:///unused.db")


def test_the_predictor_loads_from_the_registry(version: ModelVersion, uri: str, folder: Path):
    loaded = Predictor.load(version.uri, tracking_uri=uri)
    assert loaded.predict("names", ["Peru"]) == Predictor.load(folder).predict("names", ["Peru"])


def test_registering_again_moves_the_alias(version: ModelVersion, uri: str, folder: Path):
    again = register(folder, name="tiny", tracking_uri=uri)
    assert int(again.version) == int(version.version) + 1
    assert find_version("tiny@candidate", tracking_uri=uri).version == again.version


def test_an_unknown_model_or_alias_is_refused_with_the_place(version: ModelVersion, uri: str):
    with pytest.raises(RegistryError, match="models:/tiny@champion"):
        Predictor.load("models:/tiny@champion", tracking_uri=uri)
    with pytest.raises(RegistryError, match="models:/huge@candidate"):
        Predictor.load("models:/huge@candidate", tracking_uri=uri)


def test_a_reserved_alias_is_refused(folder: Path, uri: str):
    with pytest.raises(RegistryError, match="latest"):
        register(folder, name="tiny", tracking_uri=uri, alias="latest")


def test_a_file_that_is_no_database_is_said(tmp_path: Path):
    (tmp_path / "mlruns.db").write_bytes(b"no database" * 1000)
    with pytest.raises(RegistryError, match="not a database"):
        find_parts("0" * 64, tracking_uri=f"sqlite:///{tmp_path}/mlruns.db")


def test_a_registry_that_is_away_is_said_within_seconds(folder: Path):
    began = time.monotonic()
    with pytest.raises(RegistryError, match=r"cannot register tiny at http://127\.0\.0\.1:9"):
        register(folder, name="tiny", tracking_uri="http://127.0.0.1:9")
    assert time.monotonic() - began < SOON_S
