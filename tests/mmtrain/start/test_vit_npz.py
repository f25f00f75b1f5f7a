"""Official `.npz` files of vision transformers: the same answers, and what is refused."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.testing import assert_close
from transformers import ViTForImageClassification

from mmtrain.modalities import image_patches
from mmtrain.models.model import MultiTaskModel
from mmtrain.start.initialize import load_start, plan_start
from mmtrain.start.source import read_source
from mmtrain.start.vit import InitError
from tests.mmtrain.example_polyvit import inputs_of, nets, small_polyvit, targets
from tests.mmtrain.example_vit import random_vit, to_npz

QUERY = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"
POSITIONS = "Transformer/posembed_input/pos_embedding"


@pytest.fixture(scope="module")
def vit() -> ViTForImageClassification:
    return random_vit(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)


def saved(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # its names are any
    return path


def started(model: MultiTaskModel, path: Path) -> MultiTaskModel:
    start = plan_start(
        model,
        read_source(str(path)),
        targets=targets(*model.tasks),
        vocabulary=None,
        inflation="central_frame",
    )
    assert start.warnings == ()
    load_start(model, start)
    return model


def features(model: MultiTaskModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.encode("shape", **inputs_of("shape")).values_BSD


def expected(vit: ViTForImageClassification) -> torch.Tensor:
    pixels_BYXC = inputs_of("shape")["inputs"]
    with torch.inference_mode():
        return vit.vit(pixels_BYXC.permute(0, 3, 1, 2).float() / 127.5 - 1).last_hidden_state


@pytest.mark.parametrize("num_adapter_blocks", [0, 2])
@pytest.mark.parametrize("by_kind", [False, True])
@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_features_are_those_of_transformers_with_the_same_numbers(
    vit, tmp_path, prefix, by_kind, num_adapter_blocks
):
    arrays = {f"{prefix}{name}": held for name, held in to_npz(vit, by_kind=by_kind).items()}
    if prefix:
        arrays["opt/state/step"] = np.array(7)
    path = saved(tmp_path / "vit.npz", arrays)
    model = started(small_polyvit(num_adapter_blocks=num_adapter_blocks), path)
    assert_close(features(model), expected(vit), atol=1e-5, rtol=0)


def test_compressed_and_bfloat16_files_are_read(vit, tmp_path):
    arrays = to_npz(vit)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)  # type: ignore[arg-type]
    model = started(small_polyvit(), tmp_path / "packed.npz")
    assert_close(features(model), expected(vit), atol=1e-5, rtol=0)

    shortened = torch.from_numpy(arrays[QUERY].copy()).bfloat16()
    halves = shortened.view(torch.int16).numpy().view("V2")  # as numpy saves jax's bfloat16
    model = started(small_polyvit(), saved(tmp_path / "half.npz", {**arrays, QUERY: halves}))
    weight = model.state_dict()["body.blocks.1.attention.query.weight"]
    assert torch.equal(weight, shortened.float().flatten(1).t())


def test_positions_are_resized_and_the_class_tokens_is_kept(vit, tmp_path):
    path = saved(tmp_path / "vit.npz", to_npz(vit))
    held = nets(image_patches=image_patches.Config(height=32, width=24, channels=3, patch=(8, 8)))
    model = started(small_polyvit("shape", held=held), path)
    table = model.state_dict()["stems.image_patches.tokens.positions"]
    theirs = vit.vit.embeddings.position_embeddings[0]
    assert torch.equal(table[0], theirs[0])
    grid = theirs[1:].reshape(2, 2, 16).detach().numpy()
    zoomed = ndimage.zoom(grid, (2, 1.5, 1), order=1)  # what the code beside those files does
    assert_close(table[1:], torch.from_numpy(zoomed).flatten(0, 1))


def test_shapes_alone_give_the_same_plan_without_weights(vit, tmp_path):
    path, model = saved(tmp_path / "vit.npz", to_npz(vit)), small_polyvit()
    whole, shapes = (
        plan_start(
            model,
            read_source(str(path), only_shapes=only_shapes),
            targets=targets(),
            vocabulary=None,
            inflation="central_frame",
        )
        for only_shapes in (False, True)
    )
    assert str(shapes) == str(whole)
    assert all(value.is_meta for value in shapes.state.values())
    assert {name: v.shape for name, v in shapes.state.items()} == {
        name: v.shape for name, v in whole.state.items()
    }


def refusal(path: Path) -> str:
    with pytest.raises(InitError) as caught:
        read_source(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_an_array_that_is_missing_is_named(vit, tmp_path):
    for name in ("cls", "embedding/kernel", QUERY, "Transformer/encoder_norm/scale"):
        arrays = {other: held for other, held in to_npz(vit).items() if other != name}
        assert f"lacks {name};" in refusal(saved(tmp_path / "vit.npz", arrays))


def test_a_block_that_is_missing_is_named(vit, tmp_path):
    arrays = {name: held for name, held in to_npz(vit).items() if "encoderblock_1" not in name}
    assert "lacks Transformer/encoderblock_1/LayerNorm_0/scale" in refusal(
        saved(tmp_path / "vit.npz", arrays)
    )


def test_an_array_of_another_shape_is_named_with_both_shapes(vit, tmp_path):
    arrays = to_npz(vit)
    for name, held, message in (
        (QUERY, arrays[QUERY][:, :, :-1], f"{QUERY} has shape (16, 2, 7), a plain ViT's is"),
        (QUERY, arrays[QUERY].reshape(16, 16), f"{QUERY} has shape (16, 16), a plain ViT's 3 axes"),
        (POSITIONS, arrays[POSITIONS][:, :-1], "has 4 positions; a class token and a square grid"),
    ):
        assert message in refusal(saved(tmp_path / "vit.npz", {**arrays, name: held}))


def test_what_is_pickled_is_refused_and_never_run(vit, tmp_path):
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "sprung",)

    arrays = {**to_npz(vit), "cls": np.array([Trap()], dtype=object)}
    assert "cls is pickled" in refusal(saved(tmp_path / "vit.npz", arrays))
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Trap()))
    assert "is no whole .npz file" in refusal(tmp_path / "plain.npz")
    assert not (tmp_path / "sprung").exists()


def test_other_transformers_are_refused_by_what_they_have(vit, tmp_path):
    arrays = {**to_npz(vit), "conv_root/kernel": np.zeros((7, 7, 3, 64), np.float32)}
    assert "no plain ViT: it has conv_root/kernel too" in refusal(saved(tmp_path / "a.npz", arrays))
    whole_numbers = {**to_npz(vit), "cls": np.zeros((1, 1, 16), np.int64)}
    assert "cls is int64" in refusal(saved(tmp_path / "b.npz", whole_numbers))
    assert "lacks embedding/kernel" in refusal(saved(tmp_path / "c.npz", {"a": np.zeros(3)}))


def test_a_file_cut_short_or_with_a_lying_header_is_refused(vit, tmp_path):
    path = saved(tmp_path / "vit.npz", to_npz(vit))
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:-200])
    assert "is no whole .npz file" in refusal(tmp_path / "cut.npz")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "lie.npz", "w") as other:
        for name in whole.namelist():
            data = whole.read(name)
            other.writestr(name, data[:-8] if name.startswith(QUERY) else data)
    assert f"{QUERY} is cut short" in refusal(tmp_path / "lie.npz")


def test_damaged_bytes_are_refused_in_a_line(vit, tmp_path):
    data = saved(tmp_path / "vit.npz", to_npz(vit)).read_bytes()
    rng = np.random.default_rng(0)
    for number in range(60):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(len(data), size=40)] ^= 0xFF
        path = tmp_path / f"{number}.npz"
        path.write_bytes(damaged.tobytes())
        refusal(path)
