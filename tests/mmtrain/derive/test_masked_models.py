"""Models with masks beyond training: bundles, prediction, starting from them, trade-off, report."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mmtrain.bundle import Lineage, bundle_task, load_bundle, save_bundle
from mmtrain.derive.tradeoff import Cuts, growing_unions
from mmtrain.layers.units import gated
from mmtrain.masks.attach import add_masks, masks_of, without_masks
from mmtrain.masks.kept import KeptPoint, kept_point, overlap
from mmtrain.models.model import MultiTaskModel
from mmtrain.predict.predictor import Predictor
from mmtrain.recipe import Recipe
from mmtrain.report.figures import kept_figures, to_svg
from mmtrain.report.report import Run, report_page
from mmtrain.run.runlog import read_kept
from mmtrain.start.entry import plan_recipe_start, start_model
from mmtrain.start.initialize import load_start
from mmtrain.start.vit import InitError
from mmtrain.step.passes import Passes
from pipelines.modalities.image import to_png
from tests.mmtrain.example_corpus import write_split
from tests.mmtrain.example_results import example_results
from tests.mmtrain.step.masked_run import (
    BODIES,
    PRUNING,
    TASKS,
    MaskedRun,
    model_of,
    passes_of,
    recipe_of,
)

LINEAGE = Lineage(recipe="masked", recipe_digest="0", code_version="0", corpora={}, step=4)


def trained(recipe: Recipe, *, steps: int = 4) -> MultiTaskModel:
    run = MaskedRun.build(recipe)
    run.train(first=0, last=steps)
    return run.model.eval()


def saved(model: MultiTaskModel, recipe: Recipe, folder: Path) -> Path:
    tasks = {name: bundle_task(recipe.tasks[name], spec=spec) for name, spec in model.tasks.items()}
    return save_bundle(
        folder, model=model.config, tasks=tasks, state=model.state_dict(), vocabulary=None,
        lineage=LINEAGE, pruning=recipe.pruning,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["direct", "network", "norms"])
def recipe(request) -> Recipe:
    if request.param == "norms":
        return recipe_of(body=BODIES["norms"])
    return recipe_of(pruning=PRUNING.model_copy(update={"generator": request.param}))


@pytest.fixture(scope="module")
def model(recipe) -> MultiTaskModel:
    return trained(recipe)


@pytest.fixture(scope="module")
def bundle(recipe, model, tmp_path_factory) -> Path:
    return saved(model, recipe, tmp_path_factory.mktemp("bundles") / "masked")


def pictures() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 255, (6, 16, 16, 1)).astype(np.uint8))


def logits(model: MultiTaskModel) -> torch.Tensor:
    inputs = torch.from_numpy(np.stack(pictures()))
    lengths = torch.full((6,), 16)
    with torch.no_grad():
        return model(task="shape", inputs=inputs, input_lengths=lengths, targets=None).logits


def test_a_bundle_keeps_masks_and_every_union_of_them(recipe, model, bundle):
    loaded = load_bundle(bundle)
    assert loaded.card.pruning == recipe.pruning
    again, before = masks_of(loaded.build_model()), masks_of(model)
    assert again is not None
    assert before is not None
    for union in (("c",), ("ab", "d"), before.subtasks):
        assert_close(again.masks(union).gates, before.masks(union).gates, rtol=0, atol=0)


def test_masks_of_n_subtasks_add_n_values_for_each_unit_and_scaled_channel(recipe, model):
    if recipe.pruning.generator == "network":
        return
    whole = sum(value.numel() for value in model.state_dict().values())
    own = sum(value.numel() for value in without_masks(model.state_dict()).values())
    units = sum(group.size for group in model.prunable_units())
    sizes = {group.name: group.size for group in model.prunable_units()}
    channels = sum(sizes[site.group] for site in model.scale_sites())
    assert whole - own == 4 * (units + channels)


def test_a_predictor_answers_with_the_masks_of_all_subtasks(model, bundle):
    bank = masks_of(model)
    assert bank is not None
    with gated(model, bank.masks(bank.subtasks).gates):
        expected = logits(model)
    assert_close(Predictor.load(bundle).logits("shape", pictures()), expected)
    assert (logits(model) - expected).abs().max() > 1e-3  # without masks it is another network


def start(recipe: Recipe, bundle: Path, **fields: object) -> Passes:
    """A fresh model of the recipe after what the train loop does before its first step."""
    recipe = recipe.model_copy(update={"init_from": str(bundle), "seed": 7, **fields})
    passes = passes_of(recipe, model_of(recipe))
    start_model(passes.model, recipe, None, registry=None, resumes=False)
    return passes


def test_masks_are_taken_over_from_a_model_of_the_same_subtasks(recipe, model, bundle):
    started = start(recipe, bundle).model
    assert_close(dict(started.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_masks_of_other_subtasks_start_afresh(recipe, model, bundle):
    changed = PRUNING.model_copy(
        update={"subtasks": {**PRUNING.subtasks, "d": ("shape:c", "shape:d")}}
    )
    started = start(recipe, bundle, pruning=changed).model
    assert_close(without_masks(started.state_dict()), without_masks(model.state_dict()))
    drawn = model_of(recipe)
    add_masks(drawn, changed, seed=7)
    assert torch.equal(started.get_parameter("masks.utility"), drawn.get_parameter("masks.utility"))


def test_a_run_without_masks_is_told_that_the_source_s_are_left_out(recipe, bundle):
    without = recipe.model_copy(update={"init_from": str(bundle), "pruning": None})
    fresh = model_of(without)
    planned = plan_recipe_start(without, fresh, vocabulary=None)
    assert planned is not None
    assert any("masks are left out" in warning for warning in planned.warnings)
    load_start(fresh, planned)


def test_masks_alone_learn_on_a_model_that_stays_to_the_bit(recipe, model, bundle):
    masks_only = recipe.pruning.model_copy(update={"train": "masks", "gamma": 1.0})
    passes = start(recipe, bundle, pruning=masks_only)
    started = passes.model
    trained_names = {name for name, held in started.named_parameters() if held.requires_grad}
    assert trained_names
    assert all(name.startswith("masks.") for name in trained_names)
    before = {name: value.clone() for name, value in started.named_parameters()}
    run = MaskedRun.of(recipe.model_copy(update={"pruning": masks_only}), passes)
    run.train(first=0, last=3)
    for name, value in run.model.named_parameters():
        assert torch.equal(value, before[name]) == (not name.startswith("masks.")), name


def test_masks_alone_need_weights_to_start_from():
    masks_only = recipe_of(pruning=PRUNING.model_copy(update={"train": "masks"}))
    fresh = model_of(masks_only)
    with pytest.raises(
        InitError, match=r"pruning\.train=masks would keep weights as they were drawn"
    ):
        plan_recipe_start(masks_only, fresh, vocabulary=None)


# ---- what is kept


def test_kept_units_by_subtask_and_group_and_what_two_have_in_common(model):
    bank = masks_of(model)
    assert bank is not None
    point = kept_point(bank)
    assert list(point.kept) == ["ab", "c", "d", "shade", "all"]
    kept = {name: bank.masks([name]).kept for name in bank.subtasks}
    first = bank.groups[0]
    assert point.kept["c"][0] == int(kept["c"][first.name].sum())
    ab, c = (torch.cat(list(kept[name].values())) for name in ("ab", "c"))
    assert point.overlap["ab"][1] == pytest.approx(int((ab & c).sum()) / int((ab | c).sum()))
    assert point.overlap["c"][1] == 1.0
    assert point.shares()["c"] == pytest.approx(float(c.float().mean()))


def test_overlap_is_intersection_over_union():
    kept = torch.tensor([[True, True, False, False], [False, True, True, True]])
    assert_close(overlap(kept), torch.tensor([[1.0, 0.25], [0.25, 1.0]], dtype=torch.float64))


KEPT = KeptPoint(
    groups={"body.a": 4, "body.b": 6},
    kept={"one": [2, 3], "two": [4, 0], "all": [4, 3]},
    overlap={"one": [1.0, 0.3], "two": [0.3, 1.0]},
)


def test_shares_of_what_is_kept():
    assert KEPT.shares() == {"one": 0.5, "two": 0.4, "all": 0.7}
    assert KEPT.group_shares()["one"] == [0.5, 0.5]


def test_log_of_kept_units_is_read_again_up_to_a_line_cut_short(tmp_path):
    path = tmp_path / "kept.jsonl"
    line = json.dumps({"step": 20, **asdict(KEPT)})
    path.write_text(f'{line}\n{{"step": 40, "gro')
    assert read_kept(path) == {20: KEPT}
    assert read_kept(tmp_path / "none.jsonl") == {}


def test_report_draws_kept_units_overlap_and_trade_off():
    run = Run(kept={20: KEPT, 40: KEPT}, tradeoff={"one": (0.4, 0.9), "all": (1.0, 1.0)})
    page = report_page(example_results(), run=run)
    assert "<h2>Units kept</h2>" in page
    assert "<h2>Trade-off</h2>" in page
    assert page.count("<svg") == 4
    assert "<h2>Units kept</h2>" not in report_page(example_results(), run=Run())


def test_figures_name_subtasks_and_groups():
    drawn = {name: to_svg(figure) for name, figure in kept_figures({20: KEPT, 40: KEPT}).items()}
    assert "one" in drawn["kept"]
    assert "body.b" in drawn["kept_by_group"]
    assert "0.30" in drawn["overlap"]


# ---- trade-off


def test_unions_grow_from_each_subtask_to_all():
    assert growing_unions(("a", "b", "c")) == [("a",), ("b",), ("c",), ("a", "b"), ("a", "b", "c")]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(0)
    for task in TASKS[:2]:
        for split, count in (("train", 12), ("validation", 8)):
            names = task.targets.classes  # type: ignore[attr-defined]  # labels have them
            rows: list[tuple[object, object]] = [
                (to_png(rng.integers(0, 255, (16, 16)).astype(np.uint8)), names[n % len(names)])
                for n in range(count)
            ]
            write_split(folder, task, split=split, rows=rows, vocabulary=None)  # type: ignore[arg-type]
    return folder


def test_tradeoff_measures_each_subtask_and_growing_unions(recipe, model, bundle, data_dir):
    points = Cuts(Predictor.load(bundle), data_dir=data_dir).tradeoff()
    assert list(points) == ["ab", "c", "d", "shade", "ab + c", "ab + c + d", "all"]
    bank = masks_of(model)
    assert bank is not None
    for point in points.values():
        assert point.units == pytest.approx(bank.masks(point.subtasks).kept_share())
        assert 0 < point.operations <= 1
    assert points["c"].score == points["c"].whole_score == 1.0  # one class to choose from
    if recipe.pruning.generator == "direct":  # a network's unions may keep less than their members
        assert points["c"].operations < points["all"].operations
