import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mmtrain.layers.conv import ConvBlock, ConvStep, Place
from mmtrain.layers.units import (
    UnitChoice,
    UnitCounts,
    UnitGate,
    UnitsError,
    check_units,
    gated,
    sites_within,
    units_within,
)

torch.set_num_threads(1)


def place(length: int, dim: int) -> Place:
    return Place(
        torch.ones(2, length, 1), torch.zeros(1, length, dim), torch.zeros(1, 1, 1, length)
    )


def test_counts_are_read_below_a_path_and_others_are_whole():
    units = UnitCounts({"blocks.0.attention.heads": 2, "heads": 1}).below("blocks.0")
    assert units.below("attention").count("heads", of=4) == 2
    assert units.below("mlp").count("hidden", of=9) == 9


@pytest.mark.parametrize("count", [0, 5, -1])
def test_counts_that_cannot_be_are_refused_with_what_can(count):
    with pytest.raises(UnitsError, match=rf"units\['a.heads'\] is {count}; the group has 1 to 4"):
        UnitCounts({"a.heads": count}).below("a").count("heads", of=4)


def test_a_group_that_no_layer_has_is_refused_with_the_nearest():
    block = ConvBlock(4, padding="same", dilation=1, drop_prob=0.0)
    check_units({"step1.channels": 2}, block)
    with pytest.raises(UnitsError, match=r"'step5.channels'.*nearest.*'step[1-4].channels'"):
        check_units({"step5.channels": 2}, block)


def test_groups_and_sites_are_named_by_their_paths():
    parts = nn.ModuleDict({"a": ConvStep(4, 3, kernel=3, padding="same"), "b": nn.Linear(2, 2)})
    (group,), (site,) = units_within(parts), sites_within(parts)
    assert (group.name, group.size, group.gates) == ("a.channels", 4, ("a.channel_gate",))
    assert [held.name for held in group.slices] == ["a.depthwise.weight", "a.pointwise.weight"]
    assert group.numbers == ("a.choice.numbers",)
    assert (site.gate, site.group, site.weight) == (
        "a.channel_gate", "a.channels", "a.pointwise.weight"
    )  # fmt: skip


def test_a_choice_picks_the_units_it_names_and_whole_all_of_them():
    values = torch.arange(12.0).view(2, 6)
    choice = UnitChoice(2, of=3, width=2)
    choice.numbers = torch.tensor([0, 2])
    assert_close(choice(values), values[:, [0, 1, 4, 5]])
    whole = UnitChoice(3, of=3)
    assert whole(values) is values
    assert whole.state_dict() == {}


def test_the_gradient_of_a_choice_goes_back_to_the_units_it_names():
    values = torch.ones(2, 4, requires_grad=True)
    choice = UnitChoice(2, of=4)
    choice.numbers = torch.tensor([3, 1])
    choice(values).sum().backward()
    assert_close(values.grad, torch.tensor([[0.0, 1.0, 0.0, 1.0]] * 2))


def test_masked_channels_are_the_layer_without_them():
    torch.manual_seed(0)
    step = ConvStep(5, 4, kernel=3, padding="same")
    small = ConvStep(5, 4, kernel=3, padding="same", units=UnitCounts({"channels": 2}))
    kept = torch.tensor([1, 4])
    state = step.state_dict() | {"choice.numbers": kept}
    state["depthwise.weight"] = state["depthwise.weight"][:, kept]
    state["pointwise.weight"] = state["pointwise.weight"][:, kept]
    small.load_state_dict(state)
    x_BLD = torch.randn(2, 7, 5)
    mask = torch.zeros(5).index_fill(0, kept, 1.0)
    with gated(step, {"channel_gate": mask}):
        masked = step(x_BLD, place(7, 5))
    assert_close(small(x_BLD, place(7, 5)), masked)


def test_a_gate_is_as_if_it_were_not_there_when_the_masks_are_gone():
    gate, values = UnitGate(), torch.randn(2, 3)
    holder = nn.ModuleDict({"gate": gate})
    with gated(holder, {"gate": torch.zeros(3)}):
        assert not gate(values).any()
    assert gate(values) is values


def test_channels_that_are_off_have_gradients_though_a_relu_is_before_and_after():
    torch.manual_seed(0)
    block = ConvBlock(6, padding="left", dilation=2, drop_prob=0.0)
    groups = units_within(block)
    masks = {group.gates[0]: torch.zeros(6).requires_grad_() for group in groups}
    for mask in masks.values():
        mask.data[0] = 1.0
    x_BLD = torch.randn(2, 9, 6)
    with gated(block, masks):
        block(x_BLD, place(9, 6)).square().sum().backward()
    assert len(masks) == 4
    assert all((grad_of(mask) != 0).all() for mask in masks.values())


def grad_of(value: Tensor) -> Tensor:
    assert value.grad is not None
    return value.grad
