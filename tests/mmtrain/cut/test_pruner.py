"""Cutting a trained bundle down to subsets: what stays, and that it answers as its masks do."""

import itertools
import re

import pytest
import torch
from torch.testing import assert_close

from mmtrain.cut.budget import BudgetError, threshold_for
from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.flops import count
from mmtrain.cut.pruner import NoMasksError, Pruner, mask_digest
from tests.mmtrain.example_masked import SENSES, save_senses, save_shades
from tests.mmtrain.example_polyvit import inputs_of

UNIONS = [
    names for size in (1, 2, 3) for names in itertools.combinations(("deep", "mid", "pale"), size)
]


def pictures() -> TaskInputs:
    pixels = torch.randint(
        0, 256, (4, 8, 8, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    return TaskInputs("shades", pixels, torch.full((4,), 8))


def logits(model, batch: TaskInputs) -> torch.Tensor:
    with torch.inference_mode():
        return batch.forward(model).logits


@pytest.fixture(scope="module")
def pruner(tmp_path_factory) -> Pruner:
    return Pruner(save_shades(tmp_path_factory.mktemp("shades")))


@pytest.mark.parametrize("names", UNIONS)
def test_a_cut_model_answers_as_the_whole_one_with_the_subsets_masks(pruner, names):
    subset = pruner.subset(names)
    masks = pruner.masks(subset)
    small = pruner.part(pruner.cut(subset), subset=subset).build_model()
    assert_close(
        logits(small, pictures()),
        logits(pruner.uncut(subset, masks=masks), pictures()),
        atol=1e-5,
        rtol=1e-5,
    )
    for group in small.prunable_units():
        assert group.size == int(masks.kept[group.name].sum())


def test_a_parts_card_names_the_classes_that_stay(pruner):
    subset = pruner.subset(["deep", "pale"])
    card = pruner.part(pruner.cut(subset), subset=subset).card
    assert getattr(card.tasks["shades"].targets, "classes") == (  # noqa: B009
        "black", "dark", "light", "white"
    )  # fmt: skip
    assert card.tasks["shades"].spec.num_outputs == 4
    assert card.pruning is None


def test_subtasks_of_whole_tasks_leave_other_nets_and_heads_behind(tmp_path):
    pruner = Pruner(save_senses(tmp_path / "bundle"))
    subset = pruner.subset(["heard"])
    model = pruner.cut(subset)
    assert list(model.tasks) == ["word", "voice"]
    assert list(model.stems) == ["audio_patches"]
    batch = TaskInputs("word", **inputs_of("word"))
    masked = pruner.uncut(subset, masks=pruner.masks(subset))
    assert_close(logits(model, batch), logits(masked, batch), atol=1e-5, rtol=1e-5)
    assert pruner.bank.subtasks == tuple(SENSES.subtasks)


def test_a_cut_model_cannot_be_cut_again(pruner):
    subset = pruner.subset(["deep"])
    part = pruner.part(pruner.cut(subset), subset=subset)
    with pytest.raises(NoMasksError, match=re.escape("mmtrain train --init-from runs/x --set")):
        Pruner(part, name="runs/x")


def test_a_digest_tells_masks_apart(pruner):
    digests = {mask_digest(pruner.masks(pruner.subset(names)).kept) for names in UNIONS}
    assert len(digests) == len(UNIONS)


# ---- budgets


def share_at(pruner: Pruner, names: tuple[str, ...], threshold: float) -> float:
    cut = pruner.cut(pruner.subset(names), threshold=threshold)
    return count(cut, [pictures()]).flops / count(pruner.model, [pictures()]).flops


def test_a_budget_takes_the_lowest_threshold_that_meets_it(pruner):
    names = ("deep", "mid", "pale")
    threshold = threshold_for(pruner, pruner.subset(names), budget=0.3, inputs=[pictures()])
    assert share_at(pruner, names, threshold) <= 0.3
    utilities = pruner.masks(pruner.subset(names)).utility
    below = utilities[utilities < threshold].max().item()
    assert share_at(pruner, names, below) > 0.3


def test_a_budget_that_is_met_already_changes_nothing(pruner):
    subset = pruner.subset(["deep"])
    assert threshold_for(pruner, subset, budget=1.0, inputs=[pictures()]) == 0.5


def test_a_budget_out_of_reach_names_the_smallest_that_can_be_had(pruner):
    subset = pruner.subset(["deep"])
    with pytest.raises(BudgetError, match="cannot be reached for deep") as refused:
        threshold_for(pruner, subset, budget=1e-4, inputs=[pictures()])
    smallest = float(re.findall(r"at least ([\d.]+)", str(refused.value))[0])
    assert smallest == pytest.approx(share_at(pruner, ("deep",), 1e9), abs=5e-5)


@pytest.mark.parametrize("budget", [0.0, -0.4, 1.5, float("nan")])
def test_a_budget_is_a_share(pruner, budget):
    with pytest.raises(BudgetError, match="no share of operations"):
        threshold_for(pruner, pruner.subset(["deep"]), budget=budget, inputs=[pictures()])
