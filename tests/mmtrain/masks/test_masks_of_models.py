import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mmtrain.cut.slicing import cut
from mmtrain.layers.units import UnitGroup, gated
from mmtrain.masks.banks import MaskBank
from mmtrain.masks.config import PruningConfig
from mmtrain.masks.generator import build_masks
from mmtrain.masks.objective import subtask_loss, utility_price
from mmtrain.masks.sampling import draw_unions
from mmtrain.masks.subtasks import Subtasks, resolve_subtasks
from mmtrain.models import resnet
from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec, build_model
from pipelines.modalities.label import LabelFeature

CONFIG = PruningConfig(
    subtasks={"a": ("shape:0", "shape:1"), "b": ("shape:2",), "c": ("shape:3",)},
    sigma=0.5, gamma=0.1, beta=5.0,
)  # fmt: skip


@pytest.fixture
def model() -> MultiTaskModel:
    body = resnet.Config(channels=1, depth=8, widths=(4, 6, 8))
    task = TaskSpec(
        name="shape", input_net="image_pixels", output_net="linear", num_outputs=4,
        loss="sigmoid_cross_entropy",
    )  # fmt: skip
    built = build_model(ModelConfig(family="resnet", body=body), [task], seed=0)
    torch.manual_seed(0)
    for weight in built.heads.parameters():
        nn.init.normal_(weight)  # a new head is zero: nothing behind it has a gradient
    return built


@pytest.fixture
def bank(model: MultiTaskModel) -> MaskBank:
    return bank_of(model, CONFIG)


def bank_of(model: MultiTaskModel, config: PruningConfig) -> MaskBank:
    return build_masks(config, groups=model.prunable_units(), sites=model.scale_sites(), seed=0)


def logits(model: MultiTaskModel) -> Tensor:
    pixels = torch.randn(12, 8, 8, 1, generator=torch.Generator().manual_seed(0))
    lengths = torch.full((12,), 8)
    return model(task="shape", inputs=pixels, input_lengths=lengths, targets=None).logits


def behind_gates(model: MultiTaskModel, group: UnitGroup) -> dict[str, Tensor]:
    """Fills itself at the next pass with what each gate of the group hands on."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> None:
        gate = model.get_submodule(name)
        gate.register_forward_hook(lambda _, __, out: seen.update({name: out}))

    for name in group.gates:
        note(name)
    return seen


@pytest.mark.parametrize("union", ["a", "bc"])
def test_off_channels_are_zero_after_every_addition_of_a_stage(model, bank, union):
    groups = [group for group in model.prunable_units() if group.name.startswith("body.")]
    seen = [behind_gates(model, group) for group in groups]
    masks = bank.masks(union)
    with gated(model, masks.gates):
        logits(model)
    assert len(seen[0]) >= 2  # the first convolution and the blocks of the stage have one mask
    for group, outputs in zip(groups, seen, strict=True):
        off = ~masks.kept[group.name]
        assert outputs
        assert all((output[:, off] == 0).all() for output in outputs.values())
        assert all((output[:, ~off] != 0).any() for output in outputs.values())
    assert sum(int((~kept).sum()) for kept in masks.kept.values()) > 10


def test_every_unit_that_is_off_can_return(model, bank):
    masks = bank.masks(["a"])
    with gated(model, masks.gates):
        logits(model).square().sum().backward()
    off = ~torch.cat(list(masks.kept.values()))
    assert off.sum() > 10
    assert (bank.utility.grad[0][off] != 0).all()


def test_gradients_reach_weights_and_masks_of_the_union_alone(model, bank):
    with gated(model, bank.masks(["a", "c"]).gates):
        logits(model).square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    for values in (bank.utility, bank.scaling):
        assert all((values.grad[row] != 0).any() for row in (0, 2))
        assert (values.grad[1] == 0).all()


def test_with_all_units_on_it_is_the_model_bit_for_bit(model, bank):
    model.eval()
    with gated(model, bank.masks(["b"], threshold=-1.0).gates):
        masked = logits(model)
    assert torch.equal(masked, logits(model))


@pytest.mark.parametrize("union", ["a", "b", "c", "ab", "ac", "bc", "abc"])
def test_the_network_cut_by_a_unions_masks_is_the_masked_one(model, bank, union):
    bank.scaling.data.normal_(generator=torch.Generator().manual_seed(2))
    model.eval()
    masks = bank.masks(union)
    small = cut(model, masks.kept, scale=masks.scale, outputs={"shape": [0, 2]})
    with torch.no_grad(), gated(model, masks.gates):
        assert_close(logits(small), logits(model)[:, [0, 2]], atol=1e-5, rtol=1e-5)
    assert {group.name: group.size for group in small.prunable_units()} == {
        name: int(kept.sum()) for name, kept in masks.kept.items()
    }


def test_masks_add_n_vectors_to_the_state(model, bank):
    units = 4 + 6 + 8 + (4 + 6 + 8)  # a stream and an inner convolution for each stage
    channels = (4 + 4) + (4 + 6 + 4) + (6 + 8 + 6)  # inputs of both convolutions and projections
    state = bank.state_dict()
    assert sum(value.numel() for value in state.values()) == 3 * (units + channels)
    model.add_module("masks", bank)
    names = set(model.state_dict()) - set(state)
    assert {"masks.utility", "masks.scaling"} <= names


def test_masks_learn_the_classes_of_their_subtasks(model):
    """Four classes of bright quarters; 60 steps as the trainer takes them."""
    torch.manual_seed(0)
    bank = bank_of(
        model, CONFIG.model_copy(update={"sigma": 1.0, "gamma": 0.5, "warmup_steps": 10})
    )
    feature = LabelFeature(classes=("0", "1", "2", "3"))
    subtasks = resolve_subtasks(
        bank.config, targets={"shape": feature}, losses={"shape": "sigmoid_cross_entropy"}
    )
    before = bank.masks("abc").kept_share()
    adam = torch.optim.Adam(
        [{"params": model.parameters(), "lr": 0.01}, {"params": bank.parameters(), "lr": 0.03}]
    )
    losses = [train_step(model, bank, adam, subtasks, step=step) for step in range(60)]
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])  # 0.20 and 0.18 with two seeds
    assert bank.masks("abc").kept_share() < 0.8 * before


def train_step(
    model: MultiTaskModel,
    bank: MaskBank,
    optimizer: torch.optim.Optimizer,
    subtasks: Subtasks,
    *,
    step: int,
) -> float:
    labels = torch.arange(16) % 4
    pixels = 0.3 * torch.randn(16, 8, 8, 1)
    for row, label in enumerate(labels.tolist()):
        pixels[row, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 2
    optimizer.zero_grad()
    total = 0.0
    for draw in draw_unions(bank.config, seed=0, step=step, within=subtasks.containing("shape")):
        masks = bank.masks(draw.subtasks)
        classes = subtasks.classes(draw.subtasks, task="shape")
        with gated(model, masks.gates):
            scores = forward(model, pixels)
        loss = subtask_loss(scores, labels, classes=classes or (), beta=bank.config.beta)
        mean = loss.total / loss.count
        (draw.share * (mean + utility_price(bank, masks, step=step))).backward()
        total += draw.share * mean.item()
    optimizer.step()
    return total


def forward(model: nn.Module, pixels: Tensor) -> Tensor:
    lengths = torch.full((len(pixels),), pixels.shape[1])
    return model(task="shape", inputs=pixels, input_lengths=lengths, targets=None).logits
