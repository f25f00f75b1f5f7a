"""Which network answers: the whole, a registered cut that covers the subtasks, a cut in memory."""

from functools import partial
from pathlib import Path

import pytest

from mmtrain.bundle import load_bundle
from mmtrain.derive.extract import extract
from mmtrain.derive.opened import open_model
from mmtrain.derive.part import derive
from mmtrain.derive.prune import PruneConfig, prune
from mmtrain.predict.open import bundle_folder
from mmtrain.predict.predictor import Predictor
from mmtrain.registry.register import register
from mmtrain.serving.networks import Network, Networks, find_sources, load_networks
from mmtrain.serving.problems import RequestError
from mmtrain.store.models import RegistryError
from pipelines.errors import UnknownNameError
from tests.mmtrain.example_bundle import example_bundle
from tests.mmtrain.example_masked import save_senses
from tests.mmtrain.example_polyvit import save_polyvit


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model with masks, and a registered cut of what it sees and hears."""
    folder = tmp_path_factory.mktemp("senses")
    save_senses(folder / "bundle")
    uri = f"sqlite:///{folder / 'mlruns.db'}"
    register(folder / "bundle", name="senses", tracking_uri=uri)
    config = PruneConfig(("seen", "heard"), recalibration_batches=0, measures=False)
    cut = partial(prune, config=config, out=folder / "cut", data_dir=folder)
    opened = open_model(str(folder / "bundle"), tracking_uri=uri)
    derive(opened, cut, register="senses_cut", registry=uri)
    return folder / "bundle", uri


@pytest.fixture(scope="module")
def networks(registry: tuple[Path, str]) -> Networks:
    bundle, uri = registry
    return load_networks(find_sources([str(bundle)], tracking_uri=uri))


def test_registered_cuts_of_a_model_are_served_with_it(networks: Networks):
    whole, cut = networks.networks
    assert (whole.named, cut.named) == (True, False)
    assert cut.uri == "models:/senses_cut/1"
    assert cut.subtasks == ("seen", "heard")
    assert cut.num_parameters < whole.num_parameters


def test_a_registered_version_lies_beside_the_output_for_as_long_as_it_is_read(
    registry: tuple[Path, str], tmp_path: Path
):
    opened = bundle_folder(
        "models:/senses_cut/1", tracking_uri=registry[1], beside=tmp_path / "out"
    )
    with opened as (folder, uri):
        assert uri == "models:/senses_cut/1"
        assert folder.is_relative_to(tmp_path)
        assert load_bundle(folder).card.lineage.facts["subtasks"] == "seen,heard"
    assert list(tmp_path.iterdir()) == []


def test_without_subtasks_the_whole_model_answers(networks: Networks):
    (chosen,) = networks.choose(task="shape", modality=None)
    assert (chosen.network, chosen.subset) == (networks.networks[0], None)


@pytest.mark.parametrize("subtasks", [("seen",), ("heard", "seen")])
def test_the_smallest_registered_network_that_covers_the_subtasks_answers(
    networks: Networks, subtasks: tuple[str, ...]
):
    (chosen,) = networks.choose(task="shape", modality=None, subtasks=subtasks)
    assert chosen.network is networks.networks[1]


def test_subtasks_that_no_registered_network_covers_are_cut_in_memory(networks: Networks):
    (chosen,) = networks.choose(task="motion", modality=None, subtasks=("moving",))
    assert chosen.subset is not None
    cut = networks.cut(chosen.whole, chosen.subset.subtasks)
    assert list(cut.tasks) == ["motion"]
    assert cut.num_parameters < chosen.whole.num_parameters
    assert networks.whole_of(cut) is chosen.whole


def test_all_subtasks_are_the_whole_model(networks: Networks):
    (chosen,) = networks.choose(task="motion", modality=None, subtasks=("moving", "heard", "seen"))
    assert (chosen.network, chosen.subset) == (networks.networks[0], None)


def test_every_task_of_a_modality_is_chosen_that_the_subtasks_have(networks: Networks):
    (both,) = networks.choose(task=None, modality="audio")
    (seen,) = networks.choose(task=None, modality="image", subtasks=("seen",))
    assert both.tasks == ("word", "voice")
    assert seen.tasks == ("shape", "colour")


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ({"task": "shapes", "modality": None}, UnknownNameError, "nearest: shape"),
        ({"task": None, "modality": "text"}, UnknownNameError, "modality"),
        ({"task": "shape", "modality": None, "subtasks": ["sen"]}, UnknownNameError, "seen"),
        ({"task": "shape", "modality": None, "subtasks": ["heard"]}, RequestError, "word, voice"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(
    networks: Networks, what: dict, error: type[Exception], words: str
):
    with pytest.raises(error, match=words):
        networks.choose(**what)


def test_cuts_kept_in_memory_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_senses(tmp_path)
    monkeypatch.setattr("mmtrain.predict.predictor._MAX_PARTS", 2)
    predictor = Predictor.load(tmp_path)
    first = predictor.for_subtasks(["seen"])
    predictor.for_subtasks(["heard"])
    assert predictor.for_subtasks(["seen"]) is first
    predictor.for_subtasks(["moving"])
    assert len(predictor._parts) == 2
    assert predictor.for_subtasks(["seen"]) is first


def test_an_extracted_part_answers_for_its_tasks_when_they_are_named(tmp_path: Path):
    save_polyvit(tmp_path / "whole")
    opened = open_model(str(tmp_path / "whole"))
    part = extract(opened, out=tmp_path / "part", tasks=["shape", "colour"]).bundle
    networks = Networks(
        [
            Network(Predictor(load_bundle(folder)), uri=folder.name)
            for folder in (tmp_path / "whole", part)
        ]
    )
    (named,) = networks.choose(task="shape", modality=None, subtasks=["shape"])
    (plain,) = networks.choose(task="shape", modality=None)
    assert named.network is networks.networks[1]
    assert plain.network is networks.networks[0]


def test_a_registry_that_is_away_leaves_the_model_unless_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    example_bundle(tmp_path / "bundle")
    nobody = "http://127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    (source,) = find_sources([str(tmp_path)], tracking_uri=None)
    assert source.uri == str((tmp_path / "bundle").resolve())
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1"):
        find_sources([str(tmp_path)], tracking_uri=nobody)
