import pytest
import torch
from torch.testing import assert_close

from mmtrain.layers.grid import ConvRes, GridConvStep, max_pool, standardise

torch.set_num_threads(1)


def test_standardised_values_have_mean_zero_and_deviation_one_over_what_is_real():
    x_BYXC = torch.rand(2, 6, 3, 2) * 9
    lengths_B = torch.tensor([6, 4])
    standard = standardise(x_BYXC, lengths_B)
    for row, length in zip(standard, lengths_B.tolist(), strict=True):
        assert_close(row[:length].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
        assert_close(row[:length].std(correction=0), torch.tensor(1.0))
        assert row[length:].abs().sum() == 0


def test_a_blank_picture_standardises_to_zero():
    assert standardise(torch.full((1, 4, 4, 1), 7.0), None).abs().sum() == 0


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 2)])
def test_a_strided_block_leaves_the_ceiling_and_padding_changes_nothing(stride):
    torch.manual_seed(0)
    block = ConvRes(3, 5, kernel=(3, 3), stride=stride, shortcut="relu")
    for rows in (4, 7):
        x_BYXC = torch.randn(1, rows, 5, 3)
        out = block(x_BYXC, torch.tensor([rows]))
        assert out.shape == (1, -(-rows // stride[0]), -(-5 // stride[1]), 5)
        padded = torch.nn.functional.pad(x_BYXC, (0, 0, 0, 0, 0, 6))
        again = block(padded, torch.tensor([rows]))
        assert_close(again[:, : out.shape[1]], out, atol=1e-5, rtol=1e-5)


def test_left_ends_see_no_later_row():
    torch.manual_seed(0)
    step = GridConvStep(2, 4, kernel=(5, 1), stride=(4, 1), ends="left")
    x_BYXC = torch.rand(1, 9, 1, 2).requires_grad_()  # above zero: relu lets gradients pass
    out = step(x_BYXC, None)
    assert out.shape[1] == 3
    out[0, 1, 0, 0].backward()
    assert x_BYXC.grad[0].sum((1, 2)).nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def test_padding_never_wins_a_pool():
    x_BYXC = -torch.ones(1, 4, 1, 1)
    pooled = max_pool(x_BYXC, torch.tensor([3]), kernel=(3, 1), stride=(2, 1))
    assert pooled.flatten().tolist() == [-1.0, -1.0]
