import itertools
from functools import reduce
from math import erfc, sqrt

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmtrain.layers.units import ScaleSite, UnitGroup, gated
from mmtrain.masks.banks import MaskBank, MaskError, SubtaskMasks, keep, max_abs
from mmtrain.masks.generator import build_masks
from pipelines.errors import UnknownNameError
from tests.mmtrain.cut.toy_nets import (
    GROUPS,
    INNER,
    STREAM,
    SUBTASKS,
    ToyNet,
    toy_bank,
    toy_config,
    toy_images,
)  # fmt: skip

UNIONS = [
    union
    for size in range(1, len(SUBTASKS) + 1)
    for union in itertools.combinations(SUBTASKS, size)
]


def on(masks: SubtaskMasks) -> torch.Tensor:
    return torch.cat(list(masks.kept.values()))


def set_utility(bank: MaskBank, rows: list[list[float]]) -> MaskBank:
    bank.utility.data = torch.tensor(rows)
    return bank


def one_group(size: int, rows: list[list[float]], **settings: object) -> MaskBank:
    subtasks = {name: (name,) for name in SUBTASKS[: len(rows)]}
    group = UnitGroup("only", "hidden", size, ("gate",), ())
    config = toy_config(subtasks=subtasks, **settings)
    return set_utility(build_masks(config, groups=[group], sites=(), seed=0), rows)


@pytest.mark.parametrize("seed", range(5))
def test_a_union_keeps_what_a_member_keeps_and_nothing_else(seed):
    bank = toy_bank(seed)
    alone = {name: bank.masks([name]) for name in SUBTASKS}
    assert all(not masks.emptied() for masks in alone.values())
    for union in UNIONS:
        masks = bank.masks(union)
        members = [alone[name] for name in union]
        assert torch.equal(on(masks), reduce(torch.logical_or, [on(m) for m in members]))
        assert all((masks.utility >= member.utility).all() for member in members)
        shares = [member.kept_share() for member in members]
        assert max(shares) <= masks.kept_share() <= sum(shares) + 1e-6


def test_a_larger_union_keeps_more():
    bank = toy_bank()
    for small, large in itertools.product(UNIONS, UNIONS):
        if set(small) <= set(large):
            assert (on(bank.masks(small)) <= on(bank.masks(large))).all()


def test_order_and_repetition_of_members_change_nothing():
    bank = toy_bank()
    bank.scaling.data.normal_(generator=torch.Generator().manual_seed(2))
    first, second = bank.masks(["a", "c", "d"]), bank.masks(["d", "a", "c", "a"])
    assert first.subtasks == second.subtasks == ("a", "c", "d")
    assert torch.equal(first.utility, second.utility)
    assert all(torch.equal(first.gates[gate], second.gates[gate]) for gate in first.gates)


def test_scales_keep_sign_and_magnitude_of_the_larger():
    values = torch.tensor([[1.0, -3.0, 0.5, 2.0], [-2.0, 1.0, -0.5, 2.0]])
    assert max_abs(values).tolist() == [-2.0, -3.0, 0.5, 2.0]  # of 0.5 and -0.5 the positive one
    assert torch.equal(max_abs(torch.ones(3, 4)), torch.ones(4))


def test_scales_of_a_union_in_any_grouping_are_the_same():
    values = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    values[1, :5] = -values[0, :5]
    whole = max_abs(values)
    for order in itertools.permutations(range(4)):
        steps = reduce(lambda x, y: max_abs(torch.stack([x, y])), values[list(order)])
        assert torch.equal(steps, whole)


def test_the_mask_is_exactly_zero_or_one_and_its_gradient_that_of_the_utility():
    bank = one_group(4, [[0.7, -0.9, 0.2, -0.1], [0.1, 0.3, -0.6, 0.05]])
    masks = bank.masks(["a", "b"])
    assert masks.gates["gate"].tolist() == [1.0, 1.0, 1.0, 0.0]
    (masks.gates["gate"] * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert bank.utility.grad.tolist() == [
        [1.0, -2.0, 0.0, -4.0],  # sign(V) where it is the larger; also of the unit that is off
        [0.0, 0.0, -3.0, 0.0],
    ]


def test_the_mask_does_not_move_with_the_utility():
    bank = one_group(2, [[0.7, 0.2]])
    before = bank.masks(["a"]).gates["gate"]
    bank.utility.data += 1e-3
    assert torch.equal(bank.masks(["a"]).gates["gate"], before)


def test_a_utility_at_the_threshold_is_off():
    masks = one_group(3, [[0.5, -0.5, 0.6]]).masks(["a"])
    assert masks.kept["only"].tolist() == [False, False, True]


def test_equal_utilities_share_the_gradient_evenly():
    bank = one_group(2, [[0.8, 0.1], [-0.8, 0.1]])
    bank.masks(["a", "b"]).gates["gate"].sum().backward()
    assert bank.utility.grad.tolist() == [[0.5, 0.5], [-0.5, 0.5]]


def test_equal_scales_share_the_gradient_evenly():
    bank = toy_bank()
    bank.masks(["a", "b"]).scale["outer_scale"].sum().backward()
    assert bank.scaling.grad[:, STREAM:].tolist() == [[0.5] * INNER] * 2 + [[0.0] * INNER] * 2


def test_clipped_gradients_stop_one_away_from_the_threshold():
    bank = one_group(3, [[1.4, 1.6, 0.1]], straight_through="clipped")
    bank.masks(["a"]).gates["gate"].sum().backward()
    assert bank.utility.grad.tolist() == [[1.0, 0.0, 1.0]]


def test_an_empty_group_keeps_its_best_unit_and_says_so():
    masks = one_group(3, [[0.1, -0.3, 0.2]]).masks(["a"])
    assert masks.kept["only"].tolist() == [False, True, False]
    assert masks.gates["gate"].tolist() == [0.0, 1.0, 0.0]
    assert masks.emptied() == ("only",)
    assert toy_bank().masks(SUBTASKS).emptied() == ()


def test_of_equally_bad_units_the_first_is_kept():
    assert keep(torch.zeros(3), threshold=0.5).tolist() == [True, False, False]


def test_a_threshold_above_all_leaves_one_unit_of_each_group():
    masks = toy_bank(tau=1e6).masks(SUBTASKS)
    assert [int(kept.sum()) for kept in masks.kept.values()] == [1, 1]


def test_a_threshold_below_all_is_the_model_without_masks_bit_for_bit():
    net, images = ToyNet(), toy_images()
    with gated(net, toy_bank().masks(["a"], threshold=-1.0).gates):
        masked = net(images)
    assert torch.equal(masked, net(images))


def test_masks_of_a_low_threshold_keep_more():
    bank = toy_bank()
    shares = [bank.masks(["a"], threshold=tau).kept_share() for tau in (0.0, 0.5, 1.0, 2.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0 > shares[-1]


@pytest.mark.parametrize("union", [("a",), ("b", "d"), SUBTASKS], ids="-".join)
def test_off_channels_are_zero_behind_every_gate(union):
    net, masks = ToyNet(), toy_bank(sigma=0.5).masks(union)
    with gated(net, masks.gates):
        net(toy_images())
    for place, group in [("stem", "stream"), ("inner", "inner"), ("block", "stream")]:
        off = ~masks.kept[group]
        assert off.any() or union == SUBTASKS
        assert (net.seen[place][:, off] == 0).all()
        assert (net.seen[place][:, ~off] != 0).any()


def test_units_that_are_off_have_gradients_and_can_return():
    net, bank = ToyNet(), toy_bank(sigma=0.5)
    masks = bank.masks(["a"])
    with gated(net, masks.gates):
        net(toy_images()).square().sum().backward()
    off = ~on(masks)
    assert off.sum() >= 4
    assert (bank.utility.grad[0][off] != 0).all()


def test_a_mask_before_the_relu_would_leave_units_off_for_ever():
    bank = one_group(2, [[0.9, 0.3]])
    values = torch.tensor([1.0, 2.0])
    (bank.masks(["a"]).gates["gate"] * values).relu().sum().backward()
    assert bank.utility.grad.tolist() == [[1.0, 0.0]]
    (bank.masks(["a"]).gates["gate"] * values.relu()).sum().backward()  # where gates are
    assert bank.utility.grad.tolist() == [[2.0, 2.0]]


def test_a_unit_comes_back_where_the_loss_wants_it():
    bank = one_group(2, [[0.9, 0.3]])
    sgd = torch.optim.SGD([bank.utility], lr=0.1)
    for _ in range(20):
        sgd.zero_grad()
        mask = bank.masks(["a"]).gates["gate"]
        (mask.sum() - 2.0).square().backward()
        sgd.step()
    assert bank.masks(["a"]).gates["gate"].tolist() == [1.0, 1.0]


def test_gradients_reach_weights_and_winners_of_the_union_alone():
    net, bank = ToyNet(), toy_bank()
    bank.scaling.data.normal_(generator=torch.Generator().manual_seed(2))
    with gated(net, bank.masks(["a", "c"]).gates):
        net(toy_images()).square().sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())
    for values in (bank.utility, bank.scaling):
        a_wins = values.detach()[0].abs() > values.detach()[2].abs()
        assert (values.grad[0][~a_wins] == 0).all()
        assert (values.grad[2][a_wins] == 0).all()
        assert (values.grad[0] != 0).any()
        assert (values.grad[2] != 0).any()
        assert (values.grad[[1, 3]] == 0).all()


def test_scales_act_on_inputs_of_convolutions_but_the_first():
    bank = toy_bank()
    bank.scaling.data[0] = torch.arange(float(STREAM + INNER))
    masks = bank.masks(["a"])
    assert masks.scale["inner_scale"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert masks.scale["outer_scale"].tolist() == [6.0, 7.0, 8.0, 9.0, 10.0]
    assert torch.equal(masks.gates["inner_scale"], masks.scale["inner_scale"])


def test_without_scaling_there_are_no_scales():
    masks = toy_bank(scaling="off").masks(["a"])
    assert masks.scale == {}
    assert set(masks.gates) == {"stem_gate", "block_gate", "inner_gate"}


def test_all_gates_of_a_group_have_one_mask():
    masks = toy_bank().masks(["b"])
    assert torch.equal(masks.gates["stem_gate"], masks.gates["block_gate"])
    assert torch.equal(masks.gates["stem_gate"].bool(), masks.kept["stream"])


def test_a_layer_is_on_or_off_as_one():
    bank = toy_bank(granularity="layer")
    assert bank.utility.shape == (4, 2)
    set_utility(bank, [[0.9, 0.2], [0.1, 0.7], [0.0, 0.0], [0.0, 0.0]])
    masks = bank.masks(["a"])
    assert masks.kept["stream"].all()
    assert masks.kept["inner"].tolist() == [True, False, False, False, False]
    masks.gates["inner_gate"].sum().backward()
    assert bank.utility.grad[0].tolist() == [0.0, INNER]


@pytest.mark.parametrize(("sigma", "members", "share"), [
    (0.25, 1, 0.046), (0.5, 1, 0.317), (1.0, 1, 0.617), (2.0, 1, 0.803),
    (0.5, 2, 0.534), (1.0, 2, 0.853), (0.5, 4, 0.783),
])  # fmt: skip
def test_the_share_kept_at_the_start_is_that_of_half_normal_utilities(sigma, members, share):
    size = 4000
    assert share == pytest.approx(1 - (1 - erfc(0.5 / (sigma * sqrt(2)))) ** members, abs=1e-3)
    group = UnitGroup("only", "filter", size, ("gate",), ())
    bank = build_masks(toy_config(sigma=sigma), groups=[group], sites=(), seed=0)
    kept = bank.masks(SUBTASKS[:members]).kept_share()
    assert abs(kept - share) < 3 * sqrt(share * (1 - share) / size) + 1e-3


def test_scales_start_at_one_and_utilities_from_the_seed():
    assert torch.equal(toy_bank().scaling, torch.ones(4, STREAM + INNER))
    assert torch.equal(toy_bank(3).utility, toy_bank(3).utility)
    assert not torch.equal(toy_bank(3).utility, toy_bank(4).utility)


def test_drawing_utilities_leaves_torchs_own_generator_as_it_was():
    before = torch.random.get_rng_state()
    toy_bank()
    toy_bank(generator="network")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_masks_are_linear_in_the_number_of_subtasks(count):
    subtasks = {name: (name,) for name in SUBTASKS[:count]}
    bank = toy_bank(subtasks=subtasks)
    sizes = {name: value.numel() for name, value in bank.state_dict().items()}
    assert sizes == {"utility": count * 11, "scaling": count * 11}  # units 6 + 5, channels 6 + 5


def test_saved_masks_are_the_same_masks():
    bank, other = toy_bank(1), toy_bank(2)
    other.load_state_dict(bank.state_dict())
    assert torch.equal(bank.masks(["b"]).utility, other.masks(["b"]).utility)


def test_a_higher_price_keeps_no_more_units():
    shares = [_kept_after_training(gamma) for gamma in (0.0, 0.03, 0.3, 3.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]


def _kept_after_training(gamma: float) -> float:
    """Mean over subtasks, of the toy network after 40 steps on its own first answers."""
    net, bank, images = ToyNet(), toy_bank(gamma=gamma), toy_images()
    answers = ToyNet()(images).detach()
    adam = torch.optim.Adam([*net.parameters(), *bank.parameters()], lr=0.03)
    for step in range(40):
        adam.zero_grad()
        masks = bank.masks([SUBTASKS[step % 4]])
        with gated(net, masks.gates):
            loss = nn.functional.mse_loss(net(images), answers)
        (loss + gamma * masks.utility.mean()).backward()
        adam.step()
    return sum(bank.masks([name]).kept_share() for name in SUBTASKS) / 4


def test_gates_are_free_after_the_pass():
    net = ToyNet()
    with pytest.raises(RuntimeError), gated(net, toy_bank().masks(["a"]).gates):
        net(torch.zeros(1))
    assert all(net.get_submodule(gate).mask is None for group in GROUPS for gate in group.gates)


def test_a_union_of_an_unknown_subtask_names_the_nearest():
    bank = toy_bank(subtasks={"low_digits": ("digit:0",), "high_digits": ("digit:1",)})
    with pytest.raises(UnknownNameError, match="nearest: low_digits"):
        bank.masks(["low_digit"])


def test_an_empty_union_is_refused():
    with pytest.raises(MaskError, match="there are: a, b, c, d"):
        toy_bank().masks([])


def test_a_model_without_units_is_refused():
    with pytest.raises(MaskError, match="no prunable units"):
        build_masks(toy_config(), groups=(), sites=(), seed=0)


def test_masks_work_in_half_precision():
    bank = toy_bank().to(torch.bfloat16)
    masks = bank.masks(["a"])
    assert_close(masks.utility, bank.utility[0].float().abs())
    assert masks.gates["stem_gate"].unique().tolist() == [0.0, 1.0]


def test_a_gate_that_is_a_units_and_a_scales_has_both():
    group = UnitGroup("only", "filter", 2, ("gate",), ())
    site = ScaleSite("gate", "only", "weight")
    bank = build_masks(toy_config(), groups=[group], sites=[site], seed=0)
    bank.utility.data[0] = torch.tensor([0.9, 0.1])
    bank.scaling.data[0] = torch.tensor([-2.0, 3.0])
    masks = bank.masks(["a"])
    assert masks.gates["gate"].tolist() == [-2.0, 0.0]
    assert masks.scale["gate"].tolist() == [-2.0, 3.0]
