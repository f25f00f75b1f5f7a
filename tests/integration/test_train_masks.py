"""A real run that learns masks of subtasks on two workers, and goes on after it stopped."""

import json
from pathlib import Path

import pytest
from torch import equal

from mmtrain.bundle import load_bundle
from mmtrain.masks.attach import masks_of
from mmtrain.predict.predictor import Predictor
from mmtrain.recipe import Recipe, RecipeError, load_recipe, override
from mmtrain.train import build_corpora, train
from tests.integration.test_train import SAVED, STEPS, resumable_copy, states

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return override(
        load_recipe("san_resnet"),
        [
            "engine.zero_stage=2",
            "model.body.widths=[4,6,8]",
            "tasks.small_digits.batch_size=16",
            "pruning.warmup_steps=2",
            "pruning.sigma=0.6",
            f"num_steps={STEPS}",
            f"save_every={SAVED}",
            f"validate_every={STEPS}",
            "validation_batches=1",
            "keep_checkpoints=9",
            "log_every=1",
            "check_ranks=true",
        ],
    )


@pytest.fixture(scope="module")
def data_dir(recipe, tmp_path_factory, ray_cluster) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    build_corpora(recipe, data_dir=folder)
    return folder


@pytest.fixture(scope="module")
def straight(recipe, data_dir, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    train(recipe, out=out, data_dir=data_dir)
    return out


def kept(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "kept.jsonl").read_text().splitlines()]


def test_a_run_leaves_masks_in_its_checkpoints_its_log_and_its_bundle(straight, recipe):
    assert {"masks.utility", "masks.scaling"} <= states(straight).keys()
    assert states(straight)["masks.utility"].keys() == {"weight", "exp_avg", "exp_avg_sq"}
    lines = kept(straight)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert list(lines[0]["kept"]) == [*recipe.pruning.subtasks, "all"]
    bundle = load_bundle(straight / "bundle")
    assert bundle.card.pruning == recipe.pruning
    bank = masks_of(Predictor(bundle).model)
    assert bank is not None
    assert equal(bank.utility, states(straight)["masks.utility"]["weight"])


def test_resumed_equals_straight_to_the_bit_masks_included(straight, recipe, data_dir, tmp_path):
    out = resumable_copy(straight, tmp_path / "run")
    train(recipe, out=out, data_dir=data_dir, resume=True)
    expected, resumed = states(straight), states(out)
    assert expected.keys() == resumed.keys()
    for name, tensors in expected.items():
        for key, tensor in tensors.items():
            assert equal(tensor, resumed[name][key]), (name, key)
    assert kept(out) == kept(straight)


def test_a_run_is_not_resumed_with_other_subtasks(straight, recipe, data_dir, tmp_path):
    out = resumable_copy(straight, tmp_path / "run")
    other = override(recipe, ["pruning.beta=2"])
    with pytest.raises(RecipeError, match="is of another pruning"):
        train(other, out=out, data_dir=data_dir, resume=True)
