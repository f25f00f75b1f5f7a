import torch
from torch.testing import assert_close

from mmtrain.layers.timing import timing_signal


def test_each_pair_of_channels_lies_on_the_unit_circle():
    signal_LD = timing_signal(200, depth=12, like=torch.zeros(1))
    assert_close(signal_LD.unflatten(1, (6, 2)).square().sum(-1), torch.ones(200, 6))


def test_position_zero_is_zero_and_one_in_turn():
    signal_LD = timing_signal(3, depth=6, like=torch.zeros(1))
    assert_close(signal_LD[0], torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]))


def test_the_signal_at_a_position_is_the_formula():
    signal_LD = timing_signal(8, depth=4, like=torch.zeros(1))
    # sin(7), cos(7), sin(7 / 100), cos(7 / 100)
    assert_close(
        signal_LD[7], torch.tensor([0.656987, 0.753902, 0.069943, 0.997551]), atol=1e-6, rtol=0
    )


def test_the_signal_does_not_depend_on_the_length():
    like = torch.zeros(1)
    assert torch.equal(
        timing_signal(10, depth=8, like=like), timing_signal(900, depth=8, like=like)[:10]
    )
