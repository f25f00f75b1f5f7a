import torch
from torch import Tensor
from torch.testing import assert_close

from mmtrain.layers.attention import dot_product
from mmtrain.layers.positions import causal_bias, padding_bias


def slow_attention(query_BLD: Tensor, key_BMD: Tensor, num_heads: int, seen: Tensor) -> Tensor:
    """One example, head and position at a time; `seen` (B, L, M) says what may be looked at."""
    out = torch.zeros_like(query_BLD)
    width = query_BLD.shape[2] // num_heads
    for b in range(query_BLD.shape[0]):
        for h in range(num_heads):
            part = slice(h * width, (h + 1) * width)
            for t in range(query_BLD.shape[1]):
                keys = key_BMD[b, seen[b, t], part]
                weights = (keys @ query_BLD[b, t, part] / width**0.5).softmax(0)
                out[b, t, part] = weights @ keys
    return out


def test_attention_is_the_formula_over_what_may_be_seen():
    torch.manual_seed(0)
    x_BLD = torch.randn(2, 5, 8)
    mask_BM = torch.tensor([[True] * 5, [True, True, True, False, False]])
    bias = torch.minimum(
        causal_bias(5, past=0, like=x_BLD), padding_bias(mask_BM, dtype=torch.float32)
    )
    ours = dot_product(x_BLD, key_BMD=x_BLD, value_BMD=x_BLD, bias=bias, num_heads=4)
    seen = torch.ones(5, 5).tril().bool() & mask_BM[:, None, :]
    assert_close(ours, slow_attention(x_BLD, x_BLD, 4, seen), atol=1e-5, rtol=1e-5)


def test_a_row_with_nothing_to_see_is_finite():
    x_BLD = torch.randn(1, 3, 4)
    bias = padding_bias(torch.zeros(1, 3, dtype=torch.bool), dtype=torch.float32)
    out = dot_product(x_BLD, key_BMD=x_BLD, value_BMD=x_BLD, bias=bias, num_heads=2)
    assert out.isfinite().all()


def test_a_causal_bias_after_a_past_lets_the_past_be_seen():
    bias_LM = causal_bias(2, past=3, like=torch.zeros(1))
    assert (bias_LM == 0).tolist() == [[True] * 4 + [False], [True] * 5]
