from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.testing import assert_close

from mmtrain.bundle import BundleTask, Lineage, load_bundle, save_bundle
from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.recalibrate import recalibrate
from mmtrain.cut.slicing import CutError, cut
from mmtrain.engines import EngineConfig, build_engine
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.layers.units import gated
from mmtrain.masks.banks import MaskBank
from mmtrain.masks.config import PruningConfig
from mmtrain.models.model import ModelConfig, MultiTaskModel
from mmtrain.models.resnet import Config
from pipelines.errors import UnknownNameError
from pipelines.modalities.image import ImageFeature
from pipelines.modalities.label import LabelFeature
from tests.mmtrain.models.tiny_polyvit import example, tiny_polyvit
from tests.mmtrain.models.tiny_resnet import (
    closed_form_parameters,
    logits,
    pictures,
    random_masks,
    tiny_resnet,
)

torch.set_num_threads(1)

LINEAGE = Lineage(recipe="tiny", recipe_digest="0", code_version="0", corpora={}, step=1)


def through_a_bundle(model: MultiTaskModel, folder: Path) -> MultiTaskModel:
    tasks = {
        spec.name: BundleTask(
            spec=spec,
            inputs=ImageFeature(height=8, width=8, channels=1),
            targets=LabelFeature(classes=tuple("abcdefghij"[: spec.num_outputs])),
            max_target_length=1,
        )
        for spec in model.tasks.values()
    }
    save_bundle(
        folder, model=model.config, tasks=tasks, state=model.state_dict(), vocabulary=None,
        lineage=LINEAGE,
    )  # fmt: skip
    return load_bundle(folder).build_model()


@pytest.mark.parametrize("shortcuts", ["residual", "none"])
@pytest.mark.parametrize("seed", range(20))
def test_sliced_equals_masked_before_and_after_save_and_load(seed, shortcuts, tmp_path):
    model = tiny_resnet(depth=8 if seed % 2 else 14, shortcuts=shortcuts)
    kept, scale, gates = random_masks(model, seed=seed, share=(0.1, 0.3, 0.6, 0.9)[seed % 4])
    with gated(model, gates):
        masked = logits(model)
    small = cut(model, kept, scale=scale)
    assert_close(logits(small), masked, rtol=0, atol=1e-5)
    again = through_a_bundle(small, tmp_path / "bundle")
    assert torch.equal(logits(again), logits(small))
    body = small.config.body
    assert isinstance(body, Config)
    counts = {name.removeprefix("body."): int(mask.sum()) for name, mask in kept.items()}
    assert {name: body.count(name) for name in counts} == counts
    assert sum(weight.numel() for weight in small.parameters()) == closed_form_parameters(
        body, scores=(10, 2)
    )


@pytest.mark.parametrize("subset", [["low"], ["high"], ["low", "high"]])
def test_learned_masks_with_their_scales_are_cut_to_the_same(subset):
    model = tiny_resnet()
    config = PruningConfig(subtasks={"low": ("digit:0",), "high": ("digit:1",)}, sigma=0.6)
    bank = MaskBank(model.prunable_units(), model.scale_sites(), config=config, seed=0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        bank.scaling.copy_(torch.randn(bank.scaling.shape, generator=generator))
    masks = bank.masks(subset)
    with gated(model, masks.gates):
        masked = logits(model)
    assert_close(logits(cut(model, masks.kept, scale=masks.scale)), masked, rtol=0, atol=1e-5)


def test_sliced_equals_masked_when_both_are_recalibrated():
    model = tiny_resnet()
    kept, scale, gates = random_masks(model, seed=0, share=0.5)
    batches = [TaskInputs("digit", **pictures(batch=8, seed=seed)) for seed in range(3)]
    small = cut(model, kept, scale=scale)
    recalibrate(small, batches)
    with gated(model, gates):
        recalibrate(model, batches)
        masked = logits(model)
    assert_close(logits(small), masked, rtol=0, atol=1e-5)


def test_the_whole_model_stays_as_it_is_and_shares_no_memory():
    model = tiny_resnet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept, scale, _ = random_masks(model, seed=0, share=0.5)
    for small in (cut(model, kept, scale=scale), cut(model, {})):
        for value in small.state_dict().values():
            value.zero_()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_to_keep_all_is_the_same_model():
    model = tiny_resnet()
    same = cut(
        model, {group.name: torch.ones(group.size).bool() for group in model.prunable_units()}
    )
    assert same.config == model.config
    assert torch.equal(logits(same), logits(model))


def test_a_model_that_was_cut_can_be_cut_again():
    model = tiny_resnet()
    kept, scale, _ = random_masks(model, seed=0, share=0.8)
    once = cut(model, kept, scale=scale)
    rest, _, _ = random_masks(once, seed=1, share=0.5)
    both = {}
    for name, mask in kept.items():
        both[name] = mask.clone()
        both[name][mask] = rest[name]
    assert_close(logits(cut(once, rest)), logits(cut(model, both, scale=scale)), rtol=0, atol=1e-5)


def test_tasks_and_scores_that_are_not_named_are_left_out():
    model = tiny_resnet()
    small = cut(model, {}, tasks=["digit"], outputs={"digit": [7, 3]})
    assert list(small.tasks) == ["digit"]
    assert list(small.heads) == ["digit"]
    assert small.tasks["digit"].num_outputs == 2
    assert_close(logits(small), logits(model)[:, [7, 3]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_counts_of_nets_that_are_left_out_leave_the_config_too(after):
    model = tiny_polyvit(num_adapter_blocks=2 - after, num_adapter_blocks_after=after).eval()
    kept, _, gates = random_masks(model, seed=0, share=0.5)
    small = cut(model, kept, tasks=["digit"])
    units = cast(Any, small.config.body).units
    nets = {name.split(".")[1] for name in units if name.startswith("adapters.")}
    assert nets == set(small.stems) == set(small.adapters) == {"image_patches"}
    given = {"task": "digit", "targets": None, **example("digit")}
    with torch.no_grad(), gated(model, gates):
        masked = model(**given).logits
    with torch.no_grad():
        assert_close(small(**given).logits, masked, rtol=0, atol=1e-5)


def test_a_cut_model_is_built_again_from_its_config_as_json():
    kept, _, _ = random_masks(tiny_resnet(), seed=0, share=0.5)
    small = cut(tiny_resnet(), kept)
    assert ModelConfig.model_validate_json(small.config.model_dump_json()) == small.config


def test_masks_beside_the_model_stay_behind():
    model = tiny_resnet()
    config = PruningConfig(subtasks={"a": ("digit",), "b": ("parity",)})
    model.add_module(
        "masks", MaskBank(model.prunable_units(), model.scale_sites(), config=config, seed=0)
    )
    assert not any(name.startswith("masks") for name in cut(model, {}).state_dict())


def test_a_cut_model_trains_on():
    kept, _, _ = random_masks(tiny_resnet(), seed=0, share=0.5)
    small = cut(tiny_resnet(), kept).train()
    engine = build_engine(EngineConfig(name="torch"), model=small, optimizer=OptimizerConfig())
    losses = []
    for _ in range(5):
        outputs = engine.forward(task="digit", targets=None, **pictures()).logits
        loss = torch.nn.functional.cross_entropy(outputs, torch.arange(4))
        engine.backward(loss)
        engine.step(
            small.owners("digit"), learning_rates=dict.fromkeys(small.owners("digit"), 1e-2)
        )
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": {"body.stage1": torch.zeros(8).bool()}}, "body.stage1: no unit would be left"),
        ({"kept": {"body.stage1": torch.ones(7).bool()}}, "for 8 units; give one bool for each"),
        ({"kept": {"body.stage1": torch.ones(8)}}, "a mask of torch.float32"),
        ({"tasks": []}, "no task is named; the model has digit, parity"),
        ({"outputs": {"digit": [3, 3]}}, "name some of 0 to 9, each once"),
        ({"outputs": {"digit": [10]}}, "name some of 0 to 9"),
        ({"outputs": {"digit": []}}, "name some of 0 to 9"),
    ],
)
def test_a_cut_that_cannot_be_made_says_why(change, message):
    with pytest.raises(CutError, match=message):
        cut(tiny_resnet(), **{"kept": {}, **change})


@pytest.mark.parametrize(
    ("change", "near"),
    [
        ({"kept": {"body.stage": torch.ones(8).bool()}}, "body.stage"),
        ({"scale": {"body.blocks.0.scale3": torch.ones(6)}}, "body.blocks.0.scale"),
        ({"tasks": ["digits"]}, "digit"),
        ({"outputs": {"digits": [1]}}, "digit"),
    ],
)
def test_a_name_that_the_model_has_not_is_answered_with_the_nearest(change, near):
    with pytest.raises(UnknownNameError, match=near):
        cut(tiny_resnet(), **{"kept": {}, **change})
