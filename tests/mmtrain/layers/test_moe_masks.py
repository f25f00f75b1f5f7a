import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmtrain.layers.moe import GateNoise, MoE
from mmtrain.layers.units import gated

torch.set_num_threads(1)

DIM, EXPERTS = 6, 5


def build_moe(*, k: int = 2, noise: GateNoise = "learned", num_experts: int = EXPERTS) -> MoE:
    """A layer whose gate is not zero, so that rows differ in their experts."""
    torch.manual_seed(0)
    moe = MoE(
        DIM, name="toy", num_experts=num_experts, k=k, hidden_dim=9, loss_weight=0.1, noise=noise,
        residual="none",
    )  # fmt: skip
    for layer in (moe.gate.clean, moe.gate.noise):
        if layer is not None:
            torch.nn.init.normal_(layer.weight)
    return moe


def rows(count: int = 40) -> tuple[Tensor, Tensor]:
    x_BLD = torch.randn(1, count, DIM, generator=torch.Generator().manual_seed(1))
    return x_BLD, torch.ones(1, count, 1)


def outputs_of_experts(moe: MoE, x_BLD: Tensor) -> Tensor:
    """Every expert on every row, (N, E, D)."""
    hidden = torch.einsum("nd,edf->nef", x_BLD[0], moe.experts.w_in).relu()
    return torch.einsum("nef,efd->ned", hidden, moe.experts.w_out)


def test_an_expert_that_is_off_is_not_chosen_and_the_others_share_its_weight():
    moe = build_moe().eval()
    x_BLD, mask_BL1 = rows()
    on = [0, 2, 3]
    with gated(moe, {"expert_gate": torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])}):
        routed = moe(x_BLD, mask_BL1)
    scores_NE = moe.gate.clean(x_BLD[0])[:, on]
    best = scores_NE.topk(2, dim=1)
    weights_NE = torch.zeros_like(scores_NE).scatter(1, best.indices, best.values.softmax(1))
    slow = torch.einsum("ne,ned->nd", weights_NE, outputs_of_experts(moe, x_BLD)[:, on])
    assert_close(routed.values_BLD[0], slow, atol=1e-5, rtol=1e-5)
    assert routed.balance.counts_E[[1, 4]].tolist() == [0, 0]
    assert routed.balance.counts_E.sum() == 2 * 40


def test_a_row_has_no_more_experts_than_are_on():
    moe = build_moe(k=3).eval()
    x_BLD, mask_BL1 = rows()
    with gated(moe, {"expert_gate": torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])}):
        routed = moe(x_BLD, mask_BL1)
    assert_close(routed.values_BLD[0], outputs_of_experts(moe, x_BLD)[:, 1], atol=1e-5, rtol=1e-5)
    assert routed.balance.counts_E.tolist() == [0, 40, 0, 0, 0]
    assert routed.balance.loss == 0  # one expert has an even share


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("noise", ["learned", "none"])
def test_with_all_experts_on_it_is_the_layer_bit_for_bit(training, noise):
    moe = build_moe(noise=noise).train(training)
    x_BLD, mask_BL1 = rows()
    found = []
    for masks in ({}, {"expert_gate": torch.ones(EXPERTS), "experts.hidden_gate": torch.ones(9)}):
        torch.manual_seed(2)
        with gated(moe, {path: mask.requires_grad_() for path, mask in masks.items()}):
            routed = moe(x_BLD, mask_BL1)
        found.append((routed.values_BLD, routed.balance.loss, routed.balance.counts_E))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_the_mask_of_an_expert_has_the_gradient_of_what_the_expert_adds_or_would_add():
    moe = build_moe(noise="none")
    x_BLD, mask_BL1 = rows()
    mask_E = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], requires_grad=True)
    cotangent_ND = torch.randn(40, DIM)
    with gated(moe, {"expert_gate": mask_E}):
        (moe(x_BLD, mask_BL1).values_BLD[0] * cotangent_ND).sum().backward()
    scores_NE = moe.gate.clean(x_BLD[0])
    alone_NE = torch.einsum("nd,ned->ne", cotangent_ND, outputs_of_experts(moe, x_BLD))
    masked_NE = scores_NE.masked_fill(mask_E == 0, -torch.inf)
    slow_E = torch.zeros(EXPERTS)
    for expert in range(EXPERTS):
        chosen_by = masked_NE if mask_E[expert] else scores_NE
        best = chosen_by.topk(2, dim=1)
        weights_NE = torch.zeros_like(scores_NE).scatter(1, best.indices, best.values.softmax(1))
        slow_E[expert] = (weights_NE[:, expert] * alone_NE[:, expert]).sum()
    assert mask_E.grad is not None
    assert_close(mask_E.grad, slow_E, atol=1e-4, rtol=1e-4)
    assert (mask_E.grad != 0).all()


def test_an_expert_that_is_off_adds_nothing_where_its_mask_learns():
    moe = build_moe()
    x_BLD, mask_BL1 = rows()
    mask_E = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    found = []
    for mask in (mask_E, mask_E.clone().requires_grad_()):
        moe.zero_grad()
        torch.manual_seed(2)
        with gated(moe, {"expert_gate": mask}):
            routed = moe(x_BLD, mask_BL1)
        (routed.values_BLD.square().sum() + routed.balance.loss).backward()
        found.append((routed, moe.experts.w_in.grad, moe.gate.clean.weight.grad))
    (fixed, *fixed_grads), (learned, *learned_grads) = found
    assert_close(learned.values_BLD, fixed.values_BLD)
    assert torch.equal(learned.balance.counts_E, fixed.balance.counts_E)
    assert_close(learned_grads, fixed_grads)
    assert (learned_grads[0][[1, 3, 4]] == 0).all()


def test_balance_is_that_of_a_layer_with_the_experts_that_are_on():
    moe, small = build_moe(noise="none"), build_moe(noise="none", num_experts=3)
    on = torch.tensor([0, 2, 3])
    small.load_state_dict({name: value[on] for name, value in moe.state_dict().items()})
    x_BLD, mask_BL1 = rows()
    with gated(moe, {"expert_gate": torch.zeros(EXPERTS).index_fill(0, on, 1.0)}):
        masked = moe(x_BLD, mask_BL1)
    cut = small(x_BLD, mask_BL1)
    assert_close(masked.balance.loss, cut.balance.loss)
    assert_close(masked.values_BLD, cut.values_BLD, atol=1e-6, rtol=1e-6)
    assert torch.equal(masked.balance.counts_E[on], cut.balance.counts_E)


def test_hidden_units_that_are_off_add_nothing_and_have_gradients():
    moe = build_moe(k=EXPERTS).eval()
    x_BLD, mask_BL1 = rows()
    mask_F = torch.tensor([1.0, 0.0, 1.0] * 3, requires_grad=True)
    with gated(moe, {"experts.hidden_gate": mask_F}):
        values = moe(x_BLD, mask_BL1).values_BLD[0]
    hidden_NEF = torch.einsum("nd,edf->nef", x_BLD[0], moe.experts.w_in).relu() * mask_F
    weights_NE = moe.gate.clean(x_BLD[0]).softmax(1)
    slow = torch.einsum("ne,nef,efd->nd", weights_NE, hidden_NEF, moe.experts.w_out)
    assert_close(values, slow, atol=1e-5, rtol=1e-5)
    (ours,) = torch.autograd.grad(values.square().sum(), mask_F, retain_graph=True)
    (twin,) = torch.autograd.grad(slow.square().sum(), mask_F)
    assert_close(ours, twin, atol=1e-3, rtol=1e-4)
    assert (ours != 0).all()
