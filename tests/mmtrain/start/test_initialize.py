"""Starting from a ViT or a model of ours: what is loaded answers as it did, the rest is fresh."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close
from transformers import ViTForImageClassification, ViTModel

from mmtrain.bundle import Card, load_bundle, save_bundle
from mmtrain.modalities import audio_patches, image_patches, video_tubelets
from mmtrain.models.model import MultiTaskModel, build_model
from mmtrain.models.polyvit import vit_blocks
from mmtrain.start.initialize import Start, load_start, plan_start
from mmtrain.start.source import read_source
from mmtrain.start.trained import Trained
from mmtrain.start.vit import InitError
from pipelines.modalities.label import LabelFeature
from tests.mmtrain.example_bundle import example_bundle, example_model
from tests.mmtrain.example_polyvit import (
    LINEAGE,
    bundle_tasks,
    inputs_of,
    logits,
    nets,
    small_polyvit,
    targets,
)
from tests.mmtrain.example_vit import hugging_face, random_vit, to_timm
from tests.mmtrain.models.tiny import tiny_model

AS_HUGGING_FACE = {"gelu": "erf", "layer_norm_eps": 1e-12}


@pytest.fixture(scope="module")
def vit() -> ViTForImageClassification:
    return random_vit()


@pytest.fixture(scope="module")
def folder(vit, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vit")
    vit.save_pretrained(path)
    return path


def plan(
    model: MultiTaskModel, source: Any, *, inflation: Any = "central_frame", **changed: Any
) -> Start:
    held = source if not isinstance(source, str | Path) else read_source(str(source))
    return plan_start(
        model,
        held,
        targets=changed.get("targets", targets(*model.tasks)),
        vocabulary=changed.get("vocabulary"),
        inflation=inflation,
    )


def started(model: MultiTaskModel, source: Any, **settings: Any) -> MultiTaskModel:
    load_start(model, plan(model, source, **settings))
    return model


def features(model: MultiTaskModel, task: str, inputs: Tensor | None = None) -> Tensor:
    given = inputs_of(task) if inputs is None else {
        "inputs": inputs, "input_lengths": torch.full((len(inputs),), inputs.shape[1])
    }  # fmt: skip
    with torch.inference_mode():
        return model.encode(task, **given).values_BSD


def vit_features(vit: ViTForImageClassification, pixels_BYXC: Tensor) -> Tensor:
    with torch.inference_mode():
        scaled = pixels_BYXC.permute(0, 3, 1, 2).float() / 127.5 - 1
        return vit.vit(scaled).last_hidden_state


def trained(model: MultiTaskModel) -> Trained:
    """A model of ours as `read_source` gives it, without the files."""
    tasks = bundle_tasks()
    card = Card(
        model=model.config,
        tasks={name: tasks[name] for name in model.tasks},
        lineage=LINEAGE,
        num_parameters=1,
        files={},
    )
    return Trained(card, {name: v.clone() for name, v in model.state_dict().items()}, None)


# ---- vision transformers on disk


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (3, 0), (1, 1), (0, 2)])
def test_image_features_equal_hugging_faces_with_any_number_of_own_blocks(
    vit, folder, before, after
):
    own = {"num_adapter_blocks": before, "num_adapter_blocks_after": after}
    model = small_polyvit(**own, **AS_HUGGING_FACE)
    start = plan(model, folder)
    load_start(model, start)
    pixels = inputs_of("shape")["inputs"]
    assert_close(features(model, "shape"), vit_features(vit, pixels), atol=1e-5, rtol=0)
    assert start.warnings == ()
    assert {owner.split("/")[0] for owner in start.fresh} == {"task"}


def test_headless_checkpoint_in_several_files_gives_the_same(vit, folder, tmp_path):
    body = ViTModel(vit.config).eval()
    body.load_state_dict(vit.vit.state_dict(), strict=False)  # its pooler is not read
    body.save_pretrained(tmp_path, max_shard_size="5KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours = [started(small_polyvit(), source) for source in (folder, tmp_path)]
    for name, value in ours[0].state_dict().items():
        assert torch.equal(ours[1].state_dict()[name], value), name


def test_timm_state_dict_gives_the_same_features(vit, tmp_path):
    file = tmp_path / "vit.safetensors"
    save_file(to_timm(vit), file)
    model = small_polyvit(**AS_HUGGING_FACE)
    start = plan(model, file)
    load_start(model, start)
    pixels = inputs_of("shape")["inputs"]
    assert_close(features(model, "shape"), vit_features(vit, pixels), atol=1e-5, rtol=0)
    assert "1e-12" in start.warnings[0]
    assert "heads of 64" in start.warnings[1]


def test_positions_of_larger_pictures_are_resized_and_the_class_row_is_kept(vit, folder):
    larger = nets(image_patches=image_patches.Config(height=32, width=24, patch=(8, 8), channels=3))
    model = started(small_polyvit("shape", held=larger), folder)
    table = model.state_dict()["stems.image_patches.tokens.positions"]
    theirs = vit.vit.embeddings.position_embeddings[0]
    assert torch.equal(table[0], theirs[0])
    grid = theirs[1:].t().reshape(1, 16, 2, 2)
    resized = functional.interpolate(grid, size=(4, 3), mode="bilinear", align_corners=True)
    assert_close(table[1:], resized[0].flatten(1).t())


def test_rectangular_pictures_keep_their_grid(tmp_path):
    ViTModel(hugging_face(image_size=(32, 16))).save_pretrained(tmp_path)
    held = nets(image_patches=image_patches.Config(height=32, width=16, patch=(8, 8), channels=3))
    model = started(small_polyvit("shape", held=held), tmp_path)
    theirs = load_file(tmp_path / "model.safetensors")["embeddings.position_embeddings"]
    assert torch.equal(model.state_dict()["stems.image_patches.tokens.positions"], theirs[0])


def test_grey_pictures_and_other_patches_take_the_kernel_fitted_to_them(vit, folder):
    held = nets(image_patches=image_patches.Config(height=32, width=32, channels=1, patch=(16, 16)))
    model = started(small_polyvit("shape", held=held), folder)
    small = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(2))
    large = functional.interpolate(small, size=(16, 16), mode="bilinear")
    weight = model.state_dict()["stems.image_patches.embed.weight"]
    theirs = vit.vit.embeddings.patch_embeddings.projection.weight
    expected = (theirs * small.expand(1, 3, 8, 8)).sum((1, 2, 3))
    assert_close((weight * large).sum((1, 2, 3)), expected, atol=1e-4, rtol=0)


def test_clip_tokens_are_the_pictures_tokens_of_its_central_frames(vit, folder):
    model = started(small_polyvit(**AS_HUGGING_FACE), folder)
    clip = inputs_of("motion")["inputs"]
    embed = model.stems["video_tubelets"].embed
    tokens = embed(clip.float() / 127.5 - 1).unflatten(1, (2, 4))
    picture = model.stems["image_patches"].embed
    for moment, frame in enumerate((2, 6)):  # frame 2 of each tubelet of 4
        assert_close(tokens[:, moment], picture(clip[:, frame].float() / 127.5 - 1))


def test_averaged_clip_tokens_are_the_pictures_when_nothing_moves(folder):
    model = started(small_polyvit(), folder, inflation="average")
    frame = inputs_of("shape")["inputs"].float() / 127.5 - 1
    still = frame[:, None].expand(-1, 8, -1, -1, -1)
    tokens = model.stems["video_tubelets"].embed(still).unflatten(1, (2, 4))
    picture = model.stems["image_patches"].embed(frame)
    assert_close(tokens, picture[:, None].expand(-1, 2, -1, -1), atol=1e-5, rtol=1e-5)


def test_clip_positions_are_tiled_and_sound_positions_resized(vit, folder):
    state = started(small_polyvit(), folder).state_dict()
    theirs = vit.vit.embeddings.position_embeddings[0]
    video = state["stems.video_tubelets.tokens.positions"]
    audio = state["stems.audio_patches.tokens.positions"]
    assert torch.equal(video, torch.cat([theirs[:1], theirs[1:], theirs[1:]]))
    grid = theirs[1:].t().reshape(1, 16, 2, 2)
    tall = functional.interpolate(grid, size=(4, 2), mode="bilinear", align_corners=True)
    assert_close(audio[1:], tall[0].flatten(1).t())
    assert torch.equal(audio[0], theirs[0])


# ---- what cannot be loaded


def test_other_sizes_are_refused_with_both_sides(folder):
    model = small_polyvit(model_dim=32, num_layers=4, num_heads=4, mlp_dim=64)
    with pytest.raises(InitError, match=r"model_dim 16, num_layers 3, mlp_dim 24, num_heads 2.*"
                       r"model_dim 32, num_layers 4, mlp_dim 64, num_heads 4"):  # fmt: skip
        plan(model, folder)


def test_settings_that_the_weights_were_not_trained_with_are_told(folder):
    start = plan(small_polyvit(), folder)
    assert start.warnings == (
        "model.body.layer_norm_eps is 1e-06, the weights were trained with 1e-12",
        "model.body.gelu is 'tanh', the weights were trained with 'erf'",
    )


def test_nothing_at_the_place_is_said_with_what_could_be(tmp_path):
    with pytest.raises(InitError, match="Hugging Face ViT folder"):
        read_source(str(tmp_path / "none"))


def test_a_vit_is_refused_for_a_family_of_other_blocks(folder):
    with pytest.raises(InitError, match="family 'multimodel'"):
        plan(tiny_model(), folder, targets={})


# ---- models of ours


def test_a_model_starts_as_itself_to_the_last_bit():
    source = small_polyvit(num_adapter_blocks=1, seed=5)
    model = started(small_polyvit(num_adapter_blocks=1, seed=6), trained(source))
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(("first", "then"), [(0, 1), (1, 0), (2, 1)])
def test_blocks_behind_the_shared_ones_start_from_the_blocks_at_their_places(first, then):
    source = small_polyvit("word", num_adapter_blocks_after=first, seed=5)
    model = started(small_polyvit(num_adapter_blocks_after=then, seed=6), trained(source))
    ours, theirs = model.state_dict(), source.state_dict()
    for net in model.stems:
        pairs = zip(
            vit_blocks(model.config.body, net),
            vit_blocks(source.config.body, "audio_patches"),
            strict=True,
        )
        for name, other in pairs:
            assert torch.equal(ours[f"{name}.norm1.bias"], theirs[f"{other}.norm1.bias"])
            assert torch.equal(ours[f"{name}.mlp.w_in.weight"], theirs[f"{other}.mlp.w_in.weight"])
    last = vit_blocks(model.config.body, "video_tubelets")[-1]
    assert last.startswith("adapters.video_tubelets.blocks_after." if then else "body.blocks.")
    assert torch.equal(logits(model, "word"), logits(source, "word"))


def test_heads_stay_fresh_for_new_tasks_and_for_other_classes():
    source, model = small_polyvit(seed=5), small_polyvit(seed=6)
    drawn = {name: value.clone() for name, value in model.state_dict().items()}
    features = targets()
    features["shape"] = LabelFeature(classes=("other", "three", "classes"))
    start = plan(model, trained(source), targets=features)
    load_start(model, start)
    assert start.fresh == {"task/shape": 2}
    assert torch.equal(model.state_dict()["heads.shape.project.weight"],
                       drawn["heads.shape.project.weight"])  # fmt: skip
    assert torch.equal(logits(model, "word"), logits(source, "word"))
    assert str(start).endswith("fresh: task/shape (2 tensors)")


def test_body_of_a_single_sound_task_starts_all_modalities():
    source = small_polyvit("word", num_adapter_blocks=1, seed=5)
    model = started(small_polyvit(num_adapter_blocks=2, seed=6), trained(source))
    mine, its = model.state_dict(), source.state_dict()
    for net in ("image_patches", "video_tubelets", "audio_patches"):
        for name in ("attention.query.weight", "mlp.w_in.bias", "norm2.weight"):
            assert torch.equal(mine[f"adapters.{net}.blocks.0.{name}"],
                               its[f"adapters.audio_patches.blocks.0.{name}"])  # fmt: skip
            assert torch.equal(
                mine[f"adapters.{net}.blocks.1.{name}"], its[f"body.blocks.0.{name}"]
            )
    assert torch.equal(mine["body.blocks.0.norm1.bias"], its["body.blocks.1.norm1.bias"])
    assert torch.equal(mine["body.norm.weight"], its["body.norm.weight"])
    assert torch.equal(mine["heads.word.project.bias"], its["heads.word.project.bias"])


def test_pictures_start_from_clips_by_the_sum_over_time_and_the_mean_over_frames():
    source = small_polyvit("motion", seed=5)
    state = started(small_polyvit("shape", seed=6), trained(source)).state_dict()
    its = source.state_dict()
    kernel = its["stems.video_tubelets.embed.weight"]
    assert_close(state["stems.image_patches.embed.weight"], kernel.sum(2))
    table = its["stems.video_tubelets.tokens.positions"]
    assert torch.equal(state["stems.image_patches.tokens.positions"][0], table[0])
    assert_close(
        state["stems.image_patches.tokens.positions"][1:], table[1:].unflatten(0, (2, 4)).mean(0)
    )


def test_clips_start_from_pictures_rather_than_from_sounds():
    source = small_polyvit("shape", "word", seed=5)
    state = started(small_polyvit("motion", seed=6), trained(source)).state_dict()
    kernel = state["stems.video_tubelets.embed.weight"]
    assert torch.equal(kernel[:, :, 2], source.state_dict()["stems.image_patches.embed.weight"])


def test_frames_by_themselves_take_a_pictures_positions():
    held = nets(
        video_tubelets=video_tubelets.Config(
            num_frames=8, height=16, width=16, patch=(4, 8, 8), sequence="frame", channels=3
        )
    )
    source = small_polyvit("shape", seed=5)
    state = started(small_polyvit("motion", held=held, seed=6), trained(source)).state_dict()
    assert torch.equal(
        state["stems.video_tubelets.tokens.positions"],
        source.state_dict()["stems.image_patches.tokens.positions"],
    )


def test_sounds_of_other_length_keep_the_kernel_and_resize_positions():
    held = nets(audio_patches=audio_patches.Config(num_frames=64, num_bins=16, patch=(8, 8)))
    source, model = small_polyvit("word", seed=5), small_polyvit("word", held=held, seed=6)
    state = started(model, trained(source)).state_dict()
    its = source.state_dict()
    assert torch.equal(state["stems.audio_patches.embed.weight"],
                       its["stems.audio_patches.embed.weight"])  # fmt: skip
    assert state["stems.audio_patches.tokens.positions"].shape == (17, 16)


def test_experts_are_fresh_where_the_source_has_a_wide_layer(folder):
    experts = {"experts": "every_second", "num_experts": 4, "expert_dim": 8}
    start = plan(small_polyvit(**experts), folder)
    fresh = {owner for owner in start.fresh if not owner.startswith("task/")}
    assert fresh == {"body/blocks", "experts/blocks"}
    assert start.fresh["experts/blocks"] == 2
    source = small_polyvit(seed=5, **experts)
    again = plan(small_polyvit(seed=6, **experts), trained(source))
    assert again.fresh == {}


def test_multimodel_starts_from_multimodel(tmp_path):
    bundle = load_bundle(example_bundle(tmp_path / "bundle"))
    source = read_source(str(tmp_path))
    model = example_model_drawn(seed=9)
    start = plan(
        model,
        source,
        targets={name: task.targets for name, task in bundle.card.tasks.items()},
        vocabulary=bundle.vocabulary,
    )
    load_start(model, start)
    assert start.fresh == {}
    for name, value in example_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_tables_of_tokens_are_fresh_under_another_vocabulary(tmp_path):
    bundle = load_bundle(example_bundle(tmp_path / "bundle"))
    features = {name: task.targets for name, task in bundle.card.tasks.items()}
    start = plan(example_model_drawn(seed=9), read_source(str(tmp_path)), targets=features)
    assert set(start.fresh) == {"modality/text", "modality/text_output"}


def test_another_depth_of_multimodel_is_refused_with_both_sides(tmp_path):
    example_bundle(tmp_path / "bundle")
    model = example_model_drawn(seed=9, encoder_conv_blocks=2)
    with pytest.raises(InitError, match=r"encoder_conv_blocks=1.*encoder_conv_blocks=2"):
        plan(model, read_source(str(tmp_path)), targets={})


def test_another_family_is_refused(tmp_path):
    example_bundle(tmp_path / "bundle")
    with pytest.raises(InitError, match=r"family 'multimodel'.*family 'polyvit'"):
        plan(small_polyvit(), read_source(str(tmp_path)))


def test_shapes_alone_give_the_same_plan_without_weights(folder, tmp_path):
    saved = small_polyvit(seed=5)
    save_bundle(
        tmp_path / "bundle",
        model=saved.config,
        tasks=bundle_tasks(),
        state=saved.state_dict(),
        vocabulary=None,
        lineage=LINEAGE,
    )
    for source in (folder, tmp_path):
        with torch.device("meta"):
            model = MultiTaskModel(saved.config, saved.tasks.values())
        held = read_source(str(source), only_shapes=True)
        start = plan(model, held)
        assert all(value.is_meta for value in start.state.values())
        assert str(start) == str(plan(small_polyvit(), source))


def example_model_drawn(*, seed: int, **body: Any) -> MultiTaskModel:
    config = example_model().config
    changed = config.body.model_copy(update=body)
    return build_model(
        config.model_copy(update={"body": changed}), example_model().tasks.values(), seed
    )


def test_heads_stay_fresh_where_that_is_asked_for():
    source, model = small_polyvit(seed=5), small_polyvit(seed=6)
    start = plan_start(
        model, trained(source), targets=targets(), vocabulary=None,
        inflation="central_frame", heads="fresh",
    )  # fmt: skip
    assert set(start.fresh) == {f"task/{task}" for task in model.tasks}
