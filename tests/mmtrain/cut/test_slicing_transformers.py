"""PolyViT and MultiModel: what is cut out of them computes what the masked model does."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from mmtrain.cut.slicing import cut
from mmtrain.layers.units import gated
from mmtrain.masks.banks import MaskBank
from mmtrain.masks.config import PruningConfig
from mmtrain.models import multimodel, polyvit
from mmtrain.models.model import ModelConfig, MultiTaskModel, Outputs, model_with
from mmtrain.predict.decoding import greedy
from pipelines.errors import MMTrainError
from tests.mmtrain.models import tiny, tiny_polyvit

torch.set_num_threads(1)

Masks = dict[str, Tensor]
IMAGE_STEPS = ("blocks.0.step1", "blocks.0.step2", "blocks.1.step1", "blocks.1.step2")


@pytest.fixture(scope="module")
def vit() -> MultiTaskModel:
    """Two shared blocks, the last with experts, behind an adapter of each modality."""
    return tiny_polyvit.tiny_polyvit(
        num_layers=3, num_adapter_blocks=1, num_heads=4, experts="every_second", balance_weight=1.0
    ).eval()


@pytest.fixture(scope="module")
def multi() -> MultiTaskModel:
    return tiny.tiny_model(
        model_dim=32, encoder_conv_blocks=1, encoder_attention_blocks=1, mixer_blocks=1,
        decoder_blocks=1,
    ).eval()  # fmt: skip


def random_masks(
    model: MultiTaskModel, *, seed: int, share: float | None = None
) -> tuple[Masks, Masks, Masks]:
    """Units to keep by group, scales by site, and the two by gate, multiplied where both act."""
    generator = torch.Generator().manual_seed(seed)
    share = share or (0.3, 0.5, 0.7, 0.9)[seed % 4]
    kept, gates = {}, {}
    for group in model.prunable_units():
        mask = torch.rand(group.size, generator=generator) < share
        mask[int(torch.randint(group.size, (), generator=generator))] = True
        kept[group.name] = mask
        gates |= dict.fromkeys(group.gates, mask.float())
    scale = {}
    for site in model.scale_sites():
        scale[site.gate] = 0.5 + torch.rand(len(kept[site.group]), generator=generator)
        gates[site.gate] = gates.get(site.gate, 1.0) * scale[site.gate]
    return kept, scale, gates


def saved_and_loaded(model: MultiTaskModel, folder: Path) -> MultiTaskModel:
    save_file(model.state_dict(), folder / "state.safetensors")
    config = ModelConfig.model_validate_json(model.config.model_dump_json())
    return model_with(config, model.tasks.values(), load_file(folder / "state.safetensors"))


def forward(model: MultiTaskModel, task: str) -> Outputs:
    if model.config.family == "polyvit":
        return model(task=task, targets=None, **tiny_polyvit.example(task))
    inputs, lengths = tiny.example_inputs(model.task(task).input_net)
    if inputs.is_floating_point():
        inputs = inputs.to(model.get_parameter("body.encoder.moe.norm.weight").dtype)
    targets, _ = tiny.token_rows(5, 3, seed=1)
    return model(task=task, inputs=inputs, input_lengths=lengths, targets=targets)


@torch.no_grad()
def answer(model: MultiTaskModel, task: str) -> tuple[Tensor, Tensor]:
    """Logits and the experts' balancing loss."""
    outputs = forward(model, task)
    return outputs.logits, outputs.auxiliary_loss


def assert_sliced_equals_masked(
    model: MultiTaskModel, *, tasks: tuple[str, ...], seed: int, folder: Path
) -> MultiTaskModel:
    kept, scale, gates = random_masks(model, seed=seed)
    small = cut(model, kept, scale=scale)
    again = saved_and_loaded(small, folder)
    for task in tasks:
        with gated(model, gates):
            masked = answer(model, task)
        assert not torch.allclose(masked[0], answer(model, task)[0], rtol=0, atol=1e-3)
        assert_close(answer(small, task), masked, rtol=0, atol=1e-5)
        assert_close(answer(again, task), masked, rtol=0, atol=1e-5)
    sizes = {group.name: group.size for group in small.prunable_units()}
    assert sizes == {name: int(mask.sum()) for name, mask in kept.items()}
    return small


@pytest.mark.parametrize("seed", range(20))
def test_a_sliced_polyvit_equals_the_masked_one_before_and_after_save_and_load(vit, seed, tmp_path):
    small = assert_sliced_equals_masked(
        vit, tasks=("digit", "mask", "motion", "word", "language"), seed=seed, folder=tmp_path
    )
    counted = {"adapters": 0, "body": 0}
    for name, weight in small.named_parameters():
        if (part := name.split(".")[0]) in counted:
            counted[part] += weight.numel()
    assert counted == parameters_of_vit(small.config.body, nets=tuple(small.stems))


@pytest.mark.parametrize("seed", range(5))
def test_blocks_of_a_modality_behind_the_shared_ones_are_sliced_as_they_are_masked(seed, tmp_path):
    model = tiny_polyvit.tiny_polyvit(
        num_layers=4, num_adapter_blocks=1, num_adapter_blocks_after=2, num_heads=4
    ).eval()
    names = {group.name for group in model.prunable_units()}
    assert {f"adapters.audio_patches.blocks_after.{i}.attention.heads" for i in (0, 1)} < names
    assert len(names) == len(model.adapters) * 3 * 2 + 2  # heads and hidden units of each block
    assert_sliced_equals_masked(
        model, tasks=("digit", "motion", "word", "language"), seed=seed, folder=tmp_path
    )


def parameters_of_vit(config: Any, *, nets: tuple[str, ...]) -> dict[str, int]:
    """Weights of adapters and body, block by block, from the counts of units alone."""
    dim, width = config.model_dim, config.model_dim // config.num_heads
    units, norms = config.units, 4 * config.model_dim

    def attention(path: str) -> int:
        inner = width * units.get(f"{path}.attention.heads", config.num_heads)
        return 3 * (dim * inner + inner) + inner * dim + dim

    def wide(path: str) -> int:
        hidden = units.get(f"{path}.mlp.hidden", config.mlp_dim)
        return dim * hidden + hidden + hidden * dim + dim

    experts = units.get("blocks.0.moe.experts", config.num_experts)
    hidden = units.get("blocks.0.moe.experts.hidden", config.expert_dim)
    own = (f"adapters.{net}.blocks.0" for net in nets)
    return {
        "adapters": sum(attention(path) + wide(path) + norms for path in own),
        "body": (
            attention("blocks.0") + experts * (2 * dim * hidden + 2 * dim) + norms
            + attention("blocks.1") + wide("blocks.1") + norms
            + 2 * dim
        ),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_a_sliced_multimodel_equals_the_masked_one_before_and_after_save_and_load(
    multi, seed, tmp_path
):
    small = assert_sliced_equals_masked(
        multi, tasks=("en_de", "digits", "sound"), seed=seed, folder=tmp_path
    )
    body = sum(weight.numel() for weight in small.body.parameters())
    assert body == parameters_of_multimodel(small.config.body)
    image = sum(weight.numel() for weight in small.stems["image"].parameters())
    assert image == parameters_of_image_net(small.config)


def parameters_of_multimodel(config: Any) -> int:
    """Weights of the body, layer by layer, from the counts of units alone."""
    dim, width, units = config.model_dim, config.model_dim // config.num_heads, config.units

    def step(path: str, *, taps: int, channels: int = dim) -> int:
        left = units.get(f"{path}.channels", channels)
        return taps * left + left * dim + 2 * dim

    def conv(path: str) -> int:
        kernels = {"step1": 3, "step2": 3, "step3": 15, "step4": 15}
        return sum(step(f"{path}.{name}", taps=taps) for name, taps in kernels.items())

    def attention(path: str) -> int:
        heads = units.get(f"{path}.heads", config.num_heads)
        steps = step(f"{path}.step1", taps=5) + step(f"{path}.step2", taps=5)
        return steps + 3 * heads * width * dim

    def experts(path: str) -> int:
        count = units.get(f"{path}.experts", config.num_experts)
        hidden = units.get(f"{path}.experts.hidden", config.expert_dim)
        return count * (2 * dim * hidden + 2 * dim) + 2 * dim

    attending = ("encoder.attending_blocks.0", "mixer.blocks.0", "decoder.blocks.0")
    return (
        conv("encoder.conv_blocks.0") + experts("encoder.moe") + experts("decoder.moe")
        + sum(conv(f"{path}.conv") + attention(f"{path}.attention") for path in attending)
        + attention("mixer.attention") + step("mixer.join", taps=3, channels=2 * dim)
        + step("decoder.step1", taps=3) + step("decoder.step2", taps=3)
    )  # fmt: skip


def parameters_of_image_net(config: ModelConfig) -> int:
    """Weights of the picture's net: a convolution from 1 channel to 32, two blocks of 32."""
    units = getattr(config.nets.get("image"), "units", {})
    left = [units.get(f"flow.{step}.channels", 32) for step in IMAGE_STEPS]
    across = 2 * (32 * 32 + 2 * 32)
    return (9 * 32 + 32 + 2 * 32) + across + sum(9 * n + 32 * n + 2 * 32 for n in left)


@pytest.mark.parametrize("seed", range(4))
def test_the_same_holds_for_every_task_and_the_smallest_subsets_in_double_precision(multi, seed):
    """In float32 a layer norm of what is all but zero makes rounding a thousand times larger."""
    model = copy.deepcopy(multi).double()
    kept, scale, gates = random_masks(model, seed=seed, share=0.1)
    small = cut(model, kept, scale=scale)
    for task in model.tasks:
        with gated(model, gates):
            masked = answer(model, task)
        assert_close(answer(small, task), masked, rtol=0, atol=1e-11)


@pytest.mark.parametrize("subset", [("a",), ("b",), ("a", "b")])
@pytest.mark.parametrize(("family", "task"), [("vit", "word"), ("multi", "en_de")])
def test_learned_masks_with_their_scales_are_cut_to_the_same(family, task, subset, request):
    model = request.getfixturevalue(family)
    first, *rest = model.tasks
    config = PruningConfig(subtasks={"a": (first,), "b": tuple(rest)}, sigma=0.6)
    bank = MaskBank(model.prunable_units(), model.scale_sites(), config=config, seed=0)
    if family == "multi":
        bank.scaling.data.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(0))
    masks = bank.masks(subset)
    with gated(model, masks.gates):
        masked = answer(model, task)
    small = cut(model, masks.kept, scale=masks.scale)
    assert_close(answer(small, task), masked, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", ["vit", "multi"])
def test_with_all_units_on_the_model_is_the_same_bit_for_bit(family, training, request):
    model = request.getfixturevalue(family).train(training)
    ones = {
        gate: torch.ones(group.size) for group in model.prunable_units() for gate in group.gates
    }
    for task in ("word",) if family == "vit" else ("en_de", "sound"):
        torch.manual_seed(0)
        plain = answer(model, task)
        torch.manual_seed(0)
        with gated(model, ones):
            assert_close(answer(model, task), plain, rtol=0, atol=0)
    model.eval()


@pytest.mark.parametrize("family", ["vit", "multi"])
def test_units_of_every_group_can_return_when_they_are_off(family, request):
    model = request.getfixturevalue(family)
    masks = {}
    for group in model.prunable_units():
        mask = (torch.arange(group.size) % 2).float().requires_grad_()
        masks |= dict.fromkeys(group.gates, mask)
    for task in model.tasks:
        with gated(model, masks):
            forward(model, task).logits.square().sum().backward()
    model.zero_grad()
    off = {path: mask.grad[::2] for path, mask in masks.items() if mask.grad is not None}
    assert {path for path, gradient in off.items() if gradient.any()} == set(masks)
    assert (torch.cat(list(off.values())) != 0).float().mean() > 0.95  # few are behind dead ReLUs


def test_a_sliced_model_decodes_position_by_position_what_it_decodes_at_once(multi):
    kept, scale, _ = random_masks(multi, seed=2)
    small = cut(multi, kept, scale=scale)
    inputs, lengths = tiny.example_inputs("text")
    with torch.no_grad():
        encoded = small.encode("en_de", inputs=inputs, input_lengths=lengths)
    decoded = greedy(small, task="en_de", inputs=encoded, max_length=6)
    outputs = small(
        task="en_de", inputs=inputs, input_lengths=lengths, targets=decoded.tokens_BT
    ).logits
    real_BT = decoded.tokens_BT != 0
    assert torch.equal(outputs.argmax(-1)[real_BT], decoded.tokens_BT[real_BT])


@pytest.mark.parametrize("family", ["vit", "multi"])
def test_a_model_that_was_cut_can_be_cut_again(family, request):
    model = request.getfixturevalue(family)
    kept, scale, _ = random_masks(model, seed=3)
    once = cut(model, kept, scale=scale)
    rest, _, _ = random_masks(once, seed=2)
    both = {name: mask.clone() for name, mask in kept.items()}
    for name, mask in kept.items():
        both[name][mask] = rest[name]
    task = "digit" if family == "vit" else "en_de"
    at_once = cut(model, both, scale=scale)
    assert_close(answer(cut(once, rest), task), answer(at_once, task), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "task", "left"),
    [("vit", "word", {"audio_patches"}), ("multi", "sound", {"waveform"})],
)
def test_a_cut_to_one_task_leaves_out_the_nets_of_others(family, task, left, request):
    model = request.getfixturevalue(family)
    kept, scale, gates = random_masks(model, seed=1)
    small = cut(model, kept, scale=scale, tasks=[task])
    with gated(model, gates):
        masked = answer(model, task)
    assert_close(answer(small, task), masked, rtol=0, atol=1e-5)
    assert set(small.stems) == left
    assert list(small.heads) == [task]


def test_heads_without_a_map_behind_them_are_no_units():
    model = tiny.tiny_model(attention_output="none")
    assert {group.kind for group in model.prunable_units()} == {"filter", "expert", "hidden"}


@pytest.mark.parametrize(
    ("family", "units", "message"),
    [
        (polyvit, {"blocks.0.attention.heads": 0}, "is 0; the group has 1 to 4 units"),
        (polyvit, {"blocks.9.attention.heads": 1}, "nearest"),
        (multimodel, {"encoder.moe.experts": 99}, "is 99; the group has 1 to 8 units"),
        (multimodel, {"encoder.moe.expert": 1}, "nearest.*encoder.moe.experts"),
    ],
)
def test_counts_of_units_that_cannot_be_are_refused(family, units, message):
    with pytest.raises(MMTrainError, match=message):
        family.Body(family.Config(units=units))
