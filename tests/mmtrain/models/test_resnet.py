import pytest
import torch
from sklearn.datasets import load_digits
from torch.testing import assert_close

from mmtrain.engines import EngineConfig, build_engine
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.layers.units import UnitGate, UnitsError, gated
from mmtrain.losses import sigmoid_cross_entropy
from mmtrain.masks.banks import MaskBank
from mmtrain.masks.config import PruningConfig
from mmtrain.modalities import elements
from mmtrain.models.config import net_of
from mmtrain.models.model import ModelConfig, ModelError, TaskSpec, build_model
from mmtrain.models.resnet import BodyError, Config
from pipelines.modalities.image import ImageFeature
from tests.mmtrain.models.tiny_resnet import (
    TASKS,
    closed_form_parameters,
    logits,
    pictures,
    random_masks,
    tiny_resnet,
)

torch.set_num_threads(1)

SUBTASKS = PruningConfig(subtasks={"digit": ("digit",), "parity": ("parity",)}, sigma=0.7)


def colour(depth: int) -> int:
    config = Config(channels=3, depth=depth)
    model = build_model(ModelConfig(family="resnet", body=config), TASKS[:1], seed=0)
    count = sum(weight.numel() for weight in model.parameters())
    assert count == closed_form_parameters(config, scores=(10,))
    return count


def test_depths_20_and_32_have_the_published_sizes():
    """0.27 and 0.46 million, and 2,752 more for projections where the paper has none."""
    assert [colour(20), colour(32)] == [272_474, 466_906]


def test_later_stages_halve_the_picture_and_the_mean_stands_first():
    model = tiny_resnet()
    encoded = model.encode("digit", **pictures(side=9))
    assert encoded.grid == (3, 3)
    assert encoded.values_BSD.shape == (4, 1 + 9, 10)
    assert_close(encoded.values_BSD[:, 0], encoded.values_BSD[:, 1:].mean(1))


def test_brightness_and_contrast_of_a_picture_make_no_difference():
    model, given = tiny_resnet(), pictures()
    dim = {**given, "inputs": given["inputs"].float() * 0.5 + 20}
    assert_close(model.encode("digit", **dim).values_BSD, model.encode("digit", **given).values_BSD)


@pytest.mark.parametrize("depth", [4, 9, 10])
def test_a_depth_that_stages_do_not_share_is_refused_with_one_they_do(depth):
    with pytest.raises(BodyError, match=r"does not divide into 3 stages .* use 8"):
        tiny_resnet(depth=depth)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"stage3": 4}, "group 'stage3'; there are stage0, stage0.block0, stage1"),
        ({"stage1": 9}, "units\\['stage1'\\] is 9; the group has 1 to 8"),
        ({"stage1": 0}, "has 1 to 8"),
    ],
)
def test_counts_of_units_that_cannot_be_are_refused(units, message):
    with pytest.raises(BodyError, match=message):
        tiny_resnet(units=units)


def test_pictures_of_other_channels_are_refused():
    with pytest.raises(BodyError, match="takes grids of 1 channels, not a grid of 3"):
        logits(tiny_resnet(), channels=3)


def test_sequences_are_refused():
    text = TaskSpec(name="caption", input_net="image_pixels", output_net="text", command_id=3)
    with pytest.raises(ModelError, match="decodes no sequences"):
        tiny_resnet((text,))


def test_a_head_that_cannot_be_cut_is_named():
    spec = TaskSpec(name="digit", input_net="image_pixels", output_net="elements", num_outputs=3)
    nets = {"elements": elements.Config(patch=(2, 2))}
    config = ModelConfig(family="resnet", body=Config(channels=1), nets=nets)
    model = build_model(config, [spec], seed=0)
    with pytest.raises(UnitsError, match=r"heads\.digit"):
        model.prunable_units()


def test_pictures_come_as_pixels():
    feature = ImageFeature(height=8, width=8, channels=1)
    assert net_of("resnet", feature) == "image_pixels"


def test_all_that_a_stage_adds_up_is_one_group():
    groups = {group.name: group for group in tiny_resnet(depth=14).prunable_units()}
    assert {name: group.size for name, group in groups.items()} == {
        "body.stage0": 6, "body.stage0.block0": 6, "body.stage0.block1": 6,
        "body.stage1": 8, "body.stage1.block0": 8, "body.stage1.block1": 8,
        "body.stage2": 10, "body.stage2.block0": 10, "body.stage2.block1": 10,
    }  # fmt: skip
    stage1 = groups["body.stage1"]
    assert stage1.gates == ("body.blocks.2.gate", "body.blocks.3.gate")
    made = [held.name for held in stage1.slices if held.axis == 0 and "conv.weight" in held.name]
    read = [held.name for held in stage1.slices if held.axis == 1]
    assert [name.removeprefix("body.blocks.") for name in made] == [
        "2.conv2.conv.weight", "2.project.conv.weight", "3.conv2.conv.weight",
    ]  # fmt: skip
    assert [name.removeprefix("body.blocks.") for name in read] == [
        "3.conv1.conv.weight", "4.conv1.conv.weight", "4.project.conv.weight",
    ]  # fmt: skip


def test_heads_read_the_last_group():
    last = tiny_resnet().prunable_units()[-2]
    assert last.name == "body.stage2"
    assert [held.name for held in last.slices if held.name.startswith("heads.")] == [
        "heads.digit.project.weight", "heads.parity.project.weight",
    ]  # fmt: skip


def test_every_convolution_but_the_first_can_be_scaled():
    model = tiny_resnet()
    convolutions = {name for name, value in model.named_parameters() if value.ndim == 4}
    sites = [site.weight for site in model.scale_sites()]
    assert sorted(sites) == sorted(convolutions - {"body.stem.conv.weight"})
    assert len(sites) == 8  # two a block, and two projections


@pytest.mark.parametrize("shortcuts", ["residual", "none"])
def test_masks_of_ones_change_no_bit(shortcuts):
    model = tiny_resnet(shortcuts=shortcuts)
    bank = MaskBank(model.prunable_units(), model.scale_sites(), config=SUBTASKS, seed=0)
    masks = bank.masks(["digit"], threshold=-1.0)
    with gated(model, masks.gates):
        masked = logits(model)
    assert torch.equal(masked, logits(model))


@pytest.mark.parametrize("shortcuts", ["residual", "none"])
def test_off_channels_are_zero_wherever_they_come_out(shortcuts):
    model = tiny_resnet(depth=14, shortcuts=shortcuts)
    kept, _, gates = random_masks(model, seed=0, share=0.5)
    seen = {}

    def look(path: str, gate: UnitGate) -> None:
        gate.register_forward_hook(lambda _, __, out: seen.__setitem__(path, out))

    for path, module in model.named_modules():
        if isinstance(module, UnitGate):
            look(path, module)
    with gated(model, gates):
        logits(model)
    for group in model.prunable_units():
        for path in group.gates:
            off = ~kept[group.name]
            assert (seen[path][:, off] == 0).all(), path
            assert (seen[path][:, ~off] != 0).any(), path


@pytest.mark.parametrize("shortcuts", ["residual", "none"])
def test_units_that_are_off_have_gradients_and_can_come_back(shortcuts):
    model = tiny_resnet(shortcuts=shortcuts).train()
    bank = MaskBank(model.prunable_units(), model.scale_sites(), config=SUBTASKS, seed=0)
    masks = bank.masks(["digit"])
    with gated(model, masks.gates):
        outputs = model(task="digit", targets=None, **pictures(batch=16)).logits
    sigmoid_cross_entropy(outputs, torch.arange(16) % 10).total.backward()
    off = ~torch.cat(list(masks.kept.values()))
    gradient = bank.utility.grad
    assert gradient is not None
    assert 10 < int(off.sum()) < 40
    assert (gradient[0, off] != 0).float().mean() > 0.9  # a ReLU may be at rest on a whole batch
    assert (gradient[1] == 0).all()  # of the subtask that took no part
    assert bank.scaling.grad is not None
    assert bank.scaling.grad[0].abs().sum() > 0


def test_it_learns_digits():
    images, classes = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 8, 8, 1)
    targets = torch.tensor(classes)
    config = ModelConfig(family="resnet", body=Config(channels=1, widths=(8, 16, 32)))
    model = build_model(config, TASKS[:1], seed=0)
    engine = build_engine(EngineConfig(name="torch"), model=model, optimizer=OptimizerConfig())
    rows = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    for batch in rows.split(64) * 8:
        lengths = torch.full((len(batch),), 8)
        outputs = engine.forward(
            task="digit", inputs=inputs[batch], input_lengths=lengths, targets=None
        )
        loss = sigmoid_cross_entropy(outputs.logits, targets[batch])
        engine.backward(loss.total / len(batch))
        engine.step(
            model.owners("digit"), learning_rates=dict.fromkeys(model.owners("digit"), 5e-3)
        )
    model.eval()
    with torch.no_grad():
        outputs = model(
            task="digit", inputs=inputs[1500:], input_lengths=torch.full((297,), 8), targets=None
        )
    assert (outputs.logits.argmax(-1) == targets[1500:]).float().mean() > 0.85
