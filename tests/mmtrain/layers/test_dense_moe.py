"""A mixture of experts of fixed shapes answers as the routed one."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmtrain.layers.dense_moe import DenseMoE, with_dense_experts
from mmtrain.layers.moe import MoE
from tests.mmtrain.example_masked import randomise


def layer(residual) -> MoE:
    torch.manual_seed(0)
    made = MoE(8, name="x", num_experts=5, k=2, hidden_dim=6, loss_weight=1.0, residual=residual)
    randomise(made, seed=0)
    return made.eval()


@pytest.mark.parametrize("residual", ["add_and_norm", "none"])
@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 0], [0, 0, 1, 0, 0]])
def test_it_answers_as_the_routed_one_does(residual, mask):
    routed = layer(residual)
    if mask:
        routed.expert_gate.mask = torch.tensor(mask).float()
    x_BLD = torch.randn(3, 4, 8)
    is_real_BL1 = torch.tensor([4, 2, 1])[:, None, None] > torch.arange(4)[None, :, None]
    with torch.no_grad():
        expected = routed(x_BLD, is_real_BL1).values_BLD
        assert_close(DenseMoE(routed)(x_BLD, is_real_BL1).values_BLD, expected)


def test_all_mixtures_of_a_model_are_replaced():
    model = with_dense_experts(
        nn.ModuleDict({"a": layer("none"), "b": nn.Sequential(layer("none"))})
    )
    assert not any(isinstance(module, MoE) for module in model.modules())
