"""`mmtrain prune` and `mmtrain export` as a user meets them."""

import json

import pytest
from typer.testing import CliRunner, Result

from mmtrain.cli import app
from mmtrain.cut.budget import BudgetError
from mmtrain.cut.subset import SubsetError
from mmtrain.derive.onnx_export import OnnxError
from mmtrain.derive.opened import DeriveError
from pipelines.errors import MMTrainError, UnknownNameError
from tests.mmtrain.example_bundle import example_bundle
from tests.mmtrain.example_masked import build_shades, picture, save_shades


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    save_shades(folder / "run")
    build_shades(folder / "corpora")
    return folder


def run(place, command: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [command, str(place / "run"), *arguments])


def prune(place, *arguments: str) -> Result:
    return run(place, "prune", "--data", str(place / "corpora"), *arguments)


def test_prune_prints_the_comparison_what_was_kept_and_what_to_do_next(place):
    small = place / "deep_pale"
    ended = prune(place, "--subtasks", "deep, pale", "--out", str(small))
    assert ended.exit_code == 0, ended.output
    for label in ("shades, accuracy", "parameters", "MFLOPs an example", "kB of weights", "ms a"):
        assert label in ended.output
    assert "deep, pale: " in ended.output
    assert "batch norms recalibrated on 1 unlabelled batches" in ended.output
    assert f"mmtrain train --init-from {small} --data {small / 'corpora'}" in ended.output


def test_prune_prints_json_for_programs(place):
    out = place / "white"
    ended = prune(place, "--classes", "white", "--no-measure", "--out", str(out), "--json")
    said = json.loads(ended.stdout)
    assert said["subtasks"] == ["pale"]
    assert said["classes"] == {"shades": [4]}
    assert said["rows"] == []


def test_a_cut_that_empties_groups_says_which(place):
    budget, out = ("--budget", "0.12"), ("--out", str(place / "tiny"))
    ended = prune(place, "--subtasks", "mid", "--no-measure", *budget, *out)
    assert "is above" in ended.output
    assert "the best one of each is kept" in ended.output


def test_a_cut_model_answers_on_the_command_line(place):
    small, value = place / "answering", place / "value.png"
    prune(place, "--subtasks", "deep", "--no-measure", "--out", str(small))
    value.write_bytes(picture(0)[0])
    ended = CliRunner().invoke(app, ["predict", str(small), str(value), "--json"])
    assert json.loads(ended.stdout)["task"] == "shades"


def test_registered_cuts_are_listed(place):
    registry = ("--tracking", f"sqlite:///{place}/mlruns.db")
    listed = run(place, "prune", "--list", *registry)
    assert "no cut of the model is registered" in listed.output
    ended = prune(
        place, "--subtasks", "mid", "--no-measure", "--out", str(place / "mid"),
        "--register", "shades_mid", *registry,
    )  # fmt: skip
    assert "registered as models:/shades_mid@subset-mid, version 1" in ended.output
    rows = json.loads(run(place, "prune", "--list", "--json", *registry).stdout)
    assert [(row["version"], row["subset"]) for row in rows] == [("models:/shades_mid/1", "mid")]
    assert "subset-mid" in run(place, "prune", "--list", *registry).output


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["--subtasks", "dep", "--out", "x"], UnknownNameError, "nearest: deep"),
        (["--classes", "blak", "--out", "x"], UnknownNameError, "nearest: black"),
        (["--out", "x"], SubsetError, "the subset is empty"),
        (["--subtasks", ",", "--out", "x"], SubsetError, "the subset is empty"),
        (["--subtasks", "deep", "--classes", "white", "--out", "x"], SubsetError, "it is in pale"),
        (["--subtasks", "deep"], DeriveError, "--out DIR"),
        (["--subtasks", "deep", "--budget", "1e-9", "--out", "x"], BudgetError, "give at least"),
    ],
)
def test_mistakes_are_refused_and_nothing_is_written(
    place, tmp_path, monkeypatch, arguments, error, says
):
    monkeypatch.chdir(tmp_path)
    ended = prune(place, *arguments)
    assert isinstance(ended.exception, error)
    assert isinstance(ended.exception, MMTrainError)
    assert says in str(ended.exception)
    assert list(tmp_path.iterdir()) == []


def test_export_writes_a_bundle_and_graphs(place):
    out = place / "exported"
    ended = run(place, "export", "--out", str(out), "--onnx", "--json")
    (file,) = json.loads(ended.stdout)["graphs"]
    assert file["task"] == "shades"
    assert file["difference"] < 1e-4
    assert (out / "shades.onnx").stat().st_size == file["num_bytes"]
    assert (out / "bundle" / "model.safetensors").is_file()


def test_a_graph_of_a_task_that_decodes_is_refused(tmp_path):
    example_bundle(tmp_path / "bundle")
    arguments = ["export", str(tmp_path / "bundle"), "--task", "names", "--onnx"]
    ended = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert isinstance(ended.exception, OnnxError)
    assert not (tmp_path / "out").exists()
