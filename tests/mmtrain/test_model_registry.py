"""The registry against a real SQLite store; the pyfunc in a process of its own."""

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mmtrain.export import load_bundle
from mmtrain.model_registry import (
    ModelVersion,
    RegistryError,
    get_version,
    input_example,
    register,
)
from mmtrain.predictor import Predictor
from tests.mmtrain.example_bundle import LINEAGE, example_bundle
from tests.mmtrain.example_corpus import SENTENCES, shade

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


@pytest.fixture(scope="module")
def version(folder: Path, uri: str) -> ModelVersion:
    return register(folder, name="tiny", tracking_uri=uri)


def test_a_version_has_its_alias_and_lineage(version: ModelVersion, uri: str, folder: Path):
    assert version.uri == "models:/tiny@candidate"
    found = get_version("tiny", tracking_uri=uri)
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
        timeout=200,
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
    assert get_version("tiny", tracking_uri=uri).version == again.version


def test_an_unknown_model_or_alias_is_refused_with_the_place(version: ModelVersion, uri: str):
    with pytest.raises(RegistryError, match="models:/tiny@champion"):
        get_version("tiny", tracking_uri=uri, alias="champion")
    with pytest.raises(RegistryError, match="models:/huge@candidate"):
        Predictor.load("models:/huge@candidate", tracking_uri=uri)


def test_a_reserved_alias_is_refused(folder: Path, uri: str):
    with pytest.raises(RegistryError, match="latest"):
        register(folder, name="tiny", tracking_uri=uri, alias="latest")


def test_a_registry_that_is_away_is_said_within_seconds(folder: Path):
    began = time.monotonic()
    with pytest.raises(RegistryError, match=r"cannot register tiny at http://127\.0\.0\.1:9"):
        register(folder, name="tiny", tracking_uri="http://127.0.0.1:9")
    assert time.monotonic() - began < 20
