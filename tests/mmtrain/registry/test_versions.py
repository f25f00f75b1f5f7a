"""Registered versions against a real SQLite store: a whole model, one taken out, one cut."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from mmtrain.bundle import BundleError, load_bundle
from mmtrain.cli import app
from mmtrain.commands.models_tables import model_row
from mmtrain.derive.extract import extract
from mmtrain.derive.opened import open_model
from mmtrain.derive.part import derive
from mmtrain.derive.prune import PruneConfig, prune
from mmtrain.registry.facts import read_version, recipe_differences
from mmtrain.registry.promotion import RequirementError
from mmtrain.registry.register import record, register
from mmtrain.registry.versions import download, promote, registry_uri
from mmtrain.store.config import TrackingConfig
from mmtrain.store.models import RegistryError
from mmtrain.store.tracking import Tracker
from mmtrain.store.versions import list_versions
from pipelines.errors import MMTrainError, UnknownNameError
from tests.mmtrain.example_bundle import example_bundle
from tests.mmtrain.example_corpus import shade
from tests.mmtrain.example_masked import build_shades, picture, save_shades, shades_recipe
from tests.waiting import BUSY_S, SOON_S

METRICS = {"test/names/bleu": 12.5, "baseline/names/bleu": 2.5, "test/shades/accuracy": 60.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("versions")


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    """A store with `tiny` (two versions), `part` (taken out of it), `shading` and `cut` of it."""
    uri = f"sqlite:///{folder / 'mlruns.db'}"
    whole = example_bundle(folder / "whole" / "bundle")
    config, out = TrackingConfig(uri=uri), folder / "whole"
    with Tracker.open(config, out=out, name="tiny", start_s=BUSY_S) as tracker:
        recipe = shades_recipe().with_(name="tiny", seed=3)
        tracker.log_text(recipe.model_dump_json(), name="recipe.json")
        tracker.log_metrics(METRICS, step=7)
        assert tracker.flush(timeout_s=BUSY_S)
    run_id = tracker.run_id
    register(whole, name="tiny", tracking_uri=uri, run_id=run_id, metrics=METRICS)
    better = {**METRICS, "test/names/bleu": 50.0}
    register(whole, name="tiny", tracking_uri=uri, metrics=better, alias="newer")
    take_out = partial(extract, out=folder / "part", tasks=("names",))
    tiny = open_model("models:/tiny/1", tracking_uri=uri)
    derive(tiny, take_out, register="part", registry=uri)
    save_shades(folder / "run")
    register(folder / "run" / "bundle", name="shading", tracking_uri=uri)
    deep, data_dir = PruneConfig(subtasks=("deep",)), build_shades(folder / "data")
    cut = partial(prune, config=deep, out=folder / "cut", data_dir=data_dir)
    shading = open_model("models:/shading/1", tracking_uri=uri)
    derive(shading, cut, register="cut", registry=uri)
    return uri


def run(*arguments: str, tracking: str | None = None) -> tuple[int, str]:
    """Exit status and what was printed; the command line's own errors as `mmtrain` prints them."""
    options = ["--tracking", tracking] if tracking else []
    ended = CliRunner().invoke(app, ["models", *arguments, *options])
    if isinstance(ended.exception, MMTrainError):
        return 2, str(ended.exception)
    assert ended.exception is None or ended.exit_code == 2, ended.exception
    return ended.exit_code, ended.output


def test_models_are_listed_with_their_aliases(uri: str):
    listed = {name: model_row(versions) for name, versions in list_versions(uri).items()}
    assert list(listed) == ["cut", "part", "shading", "tiny"]
    assert listed["tiny"]["num_versions"] == 2
    assert listed["tiny"]["aliases"] == {"candidate": "1", "newer": "2"}
    assert listed["part"]["tasks"] == ["names"]
    assert [one.version for one in list_versions(uri, name="tiny")["tiny"]] == ["2", "1"]


def test_a_version_leads_back_to_run_recipe_corpora_code_and_measurements(uri: str):
    facts = read_version("models:/tiny@candidate", tracking_uri=uri)
    said = facts.to_dict()
    assert said["uri"] == "models:/tiny/1"
    assert facts.run is not None
    assert facts.run.name == "tiny"
    assert facts.recipe["seed"] == "3"
    assert said["corpora"] == {"names": "c0ffee"}
    assert said["code_version"] == "0.1.0+abc"
    assert said["parent"] is None
    assert {(one.task, one.metric): (one.value, one.baseline) for one in facts.measurements} == {
        ("names", "bleu"): (12.5, 2.5),
        ("shades", "accuracy"): (60.0, None),
    }


def test_a_part_leads_back_to_the_whole(uri: str):
    part, cut = (read_version(name, tracking_uri=uri) for name in ("part", "cut"))
    assert part.card.lineage.parent is not None
    assert part.card.lineage.parent.version == "models:/tiny/1"
    assert cut.card.lineage.parent is not None
    assert cut.card.lineage.parent.version == "models:/shading/1"
    assert cut.card.lineage.facts["subtasks"] == "deep"
    assert (cut.measurements[0].task, cut.measurements[0].metric) == ("shades", "accuracy")
    assert [(one.task, one.value) for one in part.measurements] == [("names", 12.5)]


def test_a_name_alone_is_the_newest_version(uri: str):
    assert read_version("tiny", tracking_uri=uri).version.fixed_uri == "models:/tiny/2"


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("tny", UnknownNameError, "tiny"),
        ("tiny/9", UnknownNameError, "no version of tiny '9'; there are: 2, 1"),
        ("tiny@champon", UnknownNameError, "no alias of tiny"),
        ("../tiny", RegistryError, "cannot name a model|is no version"),
        ("models:/../../etc", RegistryError, "is no version|cannot name"),
        ("tiny/1/../../x", RegistryError, "is no version"),
        ("..", RegistryError, "cannot name a model"),
        ("tiny' or name='x", RegistryError, "cannot name a model"),
        ("", RegistryError, "is no version"),
    ],
)
def test_what_is_no_version_is_refused(uri: str, spec: str, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        read_version(spec, tracking_uri=uri)


def test_promotion_moves_the_alias_and_says_from_where(uri: str):
    first = promote("tiny", "1", alias="moved", requirements=("bleu>=10%",), tracking_uri=uri)
    again = promote("tiny", "@newer", alias="moved", tracking_uri=uri)
    assert (first.version, first.before) == ("1", None)
    assert (again.version, again.before) == ("2", "1")
    assert read_version("tiny@moved", tracking_uri=uri).version.fixed_uri == "models:/tiny/2"


@pytest.mark.parametrize(
    ("requirement", "error", "says"),
    [
        ("bleu>=0.2", RequirementError, "names.bleu is 12.5 %"),
        ("wer<0.3", UnknownNameError, "bleu"),
        ("names.bluu>0.1", UnknownNameError, "bleu"),
        ("bleu", RequirementError, "no requirement"),
    ],
)
def test_a_gate_that_refuses_leaves_the_alias_where_it_is(
    uri: str, requirement: str, error: type[Exception], says: str
):
    with pytest.raises(error, match=says):
        promote("tiny", "1", alias="shut", requirements=(requirement,), tracking_uri=uri)
    assert "shut" not in MlflowClient(tracking_uri=uri).get_registered_model("tiny").aliases


@pytest.mark.parametrize("alias", ["latest", "v1", "a b", "a/b", "", "../x"])
def test_an_alias_that_cannot_be_is_refused(uri: str, alias: str):
    with pytest.raises(RegistryError):
        promote("tiny", "1", alias=alias, tracking_uri=uri)


def test_a_download_is_the_bundle_that_was_registered(uri: str, folder: Path, tmp_path: Path):
    out = download("tiny/1", out=tmp_path / "got", tracking_uri=uri)
    assert load_bundle(out).digest == load_bundle(folder / "whole" / "bundle").digest
    assert [path.name for path in tmp_path.iterdir()] == ["got"], "nothing is left beside it"
    with pytest.raises(RegistryError, match="is not empty"):
        download("tiny/1", out=out, tracking_uri=uri)
    assert download("part", out=out, tracking_uri=uri, force=True) == out
    assert list(load_bundle(out).card.tasks) == ["names"]


def test_a_version_whose_files_changed_is_refused(folder: Path, tmp_path: Path):
    uri = f"sqlite:///{tmp_path / 'mlruns.db'}"
    register(folder / "whole" / "bundle", name="bent", tracking_uri=uri)
    card = next((tmp_path / "mlartifacts").rglob("bundle.json"))
    card.write_text(card.read_text().replace('"step": 7', '"step": 8'))
    for act in (lambda: read_version("bent", tracking_uri=uri),
                lambda: download("bent", out=tmp_path / "x", tracking_uri=uri)):  # fmt: skip
        with pytest.raises(RegistryError, match="they changed"):
            act()
    card.write_text("{}")
    with pytest.raises(BundleError, match=r"bundle.json of models:/bent/1 is not a card"):
        read_version("bent", tracking_uri=uri)
    shutil.rmtree(card.parent)
    with pytest.raises(RegistryError, match="holds no bundle of ours"):
        read_version("bent", tracking_uri=uri)
    assert not (tmp_path / "x").exists()


def test_recipes_differ_by_dotted_fields():
    first, second = {"seed": "0", "model.depth": "2"}, {"seed": "0", "model.depth": "4", "x": "1"}
    assert recipe_differences(first, second) == {"model.depth": ("2", "4"), "x": ("-", "1")}


def test_commands_print_for_people_and_for_programs(uri: str, tmp_path: Path):
    assert "tiny" in run("list", tracking=uri)[1]
    assert "newer" in run("list", "tiny", tracking=uri)[1]
    shown = run("show", "cut", tracking=uri)[1]
    assert "models:/shading/1" in shown
    assert "accuracy" in shown
    compared = run("compare", "tiny/1", "tiny/2", tracking=uri)[1]
    assert "12.5 %" in compared
    assert "50.0 %" in compared
    assert "2.5 %" in compared
    raw = json.loads(run("compare", "tiny/1", "part", "--json", tracking=uri)[1])
    assert [version["uri"] for version in raw["versions"]] == ["models:/tiny/1", "models:/part/1"]
    status, said = run("promote", "tiny", "1", "--alias", "champion", "--require", "bleu<0.05",
                       tracking=uri)  # fmt: skip
    assert (status, said) == (2, "bleu<0.05 is not met: names.bleu is 12.5 %")
    assert run("download", "tiny", "--out", str(tmp_path / "got"), tracking=uri)[0] == 0


def test_a_run_that_mlflow_missed_is_registered_with_what_was_spooled(folder: Path, tmp_path: Path):
    away = TrackingConfig(uri="http://127.0.0.1:9", timeout_s=1, interval_s=0.05)
    run_folder = tmp_path / "run"
    example_bundle(run_folder / "bundle")
    tracker = Tracker.open(away, out=run_folder, name="tiny", start_s=5)
    tracker.log_metrics({"train/names/loss": 1.5}, step=3)
    tracker.close(timeout_s=5)
    store = f"sqlite:///{tmp_path / 'mlruns.db'}"
    MlflowClient(tracking_uri=store).create_experiment("mmtrain", (tmp_path / "a").as_uri())
    status, said = run("register", str(run_folder), "--name", "late", tracking=store)
    assert (status, said.split(",")[0]) == (0, "registered as models:/late@candidate")
    facts = read_version("late", tracking_uri=store)
    client = MlflowClient(tracking_uri=store)
    assert facts.run is not None
    assert facts.run.status == "FINISHED"
    points = client.get_metric_history(facts.run.run_id, "train/names/loss")
    assert [(point.step, point.value) for point in points] == [(3, 1.5)]


def test_no_registry_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RegistryError, match="--tracking or set MLFLOW_TRACKING_URI"):
        registry_uri(None)
    with pytest.raises(RegistryError, match="is not there"):
        registry_uri(f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert registry_uri(None) == "http://127.0.0.1:9"


@contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "command",
    [("list",), ("show", "tiny"), ("promote", "tiny", "1", "--alias", "champion"),
     ("download", "tiny", "--out", "x")],
)  # fmt: skip
def test_a_registry_that_refuses_connections_is_one_line_within_seconds(command: tuple[str, ...]):
    began = time.monotonic()
    status, said = run(*command, tracking="http://127.0.0.1:9")
    assert status == 2
    assert said.startswith("the registry at http://127.0.0.1:9 does not answer: ")
    assert "\n" not in said.strip()
    assert time.monotonic() - began < SOON_S


def test_a_registry_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # the user's own; ours is 15 s
    began = time.monotonic()
    with silent_server() as uri, pytest.raises(RegistryError, match="does not answer"):
        list_versions(uri)
    assert time.monotonic() - began < SOON_S


LOAD = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
said = []
for uri, rows in json.loads(sys.argv[2]):
    answers = mlflow.pyfunc.load_model(uri).predict(pd.DataFrame(rows))
    said.append(answers["text"].tolist())
print(json.dumps(said))
"""


def test_any_version_loads_in_mlflow_without_pickle(uri: str, folder: Path):
    grey = base64.b64encode(picture(0)[0]).decode()
    asked = [
        ("models:/tiny/1", [{"task": "shades", "input": base64.b64encode(shade(30)).decode()}]),
        ("models:/part@candidate", [{"task": "names", "input": "Peru"}]),
        ("models:/cut@subset-deep", [{"task": "shades", "input": grey}]),
    ]
    ended = subprocess.run(
        [sys.executable, "-c", LOAD, uri, json.dumps(asked)],
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        cwd=folder, capture_output=True, text=True, timeout=BUSY_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert [len(one) for one in said] == [1, 1, 1]
    assert said[2][0] in ("black", "dark")


def test_mlflow_serves_a_cut_version(uri: str, folder: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}
    environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # of uvicorn
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/cut/1"]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--env-manager", "local", "--port", str(port), "--workers", "1"],
            env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process=process, log=folder / "serve.log")
        row = {"task": "shades", "input": base64.b64encode(picture(1)[0]).decode()}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            data=json.dumps({"dataframe_records": [row]}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=BUSY_S) as answer:
            said = json.loads(answer.read())["predictions"]
        assert said[0]["text"] in ("black", "dark")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=BUSY_S)


def wait_for(url: str, *, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + BUSY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=SOON_S).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_metrics_measured_later_open_the_gate(uri: str):
    record("models:/shading/1", {"test/shades/accuracy": 20.0}, tracking_uri=uri)
    assert promote("shading", "1", alias="ok", requirements=("accuracy>=0.2",), tracking_uri=uri)
