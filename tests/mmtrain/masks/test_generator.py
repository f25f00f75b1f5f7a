import torch

from mmtrain.layers.units import gated
from mmtrain.masks.generator import MaskNetwork
from mmtrain.masks.objective import utility_price
from tests.mmtrain.cut.toy_nets import INNER, STREAM, SUBTASKS, ToyNet, toy_bank, toy_images


def test_the_network_gives_what_a_bank_gives():
    bank = toy_bank(generator="network")
    assert isinstance(bank, MaskNetwork)
    masks, direct = bank.masks(["b", "a"]), toy_bank().masks(["a", "b"])
    assert masks.subtasks == direct.subtasks
    for of_network, of_bank in [
        (masks.gates, direct.gates), (masks.kept, direct.kept), (masks.scale, direct.scale)
    ]:  # fmt: skip
        assert {key: value.shape for key, value in of_network.items()} == {
            key: value.shape for key, value in of_bank.items()
        }
    assert (masks.utility >= 0).all()


def test_at_the_start_all_unions_have_nearly_the_drawn_utilities():
    bank = toy_bank(generator="network")
    drawn = bank.out.bias[: STREAM + INNER]
    assert (drawn >= 0).all()
    for union in (["a"], ["b", "c"], SUBTASKS):
        masks = bank.masks(union)
        assert (masks.utility - drawn).abs().max() < 0.1
        assert all((scale - 1).abs().max() < 0.1 for scale in masks.scale.values())


def test_gradients_reach_the_network():
    net, bank = ToyNet(), toy_bank(generator="network")
    masks = bank.masks(["a", "d"])
    with gated(net, masks.gates):
        loss = net(toy_images()).square().sum() + utility_price(bank, masks, step=0)
    loss.backward()
    assert all(value.grad.abs().sum() > 0 for value in bank.parameters())
    assert bank.hidden.weight.grad[:, 1:3].abs().sum() == 0  # b and c are not in the union


def test_a_union_is_not_bound_to_what_its_members_keep():
    bank = toy_bank(generator="network", generator_dim=1)
    for value, filler in [
        (bank.hidden.weight, 1.0), (bank.hidden.bias, 0.0),
        (bank.out.weight, -0.5), (bank.out.bias, 1.2),
    ]:  # fmt: skip
        torch.nn.init.constant_(value, filler)  # v = 1.2 - size / 2
    shares = [bank.masks(union).kept_share() for union in ("a", "b")]
    assert shares == [1.0, 1.0]
    assert bank.masks("ab").emptied() == ("stream", "inner")


def test_the_network_is_the_same_from_the_same_seed_and_after_a_save():
    first, second = (toy_bank(4, generator="network") for _ in range(2))
    other = toy_bank(5, generator="network")
    assert torch.equal(first.masks("ac").utility, second.masks("ac").utility)
    assert not torch.equal(first.masks("ac").utility, other.masks("ac").utility)
    other.load_state_dict(first.state_dict())
    assert torch.equal(first.masks("ac").utility, other.masks("ac").utility)


def test_a_network_of_layers_has_one_utility_for_each():
    bank = toy_bank(generator="network", granularity="layer", scaling="off", generator_dim=7)
    assert {name: tuple(value.shape) for name, value in bank.state_dict().items()} == {
        "hidden.weight": (7, 4), "hidden.bias": (7,), "out.weight": (2, 7), "out.bias": (2,),
    }  # fmt: skip
    assert bank.masks("a").kept["stream"].unique().numel() == 1
