"""Models opened by the name of a folder; of a registry, see `tests/mmtrain/serving`."""

from pathlib import Path

import pytest

from mmtrain.bundle import BundleError
from mmtrain.predict.open import open_model
from tests.mmtrain.example_bundle import example_bundle


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a bundle, a recipe and a store of MLflow."""
    folder = tmp_path_factory.mktemp("run")
    example_bundle(folder / "bundle")
    (folder / "recipe.json").write_text('{"name": "mine"}')
    (folder / "mlruns.db").touch()
    return folder


def test_a_run_and_its_bundle_are_the_same_model(run: Path):
    by_run, by_bundle = open_model(run), open_model(str(run / "bundle"))
    assert by_run.bundle.digest == by_bundle.bundle.digest
    assert by_run.uri == by_bundle.uri == str((run / "bundle").resolve())
    assert by_run.version is None


def test_a_model_knows_its_runs_recipe_and_store(run: Path):
    model = open_model(run)
    assert model.read_recipe_json() == '{"name": "mine"}'
    assert model.tracking_uri == f"sqlite:///{run.resolve()}/mlruns.db"


def test_a_bundle_alone_has_neither_recipe_nor_store(tmp_path: Path):
    model = open_model(example_bundle(tmp_path / "alone" / "bundle"))
    assert (model.read_recipe_json(), model.tracking_uri) == (None, None)


def test_the_last_of_a_runs_bundles_is_opened(tmp_path: Path):
    for step in ("step-1", "step-2"):
        example_bundle(tmp_path / "bundles" / step)
    (tmp_path / "recipe.json").write_text("{}")
    model = open_model(tmp_path)
    assert Path(model.uri).name == "step-2"
    assert model.read_recipe_json() == "{}"


def test_a_folder_without_a_model_is_refused_with_where_it_was_looked_for(tmp_path: Path):
    with pytest.raises(BundleError, match=r"no bundle at .*; give a run folder"):
        open_model(tmp_path)
