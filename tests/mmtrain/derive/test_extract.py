"""Smaller models taken out of larger ones: the same answers, nothing that is not needed."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmtrain.bundle import load_bundle
from mmtrain.cut.slicing import cut
from mmtrain.derive.extract import choose_tasks, extract
from mmtrain.derive.opened import DeriveError, open_model, tuning_recipe
from mmtrain.derive.part import derive
from mmtrain.models import polyvit
from mmtrain.models.model import ModelConfig, MultiTaskModel, build_model
from mmtrain.predict.predictor import Predictor
from mmtrain.recipe import Recipe, load_recipe
from mmtrain.registry.register import register
from mmtrain.store.versions import find_version
from pipelines.errors import UnknownNameError
from tests.mmtrain.example_bundle import example_bundle, example_model
from tests.mmtrain.example_corpus import TASKS, shade
from tests.mmtrain.example_polyvit import (
    LINEAGE,
    bundle_tasks,
    logits,
    save_polyvit,
    small_config,
)

BLOCK, BODY = 7_087_872, 85_056_000  # of ViT-B: a block; twelve of them and the last norm
IMAGE_STEM, VIDEO_STEM = 1_034_496, 3_565_824


@pytest.fixture(params=[(1, 0), (0, 1), (1, 1)], ids=["before", "after", "both"])
def run(tmp_path: Path, request) -> Path:
    """The folder of a small PolyViT of five tasks, with blocks of each modality's own."""
    before, after = request.param
    save_polyvit(
        tmp_path / "run" / "bundle", num_adapter_blocks=before, num_adapter_blocks_after=after
    )
    return tmp_path / "run"


def take_out(run: Path, out: Path, **what: object) -> MultiTaskModel:
    return load_bundle(extract(open_model(str(run)), out=out, **what).bundle).build_model()


def names_of(model: MultiTaskModel) -> set[str]:
    return {".".join(name.split(".")[:2]) for name in model.state_dict()}


def test_all_tasks_of_a_modality_answer_to_the_last_bit_as_in_the_whole(run, tmp_path):
    whole = load_bundle(run / "bundle").build_model()
    model = take_out(run, tmp_path / "sounds", inputs=["audio"])
    assert list(model.tasks) == ["word", "voice"]
    for task in ("word", "voice"):
        assert torch.equal(logits(model, task), logits(whole, task))


def test_a_single_task_keeps_its_stem_its_blocks_and_its_head_alone(run, tmp_path):
    whole = load_bundle(run / "bundle").build_model()
    model = take_out(run, tmp_path / "shape", tasks=["shape"])
    assert torch.equal(logits(model, "shape"), logits(whole, "shape"))
    assert names_of(model) == {
        "stems.image_patches", "adapters.image_patches", "body.blocks", "body.norm", "heads.shape"
    }  # fmt: skip
    assert set(model.config.nets) == {"image_patches"}


def test_experts_are_kept_and_answer_the_same(tmp_path):
    experts = {"experts": "every_second", "num_experts": 4, "expert_dim": 8}
    whole = save_polyvit(tmp_path / "run" / "bundle", **experts)
    model = take_out(tmp_path / "run", tmp_path / "motion", tasks=["motion"])
    assert torch.equal(logits(model, "motion"), logits(whole, "motion"))


@pytest.mark.parametrize("own", [0, 6, 12])
def test_parameters_of_vit_b_are_those_of_the_formula(own):
    whole = base_model(own)
    for task, stem, size in (("shape", IMAGE_STEM, 3), ("motion", VIDEO_STEM, 4)):
        model = cut(whole, {}, tasks=[task])
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == BODY + stem + 769 * size
    sounds = cut(whole, {}, tasks=["word", "voice"])
    assert not {name for name in names_of(sounds) if "image" in name or "video" in name}


def base_model(own: int) -> MultiTaskModel:
    """PolyViT-B of five tasks, without weights."""
    config = small_config(held=polyvit.released_nets())
    body = polyvit.Config.base(num_adapter_blocks=own)
    specs = [task.spec for task in bundle_tasks().values()]
    with torch.device("meta"):
        return build_model(config.model_copy(update={"body": body}), specs, seed=0)


def test_multimodel_of_classes_alone_has_neither_decoder_nor_vocabulary(tmp_path):
    example_bundle(tmp_path / "run" / "bundle")
    model = take_out(tmp_path / "run", tmp_path / "shades", tasks=["shades"])
    assert names_of(model) == {"stems.image", "body.encoder", "heads.shades"}
    assert isinstance(model, MultiTaskModel)
    assert sorted(path.name for path in (tmp_path / "shades" / "bundle").iterdir()) == [
        "bundle.json", "model.safetensors"
    ]  # fmt: skip
    whole, smaller = (Predictor.load(tmp_path / name) for name in ("run", "shades"))
    assert smaller.predict("shades", [shade(30)]) == whole.predict("shades", [shade(30)])


def test_multimodel_of_a_text_task_decodes_the_same_with_its_vocabulary(tmp_path):
    example_bundle(tmp_path / "run" / "bundle")
    extract(open_model(str(tmp_path / "run")), out=tmp_path / "names", tasks=["names"])
    whole, smaller = (Predictor.load(tmp_path / name) for name in ("run", "names"))
    assert smaller.predict("names", ["Peru"]) == whole.predict("names", ["Peru"])
    assert not any(name.startswith("stems.image") for name in smaller.bundle.state)


def test_the_card_says_where_the_model_comes_from(run, tmp_path):
    whole = load_bundle(run / "bundle")
    extract(open_model(str(run)), out=tmp_path / "small", tasks=["word", "shape"])
    lineage = load_bundle(tmp_path / "small" / "bundle").card.lineage
    assert lineage.parent is not None
    assert lineage.parent.digest == whole.digest
    assert lineage.parent.version is None
    assert lineage.parent.tasks == ("shape", "colour", "motion", "word", "voice")
    assert set(lineage.corpora) == set(lineage.task_steps) == {"shape", "word"}
    assert lineage.recipe_digest == LINEAGE.recipe_digest


def test_a_smaller_one_of_a_smaller_one_answers_the_same(run, tmp_path):
    whole = load_bundle(run / "bundle").build_model()
    take_out(run, tmp_path / "sounds", inputs=["audio"])
    model = take_out(tmp_path / "sounds", tmp_path / "word", tasks=["word"])
    assert torch.equal(logits(model, "word"), logits(whole, "word"))


def test_a_task_or_modality_that_is_not_there_is_answered_with_the_nearest(run, tmp_path):
    opened = open_model(str(run))
    with pytest.raises(UnknownNameError, match=r"no task of the model 'wrd'; nearest: word"):
        extract(opened, out=tmp_path / "small", tasks=["wrd"])
    with pytest.raises(UnknownNameError, match=r"no modality of the model 'vidio'; nearest: video"):
        extract(opened, out=tmp_path / "small", inputs=["vidio"])
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("what", [{}, {"tasks": ["word"], "inputs": ["audio"]}])
def test_either_tasks_or_modalities_are_to_be_named(what):
    with pytest.raises(DeriveError, match="one of the two"):
        choose_tasks(bundle_tasks(), **{"tasks": (), "inputs": (), **what})


def test_what_is_there_is_replaced_only_when_forced(run, tmp_path):
    out = tmp_path / "small"
    take_out(run, out, tasks=["word"])
    with pytest.raises(DeriveError, match="--force"):
        take_out(run, out, tasks=["shape"])
    assert list(take_out(run, out, tasks=["shape"], force=True).tasks) == ["shape"]


def test_a_runs_own_folder_is_never_replaced(run):
    with pytest.raises(DeriveError, match="another --out"):
        take_out(run, run, tasks=["word"], force=True)
    assert len(load_bundle(run / "bundle").card.tasks) == 5


def test_registered_with_the_parents_version_as_lineage(run, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlruns.db'}"
    whole = register(run / "bundle", name="whole", tracking_uri=uri)
    make = partial(extract, out=tmp_path / "small", tasks=["shape"])
    _, made = derive(open_model(str(run)), make, register="small", registry=uri)
    assert made is not None
    tags = find_version("small@candidate", tracking_uri=uri).lineage
    assert tags["parent_version"] == f"models:/whole/{whole.version}"
    assert tags["parent_digest"] == whole.lineage["bundle_digest"]
    assert tags["parent_tasks"] == "shape,colour,motion,word,voice"
    assert tags["tasks"] == "shape"
    by_alias = open_model("models:/whole@candidate", tracking_uri=uri)
    assert by_alias.version == "models:/whole/1"
    again = extract(by_alias, out=tmp_path / "again", tasks=["shape"])
    parent = load_bundle(again.bundle).card.lineage.parent
    assert parent is not None
    assert parent.version == "models:/whole/1"
    assert made.version == "1"


def test_registering_without_a_known_registry_asks_for_one(run, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make = partial(extract, out=tmp_path / "x", tasks=["word"])
    with pytest.raises(DeriveError, match="--tracking"):
        derive(open_model(str(run)), make, register="small")
    assert not (tmp_path / "x").exists()


# ---- the recipe that goes on


def write_recipe(run: Path) -> Recipe:
    """A run of the example corpus with its recipe beside the bundle."""
    example_bundle(run / "bundle")
    model = ModelConfig(body=example_model().config.body, vocab_size=320)
    recipe = load_recipe("debug").with_(name="three", tasks=TASKS, model=model)
    (run / "recipe.json").write_text(recipe.model_dump_json())
    return recipe


def test_the_runs_recipe_comes_along_narrowed_and_goes_on_from_the_weights(tmp_path):
    recipe = write_recipe(tmp_path / "run")
    extract(open_model(str(tmp_path / "run")), out=tmp_path / "small", tasks=["trees", "names"])
    saved = json.loads((tmp_path / "small" / "recipe.json").read_text())
    assert list(saved["tasks"]) == ["trees", "names"]
    tuned = tuning_recipe(str(tmp_path / "small"))
    assert list(tuned.tasks) == ["trees", "names"]
    assert tuned.name == "three_tuned"
    assert tuned.init_from == str(tmp_path / "small" / "bundle")
    assert tuned.optimizer == recipe.optimizer


def test_without_the_runs_recipe_one_is_to_be_named(run):
    with pytest.raises(DeriveError, match="mmtrain train RECIPE --init-from"):
        tuning_recipe(str(run))


def test_a_recipe_of_other_tasks_is_not_taken_for_the_models(run):
    (run / "recipe.json").write_text(load_recipe("debug").model_dump_json())
    assert open_model(str(run)).recipe is None


def test_a_whole_model_is_not_changed_by_what_is_taken_out(run, tmp_path):
    opened = open_model(str(run))
    before: dict[str, Tensor] = {name: v.clone() for name, v in opened.bundle.state.items()}
    extract(replace(opened, version="models:/x/1"), out=tmp_path / "small", tasks=["word"])
    assert all(torch.equal(opened.bundle.state[name], value) for name, value in before.items())
