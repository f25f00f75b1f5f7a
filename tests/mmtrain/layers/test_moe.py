import math
import statistics

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmtrain.layers.experts import ExpertShare, expert_share, is_expert
from mmtrain.layers.moe import ExpertShardError, MoE, expected_load, squared_variation

torch.set_num_threads(1)


def build_moe(*, dim: int = 6, num_experts: int = 5, k: int = 2, noise: str = "learned") -> MoE:
    """A layer whose gate is not zero, so that rows differ in their experts."""
    torch.manual_seed(0)
    moe = MoE(
        dim, name="toy", num_experts=num_experts, k=k, hidden_dim=9, loss_weight=0.01, noise=noise
    )
    torch.nn.init.normal_(moe.gate.clean.weight)
    return moe


def slow_mixture(moe: MoE, rows_ND: Tensor) -> Tensor:
    """Every expert on every row, weighted by the gates."""
    logits_NE = rows_ND @ moe.gate.clean.weight.T
    out = torch.zeros_like(rows_ND)
    for n, row_D in enumerate(rows_ND):
        best = logits_NE[n].argsort(descending=True)[: moe.gate.k]
        gates = logits_NE[n, best].softmax(0)
        for gate, expert in zip(gates, best.tolist(), strict=True):
            hidden = (row_D @ moe.experts.w_in[expert]).relu()
            out[n] = out[n] + gate * (hidden @ moe.experts.w_out[expert])
    return out


def test_dispatch_equals_the_dense_computation_with_gradients():
    moe = build_moe(noise="none")
    x_BLD = torch.randn(2, 7, 6, requires_grad=True)
    mask_BL1 = torch.ones(2, 7, 1)
    ours = moe(x_BLD, mask_BL1).values_BLD
    slow = moe.norm(x_BLD + slow_mixture(moe, x_BLD.flatten(0, 1)).view_as(x_BLD))
    assert_close(ours, slow, atol=1e-5, rtol=1e-5)
    inputs = (x_BLD, moe.experts.w_in, moe.experts.w_out, moe.gate.clean.weight)
    cotangent = torch.randn_like(ours)
    assert_close(
        torch.autograd.grad(ours, inputs, cotangent),
        torch.autograd.grad(slow, inputs, cotangent),
        atol=1e-5,
        rtol=1e-4,
    )


def test_padding_is_not_routed_and_leaves_real_rows_as_they_are():
    moe = build_moe().eval()
    x_BLD = torch.randn(1, 5, 6)
    mask_BL1 = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])[None, :, None]
    padded, short = moe(x_BLD, mask_BL1), moe(x_BLD[:, :3], mask_BL1[:, :3])
    assert padded.balance.counts_E.sum() == 3 * 2
    assert_close(padded.values_BLD[:, :3], short.values_BLD)
    assert_close(padded.balance.loss, short.balance.loss)


@pytest.mark.parametrize("training", [True, False])
def test_gates_have_exactly_k_weights_that_sum_to_one(training):
    moe = build_moe(k=3).train(training)
    gates = moe.gate(torch.randn(40, 6))
    assert gates.experts_NK.shape == (40, 3)
    assert all(len(set(row)) == 3 for row in gates.experts_NK.tolist())
    assert (gates.weights_NK > 0).all()
    assert_close(gates.weights_NK.sum(1), torch.ones(40))


def test_a_fresh_gate_loads_all_experts_alike():
    torch.manual_seed(0)
    moe = MoE(16, name="toy", num_experts=8, k=2, hidden_dim=4, loss_weight=1.0)
    load_E = moe.gate(torch.randn(4000, 16)).load_E
    assert_close(load_E / 4000, torch.full((8,), 0.25), atol=0.01, rtol=0)
    assert squared_variation(load_E) < 1e-3


def test_equal_values_have_no_variation_and_unequal_ones_what_the_formula_says():
    assert squared_variation(torch.full((4,), 3.0)) == 0
    assert_close(squared_variation(torch.tensor([1.0, 3.0])), torch.tensor(0.25))  # 1 / 2^2


def test_expected_load_compares_with_the_kth_largest_of_the_others():
    clean_NE = torch.tensor([[1.0, 0.5, -1.0]])
    noisy_NE = torch.tensor([[1.2, 0.4, 0.9]])  # k = 2: experts 0 and 2; thresholds .4, .9, .4
    load_E = expected_load(
        clean_NE,
        noisy_NE=noisy_NE,
        deviation_NE=torch.full((1, 3), 0.5),
        top_NK=noisy_NE.sort(descending=True).values,
    )
    phi = [0.5 * (1 + math.erf(z / math.sqrt(2))) for z in (1.2, -0.8, -2.8)]
    assert_close(load_E, torch.tensor(phi), atol=1e-6, rtol=1e-5)


def test_with_all_experts_active_the_layer_is_a_dense_mixture():
    moe = build_moe(num_experts=4, k=9).eval()
    rows_ND = torch.randn(6, 6)
    gates_NE = (rows_ND @ moe.gate.clean.weight.T).softmax(1)
    hidden_NEF = torch.einsum("nd,edf->nef", rows_ND, moe.experts.w_in).relu()
    dense_ND = torch.einsum("ne,nef,efd->nd", gates_NE, hidden_NEF, moe.experts.w_out)
    ours = moe(rows_ND[None], torch.ones(1, 6, 1)).values_BLD[0]
    assert_close(ours, moe.norm(rows_ND + dense_ND), atol=1e-5, rtol=1e-5)


def test_eval_is_deterministic_and_noise_follows_the_generator():
    moe = build_moe()
    x_BLD, mask_BL1 = torch.randn(1, 30, 6), torch.ones(1, 30, 1)
    moe.eval()
    assert torch.equal(moe(x_BLD, mask_BL1).values_BLD, moe(x_BLD, mask_BL1).values_BLD)
    moe.train()
    state = torch.get_rng_state()
    first, second = moe(x_BLD, mask_BL1).values_BLD, moe(x_BLD, mask_BL1).values_BLD
    torch.set_rng_state(state)
    assert torch.equal(first, moe(x_BLD, mask_BL1).values_BLD)
    assert not torch.equal(first, second)


def test_the_balancing_loss_reaches_both_weights_of_the_gate():
    moe = build_moe()
    moe(torch.randn(1, 30, 6), torch.ones(1, 30, 1)).balance.loss.backward()
    assert moe.gate.clean.weight.grad.abs().sum() > 0
    assert moe.gate.noise.weight.grad.abs().sum() > 0


def test_the_balancing_loss_is_the_variation_of_importance_and_of_load():
    moe = build_moe(noise="none").eval()
    rows_ND = torch.randn(7, 6)
    importance, load = [0.0] * 5, [0.0] * 5
    for logits in (rows_ND @ moe.gate.clean.weight.T).tolist():
        best = sorted(range(5), key=lambda expert: -logits[expert])[:2]
        whole = sum(math.exp(logits[expert]) for expert in best)
        for expert in best:
            importance[expert] += math.exp(logits[expert]) / whole
            load[expert] += 1
    squares = [statistics.pvariance(v) / statistics.mean(v) ** 2 for v in (importance, load)]
    found = moe(rows_ND[None], torch.ones(1, 7, 1)).balance.loss
    assert found.item() == pytest.approx(0.01 * sum(squares), rel=1e-5)


def test_the_noise_of_a_gate_has_a_deviation_of_a_hundredth_at_least():
    moe = build_moe(num_experts=3, k=3)
    torch.nn.init.constant_(moe.gate.noise.weight, -100.0)  # softplus gives 0
    rows_ND = torch.ones(50, 6)
    torch.manual_seed(1)
    weights_NK = moe.gate(rows_ND).weights_NK
    torch.manual_seed(1)
    noisy_NE = rows_ND @ moe.gate.clean.weight.T + 0.01 * torch.randn(50, 3)
    assert_close(weights_NK, noisy_NE.sort(dim=1, descending=True).values.softmax(1))


def test_the_load_alone_reaches_the_gate():
    moe = build_moe()
    squared_variation(moe.gate(torch.randn(30, 6)).load_E).backward()
    assert moe.gate.clean.weight.grad.abs().sum() > 0


def test_no_rows_at_all_give_no_nan():
    moe = build_moe()
    routed = moe(torch.randn(1, 3, 6), torch.zeros(1, 3, 1))
    (routed.values_BLD.sum() + routed.balance.loss).backward()
    assert routed.values_BLD.isfinite().all()
    assert moe.experts.w_in.grad.abs().sum() == 0


def test_expert_parameters_say_so():
    moe = build_moe()
    marked = [name for name, weight in moe.named_parameters() if is_expert(weight)]
    assert marked == ["experts.w_in", "experts.w_out"]
    assert expert_share(moe.experts.w_in) == ExpertShare(5, first=0)


def test_experts_that_do_not_divide_over_the_ranks_are_refused(monkeypatch):
    moe = build_moe(num_experts=5)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 2)
    with pytest.raises(
        ExpertShardError, match="5 experts of toy do not divide over 2 ranks; use 6"
    ):
        moe.shard_experts(object())
