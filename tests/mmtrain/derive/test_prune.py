"""From a masked run to a smaller model on disk, in the registry and in memory."""

import json
import re
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from mmtrain.bundle import load_bundle
from mmtrain.cut.pruner import NoMasksError
from mmtrain.cut.recalibrate import RecalibrationError
from mmtrain.derive.extract import extract
from mmtrain.derive.opened import DeriveError, open_model, tuning_recipe
from mmtrain.derive.part import derive
from mmtrain.derive.prune import PruneConfig, Pruned, prune, registered_cuts
from mmtrain.evaluate.evaluate import evaluate
from mmtrain.predict.predictor import Predictor
from pipelines.errors import CorpusError, UnknownNameError
from tests.mmtrain.example_bundle import example_bundle
from tests.mmtrain.example_masked import build_shades, picture, save_senses, save_shades

PICTURES = [picture(number)[0] for number in range(10)]


@pytest.fixture
def place(tmp_path):
    save_shades(tmp_path / "run")
    build_shades(tmp_path / "corpora")
    return tmp_path


def cut(place, *subtasks: str, out: str = "small", **asked) -> Pruned:
    return prune(
        open_model(str(place / "run")),
        PruneConfig(subtasks=subtasks, **asked),
        out=place / out,
        data_dir=place / "corpora",
    )


def test_the_comparison_has_the_whole_model_masks_alone_and_the_cut(place):
    pruned = cut(place, "deep", "pale")
    whole, masked, small = pruned.rows
    assert [row.name for row in pruned.rows] == ["whole", "masks alone", "cut"]
    assert masked.scores["shades"] == pytest.approx(small.scores["shades"], abs=1e-4)
    assert whole.parameters == masked.parameters > small.parameters
    assert whole.flops == masked.flops > small.flops
    assert whole.bytes > small.bytes
    assert set(small.latency_ms) == {1, 32}
    assert json.loads((place / "small" / "prune.json").read_text())["subtasks"] == ["deep", "pale"]


def test_a_cut_model_evaluates_as_it_was_compared(place):
    pruned = cut(place, "deep", "pale")
    assert pruned.corpora is not None
    results = evaluate(Predictor.load(pruned.out), data_dir=pruned.corpora)
    scores = {score.metric: score.value for score in results.tasks["shades"].splits[0].scores}
    assert scores == pytest.approx(pruned.rows[2].scores["shades"], abs=1e-4)
    assert results.tasks["shades"].splits[0].num_examples == 16


def test_batch_norms_take_the_statistics_of_the_subset(place):
    asked = {"measures": False}
    still = load_bundle(cut(place, "deep", recalibration_batches=0, **asked).bundle).state
    pruned = cut(place, "deep", out="again", **asked)
    moved = load_bundle(pruned.bundle).state
    name = "body.stem.norm.running_mean"
    assert pruned.recalibrated == 1  # 40 pictures are one batch
    assert not torch.allclose(still[name], moved[name])
    assert_close(still["body.stem.conv.weight"], moved["body.stem.conv.weight"])


def test_all_subtasks_leave_the_corpora_as_they_are(place):
    pruned = cut(place, "deep", "mid", "pale", limit=5)
    assert pruned.corpora is None
    assert pruned.kept.keys() == {group for group in pruned.kept if group.startswith("body.")}


def test_a_budget_is_kept_to(place):
    whole, _, small = cut(place, "deep", "mid", "pale", budget=0.3).rows
    assert small.flops <= 0.3 * whole.flops


def test_a_subset_that_empties_a_layer_keeps_the_best_unit_and_says_so(place):
    pruned = cut(place, "deep", budget=0.07, measures=False)
    assert pruned.emptied
    assert all(pruned.kept[group][0] == 1 for group in pruned.emptied)


def test_the_recipe_goes_on_with_the_cut_model(place):
    cut(place, "deep", measures=False)
    recipe = tuning_recipe(str(place / "small"))
    assert recipe.pruning is None
    assert recipe.name == "shading_deep_tuned"
    assert recipe.model == load_bundle(place / "small" / "bundle").card.model
    assert recipe.tasks["shades"].targets.num_outputs == 2


def test_subtasks_of_whole_tasks_are_cut_without_corpora(tmp_path):
    save_senses(tmp_path / "run" / "bundle")
    pruned = cut(tmp_path, "heard", measures=False)
    card = load_bundle(pruned.bundle).card
    assert list(card.tasks) == ["word", "voice"]
    assert card.lineage.parent is not None
    assert card.lineage.parent.tasks == ("shape", "colour", "motion", "word", "voice")
    assert card.lineage.facts["subset"] == "heard"


def test_registered_with_lineage_and_an_alias_for_the_subset(place):
    opened, registry = open_model(str(place / "run")), f"sqlite:///{place / 'mlruns.db'}"
    config = PruneConfig(classes=("black", "white"))
    make = partial(prune, config=config, out=place / "small", data_dir=place / "corpora")
    pruned, version = derive(opened, make, register="shades", registry=registry)
    assert version is not None
    assert version.uri == "models:/shades@subset-deep_pale-classes-black_white"
    (found,) = registered_cuts(opened, registry=registry)
    assert found.uri == version.uri
    tags = found.lineage
    assert tags["parent_digest"] == opened.bundle.digest
    assert tags["subset"] == "deep, pale (classes black, white)"
    assert tags["classes.shades"] == "0,4"
    assert tags["gamma"] == "0.3"
    assert len(tags["mask_digest"]) == 16
    accuracy = pruned.rows[2].scores["shades"]["accuracy"]
    assert float(tags["score.shades.accuracy"]) == pytest.approx(accuracy, abs=1e-4)
    by_alias = Predictor.load(version.uri, tracking_uri=registry)
    assert by_alias.predict("shades", PICTURES[:1])[0].text in ("black", "white")


# ---- what is refused


def test_a_model_without_masks_says_how_to_train_some(tmp_path):
    example_bundle(tmp_path / "run" / "bundle")
    with pytest.raises(NoMasksError, match="mmtrain train --init-from"):
        cut(tmp_path, "deep")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("asked", [{}, {"measures": False}, {"budget": 0.5}])
def test_corpora_that_are_needed_and_not_there_are_named(place, asked):
    missing = place / "none"
    with pytest.raises(CorpusError, match=re.escape(f"{missing / 'shards'}")):
        prune(
            open_model(str(place / "run")),
            PruneConfig(subtasks=("deep",), **asked),
            out=place / "small",
            data_dir=missing,
        )
    assert not (place / "small").exists()


def test_a_folder_with_something_in_it_stays(place):
    (place / "small").mkdir()
    (place / "small" / "note").write_text("mine")
    with pytest.raises(DeriveError, match="--force"):
        cut(place, "deep", measures=False)


def test_extraction_sends_masked_models_to_prune(place):
    with pytest.raises(DeriveError, match="mmtrain prune"):
        extract(open_model(str(place / "run")), out=place / "part", tasks=["shades"])


# ---- in memory


def test_a_predictor_switches_subsets_in_memory(place):
    whole = Predictor.load(place / "run")
    deep = whole.for_subtasks(["deep"], unlabelled={"shades": PICTURES})
    assert set(deep.predict("shades", PICTURES[:1])[0].scores) == {"black", "dark"}
    assert whole.for_subtasks(["deep"]) is deep
    assert len(whole.predict("shades", PICTURES[:1])[0].scores) == 5


def test_in_memory_is_as_on_disk(place):
    cut(place, "deep", recalibration_batches=0, measures=False)
    pruned = Predictor.load(place / "run")
    subset = pruned.for_subtasks(["deep"], unlabelled={"shades": PICTURES})
    disk = Predictor.load(place / "small")
    for name, value in disk.model.named_parameters():
        assert_close(subset.model.get_parameter(name), value)


def test_batch_norms_need_values_and_other_models_do_not(place, tmp_path):
    with pytest.raises(RecalibrationError, match="no data"):
        Predictor.load(place / "run").for_subtasks(["deep"])
    save_senses(tmp_path / "senses")
    assert list(Predictor.load(tmp_path / "senses").for_subtasks(["moving"]).tasks) == ["motion"]


def test_an_unknown_subtask_is_answered_with_the_nearest(place):
    with pytest.raises(UnknownNameError, match="nearest: deep"):
        Predictor.load(place / "run").for_subtasks(["dep"])
