import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmtrain.layers.moe import MoE
from mmtrain.layers.transformer import TransformerBlock

torch.set_num_threads(1)


def build_block(**settings) -> TransformerBlock:
    """A block whose biases and norms are not trivial."""
    torch.manual_seed(0)
    block = TransformerBlock(8, num_heads=2, hidden_dim=12, **settings)
    for parameter in block.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return block


def slow_block(block: TransformerBlock, z_BLD: torch.Tensor, mask_BL=None) -> torch.Tensor:
    """The same block of torch's own attention."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    parts = (block.attention.query, block.attention.key, block.attention.value)
    attention.in_proj_weight.data = torch.cat([part.weight for part in parts])
    attention.in_proj_bias.data = torch.cat([part.bias for part in parts])
    attention.out_proj.load_state_dict(block.attention.out.state_dict())
    x_BLD = block.norm1(z_BLD)
    padding = None if mask_BL is None else ~mask_BL
    z_BLD = z_BLD + attention(x_BLD, x_BLD, x_BLD, key_padding_mask=padding)[0]
    hidden_BLF = block.mlp.w_in(block.norm2(z_BLD))
    approximate = block.mlp.approximate
    return z_BLD + block.mlp.w_out(nn.GELU(approximate)(hidden_BLF))


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_a_block_equals_one_of_torchs_own_parts(gelu):
    block = build_block(gelu=gelu)
    z_BLD = torch.randn(3, 5, 8)
    outputs = block(z_BLD, mask_BL=None)
    assert_close(outputs.values_BLD, slow_block(block, z_BLD), atol=1e-5, rtol=1e-5)
    assert outputs.balance == ()


def test_padding_is_not_looked_at():
    block = build_block()
    z_BLD = torch.randn(2, 5, 8)
    mask_BL = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    masked = block(z_BLD, mask_BL=mask_BL).values_BLD
    assert_close(masked[0], slow_block(block, z_BLD, mask_BL)[0], atol=1e-5, rtol=1e-5)
    alone = block(z_BLD[1:, :3], mask_BL=None).values_BLD
    assert_close(masked[1:, :3], alone, atol=1e-5, rtol=1e-5)


def test_stochastic_depth_leaves_out_whole_branches_example_by_example_without_rescaling():
    block = build_block(depth=1.0)
    z_BLD = torch.randn(1, 5, 8).expand(64, 5, 8)
    with torch.no_grad():
        dropped = block(z_BLD, mask_BL=None, drop_layer=0.5).values_BLD
        attended = z_BLD[:1] + block.attention(block.norm1(z_BLD[:1]), None)
        widened = z_BLD[:1] + block.mlp(block.norm2(z_BLD[:1]))
        both = block(z_BLD[:1], mask_BL=None).values_BLD
    kinds = torch.cat([z_BLD[:1], attended, widened, both])
    distances = (dropped[:, None] - kinds[None]).abs().amax((2, 3))
    nearest = distances.argmin(1)
    assert distances.gather(1, nearest[:, None]).max() < 1e-5
    assert nearest.bincount(minlength=4).min() >= 8  # 16 of each are expected


def test_the_share_dropped_is_that_of_the_blocks_depth():
    block = build_block(depth=0.5)
    z_BLD = torch.randn(2000, 1, 8)
    with torch.no_grad():
        dropped = block(z_BLD, mask_BL=None, drop_layer=0.6).values_BLD
    untouched = (dropped == z_BLD).all(-1).float().mean()
    assert_close(untouched, torch.tensor(0.09), atol=0.02, rtol=0)  # 0.3 for each of two branches


@pytest.mark.parametrize(
    ("drop_layer", "depth", "training"), [(0.5, 1.0, False), (0.5, 0.0, True), (0.0, 1.0, True)]
)
def test_stochastic_depth_is_off_in_eval_for_the_first_block_and_at_rate_zero(
    drop_layer, depth, training
):
    block = build_block(depth=depth).train(training)
    z_BLD = torch.randn(16, 5, 8)
    state = torch.get_rng_state()
    dropped = block(z_BLD, mask_BL=None, drop_layer=drop_layer).values_BLD
    assert torch.equal(torch.get_rng_state(), state)  # not even a number is drawn
    assert torch.equal(dropped, build_block().train(training)(z_BLD, mask_BL=None).values_BLD)


def test_experts_take_the_place_of_the_wide_layer():
    moe = MoE(
        8, name="toy", num_experts=4, k=2, hidden_dim=6, loss_weight=0.01, noise="none",
        residual="none",
    )  # fmt: skip
    block = build_block(moe=moe).eval()
    z_BLD = torch.randn(2, 5, 8)
    outputs = block(z_BLD, mask_BL=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))
    assert block.mlp is None
    assert [balance.counts_E.sum() for balance in outputs.balance] == [8 * 2]
    attended = z_BLD + block.attention(block.norm1(z_BLD), None)
    row_D = block.norm2(attended)[0, 0]
    gates = (row_D @ moe.gate.clean.weight.T).topk(2)
    mixed = sum(
        weight * (row_D @ moe.experts.w_in[e]).relu() @ moe.experts.w_out[e]
        for weight, e in zip(gates.values.softmax(0), gates.indices, strict=True)
    )
    assert_close(outputs.values_BLD[0, 0], attended[0, 0] + mixed, atol=1e-5, rtol=1e-5)
