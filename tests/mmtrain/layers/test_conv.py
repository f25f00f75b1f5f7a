import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from mmtrain.layers.conv import ConvBlock, ConvStep, DepthwiseConv, Place

torch.set_num_threads(1)


def place_for(x_BLD: Tensor) -> Place:
    return Place(x_BLD.new_ones(*x_BLD.shape[:2], 1), torch.zeros(1), torch.zeros(1))


def slow_conv_step(step: ConvStep, x_BLD: Tensor) -> Tensor:
    """The written formula, one position, tap and channel at a time."""
    weight_KD, left, dilation = step.depthwise.weight, step.depthwise.left, step.depthwise.dilation
    rows = []
    for t in range(x_BLD.shape[1]):
        total = torch.zeros_like(x_BLD[:, 0])
        for tap in range(weight_KD.shape[0]):
            source = t + tap * dilation - left
            if 0 <= source < x_BLD.shape[1]:
                total = total + weight_KD[tap] * F.relu(x_BLD[:, source])
        rows.append(total @ step.pointwise.weight.T)
    y = torch.stack(rows, dim=1)
    mean, variance = y.mean(-1, keepdim=True), y.var(-1, correction=0, keepdim=True)
    return (y - mean) / (variance + 1e-6).sqrt() * step.norm.weight + step.norm.bias


def slow_conv_block(block: ConvBlock, x_BLD: Tensor) -> Tensor:
    h1 = slow_conv_step(block.step1, x_BLD)
    h2 = x_BLD + slow_conv_step(block.step2, h1)
    h3 = slow_conv_step(block.step3, h2)
    start = x_BLD if block.residual == "stack_input" else h2
    return start + slow_conv_step(block.step4, h3)


@pytest.mark.parametrize("padding", ["same", "left"])
@pytest.mark.parametrize("residual", ["stack_input", "standard"])
def test_a_conv_block_is_the_written_formula(padding, residual):
    torch.manual_seed(0)
    block = ConvBlock(6, padding=padding, dilation=8, drop_prob=0.3, residual=residual).eval()
    x_BLD = torch.randn(2, 19, 6)
    assert_close(
        block(x_BLD, place_for(x_BLD)), slow_conv_block(block, x_BLD), atol=1e-5, rtol=1e-5
    )


def test_gradients_of_a_conv_step_are_those_of_the_written_formula():
    torch.manual_seed(0)
    step = ConvStep(5, 7, kernel=15, padding="left", dilation=2)
    x_BLD = torch.randn(2, 13, 5, requires_grad=True)
    inputs = (x_BLD, *step.parameters())
    cotangent = torch.randn(2, 13, 7)
    ours = torch.autograd.grad(step(x_BLD, place_for(x_BLD)), inputs, cotangent)
    slow = torch.autograd.grad(slow_conv_step(step, x_BLD), inputs, cotangent)
    assert_close(ours, slow, atol=1e-5, rtol=1e-4)


def test_depthwise_taps_equal_the_native_convolution_with_padding_masked():
    torch.manual_seed(0)
    x_BLD = torch.randn(3, 11, 4)
    mask_BL1 = (torch.arange(11) < torch.tensor([[11], [4], [7]]))[..., None].float()
    place = Place(mask_BL1, torch.zeros(1), torch.zeros(1))
    for padding in ("same", "left"):
        conv = DepthwiseConv(4, kernel=5, dilation=4, padding=padding)
        assert_close(conv(x_BLD, place), conv._native(x_BLD, place), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("dilation", "reach"), [(8, 130), (4, 74)])
def test_a_causal_block_reaches_back_exactly(dilation, reach):
    torch.manual_seed(0)
    block = ConvBlock(4, padding="left", dilation=dilation, drop_prob=0.0).double().eval()
    x_BLD = torch.randn(1, reach + 30, 4, dtype=torch.float64, requires_grad=True)
    t = reach + 10
    block(x_BLD, place_for(x_BLD))[0, t].square().sum().backward()
    touched = x_BLD.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert (touched[0], touched[-1]) == (t - reach, t)


def test_a_conv_step_has_the_parameters_that_the_formula_counts():
    dim = 10
    step = ConvStep(dim, dim, kernel=3, padding="same")
    assert sum(weight.numel() for weight in step.parameters()) == 3 * dim + dim**2 + 2 * dim
